//! The leader, or the whole cluster, stalls for about as long as a TTL, while keep-alives queue up: its process stands still, all
//! processes do, or every disk takes its time. Nobody is granted a lease before its holder's own deadline (`one_holder` watches
//! the acts), and a session that its client still believes in after the stall lives on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use billing_client::{AcquireOptions, Client, SessionOptions};

use super::steps::{broken, end_well, pick};
use crate::chance::Chance;
use crate::machines::node::SYNC_TAKES;
use crate::machines::node_name;
use crate::record::Record;
use crate::world::{Setting, World};

const ROUNDS: u64 = 4;
const HOLDERS: u64 = 4;
const ACT_EVERY: Duration = Duration::from_millis(20);
/// Whoever has so much left when the stall is over is heard in time.
const HEARD_WITHIN: Duration = Duration::from_millis(400);

#[derive(Debug, Clone, Copy)]
enum Stall {
    Leader,
    Everybody,
    Disks,
}

pub fn setting(_: &Chance) -> Setting {
    Setting {
        callers: 2,
        ..Setting::default()
    }
}

pub fn run(world: &mut World) -> Result<()> {
    world.bootstrapped()?;
    for round in 0..ROUNDS {
        one_round(world, round)?;
    }
    end_well(world)
}

/// When a holder acted last.
type LastAct = Arc<Mutex<Option<Duration>>>;

fn one_round(world: &mut World, round: u64) -> Result<()> {
    let all: Vec<u64> = world.hosts.keys().copied().collect();
    let leader = world.leader(&all)?;
    let ttl = world.chance.between_ms(1_000, 4_000);
    let stall = pick(world, &[Stall::Leader, Stall::Everybody, Stall::Disks])?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut holders: Vec<LastAct> = Vec::new();
    for number in 1..=HOLDERS {
        let last = LastAct::default();
        let lock = format!("stalled-{round}-{number}");
        let (record, until, told) = (world.record.clone(), stop.clone(), last.clone());
        drop(world.desk_begin({
            let lock = lock.clone();
            move |client| async move { hold(&client, &lock, ttl, &record, &until, &told).await }
        })?);
        holders.push(last.clone());
        world.until("the lease is held", |_| acted(&last).is_some())?;
        let (record, until) = (world.record.clone(), stop.clone());
        drop(world.desk_begin(move |client| async move {
            want(&client, &lock, &record, &until).await
        })?);
    }
    let phase = world.chance.between_ms(0, 1_500);
    world.pass(phase)?;
    let whole = u64::try_from(ttl.as_millis())?;
    let lasts = world.chance.between_ms(whole / 3, whole * 13 / 10);
    world.note(format_args!(
        "round {round}: ttl {ttl:?}, {stall:?} stalls for {lasts:?}, node {leader} leads"
    ));
    match stall {
        Stall::Leader => world.freeze(&node_name(leader), false),
        Stall::Everybody => {
            for &id in &all {
                world.freeze(&node_name(id), false);
            }
        }
        Stall::Disks => {
            for host in world.hosts.values() {
                host.disk.set_sync_takes(lasts);
            }
        }
    }
    world.pass(lasts)?;
    match stall {
        Stall::Leader => world.thaw(&node_name(leader)),
        Stall::Everybody => {
            for &id in &all {
                world.thaw(&node_name(id));
            }
        }
        Stall::Disks => {
            for host in world.hosts.values() {
                host.disk.set_sync_takes(SYNC_TAKES);
            }
            // A sync that was begun late goes on for as long as it was to take.
            world.pass(lasts)?;
        }
    }
    let over = world.elapsed();
    world.pass(2 * ttl + Duration::from_secs(3))?;
    let end = world.elapsed();
    for (number, last) in holders.iter().enumerate() {
        let last = acted(last).unwrap_or_default();
        // Stopped believing during the stall, or still believes.
        let lived_on = last + Duration::from_millis(500) > end;
        if last > over + HEARD_WITHIN && !lived_on {
            return Err(broken(
                "expiry_in_time",
                None,
                format!(
                    "holder {} of round {round} was believed in until {last:?}, after the stall that ended at {over:?}, and then lost",
                    number + 1
                ),
            ));
        }
    }
    stop.store(true, Ordering::Relaxed);
    world.pass(Duration::from_secs(2))
}

fn acted(last: &LastAct) -> Option<Duration> {
    *last.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Holds the lock and acts as its holder for as long as its guard says that it is.
async fn hold(
    client: &Client,
    lock: &str,
    ttl: Duration,
    record: &Record,
    stop: &AtomicBool,
    last: &LastAct,
) {
    let options = SessionOptions::new("holder", ttl);
    loop {
        let Ok(session) = client.open_session(options.clone()).await else {
            continue;
        };
        let Ok(guard) = session.acquire(lock, AcquireOptions::default()).await else {
            continue;
        };
        while guard.is_valid() && !stop.load(Ordering::Relaxed) {
            record.act(lock, guard.token().0, "holder");
            *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(record.now());
            client.env().clock.sleep(ACT_EVERY).await;
        }
        if !guard.is_valid() {
            record.note(format_args!(
                "the holder of {lock} stops: {:?}",
                guard.loss()
            ));
        }
        // Whatever comes of it: the session ends by itself.
        let _ = session.close().await;
        return;
    }
}

/// Waits for the lock, and acts as its holder once it is granted.
async fn want(client: &Client, lock: &str, record: &Record, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let options = AcquireOptions::wait(Duration::from_secs(20)).ttl(Duration::from_secs(4));
        if let Ok(guard) = client.acquire(lock, "rival", options).await {
            if guard.is_valid() {
                record.act(lock, guard.token().0, "rival");
            }
            let _ = guard.release().await;
            return;
        }
    }
}
