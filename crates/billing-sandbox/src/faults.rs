//! Decides which request meets which misfortune. Draws only from its own seeded generator, so a run can be repeated.
//! Never changes what the books say: a fault is about when and what the caller hears.

use std::ops::RangeInclusive;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// How the provider misbehaves. `Default` is not at all. Shares are probabilities, 0.0..=1.0, and count POSTs only.
#[derive(Clone, Debug, PartialEq)]
pub struct Faults {
    /// Milliseconds between taking a request and doing its work.
    pub delay_ms: RangeInclusive<u64>,
    /// Milliseconds between doing the work and answering.
    pub reply_delay_ms: RangeInclusive<u64>,
    /// The reply of every n-th POST is lost after the work; 0 means never.
    pub lose_reply_every: u64,
    pub lose_reply_share: f64,
    /// 500 with nothing done. Stored under the key like any result.
    pub error_before_share: f64,
    /// 500 with the work done. Stored under the key like any result.
    pub error_after_share: f64,
    /// A body that is not JSON, with status 200 and the work done.
    pub garble_share: f64,
    /// Confirmations and direct charges that are declined whatever the card.
    pub decline_share: f64,
    /// Idempotency keys mean nothing: a provider that does not protect its callers.
    pub ignore_keys: bool,
    /// Declines are not remembered under their key: a repeated request runs again.
    pub forget_declines: bool,
}

impl Default for Faults {
    fn default() -> Self {
        Faults {
            delay_ms: 0..=0,
            reply_delay_ms: 0..=0,
            lose_reply_every: 0,
            lose_reply_share: 0.0,
            error_before_share: 0.0,
            error_after_share: 0.0,
            garble_share: 0.0,
            decline_share: 0.0,
            ignore_keys: false,
            forget_declines: false,
        }
    }
}

/// What one POST will meet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    pub error_before: bool,
    pub error_after: bool,
    pub lose_reply: bool,
    pub garble: bool,
}

pub struct Dice {
    random: StdRng,
    posts: u64,
}

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice {
            random: StdRng::seed_from_u64(seed),
            posts: 0,
        }
    }

    pub fn fate_of_a_post(&mut self, faults: &Faults) -> Fate {
        self.posts += 1;
        Fate {
            error_before: self.happens(faults.error_before_share),
            error_after: self.happens(faults.error_after_share),
            lose_reply: (faults.lose_reply_every > 0
                && self.posts.is_multiple_of(faults.lose_reply_every))
                || self.happens(faults.lose_reply_share),
            garble: self.happens(faults.garble_share),
        }
    }

    pub fn happens(&mut self, share: f64) -> bool {
        // Nothing is drawn for what never happens: switching one fault on does not move the others' draws.
        share > 0.0 && self.random.random_bool(share.min(1.0))
    }

    pub fn pause(&mut self, range: &RangeInclusive<u64>) -> Duration {
        let (low, high) = (*range.start(), *range.end());
        if low >= high {
            Duration::from_millis(low)
        } else {
            Duration::from_millis(self.random.random_range(low..=high))
        }
    }

    /// Sixteen letters that look drawn, for ids.
    pub fn letters(&mut self) -> String {
        const ALPHABET: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        (0..16)
            .map(|_| char::from(ALPHABET[self.random.random_range(0..ALPHABET.len())]))
            .collect()
    }
}
