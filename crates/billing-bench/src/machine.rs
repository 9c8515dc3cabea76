//! Decides which facts of this machine stand beside a figure. Never its name.

use std::{fmt, fs};

use anyhow::{Context, Result};
use serde::Serialize;

/// What does not change while we measure.
#[derive(Debug, Serialize)]
pub struct Machine {
    cores: usize,
    kernel: String,
    memory_mb: u64,
    processor: String,
}

impl Machine {
    pub fn now() -> Result<Machine> {
        Ok(Machine {
            cores: cores()?,
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            memory_mb: field("/proc/meminfo", "MemTotal:")?
                .split_whitespace()
                .next()
                .and_then(|kb| kb.parse::<u64>().ok())
                .context("/proc/meminfo names no total")?
                / 1024,
            // Not every architecture names one.
            processor: field("/proc/cpuinfo", "model name")
                .map(|name| name.trim_start_matches([' ', '\t', ':']).to_owned())
                .unwrap_or_default(),
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine {
            cores,
            kernel,
            memory_mb,
            processor,
        } = self;
        write!(
            f,
            "{cores} cores ({processor}), {memory_mb} MB, Linux {kernel}"
        )
    }
}

/// Cores that this process may run on.
pub fn cores() -> Result<usize> {
    Ok(std::thread::available_parallelism()?.get())
}

/// The load averages over 1, 5 and 15 minutes: what else ran.
#[derive(Debug, Serialize)]
pub struct Load([f64; 3]);

impl Load {
    pub fn now() -> Result<Load> {
        let text = read("/proc/loadavg")?;
        let mut numbers = text.split_whitespace().map(str::parse);
        let mut next = || {
            numbers
                .next()
                .and_then(Result::ok)
                .context("/proc/loadavg has no three numbers")
        };
        Ok(Load([next()?, next()?, next()?]))
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Load([one, five, fifteen]) = self;
        write!(f, "{one:.2} {five:.2} {fifteen:.2}")
    }
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
}

/// What stands behind `name` in the first line that begins with it.
fn field(path: &str, name: &str) -> Result<String> {
    read(path)?
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .map(|rest| rest.trim().to_owned())
        .with_context(|| format!("{path} names no {name}"))
}
