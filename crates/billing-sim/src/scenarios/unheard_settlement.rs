//! A worker has charged, and just when it is about to tell the ledger it reaches no node: for a moment, or for longer than its
//! client is patient, so that nobody knows whether the settlement arrived. It tells it again until it is heard, under the key
//! that it was given; with nobody else at work it is foreseen, and no such invoice goes before a person.

use anyhow::{Result, ensure};
use billing_core::What;

use super::steps::{end_well, submit};
use crate::chance::Chance;
use crate::machines::{node_name, worker_name};
use crate::profile::Provider;
use crate::world::{Setting, World};

/// A client gives up after 10 s; a gate goes on after that.
const CUT_OFF_MS: (u64, u64) = (500, 25_000);
const ROUNDS: u64 = 3;
const WORKER: u64 = 1;
const PLACE: &str = "before_settle";

pub fn setting(chance: &Chance) -> Setting {
    // One that honours nothing is safe only as long as nothing is sent twice.
    let provider = match chance.below(3) {
        0 => Provider::Objects,
        1 => Provider::StickyKeys,
        _ => Provider::LooseKeys,
    };
    Setting {
        workers: WORKER,
        provider,
        ..Setting::default()
    }
}

pub fn run(world: &mut World) -> Result<()> {
    world.bootstrapped()?;
    let all: Vec<u64> = world.hosts.keys().copied().collect();
    world.leader(&all)?;
    let worker = worker_name(WORKER);
    for _ in 0..ROUNDS {
        let stall = world.chance.between_ms(5, 400);
        let pauses = world.workers[&WORKER].machine.pauses.clone();
        pauses.stall_at(PLACE, stall);
        submit(world, 2)?;
        world.until("a worker is about to settle", |_| !pauses.is_set(PLACE))?;
        for &id in &all {
            world
                .network()
                .partition(worker.as_str(), node_name(id).as_str());
        }
        let lasts = world.chance.between_ms(CUT_OFF_MS.0, CUT_OFF_MS.1);
        world.note(format_args!("{worker} reaches no node for {lasts:?}"));
        world.pass(lasts)?;
        for &id in &all {
            world
                .network()
                .repair(worker.as_str(), node_name(id).as_str());
        }
        world.note(format_args!("{worker} reaches all nodes again"));
        let some = world.chance.between_ms(0, 20_000);
        world.pass(some)?;
    }
    end_well(world)?;
    let any = |wanted: fn(&What) -> bool| {
        let mut records = world.records().iter();
        records.any(|seen| wanted(&seen.record.what))
    };
    ensure!(any(|what| matches!(what, What::Paid)), "nothing was paid");
    ensure!(
        !any(|what| matches!(what, What::PutInReview { .. })),
        "a charge that was told late went before a person"
    );
    Ok(())
}
