//! A leader that was cut off has entries that nobody else has. The next leader makes it drop them, and it crashes right then, at
//! a moment that moves through the truncation from round to round. It starts again each time: how far its log must reach was
//! lowered first.

use std::time::Duration;

use anyhow::{Result, ensure};
use billing_core::{Actor, Command};
use billing_store::sim::Crash;

use super::steps::{all_but, broken, end_well, writes};
use crate::chance::Chance;
use crate::world::{Setting, World};

const ROUNDS: u64 = 6;
/// The truncation is over by then, or never comes.
const OVER_WITHIN: Duration = Duration::from_secs(10);

pub fn setting(_: &Chance) -> Setting {
    Setting {
        callers: 1,
        ..Setting::default()
    }
}

pub fn run(world: &mut World) -> Result<()> {
    world.bootstrapped()?;
    let mut truncated = 0;
    for round in 0..ROUNDS {
        truncated += u64::from(one_round(world, round)?);
    }
    ensure!(
        truncated > 0,
        "no crash came during or after a truncation: this proves nothing"
    );
    end_well(world)
}

/// Whether the node had begun to drop entries when it crashed.
fn one_round(world: &mut World, round: u64) -> Result<bool> {
    let all: Vec<u64> = world.hosts.keys().copied().collect();
    let old = world.leader(&all)?;
    let others = all_but(world, &[old]);
    writes(world, 1)?;
    world.isolate(old);
    // It still believes that it leads, and writes down what comes; nobody is answered.
    drop(world.begin(old, |node| async move {
        let ticks = (0..6).map(|_| async {
            let answer = node.propose(Actor::ledger(), Command::Tick).await;
            // An entry of its own for each.
            tokio::time::sleep(Duration::from_millis(1)).await;
            answer.is_ok()
        });
        futures::future::join_all(ticks).await
    })?);
    let alone = world.chance.between_ms(100, 600);
    world.pass(alone)?;
    let new = world.leader(&others)?;
    ensure!(new != old, "the one that was cut off still leads");
    writes(world, 1)?;
    let (had, term) = tail(world, old);
    world.heal(old);
    let mut dropped = false;
    let deadline = world.elapsed() + OVER_WITHIN;
    // From where it hears of the next leader on, by its steps on the disk, or between two of them.
    while world.elapsed() < deadline && tail(world, old).1 <= term {
        world.step()?;
    }
    let begun = world.hosts[&old].disk.syncs();
    let (steps, after) = (round + world.chance.below(2), world.chance.below(4));
    while world.elapsed() < deadline && world.hosts[&old].disk.syncs() < begun + steps {
        world.step()?;
        // Whatever comes from the next leader is behind what both have.
        dropped |= tail(world, old).0 != had;
    }
    for _ in 0..after {
        world.step()?;
    }
    let (has, _) = tail(world, old);
    dropped |= has != had;
    let unsynced = world.hosts[&old].disk.unsynced() as u64;
    let crash = Crash {
        batches_kept: usize::try_from(world.chance.below(unsynced + 1))?,
        tear_high: world.chance.below(2) == 0,
    };
    world.note(format_args!(
        "node {old} had {had:?}, has {has:?} and crashes as {crash:?}"
    ));
    world.crash_as(old, crash)?;
    let down = world.chance.between_ms(0, 500);
    world.pass(down)?;
    world.restart(old);
    world.until("the node starts again", |world| {
        world.hosts[&old].node().is_some() || world.hosts[&old].ended().is_some()
    })?;
    if let Some(why) = world.hosts[&old].ended() {
        return Err(broken(
            "no_end_without_reason",
            None,
            format!("node {old} does not start again: {why}"),
        ));
    }
    Ok(dropped)
}

/// Where a node's log ends, and in which term it is.
fn tail(world: &World, id: u64) -> (Option<u64>, u64) {
    let status = world.status(id);
    status.map_or((None, 0), |status| (status.last_log, status.term))
}
