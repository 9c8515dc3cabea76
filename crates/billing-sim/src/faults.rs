//! Decides how each fault is brought about and how it ends: what breaks, for how long, and what is put right afterwards. Which
//! faults there are in a run, and when, the scenario decides.

use std::time::Duration;

use anyhow::Result;
use billing_sandbox::Faults as Misbehaviour;
use billing_store::sim::{Crash, Fault as DiskFault};

use crate::machines::{PROVIDER, node_name, worker_name};
use crate::pauses::CHARGE_PLACES;
use crate::profile;
use crate::world::{LATENCY_MAX, World};

/// One kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A node is cut off from everybody.
    NodeCutOff,
    /// What one node sends does not reach another; the other way it does.
    OneWay,
    /// Two nodes do not reach each other, and both reach the rest.
    Bridge,
    /// A client does not reach the leader, and reaches the others.
    ClientCutOff,
    /// A worker does not reach the provider.
    ProviderCutOff,
    /// A node's process stops, and goes on.
    NodeStopped,
    /// A client's process stops, and goes on.
    ClientStopped,
    /// A client's machine sleeps: its monotonic clock does not count that.
    ClientSuspended,
    /// A worker stalls exactly between two steps of a charge.
    WorkerStalls,
    /// A node's process is killed; its disk loses what was not synced, in part or whole.
    NodeKilled,
    /// All nodes lose power at once.
    PowerLoss,
    /// A worker is killed and starts again: a new gate.
    WorkerKilled,
    CallerKilled,
    /// A node's disk fails or is full, until somebody repairs it.
    DiskFails,
    /// A node's disk cannot be read, until somebody repairs it.
    ReadsFail,
    /// A node's syncs take long.
    DiskSlow,
    /// A wall clock jumps by an hour, or a year.
    WallJumps,
    /// A clock runs fast or slow, within what is declared.
    Drift,
    /// Messages are lost.
    Loss,
    /// Messages take long, and overtake each other.
    Delay,
    /// What is on its way between a client and a node arrives a minute later.
    LateMessages,
    /// The provider loses replies, answers with errors, declines, works slowly.
    ProviderMisbehaves,
    /// A leader is told to hand over.
    TransferLeader,
    Snapshot,
    ForceRelease,
    /// Somebody cancels, requeues or resolves an invoice.
    PersonActs,
}

impl Kind {
    /// Those that every swarm draws from. The kept seeds mean what they mean by this list.
    pub const ALL: [Kind; 25] = [
        Kind::NodeCutOff,
        Kind::OneWay,
        Kind::Bridge,
        Kind::ClientCutOff,
        Kind::ProviderCutOff,
        Kind::NodeStopped,
        Kind::ClientStopped,
        Kind::ClientSuspended,
        Kind::WorkerStalls,
        Kind::NodeKilled,
        Kind::PowerLoss,
        Kind::WorkerKilled,
        Kind::CallerKilled,
        Kind::DiskFails,
        Kind::DiskSlow,
        Kind::WallJumps,
        Kind::Drift,
        Kind::Loss,
        Kind::Delay,
        Kind::LateMessages,
        Kind::ProviderMisbehaves,
        Kind::TransferLeader,
        Kind::Snapshot,
        Kind::ForceRelease,
        Kind::PersonActs,
    ];
}

/// What puts a fault right.
#[derive(Debug, Clone)]
enum Cure {
    Reach(String, String),
    Release(String, String),
    Thaw(String),
    Start(u64),
    Repair(u64),
    SyncTakes(u64),
    Wall(String),
    Rate(String),
    NoLoss,
    NoDelay,
    Behave,
}

/// The faults that are on, each with its end.
#[derive(Default)]
pub struct Faults {
    due: Vec<(Duration, Cure)>,
}

impl Faults {
    fn later(&mut self, world: &World, after: Duration, cure: Cure) {
        self.due.push((world.elapsed() + after, cure));
    }

    /// Puts right what is due by now.
    pub fn cure_due(&mut self, world: &mut World) -> Result<()> {
        let now = world.elapsed();
        let (due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.due)
            .into_iter()
            .partition(|(at, _)| *at <= now);
        self.due = later;
        for (_, cure) in due {
            put_right(world, &cure)?;
        }
        Ok(())
    }

