//! Decides how sled is used so that durable means durable, and what its slowness is kept away from. The only file that names it.
//!
//! A change is durable once it is in the journal (`journal.rs`), and goes into sled's memory then: nobody who waits for an append
//! waits for sled's threads. When the journal is full, and when the log is closed, there is a checkpoint: sled writes, its file
//! is synced, and the journal begins anew. What sled has in memory unwritten is bounded by [`TOLD_BYTES_MAX`].
//!
//! Facts about 0.34.7, each with a test but the last, which needs a power cut:
//!
//! - its `flush()` hands pages to the kernel and no further: `sync_data()` on its own file is what reaches the disk;
//! - an item larger than a quarter of a segment goes into a file of its own, which is never synced, and a *leaf* is such an item
//!   too: up to 17 values together. So values stay below 64 KiB and segments are [`SEGMENT_BYTES`];
//! - it opens a damaged file without an error, shorter: hence `high.rs`;
//! - after an error, dropping it writes and syncs again: hence it is never dropped then;
//! - it writes by itself whenever a segment is full: hence it is given nothing that the journal might lose;
//! - it believes what the head of a segment says to lie before it, whether a power cut left it there or not: hence its file is
//!   synced before it can have begun a second one. A batch that is larger than the journal is synced at its end, as one.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::StoreError;
use crate::codec::{PACK_BYTES_MAX, Seed};
use crate::figures::FolderBytes;
use crate::folder::{self, FolderLock};
use crate::front::{LogFront, QUEUED_OPS_MAX, Shared, TAIL_BYTES_MAX};
use crate::high::{High, SLOT_BYTES, SLOT_STRIDE, SLOTS};
use crate::journal::{self, JOURNAL_BYTES, Journal};
use crate::load;
use crate::medium::{Batch, Medium, Pages};
use crate::writer::{Op, Writer};

const SEGMENT_BYTES: usize = 8 * 1024 * 1024;
/// A leaf splits when it holds more than this many items.
const LEAF_ITEMS_MAX: usize = 17;
const _: () = assert!((LEAF_ITEMS_MAX + 1) * (PACK_BYTES_MAX + 1024) < SEGMENT_BYTES / 4);
/// What sled is told, or made to forget, before its file is synced. It writes up to five times that, since it rewrites a page
/// after every tenth change of it, and two pages of a MiB more when it tidies up (`process.rs` watches): less than a segment.
const TOLD_BYTES_MAX: usize = SEGMENT_BYTES / 16;
const CACHE_BYTES: u64 = 64 * 1024 * 1024;
/// Operations that one batch takes at most, so that the first of them does not wait for ever.
const BATCH_OPS_MAX: usize = QUEUED_OPS_MAX;

const LOG_FOLDER: &str = "log";
const HIGH_FILE: &str = "high";
const JOURNAL_FILE: &str = "journal";

fn sled_error(doing: &'static str, path: &Path, error: sled::Error) -> StoreError {
    match error {
        sled::Error::Io(source) => StoreError::io(doing, path, source),
        sled::Error::Corruption { .. } => {
            StoreError::damaged(path.display().to_string(), error.to_string())
        }
        other => StoreError::io(doing, path, std::io::Error::other(other.to_string())),
    }
}

struct SledPages {
    db: sled::Db,
    path: PathBuf,
}

impl SledPages {
    fn error(&self, error: sled::Error) -> StoreError {
        sled_error("reading", &self.path, error)
    }
}

fn owned(pair: (sled::IVec, sled::IVec)) -> (Vec<u8>, Bytes) {
    (pair.0.to_vec(), Bytes::copy_from_slice(&pair.1))
}

impl Pages for SledPages {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let value = self.db.get(key).map_err(|error| self.error(error))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Bytes)>, StoreError> {
        let records = self.db.range(from..to).take(limit);
        records
            .map(|pair| pair.map(owned).map_err(|error| self.error(error)))
            .collect()
    }

    fn last_in(&self, from: &[u8], to: &[u8]) -> Result<Option<(Vec<u8>, Bytes)>, StoreError> {
        let last = self.db.range(from..=to).next_back();
        last.map(|pair| pair.map(owned).map_err(|error| self.error(error)))
            .transpose()
    }

    fn blocks(&self) -> bool {
        true
    }
}

