//! Decides what happens in a simulation, step by step: the driver of every scenario. Conditions are awaited in simulated
//! time, every step is looked at by every property, and what the application did goes into the trace.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Result, anyhow, bail};
use billing_server::node::{Node, NodeStatus, Role};
use billing_server::raft::seed_this_thread;
use tokio::sync::oneshot;
use turmoil::{Builder, Sim};

use crate::chance::Chance;
use crate::host::{Host, name};
use crate::properties::{Property, same_state::SameState};
use crate::trace::Trace;

const TICK: Duration = Duration::from_millis(1);
const LATENCY_MIN: Duration = Duration::from_millis(1);
const LATENCY_MAX: Duration = Duration::from_millis(8);
const TCP_CAPACITY: usize = 65_536;
/// Simulated; a scenario that needs longer hangs.
const DURATION_MAX: Duration = Duration::from_secs(600);
const PATIENCE: Duration = Duration::from_secs(60);
/// Properties look this often; events are seen with this precision.
const LOOK_EVERY: u32 = 5;
/// tokio keeps its tasks in shards by id: a crash destroys them in an order that depends on where the ids begin.
const TASK_IDS_ALIGNED: u64 = 64;
/// No clock may drift by more than a client allows for (§4): 1 %, so this is well inside.
const DRIFT_PPM_MAX: u64 = 2_000;

/// A cluster in a simulated world.
pub struct World {
    sim: Sim<'static>,
    pub hosts: BTreeMap<u64, Arc<Host>>,
    pub chance: Chance,
    pub trace: Trace,
    properties: Vec<Box<dyn Property>>,
    roles: BTreeMap<u64, (Role, u64)>,
    steps: u32,
}

impl World {
    /// `nodes` machines that are about to found a cluster.
    pub fn new(seed: u64, nodes: u64) -> Result<World> {
        align_task_ids()?;
        seed_this_thread(seed);
        let chance = Chance::new(seed, "world");
        let mut sim = Builder::new()
            .rng_seed(seed)
            .epoch(UNIX_EPOCH + Duration::from_secs(1_767_225_600))
            .tick_duration(TICK)
            .simulation_duration(DURATION_MAX)
            .min_message_latency(LATENCY_MIN)
            .max_message_latency(LATENCY_MAX)
            .tcp_capacity(TCP_CAPACITY)
            .enable_random_order()
            .build();
        let mut hosts = BTreeMap::new();
        for id in 1..=nodes {
            let drift =
                i64::try_from(chance.below(2 * DRIFT_PPM_MAX + 1))? - i64::try_from(DRIFT_PPM_MAX)?;
            let host = Arc::new(Host::new(id, nodes, seed, drift));
            let machine = host.clone();
            sim.host(name(id), move || machine.clone().run());
            hosts.insert(id, host);
        }
        Ok(World {
            sim,
            hosts,
            chance,
            trace: Trace::default(),
            properties: vec![Box::new(SameState::default())],
            roles: BTreeMap::new(),
            steps: 0,
        })
    }

    pub fn elapsed(&self) -> Duration {
        self.sim.elapsed()
    }

    /// Puts an event into the trace.
    pub fn note(&mut self, event: std::fmt::Arguments<'_>) {
        self.trace.note(self.sim.elapsed(), event);
    }

    /// One tick of every machine and of the network.
    pub fn step(&mut self) -> Result<()> {
        self.sim
            .step()
            .map_err(|error| anyhow!("a host ended: {error}"))?;
        self.steps += 1;
        if self.steps.is_multiple_of(LOOK_EVERY) {
            self.look()?;
        }
        Ok(())
    }

    fn look(&mut self) -> Result<()> {
        let statuses = self.statuses();
        for (id, status) in &statuses {
            let role = (status.role, status.term);
            if self.roles.insert(*id, role) != Some(role) && status.role == Role::Leader {
                self.trace.note(
                    self.sim.elapsed(),
                    format_args!("node {id} leads term {}", status.term),
                );
            }
        }
        for property in &mut self.properties {
            property
                .look(&statuses)
                .map_err(|broken| anyhow!("property {} is broken: {broken}", property.name()))?;
        }
        Ok(())
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
    pub fn until(&mut self, what: &str, mut condition: impl FnMut(&World) -> bool) -> Result<()> {
        let deadline = self.sim.elapsed() + PATIENCE;
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

    /// Begins `work` on a machine, and does not wait for it.
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

    /// Runs `work` on a machine and steps until it is done.
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

    /// Cuts a machine off from all others, both ways.
    pub fn isolate(&mut self, id: u64) {
        for other in self.hosts.keys().filter(|&&other| other != id) {
            self.sim.partition(name(id), name(*other));
        }
        self.note(format_args!("node {id} is cut off"));
    }

    pub fn heal(&mut self, id: u64) {
        for other in self.hosts.keys().filter(|&&other| other != id) {
            self.sim.repair(name(id), name(*other));
        }
        self.note(format_args!("node {id} is reachable again"));
    }

    /// Ends a machine's process here and now; what its disk has not synced is gone.
    pub fn crash(&mut self, id: u64) -> Result<()> {
        let host = self
            .hosts
            .get(&id)
            .ok_or_else(|| anyhow!("no host {id}"))?
            .clone();
        host.forget_process();
        self.sim.crash(name(id));
        let lost = host.disk.unsynced();
        host.disk.crash(billing_store::sim::Crash::default());
        self.roles.remove(&id);
        for property in &mut self.properties {
            property.crashed(id);
        }
        self.note(format_args!(
            "node {id} crashes and loses {lost} unsynced writes"
        ));
        Ok(())
    }

    pub fn restart(&mut self, id: u64) {
        self.sim.bounce(name(id));
        self.note(format_args!("node {id} starts again"));
    }
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
