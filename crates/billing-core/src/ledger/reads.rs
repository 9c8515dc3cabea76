//! What the ledger shows: copies of records, pages in the order of their ids, counts, the audit log. Changes nothing.

use super::audit::ChainHash;
use super::state::Phase;
use super::*;
use crate::reply::{Bill, ChargeAttempt, InvoiceView, LeaseEvent, LeaseEvents, LeaseView};

impl Ledger {
    #[must_use]
    pub fn now(&self) -> ClusterTime {
        self.scalars.now
    }

    /// The wall time of the newest stamp.
    #[must_use]
    pub fn wall(&self) -> WallTime {
        self.scalars.wall
    }

    /// What wall time has reached by whatever clock may be right: what opens by it goes by this one, and so does every deadline
    /// that is set now.
    pub(super) fn wall_reached(&self) -> WallTime {
        WallTime(
            self.scalars
                .wall
                .0
                .saturating_sub(self.scalars.wall_jumped_ms.max(0).unsigned_abs()),
        )
    }

    /// What wall time has reached by one that may be right: what closes by it goes by this one.
    pub(super) fn wall_perhaps(&self) -> WallTime {
        self.scalars
            .wall
            .plus(self.scalars.wall_jumped_ms.min(0).unsigned_abs())
    }

    #[must_use]
    pub fn token_last(&self) -> FencingToken {
        self.scalars.token_last
    }

    /// None: not bootstrapped.
    #[must_use]
    pub fn ledger_id(&self) -> Option<&LedgerId> {
        self.scalars.ledger_id.as_ref()
    }

    #[must_use]
    pub fn charges_allowed(&self) -> bool {
        self.scalars.charges_allowed
    }

    /// How long no lease is granted yet, after a bootstrap or restore. 0: they are.
    #[must_use]
    pub fn grants_in_ms(&self) -> u64 {
        self.scalars.now.ms_until(self.scalars.grants_from)
    }

    /// Charges that the rules did not foresee, since the ledger began.
    #[must_use]
    pub fn charge_alarms(&self) -> u64 {
        self.scalars.charge_alarms
    }

    /// Paused providers and why.
    pub fn paused_providers(&self) -> impl Iterator<Item = (&ProviderId, &Evidence)> {
        self.paused.iter()
    }

    /// None: unknown, and so PENDING to nobody. A plain lease shows as an invoice without a bill.
    #[must_use]
    pub fn invoice_view(&self, id: &InvoiceId) -> Option<InvoiceView> {
        self.invoice(id).map(|invoice| self.view(invoice))
    }

    /// The lease that stands; None: free.
    #[must_use]
    pub fn lease(&self, id: &InvoiceId) -> Option<LeaseView> {
        self.invoice(id)
            .and_then(|invoice| self.lease_view(invoice))
    }

    /// Standing leases in order of their invoice's id, from the first above `after`.
    #[must_use]
    pub fn leases(&self, after: Option<&InvoiceId>, limit: usize) -> Vec<LeaseView> {
        let mut processing = self
            .index
            .of_status(InvoiceStatus::Processing)
            .iter_after(after)
            .peekable();
        let mut charging = self
            .index
            .of_status(InvoiceStatus::Charging)
            .iter_after(after)
            .peekable();
        let mut page = Vec::new();
        while page.len() < limit.min(PAGE_MAX) {
            let next = match (processing.peek(), charging.peek()) {
                (Some((left, ())), Some((right, ()))) if left < right => processing.next(),
                (_, Some(_)) => charging.next(),
                (_, None) => processing.next(),
            };
            let Some((id, ())) = next else { break };
            page.extend(self.lease(id));
        }
        page
    }

    /// How many leases stand.
    #[must_use]
    pub fn leases_count(&self) -> u64 {
        self.index.count(InvoiceStatus::Processing) + self.index.count(InvoiceStatus::Charging)
    }

    #[must_use]
    pub fn sessions_count(&self) -> u64 {
        self.sessions.len() as u64
    }

    /// Requests that stand in an invoice's queue.
    #[must_use]
    pub fn waiters_count(&self) -> u64 {
        self.index.waiter_deadlines.len() as u64
    }

    /// Records in order of id, from the first above `after`. A customer's, and what is
    /// PENDING or PAID, are looked for one record after the other, so a page may take a walk.
    #[must_use]
    pub fn invoices(
        &self,
        status: Option<InvoiceStatus>,
        customer: Option<&CustomerId>,
        after: Option<&InvoiceId>,
        limit: usize,
    ) -> Vec<InvoiceView> {
        let limit = limit.min(PAGE_MAX);
        let owes = |invoice: &&Invoice| {
            customer.is_none_or(|customer| {
                invoice
                    .sum
                    .as_ref()
                    .is_some_and(|sum| sum.customer == *customer)
            })
        };
        match status {
            Some(status) if is_listed(status) => {
                let ids = self.index.of_status(status).iter_after(after);
                let records = ids.filter_map(|(id, ())| self.invoice(id));
                records
                    .filter(owes)
                    .take(limit)
                    .map(|invoice| self.view(invoice))
                    .collect()
            }
            Some(_) | None => {
                let records = self.ids_after(after).filter_map(|id| self.invoice(id));
                let records = records
                    .filter(|invoice| status.is_none_or(|status| invoice.status() == status));
                records
                    .filter(owes)
                    .take(limit)
                    .map(|invoice| self.view(invoice))
                    .collect()
            }
        }
    }

