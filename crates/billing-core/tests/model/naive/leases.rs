//! Sessions, leases, queues and time, as §2 to §4 say them.

use billing_core::*;

use super::{
    Answer, Asked, End, Ended, Expected, Fate, Invoice, Lease, Model, Rest, Session, Told, Waiter,
};

impl Model {
    pub fn is_alive(&self, session: SessionId) -> bool {
        self.sessions.contains_key(&session)
    }

    fn session_reason(&self, session: SessionId) -> Rejection {
        if self.ended.contains_key(&session) {
            Rejection::SessionEnded { session }
        } else {
            Rejection::SessionNotFound { session }
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

    fn start_session(
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
            return Err(vec![self.session_reason(keep.session)]);
        }
        self.keep(keep.session);
        Ok(Reply::Session(self.session_view(keep.session)))
    }

    pub fn close_session(&mut self, close: &CloseSession) -> Expected {
        if !self.is_alive(close.session) {
            return match self.session_reason(close.session) {
                Rejection::SessionEnded { .. } => Ok(Reply::SessionClosed { was_open: false }),
                unknown => Err(vec![unknown]),
            };
        }
        self.end_session(close.session, End::Ended);
        Ok(Reply::SessionClosed { was_open: true })
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
        if invoice.live().is_some() {
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
        let ids: Vec<InvoiceId> = self.invoices.keys().cloned().collect();
        for id in ids {
            self.freed.insert(id);
        }
        self.serve_freed();
        self.time_out_waiters();
    }

    fn time_out_waiters(&mut self) {
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
            let reasons = self.cannot_lease(&id);
            self.answer(waiter.session, waiter.seq, Err(reasons));
        }
    }

    /// Every true reason why nobody can be granted this invoice now; none: it is free.
    fn cannot_lease(&self, id: &InvoiceId) -> Vec<Rejection> {
        let mut reasons = Vec::new();
        if self.grants_from > self.now {
            reasons.push(Rejection::GrantsNotYet {
                in_ms: self.grants_from - self.now,
            });
        }
        let Some(invoice) = self.invoices.get(id) else {
            return reasons;
        };
        if let Some(lease) = &invoice.lease {
            reasons.push(Rejection::HeldByOther {
                invoice: id.clone(),
                holder: self.sessions[&lease.session].holder.clone(),
                expires_in_ms: self.expires_in(lease),
            });
        }
        if invoice.rest.is_some() {
            reasons.push(Rejection::NotLeasable {
                invoice: id.clone(),
                status: self.status(invoice),
            });
        }
        if invoice.rest == Some(Rest::Paid) {
            reasons.push(already_paid(id, invoice));
        }
        reasons
    }

    /// Records the answer to a waiter, as the ledger gave it when it is among those allowed.
    fn answer(&mut self, id: SessionId, seq: Seq, expected: Expected) {
        let fate = match &expected {
            Ok(Reply::Leased(leased)) => {
                Fate::Granted(leased.lease.invoice.clone(), leased.lease.token)
            }
            Ok(_) => Fate::Withdrawn,
            Err(reasons) => {
                let told = self
                    .told
                    .iter()
                    .find(|told| told.session == id && told.seq == seq);
                match told.map(|told| &told.result) {
                    Some(Err(told)) => Fate::Refused(told.clone()),
                    _ => Fate::Refused(reasons[0].clone()),
                }
            }
        };
        self.answers.push((id, seq, expected));
        let refused = matches!(fate, Fate::Refused(_));
        if let Some(session) = self.sessions.get_mut(&id) {
            if let Some(answer) = session.answers.get_mut(&u64::from(seq)) {
                answer.fate = fate;
            }
            if session.implicit && refused {
                self.end_session(id, End::Ended);
            }
        }
    }

    /// Hands each invoice that became free to its next waiter. Invoices freed at one instant may be served in any order.
    pub fn serve_freed(&mut self) {
        while !self.freed.is_empty() {
            let mut freed: Vec<InvoiceId> = std::mem::take(&mut self.freed).into_iter().collect();
            let told = &self.told;
            freed.sort_by_key(|id| {
                told.iter()
                    .position(|told| match &told.result {
                        Ok(Reply::Leased(leased)) => leased.lease.invoice == *id,
                        _ => false,
                    })
                    .unwrap_or(usize::MAX)
            });
            for id in freed {
                self.serve(&id);
            }
        }
    }

    fn serve(&mut self, id: &InvoiceId) {
        self.review_unanswered(id);
        loop {
            let Some(invoice) = self.invoices.get_mut(id) else {
                return;
            };
            if invoice.rest.is_some() {
                let waiting = std::mem::take(&mut invoice.waiters);
                if waiting.is_empty() {
                    return;
                }
                let mut reasons = self.cannot_lease(id);
                reasons.retain(|reason| !matches!(reason, Rejection::HeldByOther { .. }));
                for waiter in waiting {
                    self.answer(waiter.session, waiter.seq, Err(reasons.clone()));
                }
                return;
            }
            if invoice.lease.is_some() || self.grants_from > self.now {
                return;
            }
            if invoice.waiters.is_empty() {
                if invoice.bill.is_none() && invoice.attempts.is_empty() {
                    self.invoices.remove(id);
                }
                return;
            }
            let waiter = invoice.waiters.remove(0);
            let leased = self.grant(id, waiter.session, waiter.ttl);
            self.answer(waiter.session, waiter.seq, Ok(leased));
        }
    }

    /// Leases an invoice that is free.
    fn grant(&mut self, id: &InvoiceId, session: SessionId, ttl: Option<u64>) -> Reply {
        self.token_last += 1;
        let token = FencingToken(self.token_last);
        let (now, wall) = (self.now, self.wall);
        let owner = self.sessions.get_mut(&session).expect("alive");
        if owner.implicit {
            owner.deadline = Some(now + owner.ttl);
        }
        let invoice = self.invoices.entry(id.clone()).or_default();
        invoice.token_last = token;
        invoice.lease = Some(Lease {
            token,
            session,
            own_ttl: ttl,
            own_deadline: ttl.map(|ttl| now + ttl),
            granted_at: now,
            granted_wall: wall,
        });
        self.leased(id)
    }

    fn leased(&self, id: &InvoiceId) -> Reply {
        let invoice = &self.invoices[id];
        let lease = invoice.lease.as_ref().expect("granted");
        Reply::Leased(Leased {
            lease: self.lease_view(id, lease),
            open_attempt: self.open_attempt(id, invoice),
        })
    }

    /// Raises the floor of what the client still wants answered.
    fn raise_floor(session: &mut Session, done_below: u64) {
        session.floor = session.floor.max(done_below);
        let floor = session.floor;
        session.answers.retain(|seq, _| *seq >= floor);
    }

    fn remember(&mut self, id: SessionId, seq: Seq, asked: Option<Asked>, fate: Fate) {
        let session = self.sessions.get_mut(&id).expect("alive");
        session
            .answers
            .insert(u64::from(seq), Answer { asked, fate });
        while session.answers.len() > self.config.answers_kept_max {
            if let Some((oldest, _)) = session.answers.pop_first() {
                session.floor = session.floor.max(oldest + 1);
            }
        }
    }

    /// The answer that was given to this seq before. None: it is new.
    fn before(
        &mut self,
        id: SessionId,
        seq: Seq,
        done_below: u64,
        asked: &Asked,
    ) -> Option<Expected> {
        let session = self.sessions.get_mut(&id)?;
        Self::raise_floor(session, done_below);
        if u64::from(seq) < session.floor {
            return Some(Err(vec![Rejection::SeqBelow {
                seq,
                done_below: session.floor,
            }]));
        }
        let answer = session.answers.get(&u64::from(seq))?.clone();
        Some(self.repeated(seq, &answer, asked))
    }

    fn repeated(&self, seq: Seq, answer: &Answer, asked: &Asked) -> Expected {
        if answer.asked.as_ref().is_some_and(|before| before != asked) {
            return Err(vec![Rejection::SeqReused { seq }]);
        }
        let withdrawn = match asked {
            Asked::Acquire { invoice, .. } => Rejection::LeaseEnded {
                invoice: invoice.clone(),
                token: FencingToken::NONE,
            },
            Asked::Claim { .. } => Rejection::ClaimEnded { seq },
        };
        match &answer.fate {
            Fate::Queued => Ok(Reply::Queued),
            Fate::Granted(id, token) => {
                if self.stands(id, *token) {
                    Ok(self.leased(id))
                } else {
                    Err(vec![Rejection::LeaseEnded {
                        invoice: id.clone(),
                        token: *token,
                    }])
                }
            }
            Fate::Claimed(leases) => {
                let held: Vec<_> = leases
                    .iter()
                    .filter(|(id, token)| self.stands(id, *token))
                    .cloned()
                    .collect();
                if held.is_empty() && !leases.is_empty() {
                    return Err(vec![Rejection::ClaimEnded { seq }]);
                }
                Ok(self.claimed(&held))
            }
            Fate::Refused(reason) => Err(vec![reason.clone()]),
            Fate::Withdrawn => Err(vec![withdrawn]),
        }
    }

    pub fn stands(&self, id: &InvoiceId, token: FencingToken) -> bool {
        self.invoices
            .get(id)
            .and_then(|invoice| invoice.lease.as_ref())
            .is_some_and(|lease| lease.token == token)
    }

    pub fn acquire(&mut self, acquire: &AcquireLease, told: &Told) -> Expected {
        let ttl = match &acquire.requester {
            Requester::Session { ttl, .. } => ttl.map(TtlMs::get),
            Requester::Implicit { ttl, .. } => Some(ttl.get()),
        };
        let (id, seq) = acquire.requester.slot();
        let wait = acquire.wait.get();
        let asked = Asked::Acquire {
            invoice: acquire.invoice.clone(),
            wait,
            ttl,
        };
        let mut start = None;
        match &acquire.requester {
            Requester::Session { done_below, .. } => {
                if !self.is_alive(id) {
                    return Err(vec![self.session_reason(id)]);
                }
                if let Some(before) = self.before(id, seq, *done_below, &asked) {
                    return before;
                }
            }
            Requester::Implicit { holder, .. } => {
                if let Some(session) = self.sessions.get(&id) {
                    if !session.implicit || session.holder != *holder {
                        return Err(vec![Rejection::SeqReused { seq }]);
                    }
                    if let Some(before) = self.before(id, seq, 0, &asked) {
                        return before;
                    }
                } else if let Some(ended) = self.ended.get(&id) {
                    return match &ended.answer {
                        _ if !ended.implicit => Err(vec![Rejection::SessionEnded { session: id }]),
                        Some(answer) => self.repeated(seq, answer, &asked),
                        None => Err(vec![Rejection::LeaseEnded {
                            invoice: acquire.invoice.clone(),
                            token: FencingToken::NONE,
                        }]),
                    };
                }
                start = Some(holder.clone());
            }
        }
        let own_ttl = ttl.filter(|_| start.is_none());

        let reasons = self.cannot_lease(&acquire.invoice);
        let queueable = !reasons.is_empty()
            && reasons
                .iter()
                .all(|reason| matches!(reason, Rejection::HeldByOther { .. }));
        if queueable && wait > 0 {
            let waiting = self.invoices[&acquire.invoice].waiters.len();
            let of_session = self.waiters_of(id);
            let mut full = Vec::new();
            if waiting >= self.config.waiters_per_invoice_max {
                full.push((
                    Bound::WaitersPerInvoice,
                    self.config.waiters_per_invoice_max,
                ));
            }
            if of_session >= self.config.waiters_per_session_max {
                full.push((
                    Bound::WaitersPerSession,
                    self.config.waiters_per_session_max,
                ));
            }
            if !full.is_empty() {
                let full: Vec<_> = full
                    .into_iter()
                    .map(|(bound, max)| Rejection::Overloaded {
                        bound,
                        max: max as u64,
                    })
                    .collect();
                return self.refused(id, seq, asked, full, told);
            }
            if let Some(holder) = start {
                self.start_session(id, holder, ttl.unwrap_or(0), None, true);
            }
            self.remember(id, seq, Some(asked), Fate::Queued);
            let deadline = self.now + wait;
            let waiter = Waiter {
                session: id,
                seq,
                deadline,
                ttl: own_ttl,
            };
            self.invoices
                .get_mut(&acquire.invoice)
                .expect("held")
                .waiters
                .push(waiter);
            return Ok(Reply::Queued);
        }
        if !reasons.is_empty() {
            return self.refused(id, seq, asked, reasons, told);
        }
        if let Some(holder) = start {
            self.start_session(id, holder, ttl.unwrap_or(0), None, true);
        }
        let leased = self.grant(&acquire.invoice, id, own_ttl);
        let fate = Fate::Granted(acquire.invoice.clone(), FencingToken(self.token_last));
        self.remember(id, seq, Some(asked), fate);
        Ok(leased)
    }

    fn waiters_of(&self, session: SessionId) -> usize {
        self.invoices
            .values()
            .flat_map(|invoice| &invoice.waiters)
            .filter(|waiter| waiter.session == session)
            .count()
    }

    /// A refusal that is kept under its seq, as the ledger worded it. An implicit session is made with the grant, so its
    /// request leaves nothing behind.
    fn refused(
        &mut self,
        id: SessionId,
        seq: Seq,
        asked: Asked,
        reasons: Vec<Rejection>,
        told: &Told,
    ) -> Expected {
        if self.is_alive(id) {
            let kept = match told {
                Err(told) => told.clone(),
                Ok(_) => reasons[0].clone(),
            };
            self.remember(id, seq, Some(asked), Fate::Refused(kept));
        }
        Err(reasons)
    }

    pub fn withdraw(&mut self, withdraw: &WithdrawWaiter) -> Expected {
        let was_waiting = self.take_waiter(withdraw.session, withdraw.seq);
        Ok(Reply::WaiterWithdrawn { was_waiting })
    }

    /// Takes a waiter out of its queue; its request has ended without a grant.
    fn take_waiter(&mut self, session: SessionId, seq: Seq) -> bool {
        let ids: Vec<InvoiceId> = self.invoices.keys().cloned().collect();
        for id in ids {
            let invoice = self.invoices.get_mut(&id).expect("listed");
            let before = invoice.waiters.len();
            invoice
                .waiters
                .retain(|waiter| waiter.session != session || waiter.seq != seq);
            if invoice.waiters.len() < before {
                let ended = Rejection::LeaseEnded {
                    invoice: id,
                    token: FencingToken::NONE,
                };
                if let Some(answer) = self
                    .sessions
                    .get_mut(&session)
                    .and_then(|s| s.answers.get_mut(&u64::from(seq)))
                {
                    answer.fate = Fate::Withdrawn;
                }
                self.answers.push((session, seq, Err(vec![ended])));
                if self.sessions[&session].implicit {
                    self.end_session(session, End::Ended);
                }
                return true;
            }
        }
        false
    }

    /// Whether this token may act, else why not.
    pub fn token_reason(&self, id: &InvoiceId, token: FencingToken) -> Option<Rejection> {
        let (lease, current, expired) = match self.invoices.get(id) {
            Some(invoice) => (
                invoice.lease.as_ref(),
                invoice.token_last,
                invoice.last_expired,
            ),
            None => (None, FencingToken::NONE, false),
        };
        if lease.is_some_and(|lease| lease.token == token) {
            return None;
        }
        Some(if token != current || token == FencingToken::NONE {
            Rejection::StaleToken {
                presented: token,
                current,
            }
        } else if expired {
            Rejection::LeaseExpired {
                invoice: id.clone(),
                token,
            }
        } else {
            Rejection::LeaseEnded {
                invoice: id.clone(),
                token,
            }
        })
    }

    pub fn renew(&mut self, renew: &RenewLease) -> Expected {
        if let Some(reason) = self.token_reason(&renew.invoice, renew.token) {
            let mut reasons = vec![reason];
            if !self.invoices.contains_key(&renew.invoice) {
                reasons.push(Rejection::NotFound {
                    invoice: renew.invoice.clone(),
                });
            }
            return Err(reasons);
        }
        let now = self.now;
        let invoice = self.invoices.get_mut(&renew.invoice).expect("leased");
        let lease = invoice.lease.as_mut().expect("leased");
        let session = self.sessions.get_mut(&lease.session).expect("alive");
        if session.implicit {
            if let Some(ttl) = renew.ttl {
                session.ttl = ttl.get();
            }
            session.deadline = Some(now + session.ttl);
        } else {
            lease.own_ttl = renew.ttl.map(TtlMs::get).or(lease.own_ttl);
            lease.own_deadline = lease.own_ttl.map(|ttl| now + ttl);
        }
        let invoice = &self.invoices[&renew.invoice];
        Ok(Reply::Renewed(self.lease_view(
            &renew.invoice,
            invoice.lease.as_ref().expect("leased"),
        )))
    }

    pub fn release_by_token(&mut self, id: &InvoiceId, token: FencingToken) -> Expected {
        if self.stands(id, token) {
            self.end_lease(id, End::Ended);
            return Ok(Reply::Released { was_current: true });
        }
        if token.0 > self.token_last {
            // Never granted by anybody.
            return Err(self.token_reason(id, token).into_iter().collect());
        }
        Ok(Reply::Released { was_current: false })
    }

    pub fn release_by_seq(&mut self, id: SessionId, seq: Seq) -> Expected {
        let Some(session) = self.sessions.get(&id) else {
            return match self.session_reason(id) {
                Rejection::SessionEnded { .. } => Ok(Reply::Released { was_current: false }),
                unknown => Err(vec![unknown]),
            };
        };
        if u64::from(seq) < session.floor {
            return Err(vec![Rejection::SeqBelow {
                seq,
                done_below: session.floor,
            }]);
        }
        let answer = session.answers.get(&u64::from(seq)).cloned();
        let fate = answer.as_ref().map(|answer| answer.fate.clone());
        let was_current = match fate {
            Some(Fate::Queued) => {
                self.take_waiter(id, seq);
                false
            }
            Some(Fate::Granted(invoice, token)) => {
                let stands = self.stands(&invoice, token);
                if stands {
                    self.end_lease(&invoice, End::Ended);
                }
                return Ok(Reply::Released {
                    was_current: stands,
                });
            }
            Some(Fate::Claimed(leases)) => {
                let mut any = false;
                for (invoice, token) in &leases {
                    if self.stands(invoice, *token) {
                        self.end_lease(invoice, End::Ended);
                        any = true;
                    }
                }
                any
            }
            Some(Fate::Refused(_) | Fate::Withdrawn) | None => false,
        };
        if self.is_alive(id) {
            self.remember(
                id,
                seq,
                answer.and_then(|answer| answer.asked),
                Fate::Withdrawn,
            );
        }
        Ok(Reply::Released { was_current })
    }

    /// In doubt and due first, at most half of a claim; then by due time, priority, order of submission.
    pub fn claim(&mut self, claim: &ClaimInvoices, told: &Told) -> Expected {
        if !self.is_alive(claim.session) {
            return Err(vec![self.session_reason(claim.session)]);
        }
        let asked = Asked::Claim {
            max: claim.max.get(),
        };
        if let Some(before) = self.before(claim.session, claim.seq, claim.done_below, &asked) {
            return before;
        }
        if self.grants_from > self.now {
            let reasons = vec![Rejection::GrantsNotYet {
                in_ms: self.grants_from - self.now,
            }];
            return self.refused(claim.session, claim.seq, asked, reasons, told);
        }
        let max = usize::from(claim.max.get());
        let free = |invoice: &Invoice| {
            invoice.bill.is_some()
                && invoice.rest.is_none()
                && invoice.lease.is_none()
                && invoice.next_try <= self.now
        };
        let mut doubtful: Vec<(u64, u64, InvoiceId)> = self
            .invoices
            .iter()
            .filter(|(_, invoice)| free(invoice) && invoice.live().is_some())
            .filter(|(_, invoice)| invoice.pending_until <= self.now)
            .map(|(id, invoice)| (invoice.next_try, invoice.order, id.clone()))
            .collect();
        doubtful.sort();
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
                (bill.due_at.0 <= self.wall).then_some(at)
            })
            .collect();
        due.sort();
        doubtful.truncate(max.div_ceil(2));
        let chosen: Vec<InvoiceId> = doubtful
            .into_iter()
            .map(|(_, _, id)| id)
            .chain(due.into_iter().map(|(_, _, _, id)| id))
            .take(max)
            .collect();
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

