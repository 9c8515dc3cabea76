//! Decides how `billingctl bench` is written. Never talks to a cluster.

use clap::{Args, ValueEnum};

const EXAMPLES: &str = "\
Examples:
  billingctl bench
  billingctl bench --callers 1            what a lone caller can expect: two durable writes a pair
  billingctl bench --callers 256 --mode unary
  billingctl bench --seconds 30 --mode batch -o json";

/// Measure how many leases a second this cluster grants and takes back.
///
/// Each caller acquires a lease and releases it, over and over, on an invoice id of its own (with --mode batch: a hundred) that was never submitted. The ids
/// start with a random prefix, which is printed, so that they meet nobody else's; nothing stays held and no invoice is left
/// behind, only audit records. This loads the cluster as real work would: mind who else uses it. Ctrl-C ends early and prints
/// what was measured so far.
///
/// A quick figure, from one core of this machine. `make bench` compares with the disk and between rounds.
#[derive(Clone, Copy, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Bench {
    /// For how long.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub seconds: u64,
    /// How many at once; each waits for its answer before it asks again.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub callers: u16,
    /// How the requests travel.
    #[arg(long, value_enum, value_name = "MODE", default_value_t = Mode::Pipeline)]
    pub mode: Mode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// A call each.
    Unary,
    /// On one stream both ways, as the Rust client does it.
    Pipeline,
    /// A hundred leases in one command, then their release in another.
    Batch,
}
