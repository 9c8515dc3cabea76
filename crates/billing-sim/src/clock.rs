//! Decides what time it is on one simulated machine: true time at a rate of its own, and a wall clock that may be anywhere.
//! A machine that is stopped reads no clock and wakes from no sleep; one that was suspended lost that time on its monotonic
//! clock, never on its boot clock. Reads no real clock.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use billing_env::{BootTime, BoxFuture, Clock, MonoTime};

/// 1 January 2026, where every simulation begins.
pub const EPOCH_S: u64 = 1_767_225_600;

/// What a right wall clock says then, in unix ms.
pub fn true_wall_ms(elapsed: Duration) -> u64 {
    EPOCH_S * 1_000 + u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}
const MILLION: i128 = 1_000_000;
/// What is left of a sleep is slept again, since the rate may have changed meanwhile; never shorter than a tick.
const NAP_MIN: Duration = Duration::from_millis(1);

/// One machine's clock; outlives its processes. Clones are the same clock.
#[derive(Clone, Default)]
pub struct SimClock(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Parts per million by which it runs fast since `base_true_ns`.
    rate_ppm: i64,
    base_true_ns: u64,
    base_local_ns: u64,
    wall_offset_ms: i64,
    /// What was lost on the monotonic clock to suspends.
    suspended_ns: u64,
    /// Stopped: (the true time then, whether the machine is suspended and not merely its processes).
    stopped: Option<(u64, bool)>,
    /// Who wants to know when the machine goes on.
    waiting: Vec<Waker>,
    /// The newest true time seen, for those who ask from outside of every host.
    seen_ns: u64,
}

impl State {
    fn true_ns(&mut self) -> u64 {
        let now = turmoil::sim_elapsed().map_or(0, nanos);
        self.seen_ns = self.seen_ns.max(now);
        self.seen_ns
    }

    /// On the boot clock, by the rate.
    fn local_ns(&mut self) -> u64 {
        let now = match self.stopped {
            Some((since, _)) => since,
            None => self.true_ns(),
        };
        self.local_at(now)
    }

    fn local_at(&self, true_ns: u64) -> u64 {
        let passed = i128::from(true_ns.saturating_sub(self.base_true_ns));
        let passed = passed * (MILLION + i128::from(self.rate_ppm)) / MILLION;
        self.base_local_ns + u64::try_from(passed).unwrap_or(0)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl SimClock {
    pub fn new(rate_ppm: i64) -> SimClock {
        let clock = SimClock::default();
        clock.state().rate_ppm = rate_ppm;
        clock
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The driver's time, which is true: to be told before anything else is asked of the clock from outside of the hosts.
    pub fn at(&self, now: Duration) {
        let mut state = self.state();
        state.seen_ns = state.seen_ns.max(nanos(now));
    }

    /// From now on it runs fast by `rate_ppm`. It never jumps by that.
    pub fn set_rate_ppm(&self, rate_ppm: i64) {
        let mut state = self.state();
        let now = state.true_ns();
        state.base_local_ns = state.local_at(now);
        state.base_true_ns = now;
        state.rate_ppm = rate_ppm;
    }

    pub fn wall_offset_ms(&self) -> i64 {
        self.state().wall_offset_ms
    }

    pub fn set_wall_offset_ms(&self, offset_ms: i64) {
        self.state().wall_offset_ms = offset_ms;
    }

    /// No process of the machine reads a clock or wakes until [`SimClock::go_on`]. `suspended`: the machine sleeps, and its
    /// monotonic clock with it.
    pub fn stop(&self, suspended: bool) {
        let mut state = self.state();
        if state.stopped.is_none() {
            let now = state.true_ns();
            state.stopped = Some((now, suspended));
        }
    }

    pub fn go_on(&self) {
        let waiting = {
            let mut state = self.state();
            let now = state.true_ns();
            if let Some((since, true)) = state.stopped.take() {
                let lost = state.local_at(now) - state.local_at(since);
                state.suspended_ns += lost;
            }
            std::mem::take(&mut state.waiting)
        };
        for waker in waiting {
            waker.wake();
        }
    }

    pub fn is_stopped(&self) -> bool {
        self.state().stopped.is_some()
    }

    /// Pending while the machine is stopped.
    pub fn poll_going(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if state.stopped.is_none() {
            return Poll::Ready(());
        }
        if !state
            .waiting
            .iter()
            .any(|waker| waker.will_wake(cx.waker()))
        {
            state.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Waits while the machine is stopped.
    pub async fn going(&self) {
        poll_fn(|cx| self.poll_going(cx)).await;
    }
}

impl Clock for SimClock {
    fn monotonic(&self) -> MonoTime {
        let mut state = self.state();
        MonoTime(state.local_ns() - state.suspended_ns)
    }

    fn boottime(&self) -> BootTime {
        BootTime(self.state().local_ns())
    }

    fn wall_ms(&self) -> u64 {
        let mut state = self.state();
        (EPOCH_S * 1_000 + state.local_ns() / 1_000_000).saturating_add_signed(state.wall_offset_ms)
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let clock = self.clone();
        let until = self.monotonic() + duration;
        Box::pin(async move {
            loop {
                clock.going().await;
                let left = until.since(clock.monotonic());
                if left.is_zero() {
                    return;
                }
                let rate = clock.state().rate_ppm;
                let nap = i128::from(nanos(left)) * MILLION / (MILLION + i128::from(rate));
                let nap = Duration::from_nanos(u64::try_from(nap).unwrap_or(u64::MAX));
                tokio::time::sleep(nap.max(NAP_MIN)).await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_bent_goes_on_from_where_it_was() {
        let clock = SimClock::new(100_000);
        clock.at(Duration::from_secs(10));
        assert_eq!(clock.monotonic(), MonoTime(11_000_000_000));
        clock.set_rate_ppm(0);
        clock.at(Duration::from_secs(20));
        assert_eq!(clock.monotonic(), MonoTime(21_000_000_000));
    }

    #[test]
    fn a_stop_is_seen_by_both_clocks_and_a_suspend_by_one() {
        let clock = SimClock::new(0);
        clock.at(Duration::from_secs(10));
        clock.stop(false);
        clock.at(Duration::from_secs(15));
        assert_eq!(clock.boottime(), BootTime(10_000_000_000));
        clock.go_on();
        assert_eq!(clock.monotonic(), MonoTime(15_000_000_000));
        clock.stop(true);
        clock.at(Duration::from_secs(18));
        clock.go_on();
        assert_eq!(clock.monotonic(), MonoTime(15_000_000_000));
        assert_eq!(clock.boottime(), BootTime(18_000_000_000));
    }
}
