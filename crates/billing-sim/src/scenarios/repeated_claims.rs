//! The answer to a ClaimInvoices is lost, and the client repeats it under the same session and seq, at another node, at once or up
//! to 90 s later, while more is due than was asked for; or the first copy hangs in the network. Both copies hear of the same
//! leases, less those that have ended meanwhile; never is anything granted for the repeat.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use billing_client::{FencingToken, v1};
use billing_core::SessionId;
use billing_env::RandomSource as _;

use super::raw;
use super::steps::{broken, done, end_well, hand_over, insist, pick};
use crate::chance::Chance;
use crate::machines::{DESK, node_name};
use crate::world::{Setting, World};

const ROUNDS: u64 = 5;
/// The session outlasts a round.
const TTL_MS: u64 = 300_000;
const COPY_PATIENCE: Duration = Duration::from_secs(20);
const RETRY: Duration = Duration::from_millis(200);

pub fn setting(_: &Chance) -> Setting {
    Setting {
        callers: 1,
        ..Setting::default()
    }
}

/// When the second copy arrives.
#[derive(Debug, Clone, Copy)]
enum Gap {
    AtOnce,
    /// The answer to the first one was heard, or lost, before the second is sent.
    Later(Duration),
    /// The network holds the first one up so long; the second is sent meanwhile.
    Overtakes(Duration),
}

pub fn run(world: &mut World) -> Result<()> {
    world.bootstrapped()?;
    let all: Vec<u64> = world.hosts.keys().copied().collect();
    world.leader(&all)?;
    for round in 1..=ROUNDS {
        one_claim(world, &all, round)?;
    }
    end_well(world)
}

fn one_claim(world: &mut World, nodes: &[u64], round: u64) -> Result<()> {
    let max = 1 + world.chance.below(4);
    // More than both copies together could be given.
    due(world, round, 2 * max + 1)?;
    let session = open(world, round)?;
    world.record.one_request(session, max);
    let request = v1::ClaimInvoicesRequest {
        session_id: session.as_bytes().to_vec(),
        seq: 1,
        done_below: 0,
        max: u32::try_from(max)?,
    };
    let first = pick(world, nodes)?;
    let others: Vec<u64> = nodes
        .iter()
        .copied()
        .filter(|&node| node != first)
        .collect();
    let second = pick(world, &others)?;
    let gap = match world.chance.below(4) {
        0 => Gap::AtOnce,
        1 => Gap::Later(world.chance.between_ms(1, 3_000)),
        2 => Gap::Later(world.chance.between_ms(3_000, 90_000)),
        _ => Gap::Overtakes(world.chance.between_ms(50, 6_000)),
    };
    world.note(format_args!(
        "{session} claims {max} twice, at nodes {first} and {second}, {gap:?}"
    ));
    let (one, other) = (request.clone(), request);
    let send = |world: &World, node, request: v1::ClaimInvoicesRequest| {
        let nodes = nodes.to_vec();
        world.desk_begin(move |client| async move {
            // A copy that is not answered is sent again, elsewhere: that is another copy.
            let mut at = node;
            loop {
                let told = raw::claim(client.env(), at, request.clone(), COPY_PATIENCE).await;
                if let Some(told) = told {
                    return told;
                }
                client.env().clock.sleep(RETRY).await;
                at = at % nodes.len() as u64 + 1;
            }
        })
    };
    let (early, late, ended) = match gap {
        Gap::AtOnce => {
            let early = send(world, first, one)?;
            let late = send(world, second, other)?;
            let early = done(world, "answer the first copy", early)?;
            (early, done(world, "answer the second copy", late)?, None)
        }
        Gap::Later(later) => {
            let early = send(world, first, one)?;
            let early = done(world, "answer the first copy", early)?;
            let ended = match (&early, world.chance.below(2)) {
                (Ok(leases), 0) => leases.first_key_value().map(|(id, t)| (id.clone(), *t)),
                _ => None,
            };
            if let Some((invoice, token)) = &ended {
                released(world, invoice, *token)?;
            }
            if world.chance.below(2) == 0 {
                // Whoever leads then has to know what was answered.
                hand_over(world)?;
            }
            world.pass(later)?;
            let late = send(world, second, other)?;
            (early, done(world, "answer the second copy", late)?, ended)
        }
        Gap::Overtakes(held) => {
            let name = node_name(first);
            world.network().hold(DESK, name.as_str());
            let early = send(world, first, one)?;
            let late = send(world, second, other)?;
            world.pass(held)?;
            world.network().release(DESK, name.as_str());
            let early = done(world, "answer the first copy", early)?;
            (early, done(world, "answer the second copy", late)?, None)
        }
    };
    world.note(format_args!("one copy heard {early:?}, the other {late:?}"));
    let mut expected = early.clone();
    if let (Ok(leases), Some((invoice, _))) = (&mut expected, &ended) {
        leases.remove(invoice);
    }
    compare(&expected, &late)?;
    insist(world, "close a session", move |client| async move {
        client.close_session(session).await.map(|_| ())
    })
}

type Told = Result<BTreeMap<String, u64>, String>;

fn compare(early: &Told, late: &Told) -> Result<()> {
    let leases = early.as_ref().ok().context("a claim was refused")?;
    if early == late {
        return Ok(());
    }
    let invoice = leases.keys().next().map(String::as_str);
    let what = format!("one copy of a claim should hear {early:?}, and heard {late:?}");
    Err(broken("same_request_same_answer", invoice, what))
}

fn released(world: &mut World, invoice: &str, token: u64) -> Result<()> {
    let invoice = invoice.to_owned();
    insist(world, "release a lease", move |client| {
        let invoice = invoice.clone();
        async move {
            let released = client.release_lease(&invoice, FencingToken(token)).await;
            released.map(|_| ())
        }
    })
}

/// Invoices that nobody but these claims works on.
fn due(world: &mut World, round: u64, count: u64) -> Result<()> {
    let bills: Vec<v1::Invoice> = (1..=count)
        .map(|number| v1::Invoice {
            invoice_id: format!("due-{round}-{number}"),
            customer_id: "ana".to_owned(),
            amount_minor: 500,
            currency: "USD".to_owned(),
            ..Default::default()
        })
        .collect();
    insist(world, "submit invoices", move |client| {
        let bills = bills.clone();
        async move { client.submit_invoices(bills, |_| {}).await.map(|_| ()) }
    })
}

/// A session that is kept alive by nobody, and makes one request.
fn open(world: &mut World, round: u64) -> Result<SessionId> {
    let mut id = [0; 16];
    world.chance.fill(&mut id);
    let request = v1::OpenSessionRequest {
        session_id: id.to_vec(),
        holder: format!("claims-{round}"),
        ttl_ms: TTL_MS,
    };
    let nodes = world.setting.nodes;
    world.desk_do("open a session", move |client| async move {
        let env = client.env();
        let mut node = 1;
        loop {
            let opened = match raw::leases(env, node) {
                Ok(mut leases) => leases.open_session(request.clone()).await.is_ok(),
                Err(_) => false,
            };
            if opened {
                return;
            }
            env.clock.sleep(RETRY).await;
            node = node % nodes + 1;
        }
    })?;
    Ok(SessionId::new(id))
}
