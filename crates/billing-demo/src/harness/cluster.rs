//! Decides how a cluster of real nodes on this machine is laid out: folders, addresses, flags.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use billing_client::Client;

use super::{Output, Process, Signal, binary, free_ports};

const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Longer than the node's own patience with calls in flight.
const STOP_PATIENCE: Duration = Duration::from_secs(15);

/// How a cluster is started.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// One folder a node under it, and one log file a node.
    pub folder: PathBuf,
    pub nodes: usize,
    /// Client ports, then raft ports; empty: free ones.
    pub ports: Vec<u16>,
    /// `RUST_LOG`-style filter.
    pub log: String,
    /// Into a file beside the folder, or to our standard error.
    pub to_terminal: bool,
    /// More flags for every node.
    pub flags: Vec<String>,
    /// More flags for the first start of a new cluster.
    pub founding_flags: Vec<String>,
    /// Where each node lives; empty: all on 127.0.0.1, in our own network.
    pub homes: Vec<Home>,
    /// `host:port` at which clients shall reach each node, where something stands in front of it; empty: nothing does.
    pub fronts: Vec<String>,
}

/// The place of one node, where it is not beside us.
#[derive(Debug, Clone)]
pub struct Home {
    /// The host that others reach it at.
    pub host: String,
    /// What starts a program there: a command and its arguments, which are followed by the program's own. It must turn into
    /// the program, not start it beside itself.
    pub enter: Vec<String>,
    /// The folder in which its data folder is made; `None`: in the cluster's.
    pub disk: Option<PathBuf>,
}

impl Home {
    /// Beside us, but started by `enter`.
    pub fn here(enter: impl IntoIterator<Item = String>) -> Home {
        Home {
            host: "127.0.0.1".to_owned(),
            enter: enter.into_iter().collect(),
            disk: None,
        }
    }
}

impl ClusterOptions {
    pub fn new(folder: impl Into<PathBuf>) -> ClusterOptions {
        ClusterOptions {
            folder: folder.into(),
            nodes: 3,
            ports: Vec::new(),
            log: "info".to_owned(),
            to_terminal: false,
            flags: Vec::new(),
            founding_flags: Vec::new(),
            homes: Vec::new(),
            fronts: Vec::new(),
        }
    }
}

/// What one node says of itself.
pub type NodeView = billing_proto::v1::GetStatusResponse;

/// The processes of one cluster. Dropped: all killed.
pub struct Cluster {
    options: ClusterOptions,
    client_ports: Vec<u16>,
    raft_ports: Vec<u16>,
    nodes: Vec<Option<Process>>,
}

impl Cluster {
    /// Starts every node; a node whose folder is new is told to bootstrap, once, together with its peers.
    pub fn start(options: ClusterOptions) -> Result<Cluster> {
        let ports = match options.ports.len() {
            0 => free_ports(options.nodes * 2)?,
            given if given == options.nodes * 2 => options.ports.clone(),
            given => bail!("{given} ports given, {} needed", options.nodes * 2),
        };
        let (client_ports, raft_ports) = ports.split_at(options.nodes);
        let mut cluster = Cluster {
            client_ports: client_ports.to_vec(),
            raft_ports: raft_ports.to_vec(),
            nodes: (0..options.nodes).map(|_| None).collect(),
            options,
        };
        std::fs::create_dir_all(&cluster.options.folder)
            .with_context(|| format!("cannot make {}", cluster.options.folder.display()))?;
        let new: Vec<bool> = (1..=cluster.options.nodes)
            .map(|id| !cluster.data(id).exists())
            .collect();
        if new.iter().any(|new| *new) && !new.iter().all(|new| *new) {
            bail!(
                "some of the nodes' folders in {} exist and some are missing: a node that lost its folder must not start under its old id. \
                 Put the folder back, or move all of them away to begin a new cluster.",
                cluster.options.folder.display()
            );
        }
        for (id, new) in (1..).zip(new) {
            cluster.start_node(id, new)?;
        }
        Ok(cluster)
    }

