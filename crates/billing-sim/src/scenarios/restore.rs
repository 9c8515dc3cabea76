//! A backup is taken in the middle of a charge run, charges go on, then every disk is lost. A new cluster is made from the
//! backup, twice in some runs. Tokens begin above all that were ever granted, nothing is granted before the longest TTL has
//! passed, nothing is begun before somebody has compared the books and said AllowCharges; then the run is finished, and by the
//! books no invoice was charged twice.

use std::io::Cursor;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use billing_client::{Client, Failure};
use billing_core::{Charged, FencingToken, Outcome, Reference, What};
use billing_env::Env;
use billing_proto::backup;
use billing_proto::restore::RestoreId;
use billing_server::config::Peer;
use billing_server::node::Consistency;
use billing_server::restore::Source;
use billing_store::sim::Image;

use super::steps::{broken, end_well, insist, submit, submit_again};
use crate::chance::Chance;
use crate::machines::node::peer;
use crate::machines::provider::Row;
use crate::profile::Provider;
use crate::world::{Setting, World};

/// From a restore on.
const GRANTS_AFTER: Duration = Duration::from_millis(billing_core::limits::TTL_MS_MAX);

pub fn setting(chance: &Chance) -> Setting {
    Setting {
        workers: 2,
        provider: comparable(chance),
        ..Setting::default()
    }
}

/// One with books that the ledger can be compared with, attempt by attempt.
pub(super) fn comparable(chance: &Chance) -> Provider {
    match chance.below(3) {
        0 => Provider::Objects,
        1 => Provider::StickyKeys,
        _ => Provider::LooseKeys,
    }
}

pub fn run(world: &mut World) -> Result<()> {
    world.bootstrapped()?;
    submit(world, 8)?;
    let some = world.chance.between_ms(0, 1_500);
    world.pass(some)?;
    let file = back_up(world)?;
    let kept = backup_length(&file)?;
    world.note(format_args!("a backup holds {kept} records"));
    let more = world.chance.between_ms(200, 6_000);
    world.pass(more)?;
    if world.chance.below(2) == 0 {
        // The backup does not know these.
        submit(world, 2)?;
        let later = world.chance.between_ms(0, 4_000);
        world.pass(later)?;
    }
    let mut greatest = 0;
    for attempt in 0..=world.chance.below(2) {
        lose_all(world)?;
        greatest = greatest.max(greatest_token(world));
        let away = world.chance.between_ms(0, 20_000);
        world.pass(away)?;
        restore(world, &file, kept, u8::try_from(attempt)?)?;
        in_order(world, greatest, submit_again)?;
    }
    world.note(format_args!("the run is finished"));
    end_well(world)
}

fn back_up(world: &mut World) -> Result<Vec<u8>> {
    insist(world, "take a backup", take_backup)
}

/// What the client writes into a file.
pub(super) async fn take_backup(client: Client) -> Result<Vec<u8>, Failure> {
    let mut parts = client.backup().await?;
    let mut file = Vec::new();
    while let Some(part) = parts.next().await? {
        // Into memory.
        backup::write(&mut file, &part)
            .map_err(|error| Failure::Unknown(tonic::Status::internal(error.to_string())))?;
    }
    Ok(file)
}

/// In audit records.
pub(super) fn backup_length(file: &[u8]) -> Result<u64> {
    let (_, ledger) = backup::verify(&mut Cursor::new(file), |_| {})?;
    Ok(ledger.audit_last_index())
}

pub(super) fn greatest_token(world: &World) -> u64 {
    let tokens = world.records().iter().map(|seen| seen.record.token.0);
    tokens.max().unwrap_or(0)
}

pub(super) fn lose_all(world: &mut World) -> Result<()> {
    let ids: Vec<u64> = world.hosts.keys().copied().collect();
    for id in ids {
        world.crash(id)?;
    }
    world.all_lost()
}

/// The machines that lost everything are made nodes of a new cluster by the file.
pub(super) fn restore(world: &mut World, file: &[u8], kept: u64, attempt: u8) -> Result<()> {
    world.restored_at(kept)?;
    let ids: Vec<u64> = world.hosts.keys().copied().collect();
    let peers: Vec<Peer> = ids
        .iter()
        .map(|&id| {
            let peer = peer(id);
            Peer {
                id,
                client: peer.client,
                raft: peer.raft,
            }
        })
        .collect();
    for &id in &ids {
        let host = world.hosts[&id].clone();
        host.disk.put_back(&Image::default());
        let (file, peers) = (file.to_vec(), peers.clone());
        let env: Env = host.machine.env();
        let restore_id = RestoreId([attempt; RestoreId::BYTES]);
        host.prepare(Box::new(move |disk| {
            Box::pin(async move {
                let say = |error: &dyn std::fmt::Display| error.to_string();
                let source = Source::read(&mut Cursor::new(file), restore_id, &env)?;
                let made = disk.create(&source.identity(id, &peers, &env));
                let made = made.map_err(|error| say(&error))?;
                let filled = source.fill(&made, id, &peers, &env).await;
                filled.map_err(|error| say(&error))
            })
        }));
        let later = world.chance.between_ms(0, 2_000);
        world.pass(later)?;
        world.restart(id);
        // Whatever was wrong with its disk was lost with it.
        world.put_right(id);
    }
    Ok(())
}

