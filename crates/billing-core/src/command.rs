//! What can be asked of the ledger: one struct per command, every field checked when it is made. Commands travel in the log,
//! so a field may be added only together with a new format version. Decides nothing.

use serde::{Deserialize, Serialize};
use std::sync::Arc;

use crate::currency::Currency;
use crate::ids::*;

/// One change asked of the ledger. The rules are §3's table. The log names a variant by its place: a new one goes to the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    Bootstrap(Bootstrap),
    Restore(Restore),
    OpenSession(OpenSession),
    KeepAlive(KeepAlive),
    CloseSession(CloseSession),
    AcquireLease(AcquireLease),
    WithdrawWaiter(WithdrawWaiter),
    RenewLease(RenewLease),
    ReleaseLease(ReleaseLease),
    ClaimInvoices(ClaimInvoices),
    SubmitInvoice(SubmitInvoice),
    CancelInvoice(CancelInvoice),
    RequeueInvoice(RequeueInvoice),
    BeginCharge(BeginCharge),
    AttachProviderObject(AttachProviderObject),
    SettleCharge(Box<SettleCharge>),
    ResolveCharge(Box<ResolveCharge>),
    ForceRelease(ForceRelease),
    PauseProvider(PauseProvider),
    AllowCharges(AllowCharges),
    /// Time only.
    Tick,
    /// Many in one command, as if each stood alone, in their order: one that is refused does not stop the next.
    AcquireLeases(Vec<AcquireLease>),
    RenewLeases(Vec<RenewLease>),
    ReleaseLeases(Vec<ReleaseLease>),
    BootstrapWithin(BootstrapWithin),
}

/// The first command of a new log. Until it, everything else but Tick is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bootstrap {
    pub ledger_id: LedgerId,
    /// The operator says that nothing was ever charged under this ledger id. Otherwise charges wait for AllowCharges, and
    /// leases for the longest TTL.
    pub no_prior_charges: bool,
}

/// A [`Bootstrap`] of a ledger that knows no TTL above `ttl_max`, for good: so long do grants wait after a restore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootstrapWithin {
    pub bootstrap: Bootstrap,
    pub ttl_max: TtlMs,
}

/// The first command after a backup was put back. Ends every session, moves the tokens beyond any that was granted since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    pub reason: Evidence,
}

/// Idempotent by id: the same again keeps the session alive, with another holder or TTL it is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenSession {
    pub session: SessionId,
    pub holder: HolderId,
    pub ttl: TtlMs,
}

/// Moves the session's deadline to the batch's new now + TTL. Judged against the time before the batch (§4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepAlive {
    pub session: SessionId,
}

/// Ends the session, its leases and its waiters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloseSession {
    pub session: SessionId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcquireLease {
    pub invoice: InvoiceId,
    pub requester: Requester,
    /// How long to stand in the invoice's queue if it is held; 0: answer at once.
    pub wait: WaitMs,
}

/// On whose behalf a lease is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Requester {
    /// A client that keeps a session alive. `ttl`: a TTL of the lease's own, on top of the session's.
    Session {
        session: SessionId,
        seq: Seq,
        /// The client needs no answer below this seq any more. 0: as 1.
        done_below: u64,
        ttl: Option<TtlMs>,
    },
    /// A plain client: the session is made with the grant, has the request's id, and ends with the lease. Its only seq is 1.
    Implicit {
        request: RequestId,
        holder: HolderId,
        ttl: TtlMs,
    },
}

impl Requester {
    /// Under which session and seq the answer is kept, and an answer of a waiter comes out of `apply`.
    #[must_use]
    pub fn slot(&self) -> (SessionId, Seq) {
        match self {
            Self::Session { session, seq, .. } => (*session, *seq),
            Self::Implicit { request, .. } => (request.session(), Seq::FIRST),
        }
    }
}

/// A call was cancelled: takes its waiter out of the queue. Never ends a lease that was granted meanwhile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WithdrawWaiter {
    pub session: SessionId,
    pub seq: Seq,
}

/// Extends a lease's own TTL, or the implicit session's, to now + ttl.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewLease {
    pub invoice: InvoiceId,
    pub token: FencingToken,
    /// None: the TTL it has. A lease without a TTL of its own gets one by naming it.
    pub ttl: Option<TtlMs>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReleaseLease {
    ByToken {
        invoice: InvoiceId,
        token: FencingToken,
    },
    /// For a request whose answer was lost: withdraws the waiter or ends the lease (a claim's: all of them). A late copy of
    /// that request is refused, even if it never arrived before.
    BySeq { session: SessionId, seq: Seq },
}

