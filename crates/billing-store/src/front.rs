//! Decides what callers see: an append is readable at once, and acknowledged when the writer says so. Checks every call before
//! it is queued, so that the writer is never asked for something that makes no sense. Does no I/O but the reading of old entries.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use crate::codec::{ENTRY_BYTES_MAX, MARKER_BYTES_MAX, Seed, VOTE_BYTES_MAX};
use crate::figures::{DiskFigures, SyncTimes};
use crate::load::{self, Loaded};
use crate::medium::Pages;
use crate::writer::{Op, What};
use crate::{Done, Entry, LogDisk, LogState, Pending, Purged, StoreError};

/// Operations queued or in the works. Full: callers wait.
pub(crate) const QUEUED_OPS_MAX: usize = 1024;
/// Their bytes, counted in steps of [`QUEUE_STEP_BYTES`]. Full: callers wait.
const QUEUED_BYTES_MAX: usize = 64 * 1024 * 1024;
const QUEUE_STEP_BYTES: usize = QUEUED_BYTES_MAX / QUEUED_OPS_MAX;
/// Recent entries kept in memory, so that replication seldom reads the disk.
pub(crate) const TAIL_BYTES_MAX: usize = 32 * 1024 * 1024;

/// What writer and callers share.
pub(crate) struct Shared {
    view: Mutex<View>,
    failure: watch::Sender<Option<StoreError>>,
    pub(crate) sync_times: SyncTimes,
}

struct View {
    state: LogState,
    /// The newest entries, without a gap, up to the last one.
    tail: VecDeque<Entry>,
    tail_bytes: usize,
    /// Entries up to here can be read on the medium, and may leave the tail. An entry is acknowledged a moment before that.
    durable: Option<u64>,
    /// Where the log begins, unless it was purged.
    first: Option<u64>,
    /// How far the log is known to be committed, where the writer does not know it yet.
    hint: Option<Bytes>,
    /// Counts truncations and purges, so that a reader of the medium notices one.
    generation: u64,
    /// Truncations submitted so far.
    cuts: u64,
    closed: bool,
}

impl Shared {
    pub(crate) fn new(loaded: &mut Loaded) -> Self {
        let tail = std::mem::take(&mut loaded.tail);
        let last = loaded.end.map(|(index, _)| index);
        let view = View {
            state: LogState {
                purged: loaded.purged.as_ref().map(|(purged, _)| purged.clone()),
                last,
                vote: loaded.vote.clone(),
                committed: loaded.committed.clone(),
            },
            tail_bytes: tail.iter().map(|entry| entry.bytes.len()).sum(),
            tail,
            durable: last,
            first: loaded.packs.front().map(|pack| pack.first),
            hint: None,
            generation: 0,
            cuts: 0,
            closed: false,
        };
        Self {
            view: Mutex::new(view),
            failure: watch::Sender::new(None),
            sync_times: SyncTimes::new(),
        }
    }

    fn view(&self) -> MutexGuard<'_, View> {
        // A panic elsewhere leaves the view as it was between two statements; a failed store refuses everything anyway.
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn fail(&self, error: &StoreError) {
        let first = self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            if first {
                *failure = Some(error.clone());
            }
            first
        });
        if first {
            tracing::error!(%error, "the disk failed: this process must end");
        }
    }

    fn check(&self, view: &View) -> Result<(), StoreError> {
        if let Some(failure) = self.failure.borrow().as_ref() {
            return Err(StoreError::failed(failure));
        }
        if view.closed {
            Err(StoreError::Closed)
        } else {
            Ok(())
        }
    }

    pub(crate) fn failure(&self) -> Option<StoreError> {
        self.failure.borrow().clone()
    }

    pub(crate) fn take_hint(&self) -> Option<Bytes> {
        self.view().hint.take()
    }

    /// Entries up to `last` can be read on the medium, after `cuts` truncations.
    pub(crate) fn note_durable(&self, last: Option<u64>, cuts: u64) {
        let mut view = self.view();
        // A cut still queued: entries of the same indexes may have been appended behind it, and those are in memory only.
        if cuts == view.cuts {
            view.durable = last;
            view.evict();
        }
    }
}

impl View {
    fn evict(&mut self) {
        while self.tail_bytes > TAIL_BYTES_MAX
            && self.tail.len() > 1
            && self
                .tail
                .front()
                .is_some_and(|entry| Some(entry.index) <= self.durable)
        {
            self.tail_bytes -= self.tail.pop_front().map_or(0, |entry| entry.bytes.len());
        }
    }

