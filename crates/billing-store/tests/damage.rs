//! A disk that lost or changed something acknowledged is refused, whatever it was; what was never acknowledged may be missing.

mod common;

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use billing_store::sim::{Crash, Fault, Place, SimDisk};
use billing_store::{Disk, Identity, StoreError};
use bytes::Bytes;
use common::*;
use rand::{RngExt, SeedableRng};

fn sim(device: &Device) -> &SimDisk {
    match device {
        Device::Sim(disk) => disk,
        Device::Sled(_) | Device::SledSmall(_) => panic!("a test of the simulated disk"),
    }
}

/// A log of 30 records with a purge point and a vote, durable, its process gone.
async fn used() -> Device {
    let device = Device::sim();
    let disk = device.create().expect("creates");
    for first in 0..30 {
        append(&*disk.log, entries(first * 10 + 1..=first * 10 + 10))
            .await
            .expect("durable");
        disk.log
            .save_vote(Bytes::from(format!("vote {first}")))
            .await
            .expect("saves");
    }
    disk.log
        .purge_through(55, Bytes::from_static(b"marker"))
        .await
        .expect("purges");
    disk.log.close().await.expect("closes");
    device
}

fn refused(device: &Device) -> String {
    match device.open() {
        Ok(_) => panic!("opened, and must not have been"),
        Err(error @ StoreError::Damaged { .. }) => {
            let text = error.to_string();
            assert!(
                text.contains("billingd join") && text.contains("never used"),
                "says what to do: {text}"
            );
            text
        }
        Err(other) => panic!("refused for another reason: {other}"),
    }
}

#[tokio::test]
async fn every_flipped_bit_of_a_record_is_noticed() {
    let device = used().await;
    let image = sim(&device).image();
    let mut places = vec![Place::Vote, Place::Purged];
    places.extend((0..sim(&device).log_records()).step_by(6).map(Place::Log));
    for place in places {
        for bit in (0..600).step_by(7) {
            sim(&device).put_back(&image);
            assert!(sim(&device).flip(place, bit), "{place:?} is there");
            refused(&device);
        }
    }
    sim(&device).put_back(&image);
    device.open().expect("the undamaged image opens");
}

#[tokio::test]
async fn one_torn_slot_of_the_high_file_is_a_crash_and_two_are_damage() {
    let device = used().await;
    for slot in 0..2 {
        let image = sim(&device).image();
        assert!(sim(&device).flip(Place::High(slot), 100));
        device.open().expect("the other slot counts");
        assert!(sim(&device).flip(Place::High(1 - slot), 1000));
        assert!(refused(&device).contains("high file"));
        sim(&device).put_back(&image);
    }
}

#[tokio::test]
async fn a_lost_record_is_noticed_wherever_it_was() {
    let device = used().await;
    let image = sim(&device).image();
    for n in 0..sim(&device).log_records() {
        sim(&device).put_back(&image);
        assert!(sim(&device).lose_record(n));
        refused(&device);
    }
}

#[tokio::test]
async fn exchanged_records_are_noticed() {
    let device = used().await;
    assert!(sim(&device).exchange_records(3, 9));
    refused(&device);
}

#[tokio::test]
async fn the_log_of_another_folder_is_noticed() {
    let device = used().await;
    let other = Device::sim();
    let identity = Identity {
        created_unix_ms: 5,
        ..identity()
    };
    let disk = sim(&other).create(&identity).expect("creates");
    append(&*disk.log, entries(1..=500)).await.expect("durable");
    disk.log.close().await.expect("closes");
    sim(&device).put_back_log(&sim(&other).image());
    refused(&device);
}

#[tokio::test]
async fn a_log_that_went_back_is_noticed_even_when_it_is_longer() {
    let device = Device::sim();
    let disk = device.create().expect("creates");
    append(&*disk.log, entries(1..=100)).await.expect("durable");
    disk.log
        .save_vote(Bytes::from_static(b"first"))
        .await
        .expect("saves");
    let before = sim(&device).image();
    // Cut, and written anew: shorter than it was, and other entries.
    disk.log.truncate_after(Some(50)).await.expect("truncates");
    append(
        &*disk.log,
        (51..=60).map(|index| salted(index, 20, 1)).collect(),
    )
    .await
    .expect("durable");
    disk.log.close().await.expect("closes");
    sim(&device).put_back_log(&before);
    assert!(refused(&device).contains("earlier state"));
}

#[tokio::test]
async fn an_older_vote_is_noticed() {
    let device = Device::sim();
    let disk = device.create().expect("creates");
    append(&*disk.log, entries(1..=3)).await.expect("durable");
    disk.log
        .save_vote(Bytes::from_static(b"first"))
        .await
        .expect("saves");
    let before = sim(&device).image();
    disk.log
        .save_vote(Bytes::from_static(b"second"))
        .await
        .expect("saves");
    drop(disk);
    sim(&device).put_back_log(&before);
    assert!(refused(&device).contains("vote"));
}

