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
/// It is written, unsynced, within this time: what a kill -9 and a damaged disk together can lose unseen is younger.
const HIGH_STAGED_EVERY: Duration = Duration::from_millis(10);
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
    high_staged_at: Duration,
    /// The file says less than is durable.
    high_is_unstaged: bool,
    /// Its durable slot does.
    high_is_behind: bool,
}

/// What a commit does about those who wait.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Waiters {
    /// Everything that they asked for is in it.
    Told,
    /// More is to come.
    Kept,
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
            high_staged_at: now,
            high_is_unstaged: false,
            high_is_behind: false,
        }
    }

    pub(crate) fn name(&self) -> &str {
        self.medium.name()
    }

    /// How long until the `high` file wants to be written or synced; `None` when it is up to date and nothing need wake the
    /// writer.
    pub(crate) fn high_due_in(&self) -> Option<Duration> {
        let staged = self.high_is_unstaged.then(|| self.stage_due());
        let synced = self.high_is_behind.then(|| self.sync_due());
        let due = staged.into_iter().chain(synced).min()?;
        Some(due.saturating_sub(self.medium.now()))
    }

    fn stage_due(&self) -> Duration {
        self.high_staged_at + HIGH_STAGED_EVERY
    }

    fn sync_due(&self) -> Duration {
        self.high_synced_at + HIGH_SYNC_EVERY
    }

    fn is_sync_overdue(&self) -> bool {
        self.high_is_behind && self.medium.now() >= self.sync_due()
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
        let waiters = if closed { Waiters::Kept } else { Waiters::Told };
        match self.commit_log(waiters).await {
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
                        self.commit_log(Waiters::Kept).await?;
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
        self.commit_log(Waiters::Kept).await?;
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
        self.commit_log(Waiters::Kept).await
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
                self.commit_log(Waiters::Kept).await?;
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

    /// Those who wait are told as soon as it is durable: what readers and the next start want comes behind.
    async fn commit_log(&mut self, waiters: Waiters) -> Result<(), StoreError> {
        self.close_pack();
        self.staged = 0;
        let overdue = self.is_sync_overdue();
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
            if waiters == Waiters::Told && !self.must_sync_high {
                self.complete();
            }
            self.medium.settle()?;
            (self.high_is_unstaged, self.high_is_behind) = (true, true);
            if self.medium.now() >= self.stage_due() {
                self.stage_high()?;
            }
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

    /// What is due when nothing was queued for a while: see `high_due_in`.
    pub(crate) async fn idle(&mut self) -> Result<(), StoreError> {
        if self.is_sync_overdue() {
            return self.rest().await;
        }
        if self.high_is_unstaged {
            self.stage_high()?;
        }
        Ok(())
    }

    /// What is left to do when nothing more is queued.
    pub(crate) async fn rest(&mut self) -> Result<(), StoreError> {
        self.take_hint();
        if !self.batch.is_empty() {
            self.medium.apply(std::mem::take(&mut self.batch))?;
        }
        self.sync_high().await
    }

    /// Writes what is durable by now into the slot that is not the synced one, unsynced: it survives kill -9.
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
        self.high_staged_at = self.medium.now();
        (self.high_is_unstaged, self.high_is_behind) = (false, true);
        Ok(())
    }

    async fn sync_high(&mut self) -> Result<(), StoreError> {
        if !self.high_is_behind {
            return Ok(());
        }
        if self.high_is_unstaged {
            self.stage_high()?;
        }
        self.medium.sync_high().await?;
        self.high_synced_slot = (self.high_synced_slot + 1) % SLOTS;
        self.high_synced_at = self.medium.now();
        self.high_is_behind = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use crate::high::SLOT_BYTES;
    use crate::medium::Pages;

    use super::*;

    type Steps = Arc<Mutex<Vec<&'static str>>>;

    fn step(steps: &Steps, name: &'static str) {
        let mut steps = steps.lock().unwrap_or_else(PoisonError::into_inner);
        steps.push(name);
    }

    struct NoPages;

    impl Pages for NoPages {
        fn get(&self, _key: &[u8]) -> Result<Option<Bytes>, StoreError> {
            Ok(None)
        }

        fn scan(
            &self,
            _from: &[u8],
            _to: &[u8],
            _limit: usize,
        ) -> Result<Vec<(Vec<u8>, Bytes)>, StoreError> {
            Ok(Vec::new())
        }

        fn last_in(
            &self,
            _from: &[u8],
            _to: &[u8],
        ) -> Result<Option<(Vec<u8>, Bytes)>, StoreError> {
            Ok(None)
        }

        fn blocks(&self) -> bool {
            false
        }
    }

    /// Keeps nothing but what was done, in which order.
    struct Steady {
        steps: Steps,
        /// The step that fails.
        fails: Option<&'static str>,
        now: Arc<Mutex<Duration>>,
        pages: NoPages,
    }

    impl Steady {
        fn step(&self, name: &'static str) -> Result<(), StoreError> {
            step(&self.steps, name);
            match self.fails {
                Some(fails) if fails == name => Err(StoreError::io(
                    name,
                    std::path::Path::new("steady"),
                    std::io::Error::other("injected"),
                )),
                _ => Ok(()),
            }
        }
    }

    impl Medium for Steady {
        fn pages(&self) -> &dyn Pages {
            &self.pages
        }

        fn name(&self) -> &str {
            "steady"
        }

        fn apply(&mut self, _batch: Batch) -> Result<(), StoreError> {
            self.step("apply")
        }

        async fn sync(&mut self) -> Result<(), StoreError> {
            self.step("sync")
        }

        fn settle(&mut self) -> Result<(), StoreError> {
            self.step("settle")
        }

        fn read_high(&self) -> Result<[Vec<u8>; SLOTS], StoreError> {
            Ok(std::array::from_fn(|_| vec![0; SLOT_BYTES]))
        }

        fn write_high(&mut self, _slot: usize, _record: &[u8]) -> Result<(), StoreError> {
            self.step("write high")
        }

        async fn sync_high(&mut self) -> Result<(), StoreError> {
            self.step("sync high")
        }

        fn close(&mut self) -> Result<(), StoreError> {
            self.step("close")
        }

        fn now(&self) -> Duration {
            *self.now.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    struct Scene {
        writer: Writer<Steady>,
        steps: Steps,
        now: Arc<Mutex<Duration>>,
    }

    impl Scene {
        fn new() -> Self {
            Self::failing(None)
        }

        fn failing(fails: Option<&'static str>) -> Self {
            let (steps, now) = (Steps::default(), Arc::new(Mutex::new(Duration::ZERO)));
            let medium = Steady {
                steps: Arc::clone(&steps),
                fails,
                now: Arc::clone(&now),
                pages: NoPages,
            };
            let mut empty = Loaded {
                purged: None,
                packs: VecDeque::new(),
                end: None,
                tail: VecDeque::new(),
                vote: None,
                vote_sequence: 0,
                committed: None,
                high: High {
                    sequence: 1,
                    reach: None,
                    vote_sequence: 0,
                    vote: None,
                },
                high_slot: 0,
            };
            let shared = Arc::new(Shared::new(&mut empty));
            let writer = Writer::new(medium, Seed(7), shared, empty);
            Self { writer, steps, now }
        }

        fn later(&self, by: Duration) {
            *self.now.lock().unwrap_or_else(PoisonError::into_inner) += by;
        }

        /// What was done for it, `told` where its caller was.
        async fn execute(&mut self, what: What) -> Result<Vec<&'static str>, StoreError> {
            self.execute_all(vec![what]).await?;
            Ok(self.done())
        }

        async fn execute_all(&mut self, all: Vec<What>) -> Result<bool, StoreError> {
            let op = |what| {
                let steps = Arc::clone(&self.steps);
                let done = move |outcome: Result<(), StoreError>| {
                    step(&steps, if outcome.is_ok() { "told" } else { "refused" });
                };
                Op {
                    what,
                    done: Some(Box::new(done)),
                    permit: None,
                }
            };
            let ops = all.into_iter().map(op).collect();
            self.writer.execute(ops).await
        }

        fn done(&self) -> Vec<&'static str> {
            std::mem::take(&mut *self.steps.lock().unwrap_or_else(PoisonError::into_inner))
        }
    }

    fn entry(index: u64) -> What {
        What::Append(vec![Entry {
            index,
            bytes: Bytes::from_static(b"an entry"),
        }])
    }

    #[tokio::test]
    async fn an_append_is_acknowledged_when_it_is_durable_and_never_before()
    -> Result<(), StoreError> {
        let mut scene = Scene::new();
        let steps = scene.execute(entry(1)).await?;
        assert_eq!(steps, ["apply", "sync", "told", "settle"]);
        Ok(())
    }

    #[tokio::test]
    async fn a_vote_is_acknowledged_when_the_high_file_has_it_too() -> Result<(), StoreError> {
        let mut scene = Scene::new();
        let steps = scene.execute(What::Vote(Bytes::from_static(b"v"))).await?;
        let expected = ["apply", "sync", "settle", "write high", "sync high", "told"];
        assert_eq!(steps, expected);
        Ok(())
    }

    #[tokio::test]
    async fn an_append_beside_a_vote_waits_for_the_high_file_with_it() -> Result<(), StoreError> {
        let mut scene = Scene::new();
        let vote = What::Vote(Bytes::from_static(b"v"));
        scene.execute_all(vec![entry(1), vote, entry(2)]).await?;
        let steps = scene.done();
        let synced = ["apply", "sync", "settle", "write high", "sync high"];
        assert_eq!(steps, [&synced[..], &["told"; 3]].concat());
        Ok(())
    }

    #[tokio::test]
    async fn nobody_is_told_of_one_half_of_a_large_append() -> Result<(), StoreError> {
        let mut scene = Scene::new();
        let half = |index| Entry {
            index,
            bytes: Bytes::from(vec![7; STAGED_BYTES_MAX]),
        };
        let steps = scene.execute(What::Append(vec![half(1), half(2)])).await?;
        let count = |name| steps.iter().filter(|step| **step == name).count();
        assert_eq!((count("sync"), count("told")), (2, 1), "{steps:?}");
        let told = steps.iter().position(|step| *step == "told");
        assert!(
            told > steps.iter().rposition(|step| *step == "sync"),
            "{steps:?}"
        );
        Ok(())
    }

    #[tokio::test]
    async fn a_failure_is_told_to_whoever_was_not_told_otherwise() {
        for (fails, expected) in [
            ("apply", &["apply", "refused"][..]),
            ("sync", &["apply", "sync", "refused"]),
            // Durable by then, and true: the next start reads it back.
            ("settle", &["apply", "sync", "told", "settle"]),
        ] {
            let mut scene = Scene::failing(Some(fails));
            let outcome = scene.execute_all(vec![entry(1)]).await;
            assert!(outcome.is_err(), "{fails}");
            assert_eq!(scene.done(), expected, "{fails}");
            assert!(
                scene.writer.shared.failure().is_some(),
                "{fails}: nothing goes on"
            );
        }
    }

    #[tokio::test]
    async fn a_log_is_closed_before_anybody_is_told() -> Result<(), StoreError> {
        let mut scene = Scene::new();
        scene.execute(entry(1)).await?;
        let steps = scene.execute(What::Close).await?;
        assert_eq!(steps.last(), Some(&"told"), "{steps:?}");
        assert!(
            steps.ends_with(&["sync high", "close", "told"]),
            "{steps:?}"
        );
        Ok(())
    }

    #[tokio::test]
    async fn the_high_file_is_written_now_and_then_and_synced_ten_times_a_second()
    -> Result<(), StoreError> {
        let mut scene = Scene::new();
        let mut seen = Vec::new();
        for index in 1..=250 {
            scene.later(Duration::from_millis(1));
            seen.extend(scene.execute(entry(index)).await?);
        }
        let count = |name| seen.iter().filter(|step| **step == name).count();
        assert_eq!(count("told"), 250);
        assert_eq!(count("sync high"), 2);
        // Once more before each of the two, since it was behind.
        assert!(
            (25..=27).contains(&count("write high")),
            "{}",
            count("write high")
        );
        // When nothing more comes: what it lacks, within moments, and later its sync.
        scene.later(Duration::from_millis(1));
        scene.execute(entry(251)).await?;
        let mut waited = Duration::ZERO;
        while let Some(wait) = scene.writer.high_due_in() {
            scene.later(wait);
            waited += wait;
            scene.writer.idle().await?;
            if scene.writer.high.reach.map(|(index, _)| index) < Some(251) {
                continue;
            }
            let steps = scene.done();
            match steps.as_slice() {
                ["write high"] => assert!(waited <= HIGH_STAGED_EVERY, "{waited:?}"),
                ["sync high"] => assert!(waited <= HIGH_SYNC_EVERY, "{waited:?}"),
                other => panic!("after {waited:?}: {other:?}"),
            }
        }
        assert_eq!(scene.writer.high.reach.map(|(index, _)| index), Some(251));
        Ok(())
    }
}