/// sled, its own file once more, the journal, and the `high` file.
pub(crate) struct SledMedium {
    pages: Arc<SledPages>,
    name: String,
    raw: File,
    raw_path: PathBuf,
    journal: Journal,
    unsynced: Unsynced,
    /// Since its file was synced.
    told_bytes: usize,
    high: File,
    high_path: PathBuf,
    started: Instant,
}

/// What was applied since the last sync, or not yet handed on.
enum Unsynced {
    Nothing,
    /// The last record of the journal. sled is not told before it is durable there.
    InJournal(Batch),
    /// Durable in the journal; sled is still to be told.
    Untold(Batch),
    /// A batch for which the journal is too small.
    InSled,
}

impl SledMedium {
    /// Tells sled of a batch that the journal holds, durably. One change at a time: sled's own batches cost two rounds through
    /// its threads, and what a crash leaves of this one is made whole from the journal. Readers never look for what was not
    /// told yet, and look again after a cut or a purge.
    fn tell(&mut self, batch: Batch) -> Result<(), StoreError> {
        for (key, value) in batch {
            let db = &self.pages.db;
            let mut bytes = key.len() + value.as_ref().map_or(0, Vec::len);
            let told = match value {
                Some(value) => db.insert(key, value),
                None => db.remove(key),
            };
            let old = told.map_err(|error| sled_error("writing", &self.raw_path, error))?;
            bytes += old.map_or(0, |old| old.len());
            self.told_bytes += bytes;
            if self.told_bytes >= TOLD_BYTES_MAX {
                self.sync_sled()?;
            }
        }
        Ok(())
    }

    /// Of a batch that the journal does not hold: whole or absent after a crash.
    fn tell_at_once(&self, batch: Batch) -> Result<(), StoreError> {
        let mut changes = sled::Batch::default();
        for (key, value) in batch {
            match value {
                Some(value) => changes.insert(key, value),
                None => changes.remove(key),
            }
        }
        let told = self.pages.db.apply_batch(changes);
        told.map_err(|error| sled_error("writing", &self.raw_path, error))
    }

    /// What sled was told so far is on the disk once this returns.
    fn sync_sled(&mut self) -> Result<(), StoreError> {
        let flushed = self.pages.db.flush();
        flushed.map_err(|error| sled_error("writing", &self.raw_path, error))?;
        self.raw
            .sync_data()
            .map_err(|error| StoreError::io("syncing", &self.raw_path, error))?;
        self.told_bytes = 0;
        Ok(())
    }

    /// What was applied is durable once this returns.
    fn sync_applied(&mut self) -> Result<(), StoreError> {
        match std::mem::replace(&mut self.unsynced, Unsynced::Nothing) {
            Unsynced::Nothing => {}
            Unsynced::InJournal(batch) => {
                self.journal.sync()?;
                self.unsynced = Unsynced::Untold(batch);
            }
            Unsynced::Untold(batch) => self.unsynced = Unsynced::Untold(batch),
            Unsynced::InSled => {
                self.sync_sled()?;
                // Both slots of the new epoch before anybody is told: the older one would lay old records over this batch.
                self.journal.sync()?;
            }
        }
        Ok(())
    }

    /// And can be read as well.
    fn sync_all(&mut self) -> Result<(), StoreError> {
        self.sync_applied()?;
        match std::mem::replace(&mut self.unsynced, Unsynced::Nothing) {
            Unsynced::Untold(batch) => self.tell(batch),
            _ => Ok(()),
        }
    }

    /// Moves everything into sled, durably, and empties the journal, in this order.
    fn checkpoint(&mut self) -> Result<(), StoreError> {
        assert!(
            matches!(self.unsynced, Unsynced::Nothing),
            "sled knows everything that the journal is about to forget"
        );
        self.sync_sled()?;
        self.journal.begin_epoch()
    }
}

