//! Decides how `billingctl cluster ...` is written. Never talks to a cluster.

use std::path::PathBuf;
use std::time::Duration;

use billing_proto::restore::RestoreId;
use clap::{Args, Subcommand};

use super::{Reason, host_port};

const ADD_EXAMPLES: &str = "\
Examples:
  billingd join --help                         the usual way: the new node asks for itself
  billingctl cluster add 4 10.0.0.4:7101 10.0.0.4:7201 --wait
  billingctl cluster promote 4 --replaces 3    then, to swap a lost node for it";

const PROMOTE_EXAMPLES: &str = "\
Examples:
  billingctl cluster promote 4 --replaces 3    node 4 votes, node 3 leaves for ever: one change
  billingctl cluster promote 4 --allow-even    from 3 voters to 4, on the way to 5
  billingctl cluster promote 5                 from 4 to 5";

const REMOVE_EXAMPLES: &str = "\
Examples:
  billingctl cluster remove 4                    a learner, or one of an even number of voters
  billingctl cluster remove 3 --allow-even       from 3 voters to 2: no failure is tolerated then";

const BACKUP_EXAMPLES: &str = "\
Examples:
  billingctl cluster backup --out ledger-2026-11-22.backup
  billingctl cluster verify ledger-2026-11-22.backup -o json | jq .applied_index";

const RESTORE_EXAMPLES: &str = "\
Examples:
  P=1=127.0.0.1:7101/127.0.0.1:7201,2=127.0.0.1:7102/127.0.0.1:7202,3=127.0.0.1:7103/127.0.0.1:7203
  billingctl cluster restore FILE --peers $P --node 1=new/1 --node 2=new/2 --node 3=new/3
  billingd --node-id 1 --data-dir new/1 --peers $P &        and so on, without --bootstrap
  billingctl cluster allow-charges --evidence TEXT          after comparing with the provider's books";

#[derive(Debug, Subcommand)]
pub enum Cluster {
    /// Ask every endpoint how it is, and show those that do not answer too.
    ///
    /// Ends with 2 unless every endpoint answered and all name the same leader.
    Status,
    /// Show who belongs to the cluster: role, vote, addresses, how far each log reaches, and whether the node answers.
    ///
    /// Asks every member, also those that --endpoints does not name. How far the logs reach only the leader knows.
    Members,
    /// Let a new node receive the log, as a learner: without a vote.
    ///
    /// `billingd join` on the new machine does this by itself; this command is for those who start nodes by hand. The id must
    /// be one that was never used before, not even by a node that has left.
    #[command(after_help = ADD_EXAMPLES)]
    Add(Add),
    /// Give a learner its vote, once it has caught up.
    #[command(after_help = PROMOTE_EXAMPLES)]
    Promote(Promote),
    /// Take a node out of the cluster, for ever: its id is never used again.
    ///
    /// Says how many voters and tolerated failures will be left, and on a terminal asks first. Removing the leader is done by
    /// handing its lead to another voter.
    #[command(after_help = REMOVE_EXAMPLES)]
    Remove(Remove),
    /// Hand the lead to another voter, before its machine is serviced, say. Answers when that one leads.
    TransferLeader {
        /// Who shall lead. Default: the voter whose log reaches farthest.
        #[arg(value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
        node_id: Option<u64>,
    },
    /// Let nodes write a snapshot of their ledger to their own disks, now. Answers when it is durable.
    ///
    /// A node does this by itself every so many entries; after it, it needs less of its log. This is no backup: it lies on the
    /// node's own disk.
    Snapshot {
        /// Which nodes, `host:port`. Default: all of --endpoints.
        #[arg(value_name = "NODE", value_parser = host_port)]
        nodes: Vec<String>,
        /// How long a node may take.
        #[arg(long, value_name = "SPAN", value_parser = super::timeout, default_value = "5m")]
        patience: Duration,
    },
    /// Write the whole ledger to a file, while the cluster serves.
    ///
    /// Every byte is verified on the way; the file gets its name when it is whole and on the disk. It holds the ledger as of
    /// one entry: invoices, leases, attempts, audit log.
    #[command(after_help = BACKUP_EXAMPLES)]
    Backup {
        /// The file.
        #[arg(long, short = 'f', value_name = "FILE")]
        out: PathBuf,
        /// Replace the file if there is one.
        #[arg(long)]
        force: bool,
    },
    /// Verify a backup, down to the ledger inside, and show what it holds. Needs no cluster.
    Verify {
        /// What `cluster backup` wrote.
        file: PathBuf,
    },
    /// Make the data folders of a new cluster out of a backup. Needs no cluster, and touches none.
    ///
    /// Runs `billingd restore` once for each --node: for a cluster on this machine. On several machines run this, or `billingd
    /// restore`, on each, with the same file and the same --peers, and on all but the first with the --restore-id that the
    /// first one shows.
    ///
    /// The ledger keeps its id. Once the nodes run: all sessions have ended, no lease is granted before the longest TTL has
    /// passed, and nothing is charged before `billingctl cluster allow-charges`. No node takes part before it has met all
    /// others: start them all.
    #[command(after_help = RESTORE_EXAMPLES)]
    Restore(Restore),
    /// Allow charging after a restore, or after a bootstrap that was not the first. Audited.
    ///
    /// Do this only after the longest time that a charge can be on its way (valid_for + in_flight_max of its terms), after
    /// cancelling at the provider what can still be confirmed and the ledger does not know, and after comparing the ledger
    /// with the provider's books: what the ledger forgot could be charged again.
    AllowCharges {
        /// What was compared.
        #[arg(long, value_name = "TEXT")]
        evidence: String,
    },
    /// Refuse BeginCharge for one provider until it is resumed. Audited.
    PauseProvider {
        /// As in the terms of the charges: stripe, say.
        provider: String,
        #[command(flatten)]
        reason: Reason,
    },
    /// Allow BeginCharge for a paused provider again. Audited.
    ResumeProvider {
        /// As in the terms of the charges: stripe, say.
        provider: String,
        #[command(flatten)]
        reason: Reason,
    },
}