#[tokio::test]
async fn an_acknowledged_append_survives_a_crash_and_nothing_is_left_half_done() {
    for kept in 0..4 {
        for tear_high in [false, true] {
            let device = Device::sim();
            let disk = device.create().expect("creates");
            append(&*disk.log, entries(1..=20)).await.expect("durable");
            disk.log.truncate_after(Some(15)).await.expect("truncates");
            // Not awaited: may survive or not.
            let pending = submit(&*disk.log, entries(16..=30)).await.expect("appends");
            tokio::task::yield_now().await;
            let unsynced = sim(&device).unsynced();
            sim(&device).crash(Crash {
                batches_kept: kept,
                tear_high,
            });
            drop((disk, pending));
            let disk = device.open().expect("a crash is no damage");
            let last = disk.log.state().expect("state").last.expect("not empty");
            assert_eq!(last, if kept.min(unsynced) > 0 { 30 } else { 15 });
            assert_eq!(
                disk.log.read(0..100).await.expect("reads"),
                entries(1..=last)
            );
        }
    }
}

#[tokio::test]
async fn a_crash_at_any_moment_loses_nothing_acknowledged_and_is_no_damage() {
    for seed in 0..60 {
        println!("seed {seed}");
        let mut random = rand::rngs::SmallRng::seed_from_u64(seed);
        let device = Device::sim();
        let journal = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&journal);
        let write: Write = Arc::new(move |line: &str| {
            lines
                .lock()
                .expect("no panic holds it")
                .push(line.to_owned())
        });
        let mut disk = device.create().expect("creates");
        for life in 0..5 {
            let lives_for = Duration::from_millis(random.random_range(0..25));
            let ended =
                tokio::time::timeout(lives_for, everything(&disk, Arc::clone(&write), seed)).await;
            ended.expect_err("it goes on until the crash");
            let kept = random.random_range(0..=sim(&device).unsynced());
            sim(&device).crash(Crash {
                batches_kept: kept,
                tear_high: random.random_range(0..2) == 0,
            });
            write("killed");
            disk = device.open().expect("a crash is no damage");
            let promised = Promised::read(&journal.lock().expect("no panic holds it"));
            promised
                .check(&disk, &format!("seed {seed} life {life}"))
                .await;
        }
    }
}

#[tokio::test]
async fn after_the_first_failure_nothing_is_acknowledged_and_the_process_is_told() {
    for fault in [Fault::Broken, Fault::Full] {
        let device = Device::sim();
        let disk = device.create().expect("creates");
        append(&*disk.log, entries(1..=5)).await.expect("durable");
        let mut failure = disk.log.failure();
        sim(&device).set_fault(fault);
        append(&*disk.log, entries(6..=6))
            .await
            .expect_err("not acknowledged");
        failure.wait_for(Option::is_some).await.expect("told");
        sim(&device).set_fault(Fault::None);
        let syncs = sim(&device).syncs();
        for _ in 0..3 {
            let refused = append(&*disk.log, entries(7..=7)).await;
            assert!(
                matches!(refused, Err(StoreError::Failed { .. })),
                "{refused:?}"
            );
            assert!(disk.log.save_vote(Bytes::from_static(b"v")).await.is_err());
            assert!(disk.log.read(1..3).await.is_err());
        }
        assert_eq!(sim(&device).syncs(), syncs, "no sync is tried again");
        let text = failure.borrow().clone().expect("told").to_string();
        assert_eq!(
            text.contains("no space left"),
            fault == Fault::Full,
            "{text}"
        );
        drop(disk);
        let disk = device.open().expect("opens");
        assert_eq!(disk.log.state().expect("state").last, Some(5));
    }
}

async fn snapshot(disk: &Disk, index: u64, bytes: usize) {
    let mut writer = disk
        .snapshots
        .create(index, Bytes::from_static(b"meta"))
        .await
        .expect("begins");
    writer
        .write(Bytes::from(vec![index as u8; bytes]))
        .await
        .expect("writes");
    writer.finish(None).await.expect("finishes");
}

