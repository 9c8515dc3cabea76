//! What has a bound, and what happens there.

mod common;

use std::sync::Arc;
use std::time::Duration;

use billing_env::RealClock;
use billing_store::sim::SimDisk;
use common::*;

/// Operations that a log takes before callers wait.
const QUEUED_OPS_MAX: u64 = 1024;

#[tokio::test]
async fn a_full_queue_makes_callers_wait_and_changes_nothing_for_those_who_give_up() {
    let never = Duration::from_secs(3600);
    let disk = SimDisk::new(Arc::new(RealClock::new()), never)
        .create(&identity())
        .expect("creates");
    let mut waiting = Vec::new();
    for index in 1..=QUEUED_OPS_MAX {
        waiting.push(
            submit(&*disk.log, vec![entry(index)])
                .await
                .expect("there is room"),
        );
    }
    let refused = submit(&*disk.log, vec![entry(QUEUED_OPS_MAX + 1)]);
    tokio::time::timeout(Duration::from_millis(50), refused)
        .await
        .expect_err("it waits");
    assert_eq!(disk.log.state().expect("state").last, Some(QUEUED_OPS_MAX));
}

#[tokio::test]
async fn many_bytes_fill_the_queue_before_many_operations_do() {
    let never = Duration::from_secs(3600);
    let disk = SimDisk::new(Arc::new(RealClock::new()), never)
        .create(&identity())
        .expect("creates");
    let mut taken = 0;
    for index in 1..=QUEUED_OPS_MAX {
        let offered = submit(&*disk.log, vec![sized(index, 8 * 1024 * 1024)]);
        match tokio::time::timeout(Duration::from_millis(200), offered).await {
            Ok(accepted) => taken += u64::from(accepted.is_ok()),
            Err(_) => break,
        }
    }
    assert_eq!(taken, 8, "64 MiB in entries of 8 MiB");
}

#[tokio::test]
async fn a_cut_and_rewritten_log_reads_right_while_the_disk_lags_behind() {
    for device in Device::all() {
        let disk = device.create().expect("creates");
        let mut expected: Vec<_> = (1..=400).map(|index| sized(index, 60_000)).collect();
        let mut waiting = vec![submit(&*disk.log, expected.clone()).await.expect("appends")];
        for round in 1..=6 {
            let kept = 400 - round * 40;
            expected.truncate(kept as usize);
            let new: Vec<_> = (kept + 1..=kept + 200)
                .map(|index| salted(index, 60_000, round))
                .collect();
            let (cut, appended) = tokio::join!(
                disk.log.truncate_after(Some(kept)),
                submit(&*disk.log, new.clone())
            );
            cut.expect("truncates");
            waiting.push(appended.expect("appends"));
            expected.extend(new);
            assert_eq!(
                disk.log.read(0..u64::MAX).await.expect("reads"),
                expected,
                "{} round {round}",
                device.name()
            );
        }
        for answer in waiting {
            answer.await.expect("answered").expect("durable");
        }
        let disk = device.reopen(disk).await;
        assert_eq!(
            disk.log.read(0..u64::MAX).await.expect("reads"),
            expected,
            "{}",
            device.name()
        );
    }
}
