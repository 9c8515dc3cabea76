//! The queue in front of a leased invoice: first come, first granted; each waiter until its own deadline. A waiter is always
//! told how it ended, exactly once.

use super::leases::LeaseEnd;
use super::state::{Answer, Ask, EndedHow, Phase, Waiter};
use super::*;
use crate::command::WithdrawWaiter;
use crate::rejection::Bound;

impl Ledger {
    pub(super) fn room_to_wait(
        &self,
        invoice: &Invoice,
        session: Option<SessionId>,
    ) -> Result<(), Rejection> {
        let max = self.config.waiters_per_invoice_max;
        if invoice.queue.len() >= max {
            return Err(Rejection::Overloaded {
                bound: Bound::WaitersPerInvoice,
                max: max as u64,
            });
        }
        let max = self.config.waiters_per_session_max;
        if session
            .and_then(|id| self.session(id))
            .is_some_and(|session| session.waiting.len() >= max)
        {
            return Err(Rejection::Overloaded {
                bound: Bound::WaitersPerSession,
                max: max as u64,
            });
        }
        Ok(())
    }

    /// Puts the request at the end of the queue of the invoice that it asks for.
    pub(super) fn enqueue(&mut self, session: SessionId, seq: Seq, ask: Ask) -> Reply {
        if let Ask::Acquire { invoice, wait, ttl } = &ask {
            self.scalars.ticket_last += 1;
            let ticket = self.scalars.ticket_last;
            let deadline = self.scalars.now.plus(wait.get());
            if let Some(held) = self.invoice_mut(invoice) {
                let waiter = Waiter {
                    session,
                    seq,
                    ttl: *ttl,
                    deadline,
                };
                held.queue.insert(ticket, waiter);
            }
            self.index
                .waiter_deadlines
                .insert((deadline, ticket), (session, seq));
            self.keep_answer(session, seq, ask, Answer::Queued { deadline, ticket });
        }
        Reply::Queued
    }

    /// Takes a waiter out of its queue; its request still says Queued until the caller keeps another answer.
    pub(super) fn leave_queue(&mut self, session: SessionId, seq: Seq) {
        let Some(request) = self
            .session(session)
            .and_then(|session| session.request(seq))
        else {
            return;
        };
        let (Answer::Queued { deadline, ticket }, Ask::Acquire { invoice, .. }) =
            (&request.answer, &request.ask)
        else {
            return;
        };
        let (deadline, ticket, invoice) = (*deadline, *ticket, invoice.clone());
        self.index.waiter_deadlines.remove(&(deadline, ticket));
        if let Some(held) = self.invoice_mut(&invoice) {
            held.queue.remove(&ticket);
        }
    }

    pub(super) fn answer_waiter(
        &mut self,
        session: SessionId,
        seq: Seq,
        result: Result<Reply, Rejection>,
    ) {
        self.turn.answers.push(WaiterAnswer {
            session,
            seq,
            result,
        });
    }

    pub(super) fn withdraw_waiter(&mut self, withdraw: &WithdrawWaiter) -> Reply {
        let queued = self
            .session(withdraw.session)
            .and_then(|session| session.request(withdraw.seq))
            .is_some_and(state::Request::is_queued);
        if queued {
            self.withdraw(withdraw.session, withdraw.seq);
        }
        Reply::WaiterWithdrawn {
            was_waiting: queued,
        }
    }

    /// Takes a waiter back: whoever still listens hears LeaseEnded, and so does a late copy of the request.
    pub(super) fn withdraw(&mut self, session: SessionId, seq: Seq) {
        self.leave_queue(session, seq);
        let Some(open) = self.session(session) else {
            return;
        };
        let Some(request) = open.request(seq) else {
            return;
        };
        let (implicit, ask) = (open.implicit, request.ask.clone());
        if let Ask::Acquire { invoice, .. } = &ask {
            let refused = Rejection::LeaseEnded {
                invoice: invoice.clone(),
                token: FencingToken::NONE,
            };
            self.answer_waiter(session, seq, Err(refused));
        }
        if implicit {
            self.remove_session(session);
            self.remember_ended(
                session,
                EndedHow::Leased {
                    token: FencingToken::NONE,
                },
            );
        } else {
            self.keep_answer(session, seq, ask, Answer::Withdrawn);
        }
    }

