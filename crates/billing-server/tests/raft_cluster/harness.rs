//! Real nodes in one process, each on a runtime, a folder and a port of its own, so that one can be killed alone.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use billing_core::{
    AcquireLease, Actor, Command, HolderId, InvoiceId, KeepAlive, LedgerId, OpenSession, Reply,
    Requester, Seq, SessionId, TtlMs, WaitMs,
};
use billing_env::{Clock, Env, Listener, Net, RealNet};
use billing_server::node::{
    Answer, CallError, Consistency, FailStop, Founding, Node, NodeConfig, Role,
};
use billing_server::raft::Peer;
use billing_store::Identity;

/// Beyond this the machine is not slow, something is wrong.
const DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);

pub const CLUSTER: &str = "test";

/// Waits until `check` says yes.
pub async fn eventually<F, Fut>(what: &str, mut check: F) -> Result<()>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let begun = Instant::now();
    while !check().await {
        if begun.elapsed() > DEADLINE {
            bail!("waited in vain until {what}");
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// One node and the runtime that it dies with.
pub struct Running {
    pub node: Node,
    runtime: Option<tokio::runtime::Runtime>,
    ended: Arc<Mutex<Option<String>>>,
}

impl Running {
    /// Why the node went through its fail-stop door, if it did.
    pub fn ended(&self) -> Option<String> {
        self.ended
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A runtime must not be waited for where tests run.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub type Tune = fn(&mut NodeConfig);

pub struct Cluster {
    folder: tempfile::TempDir,
    pub members: BTreeMap<u64, Peer>,
    pub running: BTreeMap<u64, Running>,
    /// The way out of a node, where it is not the plain one.
    nets: BTreeMap<u64, Arc<dyn Net>>,
    /// The clocks of a node, where they are not the machine's.
    pub clocks: BTreeMap<u64, Arc<dyn Clock>>,
    tune: Tune,
}

impl Cluster {
    /// Three founding nodes, bootstrapped; `tune` changes the settings of each.
    pub async fn start(tune: Tune) -> Result<Cluster> {
        Cluster::start_through(BTreeMap::new(), tune).await
    }

    /// The same, with `nets` as the way out of the nodes named there.
    pub async fn start_through(nets: BTreeMap<u64, Arc<dyn Net>>, tune: Tune) -> Result<Cluster> {
        let (mut cluster, listeners) = Cluster::prepare(tune).await?;
        cluster.nets = nets;
        for (node, listener) in listeners {
            let members = cluster.members.clone();
            cluster.launch(node, members, listener, true).await?;
        }
        cluster.bootstrapped().await?;
        Ok(cluster)
    }

    /// Ports and folders for three nodes, none running.
    pub async fn prepare(tune: Tune) -> Result<(Cluster, BTreeMap<u64, Box<dyn Listener>>)> {
        let mut members = BTreeMap::new();
        let mut listeners = BTreeMap::new();
        for node in 1..=3 {
            let listener = RealNet.listen("127.0.0.1:0").await?;
            let raft = listener.local_addr()?.to_string();
            let client = format!("127.0.0.1:{}", 7100 + node);
            members.insert(node, Peer { raft, client });
            listeners.insert(node, listener);
        }
        let cluster = Cluster {
            folder: tempfile::tempdir()?,
            members,
            running: BTreeMap::new(),
            nets: BTreeMap::new(),
            clocks: BTreeMap::new(),
            tune,
        };
        Ok((cluster, listeners))
    }

    pub fn folder(&self, node: u64) -> PathBuf {
        self.folder.path().join(format!("node-{node}"))
    }

    /// Starts a node on `listener` with the given peers; founds, where its folder is new.
    pub async fn launch(
        &mut self,
        node: u64,
        members: BTreeMap<u64, Peer>,
        listener: Box<dyn Listener>,
        founding: bool,
    ) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let mut config = NodeConfig::new(node, members);
        config.heartbeat = Duration::from_millis(100);
        config.election_timeout_min = Duration::from_millis(600);
        config.election_timeout_max = Duration::from_millis(1_200);
        if founding {
            config.founding = Some(Founding {
                ledger_id: LedgerId::new("test")?,
                no_prior_charges: true,
                ttl_max: billing_core::TtlMs::MAX,
            });
        }
        (self.tune)(&mut config);
        let mut env = Env::real();
        if let Some(net) = self.nets.get(&node) {
            env.net = net.clone();
        }
        if let Some(clock) = self.clocks.get(&node) {
            env.clock = clock.clone();
        }
        let folder = self.folder(node);
        let ended = Arc::new(Mutex::new(None));
        let reason = ended.clone();
        let node = runtime
            .spawn(async move {
                let disk = if folder.exists() {
                    billing_store::open(&folder, config.node, None)?
                } else {
                    let identity = Identity {
                        cluster: CLUSTER.into(),
                        node: config.node,
                        created_unix_ms: 0,
                    };
                    billing_store::create(&folder, &identity)?
                };
                let fail_stop = FailStop::new(move |why| {
                    *reason.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.to_string());
                });
                // A port that was just closed may take a moment.
                let node = Node::start(config, env, disk, listener, fail_stop).await?;
                anyhow::Ok(node)
            })
            .await??;
        let id = node.status().node;
        self.running.insert(
            id,
            Running {
                node,
                runtime: Some(runtime),
                ended,
            },
        );
        Ok(())
    }

    /// Starts a node again from its folder, at its old address.
    pub async fn restart(&mut self, node: u64) -> Result<()> {
        let address = self.members[&node].raft.clone();
        let begun = Instant::now();
        let listener = loop {
            match RealNet.listen(&address).await {
                Ok(listener) => break listener,
                // The killed runtime lets go of its sockets in its own time.
                Err(error) if begun.elapsed() > DEADLINE => return Err(error.into()),
                Err(_) => tokio::time::sleep(POLL).await,
            }
        };
        self.launch(node, self.members.clone(), listener, false)
            .await
    }

    /// Whatever starts from now on has the settings of `tune`.
    pub fn retune_later(&mut self, tune: Tune) {
        self.tune = tune;
    }

    /// Every follower is started again with the settings of `tune`, and so is whatever starts from now on.
    pub async fn retune_followers(&mut self, tune: Tune) -> Result<()> {
        self.tune = tune;
        let leader = self.leader().await?;
        for id in self.ids() {
            if id != leader {
                self.kill(id).await?;
                self.restart(id).await?;
                self.in_touch().await?;
            }
        }
        Ok(())
    }

    /// Waits until every node has taken an entry from the leader since it runs: before that it knows the leader from its disk
    /// alone, and cannot take over from it.
    async fn in_touch(&self) -> Result<()> {
        let leader = self.leader().await?;
        // Whatever the ledger says of a session that nobody opened: it is an entry.
        insist(self.node(leader), keep_alive(u8::MAX)).await?.ok();
        self.same_state().await
    }

    /// Every node is started again with the settings of `tune`, and so is whatever starts from now on.
    pub async fn retune(&mut self, tune: Tune) -> Result<()> {
        self.retune_followers(tune).await?;
        let last = self.leader().await?;
        self.stop(last).await?;
        self.leader().await?;
        self.restart(last).await?;
        self.in_touch().await
    }

    /// Ends a node as a crash would: nothing is said, nothing is flushed.
    pub async fn kill(&mut self, node: u64) -> Result<()> {
        let mut running = self.running.remove(&node).context("it runs")?;
        let runtime = running.runtime.take().context("it has a runtime")?;
        drop(running);
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(DEADLINE)).await?;
        Ok(())
    }

    /// Runs `work` on the runtime of a node, beside the node's own tasks.
    pub fn beside(&self, node: u64, work: impl Future<Output = ()> + Send + 'static) -> Result<()> {
        let running = self.running.get(&node).context("it runs")?;
        let runtime = running.runtime.as_ref().context("it has a runtime")?;
        runtime.spawn(work);
        Ok(())
    }

    /// Ends a node in order.
    pub async fn stop(&mut self, node: u64) -> Result<()> {
        let running = self.running.get(&node).context("it runs")?;
        let runtime = running.runtime.as_ref().context("it has a runtime")?;
        runtime.spawn(running.node.clone().shutdown()).await?;
        self.kill(node).await
    }

    pub fn node(&self, node: u64) -> &Node {
        &self.running[&node].node
    }

    pub fn ids(&self) -> Vec<u64> {
        self.running.keys().copied().collect()
    }

    /// The running nodes but this one.
    pub fn others(&self, than: u64) -> Vec<u64> {
        self.ids().into_iter().filter(|&id| id != than).collect()
    }

    /// Waits until one running node leads and the others agree.
    pub async fn leader(&self) -> Result<u64> {
        self.leader_among(&self.ids()).await
    }

    /// Waits until one of `ids` leads and the others of them agree.
    pub async fn leader_among(&self, ids: &[u64]) -> Result<u64> {
        let mut found = None;
        eventually("all nodes agree on a leader", || {
            let asked = self.running.iter().filter(|(id, _)| ids.contains(id));
            let statuses: Vec<_> = asked.map(|(_, r)| r.node.status()).collect();
            found = statuses
                .iter()
                .find(|status| status.role == Role::Leader)
                .map(|status| status.node);
            let agreed = found.is_some()
                && statuses
                    .iter()
                    .all(|status| status.leader.as_ref().map(|hint| hint.node) == found);
            std::future::ready(agreed)
        })
        .await?;
        found.ok_or_else(|| anyhow!("no leader"))
    }

    pub async fn follower(&self) -> Result<u64> {
        let leader = self.leader().await?;
        self.ids()
            .into_iter()
            .find(|&id| id != leader)
            .context("somebody follows")
    }

    pub async fn bootstrapped(&self) -> Result<()> {
        eventually("the ledger is bootstrapped everywhere", || {
            let all = self
                .running
                .values()
                .all(|running| running.node.status().ledger_id.is_some());
            std::future::ready(all)
        })
        .await
    }

    /// Waits until all running nodes have applied equally far, and compares their states.
    pub async fn same_state(&self) -> Result<()> {
        let mut hashes = Vec::new();
        eventually("all nodes have applied equally far", || {
            hashes = self
                .running
                .values()
                .map(|running| running.node.status().state_hash)
                .collect();
            let equally_far = hashes.windows(2).all(|pair| pair[0].index == pair[1].index);
            std::future::ready(equally_far)
        })
        .await?;
        if hashes.windows(2).all(|pair| pair[0] == pair[1]) {
            Ok(())
        } else {
            bail!("the states differ: {hashes:?}")
        }
    }
}

pub fn actor() -> Actor {
    Actor::new("test").unwrap_or_else(|_| Actor::ledger())
}

/// Repeats what was certainly not applied, as a client would.
pub async fn insist(node: &Node, command: Command) -> Answer {
    let begun = Instant::now();
    loop {
        match node.propose(actor(), command.clone()).await {
            Err(CallError::NotApplied { .. } | CallError::Overloaded { .. })
                if begun.elapsed() < DEADLINE =>
            {
                tokio::time::sleep(POLL).await;
            }
            answer => return answer,
        }
    }
}

pub fn session(number: u8) -> SessionId {
    SessionId::new([number; 16])
}

pub fn open_session(number: u8, ttl_ms: u64) -> Result<Command> {
    Ok(Command::OpenSession(OpenSession {
        session: session(number),
        holder: HolderId::new(&format!("worker-{number}"))?,
        ttl: TtlMs::new(ttl_ms)?,
    }))
}

pub fn keep_alive(number: u8) -> Command {
    Command::KeepAlive(KeepAlive {
        session: session(number),
    })
}

pub fn acquire(number: u8, seq: u64, invoice: &str, wait_ms: u64) -> Result<AcquireLease> {
    Ok(AcquireLease {
        invoice: InvoiceId::new(invoice)?,
        requester: Requester::Session {
            session: session(number),
            seq: Seq::new(seq)?,
            done_below: 0,
            ttl: None,
        },
        wait: WaitMs::new(wait_ms)?,
    })
}

/// The holder of `invoice` as a linearizable read on `node` finds it.
pub async fn holder(node: &Node, invoice: &str) -> Result<Option<String>> {
    let invoice = InvoiceId::new(invoice)?;
    let begun = Instant::now();
    loop {
        let read = node
            .read(Consistency::Linearizable, |ledger| {
                ledger.lease(&invoice).map(|lease| lease.holder.to_string())
            })
            .await;
        match read {
            Ok((holder, _)) => return Ok(holder),
            Err(error) if begun.elapsed() > DEADLINE => return Err(error.into()),
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

pub fn leased(answer: Answer) -> Result<billing_core::LeaseView> {
    match answer {
        Ok(Ok(Reply::Leased(leased))) => Ok(leased.lease),
        other => bail!("not leased: {other:?}"),
    }
}
