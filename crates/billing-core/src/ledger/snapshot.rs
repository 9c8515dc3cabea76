//! The ledger as bytes, written and read a page at a time: what a snapshot carries, and the checks before it becomes a ledger
//! again. Carries records only; every index, queue and digest is rebuilt. Never panics on what it reads: bytes that contradict
//! themselves are an error.
//!
//! The format number (u16), then parts: their kind (u8), their length (u32), a body of one packed record behind the other.
//! Numbers are little-endian. Parts come in the order of their kinds, the last one ends the ledger.

use serde::de::DeserializeOwned;
use std::io::{self, Read, Write};

use super::audit::ChainHash;
use super::state::{Answer, Ask, Waiter};
use super::*;

/// An older binary refuses a newer one.
/// - 1, 2026-11-22: before the first release; no longer read.
/// - 2, 2026-11-22: the longest TTL is part of the configuration; never released.
/// - 3, 2026-11-22: written in parts; the audit log names the holder whose lease ended; never released.
/// - 4, 2026-11-26: until when keys may be old ones; how far the wall clock may be off; never released.
/// - 5, 2026-11-26: an audit record is hashed as it is packed.
const FORMAT: u16 = 5;

const PAGE_BYTES: usize = 64 * 1_024; // A part is closed behind the record that reaches it.
const PART_BYTES_MAX: u32 = 256 << 20; // No record of bounded fields comes near it: more is damage, not data.

const AUDIT_FIRST_MAX: u64 = 1 << 62; // A million records a second reach it in 146,000 years; beyond it, indexes would run out.

/// Why bytes did not become a ledger.
#[derive(Debug, thiserror::Error)]
pub enum BadSnapshot {
    #[error("the snapshot has format {found}, this binary reads up to {known}: use a newer binary")]
    NewerFormat { found: u16, known: u16 },
    #[error("the snapshot is torn: {0}")]
    Torn(String),
    #[error("the snapshot breaks a rule: {0}")]
    Broken(#[from] Broken),
    #[error("the snapshot's state hash is not the one of its contents")]
    Hash,
    #[error("the snapshot could not be read: {0}")]
    Io(#[from] io::Error),
}

/// What a part holds, by its number in the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
enum Kind {
    Head = 1,
    Ended,
    Invoices,
    Sessions,
    Audit,
    End,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        let kinds = [
            Self::Head,
            Self::Ended,
            Self::Invoices,
            Self::Sessions,
            Self::Audit,
            Self::End,
        ];
        kinds.into_iter().find(|kind| *kind as u8 == byte)
    }
}

#[derive(Serialize, Deserialize)]
struct Head {
    config: Config,
    scalars: Scalars,
    paused: BTreeMap<ProviderId, Evidence>,
    audit_first: u64,
    audit_anchor: ChainHash,
}

fn torn(what: impl Into<String>) -> BadSnapshot {
    BadSnapshot::Torn(what.into())
}

/// Gathers records into parts.
struct Parts<'a, W> {
    to: &'a mut W,
    body: Vec<u8>,
}

impl<W: Write> Parts<'_, W> {
    fn add<T: Serialize + ?Sized>(&mut self, kind: Kind, record: &T) -> io::Result<()> {
        self.body = postcard::to_extend(record, std::mem::take(&mut self.body))
            .map_err(io::Error::other)?;
        if self.body.len() >= PAGE_BYTES {
            self.close(kind)?;
        }
        Ok(())
    }

    fn close(&mut self, kind: Kind) -> io::Result<()> {
        if !self.body.is_empty() {
            write_part(self.to, kind, &self.body)?;
            self.body.clear();
        }
        Ok(())
    }
}

fn write_part(to: &mut impl Write, kind: Kind, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    to.write_all(&[kind as u8])?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(body)
}

