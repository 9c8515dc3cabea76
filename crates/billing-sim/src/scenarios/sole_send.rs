//! Where declines are not kept under their key, a no to one send says nothing about another. A gate's first send hangs in the
//! network; then the gate sends the key again, or it is restarted within the same lease and its successor does. That send is
//! declined, and the first one arrives after it and succeeds. The no ends nothing: SOLE_SEND is not what it is.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use billing_client::{AcquireOptions, Client};
use billing_core::{IdempotencyKey, InvoiceId, What};
use billing_gate::{Gate, bill_of};
use billing_sandbox::Faults;
use tokio::sync::Notify;

use super::steps::{done, end_well, pick, submit_payable};
use crate::chance::Chance;
use crate::machines::{DESK, PROVIDER, worker_name};
use crate::profile::{self, Provider, REQUEST_TIMEOUT};
use crate::world::{LATENCY_MAX, Setting, World};

const ROUNDS: u64 = 3;
const LEASE: Duration = Duration::from_secs(20);
/// The gate stands between its connection and its send for so long, so that the driver can slow down what it sends.
const BEFORE_SEND: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy)]
enum Again {
    /// The gate itself, when it has heard nothing for its request's timeout.
    SameGate,
    /// Another one, made under the same lease when the first was gone.
    NextGate,
}

pub fn setting(_: &Chance) -> Setting {
    Setting {
        workers: 1,
        provider: Provider::LooseKeys,
        ..Setting::default()
    }
}

pub fn run(world: &mut World) -> Result<()> {
    world.bootstrapped()?;
    // A send that hangs in the network comes when it comes.
    world.promises.sends_are_prompt = false;
    // The desk has the invoices to itself until the end, when the worker finds out what became of them.
    let worker = worker_name(1);
    world.pass(Duration::from_secs(1))?;
    world.freeze(&worker, false);
    world.pass(Duration::from_secs(1))?;
    for _ in 0..ROUNDS {
        one_round(world)?;
    }
    world.thaw(&worker);
    end_well(world)
}

fn one_round(world: &mut World) -> Result<()> {
    let again = pick(world, &[Again::SameGate, Again::NextGate])?;
    let invoice = submit_payable(world)?;
    let pauses = &world.desk.machine.pauses;
    pauses.stall_at("before_send", BEFORE_SEND);
    let restart = Arc::new(Notify::new());
    let (wanted, at_restart) = (invoice.clone(), restart.clone());
    let charge = world.desk_begin(move |client| async move {
        charge(&client, &wanted, &at_restart)
            .await
            .map_err(|why| anyhow!("{why}"))
    })?;
    world.until("the attempt is begun", |world| {
        key(world, &invoice).is_some()
    })?;
    let key = key(world, &invoice).ok_or_else(|| anyhow!("no attempt"))?;
    world.pass(BEFORE_SEND / 2)?;
    let hangs = REQUEST_TIMEOUT + world.chance.between_ms(1_000, 2_000);
    world.note(format_args!(
        "{invoice}: what is sent under {key} hangs for {hangs:?}, then {again:?}"
    ));
    world.network().set_link_latency(DESK, PROVIDER, hangs);
    world.pass(BEFORE_SEND)?;
    world
        .network()
        .set_link_latency(DESK, PROVIDER, LATENCY_MAX);
    let first_arrives = world.elapsed() + hangs;
    let usual = profile::sandbox(world.setting.provider, 0).faults;
    world.provider.set_faults(Faults {
        decline_share: 1.0,
        ..usual.clone()
    });
    if matches!(again, Again::NextGate) {
        restart.notify_one();
    }
    let declined = |world: &World| {
        world.records().iter().any(|seen| {
            seen.record.key.as_ref() == Some(&key)
                && matches!(seen.record.what, What::Declined { .. })
        })
    };
    world.until("the ledger hears of the no", declined)?;
    ensure!(
        world.elapsed() < first_arrives,
        "the first send came before the no: this proves nothing"
    );
    world.provider.set_faults(usual);
    let said = done(world, "charge", charge)??;
    world.note(format_args!("{invoice}: {said}"));
    let left = first_arrives.saturating_sub(world.elapsed());
    world.pass(left + Duration::from_secs(1))?;
    let heard = format!("key={key}:confirm");
    let lines = world.record.lines();
    let heard = lines.iter().filter(|(_, line)| line.contains(&heard));
    ensure!(
        heard.count() >= 2,
        "only one send arrived: this proves nothing"
    );
    Ok(())
}

/// The key of the attempt that is open.
fn key(world: &World, invoice: &InvoiceId) -> Option<IdempotencyKey> {
    let known = world.replay().invoices().get(invoice)?;
    known.attempt.as_ref().map(|attempt| attempt.key.clone())
}

/// What a worker does with one invoice; `restart` ends its gate in the middle, and another one goes on.
async fn charge(client: &Client, invoice: &InvoiceId, restart: &Notify) -> Result<String, String> {
    let say = |error: &dyn Display| error.to_string();
    let options = AcquireOptions::default().ttl(LEASE);
    let guard = client.acquire(invoice.as_str(), DESK, options).await;
    let guard = guard.map_err(|failure| say(&failure))?;
    let known = client.get_invoice(invoice.as_str(), false).await;
    let known = known.map_err(|failure| say(&failure))?;
    let bill = known.invoice.ok_or("the invoice is not known")?;
    let bill = bill_of(&bill).map_err(|error| say(&error))?;
    let gate = || {
        let config = profile::gate_config(Provider::LooseKeys).map_err(|error| say(&error))?;
        Gate::new(client.env().clone(), config).map_err(|error| say(&error))
    };
    let first = gate()?;
    let outcome = tokio::select! {
        biased;
        outcome = first.charge(client, &guard, &bill, None) => Some(outcome),
        () = restart.notified() => None,
    };
    let outcome = match outcome {
        Some(outcome) => outcome,
        None => {
            drop(first);
            gate()?.charge(client, &guard, &bill, None).await
        }
    };
    guard.settled();
    Ok(format!("{outcome:?}"))
}
