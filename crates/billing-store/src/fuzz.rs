//! What this crate reads from the disk, as plain functions of bytes: the log with its vote and purge point, the `high` file, the
//! journal, the identity, snapshots. Each panics where a promise is broken and decides nothing; the tests in `fuzz/tests.rs` and
//! any other fuzzer call them.
//!
//! A checksum stops nearly everything, so that each is tried twice: as it comes, and with every checksum put right, which is
//! what a mistake of ours or of somebody with an editor would look like ([`Seal::Right`]).

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::codec::{self, Fields, KEY_VOTE, KIND_IDENTITY, Seed, seal, seal_body};
use crate::files::Files;
use crate::front::{Shared, TAIL_BYTES_MAX};
use crate::high::{self, SLOT_BYTES, SLOTS};
use crate::medium::{Batch, Medium, Pages};
use crate::snapshots::{self, Snapshots};
use crate::{Identity, SnapshotId, StoreError, folder, journal, load};

#[cfg(test)]
mod tests;

/// Of the folder that everything here belongs to.
const SEED: Seed = Seed(0x5eed);
const PLACE: &str = "fuzzed";

/// Whether checksums are left as they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seal {
    AsItCame,
    Right,
}

impl Seal {
    /// The record as it is to be read. Nothing that is shorter than its envelope has a checksum.
    fn on(self, key: &[u8], record: &[u8]) -> Vec<u8> {
        match self {
            Seal::Right if record.len() > 6 => seal(SEED, key, record.to_vec()),
            Seal::AsItCame | Seal::Right => record.to_vec(),
        }
    }
}

/// A medium as bytes: `key length (1) | value length (2) | key | value`, again and again. Keys [`HIGH`] are the `high` file.
struct Map {
    records: BTreeMap<Vec<u8>, Bytes>,
    high: [Vec<u8>; SLOTS],
}

const HIGH: [&[u8]; SLOTS] = [b"high 0", b"high 1"];

impl Map {
    fn of(bytes: &[u8], sealed: Seal) -> Map {
        let mut map = Map {
            records: BTreeMap::new(),
            high: [vec![0; SLOT_BYTES], vec![0; SLOT_BYTES]],
        };
        let mut fields = Fields(bytes);
        while let Some((key, value)) = (|| {
            let (key, value) = (fields.u8()?, [fields.u8()?, fields.u8()?]);
            let key = fields.bytes(usize::from(key))?;
            Some((key, fields.bytes(u16::from_le_bytes(value).into())?))
        })() {
            match HIGH.iter().position(|slot| *slot == key) {
                Some(slot) => {
                    let mut record = value.to_vec();
                    record.resize(SLOT_BYTES, 0);
                    map.high[slot] = sealed.on(&high::key(slot), &record);
                }
                None => {
                    let record = sealed.on(key, value);
                    map.records.insert(key.to_vec(), record.into());
                }
            }
        }
        map
    }
}

impl Pages for Map {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.records.get(key).cloned())
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Bytes)>, StoreError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let records = self.records.range(from.to_vec()..to.to_vec());
        let copied = records.map(|(key, record)| (key.clone(), record.clone()));
        Ok(copied.take(limit).collect())
    }

    fn last_in(&self, from: &[u8], to: &[u8]) -> Result<Option<(Vec<u8>, Bytes)>, StoreError> {
        if from > to {
            return Ok(None);
        }
        let last = self.records.range(from.to_vec()..=to.to_vec()).next_back();
        Ok(last.map(|(key, record)| (key.clone(), record.clone())))
    }

    fn blocks(&self) -> bool {
        false
    }
}

/// Nobody who reads writes.
fn read_only() -> StoreError {
    StoreError::misuse("this one is only read")
}

impl Medium for Map {
    fn pages(&self) -> &dyn Pages {
        self
    }

    fn name(&self) -> &str {
        PLACE
    }

    fn apply(&mut self, _batch: Batch) -> Result<(), StoreError> {
        Err(read_only())
    }

    fn sync(&mut self) -> impl Future<Output = Result<(), StoreError>> + Send {
        std::future::ready(Err(read_only()))
    }

    fn settle(&mut self) -> Result<(), StoreError> {
        Err(read_only())
    }

    fn read_high(&self) -> Result<[Vec<u8>; SLOTS], StoreError> {
        Ok(self.high.clone())
    }

    fn write_high(&mut self, _slot: usize, _record: &[u8]) -> Result<(), StoreError> {
        Err(read_only())
    }

    fn sync_high(&mut self) -> impl Future<Output = Result<(), StoreError>> + Send {
        std::future::ready(Err(read_only()))
    }

