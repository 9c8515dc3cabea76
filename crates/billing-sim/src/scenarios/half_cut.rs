//! A node that does not hear the others, or is not heard by them, or both, or two that do not reach each other while both reach
//! the third: the leader among them, or not; clients reach everybody. Soon somebody leads whom a majority follows, leases are granted,
//! ClusterTime goes on, and nobody calls elections for ever.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::steps::{all_but, end_well, pick, writes};
use crate::chance::Chance;
use crate::machines::node_name;
use crate::world::{Setting, World};

/// A leader that hears nobody, or whom nobody hears, is succeeded by one who does, however it was cut off.
const SUCCEEDED_WITHIN: Duration = Duration::from_secs(7);
/// Until the others have elected somebody, and whoever led before knows.
const SETTLES_WITHIN: Duration = Duration::from_secs(15);
const LASTS: Duration = Duration::from_secs(20);
/// A lease is granted within, whatever node the client asks first.
const GRANT_PATIENCE: Duration = Duration::from_secs(5);
/// As much of true time as ClusterTime must show.
const PACE_MIN: f64 = 0.98;

pub fn setting(_: &Chance) -> Setting {
    Setting {
        workers: 2,
        callers: 2,
        ..Setting::default()
    }
}

#[derive(Debug, Clone, Copy)]
enum Cut {
    Deaf,
    Mute,
    /// From all other nodes, both ways.
    Alone,
    /// From one other.
    Bridge,
}

pub fn run(world: &mut World) -> Result<()> {
    world.bootstrapped()?;
    let all: Vec<u64> = world.hosts.keys().copied().collect();
    let leader = world.leader(&all)?;
    let cut = pick(world, &[Cut::Deaf, Cut::Mute, Cut::Alone, Cut::Bridge])?;
    let followers = all_but(world, &[leader]);
    let node = match world.chance.below(2) {
        0 => leader,
        _ => pick(world, &followers)?,
    };
    let others = match cut {
        Cut::Deaf | Cut::Mute | Cut::Alone => all_but(world, &[node]),
        // Where it follows, the leader is in the middle.
        Cut::Bridge => vec![pick(world, &all_but(world, &[node, leader]))?],
    };
    world.note(format_args!(
        "node {node} is cut off from {others:?}: {cut:?}; node {leader} leads"
    ));
    let name = node_name(node);
    for other in others.iter().map(|&other| node_name(other)) {
        let (name, other) = (name.as_str(), other.as_str());
        match cut {
            Cut::Deaf => world.network().partition_oneway(other, name),
            Cut::Mute => world.network().partition_oneway(name, other),
            Cut::Alone | Cut::Bridge => world.network().partition(name, other),
        }
    }
    if node == leader && !matches!(cut, Cut::Bridge) {
        let since = world.elapsed();
        world.until_within(SUCCEEDED_WITHIN, "another node leads", |world| {
            world.leads_now().is_some_and(|leads| leads != leader)
        })?;
        let took = world.elapsed() - since;
        world.note(format_args!("another node led after {took:?}"));
    }
    world.pass(SETTLES_WITHIN)?;
    let before = now(world)?;
    let until = world.elapsed() + LASTS;
    while world.elapsed() < until {
        let asked = world.elapsed();
        writes(world, 1)?;
        let took = world.elapsed() - asked;
        ensure!(took < GRANT_PATIENCE, "granted and released in {took:?}");
        world.pass(Duration::from_millis(500))?;
    }
    let after = now(world)?;
    ensure!(
        after.term == before.term,
        "elections go on: term {} became {}",
        before.term,
        after.term
    );
    let (passed, truly) = (after.cluster_ms - before.cluster_ms, after.at - before.at);
    let pace = passed as f64 / truly.as_millis() as f64;
    ensure!(
        pace > PACE_MIN,
        "ClusterTime went on by {passed} ms in {truly:?}"
    );
    world.heal(node);
    end_well(world)
}

struct Now {
    at: Duration,
    /// The greatest of all nodes.
    term: u64,
    cluster_ms: u64,
}

fn now(world: &mut World) -> Result<Now> {
    world.until("somebody leads", |world| world.leads_now().is_some())?;
    let leader = world.leads_now().context("nobody leads")?;
    let statuses = world.statuses();
    Ok(Now {
        at: world.elapsed(),
        term: statuses
            .values()
            .map(|status| status.term)
            .max()
            .unwrap_or(0),
        cluster_ms: statuses[&leader].cluster_time.0,
    })
}
