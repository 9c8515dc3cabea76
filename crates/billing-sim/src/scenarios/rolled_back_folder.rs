//! A node's folder is put back as it was a while ago, as from a backup of the machine, while the others went on. What it had
//! acknowledged since is gone. It is seen when a leader that knows better makes contact: the node ends and says how to go on,
//! and nobody else does.

use std::time::Duration;

use anyhow::Result;
use billing_store::REJOIN;

use super::steps::{all_but, end_well, ends_with_advice, rejoin, writes};
use crate::chance::Chance;
use crate::world::{Setting, World};

pub fn setting(_: &Chance) -> Setting {
    Setting {
        callers: 2,
        ..Setting::default()
    }
}

pub fn run(world: &mut World) -> Result<()> {
    world.bootstrapped()?;
    let all: Vec<u64> = world.hosts.keys().copied().collect();
    let leader = world.leader(&all)?;
    let load = world.chance.between_ms(500, 3_000);
    world.pass(load)?;
    let followers = all_but(world, &[leader]);
    let victim = super::steps::pick(world, &followers)?;
    let image = world.hosts[&victim].disk.image();
    let load = world.chance.between_ms(2_000, 8_000);
    world.pass(load)?;
    // The one that leads has heard what the node acknowledged.
    let all: Vec<u64> = world.hosts.keys().copied().collect();
    let leader = world.leader(&all)?;
    if leader == victim {
        world.note(format_args!("node {victim} leads by now: another story"));
        return end_well(world);
    }
    writes(world, 3)?;
    world.crash(victim)?;
    world.hosts[&victim].disk.put_back(&image);
    world.note(format_args!("the disk of node {victim} is rolled back"));
    world.may_end.insert(victim);
    world.restart(victim);
    ends_with_advice(world, victim, REJOIN)?;
    let others = all_but(world, &[victim]);
    world.leader(&others)?;
    world.pass(Duration::from_secs(2))?;
    rejoin(world, victim)?;
    writes(world, 3)?;
    end_well(world)
}
