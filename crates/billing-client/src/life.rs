//! Decides until when this process may believe that a session or a lease is its own: from the instant before the request
//! was sent, on a clock that counts suspend, minus what clocks may drift. Needs no network, and never takes a loss back.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use billing_core::Rejection;
use billing_env::{BootTime, Clock};
use billing_proto::Failure;
use tokio::sync::Notify;
use tonic::Status;

/// Sleeps are counted by a clock that stands still in suspend: look at the other one at least this often.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The deadline of what has none.
const NEVER: BootTime = BootTime(u64::MAX);

/// Why something is not ours any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Loss {
    /// Not renewed in time, as far as this process can know. The cluster may still think otherwise for a moment.
    #[error("not kept alive in time")]
    Expired,
    /// The cluster said so.
    #[error("ended by the cluster: {0}")]
    Ended(Rejection),
    /// This process gave it up: released, settled or closed.
    #[error("given up by this process")]
    GivenUp,
}

impl Loss {
    /// What a call gets that needed the thing which is lost, and was therefore not made.
    pub(crate) fn failure(self, what: &str) -> Failure {
        match self {
            Loss::Ended(rejection) => Failure::Rejected(rejection),
            Loss::Expired | Loss::GivenUp => {
                Failure::NotApplied(Status::failed_precondition(format!("{what} lost: {self}")))
            }
        }
    }
}

/// How far clocks are trusted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trust {
    pub drift: f64,
    pub margin: Duration,
}

impl Trust {
    /// How much of a TTL may be used, counted from before the request was sent (§4).
    pub fn usable(self, ttl: Duration) -> Duration {
        ttl.mul_f64(1.0 - 2.0 * self.drift)
            .saturating_sub(self.margin)
    }
}

/// One deadline, shared by whoever extends it and whoever depends on it.
pub(crate) struct Life {
    clock: Arc<dyn Clock>,
    trust: Trust,
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    valid_until: BootTime,
    loss: Option<Loss>,
}

impl Life {
    /// Valid for `ttl` from `sent_at`, the instant before the request that granted it was sent.
    pub fn new(clock: Arc<dyn Clock>, trust: Trust, sent_at: BootTime, ttl: Duration) -> Life {
        let valid_until = sent_at + trust.usable(ttl);
        let state = Mutex::new(State {
            valid_until,
            loss: None,
        });
        Life {
            clock,
            trust,
            state,
            changed: Notify::new(),
        }
    }

    /// Has no deadline of its own; ends only when somebody ends it.
    pub fn unbounded(clock: Arc<dyn Clock>, trust: Trust) -> Life {
        let state = Mutex::new(State {
            valid_until: NEVER,
            loss: None,
        });
        Life {
            clock,
            trust,
            state,
            changed: Notify::new(),
        }
    }

    /// Moves the deadline to `sent_at` + usable TTL, if that is later. False: it was lost before, and stays lost even if the
    /// cluster has just renewed it, because somebody may already have acted on the loss.
    pub fn extend(&self, sent_at: BootTime, ttl: Duration) -> bool {
        let mut state = self.state();
        if self.loss_in(&mut state).is_some() {
            return false;
        }
        let valid_until = sent_at + self.trust.usable(ttl);
        if valid_until > state.valid_until {
            state.valid_until = valid_until;
        }
        drop(state);
        self.changed.notify_waiters();
        true
    }

    /// Takes what lies beyond `sent_at` + usable TTL off the deadline: a request that is about to be sent may cut the lease
    /// down to that, whether its answer arrives or not.
    pub fn cap(&self, sent_at: BootTime, ttl: Duration) {
        let mut state = self.state();
        state.valid_until = state.valid_until.min(sent_at + self.trust.usable(ttl));
        drop(state);
        self.changed.notify_waiters();
    }

    /// Sets the deadline to `sent_at` + usable TTL, later or earlier: the cluster counts by this TTL from now on.
    /// False as with [`Life::extend`].
    pub fn replace(&self, sent_at: BootTime, ttl: Duration) -> bool {
        let mut state = self.state();
        if self.loss_in(&mut state).is_some() {
            return false;
        }
        state.valid_until = sent_at + self.trust.usable(ttl);
        drop(state);
        self.changed.notify_waiters();
        true
    }

