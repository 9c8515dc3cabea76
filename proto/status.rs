//! Decides which gRPC code a refusal carries and what an error proves about what happened. Never decides whether to refuse,
//! and never believes more than the error says: whatever is not shown to have stayed out of the log is unknown.
//!
//! On the wire an error is a `google.rpc.Status` in `grpc-status-details-bin` with two details: `billing.v1.Rejection`
//! (refusals only) and `google.rpc.ErrorInfo` of domain `billing.v1`, whose reason is stable.

use billing_core::Rejection;
use prost::Message;
use prost_types::Any;
use tonic::{Code, Status};
use tonic_types::pb;

use crate::v1;

/// The domain of every ErrorInfo that this cluster sends.
pub const DOMAIN: &str = "billing.v1";
/// ErrorInfo reason: the command was never handed to Raft. Safe to repeat, whatever it was.
pub const NOT_APPLIED: &str = "NOT_APPLIED";
/// ErrorInfo reason: it was handed to Raft and nobody knows what became of it.
pub const OUTCOME_UNKNOWN: &str = "OUTCOME_UNKNOWN";

/// Metadata of every reply, errors included, while a leader is known: its node id, in decimal.
pub const LEADER_ID: &str = "billing-leader-id";
/// Metadata of every reply, errors included, while a leader is known: `host:port` for clients.
pub const LEADER_ADDRESS: &str = "billing-leader-address";

const REJECTION_TYPE: &str = "type.googleapis.com/billing.v1.Rejection";
const ERROR_INFO_TYPE: &str = "type.googleapis.com/google.rpc.ErrorInfo";

/// The code of a refusal: for people and generic middleware. Programs read the rejection itself.
#[must_use]
pub fn code(rejection: &Rejection) -> Code {
    match rejection {
        // The request is wrong in itself: repeating it never helps.
        Rejection::InvalidArgument { .. } | Rejection::SeqReused { .. } => Code::InvalidArgument,
        // Try another invoice, or later.
        Rejection::HeldByOther { .. } => Code::Aborted,
        Rejection::SessionNotFound { .. } | Rejection::NotFound { .. } => Code::NotFound,
        // Nothing left to do.
        Rejection::AlreadyPaid { .. } => Code::AlreadyExists,
        Rejection::Overloaded { .. } => Code::ResourceExhausted,
        Rejection::IndexPurged { .. } => Code::OutOfRange,
        // The state forbids it: read before going on.
        Rejection::SeqBelow { .. }
        | Rejection::NotBootstrapped
        | Rejection::AlreadyBootstrapped { .. }
        | Rejection::SessionEnded { .. }
        | Rejection::StaleToken { .. }
        | Rejection::LeaseExpired { .. }
        | Rejection::LeaseEnded { .. }
        | Rejection::ClaimEnded { .. }
        | Rejection::NotLeasable { .. }
        | Rejection::GrantsNotYet { .. }
        | Rejection::NotSubmitted { .. }
        | Rejection::SubmittedOtherwise { .. }
        | Rejection::WrongStatus { .. }
        | Rejection::ChargeRecorded { .. }
        | Rejection::AttemptOpen { .. }
        | Rejection::NotDue { .. }
        | Rejection::WrongTerms { .. }
        | Rejection::Closing { .. }
        | Rejection::NoOpenAttempt { .. }
        | Rejection::WrongKey { .. }
        | Rejection::ForeignKey { .. }
        | Rejection::OtherObject { .. }
        | Rejection::AttemptsUsedUp { .. }
        | Rejection::TooEarly { .. }
        | Rejection::ChargesNotAllowed
        | Rejection::ClocksDisagree { .. }
        | Rejection::ProviderPaused { .. }
        | Rejection::MembershipRefused { .. } => Code::FailedPrecondition,
    }
}

/// A refusal as a status: the code for people, the facts as details. Nothing has changed.
#[must_use]
pub fn refused(rejection: &Rejection) -> Status {
    let facts = Any {
        type_url: REJECTION_TYPE.to_owned(),
        value: v1::Rejection::from(rejection).encode_to_vec(),
    };
    with_details(
        code(rejection),
        rejection.to_string(),
        rejection.reason(),
        Some(facts),
    )
}

/// UNAVAILABLE: nothing was handed to Raft, for instance because no leader is known. Only say so when it is certain.
#[must_use]
pub fn not_applied(message: impl Into<String>) -> Status {
    with_details(Code::Unavailable, message.into(), NOT_APPLIED, None)
}

/// RESOURCE_EXHAUSTED, at once: a queue of this node is full, so nothing was handed to Raft.
#[must_use]
pub fn queue_full(queue: &str, max: usize) -> Status {
    with_details(
        Code::ResourceExhausted,
        format!("overloaded: more than {max} {queue}"),
        NOT_APPLIED,
        None,
    )
}

/// UNKNOWN: it was handed to Raft and the answer is lost. The caller must read before acting.
#[must_use]
pub fn outcome_unknown(message: impl Into<String>) -> Status {
    with_details(Code::Unknown, message.into(), OUTCOME_UNKNOWN, None)
}