    /// The nodes' disks are no more, and whoever would have repaired one or started its node again does not. Other machines are
    /// taken, under the same names: their clocks may be as wrong, and stopped they are not.
    pub fn nodes_are_lost(&mut self, world: &mut World) {
        let of_a_node = |cure: &Cure| matches!(cure, Cure::Start(_) | Cure::Repair(_));
        self.due.retain(|(_, cure)| !of_a_node(cure));
        let ids: Vec<u64> = world.hosts.keys().copied().collect();
        for id in ids {
            world.hosts[&id].disk.set_fault(DiskFault::None);
            if world.machines()[&node_name(id)].clock.is_stopped() {
                world.thaw(&node_name(id));
            }
        }
    }

    /// Ends what keeps messages from arriving, and whoever they are for from hearing them.
    pub fn let_arrive(&mut self, world: &mut World) -> Result<()> {
        let keeps = |cure: &Cure| matches!(cure, Cure::Release(..) | Cure::Thaw(_) | Cure::NoDelay);
        let (now, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.due)
            .into_iter()
            .partition(|(_, cure)| keeps(cure));
        self.due = later;
        for (_, cure) in now {
            put_right(world, &cure)?;
        }
        Ok(())
    }

    /// Puts everything right.
    pub fn cure_all(&mut self, world: &mut World) -> Result<()> {
        for (_, cure) in std::mem::take(&mut self.due) {
            put_right(world, &cure)?;
        }
        let down: Vec<u64> = world
            .hosts
            .iter()
            .filter(|(_, host)| host.node().is_none())
            .map(|(&id, _)| id)
            .collect();
        for id in down {
            put_right(world, &Cure::Repair(id))?;
        }
        for machine in world.machines().values() {
            machine.pauses.forget();
        }
        world.note(format_args!("no more faults"));
        Ok(())
    }

    fn cut(&mut self, world: &mut World, a: &str, b: &str, lasts: Duration) {
        world.network().partition(a, b);
        self.later(world, lasts, Cure::Reach(a.to_owned(), b.to_owned()));
        world.note(format_args!(
            "{a} and {b} do not reach each other for {lasts:?}"
        ));
    }

