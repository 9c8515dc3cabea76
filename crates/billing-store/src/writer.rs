//! Decides what is written when. One writer executes all operations of a log in order: it packs what is queued into one batch,
//! syncs once, and only then lets anybody know. Never retries: the first error ends it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use crate::codec::{self, KEY_COMMITTED, KEY_PURGED, KEY_VOTE, Link, PackBuilder, PackRef, Seed};
use crate::front::Shared;
use crate::high::{High, SLOTS};
use crate::load::{self, Loaded};
use crate::medium::{Batch, Medium};
use crate::{Done, Entry, Purged, StoreError};

/// The `high` file is synced this often while appends go on; what a damaged disk can lose unseen is younger than this.
pub(crate) const HIGH_SYNC_EVERY: Duration = Duration::from_millis(100);
/// Appends that were queued together are made durable in pieces of about this size: below what the journal takes in one record,
/// so that none of them has to go past it.
const STAGED_BYTES_MAX: usize = 512 * 1024;

/// One submitted change. The permit keeps its place in the bounded queue until it is done.
pub(crate) struct Op {
    pub what: What,
    pub done: Option<Done>,
    pub permit: Option<OwnedSemaphorePermit>,
}

pub(crate) enum What {
    Append(Vec<Entry>),
    Vote(Bytes),
    TruncateAfter(Option<u64>),
    PurgeThrough(Purged),
    Close,
}

struct Waiter {
    done: Option<Done>,
    _permit: Option<OwnedSemaphorePermit>,
}

pub(crate) struct Writer<M> {
    medium: M,
    seed: Seed,
    shared: Arc<Shared>,
    packs: VecDeque<PackRef>,
    purged: Option<(u64, Link)>,
    /// Index of the last entry (or of the purge point) and the chain there, open pack included.
    end: Option<(u64, Link)>,
    vote: Option<Bytes>,
    vote_sequence: u64,
    batch: Batch,
    /// Bytes of entries in it and in the open pack.
    staged: usize,
    open: Option<PackBuilder>,
    /// Whether the batch holds more than hints.
    must_sync: bool,
    must_sync_high: bool,
    waiters: Vec<Waiter>,
    /// Truncations executed so far.
    cuts: u64,
    high: High,
    /// The slot that is durable for certain; the other one is written to.
    high_synced_slot: usize,
    high_synced_at: Duration,
    high_is_behind: bool,
}

impl<M: Medium> Writer<M> {
    pub(crate) fn new(medium: M, seed: Seed, shared: Arc<Shared>, loaded: Loaded) -> Self {
        let now = medium.now();
        Self {
            medium,
            seed,
            shared,
            packs: loaded.packs,
            purged: loaded.purged.map(|(purged, link)| (purged.index, link)),
            end: loaded.end,
            vote: loaded.vote,
            vote_sequence: loaded.vote_sequence,
            batch: Batch::new(),
            staged: 0,
            open: None,
            must_sync: false,
            must_sync_high: false,
            waiters: Vec::new(),
            cuts: 0,
            high: loaded.high,
            high_synced_slot: loaded.high_slot,
            high_synced_at: now,
            high_is_behind: false,
        }
    }

    pub(crate) fn name(&self) -> &str {
        self.medium.name()
    }

    /// How long until the `high` file wants a sync; `None` when it is up to date and nothing need wake the writer.
    pub(crate) fn high_due_in(&self) -> Option<Duration> {
        let due = self.high_synced_at + HIGH_SYNC_EVERY;
        self.high_is_behind
            .then(|| due.saturating_sub(self.medium.now()))
    }

    /// Executes what was queued. True when the last operation closed the log. On an error everybody who waits has been told,
    /// and the writer must not be used again.
    pub(crate) async fn execute(&mut self, ops: Vec<Op>) -> Result<bool, StoreError> {
        let outcome = self.execute_all(ops).await;
        if let Err(error) = &outcome {
            self.fail(error);
        }
        outcome
    }

    async fn execute_all(&mut self, ops: Vec<Op>) -> Result<bool, StoreError> {
        let mut closed = false;
        let mut ops = ops.into_iter();
        while let Some(op) = ops.next() {
            self.waiters.push(Waiter {
                done: op.done,
                _permit: op.permit,
            });
            let outcome = self.one(op.what, &mut closed).await;
            if let Err(error) = outcome {
                self.waiters.extend(ops.map(|op| Waiter {
                    done: op.done,
                    _permit: op.permit,
                }));
                return Err(error);
            }
        }
        if sabotaged!(AcknowledgedBeforeFlush) {
            self.complete();
        }
        match self.commit_log().await {
            Err(_) if sabotaged!(FailedWriteIgnored) => {}
            committed => committed?,
        }
        if closed {
            self.medium.close()?;
        }
        self.complete();
        Ok(closed)
    }

