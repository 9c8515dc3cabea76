//! Decides what time an entry is stamped with (§4): a base in cluster time, taken once per leadership, and this process's
//! monotonic time since. Never adds elapsed time to anything, and never lets a wall clock move cluster time.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use billing_core::{ClusterTime, Stamp, WallTime, sabotaged};
use billing_env::{Clock, MonoTime};
use tokio::sync::{Notify, watch};

use super::bounds::WALL_OFF_MAX_MS;
use crate::raft::types::LeaderId;

/// How often a clock that is off is a reason to compare.
const DOUBT_EVERY: Duration = Duration::from_secs(5);

/// Where one leadership began to count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Base {
    leadership: LeaderId,
    time: ClusterTime,
    at: MonoTime,
}

/// The time of this node as a leader.
pub struct LeaderClock {
    pub node: u64,
    clock: Arc<dyn Clock>,
    base: Mutex<Option<Base>>,
    /// Which leadership has a base; wakes the proposer.
    ready: watch::Sender<Option<LeaderId>>,
    /// Added to this machine's wall clock while it disagrees with a majority's.
    wall_correction_ms: AtomicI64,
    /// What the last comparison made of the wall clock.
    anchor: Mutex<Option<Anchor>>,
    /// Somebody should compare: a stamp was far from the anchor.
    doubted: Notify,
}

/// Both clocks at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    wall: WallTime,
    at: MonoTime,
}

#[derive(Debug, Clone, Copy)]
struct Anchor {
    /// What else the time may be, or the agreed time.
    reading: Reading,
    /// Not again before.
    doubt_from: MonoTime,
}

impl LeaderClock {
    pub fn new(node: u64, clock: Arc<dyn Clock>) -> LeaderClock {
        LeaderClock {
            node,
            clock,
            base: Mutex::default(),
            ready: watch::Sender::new(None),
            wall_correction_ms: AtomicI64::new(0),
            anchor: Mutex::default(),
            doubted: Notify::new(),
        }
    }

    fn base(&self) -> MutexGuard<'_, Option<Base>> {
        self.base.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn anchor(&self) -> MutexGuard<'_, Option<Anchor>> {
        self.anchor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An entry of `leadership` was applied, and the ledger's time is now `time`. The first entry of an own leadership fixes
    /// its base; the later ones change nothing: re-taking it would lose the time between propose and apply.
    pub fn own_entry_applied(&self, leadership: LeaderId, time: ClusterTime) {
        if leadership.node_id != self.node {
            return;
        }
        let mut base = self.base();
        if base.is_none_or(|base| base.leadership != leadership)
            || sabotaged!(BaseRetakenAtEachApply)
        {
            *base = Some(Base {
                leadership,
                time,
                at: self.clock.monotonic(),
            });
            drop(base);
            self.ready.send_replace(Some(leadership));
        }
    }

    /// The state jumped: a snapshot was installed. A later leadership takes a base of its own.
    pub fn discard(&self) {
        *self.base() = None;
        self.ready.send_replace(None);
    }

    /// The stamp for an entry that is proposed now, in `leadership`. `None` before that leadership has a base.
    pub fn stamp(&self, leadership: LeaderId) -> Option<Stamp> {
        let base = (*self.base()).filter(|base| base.leadership == leadership)?;
        let now = self.clock.monotonic();
        let elapsed = now.since(base.at);
        let wall = self.wall();
        Some(Stamp {
            base: base.time,
            elapsed_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            wall,
            wall_jumped_ms: self.wall_jumped_ms(wall, now),
        })
    }

    /// How far `wall` is ahead of what the last comparison and the time since then make of it.
    fn wall_jumped_ms(&self, wall: WallTime, now: MonoTime) -> i64 {
        let mut anchor = self.anchor();
        let Some(anchor) = &mut *anchor else {
            return 0;
        };
        let since = now.since(anchor.reading.at);
        let since = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let expected = anchor.reading.wall.plus(since);
        let off_ms = wall.0.abs_diff(expected.0);
        if off_ms > WALL_OFF_MAX_MS && now >= anchor.doubt_from {
            anchor.doubt_from = now + DOUBT_EVERY;
            self.doubted.notify_one();
        }
        let off_ms = i64::try_from(off_ms).unwrap_or(i64::MAX);
        if wall < expected { -off_ms } else { off_ms }
    }

