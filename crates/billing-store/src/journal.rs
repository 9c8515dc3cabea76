//! Decides how a change lies in the journal, and which of its records count after a crash. Knows a file and batches; never
//! decides when to write, sync or begin anew: that is `sled_disk.rs`.
//!
//! ```text
//! 0      slot 0   journal version, epoch, length of the file
//! 4096   slot 1   the same
//! 8192   records  each of one epoch and numbered in it: envelope | epoch | sequence | length | body
//! ```
//!
//! The file is written in full when it is made, so that a sync changes no length and allocates nothing. Every record starts on
//! a sector of its own, and no sector is written twice within an epoch: a torn write cannot touch what was acknowledged. The
//! writer has one record unsynced at most, so that what a crash tears is the last one: a good record behind a bad one is damage.
//!
//! An epoch begins when everything before it is in sled, durably; the records of older ones are only bytes then, and their
//! epoch, which the checksum covers, says so. Both slots hold the epoch, so that one may rot; the second one is written when
//! the first is durable, never before.
//!
//! Replaying is safe over a sled that holds any part of the epoch already, in any mixture: a record says what lies under a key,
//! not what is done to it, so that after all of them each key is as the last record with it says, and every other key was not
//! touched since the epoch began. That needs sled to hold nothing of a record that is not replayed: a record is synced first.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::StoreError;
use crate::codec::{self, Fields, KIND_JOURNAL_HEAD, KIND_JOURNAL_RECORD, Seed};
use crate::folder;
use crate::high::{SLOT_BYTES, SLOT_STRIDE, SLOTS};
use crate::medium::Batch;

/// Room for 4,000 small appends, so that a checkpoint (three syncs, a millisecond or two) costs each of them next to nothing;
/// replayed in a few milliseconds; small beside what sled takes.
pub(crate) const JOURNAL_BYTES: u64 = 2 * 1024 * 1024;

const VERSION: u32 = 1;
const RECORDS_AT: u64 = SLOT_STRIDE * SLOTS as u64;
/// The unit that a disk writes whole or not at all.
const SECTOR_BYTES: u64 = 512;
const _: () = assert!(RECORDS_AT.is_multiple_of(SECTOR_BYTES));
const _: () = assert!(JOURNAL_BYTES.is_multiple_of(SECTOR_BYTES));

const KEY_RECORD: &[u8] = b"journal";
const ENVELOPE_BYTES: usize = 6;
/// Envelope, epoch, sequence, length of the body.
pub(crate) const RECORD_HEAD_BYTES: usize = ENVELOPE_BYTES + 8 + 8 + 4;
const REMOVE: u8 = 0;
const PUT: u8 = 1;

fn slot_key(slot: usize) -> [u8; 12] {
    let mut key = *b"journal head";
    key[7] = slot as u8;
    key
}

pub(crate) fn encode_slot(seed: Seed, slot: usize, epoch: u64, bytes: u64) -> Vec<u8> {
    let mut record = codec::begin(KIND_JOURNAL_HEAD);
    record.extend_from_slice(&VERSION.to_le_bytes());
    record.extend_from_slice(&epoch.to_le_bytes());
    record.extend_from_slice(&bytes.to_le_bytes());
    record.resize(SLOT_BYTES, 0);
    codec::seal(seed, &slot_key(slot), record)
}

/// How many bytes the batch takes as a record.
fn record_bytes(batch: &Batch) -> usize {
    let changes = batch.iter().map(|(key, value)| {
        let value = value.as_ref().map_or(0, |value| 4 + value.len());
        1 + 1 + key.len() + value
    });
    RECORD_HEAD_BYTES + 4 + changes.sum::<usize>()
}

pub(crate) fn encode(seed: Seed, epoch: u64, sequence: u64, batch: &Batch) -> Vec<u8> {
    let bytes = record_bytes(batch);
    let mut record = Vec::with_capacity(bytes);
    record.extend_from_slice(&codec::begin(KIND_JOURNAL_RECORD));
    record.extend_from_slice(&epoch.to_le_bytes());
    record.extend_from_slice(&sequence.to_le_bytes());
    record.extend_from_slice(&((bytes - RECORD_HEAD_BYTES) as u32).to_le_bytes());
    record.extend_from_slice(&(batch.len() as u32).to_le_bytes());
    for (key, value) in batch {
        record.push(if value.is_some() { PUT } else { REMOVE });
        record.push(u8::try_from(key.len()).expect("keys are a few bytes long"));
        record.extend_from_slice(key);
        if let Some(value) = value {
            record.extend_from_slice(&(value.len() as u32).to_le_bytes());
            record.extend_from_slice(value);
        }
    }
    assert_eq!(record.len(), bytes, "a record is as long as was said");
    codec::seal(seed, KEY_RECORD, record)
}

