//! The folder stays small however long a node lives: what was purged and what was superseded gives its room back. Bytes, not
//! time.

mod common;

use std::path::Path;

use bytes::Bytes;
use common::*;

/// Kept of the log at any time.
const KEPT: u64 = 1_000;
const ENTRY_BYTES: usize = 4 * 1024;
/// Written in all: forty times what is kept.
const ENTRIES: u64 = 40 * KEPT;
/// Of an append.
const TOGETHER: u64 = 100;
/// sled works in segments of 512 KiB and gives them back late: what it takes beyond what is kept, however much is written.
const SLACK_BYTES: u64 = 64 << 20;

fn bytes_in(folder: &Path) -> u64 {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder).expect("the folder") {
        let entry = entry.expect("an entry");
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes += bytes_in(&entry.path()),
            Ok(metadata) => bytes += metadata.len(),
            // Removed meanwhile.
            Err(_) => {}
        }
    }
    bytes
}

#[tokio::test]
async fn a_log_that_is_purged_takes_no_more_room_than_it_keeps_several_times() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("node");
    let disk = billing_store::create(&path, &identity()).expect("creates");
    let kept = KEPT * ENTRY_BYTES as u64;
    let (mut most, mut most_early) = (0, 0);
    for first in (1..=ENTRIES).step_by(TOGETHER as usize) {
        let last = first + TOGETHER - 1;
        let new = (first..=last).map(|index| salted(index, ENTRY_BYTES, index));
        let appended = submit(&*disk.log, new.collect()).await.expect("appends");
        appended.await.expect("answered").expect("durable");
        if last > KEPT && last.is_multiple_of(KEPT / 4) {
            let marker = Bytes::from_static(b"marker");
            disk.log
                .purge_through(last - KEPT, marker)
                .await
                .expect("purges");
            most = most.max(bytes_in(&path));
            if last <= ENTRIES / 2 {
                most_early = most;
            }
        }
    }
    let written = ENTRIES * ENTRY_BYTES as u64;
    let told = format!(
        "{most} bytes, {most_early} in the first half, for {kept} kept of {written} written"
    );
    assert!(most < kept + SLACK_BYTES, "{told}");
    assert!(most < most_early + most_early / 4, "it grows: {told}");
    let state = disk.log.state().expect("state");
    assert_eq!(state.last, Some(ENTRIES));
    drop(disk);
    let disk = billing_store::open(&path, identity().node, None).expect("opens");
    let read = disk.log.read(0..u64::MAX).await.expect("reads");
    assert_eq!(read.len() as u64, KEPT);
}

#[tokio::test]
async fn old_snapshots_give_their_room_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("node");
    let disk = billing_store::create(&path, &identity()).expect("creates");
    let content = Bytes::from(vec![7; 1_000_000]);
    let empty = bytes_in(&path);
    for index in 1..=20 {
        let mut writer = disk
            .snapshots
            .create(index, Bytes::from_static(b"meta"))
            .await
            .expect("creates");
        writer.write(content.clone()).await.expect("writes");
        writer.finish(None).await.expect("finishes");
    }
    let kept = billing_store::SNAPSHOTS_KEPT as u64;
    let taken = bytes_in(&path) - empty;
    assert!(
        (kept * 1_000_000..(kept + 1) * 1_000_000).contains(&taken),
        "{taken} bytes"
    );
}