impl Medium for SledMedium {
    fn pages(&self) -> &dyn Pages {
        &*self.pages
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn apply(&mut self, batch: Batch) -> Result<(), StoreError> {
        // A crash may tear one record, and never one that another one follows.
        self.sync_all()?;
        if !self.journal.fits(&batch) {
            self.checkpoint()?;
        }
        // The journal is empty and too small: what it holds later is newer than this batch, which is synced before that.
        if !self.journal.fits(&batch) {
            self.unsynced = Unsynced::InSled;
            return self.tell_at_once(batch);
        }
        self.journal.append(&batch)?;
        self.unsynced = Unsynced::InJournal(batch);
        Ok(())
    }

    async fn sync(&mut self) -> Result<(), StoreError> {
        self.sync_applied()
    }

    fn settle(&mut self) -> Result<(), StoreError> {
        self.sync_all()
    }

    fn read_high(&self) -> Result<[Vec<u8>; SLOTS], StoreError> {
        let mut slots: [Vec<u8>; SLOTS] = Default::default();
        for (slot, record) in slots.iter_mut().enumerate() {
            record.resize(SLOT_BYTES, 0);
            let read = self.high.read_exact_at(record, slot as u64 * SLOT_STRIDE);
            match read {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                    let where_ = self.high_path.display().to_string();
                    return Err(StoreError::damaged(where_, "the file is cut short"));
                }
                Err(error) => return Err(StoreError::io("reading", &self.high_path, error)),
            }
        }
        Ok(slots)
    }

    fn write_high(&mut self, slot: usize, record: &[u8]) -> Result<(), StoreError> {
        let at = slot as u64 * SLOT_STRIDE;
        self.high
            .write_all_at(record, at)
            .map_err(|error| StoreError::io("writing", &self.high_path, error))
    }

    async fn sync_high(&mut self) -> Result<(), StoreError> {
        self.high
            .sync_data()
            .map_err(|error| StoreError::io("syncing", &self.high_path, error))?;
        // A hint that came along unsynced: now, when nobody waits, and not when the next append comes.
        self.sync_all()
    }

    fn close(&mut self) -> Result<(), StoreError> {
        self.checkpoint()
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

/// Opens sled; it panics on some kinds of damage.
fn open_sled(path: &Path) -> Result<sled::Db, StoreError> {
    wait_for_sled(path)?;
    let config = sled::Config::new()
        .path(path)
        .mode(sled::Mode::HighThroughput)
        .cache_capacity(CACHE_BYTES)
        .segment_size(SEGMENT_BYTES)
        // Its own flusher would write at times that nobody chose.
        .flush_every_ms(None);
    match catch_unwind(AssertUnwindSafe(|| config.open())) {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(error)) => Err(sled_error("opening", path, error)),
        Err(_) => Err(StoreError::damaged(
            path.display().to_string(),
            "sled cannot read it (it panicked, see above)",
        )),
    }
}

/// Waits until sled's own threads, left from an earlier opening in this process, have let go of its file. Nobody else can
/// have it: the caller holds the folder's lock.
fn wait_for_sled(path: &Path) -> Result<(), StoreError> {
    let path = path.join("db");
    if !path.exists() {
        return Ok(());
    }
    let file = File::open(&path).map_err(|error| StoreError::io("opening", &path, error))?;
    let waited = rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive);
    waited.map_err(|error| StoreError::io("locking", &path, error.into()))
}

/// Makes an empty log in `folder`, durable down to the folder's own entry.
pub(crate) fn create(folder: &Path, seed: Seed, journal_bytes: u64) -> Result<(), StoreError> {
    let path = folder.join(LOG_FOLDER);
    let db = open_sled(&path)?;
    db.flush()
        .map_err(|error| sled_error("writing", &path, error))?;
    drop(db);
    for file in ["db", "conf"] {
        let file = path.join(file);
        let opened = File::open(&file).map_err(|error| StoreError::io("opening", &file, error))?;
        opened
            .sync_all()
            .map_err(|error| StoreError::io("syncing", &file, error))?;
    }
    folder::sync_folder(&path)?;
    let high_path = folder.join(HIGH_FILE);
    let empty = High {
        sequence: 1,
        reach: None,
        vote_sequence: 0,
        vote: None,
    };
    let mut contents = vec![0; (SLOT_STRIDE * SLOTS as u64) as usize];
    contents[..SLOT_BYTES].copy_from_slice(&empty.encode(seed, 0));
    folder::write_durably(&high_path, &contents)?;
    journal::create(&folder.join(JOURNAL_FILE), seed, journal_bytes)?;
    folder::sync_folder(folder)
}

