//! The life of one `billingd`: ports, folder, node, services, signals, end. Decides the order in which things start and stop.
//!
//! Ports come first, so that a second process finds out before it touches any folder. At the end: health says not serving,
//! no call is taken any more, those in flight finish within the grace, leadership is handed over, the disk is closed.

use std::collections::BTreeMap;
use std::process::exit;

use billing_core::LedgerId;
use billing_env::{Env, Listener};
use billing_store::{Disk, Identity, StoreError};
use bytes::Bytes;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::Config;
use crate::exit::Fatal;
use crate::join::{self, Plan};
use crate::node::{EndReason, FailStop, Founding, Node, NodeConfig};
use crate::open_files;
use crate::raft::Peer;
use crate::restore::ledger_of;
use crate::server::{ClientLimits, Serving};
use crate::telemetry;

/// Runs the node of `config` until a signal ends it. Returns `Ok` when it ended in order; ends the process itself when the
/// node can no longer be believed.
pub fn run(config: Config, join: Option<Plan>) -> Result<(), Fatal> {
    telemetry::start(config.node_id, &config.log, config.log_format).map_err(Fatal::Bug)?;
    end_on_panic();
    let mut builder = if config.worker_threads == 1 {
        tokio::runtime::Builder::new_current_thread()
    } else {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(config.worker_threads as usize);
        builder
    };
    let runtime = builder
        .enable_all()
        .build()
        .map_err(|error| Fatal::Bug(format!("the runtime cannot start: {error}")))?;
    runtime.block_on(live(config, join, Env::real()))
}

/// A panic anywhere is a bug, and half a node must not go on: a task that died silently may be the one that replicates.
fn end_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        let fatal = Fatal::Bug(info.to_string());
        eprintln!("billingd: {fatal}");
        exit(fatal.code().into());
    }));
}

async fn live(config: Config, join: Option<Plan>, env: Env) -> Result<(), Fatal> {
    let mut signals = Signals::new()?;
    let connections_max = open_files::room(config.connections_max)?;
    let clients = listen(&env, "listen", &config.listen).await?;
    let peers = listen(&env, "raft-listen", &config.raft_listen).await?;
    let members = members(&config, &*clients, &*peers);
    let own = members.get(&config.node_id).cloned();
    let (disk, founding) = match (&join, &own) {
        (Some(plan), Some(own)) => (join::enter(plan, &config, &env, own).await?, None),
        _ => folder(&config, &env).await?,
    };
    let ledger = String::from_utf8_lossy(&disk.identity.cluster).into_owned();
    if join.is_none() && founding.is_none() && disk.log.state()?.last.is_none() {
        tracing::warn!(
            "this folder holds no entry yet: if its cluster was never founded, start every founding node with --bootstrap again"
        );
    }
    let fail_stop = fail_stop(&disk);
    let node = NodeConfig {
        founding,
        heartbeat: config.heartbeat,
        election_timeout_min: config.election_timeout_min,
        election_timeout_max: config.election_timeout_max,
        snapshot_every: config.snapshot_every,
        ..NodeConfig::new(config.node_id, members)
    };
    let node = Node::start(node, env.clone(), disk, peers, fail_stop).await?;
    let limits = ClientLimits {
        calls_max: config.calls_max as usize,
        connections_max: connections_max as usize,
        ..ClientLimits::default()
    };
    let this = node.clone();
    let mut serving = Serving::start(env.clone(), node, clients, limits)
        .await
        .map_err(|error| Fatal::Bug(error.to_string()))?;
    tracing::info!(
        %ledger,
        listen = own.as_ref().map(|own| own.client.as_str()),
        raft_listen = own.as_ref().map(|own| own.raft.as_str()),
        data_dir = %config.data_dir.display(),
        version = env!("CARGO_PKG_VERSION"),
        "started"
    );
    let joined = async {
        match &join {
            Some(plan) => join::settle(plan, &this, &env).await,
            None => Ok(()),
        }
    };
    let unjoined = async {
        match joined.await {
            Ok(()) => std::future::pending().await,
            Err(fatal) => fatal,
        }
    };
    // What ends this node although nobody asked it to, in order all the same: calls in flight are answered.
    let mut ended = None;
    tokio::select! {
        name = signals.next() => tracing::info!(signal = name, "shutting down; a second signal ends at once"),
        error = serving.failed() => {
            return Err(Fatal::Address(format!("the client listener at {} failed: {error}", config.listen)));
        }
        why = this.removed() => ended = Some(Fatal::Contradicted(why)),
        fatal = unjoined => ended = Some(fatal),
    }
    tokio::select! {
        biased;
        _ = signals.next() => return Err(Fatal::Hurried),
        () = serving.finish(config.shutdown_grace) => {}
    }
    tracing::info!("ended");
    match ended {
        Some(fatal) => Err(fatal),
        None => Ok(()),
    }
}

