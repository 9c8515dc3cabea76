//! A worker has begun a charge and does not reach the cluster any more, or its process stands still, until its lease is over;
//! then it goes on where it was, before its send. The next holder has continued the attempt meanwhile. The check before the send
//! keeps it back: its key's window is still open, and nothing else would.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::steps::{end_well, pick, submit_payable};
use crate::chance::Chance;
use crate::machines::{node_name, worker_name};
use crate::profile::{Provider, VALID_FOR};
use crate::world::{Setting, World};

const TTL: Duration = Duration::from_millis(1_500);
const ROUNDS: u64 = 2;

#[derive(Debug, Clone, Copy)]
enum Away {
    CutOff,
    Stopped,
}

pub fn setting(chance: &Chance) -> Setting {
    let keys_only = [Provider::StickyKeys, Provider::LooseKeys, Provider::Nothing];
    Setting {
        workers: 2,
        provider: chance.pick(&keys_only).unwrap_or(Provider::StickyKeys),
        worker_ttl: TTL,
        ..Setting::default()
    }
}

pub fn run(world: &mut World) -> Result<()> {
    world.bootstrapped()?;
    for _ in 0..ROUNDS {
        one_round(world)?;
    }
    end_well(world)
}

fn one_round(world: &mut World) -> Result<()> {
    let (one, other) = (worker_name(1), worker_name(2));
    world.pass(Duration::from_secs(1))?;
    world.freeze(&other, false);
    world.pass(Duration::from_secs(1))?;
    let place = pick(world, &["after_begin", "before_send"])?;
    let away = pick(world, &[Away::CutOff, Away::Stopped])?;
    // Long after its lease, and well inside the key's window.
    let stall = TTL + world.chance.between_ms(5_000, 8_000);
    ensure!(
        stall + Duration::from_secs(2) < VALID_FOR,
        "the key would be too old"
    );
    world.workers[&1].machine.pauses.stall_at(place, stall);
    let invoice = submit_payable(world)?;
    world.until("the attempt is begun", |world| {
        let known = world.replay().invoices().get(&invoice);
        known.is_some_and(|known| known.attempt.is_some())
    })?;
    // The answer arrives, and the worker stalls.
    world.pass(Duration::from_millis(100))?;
    let stalled = format!("{one} stalls at {place} for {stall:?}");
    let lines = world.record.lines();
    let since = lines.iter().rev().find(|(_, line)| *line == stalled);
    let since = since.map(|(at, _)| *at);
    let goes_on = since.with_context(|| format!("{one} did not stall at {place}"))? + stall;
    world.note(format_args!("{one} is away: {away:?}"));
    let nodes: Vec<u64> = world.hosts.keys().copied().collect();
    match away {
        Away::CutOff => {
            for &id in &nodes {
                world.network().partition(one.as_str(), node_name(id));
            }
        }
        Away::Stopped => world.freeze(&one, false),
    }
    world.thaw(&other);
    if matches!(away, Away::Stopped) {
        // Just before it goes on where it was: it looks at its lease with a clock that runs.
        let stands = goes_on.saturating_sub(world.elapsed());
        world.pass(stands.saturating_sub(Duration::from_millis(100)))?;
        world.thaw(&one);
    }
    let left = goes_on.saturating_sub(world.elapsed());
    // So that a send of it would have been heard.
    world.pass(left + Duration::from_secs(4))?;
    for &id in &nodes {
        world.network().repair(one.as_str(), node_name(id));
    }
    world.note(format_args!("{one} reaches the cluster"));
    world.pass(Duration::from_secs(2))
}
