//! Leases: granted, renewed, ended; and the rule that only the newest token opens the door. Decides nothing about money; an
//! attempt that is open when its lease ends is merely in doubt.

use super::state::{Answer, Ask, EndedHow, Lease, OwnTtl, Phase};
use super::*;
use crate::command::{AcquireLease, ReleaseLease, RenewLease, Requester};
use crate::rejection::Bound;
use crate::reply::{LeaseView, Leased};

/// Why a lease ends.
pub(super) enum LeaseEnd {
    SessionExpired,
    SessionClosed,
    OwnTtlExpired,
    Released,
    Forced(Evidence),
    /// The audit record before says why: a settlement, a cancellation, a person's decision.
    WithIt,
}

impl LeaseEnd {
    fn audited(&self, session: SessionId, holder: HolderId) -> What {
        match self {
            Self::SessionExpired | Self::SessionClosed => What::SessionLost { session, holder },
            Self::OwnTtlExpired => What::LeaseExpired { holder },
            Self::Released => What::Released { holder },
            Self::Forced(reason) => What::ForceReleased {
                reason: reason.clone(),
                holder,
            },
            Self::WithIt => What::LeaseEnded { holder },
        }
    }
}

/// What the invoice has for a request.
enum Place {
    Grant,
    Queue,
}

impl Ledger {
    pub(super) fn acquire(&mut self, acquire: &AcquireLease) -> Result<Reply, Rejection> {
        self.check_ttl(match &acquire.requester {
            Requester::Session { ttl, .. } => *ttl,
            Requester::Implicit { ttl, .. } => Some(*ttl),
        })?;
        match &acquire.requester {
            Requester::Session {
                session,
                seq,
                done_below,
                ttl,
            } => {
                let ask = Ask::Acquire {
                    invoice: acquire.invoice.clone(),
                    wait: acquire.wait,
                    ttl: *ttl,
                };
                if let Some(answered) = self.open_slot(*session, *seq, *done_below, &ask)? {
                    return answered;
                }
                match self.place(&acquire.invoice, Some(*session), acquire.wait) {
                    Ok(Place::Grant) => {
                        let token = self.grant(&acquire.invoice, *session, *ttl);
                        self.keep_answer(*session, *seq, ask, Answer::Granted { token });
                        self.leased_reply(&acquire.invoice, token)
                    }
                    Ok(Place::Queue) => Ok(self.enqueue(*session, *seq, ask)),
                    Err(refused) => {
                        self.keep_answer(
                            *session,
                            *seq,
                            ask,
                            Answer::Refused(Box::new(refused.clone())),
                        );
                        Err(refused)
                    }
                }
            }
            Requester::Implicit {
                request,
                holder,
                ttl,
            } => {
                let (session, seq) = (request.session(), Seq::FIRST);
                let ask = Ask::Acquire {
                    invoice: acquire.invoice.clone(),
                    wait: acquire.wait,
                    ttl: Some(*ttl),
                };
                if let Some(ended) = self.ended.get(&session) {
                    return Err(match &ended.how {
                        EndedHow::Opened => Rejection::SessionEnded { session },
                        EndedHow::Leased { token } => Rejection::LeaseEnded {
                            invoice: acquire.invoice.clone(),
                            token: *token,
                        },
                        EndedHow::Refused(refused) => (**refused).clone(),
                    });
                }
                if let Some(open) = self.session(session) {
                    if !open.implicit {
                        return Err(Rejection::InvalidArgument {
                            field: "request_id".into(),
                            bound: "an id of its own: a session is open under this one".into(),
                        });
                    }
                    if open.holder != *holder {
                        return Err(Rejection::SeqReused { seq });
                    }
                    return match self.answered(session, seq, &ask)? {
                        Some(answered) => answered,
                        None => Err(Rejection::SeqReused { seq }),
                    };
                }
                self.room_for_session()?;
                match self.place(&acquire.invoice, None, acquire.wait) {
                    Ok(Place::Grant) => {
                        self.insert_session(session, holder.clone(), *ttl, true);
                        let token = self.grant(&acquire.invoice, session, Some(*ttl));
                        self.keep_answer(session, seq, ask, Answer::Granted { token });
                        self.leased_reply(&acquire.invoice, token)
                    }
                    Ok(Place::Queue) => {
                        self.insert_session(session, holder.clone(), *ttl, true);
                        Ok(self.enqueue(session, seq, ask))
                    }
                    Err(refused) => {
                        self.remember_ended(session, EndedHow::Refused(Box::new(refused.clone())));
                        Err(refused)
                    }
                }
            }
        }
    }

