//! The cluster is down, or all workers are, for longer than the provider remembers a key, while attempts are open. ClusterTime
//! stood still meanwhile; the keys are forgotten all the same. Nothing is sent under them any more: each attempt is looked up,
//! or goes before a person, by what the provider can do.

use std::time::Duration;

use anyhow::{Result, ensure};
use billing_core::{IdempotencyKey, What};
use billing_sandbox::Faults;

use super::steps::{broken, end_well, pick, submit};
use crate::chance::Chance;
use crate::machines::worker_name;
use crate::profile::{self, KEY_RETENTION, Provider, REQUEST_TIMEOUT, VALID_FOR};
use crate::world::{Setting, World};

pub fn setting(chance: &Chance) -> Setting {
    let provider = chance.below(Provider::ALL.len() as u64);
    Setting {
        workers: 2,
        provider: Provider::ALL[usize::try_from(provider).unwrap_or(0)],
        ..Setting::default()
    }
}

#[derive(Debug, Clone, Copy)]
enum Outage {
    /// All nodes lose power.
    Nodes,
    /// Nobody charges: workers stand still, and are killed in the end.
    Workers,
    Both,
}

pub fn run(world: &mut World) -> Result<()> {
    world.bootstrapped()?;
    let usual = profile::sandbox(world.setting.provider, 0).faults;
    let silent = Faults {
        lose_reply_share: 0.7,
        error_before_share: 0.1,
        error_after_share: 0.1,
        ..usual.clone()
    };
    world.provider.set_faults(silent);
    submit(world, 6)?;
    world.until("an attempt is open", |world| !open_keys(world).is_empty())?;
    let more = world.chance.between_ms(0, 6_000);
    world.pass(more)?;
    while open_keys(world).is_empty() {
        // Those have ended by now.
        submit(world, 1)?;
        world.pass(Duration::from_millis(100))?;
    }
    let open = open_keys(world);
    let outage = pick(world, &[Outage::Nodes, Outage::Workers, Outage::Both])?;
    let lasts = KEY_RETENTION + world.chance.between_ms(500, 40_000);
    world.note(format_args!(
        "{outage:?} are away for {lasts:?}, open: {open:?}"
    ));
    let nodes: Vec<u64> = world.hosts.keys().copied().collect();
    let workers: Vec<String> = world.workers.keys().map(|&n| worker_name(n)).collect();
    let (nodes_too, workers_too) = match outage {
        Outage::Nodes => (true, false),
        Outage::Workers => (false, true),
        Outage::Both => (true, true),
    };
    if workers_too {
        for name in &workers {
            world.freeze(name, false);
        }
    }
    if nodes_too {
        for &id in &nodes {
            world.crash(id)?;
        }
    }
    world.pass(lasts)?;
    world.provider.set_faults(usual);
    if nodes_too {
        for &id in &nodes {
            world.restart(id);
        }
    }
    if workers_too {
        for name in &workers {
            // Killed while it stood still: nothing of that process is sent any more.
            world.bounce_client(name);
            world.thaw(name);
        }
    }
    end_well(world)?;
    let begun = begun_keys(world);
    ensure!(!begun.is_empty(), "nothing was begun");
    nothing_late(world, &begun)?;
    for key in &open {
        let evidence = world.records().iter().any(|seen| {
            seen.record.key.as_ref() == Some(key)
                && matches!(
                    seen.record.what,
                    What::Charged { .. }
                        | What::LookedUpNone { counts: true }
                        | What::Declined { .. }
                        | What::ObjectCancelled { .. }
                )
        });
        let reviewed = world.records().iter().any(|seen| {
            matches!(seen.record.what, What::PutInReview { .. })
                && seen
                    .record
                    .invoice
                    .as_ref()
                    .is_some_and(|id| id.as_str() == invoice_of(key))
        });
        ensure!(
            evidence || reviewed,
            "{key} ended without evidence and without a person"
        );
    }
    Ok(())
}

fn invoice_of(key: &IdempotencyKey) -> String {
    let key = key.to_string();
    key.splitn(3, '.').nth(2).unwrap_or_default().to_owned()
}

fn open_keys(world: &World) -> Vec<IdempotencyKey> {
    let open = world.replay().invoices().values();
    open.filter_map(|known| known.attempt.as_ref().map(|attempt| attempt.key.clone()))
        .collect()
}

/// Every key that was issued, and when at the latest.
fn begun_keys(world: &World) -> Vec<(String, Duration)> {
    let begun = world.records().iter().filter_map(|seen| {
        let own = matches!(seen.record.what, What::Begun);
        let key = seen.record.key.as_ref().filter(|_| own)?;
        Some((key.to_string(), seen.at))
    });
    begun.collect()
}

/// Where the key is all that protects, nothing was sent under it later than was promised.
pub fn nothing_late(world: &World, begun: &[(String, Duration)]) -> Result<()> {
    if world.setting.provider == Provider::Objects {
        return Ok(());
    }
    for (at, line) in world.record.lines() {
        let Some(heard) = line.strip_prefix("provider hears POST") else {
            continue;
        };
        let key = heard.split_once(" key=").map_or("", |(_, rest)| rest);
        let key = key.split(' ').next().unwrap_or_default();
        let key = key.split(':').next().unwrap_or_default();
        let Some((_, since)) = begun.iter().find(|(begun, _)| begun == key) else {
            continue;
        };
        let late = at.saturating_sub(*since);
        if late > VALID_FOR + REQUEST_TIMEOUT {
            return Err(broken(
                "one_charge",
                Some(key.splitn(3, '.').nth(2).unwrap_or_default()),
                format!("sent under {key} {late:?} after it was issued"),
            ));
        }
    }
    Ok(())
}
