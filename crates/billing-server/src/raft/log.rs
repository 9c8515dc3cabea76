//! Decides how the consensus library's log and vote lie on a [`LogDisk`]. Every failure of the disk goes through the
//! fail-stop door: nothing is retried here, and nothing that failed is ever acknowledged.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use billing_core::sabotaged;
use billing_store::{LogDisk, StoreError};
use bytes::Bytes;
use futures::Stream;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};

use super::codec::{self, CodecError};
use super::folders::Folders;
use super::types::{Entry, LogId, TypeConfig, Vote};
use crate::node::FailStop;

/// Bytes of entries that one replication message carries, before the last one: well below the largest message accepted.
pub const APPEND_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of entries read at a time on the way to the state machine.
const APPLY_BYTES_MAX: usize = 1024 * 1024;
/// Decoded entries kept, so that replication and apply of what was just appended decode nothing. Those below are read again.
const RECENT_ENTRIES_MAX: usize = 256;
/// Entries that are purged at once. The log's writer does nothing else meanwhile, and acknowledges nothing: few enough that
/// nobody notices, also where an entry is as large as it may be.
const PURGED_AT_ONCE: u64 = 128;

/// The log, the vote and how far it is known to be committed. Clones share it, readers too.
#[derive(Clone)]
pub struct LogStore {
    disk: Arc<dyn LogDisk>,
    folders: Folders,
    recent: Arc<Mutex<BTreeMap<u64, Entry>>>,
    purging: Arc<Mutex<Purging>>,
    fail_stop: FailStop,
}

/// How far the log shall be purged, and whether a task is at it.
#[derive(Default)]
struct Purging {
    through: Option<LogId>,
    under_way: bool,
}

impl LogStore {
    /// `folders` keeps the vote, in one record with what it knows of other nodes' folders.
    pub fn new(disk: Arc<dyn LogDisk>, folders: Folders, fail_stop: FailStop) -> LogStore {
        LogStore {
            disk,
            folders,
            recent: Arc::default(),
            purging: Arc::default(),
            fail_stop,
        }
    }

    fn purging(&self) -> MutexGuard<'_, Purging> {
        // Nothing panics while it holds the lock.
        self.purging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Purges in small steps what shall be purged, until all of it is.
    async fn purge_in_steps(&self) -> Result<(), StoreError> {
        loop {
            let purged = self.disk.state()?.purged.map(|purged| purged.index);
            let target = {
                let mut purging = self.purging();
                match purging.through.filter(|target| purged < Some(target.index)) {
                    Some(target) => target,
                    None => {
                        purging.under_way = false;
                        return Ok(());
                    }
                }
            };
            let step = purged.map_or(0, |purged| purged + 1) + PURGED_AT_ONCE;
            let at_step = if step < target.index {
                self.disk.read(step..step + 1).await?.into_iter().next()
            } else {
                None
            };
            // The last step, or somebody purged beyond this one meanwhile.
            let (index, marker) = match at_step {
                Some(entry) => (step, self.log_id(&entry)),
                None => (target.index, Some(target)),
            };
            let Some(marker) = marker.and_then(|id| codec::encode("purge marker", &id).ok()) else {
                return Ok(()); // The fail-stop door is open.
            };
            self.disk.purge_through(index, marker).await?;
        }
    }

    fn log_id(&self, stored: &billing_store::Entry) -> Option<LogId> {
        let entry = self.decode(vec![stored.clone()]).ok()?;
        entry.first().map(|entry| entry.log_id)
    }

    /// A disk that failed, or that holds what this binary cannot read, ends the process. `Closed` is an orderly end.
    fn failed(&self, error: StoreError) -> io::Error {
        if !matches!(error, StoreError::Closed) {
            self.fail_stop.trip(error.clone());
        }
        error.into()
    }

    fn unreadable(&self, error: CodecError) -> io::Error {
        let told = io::Error::other(error.to_string());
        self.fail_stop.trip(error);
        told
    }

