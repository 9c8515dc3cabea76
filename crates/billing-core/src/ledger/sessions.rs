//! Sessions: opened, kept alive, closed, expired, and remembered so that an ended id is never revived. Decides nothing about
//! invoices but that a session's leases and waiters end with it.

use super::leases::LeaseEnd;
use super::state::{Answer, EndedHow, Request};
use super::*;
use crate::command::{CloseSession, KeepAlive, OpenSession};
use crate::rejection::Bound;
use crate::reply::SessionView;

impl Ledger {
    pub(super) fn open_session(&mut self, open: &OpenSession) -> Result<Reply, Rejection> {
        if self.ended.contains(&open.session) {
            return Err(Rejection::SessionEnded {
                session: open.session,
            });
        }
        if let Some(session) = self.session(open.session) {
            if session.holder != open.holder || session.ttl != open.ttl || session.implicit {
                return Err(Rejection::InvalidArgument {
                    field: "session_id".into(),
                    bound: "an id of your own: this one is open with another holder or ttl_ms"
                        .into(),
                });
            }
            return Ok(self.extend_session(open.session));
        }
        self.check_ttl(Some(open.ttl))?;
        self.room_for_session()?;
        self.insert_session(open.session, open.holder.clone(), open.ttl, false);
        self.note(
            What::SessionOpened {
                session: open.session,
                holder: open.holder.clone(),
            },
            None,
            FencingToken::NONE,
            None,
        );
        Ok(self.extend_session(open.session))
    }

    pub(super) fn room_for_session(&self) -> Result<(), Rejection> {
        if self.sessions.len() >= self.config.sessions_open_max {
            return Err(Rejection::Overloaded {
                bound: Bound::SessionsOpen,
                max: self.config.sessions_open_max as u64,
            });
        }
        Ok(())
    }

    /// A new session without a deadline yet.
    pub(super) fn insert_session(
        &mut self,
        id: SessionId,
        holder: HolderId,
        ttl: TtlMs,
        implicit: bool,
    ) {
        let session = Session {
            id,
            holder,
            ttl,
            deadline: None,
            implicit,
            floor: 1,
            answered: CowMap::default(),
            waiting: CowMap::default(),
            leases: CowMap::default(),
            digest: 0,
            stale: false,
            touched: 0,
        };
        self.sessions.insert(Arc::new(session));
        self.session_mut(id); // So that it is hashed.
    }

    /// A keep-alive that stands behind an open or close of its session in the batch.
    pub(super) fn keep_alive(&mut self, keep: &KeepAlive) -> Result<Reply, Rejection> {
        match self.keep_alive_refused(keep.session) {
            Some(refused) => Err(refused),
            None => Ok(self.extend_session(keep.session)),
        }
    }

    /// Why this session cannot be kept alive; judged at the time before the batch when the batch begins.
    pub(super) fn keep_alive_refused(&self, id: SessionId) -> Option<Rejection> {
        if self.awaits_restore() {
            return Some(Rejection::NotBootstrapped);
        }
        if self.scalars.ledger_id.is_none() {
            return Some(Rejection::NotBootstrapped);
        }
        match self.session(id) {
            Some(_) => None,
            None => Some(self.session_missing(id)),
        }
    }

    pub(super) fn session_missing(&self, id: SessionId) -> Rejection {
        if self.ended.contains(&id) {
            Rejection::SessionEnded { session: id }
        } else {
            Rejection::SessionNotFound { session: id }
        }
    }

    /// Moves the deadline to now + TTL. An implicit session that still waits stays without one.
    pub(super) fn extend_session(&mut self, id: SessionId) -> Reply {
        let now = self.scalars.now;
        let Some(session) = self.session(id) else {
            return Reply::SessionClosed { was_open: false };
        };
        let waits = session.implicit && session.deadline.is_none();
        if !waits {
            self.set_deadline(id, now.plus(session.ttl.get()));
        }
        match self.session_view(id) {
            Some(view) => Reply::Session(view),
            None => Reply::SessionClosed { was_open: false },
        }
    }

    pub(super) fn set_deadline(&mut self, id: SessionId, deadline: ClusterTime) {
        let Some(session) = self.session_mut(id) else {
            return;
        };
        let ttl = session.ttl;
        match session.deadline.replace(deadline) {
            Some(before) if before == deadline => return,
            Some(before) => {
                self.index.session_deadlines.remove(&(before, id));
            }
            None => self.index.count_ttl(ttl),
        }
        self.index.session_deadlines.insert((deadline, id), ());
    }

