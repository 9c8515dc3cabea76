//! Decides what the sandbox is started with, and every bound it has, on one screen. Reads no flags and no environment.

use std::path::PathBuf;
use std::time::Duration;

use crate::faults::Faults;

/// Connections served at once. One more waits in the kernel's backlog until another ends.
pub const CONNECTIONS_MAX: usize = 4_096;
/// Requests at work at once, whose callers may be long gone. One more is answered 429 and nothing happens.
pub const IN_FLIGHT_MAX: usize = 4_096;
/// Bytes of a request's body. More is answered 413.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// Characters of an Idempotency-Key, as Stripe documents it.
pub const KEY_LENGTH_MAX: usize = 255;
/// Pairs in an object's metadata, as Stripe documents it.
pub const METADATA_PAIRS_MAX: usize = 50;
/// The largest amount in the currency's minor unit: eight digits, as Stripe documents it.
pub const AMOUNT_MAX: u64 = 99_999_999;
/// Objects on one page of a list.
pub const PAGE_MAX: usize = 100;

/// How long a key is kept where nothing else is said: Stripe prunes keys that are at least 24 hours old.
pub const KEY_RETENTION_DEFAULT: Duration = Duration::from_secs(24 * 60 * 60);

/// What a sandbox is started with. `Default` is a well-behaved provider without a journal.
#[derive(Clone, Debug)]
pub struct Settings {
    pub faults: Faults,
    /// Age at which a key and its stored result are forgotten.
    pub key_retention: Duration,
    /// How long a payment stays `processing` (bank debits) before it succeeds or fails.
    pub processing: Duration,
    /// How long a new PaymentIntent or charge stays invisible to *search* (never to retrieve or list).
    pub search_lag: Duration,
    /// The smallest amount taken, in the currency's minor unit. Stripe's own depends on the currency (50 for usd).
    pub amount_min: u64,
    /// Seeds ids and every fault drawn by share: the same requests in the same order get the same answers.
    pub seed: u64,
    /// Where each charge is appended as one line of JSON when it is made. None: books in memory only.
    pub journal: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            faults: Faults::default(),
            key_retention: KEY_RETENTION_DEFAULT,
            processing: Duration::from_secs(2),
            search_lag: Duration::ZERO,
            amount_min: 1,
            seed: 0,
            journal: None,
        }
    }
}
