//! A leader is cut off and a machine crashes: the others go on, the old leader grants nothing and says nothing that must be
//! true, and in the end all have the same state.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use billing_core::{
    AcquireLease, Actor, Command, FencingToken, HolderId, InvoiceId, OpenSession, Rejection, Reply,
    Requester, Seq, SessionId, TtlMs, WaitMs,
};
use billing_server::node::{Answer, Consistency};

use crate::properties::Broken;
use crate::world::World;

const TTL_MS: u64 = 120_000; // Nobody keeps the sessions alive: they outlast the scenario.
const CALLS_UNDER_CRASH: u64 = 200;
const RETRY: Duration = Duration::from_millis(100);

pub fn run(world: &mut World) -> Result<()> {
    let all: Vec<u64> = world.hosts.keys().copied().collect();
    world.bootstrapped()?;
    let old = world.leader(&all)?;
    let others: Vec<u64> = all.iter().copied().filter(|&id| id != old).collect();
    let mut tokens = Tokens::default();

    for session in [1, 2] {
        insist(world, others[0], open(session)?)??;
    }
    let held = insist(world, others[0], acquire(1, 1, "inv-1")?)?;
    tokens.granted(world, "inv-1 to session 1", held)?;

    world.isolate(old);
    let new = world.leader(&others)?;
    ensure!(new != old, "the one that was cut off still leads");
    let granted = insist(world, new, acquire(1, 2, "inv-2")?)?;
    tokens.granted(world, "inv-2 to session 1", granted)?;
    match insist(world, others[1], acquire(2, 1, "inv-1")?)? {
        Err(Rejection::HeldByOther { holder, .. }) if holder.as_str() == "worker-1" => {
            world.note(format_args!("inv-1 is refused to session 2"));
        }
        other => bail!("inv-1 is held by session 1, but session 2 got {other:?}"),
    }

    let read = world.on(old, |node| async move {
        node.read(Consistency::Linearizable, |ledger| ledger.now())
            .await
    })?;
    if read.is_ok() {
        return Err(Broken {
            property: "linearizable".to_owned(),
            invoice: None,
            what: format!("a node that was cut off answered a linearizable read: {read:?}"),
        }
        .into());
    }
    let command = acquire(2, 2, "inv-3")?;
    let answer = world.on(old, move |node| async move {
        node.propose(actor(), command).await
    })?;
    ensure!(
        answer.is_err(),
        "a node that was cut off answered: {answer:?}"
    );
    let stale = world.on(old, |node| async move {
        node.read(Consistency::Stale, |ledger| ledger.leases_count())
            .await
    })?;
    ensure!(
        matches!(stale, Ok((1, _))),
        "it knows of inv-1 only: {stale:?}"
    );
    world.note(format_args!("node {old} grants nothing"));

    world.heal(old);
    world.leader(&all)?;
    world.settled()?;

    crash_under_load(world, &all, &mut tokens)?;
    world.settled()?;
    let hashes: BTreeSet<[u8; 32]> = world
        .statuses()
        .values()
        .map(|s| s.state_hash.hash)
        .collect();
    ensure!(hashes.len() == 1, "the states differ in the end");
    let applied = world.status(old).and_then(|status| status.applied);
    world.note(format_args!("settled at {applied:?} with {hashes:02x?}"));
    world.judge()
}

/// A machine crashes while leases are granted: what was answered stays, on that machine too.
fn crash_under_load(world: &mut World, all: &[u64], tokens: &mut Tokens) -> Result<()> {
    let leader = world.leader(all)?;
    let victim = all[usize::try_from(world.chance.below(all.len() as u64))?];
    let through = if victim == leader {
        all.iter()
            .copied()
            .find(|&id| id != victim)
            .unwrap_or(leader)
    } else {
        leader
    };
    let load = world.begin(through, |node| async move {
        let mut granted = Vec::new();
        for seq in 1_000..1_000 + CALLS_UNDER_CRASH {
            let Ok(command) = acquire(1, seq, &format!("load-{seq}")) else {
                break;
            };
            // An acquire is idempotent by its seq: whatever came of the first try, repeating it asks for the same lease.
            granted.push(loop {
                match node.propose(actor(), command.clone()).await {
                    Ok(answer) => break answer,
                    Err(_) => tokio::time::sleep(RETRY).await,
                }
            });
        }
        granted
    })?;
    let crash_after = Duration::from_millis(50 + world.chance.below(400));
    world.pass(crash_after)?;
    world.crash(victim)?;
    let down_for = Duration::from_millis(500 + world.chance.below(4_000));
    world.pass(down_for)?;
    world.restart(victim);
    world.leader(all)?;
    let mut load = load;
    let mut answers = None;
    world.until("the load is done", |_| {
        answers = load.try_recv().ok();
        answers.is_some()
    })?;
    let mut kept = Vec::new();
    for (nth, answer) in answers.unwrap_or_default().into_iter().enumerate() {
        let invoice = format!("load-{}", 1_000 + nth);
        tokens.granted(world, &invoice, answer)?;
        kept.push(invoice);
    }
    ensure!(
        kept.len() as u64 == CALLS_UNDER_CRASH,
        "only {} were granted",
        kept.len()
    );
    world.settled()?;
    let missing = world.on(victim, move |node| async move {
        node.read(Consistency::Linearizable, move |ledger| {
            kept.iter()
                .filter(|id| InvoiceId::new(id).is_ok_and(|id| ledger.lease(&id).is_none()))
                .cloned()
                .collect::<Vec<_>>()
        })
        .await
    })??;
    ensure!(
        missing.0.is_empty(),
        "granted, and forgotten: {:?}",
        missing.0
    );
    Ok(())
}

/// Tokens grow with every grant, whoever leads.
#[derive(Default)]
struct Tokens {
    last: FencingToken,
}

impl Tokens {
    fn granted(
        &mut self,
        world: &mut World,
        what: &str,
        answer: Result<Reply, Rejection>,
    ) -> Result<()> {
        let Ok(Reply::Leased(leased)) = answer else {
            bail!("{what}: not granted: {answer:?}");
        };
        let token = leased.lease.token;
        ensure!(
            token > self.last,
            "{what}: token {token} after {}",
            self.last
        );
        self.last = token;
        world.note(format_args!("{what}: token {token}"));
        Ok(())
    }
}

fn actor() -> Actor {
    Actor::ledger()
}

/// Repeats what was not applied, and what is harmless to repeat: these commands are idempotent by session and seq.
fn insist(world: &mut World, id: u64, command: Command) -> Result<Result<Reply, Rejection>> {
    loop {
        let command = command.clone();
        let answer: Answer = world.on(id, move |node| async move {
            node.propose(actor(), command).await
        })?;
        match answer {
            Ok(answer) => return Ok(answer),
            Err(_) => world.pass(RETRY)?,
        }
    }
}

fn session(number: u8) -> SessionId {
    SessionId::new([number; 16])
}

fn open(number: u8) -> Result<Command> {
    Ok(Command::OpenSession(OpenSession {
        session: session(number),
        holder: HolderId::new(&format!("worker-{number}"))?,
        ttl: TtlMs::new(TTL_MS)?,
    }))
}

fn acquire(number: u8, seq: u64, invoice: &str) -> Result<Command> {
    Ok(Command::AcquireLease(AcquireLease {
        invoice: InvoiceId::new(invoice)?,
        requester: Requester::Session {
            session: session(number),
            seq: Seq::new(seq)?,
            done_below: 0,
            ttl: None,
        },
        wait: WaitMs::new(0)?,
    }))
}