/// Gives a journal to a log that was made without one; durable once this returns. What may be there is of an attempt that was
/// not finished, and nothing was ever written to it.
pub(crate) fn add_journal(folder: &Path, seed: Seed) -> Result<(), StoreError> {
    journal::create(&folder.join(JOURNAL_FILE), seed, JOURNAL_BYTES)?;
    folder::sync_folder(folder)
}

/// Opens all files, and returns what sled may not know yet. What the journal says is verified before sled is touched.
fn open_medium(folder: &Path, seed: Seed) -> Result<(SledMedium, Vec<Batch>), StoreError> {
    let path = folder.join(LOG_FOLDER);
    let raw_path = path.join("db");
    let high_path = folder.join(HIGH_FILE);
    for needed in [&raw_path, &path.join("conf"), &high_path] {
        // sled would make an empty log where there is none.
        if !needed.is_file() {
            return Err(StoreError::damaged(
                needed.display().to_string(),
                "the file is missing",
            ));
        }
    }
    let (journal, batches) = Journal::open(&folder.join(JOURNAL_FILE), seed)?;
    let db = open_sled(&path)?;
    let raw = File::open(&raw_path).map_err(|error| StoreError::io("opening", &raw_path, error))?;
    let high = OpenOptions::new().read(true).write(true).open(&high_path);
    let high = high.map_err(|error| StoreError::io("opening", &high_path, error))?;
    let medium = SledMedium {
        pages: Arc::new(SledPages {
            db,
            path: path.clone(),
        }),
        name: path.display().to_string(),
        raw,
        raw_path,
        journal,
        unsynced: Unsynced::Nothing,
        told_bytes: 0,
        high,
        high_path,
        started: Instant::now(),
    };
    Ok((medium, batches))
}

/// Tells sled what the journal holds, verifies the log, and begins a new epoch only when it is whole: a damaged folder stays as
/// it was found, and is found damaged again.
fn recover(
    medium: &mut SledMedium,
    seed: Seed,
    batches: Vec<Batch>,
) -> Result<load::Loaded, StoreError> {
    let recovering = catch_unwind(AssertUnwindSafe(|| {
        // What was read may be in the kernel's memory only, and sled is told of nothing less than durable.
        medium.journal.sync()?;
        for batch in batches {
            medium.tell(batch)?;
        }
        let loaded = load::load(medium, seed, TAIL_BYTES_MAX)?;
        medium.checkpoint()?;
        Ok(loaded)
    }));
    recovering.unwrap_or_else(|_| {
        Err(StoreError::damaged(
            &medium.name,
            "sled cannot read it (it panicked, see above)",
        ))
    })
}

/// Opens and verifies the log, and starts its writer.
pub(crate) fn open(
    folder: &Path,
    seed: Seed,
    lock: Arc<FolderLock>,
) -> Result<LogFront, StoreError> {
    let (mut medium, batches) = open_medium(folder, seed)?;
    let mut loaded = match recover(&mut medium, seed, batches) {
        Ok(loaded) => loaded,
        Err(error) => {
            if matches!(error, StoreError::Io { .. } | StoreError::DiskFull { .. }) {
                // As in `run`: never dropped after a failed write or sync.
                std::mem::forget((medium.pages.db.clone(), lock));
            }
            return Err(error);
        }
    };
    let shared = Arc::new(Shared::new(&mut loaded));
    let (name, pages) = (medium.name.clone(), Arc::clone(&medium.pages));
    let never_dropped = (medium.pages.db.clone(), Arc::clone(&lock));
    let writer = Writer::new(medium, seed, Arc::clone(&shared), loaded);
    let (sender, inbox) = sync_channel(QUEUED_OPS_MAX);
    let thread = std::thread::Builder::new()
        .name("log-writer".to_owned())
        .spawn(move || run(writer, &inbox, never_dropped))
        .map_err(|error| StoreError::io("starting the writer of", folder, error))?;
    let keep = Arc::new(Keep {
        sender: Mutex::new(Some(sender)),
        thread: Mutex::new(Some(thread)),
        _lock: lock,
    });
    let to_writer = Arc::clone(&keep);
    let submit = Box::new(move |op| to_writer.submit(op));
    let taken = FolderBytes::new(folder);
    Ok(LogFront::new(
        shared,
        seed,
        name,
        pages,
        submit,
        Box::new(move || taken.get()),
        Box::new(Joins(keep)),
    ))
}