    async fn one(&mut self, what: What, closed: &mut bool) -> Result<(), StoreError> {
        match what {
            What::Append(entries) => {
                for entry in &entries {
                    self.append(entry);
                    if self.staged >= STAGED_BYTES_MAX {
                        // Nobody is told yet: a log that is durable up to somewhere in the middle is a log like any other.
                        self.commit_log().await?;
                    }
                }
            }
            What::Vote(vote) => self.save_vote(vote),
            What::TruncateAfter(last_kept) => self.truncate_after(last_kept).await?,
            What::PurgeThrough(purged) => self.purge_through(purged).await?,
            What::Close => {
                self.must_sync = true;
                self.must_sync_high = true;
                *closed = true;
            }
        }
        Ok(())
    }

    /// Tells everybody who waits, and everybody who will come.
    pub(crate) fn fail(&mut self, error: &StoreError) {
        self.shared.fail(error);
        for waiter in self.waiters.drain(..) {
            if let Some(done) = waiter.done {
                done(Err(StoreError::failed(error)));
            }
        }
    }

    fn append(&mut self, entry: &Entry) {
        let before = self.end.map_or(self.seed.origin(), |(_, link)| link);
        if codec::is_large(entry.bytes.len()) {
            self.close_pack();
            let (pack, records) = codec::split(self.seed, before, entry);
            self.batch
                .extend(records.into_iter().map(|(key, record)| (key, Some(record))));
            self.packs.push_back(pack);
        } else {
            if self
                .open
                .as_ref()
                .is_some_and(|open| !open.fits(entry.bytes.len()))
            {
                self.close_pack();
            }
            self.open
                .get_or_insert_with(|| PackBuilder::new(entry.index, before))
                .push(entry);
        }
        self.end = Some((entry.index, before.then(entry.index, &entry.bytes)));
        self.staged += entry.bytes.len();
        self.must_sync = true;
    }

    fn close_pack(&mut self) {
        let Some(open) = self.open.take() else { return };
        let (pack, record) = open.finish(self.seed);
        self.batch
            .insert(codec::log_key(pack.first, 0), Some(record));
        self.packs.push_back(pack);
    }

    fn save_vote(&mut self, vote: Bytes) {
        self.vote_sequence += 1;
        let body = load::vote_body(self.vote_sequence, &vote);
        self.batch.insert(
            KEY_VOTE.to_vec(),
            Some(codec::seal_body(
                self.seed,
                KEY_VOTE,
                codec::KIND_VOTE,
                &body,
            )),
        );
        self.vote = Some(vote);
        self.must_sync = true;
        self.must_sync_high = true;
    }

    async fn truncate_after(&mut self, last_kept: Option<u64>) -> Result<(), StoreError> {
        // What came before must be on the medium first: the chain at the cut is read back from there.
        self.commit_log().await?;
        self.cuts += 1;
        if self.end.map(|(index, _)| index) <= last_kept {
            return Ok(());
        }
        let end = match (last_kept, self.purged) {
            (Some(index), Some((purged, link))) if index <= purged => Some((purged, link)),
            (None, Some(floor)) => Some(floor),
            (Some(index), _) if self.packs.front().is_some_and(|pack| pack.first <= index) => {
                Some((index, self.link_at(index)?))
            }
            _ => None,
        };
        // Lowered and synced first: were the log cut before, a crash would leave it below what `high` says.
        self.end = end;
        self.stage_high()?;
        self.sync_high().await?;
        while let Some(pack) = self.packs.back().copied() {
            if end.is_some_and(|(index, _)| pack.last <= index) {
                break;
            }
            self.packs.pop_back();
            self.remove(&pack);
            if let Some((index, _)) = end
                && pack.first <= index
                && Some(index) > self.purged.map(|(purged, _)| purged)
            {
                self.shorten(&pack, index)?;
                break;
            }
        }
        self.must_sync = true;
        self.commit_log().await
    }

    fn remove(&mut self, pack: &PackRef) {
        for part in 0..pack.parts {
            self.batch.insert(codec::log_key(pack.first, part), None);
        }
    }

    /// Rewrites a record under its own key with its entries up to `last`.
    fn shorten(&mut self, pack: &PackRef, last: u64) -> Result<(), StoreError> {
        let entries = self.unpack(pack.first)?.entries;
        let mut kept = PackBuilder::new(pack.first, pack.before);
        entries
            .iter()
            .filter(|entry| entry.index <= last)
            .for_each(|entry| kept.push(entry));
        let (pack, record) = kept.finish(self.seed);
        self.batch
            .insert(codec::log_key(pack.first, 0), Some(record));
        self.packs.push_back(pack);
        Ok(())
    }