#[derive(Debug, Args)]
pub struct Restore {
    /// What `cluster backup` wrote.
    pub file: PathBuf,
    /// Every node of the new cluster, as others reach it: its address for clients, then that for nodes.
    #[arg(long, value_name = "ID=CLIENTS/NODES,...")]
    pub peers: String,
    /// A node to make here, and its new data folder. Once for each.
    #[arg(long = "node", value_name = "ID=DIR", value_parser = node_and_folder, required = true)]
    pub nodes: Vec<(u64, PathBuf)>,
    /// Of a restore whose first node was made elsewhere. Default: a new one is drawn.
    #[arg(long, value_name = "ID")]
    pub restore_id: Option<RestoreId>,
    /// The `billingd` to run. Default: the one beside this program, else that of PATH.
    #[arg(long, value_name = "PROGRAM")]
    pub billingd: Option<PathBuf>,
}

fn node_and_folder(text: &str) -> Result<(u64, PathBuf), String> {
    let parsed = text.split_once('=').and_then(|(id, folder)| {
        let id = id.parse().ok().filter(|&id| id > 0)?;
        (!folder.is_empty()).then(|| (id, PathBuf::from(folder)))
    });
    parsed.ok_or_else(|| "not of the form ID=DIR, such as 1=data/1".to_owned())
}

#[derive(Debug, Args)]
pub struct Add {
    /// The new node's id: above zero, never used before.
    #[arg(value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
    pub node_id: u64,
    /// Where it serves clients, as others reach it.
    #[arg(value_name = "CLIENT_ADDR", value_parser = host_port)]
    pub client_address: String,
    /// Where it serves the other nodes, as they reach it.
    #[arg(value_name = "RAFT_ADDR", value_parser = host_port)]
    pub raft_address: String,
    /// Wait until its log has reached what the leader's was when it was added. Ctrl-C ends the waiting, not the copying.
    #[arg(long)]
    pub wait: bool,
}

#[derive(Debug, Args)]
pub struct Promote {
    /// The learner.
    #[arg(value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
    pub node_id: u64,
    /// The voter whose place it takes, in the same change; that one leaves for ever.
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
    pub replaces: Option<u64>,
    #[command(flatten)]
    pub even: Even,
    #[command(flatten)]
    pub yes: Yes,
}

#[derive(Debug, Args)]
pub struct Remove {
    /// The node.
    #[arg(value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
    pub node_id: u64,
    #[command(flatten)]
    pub even: Even,
    #[command(flatten)]
    pub yes: Yes,
}

#[derive(Debug, Args)]
pub struct Even {
    /// Even if an even number of voters results: it tolerates no more failures than one voter less, and needs one more
    /// for a majority.
    #[arg(long)]
    pub allow_even: bool,
}

#[derive(Debug, Args)]
pub struct Yes {
    /// Do not ask before a node leaves for ever. Where stdin is no terminal nothing is asked anyway.
    #[arg(long, short)]
    pub yes: bool,
}
