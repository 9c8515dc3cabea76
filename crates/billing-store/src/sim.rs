//! Decides what a disk forgets. The same log, packing, `high` file and snapshots as on a real disk, over memory: what was not
//! synced when the process ended is gone, and damage, errors and a full disk come when asked for. Draws no random numbers and
//! reads no clock of its own, so that a seed repeats.
//!
//! A [`SimDisk`] is the device and outlives the process; [`SimDisk::open`] is what the process does. Opening cuts off whoever
//! had it open, as a crash would have.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use billing_env::Clock;
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::codec::{KEY_LOG, KEY_PURGED, KEY_VOTE};
use crate::files::Files;
use crate::folder;
use crate::front::{LogFront, QUEUED_OPS_MAX, Shared, TAIL_BYTES_MAX};
use crate::high::{High, SLOTS};
use crate::load;
use crate::medium::{Batch, Medium, Pages};
use crate::snapshots::Snapshots;
use crate::writer::{Op, Writer};
use crate::{Disk, Identity, StoreError};

/// What every write, sync and read meets from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    #[default]
    None,
    /// Nothing works, as on a broken disk.
    Broken,
    /// Writes fail for want of space.
    Full,
    /// Only reads fail.
    Unreadable,
}

/// What survives a crash of that which was written and not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Crash {
    /// This many of the unsynced batches, oldest first. sled's batches are whole or absent.
    pub batches_kept: usize,
    /// The unsynced slot of the `high` file is torn in the middle, instead of being as before.
    pub tear_high: bool,
}

/// Where to flip a bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The n-th record of the log.
    Log(usize),
    Vote,
    Purged,
    High(usize),
    /// The n-th snapshot file.
    Snapshot(usize),
}

/// One node's disk. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk {
    device: Arc<Device>,
}

struct Device {
    clock: Arc<dyn Clock>,
    sync_takes: Mutex<Duration>,
    contents: Mutex<Contents>,
}

/// A copy of everything durable: what a backup of the device would hold.
#[derive(Clone, Default)]
pub struct Image {
    identity: Option<Identity>,
    records: BTreeMap<Vec<u8>, Vec<u8>>,
    high: [Vec<u8>; SLOTS],
    files: BTreeMap<String, Vec<u8>>,
}

#[derive(Default)]
struct Contents {
    identity: Option<Identity>,
    records: BTreeMap<Vec<u8>, Vec<u8>>,
    records_durable: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What readers find instead of `records` until it settles: what lay under a key before.
    hidden: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    unsynced: Vec<Batch>,
    high: [Vec<u8>; SLOTS],
    high_durable: [Vec<u8>; SLOTS],
    files: BTreeMap<String, SimFile>,
    files_durable: BTreeMap<String, SimFile>,
    /// Counts the processes that had the disk; calls of earlier ones are refused.
    process: u64,
    fault: Fault,
    syncs: u64,
}

type SimFile = Arc<Mutex<FileBytes>>;

#[derive(Default)]
struct FileBytes {
    bytes: Vec<u8>,
    synced: usize,
}

impl Device {
    fn sync_takes(&self) -> Duration {
        *locked(&self.sync_takes)
    }

