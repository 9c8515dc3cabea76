//! Decides how samples become figures: medians over rounds, percentiles over everything.

use std::time::Duration;

/// The latencies of one measurement, and how long it took.
#[derive(Debug, Default)]
pub struct Samples {
    /// Sorted.
    latencies: Vec<Duration>,
    took: Duration,
}

impl Samples {
    pub fn new(mut latencies: Vec<Duration>, took: Duration) -> Samples {
        latencies.sort_unstable();
        Samples { latencies, took }
    }

    pub fn merged(all: &[Samples]) -> Samples {
        let latencies = all
            .iter()
            .flat_map(|one| one.latencies.iter().copied())
            .collect();
        Samples::new(latencies, all.iter().map(|one| one.took).sum())
    }

    pub fn per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.took.as_secs_f64()
    }

    /// The smallest latency that `percent` of the samples do not exceed; zero without samples.
    pub fn percentile_ms(&self, percent: f64) -> f64 {
        let rank = (self.latencies.len() as f64 * percent / 100.0).ceil() as usize;
        let at = rank.clamp(1, self.latencies.len().max(1)) - 1;
        self.latencies
            .get(at)
            .map_or(0.0, |latency| latency.as_secs_f64() * 1_000.0)
    }
}

/// A figure over the rounds.
#[derive(Debug, PartialEq)]
pub struct Median {
    pub middle: f64,
    pub least: f64,
    pub most: f64,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_percentiles_are_of_the_sorted_values() {
        assert_eq!(
            median(&[3.0, 1.0, 2.0]),
            Median {
                middle: 2.0,
                least: 1.0,
                most: 3.0
            }
        );
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]).middle, 2.5);
        let latencies = (1..=1_000).rev().map(Duration::from_millis).collect();
        let samples = Samples::new(latencies, Duration::from_secs(2));
        assert_eq!(samples.percentile_ms(50.0), 500.0);
        assert_eq!(samples.percentile_ms(99.9), 999.0);
        assert_eq!(samples.per_second(), 500.0);
        assert_eq!(Samples::default().percentile_ms(99.0), 0.0);
    }
}
