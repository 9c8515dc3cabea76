//! Decides which clock answers which question. Never decides that money may move: no clock does (DESIGN §1).
//!
//! Three clocks, three types, so that they cannot be subtracted from one another:
//! monotonic (a leader's elapsed time), boot time (a client's deadline: counts suspend), wall (people and audit).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::BoxFuture;

/// An instant of `CLOCK_MONOTONIC`, as nanoseconds since an origin that only this process knows. Stands still in suspend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MonoTime(pub u64);

/// An instant of `CLOCK_BOOTTIME`, in nanoseconds since boot. Goes on in suspend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BootTime(pub u64);

macro_rules! instant {
    ($name:ident) => {
        impl $name {
            /// Time from `earlier` to `self`; zero when `earlier` is the later one.
            pub fn since(self, earlier: $name) -> Duration {
                Duration::from_nanos(self.0.saturating_sub(earlier.0))
            }
        }

        impl std::ops::Add<Duration> for $name {
            type Output = $name;
            fn add(self, by: Duration) -> $name {
                $name(
                    self.0
                        .saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)),
                )
            }
        }
    };
}
instant!(MonoTime);
instant!(BootTime);

/// The clocks of one host.
pub trait Clock: Send + Sync + 'static {
    /// For the leader's elapsed time (§4) and for time-outs inside one process.
    fn monotonic(&self) -> MonoTime;

    /// For what a client believes about its lease and the gate about its send window: a sleeping laptop keeps ageing.
    fn boottime(&self) -> BootTime;

    /// Unix milliseconds; may jump either way. For people, audit, `due_at`, and for *closing* a door, never for opening one.
    fn wall_ms(&self) -> u64;

    /// Completes once the monotonic clock has moved by `duration`.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

/// The operating system's clocks; sleeping is tokio's.
#[derive(Debug, Default)]
pub struct RealClock;

impl RealClock {
    pub fn new() -> RealClock {
        RealClock
    }
}

fn read(id: rustix::time::ClockId) -> u64 {
    let time = rustix::time::clock_gettime(id);
    // Both clocks start at boot: neither field is negative, and 2^64 ns are 584 years.
    (time.tv_sec as u64) * 1_000_000_000 + time.tv_nsec as u64
}

impl Clock for RealClock {
    fn monotonic(&self) -> MonoTime {
        MonoTime(read(rustix::time::ClockId::Monotonic))
    }

    fn boottime(&self) -> BootTime {
        BootTime(read(rustix::time::ClockId::Boottime))
    }

    fn wall_ms(&self) -> u64 {
        // A machine set before 1970 reads as 1970: the audit looks odd, nothing else changes.
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as u64)
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_earlier_instant_gives_zero_not_a_panic() {
        assert_eq!(MonoTime(5).since(MonoTime(9)), Duration::ZERO);
        assert_eq!(MonoTime(9).since(MonoTime(5)), Duration::from_nanos(4));
        assert_eq!(
            BootTime(u64::MAX) + Duration::from_secs(1),
            BootTime(u64::MAX)
        );
    }

    #[tokio::test]
    async fn the_real_clocks_move_on_by_what_was_slept() {
        let clock = RealClock::new();
        let (mono, boot) = (clock.monotonic(), clock.boottime());
        clock.sleep(Duration::from_millis(20)).await;
        assert!(clock.monotonic().since(mono) >= Duration::from_millis(20));
        assert!(clock.boottime().since(boot) >= Duration::from_millis(20));
        assert!(
            clock.wall_ms() > 1_600_000_000_000,
            "wall clock is in unix milliseconds"
        );
    }
}
