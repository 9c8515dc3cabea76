//! What people must be shown of the model's state. Changes nothing.

use billing_core::*;

use super::{Attempt, Invoice, Lease, Model, Rest};

impl Model {
    pub fn status(&self, invoice: &Invoice) -> InvoiceStatus {
        match &invoice.rest {
            Some(Rest::Paid) => InvoiceStatus::Paid,
            Some(Rest::Failed) => InvoiceStatus::Failed,
            Some(Rest::Cancelled) => InvoiceStatus::Cancelled,
            Some(Rest::Review(_)) => InvoiceStatus::Review,
            None => match (&invoice.lease, invoice.live()) {
                (Some(_), Some(_)) => InvoiceStatus::Charging,
                (Some(_), None) => InvoiceStatus::Processing,
                (None, Some(_)) if invoice.pending_until > self.now => InvoiceStatus::Waiting,
                (None, Some(_)) => InvoiceStatus::InDoubt,
                (None, None) => InvoiceStatus::Pending,
            },
        }
    }

    pub fn session_view(&self, id: SessionId) -> SessionView {
        let session = &self.sessions[&id];
        SessionView {
            session: id,
            holder: session.holder.clone(),
            ttl_ms: session.ttl,
            expires_in_ms: session.deadline.map(|deadline| deadline - self.now),
            leases: self
                .invoices
                .values()
                .filter(|invoice| {
                    invoice
                        .lease
                        .as_ref()
                        .is_some_and(|lease| lease.session == id)
                })
                .count() as u64,
        }
    }

    pub fn expires_in(&self, lease: &Lease) -> u64 {
        let session = self.sessions[&lease.session].deadline.unwrap_or(u64::MAX);
        session
            .min(lease.own_deadline.unwrap_or(u64::MAX))
            .saturating_sub(self.now)
    }

    pub fn lease_view(&self, id: &InvoiceId, lease: &Lease) -> LeaseView {
        LeaseView {
            invoice: id.clone(),
            token: lease.token,
            holder: self.sessions[&lease.session].holder.clone(),
            session: lease.session,
            expires_in_ms: self.expires_in(lease),
        }
    }

    /// When a lease can be granted under which a look-up that finds nothing counts: after both clocks have passed it.
    pub fn look_up_in(&self, attempt: &Attempt) -> u64 {
        let in_flight = attempt
            .terms
            .as_ref()
            .map_or(0, |terms| terms.in_flight_max.get());
        let by_cluster = (attempt.not_after + in_flight + 1).saturating_sub(self.now);
        let by_wall = (attempt.not_after_wall + in_flight + 1).saturating_sub(self.wall_low);
        by_cluster.max(by_wall)
    }

    /// Until either clock forbids to send.
    pub fn send_within(&self, attempt: &Attempt) -> u64 {
        let by_cluster = attempt.not_after.saturating_sub(self.now);
        by_cluster.min(attempt.not_after_wall.saturating_sub(self.wall_high))
    }

    pub fn attempt_view(
        &self,
        id: &InvoiceId,
        invoice: &Invoice,
        attempt: &Attempt,
    ) -> ChargeAttempt {
        let open = attempt.state == AttemptState::Open;
        ChargeAttempt {
            number: attempt.number,
            idempotency_key: self.key(id, attempt.number),
            token: attempt.token,
            state: attempt.state,
            send_within_ms: if open { self.send_within(attempt) } else { 0 },
            provider_object: invoice
                .object
                .as_ref()
                .filter(|object| !object.cancelled)
                .map(|object| object.id.clone()),
            taken_over: attempt.taken_over,
            terms: attempt.terms.clone(),
            look_up_in_ms: self.look_up_in(attempt),
        }
    }

    pub fn key(&self, id: &InvoiceId, number: AttemptNumber) -> IdempotencyKey {
        IdempotencyKey {
            ledger: self
                .ledger_id
                .clone()
                .expect("attempts only after the bootstrap"),
            number,
            invoice: id.clone(),
        }
    }

    pub fn open_attempt(&self, id: &InvoiceId, invoice: &Invoice) -> Option<ChargeAttempt> {
        invoice
            .live()
            .map(|attempt| self.attempt_view(id, invoice, attempt))
    }

    /// Compares what the ledger shows of an invoice. The reason of a review may be any that is true.
    pub fn check_view(&self, id: &InvoiceId, told: Option<&InvoiceView>) -> Result<(), String> {
        let expected = self.invoices.get(id).map(|invoice| InvoiceView {
            invoice: id.clone(),
            bill: invoice.bill.clone(),
            status: self.status(invoice),
            lease: invoice
                .lease
                .as_ref()
                .map(|lease| self.lease_view(id, lease)),
            open_attempt: self.open_attempt(id, invoice),
            charge_reference: invoice.charges.first().cloned(),
            charge_references: invoice.charges.clone(),
            attempts: invoice.highest,
            waiters: invoice.waiters.len() as u64,
            next_try_in_ms: match told {
                Some(told) if invoice.rest.is_some() => told.next_try_in_ms, // Of no meaning then.
                _ => invoice.next_try.saturating_sub(self.now),
            },
            review: match &invoice.rest {
                Some(Rest::Review(reasons)) => told
                    .and_then(|told| told.review)
                    .filter(|reason| reasons.contains(reason))
                    .or(reasons.first().copied()),
                _ => None,
            },
            declined: invoice.declined.clone(),
        });
        if expected.as_ref() == told {
            return Ok(());
        }
        Err(format!(
            "view of {id}\n  ledger: {told:?}\n  model:  {expected:?}"
        ))
    }
}
