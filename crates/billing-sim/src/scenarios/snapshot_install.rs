//! A node is cut off while the log is purged past what it has, sessions expire and a queue forms; back again it is given a
//! snapshot in the middle of the load. Waiters, answers, tokens, time and the audit log are all in it: in half of the runs the
//! leadership then moves to that very node, which must serve the queue in order and repeat an answer that it never saw given.

use std::mem::forget;
use std::time::Duration;

use anyhow::{Result, ensure};
use billing_client::AcquireOptions;
use billing_proto::v1;
use billing_server::node::Role;

use super::queue::{Queue, waiters};
use super::raw::{self, Answer};
use super::steps::{all_but, broken, end_well, insist, pick, submit, writes};
use crate::chance::Chance;
use crate::machines::node::NodeSettings;
use crate::world::{Setting, World};

const QUEUE: &str = "order-1";
const WAITERS: u64 = 3;
/// Rounds of writing until the log must have been purged.
const LOAD_MAX: u64 = 100;
const ANSWERED: &str = "answered-1";
const ANSWERED_TTL: Duration = Duration::from_secs(280);

pub fn setting(chance: &Chance) -> Setting {
    Setting {
        nodes: if chance.below(4) == 0 { 5 } else { 3 },
        workers: 2,
        callers: 2,
        node: NodeSettings {
            snapshot_every: 30 + chance.below(30),
            log_kept: 3 + chance.below(10),
        },
        ..Setting::default()
    }
}

pub fn run(world: &mut World) -> Result<()> {
    world.bootstrapped()?;
    let all: Vec<u64> = world.hosts.keys().copied().collect();
    let leader = world.leader(&all)?;
    let away = pick(world, &all_but(world, &[leader]))?;
    world.isolate(away);
    let had = world.status(away).and_then(|status| status.last_log);
    submit(world, 5)?;

    let request = answered_request(world);
    let answer = one_copy(world, leader, request.clone())?;
    let Answer::Granted(token) = answer else {
        return Err(broken(
            "same_request_same_answer",
            Some(ANSWERED),
            format!("a free lease was not granted: {answer:?}"),
        ));
    };
    silent_leases(world)?;
    purge_beyond(world, had)?;
    // No caller waits for anything while the queue is counted.
    for caller in world.callers.values() {
        caller.rest();
    }
    world.until("no caller waits", |world| {
        let leader = world.leads_now().and_then(|id| world.hosts[&id].node());
        leader.is_some_and(|node| waiters(&node) == 0)
    })?;
    let ttl = world.chance.between_ms(12_000, 18_000);
    let queue = Queue::form(world, QUEUE, ttl, WAITERS)?;
    let leader = world.leads_now().unwrap_or(leader);
    world.on(
        leader,
        |node| async move { node.take_snapshot().await.is_ok() },
    )?;
    let healed_after = world.chance.between_ms(0, 2_000);
    world.pass(healed_after)?;
    let before = world.status(away).and_then(|status| status.snapshot);
    world.heal(away);
    world.until("the node that was away is given a snapshot", |world| {
        world.status(away).is_some_and(|status| {
            status.snapshot > before && status.applied >= status.snapshot && status.purged > had
        })
    })?;
    world.note(format_args!("node {away} was given a snapshot"));
    ensure!(
        queue.stands(world),
        "the queue was served before the snapshot came: this proves nothing"
    );
    let there = world.hosts[&away].node().map_or(0, |node| waiters(&node));
    if there != WAITERS {
        return Err(broken(
            "waiters_in_order",
            Some(QUEUE),
            format!("{there} wait on node {away} after the snapshot, not {WAITERS}"),
        ));
    }

    let moved = world.chance.below(2) == 0;
    if moved {
        world.note(format_args!("node {away} shall lead"));
        insist(world, "transfer the leadership", move |client| async move {
            client.transfer_leader(Some(away)).await
        })?;
        world.until("it leads", |world| {
            world
                .status(away)
                .is_some_and(|status| status.role == Role::Leader)
        })?;
    }
    // An answer that was given while the node was away: it repeats it.
    let again = one_copy(world, away, request)?;
    if again != Answer::Granted(token) {
        return Err(broken(
            "same_request_same_answer",
            Some(ANSWERED),
            format!("granted with token {token}, and then {again:?}"),
        ));
    }
    // ClusterTime stood still while nobody led.
    let patience = Duration::from_millis(if moved { 6_000 } else { 2_500 });
    queue.served(world, patience)?;
    ensure!(
        world.status(away).is_some(),
        "the node that was away is gone"
    );
    end_well(world)
}

/// Writes until the log alone cannot help a node that has it up to `had`.
pub(super) fn purge_beyond(world: &mut World, had: Option<u64>) -> Result<()> {
    for _ in 0..LOAD_MAX {
        if has_purged(world) > had {
            break;
        }
        writes(world, 5)?;
    }
    ensure!(has_purged(world) > had, "the log was never purged");
    Ok(())
}

/// How far the log of whoever leads is purged.
pub(super) fn has_purged(world: &World) -> Option<u64> {
    let leader = world.leads_now().and_then(|id| world.status(id));
    leader.and_then(|status| status.purged)
}

fn answered_request(world: &World) -> v1::AcquireLeaseRequest {
    let mut id = [0; 16];
    billing_env::RandomSource::fill(&world.chance, &mut id);
    let id = billing_core::RequestId::new(id);
    world.record.one_request(id.session(), 1);
    v1::AcquireLeaseRequest {
        invoice_id: ANSWERED.to_owned(),
        holder: "plain".to_owned(),
        ttl_ms: u64::try_from(ANSWERED_TTL.as_millis()).unwrap_or(u64::MAX),
        request_id: id.as_bytes().to_vec(),
        ..Default::default()
    }
}

fn one_copy(world: &mut World, first: u64, request: v1::AcquireLeaseRequest) -> Result<Answer> {
    let nodes = world.setting.nodes;
    world.desk_do("send one request", move |client| async move {
        raw::insist(client.env(), nodes, first, &request).await
    })
}

/// Leases whose holders fall silent: their sessions expire while the node is away, while it is given the snapshot, and later.
fn silent_leases(world: &mut World) -> Result<()> {
    for number in 1..=12 {
        let ttl = world.chance.between_ms(1_000, 20_000);
        insist(
            world,
            "hold a lease and fall silent",
            move |client| async move {
                let invoice = format!("silent-{number}");
                let options = AcquireOptions::default().ttl(ttl);
                client
                    .acquire(&invoice, "silent", options)
                    .await
                    .map(forget)
            },
        )?;
    }
    Ok(())
}