    fn unpack(&self, index: u64) -> Result<codec::Unpacked, StoreError> {
        let unpacked = load::pack_with(self.medium.pages(), self.seed, self.medium.name(), index)?;
        unpacked
            .filter(|unpacked| unpacked.pack.last >= index)
            .ok_or_else(|| {
                StoreError::damaged(
                    self.medium.name(),
                    format!("entry {index} was written and is not there"),
                )
            })
    }

    fn link_at(&self, index: u64) -> Result<Link, StoreError> {
        let unpacked = self.unpack(index)?;
        let entries = unpacked.entries.iter().filter(|entry| entry.index <= index);
        Ok(entries.fold(unpacked.pack.before, |link, entry| {
            link.then(entry.index, &entry.bytes)
        }))
    }

    async fn purge_through(&mut self, purged: Purged) -> Result<(), StoreError> {
        if self.purged.is_some_and(|(index, _)| purged.index <= index) {
            return Ok(());
        }
        let link = match self.end {
            Some((last, link)) if purged.index == last => link,
            Some((last, _)) if purged.index < last => {
                self.commit_log().await?;
                match self.packs.front() {
                    Some(pack) if pack.first <= purged.index => self.link_at(purged.index)?,
                    // Purged up to just before the first entry of a log that began there.
                    _ => self
                        .packs
                        .front()
                        .map_or(self.seed.origin(), |pack| pack.before),
                }
            }
            _ => self.seed.restart(purged.index, &purged.marker),
        };
        self.close_pack();
        while let Some(pack) = self
            .packs
            .front()
            .copied()
            .filter(|pack| pack.last <= purged.index)
        {
            self.packs.pop_front();
            self.remove(&pack);
        }
        let record = codec::seal_body(
            self.seed,
            KEY_PURGED,
            codec::KIND_PURGED,
            &load::purged_body(&purged, link),
        );
        self.batch.insert(KEY_PURGED.to_vec(), Some(record));
        self.purged = Some((purged.index, link));
        if self.end.is_none_or(|(last, _)| last <= purged.index) {
            self.end = self.purged;
            self.must_sync_high = true;
        }
        self.must_sync = true;
        Ok(())
    }

    /// Lets everybody know who waited for what is durable now.
    fn complete(&mut self) {
        for waiter in self.waiters.drain(..) {
            if let Some(done) = waiter.done {
                done(Ok(()));
            }
        }
    }

    async fn commit_log(&mut self) -> Result<(), StoreError> {
        self.close_pack();
        self.staged = 0;
        let overdue = self.high_due_in().is_some_and(|wait| wait.is_zero());
        if overdue || self.must_sync_high {
            self.take_hint();
        }
        if !self.batch.is_empty() {
            self.medium.apply(std::mem::take(&mut self.batch))?;
        }
        if std::mem::take(&mut self.must_sync) {
            let began = self.medium.now();
            self.medium.sync().await?;
            let took = self.medium.now().saturating_sub(began);
            self.shared.sync_times.note(took);
            self.stage_high()?;
            self.shared
                .note_durable(self.end.map(|(index, _)| index), self.cuts);
        }
        if std::mem::take(&mut self.must_sync_high) || overdue {
            self.sync_high().await?;
        }
        Ok(())
    }

    /// How far the log is known to be committed changes with every entry, and is only a hint: it goes along with the `high`
    /// file's syncs, so that an append stays one record.
    fn take_hint(&mut self) {
        if let Some(committed) = self.shared.take_hint() {
            let record =
                codec::seal_body(self.seed, KEY_COMMITTED, codec::KIND_COMMITTED, &committed);
            self.batch.insert(KEY_COMMITTED.to_vec(), Some(record));
        }
    }

    /// What is left to do when nothing was queued for a while.
    pub(crate) async fn rest(&mut self) -> Result<(), StoreError> {
        self.take_hint();
        if !self.batch.is_empty() {
            self.medium.apply(std::mem::take(&mut self.batch))?;
        }
        self.sync_high().await
    }

    /// Writes what is durable by now into the slot that is not the synced one, unsynced: nearly free, and it survives kill -9.
    fn stage_high(&mut self) -> Result<(), StoreError> {
        let high = High {
            sequence: self.high.sequence + 1,
            reach: self.end,
            vote_sequence: self.vote_sequence,
            vote: self.vote.clone(),
        };
        let slot = (self.high_synced_slot + 1) % SLOTS;
        self.medium
            .write_high(slot, &high.encode(self.seed, slot))?;
        self.high = high;
        self.high_is_behind = true;
        Ok(())
    }

    async fn sync_high(&mut self) -> Result<(), StoreError> {
        if !self.high_is_behind {
            return Ok(());
        }
        self.medium.sync_high().await?;
        self.high_synced_slot = (self.high_synced_slot + 1) % SLOTS;
        self.high_synced_at = self.medium.now();
        self.high_is_behind = false;
        Ok(())
    }
}
