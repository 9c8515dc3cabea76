//! A machine's disk stops taking writes: its process ends at once through the fail-stop door, and the others go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use billing_core::{Actor, Command};
use billing_store::sim::Fault;

use crate::world::World;

const WRITES_EVERY: Duration = Duration::from_millis(50);

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
    world.set_disk_fault(victim, fault);
    world.may_end.insert(victim);
    world.note(format_args!("the disk of node {victim} is {fault:?}"));
    let others: Vec<u64> = all.iter().copied().filter(|&id| id != victim).collect();
    // Something to write, again and again. Whatever comes of it: the disk that fails must not be what it rests on.
    let applied = Arc::new(AtomicBool::new(false));
    let stop = Arc::new(AtomicBool::new(false));
    let (told, until) = (applied.clone(), stop.clone());
    drop(world.begin(others[0], |node| async move {
        while !until.load(Ordering::Relaxed) {
            let answer = node.propose(Actor::ledger(), Command::Tick).await;
            if matches!(answer, Ok(Ok(_))) {
                told.store(true, Ordering::Relaxed);
            }
            tokio::time::sleep(WRITES_EVERY).await;
        }
    })?);
    world.until(
        "the node with the broken disk ends, and the others apply",
        |world| {
            let gone =
                world.hosts[&victim].ended().is_some() && world.hosts[&victim].node().is_none();
            gone && applied.load(Ordering::Relaxed)
        },
    )?;
    stop.store(true, Ordering::Relaxed);
    let reason = host.ended().unwrap_or_default();
    let advises = reason.contains("start the node again");
    ensure!(advises, "the message says what to do: {reason}");
    ensure!(world.status(victim).is_none(), "its process is gone");
    world.note(format_args!("node {victim} ended"));
    world.leader(&others)?;

    // Repaired and started again, it has what it acknowledged, and catches up.
    world.set_disk_fault(victim, Fault::None);
    world.restart(victim);
    world.settled()?;
    world.judge()
}
