//! Decides how records look on the medium, and that a record is believed only in its own folder and its own place.
//!
//! Every record is `crc32c | version | kind | body`. The checksum starts from the folder's seed and covers the key, so that a
//! flipped bit, a record of another folder and a record moved to another key all fail the same check. Entries are chained:
//! each one's link covers the one before, so that a log that went back to an earlier state differs from the one acknowledged.
//! Little endian throughout; keys are big endian, since sled orders bytes.

use bytes::Bytes;

use crate::{Entry, StoreError};

/// Version of everything under a folder. Version 1: the first. Version 2: what is new lies in a journal before it is in sled;
/// a folder of version 1 is given one when it is opened (`folder.rs`).
pub(crate) const FORMAT: u32 = 2;
/// Without a journal.
pub(crate) const FORMAT_WITHOUT_JOURNAL: u32 = 1;
const RECORD_VERSION: u8 = 1;

/// A packed record, key aside. Under 64 KiB, see `sled_disk.rs` for why.
pub(crate) const PACK_BYTES_MAX: usize = 60 * 1024;
/// Larger than any message that the wire accepts; what would be larger is the caller's mistake.
pub const ENTRY_BYTES_MAX: usize = 16 * 1024 * 1024;
pub const VOTE_BYTES_MAX: usize = 256;
pub const MARKER_BYTES_MAX: usize = 4 * 1024;

pub(crate) const KIND_PACK: u8 = 1;
pub(crate) const KIND_PART: u8 = 2;
pub(crate) const KIND_VOTE: u8 = 3;
pub(crate) const KIND_PURGED: u8 = 4;
pub(crate) const KIND_COMMITTED: u8 = 5;
pub(crate) const KIND_HIGH: u8 = 6;
pub(crate) const KIND_IDENTITY: u8 = 7;
pub(crate) const KIND_SNAPSHOT: u8 = 8;
pub(crate) const KIND_SNAPSHOT_CHUNK: u8 = 9;
pub(crate) const KIND_SNAPSHOT_END: u8 = 10;
pub(crate) const KIND_JOURNAL_HEAD: u8 = 11;
pub(crate) const KIND_JOURNAL_RECORD: u8 = 12;

pub(crate) const KEY_VOTE: &[u8] = b"v";
pub(crate) const KEY_PURGED: &[u8] = b"p";
pub(crate) const KEY_COMMITTED: &[u8] = b"c";
pub(crate) const KEY_LOG: u8 = b'l';

const ENVELOPE_BYTES: usize = 6;
/// First index, two links, count.
const PACK_HEAD_BYTES: usize = ENVELOPE_BYTES + 8 + 4 + 4 + 4;
const ENTRY_HEAD_BYTES: usize = 4;
const PART_HEAD_BYTES: usize = ENVELOPE_BYTES + 8 + 4 + 4 + 4 + 4 + 8;
const PART_BYTES: usize = PACK_BYTES_MAX - PART_HEAD_BYTES;
const _: () = assert!(PACK_BYTES_MAX < 64 * 1024);

/// What a folder's records are checked against; drawn from its identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seed(pub u32);

/// The chain's value after an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link(pub u32);

impl Seed {
    /// Where the chain of a new log begins.
    pub(crate) fn origin(self) -> Link {
        Link(crc32c::crc32c_append(self.0, b"origin"))
    }

    /// Where it begins again behind an installed snapshot, whose entries this log never had.
    pub(crate) fn restart(self, index: u64, marker: &[u8]) -> Link {
        let crc = crc32c::crc32c_append(self.0, b"restart");
        Link(crc32c::crc32c_append(
            crc32c::crc32c_append(crc, &index.to_le_bytes()),
            marker,
        ))
    }
}

impl Link {
    pub(crate) fn then(self, index: u64, bytes: &[u8]) -> Link {
        let crc = crc32c::crc32c_append(self.0, &index.to_le_bytes());
        let crc = crc32c::crc32c_append(crc, &(bytes.len() as u64).to_le_bytes());
        Link(crc32c::crc32c_append(crc, bytes))
    }
}

