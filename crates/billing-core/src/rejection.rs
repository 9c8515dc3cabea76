//! Every way in which the ledger says no, with the facts that the next person needs. A rejection is an answer: nothing
//! changed. It never stands for a failure or for silence (those are the server's and the client's words).

use serde::{Deserialize, Serialize};
use std::borrow::Cow;

use crate::ids::*;
use crate::reply::InvoiceStatus;

/// The cluster said no; nothing changed. The text is for people, the variant and its fields for programs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Rejection {
    #[error("{field} must be {bound}")]
    InvalidArgument {
        field: Cow<'static, str>,
        bound: Cow<'static, str>,
    },
    /// INVALID_ARGUMENT too: the same seq once asked for something else.
    #[error("seq {seq} of this session was used for another request")]
    SeqReused { seq: Seq },
    #[error("seq {seq} is below {done_below}: its answer is no longer kept")]
    SeqBelow { seq: Seq, done_below: u64 },

    #[error("the ledger is not bootstrapped")]
    NotBootstrapped,
    #[error("the ledger is bootstrapped already, as {ledger_id}")]
    AlreadyBootstrapped { ledger_id: LedgerId },

    #[error("session {session} is not known")]
    SessionNotFound { session: SessionId },
    #[error("session {session} has ended and is never revived")]
    SessionEnded { session: SessionId },

    #[error("invoice {invoice} is held by {holder} for another {expires_in_ms} ms")]
    HeldByOther {
        invoice: InvoiceId,
        holder: HolderId,
        expires_in_ms: u64,
    },
    /// `current`: the newest token that was granted on this invoice, whether its lease stands or not; NONE: none known.
    #[error("stale token {presented}, current {current}")]
    StaleToken {
        presented: FencingToken,
        current: FencingToken,
    },
    #[error("the lease on {invoice} with token {token} has expired")]
    LeaseExpired {
        invoice: InvoiceId,
        token: FencingToken,
    },
    /// `token` NONE: the request was withdrawn before it was granted.
    #[error("the lease on {invoice} with token {token} has ended")]
    LeaseEnded {
        invoice: InvoiceId,
        token: FencingToken,
    },
    /// A claim of which nothing is held any more, or which was withdrawn.
    #[error("the claim with seq {seq} has ended")]
    ClaimEnded { seq: Seq },
    #[error("invoice {invoice} is {status} and cannot be leased")]
    NotLeasable {
        invoice: InvoiceId,
        status: InvoiceStatus,
    },
    #[error("no lease is granted for another {in_ms} ms after a bootstrap or restore")]
    GrantsNotYet { in_ms: u64 },

    #[error("invoice {invoice} is not known")]
    NotFound { invoice: InvoiceId },
    #[error("invoice {invoice} was never submitted, so it cannot be charged")]
    NotSubmitted { invoice: InvoiceId },
    #[error("invoice {invoice} was submitted with {field} {recorded}, not {presented}")]
    SubmittedOtherwise {
        invoice: InvoiceId,
        field: Cow<'static, str>,
        recorded: Box<str>,
        presented: Box<str>,
    },
    /// `wanted`: the statuses in which the command is allowed.
    #[error("invoice {invoice} is {status}, not {wanted}")]
    WrongStatus {
        invoice: InvoiceId,
        status: InvoiceStatus,
        wanted: Cow<'static, str>,
    },
    #[error("invoice {invoice} is paid already, reference {reference}")]
    AlreadyPaid {
        invoice: InvoiceId,
        reference: Reference,
    },
    #[error("invoice {invoice} has a recorded charge, reference {reference}")]
    ChargeRecorded {
        invoice: InvoiceId,
        reference: Reference,
    },
    #[error("attempt {number} of invoice {invoice} is still open")]
    AttemptOpen {
        invoice: InvoiceId,
        number: AttemptNumber,
    },

    #[error("invoice {invoice} is not due for another {due_in_ms} ms")]
    NotDue { invoice: InvoiceId, due_in_ms: u64 },
    #[error("wrong terms for invoice {invoice}: {field} is {recorded}, not {presented}")]
    WrongTerms {
        invoice: InvoiceId,
        field: Cow<'static, str>,
        recorded: Box<str>,
        presented: Box<str>,
    },
    /// `look_up_in_ms`: how long until a lease can be granted under which a look-up proves that nothing succeeded.
    #[error(
        "attempt {number} of invoice {invoice} is closing: a look-up counts in {look_up_in_ms} ms"
    )]
    Closing {
        invoice: InvoiceId,
        number: AttemptNumber,
        look_up_in_ms: u64,
    },
    #[error("invoice {invoice} has no open attempt")]
    NoOpenAttempt { invoice: InvoiceId },
    #[error("{presented} is not the key of the open attempt of invoice {invoice}")]
    WrongKey {
        invoice: InvoiceId,
        presented: IdempotencyKey,
    },
    #[error("key {presented} is not of this ledger, {ledger_id}")]
    ForeignKey {
        presented: IdempotencyKey,
        ledger_id: LedgerId,
    },
    #[error("{presented} is not the provider object recorded for invoice {invoice}")]
    OtherObject {
        invoice: InvoiceId,
        presented: ObjectId,
        recorded: Option<ObjectId>,
    },
    #[error("invoice {invoice} has used up its attempt numbers")]
    AttemptsUsedUp { invoice: InvoiceId },
    #[error("what was sent for invoice {invoice} may still succeed for another {in_ms} ms")]
    TooEarly { invoice: InvoiceId, in_ms: u64 },

    #[error(
        "charges are not allowed since a bootstrap or restore: compare with the provider's books, then AllowCharges"
    )]
    ChargesNotAllowed,
    #[error(
        "the wall clocks of the nodes are {apart_ms} ms apart and nobody can tell which is right: no attempt would be sent in time"
    )]
    ClocksDisagree { apart_ms: u64 },
    #[error("provider {provider} is paused: {reason}")]
    ProviderPaused {
        provider: ProviderId,
        reason: Evidence,
    },
    #[error("overloaded: more than {max} {bound}")]
    Overloaded { bound: Bound, max: u64 },
    #[error("index {requested} is no longer kept, the oldest is {oldest}: list, then watch anew")]
    IndexPurged { requested: u64, oldest: u64 },
    /// Said by a node, never by the ledger: it stands here because a refusal has one type everywhere.
    #[error("membership of node {node} not changed: {detail}")]
    MembershipRefused {
        node: u64,
        reason: MembershipReason,
        detail: String,
    },
}