    /// The command line of one node.
    pub fn command(&self, id: usize, bootstrap: bool) -> Result<Command> {
        let program = binary("billingd")?;
        let mut command = match self.home(id).and_then(|home| home.enter.split_first()) {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
            None => Command::new(program),
        };
        command
            .arg("run")
            .args(["--node-id", &id.to_string()])
            .args(["--listen", &self.endpoint(id)])
            .args(["--raft-listen", &self.raft_address(id)])
            .args(["--peers", &self.peers()])
            .args(["--log", &self.options.log])
            .arg("--data-dir")
            .arg(self.data(id))
            .args(&self.options.flags);
        if bootstrap {
            command
                .args(["--bootstrap", "--no-prior-charges", "--ledger-id", "local"])
                .args(&self.options.founding_flags);
        }
        Ok(command)
    }

    /// The command line of a node that joins the cluster, or that did and starts again: `flags` say what it shall become.
    pub fn join_command(&self, id: usize, flags: &[&str]) -> Result<Command> {
        let others: Vec<String> = (1..=self.client_ports.len())
            .filter(|&other| other != id)
            .map(|other| self.endpoint(other))
            .collect();
        let mut command = Command::new(binary("billingd")?);
        command
            .arg("join")
            .args(["--node-id", &id.to_string()])
            .args(["--listen", &self.endpoint(id)])
            .args(["--raft-listen", &self.raft_address(id)])
            .args(["--cluster", &others.join(",")])
            .args(["--log", &self.options.log])
            .arg("--data-dir")
            .arg(self.data(id))
            .args(flags)
            .args(&self.options.flags);
        Ok(command)
    }

    /// Starts a new node, under the next id, that joins with these flags; returns its id. Asked again with `id`: the same node.
    pub fn join(&mut self, id: Option<usize>, flags: &[&str]) -> Result<usize> {
        let id = match id {
            Some(id) => id,
            None => {
                let ports = free_ports(2)?;
                self.client_ports.push(ports[0]);
                self.raft_ports.push(ports[1]);
                self.nodes.push(None);
                self.client_ports.len()
            }
        };
        let output = Output::File(self.options.folder.join(format!("node-{id}.log")));
        let command = self.join_command(id, flags)?;
        let process = Process::start(format!("billingd {id}"), command, &output)?;
        self.nodes[id - 1] = Some(process);
        Ok(id)
    }

    /// Starts node `id` (from 1), which must not be running.
    pub fn start_node(&mut self, id: usize, bootstrap: bool) -> Result<()> {
        let output = if self.options.to_terminal {
            Output::Inherit
        } else {
            Output::File(self.options.folder.join(format!("node-{id}.log")))
        };
        let process = Process::start(
            format!("billingd {id}"),
            self.command(id, bootstrap)?,
            &output,
        )?;
        self.nodes[id - 1] = Some(process);
        Ok(())
    }

    pub fn data(&self, id: usize) -> PathBuf {
        let disk = self.home(id).and_then(|home| home.disk.as_deref());
        let disk = disk.unwrap_or(&self.options.folder);
        disk.join(format!("node-{id}"))
    }

    pub fn folder(&self) -> &Path {
        &self.options.folder
    }

    fn home(&self, id: usize) -> Option<&Home> {
        self.options.homes.get(id - 1)
    }

    fn host(&self, id: usize) -> &str {
        self.home(id).map_or("127.0.0.1", |home| &home.host)
    }

    /// `host:port` for clients.
    pub fn endpoint(&self, id: usize) -> String {
        format!("{}:{}", self.host(id), self.client_ports[id - 1])
    }

    fn raft_address(&self, id: usize) -> String {
        format!("{}:{}", self.host(id), self.raft_ports[id - 1])
    }