fn checksum(seed: Seed, key: &[u8], covered: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(seed.0, key), covered)
}

/// Begins a record; `seal` completes it.
pub(crate) fn begin(kind: u8) -> Vec<u8> {
    vec![0, 0, 0, 0, RECORD_VERSION, kind]
}

pub(crate) fn seal(seed: Seed, key: &[u8], mut record: Vec<u8>) -> Vec<u8> {
    let crc = checksum(seed, key, &record[4..]);
    record[..4].copy_from_slice(&crc.to_le_bytes());
    record
}

pub(crate) fn seal_body(seed: Seed, key: &[u8], kind: u8, body: &[u8]) -> Vec<u8> {
    let mut record = begin(kind);
    record.extend_from_slice(body);
    seal(seed, key, record)
}

/// Why a record is not believed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unsealed<'a> {
    Body(&'a [u8]),
    Damaged(&'static str),
    Newer(u32),
}

pub(crate) fn unseal<'a>(seed: Seed, key: &[u8], kind: u8, record: &'a [u8]) -> Unsealed<'a> {
    if record.len() < ENVELOPE_BYTES {
        return Unsealed::Damaged("a record is cut short");
    }
    let (crc, covered) = record.split_at(4);
    if crc != checksum(seed, key, covered).to_le_bytes() {
        return Unsealed::Damaged(
            "a checksum does not match: the record is damaged, misplaced or of another folder",
        );
    }
    // Checked after the checksum: a flipped version byte is damage, not a newer format.
    if covered[0] > RECORD_VERSION {
        return Unsealed::Newer(u32::from(covered[0]));
    }
    if covered[1] != kind {
        return Unsealed::Damaged("a record is of another kind than its place says");
    }
    Unsealed::Body(&covered[2..])
}

pub(crate) fn open<'a>(
    seed: Seed,
    key: &[u8],
    kind: u8,
    record: &'a [u8],
    where_: &str,
) -> Result<&'a [u8], StoreError> {
    match unseal(seed, key, kind, record) {
        Unsealed::Body(body) => Ok(body),
        Unsealed::Damaged(what) => Err(StoreError::damaged(where_, what)),
        Unsealed::Newer(found) => Err(StoreError::NewerFormat {
            where_: where_.to_owned(),
            found,
            reads: u32::from(RECORD_VERSION),
        }),
    }
}

/// Takes fields off the front. `None` when there are not enough bytes.
pub(crate) struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }
    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.bytes(1).map(|bytes| bytes[0])
    }
    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.bytes(4)?.try_into().ok().map(u32::from_le_bytes)
    }
    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.bytes(8)?.try_into().ok().map(u64::from_le_bytes)
    }
    /// A number from which somebody counts on, so that the largest of all was never written: behind it there is none.
    pub(crate) fn counted(&mut self) -> Option<u64> {
        self.u64().filter(|number| *number < u64::MAX)
    }
    /// The rest, behind its length; `None` unless it ends exactly there.
    pub(crate) fn last(&mut self) -> Option<&'a [u8]> {
        let count = self.u32()? as usize;
        (self.0.len() == count).then(|| std::mem::take(&mut self.0))
    }
}

/// Key of the record whose first entry is `first`; later parts of a large entry follow it in order.
pub(crate) fn log_key(first: u64, part: u32) -> Vec<u8> {
    let mut key = Vec::with_capacity(13);
    key.push(KEY_LOG);
    key.extend_from_slice(&first.to_be_bytes());
    if part > 0 {
        key.extend_from_slice(&part.to_be_bytes());
    }
    key
}

/// First index and part of a log key.
pub(crate) fn parse_log_key(key: &[u8]) -> Option<(u64, u32)> {
    let (tag, rest) = key.split_first()?;
    if *tag != KEY_LOG {
        return None;
    }
    match rest.len() {
        8 => Some((u64::from_be_bytes(rest.try_into().ok()?), 0)),
        12 => {
            let part = u32::from_be_bytes(rest[8..].try_into().ok()?);
            (part > 0).then_some((u64::from_be_bytes(rest[..8].try_into().ok()?), part))
        }
        _ => None,
    }
}