    /// The waiter's session ends.
    pub(super) fn withdraw_from_ended(&mut self, session: SessionId, seq: Seq) {
        self.leave_queue(session, seq);
        let ask = self
            .session(session)
            .and_then(|open| open.request(seq))
            .map(|request| request.ask.clone());
        if let Some(ask) = ask {
            self.keep_answer(session, seq, ask, Answer::Withdrawn);
            self.answer_waiter(session, seq, Err(Rejection::SessionEnded { session }));
        }
    }

    /// The wait is over without a grant.
    pub(super) fn waiter_too_late(&mut self, session: SessionId, seq: Seq) {
        let request = self
            .session(session)
            .and_then(|session| session.request(seq));
        let Some(Ask::Acquire { invoice, .. }) = request.map(|request| &request.ask) else {
            return;
        };
        let Some(held) = self.invoice(invoice) else {
            return;
        };
        let refused = self.held_by_other(held);
        self.leave_queue(session, seq);
        self.refuse_waiter(session, seq, refused);
    }

    /// For a waiter that left its queue: keeps the refusal and tells it.
    fn refuse_waiter(&mut self, session: SessionId, seq: Seq, refused: Rejection) {
        let Some(open) = self.session(session) else {
            return;
        };
        let Some(request) = open.request(seq) else {
            return;
        };
        let (implicit, ask) = (open.implicit, request.ask.clone());
        if implicit {
            self.remove_session(session);
            self.remember_ended(session, EndedHow::Refused(Box::new(refused.clone())));
        } else {
            self.keep_answer(
                session,
                seq,
                ask,
                Answer::Refused(Box::new(refused.clone())),
            );
        }
        self.answer_waiter(session, seq, Err(refused));
    }

    /// Looks at every invoice whose lease has ended: puts it in review, answers its waiters, grants the next one, or lets
    /// the record go.
    pub(super) fn settle_freed(&mut self) {
        if self.turn.freed.is_empty() {
            return;
        }
        let actor = std::mem::replace(&mut self.turn.actor, self.turn.ledger_actor.clone());
        for id in std::mem::take(&mut self.turn.freed) {
            self.review_if_unanswered(&id);
            while let Some(waiter) = self.next_waiter(&id) {
                self.leave_queue(waiter.session, waiter.seq);
                let refused = match self
                    .invoice(&id)
                    .and_then(|invoice| self.unleasable(invoice))
                {
                    Some(refused) => Err(refused),
                    None => self.room_for_lease(waiter.session),
                };
                match refused {
                    Ok(()) => self.grant_waiter(&id, &waiter),
                    Err(refused) => self.refuse_waiter(waiter.session, waiter.seq, refused),
                }
            }
            self.remove_if_spent(&id);
        }
        self.turn.actor = actor;
    }

    /// The first in the queue of an invoice that nobody holds.
    fn next_waiter(&self, id: &InvoiceId) -> Option<Waiter> {
        let invoice = self.invoice(id)?;
        if invoice.lease.is_some() {
            None
        } else {
            let first = match sabotaged!(WaitersServedBackwards) {
                false => invoice.queue.first(),
                true => invoice.queue.iter().last(),
            };
            first.map(|(_, waiter)| waiter.clone())
        }
    }

    fn grant_waiter(&mut self, id: &InvoiceId, waiter: &Waiter) {
        let request = self
            .session(waiter.session)
            .and_then(|session| session.request(waiter.seq));
        let Some(ask) = request.map(|request| request.ask.clone()) else {
            return;
        };
        let token = self.grant(id, waiter.session, waiter.ttl);
        self.keep_answer(waiter.session, waiter.seq, ask, Answer::Granted { token });
        let granted = self.leased_reply(id, token);
        self.answer_waiter(waiter.session, waiter.seq, granted);
    }

    /// Nothing in flight any more, nobody to ask, nobody at work: a person must look.
    pub(super) fn review_if_unanswered(&mut self, id: &InvoiceId) {
        let now = self.scalars.now;
        let Some(invoice) = self.invoice(id) else {
            return;
        };
        let free = invoice.phase == Phase::Ready && invoice.lease.is_none();
        if free
            && invoice
                .review_at()
                .is_some_and(|review_at| review_at <= now)
        {
            self.put_in_review(id, crate::reply::ReviewReason::Unanswered);
        }
    }

    /// Ends the lease of an invoice that nobody can lease any more. Its waiters are answered by `settle_freed`.
    pub(super) fn end_lease_with_it(&mut self, id: &InvoiceId) {
        self.end_lease(id, &LeaseEnd::WithIt);
    }
}