/// The writer's end of a log, on the callers' side.
struct Keep {
    sender: Mutex<Option<SyncSender<Op>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    _lock: Arc<FolderLock>,
}

impl Keep {
    fn submit(&self, op: Op) -> Result<(), Op> {
        use std::sync::mpsc::TrySendError;
        match self
            .sender
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
        {
            Some(sender) => sender.try_send(op).map_err(|error| match error {
                TrySendError::Full(op) | TrySendError::Disconnected(op) => op,
            }),
            None => Err(op),
        }
    }
}

/// Waits for the writer when the log is dropped, so that the folder can be opened again.
struct Joins(Arc<Keep>);

impl Drop for Joins {
    fn drop(&mut self) {
        drop(
            self.0
                .sender
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        let thread = self
            .0
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            // It catches its own panics; there is nothing left to tell.
            let _ = thread.join();
        }
    }
}

/// sled's work is never pending: it blocks this thread, which is there for that.
fn now_or_never<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("sled's medium never waits for a waker"),
    }
}

fn run(
    mut writer: Writer<SledMedium>,
    inbox: &Receiver<Op>,
    kept_on_failure: (sled::Db, Arc<FolderLock>),
) {
    let outcome = catch_unwind(AssertUnwindSafe(|| serve(&mut writer, inbox)));
    let error = match outcome {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error,
        Err(_) => StoreError::io(
            "writing",
            Path::new(writer.name()),
            std::io::Error::other("the writer panicked, see above"),
        ),
    };
    // sled's drop would write and sync again, after a failure: never. The lock stays too: this process is done with the folder.
    std::mem::forget(kept_on_failure);
    writer.fail(&error);
    while let Ok(op) = inbox.recv() {
        if let Some(done) = op.done {
            done(Err(StoreError::failed(&error)));
        }
    }
}

