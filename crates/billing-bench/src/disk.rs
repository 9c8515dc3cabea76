//! Decides what the disk alone can do: one small append, one fdatasync, again and again; by one process and by three at once, as
//! three nodes share it. The figure that every other one stands beside.

use std::{
    fs::File,
    io::{Seek, SeekFrom, Write},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{
    report::Report,
    stats::{Median, median},
};

/// About one command in the log.
const APPEND_BYTES: usize = 200;
/// As many as there are nodes.
const AT_ONCE: usize = 3;

/// Appends made durable per second, one at a time.
#[derive(Clone, Copy, Debug)]
pub struct Syncs {
    /// By one writer on a growing file.
    pub alone: f64,
    /// By each of three writers at once, the slowest of them: what an entry that must reach two or three disks can hope for.
    pub each_of_three: f64,
}

/// Each of the two for half of `length`.
pub fn measure(folder: &Path, length: Duration) -> Result<Syncs> {
    let alone = rate(folder, 0, length / 2)?;
    let three: Vec<Result<f64>> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..AT_ONCE)
            .map(|writer| scope.spawn(move || rate(folder, writer, length / 2)))
            .collect();
        running
            .into_iter()
            .map(|writer| {
                writer
                    .join()
                    .unwrap_or_else(|_| anyhow::bail!("a writer panicked"))
            })
            .collect()
    });
    let mut each_of_three = f64::INFINITY;
    for rate in three {
        each_of_three = each_of_three.min(rate?);
    }
    Ok(Syncs {
        alone,
        each_of_three,
    })
}

fn rate(folder: &Path, writer: usize, length: Duration) -> Result<f64> {
    let path = folder.join(format!("fdatasync-{writer}"));
    let mut file = File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    file.seek(SeekFrom::End(0))?;
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

/// Over the rounds.
#[derive(Clone, Debug, Serialize)]
pub struct SyncFigures {
    pub alone: Median,
    pub each_of_three: Median,
}

impl SyncFigures {
    pub fn of(rounds: &[Syncs]) -> SyncFigures {
        let over = |of: fn(&Syncs) -> f64| median(&rounds.iter().map(of).collect::<Vec<_>>());
        SyncFigures {
            alone: over(|syncs| syncs.alone),
            each_of_three: over(|syncs| syncs.each_of_three),
        }
    }

    pub fn show(&self, report: &mut Report) -> Result<()> {
        report.line(self.to_string());
        report.fact("disk", serde_json::to_value(self)?);
        Ok(())
    }
}

impl std::fmt::Display for SyncFigures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "fdatasync after {APPEND_BYTES} B: {}/s alone, {}/s each of {AT_ONCE} at once",
            self.alone, self.each_of_three
        )
    }
}
