//! Invoices as people owe them: submitted, cancelled, requeued; and what a record turns into when it is over. Never touches a
//! charge attempt.

use super::state::{Phase, Sum};
use super::*;
use crate::command::{CancelInvoice, RequeueInvoice, SubmitInvoice};
use crate::reply::ReviewReason;

impl Ledger {
    pub(super) fn submit(&mut self, submit: &SubmitInvoice) -> Result<Reply, Rejection> {
        if let Some(known) = self
            .invoice(&submit.invoice)
            .and_then(|invoice| invoice.sum.as_ref())
        {
            let otherwise = |field: &'static str, recorded: String, presented: String| {
                let invoice = submit.invoice.clone();
                Err(Rejection::SubmittedOtherwise {
                    invoice,
                    field: field.into(),
                    recorded: recorded.into(),
                    presented: presented.into(),
                })
            };
            if known.amount != submit.amount {
                return otherwise(
                    "amount_minor",
                    known.amount.to_string(),
                    submit.amount.to_string(),
                );
            }
            if known.currency != submit.currency {
                return otherwise(
                    "currency",
                    known.currency.to_string(),
                    submit.currency.to_string(),
                );
            }
            if known.customer != submit.customer {
                return otherwise(
                    "customer_id",
                    known.customer.to_string(),
                    submit.customer.to_string(),
                );
            }
            return Ok(Reply::Submitted { unchanged: true });
        }
        self.scalars.order_last += 1;
        let sum = Sum {
            customer: submit.customer.clone(),
            amount: submit.amount,
            currency: submit.currency,
            due_at: submit.due_at.unwrap_or(self.wall_reached()),
            priority: submit.priority,
            order: self.scalars.order_last,
        };
        if let Some(known) = self.invoice_mut(&submit.invoice) {
            // A plain lease, or a charge that was reported first: the record is filled in, its status stays.
            known.sum = Some(sum);
            self.refile(&submit.invoice);
        } else {
            let mut invoice = Invoice::new(submit.invoice.clone());
            invoice.sum = Some(sum);
            self.insert_invoice(invoice);
        }
        let what = What::Submitted {
            customer: submit.customer.clone(),
            amount: submit.amount,
            currency: submit.currency,
        };
        self.note(what, Some(&submit.invoice), FencingToken::NONE, None);
        Ok(Reply::Submitted { unchanged: false })
    }

    pub(super) fn cancel(&mut self, cancel: &CancelInvoice) -> Result<Reply, Rejection> {
        let invoice = self.submitted(&cancel.invoice)?;
        if invoice.phase == Phase::Cancelled {
            return Ok(Reply::Status {
                status: InvoiceStatus::Cancelled,
            });
        }
        Self::without_charge(invoice)?;
        if let Some(invoice) = self.invoice_mut(&cancel.invoice) {
            invoice.phase = Phase::Cancelled;
        }
        self.note(
            What::InvoiceCancelled {
                reason: cancel.reason.clone(),
            },
            Some(&cancel.invoice),
            FencingToken::NONE,
            None,
        );
        self.end_lease_with_it(&cancel.invoice);
        self.refile(&cancel.invoice);
        Ok(Reply::Status {
            status: InvoiceStatus::Cancelled,
        })
    }

    pub(super) fn requeue(&mut self, requeue: &RequeueInvoice) -> Result<Reply, Rejection> {
        let now = self.scalars.now;
        let invoice = self.submitted(&requeue.invoice)?;
        if !(invoice.live().is_some() && sabotaged!(RequeueWhileOpen)) {
            Self::without_charge(invoice)?;
        }
        match invoice.phase {
            Phase::Failed | Phase::Cancelled | Phase::Review(_) => {}
            Phase::Ready | Phase::Paid => {
                return Err(Rejection::WrongStatus {
                    invoice: requeue.invoice.clone(),
                    status: invoice.status(),
                    wanted: "FAILED, CANCELLED or REVIEW".into(),
                });
            }
        }
        if let Some(invoice) = self.invoice_mut(&requeue.invoice) {
            invoice.phase = Phase::Ready;
            if sabotaged!(RequeueWhileOpen) {
                invoice.attempts.retain(|attempt| !attempt.is_live());
            }
            invoice.retries = 0;
            invoice.next_try = now;
        }
        let what = What::Requeued {
            reason: requeue.reason.clone(),
        };
        self.note(what, Some(&requeue.invoice), FencingToken::NONE, None);
        self.refile(&requeue.invoice);
        Ok(Reply::Status {
            status: InvoiceStatus::Pending,
        })
    }

    /// A plain lease on an id that was never submitted is no invoice; a charge that was reported for one is.
    fn submitted(&self, id: &InvoiceId) -> Result<&Invoice, Rejection> {
        self.invoice(id)
            .filter(|invoice| invoice.sum.is_some() || invoice.phase != Phase::Ready)
            .ok_or_else(|| Rejection::NotFound {
                invoice: id.clone(),
            })
    }

    /// Neither a recorded charge nor an attempt that could still become one.
    fn without_charge(invoice: &Invoice) -> Result<(), Rejection> {
        let id = || invoice.id.clone();
        if let Some(attempt) = invoice.live() {
            return Err(Rejection::AttemptOpen {
                invoice: id(),
                number: attempt.number,
            });
        }
        match (invoice.charges.first(), invoice.phase) {
            (Some(charge), Phase::Paid) => Err(Rejection::AlreadyPaid {
                invoice: id(),
                reference: charge.reference.clone(),
            }),
            (Some(charge), _) => Err(Rejection::ChargeRecorded {
                invoice: id(),
                reference: charge.reference.clone(),
            }),
            (None, _) => Ok(()),
        }
    }

    pub(super) fn put_in_review(&mut self, id: &InvoiceId, reason: ReviewReason) {
        if let Some(invoice) = self.invoice_mut(id) {
            invoice.phase = Phase::Review(reason);
            invoice.waiting_until = None;
        }
        self.note(
            What::PutInReview { reason },
            Some(id),
            FencingToken::NONE,
            None,
        );
        self.end_lease_with_it(id);
        self.refile(id);
    }

    /// Over, one way or the other: nobody works on it any more.
    pub(super) fn close_invoice(&mut self, id: &InvoiceId, phase: Phase, what: What) {
        if let Some(invoice) = self.invoice_mut(id) {
            invoice.phase = phase;
            invoice.waiting_until = None;
        }
        self.note(what, Some(id), FencingToken::NONE, None);
        self.end_lease_with_it(id);
        self.refile(id);
    }
}
