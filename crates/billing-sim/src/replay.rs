//! Decides what stood before each record of the audit log, from the records alone: who held the lease, which attempt was open,
//! which object was recorded. Written from the design, not from the ledger, so that the two can disagree.

use std::collections::BTreeMap;
use std::time::Duration;

use billing_core::{
    AuditRecord, ClusterTime, IdempotencyKey, InvoiceId, ObjectId, SessionId, What,
};

use crate::clock::true_wall_ms;

/// A wall clock that is off is off by more, and no stamp is that old when it is seen first, where clocks are right.
const AHEAD_MS: u64 = 10_000;

/// A lease that stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    pub token: u64,
    pub session: SessionId,
    pub granted_at: ClusterTime,
    pub granted_wall_ms: u64,
}

/// An attempt that is open or closing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    pub key: IdempotencyKey,
    pub token: u64,
    pub begun_at: ClusterTime,
    /// The earlier of what was stamped and true time: a deadline is counted from the earliest that the wall clock may have shown.
    /// None: it was far ahead of true time, and it depends on who was asked about it what was counted from it.
    pub begun_wall_ms: Option<u64>,
    pub taken_over: bool,
    /// Its key is none that a log used which a restore lost.
    pub key_is_new: bool,
    pub closing: bool,
}

/// One invoice, as the records tell it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Invoice {
    pub lease: Option<Lease>,
    pub attempt: Option<Attempt>,
    pub object: Option<ObjectId>,
    pub charges: Vec<String>,
    /// PAID, FAILED, REVIEW or CANCELLED: nobody is granted the lease.
    pub closed: bool,
}

/// One record, and what stood before it.
pub struct Step<'a> {
    pub record: &'a AuditRecord,
    /// In true time, when the first node was seen to have applied it.
    pub seen: Duration,
    pub before: &'a Invoice,
    pub token_last: u64,
    pub charges_allowed: bool,
}

#[derive(Default)]
pub struct Replay {
    invoices: BTreeMap<InvoiceId, Invoice>,
    token_last: u64,
    charges_allowed: bool,
    /// No run lasts the month after which old keys are forgotten: what may be old stays so.
    restored: bool,
}

impl Replay {
    pub fn invoices(&self) -> &BTreeMap<InvoiceId, Invoice> {
        &self.invoices
    }

    /// Shows the record together with what stood before it, then moves on.
    pub fn step<T>(
        &mut self,
        record: &AuditRecord,
        seen: Duration,
        look: impl FnOnce(&Step<'_>) -> T,
    ) -> T {
        let nothing = Invoice::default();
        let before = match &record.invoice {
            Some(id) => self.invoices.get(id).unwrap_or(&nothing),
            None => &nothing,
        };
        let looked = look(&Step {
            record,
            seen,
            before,
            token_last: self.token_last,
            charges_allowed: self.charges_allowed,
        });
        self.apply(record, seen);
        looked
    }

    fn apply(&mut self, record: &AuditRecord, seen: Duration) {
        match &record.what {
            What::Bootstrapped {
                no_prior_charges, ..
            } => {
                self.charges_allowed = *no_prior_charges;
                self.restored = !no_prior_charges;
            }
            What::Restored { .. } => {
                self.restored = true;
                self.charges_allowed = false;
                self.token_last = self.token_last.max(record.token.0);
            }
            What::ChargesAllowed { .. } => self.charges_allowed = true,
            _ => {}
        }
        let Some(id) = &record.invoice else { return };
        let invoice = self.invoices.entry(id.clone()).or_default();
        let own = record.key.is_some()
            && record.key.as_ref() == invoice.attempt.as_ref().map(|attempt| &attempt.key);
        match &record.what {
            What::Acquired { session, .. } => {
                self.token_last = self.token_last.max(record.token.0);
                invoice.lease = Some(Lease {
                    token: record.token.0,
                    session: *session,
                    granted_at: record.at,
                    granted_wall_ms: record.wall.0,
                });
            }
            What::Released { .. }
            | What::LeaseExpired { .. }
            | What::SessionLost { .. }
            | What::ForceReleased { .. }
            | What::LeaseEnded { .. } => invoice.lease = None,
            What::Begun => {
                invoice.attempt = record.key.clone().map(|key| Attempt {
                    key,
                    token: record.token.0,
                    begun_at: record.at,
                    begun_wall_ms: Some(record.wall.0)
                        .filter(|&wall| wall < true_wall_ms(seen) + AHEAD_MS)
                        .map(|wall| wall.min(true_wall_ms(seen))),
                    taken_over: false,
                    key_is_new: !self.restored,
                    closing: false,
                });
            }
            What::TakenOver => {
                if let Some(attempt) = &mut invoice.attempt {
                    attempt.taken_over = true;
                    attempt.token = record.token.0;
                }
            }
            What::ObjectAttached { object } => invoice.object = Some(object.clone()),
            What::ObjectCancelled { object } => {
                if invoice.object.as_ref() == Some(object) {
                    invoice.object = None;
                }
                invoice.attempt = None;
            }
            What::Charged { reference } => {
                invoice.charges.push(reference.as_str().to_owned());
                if own {
                    invoice.attempt = None;
                }
            }
            What::Declined { proven, .. } => {
                if *proven {
                    invoice.attempt = None;
                } else if let Some(attempt) = &mut invoice.attempt {
                    attempt.closing = true;
                }
            }
            What::LookedUpNone { counts: true } | What::Resolved { .. } => invoice.attempt = None,
            What::Paid
            | What::Failed
            | What::PutInReview { .. }
            | What::InvoiceCancelled { .. } => {
                invoice.closed = true;
            }
            What::Requeued { .. } => invoice.closed = false,
            What::LookedUpNone { counts: false }
            | What::Pending { .. }
            | What::Unknown { .. }
            | What::WaitingEnded
            | What::Submitted { .. }
            | What::Bootstrapped { .. }
            | What::Restored { .. }
            | What::ChargesAllowed { .. }
            | What::ProviderPaused { .. }
            | What::ProviderResumed { .. }
            | What::SessionOpened { .. }
            | What::SessionClosed { .. }
            | What::SessionExpired { .. } => {}
        }
    }
}