    fn recent(&self) -> MutexGuard<'_, BTreeMap<u64, Entry>> {
        // Nothing panics while it holds the lock, and the map is only a cache.
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cached(&self, range: &Range<u64>) -> Option<Vec<Entry>> {
        let recent = self.recent();
        let found: Vec<Entry> = recent
            .range(range.clone())
            .map(|(_, entry)| entry.clone())
            .collect();
        // Only a whole answer counts: the disk knows best what begins and ends where.
        (found.len() as u64 == range.end.saturating_sub(range.start)).then_some(found)
    }

    fn decode(&self, entries: Vec<billing_store::Entry>) -> io::Result<Vec<Entry>> {
        entries
            .into_iter()
            .map(|stored| {
                let entry: Entry = codec::decode("log entry", &stored.bytes)
                    .map_err(|error| self.unreadable(error))?;
                if entry.log_id.index == stored.index {
                    Ok(entry)
                } else {
                    Err(self.unreadable(CodecError::Broken {
                        what: "log entry",
                        why: format!(
                            "it says index {} and lies at {}",
                            entry.log_id.index, stored.index
                        ),
                    }))
                }
            })
            .collect()
    }

    async fn read_some(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<Entry>> {
        if let Some(entries) = self.cached(&range) {
            return Ok(entries);
        }
        let stored = self
            .disk
            .read_some(range, bytes_max)
            .await
            .map_err(|error| self.failed(error))?;
        self.decode(stored)
    }

    fn optional<T: serde::de::DeserializeOwned>(
        &self,
        what: &'static str,
        bytes: Option<Bytes>,
    ) -> io::Result<Option<T>> {
        bytes
            .map(|bytes| codec::decode(what, &bytes).map_err(|error| self.unreadable(error)))
            .transpose()
    }
}

fn half_open(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(&index) => index,
        Bound::Excluded(&index) => index.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&index) => index.saturating_add(1),
        Bound::Excluded(&index) => index,
        Bound::Unbounded => u64::MAX,
    };
    start..end.max(start)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let range = half_open(&range);
        if let Some(entries) = self.cached(&range) {
            return Ok(entries);
        }
        let stored = self
            .disk
            .read(range)
            .await
            .map_err(|error| self.failed(error))?;
        self.decode(stored)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        // The cache knows no sizes: a batch is at most 48 KiB, so this many of them fit in a message.
        let cached_max = (APPEND_BYTES_MAX / crate::node::BATCH_BYTES_MAX) as u64;
        if let Some(entries) = self.cached(&(start..end.min(start + cached_max))) {
            return Ok(entries);
        }
        let stored = self
            .disk
            .read_some(start..end, APPEND_BYTES_MAX)
            .await
            .map_err(|error| self.failed(error))?;
        self.decode(stored)
    }

    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        // In pieces: after a long outage, what is committed and not applied may be the whole log.
        let range = half_open(&range);
        futures::stream::unfold(
            (self.clone(), range, Vec::new().into_iter()),
            |(log, mut range, mut ready): (LogStore, Range<u64>, std::vec::IntoIter<Entry>)| async move {
                if let Some(entry) = ready.next() {
                    return Some((Ok(entry), (log, range, ready)));
                }
                if range.is_empty() {
                    return None;
                }
                match log.read_some(range.clone(), APPLY_BYTES_MAX).await {
                    Ok(entries) => {
                        range.start = entries.last()?.log_id.index + 1;
                        ready = entries.into_iter();
                        ready.next().map(|entry| (Ok(entry), (log, range, ready)))
                    }
                    Err(error) => {
                        range.start = range.end;
                        Some((Err(error), (log, range, ready)))
                    }
                }
            },
        )
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.folders.vote())
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let state = self.disk.state().map_err(|error| self.failed(error))?;
        let purged: Option<LogId> =
            self.optional("purge marker", state.purged.map(|purged| purged.marker))?;
        let last = match state.last {
            None => None,
            Some(index) if purged.is_some_and(|purged| purged.index == index) => purged,
            Some(index) => self
                .try_get_log_entries(index..=index)
                .await?
                .last()
                .map(|entry| entry.log_id),
        };
        Ok(LogState {
            last_purged_log_id: purged,
            last_log_id: last,
        })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.folders
            .save_vote(*vote)
            .await
            .map_err(|error| self.failed(error))
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let Some(committed) = committed else {
            return Ok(());
        };
        let bytes = codec::encode("committed", &committed)?;
        self.disk
            .save_committed(bytes)
            .await
            .map_err(|error| self.failed(error))
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        let state = self.disk.state().map_err(|error| self.failed(error))?;
        let committed: Option<LogId> = self.optional("committed", state.committed)?;
        let Some(committed) = committed else {
            return Ok(None);
        };
        // What is committed is known before this disk has it: others make a majority. So the hint may be ahead of a log that
        // lost its end in a crash, or beside one whose end was to be replaced. It counts where the log has that very entry.
        let log = self.get_log_state().await?;
        let known = if log
            .last_purged_log_id
            .is_some_and(|purged| committed.index <= purged.index)
        {
            true
        } else if log
            .last_log_id
            .is_none_or(|last| last.index < committed.index)
        {
            false
        } else {
            let there = self
                .try_get_log_entries(committed.index..=committed.index)
                .await?;
            there.last().map(|entry| entry.log_id) == Some(committed)
        };
        Ok(known.then_some(committed))
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut stored = Vec::new();
        {
            let mut recent = self.recent();
            for entry in entries {
                let bytes = codec::encode("log entry", &entry)?;
                stored.push(billing_store::Entry {
                    index: entry.log_id.index,
                    bytes,
                });
                recent.insert(entry.log_id.index, entry);
            }
            while recent.len() > RECENT_ENTRIES_MAX {
                recent.pop_first();
            }
        }
        let fail_stop = self.fail_stop.clone();
        let done = Box::new(move |result: Result<(), StoreError>| match result {
            Ok(()) => callback.io_completed(Ok(())),
            Err(StoreError::Closed) => callback.io_completed(Err(StoreError::Closed.into())),
            // Never acknowledged: the process ends here.
            Err(error) => fail_stop.trip(error),
        });
        self.disk
            .append(stored, done)
            .await
            .map_err(|error| self.failed(error))
    }

    async fn truncate_after(&mut self, last_kept: Option<LogId>) -> Result<(), io::Error> {
        {
            let mut recent = self.recent();
            match last_kept {
                Some(kept) => drop(recent.split_off(&(kept.index + 1))),
                None => recent.clear(),
            }
        }
        self.disk
            .truncate_after(last_kept.map(|kept| kept.index))
            .await
            .map_err(|error| self.failed(error))
    }

    async fn purge(&mut self, through: LogId) -> Result<(), io::Error> {
        {
            let mut recent = self.recent();
            while recent
                .first_key_value()
                .is_some_and(|(&index, _)| index <= through.index)
            {
                recent.pop_first();
            }
        }
        let last = self.disk.state().map_err(|error| self.failed(error))?.last;
        let through = match last {
            Some(last) if last > through.index && sabotaged!(PurgeBeyondSnapshot) => LogId {
                index: last - 1,
                ..through
            },
            Some(_) | None => through,
        };
        if last <= Some(through.index) {
            // Behind an installed snapshot: what is appended next follows it, so this comes first. And it is one step.
            let marker = codec::encode("purge marker", &through)?;
            let purged = self.disk.purge_through(through.index, marker).await;
            return purged.map_err(|error| self.failed(error));
        }
        // The consensus does not wait for it, since it needs nothing of it: a purge makes room, and after a crash in the middle
        // of it there is merely more of the log than there must be.
        let begins = {
            let mut purging = self.purging();
            purging.through = purging.through.max(Some(through));
            !std::mem::replace(&mut purging.under_way, true)
        };
        if begins {
            let log = self.clone();
            tokio::spawn(async move {
                if let Err(error) = log.purge_in_steps().await {
                    log.failed(error);
                }
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use billing_store::Identity;
    use openraft::EntryPayload;

    use super::*;
    use crate::raft::folders::FolderId;
    use crate::raft::types::LeaderId;

    fn at(index: u64) -> LogId {
        LogId::new(
            LeaderId {
                term: 1,
                node_id: 1,
            },
            index,
        )
    }

    fn entry(index: u64) -> io::Result<billing_store::Entry> {
        let entry = Entry {
            log_id: at(index),
            payload: EntryPayload::Blank,
        };
        let bytes = codec::encode("log entry", &entry)?;
        Ok(billing_store::Entry { index, bytes })
    }

    fn purged(log: &LogStore) -> io::Result<Option<u64>> {
        Ok(log.disk.state()?.purged.map(|purged| purged.index))
    }

    async fn empty(folder: &std::path::Path) -> io::Result<LogStore> {
        let identity = Identity {
            cluster: "demo".into(),
            node: 1,
            created_unix_ms: 0,
        };
        let disk = billing_store::create(&folder.join("node"), &identity)?;
        let folders = Folders::open(disk.log.clone(), FolderId([1; 8])).await;
        let folders = folders.map_err(io::Error::other)?;
        Ok(LogStore::new(
            disk.log.clone(),
            folders,
            FailStop::new(|_| {}),
        ))
    }

    async fn appended(log: &LogStore, indexes: Range<u64>) -> io::Result<()> {
        let entries = indexes.map(entry).collect::<io::Result<Vec<_>>>()?;
        let (told, durable) = tokio::sync::oneshot::channel();
        let done = Box::new(move |result: Result<(), StoreError>| {
            let _ = told.send(result);
        });
        log.disk.append(entries, done).await?;
        Ok(durable.await.map_err(io::Error::other)??)
    }

    /// What is committed is told by others before this disk has it, and is written with what this disk has.
    #[tokio::test]
    async fn a_committed_index_counts_only_where_the_log_has_that_entry() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let mut log = empty(folder.path()).await?;
        appended(&log, 0..10).await?;
        assert_eq!(log.read_committed().await?, None);
        log.save_committed(Some(at(7))).await?;
        assert_eq!(log.read_committed().await?, Some(at(7)));
        log.save_committed(Some(at(12))).await?;
        assert_eq!(log.read_committed().await?, None, "beyond the end");
        let other = LogId::new(
            LeaderId {
                term: 2,
                node_id: 1,
            },
            7,
        );
        log.save_committed(Some(other)).await?;
        assert_eq!(log.read_committed().await?, None, "another entry is there");
        log.purge(at(5)).await?;
        log.save_committed(Some(at(4))).await?;
        assert_eq!(log.read_committed().await?, Some(at(4)), "gone by");
        Ok(())
    }

    #[tokio::test]
    async fn nobody_waits_for_a_long_purge_and_all_of_it_is_done() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let mut log = empty(folder.path()).await?;
        appended(&log, 0..2_000).await?;

        log.purge(at(1_500)).await?;
        log.purge(at(1_700)).await?;
        assert_eq!(purged(&log)?, None, "nothing of it was waited for");
        let all = async {
            while purged(&log)? != Some(1_700) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            io::Result::Ok(())
        };
        let patience = Duration::from_secs(60);
        tokio::time::timeout(patience, all).await??;
        let kept = log.try_get_log_entries(1_690..1_710).await?;
        assert_eq!(kept.first().map(|entry| entry.log_id), Some(at(1_701)));
        let state = log.get_log_state().await?;
        assert_eq!(state.last_purged_log_id, Some(at(1_700)));
        assert_eq!(state.last_log_id, Some(at(1_999)));

        // Behind an installed snapshot: what is appended next must find it done.
        log.purge(at(5_000)).await?;
        assert_eq!(purged(&log)?, Some(5_000));
        Ok(())
    }
}
