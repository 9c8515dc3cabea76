//! Every switch of the store breaks the rule that it names. The switch is one for the process: the tests take turns, and each
//! does the same with it off first.

mod common;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use billing_core::sabotage::{Sabotage, switch_off, switch_on};
use billing_env::RealClock;
use billing_store::StoreError;
use billing_store::sim::{Crash, Fault, SimDisk};
use bytes::Bytes;
use common::*;

static TURN: Mutex<()> = Mutex::new(());

/// Plays `scene` without and with the sabotage, and returns what came of each.
fn both<T>(which: Sabotage, scene: impl AsyncFn() -> T) -> (T, T) {
    let _turn: MutexGuard<'_, ()> = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().expect("a runtime")
    };
    switch_off();
    let honest = runtime().block_on(scene());
    switch_on(which);
    let broken = runtime().block_on(scene());
    switch_off();
    (honest, broken)
}

fn sim(sync_takes: Duration) -> SimDisk {
    SimDisk::new(Arc::new(RealClock::new()), sync_takes)
}

/// Entries that are there after a crash in which nothing unsynced survives.
async fn left_after_a_crash(disk: &SimDisk) -> Option<u64> {
    disk.crash(Crash::default());
    let opened = disk.open(NODE, Some(CLUSTER)).expect("opens");
    opened.log.state().expect("state").last
}

#[test]
fn acknowledged_before_the_flush() {
    let scene = async || {
        let device = sim(Duration::from_millis(100));
        let disk = device.create(&identity()).expect("creates");
        append(&*disk.log, entries(1..=3))
            .await
            .expect("acknowledged");
        left_after_a_crash(&device).await
    };
    let told = both(Sabotage::AcknowledgedBeforeFlush, scene);
    assert_eq!(told, (Some(3), None));
}

#[test]
fn a_failed_write_is_ignored() {
    let scene = async || {
        let device = sim(Duration::ZERO);
        let disk = device.create(&identity()).expect("creates");
        device.set_fault(Fault::Broken);
        let told = append(&*disk.log, entries(1..=3)).await;
        device.set_fault(Fault::None);
        (told.is_ok(), left_after_a_crash(&device).await)
    };
    let told = both(Sabotage::FailedWriteIgnored, scene);
    assert_eq!(told, ((false, None), (true, None)));
}

#[test]
fn the_high_file_is_ignored() {
    let scene = async || {
        let device = sim(Duration::ZERO);
        let disk = device.create(&identity()).expect("creates");
        for index in 1..=3 {
            append(&*disk.log, entries(index..=index))
                .await
                .expect("durable");
        }
        disk.log.close().await.expect("closes");
        assert!(device.lose_record(device.log_records() - 1));
        match device.open(NODE, Some(CLUSTER)) {
            Ok(opened) => opened.log.state().expect("state").last,
            Err(StoreError::Damaged { .. }) => None,
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(both(Sabotage::HighIgnored, scene), (None, Some(2)));
}

#[test]
fn a_snapshot_counts_before_it_is_synced() {
    let scene = async || {
        let device = sim(Duration::ZERO);
        let disk = device.create(&identity()).expect("creates");
        let mut writer = disk
            .snapshots
            .create(5, Bytes::from_static(b"m"))
            .await
            .expect("begins");
        writer
            .write(Bytes::from_static(b"ledger"))
            .await
            .expect("writes");
        writer.finish(None).await.expect("finishes");
        device.crash(Crash::default());
        let opened = device.open(NODE, Some(CLUSTER)).expect("opens");
        opened.snapshots.list().len()
    };
    assert_eq!(both(Sabotage::SnapshotNotSynced, scene), (1, 0));
}