    fn claimed(&self, leases: &[(InvoiceId, FencingToken)]) -> Reply {
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

    pub fn force_release(&mut self, force: &ForceRelease) -> Expected {
        let Some(invoice) = self.invoices.get(&force.invoice) else {
            return Err(vec![Rejection::NotFound {
                invoice: force.invoice.clone(),
            }]);
        };
        let was_leased = invoice.lease.is_some();
        if was_leased {
            self.end_lease(&force.invoice, End::Ended);
            self.serve_freed();
        }
        let status = self
            .invoices
            .get(&force.invoice)
            .map_or(InvoiceStatus::Pending, |invoice| self.status(invoice));
        Ok(Reply::ForceReleased { was_leased, status })
    }
}

pub fn already_paid(id: &InvoiceId, invoice: &Invoice) -> Rejection {
    Rejection::AlreadyPaid {
        invoice: id.clone(),
        reference: invoice.charges[0].clone(),
    }
}

pub fn invalid() -> Rejection {
    Rejection::InvalidArgument {
        field: "".into(),
        bound: "".into(),
    }
}

fn doubt_backoff(doubts: u32) -> u64 {
    backoff(
        limits::DOUBT_BACKOFF_MS_MIN,
        limits::DOUBT_BACKOFF_MS_MAX,
        doubts,
    )
}

/// The first time `min`, then twice as long each time, `max` at most.
pub fn backoff(min: u64, max: u64, times: u32) -> u64 {
    let mut ms = min;
    for _ in 1..times {
        ms = (ms * 2).min(max);
    }
    ms
}
