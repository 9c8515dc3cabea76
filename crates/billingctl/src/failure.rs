//! Decides which exit code an outcome has and what is said about it: what happened, and what to do next. Never guesses: an
//! answer that was lost is unknown, not failed.

use std::{io, time::Duration};

use billing_core::{MembershipReason, Rejection};
use billing_env::Env;
use billing_proto::Failure;
use futures::{StreamExt, future::join_all, stream::FuturesUnordered};
use tonic::Code;

use crate::output::{clean, span};

/// How `billingctl` ends. Documented in `--help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done,
    Refused,
    Failed,
    Unknown,
    /// Of the command that ran under a lease, whatever it says.
    Passed(u8),
}

impl Exit {
    pub fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Refused => 1,
            Exit::Failed => 2,
            Exit::Unknown => 3,
            Exit::Passed(code) => code,
        }
    }
}

/// Why a command did not do what was asked, in words for people.
#[derive(Debug)]
pub enum Problem {
    /// Somebody said no; nothing changed.
    Refused(Words),
    /// It did not happen.
    Failed(Words),
    /// Nobody can tell.
    Unknown(Words),
    /// What failed has been told already, line by line; only the exit code is left.
    Told(Exit),
    /// Nobody reads stdout any more (`| head`): there is nothing left to do, and nothing wrong.
    NobodyReads,
}

/// What happened, and what to do about it.
#[derive(Debug)]
pub struct Words {
    pub what: String,
    /// Empty: the sentence says it all.
    pub next: String,
}

impl Problem {
    pub fn refused(what: impl Into<String>, next: impl Into<String>) -> Problem {
        Problem::Refused(Words {
            what: what.into(),
            next: next.into(),
        })
    }

    pub fn failed(what: impl Into<String>, next: impl Into<String>) -> Problem {
        Problem::Failed(Words {
            what: what.into(),
            next: next.into(),
        })
    }

    pub fn unknown(what: impl Into<String>, next: impl Into<String>) -> Problem {
        Problem::Unknown(Words {
            what: what.into(),
            next: next.into(),
        })
    }

    /// The same, but where nobody can tell, `next` says where to look.
    #[must_use]
    pub fn look_at(self, next: &str) -> Problem {
        match self {
            Problem::Unknown(words) => Problem::unknown(words.what, next),
            known => known,
        }
    }

    pub fn exit(&self) -> Exit {
        match self {
            Problem::Refused(_) => Exit::Refused,
            Problem::Failed(_) => Exit::Failed,
            Problem::Unknown(_) => Exit::Unknown,
            Problem::Told(exit) => *exit,
            Problem::NobodyReads => Exit::Done,
        }
    }

    /// One line, and one more when there is something to do. Empty: nothing to say.
    pub fn text(&self) -> String {
        let (kind, words) = match self {
            Problem::Refused(words) => ("refused", words),
            Problem::Failed(words) => ("failed", words),
            Problem::Unknown(words) => ("unknown", words),
            Problem::Told(_) | Problem::NobodyReads => return String::new(),
        };
        let mut text = format!("{kind}: {}\n", clean_lines(&words.what));
        if !words.next.is_empty() {
            text.push_str(&format!("next: {}\n", clean(&words.next)));
        }
        text
    }
}

fn clean_lines(text: &str) -> String {
    text.lines().map(clean).collect::<Vec<_>>().join("\n")
}

/// Only stdout is written through `?`: whatever cannot be written there was not delivered.
impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Problem {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Problem::NobodyReads,
            _ => Problem::failed(format!("cannot write to stdout: {error}"), ""),
        }
    }
}

impl From<serde_json::Error> for Problem {
    fn from(error: serde_json::Error) -> Problem {
        io::Error::from(error).into()
    }
}

/// A refusal in the words of people: spans instead of milliseconds, and the next command where one helps.
pub fn rejected(rejection: &Rejection) -> Problem {
    let what = match rejection {
        Rejection::HeldByOther {
            invoice,
            holder,
            expires_in_ms,
        } => {
            format!(
                "invoice {invoice} is held by {holder} for another {}",
                span(*expires_in_ms)
            )
        }
        Rejection::GrantsNotYet { in_ms } => {
            format!(
                "no lease is granted for another {} after a bootstrap or restore",
                span(*in_ms)
            )
        }
        Rejection::NotDue { invoice, due_in_ms } => {
            format!(
                "invoice {invoice} is not due for another {}",
                span(*due_in_ms)
            )
        }
        Rejection::Closing {
            invoice,
            number,
            look_up_in_ms,
        } => {
            format!(
                "attempt {number} of invoice {invoice} is closing: a look-up counts in {}",
                span(*look_up_in_ms)
            )
        }
        Rejection::TooEarly { invoice, in_ms } => {
            format!(
                "what was sent for invoice {invoice} may still succeed for another {}",
                span(*in_ms)
            )
        }
        // The ledger's own sentence says it.
        other => other.to_string(),
    };
    Problem::refused(what, next_after(rejection))
}