fn with_details(code: Code, message: String, reason: &str, facts: Option<Any>) -> Status {
    let info = pb::ErrorInfo {
        reason: reason.to_owned(),
        domain: DOMAIN.to_owned(),
        metadata: Default::default(),
    };
    let info = Any {
        type_url: ERROR_INFO_TYPE.to_owned(),
        value: info.encode_to_vec(),
    };
    let details = facts.into_iter().chain([info]).collect();
    let status = pb::Status {
        code: code.into(),
        message: message.clone(),
        details,
    };
    Status::with_details(code, message, status.encode_to_vec().into())
}

/// Why a call did not give what was asked for, by what it proves.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// The cluster said no. Nothing changed.
    #[error("refused: {0}")]
    Rejected(Rejection),
    /// It never reached the log. Safe to repeat.
    #[error("not applied: {}", .0.message())]
    NotApplied(Status),
    /// Nobody can tell. Read the invoice before acting.
    #[error("outcome unknown: {}", .0.message())]
    Unknown(Status),
}

impl Failure {
    /// The refusal, if that is what it is.
    #[must_use]
    pub fn rejection(&self) -> Option<&Rejection> {
        match self {
            Failure::Rejected(rejection) => Some(rejection),
            Failure::NotApplied(_) | Failure::Unknown(_) => None,
        }
    }
}

impl From<Failure> for Status {
    /// The same failure for whoever passes it on; it classifies as what it was.
    fn from(failure: Failure) -> Status {
        match failure {
            Failure::Rejected(rejection) => refused(&rejection),
            Failure::NotApplied(status) | Failure::Unknown(status) => status,
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        let told = Told::by(&status);
        let unreadable = match told.rejection {
            Some(Ok(rejection)) => return Failure::Rejected(rejection),
            Some(Err(Unreadable)) => true, // Still a refusal: nothing changed.
            None => false,
        };
        if unreadable || told.reason.as_deref() == Some(NOT_APPLIED) || never_connected(&status) {
            return Failure::NotApplied(status);
        }
        match status.code() {
            // Turned away before any handler looked at it.
            Code::Unimplemented | Code::Unauthenticated | Code::PermissionDenied => {
                Failure::NotApplied(status)
            }
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::InvalidArgument
            | Code::DeadlineExceeded
            | Code::NotFound
            | Code::AlreadyExists
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::OutOfRange
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss => Failure::Unknown(status),
        }
    }
}

struct Unreadable;

fn read_rejection(bytes: &[u8]) -> Result<Rejection, Unreadable> {
    v1::Rejection::decode(bytes)
        .map_err(|_| Unreadable)?
        .try_into()
        .map_err(|_| Unreadable)
}

/// What the details of a status say.
#[derive(Default)]
struct Told {
    /// `Err`: there is one, and this build cannot read it.
    rejection: Option<Result<Rejection, Unreadable>>,
    reason: Option<String>,
}

impl Told {
    fn by(status: &Status) -> Told {
        let mut told = Told::default();
        // Details that cannot be read say nothing.
        let details = pb::Status::decode(status.details())
            .map(|status| status.details)
            .unwrap_or_default();
        for detail in details {
            match detail.type_url.as_str() {
                REJECTION_TYPE => {
                    told.rejection = Some(read_rejection(&detail.value));
                }
                ERROR_INFO_TYPE => {
                    told.reason = pb::ErrorInfo::decode(detail.value.as_slice())
                        .ok()
                        .filter(|info| info.domain == DOMAIN)
                        .map(|info| info.reason);
                }
                _ => {} // Somebody else's detail, of any type there may ever be.
            }
        }
        told
    }
}

/// No connection was made, so no byte of the request left this process.
#[must_use]
pub fn never_connected(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// One item's error inside a batch: the same facts that a whole call would put into its status.
/// A failure keeps what it proves in its code: UNAVAILABLE and RESOURCE_EXHAUSTED mean not applied, UNKNOWN means unknown.
#[must_use]
pub fn item_error(failure: &Failure) -> v1::ItemError {
    match failure {
        Failure::Rejected(rejection) => v1::ItemError {
            code: code(rejection).into(),
            message: rejection.to_string(),
            rejection: Some(rejection.into()),
        },
        Failure::NotApplied(status) => {
            let code = match status.code() {
                Code::ResourceExhausted => Code::ResourceExhausted,
                _ => Code::Unavailable, // Whatever it was, these two are the only codes that prove it.
            };
            v1::ItemError {
                code: code.into(),
                message: status.message().to_owned(),
                rejection: None,
            }
        }
        Failure::Unknown(status) => v1::ItemError {
            code: Code::Unknown.into(),
            message: status.message().to_owned(),
            rejection: None,
        },
    }
}

impl From<v1::ItemError> for Failure {
    fn from(item: v1::ItemError) -> Failure {
        let code = Code::from(item.code);
        match item.rejection.map(Rejection::try_from) {
            Some(Ok(rejection)) => Failure::Rejected(rejection),
            Some(Err(_)) => Failure::NotApplied(Status::new(code, item.message)),
            None if matches!(code, Code::Unavailable | Code::ResourceExhausted) => {
                Failure::NotApplied(with_details(code, item.message, NOT_APPLIED, None))
            }
            None => Failure::Unknown(Status::new(code, item.message)),
        }
    }
}
