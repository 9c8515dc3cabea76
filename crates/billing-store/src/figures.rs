//! Decides what is told of a disk to those who watch it: how long its syncs took, what it holds. Never decides anything by it,
//! and costs the writer one store to memory a sync.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The newest syncs whose durations are kept.
const SYNCS_KEPT: usize = 512;
/// The folder's size is looked up at most this often; in between the last answer stands.
const FOLDER_LOOKED_AT_EVERY: Duration = Duration::from_secs(5);

/// Of one node's disk, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskFigures {
    /// Of the newest batches: what half of them took at most to become durable. `None` before the first.
    pub sync_p50: Option<Duration>,
    /// And 99 in 100 of them.
    pub sync_p99: Option<Duration>,
    /// The oldest entry that is still in the log.
    pub first_index: Option<u64>,
    /// What everything of this node takes on the disk, log and snapshots; seconds old.
    pub bytes: u64,
}

/// A ring of durations: one writer, any number of readers, no lock. A reader may see a mixture of two moments.
pub(crate) struct SyncTimes {
    micros: [AtomicU32; SYNCS_KEPT],
    noted: AtomicU64,
}

impl SyncTimes {
    pub(crate) fn new() -> Self {
        Self {
            micros: [const { AtomicU32::new(0) }; SYNCS_KEPT],
            noted: AtomicU64::new(0),
        }
    }

    /// For the writer alone.
    pub(crate) fn note(&self, took: Duration) {
        let nth = self.noted.load(Ordering::Relaxed);
        let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        self.micros[(nth % SYNCS_KEPT as u64) as usize].store(micros, Ordering::Relaxed);
        self.noted.store(nth + 1, Ordering::Release);
    }

    /// The median and the 99th percentile, by nearest rank.
    pub(crate) fn percentiles(&self) -> Option<(Duration, Duration)> {
        let noted = self.noted.load(Ordering::Acquire).min(SYNCS_KEPT as u64) as usize;
        let mut micros: Vec<u32> = self.micros[..noted]
            .iter()
            .map(|micros| micros.load(Ordering::Relaxed))
            .collect();
        micros.sort_unstable();
        let rank = |percent: usize| {
            let rank = (noted * percent).div_ceil(100).checked_sub(1)?;
            micros
                .get(rank)
                .map(|&micros| Duration::from_micros(micros.into()))
        };
        Some((rank(50)?, rank(99)?))
    }
}

/// How large a folder is, looked up seldom.
pub(crate) struct FolderBytes {
    folder: PathBuf,
    seen: Mutex<Option<(Instant, u64)>>,
}

impl FolderBytes {
    pub(crate) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            seen: Mutex::new(None),
        }
    }

    pub(crate) fn get(&self) -> u64 {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match *seen {
            Some((at, bytes)) if at.elapsed() < FOLDER_LOOKED_AT_EVERY => bytes,
            Some(_) | None => {
                let bytes = taken_by(&self.folder);
                *seen = Some((Instant::now(), bytes));
                bytes
            }
        }
    }
}

/// Blocks, not lengths: files here are written ahead, and have holes. What goes away while we look, or cannot be looked at,
/// counts nothing: this is a figure for people.
fn taken_by(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(about) = path.symlink_metadata() else {
        return 0;
    };
    let own = about.blocks() * 512;
    if !about.is_dir() {
        return own;
    }
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    own + entries.map(|entry| taken_by(&entry.path())).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(syncs: impl IntoIterator<Item = u64>) -> Option<(u64, u64)> {
        let times = SyncTimes::new();
        for micros in syncs {
            times.note(Duration::from_micros(micros));
        }
        let (p50, p99) = times.percentiles()?;
        Some((p50.as_micros() as u64, p99.as_micros() as u64))
    }

    #[test]
    fn percentiles_are_those_of_the_newest_syncs() {
        assert_eq!(after([]), None);
        assert_eq!(after([7]), Some((7, 7)));
        assert_eq!(after((1..=100).rev()), Some((50, 99)));
        let slow_before = (0..1_000).map(|_| 90_000);
        assert_eq!(
            after(slow_before.chain(1..=SYNCS_KEPT as u64)),
            Some((256, 507)),
            "what is older than the ring is forgotten"
        );
    }

    #[test]
    fn a_folder_takes_what_its_files_take() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        let empty = taken_by(folder.path());
        std::fs::create_dir(folder.path().join("inner"))?;
        std::fs::write(folder.path().join("inner/file"), vec![1; 64 * 1024])?;
        assert!(taken_by(folder.path()) >= empty + 64 * 1024);
        let cached = FolderBytes::new(folder.path());
        let first = cached.get();
        std::fs::remove_dir_all(folder.path().join("inner"))?;
        assert_eq!(cached.get(), first, "looked up seldom");
        Ok(())
    }
}