/// Why a change of who belongs to the cluster is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum MembershipReason {
    /// Ids are never used twice.
    IdUsed,
    NotAMember,
    /// A voter already, or not what the change is about.
    WrongRole,
    /// The learner has not caught up.
    Lags,
    /// An even number of voters survives no more failures than one less.
    EvenVoters,
    /// Those who would be left, and are reached, are no majority.
    NoMajority,
    /// Another change has not ended.
    InProgress,
}

/// Which bound is reached, in the words of limits.rs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bound {
    SessionsOpen,
    LeasesPerSession,
    WaitersPerInvoice,
    WaitersPerSession,
    ProvidersPaused,
    ChargesPerInvoice,
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::SessionsOpen => "open sessions",
            Self::LeasesPerSession => "leases in one session",
            Self::WaitersPerInvoice => "waiters on one invoice",
            Self::WaitersPerSession => "waiting requests in one session",
            Self::ProvidersPaused => "paused providers",
            Self::ChargesPerInvoice => "recorded charges of one invoice",
        })
    }
}

impl From<OutOfBounds> for Rejection {
    fn from(out: OutOfBounds) -> Self {
        Self::InvalidArgument {
            field: out.field,
            bound: out.bound,
        }
    }
}

impl Rejection {
    /// The stable name of the reason, for programs that read it from an error's details.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::InvalidArgument { .. } => "INVALID_ARGUMENT",
            Self::SeqReused { .. } => "SEQ_REUSED",
            Self::SeqBelow { .. } => "SEQ_BELOW",
            Self::NotBootstrapped => "NOT_BOOTSTRAPPED",
            Self::AlreadyBootstrapped { .. } => "ALREADY_BOOTSTRAPPED",
            Self::SessionNotFound { .. } => "SESSION_NOT_FOUND",
            Self::SessionEnded { .. } => "SESSION_ENDED",
            Self::HeldByOther { .. } => "HELD_BY_OTHER",
            Self::StaleToken { .. } => "STALE_TOKEN",
            Self::LeaseExpired { .. } => "LEASE_EXPIRED",
            Self::LeaseEnded { .. } => "LEASE_ENDED",
            Self::ClaimEnded { .. } => "CLAIM_ENDED",
            Self::NotLeasable { .. } => "NOT_LEASABLE",
            Self::GrantsNotYet { .. } => "GRANTS_NOT_YET",
            Self::NotFound { .. } => "NOT_FOUND",
            Self::NotSubmitted { .. } => "NOT_SUBMITTED",
            Self::SubmittedOtherwise { .. } => "SUBMITTED_OTHERWISE",
            Self::WrongStatus { .. } => "WRONG_STATUS",
            Self::AlreadyPaid { .. } => "ALREADY_PAID",
            Self::ChargeRecorded { .. } => "CHARGE_RECORDED",
            Self::AttemptOpen { .. } => "ATTEMPT_OPEN",
            Self::NotDue { .. } => "NOT_DUE",
            Self::WrongTerms { .. } => "WRONG_TERMS",
            Self::Closing { .. } => "CLOSING",
            Self::NoOpenAttempt { .. } => "NO_OPEN_ATTEMPT",
            Self::WrongKey { .. } => "WRONG_KEY",
            Self::ForeignKey { .. } => "FOREIGN_KEY",
            Self::OtherObject { .. } => "OTHER_OBJECT",
            Self::AttemptsUsedUp { .. } => "ATTEMPTS_USED_UP",
            Self::TooEarly { .. } => "TOO_EARLY",
            Self::ChargesNotAllowed => "CHARGES_NOT_ALLOWED",
            Self::ClocksDisagree { .. } => "CLOCKS_DISAGREE",
            Self::ProviderPaused { .. } => "PROVIDER_PAUSED",
            Self::Overloaded { .. } => "OVERLOADED",
            Self::IndexPurged { .. } => "INDEX_PURGED",
            Self::MembershipRefused { .. } => "MEMBERSHIP_REFUSED",
        }
    }
}
