//! Decides where chance comes from. Used for ids and for jitter; never for anything that replicas must agree on.

use std::time::Duration;

/// A source of random bits.
pub trait RandomSource: Send + Sync + 'static {
    fn fill(&self, bytes: &mut [u8]);

    fn next_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// Sixteen bytes: a session id, a request id.
    fn id(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        self.fill(&mut bytes);
        bytes
    }

    /// Full jitter: anything from zero to `at_most`. A crowd that backs off together must not come back together.
    fn jitter(&self, at_most: Duration) -> Duration {
        let share = (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        at_most.mul_f64(share)
    }
}

/// The thread's generator, seeded by the operating system.
#[derive(Debug, Default)]
pub struct RealRandom;

impl RandomSource for RealRandom {
    fn fill(&self, bytes: &mut [u8]) {
        use rand::Rng;
        rand::rng().fill_bytes(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_within_its_bound_and_ids_differ() {
        let bound = Duration::from_millis(100);
        assert!((0..1000).all(|_| RealRandom.jitter(bound) <= bound));
        assert_ne!(RealRandom.id(), RealRandom.id());
    }
}
