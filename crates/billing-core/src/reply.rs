//! What the ledger answers, and what it shows of its state. Views are copies with remaining times instead of ClusterTimes,
//! because ClusterTime means nothing outside. Decides nothing.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

use crate::command::Terms;
use crate::currency::Currency;
use crate::ids::*;
use crate::rejection::Rejection;

/// The answer to a command that was not refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    Bootstrapped {
        ledger_id: LedgerId,
    },
    Restored {
        ledger_id: LedgerId,
    },
    /// To OpenSession and KeepAlive.
    Session(SessionView),
    SessionClosed {
        was_open: bool,
    },
    Leased(Leased),
    /// The acquire stands in the queue; its answer comes later, in [`Applied::answers`].
    Queued,
    WaiterWithdrawn {
        was_waiting: bool,
    },
    Renewed(LeaseView),
    Released {
        was_current: bool,
    },
    Claimed(Claimed),
    /// `unchanged`: it was submitted before, with the same contents.
    Submitted {
        unchanged: bool,
    },
    /// To CancelInvoice, RequeueInvoice, SettleCharge, ResolveCharge.
    Status {
        status: InvoiceStatus,
    },
    Begun(Box<ChargeAttempt>),
    /// The recorded object, which may be another's: confirm this one only.
    Attached {
        object: ObjectId,
    },
    ForceReleased {
        was_leased: bool,
        status: InvoiceStatus,
    },
    /// To PauseProvider, AllowCharges, Tick.
    Done,
    /// To AcquireLeases, RenewLeases, ReleaseLeases: a result per item, in their order. An acquire that is queued says so
    /// here, and its answer comes by its slot like any other waiter's.
    Each(Vec<Result<Reply, Rejection>>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leased {
    pub lease: LeaseView,
    /// The attempt that this holder must continue or look up, not repeat.
    pub open_attempt: Option<Box<ChargeAttempt>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claimed {
    pub leased: Vec<ClaimedInvoice>,
    /// Nothing claimed: when the next invoice becomes due, as far as the ledger knows.
    pub next_due_in_ms: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimedInvoice {
    pub lease: LeaseView,
    pub bill: Bill,
    pub open_attempt: Option<ChargeAttempt>,
}

/// The later answer to an acquire that was [`Reply::Queued`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaiterAnswer {
    pub session: SessionId,
    pub seq: Seq,
    pub result: Result<Reply, Rejection>,
}

/// What one `apply` did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// One per command, at its position.
    pub results: Vec<Result<Reply, Rejection>>,
    /// Waiters that were decided, in the order in which they were.
    pub answers: Vec<WaiterAnswer>,
    /// For a person's eye, now.
    pub alarms: Vec<Alarm>,
}

/// Money moved in a way that the rules did not foresee.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    pub invoice: InvoiceId,
    pub reference: Reference,
    pub reason: ReviewReason,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionView {
    pub session: SessionId,
    pub holder: HolderId,
    pub ttl_ms: u64,
    /// None: an implicit session that still waits for its lease.
    pub expires_in_ms: Option<u64>,
    pub leases: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseView {
    pub invoice: InvoiceId,
    pub token: FencingToken,
    pub holder: HolderId,
    pub session: SessionId,
    /// Until the lease's own or its session's deadline, whichever comes first.
    pub expires_in_ms: u64,
}

/// What a watcher hears: a lease was granted, or ended. Renewals are no events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseEvent {
    /// The audit record's: grows, and is the same on every replica.
    pub index: u64,
    pub kind: LeaseEventKind,
    pub invoice: InvoiceId,
    pub token: FencingToken,
    pub holder: HolderId,
    pub at: ClusterTime,
    /// Why, in the audit log's words.
    pub what: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseEventKind {
    Granted,
    /// Released, expired, settled, forced, or its session ended.
    Ended,
}

/// A page of [`LeaseEvent`]s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseEvents {
    pub events: Vec<LeaseEvent>,
    /// What to ask for next: everything below was looked at.
    pub next_index: u64,
    /// Whoever asks for less has missed something.
    pub oldest_index: u64,
}

/// A submitted sum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bill {
    pub invoice: InvoiceId,
    pub customer: CustomerId,
    pub amount: AmountMinor,
    pub currency: Currency,
    pub due_at: WallTime,
    pub priority: Priority,
}

