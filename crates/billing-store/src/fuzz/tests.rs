//! Real records gone wrong, and generated ones that must come back: what `fuzz.rs` reads is tried here at every `cargo test`.

use billing_fuzz::proptest::collection::{btree_map, vec};
use billing_fuzz::proptest::option;
use billing_fuzz::proptest::prelude::*;
use billing_fuzz::{Decoder, Memory, holds};

use crate::codec::{KEY_COMMITTED, KEY_PURGED, KIND_COMMITTED, KIND_PURGED, KIND_VOTE};
use crate::codec::{Link, PackBuilder, PackRef, log_key};
use crate::high::High;
use crate::{Entry, Purged};

use super::*;

/// Copies of the input, and errors in words.
const MEMORY: Memory = Memory {
    fixed: 16 * 1024,
    per_byte: 64,
};

/// An entry of at least so many bytes lies in parts here, so that a short log has some.
const LARGE_BYTES: usize = 48;
const PART_BYTES: usize = 60;

/// The records of a log, chained and packed as the writer does it.
struct Written {
    records: Vec<(Vec<u8>, Vec<u8>)>,
    high: [Vec<u8>; SLOTS],
}

impl Written {
    /// Entries from `first` on, `per_pack` of them in a record at most; `purged`: the first so many are.
    fn new(first: u64, entries: &[Vec<u8>], per_pack: usize, purged: usize) -> Written {
        let mut link = match first {
            0 => SEED.origin(),
            _ => SEED.restart(first - 1, b"installed"),
        };
        let floor = first + purged as u64;
        let mut at_purge = first.checked_sub(1).map(|index| (index, link));
        let mut records = Vec::new();
        let mut building: Option<PackBuilder> = None;
        let mut in_pack = 0;
        let mut keep = |pack: PackRef, lie: Vec<(Vec<u8>, Vec<u8>)>| {
            // What is purged to its end is removed.
            if pack.last >= floor {
                records.extend(lie);
            }
        };
        let mut finish = |builder: Option<PackBuilder>| {
            if let Some(full) = builder {
                let (pack, record) = full.finish(SEED);
                keep(pack, vec![(log_key(pack.first, 0), record)]);
            }
        };
        let mut large = Vec::new();
        for (bytes, index) in entries.iter().zip(first..) {
            let entry = Entry {
                index,
                bytes: bytes.clone().into(),
            };
            let before = link;
            link = link.then(index, &entry.bytes);
            if index < floor {
                at_purge = Some((index, link));
            }
            if bytes.len() >= LARGE_BYTES {
                finish(building.take());
                large.push(codec::split_by(PART_BYTES, SEED, before, &entry));
                continue;
            }
            if in_pack >= per_pack {
                finish(building.take());
                in_pack = 0;
            }
            building
                .get_or_insert_with(|| PackBuilder::new(index, before))
                .push(&entry);
            in_pack += 1;
        }
        finish(building);
        for (pack, parts) in large {
            keep(pack, parts);
        }
        let mut seal = |key: &[u8], kind, body: &[u8]| {
            records.push((key.to_vec(), seal_body(SEED, key, kind, body)));
        };
        if let Some((index, link)) = at_purge {
            let marker = Bytes::from_static(b"installed");
            let body = load::purged_body(&Purged { index, marker }, link);
            seal(KEY_PURGED, KIND_PURGED, &body);
        }
        seal(KEY_VOTE, KIND_VOTE, &load::vote_body(2, VOTE));
        seal(KEY_COMMITTED, KIND_COMMITTED, b"up to here");
        let last = (first + entries.len() as u64).checked_sub(1);
        let high = |sequence, vote_sequence| High {
            sequence,
            reach: last.map(|last| (last, link)),
            vote_sequence,
            vote: (vote_sequence == 2).then(|| Bytes::from_static(VOTE)),
        };
        Written {
            records,
            high: [high(4, 1).encode(SEED, 0), high(5, 2).encode(SEED, 1)],
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let used = |slot: &[u8]| {
            let zeros = slot.iter().rev().take_while(|byte| **byte == 0).count();
            slot[..slot.len() - zeros].to_vec()
        };
        let high = HIGH.iter().zip(&self.high);
        let high = high.map(|(key, slot)| record(key, &used(slot)));
        let records = self.records.iter().map(|(key, value)| record(key, value));
        high.chain(records).collect::<Vec<_>>().concat()
    }
}

const VOTE: &[u8] = b"for node 3";

fn logs() -> Vec<Vec<u8>> {
    let some: Vec<Vec<u8>> = (0..9_u8).map(|n| vec![n; usize::from(n) * 3]).collect();
    let large: Vec<Vec<u8>> = (0..6_u8).map(|n| vec![n; usize::from(n) * 17]).collect();
    vec![
        Written::new(1, &[], 1, 0).bytes(),
        Written::new(0, &some, 4, 0).bytes(),
        Written::new(1, &some, 3, 2).bytes(),
        Written::new(1_000, &large, 2, 2).bytes(),
        Written::new(0, &large[4..5], 2, 0).bytes(),
    ]
}

#[test]
fn an_envelope_is_the_very_body_or_refused() {
    let seeds = [b"".as_slice(), b"a vote"].map(|body| seal_body(SEED, KEY_VOTE, KIND_VOTE, body));
    let decoder = |name| Decoder {
        name,
        seeds: &seeds,
        words: &[],
        memory: MEMORY,
    };
    decoder("store_envelope").check_sealed(|bytes| envelope(bytes, Seal::AsItCame));
    decoder("store_envelope_right").check(|bytes| drop(envelope(bytes, Seal::Right)));
}

#[test]
fn a_log_is_read_whole_or_refused() {
    let seeds = logs();
    let decoder = |name| Decoder {
        name,
        seeds: &seeds,
        words: &[b"l", b"v", b"p", b"c", b"high 0", b"\x06\0\x02"],
        memory: MEMORY,
    };
    let whole = log(&seeds[1], Seal::AsItCame).expect("a real log");
    assert_eq!(whole.entries.len(), 9);
    // `high` of the shortest log allows the beginning of a longer one; an entry that was never written, nothing allows.
    let known: Vec<Log> = seeds
        .iter()
        .map(|seed| log(seed, Seal::AsItCame).expect("a real log"))
        .collect();
    decoder("store_log").check(|bytes| {
        if let Some(found) = log(bytes, Seal::AsItCame) {
            let beginning =
                |log: &Log| log.purged == found.purged && log.entries.starts_with(&found.entries);
            assert!(
                known.iter().any(beginning) && found.vote.as_deref() == Some(VOTE),
                "silently different: {found:?}"
            );
        }
    });
    let decoder = Decoder {
        seeds: &[seeds.as_slice(), &edges()].concat(),
        ..decoder("store_log_right")
    };
    decoder.check(|bytes| drop(log(bytes, Seal::Right)));
}

/// Numbers that no writer writes, under good checksums: the last index of all, a vote that none can follow, an entry in no parts.
fn edges() -> Vec<Vec<u8>> {
    let sealed = |key: &[u8], kind, body: &[u8]| record(key, &seal_body(SEED, key, kind, body));
    let last = Purged {
        index: u64::MAX,
        marker: Bytes::from_static(b"installed"),
    };
    let purged = load::purged_body(&last, SEED.restart(u64::MAX, b"installed"));
    let entry = |index| Entry {
        index,
        bytes: vec![7; LARGE_BYTES].into(),
    };
    let part = |index, parts: u32| {
        let (_, lie) = codec::split_by(PART_BYTES, SEED, SEED.origin(), &entry(index));
        let mut value = lie[0].1.clone();
        value[26..30].copy_from_slice(&parts.to_le_bytes());
        record(&lie[0].0, &value)
    };
    let none = High {
        sequence: 1,
        reach: None,
        vote_sequence: 0,
        vote: None,
    };
    let none = record(HIGH[0], &none.encode(SEED, 0));
    let endless = High {
        sequence: u64::MAX,
        reach: None,
        vote_sequence: u64::MAX,
        vote: None,
    };
    vec![
        [none.clone(), sealed(KEY_PURGED, KIND_PURGED, &purged)].concat(),
        [
            none.clone(),
            sealed(KEY_VOTE, KIND_VOTE, &load::vote_body(u64::MAX, VOTE)),
        ]
        .concat(),
        [none.clone(), part(3, 0)].concat(),
        [none, part(u64::MAX, 1)].concat(),
        record(HIGH[0], &endless.encode(SEED, 0)),
    ]
}

#[test]
fn every_log_is_read_back() {
    let entries = vec(vec(any::<u8>(), 0..90), 1..24);
    let shape = (entries, 1_usize..6, 0_usize..24, 0_u64..3);
    holds("store_logs", shape, |(entries, per_pack, purged, first)| {
        let purged = purged.min(entries.len());
        let bytes = Written::new(first, &entries, per_pack, purged).bytes();
        let log = log(&bytes, Seal::AsItCame).expect("what was written is read");
        let left: Vec<Vec<u8>> = log
            .entries
            .iter()
            .map(|(_, bytes)| bytes.to_vec())
            .collect();
        assert_eq!(left, entries[purged..]);
        assert_eq!(log.vote.as_deref(), Some(VOTE));
    });
}

#[test]
fn a_high_file_says_one_of_its_slots_or_nothing() {
    let seeds: Vec<Vec<u8>> = [
        Written::new(1, &[], 1, 0),
        Written::new(0, &[vec![1]], 1, 0),
    ]
    .iter()
    .map(|log| log.high.concat())
    .collect();
    let decoder = |name| Decoder {
        name,
        seeds: &seeds,
        words: &[],
        memory: MEMORY,
    };
    decoder("store_high").check(|bytes| {
        if let Some((found, slot)) = high(bytes, Seal::AsItCame) {
            let (at, seal) = (slot * SLOT_BYTES, found.encode(SEED, slot));
            let known = seeds.iter().any(|seed| seed[at..][..SLOT_BYTES] == seal);
            assert!(known, "silently different: {found:?}");
        }
    });
    decoder("store_high_right").check(|bytes| drop(high(bytes, Seal::Right)));
    let vote = option::of(vec(any::<u8>(), 0..crate::VOTE_BYTES_MAX).prop_map(Bytes::from));
    let reach = option::of((0..u64::MAX, any::<u32>().prop_map(Link)));
    let values = (0..u64::MAX, reach, 0..u64::MAX, vote, 0..SLOTS);
    holds(
        "store_highs",
        values,
        |(sequence, reach, vote_sequence, vote, slot)| {
            let written = High {
                sequence,
                reach,
                vote_sequence,
                vote,
            };
            let mut slots = [vec![0; SLOT_BYTES], vec![0; SLOT_BYTES]];
            slots[slot] = written.encode(SEED, slot);
            let found = high::choose(SEED, &slots, PLACE).expect("what was written is read");
            assert_eq!(found, (written, slot));
        },
    );
}

fn batches() -> Vec<Batch> {
    let batch = |n: u8| {
        Batch::from([
            (vec![b'l', n], Some(vec![n; 40 * usize::from(n)])),
            (vec![b'p'], None),
            (vec![], Some(vec![])),
        ])
    };
    (0..5).map(batch).collect()
}

fn section(at: usize, bytes: &[u8]) -> Vec<u8> {
    let head = (at / 64) as u32 | ((bytes.len() as u32) << 16);
    [&head.to_le_bytes(), bytes].concat()
}

/// A journal of `epoch`, behind the records of the one before.
fn a_journal(epoch: u64, batches: &[Batch]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let bytes_of_file = JOURNAL_BYTES as u64;
    for slot in 0..SLOTS {
        let record = journal::encode_slot(SEED, slot, epoch, bytes_of_file);
        bytes.extend(section(slot * 4_096, &record));
    }
    for (epoch, batches) in [(epoch - 1, &self::batches()[..]), (epoch, batches)] {
        let mut at = 8_192;
        for (batch, sequence) in batches.iter().zip(0..) {
            let record = journal::encode(SEED, epoch, sequence, batch);
            bytes.extend(section(at, &record));
            at += record.len().next_multiple_of(512);
        }
    }
    bytes
}

#[test]
fn a_journal_is_replayed_up_to_what_a_crash_tore_or_refused() {
    let whole = batches();
    let seeds = [
        a_journal(1, &[]),
        a_journal(2, &whole[..2]),
        a_journal(7, &whole),
    ];
    let decoder = |name| Decoder {
        name,
        seeds: &seeds,
        words: &[],
        memory: Memory {
            fixed: 64 * 1024,
            per_byte: 64,
        },
    };
    assert_eq!(journal(&seeds[2], Seal::AsItCame), Some((7, whole.clone())));
    decoder("store_journal").check(|bytes| {
        if let Some((epoch, found)) = journal(bytes, Seal::AsItCame) {
            assert!(
                epoch <= 7 && whole.starts_with(&found),
                "{epoch}: {found:?}"
            );
        }
    });
    decoder("store_journal_right").check(|bytes| drop(journal(bytes, Seal::Right)));
    let bodies: Vec<Vec<u8>> = whole
        .iter()
        .map(|batch| journal::encode(SEED, 1, 0, batch)[journal::RECORD_HEAD_BYTES..].to_vec())
        .collect();
    let decoder = Decoder {
        name: "store_journal_batch",
        seeds: &bodies,
        words: &[],
        memory: MEMORY,
    };
    decoder.check(journal_batch);
    let key = vec(any::<u8>(), 0..13);
    let value = option::of(vec(any::<u8>(), 0..200));
    holds(
        "store_journal_batches",
        btree_map(key, value, 0..20),
        |batch| {
            let record = journal::encode(SEED, 1, 0, &batch);
            let read = journal::decode_batch(&record[journal::RECORD_HEAD_BYTES..]);
            assert_eq!(read, Some(batch));
        },
    );
}

fn an_identity(cluster: &[u8], node: u64) -> Identity {
    Identity {
        cluster: Bytes::copy_from_slice(cluster),
        node,
        created_unix_ms: 1_795_366_800_000,
    }
}

#[test]
fn an_identity_is_the_one_that_was_written_or_refused() {
    let seeds = [
        folder::encode(&an_identity(b"demo", 3)),
        folder::encode(&an_identity(&[b'x'; 256], u64::MAX)),
    ];
    let decoder = |name| Decoder {
        name,
        seeds: &seeds,
        words: &[b"BILLINGD", b"\x02\0\0\0", b"\x03\0\0\0"],
        memory: MEMORY,
    };
    decoder("store_identity").check_sealed(|bytes| identity(bytes, Seal::AsItCame));
    decoder("store_identity_right").check(|bytes| drop(identity(bytes, Seal::Right)));
    let values = (vec(any::<u8>(), 1..crate::CLUSTER_BYTES_MAX), any::<u64>());
    holds("store_identities", values, |(cluster, node)| {
        let written = an_identity(&cluster, node);
        let read = folder::decode(Path::new(PLACE), &folder::encode(&written));
        assert_eq!(read.expect("what was written is read").0, written);
    });
}

/// A snapshot file as the store writes it.
fn a_snapshot(meta: &[u8], chunks: &[Vec<u8>]) -> Vec<u8> {
    snapshots::write_whole(SEED, SNAPSHOT, meta, chunks)
}

#[test]
fn a_snapshot_is_read_whole_or_refused() {
    let seeds = [
        a_snapshot(b"", &[]),
        a_snapshot(b"its meta", &[vec![1; 40], vec![2; 3]]),
        a_snapshot(b"another", &[vec![9; 300]]),
    ];
    let decoder = |name| Decoder {
        name,
        seeds: &seeds,
        words: &[],
        // A length of the file is believed up to the largest frame, a MiB of meta and a little.
        memory: Memory {
            fixed: 2 << 20,
            per_byte: 64,
        },
    };
    decoder("store_snapshot").check_sealed(|bytes| snapshot(bytes, Seal::AsItCame));
    decoder("store_snapshot_right").check(|bytes| drop(snapshot(bytes, Seal::Right)));
    let values = (vec(any::<u8>(), 0..64), vec(vec(any::<u8>(), 1..200), 0..6));
    holds("store_snapshots", values, |(meta, chunks)| {
        let file = a_snapshot(&meta, &chunks);
        let (read, contents) = snapshot(&file, Seal::AsItCame).expect("what was written is read");
        assert_eq!((read.to_vec(), contents), (meta, chunks.concat()));
    });
}

#[test]
fn a_snapshots_name_has_one_spelling() {
    let seeds = [snapshots::file_name(SNAPSHOT).into_bytes()];
    let decoder = Decoder {
        name: "store_snapshot_name",
        seeds: &seeds,
        words: &[b"-", b".snap", b"+", b"18446744073709551615"],
        memory: MEMORY,
    };
    decoder.check(snapshot_name);
}
