//! One set of promises, kept by the sled disk, whether its journal is ever full or always, and by the simulated one.

mod common;

use billing_store::{LogState, Purged, SNAPSHOT_CHUNK_BYTES, SnapshotSum, StoreError};
use bytes::Bytes;
use common::*;
use rand::{RngExt, SeedableRng};

type Promise = fn(Device) -> std::pin::Pin<Box<dyn Future<Output = ()>>>;

fn check(promise: Promise) {
    for device in Device::all() {
        println!("on the {} disk", device.name());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(promise(device));
    }
}

macro_rules! promises {
    ($($name:ident: |$device:ident| $body:block)*) => {$(
        #[test]
        fn $name() {
            check(|$device| Box::pin(async move $body));
        }
    )*};
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

promises! {
    a_new_log_is_empty: |device| {
        let disk = device.create().expect("creates");
        assert_eq!(disk.log.state().expect("state"), LogState::default());
        assert_eq!(disk.log.read(0..100).await.expect("reads"), vec![]);
        let disk = device.reopen(disk).await;
        assert_eq!(disk.log.state().expect("state"), LogState::default());
        assert!(disk.snapshots.latest().is_none());
    }

    figures_tell_what_the_disk_holds_and_how_it_does: |device| {
        let disk = device.create().expect("creates");
        let new = disk.log.figures();
        assert_eq!((new.sync_p50, new.sync_p99, new.first_index), (None, None, None));
        for index in 1..=30 {
            append(&*disk.log, entries(index..=index)).await.expect("durable");
        }
        let used = disk.log.figures();
        assert!(used.sync_p50.is_some_and(|p50| !p50.is_zero()), "{used:?}");
        assert!(used.sync_p50 <= used.sync_p99, "{used:?}");
        assert_eq!(used.first_index, Some(1));
        disk.log.purge_through(12, bytes("marker")).await.expect("purges");
        assert_eq!(disk.log.figures().first_index, Some(13));
        disk.log.purge_through(30, bytes("marker")).await.expect("purges");
        assert_eq!(disk.log.figures().first_index, None, "none is left");
        append(&*disk.log, entries(31..=31)).await.expect("durable");
        let disk = device.reopen(disk).await;
        let again = disk.log.figures();
        assert_eq!(again.first_index, Some(31));
        assert!(again.bytes > 31, "{again:?}");
    }

    what_was_appended_is_read_at_once_and_after_reopening: |device| {
        let disk = device.create().expect("creates");
        let durable = submit(&*disk.log, entries(1..=10)).await.expect("appends");
        assert_eq!(disk.log.read(1..11).await.expect("reads"), entries(1..=10));
        durable.await.expect("answered").expect("durable");
        append(&*disk.log, entries(11..=30)).await.expect("durable");
        let disk = device.reopen(disk).await;
        assert_eq!(disk.log.state().expect("state").last, Some(30));
        assert_eq!(disk.log.read(0..u64::MAX).await.expect("reads"), entries(1..=30));
        assert_eq!(disk.log.read(5..8).await.expect("reads"), entries(5..=7));
        append(&*disk.log, entries(31..=31)).await.expect("durable");
        let disk = device.reopen(disk).await;
        assert_eq!(disk.log.read(1..100).await.expect("reads"), entries(1..=31));
    }

    a_log_may_begin_at_zero: |device| {
        let disk = device.create().expect("creates");
        append(&*disk.log, entries(0..=2)).await.expect("durable");
        let disk = device.reopen(disk).await;
        assert_eq!(disk.log.read(0..9).await.expect("reads"), entries(0..=2));
        disk.log.purge_through(0, bytes("m")).await.expect("purges");
        let disk = device.reopen(disk).await;
        assert_eq!(disk.log.read(0..9).await.expect("reads"), entries(1..=2));
    }

    a_gap_is_refused_and_changes_nothing: |device| {
        let disk = device.create().expect("creates");
        append(&*disk.log, entries(1..=3)).await.expect("durable");
        for wrong in [vec![entry(5)], vec![entry(3)], vec![entry(4), entry(6)]] {
            let refused = append(&*disk.log, wrong).await;
            assert!(matches!(refused, Err(StoreError::Misuse { .. })), "{refused:?}");
        }
        append(&*disk.log, entries(4..=4)).await.expect("the log goes on");
        assert_eq!(disk.log.state().expect("state").last, Some(4));
    }

    large_entries_are_kept_whole: |device| {
        let disk = device.create().expect("creates");
        let written = vec![sized(1, 10), sized(2, 61_000), sized(3, 200_000), sized(4, 65_536), sized(5, 3_000_000), sized(6, 0), sized(7, 9)];
        append(&*disk.log, written.clone()).await.expect("durable");
        let disk = device.reopen(disk).await;
        assert_eq!(disk.log.read(0..100).await.expect("reads"), written);
        disk.log.truncate_after(Some(5)).await.expect("truncates");
        disk.log.truncate_after(Some(4)).await.expect("truncates");
        append(&*disk.log, vec![sized(5, 70_000)]).await.expect("durable");
        disk.log.purge_through(3, bytes("m")).await.expect("purges");
        let disk = device.reopen(disk).await;
        assert_eq!(disk.log.read(0..100).await.expect("reads"), vec![sized(4, 65_536), sized(5, 70_000)]);
        let refused = append(&*disk.log, vec![sized(6, 17 * 1024 * 1024)]).await;
        assert!(matches!(refused, Err(StoreError::EntryTooLarge { .. })), "{refused:?}");
    }

    a_cut_in_the_middle_of_a_packed_batch_holds: |device| {
        let disk = device.create().expect("creates");
        append(&*disk.log, entries(1..=100)).await.expect("durable");
        disk.log.truncate_after(Some(42)).await.expect("truncates");
        assert_eq!(disk.log.read(1..200).await.expect("reads"), entries(1..=42));
        let disk = device.reopen(disk).await;
        assert_eq!(disk.log.state().expect("state").last, Some(42));
        assert_eq!(disk.log.read(1..200).await.expect("reads"), entries(1..=42));
        let other: Vec<_> = (43..=60).map(|index| salted(index, 30, 9)).collect();
        append(&*disk.log, other.clone()).await.expect("durable");
        let disk = device.reopen(disk).await;
        assert_eq!(disk.log.read(43..200).await.expect("reads"), other);
        disk.log.truncate_after(None).await.expect("truncates");
        assert_eq!(disk.log.state().expect("state").last, None);
        let disk = device.reopen(disk).await;
        assert_eq!(disk.log.state().expect("state").last, None);
        append(&*disk.log, entries(1..=2)).await.expect("durable");
    }

    a_cut_that_is_not_awaited_keeps_its_place_in_the_order: |device| {
        let disk = device.create().expect("creates");
        let first = submit(&*disk.log, entries(1..=10)).await.expect("appends");
        let cut = disk.log.truncate_after(Some(5));
        let (cut, second) = tokio::join!(cut, submit(&*disk.log, vec![salted(6, 20, 1)]));
        cut.expect("truncates");
        first.await.expect("answered").expect("durable");
        second.expect("appends").await.expect("answered").expect("durable");
        let disk = device.reopen(disk).await;
        let mut expected = entries(1..=5);
        expected.push(salted(6, 20, 1));
        assert_eq!(disk.log.read(0..100).await.expect("reads"), expected);
    }

    a_purge_holds_and_its_marker_comes_back: |device| {
        let disk = device.create().expect("creates");
        append(&*disk.log, entries(1..=50)).await.expect("durable");
        append(&*disk.log, entries(51..=100)).await.expect("durable");
        for (through, first) in [(10, 11), (50, 51), (70, 71)] {
            disk.log.purge_through(through, bytes(&format!("m{through}"))).await.expect("purges");
            disk.log.purge_through(3, bytes("older")).await.expect("an older one changes nothing");
            let state = disk.log.state().expect("state");
            assert_eq!(state.purged, Some(Purged { index: through, marker: bytes(&format!("m{through}")) }));
            assert_eq!(disk.log.read(0..200).await.expect("reads"), entries(first..=100));
        }
        let disk = device.reopen(disk).await;
        assert_eq!(disk.log.read(0..200).await.expect("reads"), entries(71..=100));
        let refused = disk.log.truncate_after(Some(69)).await;
        assert!(matches!(refused, Err(StoreError::Misuse { .. })), "{refused:?}");
        disk.log.truncate_after(Some(70)).await.expect("truncates");
        assert_eq!(disk.log.state().expect("state").last, Some(70));
        let disk = device.reopen(disk).await;
        assert_eq!(disk.log.state().expect("state").last, Some(70));
        append(&*disk.log, entries(71..=72)).await.expect("durable");
        disk.log.purge_through(72, bytes("all")).await.expect("purges");
        let disk = device.reopen(disk).await;
        assert_eq!(disk.log.read(0..200).await.expect("reads"), vec![]);
        assert_eq!(disk.log.state().expect("state").last, Some(72));
    }

    an_installed_snapshot_moves_the_log_ahead: |device| {
        let disk = device.create().expect("creates");
        append(&*disk.log, entries(1..=5)).await.expect("durable");
        disk.log.purge_through(1000, bytes("installed")).await.expect("purges");
        assert_eq!(disk.log.state().expect("state").last, Some(1000));
        let refused = append(&*disk.log, entries(6..=6)).await;
        assert!(matches!(refused, Err(StoreError::Misuse { .. })), "{refused:?}");
        append(&*disk.log, entries(1001..=1003)).await.expect("durable");
        let disk = device.reopen(disk).await;
        assert_eq!(disk.log.read(0..2000).await.expect("reads"), entries(1001..=1003));
    }

    the_last_vote_counts: |device| {
        let disk = device.create().expect("creates");
        for vote in ["one", "two", "three"] {
            disk.log.save_vote(bytes(vote)).await.expect("saves");
            append(&*disk.log, vec![entry(disk.log.state().expect("state").last.map_or(1, |last| last + 1))]).await.expect("durable");
        }
        disk.log.save_committed(bytes("hint")).await.expect("saves");
        let disk = device.reopen(disk).await;
        let state = disk.log.state().expect("state");
        assert_eq!((state.vote, state.last, state.committed), (Some(bytes("three")), Some(3), Some(bytes("hint"))));
        let refused = disk.log.save_vote(Bytes::from(vec![0; 1000])).await;
        assert!(matches!(refused, Err(StoreError::Misuse { .. })), "{refused:?}");
    }

    a_reader_gets_what_it_has_room_for_and_at_least_one: |device| {
        let disk = device.create().expect("creates");
        let written: Vec<_> = (1..=20).map(|index| sized(index, 1000)).collect();
        append(&*disk.log, written.clone()).await.expect("durable");
        assert_eq!(disk.log.read_some(5..20, 2500).await.expect("reads"), written[4..7]);
        assert_eq!(disk.log.read_some(5..20, 0).await.expect("reads"), written[4..5]);
    }

    old_entries_are_read_from_the_disk: |device| {
        let disk = device.create().expect("creates");
        // More than what stays in memory.
        let written: Vec<_> = (1..=900).map(|index| sized(index, 50_000)).collect();
        for part in written.chunks(50) {
            append(&*disk.log, part.to_vec()).await.expect("durable");
        }
        assert_eq!(disk.log.read(1..901).await.expect("reads"), written);
        assert_eq!(disk.log.read(3..6).await.expect("reads"), written[2..5]);
        assert_eq!(disk.log.read_some(3..900, 120_000).await.expect("reads"), written[2..5]);
        let disk = device.reopen(disk).await;
        assert_eq!(disk.log.read(1..901).await.expect("reads"), written);
        disk.log.truncate_after(Some(10)).await.expect("truncates");
        assert_eq!(disk.log.read(1..901).await.expect("reads"), written[..10]);
        append(&*disk.log, vec![sized(11, 5)]).await.expect("durable");
        assert_eq!(disk.log.read(9..901).await.expect("reads"), vec![sized(9, 50_000), sized(10, 50_000), sized(11, 5)]);
    }

    a_closed_log_refuses: |device| {
        let disk = device.create().expect("creates");
        append(&*disk.log, entries(1..=1)).await.expect("durable");
        disk.log.close().await.expect("closes");
        assert!(matches!(append(&*disk.log, entries(2..=2)).await, Err(StoreError::Closed)));
        assert!(matches!(disk.log.save_vote(bytes("v")).await, Err(StoreError::Closed)));
        assert!(disk.log.failure().borrow().is_none(), "closing is no failure");
    }

    a_snapshot_comes_back_whole: |device| {
        let disk = device.create().expect("creates");
        let body: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
        let mut writer = disk.snapshots.create(42, bytes("meta")).await.expect("begins");
        for piece in body.chunks(7_001) {
            writer.write(Bytes::copy_from_slice(piece)).await.expect("writes");
        }
        assert!(disk.snapshots.latest().is_none(), "not there before it is finished");
        let info = writer.finish(None).await.expect("finishes");
        assert_eq!(info.sum.bytes, body.len() as u64);
        let disk = device.reopen(disk).await;
        let latest = disk.snapshots.latest().expect("is there");
        assert_eq!(latest, info);
        assert_eq!((latest.id.index, latest.meta.clone()), (42, bytes("meta")));
        let mut reader = disk.snapshots.read(latest.id).await.expect("opens");
        let mut read = Vec::new();
        while let Some(piece) = reader.next().await.expect("reads") {
            assert!(piece.len() <= SNAPSHOT_CHUNK_BYTES);
            read.extend_from_slice(&piece);
        }
        assert_eq!(read, body);
        disk.snapshots.verify(latest.id).await.expect("verifies");
    }

    the_newest_two_snapshots_stay: |device| {
        let disk = device.create().expect("creates");
        let mut ids = Vec::new();
        for index in [10, 20, 20, 30] {
            let mut writer = disk.snapshots.create(index, bytes("m")).await.expect("begins");
            writer.write(bytes("body")).await.expect("writes");
            ids.push(writer.finish(None).await.expect("finishes").id);
        }
        let kept: Vec<_> = disk.snapshots.list().iter().map(|info| info.id).collect();
        assert_eq!(kept, [ids[3], ids[2]]);
        assert!(matches!(disk.snapshots.verify(ids[0]).await, Err(StoreError::NoSnapshot { .. })));
        let disk = device.reopen(disk).await;
        assert_eq!(disk.snapshots.list().iter().map(|info| info.id).collect::<Vec<_>>(), kept);
    }

    an_unfinished_snapshot_leaves_nothing: |device| {
        let disk = device.create().expect("creates");
        let mut writer = disk.snapshots.create(5, bytes("m")).await.expect("begins");
        writer.write(Bytes::from(vec![1; 200_000])).await.expect("writes");
        drop(writer);
        let mut writer = disk.snapshots.create(6, bytes("m")).await.expect("begins");
        writer.write(bytes("what arrived")).await.expect("writes");
        let sent = SnapshotSum { bytes: 12, crc32c: 1 };
        let refused = writer.finish(Some(sent)).await;
        assert!(matches!(refused, Err(StoreError::SnapshotDamaged { .. })), "{refused:?}");
        let disk = device.reopen(disk).await;
        assert!(disk.snapshots.list().is_empty());
        assert!(disk.snapshots.damaged().is_empty());
    }

    random_operations_agree_with_a_naive_model: |device| {
        let rounds = if matches!(device, Device::Sim(_)) { 40 } else { 4 };
        for seed in 0..rounds {
            random_operations(device.another(), seed).await;
        }
    }
}

/// What the log must be, kept the simplest way.
#[derive(Default)]
struct Model {
    entries: Vec<billing_store::Entry>,
    purged: Option<Purged>,
    vote: Option<Bytes>,
}

impl Model {
    fn last(&self) -> Option<u64> {
        self.entries
            .last()
            .map(|entry| entry.index)
            .or(self.purged.as_ref().map(|purged| purged.index))
    }
}

async fn random_operations(device: Device, seed: u64) {
    println!("seed {seed} on the {} disk", device.name());
    let mut random = rand::rngs::SmallRng::seed_from_u64(seed);
    let mut model = Model::default();
    let mut disk = device.create().expect("creates");
    let mut waiting = Vec::new();
    for step in 0..150 {
        match random.random_range(0..100) {
            0..50 => {
                let first = model
                    .last()
                    .map_or(random.random_range(0..3), |last| last + 1);
                let count = random.random_range(0..40);
                let large = random.random_range(0..20) == 0;
                let bytes = if large {
                    random.random_range(50_000..150_000)
                } else {
                    random.random_range(0..3_000)
                };
                let new: Vec<_> = (first..first + count)
                    .map(|index| salted(index, bytes, step))
                    .collect();
                waiting.push(submit(&*disk.log, new.clone()).await.expect("appends"));
                model.entries.extend(new);
            }
            50..60 => {
                let vote = Bytes::from(format!("vote {step}"));
                disk.log.save_vote(vote.clone()).await.expect("saves");
                model.vote = Some(vote);
            }
            60..72 => {
                let floor = model.purged.as_ref().map(|purged| purged.index);
                let first = model.entries.first().map(|entry| entry.index);
                if let (Some(first), Some(last)) = (first, model.last()) {
                    let kept = random.random_range(first..=last);
                    let kept = if random.random_range(0..10) == 0 {
                        floor
                    } else {
                        Some(kept)
                    };
                    disk.log.truncate_after(kept).await.expect("truncates");
                    model.entries.retain(|entry| Some(entry.index) <= kept);
                }
            }
            72..84 => {
                let first = model.entries.first().map(|entry| entry.index);
                if let (Some(first), Some(last)) = (first, model.last()) {
                    let ahead = if random.random_range(0..8) == 0 {
                        100
                    } else {
                        0
                    };
                    let index = random.random_range(first..=last) + ahead;
                    let marker = Bytes::from(format!("marker {index}"));
                    disk.log
                        .purge_through(index, marker.clone())
                        .await
                        .expect("purges");
                    model.entries.retain(|entry| entry.index > index);
                    model.purged = Some(Purged { index, marker });
                }
            }
            84..94 => {
                let from = random.random_range(0..model.last().unwrap_or(0) + 2);
                let to = from + random.random_range(0..60);
                let expected: Vec<_> = model
                    .entries
                    .iter()
                    .filter(|entry| (from..to).contains(&entry.index))
                    .cloned()
                    .collect();
                assert_eq!(
                    disk.log.read(from..to).await.expect("reads"),
                    expected,
                    "seed {seed} step {step}"
                );
            }
            _ => {
                for answer in waiting.drain(..) {
                    answer.await.expect("answered").expect("durable");
                }
                // Half of the time without the courtesy of closing: nothing acknowledged may depend on it.
                disk = if random.random_range(0..2) == 0 {
                    device.reopen(disk).await
                } else {
                    drop(disk);
                    device.open().expect("opens")
                };
            }
        }
        let state = disk.log.state().expect("state");
        assert_eq!(
            (state.last, state.purged, state.vote),
            (model.last(), model.purged.clone(), model.vote.clone()),
            "seed {seed} step {step}"
        );
    }
    for answer in waiting {
        answer.await.expect("answered").expect("durable");
    }
    let disk = device.reopen(disk).await;
    assert_eq!(
        disk.log.read(0..u64::MAX).await.expect("reads"),
        model.entries,
        "seed {seed}"
    );
}