    /// Looks a seq up before it is used: the kept answer if it was used for the same, None if it is new.
    pub(super) fn open_slot(
        &mut self,
        id: SessionId,
        seq: Seq,
        done_below: u64,
        ask: &Ask,
    ) -> Result<Option<Result<Reply, Rejection>>, Rejection> {
        match self.session(id) {
            Some(session) if !session.implicit => {}
            Some(_) | None => return Err(self.session_missing(id)),
        }
        if done_below > seq.get() {
            return Err(Rejection::InvalidArgument {
                field: "done_below".into(),
                bound: "no more than the request's own seq".into(),
            });
        }
        self.raise_floor(id, done_below);
        self.answered(id, seq, ask)
    }

    /// The kept answer to a seq; refused if it was used for something else or is no longer kept.
    fn answered(
        &self,
        id: SessionId,
        seq: Seq,
        ask: &Ask,
    ) -> Result<Option<Result<Reply, Rejection>>, Rejection> {
        let Some(session) = self.session(id) else {
            return Err(self.session_missing(id));
        };
        let Some(request) = session.request(seq) else {
            if seq.get() < session.floor {
                return Err(Rejection::SeqBelow {
                    seq,
                    done_below: session.floor,
                });
            }
            return Ok(None);
        };
        if request.ask != *ask && request.ask != Ask::NeverSeen {
            return Err(Rejection::SeqReused { seq });
        }
        Ok(Some(match (&request.answer, ask) {
            (Answer::Queued { .. }, _) => Ok(Reply::Queued),
            (Answer::Granted { token }, Ask::Acquire { invoice, .. }) => {
                match self.leased_reply(invoice, *token) {
                    Err(_) if sabotaged!(AnswerAfterLeaseEnded) => Ok(Reply::Leased(Leased {
                        lease: LeaseView {
                            invoice: invoice.clone(),
                            token: *token,
                            holder: session.holder.clone(),
                            session: id,
                            expires_in_ms: session.ttl.get(),
                        },
                        open_attempt: None,
                    })),
                    answer => answer,
                }
            }
            (Answer::Claimed { leases }, _) => Ok(Reply::Claimed(self.claimed_view(leases))),
            (Answer::Refused(refused), _) => Err((**refused).clone()),
            (Answer::Withdrawn, Ask::Acquire { invoice, .. }) => Err(Rejection::LeaseEnded {
                invoice: invoice.clone(),
                token: FencingToken::NONE,
            }),
            (Answer::Withdrawn | Answer::Granted { .. }, Ask::Claim { .. } | Ask::NeverSeen) => {
                Err(Rejection::ClaimEnded { seq })
            }
        }))
    }

    /// Whether this invoice can be leased now, or queued for. `session` None: an implicit one, not open yet.
    fn place(
        &self,
        id: &InvoiceId,
        session: Option<SessionId>,
        wait: WaitMs,
    ) -> Result<Place, Rejection> {
        self.grants_open()?;
        let invoice = self.invoice(id);
        if let Some(refused) = invoice.and_then(|invoice| self.unleasable(invoice)) {
            return Err(refused);
        }
        let Some(held) = invoice.filter(|invoice| invoice.lease.is_some()) else {
            if let Some(session) = session {
                self.room_for_lease(session)?;
            }
            return Ok(Place::Grant);
        };
        if wait.get() == 0 {
            return Err(self.held_by_other(held));
        }
        self.room_to_wait(held, session)?;
        Ok(Place::Queue)
    }

