//! What was acknowledged is in the journal, and is in the log again after a crash, whatever sled knew of it.

mod common;

use std::fs;
use std::path::Path;

use billing_store::{Disk, StoreError, create_with_journal};
use bytes::Bytes;
use common::*;

/// Where records begin, and where a record's own epoch and length lie in it.
const RECORDS_AT: usize = 8192;
const SECTOR: usize = 512;
const EPOCH: std::ops::Range<usize> = 6..14;
const LENGTH: std::ops::Range<usize> = 22..26;
const HEAD_BYTES: usize = 26;

/// The records of the newest epoch, as they lie there.
fn records(journal: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut records: Vec<std::ops::Range<usize>> = Vec::new();
    let mut at = RECORDS_AT;
    while at + HEAD_BYTES <= journal.len() {
        let head = &journal[at..at + HEAD_BYTES];
        let epoch = &journal[RECORDS_AT..RECORDS_AT + HEAD_BYTES][EPOCH];
        if head[5] != 12 || head[EPOCH] != *epoch {
            break;
        }
        let length = u32::from_le_bytes(head[LENGTH].try_into().expect("four"));
        let ends = at + HEAD_BYTES + length as usize;
        records.push(at..ends);
        at = ends.next_multiple_of(SECTOR);
    }
    records
}

fn journal(folder: &Path) -> Vec<u8> {
    fs::read(folder.join("journal")).expect("reads")
}

fn put(folder: &Path, file: &str, bytes: &[u8]) {
    fs::write(folder.join(file), bytes).expect("writes");
}

/// What kill -9 leaves here and now.
fn killed(device: &Device) -> Device {
    let killed = Device::sled();
    copy(&device.node(), &killed.node());
    killed
}

async fn all(disk: &Disk) -> Vec<billing_store::Entry> {
    disk.log.read(0..u64::MAX).await.expect("reads")
}