    fn bytes(&self) -> u64 {
        let contents = locked(&self.contents);
        let records = contents.records.iter();
        let records: usize = records.map(|(key, value)| key.len() + value.len()).sum();
        let files = contents.files.values();
        let files: usize = files.map(|file| locked(file).bytes.len()).sum();
        (records + files) as u64
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn change(records: &mut BTreeMap<Vec<u8>, Vec<u8>>, batch: &Batch) {
    for (key, value) in batch {
        match value {
            Some(value) => records.insert(key.clone(), value.clone()),
            None => records.remove(key),
        };
    }
}

impl Contents {
    fn crash(&mut self, crash: Crash) {
        self.process += 1;
        for batch in std::mem::take(&mut self.unsynced)
            .iter()
            .take(crash.batches_kept)
        {
            change(&mut self.records_durable, batch);
        }
        self.records = self.records_durable.clone();
        self.hidden.clear();
        for slot in 0..SLOTS {
            if crash.tear_high && self.high[slot] != self.high_durable[slot] {
                let torn = self.high[slot].len() / 2;
                let mut half = self.high[slot][..torn].to_vec();
                half.resize(self.high[slot].len(), 0xa5);
                self.high_durable[slot] = half;
            }
        }
        self.high = self.high_durable.clone();
        for file in self.files_durable.values() {
            let mut file = locked(file);
            let synced = file.synced;
            file.bytes.truncate(synced);
        }
        self.files = self.files_durable.clone();
    }

    fn check(&self, process: u64, doing: &'static str) -> Result<(), StoreError> {
        if self.process != process {
            return Err(StoreError::Closed);
        }
        let kind = match (self.fault, doing) {
            (Fault::None, _) | (Fault::Full, "syncing" | "reading") => return Ok(()),
            (Fault::Unreadable, "writing" | "syncing") => return Ok(()),
            (Fault::Broken | Fault::Unreadable, _) => std::io::Error::other("injected"),
            (Fault::Full, _) => std::io::ErrorKind::StorageFull.into(),
        };
        Err(StoreError::io(
            doing,
            std::path::Path::new("simulated"),
            kind,
        ))
    }

    fn apply(&mut self, batch: Batch) {
        for key in batch.keys() {
            if !self.hidden.contains_key(key) {
                let before = self.records.get(key).cloned();
                self.hidden.insert(key.clone(), before);
            }
        }
        change(&mut self.records, &batch);
        self.unsynced.push(batch);
    }

    /// What readers find under this key.
    fn settled(&self, key: &[u8]) -> Option<&Vec<u8>> {
        match self.hidden.get(key) {
            Some(before) => before.as_ref(),
            None => self.records.get(key),
        }
    }

    fn found(&self, key: &[u8]) -> Option<(Vec<u8>, Bytes)> {
        let value = self.settled(key)?;
        Some((key.to_vec(), Bytes::copy_from_slice(value)))
    }

    /// The keys that readers find among these and those that changed within `range`, in order.
    fn settled_among<'a>(
        &'a self,
        keys: impl Iterator<Item = &'a Vec<u8>>,
        range: impl RangeBounds<Vec<u8>>,
    ) -> BTreeSet<&'a Vec<u8>> {
        let changed = self.hidden.range(range).map(|(key, _)| key);
        let all = keys.chain(changed);
        all.filter(|key| self.settled(key).is_some()).collect()
    }

    fn log_keys(&self) -> Vec<Vec<u8>> {
        self.records_durable
            .keys()
            .filter(|key| key.first() == Some(&KEY_LOG))
            .cloned()
            .collect()
    }
}

impl SimDisk {
    /// An empty disk whose syncs take `sync_takes` on `clock`.
    pub fn new(clock: Arc<dyn Clock>, sync_takes: Duration) -> Self {
        Self {
            device: Arc::new(Device {
                clock,
                sync_takes: Mutex::new(sync_takes),
                contents: Mutex::default(),
            }),
        }
    }

    /// Like [`crate::create`]. Must be called on a tokio runtime, whose end is the process's end.
    pub fn create(&self, identity: &Identity) -> Result<Disk, StoreError> {
        {
            let mut contents = locked(&self.device.contents);
            if let Some(found) = &contents.identity {
                return Err(StoreError::AlreadyMade {
                    folder: "simulated".into(),
                    node: found.node,
                });
            }
            contents.identity = Some(identity.clone());
            let high = High {
                sequence: 1,
                reach: None,
                vote_sequence: 0,
                vote: None,
            };
            let slot = high.encode(folder::seed(identity), 0);
            contents.high_durable = [slot.clone(), vec![0; slot.len()]];
            contents.high = contents.high_durable.clone();
        }
        self.open(identity.node, Some(&identity.cluster))
    }