/// A key and what lies under it.
type Record = (Vec<u8>, Vec<u8>);

/// Fetches the record under a key.
type Get<'a> = &'a dyn Fn(&[u8]) -> Result<Option<Bytes>, StoreError>;

/// One packed record as it lies in the log: the entries `first..=last` behind `before`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PackRef {
    pub first: u64,
    pub last: u64,
    /// How many keys it takes; more than one only for an entry too large for one record.
    pub parts: u32,
    pub before: Link,
}

/// Collects entries into one record.
#[derive(Debug)]
pub(crate) struct PackBuilder {
    pack: PackRef,
    after: Link,
    count: u32,
    record: Vec<u8>,
}

impl PackBuilder {
    pub(crate) fn new(first: u64, before: Link) -> Self {
        let mut record = begin(KIND_PACK);
        record.resize(PACK_HEAD_BYTES, 0);
        Self {
            pack: PackRef {
                first,
                last: first,
                parts: 1,
                before,
            },
            after: before,
            count: 0,
            record,
        }
    }

    pub(crate) fn fits(&self, bytes: usize) -> bool {
        self.record.len() + ENTRY_HEAD_BYTES + bytes <= PACK_BYTES_MAX
    }

    pub(crate) fn push(&mut self, entry: &Entry) {
        self.record
            .extend_from_slice(&(entry.bytes.len() as u32).to_le_bytes());
        self.record.extend_from_slice(&entry.bytes);
        self.pack.last = entry.index;
        self.after = self.after.then(entry.index, &entry.bytes);
        self.count += 1;
    }

    pub(crate) fn finish(mut self, seed: Seed) -> (PackRef, Vec<u8>) {
        let head = &mut self.record[ENVELOPE_BYTES..PACK_HEAD_BYTES];
        head[..8].copy_from_slice(&self.pack.first.to_le_bytes());
        head[8..12].copy_from_slice(&self.pack.before.0.to_le_bytes());
        head[12..16].copy_from_slice(&self.after.0.to_le_bytes());
        head[16..20].copy_from_slice(&self.count.to_le_bytes());
        let record = seal(seed, &log_key(self.pack.first, 0), self.record);
        (self.pack, record)
    }
}

/// Whether an entry needs records of its own.
pub(crate) fn is_large(bytes: usize) -> bool {
    PACK_HEAD_BYTES + ENTRY_HEAD_BYTES + bytes > PACK_BYTES_MAX
}

/// A large entry in parts, each with its key.
pub(crate) fn split(seed: Seed, before: Link, entry: &Entry) -> (PackRef, Vec<Record>) {
    split_by(PART_BYTES, seed, before, entry)
}

/// The same in smaller parts, which are read alike.
pub(crate) fn split_by(
    part_bytes: usize,
    seed: Seed,
    before: Link,
    entry: &Entry,
) -> (PackRef, Vec<Record>) {
    let after = before.then(entry.index, &entry.bytes);
    let parts = entry.bytes.len().div_ceil(part_bytes) as u32;
    let records = entry
        .bytes
        .chunks(part_bytes)
        .enumerate()
        .map(|(part, chunk)| {
            let part = part as u32;
            let mut record = begin(KIND_PART);
            record.extend_from_slice(&entry.index.to_le_bytes());
            record.extend_from_slice(&before.0.to_le_bytes());
            record.extend_from_slice(&after.0.to_le_bytes());
            record.extend_from_slice(&part.to_le_bytes());
            record.extend_from_slice(&parts.to_le_bytes());
            record.extend_from_slice(&(entry.bytes.len() as u64).to_le_bytes());
            record.extend_from_slice(chunk);
            let key = log_key(entry.index, part);
            let record = seal(seed, &key, record);
            (key, record)
        });
    (
        PackRef {
            first: entry.index,
            last: entry.index,
            parts,
            before,
        },
        records.collect(),
    )
}

/// A record read back: whole, or the beginning of a large entry.
pub(crate) struct Unpacked {
    pub pack: PackRef,
    pub after: Link,
    pub entries: Vec<Entry>,
}