fn serve(writer: &mut Writer<SledMedium>, inbox: &Receiver<Op>) -> Result<(), StoreError> {
    loop {
        let first = match writer.high_due_in() {
            None => inbox.recv().ok(),
            Some(wait) => match inbox.recv_timeout(wait) {
                Ok(op) => Some(op),
                Err(RecvTimeoutError::Disconnected) => None,
                Err(RecvTimeoutError::Timeout) => {
                    now_or_never(writer.idle())?;
                    continue;
                }
            },
        };
        let Some(first) = first else {
            return now_or_never(writer.rest()); // Dropped without `close`: all that was queued is durable.
        };
        let ops = std::iter::once(first)
            .chain(inbox.try_iter())
            .take(BATCH_OPS_MAX)
            .collect();
        if now_or_never(writer.execute(ops))? {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::codec::{self, KEY_COMMITTED, KEY_VOTE, KIND_COMMITTED, KIND_VOTE};
    use crate::load::Loaded;

    const SEED: Seed = Seed(0x5eed);
    const SMALL: u64 = 64 * 1024;

    fn made(folder: &Path, journal_bytes: u64) -> SledMedium {
        create(folder, SEED, journal_bytes).expect("creates");
        opened(folder).0
    }

    fn opened(folder: &Path) -> (SledMedium, Loaded) {
        let (mut medium, batches) = open_medium(folder, SEED).expect("opens");
        let loaded = recover(&mut medium, SEED, batches).expect("recovers");
        (medium, loaded)
    }

    /// The n-th vote; the hint comes and goes with it.
    fn vote(n: u64) -> Batch {
        let body = load::vote_body(n, format!("vote {n}").repeat(20).as_bytes());
        let vote = codec::seal_body(SEED, KEY_VOTE, KIND_VOTE, &body);
        let hint = codec::seal_body(SEED, KEY_COMMITTED, KIND_COMMITTED, &n.to_le_bytes());
        Batch::from([
            (KEY_VOTE.to_vec(), Some(vote)),
            (
                KEY_COMMITTED.to_vec(),
                (!n.is_multiple_of(3)).then_some(hint),
            ),
        ])
    }

    fn write(medium: &mut SledMedium, votes: std::ops::RangeInclusive<u64>) {
        for n in votes {
            medium.apply(vote(n)).expect("applies");
            now_or_never(medium.sync()).expect("syncs");
            medium.settle().expect("settles");
        }
    }

    fn check(folder: &Path, n: u64, when: &str) {
        let loaded = opened(folder).1;
        assert_eq!(loaded.vote_sequence, n, "{when}");
        let hint = loaded.committed.map(|hint| hint.to_vec());
        let expected = (!n.is_multiple_of(3)).then(|| n.to_le_bytes().to_vec());
        assert_eq!(hint, expected, "{when}");
    }

    /// What a crash leaves here and now.
    fn copied(from: &Path, to: &Path) {
        fs::create_dir_all(to).expect("creates");
        for entry in fs::read_dir(from).expect("reads") {
            let entry = entry.expect("reads");
            if entry.file_type().expect("type").is_dir() {
                copied(&entry.path(), &to.join(entry.file_name()));
            } else {
                fs::copy(entry.path(), to.join(entry.file_name())).expect("copies");
            }
        }
    }

    fn journal_epoch(folder: &Path) -> u64 {
        let bytes = fs::read(folder.join(JOURNAL_FILE)).expect("reads");
        let epoch = |slot: usize| {
            let at = slot * SLOT_STRIDE as usize + 10;
            u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"))
        };
        epoch(0).max(epoch(1))
    }

    #[test]
    fn sled_is_told_of_nothing_that_the_journal_may_lose() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut medium = made(folder.path(), SMALL);
        medium.apply(vote(1)).expect("applies");
        assert_eq!(medium.pages.get(KEY_VOTE).expect("reads"), None);
        // A second one while the first is unsynced: that one first, so that one record at most is torn.
        medium.apply(vote(2)).expect("applies");
        assert_eq!(
            medium.pages.get(KEY_VOTE).expect("reads").as_deref(),
            vote(1)[KEY_VOTE].as_deref()
        );
        now_or_never(medium.sync()).expect("syncs");
        medium.settle().expect("settles");
        assert_eq!(
            medium.pages.get(KEY_VOTE).expect("reads").as_deref(),
            vote(2)[KEY_VOTE].as_deref()
        );
        // A hint comes without a sync, and goes along with the `high` file's.
        medium.apply(vote(3)).expect("applies");
        now_or_never(medium.sync_high()).expect("syncs");
        assert_eq!(
            medium.pages.get(KEY_VOTE).expect("reads").as_deref(),
            vote(3)[KEY_VOTE].as_deref()
        );
    }

    #[test]
    fn a_crash_between_any_two_steps_of_a_checkpoint_loses_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let (node, crashed) = (folder.path().join("node"), folder.path().join("crashed"));
        fs::create_dir(&node).expect("creates");
        let mut medium = made(&node, SMALL);
        write(&mut medium, 1..=20);
        let read = |file: &str| fs::read(node.join(file)).expect("reads");
        let (db_before, journal_before) = (read("log/db"), read(JOURNAL_FILE));
        medium.sync_sled().expect("syncs");
        let db_after = read("log/db");
        assert_ne!(db_before, db_after, "sled wrote nothing before");
        medium.journal.begin_epoch().expect("begins");
        let journal_after = read(JOURNAL_FILE);
        write(&mut medium, 21..=21);
        let journal_later = read(JOURNAL_FILE);

        let stride = SLOT_STRIDE as usize;
        let first = medium.journal.slot();
        let slot = first * stride..first * stride + SLOT_BYTES;
        let mut one_slot = journal_before.clone();
        one_slot[slot.clone()].copy_from_slice(&journal_after[slot.clone()]);
        let mut torn_slot = journal_before.clone();
        let half = slot.start..slot.start + SLOT_BYTES / 2;
        torn_slot[half.clone()].copy_from_slice(&journal_after[half]);
        let first_used = db_after.len().min(db_before.len());
        let changed = (0..first_used).filter(|&at| db_before[at] != db_after[at]);
        let (mut changed, mut last) = (changed.peekable(), 0);
        let begins = *changed.peek().expect("something changed");
        changed.for_each(|at| last = at);

        let check_at = |db: &[u8], journal: &[u8], n: u64, when: &str| {
            fs::remove_dir_all(&crashed).ok();
            copied(&node, &crashed);
            fs::write(crashed.join("log/db"), db).expect("writes");
            fs::write(crashed.join(JOURNAL_FILE), journal).expect("writes");
            check(&crashed, n, when);
        };
        check_at(&db_before, &journal_before, 20, "before the checkpoint");
        for cut in (begins..last).step_by((last - begins).div_ceil(24)) {
            let mut torn = db_before.clone();
            torn[..cut].copy_from_slice(&db_after[..cut]);
            check_at(
                &torn,
                &journal_before,
                20,
                &format!("sled's write torn at {cut}"),
            );
        }
        check_at(&db_after, &journal_before, 20, "sled is synced");
        check_at(&db_after, &torn_slot, 20, "the new epoch is torn");
        check_at(&db_after, &one_slot, 20, "one slot has the new epoch");
        check_at(&db_after, &journal_after, 20, "both slots have it");
        check_at(&db_after, &journal_later, 21, "it has a record");
        // What must not happen: without what the checkpoint synced, the new epoch alone is not enough.
        fs::remove_dir_all(&crashed).ok();
        copied(&node, &crashed);
        fs::write(crashed.join("log/db"), &db_before).expect("writes");
        fs::write(crashed.join(JOURNAL_FILE), &journal_after).expect("writes");
        assert_ne!(opened(&crashed).1.vote_sequence, 20, "the check can fail");
    }

    #[test]
    fn a_full_journal_is_emptied_into_sled_before_it_is_written_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let (node, crashed) = (folder.path().join("node"), folder.path().join("crashed"));
        fs::create_dir(&node).expect("creates");
        let mut medium = made(&node, SMALL);
        let began = journal_epoch(&node);
        for n in 1..=400 {
            write(&mut medium, n..=n);
            if n % 13 == 0 {
                fs::remove_dir_all(&crashed).ok();
                copied(&node, &crashed);
                check(&crashed, n, &format!("after vote {n}"));
            }
        }
        assert!(
            journal_epoch(&node) > began + 2,
            "it was full several times"
        );
    }

    #[test]
    fn a_batch_larger_than_the_journal_is_durable_at_its_sync_and_older_ones_do_not_come_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let (node, crashed) = (folder.path().join("node"), folder.path().join("crashed"));
        fs::create_dir(&node).expect("creates");
        let mut medium = made(&node, SMALL);
        write(&mut medium, 1..=5);
        let mut large = vote(7);
        let key = codec::log_key(1, 0);
        for part in 0..3 {
            let entry = crate::Entry {
                index: 1,
                bytes: Bytes::from(vec![1; 150_000]),
            };
            let records = codec::split(SEED, SEED.origin(), &entry).1;
            let (key, record) = records[part].clone();
            large.insert(key, Some(record));
        }
        medium.apply(large).expect("applies");
        now_or_never(medium.sync()).expect("syncs");
        copied(&node, &crashed);
        check(&crashed, 7, "after the large one");
        assert!(
            opened(&crashed).0.pages.get(&key).expect("reads").is_some(),
            "the entry came along"
        );
        write(&mut medium, 8..=9);
        fs::remove_dir_all(&crashed).expect("removes");
        copied(&node, &crashed);
        check(&crashed, 9, "after smaller ones behind it");
    }

    #[test]
    fn an_orderly_close_leaves_an_empty_journal() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut medium = made(folder.path(), SMALL);
        write(&mut medium, 1..=5);
        medium.close().expect("closes");
        drop(medium);
        let (medium, batches) = open_medium(folder.path(), SEED).expect("opens");
        assert_eq!(batches, Vec::<Batch>::new());
        drop(medium);
        check(folder.path(), 5, "after the close");
    }
}