fn next_after(rejection: &Rejection) -> String {
    match rejection {
        Rejection::NotBootstrapped => "start one node with --bootstrap, once".to_owned(),
        Rejection::StaleToken { .. }
        | Rejection::LeaseExpired { .. }
        | Rejection::LeaseEnded { .. } => {
            "stop the work that was done under this token; acquire again before continuing"
                .to_owned()
        }
        Rejection::NotLeasable { invoice, .. } | Rejection::WrongStatus { invoice, .. } => {
            format!("see what became of it: billingctl invoice get {invoice}")
        }
        Rejection::AttemptOpen { invoice, .. } => {
            format!("its outcome must be known first: billingctl invoice history {invoice}")
        }
        Rejection::NotFound { .. } => {
            "look for it: billingctl invoice list, or billingctl lease list".to_owned()
        }
        Rejection::WrongKey { invoice, .. } => {
            format!("see the key of the open attempt: billingctl invoice get {invoice}")
        }
        Rejection::TooEarly { .. } => {
            "wait, look into the provider's books again, then repeat".to_owned()
        }
        Rejection::ChargesNotAllowed => {
            "billingctl cluster allow-charges --evidence TEXT".to_owned()
        }
        Rejection::ClocksDisagree { .. } => {
            "see whose clock is off: billingctl doctor; correct it, then repeat".to_owned()
        }
        Rejection::ProviderPaused { provider, .. } => {
            format!("billingctl cluster resume-provider {provider} --reason TEXT")
        }
        Rejection::Overloaded { .. } => "repeat later".to_owned(),
        Rejection::IndexPurged { .. } => {
            "begin anew with what stands now: billingctl lease watch --list".to_owned()
        }
        Rejection::MembershipRefused { node, reason, .. } => membership_next(*node, *reason),
        _ => String::new(),
    }
}

fn membership_next(node: u64, reason: MembershipReason) -> String {
    match reason {
        MembershipReason::IdUsed => {
            "choose an id that no node ever had; `billingctl cluster members` shows those in use".to_owned()
        }
        MembershipReason::NotAMember | MembershipReason::WrongRole => {
            "see who belongs and who votes: billingctl cluster members".to_owned()
        }
        MembershipReason::Lags => format!(
            "wait until its lag is near 0 in `billingctl cluster members`, then repeat; a lag that does not shrink: is node {node} running?"
        ),
        MembershipReason::EvenVoters => {
            "swap a voter (promote ID --replaces ID), or say --allow-even when one more change follows at once".to_owned()
        }
        MembershipReason::NoMajority => {
            "nothing changed; bring the voters back that do not answer: billingctl cluster members".to_owned()
        }
        MembershipReason::InProgress => {
            "one change at a time: look at `billingctl cluster members`, then repeat".to_owned()
        }
    }
}

/// A failed call in words. For one that reached nobody, asks each endpoint whether anything listens there.
pub async fn explain(failure: Failure, endpoints: &[String], env: &Env) -> Problem {
    match failure {
        Failure::Rejected(rejection) => rejected(&rejection),
        Failure::NotApplied(status) => not_applied(&status, endpoints, env).await,
        Failure::Unknown(status) => Problem::unknown(
            format!("nobody can tell whether it happened: {}", said(&status)),
            "read the invoice or the lease before acting on it; `billingctl cluster status` shows how the nodes are",
        ),
    }
}

async fn not_applied(status: &tonic::Status, endpoints: &[String], env: &Env) -> Problem {
    if !somebody_listens(endpoints, env).await {
        return nobody_answers(endpoints, env).await;
    }
    let next = match status.code() {
        Code::Unimplemented => {
            "the server is of another version: compare `billingctl --version` with `cluster status`"
        }
        Code::Unauthenticated | Code::PermissionDenied => {
            "ask an operator for the role that this needs"
        }
        Code::ResourceExhausted => "repeat later; nothing changed",
        _ => "nothing changed; `billingctl cluster status` shows how the nodes are, then repeat",
    };
    Problem::failed(said(status), next)
}

/// Which endpoints were tried and why none is of use.
pub async fn nobody_answers(endpoints: &[String], env: &Env) -> Problem {
    let probes = join_all(endpoints.iter().map(|endpoint| probe(endpoint, env))).await;
    let width = endpoints.iter().map(String::len).max().unwrap_or(0);
    let mut what = "no node answers".to_owned();
    for (endpoint, probe) in endpoints.iter().zip(probes) {
        let reason = probe.unwrap_or_else(|| "answers again".to_owned());
        what.push_str(&format!("\n  {endpoint:width$}  {reason}"));
    }
    Problem::failed(what, IS_IT_RUNNING)
}

pub const IS_IT_RUNNING: &str = "is it running? `make cluster` starts three nodes; others are named by --endpoints or BILLINGCTL_ENDPOINTS";

/// Whether any endpoint accepts connections; true as soon as the first one does.
pub async fn somebody_listens(endpoints: &[String], env: &Env) -> bool {
    let mut probes: FuturesUnordered<_> = endpoints
        .iter()
        .map(|endpoint| probe(endpoint, env))
        .collect();
    while let Some(refused) = probes.next().await {
        if refused.is_none() {
            return true;
        }
    }
    false
}

/// How long a node may take to accept a connection, when nothing else is known of it.
const PROBE: Duration = Duration::from_secs(1);

/// Why nothing can be sent to an endpoint; none: something accepts connections there.
async fn probe(endpoint: &str, env: &Env) -> Option<String> {
    tokio::select! {
        biased;
        connected = env.net.connect(endpoint) => connected.err().map(|error| reason(&error)),
        () = env.clock.sleep(PROBE) => Some(format!("did not answer within {}", span(PROBE.as_millis() as u64))),
    }
}

/// A failure in one line.
pub fn reason_of(failure: &Failure) -> String {
    match failure {
        Failure::Rejected(rejection) => rejection.to_string(),
        Failure::NotApplied(status) | Failure::Unknown(status) => {
            root_cause(status).unwrap_or_else(|| said(status))
        }
    }
}

/// What the operating system said: tonic's own words for it are "transport error".
fn root_cause(status: &tonic::Status) -> Option<String> {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(reason(error));
        }
        source = error.source();
    }
    None
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        _ => error.to_string(),
    }
}

fn said(status: &tonic::Status) -> String {
    match status.message() {
        "" => status.code().description().to_owned(),
        message => message.to_owned(),
    }
}
