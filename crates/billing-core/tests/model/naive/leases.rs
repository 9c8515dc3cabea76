//! Leases, queues and what a seq was answered, as §2 and §3 say them.

use billing_core::*;

use super::{
    Answer, Asked, End, Ended, Expected, Fate, Invoice, Lease, Model, Rest, Session, Told, Waiter,
};

impl Model {
    pub fn overloaded(&self, bound: Bound) -> Rejection {
        let max = match bound {
            Bound::SessionsOpen => self.config.sessions_open_max,
            Bound::LeasesPerSession => self.config.leases_per_session_max,
            Bound::WaitersPerInvoice => self.config.waiters_per_invoice_max,
            Bound::WaitersPerSession => self.config.waiters_per_session_max,
            Bound::ProvidersPaused => limits::PROVIDERS_PAUSED_MAX,
            Bound::ChargesPerInvoice => limits::CHARGES_PER_INVOICE_MAX,
        };
        Rejection::Overloaded {
            bound,
            max: max as u64,
        }
    }

    pub fn leases_of(&self, session: SessionId) -> usize {
        let leases = self
            .invoices
            .values()
            .filter_map(|invoice| invoice.lease.as_ref());
        leases.filter(|lease| lease.session == session).count()
    }

    /// Every true reason why nobody can be granted this invoice now; none: it is free.
    pub fn cannot_lease(&self, id: &InvoiceId) -> Vec<Rejection> {
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
    pub fn answer(&mut self, id: SessionId, seq: Seq, expected: Expected) {
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
            Self::drop_oldest(session, self.config.answers_kept_max);
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

    pub fn serve(&mut self, id: &InvoiceId) {
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
            if invoice.lease.is_some() {
                return;
            }
            if invoice.waiters.is_empty() {
                if invoice.bill.is_none() && invoice.attempts.is_empty() {
                    self.invoices.remove(id);
                }
                return;
            }
            if self.grants_from > self.now {
                return;
            }
            let waiter = invoice.waiters.remove(0);
            if self.leases_of(waiter.session) >= self.config.leases_per_session_max {
                let over = vec![self.overloaded(Bound::LeasesPerSession)];
                self.answer(waiter.session, waiter.seq, Err(over));
                continue;
            }
            let leased = self.grant(id, waiter.session, waiter.ttl);
            self.answer(waiter.session, waiter.seq, Ok(leased));
        }
    }

    /// Leases an invoice that is free.
    pub fn grant(&mut self, id: &InvoiceId, session: SessionId, ttl: Option<u64>) -> Reply {
        self.token_last += 1;
        let token = FencingToken(self.token_last);
        let (now, wall) = (self.now, self.wall_low);
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

    pub fn leased(&self, id: &InvoiceId) -> Reply {
        let invoice = &self.invoices[id];
        let lease = invoice.lease.as_ref().expect("granted");
        Reply::Leased(Leased {
            lease: self.lease_view(id, lease),
            open_attempt: self.open_attempt(id, invoice).map(Box::new),
        })
    }

    /// Raises the floor of what the client still wants answered.
    pub fn raise_floor(session: &mut Session, done_below: u64) {
        if done_below > session.floor {
            session.floor = done_below;
            session
                .answers
                .retain(|seq, answer| *seq >= done_below || answer.is_queued());
        }
    }

    pub fn remember(&mut self, id: SessionId, seq: Seq, asked: Option<Asked>, fate: Fate) {
        let session = self.sessions.get_mut(&id).expect("alive");
        session
            .answers
            .insert(u64::from(seq), Answer { asked, fate });
        Self::drop_oldest(session, self.config.answers_kept_max);
    }

    /// What still waits is no answer yet.
    pub fn drop_oldest(session: &mut Session, kept_max: usize) {
        while session
            .answers
            .values()
            .filter(|kept| !kept.is_queued())
            .count()
            > kept_max
        {
            let oldest = session
                .answers
                .iter()
                .find(|(_, kept)| !kept.is_queued())
                .map(|(seq, _)| *seq);
            let oldest = oldest.expect("there are too many");
            session.answers.remove(&oldest);
            session.floor = session.floor.max(oldest + 1);
        }
    }

    /// The answer that was given to this seq before. None: it is new.
    pub fn before(
        &mut self,
        id: SessionId,
        seq: Seq,
        done_below: u64,
        asked: &Asked,
        told: &Told,
    ) -> Option<Expected> {
        let session = self.sessions.get_mut(&id)?;
        if done_below > u64::from(seq) {
            return Some(Err(vec![invalid()])); // It says itself that nobody wants the answer.
        }
        Self::raise_floor(session, done_below);
        let (floor, answer) = (session.floor, session.answers.get(&u64::from(seq)).cloned());
        let repeated = answer.map(|answer| self.repeated(seq, &answer, asked));
        if u64::from(seq) >= floor {
            return repeated;
        }
        // One that still waited when the floor passed it may be remembered or not.
        let below = Rejection::SeqBelow {
            seq,
            done_below: floor,
        };
        Some(match repeated {
            Some(Ok(reply)) if told.is_ok() => Ok(reply),
            Some(Err(mut reasons)) => {
                reasons.push(below);
                Err(reasons)
            }
            Some(Ok(_)) | None => Err(vec![below]),
        })
    }

    pub fn repeated(&self, seq: Seq, answer: &Answer, asked: &Asked) -> Expected {
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
                    return Err(self.session_reasons(id));
                }
                if let Some(before) = self.before(id, seq, *done_below, &asked, told) {
                    return before;
                }
            }
            Requester::Implicit { holder, .. } => {
                if let Some(session) = self.sessions.get(&id) {
                    if !session.implicit || session.holder != *holder {
                        return Err(vec![Rejection::SeqReused { seq }]);
                    }
                    if let Some(before) = self.before(id, seq, 0, &asked, told) {
                        return before;
                    }
                } else if let Some(ended) = self.ended.get(&id) {
                    return Err(self.used_before(id, seq, ended, &asked));
                }
                start = Some(holder.clone());
            }
        }
        let own_ttl = ttl.filter(|_| start.is_none());