    /// Unix time as this node stamps it: its own, or a majority's median while its own is off.
    pub fn wall(&self) -> WallTime {
        let correction = self.wall_correction_ms.load(Ordering::Relaxed);
        WallTime(self.clock.wall_ms().saturating_add_signed(correction))
    }

    /// What is added to this machine's wall clock; 0 while it agrees with a majority.
    pub fn wall_correction_ms(&self) -> i64 {
        self.wall_correction_ms.load(Ordering::Relaxed)
    }

    /// To be taken before others are asked: a clock that is set meanwhile is off from what they answer.
    pub fn reading(&self) -> Reading {
        Reading {
            wall: WallTime(self.clock.wall_ms()),
            at: self.clock.monotonic(),
        }
    }

    /// The clocks were compared with a majority's, and this is what came of it.
    pub fn correct_wall(&self, correction_ms: i64, read: Reading) {
        self.compared_as(correction_ms, correction_ms, read);
    }

    /// The clocks were compared and nobody can tell who is right: one end is stamped, the nearer one to what was stamped
    /// before, and the other one is told with it.
    pub fn doubt_wall(&self, low_ms: i64, high_ms: i64, read: Reading) {
        let before = self.wall_correction_ms();
        match before.abs_diff(low_ms) <= before.abs_diff(high_ms) {
            true => self.compared_as(low_ms, high_ms, read),
            false => self.compared_as(high_ms, low_ms, read),
        }
    }

    fn compared_as(&self, stamped_ms: i64, other_ms: i64, read: Reading) {
        let mut anchor = self.anchor();
        self.wall_correction_ms.store(stamped_ms, Ordering::Relaxed);
        *anchor = Some(Anchor {
            reading: Reading {
                wall: WallTime(read.wall.0.saturating_add_signed(other_ms)),
                at: read.at,
            },
            doubt_from: match stamped_ms == other_ms {
                true => read.at,
                false => read.at + DOUBT_EVERY,
            },
        });
    }

    /// Resolves when a stamp was so far from the last comparison that another one is due.
    pub async fn doubted(&self) {
        self.doubted.notified().await;
    }

    /// Whether that was done since this process began.
    pub fn compared(&self) -> bool {
        self.anchor().is_some()
    }

    /// Changes when a leadership got its base.
    pub fn ready(&self) -> watch::Receiver<Option<LeaderId>> {
        self.ready.subscribe()
    }
}

/// What a comparison of wall clocks came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compared {
    /// What to add to this machine's wall clock: its distance to the median of those asked, itself included, when that is
    /// beyond what is tolerated.
    Agree { correction_ms: i64 },
    /// As many say one thing as another, and nobody can tell who is right: somewhere between these two distances.
    Split { low_ms: i64, high_ms: i64 },
}

/// `offsets` are the others' clocks minus this one.
pub fn compare(offsets: &[i64], off_max_ms: u64) -> Compared {
    let mut all: Vec<i64> = offsets.iter().copied().chain([0]).collect();
    all.sort_unstable();
    let middle = all.len() / 2;
    let median = if all.len() % 2 == 1 {
        all[middle]
    } else {
        let (low_ms, high_ms) = (all[middle - 1], all[middle]);
        if high_ms.abs_diff(low_ms) > off_max_ms {
            return Compared::Split { low_ms, high_ms };
        }
        low_ms.midpoint(high_ms)
    };
    let off = median.unsigned_abs() > off_max_ms;
    Compared::Agree {
        correction_ms: if off { median } else { 0 },
    }
}

#[cfg(test)]
mod tests {
    use billing_env::{BootTime, BoxFuture};
    use openraft::vote::RaftLeaderId;
    use std::sync::atomic::AtomicU64;

    use super::*;

