//! Which invoices a claim takes, as §3 says it.

use billing_core::*;

use super::{Asked, Expected, Fate, Invoice, Model, Told};

impl Model {
    /// In doubt and due first, at most half of a claim; then by due time, priority, order of submission.
    pub fn claim(&mut self, claim: &ClaimInvoices, told: &Told) -> Expected {
        if !self.is_alive(claim.session) {
            return Err(self.session_reasons(claim.session));
        }
        let asked = Asked::Claim {
            max: claim.max.get(),
        };
        if let Some(before) = self.before(claim.session, claim.seq, claim.done_below, &asked, told)
        {
            return before;
        }
        if self.grants_from > self.now {
            let reasons = vec![Rejection::GrantsNotYet {
                in_ms: self.grants_from - self.now,
            }];
            return self.refused(claim.session, claim.seq, asked, reasons, told);
        }
        let room = self.config.leases_per_session_max - self.leases_of(claim.session);
        if room == 0 {
            let over = vec![self.overloaded(Bound::LeasesPerSession)];
            return self.refused(claim.session, claim.seq, asked, over, told);
        }
        let max = usize::from(claim.max.get()).min(room);
        let free = |invoice: &Invoice| {
            invoice.bill.is_some()
                && invoice.rest.is_none()
                && invoice.lease.is_none()
                && invoice.next_try <= self.now
        };
        let half = (max / 2).max(1);
        let doubtful = |strict: bool| -> Vec<InvoiceId> {
            self.invoices
                .iter()
                .filter(|(_, invoice)| free(invoice) && self.doubt_is_due(invoice, strict))
                .map(|(id, _)| id.clone())
                .collect()
        };
        let (must, may) = (doubtful(true), doubtful(false));
        // Which of several doubtful ones come first is the ledger's choice.
        let mut chosen: Vec<InvoiceId> = match told {
            Ok(Reply::Claimed(told)) => told
                .leased
                .iter()
                .map(|one| one.lease.invoice.clone())
                .filter(|id| may.contains(id))
                .collect(),
            _ => Vec::new(),
        };
        if chosen.len() > half || chosen.len() < half && !must.iter().all(|id| chosen.contains(id))
        {
            chosen = must;
            chosen.truncate(half);
        }
        let mut due: Vec<(WallTime, std::cmp::Reverse<Priority>, u64, InvoiceId)> = self
            .invoices
            .iter()
            .filter(|(_, invoice)| free(invoice) && invoice.live().is_none())
            .filter_map(|(id, invoice)| {
                let bill = invoice.bill.as_ref()?;
                let at = (
                    bill.due_at,
                    std::cmp::Reverse(bill.priority),
                    invoice.order,
                    id.clone(),
                );
                (bill.due_at.0 <= self.wall_low).then_some(at)
            })
            .collect();
        due.sort();
        chosen.extend(due.into_iter().map(|(_, _, _, id)| id));
        chosen.truncate(max);
        let mut leases = Vec::new();
        for id in chosen {
            self.grant(&id, claim.session, None);
            leases.push((id, FencingToken(self.token_last)));
        }
        self.remember(
            claim.session,
            claim.seq,
            Some(asked),
            Fate::Claimed(leases.clone()),
        );
        Ok(self.claimed(&leases))
    }

    /// Something can be done about it: the key may still be sent, or a look-up counts. Not `strict`: its next try is due, or
    /// its look-up by ClusterTime alone; such a claim is at worst of no use.
    pub fn doubt_is_due(&self, invoice: &Invoice, strict: bool) -> bool {
        let Some(attempt) = invoice.live() else {
            return false;
        };
        let can_look_up = attempt
            .terms
            .as_ref()
            .is_some_and(|terms| terms.can_look_up);
        let (send, look_up) = if strict {
            (self.send_within(attempt) > 0, self.look_up_in(attempt) == 0)
        } else {
            (true, self.nothing_in_flight_at(attempt) <= self.now)
        };
        let send = send && attempt.state == AttemptState::Open;
        invoice.pending_until <= self.now && (send || can_look_up && look_up)
    }

    pub fn claimed(&self, leases: &[(InvoiceId, FencingToken)]) -> Reply {
        let leased = leases
            .iter()
            .map(|(id, _)| {
                let invoice = &self.invoices[id];
                ClaimedInvoice {
                    lease: self.lease_view(id, invoice.lease.as_ref().expect("held")),
                    bill: invoice
                        .bill
                        .clone()
                        .expect("only what was submitted is claimed"),
                    open_attempt: self.open_attempt(id, invoice),
                }
            })
            .collect();
        Reply::Claimed(Claimed {
            leased,
            next_due_in_ms: None,
        })
    }
}