    /// Like [`crate::open`]; cuts off whoever had it open. Must be called on a tokio runtime, whose end is the process's end.
    pub fn open(&self, node: u64, cluster: Option<&[u8]>) -> Result<Disk, StoreError> {
        let (identity, process) = {
            let mut contents = locked(&self.device.contents);
            contents.crash(Crash::default());
            (contents.identity.clone(), contents.process)
        };
        let Some(identity) = identity else {
            return Err(StoreError::Empty {
                folder: "simulated".into(),
                node,
            });
        };
        folder::check_owner(std::path::Path::new("simulated"), &identity, node, cluster)?;
        let seed = folder::seed(&identity);
        let pages = Arc::new(SimPages {
            device: Arc::clone(&self.device),
            process,
        });
        let medium = SimMedium {
            device: Arc::clone(&self.device),
            pages: Arc::clone(&pages),
            process,
        };
        let mut loaded = load::load(&medium, seed, TAIL_BYTES_MAX)?;
        let shared = Arc::new(Shared::new(&mut loaded));
        let writer = Writer::new(medium, seed, Arc::clone(&shared), loaded);
        let (sender, inbox) = mpsc::channel(QUEUED_OPS_MAX);
        tokio::spawn(run(writer, inbox, Arc::clone(&self.device.clock)));
        let submit = Box::new(move |op| {
            use mpsc::error::TrySendError;
            sender.try_send(op).map_err(|error| match error {
                TrySendError::Full(op) | TrySendError::Closed(op) => op,
            })
        });
        let device = Arc::clone(&self.device);
        let log = LogFront::new(
            shared,
            seed,
            "simulated".to_owned(),
            pages,
            submit,
            Box::new(move || device.bytes()),
            Box::new(()),
        );
        let files = SimFiles {
            device: Arc::clone(&self.device),
            process,
        };
        let snapshots = Snapshots::open(files, seed)?;
        Ok(Disk {
            log: Arc::new(log),
            snapshots: Arc::new(snapshots),
            identity,
        })
    }

    /// The process ends here and now; `crash` says what else survives.
    pub fn crash(&self, crash: Crash) {
        locked(&self.device.contents).crash(crash);
    }

    /// How many batches a crash now could keep or lose.
    pub fn unsynced(&self) -> usize {
        locked(&self.device.contents).unsynced.len()
    }

    /// Syncs so far, of whatever.
    pub fn syncs(&self) -> u64 {
        locked(&self.device.contents).syncs
    }

    /// What a sync takes from now on.
    pub fn set_sync_takes(&self, sync_takes: Duration) {
        *locked(&self.device.sync_takes) = sync_takes;
    }

    pub fn set_fault(&self, fault: Fault) {
        locked(&self.device.contents).fault = fault;
    }

    /// Flips a bit of what is durable. False when there is nothing at that place.
    pub fn flip(&self, place: Place, bit: usize) -> bool {
        let mut contents = locked(&self.device.contents);
        let flip = |bytes: &mut Vec<u8>| {
            let at = bit / 8 % bytes.len().max(1);
            bytes.get_mut(at).is_some_and(|byte| {
                *byte ^= 1 << (bit % 8);
                true
            })
        };
        let key = match place {
            Place::High(slot) => return contents.high_durable.get_mut(slot).is_some_and(flip),
            Place::Snapshot(n) => {
                let file = contents.files_durable.values().nth(n).cloned();
                return file.is_some_and(|file| flip(&mut locked(&file).bytes));
            }
            Place::Log(n) => contents.log_keys().get(n).cloned(),
            Place::Vote => Some(KEY_VOTE.to_vec()),
            Place::Purged => Some(KEY_PURGED.to_vec()),
        };
        key.is_some_and(|key| contents.records_durable.get_mut(&key).is_some_and(flip))
    }

    /// Records of the log on the medium.
    pub fn log_records(&self) -> usize {
        locked(&self.device.contents).log_keys().len()
    }

    /// Removes the n-th record of the log.
    pub fn lose_record(&self, n: usize) -> bool {
        let mut contents = locked(&self.device.contents);
        let key = contents.log_keys().get(n).cloned();
        key.is_some_and(|key| contents.records_durable.remove(&key).is_some())
    }

    /// Exchanges the contents of two records of the log.
    pub fn exchange_records(&self, one: usize, other: usize) -> bool {
        let mut contents = locked(&self.device.contents);
        let keys = contents.log_keys();
        let (Some(one), Some(other)) = (keys.get(one), keys.get(other)) else {
            return false;
        };
        let values = (
            contents.records_durable.remove(one),
            contents.records_durable.remove(other),
        );
        contents
            .records_durable
            .extend(values.0.map(|value| (other.clone(), value)));
        contents
            .records_durable
            .extend(values.1.map(|value| (one.clone(), value)));
        true
    }

