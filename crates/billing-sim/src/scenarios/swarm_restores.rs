//! The swarm with a disaster in the middle of it: a backup is taken while faults come and go, charges go on, every disk is lost,
//! and a new cluster is made from the backup, while clients are in trouble of their own; twice in some runs. What `restore` asks
//! of the time until charges are allowed again is asked here too.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::oneshot;

use super::restore::{
    backup_length, comparable, greatest_token, in_order, lose_all, restore, take_backup,
};
use super::steps::{done, until_done};
use super::swarm::{self, Rough};
use crate::chance::Chance;
use crate::faults::Kind;
use crate::world::{Setting, World};

/// Whatever a node that is lost had sent has arrived by then.
const ALL_ARRIVED: Duration = Duration::from_secs(2);

pub fn setting(chance: &Chance) -> Setting {
    let provider = comparable(chance);
    Setting {
        workers: 2 + chance.below(2),
        // Who charges by hand keeps no books that could be compared.
        by_hand: 0,
        callers: 2,
        provider,
        ..swarm::setting(chance)
    }
}

pub fn run(world: &mut World) -> Result<()> {
    let mut rough = Rough::begin(world)?;
    rough.submit_due_at_once();
    rough.perhaps_also(world, Kind::ReadsFail);
    some_time(world, &mut rough, 2_000, 20_000)?;
    let file = back_up(world, &mut rough)?;
    let kept = backup_length(&file)?;
    world.note(format_args!("a backup holds {kept} records"));
    let mut greatest = 0;
    // One run in three loses everything twice.
    for attempt in 0..=world.chance.below(3) / 2 {
        some_time(world, &mut rough, 500, 30_000)?;
        world.until("the backup is of what is known", |world| {
            world.records().len() as u64 >= kept
        })?;
        lose_all(world)?;
        greatest = greatest.max(greatest_token(world));
        rough.nodes_are_lost(world);
        some_time(world, &mut rough, 0, 20_000)?;
        rough.let_arrive(world)?;
        world.pass(ALL_ARRIVED)?;
        restore(world, &file, kept, u8::try_from(attempt)?)?;
        some_time(world, &mut rough, 1_000, 30_000)?;
        rough.calm(world)?;
        in_order(world, greatest, |world| rough.submit_again(world))?;
    }
    some_time(world, &mut rough, 15_000, 40_000)?;
    rough.calm(world)?;
    let all: Vec<u64> = world.hosts.keys().copied().collect();
    world.leader(&all)?;
    swarm::end(world)
}

fn some_time(world: &mut World, rough: &mut Rough, from_ms: u64, to_ms: u64) -> Result<()> {
    let lasts = world.chance.between_ms(from_ms, to_ms);
    rough.go_on(world, lasts, |_| Ok(()))
}

/// In the middle of the faults; where they never let it through, in calm.
fn back_up(world: &mut World, rough: &mut Rough) -> Result<Vec<u8>> {
    let mut job = world.desk_begin(|client| until_done(client, take_backup))?;
    let lasts = world.chance.between_ms(5_000, 30_000);
    rough.go_on(world, lasts, |_| Ok(()))?;
    match job.try_recv() {
        Ok(file) => Ok(file),
        Err(oneshot::error::TryRecvError::Empty) => {
            rough.calm(world)?;
            done(world, "take a backup", job)
        }
        Err(error) => Err(error).context("a backup"),
    }
}
