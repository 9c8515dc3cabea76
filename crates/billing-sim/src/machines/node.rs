//! Decides how one simulated node lives: its disk outlives its processes, its process ends in a crash or through the
//! fail-stop door, and serves clients as `billingd` does.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use billing_core::LedgerId;
use billing_env::{Clock, Net};
use billing_server::node::{FailStop, Founding, Node, NodeConfig};
use billing_server::raft::{Offload, Peer};
use billing_server::server::{ClientLimits, Serving};
use billing_store::sim::SimDisk;
use billing_store::{Identity, StoreError};
use tokio::sync::{Notify, mpsc};

use super::{CLIENT_PORT, Machine, RAFT_PORT, node_name};
use crate::net::SimNet;

/// The ledger's name in every simulation.
pub const LEDGER: &str = "simulated";
/// What a sync of the simulated disk takes.
pub const SYNC_TAKES: Duration = Duration::from_millis(3);
/// Jobs that wait for a host. The driver gives one at a time.
const JOBS_QUEUED_MAX: usize = 64;

pub type Job = Box<dyn FnOnce(Node) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// What is done to a disk before the next process opens it.
pub type Preparation =
    Box<dyn FnOnce(SimDisk) -> Pin<Box<dyn Future<Output = Result<(), String>>>> + Send>;

/// How the nodes of a world are set up.
#[derive(Debug, Clone, Copy)]
pub struct NodeSettings {
    pub snapshot_every: u64,
    pub log_kept: u64,
}

/// One machine. Its parts outlive the processes on it.
pub struct Host {
    pub id: u64,
    pub machine: Machine,
    pub disk: SimDisk,
    settings: NodeSettings,
    /// Founding members; for one that joins: those, and itself.
    members: BTreeMap<u64, Peer>,
    founds: bool,
    process: Mutex<Process>,
    preparation: Mutex<Option<Preparation>>,
    end: Notify,
}

#[derive(Default)]
struct Process {
    node: Option<Node>,
    jobs: Option<mpsc::Sender<Job>>,
    ended: Option<String>,
}

pub fn peer(id: u64) -> Peer {
    let host = node_name(id);
    Peer {
        raft: format!("{host}:{RAFT_PORT}"),
        client: format!("{host}:{CLIENT_PORT}"),
    }
}

pub fn members(nodes: u64) -> BTreeMap<u64, Peer> {
    (1..=nodes).map(|id| (id, peer(id))).collect()
}

impl Host {
    /// A founding member of a cluster of `nodes`; beyond those, one that was added and waits for the log.
    pub fn new(id: u64, nodes: u64, machine: Machine, settings: NodeSettings) -> Host {
        let mut members = members(nodes);
        members.entry(id).or_insert_with(|| peer(id));
        Host {
            id,
            disk: SimDisk::new(Arc::new(machine.clock.clone()), SYNC_TAKES),
            machine,
            settings,
            members,
            founds: id <= nodes,
            process: Mutex::default(),
            preparation: Mutex::default(),
            end: Notify::new(),
        }
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node that runs here; none between a crash and the restart.
    pub fn node(&self) -> Option<Node> {
        self.process().node.clone()
    }

    /// Why its last process went through the fail-stop door.
    pub fn ended(&self) -> Option<String> {
        self.process().ended.clone()
    }

    /// To be called before a new process begins: why the last one ended is no news of this one.
    pub fn begin_process(&self) {
        self.process().ended = None;
    }

    /// To be called when its process was destroyed.
    pub fn forget_process(&self) {
        let mut process = self.process();
        process.node = None;
        process.jobs = None;
    }

    /// Runs `job` on this host. False while no process takes jobs.
    pub fn give(&self, job: Job) -> bool {
        let jobs = self.process().jobs.clone();
        jobs.is_some_and(|jobs| jobs.try_send(job).is_ok())
    }

    /// Somebody works on the disk while the node is down: as soon as it starts, before it opens the disk.
    pub fn prepare(&self, work: Preparation) {
        *self
            .preparation
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(work);
    }

    fn take_preparation(&self) -> Option<Preparation> {
        self.preparation
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    fn end_with(&self, reason: String) {
        self.process().ended = Some(reason);
        self.end.notify_one();
    }

    /// One process, from its start to its end: what turmoil runs.
    pub async fn run(self: Arc<Host>) -> turmoil::Result {
        self.begin_process();
        // That the last process ended is no news to this one.
        let _ = futures::FutureExt::now_or_never(self.end.notified());
        // The driver looks at what it leaves behind, and buries it.
        if let Err(reason) = self.live().await {
            self.end_with(reason);
        }
        Ok(())
    }

    async fn live(self: &Arc<Host>) -> Result<(), String> {
        let say = |error: &dyn std::fmt::Display| error.to_string();
        if let Some(work) = self.take_preparation() {
            work(self.disk.clone()).await?;
        }
        let (disk, made) = match self.disk.open(self.id, None) {
            Ok(disk) => (disk, false),
            Err(StoreError::Empty { .. }) => {
                let identity = Identity {
                    cluster: LEDGER.into(),
                    node: self.id,
                    created_unix_ms: self.machine.clock.wall_ms(),
                };
                let made = self.disk.create(&identity);
                (made.map_err(|error| say(&error))?, true)
            }
            Err(error) => return Err(say(&error)),
        };
        let empty = disk
            .log
            .state()
            .map_err(|error| say(&error))?
            .last
            .is_none();
        // Founding goes on where a crash interrupted it.
        let founding = self.founds && (made || empty);
        let founding = founding
            .then(|| LedgerId::new(LEDGER))
            .transpose()
            .map_err(|error| say(&error))?
            .map(|ledger_id| Founding {
                ledger_id,
                no_prior_charges: true,
                ttl_max: billing_core::TtlMs::MAX,
            });
        let config = NodeConfig {
            founding,
            offload: Offload::Inline,
            snapshot_every: self.settings.snapshot_every,
            log_kept: self.settings.log_kept,
            ..NodeConfig::new(self.id, self.members.clone())
        };
        let host = self.clone();
        let fail_stop = FailStop::new(move |reason| host.end_with(reason.to_string()));
        let env = self.machine.env();
        let net = SimNet(self.machine.clock.clone());
        let listen = |port: u16| net.listen(&format!("0.0.0.0:{port}"));
        let peers = listen(RAFT_PORT).await.map_err(|error| say(&error))?;
        let clients = listen(CLIENT_PORT).await.map_err(|error| say(&error))?;
        let node = Node::start(config, env.clone(), disk, peers, fail_stop)
            .await
            .map_err(|error| say(&error))?;
        let serving = Serving::start(env, node.clone(), clients, ClientLimits::default()).await;
        let mut serving = serving.map_err(|error| say(&error))?;
        let (sender, mut jobs) = mpsc::channel::<Job>(JOBS_QUEUED_MAX);
        {
            let mut process = self.process();
            process.node = Some(node.clone());
            process.jobs = Some(sender);
        }
        loop {
            tokio::select! {
                biased;
                () = self.end.notified() => return Ok(()),
                why = node.removed() => return Err(why),
                error = serving.failed() => return Err(error.to_string()),
                job = jobs.recv() => match job {
                    Some(job) => drop(tokio::spawn(job(node.clone()))),
                    None => return Ok(()),
                },
            }
        }
    }
}
