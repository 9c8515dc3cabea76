//! Decides what counts as having happened: application events with their simulated time. Packets and log lines do not:
//! they carry real dates.

use std::fmt;
use std::time::Duration;

/// Everything that happened, in order, and its hash.
#[derive(Default)]
pub struct Trace {
    hasher: blake3::Hasher,
    events: u64,
    /// Also written to stderr as it happens.
    pub loud: bool,
}

impl Trace {
    pub fn note(&mut self, at: Duration, event: fmt::Arguments<'_>) {
        let line = format!("{:>9} {event}", at.as_millis());
        self.hasher.update(line.as_bytes()).update(b"\n");
        self.events += 1;
        if self.loud {
            eprintln!("{line}");
        }
    }

    pub fn events(&self) -> u64 {
        self.events
    }

    pub fn hash(&self) -> String {
        self.hasher.finalize().to_hex()[..16].to_owned()
    }
}