    /// Monotonic nanoseconds, and how far the wall clock is off.
    #[derive(Default)]
    struct ByHand(AtomicU64, AtomicI64);

    impl ByHand {
        fn advance(&self, by: Duration) {
            self.0.fetch_add(by.as_nanos() as u64, Ordering::Relaxed);
        }
    }

    impl Clock for ByHand {
        fn monotonic(&self) -> MonoTime {
            MonoTime(self.0.load(Ordering::Relaxed))
        }
        fn boottime(&self) -> BootTime {
            BootTime(self.0.load(Ordering::Relaxed))
        }
        fn wall_ms(&self) -> u64 {
            let since_ms = self.0.load(Ordering::Relaxed) / 1_000_000;
            (1_000_000 + since_ms).saturating_add_signed(self.1.load(Ordering::Relaxed))
        }
        fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
            Box::pin(std::future::pending())
        }
    }

    fn leadership(term: u64, node: u64) -> LeaderId {
        LeaderId::new(term, node)
    }

    fn proposed(clock: &LeaderClock, leadership: LeaderId) -> Option<u64> {
        clock.stamp(leadership).map(|stamp| stamp.proposed().0)
    }

    #[test]
    fn the_base_is_taken_once_per_leadership() {
        let hand = Arc::new(ByHand::default());
        let clock = LeaderClock::new(1, hand.clone());
        let first = leadership(3, 1);
        assert_eq!(proposed(&clock, first), None, "no own entry applied yet");
        clock.own_entry_applied(first, ClusterTime(5_000));
        hand.advance(Duration::from_millis(700));
        // Under load entries are applied late, stamped with an older time: taking the base again would stand still.
        clock.own_entry_applied(first, ClusterTime(5_300));
        assert_eq!(proposed(&clock, first), Some(5_700));
    }

    #[test]
    fn another_leader_s_time_is_not_counted_twice() {
        let hand = Arc::new(ByHand::default());
        let clock = LeaderClock::new(1, hand.clone());
        clock.own_entry_applied(leadership(3, 1), ClusterTime(0));
        hand.advance(Duration::from_secs(10));
        // Node 2 leads for ten seconds and applies up to 20 s; this node leads again.
        clock.own_entry_applied(leadership(4, 2), ClusterTime(10_000));
        hand.advance(Duration::from_secs(10));
        let again = leadership(5, 1);
        assert_eq!(proposed(&clock, again), None, "the old base is not used");
        clock.own_entry_applied(again, ClusterTime(20_000));
        hand.advance(Duration::from_secs(1));
        assert_eq!(proposed(&clock, again), Some(21_000));
    }

    #[test]
    fn a_jump_of_the_wall_clock_is_told_until_the_next_comparison() {
        let hand = Arc::new(ByHand::default());
        let clock = LeaderClock::new(1, hand.clone());
        let own = leadership(3, 1);
        clock.own_entry_applied(own, ClusterTime(0));
        let told = || {
            let stamp = clock.stamp(own)?;
            Some((stamp.wall.0, stamp.wall_jumped_ms))
        };
        hand.1.store(5_000, Ordering::Relaxed);
        assert_eq!(told(), Some((1_005_000, 0)), "never compared");
        clock.correct_wall(-5_000, clock.reading());
        hand.advance(Duration::from_secs(7));
        assert_eq!(told(), Some((1_007_000, 0)), "as the others say");
        hand.1.store(65_000, Ordering::Relaxed);
        assert_eq!(told(), Some((1_067_000, 60_000)), "ahead");
        hand.1.store(-25_000, Ordering::Relaxed);
        assert_eq!(told(), Some((977_000, -30_000)), "back");
        clock.correct_wall(0, clock.reading());
        assert_eq!(told(), Some((982_000, 0)), "a majority went along");
    }

    #[test]
    fn a_clock_that_is_set_while_others_are_asked_is_off_from_what_they_answer() {
        let hand = Arc::new(ByHand::default());
        let clock = LeaderClock::new(1, hand.clone());
        let own = leadership(3, 1);
        clock.own_entry_applied(own, ClusterTime(0));
        let read = clock.reading();
        hand.1.store(3_600_000, Ordering::Relaxed);
        clock.correct_wall(0, read);
        let jumped = clock.stamp(own).map(|stamp| stamp.wall_jumped_ms);
        assert_eq!(jumped, Some(3_600_000));
    }

    #[tokio::test]
    async fn a_stamp_that_is_far_off_asks_for_a_comparison() {
        let hand = Arc::new(ByHand::default());
        let clock = LeaderClock::new(1, hand.clone());
        let own = leadership(3, 1);
        clock.own_entry_applied(own, ClusterTime(0));
        clock.correct_wall(0, clock.reading());
        let asked = async |clock: &LeaderClock| {
            let stamp = clock.stamp(own);
            assert!(stamp.is_some());
            futures::FutureExt::now_or_never(clock.doubted()).is_some()
        };
        assert!(!asked(&clock).await);
        hand.1.store(3_600_000, Ordering::Relaxed);
        assert!(asked(&clock).await);
        assert!(!asked(&clock).await, "once is enough for a while");
        hand.advance(DOUBT_EVERY);
        assert!(asked(&clock).await);
    }

    #[test]
    fn a_jump_of_the_state_discards_the_base() {
        let clock = LeaderClock::new(1, Arc::new(ByHand::default()));
        let own = leadership(3, 1);
        clock.own_entry_applied(own, ClusterTime(9));
        clock.discard();
        assert_eq!(proposed(&clock, own), None);
    }

    #[test]
    fn only_a_clock_off_by_more_than_the_bound_is_corrected() {
        let agree = |offsets: &[i64]| match compare(offsets, 30_000) {
            Compared::Agree { correction_ms } => Some(correction_ms),
            Compared::Split { .. } => None,
        };
        assert_eq!(agree(&[20_000, 29_000]), Some(0));
        assert_eq!(agree(&[100_000, 101_000]), Some(100_000));
        assert_eq!(
            agree(&[-100_000, 0]),
            Some(0),
            "one of three is wrong, not this one"
        );
        assert_eq!(agree(&[]), Some(0));
        assert_eq!(agree(&[10_000]), Some(0));
        assert_eq!(
            agree(&[99_000, 100_000, 100_000]),
            Some(99_500),
            "one of four is wrong: this one"
        );
    }

    #[test]
    fn two_clocks_that_differ_correct_nobody() {
        let split = |low_ms, high_ms| Compared::Split { low_ms, high_ms };
        assert_eq!(compare(&[100_000], 30_000), split(0, 100_000));
        assert_eq!(compare(&[-100_000], 30_000), split(-100_000, 0));
        assert_eq!(compare(&[0, 100_000, 100_000], 30_000), split(0, 100_000));
    }

    #[test]
    fn while_nobody_can_tell_who_is_right_both_may_be() {
        let hand = Arc::new(ByHand::default());
        let clock = LeaderClock::new(1, hand.clone());
        let own = leadership(3, 1);
        clock.own_entry_applied(own, ClusterTime(0));
        let jumped = || clock.stamp(own).map(|stamp| stamp.wall_jumped_ms);
        assert!(!clock.compared());
        clock.doubt_wall(-100_000, 0, clock.reading());
        assert_eq!(jumped(), Some(100_000), "the other one is behind");
        clock.doubt_wall(0, 100_000, clock.reading());
        assert_eq!(jumped(), Some(-100_000), "the other one is ahead");
        clock.correct_wall(100_000, clock.reading());
        clock.doubt_wall(0, 100_000, clock.reading());
        assert_eq!(
            jumped(),
            Some(100_000),
            "what was agreed before is stamped still"
        );
        assert!(clock.compared());
        clock.correct_wall(-60_000, clock.reading());
        clock.doubt_wall(-200_000, 0, clock.reading());
        assert_eq!(clock.wall_correction_ms(), 0, "the nearer end is stamped");
        assert_eq!(jumped(), Some(200_000), "and both ends are told");
    }
}
