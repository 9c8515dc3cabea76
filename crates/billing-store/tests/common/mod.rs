//! What the tests of both disks share: one way to have a disk, lose the process and come back.

// Each test file uses its own part of this.
#![allow(dead_code)]

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use billing_env::RealClock;
use billing_store::sim::SimDisk;
use billing_store::{Disk, Entry, Identity, LogDisk, StoreError};
use bytes::Bytes;
use rand::{RngExt, SeedableRng};
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

/// So small that it is full all the time, and that some batches are larger.
pub const JOURNAL_SMALL_BYTES: u64 = 32 * 1024;

/// A device that outlives the processes that open it.
pub enum Device {
    Sled(TempDir),
    /// With a small journal.
    SledSmall(TempDir),
    Sim(SimDisk),
}

impl Device {
    pub fn all() -> Vec<Device> {
        vec![Device::sled(), Device::sled_small(), Device::sim()]
    }

    pub fn sled() -> Device {
        Device::Sled(tempfile::tempdir().expect("a temporary folder"))
    }

    pub fn sled_small() -> Device {
        Device::SledSmall(tempfile::tempdir().expect("a temporary folder"))
    }

    /// A new one of the same kind.
    pub fn another(&self) -> Device {
        match self {
            Device::Sled(_) => Device::sled(),
            Device::SledSmall(_) => Device::sled_small(),
            Device::Sim(_) => Device::sim(),
        }
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
            Device::SledSmall(_) => "sled, small journal",
            Device::Sim(_) => "sim",
        }
    }

    pub fn create(&self) -> Result<Disk, StoreError> {
        match self {
            Device::Sled(folder) => billing_store::create(&folder.path().join("node"), &identity()),
            Device::SledSmall(folder) => {
                let node = folder.path().join("node");
                billing_store::create_with_journal(&node, &identity(), JOURNAL_SMALL_BYTES)
            }
            Device::Sim(disk) => disk.create(&identity()),
        }
    }

    pub fn open(&self) -> Result<Disk, StoreError> {
        match self {
            Device::Sled(folder) | Device::SledSmall(folder) => {
                billing_store::open(&folder.path().join("node"), NODE, Some(CLUSTER))
            }
            Device::Sim(disk) => disk.open(NODE, Some(CLUSTER)),
        }
    }

    /// The folder of the real disk.
    pub fn node(&self) -> PathBuf {
        match self {
            Device::Sled(folder) | Device::SledSmall(folder) => folder.path().join("node"),
            Device::Sim(_) => panic!("a test of the real disk"),
        }
    }

    /// Closes in good order and opens again.
    pub async fn reopen(&self, disk: Disk) -> Disk {
        disk.log.close().await.expect("closes");
        drop(disk);
        self.open().expect("opens again")
    }
}

/// A folder as it lies there: what kill -9 leaves, when somebody has it open.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("creates");
    for entry in fs::read_dir(from).expect("reads") {
        let entry = entry.expect("reads");
        let to = to.join(entry.file_name());
        if entry.file_type().expect("type").is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).expect("copies");
        }
    }
}

