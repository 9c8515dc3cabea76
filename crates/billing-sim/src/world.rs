//! Decides what happens in a simulation, step by step: the driver of every scenario. Conditions are awaited in simulated
//! time, every property is asked after every few steps, and what the application did goes into the trace.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Result, anyhow, bail};
use billing_client::Client;
use billing_core::{AuditRecord, InvoiceId, What};
use billing_server::node::{Consistency, Node, NodeStatus, Role};
use billing_server::raft::seed_this_thread;
use billing_store::sim::Crash;
use futures::FutureExt;
use tokio::sync::oneshot;
use turmoil::{Builder, Sim};

use crate::chance::Chance;
use crate::clock::{EPOCH_S, true_wall_ms};
use crate::machines::caller::{Caller, CallerSettings};
use crate::machines::desk::Desk;
use crate::machines::node::{Host, NodeSettings};
use crate::machines::provider::ProviderHost;
use crate::machines::worker::{Worker, WorkerSettings};
use crate::machines::{DESK, Machine, PROVIDER, caller_name, node_name, worker_name};
use crate::profile::{self, Promises, Provider};
use crate::properties::{self, Broken, End, Moment, NodeView, Property, Verdict};
use crate::record::Record;
use crate::replay::Replay;

const TICK: Duration = Duration::from_millis(1);
const LATENCY_MIN: Duration = Duration::from_millis(1);
pub const LATENCY_MAX: Duration = Duration::from_millis(8);
const TCP_CAPACITY: usize = 65_536;
/// Simulated; a scenario that needs longer hangs.
const DURATION_MAX: Duration = Duration::from_secs(24 * 3_600);
const PATIENCE: Duration = Duration::from_secs(60);
/// Steps between two looks of the properties. What a look sees has happened since the last one.
const LOOK_EVERY: u32 = 20;
/// Looks between two readings of the provider's books.
const BOOKS_EVERY: u32 = 25;
/// Records taken from one node at one look.
const RECORDS_MAX: usize = 1_000;
/// After a node died with records that nobody had seen: others have applied them by then.
const BLIND_FOR: Duration = Duration::from_secs(10);
/// From a write that failed until its process ends, where its disk is slow.
const NOTICED_WITHIN: Duration = Duration::from_secs(1);
/// tokio keeps its tasks in shards by id: a crash destroys them in an order that depends on where the ids begin.
const TASK_IDS_ALIGNED: u64 = 64;
/// Clients allow for 1 % of drift (§4); this is well inside.
const DRIFT_PPM_MAX: u64 = 2_000;

/// What a world begins with.
#[derive(Debug, Clone)]
pub struct Setting {
    pub nodes: u64,
    pub workers: u64,
    pub callers: u64,
    pub provider: Provider,
    pub node: NodeSettings,
    pub locks: u64,
    pub by_hand: u64,
    pub worker_ttl: Duration,
    /// What clients allow for as the drift of clocks.
    pub drift_declared: f64,
}

impl Default for Setting {
    fn default() -> Setting {
        Setting {
            nodes: 3,
            workers: 0,
            callers: 0,
            provider: Provider::Objects,
            node: NodeSettings {
                snapshot_every: 200,
                log_kept: 50,
            },
            locks: 3,
            by_hand: 0,
            worker_ttl: Duration::from_secs(3),
            drift_declared: 0.01,
        }
    }
}

/// A record of the audit log, and when the first node applied it: between two looks.
#[derive(Debug, Clone)]
pub struct Seen {
    pub not_before: Duration,
    pub at: Duration,
    pub record: AuditRecord,
}

