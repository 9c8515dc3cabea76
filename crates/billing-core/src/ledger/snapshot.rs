//! The ledger as data: what a snapshot carries, and the checks before it becomes a ledger again. Carries records only; every
//! index, queue and digest is rebuilt. Never panics on what it reads: a snapshot that contradicts itself is an error.

use serde::de::Error as _;
use serde::{Deserializer, Serializer};

use super::audit::{AuditSaved, BrokenChain};
use super::state::{Answer, Ask, Waiter};
use super::*;

/// An older binary refuses a newer one.
/// - 1, 2026-11-22: before the first release; no longer read.
/// - 2, 2026-11-22: the longest TTL is part of the configuration.
const FORMAT: u16 = 2;

/// Why bytes did not become a ledger.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSnapshot {
    #[error("the snapshot has format {found}, this binary reads up to {known}: use a newer binary")]
    NewerFormat { found: u16, known: u16 },
    #[error("the snapshot is torn: {0}")]
    Torn(String),
    #[error("the snapshot's audit log is torn: {0}")]
    Audit(#[from] BrokenChain),
    #[error("the snapshot breaks a rule: {0}")]
    Broken(#[from] Broken),
    #[error("the snapshot's state hash is not the one of its contents")]
    Hash,
}

#[derive(Serialize)]
struct Saving<'a> {
    format: u16,
    config: &'a Config,
    scalars: &'a Scalars,
    paused: &'a BTreeMap<ProviderId, Evidence>,
    sessions: Vec<&'a Session>,
    ended: Vec<&'a Ended>,
    invoices: Vec<&'a Invoice>,
    audit: AuditSaved,
    state_hash: [u8; 32],
}

#[derive(Deserialize)]
struct Saved {
    /// Comes first, and refuses before anything behind it is read.
    #[serde(rename = "format")]
    _format: Format,
    config: Config,
    scalars: Scalars,
    paused: BTreeMap<ProviderId, Evidence>,
    sessions: Vec<Session>,
    ended: Vec<Ended>,
    invoices: Vec<Invoice>,
    audit: AuditSaved,
    state_hash: [u8; 32],
}

#[derive(Deserialize)]
#[serde(try_from = "u16")]
pub(super) struct Format;

impl TryFrom<u16> for Format {
    type Error = BadSnapshot;
    fn try_from(found: u16) -> Result<Self, BadSnapshot> {
        match found {
            FORMAT => Ok(Self),
            0 | 1 => Err(BadSnapshot::Torn(format!(
                "format {found} was never released"
            ))),
            _ => Err(BadSnapshot::NewerFormat {
                found,
                known: FORMAT,
            }),
        }
    }
}

impl Serialize for Ledger {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        Saving {
            format: FORMAT,
            config: &self.config,
            scalars: &self.scalars,
            paused: &self.paused,
            sessions: self.sessions.values().map(Arc::as_ref).collect(),
            ended: self.ended.values().collect(),
            invoices: self.invoices.values().map(Arc::as_ref).collect(),
            audit: self.audit.save(),
            state_hash: self.state_hash(),
        }
        .serialize(to)
    }
}

impl<'de> Deserialize<'de> for Ledger {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ledger::load(Saved::deserialize(from)?).map_err(D::Error::custom)
    }
}

fn torn(what: impl Into<String>) -> BadSnapshot {
    BadSnapshot::Torn(what.into())
}