    /// Every record's id in order, from the first above `after`: those that stay, and between them what is merely leased.
    fn ids_after<'a>(
        &'a self,
        after: Option<&InvoiceId>,
    ) -> impl Iterator<Item = &'a InvoiceId> + use<'a> {
        let named = self.index.named.iter_after(after);
        let mut named = named.map(|(id, ())| id).peekable();
        let leased = self.index.of_status(InvoiceStatus::Processing);
        let leased = leased.iter_after(after).map(|(id, ())| id);
        let mut plain = leased
            .filter(|id| !self.index.named.contains(id))
            .peekable();
        std::iter::from_fn(move || match (named.peek(), plain.peek()) {
            (Some(left), Some(right)) if left < right => named.next(),
            (_, Some(_)) => plain.next(),
            (_, None) => named.next(),
        })
    }

    /// How many records stand in each status, zeros included.
    #[must_use]
    pub fn counts(&self) -> [(InvoiceStatus, u64); InvoiceStatus::ALL.len()] {
        InvoiceStatus::ALL.map(|status| (status, self.index.count(status)))
    }

    /// Attempts that are open or closing without a lease, in order of invoice id, from the first above `after`.
    #[must_use]
    pub fn in_doubt(&self, after: Option<&InvoiceId>, limit: usize) -> Vec<InvoiceView> {
        self.invoices(Some(InvoiceStatus::InDoubt), None, after, limit)
    }

    /// What happened to an invoice, oldest first, as far back as the audit log reaches.
    #[must_use]
    pub fn history(&self, id: &InvoiceId) -> Vec<AuditRecord> {
        self.audit.of_invoice(id).collect()
    }

    /// Records from `index` on (0: from the oldest kept), and the hash that the first of them follows.
    #[must_use]
    pub fn audit(&self, index: u64, limit: usize) -> (Vec<AuditRecord>, ChainHash) {
        let records: Vec<AuditRecord> = self.audit.from(index).take(limit.min(PAGE_MAX)).collect();
        let anchor = records
            .first()
            .and_then(|first| self.audit_hash_before(first.index));
        (records, anchor.unwrap_or(self.audit.head()))
    }

    /// The hash that the record at `index` follows; None: that is not kept.
    #[must_use]
    pub fn audit_hash_before(&self, index: u64) -> Option<ChainHash> {
        if index == self.audit.first_index() {
            return Some(self.audit.anchor());
        }
        self.audit.hash_of(index.checked_sub(1)?)
    }

    /// The newest record's index; 0: none yet.
    #[must_use]
    pub fn audit_last_index(&self) -> u64 {
        self.audit.last_index()
    }

    /// The first kept record's index.
    #[must_use]
    pub fn audit_first_index(&self) -> u64 {
        self.audit.first_index()
    }

    /// Grants and ends of leases among the next `max` audit records from `from` on, in their order. `from` above the newest
    /// record: none yet, and `next_index` is `from`.
    ///
    /// # Errors
    /// [`Rejection::IndexPurged`] when the record at `from` is no longer kept (0 never was): what is missed cannot be told.
    pub fn lease_events(&self, from: u64, max: usize) -> Result<LeaseEvents, Rejection> {
        let oldest_index = self.audit.first_index();
        if from < oldest_index {
            return Err(Rejection::IndexPurged {
                requested: from,
                oldest: oldest_index,
            });
        }
        let mut next_index = from;
        let mut events = Vec::new();
        for record in self.audit.from(from).take(max) {
            next_index = record.index + 1;
            if let (Some((kind, holder)), Some(invoice)) = (record.what.lease(), &record.invoice) {
                events.push(LeaseEvent {
                    index: record.index,
                    kind,
                    invoice: invoice.clone(),
                    token: record.token,
                    holder: holder.clone(),
                    at: record.at,
                    what: record.what.word(),
                });
            }
        }
        Ok(LeaseEvents {
            events,
            next_index,
            oldest_index,
        })
    }

    /// The next moment at which time alone would change something, in ms from now; None: nothing pends.
    #[must_use]
    pub fn next_deadline_in_ms(&self) -> Option<u64> {
        let event = self.index.events.first().map(|((at, _), ())| *at);
        let session = self
            .index
            .session_deadlines
            .first()
            .map(|((at, _), ())| *at);
        let waiter = self.index.waiter_deadlines.first().map(|((at, _), _)| *at);
        [event, session, waiter]
            .into_iter()
            .flatten()
            .min()
            .map(|at| self.scalars.now.ms_until(at))
    }

    pub(super) fn bill_view(&self, invoice: &Invoice) -> Option<Bill> {
        let sum = invoice.sum.as_ref()?;
        Some(Bill {
            invoice: invoice.id.clone(),
            customer: sum.customer.clone(),
            amount: sum.amount,
            currency: sum.currency,
            due_at: sum.due_at,
            priority: sum.priority,
        })
    }

    fn view(&self, invoice: &Invoice) -> InvoiceView {
        let open_attempt: Option<ChargeAttempt> = self.open_attempt_view(invoice);
        let review = match invoice.phase {
            Phase::Review(reason) => Some(reason),
            Phase::Ready | Phase::Paid | Phase::Failed | Phase::Cancelled => None,
        };
        let declined = invoice
            .attempts
            .iter()
            .rev()
            .find_map(|attempt| attempt.decline.as_ref());
        InvoiceView {
            invoice: invoice.id.clone(),
            bill: self.bill_view(invoice),
            status: invoice.status(),
            lease: self.lease_view(invoice),
            open_attempt,
            charge_reference: invoice
                .charges
                .first()
                .map(|charge| charge.reference.clone()),
            charge_references: invoice
                .charges
                .iter()
                .map(|charge| charge.reference.clone())
                .collect(),
            attempts: invoice.number_last,
            waiters: invoice.queue.len() as u64,
            next_try_in_ms: self.scalars.now.ms_until(invoice.next_try),
            review,
            declined: declined.map(|decline| decline.code.clone()),
        }
    }
}