/// A cluster, its clients and a provider in a simulated world.
pub struct World {
    sim: Sim<'static>,
    pub seed: u64,
    pub setting: Setting,
    pub hosts: BTreeMap<u64, Arc<Host>>,
    pub workers: BTreeMap<u64, Arc<Worker>>,
    pub callers: BTreeMap<u64, Arc<Caller>>,
    pub provider: Arc<ProviderHost>,
    pub desk: Arc<Desk>,
    /// Every machine, by name.
    machines: BTreeMap<String, Machine>,
    pub chance: Chance,
    pub record: Record,
    pub promises: Promises,
    /// The invoices that workers charge, with what is owed.
    pub invoices: BTreeMap<String, u64>,
    /// Nodes whose process has a reason to go through the fail-stop door.
    pub may_end: BTreeSet<u64>,
    /// Until when one may still end for a reason that is put right: what failed may be noticed later.
    excused: BTreeMap<u64, Duration>,
    /// Nodes whose state is known to be wrong: what they say is no evidence.
    pub wrong: BTreeSet<u64>,
    /// The greatest id of a node so far.
    id_last: u64,
    properties: Vec<Box<dyn Property>>,
    replay: Replay,
    /// Every record of the audit log.
    records: Vec<Seen>,
    /// When all nodes were last looked at, and whether one died unseen since: its last records may be older than they seem.
    looked: Duration,
    blind: Option<(Duration, Duration)>,
    /// How far each node's records were taken.
    taken: BTreeMap<u64, u64>,
    roles: BTreeMap<u64, (Role, u64)>,
    steps: u32,
    looks: u32,
}

fn drift(chance: &Chance) -> i64 {
    let drawn = i64::try_from(chance.below(2 * DRIFT_PPM_MAX + 1)).unwrap_or(0);
    drawn - i64::try_from(DRIFT_PPM_MAX).unwrap_or(0)
}

impl World {
    /// Machines that are about to found a cluster, to want its leases, and to charge.
    pub fn new(seed: u64, setting: Setting) -> Result<World> {
        align_task_ids()?;
        seed_this_thread(seed);
        let chance = Chance::new(seed, "world");
        let record = Record::default();
        let mut sim = Builder::new()
            .rng_seed(seed)
            .epoch(UNIX_EPOCH + Duration::from_secs(EPOCH_S))
            .tick_duration(TICK)
            .simulation_duration(DURATION_MAX)
            .min_message_latency(LATENCY_MIN)
            .max_message_latency(LATENCY_MAX)
            .tcp_capacity(TCP_CAPACITY)
            .enable_random_order()
            .build();
        let machine = |name: String| Machine::new(name, seed, drift(&chance), record.clone());
        let sandbox = profile::sandbox(setting.provider, seed);
        let provider = Arc::new(ProviderHost::new(machine(PROVIDER.to_owned()), sandbox)?);
        let desk = Arc::new(Desk::new(machine(DESK.to_owned()), setting.nodes));
        {
            let (provider, desk) = (provider.clone(), desk.clone());
            sim.host(PROVIDER, move || provider.clone().run());
            sim.host(DESK, move || desk.clone().run());
        }
        let mut world = World {
            sim,
            seed,
            hosts: BTreeMap::new(),
            workers: BTreeMap::new(),
            callers: BTreeMap::new(),
            machines: [&provider.machine, &desk.machine]
                .map(|machine| (machine.name.clone(), machine.clone()))
                .into(),
            provider,
            desk,
            promises: profile::promises(setting.provider),
            setting,
            chance,
            record,
            invoices: BTreeMap::new(),
            may_end: BTreeSet::new(),
            excused: BTreeMap::new(),
            wrong: BTreeSet::new(),
            id_last: 0,
            properties: properties::all(),
            replay: Replay::default(),
            records: Vec::new(),
            looked: Duration::ZERO,
            blind: None,
            taken: BTreeMap::new(),
            roles: BTreeMap::new(),
            steps: 0,
            looks: 0,
        };
        for id in 1..=world.setting.nodes {
            world.add_node(id);
        }
        for number in 1..=world.setting.workers {
            world.add_worker(number)?;
        }
        for number in 1..=world.setting.callers {
            world.add_caller(number);
        }
        Ok(world)
    }

    fn machine(&mut self, name: String) -> Machine {
        let drift = drift(&self.chance);
        let machine = Machine::new(name.clone(), self.seed, drift, self.record.clone());
        self.machines.insert(name, machine.clone());
        machine
    }