impl Ledger {
    fn load(saved: Saved) -> Result<Self, BadSnapshot> {
        let mut ledger = Self::new(saved.config);
        ledger.scalars = saved.scalars;
        ledger.paused = saved.paused;
        ledger.audit = AuditLog::load(saved.audit)?;
        for invoice in saved.invoices {
            let id = invoice.id.clone();
            if invoice.token_last > ledger.scalars.token_last {
                return Err(torn(format!(
                    "{id} was granted a token that the ledger did not reach"
                )));
            }
            if let Some(own) = invoice.lease.as_ref().and_then(|lease| lease.own) {
                ledger.index.count_ttl(own.ttl);
            }
            if ledger
                .invoices
                .insert(id.clone(), Arc::new(invoice))
                .is_some()
            {
                return Err(torn(format!("{id} stands in it twice")));
            }
        }
        let mut waiters: BTreeMap<u64, (InvoiceId, Waiter)> = BTreeMap::new();
        for session in saved.sessions {
            ledger.load_session(session, &mut waiters)?;
        }
        for (_, (id, waiter)) in waiters {
            let key = (waiter.deadline, waiter.ticket);
            ledger
                .index
                .waiter_deadlines
                .insert(key, (waiter.session, waiter.seq));
            let shared = ledger
                .invoices
                .get_mut(&id)
                .ok_or_else(|| torn(format!("{id} is waited for but unknown")))?;
            Arc::make_mut(shared).queue.push_back(waiter);
        }
        let leased: Vec<(InvoiceId, SessionId)> = ledger
            .invoices
            .values()
            .filter_map(|invoice| {
                invoice
                    .lease
                    .as_ref()
                    .map(|lease| (invoice.id.clone(), lease.session))
            })
            .collect();
        for (id, session) in leased {
            let shared = ledger.sessions.get_mut(&session);
            let shared = shared
                .ok_or_else(|| torn(format!("{id} is leased by a session that is not open")))?;
            Arc::make_mut(shared).leases.insert(id);
        }
        for ended in saved.ended {
            let (id, at) = (ended.id, ended.at);
            let implicit = ended.how.implicit();
            let index = if implicit {
                &mut ledger.index.ended_implicit
            } else {
                &mut ledger.index.ended_opened
            };
            index.insert((at, id), ());
            if ledger.ended.insert(id, ended).is_some() {
                return Err(torn(format!("session {id} ended twice")));
            }
        }
        let ids: Vec<InvoiceId> = ledger.invoices.iter().map(|(id, _)| id.clone()).collect();
        for id in &ids {
            ledger.refile(id);
        }
        ledger.rehash();
        ledger.check_invariants()?;
        if ledger.state_hash() != saved.state_hash {
            return Err(BadSnapshot::Hash);
        }
        Ok(ledger)
    }

    fn load_session(
        &mut self,
        mut session: Session,
        waiters: &mut BTreeMap<u64, (InvoiceId, Waiter)>,
    ) -> Result<(), BadSnapshot> {
        let id = session.id;
        for (seq, request) in &session.requests {
            if request.seq.get() != *seq {
                return Err(torn(format!(
                    "a request of session {id} stands under another seq"
                )));
            }
            let (Answer::Queued { deadline, ticket }, Ask::Acquire { invoice, ttl, .. }) =
                (&request.answer, &request.ask)
            else {
                continue;
            };
            let waiter = Waiter {
                session: id,
                seq: request.seq,
                ttl: *ttl,
                deadline: *deadline,
                ticket: *ticket,
            };
            if waiters.insert(*ticket, (invoice.clone(), waiter)).is_some() {
                return Err(torn(format!("two requests wait with ticket {ticket}")));
            }
        }
        session.waiting = session
            .requests
            .values()
            .filter(|request| request.is_queued())
            .count();
        if let Some(deadline) = session.deadline {
            self.index.session_deadlines.insert((deadline, id), ());
            self.index.count_ttl(session.ttl);
        }
        if self.sessions.insert(id, Arc::new(session)).is_some() {
            return Err(torn(format!("session {id} stands in it twice")));
        }
        Ok(())
    }

    /// Computes every digest anew.
    fn rehash(&mut self) {
        let mut scratch = Vec::new();
        let mut sum = 0_u128;
        let ids: Vec<InvoiceId> = self.invoices.iter().map(|(id, _)| id.clone()).collect();
        for id in ids {
            if let Some(shared) = self.invoices.get_mut(&id) {
                let fresh = digest(Tag::Invoice, shared.as_ref(), &mut scratch);
                Arc::make_mut(shared).digest = fresh;
                sum = sum.wrapping_add(fresh);
            }
        }
        let ids: Vec<SessionId> = self.sessions.iter().map(|(id, _)| *id).collect();
        for id in ids {
            let Some(shared) = self.sessions.get_mut(&id) else {
                continue;
            };
            let session = Arc::make_mut(shared);
            let fresh = digest(Tag::Session, &session.hashed(), &mut scratch);
            session.digest = fresh;
            sum = sum.wrapping_add(session.digest);
            for request in session.requests.values_mut() {
                let fresh = digest(Tag::Request, &request.hashed(id), &mut scratch);
                request.digest = fresh;
                sum = sum.wrapping_add(request.digest);
            }
        }
        for ended in self.ended.values() {
            sum = sum.wrapping_add(digest(Tag::Ended, ended, &mut scratch));
        }
        self.digests = sum;
    }
}
