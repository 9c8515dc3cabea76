//! All nodes lose power, or one does, under load, right after a snapshot was taken and the log was purged up to it. Whatever is left is enough
//! to start from: the snapshot that counts is whole, and the log follows it without a gap.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use billing_core::{Actor, Command};
use billing_store::sim::Crash;

use super::steps::{end_well, pick, writes};
use crate::chance::Chance;
use crate::machines::node::NodeSettings;
use crate::world::{Setting, World};

const ROUNDS: u64 = 3;
/// Who write one entry after the other, so that the log is ahead of the snapshot that is being written.
const WRITERS: u64 = 8;
const PAUSE: Duration = Duration::from_millis(10);

pub fn setting(chance: &Chance) -> Setting {
    Setting {
        callers: 2,
        node: NodeSettings {
            snapshot_every: 30 + chance.below(30),
            log_kept: 1 + chance.below(10),
        },
        ..Setting::default()
    }
}

pub fn run(world: &mut World) -> Result<()> {
    world.bootstrapped()?;
    let all: Vec<u64> = world.hosts.keys().copied().collect();
    for _ in 0..ROUNDS {
        world.leader(&all)?;
        let witness = pick(world, &all)?;
        let purged = |world: &World| world.status(witness).and_then(|status| status.purged);
        let before = purged(world);
        let stop = busy(world)?;
        world.until("the log is purged", |world| purged(world) > before)?;
        let after = world.chance.between_ms(0, 400);
        world.pass(after)?;
        stop.store(true, Ordering::Relaxed);
        let victims = match world.chance.below(3) {
            0 => vec![witness],
            _ => all.clone(),
        };
        for &id in &victims {
            let unsynced = world.hosts[&id].disk.unsynced() as u64;
            let crash = Crash {
                batches_kept: usize::try_from(world.chance.below(unsynced + 1))?,
                tear_high: world.chance.below(2) == 0,
            };
            world.crash_as(id, crash)?;
        }
        let down = world.chance.between_ms(100, 3_000);
        world.pass(down)?;
        for &id in &victims {
            world.restart(id);
        }
        world.leader(&all)?;
        writes(world, 2)?;
        world.pass(Duration::from_secs(1))?;
    }
    end_well(world)
}

/// Load on the node that leads, until it is told to stop or the process ends.
fn busy(world: &mut World) -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let all: Vec<u64> = world.hosts.keys().copied().collect();
    let leader = world.leader(&all)?;
    for _ in 0..WRITERS {
        let stop = stop.clone();
        drop(world.begin(leader, |node| async move {
            while !stop.load(Ordering::Relaxed) {
                // Whether it is answered is of no interest.
                let answer = node.propose(Actor::ledger(), Command::Tick).await;
                if answer.is_err() {
                    tokio::time::sleep(PAUSE).await;
                }
            }
        })?);
    }
    Ok(stop)
}