    fn close(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    fn now(&self) -> Duration {
        Duration::ZERO
    }
}

/// What a log says when it was found whole.
#[derive(Debug, PartialEq)]
pub struct Log {
    pub purged: Option<(u64, Bytes)>,
    pub entries: Vec<(u64, Bytes)>,
    pub vote: Option<Bytes>,
    pub committed: Option<Bytes>,
}

/// The log is read whole, without a gap, or refused. `bytes` as [`Map::of`] reads them.
pub fn log(bytes: &[u8], sealed: Seal) -> Option<Log> {
    let map = Map::of(bytes, sealed);
    let mut loaded = load::load(&map, SEED, TAIL_BYTES_MAX).ok()?;
    let purged = loaded.purged.as_ref().map(|(purged, _)| purged.clone());
    let begins = match (&purged, loaded.packs.front()) {
        (Some(purged), _) => purged.index + 1,
        (None, Some(pack)) => pack.first,
        (None, None) => 0,
    };
    let behind = loaded.end.map_or(begins, |(last, _)| last + 1);
    let entries = load::read_entries(&map, SEED, PLACE, begins, behind, usize::MAX)
        .expect("what was found whole is read again");
    let found: Vec<u64> = entries.iter().map(|entry| entry.index).collect();
    assert!(
        found.iter().copied().eq(begins..behind),
        "{begins}..{behind}, but {found:?}"
    );
    assert!(
        entries.ends_with(loaded.tail.make_contiguous()),
        "the tail is the log's"
    );
    let log = Log {
        purged: purged.map(|purged| (purged.index, purged.marker)),
        entries: entries
            .into_iter()
            .map(|entry| (entry.index, entry.bytes))
            .collect(),
        vote: loaded.vote.clone(),
        committed: loaded.committed.clone(),
    };
    // What the writer counts on from here.
    assert!(loaded.vote_sequence < u64::MAX && loaded.high.sequence < u64::MAX);
    drop(Shared::new(&mut loaded));
    Some(log)
}

/// Sections of a file that is zero elsewhere: `place in units of 64 bytes (2) | length (2) | bytes`, again and again.
fn laid(bytes: &[u8], file_bytes: usize) -> (Vec<u8>, Vec<usize>) {
    const UNIT_BYTES: usize = 64;
    let (mut file, mut places) = (vec![0; file_bytes], Vec::new());
    let mut fields = Fields(bytes);
    while let Some((at, section)) = (|| {
        let head = fields.u32()?;
        let at = (head & 0xffff) as usize * UNIT_BYTES;
        Some((at, fields.bytes((head >> 16) as usize)?))
    })() {
        let end = (at + section.len()).min(file.len());
        if let Some(there) = file.get_mut(at..end) {
            there.copy_from_slice(&section[..there.len()]);
            places.push(at);
        }
    }
    (file, places)
}

/// Of the journal that is tried. Only the last record of an epoch may be torn, and nobody was told of it.
const JOURNAL_BYTES: usize = 16 * 1024;

/// The journal's epoch and what is to be replayed. `bytes` as [`laid`] reads them.
pub(crate) fn journal(bytes: &[u8], sealed: Seal) -> Option<(u64, Vec<Batch>)> {
    let (mut file, places) = laid(bytes, JOURNAL_BYTES);
    if sealed == Seal::Right {
        places
            .into_iter()
            .for_each(|at| journal::put_right(SEED, &mut file, at));
    }
    journal::read(SEED, &file, PLACE).ok()
}

/// One record's contents: what is read is written back as the same.
pub fn journal_batch(bytes: &[u8]) {
    let Some(batch) = journal::decode_batch(bytes) else {
        return;
    };
    let record = journal::encode(SEED, 3, 7, &batch);
    let again = journal::decode_batch(&record[journal::RECORD_HEAD_BYTES..]);
    assert_eq!(again, Some(batch));
}

/// The `high` file: both slots, one behind the other. What it says, and in which slot.
pub(crate) fn high(bytes: &[u8], sealed: Seal) -> Option<(high::High, usize)> {
    let (first, second) = bytes.split_at(bytes.len().min(SLOT_BYTES));
    let slots = [(0, first), (1, second)].map(|(slot, record)| {
        let mut record = record.to_vec();
        record.resize(SLOT_BYTES, 0);
        sealed.on(&high::key(slot), &record)
    });
    let (found, slot) = high::choose(SEED, &slots, PLACE).ok()?;
    let mut again = slots;
    again[slot] = found.encode(SEED, slot);
    let chosen = high::choose(SEED, &again, PLACE).expect("what was written is read");
    assert_eq!(chosen, (found.clone(), slot));
    Some((found, slot))
}

/// The file that says whose folder it is, and of which format.
pub fn identity(bytes: &[u8], sealed: Seal) -> Option<(Identity, u32)> {
    let mut file = bytes.to_vec();
    if sealed == Seal::Right && file.len() > folder::PREFIX_BYTES {
        let crc = crc32c::crc32c(&file[..folder::PREFIX_BYTES - 4]).to_le_bytes();
        file[folder::PREFIX_BYTES - 4..folder::PREFIX_BYTES].copy_from_slice(&crc);
        let body = file.split_off(folder::PREFIX_BYTES);
        file.extend(seal_body(Seed(0), b"identity", KIND_IDENTITY, &body));
    }
    let (found, format) = folder::decode(Path::new(PLACE), &file).ok()?;
    let again = folder::decode(Path::new(PLACE), &folder::encode(&found));
    let again = again.expect("what was written is read");
    assert_eq!(again.0, found);
    Some((found, format))
}

/// One file in a folder.
struct OneFile {
    name: String,
    bytes: Arc<[u8]>,
}

impl Files for OneFile {
    type Handle = Arc<[u8]>;