    pub(super) fn grants_open(&self) -> Result<(), Rejection> {
        match self.scalars.now.ms_until(self.scalars.grants_from) {
            0 => Ok(()),
            _ if sabotaged!(GrantsAtOnceAfterRestore) => Ok(()),
            in_ms => Err(Rejection::GrantsNotYet { in_ms }),
        }
    }

    /// Why nobody can lease this invoice, whoever holds it.
    pub(super) fn unleasable(&self, invoice: &Invoice) -> Option<Rejection> {
        match (invoice.phase, invoice.charges.first()) {
            (Phase::Ready, _) => None,
            (Phase::Paid, Some(charge)) => Some(Rejection::AlreadyPaid {
                invoice: invoice.id.clone(),
                reference: charge.reference.clone(),
            }),
            (Phase::Paid, None) | (Phase::Failed | Phase::Review(_) | Phase::Cancelled, _) => {
                Some(Rejection::NotLeasable {
                    invoice: invoice.id.clone(),
                    status: invoice.status(),
                })
            }
        }
    }

    pub(super) fn room_for_lease(&self, session: SessionId) -> Result<(), Rejection> {
        let max = self.config.leases_per_session_max;
        if self
            .session(session)
            .is_some_and(|session| session.leases.len() >= max)
        {
            return Err(Rejection::Overloaded {
                bound: Bound::LeasesPerSession,
                max: max as u64,
            });
        }
        Ok(())
    }

    /// Grants the lease on an invoice that is free and leasable. `ttl`: an implicit session's, or the lease's own.
    pub(super) fn grant(
        &mut self,
        id: &InvoiceId,
        session_id: SessionId,
        ttl: Option<TtlMs>,
    ) -> FencingToken {
        let (now, wall) = (self.scalars.now, self.wall_reached());
        let token = FencingToken(self.scalars.token_last.0 + 1);
        let Some(session) = self.session_mut(session_id) else {
            return FencingToken::NONE;
        };
        session.leases.insert(token, id.clone());
        let (holder, implicit, session_ttl) =
            (session.holder.clone(), session.implicit, session.ttl);
        if implicit {
            self.set_deadline(session_id, now.plus(session_ttl.get()));
        }
        let own = ttl.filter(|_| !implicit).map(|ttl| OwnTtl {
            ttl,
            deadline: now.plus(ttl.get()),
        });
        if let Some(own) = own {
            self.index.count_ttl(own.ttl);
        }
        let lease = Lease {
            token,
            session: session_id,
            granted_at: now,
            granted_wall: wall,
            own,
        };
        match self.invoice_mut(id) {
            Some(invoice) => {
                assert!(
                    invoice.lease.is_none() && invoice.phase == Phase::Ready,
                    "granted what was not free: {id}"
                );
                assert!(token > invoice.token_last, "tokens only grow");
                invoice.token_last = token;
                invoice.lease = Some(lease);
            }
            None => self.insert_invoice(Invoice {
                token_last: token,
                lease: Some(lease),
                ..Invoice::new(id.clone())
            }),
        }
        self.scalars.token_last = token;
        self.note(
            What::Acquired {
                session: session_id,
                holder,
            },
            Some(id),
            token,
            None,
        );
        self.refile(id);
        token
    }

    /// What the holder of this token is told; LeaseEnded once the lease no longer stands.
    pub(super) fn leased_reply(
        &self,
        id: &InvoiceId,
        token: FencingToken,
    ) -> Result<Reply, Rejection> {
        let stands = self.invoice(id).filter(|held| {
            held.lease
                .as_ref()
                .is_some_and(|lease| lease.token == token)
        });
        match stands.and_then(|held| self.lease_view(held).map(|lease| (held, lease))) {
            Some((held, lease)) => Ok(Reply::Leased(Leased {
                lease,
                open_attempt: self.open_attempt_view(held).map(Box::new),
            })),
            None => Err(Rejection::LeaseEnded {
                invoice: id.clone(),
                token,
            }),
        }
    }

