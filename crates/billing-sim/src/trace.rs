//! Decides what counts as having happened: application events with their simulated time. Packets and log lines do not:
//! they carry real dates.

use std::fmt;
use std::time::Duration;

/// Everything that happened, in order.
#[derive(Default)]
pub struct Trace {
    lines: Vec<(Duration, String)>,
    hasher: blake3::Hasher,
    /// Also written to stderr as it happens.
    pub loud: bool,
}

/// As a line of the trace shows it.
pub fn line(at: Duration, event: &str) -> String {
    format!("{:>9} {event}", at.as_millis())
}

impl Trace {
    pub fn note(&mut self, at: Duration, event: fmt::Arguments<'_>) {
        let event = event.to_string();
        let line = line(at, &event);
        self.hasher.update(line.as_bytes()).update(b"\n");
        if self.loud {
            eprintln!("{line}");
        }
        self.lines.push((at, event));
    }

    pub fn events(&self) -> u64 {
        self.lines.len() as u64
    }

    pub fn lines(&self) -> &[(Duration, String)] {
        &self.lines
    }

    pub fn hash(&self) -> String {
        self.hasher.finalize().to_hex()[..16].to_owned()
    }
}
