//! Measures durable appends per second, one after the other, beside what the same disk gives a plain file in the same run: a
//! growing one, and one written into space that was written before. Prints medians of interleaved rounds, and nothing else
//! decides what is fast: read the ratios, not the rates.
//!
//! `cargo run --release -p billing-store --example append_rate -- FOLDER [ROUNDS]`

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use billing_store::{Entry, Identity, LogDisk, StoreError};
use bytes::Bytes;

const ENTRY_BYTES: usize = 200;
const ROUND_LASTS: Duration = Duration::from_millis(400);
const ROUNDS: usize = 7;
/// Appends in flight in the second figure of the log.
const IN_FLIGHT: usize = 64;

fn rate(
    mut one: impl FnMut() -> Result<u64, Box<dyn std::error::Error>>,
) -> Result<f64, Box<dyn std::error::Error>> {
    let begun = Instant::now();
    let mut done = 0;
    while begun.elapsed() < ROUND_LASTS {
        done += one()?;
    }
    Ok(done as f64 / begun.elapsed().as_secs_f64())
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

async fn append(log: &dyn LogDisk, next: &mut u64, count: usize) -> Result<u64, StoreError> {
    let mut waiting = Vec::with_capacity(count);
    for _ in 0..count {
        let (done, outcome) = tokio::sync::oneshot::channel();
        let entry = Entry {
            index: *next,
            bytes: Bytes::from(vec![7; ENTRY_BYTES]),
        };
        let done = Box::new(move |result| {
            let _ = done.send(result);
        });
        log.append(vec![entry], done).await?;
        *next += 1;
        waiting.push(outcome);
    }
    for outcome in waiting {
        outcome.await.map_err(|_| StoreError::Closed)??;
    }
    Ok(count as u64)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments
        .next()
        .map(PathBuf::from)
        .ok_or("usage: append_rate FOLDER [ROUNDS]")?;
    let rounds = arguments
        .next()
        .map_or(Ok(ROUNDS), |rounds| rounds.parse())?
        .max(1);
    std::fs::create_dir_all(&folder)?;
    let work = folder.join(format!("append-rate-{}", std::process::id()));
    std::fs::create_dir(&work)?;
    let outcome = measure(&work, rounds);
    std::fs::remove_dir_all(&work)?;
    outcome
}

fn measure(work: &Path, rounds: usize) -> Result<(), Box<dyn std::error::Error>> {
    let identity = Identity {
        cluster: Bytes::from_static(b"rate"),
        node: 1,
        created_unix_ms: 0,
    };
    let disk = billing_store::create(&work.join("node"), &identity)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let mut growing = File::create(work.join("growing"))?;
    let written = File::create(work.join("written"))?;
    let space = 64 * 1024 * 1024;
    written.write_all_at(&vec![1; space], 0)?;
    written.sync_all()?;
    let (mut next, mut at) = (1, 0);
    let (mut alone, mut many, mut grown, mut rewritten) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        alone.push(rate(|| {
            Ok(runtime.block_on(append(&*disk.log, &mut next, 1))?)
        })?);
        grown.push(rate(|| {
            growing.write_all(&[7; ENTRY_BYTES])?;
            growing.sync_data()?;
            Ok(1)
        })?);
        rewritten.push(rate(|| {
            written.write_all_at(&[7; ENTRY_BYTES], at)?;
            written.sync_data()?;
            at = (at + ENTRY_BYTES as u64) % (space - ENTRY_BYTES) as u64;
            Ok(1)
        })?);
        many.push(rate(|| {
            Ok(runtime.block_on(append(&*disk.log, &mut next, IN_FLIGHT))?)
        })?);
    }
    runtime.block_on(disk.log.close())?;
    let (alone, many, grown, rewritten) = (
        median(alone),
        median(many),
        median(grown),
        median(rewritten),
    );
    println!("entry_bytes={ENTRY_BYTES} rounds={rounds}");
    println!("log_alone={alone:.0}/s log_{IN_FLIGHT}_in_flight={many:.0}/s");
    println!("file_growing={grown:.0}/s file_rewritten={rewritten:.0}/s");
    println!(
        "log_alone/file_growing={:.2} log_alone/file_rewritten={:.2}",
        alone / grown,
        alone / rewritten
    );
    Ok(())
}