    /// Only the newest token opens the door; the text says why another one does not.
    pub(super) fn check_token(
        &self,
        invoice: &Invoice,
        presented: FencingToken,
    ) -> Result<(), Rejection> {
        match &invoice.lease {
            Some(lease) if lease.token == presented => Ok(()),
            Some(lease) => Err(Rejection::StaleToken {
                presented,
                current: lease.token,
            }),
            None if presented == invoice.token_last && presented != FencingToken::NONE => {
                let (invoice, token) = (invoice.id.clone(), presented);
                Err(
                    match self
                        .invoice(&invoice)
                        .is_some_and(|record| record.last_expired)
                    {
                        true => Rejection::LeaseExpired { invoice, token },
                        false => Rejection::LeaseEnded { invoice, token },
                    },
                )
            }
            None => Err(Rejection::StaleToken {
                presented,
                current: invoice.token_last,
            }),
        }
    }

    pub(super) fn renew(&mut self, renew: &RenewLease) -> Result<Reply, Rejection> {
        self.check_ttl(renew.ttl)?;
        let now = self.scalars.now;
        let ended = || Rejection::LeaseEnded {
            invoice: renew.invoice.clone(),
            token: renew.token,
        };
        let invoice = self.invoice(&renew.invoice).ok_or_else(ended)?;
        self.check_token(invoice, renew.token)?;
        let lease = invoice.lease.as_ref().ok_or_else(ended)?;
        let (id, own) = (lease.session, lease.own);
        let session = self.session(id).ok_or_else(ended)?;
        if session.implicit {
            let (before, ttl) = (session.ttl, renew.ttl.unwrap_or(session.ttl));
            self.index.discount_ttl(before);
            self.index.count_ttl(ttl);
            if let Some(session) = self.session_mut(id) {
                session.ttl = ttl;
            }
            self.set_deadline(id, now.plus(ttl.get()));
        } else if let Some(ttl) = renew.ttl.or(own.map(|own| own.ttl)) {
            if let Some(own) = own {
                self.index.discount_ttl(own.ttl);
            }
            self.index.count_ttl(ttl);
            if let Some(lease) = self
                .invoice_mut(&renew.invoice)
                .and_then(|invoice| invoice.lease.as_mut())
            {
                lease.own = Some(OwnTtl {
                    ttl,
                    deadline: now.plus(ttl.get()),
                });
            }
            self.refile(&renew.invoice);
        }
        let invoice = self.invoice(&renew.invoice).ok_or_else(ended)?;
        self.lease_view(invoice)
            .map(Reply::Renewed)
            .ok_or_else(ended)
    }

    pub(super) fn release(&mut self, release: &ReleaseLease) -> Result<Reply, Rejection> {
        match release {
            ReleaseLease::ByToken { invoice, token } => {
                let was_current = self.holds(invoice, *token) || sabotaged!(StaleReleaseTaken);
                if was_current {
                    self.end_lease(invoice, &LeaseEnd::Released);
                }
                Ok(Reply::Released { was_current })
            }
            ReleaseLease::BySeq { session, seq } => self.release_by_seq(*session, *seq),
        }
    }

    fn release_by_seq(&mut self, id: SessionId, seq: Seq) -> Result<Reply, Rejection> {
        let Some(session) = self.session(id) else {
            if seq == Seq::FIRST && !self.ended.contains(&id) {
                // An implicit acquire that never arrived: remembered, so that a late copy is refused.
                self.remember_ended(
                    id,
                    EndedHow::Leased {
                        token: FencingToken::NONE,
                    },
                );
                return Ok(Reply::Released { was_current: false });
            }
            return if self.ended.contains(&id) {
                Ok(Reply::Released { was_current: false })
            } else {
                Err(Rejection::SessionNotFound { session: id })
            };
        };
        let Some(request) = session.request(seq) else {
            if seq.get() >= session.floor {
                self.keep_answer(id, seq, Ask::NeverSeen, Answer::Withdrawn);
            }
            return Ok(Reply::Released { was_current: false });
        };
        match (request.answer.clone(), request.ask.clone()) {
            (Answer::Queued { .. }, _) => {
                self.withdraw(id, seq);
                Ok(Reply::Released { was_current: false })
            }
            (Answer::Granted { token }, Ask::Acquire { invoice, .. }) => {
                self.release(&ReleaseLease::ByToken { invoice, token })
            }
            (Answer::Claimed { leases }, _) => {
                let mut any = false;
                for (invoice, token) in leases {
                    if self.holds(&invoice, token) {
                        self.end_lease(&invoice, &LeaseEnd::Released);
                        any = true;
                    }
                }
                Ok(Reply::Released { was_current: any })
            }
            (Answer::Granted { .. }, Ask::Claim { .. } | Ask::NeverSeen)
            | (Answer::Refused(_) | Answer::Withdrawn, _) => {
                Ok(Reply::Released { was_current: false })
            }
        }
    }