pub fn flip_bit(path: &Path, at: u64, mask: u8) {
    let mut bytes = fs::read(path).expect("reads");
    bytes[at as usize] ^= mask;
    fs::write(path, bytes).expect("writes");
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

/// Which entry and which writing of it; the shim looks for the first half.
pub fn marked(index: u64, salt: u64) -> Entry {
    let text = format!("entry-{index:08}; salt {salt} ");
    Entry {
        index,
        bytes: text.repeat(1 + (index % 7) as usize).into(),
    }
}

/// Takes one line of a journal.
pub type Write = Arc<dyn Fn(&str) + Send + Sync>;

/// Appends, votes, cuts, purges. What a line promises was true when it was written.
pub async fn everything(disk: &Disk, journal: Write, seed: u64) {
    let state = disk.log.state().expect("state");
    let mut next = state.last.map_or(1, |last| last + 1);
    let mut vote = state.vote.map_or(0, |vote| {
        String::from_utf8_lossy(&vote).parse().expect("a number")
    });
    let mut random = rand::rngs::SmallRng::seed_from_u64(next ^ (seed << 32));
    let salt = next ^ 0x5a5a;
    loop {
        match random.random_range(0..100) {
            0..80 => {
                let last = next + random.random_range(0..6);
                let writer = Arc::clone(&journal);
                let from = next;
                let done = Box::new(move |result: Result<(), StoreError>| {
                    // An error promises nothing: the simulated disk cuts off a process that has crashed.
                    if result.is_ok() {
                        writer(&format!("acked {from} {last} {salt}"));
                    }
                });
                journal(&format!("append {from} {last} {salt}"));
                disk.log
                    .append(
                        (next..=last).map(|index| marked(index, salt)).collect(),
                        done,
                    )
                    .await
                    .expect("appends");
                next = last + 1;
            }
            80..90 => {
                vote += 1;
                disk.log
                    .save_vote(Bytes::from(vote.to_string()))
                    .await
                    .expect("saves");
                journal(&format!("vote {vote}"));
            }
            90..96 => {
                let purged = disk
                    .log
                    .state()
                    .expect("state")
                    .purged
                    .map_or(0, |purged| purged.index);
                let kept = (next - 1)
                    .saturating_sub(random.random_range(0..5))
                    .max(purged);
                if kept >= 1 {
                    journal(&format!("cut {kept}"));
                    disk.log
                        .truncate_after(Some(kept))
                        .await
                        .expect("truncates");
                    next = kept + 1;
                }
            }
            _ => {
                if next > 60 {
                    let through = next - 50;
                    journal(&format!("purge {through}"));
                    disk.log
                        .purge_through(through, Bytes::from(through.to_string()))
                        .await
                        .expect("purges");
                }
            }
        }
    }
}

/// What the journal says must be there after a kill.
#[derive(Default)]
pub struct Promised {
    /// Salt of each entry that was acknowledged and not cut since.
    pub entries: BTreeMap<u64, u64>,
    pub vote: u64,
    purged: u64,
}

impl Promised {
    pub fn read(lines: &[String]) -> Promised {
        let mut promised = Promised::default();
        // Acknowledgements come in the order of the appends, but a cut may be journalled between the two.
        let mut waiting: VecDeque<(u64, u64, u64)> = VecDeque::new();
        for line in lines {
            let numbers: Vec<u64> = line
                .split(' ')
                .skip(1)
                .filter_map(|word| word.parse().ok())
                .collect();
            match (line.split(' ').next(), &numbers[..]) {
                (Some("append"), [from, last, salt]) => waiting.push_back((*from, *last, *salt)),
                (Some("acked"), [from, _, salt]) => {
                    let (begins, last, wrote) = waiting.pop_front().expect("appended before");
                    assert_eq!((begins, wrote), (*from, *salt), "acknowledged in order");
                    promised
                        .entries
                        .extend((*from..=last).map(|index| (index, *salt)));
                }
                (Some("cut"), [kept]) => {
                    promised.entries.retain(|index, _| index <= kept);
                    waiting
                        .iter_mut()
                        .for_each(|append| append.1 = append.1.min(*kept));
                }
                (Some("purge"), [through]) => promised.purged = promised.purged.max(*through),
                (Some("vote"), [vote]) => promised.vote = promised.vote.max(*vote),
                (Some("killed"), _) => waiting.clear(),
                _ => panic!("an unknown line: {line}"),
            }
        }
        promised
    }

    /// Everything promised is there, as it was promised.
    pub async fn check(&self, disk: &Disk, when: &str) {
        let state = disk.log.state().expect("state");
        let read = disk.log.read(0..u64::MAX).await.expect("reads");
        let found: BTreeMap<u64, Bytes> = read
            .into_iter()
            .map(|entry| (entry.index, entry.bytes))
            .collect();
        for (index, salt) in self.entries.range(self.purged + 1..) {
            let expected = marked(*index, *salt).bytes;
            assert_eq!(
                found.get(index),
                Some(&expected),
                "{when}: entry {index} was acknowledged"
            );
        }
        let vote = state.vote.map_or(0, |vote| {
            String::from_utf8_lossy(&vote).parse().expect("a number")
        });
        assert!(
            vote >= self.vote,
            "{when}: vote {} was acknowledged, {vote} is there",
            self.vote
        );
    }
}
