//! Decides what time it is on one simulated host: true time, faster or slower by a drift, and a wall clock that is off.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use billing_env::{BootTime, BoxFuture, Clock, MonoTime};

/// 1 January 2026, where every simulation begins.
const EPOCH_MS: u64 = 1_767_225_600_000;
const MILLION: i128 = 1_000_000;

/// One host's clock; outlives its processes.
#[derive(Default)]
pub struct SimClock {
    /// Parts per million by which it runs fast. Set before the host starts: a clock that is bent later would jump.
    drift_ppm: AtomicI64,
    wall_offset_ms: AtomicI64,
    /// The newest true time seen, for those who ask from outside of every host.
    seen_ns: AtomicU64,
}

impl SimClock {
    pub fn new(drift_ppm: i64) -> SimClock {
        SimClock {
            drift_ppm: AtomicI64::new(drift_ppm),
            ..SimClock::default()
        }
    }

    pub fn set_wall_offset_ms(&self, offset_ms: i64) {
        self.wall_offset_ms.store(offset_ms, Ordering::Relaxed);
    }

    fn true_ns(&self) -> u64 {
        let now = turmoil::sim_elapsed().map_or(0, |elapsed| {
            u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
        });
        self.seen_ns.fetch_max(now, Ordering::Relaxed).max(now)
    }

    fn ns(&self) -> u64 {
        let drift = i128::from(self.drift_ppm.load(Ordering::Relaxed));
        let ns = i128::from(self.true_ns()) * (MILLION + drift) / MILLION;
        u64::try_from(ns).unwrap_or(0)
    }
}

impl Clock for SimClock {
    fn monotonic(&self) -> MonoTime {
        MonoTime(self.ns())
    }

    fn boottime(&self) -> BootTime {
        BootTime(self.ns())
    }

    fn wall_ms(&self) -> u64 {
        (EPOCH_MS + self.ns() / 1_000_000)
            .saturating_add_signed(self.wall_offset_ms.load(Ordering::Relaxed))
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let drift = i128::from(self.drift_ppm.load(Ordering::Relaxed));
        let ns = i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX / MILLION) * MILLION
            / (MILLION + drift);
        let slept = Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX));
        Box::pin(tokio::time::sleep(slept))
    }
}
