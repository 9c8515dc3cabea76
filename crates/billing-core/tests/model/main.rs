//! A million random commands against a model that was written from the design alone. Decides whether the ledger does what §2
//! to §5 say; a seed that fails is printed with the line that repeats it.
//!
//! `MODEL_COMMANDS`: how many commands in all (1,000,000). `MODEL_SEED`: this seed only. `MODEL_WATCH=books`: gates and the
//! provider's books alone, to see what they notice without the model.

#![allow(clippy::expect_used, reason = "a test: what is drawn is in bounds")]

mod clock;
mod deck;
mod dice;
mod gates;
mod naive;
mod provider;
mod run;
mod tally;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use run::{Broken, Watch, run};
use tally::Tally;

const COMMANDS: u64 = 1_000_000;
const COMMANDS_PER_SEED: u64 = 10_000;
const PROGRESS_EVERY: u64 = 200_000;
const THREADS_MAX: usize = 4;

fn knob(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    match text.parse() {
        Ok(number) => Some(number),
        Err(_) => panic!("{name} must be a number, not {text:?}"),
    }
}

#[test]
fn the_ledger_does_what_a_naive_model_says() {
    let watch = match std::env::var("MODEL_WATCH").as_deref() {
        Ok("books") => Watch::BooksAlone,
        _ => Watch::Everything,
    };
    let commands = knob("MODEL_COMMANDS").unwrap_or(COMMANDS);
    let seeds = match knob("MODEL_SEED") {
        Some(seed) => seed..=seed,
        None => 1..=commands.div_ceil(COMMANDS_PER_SEED),
    };
    let began = Instant::now();
    let (next, done) = (AtomicU64::new(*seeds.start()), AtomicU64::new(0));
    let failed: Mutex<Option<(u64, Broken)>> = Mutex::new(None);
    let tallies = Mutex::new(Tally::default());
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(THREADS_MAX);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > *seeds.end() {
                        return;
                    }
                    match run(seed, COMMANDS_PER_SEED, watch) {
                        Ok((many, tally)) => {
                            tallies
                                .lock()
                                .expect("no thread panics while it holds this")
                                .merge(&tally);
                            let before = done.fetch_add(many, Ordering::Relaxed);
                            if before / PROGRESS_EVERY != (before + many) / PROGRESS_EVERY {
                                let seconds = began.elapsed().as_secs_f64();
                                println!("model: {} commands, {seconds:.1} s", before + many);
                            }
                        }
                        Err(broken) => {
                            next.store(u64::MAX / 2, Ordering::Relaxed); // The others finish theirs and stop.
                            let mut first =
                                failed.lock().expect("no thread panics while it holds this");
                            if first.as_ref().is_none_or(|(other, _)| seed < *other) {
                                *first = Some((seed, broken));
                            }
                        }
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no thread panicked");
    if let Some((seed, broken)) = failed {
        let knobs = match watch {
            Watch::Everything => "",
            Watch::BooksAlone => "MODEL_WATCH=books ",
        };
        panic!(
            "after {} commands of seed {seed}, {} of other seeds: {}\n\nthe last of it:\n{}\n\nrepeat with: {knobs}MODEL_SEED={seed} \
             cargo test -p billing-core --test model",
            broken.commands,
            done.load(Ordering::Relaxed),
            broken.what,
            broken.timeline
        );
    }
    let tally = tallies.into_inner().expect("no thread panicked");
    tally.print();
    let done = done.into_inner();
    println!(
        "model: {done} commands agree, {:.1} s",
        began.elapsed().as_secs_f64()
    );
    if knob("MODEL_SEED").is_none() {
        assert!(done >= commands, "only {done} commands were tried");
        if watch == Watch::Everything && commands >= COMMANDS {
            let missed = tally.missed();
            assert!(
                missed.is_empty(),
                "a run that hardly met {missed:?} proves nothing about them"
            );
        }
    }
}