/// One charge attempt, as the gate and people see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChargeAttempt {
    pub number: AttemptNumber,
    pub idempotency_key: IdempotencyKey,
    /// Whose BeginCharge opened or last continued it.
    pub token: FencingToken,
    pub state: AttemptState,
    /// No send later than this after BeginCharge was sent. 0: not at all.
    pub send_within_ms: u64,
    pub provider_object: Option<ObjectId>,
    /// Somebody else may have sent under this key.
    pub taken_over: bool,
    /// None: known only from a report that named its key.
    pub terms: Option<Arc<Terms>>,
    /// How long until a lease can be granted under which a look-up that finds nothing counts. 0 once that is now.
    pub look_up_in_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum AttemptState {
    Open,
    /// A decline was heard that does not prove that nothing succeeded. Never sent again; ends by evidence.
    Closing,
    /// Money moved.
    Settled,
    Declined,
    /// Nothing moved: its object was cancelled, a look-up in time found nothing, or a person said so.
    Cancelled,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvoiceView {
    pub invoice: InvoiceId,
    /// None: never submitted (a plain lease, or a charge reported for an unknown id).
    pub bill: Option<Bill>,
    pub status: InvoiceStatus,
    pub lease: Option<LeaseView>,
    pub open_attempt: Option<ChargeAttempt>,
    /// The first recorded charge.
    pub charge_reference: Option<Reference>,
    /// Every recorded charge; more than one is in front of a person.
    pub charge_references: Vec<Reference>,
    /// The highest attempt number ever seen; 0: none.
    pub attempts: u32,
    pub waiters: u64,
    /// How long until BeginCharge is allowed and a claim may take it; 0: now.
    pub next_try_in_ms: u64,
    pub review: Option<ReviewReason>,
    /// The last decline's code.
    pub declined: Option<DeclineCode>,
}

/// Status, as people see it (§2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum InvoiceStatus {
    Pending,
    Processing,
    Charging,
    InDoubt,
    Waiting,
    Paid,
    Failed,
    Review,
    Cancelled,
}

impl InvoiceStatus {
    pub const ALL: [Self; 9] = [
        Self::Pending,
        Self::Processing,
        Self::Charging,
        Self::InDoubt,
        Self::Waiting,
        Self::Paid,
        Self::Failed,
        Self::Review,
        Self::Cancelled,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Processing => "PROCESSING",
            Self::Charging => "CHARGING",
            Self::InDoubt => "IN_DOUBT",
            Self::Waiting => "WAITING",
            Self::Paid => "PAID",
            Self::Failed => "FAILED",
            Self::Review => "REVIEW",
            Self::Cancelled => "CANCELLED",
        }
    }
}

impl fmt::Display for InvoiceStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why an invoice is in front of a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ReviewReason {
    /// No answer until nothing can be in flight any more, and the provider cannot be asked.
    Unanswered,
    /// A second charge was reported.
    SecondCharge,
    /// Another sum was charged than invoiced.
    OtherSum,
    /// A charge was reported under an attempt that was not open.
    AttemptNotOpen,
    /// A charge was reported for a cancelled invoice.
    WasCancelled,
    /// A charge was reported for an invoice that is not known, or not submitted.
    NotSubmitted,
}

impl fmt::Display for ReviewReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unanswered => "no answer, and the provider cannot be asked",
            Self::SecondCharge => "charged a second time",
            Self::OtherSum => "charged with another sum than invoiced",
            Self::AttemptNotOpen => "charged under an attempt that was not open",
            Self::WasCancelled => "charged although cancelled",
            Self::NotSubmitted => "charged although never submitted",
        })
    }
}