    pub(super) fn close_session(&mut self, close: &CloseSession) -> Reply {
        let was_open = self.session(close.session).is_some();
        if was_open {
            self.note(
                What::SessionClosed {
                    session: close.session,
                },
                None,
                FencingToken::NONE,
                None,
            );
            self.end_session(close.session, &LeaseEnd::SessionClosed);
        } else if !self.ended.contains(&close.session) {
            // Its open was lost or comes late: closed is closed.
            self.remember_ended(close.session, EndedHow::Opened);
        }
        Reply::SessionClosed { was_open }
    }

    /// Ends the session with its waiters and leases. What became free is looked at by `settle_freed`.
    pub(super) fn end_session(&mut self, id: SessionId, how: &LeaseEnd) {
        self.leave_queues(id);
        let Some(session) = self.session_mut(id) else {
            return;
        };
        let implicit = session.implicit;
        let leases = session.leases.clone();
        let mut token = FencingToken::NONE;
        for (held, invoice) in leases.iter() {
            token = *held;
            self.end_lease_of_session(invoice, how);
        }
        self.remove_session(id);
        let how = if implicit {
            EndedHow::Leased { token }
        } else {
            EndedHow::Opened
        };
        self.remember_ended(id, how);
    }

    /// Ends every wait of the session.
    pub(super) fn leave_queues(&mut self, id: SessionId) {
        let Some(session) = self
            .session(id)
            .filter(|session| !session.waiting.is_empty())
        else {
            return;
        };
        let waiting = session.waiting.clone();
        for request in waiting.values() {
            self.withdraw_from_ended(id, request.seq);
        }
    }

    /// Takes a session without leases or waiters out of the table.
    pub(super) fn remove_session(&mut self, id: SessionId) {
        let Some(session) = self.sessions.remove(&id) else {
            return;
        };
        if let Some(deadline) = session.deadline {
            self.index.session_deadlines.remove(&(deadline, id));
            self.index.discount_ttl(session.ttl);
        }
        let requests = session.requests().filter_map(|request| request.digest);
        let gone = requests.fold(session.digest, u128::wrapping_add);
        self.digests = self.digests.wrapping_sub(gone);
    }

    pub(super) fn remember_ended(&mut self, id: SessionId, how: EndedHow) {
        let at = self.scalars.now;
        let index = if how.implicit() {
            &mut self.index.ended_implicit
        } else {
            &mut self.index.ended_opened
        };
        index.insert((at, id), ());
        let ended = Ended { id, at, how };
        let fresh = digest(Tag::Ended, &ended, &mut self.turn.scratch);
        self.digests = self.digests.wrapping_add(fresh);
        self.ended.insert(ended);
    }

    /// Keeps the answer under its seq, and drops the oldest ones beyond the bound.
    pub(super) fn keep_answer(&mut self, id: SessionId, seq: Seq, ask: state::Ask, answer: Answer) {
        let request = Request {
            seq,
            ask,
            answer,
            digest: None,
        };
        let kept_max = self.config.answers_kept_max;
        let Some(session) = self.session_mut(id) else {
            return;
        };
        let before = if request.is_queued() {
            session.waiting.insert(seq.get(), request)
        } else {
            let queued = session.waiting.remove(&seq.get());
            session.answered.insert(seq.get(), request).or(queued)
        };
        let mut gone = before.and_then(|before| before.digest).unwrap_or(0);
        while session.answered.len() > kept_max {
            let Some((&oldest, _)) = session.answered.first() else {
                break;
            };
            session.floor = session.floor.max(oldest.saturating_add(1));
            let dropped = session.answered.remove(&oldest);
            gone = gone.wrapping_add(dropped.and_then(|dropped| dropped.digest).unwrap_or(0));
        }
        self.digests = self.digests.wrapping_sub(gone);
        self.stale.requests.push((id, seq));
    }

    /// The client needs no answer below `done_below` any more. What still waits is not an answer yet, and stays.
    pub(super) fn raise_floor(&mut self, id: SessionId, done_below: u64) {
        let Some(session) = self.session(id) else {
            return;
        };
        if done_below <= session.floor {
            return;
        }
        let Some(session) = self.session_mut(id) else {
            return;
        };
        session.floor = done_below;
        let mut gone = 0_u128;
        while let Some((&seq, _)) = session.answered.first()
            && seq < done_below
        {
            let dropped = session.answered.remove(&seq);
            gone = gone.wrapping_add(dropped.and_then(|dropped| dropped.digest).unwrap_or(0));
        }
        self.digests = self.digests.wrapping_sub(gone);
    }

    /// None: never opened, or ended.
    #[must_use]
    pub fn session_view(&self, id: SessionId) -> Option<SessionView> {
        let session = self.session(id)?;
        Some(SessionView {
            session: id,
            holder: session.holder.clone(),
            ttl_ms: session.ttl.get(),
            expires_in_ms: session
                .deadline
                .map(|deadline| self.scalars.now.ms_until(deadline)),
            leases: session.leases.len() as u64,
        })
    }
}