        let mut over = Vec::new();
        if start.is_some() && self.sessions.len() >= self.config.sessions_open_max {
            over.push(self.overloaded(Bound::SessionsOpen));
        }
        let mut reasons = self.cannot_lease(&acquire.invoice);
        let held = |reason: &Rejection| matches!(reason, Rejection::HeldByOther { .. });
        if !reasons.is_empty() && reasons.iter().all(held) && wait > 0 {
            if self.invoices[&acquire.invoice].waiters.len() >= self.config.waiters_per_invoice_max
            {
                over.push(self.overloaded(Bound::WaitersPerInvoice));
            }
            if self.waiters_of(id) >= self.config.waiters_per_session_max {
                over.push(self.overloaded(Bound::WaitersPerSession));
            }
            if over.is_empty() {
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
            return self.refused(id, seq, asked, over, told);
        }
        if self.leases_of(id) >= self.config.leases_per_session_max {
            over.push(self.overloaded(Bound::LeasesPerSession));
        }
        reasons.extend(over);
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

    /// An implicit session that has ended: no new grant, whatever is asked. The answer it had, or LeaseEnded.
    pub fn used_before(
        &self,
        id: SessionId,
        seq: Seq,
        ended: &Ended,
        asked: &Asked,
    ) -> Vec<Rejection> {
        let Some(answer) = ended.answer.as_ref().filter(|_| ended.implicit) else {
            return vec![Rejection::SessionEnded { session: id }];
        };
        let mut reasons = self.repeated(seq, answer, asked).err().unwrap_or_default();
        match &answer.fate {
            Fate::Granted(invoice, token) => {
                // Of the invoice that was leased; the ledger may also name the one asked for now.
                for invoice in [invoice, asked_for(asked, invoice)] {
                    let (invoice, token) = (invoice.clone(), *token);
                    reasons.push(Rejection::LeaseEnded { invoice, token });
                }
            }
            Fate::Refused(reason) => {
                reasons.push(reason.clone());
                if matches!(reason, Rejection::SessionEnded { .. }) {
                    let (Asked::Acquire { invoice, .. }, token) = (asked, FencingToken::NONE)
                    else {
                        return reasons;
                    };
                    reasons.push(Rejection::LeaseEnded {
                        invoice: invoice.clone(),
                        token,
                    });
                }
            }
            Fate::Queued | Fate::Withdrawn | Fate::Claimed(_) => {
                if let Some(Asked::Acquire { invoice, .. }) = &answer.asked {
                    for invoice in [invoice, asked_for(asked, invoice)] {
                        let (invoice, token) = (invoice.clone(), FencingToken::NONE);
                        reasons.push(Rejection::LeaseEnded { invoice, token });
                    }
                }
            }
        }
        reasons
    }

    pub fn waiters_of(&self, session: SessionId) -> usize {
        self.invoices
            .values()
            .flat_map(|invoice| &invoice.waiters)
            .filter(|waiter| waiter.session == session)
            .count()
    }

    /// A refusal that is kept under its seq, as the ledger worded it. An implicit request is then used up.
    pub fn refused(
        &mut self,
        id: SessionId,
        seq: Seq,
        asked: Asked,
        reasons: Vec<Rejection>,
        told: &Told,
    ) -> Expected {
        let kept = match told {
            Err(told) => told.clone(),
            Ok(_) => reasons[0].clone(),
        };
        if self.is_alive(id) {
            self.remember(id, seq, Some(asked), Fate::Refused(kept));
        } else if kept != self.overloaded(Bound::SessionsOpen) {
            // Too many sessions: not even a memory is made of it.
            let answer = Some(Answer {
                asked: Some(asked),
                fate: Fate::Refused(kept),
            });
            self.ended.insert(
                id,
                Ended {
                    implicit: true,
                    at: self.now,
                    answer,
                },
            );
        }
        Err(reasons)
    }

    pub fn withdraw(&mut self, withdraw: &WithdrawWaiter) -> Expected {
        let was_waiting = self.take_waiter(withdraw.session, withdraw.seq);
        Ok(Reply::WaiterWithdrawn { was_waiting })
    }

    /// Takes a waiter out of its queue; its request has ended without a grant.
    pub fn take_waiter(&mut self, session: SessionId, seq: Seq) -> bool {
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
                if let Some(session) = self.sessions.get_mut(&session) {
                    Self::drop_oldest(session, self.config.answers_kept_max);
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

    /// Every true reason why this token may not act; none: it may.
    pub fn token_reasons(&self, id: &InvoiceId, token: FencingToken) -> Vec<Rejection> {
        let ended = Rejection::LeaseEnded {
            invoice: id.clone(),
            token,
        };
        let Some(invoice) = self.invoices.get(id) else {
            let current = FencingToken::NONE;
            let unknown = Rejection::NotFound {
                invoice: id.clone(),
            };
            return vec![
                Rejection::StaleToken {
                    presented: token,
                    current,
                },
                ended,
                unknown,
            ];
        };
        let current = invoice.token_last;
        if invoice
            .lease
            .as_ref()
            .is_some_and(|lease| lease.token == token)
        {
            return Vec::new();
        }
        vec![if token != current || token == FencingToken::NONE {
            Rejection::StaleToken {
                presented: token,
                current,
            }
        } else if invoice.last_expired {
            Rejection::LeaseExpired {
                invoice: id.clone(),
                token,
            }
        } else {
            ended
        }]
    }

    pub fn renew(&mut self, renew: &RenewLease) -> Expected {
        let reasons = self.token_reasons(&renew.invoice, renew.token);
        if !reasons.is_empty() {
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
        Ok(Reply::Released { was_current: false })
    }

    pub fn release_by_seq(&mut self, id: SessionId, seq: Seq) -> Expected {
        let Some(session) = self.sessions.get(&id) else {
            if !self.ended.contains_key(&id) && seq != Seq::FIRST {
                return Err(vec![Rejection::SessionNotFound { session: id }]);
            }
            // Perhaps an implicit session whose request has not come yet: that is refused from now on.
            let answer = Some(Answer {
                asked: None,
                fate: Fate::Withdrawn,
            });
            let never = Ended {
                implicit: true,
                at: self.now,
                answer,
            };
            self.ended.entry(id).or_insert(never);
            return Ok(Reply::Released { was_current: false });
        };
        if u64::from(seq) < session.floor && !session.answers.contains_key(&u64::from(seq)) {
            return Ok(Reply::Released { was_current: false }); // Forgotten: the client said it needs no answer.
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
                return Ok(Reply::Released { was_current: any });
            }
            Some(Fate::Refused(_)) => return Ok(Reply::Released { was_current: false }),
            Some(Fate::Withdrawn) | None => false,
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

    pub fn force_release(&mut self, force: &ForceRelease) -> Expected {
        let Some(invoice) = self.invoices.get(&force.invoice) else {
            return Err(vec![Rejection::NotFound {
                invoice: force.invoice.clone(),
            }]);
        };
        let was_leased = invoice.lease.is_some();
        if was_leased {
            self.end_lease(&force.invoice, End::Ended);
        }
        self.review_unanswered(&force.invoice);
        let status = self
            .invoices
            .get(&force.invoice)
            .map_or(InvoiceStatus::Pending, |invoice| self.status(invoice));
        Ok(Reply::ForceReleased { was_leased, status })
    }
}

fn asked_for<'a>(asked: &'a Asked, otherwise: &'a InvoiceId) -> &'a InvoiceId {
    match asked {
        Asked::Acquire { invoice, .. } => invoice,
        Asked::Claim { .. } => otherwise,
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

pub fn doubt_backoff(doubts: u32) -> u64 {
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
