//! What only a holder may do was done under the token of the lease that stood.

use billing_core::What;

use super::{Property, Verdict, on};
use crate::profile::Promises;
use crate::replay::Step;

pub struct StaleTokenRefused;

impl Property for StaleTokenRefused {
    fn name(&self) -> &'static str {
        "stale_token_refused"
    }

    fn step(&mut self, step: &Step<'_>, _promises: &Promises) -> Verdict {
        let holders_only = match &step.record.what {
            What::Begun
            | What::TakenOver
            | What::ObjectAttached { .. }
            | What::Declined { .. }
            | What::LookedUpNone { .. }
            | What::Pending { .. }
            | What::Unknown { .. }
            | What::Released { .. } => true,
            What::Bootstrapped { .. }
            | What::Restored { .. }
            | What::ChargesAllowed { .. }
            | What::ProviderPaused { .. }
            | What::ProviderResumed { .. }
            | What::SessionOpened { .. }
            | What::SessionClosed { .. }
            | What::SessionExpired { .. }
            | What::Acquired { .. }
            | What::LeaseExpired { .. }
            | What::SessionLost { .. }
            | What::ForceReleased { .. }
            | What::Submitted { .. }
            | What::InvoiceCancelled { .. }
            | What::Requeued { .. }
            | What::Charged { .. }
            | What::ObjectCancelled { .. }
            | What::Resolved { .. }
            | What::WaitingEnded
            | What::PutInReview { .. }
            | What::Paid
            | What::Failed
            | What::LeaseEnded { .. } => false,
        };
        let holder = step.before.lease.map(|lease| lease.token);
        if holders_only && holder != Some(step.record.token.0) {
            return on(
                step.record,
                format!(
                    "{} with token {}, while {} holds it",
                    step.record.what,
                    step.record.token,
                    holder.map_or("nobody".to_owned(), |token| format!("token {token}"))
                ),
            );
        }
        Ok(())
    }
}
