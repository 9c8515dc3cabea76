//! Decides how far the log must reach. Two slots are written in turn, so that a torn write leaves the other one; the slot that
//! was synced last is never overwritten before the other is synced.
//!
//! sled opens a damaged log without an error, only shorter. What this file says was durable must be there, entry by entry the
//! same: the link at `reach` differs when the log went back to a state from before a truncation.

use bytes::Bytes;

use crate::StoreError;
use crate::codec::{self, Fields, KIND_HIGH, Link, Seed, VOTE_BYTES_MAX};

pub(crate) const SLOTS: usize = 2;
/// Apart by a page, so that no torn write touches both.
pub(crate) const SLOT_STRIDE: u64 = 4096;
/// One sector's worth: such a write is seldom torn.
pub(crate) const SLOT_BYTES: usize = 512;
const _: () = assert!(VOTE_BYTES_MAX + 64 <= SLOT_BYTES);

/// What was durable when the slot was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct High {
    /// Counts the writes; the larger one of two good slots is the newer.
    pub sequence: u64,
    /// The last durable (or purged) index and the chain there. `None` in a log that never held anything.
    pub reach: Option<(u64, Link)>,
    /// Counts the votes. The store cannot order votes by their bytes.
    pub vote_sequence: u64,
    pub vote: Option<Bytes>,
}

pub(crate) fn key(slot: usize) -> [u8; 5] {
    [b'h', b'i', b'g', b'h', slot as u8]
}

impl High {
    pub(crate) fn encode(&self, seed: Seed, slot: usize) -> Vec<u8> {
        let mut record = codec::begin(KIND_HIGH);
        record.extend_from_slice(&self.sequence.to_le_bytes());
        record.push(u8::from(self.reach.is_some()));
        let (index, link) = self.reach.unwrap_or((0, Link(0)));
        record.extend_from_slice(&index.to_le_bytes());
        record.extend_from_slice(&link.0.to_le_bytes());
        record.extend_from_slice(&self.vote_sequence.to_le_bytes());
        record.push(u8::from(self.vote.is_some()));
        let vote = self.vote.as_deref().unwrap_or_default();
        record.extend_from_slice(&(vote.len() as u32).to_le_bytes());
        record.extend_from_slice(vote);
        record.resize(SLOT_BYTES, 0);
        codec::seal(seed, &key(slot), record)
    }

    fn decode(body: &[u8]) -> Option<Self> {
        let mut fields = Fields(body);
        let sequence = fields.counted()?;
        let reaches = fields.u8()? == 1;
        let reach = (fields.counted()?, Link(fields.u32()?));
        let vote_sequence = fields.counted()?;
        let voted = fields.u8()? == 1;
        let length = fields.u32()? as usize;
        let vote = Bytes::copy_from_slice(fields.bytes(length)?);
        Some(Self {
            sequence,
            reach: reaches.then_some(reach),
            vote_sequence,
            vote: voted.then_some(vote),
        })
    }
}

/// The newer of the good slots, and which one it is. One bad slot is a torn write, two are damage.
pub(crate) fn choose(
    seed: Seed,
    slots: &[Vec<u8>; SLOTS],
    where_: &str,
) -> Result<(High, usize), StoreError> {
    let mut newest: Option<(High, usize)> = None;
    for (slot, record) in slots.iter().enumerate() {
        if record.iter().all(|byte| *byte == 0) {
            continue; // Never written yet.
        }
        let body = match codec::open(seed, &key(slot), KIND_HIGH, record, where_) {
            Ok(body) => body,
            Err(newer @ StoreError::NewerFormat { .. }) => return Err(newer),
            Err(_) => {
                tracing::warn!(
                    slot,
                    file = where_,
                    "one slot cannot be read: a torn write; the other one counts"
                );
                continue;
            }
        };
        let high =
            High::decode(body).ok_or_else(|| StoreError::damaged(where_, "a slot is misshapen"))?;
        if newest
            .as_ref()
            .is_none_or(|(other, _)| other.sequence < high.sequence)
        {
            newest = Some((high, slot));
        }
    }
    newest.ok_or_else(|| {
        StoreError::damaged(
            where_,
            "no slot can be read: nobody knows how far the log must reach",
        )
    })
}
