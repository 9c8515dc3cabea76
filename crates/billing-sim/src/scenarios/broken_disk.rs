//! A machine's disk stops taking writes: its process ends at once through the fail-stop door, and the others go on. What the
//! disk refused was acknowledged to nobody: repaired, the node goes on from what it has, and no leader knows of more.

use anyhow::{Result, ensure};
use billing_core::{Actor, Command};
use billing_store::sim::Fault;

use crate::world::World;

pub fn run(world: &mut World) -> Result<()> {
    let all: Vec<u64> = world.hosts.keys().copied().collect();
    world.bootstrapped()?;
    world.leader(&all)?;
    let victim = all[usize::try_from(world.chance.below(all.len() as u64))?];
    let fault = if world.chance.below(2) == 0 {
        Fault::Broken
    } else {
        Fault::Full
    };
    let host = world.hosts[&victim].clone();
    host.disk.set_fault(fault);
    world.may_end.insert(victim);
    world.note(format_args!("the disk of node {victim} is {fault:?}"));
    let others: Vec<u64> = all.iter().copied().filter(|&id| id != victim).collect();
    // Something to write. Whatever comes of it: the disk that fails must not be what it rests on.
    let given = world.begin(others[0], |node| async move {
        let mut applied = false;
        while !applied {
            applied = matches!(
                node.propose(Actor::ledger(), Command::Tick).await,
                Ok(Ok(_))
            );
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })?;
    let mut given = given;
    let mut done = false;
    world.until(
        "the node with the broken disk ends, and the others apply",
        |world| {
            done |= given.try_recv().is_ok();
            done && world.hosts[&victim].ended().is_some() && world.hosts[&victim].node().is_none()
        },
    )?;
    let reason = host.ended().unwrap_or_default();
    let advises = reason.contains("start the node again");
    ensure!(advises, "the message says what to do: {reason}");
    ensure!(world.status(victim).is_none(), "its process is gone");
    world.note(format_args!("node {victim} ended"));
    world.leader(&others)?;

    // Repaired and started again, it has what it acknowledged, and catches up.
    host.disk.set_fault(Fault::None);
    world.may_end.remove(&victim);
    world.restart(victim);
    world.settled()?;
    world.judge()
}
