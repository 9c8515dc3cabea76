//! Steps that several scenarios take: what operators and clients do, insisted on until it is done. Judges nothing but that it
//! is done at all.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use billing_client::{AcquireOptions, Client, Failure, v1};
use billing_core::InvoiceId;
use tokio::sync::oneshot;

use crate::chance::Chance;
use crate::machines::node::peer;
use crate::profile::CUSTOMERS;
use crate::properties::Broken;
use crate::properties::every_invoice_ends::waits_for_its_next_try;
use crate::record::Promise;
use crate::world::World;

const RETRY: Duration = Duration::from_millis(200);
const CHANGE_PATIENCE: Duration = Duration::from_secs(120);
/// How long an invoice may take to end: the back-off of a doubt doubles.
const ENDING_PATIENCE: Duration = Duration::from_secs(2 * 3_600);
/// How long a try may take that fell due in the last moment.
const REST_PATIENCE: Duration = Duration::from_secs(120);

/// One of them; there must be one.
pub fn pick<T: Copy>(world: &World, among: &[T]) -> Result<T> {
    world.chance.pick(among).context("nothing to choose from")
}

pub fn all_but(world: &World, left_out: &[u64]) -> Vec<u64> {
    let ids = world.hosts.keys().copied();
    ids.filter(|id| !left_out.contains(id)).collect()
}

/// The error of a property that a scenario watches itself.
pub fn broken(property: &str, invoice: Option<&str>, what: String) -> anyhow::Error {
    Broken {
        property: property.to_owned(),
        invoice: invoice.map(str::to_owned),
        what,
    }
    .into()
}

/// Repeats what an operator does until it succeeds.
pub fn insist<T, F, Fut>(world: &mut World, what: &str, work: F) -> Result<T>
where
    T: Send + 'static,
    F: Fn(Client) -> Fut + Send + 'static,
    Fut: Future<Output = Result<T, Failure>> + 'static,
{
    world.desk_do(what, move |client| until_done(client, work))
}

/// Repeats it until it succeeds.
pub async fn until_done<T, F, Fut>(client: Client, work: F) -> T
where
    F: Fn(Client) -> Fut,
    Fut: Future<Output = Result<T, Failure>>,
{
    loop {
        match work(client.clone()).await {
            Ok(done) => return done,
            Err(_) => client.env().clock.sleep(RETRY).await,
        }
    }
}

/// Submits that many more invoices, most of them by customers who can pay, and waits until that is done.
pub fn submit(world: &mut World, count: u64) -> Result<()> {
    let first = world.invoices.len() as u64 + 1;
    for number in first..first + count {
        world.invoices.insert(format!("inv-{number}"), 100 + number);
    }
    submit_numbers(world, first..first + count)
}

/// Submits every invoice so far once more: nothing changes where it is known.
pub fn submit_again(world: &mut World) -> Result<()> {
    let numbers = 1..world.invoices.len() as u64 + 1;
    submit_numbers(world, numbers)
}

fn submit_numbers(world: &mut World, numbers: std::ops::Range<u64>) -> Result<()> {
    let mut bills = Vec::new();
    for number in numbers {
        bills.push(v1::Invoice {
            invoice_id: format!("inv-{number}"),
            customer_id: customer(world.seed, number)?.to_owned(),
            amount_minor: i64::try_from(100 + number)?,
            currency: "USD".to_owned(),
            ..Default::default()
        });
    }
    let wanted = bills.clone();
    let submitted = insist(world, "submit invoices", move |client| {
        let bills = wanted.clone();
        async move { client.submit_invoices(bills, |_| {}).await }
    })?;
    let known = submitted.submitted + submitted.unchanged;
    ensure!(known == bills.len() as u64, "only {known} were submitted");
    for bill in &bills {
        let id = InvoiceId::new(&bill.invoice_id)?;
        world.record.promise(&id, Promise::Submitted);
    }
    Ok(())
}

/// One more invoice, of a customer whose card is good. The provider may decline it all the same.
pub fn submit_payable(world: &mut World) -> Result<InvoiceId> {
    let number = world.invoices.len() as u64 + 1;
    let invoice = format!("inv-{number}");
    let bill = v1::Invoice {
        invoice_id: invoice.clone(),
        customer_id: CUSTOMERS[0].0.to_owned(),
        amount_minor: i64::try_from(100 + number)?,
        currency: "USD".to_owned(),
        ..Default::default()
    };
    insist(world, "submit an invoice", move |client| {
        let bills = vec![bill.clone()];
        async move { client.submit_invoices(bills, |_| {}).await }
    })?;
    let id = InvoiceId::new(&invoice)?;
    world.record.promise(&id, Promise::Submitted);
    world.invoices.insert(invoice, 100 + number);
    Ok(id)
}

/// Always the same one of an invoice; two in three can pay.
fn customer(seed: u64, number: u64) -> Result<&'static str> {
    let chance = Chance::new(seed, &format!("customer of inv-{number}"));
    let among = match chance.below(3) {
        0 => CUSTOMERS.len() as u64,
        _ => 3,
    };
    Ok(CUSTOMERS[usize::try_from(chance.below(among))?].0)
}

/// The cluster takes what is written: a lease is granted and given back.
pub fn writes(world: &mut World, times: u64) -> Result<()> {
    for _ in 0..times {
        insist(world, "write something", |client| async move {
            let options = AcquireOptions::default().ttl(Duration::from_secs(5));
            let guard = client.acquire("something", "desk", options).await?;
            guard.release().await
        })?;
    }
    Ok(())
}