async fn listen(env: &Env, setting: &str, address: &str) -> Result<Box<dyn Listener>, Fatal> {
    env.net
        .listen(address)
        .await
        .map_err(|error| Fatal::address(setting, address, &error))
}

/// Every member as the settings say that others reach it.
pub(crate) fn members_told(peers: &[crate::config::Peer]) -> BTreeMap<u64, Peer> {
    let told = |peer: &crate::config::Peer| Peer {
        raft: peer.raft.clone(),
        client: peer.client.clone(),
    };
    peers.iter().map(|peer| (peer.id, told(peer))).collect()
}

/// Every member as others reach it. A lone node that listens on port 0 is where it was given a port.
fn members(config: &Config, clients: &dyn Listener, peers: &dyn Listener) -> BTreeMap<u64, Peer> {
    let real =
        |told: &str, listener: &dyn Listener| match (told.ends_with(":0"), listener.local_addr()) {
            (true, Ok(address)) => address.to_string(),
            (true, Err(_)) | (false, _) => told.to_owned(),
        };
    let mut members = members_told(&config.peers);
    let told = config.own();
    let own = Peer {
        client: real(&told.client, clients),
        raft: real(&told.raft, peers),
    };
    members.insert(config.node_id, own);
    members
}

/// Makes the folder, or opens it. Reading the log takes a while, and nothing else runs yet.
async fn folder(config: &Config, env: &Env) -> Result<(Disk, Option<Founding>), Fatal> {
    let (path, node) = (config.data_dir.as_path(), config.node_id);
    let named = config.ledger_id.as_ref();
    let open = || {
        let found = billing_store::inspect(path)?;
        // One that was put back says so behind the ledger's id, and is that ledger all the same.
        let found = found.filter(|found| {
            let cluster = String::from_utf8_lossy(&found.cluster).into_owned();
            named.is_some_and(|named| named.as_str() == ledger_of(&cluster))
        });
        let expected = match &found {
            Some(found) => Some(&found.cluster[..]),
            None => named.map(|id| id.as_str().as_bytes()),
        };
        billing_store::open(path, node, expected)
    };
    let Some(bootstrap) = &config.bootstrap else {
        let opened = open().map_err(|error| match error {
            StoreError::Empty { .. } => Fatal::NothingThere(error),
            other => Fatal::Store(other),
        })?;
        return Ok((opened, None));
    };
    let ledger_id = match named {
        Some(named) => named.clone(),
        None => draw(env)?,
    };
    let identity = Identity {
        cluster: Bytes::copy_from_slice(ledger_id.as_str().as_bytes()),
        node,
        created_unix_ms: env.clock.wall_ms(),
    };
    let (disk, ledger_id) = match billing_store::create(path, &identity) {
        Ok(disk) => (disk, ledger_id),
        Err(error @ StoreError::AlreadyMade { .. }) => {
            // Ended before the founding members had met: the founding goes on. Once there is an entry, it is over.
            let disk = open()?;
            if disk.log.state()?.last.is_some() {
                return Err(Fatal::FoundedAlready(error));
            }
            let found = String::from_utf8_lossy(&disk.identity.cluster).into_owned();
            let found = LedgerId::new(&found).map_err(|error| Fatal::Bug(error.to_string()))?;
            (disk, found)
        }
        Err(error) => return Err(Fatal::Store(error)),
    };
    if named.is_none() {
        println!("ledger id: {ledger_id}");
    }
    let founding = Founding {
        ledger_id,
        no_prior_charges: bootstrap.no_prior_charges,
        ttl_max: bootstrap.ttl_max,
    };
    Ok((disk, Some(founding)))
}

/// A name that no other ledger has, for those who do not care.
fn draw(env: &Env) -> Result<LedgerId, Fatal> {
    let drawn = format!("ledger-{:016x}", env.random.next_u64());
    LedgerId::new(&drawn).map_err(|error| Fatal::Bug(error.to_string()))
}

/// Ends the process with the message and the code of what went wrong.
fn fail_stop(disk: &Disk) -> FailStop {
    let failure = disk.log.failure();
    FailStop::new(move |reason| {
        // Whatever else noticed it first, the disk's own failure says which it was.
        let fatal = match (&*failure.borrow(), reason) {
            (Some(error), _) | (None, EndReason::Store(error)) => Fatal::Store(error.clone()),
            (None, EndReason::Unreadable(why)) => Fatal::Unreadable(why.clone()),
            (None, EndReason::Contradicted(why)) => Fatal::Contradicted(why.clone()),
            (None, EndReason::Bug(why)) => Fatal::Bug(why.clone()),
        };
        eprintln!("billingd: {fatal}");
        exit(fatal.code().into());
    })
}

/// SIGTERM and Ctrl-C, which mean the same here.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Signals, Fatal> {
        let hear = |kind| signal(kind).map_err(|error| Fatal::Bug(format!("no signals: {error}")));
        Ok(Signals {
            terminate: hear(SignalKind::terminate())?,
            interrupt: hear(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
