//! What a client was told has happened stands in the audit log in the end, as it was told; but for what a restore forgets.

use std::collections::BTreeMap;

use billing_core::{AuditRecord, InvoiceId, LeaseEventKind, What};

use super::{End, Property, Verdict};
use crate::record::Promise;

pub struct AckedSurvives;

impl Property for AckedSurvives {
    fn name(&self) -> &'static str {
        "acked_survives"
    }

    fn lost(&mut self, end: &End<'_>) -> Verdict {
        self.end(end)
    }

    fn end(&mut self, end: &End<'_>) -> Verdict {
        let mut records: BTreeMap<&InvoiceId, Vec<&AuditRecord>> = BTreeMap::new();
        for seen in end.records {
            if let Some(invoice) = &seen.record.invoice {
                records.entry(invoice).or_default().push(&seen.record);
            }
        }
        let forgotten = end.record.forgotten();
        for (invoice, promises) in end.record.promises() {
            let of_invoice = records.get(&invoice).map_or(&[][..], Vec::as_slice);
            for (at, promise) in promises {
                if forgotten.heard_at(at) || forgotten.is_over_with_it(&promise) {
                    continue;
                }
                if !of_invoice.iter().any(|record| keeps(record, &promise)) {
                    return Err((
                        Some(invoice.as_str().to_owned()),
                        format!(
                            "{promise:?} was acknowledged at {at:?}, and the log knows nothing of it"
                        ),
                    ));
                }
            }
        }
        Ok(())
    }
}

pub(super) fn keeps(record: &AuditRecord, promise: &Promise) -> bool {
    match promise {
        Promise::Submitted => matches!(record.what, What::Submitted { .. }),
        Promise::Granted { token } => {
            matches!(record.what, What::Acquired { .. }) && record.token.0 == *token
        }
        Promise::Begun { token, key } => {
            matches!(record.what, What::Begun | What::TakenOver)
                && record.token.0 == *token
                && record.key.as_ref() == Some(key)
        }
        Promise::Charged { reference } => {
            matches!(&record.what, What::Charged { reference: kept } if kept.as_str() == reference)
        }
        Promise::Declined { token } => {
            matches!(record.what, What::Declined { .. }) && record.token.0 == *token
        }
        // A release of what is over is answered OK too, however that ended.
        Promise::Released { token, was_current } => {
            let ended = match was_current {
                true => matches!(record.what, What::Released { .. }),
                false => matches!(record.what.lease(), Some((LeaseEventKind::Ended, _))),
            };
            ended && record.token.0 == *token
        }
    }
}