pub(crate) fn decode_batch(body: &[u8]) -> Option<Batch> {
    let mut fields = Fields(body);
    let mut batch = Batch::new();
    for _ in 0..fields.u32()? {
        let kind = fields.u8()?;
        let key_bytes = usize::from(fields.u8()?);
        let key = fields.bytes(key_bytes)?.to_vec();
        let value = match kind {
            REMOVE => None,
            PUT => {
                let value_bytes = fields.u32()? as usize;
                Some(fields.bytes(value_bytes)?.to_vec())
            }
            _ => return None,
        };
        batch.insert(key, value);
    }
    fields.0.is_empty().then_some(batch)
}

/// One record as it lies in the file.
struct Found<'a> {
    epoch: u64,
    sequence: u64,
    body: &'a [u8],
}

impl Found<'_> {
    /// Where the next one begins.
    fn behind(&self, place: u64) -> u64 {
        place + sectors((RECORD_HEAD_BYTES + self.body.len()) as u64)
    }
}

fn sectors(bytes: u64) -> u64 {
    bytes.next_multiple_of(SECTOR_BYTES)
}

/// The record at `place`, if one of `epoch_min` or later is there, whole.
fn found_at<'a>(
    seed: Seed,
    contents: &'a [u8],
    place: u64,
    epoch_min: u64,
    where_: &str,
) -> Result<Option<Found<'a>>, StoreError> {
    let found = (|| {
        let rest = contents.get(place as usize..)?;
        let mut fields = Fields(rest.get(ENVELOPE_BYTES..)?);
        let (epoch, sequence, length) = (fields.u64()?, fields.u64()?, fields.u32()?);
        // Looked at before the checksum, which costs more: most places hold nothing, or something old.
        if epoch < epoch_min || rest.get(5) != Some(&KIND_JOURNAL_RECORD) {
            return None;
        }
        let record = rest.get(..RECORD_HEAD_BYTES.checked_add(length as usize)?)?;
        Some((epoch, sequence, record))
    })();
    let Some((epoch, sequence, record)) = found else {
        return Ok(None);
    };
    match codec::open(seed, KEY_RECORD, KIND_JOURNAL_RECORD, record, where_) {
        Ok(_) => Ok(Some(Found {
            epoch,
            sequence,
            body: &record[RECORD_HEAD_BYTES..],
        })),
        Err(newer @ StoreError::NewerFormat { .. }) => Err(newer),
        Err(_) => Ok(None),
    }
}

/// The newest epoch that a slot names, and that slot. Both are written at the beginning of an epoch: one bad slot is a torn
/// write or rot, two are damage.
fn choose(seed: Seed, contents: &[u8], where_: &str) -> Result<(u64, usize), StoreError> {
    let mut newest: Option<(u64, usize)> = None;
    for slot in 0..SLOTS {
        let at = (slot as u64 * SLOT_STRIDE) as usize;
        let record = &contents[at..at + SLOT_BYTES];
        let body = match codec::open(seed, &slot_key(slot), KIND_JOURNAL_HEAD, record, where_) {
            Ok(body) => body,
            Err(newer @ StoreError::NewerFormat { .. }) => return Err(newer),
            Err(_) => {
                tracing::warn!(
                    slot,
                    file = where_,
                    "one slot cannot be read: the other one counts"
                );
                continue;
            }
        };
        let mut fields = Fields(body);
        let parsed = (|| Some((fields.u32()?, fields.counted()?, fields.u64()?)))();
        let (version, epoch, bytes) =
            parsed.ok_or_else(|| StoreError::damaged(where_, "a slot is misshapen"))?;
        if version > VERSION {
            return Err(StoreError::NewerFormat {
                where_: where_.to_owned(),
                found: version,
                reads: VERSION,
            });
        }
        if bytes != contents.len() as u64 {
            return Err(StoreError::damaged(
                where_,
                format!(
                    "the file has {} bytes, it was made with {bytes}",
                    contents.len()
                ),
            ));
        }
        if newest.is_none_or(|(other, _)| other < epoch) {
            newest = Some((epoch, slot));
        }
    }
    newest.ok_or_else(|| {
        StoreError::damaged(
            where_,
            "no slot can be read: nobody knows which of its records count",
        )
    })
}

