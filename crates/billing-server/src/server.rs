//! One node and what it serves to clients. Decides when the node may be called serving, and how serving ends. Knows nothing of
//! flags, signals or folders: `process` does, and a simulation brings its own.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use billing_env::{Env, Listener};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::RoutesBuilder;

use crate::node::bounds::{WATCH_LAG_MAX, WATCHERS_MAX};
use crate::node::{Consistency, Node};
use crate::serve::{Admission, Health, serve};
use crate::services::{self, Door, Watchers};

/// How often a node makes sure that it is serving; while it is not, the shorter one.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOK_EVERY_DOWN: Duration = Duration::from_millis(200);

/// Bounds of one client listener.
#[derive(Debug, Clone, Copy)]
pub struct ClientLimits {
    pub calls_max: usize,
    pub connections_max: usize,
    pub watchers_max: usize,
    /// Records of the audit log that a watcher may be behind the newest one.
    pub watch_lag_max: u64,
}

impl Default for ClientLimits {
    fn default() -> Self {
        ClientLimits {
            calls_max: 8_192,
            connections_max: 4_096,
            watchers_max: WATCHERS_MAX,
            watch_lag_max: WATCH_LAG_MAX,
        }
    }
}

/// A node that serves clients.
pub struct Serving {
    node: Node,
    env: Env,
    health: Health,
    looking: JoinHandle<()>,
    /// Ends calls that wait for others to act.
    waiting: CancellationToken,
    /// Ends accepting.
    accepting: CancellationToken,
    served: JoinHandle<io::Result<()>>,
}

impl Serving {
    /// Serves `node` to clients on `listener`. Returns at once; calls are taken from now on.
    pub async fn start(
        env: Env,
        node: Node,
        listener: Box<dyn Listener>,
        limits: ClientLimits,
    ) -> io::Result<Serving> {
        let (waiting, accepting) = (CancellationToken::new(), CancellationToken::new());
        let mut routes = RoutesBuilder::default();
        let watchers = Watchers::new(env.clock.clone(), limits.watchers_max, limits.watch_lag_max);
        let door = Door::new(node.clone(), env.random.clone(), waiting.clone(), watchers);
        services::add_to(&mut routes, &door);
        let health = Health::add_to(&mut routes)
            .await
            .map_err(io::Error::other)?;
        let hinted = node.clone();
        let admission = Admission::new(
            limits.calls_max,
            Arc::new(move || hinted.leader_hint().map(|hint| (hint.node, hint.client))),
        );
        let looking = tokio::spawn(look(env.clone(), node.clone(), health.clone()));
        let (serving, stop) = (env.clone(), accepting.clone());
        let served = tokio::spawn(async move {
            serve(
                &serving,
                listener,
                limits.connections_max,
                admission,
                routes.routes(),
                stop,
            )
            .await
        });
        Ok(Serving {
            node,
            env,
            health,
            looking,
            waiting,
            accepting,
            served,
        })
    }

    /// The node that is served.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Resolves when the listener fails. Never otherwise.
    pub async fn failed(&mut self) -> io::Error {
        match (&mut self.served).await {
            Ok(Ok(())) => io::Error::other("the client listener ended"),
            Ok(Err(error)) => error,
            Err(error) => io::Error::other(error),
        }
    }

    /// Ends in order: not serving any more, no new calls, those in flight finish within `grace`; then the node hands its
    /// leadership over and closes its disk.
    pub async fn finish(mut self, grace: Duration) {
        self.looking.abort();
        self.health.say(false).await;
        self.node.leave();
        self.waiting.cancel();
        self.accepting.cancel();
        tokio::select! {
            biased;
            ended = &mut self.served => if let Ok(Err(error)) = ended {
                tracing::warn!(%error, "the client listener ended in disorder");
            },
            () = self.env.clock.sleep(grace) => {
                tracing::warn!(?grace, "calls in flight took longer than the grace and are cut off");
                self.served.abort();
            }
        }
        self.node.shutdown().await;
    }
}

/// Says SERVING while a linearizable read works here: a leader is known, a majority follows it, and this node has caught up.
async fn look(env: Env, node: Node, health: Health) {
    let mut serving = false;
    let mut told = None;
    loop {
        let status = node.status();
        let leader = status.leader.map(|leader| leader.node);
        if told != Some((status.role, leader)) {
            told = Some((status.role, leader));
            tracing::info!(role = ?status.role, term = status.term, leader, "role");
        }
        let able = node
            .read(Consistency::Linearizable, |ledger| {
                ledger.ledger_id().is_some()
            })
            .await;
        let able = matches!(able, Ok((true, _)));
        if able != serving {
            serving = able;
            health.say(serving).await;
            tracing::info!(serving, "health");
        }
        env.clock
            .sleep(if serving { LOOK_EVERY } else { LOOK_EVERY_DOWN })
            .await;
    }
}
