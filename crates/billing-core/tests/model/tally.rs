//! Counts what was tried and how it was answered: a million commands that never reach a rule say nothing about it.

use std::collections::BTreeMap;

use billing_core::*;

const TIMES_MIN: u64 = 20;

/// Answers, and charges by a provider of each profile.
const EXPECTED: [&str; 52] = [
    "acquire of many",
    "renew of many",
    "release of many",
    "queued",
    "taken over",
    "claimed nothing",
    "PENDING",
    "PROCESSING",
    "CHARGING",
    "IN_DOUBT",
    "WAITING",
    "PAID",
    "FAILED",
    "REVIEW",
    "CANCELLED",
    "INVALID_ARGUMENT",
    "SEQ_REUSED",
    "SEQ_BELOW",
    "NOT_BOOTSTRAPPED",
    "ALREADY_BOOTSTRAPPED",
    "SESSION_NOT_FOUND",
    "SESSION_ENDED",
    "HELD_BY_OTHER",
    "STALE_TOKEN",
    "LEASE_EXPIRED",
    "LEASE_ENDED",
    "CLAIM_ENDED",
    "NOT_LEASABLE",
    "GRANTS_NOT_YET",
    "NOT_FOUND",
    "NOT_SUBMITTED",
    "SUBMITTED_OTHERWISE",
    "WRONG_STATUS",
    "ALREADY_PAID",
    "CHARGE_RECORDED",
    "ATTEMPT_OPEN",
    "NOT_DUE",
    "WRONG_TERMS",
    "CLOSING",
    "NO_OPEN_ATTEMPT",
    "WRONG_KEY",
    "FOREIGN_KEY",
    "OTHER_OBJECT",
    "TOO_EARLY",
    "CHARGES_NOT_ALLOWED",
    "CLOCKS_DISAGREE",
    "PROVIDER_PAUSED",
    "OVERLOADED",
    "charged with sticky keys",
    "charged with loose keys",
    "charged without keys",
    "charged with objects",
];

#[derive(Default)]
pub struct Tally(BTreeMap<(&'static str, &'static str), u64>);

impl Tally {
    pub fn count(&mut self, command: &Command, told: &Result<Reply, Rejection>) {
        match told {
            Ok(Reply::Each(results)) => {
                for told in results {
                    *self.0.entry((asked(command), answered(told))).or_default() += 1;
                }
            }
            Ok(_) | Err(_) => *self.0.entry((asked(command), answered(told))).or_default() += 1,
        }
    }

    pub fn add(&mut self, what: &'static str, many: u64) {
        *self.0.entry((what, "")).or_default() += many;
    }

    pub fn merge(&mut self, other: &Self) {
        for (key, many) in &other.0 {
            *self.0.entry(*key).or_default() += many;
        }
    }

    /// What a run of full length should have met, and did not meet often enough to say anything about it.
    pub fn missed(&self) -> Vec<&'static str> {
        EXPECTED
            .into_iter()
            .filter(|expected| {
                let met = self
                    .0
                    .iter()
                    .filter(|((asked, told), _)| asked == expected || told == expected);
                met.map(|(_, many)| many).sum::<u64>() < TIMES_MIN
            })
            .collect()
    }

    pub fn print(&self) {
        for ((asked, told), many) in &self.0 {
            println!("{many:>9}  {asked} {told}");
        }
    }
}

fn asked(command: &Command) -> &'static str {
    match command {
        Command::Bootstrap(_) => "bootstrap",
        Command::BootstrapWithin(_) => "bootstrap within a TTL",
        Command::Restore(_) => "restore",
        Command::OpenSession(_) => "open session",
        Command::KeepAlive(_) => "keep alive",
        Command::CloseSession(_) => "close session",
        Command::AcquireLease(acquire) => match acquire.requester {
            Requester::Session { .. } => "acquire",
            Requester::Implicit { .. } => "acquire without session",
        },
        Command::WithdrawWaiter(_) => "withdraw",
        Command::RenewLease(_) => "renew",
        Command::ReleaseLease(ReleaseLease::ByToken { .. }) => "release by token",
        Command::ReleaseLease(ReleaseLease::BySeq { .. }) => "release by seq",
        Command::ClaimInvoices(_) => "claim",
        Command::SubmitInvoice(_) => "submit",
        Command::CancelInvoice(_) => "cancel",
        Command::RequeueInvoice(_) => "requeue",
        Command::BeginCharge(_) => "begin",
        Command::AttachProviderObject(_) => "attach",
        Command::SettleCharge(settle) => match &settle.outcome {
            Outcome::Charged(_) => "settle charged",
            Outcome::Declined { finality, .. } => match finality {
                Finality::None => "settle declined",
                Finality::Sticky => "settle declined, sticky",
                Finality::SoleSend => "settle declined, sole send",
                Finality::Object => "settle declined, object",
            },
            Outcome::LookedUp(Some(_)) => "settle looked up, found",
            Outcome::LookedUp(None) => "settle looked up, none",
            Outcome::Cancelled { .. } => "settle cancelled",
            Outcome::Pending { .. } => "settle pending",
            Outcome::Unknown { .. } => "settle unknown",
        },
        Command::ResolveCharge(resolve) => match resolve.verdict {
            Verdict::Charged(_) => "resolve charged",
            Verdict::NotCharged => "resolve not charged",
        },
        Command::ForceRelease(_) => "force release",
        Command::PauseProvider(_) => "pause",
        Command::AllowCharges(_) => "allow charges",
        Command::Tick => "tick",
        Command::AcquireLeases(_) => "acquire of many",
        Command::RenewLeases(_) => "renew of many",
        Command::ReleaseLeases(_) => "release of many",
    }
}

fn answered(told: &Result<Reply, Rejection>) -> &'static str {
    match told {
        Ok(Reply::Status { status }) => status.as_str(),
        Ok(Reply::Queued) => "queued",
        Ok(Reply::Begun(attempt)) if attempt.taken_over => "taken over",
        Ok(Reply::Claimed(claimed)) if claimed.leased.is_empty() => "claimed nothing",
        Ok(_) => "ok",
        Err(reason) => reason.reason(),
    }
}