    /// What `--peers` of every node says.
    pub fn peers(&self) -> String {
        let told = |peer: usize| match self.options.fronts.get(peer - 1) {
            Some(front) => front.clone(),
            None => self.endpoint(peer),
        };
        let peers = (1..=self.options.nodes)
            .map(|peer| format!("{peer}={}/{}", told(peer), self.raft_address(peer)));
        peers.collect::<Vec<_>>().join(",")
    }

    /// What [`ClusterOptions::ports`] takes for a cluster in the same place.
    pub fn ports(&self) -> Vec<u16> {
        [&self.client_ports[..], &self.raft_ports[..]].concat()
    }

    /// All client endpoints, of nodes that joined later too.
    pub fn endpoints(&self) -> Vec<String> {
        (1..=self.client_ports.len())
            .map(|id| self.endpoint(id))
            .collect()
    }

    /// The process of node `id`, if it was started and not killed by us.
    pub fn node(&mut self, id: usize) -> Option<&mut Process> {
        self.nodes[id - 1].as_mut()
    }

    /// SIGKILL; returns when the process is gone.
    pub fn kill(&mut self, id: usize) -> Result<()> {
        match self.nodes[id - 1].take() {
            Some(mut process) => process.kill(),
            None => bail!("node {id} does not run"),
        }
    }

    pub fn signal(&mut self, id: usize, signal: Signal) -> Result<()> {
        self.nodes[id - 1]
            .as_mut()
            .with_context(|| format!("node {id} does not run"))?
            .signal(signal)
    }

    /// What each node says of itself; `None` where it does not answer.
    pub async fn views(&self, client: &Client) -> Vec<Option<NodeView>> {
        let mut views = Vec::new();
        for endpoint in self.endpoints() {
            views.push(client.status_of(&endpoint).await.ok());
        }
        views
    }

    /// The node that says of itself that it leads, in the highest term.
    pub async fn leader(&self, client: &Client) -> Option<usize> {
        let views = self.views(client).await;
        let leading = views
            .into_iter()
            .flatten()
            .filter(|view| view.role == billing_proto::v1::NodeRole::Leader as i32);
        leading
            .max_by_key(|view| view.term)
            .map(|view| view.node_id as usize)
    }

    /// Waits until some node leads.
    pub async fn led(&mut self, client: &Client, at_most: Duration) -> Result<usize> {
        let deadline = tokio::time::Instant::now() + at_most;
        loop {
            if let Some(id) = self.leader(client).await {
                return Ok(id);
            }
            self.all_running()?;
            if tokio::time::Instant::now() >= deadline {
                bail!(
                    "no leader within {at_most:?}; the nodes' logs are in {}",
                    self.options.folder.display()
                );
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// An error with its last words when a node ended that nobody killed.
    pub fn all_running(&mut self) -> Result<()> {
        for process in self.nodes.iter_mut().flatten() {
            if let Some(status) = process.exited()? {
                bail!(
                    "{} ended ({status}):\n{}",
                    process.name(),
                    process.last_words(10)
                );
            }
        }
        Ok(())
    }

    /// A node that has ended though nobody asked it to; it then counts as not running.
    pub fn ended(&mut self) -> Result<Option<(usize, ExitStatus)>> {
        for (position, node) in self.nodes.iter_mut().enumerate() {
            let status = match node {
                Some(process) => process.exited()?,
                None => None,
            };
            if let Some(status) = status {
                *node = None;
                return Ok(Some((position + 1, status)));
            }
        }
        Ok(None)
    }

    /// SIGTERM to all, SIGKILL to those who do not listen.
    pub async fn stop(&mut self) -> Result<()> {
        for process in self.nodes.iter_mut().flatten() {
            if process.exited()?.is_none() {
                process.signal(Signal::TERM)?;
            }
        }
        for process in self.nodes.iter_mut().flatten() {
            // Not SIGTERM again: a second one asks a node to end at once.
            if process.ended(STOP_PATIENCE).await?.is_none() {
                process.kill()?;
            }
        }
        Ok(())
    }
}