    /// A new machine with an empty disk; beyond the founding ones it waits to be added.
    pub fn add_node(&mut self, id: u64) {
        let machine = self.machine(node_name(id));
        let host = Arc::new(Host::new(
            id,
            self.setting.nodes,
            machine,
            self.setting.node,
        ));
        let running = host.clone();
        self.sim.host(node_name(id), move || running.clone().run());
        self.hosts.insert(id, host);
        self.id_last = self.id_last.max(id);
    }

    /// The greatest id that a node ever had.
    pub fn ids_used(&self) -> u64 {
        self.id_last
    }

    fn add_worker(&mut self, number: u64) -> Result<()> {
        let settings = WorkerSettings {
            nodes: self.setting.nodes,
            session_ttl: self.setting.worker_ttl,
            concurrency: 4,
            gate: profile::gate_config(self.setting.provider)?,
            drift: self.setting.drift_declared,
        };
        let machine = self.machine(worker_name(number));
        let worker = Arc::new(Worker::new(machine, settings));
        let running = worker.clone();
        self.sim
            .host(worker_name(number), move || running.clone().run());
        self.workers.insert(number, worker);
        Ok(())
    }

    fn add_caller(&mut self, number: u64) {
        let named = |kind: &str, count: u64| (1..=count).map(|n| format!("{kind}-{n}")).collect();
        let settings = CallerSettings {
            nodes: self.setting.nodes,
            locks: named("lock", self.setting.locks),
            by_hand: named("hand", self.setting.by_hand),
            drift: self.setting.drift_declared,
        };
        let machine = self.machine(caller_name(number));
        let caller = Arc::new(Caller::new(machine, number, settings));
        let running = caller.clone();
        self.sim
            .host(caller_name(number), move || running.clone().run());
        self.callers.insert(number, caller);
    }

    /// Asks no property but this one. What scenarios watch themselves, they watch.
    pub fn ask_only(&mut self, property: &str) -> Result<()> {
        self.properties.retain(|asked| asked.name() == property);
        if self.properties.is_empty() {
            bail!("there is no property {property}");
        }
        Ok(())
    }

    /// A machine that is never used again: its process ends, and nobody waits for it any more.
    pub fn retire(&mut self, id: u64) {
        self.end_process(id, Crash::default());
        self.hosts.remove(&id);
        self.machines.remove(&node_name(id));
        self.note(format_args!("node {id} is out of use"));
    }

    pub fn elapsed(&self) -> Duration {
        self.sim.elapsed()
    }

    /// Puts an event into the trace.
    pub fn note(&self, event: std::fmt::Arguments<'_>) {
        self.record.note(event);
    }

    pub fn replay(&self) -> &Replay {
        &self.replay
    }

    /// Every record of the audit log.
    pub fn records(&self) -> &[Seen] {
        &self.records
    }

    /// Every machine in use, by name.
    pub fn machines(&self) -> &BTreeMap<String, Machine> {
        &self.machines
    }

    /// One tick of every machine and of the network.
    pub fn step(&mut self) -> Result<()> {
        self.sim
            .step()
            .map_err(|error| anyhow!("a host ended: {error}"))?;
        self.record.at(self.sim.elapsed());
        self.steps += 1;
        if self.steps.is_multiple_of(LOOK_EVERY) {
            self.look()?;
        }
        Ok(())
    }

