//! A node needs a snapshot, and the leader cannot read its own: it ends at once, and another one helps. Until its disk can be
//! read again it does not start, and says why.

use std::time::Duration;

use anyhow::Result;
use billing_store::sim::Fault;

use super::snapshot_install::{has_purged, purge_beyond};
use super::steps::{all_but, end_well, ends_with_advice, pick, submit};
use crate::chance::Chance;
use crate::world::{Setting, World};

/// From when somebody needs what it cannot read.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

pub fn setting(chance: &Chance) -> Setting {
    super::snapshot_install::setting(chance)
}

pub fn run(world: &mut World) -> Result<()> {
    world.bootstrapped()?;
    let all: Vec<u64> = world.hosts.keys().copied().collect();
    let leader = world.leader(&all)?;
    let away = pick(world, &all_but(world, &[leader]))?;
    let down = world.chance.below(2) == 0;
    let had = world.status(away).and_then(|status| status.last_log);
    if down {
        world.crash(away)?;
    } else {
        world.isolate(away);
    }
    submit(world, 5)?;
    purge_beyond(world, had)?;
    let unread = world.leads_now().unwrap_or(leader);
    let host = world.hosts[&unread].clone();
    host.disk.set_fault(Fault::Unreadable);
    world.may_end.insert(unread);
    world.note(format_args!("the disk of node {unread} cannot be read"));
    if down {
        world.restart(away);
    } else {
        world.heal(away);
    }
    world.until_within(
        ENDS_WITHIN,
        "the node whose disk cannot be read ends",
        |_| host.ended().is_some(),
    )?;
    ends_with_advice(world, unread, "reading")?;
    world.until("the node that was away is given a snapshot", |world| {
        // Nobody who leads has the entries that it lacks.
        has_purged(world) > had
            && world
                .status(away)
                .is_some_and(|status| status.snapshot > had && status.applied >= status.snapshot)
    })?;
    world.note(format_args!("node {away} was given a snapshot"));
    submit(world, 3)?;
    world.restart(unread);
    ends_with_advice(world, unread, "reading")?;
    host.disk.set_fault(Fault::None);
    world.may_end.remove(&unread);
    world.restart(unread);
    end_well(world)
}