    fn purged(&self) -> Option<u64> {
        self.state.purged.as_ref().map(|purged| purged.index)
    }

    fn append(&mut self, entries: &[Entry]) -> Result<(), StoreError> {
        let mut next = self.state.last.map(|last| last.wrapping_add(1));
        for entry in entries {
            if next.is_some_and(|next| next != entry.index) || entry.index == u64::MAX {
                let last = self
                    .state
                    .last
                    .map_or("nothing".to_owned(), |last| format!("entry {last}"));
                return Err(StoreError::misuse(format!(
                    "entry {} does not follow {last}",
                    entry.index
                )));
            }
            if entry.bytes.len() > ENTRY_BYTES_MAX {
                return Err(StoreError::EntryTooLarge {
                    bytes: entry.bytes.len(),
                    bytes_max: ENTRY_BYTES_MAX,
                });
            }
            next = Some(entry.index + 1);
        }
        if let (None, Some(entry)) = (self.state.last, entries.first()) {
            self.first = Some(entry.index);
        }
        if let Some(entry) = entries.last() {
            self.state.last = Some(entry.index);
        }
        self.tail_bytes += entries.iter().map(|entry| entry.bytes.len()).sum::<usize>();
        self.tail.extend(entries.iter().cloned());
        Ok(())
    }

    fn truncate_after(&mut self, last_kept: Option<u64>) -> Result<(), StoreError> {
        if last_kept < self.purged() {
            return Err(StoreError::misuse(format!(
                "{last_kept:?} lies below the purge point {:?}",
                self.purged()
            )));
        }
        self.cuts += 1;
        if last_kept >= self.state.last {
            return Ok(());
        }
        let is_empty = last_kept == self.purged() || last_kept < self.first;
        self.state.last = if is_empty { self.purged() } else { last_kept };
        while self
            .tail
            .back()
            .is_some_and(|entry| Some(entry.index) > self.state.last)
        {
            self.tail_bytes -= self.tail.pop_back().map_or(0, |entry| entry.bytes.len());
        }
        self.durable = self.durable.min(self.state.last);
        self.generation += 1;
        Ok(())
    }

    fn purge_through(&mut self, purged: &Purged) -> Result<(), StoreError> {
        if Some(purged.index) <= self.purged() {
            return Ok(());
        }
        if self.purged().is_none()
            && self.state.last.is_some()
            && self.first.is_some_and(|first| purged.index + 1 < first)
        {
            return Err(StoreError::misuse(format!(
                "{} lies before the first entry {:?}",
                purged.index, self.first
            )));
        }
        self.state.last = self.state.last.max(Some(purged.index));
        self.state.purged = Some(purged.clone());
        while self
            .tail
            .front()
            .is_some_and(|entry| entry.index <= purged.index)
        {
            self.tail_bytes -= self.tail.pop_front().map_or(0, |entry| entry.bytes.len());
        }
        self.generation += 1;
        Ok(())
    }

    /// The oldest entry that is there.
    fn first_kept(&self) -> Option<u64> {
        let all = self.clip(&(0..u64::MAX));
        (!all.is_empty()).then_some(all.start)
    }

    /// `range` without what was purged or not yet appended.
    fn clip(&self, range: &Range<u64>) -> Range<u64> {
        let begin = self
            .purged()
            .map_or(self.first.unwrap_or(0), |purged| purged + 1);
        let end = self.state.last.map_or(0, |last| last + 1);
        range.start.max(begin)..range.end.min(end)
    }
}

/// The one implementation of [`LogDisk`]; what differs between media lies behind `pages` and `submit`.
pub(crate) struct LogFront {
    shared: Arc<Shared>,
    seed: Seed,
    name: String,
    pages: Arc<dyn Pages>,
    queue: Arc<Semaphore>,
    submit: Submit,
    bytes: BytesTaken,
    /// Dropped last: what must outlive the log, such as the folder's lock or the writer's thread.
    _keep: Box<dyn std::any::Any + Send + Sync>,
}

/// Hands an operation to the writer. There is always room: the semaphore has fewer permits than the queue has places.
/// `Err` gives it back when the writer is gone.
pub(crate) type Submit = Box<dyn Fn(Op) -> Result<(), Op> + Send + Sync>;

/// What the node's data takes on the disk.
pub(crate) type BytesTaken = Box<dyn Fn() -> u64 + Send + Sync>;

