//! Sessions, and what time ends, as §3 and §4 say it.

use billing_core::*;

use super::leases::{doubt_backoff, invalid};
use super::{End, Ended, Expected, Model, Session, Waiter};

impl Model {
    pub fn is_alive(&self, session: SessionId) -> bool {
        self.sessions.contains_key(&session)
    }

    /// A used-up request_id is no session that anybody opened.
    pub fn session_reasons(&self, session: SessionId) -> Vec<Rejection> {
        let unknown = Rejection::SessionNotFound { session };
        match self.ended.get(&session) {
            Some(ended) if ended.implicit => vec![Rejection::SessionEnded { session }, unknown],
            Some(_) => vec![Rejection::SessionEnded { session }],
            None => vec![unknown],
        }
    }

    pub fn keep(&mut self, id: SessionId) {
        let now = self.now;
        let session = self.sessions.get_mut(&id).expect("judged alive");
        if session.deadline.is_some() {
            session.deadline = Some(now + session.ttl);
        }
    }

    pub fn open_session(&mut self, open: &OpenSession) -> Expected {
        if self.ended.contains_key(&open.session) {
            return Err(vec![Rejection::SessionEnded {
                session: open.session,
            }]);
        }
        if let Some(session) = self.sessions.get(&open.session) {
            if session.implicit || session.holder != open.holder || session.ttl != open.ttl.get() {
                return Err(vec![invalid()]);
            }
            self.keep(open.session);
            return Ok(Reply::Session(self.session_view(open.session)));
        }
        if self.sessions.len() >= self.config.sessions_open_max {
            return Err(vec![self.overloaded(Bound::SessionsOpen)]);
        }
        let deadline = Some(self.now + open.ttl.get());
        self.start_session(
            open.session,
            open.holder.clone(),
            open.ttl.get(),
            deadline,
            false,
        );
        Ok(Reply::Session(self.session_view(open.session)))
    }

    pub fn start_session(
        &mut self,
        id: SessionId,
        holder: HolderId,
        ttl: u64,
        deadline: Option<u64>,
        implicit: bool,
    ) {
        let answers = std::collections::BTreeMap::new();
        self.sessions.insert(
            id,
            Session {
                holder,
                ttl,
                deadline,
                implicit,
                floor: 1,
                answers,
            },
        );
    }

    pub fn keep_alive(&mut self, keep: &KeepAlive) -> Expected {
        if !self.is_alive(keep.session) {
            return Err(self.session_reasons(keep.session));
        }
        self.keep(keep.session);
        Ok(Reply::Session(self.session_view(keep.session)))
    }

    pub fn close_session(&mut self, close: &CloseSession) -> Expected {
        let was_open = self.is_alive(close.session);
        if was_open {
            self.end_session(close.session, End::Ended);
        }
        // A close that overtook its open: the id is used up all the same.
        let never = Ended {
            implicit: false,
            at: self.now,
            answer: None,
        };
        self.ended.entry(close.session).or_insert(never);
        Ok(Reply::SessionClosed { was_open })
    }

    /// Its leases end with it, and its waiters are told so.
    pub fn end_session(&mut self, id: SessionId, how: End) {
        let invoices: Vec<InvoiceId> = self.invoices.keys().cloned().collect();
        for invoice in &invoices {
            let waiting =
                std::mem::take(&mut self.invoices.get_mut(invoice).expect("listed").waiters);
            let (gone, stay): (Vec<Waiter>, Vec<Waiter>) =
                waiting.into_iter().partition(|waiter| waiter.session == id);
            self.invoices.get_mut(invoice).expect("listed").waiters = stay;
            for waiter in gone {
                self.answer(
                    waiter.session,
                    waiter.seq,
                    Err(vec![Rejection::SessionEnded { session: id }]),
                );
                self.freed.insert(invoice.clone());
            }
        }
        for invoice in &invoices {
            let held = self.invoices[invoice]
                .lease
                .as_ref()
                .is_some_and(|lease| lease.session == id);
            if held {
                self.end_lease(invoice, how);
            }
        }
        if let Some(session) = self.sessions.remove(&id) {
            let answer = session
                .answers
                .get(&1)
                .cloned()
                .filter(|_| session.implicit);
            self.ended.insert(
                id,
                Ended {
                    implicit: session.implicit,
                    at: self.now,
                    answer,
                },
            );
        }
    }

    /// Ends the lease that stands, and an implicit session with it.
    pub fn end_lease(&mut self, id: &InvoiceId, how: End) {
        let now = self.now;
        let invoice = self.invoices.get_mut(id).expect("leased");
        let lease = invoice.lease.take().expect("leased");
        invoice.last_expired = how == End::Expired;
        // While the provider is at work its own date stands in for a back-off.
        if invoice.live().is_some() && invoice.pending_until <= now {
            invoice.pending_until = 0;
            invoice.doubts += 1;
            invoice.next_try = now + doubt_backoff(invoice.doubts);
        }
        self.freed.insert(id.clone());
        if self.sessions[&lease.session].implicit {
            self.end_session(lease.session, how);
        }
    }

    pub fn expire(&mut self) {
        let now = self.now;
        self.ended
            .retain(|_, ended| !ended.implicit || ended.at + limits::IMPLICIT_REMEMBERED_MS > now);
        self.time_out_waiters();
        let due: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.deadline.is_some_and(|deadline| deadline <= now))
            .map(|(id, _)| *id)
            .collect();
        for session in due {
            self.end_session(session, End::Expired);
        }
        let due: Vec<InvoiceId> = self
            .invoices
            .iter()
            .filter(|(_, invoice)| {
                invoice
                    .lease
                    .as_ref()
                    .and_then(|lease| lease.own_deadline)
                    .is_some_and(|at| at <= now)
            })
            .map(|(id, _)| id.clone())
            .collect();
        for invoice in due {
            self.end_lease(&invoice, End::Expired);
        }
        for invoice in self.invoices.values_mut() {
            // The provider named the time: no back-off on top of it.
            let waited = 0 < invoice.pending_until && invoice.pending_until <= now;
            if waited && invoice.lease.is_none() && invoice.rest.is_none() {
                invoice.pending_until = 0;
                invoice.next_try = now;
            }
        }
        // What time alone changes shows on any invoice that is not over.
        let open = self
            .invoices
            .iter()
            .filter(|(_, invoice)| invoice.rest.is_none());
        self.freed.extend(open.map(|(id, _)| id.clone()));
        self.serve_freed();
    }

    /// Who has waited long enough is told who held the invoice so far, whatever else ends at the same instant.
    pub fn time_out_waiters(&mut self) {
        let now = self.now;
        let mut due: Vec<(InvoiceId, Waiter)> = Vec::new();
        for (id, invoice) in &mut self.invoices {
            let (gone, stay): (Vec<Waiter>, Vec<Waiter>) = std::mem::take(&mut invoice.waiters)
                .into_iter()
                .partition(|waiter| waiter.deadline <= now);
            invoice.waiters = stay;
            due.extend(gone.into_iter().map(|waiter| (id.clone(), waiter)));
        }
        for (id, waiter) in due {
            let mut reasons = self.cannot_lease(&id);
            if self.sessions[&waiter.session]
                .deadline
                .is_some_and(|deadline| deadline <= now)
            {
                reasons.push(Rejection::SessionEnded {
                    session: waiter.session,
                });
            }
            self.answer(waiter.session, waiter.seq, Err(reasons));
        }
    }
}
