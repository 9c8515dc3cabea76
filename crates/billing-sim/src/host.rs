//! Decides how one simulated machine lives: its disk outlives its processes, its process ends in a crash or through the
//! fail-stop door, and work for its node is run on it.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use billing_core::LedgerId;
use billing_env::{Clock, Env, Net};
use billing_server::node::{FailStop, Founding, Node, NodeConfig};
use billing_server::raft::{Offload, Peer};
use billing_store::sim::SimDisk;
use billing_store::{Identity, StoreError};
use tokio::sync::{Notify, mpsc};

use crate::chance::Chance;
use crate::clock::SimClock;
use crate::net::SimNet;
use crate::pauses::Pauses;

pub const RAFT_PORT: u16 = 7201;
const CLIENT_PORT: u16 = 7101;
const CLUSTER: &str = "simulated";
/// What a sync of the simulated disk takes.
const SYNC_TAKES: Duration = Duration::from_millis(3);
/// Jobs that wait for a host. The driver gives one at a time.
const JOBS_QUEUED_MAX: usize = 64;

pub type Job = Box<dyn FnOnce(Node) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// One machine. Its parts outlive the processes on it.
pub struct Host {
    pub id: u64,
    pub disk: SimDisk,
    pub clock: Arc<SimClock>,
    pub pauses: Pauses,
    members: BTreeMap<u64, Peer>,
    chance: Arc<Chance>,
    process: Mutex<Process>,
    end: Notify,
}

#[derive(Default)]
struct Process {
    node: Option<Node>,
    jobs: Option<mpsc::Sender<Job>>,
    ended: Option<String>,
}

pub fn name(id: u64) -> String {
    format!("node-{id}")
}

pub fn members(nodes: u64) -> BTreeMap<u64, Peer> {
    (1..=nodes)
        .map(|id| {
            let host = name(id);
            let peer = Peer {
                raft: format!("{host}:{RAFT_PORT}"),
                client: format!("{host}:{CLIENT_PORT}"),
            };
            (id, peer)
        })
        .collect()
}

impl Host {
    pub fn new(id: u64, nodes: u64, seed: u64, drift_ppm: i64) -> Host {
        let clock = Arc::new(SimClock::new(drift_ppm));
        Host {
            id,
            disk: SimDisk::new(clock.clone(), SYNC_TAKES),
            clock,
            pauses: Pauses::default(),
            members: members(nodes),
            chance: Arc::new(Chance::new(seed, &name(id))),
            process: Mutex::default(),
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

    fn env(&self) -> Env {
        Env {
            clock: self.clock.clone() as Arc<dyn Clock>,
            net: Arc::new(SimNet),
            random: self.chance.clone(),
            pauses: Arc::new(self.pauses.clone()),
        }
    }

    /// One process, from its start to its end: what turmoil runs.
    pub async fn run(self: Arc<Host>) -> turmoil::Result {
        let (disk, founding) = match self.disk.open(self.id, None) {
            Ok(disk) => (disk, false),
            Err(StoreError::Empty { .. }) => {
                let identity = Identity {
                    cluster: CLUSTER.into(),
                    node: self.id,
                    created_unix_ms: self.clock.wall_ms(),
                };
                (self.disk.create(&identity)?, true)
            }
            Err(error) => return Err(error.into()),
        };
        // Founding goes on where a crash interrupted it.
        let founding = founding || disk.log.state()?.last.is_none();
        let config = NodeConfig {
            founding: founding
                .then(|| LedgerId::new(CLUSTER))
                .transpose()?
                .map(|ledger_id| Founding {
                    ledger_id,
                    no_prior_charges: true,
                    ttl_max: billing_core::TtlMs::MAX,
                }),
            offload: Offload::Inline,
            snapshot_every: 200,
            log_kept: 50,
            ..NodeConfig::new(self.id, self.members.clone())
        };
        let host = self.clone();
        let fail_stop = FailStop::new(move |reason| {
            host.process().ended = Some(reason.to_string());
            host.end.notify_one();
        });
        let listener = SimNet.listen(&format!("0.0.0.0:{RAFT_PORT}")).await?;
        let node = Node::start(config, self.env(), disk, listener, fail_stop).await?;
        let (sender, mut jobs) = mpsc::channel::<Job>(JOBS_QUEUED_MAX);
        {
            let mut process = self.process();
            process.node = Some(node.clone());
            process.jobs = Some(sender);
        }
        loop {
            tokio::select! {
                biased;
                () = self.end.notified() => break,
                job = jobs.recv() => match job {
                    Some(job) => drop(tokio::spawn(job(node.clone()))),
                    None => break,
                },
            }
        }
        self.forget_process();
        Ok(())
    }
}