impl LogFront {
    pub(crate) fn new(
        shared: Arc<Shared>,
        seed: Seed,
        name: String,
        pages: Arc<dyn Pages>,
        submit: Submit,
        bytes: BytesTaken,
        keep: Box<dyn std::any::Any + Send + Sync>,
    ) -> Self {
        let queue = Arc::new(Semaphore::new(QUEUED_OPS_MAX));
        Self {
            shared,
            seed,
            name,
            pages,
            queue,
            submit,
            bytes,
            _keep: keep,
        }
    }

    /// Waits for room in the queue.
    async fn room(&self, bytes: usize) -> Result<OwnedSemaphorePermit, StoreError> {
        let steps = bytes.div_ceil(QUEUE_STEP_BYTES).clamp(1, QUEUED_OPS_MAX);
        let permits = u32::try_from(steps).unwrap_or(u32::MAX);
        Arc::clone(&self.queue)
            .acquire_many_owned(permits)
            .await
            .map_err(|_| StoreError::Closed)
    }

    /// Checks and changes the view and queues the operation in one step, so that both happen in the same order.
    fn queue(
        &self,
        permit: OwnedSemaphorePermit,
        what: What,
        done: Done,
        change: impl FnOnce(&mut View) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut view = self.shared.view();
        let refused = self
            .shared
            .check(&view)
            .and_then(|()| change(&mut view))
            .err();
        let (error, done) = match refused {
            Some(error) => (error, Some(done)),
            None => match (self.submit)(Op {
                what,
                done: Some(done),
                permit: Some(permit),
            }) {
                Ok(()) => return Ok(()),
                Err(op) => {
                    // The writer ends early only by failing; should it have vanished, nothing may go on either.
                    let gone = StoreError::misuse("the log's writer is gone");
                    self.shared.fail(&gone);
                    (
                        StoreError::failed(&self.shared.failure().unwrap_or(gone)),
                        op.done,
                    )
                }
            },
        };
        drop(view);
        if let Some(done) = done {
            done(Err(error.clone()));
        }
        Err(error)
    }

    /// Queues and waits until it is durable.
    async fn durably(
        &self,
        bytes: usize,
        what: What,
        change: impl FnOnce(&mut View) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let permit = self.room(bytes).await?;
        let (done, outcome) = oneshot::channel();
        let done: Done = Box::new(move |result| {
            let _ = done.send(result); // The caller may have stopped waiting.
        });
        self.queue(permit, what, done, change)?;
        match outcome.await {
            Ok(result) => result,
            Err(_) => Err(self
                .shared
                .failure()
                .map_or(StoreError::Closed, |first| StoreError::failed(&first))),
        }
    }

    async fn read_entries(
        &self,
        range: Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        loop {
            let (cold, mut warm, generation) = {
                let view = self.shared.view();
                self.shared.check(&view)?;
                let range = view.clip(&range);
                let tail_first = view.tail.front().map_or(range.end, |entry| entry.index);
                let cold = range.start..range.end.min(tail_first);
                let mut bytes = 0;
                let mut warm = Vec::new();
                if cold.is_empty() && !range.is_empty() {
                    let skipped = usize::try_from(range.start - tail_first).unwrap_or(usize::MAX);
                    for entry in view
                        .tail
                        .iter()
                        .skip(skipped)
                        .take_while(|entry| entry.index < range.end)
                    {
                        bytes += entry.bytes.len();
                        warm.push(entry.clone());
                        if bytes >= bytes_max {
                            break;
                        }
                    }
                } else if !cold.is_empty() {
                    warm.extend(
                        view.tail
                            .iter()
                            .take_while(|entry| entry.index < range.end)
                            .cloned(),
                    );
                }
                (cold, warm, view.generation)
            };
            if cold.is_empty() {
                return Ok(warm);
            }
            let mut entries = self.read_cold(cold.clone(), bytes_max).await?;
            let complete = entries
                .first()
                .is_some_and(|entry| entry.index == cold.start);
            let bytes: usize = entries.iter().map(|entry| entry.bytes.len()).sum();
            if complete && bytes >= bytes_max {
                return Ok(entries);
            }
            if complete
                && entries
                    .last()
                    .is_some_and(|entry| entry.index + 1 == cold.end)
            {
                let mut left = bytes_max - bytes;
                warm.retain(|entry| {
                    let keep = left > 0;
                    left = left.saturating_sub(entry.bytes.len());
                    keep
                });
                entries.extend(warm);
                return Ok(entries);
            }
            let view = self.shared.view();
            self.shared.check(&view)?;
            if view.generation == generation {
                drop(view);
                let error = StoreError::damaged(
                    &self.name,
                    format!("entries {cold:?} were durable and are not there"),
                );
                self.shared.fail(&error);
                return Err(error);
            }
            // Cut or purged meanwhile: look again.
        }
    }