/// The callers begin nothing new, every invoice ends, all nodes have applied the same; then the properties are asked.
pub fn end_well(world: &mut World) -> Result<()> {
    let all: Vec<u64> = world.hosts.keys().copied().collect();
    world.leader(&all)?;
    for caller in world.callers.values() {
        caller.rest();
    }
    let deadline = world.elapsed() + ENDING_PATIENCE;
    // What has not ended in time, the property names.
    while world.elapsed() < deadline && !nothing_is_under_way(world) {
        world.pass(Duration::from_millis(500))?;
    }
    // What the callers began ends: calls, sessions, leases.
    world.pass(Duration::from_secs(12))?;
    at_rest(world)?;
    world.judge()
}

/// Every invoice of the workers has ended, or waits for a time that is far away.
pub fn nothing_is_under_way(world: &World) -> bool {
    let open = world.open_invoices();
    open.iter()
        .all(|invoice| waits_for_its_next_try(world.replay(), world.records(), invoice))
}

/// Steps until all nodes have applied equally far, and in that moment no invoice is just being tried again.
pub fn at_rest(world: &mut World) -> Result<()> {
    let deadline = world.elapsed() + REST_PATIENCE;
    loop {
        world.settled()?;
        world.look()?;
        // What is never at rest, the property names.
        if nothing_is_under_way(world) || world.elapsed() >= deadline {
            return Ok(());
        }
        world.pass(Duration::from_millis(500))?;
    }
}

/// Repeats a change of the membership until the members are as wanted, whatever becomes of an answer. Does not wait for it.
fn change<F, Fut>(
    world: &World,
    wanted: impl Fn(&[v1::Member]) -> bool + 'static + Send,
    work: F,
) -> Result<oneshot::Receiver<()>>
where
    F: Fn(Client) -> Fut + Send + 'static,
    Fut: Future<Output = Result<(), Failure>> + 'static,
{
    world.desk_begin(move |client| async move {
        loop {
            // Whether it is done, the members say.
            let _ = work(client.clone()).await;
            if let Ok(status) = client.status().await
                && wanted(&status.members)
            {
                return;
            }
            client.env().clock.sleep(RETRY).await;
        }
    })
}

/// The leader is told to hand over, whatever becomes of it.
pub fn hand_over(world: &World) -> Result<()> {
    let job = |client: Client| async move { client.transfer_leader(None).await.is_ok() };
    drop(world.desk_begin(job)?);
    Ok(())
}

/// Steps until a job of the desk is done.
pub fn done<T>(world: &mut World, what: &str, mut job: oneshot::Receiver<T>) -> Result<T> {
    let mut found = None;
    world.until_within(CHANGE_PATIENCE, what, |_| {
        found = job.try_recv().ok();
        found.is_some()
    })?;
    found.ok_or_else(|| anyhow!("the desk did not {what}"))
}

fn has(members: &[v1::Member], id: u64, voter: bool) -> bool {
    members
        .iter()
        .any(|member| member.node_id == id && (member.voter || !voter))
}

pub fn begin_add(world: &World, id: u64) -> Result<oneshot::Receiver<()>> {
    let peer = peer(id);
    change(
        world,
        move |members| has(members, id, false),
        move |client| {
            let peer = peer.clone();
            async move {
                let added = client.add_learner(id, &peer.client, &peer.raft).await;
                added.map(|_| ())
            }
        },
    )
}

/// Gives a learner its vote, and takes it from `replaces`.
pub fn begin_promote(
    world: &World,
    id: u64,
    replaces: Option<u64>,
) -> Result<oneshot::Receiver<()>> {
    change(
        world,
        move |members| {
            has(members, id, true) && replaces.is_none_or(|old| !has(members, old, false))
        },
        move |client| async move {
            let promoted = client.promote_member(id, replaces, true).await;
            promoted.map(|_| ())
        },
    )
}

pub fn begin_remove(world: &World, id: u64) -> Result<oneshot::Receiver<()>> {
    change(
        world,
        move |members| !members.is_empty() && !has(members, id, false),
        move |client| async move { client.remove_member(id, true).await.map(|_| ()) },
    )
}

/// An id that no node ever had.
pub fn fresh_id(world: &World) -> u64 {
    world.ids_used() + 1
}

/// A node that must not start again under its id is replaced by a new one on an empty disk, as `billingd join` would have it:
/// a learner first, then it starts, then its vote.
pub fn rejoin(world: &mut World, lost: u64) -> Result<()> {
    let fresh = fresh_id(world);
    world.retire(lost);
    let job = begin_add(world, fresh)?;
    done(world, "add a learner", job)?;
    world.add_node(fresh);
    world.note(format_args!("node {fresh} joins"));
    let job = begin_promote(world, fresh, Some(lost))?;
    done(world, "promote a learner", job)
}

/// A process ends by itself and says how to go on.
pub fn ends_with_advice(world: &mut World, id: u64, advice: &str) -> Result<()> {
    world.until("the node ends by itself", |world| {
        world.hosts[&id].ended().is_some() && world.hosts[&id].node().is_none()
    })?;
    let reason = world.hosts[&id].ended().unwrap_or_default();
    world.note(format_args!("node {id} ended: {reason}"));
    if !reason.contains(advice) {
        bail!("node {id} ended without the advice {advice:?}: {reason}");
    }
    Ok(())
}
