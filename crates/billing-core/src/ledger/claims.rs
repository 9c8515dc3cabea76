//! Claims: the next due invoices, leased in one command. Decides the order: what is in doubt first, up to half, then due
//! time, priority, order of submission. The same table that AcquireLease uses; a claim is no other kind of lease.

use super::state::{Answer, Ask};
use super::*;
use crate::command::ClaimInvoices;
use crate::reply::{Claimed, ClaimedInvoice};

impl Ledger {
    pub(super) fn claim(&mut self, claim: &ClaimInvoices) -> Result<Reply, Rejection> {
        let ask = Ask::Claim { max: claim.max };
        if let Some(answered) = self.open_slot(claim.session, claim.seq, claim.done_below, &ask)? {
            return answered;
        }
        if let Err(refused) = self
            .grants_open()
            .and_then(|()| self.room_for_lease(claim.session))
        {
            self.keep_answer(
                claim.session,
                claim.seq,
                ask,
                Answer::Refused(Box::new(refused.clone())),
            );
            return Err(refused);
        }
        let held = self
            .session(claim.session)
            .map_or(0, |session| session.leases.len());
        let room = self.config.leases_per_session_max.saturating_sub(held);
        let max = usize::from(claim.max.get()).min(room);
        let mut leases = Vec::with_capacity(max.min(64));
        for id in self.next_due(max) {
            let token = self.grant(&id, claim.session, None);
            leases.push((id, token));
        }
        let reply = self.claimed_view(&leases);
        if !sabotaged!(ClaimReplyForgotten) {
            self.keep_answer(claim.session, claim.seq, ask, Answer::Claimed { leases });
        }
        Ok(Reply::Claimed(reply))
    }

    /// Up to `max` invoices in a claim's order. A claim of one takes what is in doubt, or nobody small ever would.
    fn next_due(&self, max: usize) -> Vec<InvoiceId> {
        let (now, wall) = (self.scalars.now, self.wall_reached());
        let doubt_max = (max / 2).max(1).min(max);
        let doubt = self.index.doubt.iter().map(|((due, id), ())| (*due, id));
        let mut next: Vec<InvoiceId> = doubt
            .take_while(|(due, _)| *due <= now)
            .take(doubt_max)
            .map(|(_, id)| id.clone())
            .collect();
        let due = self
            .index
            .due
            .iter()
            .take_while(|((due_at, _, _), _)| *due_at <= wall);
        next.extend(due.take(max - next.len()).map(|(_, id)| id.clone()));
        next
    }

    /// Those of the leases that still stand.
    pub(super) fn claimed_view(&self, leases: &[(InvoiceId, FencingToken)]) -> Claimed {
        let still = leases.iter().filter_map(|(id, token)| {
            let held = self.invoice(id)?;
            let lease = self
                .lease_view(held)
                .filter(|lease| lease.token == *token)?;
            Some(ClaimedInvoice {
                lease,
                bill: self.bill_view(held)?,
                open_attempt: self.open_attempt_view(held),
            })
        });
        let leased: Vec<ClaimedInvoice> = still.collect();
        let next_due_in_ms = if leased.is_empty() {
            self.next_due_in_ms()
        } else {
            None
        };
        Claimed {
            leased,
            next_due_in_ms,
        }
    }

    /// When the next claim may find something, as far as the ledger knows: events that free nothing count too.
    fn next_due_in_ms(&self) -> Option<u64> {
        let (now, wall) = (self.scalars.now, self.wall_reached());
        let due = self
            .index
            .due
            .first()
            .map(|((due_at, _, _), _)| wall.ms_until(*due_at));
        let doubt = self
            .index
            .doubt
            .first()
            .map(|((due, _), ())| now.ms_until(*due));
        let event = self
            .index
            .events
            .first()
            .map(|((at, _), ())| now.ms_until(*at));
        [due, doubt, event].into_iter().flatten().min()
    }
}