/// Reads one part. Memory grows with what is there, not with what a damaged length promises.
fn read_part(from: &mut impl Read, body: &mut Vec<u8>) -> Result<Kind, BadSnapshot> {
    let mut start = [0; 5];
    from.read_exact(&mut start)?;
    let [kind, length @ ..] = start;
    let length = u32::from_le_bytes(length);
    let kind = Kind::of(kind).ok_or_else(|| torn(format!("it has a part of kind {kind}")))?;
    if length > PART_BYTES_MAX {
        return Err(torn(format!("it has a part of {length} bytes")));
    }
    body.clear();
    let read = from.take(length.into()).read_to_end(body)?;
    if read != length as usize {
        return Err(torn("it ends within a part"));
    }
    Ok(kind)
}

/// The next record of a part's body.
fn next<T: DeserializeOwned>(body: &mut &[u8]) -> Result<T, BadSnapshot> {
    let (record, rest) =
        postcard::take_from_bytes(body).map_err(|error| torn(format!("no record: {error}")))?;
    *body = rest;
    Ok(record)
}

impl Ledger {
    /// Of what [`Ledger::write_to`] writes.
    pub const FORMAT: u16 = FORMAT;

    /// Writes everything that [`Ledger::read_from`] needs to make this ledger again, a page at a time: a clone can be written
    /// by another thread while applying goes on. Many small writes of up to some hundred KB; `to` need not buffer.
    ///
    /// # Errors
    /// Those of `to`.
    pub fn write_to<W: Write>(&self, to: &mut W) -> io::Result<()> {
        if sabotaged!(WaitersLostInSnapshot) && !self.index.waiter_deadlines.is_empty() {
            let mut lossy = self.clone();
            for (session, seq) in self.index.waiter_deadlines.values() {
                lossy.withdraw(*session, *seq);
            }
            return lossy.write_to(to);
        }
        to.write_all(&FORMAT.to_le_bytes())?;
        let mut parts = Parts {
            to,
            body: Vec::with_capacity(2 * PAGE_BYTES),
        };
        let head = Head {
            config: self.config.clone(),
            scalars: self.scalars.clone(),
            paused: self.paused.clone(),
            audit_first: self.audit.first_index(),
            audit_anchor: self.audit.anchor(),
        };
        parts.add(Kind::Head, &head)?;
        parts.close(Kind::Head)?;
        for ended in self.ended.values() {
            parts.add(Kind::Ended, ended)?;
        }
        parts.close(Kind::Ended)?;
        for invoice in self.invoices.values() {
            parts.add(Kind::Invoices, invoice.as_ref())?;
        }
        parts.close(Kind::Invoices)?;
        for session in self.sessions.values() {
            parts.add(Kind::Sessions, session.as_ref())?;
        }
        parts.close(Kind::Sessions)?;
        for packed in self.audit.packed() {
            write_part(parts.to, Kind::Audit, packed)?;
        }
        write_part(parts.to, Kind::End, &self.state_hash())
    }

    /// Reads what [`Ledger::write_to`] wrote, and no byte further. Every record is checked when it is read, every invariant
    /// and the state hash when all are there.
    ///
    /// # Errors
    /// Bytes that end early, are of a newer format, or contradict themselves.
    pub fn read_from<R: Read>(from: &mut R) -> Result<Self, BadSnapshot> {
        let mut format = [0; 2];
        from.read_exact(&mut format)?;
        check_format(u16::from_le_bytes(format))?;
        let mut part = Vec::with_capacity(2 * PAGE_BYTES);
        if read_part(from, &mut part)? != Kind::Head {
            return Err(torn("it does not begin with its head"));
        }
        let mut body = part.as_slice();
        let head: Head = next(&mut body)?;
        if !body.is_empty() {
            return Err(torn("its head goes on"));
        }
        let mut loading = Loading::new(head)?;
        let mut before = Kind::Head;
        loop {
            let kind = read_part(from, &mut part)?;
            if kind < before {
                return Err(torn(format!("{kind:?} stand behind {before:?}")));
            }
            before = kind;
            let mut body = part.as_slice();
            match kind {
                Kind::Head => return Err(torn("it has two heads")),
                Kind::Ended => {
                    while !body.is_empty() {
                        loading.ended(next(&mut body)?)?;
                    }
                }
                Kind::Invoices => {
                    while !body.is_empty() {
                        loading.invoice(next(&mut body)?)?;
                    }
                }
                Kind::Sessions => {
                    while !body.is_empty() {
                        loading.session(next(&mut body)?)?;
                    }
                }
                Kind::Audit => {
                    let pushed = loading.ledger.audit.push_packed(body);
                    pushed.map_err(|error| torn(format!("no audit record: {error}")))?;
                }
                Kind::End => return loading.finish(body),
            }
        }
    }
}

