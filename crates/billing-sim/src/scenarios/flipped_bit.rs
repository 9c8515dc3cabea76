//! A bit flips on the disk of a node that is down, or the log has become shorter. In the log, in the vote or in both slots of the `high` file: the node ends
//! when it starts, says how to go on, and a new one takes its place; in one slot, as after a torn write: it starts or ends; in a
//! snapshot: it is made up for, or the node ends like one that lost its disk. Never does it start with less than it acknowledged.

use anyhow::{Result, ensure};
use billing_store::REJOIN;
use billing_store::sim::{Crash, Place};

use super::steps::{all_but, end_well, ends_with_advice, pick, rejoin, writes};
use crate::chance::Chance;
use crate::machines::node::NodeSettings;
use crate::world::{Setting, World};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    Log,
    Vote,
    Purged,
    OneHigh,
    BothHigh,
    Snapshot,
    /// No bit: the log ends early, as where sled opens a damaged one without a word.
    Shortened,
}

const ALL: [Where; 7] = [
    Where::Log,
    Where::Vote,
    Where::Purged,
    Where::OneHigh,
    Where::BothHigh,
    Where::Snapshot,
    Where::Shortened,
];

pub fn setting(chance: &Chance) -> Setting {
    Setting {
        callers: 2,
        node: NodeSettings {
            snapshot_every: 40 + chance.below(100),
            log_kept: 10 + chance.below(40),
        },
        ..Setting::default()
    }
}

pub fn run(world: &mut World) -> Result<()> {
    world.bootstrapped()?;
    let all: Vec<u64> = world.hosts.keys().copied().collect();
    world.leader(&all)?;
    let load = world.chance.between_ms(4_000, 10_000);
    world.pass(load)?;
    let victim = pick(world, &all)?;
    let place = pick(world, &ALL)?;
    // A snapshot that the log still reaches behind is one thing, one that it was purged up to another.
    if place == Where::Snapshot || place == Where::Purged {
        world.until("there is a snapshot", |world| {
            world
                .status(victim)
                .is_some_and(|status| status.snapshot.is_some())
        })?;
        let more = world.chance.between_ms(0, 5_000);
        world.pass(more)?;
    }
    let unsynced = world.hosts[&victim].disk.unsynced() as u64;
    let crash = Crash {
        batches_kept: usize::try_from(world.chance.below(unsynced + 1))?,
        tear_high: false,
    };
    world.crash_as(victim, crash)?;
    let flipped = flip(world, victim, place)?;
    world.note(format_args!(
        "a bit flips on the disk of node {victim}: {place:?}, {flipped}"
    ));
    let down = world.chance.between_ms(100, 3_000);
    world.pass(down)?;
    world.restart(victim);
    let must_end = flipped
        && match place {
            Where::Log | Where::Vote | Where::BothHigh | Where::Shortened => true,
            Where::Purged | Where::OneHigh | Where::Snapshot => false,
        };
    world.may_end.insert(victim);
    if must_end {
        ends_with_advice(world, victim, REJOIN)?;
    } else {
        world.until("the node runs or has ended", |world| {
            let host = &world.hosts[&victim];
            host.node().is_some() || host.ended().is_some()
        })?;
        let more = world.chance.between_ms(1_000, 4_000);
        world.pass(more)?;
    }
    let others = all_but(world, &[victim]);
    world.leader(&others)?;
    writes(world, 3)?;
    if world.hosts[&victim].node().is_none() {
        ends_with_advice(world, victim, REJOIN)?;
        rejoin(world, victim)?;
    } else {
        world.may_end.remove(&victim);
    }
    writes(world, 3)?;
    end_well(world)
}

/// False: nothing is at that place yet.
fn flip(world: &World, victim: u64, place: Where) -> Result<bool> {
    let disk = &world.hosts[&victim].disk;
    let bit = usize::try_from(world.chance.below(1 << 16))?;
    Ok(match place {
        Where::Log => {
            let records = disk.log_records();
            ensure!(records > 0, "the log is empty");
            let nth = usize::try_from(world.chance.below(records as u64))?;
            disk.flip(Place::Log(nth), bit)
        }
        Where::Shortened => {
            // All but the first: what is newer than 100 ms is not in the `high` file yet.
            let records = disk.log_records();
            records > 1 && (1..records).rev().all(|nth| disk.lose_record(nth))
        }
        Where::Vote => disk.flip(Place::Vote, bit),
        Where::Purged => disk.flip(Place::Purged, bit),
        Where::OneHigh => disk.flip(Place::High(usize::try_from(world.chance.below(2))?), bit),
        Where::BothHigh => disk.flip(Place::High(0), bit) && disk.flip(Place::High(1), bit),
        Where::Snapshot => disk.flip(Place::Snapshot(0), bit),
    })
}