    /// Brings one about, somewhere. Nothing happens where it would make no sense at the moment.
    pub fn bring(&mut self, world: &mut World, kind: Kind) -> Result<()> {
        let nodes: Vec<u64> = world.hosts.keys().copied().collect();
        let running: Vec<u64> = nodes
            .iter()
            .copied()
            .filter(|id| world.hosts[id].node().is_some())
            .collect();
        let leader = world.leads_now();
        // The leader more often than not: what happens to it matters.
        let node = match leader {
            Some(leader) if world.chance.below(10) < 6 => Some(leader),
            _ => world.chance.pick(&running),
        };
        let workers: Vec<String> = world.workers.keys().map(|&n| worker_name(n)).collect();
        let callers: Vec<String> = world
            .callers
            .values()
            .map(|caller| caller.machine.name.clone())
            .collect();
        let clients: Vec<String> = workers.iter().chain(&callers).cloned().collect();
        let everybody: Vec<String> = world.machines().keys().cloned().collect();
        match kind {
            Kind::NodeCutOff => {
                let Some(node) = node else { return Ok(()) };
                let (name, lasts) = (node_name(node), world.chance.between_ms(500, 15_000));
                let others = everybody.iter().filter(|other| **other != name);
                for other in others.cloned().collect::<Vec<_>>() {
                    world.network().partition(name.as_str(), other.as_str());
                    self.later(world, lasts, Cure::Reach(name.clone(), other));
                }
                world.note(format_args!("{name} is cut off for {lasts:?}"));
            }
            Kind::OneWay => {
                let (Some(from), Some(to)) = (node, world.chance.pick(&nodes)) else {
                    return Ok(());
                };
                if from != to {
                    let (from, to) = (node_name(from), node_name(to));
                    let lasts = world.chance.between_ms(500, 15_000);
                    world.network().partition_oneway(from.as_str(), to.as_str());
                    world.note(format_args!("{from} does not reach {to} for {lasts:?}"));
                    self.later(world, lasts, Cure::Reach(from, to));
                }
            }
            Kind::Bridge => {
                let (Some(a), Some(b)) = (node, world.chance.pick(&nodes)) else {
                    return Ok(());
                };
                if a != b {
                    let lasts = world.chance.between_ms(1_000, 20_000);
                    self.cut(world, &node_name(a), &node_name(b), lasts);
                }
            }
            Kind::ClientCutOff => {
                let (Some(client), Some(node)) = (world.chance.pick(&clients), node) else {
                    return Ok(());
                };
                let lasts = world.chance.between_ms(500, 15_000);
                self.cut(world, &client, &node_name(node), lasts);
            }
            Kind::ProviderCutOff => {
                let Some(worker) = world.chance.pick(&workers) else {
                    return Ok(());
                };
                let lasts = world.chance.between_ms(500, 10_000);
                self.cut(world, &worker, PROVIDER, lasts);
            }
            Kind::NodeStopped => {
                let Some(node) = node else { return Ok(()) };
                self.stop(world, &node_name(node), false, 300, 12_000);
            }
            Kind::ClientStopped | Kind::ClientSuspended => {
                let Some(client) = world.chance.pick(&clients) else {
                    return Ok(());
                };
                let most = most_before_a_send(world, workers.contains(&client));
                let most_ms = u64::try_from(most.as_millis())
                    .unwrap_or(u64::MAX)
                    .min(20_000);
                self.stop(world, &client, kind == Kind::ClientSuspended, 300, most_ms);
            }
            Kind::WorkerStalls => {
                let numbers: Vec<u64> = world.workers.keys().copied().collect();
                let (Some(number), Some(place)) = (
                    world.chance.pick(&numbers),
                    world.chance.pick(&CHARGE_PLACES),
                ) else {
                    return Ok(());
                };
                // Mostly past the session's end; now and then past the provider's memory of the key.
                let lasts = match world.chance.below(6) {
                    0 => profile::KEY_RETENTION + world.chance.between_ms(0, 20_000),
                    1 => profile::VALID_FOR + world.chance.between_ms(0, 5_000),
                    _ => world.chance.between_ms(500, 8_000),
                };
                let lasts = lasts.min(most_before_a_send(world, place == "checked"));
                world.workers[&number].machine.pauses.stall_at(place, lasts);
            }
            Kind::NodeKilled => {
                let Some(node) = node.filter(|_| running.len() == nodes.len()) else {
                    return Ok(());
                };
                self.kill(world, node)?;
            }
            Kind::PowerLoss => {
                for node in running {
                    self.kill(world, node)?;
                }
            }
            Kind::WorkerKilled | Kind::CallerKilled => {
                let among = if kind == Kind::WorkerKilled {
                    &workers
                } else {
                    &callers
                };
                if let Some(client) = world.chance.pick(among) {
                    // A process that is stopped is killed all the same, and its successor runs.
                    if world.machines()[&client].clock.is_stopped() {
                        world.thaw(&client);
                    }
                    world.bounce_client(&client);
                }
            }
            Kind::DiskFails | Kind::ReadsFail => {
                let Some(node) = node.filter(|_| running.len() == nodes.len()) else {
                    return Ok(());
                };
                let fault = match kind {
                    Kind::ReadsFail => DiskFault::Unreadable,
                    _ if world.chance.below(2) == 0 => DiskFault::Broken,
                    _ => DiskFault::Full,
                };
                world.hosts[&node].disk.set_fault(fault);
                world.may_end.insert(node);
                let lasts = world.chance.between_ms(2_000, 15_000);
                world.note(format_args!(
                    "the disk of node {node} is {fault:?} for {lasts:?}"
                ));
                self.later(world, lasts, Cure::Repair(node));
                // Who only runs reads little.
                if kind == Kind::ReadsFail && world.chance.below(2) == 0 {
                    self.kill(world, node)?;
                }
            }
            Kind::DiskSlow => {
                let Some(node) = node else { return Ok(()) };
                let (sync, lasts) = (
                    world.chance.between_ms(20, 400),
                    world.chance.between_ms(1_000, 10_000),
                );
                world.hosts[&node].disk.set_sync_takes(sync);
                world.note(format_args!(
                    "a sync of node {node} takes {sync:?} for {lasts:?}"
                ));
                self.later(world, lasts, Cure::SyncTakes(node));
            }
            Kind::WallJumps => {
                let Some(name) = world.chance.pick(&everybody) else {
                    return Ok(());
                };
                const HOUR_MS: i64 = 3_600_000;
                let by = world
                    .chance
                    .pick(&[HOUR_MS, -HOUR_MS, 24 * 365 * HOUR_MS, 40_000]);
                let (by, lasts) = (
                    by.unwrap_or(HOUR_MS),
                    world.chance.between_ms(1_000, 60_000),
                );
                if !wall_may_be_wrong(world, &name) {
                    return Ok(());
                }
                world.machines()[&name].clock.set_wall_offset_ms(by);
                world.note(format_args!(
                    "the wall clock of {name} is off by {by} ms for {lasts:?}"
                ));
                self.later(world, lasts, Cure::Wall(name));
            }
            Kind::Drift => {
                let Some(name) = world.chance.pick(&everybody) else {
                    return Ok(());
                };
                let ppm = if world.promises.clocks_keep_drift {
                    world.chance.pick(&[9_000, -9_000, 500, -500])
                } else {
                    world.chance.pick(&[100_000, -100_000, 1_000_000, -500_000])
                };
                let (ppm, lasts) = (ppm.unwrap_or(500), world.chance.between_ms(5_000, 60_000));
                let clock = &world.machines()[&name].clock;
                clock.at(world.elapsed());
                clock.set_rate_ppm(ppm);
                world.note(format_args!(
                    "the clock of {name} runs fast by {ppm} ppm for {lasts:?}"
                ));
                self.later(world, lasts, Cure::Rate(name));
            }
            Kind::Loss => {
                let share = 0.001 * (1 + world.chance.below(20)) as f64;
                let lasts = world.chance.between_ms(1_000, 8_000);
                world.network().set_fail_rate(share);
                world.note(format_args!(
                    "{share:.3} of the messages are lost for {lasts:?}"
                ));
                self.later(world, lasts, Cure::NoLoss);
            }
            Kind::Delay => {
                let (most, lasts) = (
                    world.chance.between_ms(30, 900),
                    world.chance.between_ms(1_000, 10_000),
                );
                world.network().set_max_message_latency(most);
                world.note(format_args!("messages take up to {most:?} for {lasts:?}"));
                self.later(world, lasts, Cure::NoDelay);
            }
            Kind::LateMessages => {
                let (Some(client), Some(node)) = (world.chance.pick(&clients), node) else {
                    return Ok(());
                };
                let (node, lasts) = (node_name(node), world.chance.between_ms(5_000, 90_000));
                world.network().hold(client.as_str(), node.as_str());
                world.note(format_args!(
                    "what {client} and {node} send each other arrives {lasts:?} later"
                ));
                self.later(world, lasts, Cure::Release(client, node));
            }
            Kind::ProviderMisbehaves => {
                let share = |world: &World| 0.05 * world.chance.below(9) as f64;
                let usual = profile::sandbox(world.setting.provider, 0).faults;
                let slow = world.chance.below(3) == 0;
                let faults = Misbehaviour {
                    delay_ms: if slow { 1..=3_000 } else { 1..=100 },
                    reply_delay_ms: if slow { 0..=1_500 } else { 0..=100 },
                    lose_reply_share: share(world),
                    error_before_share: share(world),
                    error_after_share: share(world),
                    garble_share: share(world),
                    decline_share: share(world) / 4.0,
                    ..usual
                };
                let lasts = world.chance.between_ms(2_000, 20_000);
                world.note(format_args!(
                    "the provider misbehaves for {lasts:?}: {faults:?}"
                ));
                world.provider.set_faults(faults);
                self.later(world, lasts, Cure::Behave);
            }
            Kind::TransferLeader => {
                drop(world.desk_begin(|client| async move {
                    client.transfer_leader(None).await.is_ok()
                }));
                world.note(format_args!("the leader is told to hand over"));
            }
            Kind::Snapshot => {
                let Some(node) = world.chance.pick(&running) else {
                    return Ok(());
                };
                drop(world.begin(
                    node,
                    |node| async move { node.take_snapshot().await.is_ok() },
                ));
                world.note(format_args!("node {node} is told to take a snapshot"));
            }
            Kind::ForceRelease => {
                let Some(invoice) = some_invoice(world) else {
                    return Ok(());
                };
                world.note(format_args!("somebody force-releases {invoice}"));
                drop(world.desk_begin(move |client| async move {
                    client.force_release(&invoice, "drill").await.is_ok()
                }));
            }
            Kind::PersonActs => self.person(world),
        }
        Ok(())
    }