fn check_format(found: u16) -> Result<(), BadSnapshot> {
    match found {
        FORMAT => Ok(()),
        0..FORMAT => Err(torn(format!("format {found} was never released"))),
        _ => Err(BadSnapshot::NewerFormat {
            found,
            known: FORMAT,
        }),
    }
}

/// A ledger that is being read. Queues are made last, in the order of their tickets.
struct Loading {
    ledger: Ledger,
    waiters: BTreeMap<u64, (InvoiceId, Waiter)>,
}

impl Loading {
    fn new(head: Head) -> Result<Self, BadSnapshot> {
        let mut ledger = Ledger::new(head.config);
        ledger.scalars = head.scalars;
        ledger.paused = head.paused;
        // Whole chunks are dropped, so the oldest kept record opens one.
        let before = head.audit_first.checked_sub(1);
        let opens_chunk =
            before.is_some_and(|before| before.is_multiple_of(AUDIT_CHUNK_RECORDS as u64));
        if !opens_chunk || head.audit_first > AUDIT_FIRST_MAX {
            return Err(torn(format!(
                "its audit log begins at {}",
                head.audit_first
            )));
        }
        ledger.audit = AuditLog::starting_at(head.audit_first, head.audit_anchor);
        Ok(Self {
            ledger,
            waiters: BTreeMap::new(),
        })
    }

    fn ended(&mut self, ended: Ended) -> Result<(), BadSnapshot> {
        let (id, at) = (ended.id, ended.at);
        let index = if ended.how.implicit() {
            &mut self.ledger.index.ended_implicit
        } else {
            &mut self.ledger.index.ended_opened
        };
        index.insert((at, id), ());
        if self.ledger.ended.insert(ended).is_some() {
            return Err(torn(format!("session {id} ended twice")));
        }
        Ok(())
    }

    fn invoice(&mut self, invoice: Invoice) -> Result<(), BadSnapshot> {
        let id = invoice.id.clone();
        if invoice.token_last > self.ledger.scalars.token_last {
            return Err(torn(format!(
                "{id} was granted a token that the ledger did not reach"
            )));
        }
        if let Some(own) = invoice.lease.as_ref().and_then(|lease| lease.own) {
            self.ledger.index.count_ttl(own.ttl);
        }
        let before = self.ledger.invoices.insert(Arc::new(invoice));
        if before.is_some() {
            return Err(torn(format!("{id} stands in it twice")));
        }
        Ok(())
    }

    fn session(&mut self, session: Session) -> Result<(), BadSnapshot> {
        let id = session.id;
        let answered = session.answered.iter().map(|entry| (entry, false));
        let waiting = session.waiting.iter().map(|entry| (entry, true));
        for ((seq, request), queued) in answered.chain(waiting) {
            if request.seq.get() != *seq || request.is_queued() != queued {
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
            };
            if self
                .waiters
                .insert(*ticket, (invoice.clone(), waiter))
                .is_some()
            {
                return Err(torn(format!("two requests wait with ticket {ticket}")));
            }
        }
        let ledger = &mut self.ledger;
        if let Some(deadline) = session.deadline {
            ledger.index.session_deadlines.insert((deadline, id), ());
            ledger.index.count_ttl(session.ttl);
        }
        if ledger.sessions.insert(Arc::new(session)).is_some() {
            return Err(torn(format!("session {id} stands in it twice")));
        }
        Ok(())
    }

