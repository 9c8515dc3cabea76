//! What the tests of both disks share: one way to have a disk, lose the process and come back.

// Each test file uses its own part of this.
#![allow(dead_code)]

use std::sync::Arc;
use std::time::Duration;

use billing_env::RealClock;
use billing_store::sim::SimDisk;
use billing_store::{Disk, Entry, Identity, LogDisk, StoreError};
use bytes::Bytes;
use tempfile::TempDir;
use tokio::sync::oneshot;

pub const NODE: u64 = 7;
pub const CLUSTER: &[u8] = b"cluster-a";

pub fn identity() -> Identity {
    Identity {
        cluster: Bytes::from_static(CLUSTER),
        node: NODE,
        created_unix_ms: 1_700_000_000_000,
    }
}

/// A device that outlives the processes that open it.
pub enum Device {
    Sled(TempDir),
    Sim(SimDisk),
}

impl Device {
    pub fn both() -> Vec<Device> {
        vec![Device::sled(), Device::sim()]
    }

    pub fn sled() -> Device {
        Device::Sled(tempfile::tempdir().expect("a temporary folder"))
    }

    pub fn sim() -> Device {
        Device::Sim(SimDisk::new(
            Arc::new(RealClock::new()),
            Duration::from_micros(50),
        ))
    }

    pub fn name(&self) -> &'static str {
        match self {
            Device::Sled(_) => "sled",
            Device::Sim(_) => "sim",
        }
    }

    pub fn create(&self) -> Result<Disk, StoreError> {
        match self {
            Device::Sled(folder) => billing_store::create(&folder.path().join("node"), &identity()),
            Device::Sim(disk) => disk.create(&identity()),
        }
    }

    pub fn open(&self) -> Result<Disk, StoreError> {
        match self {
            Device::Sled(folder) => {
                billing_store::open(&folder.path().join("node"), NODE, Some(CLUSTER))
            }
            Device::Sim(disk) => disk.open(NODE, Some(CLUSTER)),
        }
    }

    /// Closes in good order and opens again.
    pub async fn reopen(&self, disk: Disk) -> Disk {
        disk.log.close().await.expect("closes");
        drop(disk);
        self.open().expect("opens again")
    }
}

pub fn entry(index: u64) -> Entry {
    sized(index, 20 + (index % 50) as usize)
}

/// Contents that differ by index, term-like salt left to the caller.
pub fn sized(index: u64, bytes: usize) -> Entry {
    salted(index, bytes, 0)
}

pub fn salted(index: u64, bytes: usize, salt: u64) -> Entry {
    let pattern = (index.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt).to_le_bytes();
    Entry {
        index,
        bytes: pattern
            .iter()
            .copied()
            .cycle()
            .take(bytes)
            .collect::<Vec<_>>()
            .into(),
    }
}

pub fn entries(range: std::ops::RangeInclusive<u64>) -> Vec<Entry> {
    range.map(entry).collect()
}

/// Appends, and returns what the acknowledgement will say.
pub async fn submit(
    log: &dyn LogDisk,
    entries: Vec<Entry>,
) -> Result<oneshot::Receiver<Result<(), StoreError>>, StoreError> {
    let (done, outcome) = oneshot::channel();
    let done = Box::new(move |result| {
        let _ = done.send(result);
    });
    log.append(entries, done).await?;
    Ok(outcome)
}

/// Appends and waits until it is durable.
pub async fn append(log: &dyn LogDisk, entries: Vec<Entry>) -> Result<(), StoreError> {
    submit(log, entries)
        .await?
        .await
        .expect("every append is answered")
}