    fn holds(&self, id: &InvoiceId, token: FencingToken) -> bool {
        self.invoice(id)
            .and_then(|held| held.lease.as_ref())
            .is_some_and(|lease| lease.token == token)
    }

    /// Ends the lease, and the implicit session that lived for it.
    pub(super) fn end_lease(&mut self, id: &InvoiceId, how: &LeaseEnd) {
        let Some((session, token)) = self.end_lease_of_session(id, how) else {
            return;
        };
        if self
            .session(session)
            .is_some_and(|session| session.implicit)
        {
            self.remove_session(session);
            self.remember_ended(session, EndedHow::Leased { token });
        }
    }

    /// Ends the lease alone. An attempt that it leaves open is in doubt, with a back-off; what became free is looked at by
    /// `settle_freed`.
    pub(super) fn end_lease_of_session(
        &mut self,
        id: &InvoiceId,
        how: &LeaseEnd,
    ) -> Option<(SessionId, FencingToken)> {
        let (now, config) = (self.scalars.now, self.config.clone());
        let invoice = self.invoice_mut(id)?;
        let lease = invoice.lease.take()?;
        let expired = match how {
            LeaseEnd::SessionExpired | LeaseEnd::OwnTtlExpired => true,
            LeaseEnd::SessionClosed
            | LeaseEnd::Released
            | LeaseEnd::Forced(_)
            | LeaseEnd::WithIt => false,
        };
        invoice.last_expired = expired;
        // The provider's time may have passed while the lease stood: then it is merely in doubt.
        invoice.waiting_until = invoice.waiting_until.filter(|until| *until > now);
        if sabotaged!(InDoubtToPending) {
            invoice.attempts.retain(|attempt| !attempt.is_live());
        }
        let number = invoice.live().map(|attempt| attempt.number);
        if number.is_some() && invoice.phase == Phase::Ready && invoice.waiting_until.is_none() {
            let wait = backoff_ms(
                config.doubt_backoff_ms_min,
                config.doubt_backoff_ms_max,
                invoice.doubts,
            );
            invoice.next_try = now.plus(wait);
            invoice.doubts = invoice.doubts.saturating_add(1);
        }
        if let Some(own) = lease.own {
            self.index.discount_ttl(own.ttl);
        }
        if let Some(session) = self.session_mut(lease.session) {
            session.leases.remove(&lease.token);
            let holder = session.holder.clone();
            let what = how.audited(lease.session, holder);
            self.note(what, Some(id), lease.token, number);
        }
        self.turn.freed.push(id.clone());
        self.refile(id);
        Some((lease.session, lease.token))
    }

    pub(super) fn lease_view(&self, invoice: &Invoice) -> Option<LeaseView> {
        let lease = invoice.lease.as_ref()?;
        let session = self.session(lease.session)?;
        let deadline = self.lease_deadline(lease);
        Some(LeaseView {
            invoice: invoice.id.clone(),
            token: lease.token,
            holder: session.holder.clone(),
            session: lease.session,
            expires_in_ms: self.scalars.now.ms_until(deadline),
        })
    }
}

/// Doubles with each time, from `min` up to `max`.
pub(super) fn backoff_ms(min: u64, max: u64, times: u32) -> u64 {
    min.saturating_mul(1_u64.checked_shl(times).unwrap_or(u64::MAX))
        .min(max)
}