    /// Asks every property. Machines whose process went through the fail-stop door are dead from here on.
    pub fn look(&mut self) -> Result<()> {
        let now = self.sim.elapsed();
        self.looks += 1;
        for machine in self.machines.values() {
            machine.clock.at(now);
        }
        self.bury()?;
        let mut nodes = BTreeMap::new();
        let mut applied = Vec::new();
        for (&id, host) in &self.hosts {
            let Some(node) = host.node() else { continue };
            let status = node.status();
            let role = (status.role, status.term);
            if self.roles.insert(id, role) != Some(role) && role.0 == Role::Leader {
                self.record
                    .note(format_args!("node {id} leads term {}", role.1));
            }
            if self.wrong.contains(&id) {
                continue;
            }
            let from = self.taken.get(&id).copied().unwrap_or(0) + 1;
            let read = node.read(Consistency::Stale, |ledger| {
                let more = ledger.audit_last_index() >= from;
                let records = more.then(|| ledger.audit(from, RECORDS_MAX).0);
                records.unwrap_or_default()
            });
            // A stale read waits for nothing.
            let Some(Ok((records, _))) = read.now_or_never() else {
                continue;
            };
            if let Some(last) = records.last() {
                self.taken.insert(id, last.index);
            }
            applied.push((id, records));
            nodes.insert(
                id,
                NodeView {
                    state: status.state_hash,
                    cluster_time: status.cluster_time,
                },
            );
        }
        let acts = self.record.take_acts();
        let sends = self.record.take_sends();
        let books = self
            .looks
            .is_multiple_of(BOOKS_EVERY)
            .then(|| self.provider.books());
        let moment = Moment {
            now,
            nodes: &nodes,
            applied: &applied,
            acts: &acts,
            sends: &sends,
            books: books.as_ref(),
            promises: &self.promises,
        };
        for property in &mut self.properties {
            let verdict = property.look(&moment);
            judged(property.name(), verdict)?;
        }
        self.take_in(now, applied)?;
        match self.record.take_broken() {
            Some((property, invoice, what)) => Err(Broken {
                property,
                invoice,
                what,
            }
            .into()),
            None => Ok(()),
        }
    }

    /// Shows each record that is new to everybody to the properties, once.
    fn take_in(&mut self, now: Duration, applied: Vec<(u64, Vec<AuditRecord>)>) -> Result<()> {
        for record in applied.into_iter().flat_map(|(_, records)| records) {
            if record.index != self.records.len() as u64 + 1 {
                continue;
            }
            let (properties, promises) = (&mut self.properties, &self.promises);
            self.replay.step(&record, now, |step| {
                for property in properties.iter_mut() {
                    judged(property.name(), property.step(step, promises))?;
                }
                anyhow::Ok(())
            })?;
            let truly = true_wall_ms(now);
            let off_s = record.wall.0.abs_diff(truly) / 1_000;
            let wall = match off_s {
                0..10 => String::new(),
                _ if record.wall.0 < truly => format!(" wall {off_s} s behind"),
                _ => format!(" wall {off_s} s ahead"),
            };
            self.record.note(format_args!(
                "#{} {} {} token={} {}{wall}",
                record.index,
                record.invoice.as_ref().map_or("-", |id| id.as_str()),
                record.what,
                record.token,
                record
                    .key
                    .as_ref()
                    .map(ToString::to_string)
                    .unwrap_or_default()
            ));
            let not_before = match self.blind {
                Some((since, until)) if now < until => since,
                _ => self.looked,
            };
            self.records.push(Seen {
                not_before: not_before.saturating_sub(TICK),
                at: now + TICK,
                record,
            });
        }
        self.looked = now;
        Ok(())
    }

    /// What was wrong with a node is put right.
    pub fn put_right(&mut self, id: u64) {
        self.may_end.remove(&id);
        self.excused.insert(id, self.sim.elapsed() + NOTICED_WITHIN);
    }

    fn has_reason(&self, id: u64) -> bool {
        let excused = self.excused.get(&id);
        self.may_end.contains(&id) || excused.is_some_and(|&until| self.sim.elapsed() < until)
    }

    /// A process that must not go on does not: whatever of it still waits is destroyed.
    fn bury(&mut self) -> Result<()> {
        let dead: Vec<u64> = self
            .hosts
            .iter()
            .filter(|(_, host)| host.node().is_some() && host.ended().is_some())
            .map(|(&id, _)| id)
            .collect();
        for id in dead {
            let why = self.hosts[&id].ended().unwrap_or_default();
            self.note(format_args!("node {id} ends: {why}"));
            self.blind = Some((self.looked, self.sim.elapsed() + BLIND_FOR));
            self.end_process(id, Crash::default());
            if !self.has_reason(id) {
                let what = format!("node {id} ended without a reason that it was given: {why}");
                return judged("no_end_without_reason", Err((None, what)));
            }
        }
        // One that ended before it ran at all has nothing to be buried.
        let failed = self.hosts.iter().find_map(|(id, host)| {
            let unexpected = host.node().is_none() && !self.has_reason(*id);
            host.ended().filter(|_| unexpected).map(|why| (id, why))
        });
        match failed {
            Some((id, why)) => {
                let what =
                    format!("node {id} does not start, without a reason that it was given: {why}");
                judged("no_end_without_reason", Err((None, what)))
            }
            None => Ok(()),
        }
    }