    async fn read_cold(
        &self,
        cold: Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let (pages, seed, name) = (Arc::clone(&self.pages), self.seed, self.name.clone());
        let blocks = pages.blocks();
        let read =
            move || load::read_entries(&*pages, seed, &name, cold.start, cold.end, bytes_max);
        let outcome = match tokio::runtime::Handle::try_current() {
            Ok(runtime) if blocks => match runtime.spawn_blocking(read).await {
                Ok(outcome) => outcome,
                Err(_) => Err(StoreError::damaged(&self.name, "reading it panicked")),
            },
            _ => read(),
        };
        if let Err(error) = &outcome {
            self.shared.fail(error);
        }
        outcome
    }
}

impl LogDisk for LogFront {
    fn state(&self) -> Result<LogState, StoreError> {
        let view = self.shared.view();
        self.shared.check(&view)?;
        Ok(view.state.clone())
    }

    fn append(&self, entries: Vec<Entry>, done: Done) -> Pending<'_, ()> {
        Box::pin(async move {
            let bytes = entries.iter().map(|entry| entry.bytes.len()).sum();
            let permit = match self.room(bytes).await {
                Ok(permit) => permit,
                Err(error) => {
                    done(Err(error.clone()));
                    return Err(error);
                }
            };
            let copy = entries.clone();
            self.queue(permit, What::Append(entries), done, |view| {
                view.append(&copy)
            })
        })
    }

    fn save_vote(&self, vote: Bytes) -> Pending<'_, ()> {
        Box::pin(async move {
            if vote.len() > VOTE_BYTES_MAX {
                return Err(StoreError::misuse(format!(
                    "a vote has {} bytes, the bound is {VOTE_BYTES_MAX}",
                    vote.len()
                )));
            }
            let saved = vote.clone();
            self.durably(vote.len(), What::Vote(vote), move |view| {
                view.state.vote = Some(saved);
                Ok(())
            })
            .await
        })
    }

    fn save_committed(&self, committed: Bytes) -> Pending<'_, ()> {
        Box::pin(async move {
            if committed.len() > MARKER_BYTES_MAX {
                return Err(StoreError::misuse(format!(
                    "{} bytes, the bound is {MARKER_BYTES_MAX}",
                    committed.len()
                )));
            }
            // Nobody waits for a hint, and it wakes nobody: the writer takes the newest one along.
            let mut view = self.shared.view();
            self.shared.check(&view)?;
            view.state.committed = Some(committed.clone());
            view.hint = Some(committed);
            Ok(())
        })
    }

    fn truncate_after(&self, last_kept: Option<u64>) -> Pending<'_, ()> {
        Box::pin(
            self.durably(0, What::TruncateAfter(last_kept), move |view| {
                view.truncate_after(last_kept)
            }),
        )
    }

    fn purge_through(&self, index: u64, marker: Bytes) -> Pending<'_, ()> {
        Box::pin(async move {
            if marker.len() > MARKER_BYTES_MAX || index == u64::MAX {
                return Err(StoreError::misuse(format!(
                    "purge through {index} with a marker of {} bytes, the bound is {MARKER_BYTES_MAX}",
                    marker.len()
                )));
            }
            let purged = Purged { index, marker };
            self.durably(0, What::PurgeThrough(purged.clone()), move |view| {
                view.purge_through(&purged)
            })
            .await
        })
    }

    fn read(&self, range: Range<u64>) -> Pending<'_, Vec<Entry>> {
        Box::pin(self.read_entries(range, usize::MAX))
    }

    fn read_some(&self, range: Range<u64>, bytes_max: usize) -> Pending<'_, Vec<Entry>> {
        Box::pin(self.read_entries(range, bytes_max.max(1)))
    }

    fn figures(&self) -> DiskFigures {
        let first_index = self.shared.view().first_kept();
        let (sync_p50, sync_p99) = self.shared.sync_times.percentiles().unzip();
        DiskFigures {
            sync_p50,
            sync_p99,
            first_index,
            bytes: (self.bytes)(),
        }
    }

    fn failure(&self) -> watch::Receiver<Option<StoreError>> {
        self.shared.failure.subscribe()
    }

    fn close(&self) -> Pending<'_, ()> {
        Box::pin(self.durably(0, What::Close, |view| {
            view.closed = true;
            Ok(())
        }))
    }
}
