//! The provider is slow to answer, and tells of a charge by itself, twice: what takes its webhooks reports it to the ledger, under
//! no token, before the worker has heard of it, and again while or after the worker settles. Each charge is recorded once.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use billing_core::What;

use super::restore::{comparable, tell};
use super::steps::{broken, end_well, submit};
use crate::chance::Chance;
use crate::profile;
use crate::world::{Setting, World};

const LASTS: Duration = Duration::from_secs(30);

pub fn setting(chance: &Chance) -> Setting {
    Setting {
        workers: 2,
        provider: comparable(chance),
        ..Setting::default()
    }
}

pub fn run(world: &mut World) -> Result<()> {
    world.bootstrapped()?;
    let mut faults = profile::sandbox(world.setting.provider, 0).faults;
    faults.reply_delay_ms = 500..=3_000;
    world.provider.set_faults(faults);
    submit(world, 6)?;
    let mut told = BTreeSet::new();
    let until = world.elapsed() + LASTS;
    while world.elapsed() < until {
        for (invoice, row) in world.provider.books().charges() {
            // Some are told of again soon.
            if told.insert(row.id.clone()) || world.chance.below(8) == 0 {
                tell(world, &invoice, &row)?;
            }
        }
        let pause = world.chance.between_ms(10, 400);
        world.pass(pause)?;
    }
    world
        .provider
        .set_faults(profile::sandbox(world.setting.provider, 0).faults);
    // All of them once more, when most were settled by their workers too.
    for (invoice, row) in world.provider.books().charges() {
        told.insert(row.id.clone());
        tell(world, &invoice, &row)?;
    }
    ensure!(!told.is_empty(), "nothing was charged: this proves nothing");
    end_well(world)?;
    for reference in told {
        let same = |what: &What| matches!(what, What::Charged { reference: of, .. } if of.as_str() == reference);
        let times = world
            .records()
            .iter()
            .filter(|seen| same(&seen.record.what))
            .count();
        if times != 1 {
            let what = format!("{reference} was charged once, and is recorded {times} times");
            return Err(broken("same_request_same_answer", None, what));
        }
    }
    Ok(())
}
