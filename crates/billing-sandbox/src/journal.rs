//! Decides how a charge is written down for later eyes: one line of JSON each, appended and handed to the system at once.
//! Never read back: a sandbox starts with empty books.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use serde_json::Value;

pub struct Journal(File);

impl Journal {
    pub fn append_to(path: &Path) -> io::Result<Journal> {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map(Journal)
    }

    pub fn record(&mut self, charge: &Value) -> io::Result<()> {
        let mut line = charge.to_string();
        line.push('\n');
        self.0.write_all(line.as_bytes())
    }
}
