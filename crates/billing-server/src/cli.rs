//! Decides how a person talks to `billingd`: flags, environment variables and the help that teaches them.
//! Never decides what a setting means or whether it holds: that is `config.rs`.

use std::path::PathBuf;
use std::time::Duration;

use billing_core::LedgerId;
use billing_proto::restore::RestoreId;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::Peer;

const AFTER_HELP: &str = "\
Three nodes on one machine. The flags differ in the id and the folder only; each node finds
its own addresses in --peers:

  P=1=127.0.0.1:7101/127.0.0.1:7201
  P=$P,2=127.0.0.1:7102/127.0.0.1:7202
  P=$P,3=127.0.0.1:7103/127.0.0.1:7203
  FIRST='--bootstrap --ledger-id demo --no-prior-charges'
  billingd --node-id 1 --data-dir data/1 --peers $P $FIRST &
  billingd --node-id 2 --data-dir data/2 --peers $P $FIRST &
  billingd --node-id 3 --data-dir data/3 --peers $P $FIRST &

From the second start on, leave --bootstrap and --no-prior-charges away:

  billingd --node-id 1 --data-dir data/1 --peers $P

Then ask any of them:

  billingctl --endpoints 127.0.0.1:7102 cluster status

Every setting may also stand in the environment (BILLINGD_NODE_ID=1) or in a TOML file
(node_id = 1), except those of --bootstrap, which are said once. Flags win over the
environment, the environment over the file. `billingd check-config` prints what holds and
where it came from, and starts nothing.

Exit codes:
  0  ended as it was asked to
  2  wrong flags, environment or configuration file; nothing was started
  3  this data folder cannot serve this node: empty, another's, in use, of a newer format
  4  the data folder is damaged: this node must not vote again under its id
  5  a listening address cannot be had, such as a port in use
  6  the disk failed or is full; everything acknowledged is kept
  7  another node contradicts this one: the same id twice, a lost disk, another state, or it
     was removed from the cluster
  8  ended at once by a second signal
  9  the cluster cannot be joined: it is not reached, or it refuses; nothing is lost
  70 a bug in billingd";

const JOIN_HELP: &str = "\
Node 2 is dead, or its folder is damaged. A new node takes its place, on any machine, with an
empty folder and an id that was never used:

  billingd join --node-id 4 --data-dir data/4 --cluster 127.0.0.1:7101,127.0.0.1:7103 \\
    --listen 127.0.0.1:7104 --raft-listen 127.0.0.1:7204 --replaces 2

From three nodes to five:

  billingd join --node-id 4 ... --voter --allow-even
  billingd join --node-id 5 ... --voter";

const RESTORE_HELP: &str = "\
Three machines, a new folder on each; the first one prints a restore id:

  billingd restore FILE --node-id 1 --data-dir new/1 --peers $P
  billingd restore FILE --node-id 2 --data-dir new/2 --peers $P --restore-id ID
  billingd restore FILE --node-id 3 --data-dir new/3 --peers $P --restore-id ID

Never repeat one of them for a node whose folder was started and is lost: once the others have a
leader, `billingd join --replaces` takes its place; before that, restore every node anew.";

/// A node of a cluster that makes sure an invoice is charged once.
#[derive(Debug, Parser)]
#[command(
    name = "billingd",
    version,
    about,
    after_help = AFTER_HELP,
    args_conflicts_with_subcommands = true,
    max_term_width = 110
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<CliCommand>,
    #[command(flatten)]
    pub settings: Settings,
}

#[derive(Debug, Subcommand)]
pub enum CliCommand {
    /// Run the node (the default)
    #[command(after_help = AFTER_HELP)]
    Run(Box<Settings>),
    /// Make this node's data folder out of a backup, offline. Once for every node of the new cluster, each with the same
    /// file, the same --peers and the same restore id; then start them all, without --bootstrap
    ///
    /// The file is verified whole first. An existing folder is refused. The ledger keeps its id; the nodes may have other
    /// addresses and be of another number. Once they run: no lease is granted before the longest TTL has passed, and nothing
    /// is charged before `billingctl cluster allow-charges`
    ///
    /// No node takes part before it has met all others. A restore is repeated as a whole: new folders, and a new id
    #[command(after_help = RESTORE_HELP)]
    Restore {
        /// What `billingctl cluster backup` wrote
        file: PathBuf,
        /// The id that the first node's restore printed, for all nodes but that one. Nodes with different ids belong to
        /// different clusters [default: drawn and printed]
        #[arg(long, value_name = "ID")]
        restore_id: Option<RestoreId>,
        #[command(flatten)]
        settings: Box<Settings>,
    },
    /// Come into a cluster that runs, as a new node with an empty folder, and serve: ask for a place, get the ledger and the
    /// log, and with --replaces or --voter a vote as soon as it has caught up. May be started again at any point; once in, `run`
    /// is enough
    #[command(after_help = JOIN_HELP)]
    Join {
        #[command(flatten)]
        join: Joining,
        #[command(flatten)]
        settings: Box<Settings>,
    },
    /// Print the settings that would hold, as a TOML file with their sources, and start nothing
    CheckConfig(Box<Settings>),
}

/// How a node comes into a cluster.
#[derive(Debug, Clone, Args)]
pub struct Joining {
    /// Addresses for clients, of members; one that answers is enough
    #[arg(
        long,
        value_name = "HOST:PORT",
        value_delimiter = ',',
        required = true,
        env = "BILLINGD_CLUSTER"
    )]
    pub cluster: Vec<String>,

    /// The voter whose place this node takes, in one change: it leaves the cluster for ever. Dead, damaged or running
    #[arg(long, value_name = "ID")]
    pub replaces: Option<u64>,

    /// Get a vote without taking anybody's place
    #[arg(long, conflicts_with = "replaces")]
    pub voter: bool,

    /// Make an even number of voters all the same, as on the way from three to five
    #[arg(long)]
    pub allow_even: bool,
}