    /// Ties the records together and looks whether they are what was written.
    fn finish(self, state_hash: &[u8]) -> Result<Ledger, BadSnapshot> {
        let mut ledger = self.ledger;
        for (ticket, (id, waiter)) in self.waiters {
            let key = (waiter.deadline, ticket);
            ledger
                .index
                .waiter_deadlines
                .insert(key, (waiter.session, waiter.seq));
            let shared = ledger
                .invoices
                .get_mut(&id)
                .ok_or_else(|| torn(format!("{id} is waited for but unknown")))?;
            Arc::make_mut(shared).queue.insert(ticket, waiter);
        }
        let leased: Vec<(InvoiceId, SessionId, FencingToken)> = ledger
            .invoices
            .values()
            .filter_map(|invoice| {
                let lease = invoice.lease.as_ref()?;
                Some((invoice.id.clone(), lease.session, lease.token))
            })
            .collect();
        for (id, session, token) in leased {
            let shared = ledger.sessions.get_mut(&session);
            let shared = shared
                .ok_or_else(|| torn(format!("{id} is leased by a session that is not open")))?;
            Arc::make_mut(shared).leases.insert(token, id);
        }
        let ids: Vec<InvoiceId> = ledger
            .invoices
            .values()
            .map(|invoice| invoice.id.clone())
            .collect();
        for id in &ids {
            ledger.refile(id);
            ledger.invoice_mut(id);
            ledger.rehash_if_many();
        }
        let ids: Vec<SessionId> = ledger.sessions.values().map(|open| open.id).collect();
        for id in ids {
            ledger.session_mut(id);
            let seqs: Vec<Seq> = ledger
                .session(id)
                .map(|open| open.requests().map(|request| request.seq).collect())
                .unwrap_or_default();
            let requests = seqs.into_iter().map(|seq| (id, seq));
            ledger.stale.requests.extend(requests);
            ledger.rehash_if_many();
        }
        ledger.rehash_stale();
        let mut scratch = Vec::new();
        let ended = ledger
            .ended
            .values()
            .map(|ended| digest(Tag::Ended, ended, &mut scratch));
        ledger.digests = ended.fold(ledger.digests, u128::wrapping_add);
        ledger.turn = Turn::new();
        ledger.check_invariants()?;
        if ledger.state_hash().as_slice() != state_hash {
            return Err(BadSnapshot::Hash);
        }
        Ok(ledger)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Bootstrap;

    /// Found by reading: the index of a record beyond the largest number. No ledger comes near it, and bytes may say anything.
    #[test]
    fn an_audit_log_at_the_end_of_all_indexes_is_refused() {
        let ledger = Ledger::new(Config::default());
        let head = Head {
            config: ledger.config.clone(),
            scalars: ledger.scalars.clone(),
            paused: BTreeMap::new(),
            audit_first: u64::MAX - AUDIT_CHUNK_RECORDS as u64 + 2,
            audit_anchor: ChainHash::default(),
        };
        let mut one = Ledger::new(Config::default());
        let bootstrap = Command::Bootstrap(Bootstrap {
            ledger_id: LedgerId::new("L").expect("an id"),
            no_prior_charges: true,
        });
        let actor = Actor::new("tester").expect("a name");
        one.apply(Stamp::default(), &[(actor, bootstrap)]);
        let record: Vec<u8> = one.audit.packed().flatten().copied().collect();
        assert!(!record.is_empty());
        let mut bytes = FORMAT.to_le_bytes().to_vec();
        let head = postcard::to_stdvec(&head).expect("packed");
        write_part(&mut bytes, Kind::Head, &head).expect("written");
        let records = record.repeat(2 * AUDIT_CHUNK_RECORDS);
        write_part(&mut bytes, Kind::Audit, &records).expect("written");
        write_part(&mut bytes, Kind::End, &[0; 32]).expect("written");
        let refused = Ledger::read_from(&mut bytes.as_slice()).map(|_| ());
        assert!(matches!(refused, Err(BadSnapshot::Torn(_))), "{refused:?}");
    }
}
