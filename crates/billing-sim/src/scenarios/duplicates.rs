//! The same AcquireLease is sent twice, to two nodes, at once or up to 90 s apart, or its copy hangs in the network meanwhile;
//! while others want the same lease, and leaders come and go. Both copies hear the same grant, or the same no, or that the lease
//! is over; never is there a second grant. The same for a request that was withdrawn: its late copy is refused.

use std::time::Duration;

use anyhow::Result;
use billing_client::Client;
use billing_core::{InvoiceId, RequestId, SessionId, What};
use billing_env::RandomSource as _;
use billing_proto::v1;

use super::raw::{self, Answer};
use super::steps::{broken, end_well, hand_over, pick};
use crate::chance::Chance;
use crate::machines::node::NodeSettings;
use crate::machines::{DESK, node_name};
use crate::world::{Setting, World};

const PATIENCE: Duration = Duration::from_secs(150);

pub fn setting(chance: &Chance) -> Setting {
    Setting {
        callers: 2,
        locks: 3,
        node: NodeSettings {
            snapshot_every: 40 + chance.below(200),
            log_kept: 10 + chance.below(40),
        },
        ..Setting::default()
    }
}

/// When the second copy arrives.
#[derive(Debug, Clone, Copy)]
enum Gap {
    AtOnce,
    Later(Duration),
    /// Sent at once, and held up by the network.
    Held(Duration),
}

pub fn run(world: &mut World) -> Result<()> {
    world.bootstrapped()?;
    let all: Vec<u64> = world.hosts.keys().copied().collect();
    world.leader(&all)?;
    for round in 0..8 {
        let withdrawn = world.chance.below(3) == 0;
        if withdrawn {
            withdraw_then_copy(world, &all, round)?;
        } else {
            twice(world, &all, round)?;
        }
        if world.chance.below(4) == 0 {
            // Whoever leads then has to know what was answered.
            hand_over(world)?;
        }
    }
    end_well(world)
}