    /// What the running nodes say of themselves.
    pub fn statuses(&self) -> BTreeMap<u64, NodeStatus> {
        self.hosts
            .iter()
            .filter_map(|(&id, host)| Some((id, host.node()?.status())))
            .collect()
    }

    pub fn status(&self, id: u64) -> Option<NodeStatus> {
        Some(self.hosts.get(&id)?.node()?.status())
    }

    /// Steps until `condition` holds.
    pub fn until(&mut self, what: &str, condition: impl FnMut(&World) -> bool) -> Result<()> {
        self.until_within(PATIENCE, what, condition)
    }

    pub fn until_within(
        &mut self,
        patience: Duration,
        what: &str,
        mut condition: impl FnMut(&World) -> bool,
    ) -> Result<()> {
        let deadline = self.sim.elapsed() + patience;
        while !condition(self) {
            if self.sim.elapsed() > deadline {
                bail!("waited in vain until {what}: {:#?}", self.statuses());
            }
            self.step()?;
        }
        Ok(())
    }

    /// Steps for so long.
    pub fn pass(&mut self, lasts: Duration) -> Result<()> {
        let end = self.sim.elapsed() + lasts;
        while self.sim.elapsed() < end {
            self.step()?;
        }
        Ok(())
    }

    /// Begins `work` on a node's machine, and does not wait for it.
    pub fn begin<T, F, Fut>(&self, id: u64, work: F) -> Result<oneshot::Receiver<T>>
    where
        T: Send + 'static,
        F: FnOnce(Node) -> Fut + Send + 'static,
        Fut: Future<Output = T> + Send + 'static,
    {
        let (done, result) = oneshot::channel();
        let host = self.hosts.get(&id).ok_or_else(|| anyhow!("no host {id}"))?;
        let given = host.give(Box::new(move |node| {
            let work = work(node);
            Box::pin(async move {
                // The driver may have lost interest.
                let _ = done.send(work.await);
            })
        }));
        if given {
            Ok(result)
        } else {
            bail!("node {id} does not run")
        }
    }