/// Reads the record under `key` and, for a large entry, its other parts through `get`.
pub(crate) fn unpack(
    seed: Seed,
    key: &[u8],
    record: &Bytes,
    where_: &str,
    get: Get<'_>,
) -> Result<Unpacked, StoreError> {
    let Some((first, 0)) = parse_log_key(key) else {
        return Err(StoreError::damaged(
            where_,
            "a key is not a log key, or a part has no beginning",
        ));
    };
    let damaged = |what: &str| StoreError::damaged(where_, format!("entry {first}: {what}"));
    // The kind decides how the body reads, and is covered by the checksum that `open` compares.
    if record.get(5) == Some(&KIND_PART) {
        return unpack_parts(seed, first, record, where_, get);
    }
    let body = open(
        seed,
        key,
        KIND_PACK,
        record,
        &format!("{where_}, entry {first}"),
    )?;
    let mut fields = Fields(body);
    let (stored_first, before, after, count) =
        pack_head(&mut fields).ok_or_else(|| damaged("a record is cut short"))?;
    if stored_first != first || count == 0 || first.checked_add(u64::from(count)).is_none() {
        return Err(damaged("a record is misplaced"));
    }
    let mut entries = Vec::new();
    let mut link = before;
    for index in first..first + u64::from(count) {
        let entry = fields
            .u32()
            .and_then(|length| fields.bytes(length as usize));
        let bytes = record.slice_ref(entry.ok_or_else(|| damaged("a record is cut short"))?);
        link = link.then(index, &bytes);
        entries.push(Entry { index, bytes });
    }
    if link != after || !fields.0.is_empty() {
        return Err(damaged("its links do not match its contents"));
    }
    let pack = PackRef {
        first,
        last: first + u64::from(count) - 1,
        parts: 1,
        before,
    };
    Ok(Unpacked {
        pack,
        after,
        entries,
    })
}

fn unpack_parts(
    seed: Seed,
    index: u64,
    record: &Bytes,
    where_: &str,
    get: Get<'_>,
) -> Result<Unpacked, StoreError> {
    let damaged = |what: &str| StoreError::damaged(where_, format!("large entry {index}: {what}"));
    let mut whole = Vec::new();
    let mut shape = None;
    let mut part = 0;
    loop {
        let key = log_key(index, part);
        let stored = if part == 0 {
            record.clone()
        } else {
            get(&key)?.ok_or_else(|| damaged("a part is missing"))?
        };
        let body = open(
            seed,
            &key,
            KIND_PART,
            &stored,
            &format!("{where_}, large entry {index}"),
        )?;
        let mut fields = Fields(body);
        let (stored_index, before, after, stored_part, parts, total) =
            part_head(&mut fields).ok_or_else(|| damaged("a part is cut short"))?;
        let this = (before, after, parts, total);
        if stored_index != index
            || stored_part != part
            || parts == 0
            || *shape.get_or_insert(this) != this
            || total > ENTRY_BYTES_MAX as u64
        {
            return Err(damaged("a part is misplaced"));
        }
        whole.extend_from_slice(fields.0);
        part += 1;
        if part < parts {
            continue;
        }
        let bytes = Bytes::from(whole);
        if bytes.len() as u64 != total || before.then(index, &bytes) != after {
            return Err(damaged("its parts do not belong together"));
        }
        let pack = PackRef {
            first: index,
            last: index,
            parts,
            before,
        };
        return Ok(Unpacked {
            pack,
            after,
            entries: vec![Entry { index, bytes }],
        });
    }
}

fn pack_head(fields: &mut Fields<'_>) -> Option<(u64, Link, Link, u32)> {
    Some((
        fields.counted()?,
        Link(fields.u32()?),
        Link(fields.u32()?),
        fields.u32()?,
    ))
}

fn part_head(fields: &mut Fields<'_>) -> Option<(u64, Link, Link, u32, u32, u64)> {
    Some((
        fields.counted()?,
        Link(fields.u32()?),
        Link(fields.u32()?),
        fields.u32()?,
        fields.u32()?,
        fields.u64()?,
    ))
}
