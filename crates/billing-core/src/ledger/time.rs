//! Time inside the ledger: moves it, ends what is due, and says when the leader must tick. No time of its own: it obeys the
//! stamp. Time lets others in; that a write is safe never depends on it.

use super::leases::LeaseEnd;
use super::*;
use crate::rejection::Rejection;

impl Ledger {
    /// Moves to the proposed time, or stays: a new leader's base may lie behind what is applied by now.
    pub(super) fn advance(&mut self, proposed: ClusterTime) {
        self.scalars.now = self.scalars.now.max(proposed);
    }

    /// Ends everything that is due: waits, then sessions, then leases with a TTL of their own, then what time alone changes
    /// on an invoice. Only then is anybody granted what became free.
    pub(super) fn expire(&mut self) {
        let now = self.scalars.now;
        while let Some(((deadline, _), (session, seq))) = self.index.waiter_deadlines.first() {
            let (session, seq) = (*session, *seq);
            if *deadline > now {
                break;
            }
            self.waiter_too_late(session, seq);
        }
        let due = match sabotaged!(SessionsEndEarly) {
            false => now,
            true => now.plus(1_000),
        };
        while let Some(((deadline, session), ())) = self.index.session_deadlines.first() {
            let session = *session;
            if *deadline > due {
                break;
            }
            self.note(
                What::SessionExpired { session },
                None,
                FencingToken::NONE,
                None,
            );
            self.end_session(session, &LeaseEnd::SessionExpired);
        }
        while let Some(((at, invoice), ())) = self.index.events.first() {
            let invoice = invoice.clone();
            if *at > now {
                break;
            }
            self.event(&invoice);
        }
        self.settle_freed();
        self.forget_ended();
    }

    /// The moment that `Filed::event` named has come.
    fn event(&mut self, id: &InvoiceId) {
        let now = self.scalars.now;
        let Some(invoice) = self.invoice(id) else {
            return;
        };
        match invoice.status() {
            InvoiceStatus::Processing | InvoiceStatus::Charging => {
                self.end_lease(id, &LeaseEnd::OwnTtlExpired)
            }
            InvoiceStatus::Waiting => {
                if let Some(invoice) = self.invoice_mut(id) {
                    invoice.waiting_until = None;
                    invoice.next_try = now; // The provider named the time; no back-off on top of it.
                }
                self.note(What::WaitingEnded, Some(id), FencingToken::NONE, None);
                self.refile(id);
                self.review_if_unanswered(id);
            }
            InvoiceStatus::InDoubt => self.review_if_unanswered(id),
            // The back-off is over, or a person's waiting time is: only the filing changes.
            InvoiceStatus::Pending
            | InvoiceStatus::Review
            | InvoiceStatus::Paid
            | InvoiceStatus::Failed
            | InvoiceStatus::Cancelled => self.refile(id),
        }
    }

    /// Forgets ended sessions: implicit ones after their time, both kinds beyond their bound.
    fn forget_ended(&mut self) {
        let now = self.scalars.now;
        while let Some(((at, session), ())) = self.index.ended_implicit.first() {
            let key = (*at, *session);
            let over = at.plus(IMPLICIT_REMEMBERED_MS) <= now;
            if !over && self.index.ended_implicit.len() <= self.config.sessions_ended_max {
                break;
            }
            self.index.ended_implicit.remove(&key);
            self.forget(key.1);
        }
        while self.index.ended_opened.len() > self.config.sessions_ended_max {
            let Some(((at, session), ())) = self.index.ended_opened.first() else {
                break;
            };
            let key = (*at, *session);
            self.index.ended_opened.remove(&key);
            self.forget(key.1);
        }
    }

    fn forget(&mut self, session: SessionId) {
        if let Some(ended) = self.ended.remove(&session) {
            let old = digest(Tag::Ended, &ended, &mut self.turn.scratch);
            self.digests = self.digests.wrapping_sub(old);
        }
    }

    /// How often the leader must tick, in ms; None: not at all. A tenth of the shortest TTL, never under 100 ms; at least
    /// once a second while other deadlines pend, and so while only those do.
    #[must_use]
    pub fn tick_needed(&self) -> Option<u64> {
        let deadlines = !self.index.events.is_empty() || !self.index.waiter_deadlines.is_empty();
        if let Some((shortest, _)) = self.index.ttls.first_key_value() {
            let every = (shortest.get() / 10).max(TICK_MS_MIN);
            return Some(if deadlines {
                every.min(TICK_MS_IDLE)
            } else {
                every
            });
        }
        let pending = deadlines
            || self.index.count(InvoiceStatus::InDoubt) > 0
            || self.scalars.grants_from > self.scalars.now;
        pending.then_some(TICK_MS_IDLE)
    }

    /// The facts of a lease that stands, for whoever is refused because of it.
    pub(super) fn held_by_other(&self, invoice: &Invoice) -> Rejection {
        match self.lease_view(invoice) {
            Some(view) => Rejection::HeldByOther {
                invoice: view.invoice,
                holder: view.holder,
                expires_in_ms: view.expires_in_ms,
            },
            None => Rejection::LeaseEnded {
                invoice: invoice.id.clone(),
                token: invoice.token_last,
            },
        }
    }

    /// The lease's own deadline or its session's, whichever comes first.
    pub(super) fn lease_deadline(&self, lease: &state::Lease) -> ClusterTime {
        let session = self
            .session(lease.session)
            .and_then(|session| session.deadline);
        match (session, lease.own) {
            (Some(session), Some(own)) => session.min(own.deadline),
            (Some(session), None) => session,
            (None, Some(own)) => own.deadline,
            (None, None) => self.scalars.now,
        }
    }
}
