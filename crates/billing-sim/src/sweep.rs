//! Decides how many seeds are run: each in a process of its own, a few at a time, with progress, and so that a sweep that was
//! broken off can go on. Judges no run; the process that makes it does.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use billing_sim::scenarios;

use crate::repeat_line;

const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// How one run ended.
pub struct Ended {
    pub job: Job,
    pub held: bool,
    /// The last line of a run: key=value, separated by spaces.
    pub line: String,
    /// What it said on stderr.
    pub said: String,
}

impl Ended {
    fn simulated(&self) -> Duration {
        let ms = value(&self.line, "simulated_ms").and_then(|ms| ms.parse().ok());
        Duration::from_millis(ms.unwrap_or(0))
    }

    /// The property that was broken.
    #[cfg(feature = "sabotage")]
    pub fn broken(&self) -> Option<&str> {
        self.said
            .lines()
            .find_map(|line| line.strip_prefix("broken: "))
    }
}

pub fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_whitespace()
        .filter_map(|pair| pair.split_once('='))
        .find_map(|(name, value)| (name == key).then_some(value))
}

/// What one process is to run.
#[derive(Clone)]
pub struct Job {
    pub scenario: String,
    pub seed: u64,
    pub sabotage: Option<&'static str>,
    /// No other property is asked.
    pub only: Option<String>,
    pub trace: Option<PathBuf>,
}

fn start(job: &Job) -> Result<Child> {
    let this = std::env::current_exe().context("this binary's own path")?;
    let mut command = Command::new(this);
    command
        .arg("run")
        .arg(&job.scenario)
        .args(["--seed", &job.seed.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(rule) = job.sabotage {
        command.args(["--sabotage", rule]);
    }
    if let Some(property) = &job.only {
        command.args(["--only", property]);
    }
    if let Some(path) = &job.trace {
        command.arg("--trace").arg(path);
    }
    command.spawn().context("a process for a seed")
}

/// Runs all jobs, a few at a time; `each` hears of every end, and says whether to go on.
pub fn run_all(
    jobs: impl IntoIterator<Item = Job>,
    at_once: usize,
    mut each: impl FnMut(Ended) -> Result<bool>,
) -> Result<()> {
    let mut jobs = jobs.into_iter();
    // What a run says fits a pipe only if somebody reads it: a thread for each.
    let (ends, ended) = std::sync::mpsc::channel();
    let mut running = 0;
    let mut more = true;
    loop {
        while more && running < at_once {
            let Some(job) = jobs.next() else {
                more = false;
                break;
            };
            let ends = ends.clone();
            let child = start(&job)?;
            running += 1;
            std::thread::spawn(move || {
                let output = child.wait_with_output();
                // The sweep may have ended with an error.
                let _ = ends.send((job, output));
            });
        }
        if running == 0 {
            return Ok(());
        }
        let (job, output) = ended.recv().context("the end of a seed's process")?;
        running -= 1;
        let output = output.context("the end of a seed's process")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.code() == Some(2) {
            bail!("{} {}: {said}", job.scenario, job.seed);
        }
        let end = Ended {
            job,
            held: output.status.success(),
            line: text.lines().last().unwrap_or_default().to_owned(),
            said,
        };
        if !each(end)? {
            more = false;
        }
    }
}

pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[derive(clap::Args)]
pub struct Sweep {
    #[arg(long, default_value = "swarm", value_parser = scenarios::ALL.map(|scenario| scenario.name))]
    scenario: String,
    /// How many seeds.
    #[arg(long, default_value_t = 40)]
    seeds: u64,
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    /// Processes at once.
    #[arg(long, default_value_t = cores())]
    at_once: usize,
    /// Seeds that held are written there, and not run again by a later sweep with the same file.
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
}

impl Sweep {
    /// True: every seed held.
    pub fn run(&self) -> Result<bool> {
        ensure!(self.at_once > 0, "--at-once must be 1 or more");
        let done = match &self.resume {
            Some(path) => read_done(path, &self.scenario)?,
            None => BTreeMap::new(),
        };
        let seeds: Vec<u64> =
            (self.first_seed..self.first_seed.saturating_add(self.seeds)).collect();
        let left = seeds
            .iter()
            .copied()
            .filter(|seed| !done.contains_key(seed));
        let jobs = left.map(|seed| Job {
            scenario: self.scenario.clone(),
            seed,
            sabotage: None,
            only: None,
            trace: None,
        });
        let (began, mut shown) = (Instant::now(), Instant::now());
        let (mut ran, mut simulated, mut failed) = (0_u64, Duration::ZERO, Vec::new());
        run_all(jobs, self.at_once, |end| {
            ran += 1;
            simulated += end.simulated();
            if end.held {
                if let Some(path) = &self.resume {
                    write_done(path, &end)?;
                }
            } else {
                eprintln!("{}", end.said.trim_end());
                failed.push(end.job.seed);
            }
            if shown.elapsed() >= PROGRESS_EVERY
                || (std::io::stderr().is_terminal() && ran % 4 == 0)
            {
                shown = Instant::now();
                progress(ran, seeds.len() - done.len(), failed.len(), began.elapsed());
            }
            Ok(true)
        })?;
        let before: Duration = done.values().sum();
        let wall = began.elapsed().as_secs_f64().max(0.001);
        println!(
            "scenario={} seeds={} resumed={} simulated_h={:.2} simulated_s_per_wall_s={:.1} wall_s={:.0} failures={}{}",
            self.scenario,
            ran + done.len() as u64,
            done.len(),
            (simulated + before).as_secs_f64() / 3_600.0,
            simulated.as_secs_f64() / wall,
            wall,
            failed.len(),
            if failed.is_empty() {
                String::new()
            } else {
                format!(" failed={failed:?}")
            }
        );
        Ok(failed.is_empty())
    }
}

fn progress(ran: u64, of: usize, failed: usize, since: Duration) {
    let left = since.as_secs_f64() / ran.max(1) as f64 * (of as f64 - ran as f64);
    let mut err = std::io::stderr();
    let end = if err.is_terminal() { "\r" } else { "\n" };
    // Progress that cannot be shown is no reason to stop.
    let _ = write!(
        err,
        "{ran} of {of} seeds, {failed} failed, about {left:.0} s left   {end}"
    );
}

fn read_done(path: &Path, scenario: &str) -> Result<BTreeMap<u64, Duration>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => bail!("cannot read {}: {error}", path.display()),
    };
    let mut done = BTreeMap::new();
    for line in text
        .lines()
        .filter(|line| value(line, "scenario") == Some(scenario))
    {
        let seed = value(line, "seed").and_then(|seed| seed.parse().ok());
        let ms = value(line, "simulated_ms").and_then(|ms| ms.parse().ok());
        // A line that a break-off cut short is a seed that is run again.
        if let (Some(seed), Some(ms), Some(_)) = (seed, ms, value(line, "trace")) {
            done.insert(seed, Duration::from_millis(ms));
        }
    }
    Ok(done)
}