/// Everything is optional here: what is missing comes from the file or from a default (`config.rs`).
#[derive(Debug, Clone, Default, Args)]
pub struct Settings {
    /// Settings as TOML; the keys are the long flags with underscores
    #[arg(long, value_name = "FILE", env = "BILLINGD_CONFIG")]
    pub config: Option<PathBuf>,

    /// This node's id, 1 or more; never used again for another node or after a lost disk
    #[arg(long, value_name = "N", env = "BILLINGD_NODE_ID")]
    pub node_id: Option<u64>,

    /// Folder of the log, the vote and the snapshots; belongs to this node alone
    #[arg(long, value_name = "DIR", env = "BILLINGD_DATA_DIR")]
    pub data_dir: Option<PathBuf>,

    /// Address for clients [default: this node's entry in --peers, else 127.0.0.1:7101]
    #[arg(long, value_name = "HOST:PORT", env = "BILLINGD_LISTEN")]
    pub listen: Option<String>,

    /// Address for the other nodes [default: this node's entry in --peers, else 127.0.0.1:7201]
    #[arg(long, value_name = "HOST:PORT", env = "BILLINGD_RAFT_LISTEN")]
    pub raft_listen: Option<String>,

    /// Every node of the cluster, this one too, as others reach it: its address for clients, then that for nodes
    /// [default: this node alone]
    #[arg(
        long,
        value_name = "ID=CLIENTS/NODES",
        value_delimiter = ',',
        env = "BILLINGD_PEERS"
    )]
    pub peers: Option<Vec<Peer>>,

    /// Found a new cluster: create the data folder, with the nodes of --peers as its members. Once, and on each of them;
    /// refused when the folder exists already. Never a way to replace a lost disk
    #[arg(long)]
    pub bootstrap: bool,

    /// The cluster's name, part of every idempotency key: 1 to 32 letters, digits, `-` or `_`. With --bootstrap the new
    /// cluster's, the same at every founding node (a single node may leave it out, and prints the one it draws); afterwards
    /// it guards against starting with another cluster's folder
    #[arg(long, value_name = "NAME", env = "BILLINGD_LEDGER_ID")]
    pub ledger_id: Option<LedgerId>,

    /// The longest TTL that anybody may ask for, 1s to 5m; for good. After a restore no lease is granted for so long
    /// [default: 5m]
    #[arg(long, value_name = "TIME", requires = "bootstrap", value_parser = duration)]
    pub ttl_max: Option<Duration>,

    /// The operator's word that nothing in this ledger was ever charged before. Without it BeginCharge is refused until
    /// `AllowCharges`
    #[arg(long, requires = "bootstrap")]
    pub no_prior_charges: bool,

    /// Serve plain text beyond this machine. Anybody on that network can then move money
    #[arg(long, env = "BILLINGD_INSECURE")]
    pub insecure: bool,

    /// How often a leader is heard [default: 250ms]
    #[arg(long, value_name = "TIME", env = "BILLINGD_HEARTBEAT", value_parser = duration)]
    pub heartbeat: Option<Duration>,

    /// The shortest silence after which a follower stands for election [default: 1s]
    #[arg(long, value_name = "TIME", env = "BILLINGD_ELECTION_TIMEOUT_MIN", value_parser = duration)]
    pub election_timeout_min: Option<Duration>,

    /// The longest such silence [default: 1300ms]
    #[arg(long, value_name = "TIME", env = "BILLINGD_ELECTION_TIMEOUT_MAX", value_parser = duration)]
    pub election_timeout_max: Option<Duration>,

    /// Log entries between two snapshots [default: 20000]
    #[arg(long, value_name = "ENTRIES", env = "BILLINGD_SNAPSHOT_EVERY")]
    pub snapshot_every: Option<u64>,

    /// How long calls in flight may take to finish at shutdown [default: 10s]
    #[arg(long, value_name = "TIME", env = "BILLINGD_SHUTDOWN_GRACE", value_parser = duration)]
    pub shutdown_grace: Option<Duration>,

    /// Calls served at the same time; one more is refused at once with RESOURCE_EXHAUSTED [default: 8192]
    #[arg(long, value_name = "CALLS", env = "BILLINGD_CALLS_MAX")]
    pub calls_max: Option<u32>,

    /// Client connections at the same time; one more is closed at once. Fewer where the process may open fewer files than
    /// that and 256 more (`ulimit -Hn`) [default: 4096]
    #[arg(long, value_name = "CONNECTIONS", env = "BILLINGD_CONNECTIONS_MAX")]
    pub connections_max: Option<u32>,

    /// Threads that serve; on two cores more than one is slower [default: 1]
    #[arg(long, value_name = "THREADS", env = "BILLINGD_WORKER_THREADS")]
    pub worker_threads: Option<u32>,

    /// What is logged, on stderr: error, warn, info, debug, trace, or per module as in `info,billing_server=debug`
    /// [default: info]
    #[arg(long, value_name = "FILTER", env = "BILLINGD_LOG")]
    pub log: Option<String>,

    /// Lines for people, or one JSON object per line for programs [default: text]
    #[arg(long, value_name = "FORMAT", env = "BILLINGD_LOG_FORMAT")]
    pub log_format: Option<LogFormat>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; such as 250ms, 10s, 5m"))
}
