//! The records of the ledger, and what can be read off one of them alone: its status, when its next event falls, whether a
//! look-up would count. Changes nothing and knows no other record. Fields marked "derived" are rebuilt from the rest.

use serde::{Deserialize, Serialize};
use std::sync::Arc;

use crate::command::{Charged, Finality, Terms};
use crate::cow::CowMap;
use crate::currency::Currency;
use crate::ids::*;
use crate::rejection::Rejection;
use crate::reply::{AttemptState, InvoiceStatus, ReviewReason};
use crate::sabotaged;
use crate::table::{Named, spread};

/// One worker process's liveness.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Session {
    pub id: SessionId,
    pub holder: HolderId,
    pub ttl: TtlMs,
    /// None: an implicit session whose request still waits; the waiter's deadline bounds it.
    pub deadline: Option<ClusterTime>,
    pub implicit: bool,
    /// Answers below this seq are no longer kept.
    pub floor: u64,
    /// Requests that have their answer, by seq. Hashed one by one, so that they are not all hashed again with each.
    pub answered: CowMap<u64, Request>,
    /// Requests that stand in a queue, by seq.
    pub waiting: CowMap<u64, Request>,
    /// Derived.
    #[serde(skip)]
    pub leases: CowMap<FencingToken, InvoiceId>,
    /// Derived: what the sum of digests holds of this session without its requests.
    #[serde(skip)]
    pub digest: u128,
    /// Derived: changed since then.
    #[serde(skip)]
    pub stale: bool,
    /// The number of the apply that changed it last.
    #[serde(skip)]
    pub touched: u64,
}

impl Named for Session {
    type Name = SessionId;
    fn name(&self) -> &SessionId {
        &self.id
    }
    fn hash(name: &SessionId) -> u64 {
        spread(name.as_bytes())
    }
}

impl Named for Ended {
    type Name = SessionId;
    fn name(&self) -> &SessionId {
        &self.id
    }
    fn hash(name: &SessionId) -> u64 {
        spread(name.as_bytes())
    }
}

impl Named for Invoice {
    type Name = InvoiceId;
    fn name(&self) -> &InvoiceId {
        &self.id
    }
    fn hash(name: &InvoiceId) -> u64 {
        spread(name.as_str().as_bytes())
    }
}

impl Session {
    pub fn request(&self, seq: Seq) -> Option<&Request> {
        let seq = seq.get();
        self.answered.get(&seq).or_else(|| self.waiting.get(&seq))
    }

    pub fn request_mut(&mut self, seq: Seq) -> Option<&mut Request> {
        let seq = seq.get();
        match self.answered.get_mut(&seq) {
            Some(answered) => Some(answered),
            None => self.waiting.get_mut(&seq),
        }
    }

    pub fn requests(&self) -> impl Iterator<Item = &Request> {
        self.answered.values().chain(self.waiting.values())
    }

    /// What the session's own digest covers; requests and leases are hashed where they are kept.
    pub fn hashed(&self) -> impl Serialize + '_ {
        (
            &self.id,
            &self.holder,
            self.ttl,
            self.deadline,
            self.implicit,
            self.floor,
        )
    }
}

/// What a seq asked for, and its answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub seq: Seq,
    pub ask: Ask,
    pub answer: Answer,
    /// Derived; None: not in the sum of digests yet.
    #[serde(skip)]
    pub digest: Option<u128>,
}

impl Request {
    pub fn is_queued(&self) -> bool {
        match self.answer {
            Answer::Queued { .. } => true,
            Answer::Granted { .. }
            | Answer::Claimed { .. }
            | Answer::Refused(_)
            | Answer::Withdrawn => false,
        }
    }