#[tokio::test]
async fn every_flipped_bit_of_a_snapshot_is_noticed_and_the_older_one_stays() {
    let device = Device::sim();
    let disk = device.create().expect("creates");
    snapshot(&disk, 10, 100).await;
    snapshot(&disk, 20, 150_000).await;
    drop(disk);
    let image = sim(&device).image();
    let size = 150_000 * 8;
    let bits = (0..500)
        .chain((500..size).step_by(40_009))
        .chain(size + 100..size + 900);
    for bit in bits {
        sim(&device).put_back(&image);
        assert!(sim(&device).flip(Place::Snapshot(1), bit));
        let disk = device
            .open()
            .expect("a damaged snapshot is no damaged node");
        if let Some(newest) = disk
            .snapshots
            .list()
            .into_iter()
            .find(|info| info.id.index == 20)
        {
            let outcome = disk.snapshots.verify(newest.id).await;
            assert!(
                matches!(outcome, Err(StoreError::SnapshotDamaged { .. })),
                "bit {bit}: {outcome:?}"
            );
        }
        let [damaged] = &disk.snapshots.damaged()[..] else {
            panic!("bit {bit}: reported once")
        };
        assert!(
            damaged.to_string().contains("fetch the snapshot again"),
            "{damaged}"
        );
        let latest = disk.snapshots.latest().expect("the older one stays");
        assert_eq!(latest.id.index, 10);
        disk.snapshots.verify(latest.id).await.expect("is whole");
    }
}

#[tokio::test]
async fn an_unsynced_snapshot_is_gone_after_a_crash() {
    let device = Device::sim();
    let disk = device.create().expect("creates");
    snapshot(&disk, 10, 1000).await;
    let mut writer = disk
        .snapshots
        .create(20, Bytes::new())
        .await
        .expect("begins");
    writer
        .write(Bytes::from(vec![1; 100_000]))
        .await
        .expect("writes");
    sim(&device).crash(Crash::default());
    let disk = device.open().expect("opens");
    assert_eq!(disk.snapshots.list().len(), 1);
}

// From here on the real disk.

/// How a life ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// Everything is in sled, and the journal is empty.
    Closed,
    /// As after kill -9: copied while the process still runs, its newest entries in the journal only.
    Killed,
}

/// So many appends, one by one, with a vote before.
async fn lived(running: &Device, appends: u64, ended: Ended) -> Device {
    let disk = running.create().expect("creates");
    disk.log
        .save_vote(Bytes::from_static(b"vote"))
        .await
        .expect("saves");
    for index in 1..=appends {
        append(&*disk.log, vec![sized(index, 200)])
            .await
            .expect("durable");
    }
    match ended {
        Ended::Closed => {
            disk.log.close().await.expect("closes");
            drop(disk);
        }
        // The `high` file is synced along with a vote; with appends only now and then.
        Ended::Killed => {
            let vote = disk.log.save_vote(Bytes::from_static(b"later vote"));
            vote.await.expect("saves");
        }
    }
    let left = Device::sled();
    copy(&running.node(), &left.node());
    left
}

/// Flips bits all over sled's file, and counts how often the log was found shorter, damaged otherwise, or whole.
async fn flipped_everywhere(device: &Device, appends: u64) -> (usize, usize, usize) {
    let db = device.node().join("log").join("db");
    let written = fs::read(&db).expect("reads");
    let used = written
        .iter()
        .rposition(|byte| *byte != 0)
        .expect("not empty") as u64;
    let (mut shorter, mut other, mut whole) = (0, 0, 0);
    for step in 1..40 {
        let fresh = copy_with(device, &written);
        flip_bit(&fresh.join("log").join("db"), used * step / 40, 0x10);
        match billing_store::open(&fresh, NODE, None) {
            // The bit was in bytes that newer ones have replaced: then nothing may be missing.
            Ok(disk) => {
                let read = disk.log.read(0..u64::MAX).await.expect("reads");
                assert_eq!(
                    read,
                    (1..=appends)
                        .map(|index| sized(index, 200))
                        .collect::<Vec<_>>()
                );
                whole += 1;
            }
            Err(error @ StoreError::Damaged { .. }) => {
                let text = error.to_string();
                if text.contains("but it was durable up to entry") {
                    shorter += 1
                } else {
                    other += 1
                }
            }
            Err(error) => panic!("neither opened nor damaged: {error}"),
        }
    }
    println!(
        "silently shorter, and noticed: {shorter}; damaged in other ways: {other}; in dead bytes: {whole}"
    );
    (shorter, other, whole)
}

#[tokio::test]
async fn sled_opens_a_damaged_log_shorter_and_the_high_file_notices() {
    let device = lived(&Device::sled(), 200, Ended::Closed).await;
    let (shorter, ..) = flipped_everywhere(&device, 200).await;
    assert!(shorter > 0, "the high file was what noticed");
}