/// The batches of `epoch` in the order in which they were written, up to the first record that is not whole.
fn replayable(
    seed: Seed,
    contents: &[u8],
    epoch: u64,
    where_: &str,
) -> Result<Vec<Batch>, StoreError> {
    let mut batches = Vec::new();
    let mut place = RECORDS_AT;
    while let Some(found) = found_at(seed, contents, place, epoch, where_)? {
        if (found.epoch, found.sequence) != (epoch, batches.len() as u64) {
            break; // Out of its order: told below.
        }
        let batch = decode_batch(found.body).ok_or_else(|| {
            StoreError::damaged(where_, format!("record {} is misshapen", found.sequence))
        })?;
        batches.push(batch);
        place = found.behind(place);
    }
    // Here the one record may lie that a crash tore; whatever lies further on was written when this one was durable.
    let ended_at = batches.len();
    while place < contents.len() as u64 {
        if let Some(found) = found_at(seed, contents, place, epoch, where_)? {
            let what = if found.epoch > epoch {
                format!(
                    "it is of epoch {epoch}, but holds a record of epoch {}",
                    found.epoch
                )
            } else {
                format!(
                    "record {ended_at} cannot be read, but record {} behind it can",
                    found.sequence
                )
            };
            return Err(StoreError::damaged(where_, what));
        }
        place += SECTOR_BYTES;
    }
    Ok(batches)
}

/// What a file with these contents says: its epoch, and what is to be replayed.
#[cfg(any(test, fuzzing))]
pub(crate) fn read(
    seed: Seed,
    contents: &[u8],
    where_: &str,
) -> Result<(u64, Vec<Batch>), StoreError> {
    let (epoch, _) = choose(seed, contents, where_)?;
    Ok((epoch, replayable(seed, contents, epoch, where_)?))
}

/// Puts the checksum right of what begins at `at`, a slot or a record.
#[cfg(any(test, fuzzing))]
pub(crate) fn put_right(seed: Seed, contents: &mut [u8], at: usize) {
    let slot = (0..SLOTS).find(|slot| at == *slot * SLOT_STRIDE as usize);
    let bytes = match slot {
        Some(_) => Some(SLOT_BYTES),
        None => contents
            .get(at + RECORD_HEAD_BYTES - 4..at + RECORD_HEAD_BYTES)
            .and_then(|length| Fields(length).u32())
            .map(|length| RECORD_HEAD_BYTES + length as usize),
    };
    let record = bytes.and_then(|bytes| contents.get_mut(at..at.checked_add(bytes)?));
    if let Some(record) = record {
        let sealed = match slot {
            Some(slot) => codec::seal(seed, &slot_key(slot), record.to_vec()),
            None => codec::seal(seed, KEY_RECORD, record.to_vec()),
        };
        record.copy_from_slice(&sealed);
    }
}

/// Makes an empty journal, or an emptied one. Its entry in the folder is not durable before the folder is synced.
pub(crate) fn create(path: &Path, seed: Seed, bytes: u64) -> Result<(), StoreError> {
    assert!(bytes > RECORDS_AT && bytes.is_multiple_of(SECTOR_BYTES));
    let mut contents = vec![0; bytes as usize];
    for slot in 0..SLOTS {
        let at = (slot as u64 * SLOT_STRIDE) as usize;
        contents[at..at + SLOT_BYTES].copy_from_slice(&encode_slot(seed, slot, 1, bytes));
    }
    folder::write_durably(path, &contents)
}

/// The open file. Full until its first epoch begins: what was found in it is replayed before anything is written.
pub(crate) struct Journal {
    file: File,
    path: PathBuf,
    seed: Seed,
    bytes: u64,
    epoch: u64,
    /// Of the next record.
    sequence: u64,
    place: u64,
    /// The slot that holds the epoch for certain; a new epoch is written to the other one first.
    slot: usize,
}

