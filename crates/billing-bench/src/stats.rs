//! Decides how samples become figures: medians over rounds, percentiles over everything, fairness over callers.

use std::{fmt, time::Duration};

use anyhow::Result;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::report::number;

/// Nothing we time takes longer; what does is counted as this long.
const LONGEST: Duration = Duration::from_secs(600);
/// Three digits of a latency are more than two runs agree on.
const DIGITS: u8 = 3;

/// How long things took, in nanoseconds, to three digits.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Latencies {
    pub fn new() -> Result<Latencies> {
        Ok(Latencies(Histogram::new_with_bounds(
            1_000,
            nanos(LONGEST),
            DIGITS,
        )?))
    }

    pub fn record(&mut self, took: Duration) {
        self.0.saturating_record(nanos(took));
    }

    pub fn add(&mut self, other: &Latencies) -> Result<()> {
        self.0.add(&other.0)?;
        Ok(())
    }

    pub fn merged<'a>(all: impl IntoIterator<Item = &'a Latencies>) -> Result<Latencies> {
        let mut merged = Latencies::new()?;
        for one in all {
            merged.add(one)?;
        }
        Ok(merged)
    }

    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The smallest latency that `percent` of the samples do not exceed; zero without samples.
    pub fn percentile_ms(&self, percent: f64) -> f64 {
        self.0.value_at_percentile(percent) as f64 / 1e6
    }

    pub fn most_ms(&self) -> f64 {
        self.0.max() as f64 / 1e6
    }

    pub fn figures(&self) -> Percentiles {
        Percentiles {
            count: self.count(),
            p50_ms: self.percentile_ms(50.0),
            p99_ms: self.percentile_ms(99.0),
            p999_ms: self.percentile_ms(99.9),
            most_ms: if self.count() == 0 {
                0.0
            } else {
                self.most_ms()
            },
        }
    }
}

fn nanos(took: Duration) -> u64 {
    u64::try_from(took.as_nanos()).unwrap_or(u64::MAX)
}

/// What is shown of latencies.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Percentiles {
    pub count: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub most_ms: f64,
}

impl fmt::Display for Percentiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Percentiles {
            count: _,
            p50_ms,
            p99_ms,
            p999_ms,
            most_ms,
        } = self;
        write!(
            f,
            "p50 {p50_ms:.2} ms, p99 {p99_ms:.2} ms, p99.9 {p999_ms:.2} ms, worst {most_ms:.2} ms"
        )
    }
}

/// A figure over the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Median {
    pub middle: f64,
    pub least: f64,
    pub most: f64,
}

impl fmt::Display for Median {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({} to {})",
            number(self.middle),
            number(self.least),
            number(self.most)
        )
    }
}

/// Zeros without values.
pub fn median(values: &[f64]) -> Median {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let at = |index: usize| sorted.get(index).copied().unwrap_or(0.0);
    let half = sorted.len() / 2;
    let middle = if sorted.len().is_multiple_of(2) {
        (at(half.saturating_sub(1)) + at(half)) / 2.0
    } else {
        at(half)
    };
    Median {
        middle,
        least: at(0),
        most: at(sorted.len().saturating_sub(1)),
    }
}

/// Jain's index of how evenly `shares` are spread: 1 when all are equal, 1/n when one has everything. 1 for nothing at all.
pub fn fairness(shares: &[u64]) -> f64 {
    let sum: f64 = shares.iter().map(|share| *share as f64).sum();
    let squares: f64 = shares.iter().map(|share| (*share as f64).powi(2)).sum();
    if squares == 0.0 {
        1.0
    } else {
        sum * sum / (shares.len() as f64 * squares)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_of_the_sorted_values() {
        let of_three = Median {
            middle: 2.0,
            least: 1.0,
            most: 3.0,
        };
        assert_eq!(median(&[3.0, 1.0, 2.0]), of_three);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]).middle, 2.5);
        assert_eq!(median(&[]).most, 0.0);
    }

    #[test]
    fn percentiles_have_three_digits() -> Result<()> {
        let mut latencies = Latencies::new()?;
        (1..=1_000).for_each(|ms| latencies.record(Duration::from_millis(ms)));
        // A bucket's width, and the value next to it: a share of a thousand values may be rounded up to it.
        let close = |figure: f64, to: f64| (figure - to).abs() <= to / 500.0;
        assert!(close(latencies.percentile_ms(50.0), 500.0));
        assert!(close(latencies.percentile_ms(99.9), 999.0));
        let merged = Latencies::merged([&latencies, &latencies])?;
        assert_eq!(merged.count(), 2_000);
        assert_eq!(Latencies::new()?.figures().most_ms, 0.0);
        latencies.record(LONGEST * 2);
        assert!(close(latencies.most_ms(), 600_000.0), "cut, not lost");
        Ok(())
    }

    #[test]
    fn fairness_is_jains_index() {
        assert_eq!(fairness(&[5, 5, 5, 5]), 1.0);
        assert_eq!(fairness(&[8, 0, 0, 0]), 0.25);
        assert_eq!(fairness(&[0, 0]), 1.0);
    }
}