/// Leases the next due invoices. Shares the session's seq with AcquireLease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimInvoices {
    pub session: SessionId,
    pub seq: Seq,
    pub done_below: u64,
    pub max: ClaimMax,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubmitInvoice {
    pub invoice: InvoiceId,
    pub customer: CustomerId,
    pub amount: AmountMinor,
    pub currency: Currency,
    /// None: the wall time of the entry.
    pub due_at: Option<WallTime>,
    pub priority: Priority,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelInvoice {
    pub invoice: InvoiceId,
    pub reason: Option<Evidence>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequeueInvoice {
    pub invoice: InvoiceId,
    pub reason: Option<Evidence>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BeginCharge {
    pub invoice: InvoiceId,
    pub token: FencingToken,
    pub terms: Arc<Terms>,
}

/// What the gate knows of the provider, fixed for the whole attempt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Terms {
    pub provider: ProviderId,
    pub account: AccountId,
    /// Real money, not the provider's test mode.
    pub live: bool,
    pub fingerprint: Fingerprint,
    pub valid_for: ValidForMs,
    pub in_flight_max: InFlightMs,
    pub can_look_up: bool,
    /// The provider keeps declines under the key.
    pub sticky: bool,
}

impl Terms {
    /// What BeginCharge without terms means: profile `manual`, where a person or a script of theirs does the charging.
    #[must_use]
    pub fn manual() -> Self {
        Self {
            provider: ProviderId::constant("manual"),
            account: AccountId::constant("manual"),
            live: true,
            fingerprint: Fingerprint::constant(b"manual"),
            valid_for: ValidForMs::MANUAL,
            in_flight_max: InFlightMs::MANUAL,
            can_look_up: false,
            sticky: false,
        }
    }
}

/// Records the provider's single-use object before it is confirmed. The first one wins; the reply names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachProviderObject {
    pub invoice: InvoiceId,
    pub token: FencingToken,
    pub object: ObjectId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettleCharge {
    pub invoice: InvoiceId,
    /// NONE for a webhook: enough for facts about money, not for anything else.
    pub token: FencingToken,
    pub key: IdempotencyKey,
    pub outcome: Outcome,
}

/// What became of a charge attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Money moved.
    Charged(Charged),
    /// A parsed decline.
    Declined {
        code: DeclineCode,
        retryable: bool,
        finality: Finality,
    },
    /// What the provider's books say. None: nothing succeeded *or still may* (processing, requires_action,
    /// requires_capture are not none).
    LookedUp(Option<Charged>),
    /// The single-use object can never succeed any more.
    Cancelled { object: ObjectId },
    /// The provider is at work (bank debit, customer must act) until about then, 30 days at most.
    Pending { expected_by: WallTime },
    /// Timeout, dropped connection, 409, other 4xx, 5xx, an unparsable body.
    Unknown { detail: Option<Detail> },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charged {
    pub reference: Reference,
    /// None: as invoiced.
    pub amount: Option<AmountMinor>,
    /// None: as invoiced.
    pub currency: Option<Currency>,
}

/// Why a decline is the last word on its key. The ledger checks what it can; what does not hold proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Finality {
    /// Proves nothing: another send of the key may have succeeded, or still may.
    None,
    /// The provider keeps declines under the key; the terms must say so.
    Sticky,
    /// The gate's only send under this key; this token opened the attempt, and it was never taken over.
    SoleSend,
    /// A single-use object is recorded, and the next attempt confirms the same one.
    Object,
}

/// A person's word on an unknown outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolveCharge {
    pub invoice: InvoiceId,
    pub key: IdempotencyKey,
    pub verdict: Verdict,
    pub evidence: Evidence,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    Charged(Charged),
    NotCharged,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForceRelease {
    pub invoice: InvoiceId,
    pub reason: Evidence,
}

/// While a provider is paused no charge begins or continues there; what is known is still settled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseProvider {
    pub provider: ProviderId,
    pub paused: bool,
    pub reason: Evidence,
}

/// The operator has compared with the provider's books after a bootstrap or restore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllowCharges {
    pub evidence: Evidence,
}
