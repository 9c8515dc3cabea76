//! Decides what the disk alone can do: one small append, one fdatasync, again and again. The figure that every other one stands beside.

use std::{
    fs::File,
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;

/// About one command in the log.
const APPEND_BYTES: usize = 200;

/// Appends made durable per second, one at a time, on a growing file in `folder`.
pub fn fdatasync_rate(folder: &Path, length: Duration) -> Result<f64> {
    let path = folder.join("fdatasync");
    let mut file = File::options().create(true).append(true).open(&path)?;
    let append = [0x5a; APPEND_BYTES];
    let begun = Instant::now();
    let mut done = 0_u64;
    while begun.elapsed() < length {
        file.write_all(&append)?;
        file.sync_data()?;
        done += 1;
    }
    let rate = done as f64 / begun.elapsed().as_secs_f64();
    std::fs::remove_file(&path)?;
    Ok(rate)
}