    pub fn hashed(&self, session: SessionId) -> impl Serialize + '_ {
        (session, self.seq, &self.ask, &self.answer)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ask {
    Acquire {
        invoice: InvoiceId,
        wait: WaitMs,
        ttl: Option<TtlMs>,
    },
    Claim {
        max: ClaimMax,
    },
    /// Withdrawn before it ever arrived: whatever it asks, it is refused.
    NeverSeen,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Queued {
        deadline: ClusterTime,
        ticket: u64,
    },
    Granted {
        token: FencingToken,
    },
    Claimed {
        leases: Vec<(InvoiceId, FencingToken)>,
    },
    Refused(Box<Rejection>),
    Withdrawn,
}

/// An ended session: its id is never revived.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub id: SessionId,
    pub at: ClusterTime,
    pub how: EndedHow,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum EndedHow {
    /// One that a client had opened.
    Opened,
    /// An implicit one that held a lease; NONE: it was withdrawn before.
    Leased { token: FencingToken },
    /// An implicit one whose request was refused.
    Refused(Box<Rejection>),
}

impl EndedHow {
    pub fn implicit(&self) -> bool {
        match self {
            Self::Opened => false,
            Self::Leased { .. } | Self::Refused(_) => true,
        }
    }
}

/// Everything known of one invoice. A record that was never submitted lives only as long as its lease, unless a charge was
/// reported for it.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Invoice {
    pub id: InvoiceId,
    pub sum: Option<Sum>,
    pub phase: Phase,
    pub lease: Option<Lease>,
    /// The newest token ever granted here.
    pub token_last: FencingToken,
    /// Whether the last lease ended because its time ran out.
    pub last_expired: bool,
    pub attempts: Vec<Attempt>,
    /// The highest attempt number seen, whoever reported it; 0: none.
    pub number_last: u32,
    /// Attempts that ended without money since the invoice was submitted or requeued.
    pub retries: u32,
    /// Leases that ended with the open attempt unanswered.
    pub doubts: u32,
    pub next_try: ClusterTime,
    /// The provider is at work until then.
    pub waiting_until: Option<ClusterTime>,
    pub object: Option<Object>,
    pub charges: Vec<Charge>,
    /// The last report that a token settled with: the same again is answered, not refused.
    pub settled_last: Option<SettledLast>,
    /// Derived from the sessions' requests, by their tickets.
    #[serde(skip)]
    pub queue: CowMap<u64, Waiter>,
    /// Derived: where the indexes list this record.
    #[serde(skip)]
    pub filed: Filed,
    /// Derived: what the sum of digests holds of it.
    #[serde(skip)]
    pub digest: u128,
    /// Derived: changed since then.
    #[serde(skip)]
    pub stale: bool,
    /// The number of the apply that changed it last.
    #[serde(skip)]
    pub touched: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Sum {
    pub customer: CustomerId,
    pub amount: AmountMinor,
    pub currency: Currency,
    pub due_at: WallTime,
    pub priority: Priority,
    /// Counts submissions in the whole ledger.
    pub order: u64,
}

/// What leases and attempts do not say already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    Ready,
    Paid,
    Failed,
    Review(ReviewReason),
    Cancelled,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Lease {
    pub token: FencingToken,
    pub session: SessionId,
    pub granted_at: ClusterTime,
    pub granted_wall: WallTime,
    pub own: Option<OwnTtl>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct OwnTtl {
    pub ttl: TtlMs,
    pub deadline: ClusterTime,
}

#[derive(Clone, Debug)]
pub(crate) struct Waiter {
    pub session: SessionId,
    pub seq: Seq,
    pub ttl: Option<TtlMs>,
    pub deadline: ClusterTime,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Object {
    pub id: ObjectId,
    pub provider: ProviderId,
    pub account: AccountId,
    pub live: bool,
    pub cancelled: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Charge {
    pub reference: Reference,
    pub number: AttemptNumber,
    pub amount: Option<AmountMinor>,
    pub currency: Option<Currency>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SettledLast {
    pub token: FencingToken,
    pub number: AttemptNumber,
    pub outcome: u128,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Attempt {
    pub number: AttemptNumber,
    pub state: AttemptState,
    pub opened_by: FencingToken,
    /// Whose BeginCharge came last.
    pub token: FencingToken,
    pub taken_over: bool,
    /// None: known only from a report; never open.
    pub terms: Option<Arc<Terms>>,
    pub not_after: ClusterTime,
    pub not_after_wall: WallTime,
    pub decline: Option<Decline>,
    /// Why it is no longer open or closing. None while it is.
    pub proof: Option<Proof>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Decline {
    pub code: DeclineCode,
    pub retryable: bool,
}

/// The evidence under which an attempt ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Proof {
    Charged {
        reference: Reference,
    },
    Declined {
        finality: Finality,
        object: Option<ObjectId>,
    },
    LookedUp {
        granted_at: ClusterTime,
        granted_wall: WallTime,
    },
    ObjectCancelled {
        object: ObjectId,
    },
    Person {
        at: ClusterTime,
        evidence: Evidence,
    },
}

impl Attempt {
    pub fn is_live(&self) -> bool {
        match self.state {
            AttemptState::Open | AttemptState::Closing => true,
            AttemptState::Settled | AttemptState::Declined | AttemptState::Cancelled => false,
        }
    }

    fn in_flight_ms(&self) -> u64 {
        self.terms
            .as_ref()
            .map_or(0, |terms| terms.in_flight_max.get())
    }

    /// Whether a decline that was heard under its key is repeated to every send of it.
    pub fn keeps_declines(&self) -> bool {
        self.terms.as_ref().is_some_and(|terms| terms.sticky)
    }

    pub fn can_look_up(&self) -> bool {
        self.terms.as_ref().is_some_and(|terms| terms.can_look_up)
    }

    /// From here on nothing sent under the key can still be in flight.
    pub fn quiet_at(&self) -> ClusterTime {
        self.not_after.plus(self.in_flight_ms())
    }

    pub fn quiet_wall(&self) -> WallTime {
        self.not_after_wall.plus(self.in_flight_ms())
    }

    /// Whether a look-up under a lease granted then proves that nothing succeeded. Both clocks must agree (§4).
    pub fn look_up_counts(&self, granted_at: ClusterTime, granted_wall: WallTime) -> bool {
        self.can_look_up() && granted_at > self.quiet_at() && granted_wall > self.quiet_wall()
    }

    /// Either clock forbids a send.
    pub fn send_within_ms(&self, now: ClusterTime, wall: WallTime) -> u64 {
        match self.state {
            AttemptState::Open if sabotaged!(NotAfterInClusterTimeAlone) => {
                now.ms_until(self.not_after)
            }
            AttemptState::Open => now
                .ms_until(self.not_after)
                .min(wall.ms_until(self.not_after_wall)),
            AttemptState::Closing
            | AttemptState::Settled
            | AttemptState::Declined
            | AttemptState::Cancelled => 0,
        }
    }
}

impl Charge {
    pub fn new(charged: &Charged, number: AttemptNumber) -> Self {
        Self {
            reference: charged.reference.clone(),
            number,
            amount: charged.amount,
            currency: charged.currency,
        }
    }
}

/// In a claim's order: due first, then the higher priority, then who was submitted first.
pub(crate) type DueKey = (WallTime, std::cmp::Reverse<Priority>, u64);

/// Where the indexes list a record. Compared with what it should be after each change of the record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filed {
    pub status: Option<InvoiceStatus>,
    /// It is there for more than a lease.
    pub named: bool,
    /// PENDING and past its back-off.
    pub due: Option<DueKey>,
    /// IN_DOUBT: when a claim may take it.
    pub doubt: Option<ClusterTime>,
    /// The next moment at which time alone changes the record.
    pub event: Option<ClusterTime>,
}

impl Invoice {
    pub fn new(id: InvoiceId) -> Self {
        Self {
            id,
            sum: None,
            phase: Phase::Ready,
            lease: None,
            token_last: FencingToken::NONE,
            last_expired: false,
            attempts: Vec::new(),
            number_last: 0,
            retries: 0,
            doubts: 0,
            next_try: ClusterTime::default(),
            waiting_until: None,
            object: None,
            charges: Vec::new(),
            settled_last: None,
            queue: CowMap::default(),
            filed: Filed::default(),
            digest: 0,
            stale: false,
            touched: 0,
        }
    }

    pub fn live(&self) -> Option<&Attempt> {
        self.attempts.iter().rev().find(|attempt| attempt.is_live())
    }

    pub fn live_mut(&mut self) -> Option<&mut Attempt> {
        self.attempts
            .iter_mut()
            .rev()
            .find(|attempt| attempt.is_live())
    }

    pub fn status(&self) -> InvoiceStatus {
        match self.phase {
            Phase::Paid => InvoiceStatus::Paid,
            Phase::Failed => InvoiceStatus::Failed,
            Phase::Review(_) => InvoiceStatus::Review,
            Phase::Cancelled => InvoiceStatus::Cancelled,
            Phase::Ready => match (&self.lease, self.live()) {
                (Some(_), Some(_)) => InvoiceStatus::Charging,
                (Some(_), None) => InvoiceStatus::Processing,
                (None, Some(_)) if self.waiting_until.is_some() => InvoiceStatus::Waiting,
                (None, Some(_)) => InvoiceStatus::InDoubt,
                (None, None) => InvoiceStatus::Pending,
            },
        }
    }

    /// Nothing but a lease is known of it: the record goes away with that.
    pub fn is_plain(&self) -> bool {
        self.sum.is_none()
            && self.phase == Phase::Ready
            && self.attempts.is_empty()
            && self.charges.is_empty()
    }

    /// Nothing holds the record but the lease that has ended.
    pub fn is_spent(&self) -> bool {
        self.is_plain() && self.lease.is_none() && self.queue.is_empty()
    }

    /// The recorded object that a charge must go through.
    pub fn standing_object(&self) -> Option<&Object> {
        self.object.as_ref().filter(|object| !object.cancelled)
    }

    /// When an unanswered attempt goes in front of a person: nothing in flight any more, and nobody to ask.
    pub fn review_at(&self) -> Option<ClusterTime> {
        let attempt = self.live()?;
        if attempt.can_look_up() {
            return None;
        }
        Some(
            self.waiting_until
                .map_or(attempt.quiet_at(), |until| until.max(attempt.quiet_at())),
        )
    }

    /// When a claim may take it while IN_DOUBT; None: only a person, or a webhook, can end it.
    fn doubt_due(&self, attempt: &Attempt) -> Option<ClusterTime> {
        let sendable = attempt.state == AttemptState::Open && self.next_try < attempt.not_after;
        if sendable {
            Some(self.next_try)
        } else if attempt.can_look_up() {
            Some(self.next_try.max(attempt.quiet_at().plus(1))) // Granted *after*: a look-up under this lease counts.
        } else {
            None
        }
    }

    /// Where the indexes must list this record, at this time.
    pub fn filing(&self, now: ClusterTime) -> Filed {
        let status = self.status();
        let mut filed = Filed {
            status: Some(status),
            named: !self.is_plain(),
            due: None,
            doubt: None,
            event: None,
        };
        match status {
            InvoiceStatus::Pending => {
                if self.next_try > now {
                    filed.event = Some(self.next_try);
                } else if let Some(sum) = &self.sum {
                    filed.due = Some((sum.due_at, std::cmp::Reverse(sum.priority), sum.order));
                }
            }
            InvoiceStatus::Processing | InvoiceStatus::Charging => {
                filed.event = self
                    .lease
                    .as_ref()
                    .and_then(|lease| lease.own)
                    .map(|own| own.deadline);
            }
            InvoiceStatus::InDoubt => {
                filed.doubt = self.live().and_then(|attempt| self.doubt_due(attempt));
                filed.event = self.review_at();
            }
            InvoiceStatus::Waiting => filed.event = self.waiting_until,
            // Nothing happens then, but a person waits for ClusterTime to get there.
            InvoiceStatus::Review => {
                filed.event = self
                    .live()
                    .map(Attempt::quiet_at)
                    .filter(|quiet_at| *quiet_at > now);
            }
            InvoiceStatus::Paid | InvoiceStatus::Failed | InvoiceStatus::Cancelled => {}
        }
        filed
    }
}
