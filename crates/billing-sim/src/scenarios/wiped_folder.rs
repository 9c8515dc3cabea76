//! A node comes back under its id with an empty disk, while another one may be away, so that its vote would count: whoever knew
//! it refuses it, it ends before it votes, and a new one takes its place.

use std::time::Duration;

use anyhow::Result;
use billing_store::REJOIN;
use billing_store::sim::Image;

use super::steps::{all_but, end_well, ends_with_advice, pick, rejoin, writes};
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
    let load = world.chance.between_ms(2_000, 6_000);
    world.pass(load)?;
    let victim = if world.chance.below(2) == 0 {
        leader
    } else {
        pick(world, &all)?
    };
    world.crash(victim)?;
    world.hosts[&victim].disk.put_back(&Image::default());
    world.note(format_args!("the disk of node {victim} is empty"));
    world.may_end.insert(victim);
    let others = all_but(world, &[victim]);
    // Where it and the one that is left are a majority, its vote would elect.
    let away = pick(world, &others)?;
    let with_one_away = world.chance.below(2) == 0;
    if with_one_away {
        world.crash(away)?;
    }
    let down = world.chance.between_ms(0, 3_000);
    world.pass(down)?;
    world.restart(victim);
    ends_with_advice(world, victim, REJOIN)?;
    if with_one_away {
        // It tries again, as a supervisor would have it.
        world.restart(victim);
        ends_with_advice(world, victim, REJOIN)?;
        world.restart(away);
    }
    world.leader(&others)?;
    writes(world, 3)?;
    world.pass(Duration::from_secs(1))?;
    rejoin(world, victim)?;
    writes(world, 3)?;
    end_well(world)
}
