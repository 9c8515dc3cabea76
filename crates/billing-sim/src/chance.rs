//! Decides where chance comes from: the seed, and nothing else.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use billing_env::RandomSource;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// A generator of its own for each who asks, so that one more draw here moves nothing there.
pub struct Chance(Mutex<SmallRng>);

impl Chance {
    /// `purpose` tells the generators of one seed apart.
    pub fn new(seed: u64, purpose: &str) -> Chance {
        let mut hasher = blake3::Hasher::new();
        hasher
            .update(&seed.to_le_bytes())
            .update(purpose.as_bytes());
        Chance(Mutex::new(SmallRng::from_seed(
            *hasher.finalize().as_bytes(),
        )))
    }

    /// Anything below `bound`, which must not be 0.
    pub fn below(&self, bound: u64) -> u64 {
        self.next_u64() % bound
    }

    /// Anything between the two, in milliseconds, both included.
    pub fn between_ms(&self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from + 1))
    }

    /// One of them; none where there is none, and nothing is drawn then.
    pub fn pick<T: Clone>(&self, among: &[T]) -> Option<T> {
        if among.is_empty() {
            return None;
        }
        let nth = self.below(among.len() as u64);
        among.get(usize::try_from(nth).ok()?).cloned()
    }
}

impl RandomSource for Chance {
    fn fill(&self, bytes: &mut [u8]) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .fill_bytes(bytes);
    }
}