    pub fn image(&self) -> Image {
        let contents = locked(&self.device.contents);
        let files = contents.files_durable.iter();
        Image {
            identity: contents.identity.clone(),
            records: contents.records_durable.clone(),
            high: contents.high_durable.clone(),
            files: files
                .map(|(name, file)| (name.clone(), locked(file).bytes.clone()))
                .collect(),
        }
    }

    /// Puts back the log of an earlier image, or of another disk, and leaves everything else: what a disk that lost its latest
    /// writes, or was mixed up, shows.
    pub fn put_back_log(&self, image: &Image) {
        let mut contents = locked(&self.device.contents);
        contents.process += 1;
        contents.unsynced.clear();
        contents.records_durable = image.records.clone();
    }

    /// Puts back all of an earlier image.
    pub fn put_back(&self, image: &Image) {
        let mut contents = locked(&self.device.contents);
        let file = |bytes: &Vec<u8>| {
            Arc::new(Mutex::new(FileBytes {
                bytes: bytes.clone(),
                synced: bytes.len(),
            }))
        };
        contents.process += 1;
        contents.unsynced.clear();
        contents.identity = image.identity.clone();
        contents.records_durable = image.records.clone();
        contents.high_durable = image.high.clone();
        contents.files_durable = image
            .files
            .iter()
            .map(|(name, bytes)| (name.clone(), file(bytes)))
            .collect();
    }
}

async fn run(mut writer: Writer<SimMedium>, mut inbox: mpsc::Receiver<Op>, clock: Arc<dyn Clock>) {
    let error = match serve(&mut writer, &mut inbox, &*clock).await {
        Ok(()) => return,
        Err(error) => error,
    };
    writer.fail(&error);
    while let Some(op) = inbox.recv().await {
        if let Some(done) = op.done {
            done(Err(StoreError::failed(&error)));
        }
    }
}

async fn serve(
    writer: &mut Writer<SimMedium>,
    inbox: &mut mpsc::Receiver<Op>,
    clock: &dyn Clock,
) -> Result<(), StoreError> {
    loop {
        let first = match writer.high_due_in() {
            None => inbox.recv().await,
            Some(wait) => tokio::select! {
                biased;
                first = inbox.recv() => first,
                () = clock.sleep(wait) => {
                    writer.idle().await?;
                    continue;
                }
            },
        };
        let Some(first) = first else {
            return writer.rest().await;
        };
        let mut ops = vec![first];
        while let Ok(op) = inbox.try_recv() {
            ops.push(op);
        }
        if writer.execute(ops).await? {
            return Ok(());
        }
    }
}

struct SimPages {
    device: Arc<Device>,
    process: u64,
}

impl SimPages {
    fn contents(&self) -> Result<MutexGuard<'_, Contents>, StoreError> {
        let contents = locked(&self.device.contents);
        contents.check(self.process, "reading")?;
        Ok(contents)
    }
}

impl Pages for SimPages {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let contents = self.contents()?;
        let found = contents.settled(key);
        Ok(found.map(|value| Bytes::copy_from_slice(value)))
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Bytes)>, StoreError> {
        let contents = self.contents()?;
        let range = from.to_vec()..to.to_vec();
        // As many more as may be hidden.
        let some = limit.saturating_add(contents.hidden.len());
        let keys = contents.records.range(range.clone()).take(some);
        let keys = contents.settled_among(keys.map(|(key, _)| key), range);
        let found = keys.into_iter().take(limit);
        Ok(found.filter_map(|key| contents.found(key)).collect())
    }

    fn last_in(&self, from: &[u8], to: &[u8]) -> Result<Option<(Vec<u8>, Bytes)>, StoreError> {
        let contents = self.contents()?;
        let range = from.to_vec()..=to.to_vec();
        let some = contents.hidden.len() + 1;
        let keys = contents.records.range(range.clone()).rev().take(some);
        let mut keys = contents.settled_among(keys.map(|(key, _)| key), range);
        let last = keys.pop_last();
        Ok(last.and_then(|key| contents.found(key)))
    }

    fn blocks(&self) -> bool {
        false
    }
}

struct SimMedium {
    device: Arc<Device>,
    pages: Arc<SimPages>,
    process: u64,
}