fn damaged(device: &Device, expected: &str) {
    let error = device.open().map(|_| ()).expect_err("refused");
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    let told = error.to_string();
    assert!(told.contains(expected), "{told}\nexpected: {expected}");
    assert!(told.contains("billingd join"), "says what to do: {told}");
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_crash_though_sled_was_never_told_to_write() {
    let device = Device::sled();
    let disk = device.create().expect("creates");
    let db = fs::read(device.node().join("log/db")).expect("reads");
    for index in 1..=60 {
        append(&*disk.log, entries(index..=index))
            .await
            .expect("durable");
        if index % 6 == 0 {
            let killed = killed(&device);
            assert_eq!(
                fs::read(killed.node().join("log/db")).expect("reads"),
                db,
                "an append makes sled write nothing"
            );
            let disk = killed.open().expect("a crash is no damage");
            assert_eq!(all(&disk).await, entries(1..=index));
        }
    }
    let journal = journal(&device.node());
    assert_eq!(records(&journal).len(), 60);
    let bytes = disk.log.figures().bytes;
    assert!(
        bytes >= journal.len() as u64,
        "{bytes}: it counts for what the node takes"
    );
}

#[tokio::test]
async fn a_torn_last_record_was_never_acknowledged_and_is_whole_or_absent() {
    let device = Device::sled_small();
    let disk = device.create().expect("creates");
    append(&*disk.log, entries(1..=20)).await.expect("durable");
    let before = killed(&device);
    let torn = vec![sized(21, 900), sized(22, 300)];
    append(&*disk.log, torn).await.expect("durable");
    let (without, with) = (journal(&before.node()), journal(&device.node()));
    let last = records(&with).last().cloned().expect("records");
    assert!(last.len() > 2 * SECTOR, "a few sectors");
    let last_kept = |bytes: &[u8]| {
        // Its acknowledgement never came, so that `high` says nothing of it, and sled was not told.
        let crashed = killed(&before);
        put(&crashed.node(), "journal", bytes);
        let state = crashed.open().expect("a crash is no damage").log.state();
        state.expect("state").last
    };
    for cut in last
        .clone()
        .step_by(61)
        .chain([last.start + 1, last.end - 1])
    {
        let mut bytes = with.clone();
        bytes[cut..].copy_from_slice(&without[cut..]);
        assert_eq!(last_kept(&bytes), Some(20), "cut at {cut} of {last:?}");
    }
    assert_eq!(last_kept(&with), Some(22), "whole");
    // Had it been acknowledged, and the `high` file had said so, as it does within moments and with each vote, its loss would be
    // damage.
    let vote = disk.log.save_vote(Bytes::from_static(b"vote"));
    vote.await.expect("saves");
    let crashed = killed(&device);
    put(&crashed.node(), "journal", &without);
    damaged(&crashed, "durable up to entry 22");
}

#[tokio::test]
async fn a_damaged_record_with_good_ones_behind_it_is_damage() {
    let device = Device::sled();
    let disk = device.create().expect("creates");
    for index in 1..=12 {
        append(&*disk.log, vec![sized(index, 700)])
            .await
            .expect("durable");
    }
    let good = journal(&device.node());
    for record in &records(&good)[..11] {
        for at in [
            record.start,
            record.start + 9,
            record.start + 24,
            record.end - 1,
        ] {
            let crashed = killed(&device);
            flip_bit(&crashed.node().join("journal"), at as u64, 0x20);
            damaged(&crashed, "cannot be read, but record");
            damaged(&crashed, "cannot be read, but record"); // And so it stays.
        }
    }
    // The last one alone looks torn; that it was acknowledged is what `high` says.
    let crashed = killed(&device);
    let last = records(&good).pop().expect("records");
    flip_bit(
        &crashed.node().join("journal"),
        last.start as u64 + 40,
        0x20,
    );
    damaged(&crashed, "durable up to entry 12");
}

#[tokio::test]
async fn one_slot_of_the_journal_may_rot_and_two_are_damage() {
    let device = Device::sled();
    let disk = device.create().expect("creates");
    append(&*disk.log, entries(1..=9)).await.expect("durable");
    let whole = journal(&device.node());
    for broken in [&[0][..], &[1], &[0, 1]] {
        for zeroed in [false, true] {
            let crashed = killed(&device);
            let mut bytes = whole.clone();
            for slot in broken {
                let slot = &mut bytes[slot * 4096..slot * 4096 + 512];
                if zeroed {
                    slot.fill(0);
                } else {
                    slot[12] ^= 1;
                }
            }
            put(&crashed.node(), "journal", &bytes);
            if broken.len() == 2 {
                damaged(&crashed, "no slot can be read");
                continue;
            }
            let disk = crashed.open().expect("the other slot counts");
            assert_eq!(all(&disk).await, entries(1..=9));
            append(&*disk.log, entries(10..=10)).await.expect("durable");
            drop(disk);
            let disk = crashed.open().expect("opens");
            assert_eq!(all(&disk).await, entries(1..=10));
        }
    }
}

#[tokio::test]
async fn records_of_an_older_epoch_never_come_back() {
    let device = Device::sled();
    let disk = device.create().expect("creates");
    for index in 1..=40 {
        append(&*disk.log, vec![sized(index, 600)])
            .await
            .expect("durable");
    }
    let disk = device.reopen(disk).await;
    // The older ones lie behind these.
    disk.log.truncate_after(Some(5)).await.expect("truncates");
    append(&*disk.log, vec![salted(6, 600, 1)])
        .await
        .expect("durable");
    let crashed = killed(&device);
    let (bytes, few) = (journal(&crashed.node()), records(&journal(&crashed.node())));
    let behind = few.last().expect("records").end.next_multiple_of(SECTOR);
    assert!(
        (behind..bytes.len())
            .step_by(SECTOR)
            .any(|at| bytes[at + 5] == 12),
        "there are some"
    );
    let disk = crashed.open().expect("opens");
    let mut expected: Vec<_> = (1..=5).map(|index| sized(index, 600)).collect();
    expected.push(salted(6, 600, 1));
    assert_eq!(all(&disk).await, expected);
}

#[tokio::test]
async fn a_replay_over_a_sled_that_knows_all_of_it_or_none_comes_to_the_same() {
    let device = Device::sled();
    let disk = device.create().expect("creates");
    let unknowing = fs::read(device.node().join("log/db")).expect("reads");
    append(&*disk.log, entries(1..=30)).await.expect("durable");
    append(&*disk.log, entries(31..=60)).await.expect("durable");
    disk.log.truncate_after(Some(40)).await.expect("truncates");
    append(&*disk.log, vec![salted(41, 3000, 2)])
        .await
        .expect("durable");
    disk.log
        .purge_through(35, Bytes::from_static(b"marker"))
        .await
        .expect("purges");
    disk.log
        .save_vote(Bytes::from_static(b"vote"))
        .await
        .expect("saves");
    disk.log.truncate_after(Some(40)).await.expect("truncates");
    append(&*disk.log, vec![salted(41, 50, 3)])
        .await
        .expect("durable");
    let (state, expected) = (disk.log.state().expect("state"), all(&disk).await);
    // Dropping it without closing makes sled write, and leaves the journal as it is.
    let before = journal(&device.node());
    drop(disk);
    assert_eq!(journal(&device.node()), before, "no checkpoint on a drop");
    assert!(records(&before).len() >= 8, "puts and removes");
    let knowing = fs::read(device.node().join("log/db")).expect("reads");
    assert_ne!(knowing, unknowing);
    for db in [&knowing, &unknowing] {
        let crashed = killed(&device);
        put(&crashed.node(), "log/db", db);
        let disk = crashed.open().expect("opens");
        let found = disk.log.state().expect("state");
        assert_eq!(
            (found.last, found.purged, found.vote),
            (state.last, state.purged.clone(), state.vote.clone())
        );
        assert_eq!(all(&disk).await, expected);
    }
}

#[tokio::test]
async fn a_crash_right_after_a_recovery_loses_nothing() {
    let device = Device::sled();
    let disk = device.create().expect("creates");
    append(&*disk.log, entries(1..=30)).await.expect("durable");
    let mut crashed = killed(&device);
    for life in 1..=3 {
        let disk = crashed.open().expect("a crash is no damage");
        let next = killed(&crashed);
        assert_eq!(all(&disk).await, entries(1..=30), "life {life}");
        crashed = next;
    }
}

#[tokio::test]
async fn the_journal_of_another_folder_is_damage() {
    let device = Device::sled();
    let disk = device.create().expect("creates");
    append(&*disk.log, entries(1..=9)).await.expect("durable");
    drop(disk);
    let folder = tempfile::tempdir().expect("a folder");
    for stranger in [
        billing_store::Identity {
            node: NODE + 1,
            ..identity()
        },
        billing_store::Identity {
            cluster: Bytes::from_static(b"cluster-b"),
            ..identity()
        },
    ] {
        let path = folder.path().join(stranger.node.to_string());
        drop(create_with_journal(&path, &stranger, 32 * 1024).expect("creates"));
        let mixed = killed(&device);
        put(&mixed.node(), "journal", &journal(&path));
        damaged(&mixed, "no slot can be read");
    }
    device.open().expect("its own is good");
}

#[tokio::test]
async fn a_crash_at_any_append_of_a_journal_that_is_full_all_the_time_loses_nothing() {
    let device = Device::sled_small();
    let disk = device.create().expect("creates");
    let mut epochs = std::collections::BTreeSet::new();
    for index in 1..=150 {
        // Now and then one that is larger than the journal.
        let bytes = if index % 31 == 0 {
            90_000
        } else {
            900 * (index as usize % 4)
        };
        append(&*disk.log, vec![sized(index, bytes)])
            .await
            .expect("durable");
        epochs.insert(journal(&device.node())[RECORDS_AT..][EPOCH].to_vec());
        if index % 5 == 0 || index % 31 < 2 {
            let disk = killed(&device).open().expect("a crash is no damage");
            let last = disk.log.state().expect("state").last;
            assert_eq!(last, Some(index));
        }
    }
    assert!(epochs.len() > 4, "{} epochs", epochs.len());
    let disk = device.reopen(disk).await;
    assert_eq!(all(&disk).await.len(), 150);
    assert!(
        records(&journal(&device.node())).is_empty() || {
            let crashed = killed(&device);
            let mut bytes = journal(&crashed.node());
            bytes[RECORDS_AT..].fill(0);
            put(&crashed.node(), "journal", &bytes);
            crashed
                .open()
                .expect("opens")
                .log
                .state()
                .expect("state")
                .last
                == Some(150)
        },
        "after an orderly close nothing is in the journal alone"
    );
}