fn id(world: &World) -> [u8; 16] {
    let mut id = [0; 16];
    world.chance.fill(&mut id);
    id
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A request of its own session, or without one; for a lock that callers want too, or for one that nobody else does.
fn request(
    world: &mut World,
    through: u64,
    round: u64,
) -> Result<(v1::AcquireLeaseRequest, SessionId)> {
    let invoice_id = match world.chance.below(2) {
        0 => format!("lock-{}", 1 + world.chance.below(world.setting.locks)),
        _ => format!("quiet-{round}"),
    };
    let wait_ms = match world.chance.below(2) {
        0 => 0,
        _ => ms(world.chance.between_ms(500, 8_000)),
    };
    // Some leases are over when the late copy comes.
    let ttl_ms = match world.chance.below(3) {
        0 => ms(world.chance.between_ms(150_000, 250_000)),
        _ => ms(world.chance.between_ms(1_000, 10_000)),
    };
    let id = id(world);
    let plain = v1::AcquireLeaseRequest {
        invoice_id,
        holder: format!("plain-{round}"),
        ttl_ms,
        request_id: id.to_vec(),
        wait_ms,
        ..Default::default()
    };
    let session = RequestId::new(id).session();
    // One request to a session: then one grant at most, too.
    world.record.one_request(session, 1);
    if world.chance.below(2) == 0 {
        return Ok((plain, session));
    }
    let open = v1::OpenSessionRequest {
        session_id: id.to_vec(),
        holder: plain.holder.clone(),
        ttl_ms: 300_000,
    };
    world.desk_do("open a session", move |client| async move {
        let env = client.env();
        loop {
            let opened = match raw::leases(env, through) {
                Ok(mut leases) => leases.open_session(open.clone()).await.is_ok(),
                Err(_) => false,
            };
            if opened {
                return;
            }
            env.clock.sleep(Duration::from_millis(200)).await;
        }
    })?;
    let of_session = v1::AcquireLeaseRequest {
        session_id: id.to_vec(),
        seq: 1,
        done_below: 0,
        request_id: Vec::new(),
        ..plain
    };
    Ok((of_session, session))
}

fn gap(world: &World) -> Gap {
    match world.chance.below(4) {
        0 => Gap::AtOnce,
        1 => Gap::Later(world.chance.between_ms(1, 3_000)),
        2 => Gap::Later(world.chance.between_ms(3_000, 90_000)),
        _ => Gap::Held(world.chance.between_ms(50, 6_000)),
    }
}

/// Where a copy was not answered at all, it is sent again: that is another copy.
async fn answered(
    client: Client,
    node: u64,
    nodes: u64,
    request: v1::AcquireLeaseRequest,
) -> Answer {
    match raw::acquire(
        client.env(),
        node,
        request.clone(),
        Duration::from_secs(100),
    )
    .await
    {
        Answer::Nothing(_) => raw::insist(client.env(), nodes, node, &request).await,
        answer => answer,
    }
}

fn twice(world: &mut World, nodes: &[u64], round: u64) -> Result<()> {
    let first = pick(world, nodes)?;
    let others: Vec<u64> = nodes
        .iter()
        .copied()
        .filter(|&node| node != first)
        .collect();
    let second = pick(world, &others)?;
    let (request, session) = request(world, first, round)?;
    let (gap, count) = (gap(world), world.setting.nodes);
    world.note(format_args!(
        "{} is asked for twice by {session}, at nodes {first} and {second}, {gap:?}",
        request.invoice_id
    ));
    let (one, other) = (request.clone(), request.clone());
    let (held, later) = match gap {
        Gap::AtOnce => (None, Duration::ZERO),
        Gap::Later(later) => (None, later),
        Gap::Held(held) => (Some(held), Duration::ZERO),
    };
    if held.is_some() {
        world.network().hold(DESK, node_name(second).as_str());
    }
    let mut late = world.desk_begin(move |client| async move {
        client.env().clock.sleep(later).await;
        answered(client, second, count, other).await
    })?;
    let mut early = world.desk_begin(move |client| answered(client, first, count, one))?;
    if let Some(held) = held {
        world.pass(held)?;
        world.network().release(DESK, node_name(second).as_str());
    }
    let (mut heard, mut heard_late) = (None, None);
    world.until_within(PATIENCE, "both copies are answered", |_| {
        heard = heard.take().or_else(|| early.try_recv().ok());
        heard_late = heard_late.take().or_else(|| late.try_recv().ok());
        heard.is_some() && heard_late.is_some()
    })?;
    let (Some(heard), Some(heard_late)) = (heard, heard_late) else {
        return Ok(());
    };
    world.note(format_args!(
        "one copy heard {heard:?}, the other {heard_late:?}"
    ));
    let same = match (&heard, &heard_late) {
        (Answer::Over(_), _) | (_, Answer::Over(_)) => true,
        (one, other) => one == other,
    };
    if !same {
        let what = format!("one copy heard {heard:?}, the other {heard_late:?}");
        return Err(broken(
            "same_request_same_answer",
            Some(&request.invoice_id),
            what,
        ));
    }
    // A lease that still stands is not over for the copy.
    let stands = matches!((&heard, &heard_late), (Answer::Granted(_), Answer::Over(_)))
        && holds(world, &request.invoice_id, &session)?;
    if stands {
        let what = format!("granted {heard:?}, and over for its copy: {heard_late:?}");
        return Err(broken(
            "same_request_same_answer",
            Some(&request.invoice_id),
            what,
        ));
    }
    Ok(())
}

/// Whether the audit log says that the session holds the lease.
fn holds(world: &mut World, invoice: &str, session: &SessionId) -> Result<bool> {
    world.look()?;
    let id = InvoiceId::new(invoice)?;
    let lease = world
        .replay()
        .invoices()
        .get(&id)
        .and_then(|known| known.lease);
    Ok(lease.is_some_and(|lease| lease.session == *session))
}

/// An acquire whose answer nobody waited for is withdrawn through another node; its copy comes after that.
fn withdraw_then_copy(world: &mut World, nodes: &[u64], round: u64) -> Result<()> {
    let first = pick(world, nodes)?;
    let others: Vec<u64> = nodes
        .iter()
        .copied()
        .filter(|&node| node != first)
        .collect();
    let second = pick(world, &others)?;
    let (request, session) = request(world, first, round)?;
    let held = world.chance.below(2) == 0;
    let gap = world.chance.between_ms(0, 4_000);
    let count = world.setting.nodes;
    world.note(format_args!(
        "{} is asked for by {session} at node {first}, withdrawn at node {second}; copy held: {held}",
        request.invoice_id
    ));
    // In half of the runs the withdrawal overtakes the request, which then comes for the first time after it.
    if held {
        world.network().hold(DESK, node_name(first).as_str());
    }
    let original = request.clone();
    drop(world.desk_begin(move |client| async move {
        raw::acquire(client.env(), first, original, Duration::from_secs(100)).await
    })?);
    world.pass(gap)?;
    let release = v1::ReleaseLeaseRequest {
        session_id: session.as_bytes().to_vec(),
        seq: 1,
        ..Default::default()
    };
    world.desk_do("withdraw the request", move |client| async move {
        let env = client.env();
        let mut node = second;
        loop {
            let given_back = async {
                let mut leases = raw::leases(env, node).ok()?;
                leases.release_lease(release.clone()).await.ok()
            };
            let given_back = tokio::select! {
                biased;
                given_back = given_back => given_back,
                () = env.clock.sleep(Duration::from_secs(3)) => None,
            };
            if given_back.is_some() {
                return;
            }
            env.clock.sleep(Duration::from_millis(200)).await;
            node = node % count + 1;
        }
    })?;
    let withdrawn_at = world.elapsed();
    if held {
        world.network().release(DESK, node_name(first).as_str());
    }
    let later = world.chance.between_ms(0, 2_000);
    world.pass(later)?;
    let copy = request.clone();
    let late = world.desk_do("send a late copy", move |client| async move {
        raw::insist(client.env(), count, first, &copy).await
    })?;
    world.note(format_args!("the late copy heard {late:?}"));
    if matches!(late, Answer::Granted(_)) {
        let what = format!("withdrawn, and its late copy heard {late:?}");
        return Err(broken(
            "same_request_same_answer",
            Some(&request.invoice_id),
            what,
        ));
    }
    world.look()?;
    let granted_after = world.records().iter().any(|seen| {
        let own = matches!(&seen.record.what, What::Acquired { session: of, .. } if *of == session);
        own && seen.not_before > withdrawn_at
    });
    if granted_after || holds(world, &request.invoice_id, &session)? {
        let what = "granted after it was withdrawn".to_owned();
        return Err(broken(
            "same_request_same_answer",
            Some(&request.invoice_id),
            what,
        ));
    }
    Ok(())
}