impl SimMedium {
    fn contents(&self, doing: &'static str) -> Result<MutexGuard<'_, Contents>, StoreError> {
        let contents = locked(&self.device.contents);
        contents.check(self.process, doing)?;
        Ok(contents)
    }
}

impl Medium for SimMedium {
    fn pages(&self) -> &dyn Pages {
        &*self.pages
    }

    fn name(&self) -> &str {
        "simulated"
    }

    fn apply(&mut self, batch: Batch) -> Result<(), StoreError> {
        self.contents("writing")?.apply(batch);
        Ok(())
    }

    async fn sync(&mut self) -> Result<(), StoreError> {
        self.device.clock.sleep(self.device.sync_takes()).await;
        let mut contents = self.contents("syncing")?;
        for batch in std::mem::take(&mut contents.unsynced) {
            change(&mut contents.records_durable, &batch);
        }
        contents.syncs += 1;
        Ok(())
    }

    fn settle(&mut self) -> Result<(), StoreError> {
        self.contents("syncing")?.hidden.clear();
        Ok(())
    }

    fn read_high(&self) -> Result<[Vec<u8>; SLOTS], StoreError> {
        Ok(self.contents("reading")?.high.clone())
    }

    fn write_high(&mut self, slot: usize, record: &[u8]) -> Result<(), StoreError> {
        self.contents("writing")?.high[slot] = record.to_vec();
        Ok(())
    }

    async fn sync_high(&mut self) -> Result<(), StoreError> {
        self.device.clock.sleep(self.device.sync_takes()).await;
        let mut contents = self.contents("syncing")?;
        contents.high_durable = contents.high.clone();
        contents.hidden.clear();
        contents.syncs += 1;
        Ok(())
    }

    fn close(&mut self) -> Result<(), StoreError> {
        Ok(()) // What is synced lies where it is read.
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(self.device.clock.monotonic().0)
    }
}

struct SimFiles {
    device: Arc<Device>,
    process: u64,
}

impl SimFiles {
    fn contents(&self, doing: &'static str) -> Result<MutexGuard<'_, Contents>, StoreError> {
        let contents = locked(&self.device.contents);
        contents.check(self.process, doing)?;
        Ok(contents)
    }
}

impl Files for SimFiles {
    type Handle = SimFile;

    fn names(&self) -> Result<Vec<String>, StoreError> {
        Ok(self.contents("reading")?.files.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> Result<SimFile, StoreError> {
        let file = SimFile::default();
        self.contents("writing")?
            .files
            .insert(name.to_owned(), Arc::clone(&file));
        Ok(file)
    }

    fn open(&self, name: &str) -> Result<Option<SimFile>, StoreError> {
        Ok(self.contents("reading")?.files.get(name).cloned())
    }

    fn append(&self, handle: &mut SimFile, bytes: &[u8]) -> Result<(), StoreError> {
        let _checked = self.contents("writing")?;
        locked(handle).bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn sync(&self, handle: &SimFile) -> Result<(), StoreError> {
        self.contents("syncing")?.syncs += 1;
        let mut file = locked(handle);
        file.synced = file.bytes.len();
        Ok(())
    }

    fn length(&self, handle: &SimFile) -> Result<u64, StoreError> {
        Ok(locked(handle).bytes.len() as u64)
    }

    fn read_at(
        &self,
        handle: &SimFile,
        offset: u64,
        length: usize,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let _checked = self.contents("reading")?;
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let to = from.saturating_add(length);
        Ok(locked(handle).bytes.get(from..to).map(<[u8]>::to_vec))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), StoreError> {
        let mut contents = self.contents("writing")?;
        if let Some(file) = contents.files.remove(from) {
            contents.files.insert(to.to_owned(), file);
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), StoreError> {
        self.contents("writing")?.files.remove(name);
        Ok(())
    }

    fn sync_folder(&self) -> Result<(), StoreError> {
        let mut contents = self.contents("syncing")?;
        contents.files_durable = contents.files.clone();
        contents.syncs += 1;
        Ok(())
    }

    fn place(&self, name: &str) -> String {
        format!("simulated {name}")
    }

    async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let before = locked(&self.device.contents).syncs;
        let outcome = work(self);
        let synced = locked(&self.device.contents).syncs > before;
        if synced {
            self.device.clock.sleep(self.device.sync_takes()).await;
        }
        outcome
    }
}