    /// Runs `work` on a node's machine and steps until it is done.
    pub fn on<T, F, Fut>(&mut self, id: u64, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(Node) -> Fut + Send + 'static,
        Fut: Future<Output = T> + Send + 'static,
    {
        let mut result = self.begin(id, work)?;
        let mut found = None;
        self.until("a call on a node returns", |_| {
            found = result.try_recv().ok();
            found.is_some()
        })?;
        found.ok_or_else(|| anyhow!("node {id} ended during a call"))
    }

    /// Begins what an operator does, and does not wait for it.
    pub fn desk_begin<T, F, Fut>(&self, work: F) -> Result<oneshot::Receiver<T>>
    where
        T: Send + 'static,
        F: FnOnce(Client) -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
    {
        let (done, result) = oneshot::channel();
        let given = self.desk.give(Box::new(move |client| {
            let work = work(client);
            Box::pin(async move {
                let _ = done.send(work.await);
            })
        }));
        if given {
            Ok(result)
        } else {
            bail!("the desk takes no more jobs")
        }
    }

    /// Runs what an operator does, and steps until it is done.
    pub fn desk_do<T, F, Fut>(&mut self, what: &str, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(Client) -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
    {
        self.pass(TICK)?;
        let mut result = self.desk_begin(work)?;
        let mut found = None;
        self.until_within(Duration::from_secs(120), what, |_| {
            found = result.try_recv().ok();
            found.is_some()
        })?;
        found.ok_or_else(|| anyhow!("the desk did not {what}"))
    }

    /// The node that leads and that `among` all follow, once there is one.
    pub fn leader(&mut self, among: &[u64]) -> Result<u64> {
        let mut leader = None;
        self.until("a leader is agreed upon", |world| {
            let statuses: Vec<_> = among.iter().filter_map(|&id| world.status(id)).collect();
            leader = statuses
                .iter()
                .find(|status| status.role == Role::Leader)
                .map(|status| status.node);
            statuses.len() == among.len()
                && leader.is_some()
                && statuses
                    .iter()
                    .all(|status| status.leader.as_ref().map(|hint| hint.node) == leader)
        })?;
        leader.ok_or_else(|| anyhow!("no leader"))
    }

    /// A node that believes that it leads, if there is one now; the one of the highest term.
    pub fn leads_now(&self) -> Option<u64> {
        self.statuses()
            .values()
            .filter(|status| status.role == Role::Leader)
            .max_by_key(|status| status.term)
            .map(|status| status.node)
    }

    /// Steps until every machine knows the ledger.
    pub fn bootstrapped(&mut self) -> Result<()> {
        self.until("the ledger is bootstrapped everywhere", |world| {
            let statuses = world.statuses();
            statuses.len() == world.hosts.len()
                && statuses.values().all(|status| status.ledger_id.is_some())
        })
    }

    /// Steps until all running nodes have applied equally far and none has more in its log.
    pub fn settled(&mut self) -> Result<()> {
        self.until("all nodes have applied equally far", |world| {
            let statuses = world.statuses();
            let mut indexes = statuses
                .values()
                .map(|status| (status.applied, status.last_log));
            let first = indexes.next();
            statuses.len() == world.hosts.len()
                && first.is_some_and(|(applied, last)| applied == last)
                && indexes.all(|index| Some(index) == first)
        })
    }

    /// The network, for whoever breaks it.
    pub fn network(&mut self) -> &mut Sim<'static> {
        &mut self.sim
    }

    fn names_but(&self, name: &str) -> Vec<String> {
        let names = self.machines.keys().filter(|other| *other != name);
        names.cloned().collect()
    }

    /// Cuts a node off from everybody, both ways.
    pub fn isolate(&mut self, id: u64) {
        let name = node_name(id);
        for other in self.names_but(&name) {
            self.sim.partition(name.as_str(), other.as_str());
        }
        self.note(format_args!("node {id} is cut off"));
    }

    pub fn heal(&mut self, id: u64) {
        let name = node_name(id);
        for other in self.names_but(&name) {
            self.sim.repair(name.as_str(), other.as_str());
        }
        self.note(format_args!("node {id} is reachable again"));
    }

    /// Stops a machine's processes: their clocks stand, and they neither read nor write. `suspended`: the machine itself sleeps,
    /// and its monotonic clock does not count that.
    pub fn freeze(&mut self, name: &str, suspended: bool) {
        if let Some(machine) = self.machines.get(name) {
            machine.clock.at(self.sim.elapsed());
            machine.clock.stop(suspended);
        }
        let how = if suspended { "suspended" } else { "stopped" };
        self.note(format_args!("{name} is {how}"));
    }

    pub fn thaw(&mut self, name: &str) {
        if let Some(machine) = self.machines.get(name) {
            machine.clock.at(self.sim.elapsed());
            machine.clock.go_on();
        }
        self.note(format_args!("{name} goes on"));
    }

    fn end_process(&mut self, id: u64, crash: Crash) {
        let Some(host) = self.hosts.get(&id).cloned() else {
            return;
        };
        host.forget_process();
        self.sim.crash(node_name(id));
        host.disk.crash(crash);
        self.roles.remove(&id);
        self.taken.remove(&id);
        for property in &mut self.properties {
            property.crashed(id);
        }
    }

    /// Ends a machine's process here and now; what its disk has not synced is gone.
    pub fn crash(&mut self, id: u64) -> Result<()> {
        self.crash_as(id, Crash::default())
    }

    /// As [`World::crash`], with a say in what of the unsynced writes survives.
    pub fn crash_as(&mut self, id: u64, crash: Crash) -> Result<()> {
        // What it has answered until now is in the records: nobody else may know of it yet.
        self.look()?;
        let host = self.hosts.get(&id).ok_or_else(|| anyhow!("no host {id}"))?;
        let lost = host.disk.unsynced().saturating_sub(crash.batches_kept);
        self.end_process(id, crash);
        self.note(format_args!(
            "node {id} crashes and loses {lost} unsynced writes"
        ));
        Ok(())
    }

    pub fn restart(&mut self, id: u64) {
        if let Some(host) = self.hosts.get(&id) {
            host.begin_process();
        }
        self.sim.bounce(node_name(id));
        self.note(format_args!("node {id} starts again"));
    }

    /// Ends a client's process and starts it again at once: of a worker, its gate with it.
    pub fn bounce_client(&mut self, name: &str) {
        self.sim.bounce(name);
        self.note(format_args!("{name} is killed and starts again"));
    }

    /// The invoices of the workers that have not ended.
    pub fn open_invoices(&self) -> Vec<String> {
        let closed = |invoice: &str| {
            let id = InvoiceId::new(invoice).ok();
            let known = id.and_then(|id| self.replay.invoices().get(&id));
            known.is_some_and(|known| known.closed)
        };
        let open = self.invoices.keys().filter(|invoice| !closed(invoice));
        open.cloned().collect()
    }

    /// All nodes were destroyed just now, with their disks.
    pub fn all_lost(&mut self) -> Result<()> {
        self.note(format_args!("every disk is lost"));
        match self.blind {
            // A process that died unseen may have told what its records would have shown, and now nobody has them.
            Some((_, until)) if self.sim.elapsed() < until => Ok(()),
            _ => self.ask_all(|property, end| property.lost(end)),
        }
    }

    /// All nodes are down, nothing that they answered is still on its way, and those that start next were made from a backup of
    /// the first `kept` records. What came after those is allowed to be lost, and its numbers are used again; what the provider
    /// has in its books is not unsaid.
    pub fn restored_at(&mut self, kept: u64) -> Result<()> {
        let kept_len = usize::try_from(kept)?;
        let lost = self.records.split_off(kept_len.min(self.records.len()));
        let since = lost
            .first()
            .map_or(self.sim.elapsed(), |seen| seen.not_before);
        let granted = |seen: &Seen| {
            let acquired = matches!(seen.record.what, What::Acquired { .. });
            acquired.then_some(seen.record.token.0)
        };
        self.record.forget(since, lost.iter().filter_map(granted));
        self.replay = Replay::default();
        for seen in &self.records {
            self.replay.step(&seen.record, seen.at, |_| ());
        }
        let last = self.records.last().map(|seen| seen.record.at);
        for property in &mut self.properties {
            property.restored(kept, last.unwrap_or_default());
        }
        self.note(format_args!("records from {} on are lost", kept + 1));
        Ok(())
    }

    /// What must hold in the end. To be called when the faults have stopped and everything has settled.
    pub fn judge(&mut self) -> Result<()> {
        self.look()?;
        self.ask_all(|property, end| property.end(end))
    }

    fn ask_all(&mut self, ask: impl Fn(&mut dyn Property, &End<'_>) -> Verdict) -> Result<()> {
        let books = self.provider.books();
        let end = End {
            replay: &self.replay,
            records: &self.records,
            books: &books,
            record: &self.record,
            promises: &self.promises,
            invoices: &self.invoices,
        };
        for property in &mut self.properties {
            let verdict = ask(&mut **property, &end);
            judged(property.name(), verdict)?;
        }
        Ok(())
    }
}

fn judged(property: &str, verdict: Verdict) -> Result<()> {
    verdict.map_err(|(invoice, what)| {
        Broken {
            property: property.to_owned(),
            invoice,
            what,
        }
        .into()
    })
}

fn align_task_ids() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(async {
        loop {
            let id = tokio::spawn(async {}).id().to_string().parse::<u64>()?;
            if id % TASK_IDS_ALIGNED == 0 {
                return Ok(());
            }
        }
    })
}
