//! After the faults have stopped: every invoice that a worker charges is PAID, FAILED, CANCELLED or in front of a person; or
//! its last no was one that may be tried again, nothing of it is open, and it waits for that time, which doubles to hours.

use billing_core::{InvoiceId, What};

use super::{End, Property, Verdict};
use crate::replay::Replay;
use crate::world::Seen;

pub struct EveryInvoiceEnds;

impl Property for EveryInvoiceEnds {
    fn name(&self) -> &'static str {
        "every_invoice_ends"
    }

    fn end(&mut self, end: &End<'_>) -> Verdict {
        for invoice in end.invoices.keys() {
            let closed = InvoiceId::new(invoice)
                .ok()
                .and_then(|id| end.replay.invoices().get(&id))
                .is_some_and(|invoice| invoice.closed);
            if !closed && !waits_for_its_next_try(end.replay, end.records, invoice) {
                return Err((Some(invoice.clone()), "it has not ended".to_owned()));
            }
        }
        Ok(())
    }
}

/// Nothing is open, and the last that was heard of money is a no after which it may be tried again.
pub fn waits_for_its_next_try(replay: &Replay, records: &[Seen], invoice: &str) -> bool {
    let id = InvoiceId::new(invoice).ok();
    let known = id.as_ref().and_then(|id| replay.invoices().get(id));
    let idle = known.is_some_and(|known| known.attempt.is_none() && known.lease.is_none());
    let last = records.iter().rev().find_map(|seen| {
        let own = seen.record.invoice == id;
        let about_money = matches!(
            seen.record.what,
            What::Begun | What::Declined { .. } | What::LookedUpNone { .. } | What::Charged { .. }
        );
        (own && about_money).then_some(&seen.record.what)
    });
    let retryable = matches!(
        last,
        Some(
            What::Declined {
                retryable: true,
                proven: true,
                ..
            } | What::LookedUpNone { counts: true }
        )
    );
    idle && retryable
}