    fn names(&self) -> Result<Vec<String>, StoreError> {
        Ok(vec![self.name.clone()])
    }

    fn create(&self, _name: &str) -> Result<Self::Handle, StoreError> {
        Err(read_only())
    }

    fn open(&self, name: &str) -> Result<Option<Self::Handle>, StoreError> {
        Ok((name == self.name).then(|| self.bytes.clone()))
    }

    fn append(&self, _handle: &mut Self::Handle, _bytes: &[u8]) -> Result<(), StoreError> {
        Err(read_only())
    }

    fn sync(&self, _handle: &Self::Handle) -> Result<(), StoreError> {
        Err(read_only())
    }

    fn length(&self, handle: &Self::Handle) -> Result<u64, StoreError> {
        Ok(handle.len() as u64)
    }

    fn read_at(
        &self,
        handle: &Self::Handle,
        offset: u64,
        length: usize,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        // As on a real file: room first, then bytes.
        let mut bytes = vec![0; length];
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let there = handle.get(from..from.saturating_add(length));
        Ok(there.map(|there| {
            bytes.copy_from_slice(there);
            bytes
        }))
    }

    fn rename(&self, _from: &str, _to: &str) -> Result<(), StoreError> {
        Ok(())
    }

    fn remove(&self, _name: &str) -> Result<(), StoreError> {
        Ok(())
    }

    fn sync_folder(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn place(&self, name: &str) -> String {
        name.to_owned()
    }

    async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        work(self)
    }
}

/// Of the snapshot that is tried.
const SNAPSHOT: SnapshotId = SnapshotId {
    index: 41,
    serial: 2,
};

/// A snapshot file: its meta and contents, when all of it is whole.
pub fn snapshot(bytes: &[u8], sealed: Seal) -> Option<(Bytes, Vec<u8>)> {
    let mut bytes = bytes.to_vec();
    if sealed == Seal::Right {
        snapshots::put_right(SEED, SNAPSHOT, &mut bytes);
    }
    let file = OneFile {
        name: snapshots::file_name(SNAPSHOT),
        bytes: bytes.into(),
    };
    let store = Snapshots::open(file, SEED).ok()?;
    snapshots::read_whole(&store, SNAPSHOT).ok()
}

/// A file's name is a snapshot's only in the spelling that is written.
pub fn snapshot_name(bytes: &[u8]) {
    if let Ok(name) = std::str::from_utf8(bytes)
        && let Some(id) = snapshots::parse_name(name)
    {
        assert_eq!(snapshots::file_name(id), name);
    }
}

/// One record of a medium, as [`Map::of`] reads it.
#[cfg(test)]
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(key.len()).unwrap_or(u8::MAX)];
    bytes.extend_from_slice(&u16::try_from(value.len()).unwrap_or(u16::MAX).to_le_bytes());
    bytes.extend_from_slice(key);
    bytes.extend_from_slice(value);
    bytes
}

/// One envelope: refused, or the very body.
pub fn envelope(bytes: &[u8], sealed: Seal) -> Option<Vec<u8>> {
    let record = sealed.on(KEY_VOTE, bytes);
    let body = codec::open(SEED, KEY_VOTE, codec::KIND_VOTE, &record, PLACE).ok()?;
    assert_eq!(
        seal_body(SEED, KEY_VOTE, codec::KIND_VOTE, body)[6..],
        record[6..]
    );
    Some(body.to_vec())
}

/// Panics where a promise is broken.
pub type Body = fn(&[u8]);

/// Each of them, under its name.
pub const BODIES: &[(&str, Body)] = &[
    ("store_envelope", |bytes| {
        drop(envelope(bytes, Seal::AsItCame))
    }),
    ("store_envelope_right", |bytes| {
        drop(envelope(bytes, Seal::Right))
    }),
    ("store_log", |bytes| drop(log(bytes, Seal::AsItCame))),
    ("store_log_right", |bytes| drop(log(bytes, Seal::Right))),
    ("store_high", |bytes| drop(high(bytes, Seal::AsItCame))),
    ("store_high_right", |bytes| drop(high(bytes, Seal::Right))),
    ("store_journal", |bytes| {
        drop(journal(bytes, Seal::AsItCame))
    }),
    ("store_journal_right", |bytes| {
        drop(journal(bytes, Seal::Right))
    }),
    ("store_journal_batch", journal_batch),
    ("store_identity", |bytes| {
        drop(identity(bytes, Seal::AsItCame))
    }),
    ("store_identity_right", |bytes| {
        drop(identity(bytes, Seal::Right))
    }),
    ("store_snapshot", |bytes| {
        drop(snapshot(bytes, Seal::AsItCame))
    }),
    ("store_snapshot_right", |bytes| {
        drop(snapshot(bytes, Seal::Right))
    }),
    ("store_snapshot_name", snapshot_name),
];