impl Journal {
    /// Opens it, and returns what was written since the epoch began. Changes nothing.
    pub(crate) fn open(path: &Path, seed: Seed) -> Result<(Self, Vec<Batch>), StoreError> {
        let where_ = path.display().to_string();
        let io = |doing| move |error| StoreError::io(doing, path, error);
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(StoreError::damaged(where_, "the file is missing"));
            }
            Err(error) => return Err(StoreError::io("opening", path, error)),
        };
        // So that it is read page by page; see `folder::write_durably`. Advice only: the file is read and written all the same.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random);
        let bytes = file.metadata().map_err(io("reading"))?.len();
        if bytes <= RECORDS_AT {
            return Err(StoreError::damaged(where_, "the file is cut short"));
        }
        let mut contents = vec![0; bytes as usize];
        file.read_exact_at(&mut contents, 0)
            .map_err(io("reading"))?;
        let (epoch, slot) = choose(seed, &contents, &where_)?;
        let batches = replayable(seed, &contents, epoch, &where_)?;
        let journal = Self {
            file,
            path: path.to_owned(),
            seed,
            bytes,
            epoch,
            sequence: batches.len() as u64,
            place: bytes,
            slot,
        };
        Ok((journal, batches))
    }

    #[cfg(test)]
    pub(crate) fn slot(&self) -> usize {
        self.slot
    }

    pub(crate) fn fits(&self, batch: &Batch) -> bool {
        self.place + sectors(record_bytes(batch) as u64) <= self.bytes
    }

    /// Writes one record, unsynced. The one before must be synced by now.
    pub(crate) fn append(&mut self, batch: &Batch) -> Result<(), StoreError> {
        assert!(self.fits(batch), "a record never leaves the journal");
        let record = encode(self.seed, self.epoch, self.sequence, batch);
        self.file
            .write_all_at(&record, self.place)
            .map_err(|error| StoreError::io("writing", &self.path, error))?;
        self.place += sectors(record.len() as u64);
        self.sequence += 1;
        Ok(())
    }

    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        self.file
            .sync_data()
            .map_err(|error| StoreError::io("syncing", &self.path, error))
    }

    /// Forgets all records. Only once what they say is durable elsewhere.
    pub(crate) fn begin_epoch(&mut self) -> Result<(), StoreError> {
        self.epoch += 1;
        self.slot = (self.slot + 1) % SLOTS;
        self.write_slot(self.slot)?;
        self.sync()?;
        // The next sync takes it along. Were it lost, the other slot still says it.
        self.write_slot((self.slot + 1) % SLOTS)?;
        self.sequence = 0;
        self.place = RECORDS_AT;
        Ok(())
    }

    fn write_slot(&self, slot: usize) -> Result<(), StoreError> {
        let record = encode_slot(self.seed, slot, self.epoch, self.bytes);
        self.file
            .write_all_at(&record, slot as u64 * SLOT_STRIDE)
            .map_err(|error| StoreError::io("writing", &self.path, error))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const SEED: Seed = Seed(0x5eed);
    const BYTES: u64 = 32 * 1024;

    /// A few hundred bytes, or a few sectors; some keys are put again or removed later.
    fn batch(n: u64) -> Batch {
        let value = format!("value {n} ").repeat(10 + 50 * (n as usize % 4));
        Batch::from([
            (format!("k{}", n % 7).into_bytes(), Some(value.into_bytes())),
            (format!("k{}", (n + 3) % 7).into_bytes(), None),
            (vec![], Some(vec![])),
        ])
    }

    struct Scene {
        _folder: tempfile::TempDir,
        path: PathBuf,
    }

    impl Scene {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("journal");
            create(&path, SEED, BYTES).expect("creates");
            Self {
                _folder: folder,
                path,
            }
        }

        /// A new epoch with so many records.
        fn epoch(&self, records: u64) -> Journal {
            self.epoch_of(0..records)
        }

        fn epoch_of(&self, records: std::ops::Range<u64>) -> Journal {
            let (mut journal, _) = Journal::open(&self.path, SEED).expect("opens");
            journal.begin_epoch().expect("begins");
            for n in records {
                journal.append(&batch(n)).expect("appends");
            }
            journal
        }

        fn bytes(&self) -> Vec<u8> {
            fs::read(&self.path).expect("reads")
        }

        fn put(&self, bytes: &[u8]) {
            fs::write(&self.path, bytes).expect("writes");
        }

        fn found(&self) -> Result<u64, String> {
            let (_, batches) = Journal::open(&self.path, SEED).map_err(|error| {
                assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
                error.to_string()
            })?;
            for (n, found) in batches.iter().enumerate() {
                assert_eq!(*found, batch(n as u64), "as it was written");
            }
            Ok(batches.len() as u64)
        }

        fn damaged(&self, expected: &str) {
            match self.found() {
                Ok(records) => panic!("{records} records, expected: {expected}"),
                Err(told) => {
                    assert!(told.contains(expected), "{told}\nexpected: {expected}");
                    assert!(told.contains("billingd join"), "says what to do: {told}");
                }
            }
        }
    }

    /// Where each record of an epoch begins and ends.
    fn places(records: u64) -> Vec<std::ops::Range<usize>> {
        let mut at = RECORDS_AT as usize;
        let place = |n| {
            let begins = at;
            at += sectors(record_bytes(&batch(n)) as u64) as usize;
            begins..begins + record_bytes(&batch(n))
        };
        (0..records).map(place).collect()
    }

    #[test]
    fn a_torn_last_record_is_absent_wherever_it_was_torn() {
        let scene = Scene::new();
        // What lies where the torn one goes: an older epoch's bytes.
        drop(scene.epoch_of(1..12));
        drop(scene.epoch(7));
        let (without, mut journal) = (scene.bytes(), scene.epoch(7));
        journal.append(&batch(7)).expect("appends");
        let (with, last) = (scene.bytes(), places(8)[7].clone());
        assert!(last.len() as u64 > 2 * SECTOR_BYTES, "a few sectors");
        assert_eq!(scene.found(), Ok(8));
        let check = |torn: &[u8], how: &str| {
            scene.put(torn);
            let whole = torn == with;
            assert_eq!(scene.found(), Ok(if whole { 8 } else { 7 }), "{how}");
            whole
        };
        let mut whole = 0;
        for cut in last.clone() {
            let mut torn = with.clone();
            torn[cut..].copy_from_slice(&without[cut..]);
            whole += usize::from(check(&torn, &format!("cut at {cut} of {last:?}")));
        }
        assert!(whole < 8, "what was there before differs: {whole}");
        // Sectors reach the disk in any order.
        for sectors in 0..1 << last.len().div_ceil(SECTOR_BYTES as usize) {
            let mut torn = with.clone();
            for (n, at) in last.clone().step_by(SECTOR_BYTES as usize).enumerate() {
                let sector = at..at + SECTOR_BYTES as usize;
                if sectors & (1 << n) == 0 {
                    torn[sector.clone()].copy_from_slice(&without[sector]);
                }
            }
            check(&torn, &format!("{sectors:b}"));
        }
    }

    #[test]
    fn a_flipped_bit_before_the_last_record_is_damage() {
        let scene = Scene::new();
        drop(scene.epoch(6));
        let good = scene.bytes();
        for (n, place) in places(6).into_iter().enumerate() {
            // The head in full, the body in samples.
            let body = place.start + RECORD_HEAD_BYTES;
            for at in (place.start..body).chain((body..place.end).step_by(11)) {
                let mut bytes = good.clone();
                bytes[at] ^= 1 << (at % 8);
                scene.put(&bytes);
                if n < 5 {
                    scene.damaged("behind it can");
                } else {
                    assert_eq!(scene.found(), Ok(5), "the last one counts as torn");
                }
            }
        }
    }

    #[test]
    fn a_lost_write_before_the_last_record_is_damage() {
        let scene = Scene::new();
        drop(scene.epoch(6));
        let good = scene.bytes();
        for place in &places(6)[..5] {
            let mut bytes = good.clone();
            bytes[place.clone()].fill(0);
            scene.put(&bytes);
            scene.damaged("behind it can");
        }
    }

    #[test]
    fn records_of_older_epochs_do_not_count() {
        let scene = Scene::new();
        drop(scene.epoch(12));
        drop(scene.epoch(3));
        assert_eq!(scene.found(), Ok(3));
        // Not even when one says that it is of this epoch: its checksum knows better.
        let mut bytes = scene.bytes();
        let (newer, older) = (places(12)[0].start, places(12)[3].start);
        let epoch = bytes[newer + ENVELOPE_BYTES..newer + ENVELOPE_BYTES + 8].to_vec();
        let field = older + ENVELOPE_BYTES..older + ENVELOPE_BYTES + 8;
        assert_ne!(bytes[field.clone()], epoch, "records follow each other");
        bytes[field].copy_from_slice(&epoch);
        scene.put(&bytes);
        assert_eq!(scene.found(), Ok(3));
        drop(scene.epoch(0));
        assert_eq!(scene.found(), Ok(0));
    }

    #[test]
    fn one_slot_may_be_lost_and_two_are_damage() {
        let scene = Scene::new();
        drop(scene.epoch(9));
        drop(scene.epoch(4));
        let good = scene.bytes();
        let broken = |slots: &[u64], how: fn(&mut [u8])| {
            let mut bytes = good.clone();
            for slot in slots {
                let at = (slot * SLOT_STRIDE) as usize;
                how(&mut bytes[at..at + SLOT_BYTES]);
            }
            scene.put(&bytes);
        };
        for how in [
            |slot: &mut [u8]| slot.fill(0),
            |slot: &mut [u8]| {
                slot[9] ^= 4;
            },
        ] {
            for slot in [0, 1] {
                broken(&[slot], how);
                assert_eq!(scene.found(), Ok(4), "without slot {slot}");
                drop(scene.epoch(2));
                assert_eq!(
                    scene.found(),
                    Ok(2),
                    "it goes on, and the slot is whole again"
                );
            }
            broken(&[0, 1], how);
            scene.damaged("no slot can be read");
        }
    }

    #[test]
    fn the_newer_slot_counts_while_the_other_one_is_not_written_yet() {
        let scene = Scene::new();
        for records in 1..=4 {
            let before = scene.bytes();
            let slot = scene.epoch(records).slot();
            let mut bytes = scene.bytes();
            let at = (slot + 1) % SLOTS * SLOT_STRIDE as usize;
            bytes[at..at + SLOT_BYTES].copy_from_slice(&before[at..at + SLOT_BYTES]);
            scene.put(&bytes);
            assert_eq!(scene.found(), Ok(records));
            let (mut journal, _) = Journal::open(&scene.path, SEED).expect("opens");
            assert_eq!(journal.slot(), slot);
            journal.begin_epoch().expect("begins");
            assert_ne!(
                journal.slot(),
                slot,
                "the only good one is not written first"
            );
        }
    }

    #[test]
    fn slots_that_went_back_to_an_older_epoch_are_damage() {
        let scene = Scene::new();
        drop(scene.epoch(5));
        let before = scene.bytes();
        drop(scene.epoch(1));
        let mut bytes = scene.bytes();
        let head = ..RECORDS_AT as usize;
        bytes[head].copy_from_slice(&before[head]);
        scene.put(&bytes);
        scene.damaged("holds a record of epoch");
    }

    #[test]
    fn a_journal_that_is_missing_short_or_of_another_folder_is_damage() {
        let scene = Scene::new();
        drop(scene.epoch(4));
        let good = scene.bytes();
        for bytes in [0, 1, 511, 8192, 9000, good.len() - 512, good.len() - 1] {
            scene.put(&good[..bytes]);
            scene.damaged(if bytes <= 8192 {
                "cut short"
            } else {
                "made with"
            });
        }
        fs::remove_file(&scene.path).expect("removes");
        scene.damaged("missing");
        create(&scene.path, Seed(7), BYTES).expect("creates");
        scene.damaged("no slot can be read");
        // Its records alone are no better.
        drop(Journal::open(&scene.path, Seed(7)).map(|(mut journal, _)| {
            journal.begin_epoch().expect("begins");
            journal.append(&batch(0)).expect("appends");
        }));
        let mut mixed = scene.bytes();
        mixed[..RECORDS_AT as usize].copy_from_slice(&good[..RECORDS_AT as usize]);
        scene.put(&mixed);
        assert_eq!(scene.found(), Ok(0));
    }

    #[test]
    fn a_journal_is_full_until_its_epoch_begins_and_when_its_sectors_are_used() {
        let scene = Scene::new();
        drop(scene.epoch(2));
        let (mut journal, batches) = Journal::open(&scene.path, SEED).expect("opens");
        assert_eq!(batches.len(), 2);
        assert!(!journal.fits(&batch(0)), "what was found comes first");
        journal.begin_epoch().expect("begins");
        let mut records = 0;
        while journal.fits(&batch(records)) {
            journal.append(&batch(records)).expect("appends");
            records += 1;
        }
        drop(journal);
        assert_eq!(scene.bytes().len() as u64, BYTES, "it never grows");
        assert_eq!(scene.found(), Ok(records));
    }
}
