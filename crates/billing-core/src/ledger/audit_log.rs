//! The newest records of the audit log, and the hash that the oldest kept one follows. Records are kept packed, because there
//! are a million of them: about a hundred bytes each instead of three hundred. Never changes a record, decides nothing.

use serde::Deserialize;
use std::collections::VecDeque;
use std::sync::Arc;

use super::audit::{AuditRecord, ChainHash, Facts, What, chain_hash_of};
use crate::ids::*;
use crate::limits::AUDIT_CHUNK_RECORDS;

/// The kept records, oldest first, in chunks that snapshots share.
#[derive(Clone, Default)]
pub(crate) struct AuditLog {
    chunks: VecDeque<Arc<Chunk>>,
    kept: usize,
    last: u64,
    /// The hash of the newest record, or CHAIN_START.
    head: ChainHash,
    /// What the oldest kept record follows.
    anchor: ChainHash,
}

/// Consecutive records, and which invoices may stand in them: a history looks only into the chunks that matter.
#[derive(Clone)]
struct Chunk {
    /// One packed record behind the other.
    packed: Vec<u8>,
    /// Where each of them ends.
    ends: Vec<u32>,
    hashes: Vec<ChainHash>,
    /// Two bits per invoice. A set bit says perhaps, a clear one says no.
    perhaps: Box<[u64; PERHAPS_WORDS]>,
}

const PERHAPS_WORDS: usize = AUDIT_CHUNK_RECORDS / 4; // Sixteen bits per record: about one chunk in seventy is read in vain.
const INDEX_BYTES_MAX: usize = 10; // A number of 64 bits in groups of seven.
const PACKED_BYTES: usize = AUDIT_CHUNK_RECORDS * 80; // What a chunk of leases takes; one with long reasons grows.

/// What [`Facts`] are read back as.
#[derive(Deserialize)]
pub(super) struct Packed {
    at: ClusterTime,
    wall: WallTime,
    actor: Actor,
    what: What,
    invoice: Option<InvoiceId>,
    token: FencingToken,
    key: Option<IdempotencyKey>,
}

impl Packed {
    pub(super) fn record(self, index: u64, hash: ChainHash) -> AuditRecord {
        AuditRecord {
            index,
            at: self.at,
            wall: self.wall,
            actor: self.actor,
            what: self.what,
            invoice: self.invoice,
            token: self.token,
            key: self.key,
            hash,
        }
    }
}

/// Where the two bits of an invoice stand: FNV-1a, because it needs no more than to spread.
fn perhaps_bits(invoice: &InvoiceId) -> [(usize, u64); 2] {
    let mixed = invoice
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    [mixed >> 32, mixed & 0xffff_ffff].map(|half| {
        let bit = half % (PERHAPS_WORDS as u64 * 64);
        (usize::try_from(bit / 64).unwrap_or(0), 1 << (bit % 64))
    })
}

impl Chunk {
    fn new() -> Self {
        Self {
            packed: Vec::with_capacity(PACKED_BYTES),
            ends: Vec::with_capacity(AUDIT_CHUNK_RECORDS),
            hashes: Vec::with_capacity(AUDIT_CHUNK_RECORDS),
            perhaps: Box::new([0; PERHAPS_WORDS]),
        }
    }

    fn len(&self) -> usize {
        self.ends.len()
    }

    /// Packs one more record, whose index is `index`, and hashes what was packed: these are its canonical bytes.
    fn push(&mut self, index: u64, facts: &Facts<'_>, previous: &ChainHash) -> ChainHash {
        if let Some(invoice) = facts.invoice {
            for (word, bit) in perhaps_bits(invoice) {
                self.perhaps[word] |= bit;
            }
        }
        let start = self.packed.len();
        // Fails only for a sequence of unknown length, and no record has one.
        self.packed = postcard::to_extend(facts, std::mem::take(&mut self.packed))
            .expect("a record is packed into memory");
        let mut place = [0; INDEX_BYTES_MAX];
        let place = postcard::to_slice(&index, &mut place).expect("it has room for any index");
        let hash = chain_hash_of(previous, place, &self.packed[start..]);
        self.ends
            .push(u32::try_from(self.packed.len()).expect("a chunk holds a few MB at most"));
        self.hashes.push(hash);
        if self.len() == AUDIT_CHUNK_RECORDS {
            self.packed.shrink_to_fit();
        }
        hash
    }