#[tokio::test]
async fn damage_below_the_last_checkpoint_is_noticed_after_a_crash_too() {
    // A small journal: most of the log is in sled when the process is killed, the rest behind it in the journal.
    let device = lived(&Device::sled_small(), 200, Ended::Killed).await;
    let (shorter, other, _) = flipped_everywhere(&device, 200).await;
    assert!(
        shorter + other > 10,
        "{shorter} found shorter, {other} damaged otherwise"
    );
    // With no journal to go on from, what sled has is shorter.
    let copied = device.node().with_file_name("emptied");
    copy(&device.node(), &copied);
    let journal = copied.join("journal");
    let mut bytes = fs::read(&journal).expect("reads");
    bytes[8192..].fill(0);
    fs::write(&journal, bytes).expect("writes");
    let outcome = billing_store::open(&copied, NODE, None).map(|_| ());
    let told = outcome.expect_err("refused").to_string();
    assert!(
        told.contains("but it was durable up to entry 200"),
        "{told}"
    );
    device.open().expect("the undamaged one opens");
}

/// The folder as it was left, with a `db` of its own.
fn copy_with(device: &Device, db: &[u8]) -> PathBuf {
    let to = device.node().with_file_name("copy");
    fs::remove_dir_all(&to).ok();
    copy(&device.node(), &to);
    fs::create_dir_all(to.join("log")).expect("creates");
    fs::write(to.join("log").join("db"), db).expect("writes");
    to
}

#[tokio::test]
async fn a_shortened_file_is_noticed() {
    let killed = lived(&Device::sled(), 50, Ended::Killed).await;
    let closed = lived(&Device::sled(), 50, Ended::Closed).await;
    // What sled's file lacks is in the journal until a checkpoint, as long as it lasts.
    for (file, device) in [
        ("log/db", &closed),
        ("high", &killed),
        ("identity", &killed),
        ("journal", &killed),
        ("journal", &closed),
    ] {
        let copied = device.node().with_file_name("copy");
        for keep in [0, 1, 2] {
            fs::remove_dir_all(&copied).ok();
            copy(&device.node(), &copied);
            let path = copied.join(file);
            let bytes = fs::read(&path).expect("is there");
            // sled's file ends in space that it has not used yet.
            let length = bytes
                .iter()
                .rposition(|byte| *byte != 0)
                .map_or(0, |last| last as u64 + 1);
            fs::File::options()
                .write(true)
                .open(&path)
                .and_then(|file| file.set_len(length * keep / 3))
                .expect("shortens");
            let outcome = billing_store::open(&copied, NODE, None).map(|_| ());
            assert!(
                matches!(outcome, Err(StoreError::Damaged { .. })),
                "{file} cut to {keep}/3: {outcome:?}"
            );
        }
        fs::remove_dir_all(&copied).ok();
        copy(&device.node(), &copied);
        fs::remove_file(copied.join(file)).expect("removes");
        let outcome = billing_store::open(&copied, NODE, None).map(|_| ());
        assert!(
            matches!(outcome, Err(StoreError::Damaged { .. })),
            "{file} missing: {outcome:?}"
        );
    }
    killed.open().expect("the undamaged ones open");
    closed.open().expect("the undamaged ones open");
}

#[tokio::test]
async fn every_flipped_bit_of_the_identity_is_noticed() {
    let device = Device::sled();
    drop(device.create().expect("creates"));
    let path = device.node().join("identity");
    for at in 0..fs::metadata(&path).expect("is there").len() {
        flip_bit(&path, at, 0x04);
        let outcome = device.open().map(|_| ());
        assert!(
            matches!(outcome, Err(StoreError::Damaged { .. })),
            "byte {at}: {outcome:?}"
        );
        flip_bit(&path, at, 0x04);
    }
    device.open().expect("the undamaged one opens");
}

#[tokio::test]
async fn no_value_ever_becomes_a_blob() {
    let device = Device::sled();
    let disk = device.create().expect("creates");
    // The worst there is: every record as large as a record can be, with cuts and purges that make leaves split and merge.
    let mut index = 1;
    for round in 0..30u64 {
        let large: Vec<_> = (index..index + 12)
            .map(|index| sized(index, 61_000))
            .collect();
        append(&*disk.log, large).await.expect("durable");
        index += 12;
        if round % 7 == 3 {
            disk.log
                .truncate_after(Some(index - 6))
                .await
                .expect("truncates");
            index -= 5;
        }
        if round % 5 == 4 {
            disk.log
                .purge_through(index - 20, Bytes::new())
                .await
                .expect("purges");
        }
        let blobs = fs::read_dir(device.node().join("log").join("blobs"))
            .expect("reads")
            .count();
        assert_eq!(blobs, 0, "sled never syncs its blobs");
    }
    let disk = device.reopen(disk).await;
    assert_eq!(disk.log.state().expect("state").last, Some(index - 1));
}
