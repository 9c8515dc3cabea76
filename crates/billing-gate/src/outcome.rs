//! What a charge came to, for whoever asked for it. Decides nothing.

use billing_core::{Charged, DeclineCode, InvoiceStatus, Rejection};
use billing_proto::Failure;

/// What became of one charge.
#[derive(Debug)]
pub enum Outcome {
    /// Money moved, and the ledger knows.
    Charged {
        charged: Charged,
        status: InvoiceStatus,
    },
    /// The card said no, and the ledger knows.
    Declined {
        code: DeclineCode,
        status: InvoiceStatus,
    },
    /// The provider is at work; the ledger looks again later.
    Pending { status: InvoiceStatus },
    /// A look-up found nothing. The ledger decided whether that ends the attempt.
    NothingFound { status: InvoiceStatus },
    /// The attempt's object can never succeed; the next attempt makes another.
    ObjectCancelled { status: InvoiceStatus },
    /// Nobody can tell yet. The attempt stays open and is continued under its key. `told`: the ledger knows as much.
    InDoubt { why: String, told: bool },
    /// The lease was lost before anything was sent under it; the ledger hands the invoice on.
    LeaseLost,
    /// The ledger said no before anything was sent.
    Refused(Rejection),
    /// BeginCharge got no usable answer; nothing was sent.
    NotBegun(Failure),
    /// Money moved and the ledger could not be told. The next holder finds it by its object or its key.
    ChargedUnsettled { charged: Charged, failure: Failure },
}

impl Outcome {
    /// The settlement ended the lease: nothing is left to give back.
    pub fn ended_the_lease(&self) -> bool {
        match self {
            Outcome::Charged { .. }
            | Outcome::Declined { .. }
            | Outcome::Pending { .. }
            | Outcome::NothingFound { .. }
            | Outcome::ObjectCancelled { .. }
            | Outcome::InDoubt { told: true, .. } => true,
            Outcome::InDoubt { told: false, .. }
            | Outcome::LeaseLost
            | Outcome::Refused(_)
            | Outcome::NotBegun(_)
            | Outcome::ChargedUnsettled { .. } => false,
        }
    }
}