    fn stop(&mut self, world: &mut World, name: &str, suspended: bool, from_ms: u64, to_ms: u64) {
        if world.machines()[name].clock.is_stopped() {
            return;
        }
        let lasts = world.chance.between_ms(from_ms, to_ms);
        world.freeze(name, suspended);
        self.later(world, lasts, Cure::Thaw(name.to_owned()));
    }

    fn kill(&mut self, world: &mut World, node: u64) -> Result<()> {
        let unsynced = world.hosts[&node].disk.unsynced() as u64;
        let crash = Crash {
            batches_kept: usize::try_from(world.chance.below(unsynced + 1))?,
            tear_high: world.chance.below(4) == 0,
        };
        if world.machines()[&node_name(node)].clock.is_stopped() {
            world.thaw(&node_name(node));
        }
        world.crash_as(node, crash)?;
        let down = world.chance.between_ms(100, 8_000);
        self.later(world, down, Cure::Start(node));
        Ok(())
    }

    /// Somebody who looked at the provider's books cancels, requeues or resolves an invoice.
    fn person(&mut self, world: &mut World) {
        let Some(invoice) = some_invoice(world) else {
            return;
        };
        let charged = world
            .provider
            .books()
            .of(&invoice)
            .into_iter()
            .any(|row| row.succeeded);
        let what = world.chance.below(3);
        world.note(format_args!(
            "a person acts on {invoice}: {what}, charged={charged}"
        ));
        drop(world.desk_begin(move |client| async move {
            match what {
                0 => client.cancel_invoice(&invoice, "not wanted").await.is_ok(),
                1 => client.requeue_invoice(&invoice, "try again").await.is_ok(),
                _ => {
                    let Ok(read) = client.get_invoice(&invoice, false).await else {
                        return false;
                    };
                    let Some(attempt) = read.open_attempt.filter(|_| !charged) else {
                        return false;
                    };
                    let key = &attempt.idempotency_key;
                    let word = client.resolve_charge(&invoice, key, None, "the books");
                    word.await.is_ok()
                }
            }
        }));
    }
}

