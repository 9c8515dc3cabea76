//! The point of it all, by the provider's own books: an invoice is charged successfully once at most, and what the ledger
//! calls PAID was charged, and what it calls FAILED was not.

use billing_core::What;

use super::{End, Moment, Property, Verdict};

pub struct OneCharge;

impl Property for OneCharge {
    fn name(&self) -> &'static str {
        "one_charge"
    }

    fn look(&mut self, moment: &Moment<'_>) -> Verdict {
        let Some(books) = moment.books else {
            return Ok(());
        };
        for (invoice, rows) in books.invoices() {
            let charged: Vec<_> = rows.iter().filter(|row| row.succeeded).collect();
            if charged.len() > 1 && moment.promises.one_charge {
                return Err((
                    Some(invoice),
                    format!("charged {} times: {rows:?}", charged.len()),
                ));
            }
        }
        Ok(())
    }

    fn end(&mut self, end: &End<'_>) -> Verdict {
        for (invoice, owed) in end.invoices {
            let rows = end.books.of(invoice);
            let charged: Vec<_> = rows.iter().filter(|row| row.succeeded).collect();
            let last = end.records.iter().rev().find_map(|seen| {
                let record = &seen.record;
                let own = record
                    .invoice
                    .as_ref()
                    .is_some_and(|id| id.as_str() == invoice);
                (own && closes(&record.what)).then_some(&record.what)
            });
            let wrong = |what: String| Err((Some(invoice.clone()), what));
            match last {
                Some(What::Paid) => {
                    let [charge] = charged[..] else {
                        return wrong(format!("PAID, and charged {} times", charged.len()));
                    };
                    if charge.amount != *owed {
                        return wrong(format!("{} charged, {owed} owed", charge.amount));
                    }
                }
                Some(What::Failed | What::InvoiceCancelled { .. }) if !charged.is_empty() => {
                    return wrong(format!("closed without money, and charged: {rows:?}"));
                }
                // In front of a person, who is told; one charge at most all the same.
                Some(What::PutInReview { .. }) | None if charged.len() > 1 => {
                    return wrong(format!("charged {} times", charged.len()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn closes(what: &What) -> bool {
    matches!(
        what,
        What::Paid
            | What::Failed
            | What::PutInReview { .. }
            | What::InvoiceCancelled { .. }
            | What::Requeued { .. }
    )
}