    /// The first reason stays.
    pub fn end(&self, loss: Loss) {
        let mut state = self.state();
        if self.loss_in(&mut state).is_none() {
            state.loss = Some(loss);
        }
        drop(state);
        self.changed.notify_waiters();
    }

    pub fn valid_until(&self) -> BootTime {
        self.state().valid_until
    }

    /// None: still ours. Once there is a loss it is the answer for ever.
    pub fn loss(&self) -> Option<Loss> {
        self.loss_in(&mut self.state())
    }

    fn loss_in(&self, state: &mut State) -> Option<Loss> {
        if state.loss.is_none()
            && state.valid_until != NEVER
            && self.clock.boottime() >= state.valid_until
        {
            state.loss = Some(Loss::Expired);
        }
        state.loss.clone()
    }

    /// How long it stays valid without another word from the cluster; zero when lost.
    pub fn remaining(&self) -> Duration {
        let mut state = self.state();
        match self.loss_in(&mut state) {
            Some(_) => Duration::ZERO,
            None => state.valid_until.since(self.clock.boottime()),
        }
    }

    /// Completes when it is lost.
    pub async fn lost(&self) -> Loss {
        loop {
            // Hears of every change from here on.
            let changed = self.changed.notified();
            if let Some(loss) = self.loss() {
                return loss;
            }
            let look = async {
                if self.valid_until() == NEVER {
                    return std::future::pending().await; // Only somebody's word ends it.
                }
                self.clock.sleep(self.remaining().min(LOOK_EVERY)).await;
            };
            tokio::select! {
                biased;
                () = changed => {}
                () = look => {}
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Life {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state();
        f.debug_struct("Life")
            .field("valid_until", &state.valid_until)
            .field("loss", &state.loss)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use billing_env::{BoxFuture, MonoTime};
    use futures::FutureExt;
    use tokio::sync::watch;

    use super::*;

    /// Moves only when told to; sleeps count its monotonic half, which stands still in suspend.
    struct StoppedClock {
        mono: watch::Sender<u64>,
        boot: Mutex<u64>,
    }

    impl StoppedClock {
        fn new() -> Arc<StoppedClock> {
            Arc::new(StoppedClock {
                mono: watch::Sender::new(0),
                boot: Mutex::new(0),
            })
        }

        fn pass(&self, by: Duration) {
            self.suspend(by);
            self.mono.send_modify(|mono| *mono += by.as_nanos() as u64);
        }

        /// The machine sleeps: only one of the clocks goes on.
        fn suspend(&self, by: Duration) {
            *self.boot.lock().unwrap_or_else(PoisonError::into_inner) += by.as_nanos() as u64;
        }
    }

    impl Clock for StoppedClock {
        fn monotonic(&self) -> MonoTime {
            MonoTime(*self.mono.borrow())
        }
        fn boottime(&self) -> BootTime {
            BootTime(*self.boot.lock().unwrap_or_else(PoisonError::into_inner))
        }
        fn wall_ms(&self) -> u64 {
            0
        }
        fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
            let mut mono = self.mono.subscribe();
            let until = *mono.borrow() + duration.as_nanos() as u64;
            Box::pin(async move {
                // Ends when the clock itself is gone, as a test does.
                let _ = mono.wait_for(|now| *now >= until).await;
            })
        }
    }

    const TRUST: Trust = Trust {
        drift: 0.01,
        margin: Duration::from_millis(100),
    };
    const TTL: Duration = Duration::from_secs(10);
    const SECOND: Duration = Duration::from_secs(1);

    /// 10 s, minus twice 1 %, minus 100 ms.
    const USABLE: Duration = Duration::from_millis(9_700);

    #[test]
    fn a_lease_is_ours_for_its_ttl_minus_drift_and_margin_from_before_it_was_asked_for() {
        let clock = StoppedClock::new();
        clock.pass(SECOND);
        let life = Life::new(clock.clone(), TRUST, BootTime(0), TTL);
        assert_eq!(life.remaining(), USABLE - SECOND);
        clock.pass(USABLE - SECOND - Duration::from_millis(1));
        assert_eq!(life.loss(), None);
        clock.pass(Duration::from_millis(1));
        assert_eq!(life.loss(), Some(Loss::Expired));
        assert_eq!(life.remaining(), Duration::ZERO);
    }

    #[test]
    fn what_drift_and_margin_eat_up_was_never_ours() {
        let trust = Trust {
            drift: 0.25,
            margin: Duration::from_secs(1),
        };
        let life = Life::new(
            StoppedClock::new(),
            trust,
            BootTime(0),
            Duration::from_secs(2),
        );
        assert_eq!(life.loss(), Some(Loss::Expired));
    }

    #[test]
    fn an_answer_extends_from_when_its_request_was_sent_and_never_shortens() {
        let clock = StoppedClock::new();
        let life = Life::new(clock.clone(), TRUST, BootTime(0), TTL);
        clock.pass(5 * SECOND);
        let sent_at = clock.boottime();
        clock.pass(SECOND);
        assert!(life.extend(sent_at, TTL));
        assert_eq!(life.valid_until(), sent_at + USABLE);
        assert!(
            life.extend(BootTime(0), TTL),
            "an older answer arrives late"
        );
        assert_eq!(life.valid_until(), sent_at + USABLE);
    }

    #[test]
    fn what_was_lost_is_not_revived_by_an_answer_that_comes_too_late() {
        let clock = StoppedClock::new();
        let life = Life::new(clock.clone(), TRUST, BootTime(0), TTL);
        clock.pass(5 * SECOND);
        let sent_at = clock.boottime();
        clock.suspend(5 * SECOND);
        assert!(
            !life.extend(sent_at, TTL),
            "valid at the cluster, but somebody may have seen it lost"
        );
        assert!(!life.replace(clock.boottime(), TTL));
        assert_eq!(life.loss(), Some(Loss::Expired));
    }

    #[test]
    fn a_renewal_to_a_shorter_ttl_counts_from_the_moment_it_is_sent() {
        let clock = StoppedClock::new();
        let life = Life::new(clock.clone(), TRUST, BootTime(0), 30 * TTL);
        life.cap(clock.boottime(), TTL);
        assert_eq!(life.remaining(), USABLE, "its answer may be lost");
        life.cap(clock.boottime(), 30 * TTL);
        assert_eq!(life.remaining(), USABLE);
    }

    #[test]
    fn the_first_reason_stays() {
        let life = Life::unbounded(StoppedClock::new(), TRUST);
        assert_eq!(life.loss(), None);
        life.end(Loss::GivenUp);
        life.end(Loss::Ended(Rejection::NotBootstrapped));
        assert_eq!(life.loss(), Some(Loss::GivenUp));
    }

    /// Nothing but the word itself wakes them: such a life has no deadline to look at.
    #[tokio::test]
    async fn who_waits_for_what_has_no_deadline_is_woken_by_its_end() {
        let life = Arc::new(Life::unbounded(StoppedClock::new(), TRUST));
        let wait = || {
            let life = life.clone();
            tokio::spawn(async move { life.lost().await })
        };
        let waiting = [wait(), wait()];
        tokio::task::yield_now().await;
        life.end(Loss::GivenUp);
        for waiting in waiting {
            let patience = Duration::from_secs(60);
            let told = tokio::time::timeout(patience, waiting).await;
            assert!(matches!(told, Ok(Ok(Loss::GivenUp))), "{told:?}");
        }
    }

    #[tokio::test]
    async fn loss_is_signalled_without_a_network_and_at_the_next_look_after_a_suspend() {
        let clock = StoppedClock::new();
        let life = Life::new(clock.clone(), TRUST, BootTime(0), TTL);
        let mut lost = Box::pin(life.lost());
        assert_eq!((&mut lost).now_or_never(), None);
        // Hours of suspend: no timer has moved.
        clock.suspend(3_600 * SECOND);
        clock.pass(LOOK_EVERY);
        assert_eq!((&mut lost).now_or_never(), Some(Loss::Expired));
    }

    #[tokio::test]
    async fn who_waits_for_a_loss_sees_extensions_and_ends() {
        let clock = StoppedClock::new();
        let life = Life::new(clock.clone(), TRUST, BootTime(0), TTL);
        let mut lost = Box::pin(life.lost());
        assert_eq!((&mut lost).now_or_never(), None);
        for _ in 0..20 {
            clock.pass(SECOND);
            assert!(life.extend(clock.boottime(), TTL));
            assert_eq!((&mut lost).now_or_never(), None);
        }
        life.end(Loss::GivenUp);
        assert_eq!((&mut lost).now_or_never(), Some(Loss::GivenUp));
    }
}