/// Between the gate's check and its send nothing helps but a provider with single-use objects: elsewhere no send may come
/// later than was promised (DESIGN §5), and a stop may fall just there.
fn most_before_a_send(world: &World, may_fall_there: bool) -> Duration {
    if may_fall_there && world.setting.provider != profile::Provider::Objects {
        Duration::from_millis(500)
    } else {
        Duration::MAX
    }
}

/// Without single-use objects a send may come too late where ClusterTime stands still and the wall clocks of a majority are wrong
/// together (DESIGN §4): nobody is left who could tell.
fn wall_may_be_wrong(world: &World, name: &str) -> bool {
    let nodes: Vec<String> = world.hosts.keys().map(|&id| node_name(id)).collect();
    if world.setting.provider == profile::Provider::Objects || nodes.iter().all(|node| node != name)
    {
        return true;
    }
    let wrong = nodes
        .iter()
        .filter(|node| *node == name || world.machines()[*node].clock.wall_offset_ms() != 0);
    2 * wrong.count() < nodes.len()
}

fn some_invoice(world: &World) -> Option<String> {
    let invoices: Vec<String> = world.invoices.keys().cloned().collect();
    world.chance.pick(&invoices)
}

fn put_right(world: &mut World, cure: &Cure) -> Result<()> {
    match cure {
        Cure::Reach(a, b) => {
            world.network().repair(a.as_str(), b.as_str());
        }
        Cure::Release(a, b) => {
            world.network().release(a.as_str(), b.as_str());
        }
        Cure::Thaw(name) => {
            if world.machines()[name].clock.is_stopped() {
                world.thaw(name);
            }
        }
        Cure::Start(id) => {
            if world.hosts[id].node().is_none() {
                world.restart(*id);
            }
        }
        Cure::Repair(id) => {
            // It may have ended since the last look.
            world.look()?;
            world.hosts[id].disk.set_fault(DiskFault::None);
            if world.hosts[id].node().is_none() {
                world.restart(*id);
            }
            world.put_right(*id);
        }
        Cure::SyncTakes(id) => world.hosts[id]
            .disk
            .set_sync_takes(crate::machines::node::SYNC_TAKES),
        Cure::Wall(name) => world.machines()[name].clock.set_wall_offset_ms(0),
        Cure::Rate(name) => {
            let clock = &world.machines()[name].clock;
            clock.at(world.elapsed());
            clock.set_rate_ppm(0);
        }
        Cure::NoLoss => world.network().set_fail_rate(0.0),
        Cure::NoDelay => world.network().set_max_message_latency(LATENCY_MAX),
        Cure::Behave => {
            let usual = profile::sandbox(world.setting.provider, 0).faults;
            world.provider.set_faults(usual);
        }
    }
    world.note(format_args!("put right: {cure:?}"));
    Ok(())
}