fn write_done(path: &Path, end: &Ended) -> Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    writeln!(file, "{}", end.line).with_context(|| format!("cannot write {}", path.display()))
}

#[derive(clap::Args)]
pub struct Twice {
    #[arg(long, default_value = "swarm", value_parser = scenarios::ALL.map(|scenario| scenario.name))]
    scenario: String,
    #[arg(long, default_value_t = 4)]
    seeds: u64,
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
}

impl Twice {
    /// True: the same seed gave the same trace, each time.
    pub fn run(&self) -> Result<bool> {
        let folder = std::env::temp_dir().join(format!("billing-sim-{}", std::process::id()));
        std::fs::create_dir_all(&folder).context("a folder for traces")?;
        let compared = self.compare(&folder);
        std::fs::remove_dir_all(&folder).context("the folder of traces")?;
        compared
    }

    fn compare(&self, folder: &Path) -> Result<bool> {
        let mut same = true;
        for seed in self.first_seed..self.first_seed.saturating_add(self.seeds) {
            let path = |time: u32| folder.join(format!("{seed}-{time}.trace"));
            let jobs = [1, 2].map(|time| Job {
                scenario: self.scenario.clone(),
                seed,
                sabotage: None,
                only: None,
                trace: Some(path(time)),
            });
            run_all(jobs, cores(), |_| Ok(true))?;
            let [one, other] = [1, 2].map(|time| std::fs::read(path(time)));
            let (one, other) = (one.context("a trace")?, other.context("a trace")?);
            ensure!(!one.is_empty(), "seed {seed} left an empty trace");
            if one == other {
                println!(
                    "scenario={} seed={seed} bytes={} same=true",
                    self.scenario,
                    one.len()
                );
                continue;
            }
            same = false;
            let (one, other) = (
                String::from_utf8_lossy(&one),
                String::from_utf8_lossy(&other),
            );
            let differing = one.lines().zip(other.lines()).find(|(a, b)| a != b);
            println!(
                "scenario={} seed={seed} same=false\n  {}\n  {}",
                self.scenario,
                differing.map_or("one trace is longer", |(a, _)| a),
                differing.map_or("", |(_, b)| b)
            );
        }
        Ok(same)
    }
}

#[derive(clap::Args)]
pub struct Kept {
    #[arg(long, default_value = "tests/seeds.txt", value_name = "FILE")]
    file: PathBuf,
}

impl Kept {
    /// True: every kept seed holds.
    pub fn run(&self) -> Result<bool> {
        let text = std::fs::read_to_string(&self.file)
            .with_context(|| format!("cannot read {}", self.file.display()))?;
        let mut jobs = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let words = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = words.split_whitespace().collect();
            let (scenario, seed) = match words[..] {
                [] => continue,
                [scenario, seed] => (scenario, seed.parse()),
                _ => bail!(
                    "{} line {}: not SCENARIO SEED",
                    self.file.display(),
                    number + 1
                ),
            };
            let known = scenarios::ALL.iter().any(|known| known.name == scenario);
            let (true, Ok(seed)) = (known, seed) else {
                bail!(
                    "{} line {}: no such scenario, or no number",
                    self.file.display(),
                    number + 1
                );
            };
            jobs.push(Job {
                scenario: scenario.to_owned(),
                seed,
                sabotage: None,
                only: None,
                trace: None,
            });
        }
        let (count, mut held) = (jobs.len(), 0);
        run_all(jobs, cores(), |end| {
            held += usize::from(end.held);
            if !end.held {
                eprintln!("{}", end.said.trim_end());
                eprintln!("{}", repeat_line(&end.job.scenario, end.job.seed, None));
            }
            Ok(true)
        })?;
        println!("kept seeds={count} held={held}");
        Ok(held == count)
    }
}
