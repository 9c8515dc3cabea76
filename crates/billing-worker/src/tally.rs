//! Counts what became of each charge, for progress and for the summary. Decides nothing.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use billing_gate::Outcome;

/// Counts while the run goes on; shared with whoever shows progress.
#[derive(Debug, Default)]
pub struct Tally {
    charged: AtomicU64,
    declined: AtomicU64,
    pending: AtomicU64,
    in_doubt: AtomicU64,
    unsettled: AtomicU64,
    refused: AtomicU64,
    lease_lost: AtomicU64,
    not_begun: AtomicU64,
    sessions_lost: AtomicU64,
}

/// The counts at one moment. One invoice may be counted more than once: in doubt first, charged later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub charged: u64,
    pub declined: u64,
    pub pending: u64,
    pub in_doubt: u64,
    /// Charged, and the ledger could not be told in time: another holder finds it.
    pub unsettled: u64,
    pub refused: u64,
    pub lease_lost: u64,
    pub not_begun: u64,
    pub sessions_lost: u64,
}

impl Tally {
    pub fn count(&self, outcome: &Outcome) {
        let counter = match outcome {
            Outcome::Charged { .. } => &self.charged,
            Outcome::Declined { .. } => &self.declined,
            Outcome::Pending { .. } => &self.pending,
            Outcome::NothingFound { .. }
            | Outcome::ObjectCancelled { .. }
            | Outcome::InDoubt { .. } => &self.in_doubt,
            Outcome::ChargedUnsettled { .. } => &self.unsettled,
            Outcome::Refused(_) => &self.refused,
            Outcome::LeaseLost => &self.lease_lost,
            Outcome::NotBegun(_) => &self.not_begun,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub fn session_lost(&self) {
        self.sessions_lost.fetch_add(1, Ordering::Relaxed);
    }

    /// An invoice that this version cannot even read.
    pub fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub fn totals(&self) -> Totals {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Totals {
            charged: read(&self.charged),
            declined: read(&self.declined),
            pending: read(&self.pending),
            in_doubt: read(&self.in_doubt),
            unsettled: read(&self.unsettled),
            refused: read(&self.refused),
            lease_lost: read(&self.lease_lost),
            not_begun: read(&self.not_begun),
            sessions_lost: read(&self.sessions_lost),
        }
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "charged={} declined={} pending={} in_doubt={}",
            self.charged, self.declined, self.pending, self.in_doubt
        )?;
        write!(
            f,
            " unsettled={} refused={} lease_lost={}",
            self.unsettled, self.refused, self.lease_lost
        )?;
        write!(
            f,
            " not_begun={} sessions_lost={}",
            self.not_begun, self.sessions_lost
        )
    }
}
