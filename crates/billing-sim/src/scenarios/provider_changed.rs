//! The gate is given another provider while attempts at the old one are open. It may not touch them: WrongTerms. They are
//! resolved by a gate that still knows the old provider, or by a person who looks at the books; new invoices are charged at the
//! new one.

use std::time::Duration;

use anyhow::{Result, ensure};
use billing_core::IdempotencyKey;
use billing_proto::v1;
use billing_sandbox::Faults;

use super::steps::{broken, end_well, insist, submit};
use crate::chance::Chance;
use crate::machines::worker_name;
use crate::profile::{self, Provider};
use crate::world::{Setting, World};

/// A doubt is claimed again after its back-off.
const REFUSED_WITHIN: Duration = Duration::from_secs(180);

pub fn setting(chance: &Chance) -> Setting {
    // Both keep declines, so that what a gate may conclude does not depend on which of them was meant.
    let provider = match chance.below(2) {
        0 => Provider::Objects,
        _ => Provider::StickyKeys,
    };
    Setting {
        workers: 1,
        provider,
        ..Setting::default()
    }
}

pub fn run(world: &mut World) -> Result<()> {
    world.bootstrapped()?;
    let old = world.setting.provider;
    let new = match old {
        Provider::Objects => Provider::StickyKeys,
        _ => Provider::Objects,
    };
    let usual = profile::sandbox(old, 0).faults;
    let silent = Faults {
        lose_reply_share: 0.9,
        ..usual.clone()
    };
    world.provider.set_faults(silent);
    submit(world, 5)?;
    world.until("an attempt is open", |world| !open(world).is_empty())?;
    let more = world.chance.between_ms(0, 2_000);
    world.pass(more)?;
    while open(world).is_empty() {
        // Those have ended by now.
        submit(world, 1)?;
        world.pass(Duration::from_millis(100))?;
    }
    let worker = worker_name(1);
    world.workers[&1].reconfigure(profile::gate_config(new)?);
    world.bounce_client(&worker);
    world.provider.set_faults(usual);
    let (changed_at, left) = (world.elapsed(), open(world));
    world.note(format_args!(
        "{worker} charges at {} now; open: {left:?}",
        new.name()
    ));
    world.until_within(
        REFUSED_WITHIN,
        "a begin is refused, or nothing is open",
        |world| {
            let refused = world.workers[&1]
                .totals()
                .last()
                .map(|totals| totals.refused);
            refused > Some(0) || left.iter().all(|key| !open(world).contains(key))
        },
    )?;
    submit(world, 2)?;
    let while_changed = world.chance.between_ms(500, 25_000);
    world.pass(while_changed)?;
    // What the old gate had sent may arrive late; the new one has nothing to send under these keys.
    untouched(world, &left, changed_at + Duration::from_secs(1))?;
    let mut foreign = left.clone();
    if world.chance.below(2) == 0 {
        world.note(format_args!("{worker} charges at {} again", old.name()));
        world.workers[&1].reconfigure(profile::gate_config(old)?);
        world.bounce_client(&worker);
        // What was begun at the new provider is now the one that no gate may touch.
        world.pass(Duration::from_millis(50))?;
        foreign = open(world);
        foreign.retain(|key| !left.contains(key));
        world.pass(Duration::from_secs(60))?;
    }
    by_a_person(world, &foreign)?;
    end_well(world)
}

fn open(world: &World) -> Vec<IdempotencyKey> {
    let open = world.replay().invoices().values();
    open.filter_map(|known| known.attempt.as_ref().map(|attempt| attempt.key.clone()))
        .collect()
}

fn untouched(world: &World, keys: &[IdempotencyKey], since: Duration) -> Result<()> {
    for (at, line) in world.record.lines() {
        if at < since || !line.starts_with("provider hears POST") {
            continue;
        }
        let of = |key: &&IdempotencyKey| {
            line.contains(&format!("key={key}:")) || line.contains(&format!("key={key} "))
        };
        if let Some(key) = keys.iter().find(of) {
            return Err(broken(
                "one_charge",
                None,
                format!("a gate of another provider sent something under {key}: {line}"),
            ));
        }
    }
    Ok(())
}

/// Somebody waits until nothing can be on its way any more, looks at the books, and says what they show.
fn by_a_person(world: &mut World, foreign: &[IdempotencyKey]) -> Result<()> {
    let quiet = world.promises.valid_for + world.promises.in_flight_max;
    world.pass(quiet + Duration::from_secs(2))?;
    for (invoice, attempt) in still_open(world) {
        if !foreign.contains(&attempt) {
            continue;
        }
        let key = attempt.to_string();
        let charged = world
            .provider
            .books()
            .of(&invoice)
            .into_iter()
            .find(|row| row.succeeded);
        let charged = charged.map(|row| v1::resolve_charge_request::Charged {
            reference: row.id,
            ..Default::default()
        });
        world.note(format_args!("a person resolves {key}: {charged:?}"));
        insist(world, "resolve a charge", move |client| {
            let (invoice, key, charged) = (invoice.clone(), key.clone(), charged.clone());
            async move {
                let read = client.get_invoice(&invoice, false).await?;
                let same = read
                    .open_attempt
                    .is_some_and(|attempt| attempt.idempotency_key == key);
                if !same {
                    return Ok(());
                }
                // The worker that may not charge it holds it aside.
                client
                    .force_release(&invoice, "the provider was changed")
                    .await?;
                let resolved = client
                    .resolve_charge(&invoice, &key, charged, "the books")
                    .await;
                resolved.map(|_| ())
            }
        })?;
    }
    world.look()?;
    let resolved = foreign.iter().all(|key| !open(world).contains(key));
    ensure!(resolved, "what a person resolved is still open");
    Ok(())
}

fn still_open(world: &World) -> Vec<(String, IdempotencyKey)> {
    let open = world.replay().invoices().iter();
    open.filter_map(|(id, known)| {
        let attempt = known.attempt.as_ref()?;
        Some((id.as_str().to_owned(), attempt.key.clone()))
    })
    .collect()
}
