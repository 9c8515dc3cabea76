//! A disk has lost its latest writes, all of which it had called synced, while the leader that knows better is down and the third
//! node never had them. The two that are left would be a majority without what was acknowledged. The node with that disk finds
//! out when it starts, since its `high` file says more, and ends before it votes; a new one takes its place.

use anyhow::{Result, bail};
use billing_server::node::Role;
use billing_store::REJOIN;

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
    let load = world.chance.between_ms(1_000, 4_000);
    world.pass(load)?;
    let leader = world.leader(&all)?;
    let away = pick(world, &all_but(world, &[leader]))?;
    let victim = all_but(world, &[leader, away])[0];
    world.isolate(away);
    writes(world, 1)?;
    let image = world.hosts[&victim].disk.image();
    // Acknowledged by the leader and the victim, and long enough ago for the `high` file.
    let more = world.chance.between_ms(1_000, 4_000);
    world.pass(more)?;
    writes(world, 3)?;
    let synced = world.chance.between_ms(500, 1_000);
    world.pass(synced)?;
    let leads = world.leads_now();
    for id in [leader, victim] {
        world.crash(id)?;
    }
    world.hosts[&victim].disk.put_back_log(&image);
    world.note(format_args!(
        "the disk of node {victim} lost its latest writes; node {leads:?} led, node {away} has none of them"
    ));
    world.may_end.insert(victim);
    world.heal(away);
    world.restart(victim);
    let left = [away, victim];
    world.until("the node ends, or the two that are left elect", |world| {
        let leads = left.iter().any(|&id| {
            let status = world.status(id);
            status.is_some_and(|status| status.role == Role::Leader)
        });
        world.hosts[&victim].ended().is_some() || leads
    })?;
    if world.hosts[&victim].ended().is_none() {
        // What they write now stands where something else was acknowledged.
        writes(world, 10)?;
        bail!("node {victim} took part in an election with a log that had lost its end");
    }
    ends_with_advice(world, victim, REJOIN)?;
    world.restart(leader);
    let others = all_but(world, &[victim]);
    world.leader(&others)?;
    writes(world, 2)?;
    rejoin(world, victim)?;
    writes(world, 3)?;
    end_well(world)
}