/// What must hold between a restore and the end of the waiting. Afterwards charges are allowed.
pub(super) fn in_order(
    world: &mut World,
    greatest: u64,
    mut submit_again: impl FnMut(&mut World) -> Result<()>,
) -> Result<()> {
    world.until("the ledger is restored, and somebody leads", |world| {
        restored(world).is_some() && world.leads_now().is_some()
    })?;
    let (index, at) = restored(world).context("no record of the restore")?;
    let leader = world.leads_now().context("nobody leads")?;
    let token = world.on(leader, |node| async move {
        let read = node.read(Consistency::Stale, |ledger| ledger.token_last());
        read.await.map(|(token, _)| token.0)
    })??;
    world.note(format_args!(
        "restored at record {index}, tokens from {token}"
    ));
    // The next one is granted above it.
    if token < greatest {
        return Err(broken(
            "tokens_grow",
            None,
            format!("tokens begin at {token} after the restore, {greatest} was granted before it"),
        ));
    }
    // The charges that the backup does not know of must be in flight no more, and told to the ledger.
    let quiet = world.promises.valid_for + world.promises.in_flight_max;
    let early = world.chance.below(2) == 0;
    let wait = if early {
        quiet
    } else {
        GRANTS_AFTER + world.chance.between_ms(0, 20_000)
    };
    world.pass(wait + Duration::from_secs(1))?;
    nothing_begun(world, index)?;
    // Whoever submitted does so again: what the backup did not know is new, or was told by the books.
    submit_again(world)?;
    tell_the_books(world)?;
    nothing_begun(world, index)?;
    insist(world, "allow charges", |client| async move {
        client
            .allow_charges("the provider's books were compared")
            .await
    })?;
    world.until_within(
        GRANTS_AFTER + Duration::from_secs(120),
        "a lease is granted again, or nothing is left to do",
        |world| granted_after(world, index).is_some() || world.open_invoices().is_empty(),
    )?;
    if let Some((record, granted)) = granted_after(world, index)
        && granted < at + GRANTS_AFTER.as_millis() as u64
    {
        return Err(broken(
            "one_holder",
            None,
            format!("record {record}: granted at {granted} ms, restored at {at} ms"),
        ));
    }
    Ok(())
}

fn restored(world: &World) -> Option<(u64, u64)> {
    let seen = world
        .records()
        .iter()
        .rev()
        .find(|seen| matches!(seen.record.what, What::Restored { .. }))?;
    let record = &seen.record;
    Some((record.index, record.at.0))
}

fn granted_after(world: &World, index: u64) -> Option<(u64, u64)> {
    let mut later = world.records().iter().map(|seen| &seen.record);
    later
        .find(|record| record.index > index && matches!(record.what, What::Acquired { .. }))
        .map(|record| (record.index, record.at.0))
}

fn nothing_begun(world: &World, index: u64) -> Result<()> {
    let mut later = world.records().iter().map(|seen| &seen.record);
    let begun = later.find(|record| {
        record.index > index && matches!(record.what, What::Begun | What::TakenOver)
    });
    match begun {
        Some(record) => Err(broken(
            "one_open_attempt",
            record.invoice.as_ref().map(|id| id.as_str()),
            format!("record {}: begun before AllowCharges", record.index),
        )),
        None => Ok(()),
    }
}

/// The comparison that the operator's manual asks for: every charge in the provider's books is told to the ledger, under the
/// key that the provider shows beside it.
fn tell_the_books(world: &mut World) -> Result<()> {
    for (invoice, row) in world.provider.books().charges() {
        tell(world, &invoice, &row)?;
    }
    Ok(())
}

/// The ledger is told of a charge by somebody who holds nothing.
pub(super) fn tell(world: &mut World, invoice: &str, row: &Row) -> Result<()> {
    let Some(key) = key_of(&world.record.lines(), invoice) else {
        bail!("{invoice} was charged under no key");
    };
    let (id, reference) = (invoice.to_owned(), Reference::new(&row.id)?);
    insist(world, "tell the ledger of a charge", move |client| {
        let (id, key) = (id.clone(), key.clone());
        let charged = Outcome::Charged(Charged {
            reference: reference.clone(),
            amount: None,
            currency: None,
        });
        async move {
            let told = client
                .settle_charge(&id, FencingToken(0), &key, &charged)
                .await;
            told.map(|_| ())
        }
    })?;
    world.note(format_args!(
        "the ledger is told of {} on {invoice}",
        row.id
    ));
    Ok(())
}

/// The key of the last request that the provider heard on the invoice: beside a charge none is sent under another.
fn key_of(heard: &[(Duration, String)], invoice: &str) -> Option<String> {
    let ends = format!(".{invoice}");
    heard.iter().rev().find_map(|(_, line)| {
        let rest = line.strip_prefix("provider hears POST")?;
        let key = rest.split_once(" key=")?.1.split(' ').next()?;
        let key = key.split(':').next()?;
        key.ends_with(&ends).then(|| key.to_owned())
    })
}