    /// The record at this place; `first`: the index of the chunk's first one.
    fn get(&self, nth: usize, first: u64) -> Option<AuditRecord> {
        let end = *self.ends.get(nth)? as usize;
        let start = nth.checked_sub(1).map_or(0, |before| self.ends[before]) as usize;
        // Only `push` makes these bytes.
        let packed: Packed =
            postcard::from_bytes(&self.packed[start..end]).expect("a packed record is unpacked");
        Some(packed.record(first + nth as u64, self.hashes[nth]))
    }

    fn may_hold(&self, invoice: &InvoiceId) -> bool {
        perhaps_bits(invoice)
            .into_iter()
            .all(|(word, bit)| self.perhaps[word] & bit != 0)
    }
}

impl AuditLog {
    /// An empty log whose first record will have this index and follow `anchor`.
    pub fn starting_at(first: u64, anchor: ChainHash) -> Self {
        Self {
            last: first.saturating_sub(1),
            head: anchor,
            anchor,
            ..Self::default()
        }
    }

    pub fn last_index(&self) -> u64 {
        self.last
    }

    pub fn head(&self) -> ChainHash {
        self.head
    }

    pub fn anchor(&self) -> ChainHash {
        self.anchor
    }

    pub fn len(&self) -> usize {
        self.kept
    }

    /// Appends a record, and drops the oldest chunk beyond `records_max`.
    pub fn push(&mut self, facts: &Facts<'_>, records_max: usize) {
        if self
            .chunks
            .back()
            .is_none_or(|chunk| chunk.len() == AUDIT_CHUNK_RECORDS)
        {
            self.chunks.push_back(Arc::new(Chunk::new()));
        }
        if let Some(chunk) = self.chunks.back_mut() {
            self.last += 1;
            self.head = Arc::make_mut(chunk).push(self.last, facts, &self.head);
            self.kept += 1;
        }
        while self.kept > records_max && self.chunks.len() > 1 {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        let Some(chunk) = self.chunks.pop_front() else {
            return;
        };
        self.kept -= chunk.len();
        if let Some(newest) = chunk.hashes.last() {
            self.anchor = *newest;
        }
    }

    pub fn first_index(&self) -> u64 {
        self.last + 1 - self.kept as u64
    }

    /// Only the last chunk may be short: whole ones are dropped, and a load begins with the first kept record.
    fn place(&self, index: u64) -> Option<(usize, usize)> {
        let nth = usize::try_from(index.checked_sub(self.first_index())?).ok()?;
        Some((nth / AUDIT_CHUNK_RECORDS, nth % AUDIT_CHUNK_RECORDS))
    }

    pub fn get(&self, index: u64) -> Option<AuditRecord> {
        let (chunk, nth) = self.place(index)?;
        self.chunks.get(chunk)?.get(nth, index - nth as u64)
    }

    pub fn hash_of(&self, index: u64) -> Option<ChainHash> {
        let (chunk, nth) = self.place(index)?;
        self.chunks.get(chunk)?.hashes.get(nth).copied()
    }

    pub fn from(&self, index: u64) -> impl Iterator<Item = AuditRecord> {
        (index.max(self.first_index())..=self.last).map_while(|index| self.get(index))
    }

    pub fn of_invoice<'a>(&'a self, invoice: &'a InvoiceId) -> impl Iterator<Item = AuditRecord> {
        let first = self.first_index();
        let chunks = self.chunks.iter().enumerate();
        chunks
            .filter(|(_, chunk)| chunk.may_hold(invoice))
            .flat_map(move |(nth, chunk)| {
                let first = first + (nth * AUDIT_CHUNK_RECORDS) as u64;
                (0..chunk.len()).filter_map(move |nth| chunk.get(nth, first))
            })
            .filter(|record| record.invoice.as_ref() == Some(invoice))
    }

    /// The records as a snapshot carries them, a chunk at a time.
    pub fn packed(&self) -> impl Iterator<Item = &[u8]> {
        self.chunks.iter().map(|chunk| chunk.packed.as_slice())
    }

    /// Appends what `packed` gave, and closes each record anew: a hash that differs shows at the head. The error says where
    /// the bytes are no record.
    pub fn push_packed(&mut self, mut packed: &[u8]) -> Result<(), postcard::Error> {
        while !packed.is_empty() {
            let (record, rest): (Packed, _) = postcard::take_from_bytes(packed)?;
            let record = record.record(0, ChainHash::default()); // Both follow from its place.
            self.push(&record.facts(), usize::MAX);
            packed = rest;
        }
        Ok(())
    }
}
