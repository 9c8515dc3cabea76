//! `billing-model`: runs the searches, says whether each came to what it must, and shows how a double charge comes about. Exit
//! code 0: every verdict is the expected one; 1: one is not; 2: nothing was run.

use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::{collections::BTreeMap, thread};

use anyhow::{Context, Result, bail};
use billing_model::catalogue;
use billing_model::config::{Config, Expected};
use billing_model::search::{Outcome, Verdict, search};
use clap::{Parser, Subcommand};

/// Searches every order of events around one invoice for a second charge.
///
/// Three workers, two attempts, and everything that may come between them: leases that end at any moment, gates that restart,
/// requests that arrive late, clocks that stand still, people, a restore. Each search leaves one profile's rules complete, or
/// leaves one out, and then the double charge must be found.
#[derive(Debug, Parser)]
#[command(
    name = "billing-model",
    version,
    after_help = "\
Examples:
  billing-model                         all searches; exit code 0 if every verdict is the expected one
  billing-model run sticky loose        those whose names begin so
  billing-model show loose/sole-send-restarted
                                        the shortest way to two charges when that rule is missing
  billing-model list                    names, and what each search assumes"
)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run searches, and compare their verdicts with the expected ones (the default)
    Run {
        /// Beginnings of names; none: all
        names: Vec<String>,
        /// Searches at a time; each takes up to 6 GB
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
        jobs: u8,
    },
    /// Run one search and print the way to what it found, step by step
    Show { name: String },
    /// Names, expected verdicts, and what each search assumes
    List,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("billing-model: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(args: Args) -> Result<bool> {
    let everything = Command::Run {
        names: Vec::new(),
        jobs: 2,
    };
    match args.command.unwrap_or(everything) {
        Command::Run { names, jobs } => run_all(&names, usize::from(jobs)),
        Command::Show { name } => {
            let config = catalogue::named(&name).with_context(|| {
                format!("there is no search {name}; `billing-model list` names them")
            })?;
            Ok(show(config))
        }
        Command::List => {
            for config in catalogue::all() {
                println!(
                    "{:<42} {:<8} {}",
                    config.name,
                    expected(config),
                    config.what
                );
            }
            Ok(true)
        }
    }
}

/// Runs the searches and prints a line for each, in the catalogue's order.
fn run_all(names: &[String], jobs: usize) -> Result<bool> {
    let begins = |config: &&Config| {
        names.is_empty()
            || names
                .iter()
                .any(|name| config.name.starts_with(name.as_str()))
    };
    let chosen: Vec<&Config> = catalogue::all().filter(begins).collect();
    if chosen.is_empty() {
        bail!(
            "no search begins with {}; `billing-model list` names them",
            names.join(" or ")
        );
    }
    println!(
        "{:<42} {:>9} {:>5} {:>8}  {:<32} expected",
        "search", "states", "depth", "seconds", "verdict"
    );
    let next = AtomicUsize::new(0);
    let (done, results) = mpsc::sync_channel(chosen.len());
    let mut wrong = 0;
    let mut states = 0;
    thread::scope(|scope| {
        for _ in 0..jobs {
            let (done, next, chosen) = (done.clone(), &next, &chosen);
            scope.spawn(move || {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(config) = chosen.get(at) else {
                        break;
                    };
                    // Nobody listens any more only when the other end has ended: then there is nothing left to say.
                    if done.send((at, search(config))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(done);
        let mut early = BTreeMap::new();
        let mut shown = 0;
        for (at, outcome) in results {
            early.insert(at, outcome);
            while let Some(outcome) = early.remove(&shown) {
                states += outcome.states;
                wrong += usize::from(!line(chosen[shown], &outcome));
                shown += 1;
            }
        }
        wrong += chosen.len() - shown; // A search that ended without a verdict has said why on stderr.
    });
    println!(
        "{} searches, {states} states, {wrong} with another verdict than the expected one",
        chosen.len()
    );
    Ok(wrong == 0)
}

fn line(config: &Config, outcome: &Outcome) -> bool {
    let right = outcome.as_expected(config.expected);
    println!(
        "{:<42} {:>9} {:>5} {:>8.1}  {:<32} {}{}",
        config.name,
        outcome.states,
        outcome.depth,
        outcome.seconds,
        verdict(outcome),
        expected(config),
        if right { "" } else { "  WRONG" }
    );
    if !right {
        steps(outcome);
    }
    right
}

fn verdict(outcome: &Outcome) -> String {
    match &outcome.verdict {
        Verdict::Safe => "safe".to_owned(),
        Verdict::Double(steps) => format!("double charge found in {} steps", steps.len()),
        Verdict::TwoOpen(steps) => format!("two open attempts in {} steps", steps.len()),
        Verdict::Broken(_) => "broken model".to_owned(),
    }
}

fn expected(config: &Config) -> &'static str {
    match config.expected {
        Expected::Safe => "safe",
        Expected::Double => "double",
        Expected::TwoOpen => "two open",
    }
}

fn steps(outcome: &Outcome) {
    match &outcome.verdict {
        Verdict::Safe => println!("  every reachable state keeps every property"),
        Verdict::Double(steps) | Verdict::TwoOpen(steps) => {
            for (at, step) in steps.iter().enumerate() {
                println!("  {:>2}  {step}", at + 1);
            }
        }
        Verdict::Broken(what) => println!("  {what}"),
    }
}

fn show(config: &Config) -> bool {
    let outcome = search(config);
    println!("{}: {}", config.name, config.what);
    println!(
        "{} ({} states, {:.1} s)",
        verdict(&outcome),
        outcome.states,
        outcome.seconds
    );
    steps(&outcome);
    outcome.as_expected(config.expected)
}
