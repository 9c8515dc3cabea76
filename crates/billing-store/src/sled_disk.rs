//! Decides how sled is used so that durable means durable. The only file that names it. Facts about 0.34.7, each with a test:
//!
//! - its `flush()` hands pages to the kernel and no further: `sync_data()` on its own file is what reaches the disk;
//! - an item larger than a quarter of a segment goes into a file of its own, which is never synced, and a *leaf* is such an item
//!   too: up to 17 values together. So values stay below 64 KiB and segments are [`SEGMENT_BYTES`];
//! - it opens a damaged file without an error, shorter: hence `high.rs`;
//! - after an error, dropping it writes and syncs again: hence it is never dropped then.

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
use crate::load;
use crate::medium::{Batch, Medium, Pages};
use crate::writer::{Op, Writer};

const SEGMENT_BYTES: usize = 8 * 1024 * 1024;
/// A leaf splits when it holds more than this many items.
const LEAF_ITEMS_MAX: usize = 17;
const _: () = assert!((LEAF_ITEMS_MAX + 1) * (PACK_BYTES_MAX + 1024) < SEGMENT_BYTES / 4);
const CACHE_BYTES: u64 = 64 * 1024 * 1024;
/// Operations that one batch takes at most, so that the first of them does not wait for ever.
const BATCH_OPS_MAX: usize = QUEUED_OPS_MAX;

const LOG_FOLDER: &str = "log";
const HIGH_FILE: &str = "high";

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

/// sled, its own file once more, and the `high` file.
pub(crate) struct SledMedium {
    pages: Arc<SledPages>,
    name: String,
    raw: File,
    raw_path: PathBuf,
    high: File,
    high_path: PathBuf,
    started: Instant,
}

impl Medium for SledMedium {
    fn pages(&self) -> &dyn Pages {
        &*self.pages
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn apply(&mut self, batch: Batch) -> Result<(), StoreError> {
        let db = &self.pages.db;
        // One record is atomic by itself. A batch of sled's has a manifest, which costs a second write and, with it, a second
        // round through sled's threads.
        let lone = (batch.len() == 1)
            .then(|| batch.first_key_value())
            .flatten();
        let applied = if let Some((key, Some(value))) = lone {
            db.insert(key, value.as_slice()).map(drop)
        } else {
            let mut changes = sled::Batch::default();
            for (key, value) in batch {
                match value {
                    Some(value) => changes.insert(key, value),
                    None => changes.remove(key),
                }
            }
            db.apply_batch(changes)
        };
        applied.map_err(|error| sled_error("writing", &self.raw_path, error))
    }

    async fn sync(&mut self) -> Result<(), StoreError> {
        self.pages
            .db
            .flush()
            .map_err(|error| sled_error("writing", &self.raw_path, error))?;
        self.raw
            .sync_data()
            .map_err(|error| StoreError::io("syncing", &self.raw_path, error))
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
            .map_err(|error| StoreError::io("syncing", &self.high_path, error))
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
pub(crate) fn create(folder: &Path, seed: Seed) -> Result<(), StoreError> {
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
    folder::sync_folder(folder)
}

fn open_medium(folder: &Path) -> Result<SledMedium, StoreError> {
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
    let db = open_sled(&path)?;
    let raw = File::open(&raw_path).map_err(|error| StoreError::io("opening", &raw_path, error))?;
    let high = OpenOptions::new().read(true).write(true).open(&high_path);
    let high = high.map_err(|error| StoreError::io("opening", &high_path, error))?;
    Ok(SledMedium {
        pages: Arc::new(SledPages {
            db,
            path: path.clone(),
        }),
        name: path.display().to_string(),
        raw,
        raw_path,
        high,
        high_path,
        started: Instant::now(),
    })
}

/// Opens and verifies the log, and starts its writer.
pub(crate) fn open(
    folder: &Path,
    seed: Seed,
    lock: Arc<FolderLock>,
) -> Result<LogFront, StoreError> {
    let medium = open_medium(folder)?;
    let loading = catch_unwind(AssertUnwindSafe(|| {
        load::load(&medium, seed, TAIL_BYTES_MAX)
    }));
    let mut loaded = match loading {
        Ok(loaded) => loaded?,
        Err(_) => {
            return Err(StoreError::damaged(
                &medium.name,
                "sled cannot read it (it panicked, see above)",
            ));
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
                    now_or_never(writer.rest())?;
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
