//! Nodes come and go while workers charge and callers lock: one is added and promoted, one takes another's place, one is
//! removed, the leader among them; in the middle of each change a node crashes, is cut off, or stops. Whoever was removed ends by
//! itself, and everything that was acknowledged stays.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::steps::{
    begin_add, begin_promote, begin_remove, done, end_well, fresh_id, pick, submit, writes,
};
use crate::chance::Chance;
use crate::machines::node::NodeSettings;
use crate::machines::node_name;
use crate::profile::Provider;
use crate::world::{Setting, World};

/// After a removal, a node that was away finds out when it asks; it asks every minute at least.
const ENDS_WITHIN: Duration = Duration::from_secs(150);

pub fn setting(chance: &Chance) -> Setting {
    let provider = chance.below(Provider::ALL.len() as u64);
    Setting {
        nodes: 3,
        workers: 2,
        callers: 2,
        provider: Provider::ALL[usize::try_from(provider).unwrap_or(0)],
        node: NodeSettings {
            snapshot_every: 40 + chance.below(200),
            log_kept: 5 + chance.below(40),
        },
        ..Setting::default()
    }
}

pub fn run(world: &mut World) -> Result<()> {
    world.bootstrapped()?;
    submit(world, 6)?;
    let pause = world.chance.between_ms(500, 3_000);
    world.pass(pause)?;
    let mut voters: Vec<u64> = world.hosts.keys().copied().collect();
    for _ in 0..3 + world.chance.below(3) {
        let leader = world.leads_now();
        let victim = leaving(world, &voters, leader)?;
        match world.chance.below(if voters.len() > 3 { 2 } else { 3 }) {
            // One goes; there are enough without it.
            0 if voters.len() > 3 => {
                world.may_end.insert(victim);
                let job = begin_remove(world, victim)?;
                disturb(world)?;
                done(world, "remove a member", job)?;
                gone(world, victim)?;
                voters.retain(|&id| id != victim);
            }
            // One takes another's place.
            1 => {
                let fresh = added(world)?;
                world.may_end.insert(victim);
                let job = begin_promote(world, fresh, Some(victim))?;
                disturb(world)?;
                done(world, "replace a member", job)?;
                gone(world, victim)?;
                voters.retain(|&id| id != victim);
                voters.push(fresh);
            }
            // One more.
            _ => {
                let fresh = added(world)?;
                let job = begin_promote(world, fresh, None)?;
                disturb(world)?;
                done(world, "promote a member", job)?;
                voters.push(fresh);
            }
        }
        submit(world, 2)?;
        writes(world, 2)?;
    }
    let members: Vec<u64> = world.hosts.keys().copied().collect();
    voters.sort_unstable();
    ensure!(members == voters, "{members:?} run, {voters:?} vote");
    end_well(world)
}

/// Somebody who may go: often the leader, and never the last founding node, whose address clients are configured with.
pub(super) fn leaving(world: &World, voters: &[u64], leader: Option<u64>) -> Result<u64> {
    let founders: Vec<u64> = voters
        .iter()
        .copied()
        .filter(|&id| id <= world.setting.nodes)
        .collect();
    let may_go = |id: &u64| founders.len() > 1 || !founders.contains(id);
    match leader.filter(|id| voters.contains(id) && may_go(id)) {
        Some(leader) if world.chance.below(2) == 0 => Ok(leader),
        _ => {
            let may_go: Vec<u64> = voters.iter().copied().filter(may_go).collect();
            pick(world, &may_go)
        }
    }
}

fn added(world: &mut World) -> Result<u64> {
    let fresh = fresh_id(world);
    let job = begin_add(world, fresh)?;
    disturb(world)?;
    done(world, "add a learner", job)?;
    world.add_node(fresh);
    world.note(format_args!("node {fresh} joins"));
    Ok(fresh)
}

/// Whoever was removed ends by itself.
pub(super) fn gone(world: &mut World, id: u64) -> Result<()> {
    world.note(format_args!("node {id} is no member any more"));
    if world.hosts[&id].node().is_none() && world.hosts[&id].ended().is_none() {
        world.restart(id);
    }
    world.until_within(ENDS_WITHIN, "a removed node ends by itself", |world| {
        world.hosts[&id].ended().is_some() && world.hosts[&id].node().is_none()
    })?;
    let why = world.hosts[&id].ended().unwrap_or_default();
    ensure!(why.contains("was removed"), "node {id} ended with {why:?}");
    world.retire(id);
    Ok(())
}

/// Something happens to one node while a change is under way, and is put right; whoever crashed runs again.
fn disturb(world: &mut World) -> Result<()> {
    let soon = world.chance.between_ms(0, 120);
    world.pass(soon)?;
    let running: Vec<u64> = world
        .hosts
        .iter()
        .filter(|(_, host)| host.node().is_some())
        .map(|(&id, _)| id)
        .collect();
    let leader = world.leads_now();
    let id = match leader {
        Some(leader) if world.chance.below(2) == 0 => leader,
        _ => pick(world, &running)?,
    };
    let lasts = world.chance.between_ms(200, 6_000);
    match world.chance.below(4) {
        0 => {
            world.crash(id)?;
            world.pass(lasts)?;
            world.restart(id);
        }
        1 => {
            world.isolate(id);
            world.pass(lasts)?;
            world.heal(id);
        }
        2 => {
            world.freeze(&node_name(id), false);
            world.pass(lasts)?;
            world.thaw(&node_name(id));
        }
        _ => {}
    }
    Ok(())
}
