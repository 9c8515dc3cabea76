//! Decides what nodes tell each other outside of the consensus: who they are, what their wall clocks say, what their states
//! hash to (judged in `divergence.rs`); and how a new cluster is founded. Never lets a folder speak under an id that another
//! folder used.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use billing_core::{Actor, BootstrapWithin, Command, LedgerId, TtlMs};
use futures::stream::{FuturesUnordered, StreamExt as _};
use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{InitializeError, RaftError};
use serde::{Deserialize, Serialize};
use tonic::{Code, Status};

use super::bounds::{GREETING_EVERY, WALL_OFF_MAX_MS};
use super::clock::{Compared, Reading, compare};
use super::{EndReason, Inner, meeting};
use crate::raft::folders::FolderId;
use crate::raft::links::{Lane, body, payload};
use crate::raft::{Peer, StateHash};

/// Between two attempts to find founding members that do not answer yet.
const FOUNDING_RETRY: Duration = Duration::from_millis(250);
/// A greeting is small; a node that takes longer is asked again later.
const GREETING_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Greeting {
    /// Those with whom the caller is about to found a cluster.
    pub founding: Option<BTreeMap<u64, Peer>>,
    /// Whoever hears this was removed, and shall ask all others whether it is so.
    pub farewell: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Greeted {
    pub folder: FolderId,
    pub wall_ms: u64,
    pub hashes: Vec<StateHash>,
}

/// Founds the cluster, together with every other founding member (§7: explicit, once).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Founding {
    pub ledger_id: LedgerId,
    /// The operator says that nothing was ever charged under this ledger id.
    pub no_prior_charges: bool,
    /// The longest TTL that the ledger will know.
    pub ttl_max: TtlMs,
}

pub(crate) async fn greet(
    node: &Inner,
    to: u64,
    peer: &Peer,
    greeting: &Greeting,
) -> Result<(Greeted, i64), Status> {
    let mut link = node.links.to(to, &peer.raft, Lane::Calls)?;
    let request = link.request(payload("greeting", greeting)?);
    let sent = node.env.clock.monotonic();
    let wall = node.env.clock.wall_ms();
    let response = tokio::select! {
        biased;
        response = link.client.hello(request) => response?,
        () = node.env.clock.sleep(GREETING_TIMEOUT) => {
            return Err(Status::deadline_exceeded("no answer in time"));
        }
    };
    let greeted: Greeted = body("greeting", response.get_ref())?;
    // Half of the round trip: it left there about then.
    let round_trip = node.env.clock.monotonic().since(sent);
    let here = wall.saturating_add(u64::try_from(round_trip.as_millis() / 2).unwrap_or(0));
    let offset = i64::try_from(i128::from(greeted.wall_ms) - i128::from(here)).unwrap_or(i64::MAX);
    node.admit(to, greeted.folder).await.map_err(|status| {
        // It is the other one that must not speak, and its own calls are told so: no reason for this one to end.
        match banned(&status) {
            true => Status::failed_precondition(status.message().to_owned()),
            false => status,
        }
    })?;
    Ok((greeted, offset))
}

/// Whether a refusal means that this very node must never speak again under its id.
pub(super) fn banned(status: &Status) -> bool {
    status.code() == Code::PermissionDenied
}

/// Whether a refusal means that this very node is no member any more.
pub(super) fn removed(status: &Status) -> bool {
    status.code() == Code::NotFound
}

/// Tells a node that it was removed. It asks for itself; one that does not hear this finds out when nobody leads it.
pub(crate) async fn farewell(node: &Inner, to: u64, peer: &Peer) {
    let greeting = Greeting {
        founding: None,
        farewell: true,
    };
    if let Err(status) = greet(node, to, peer, &greeting).await {
        tracing::debug!(node = to, reason = status.message(), "no farewell");
    }
}

/// Founds the cluster if it is not founded yet: first everybody must have met everybody, so that a machine which lost its
/// disk is recognised by whoever knew it before; then each starts with the same members, which the library allows.
pub(crate) async fn found(node: Arc<Inner>, founding: Founding) {
    let initialized = match node.raft.is_initialized().await {
        Ok(initialized) => initialized,
        Err(_) => return,
    };
    if !initialized {
        let greeting = Greeting {
            founding: Some(node.config.members.clone()),
            farewell: false,
        };
        let mut silent: BTreeMap<u64, Peer> = node.others();
        while !silent.is_empty() {
            for (to, peer) in silent.clone() {
                match greet(&node, to, &peer, &greeting).await {
                    Ok(_) => {
                        silent.remove(&to);
                    }
                    Err(status) if banned(&status) => {
                        node.fail_stop.trip(contradicted(&status));
                        return;
                    }
                    Err(status) if status.code() == Code::FailedPrecondition => {
                        tracing::error!(
                            node = to,
                            reason = status.message(),
                            "a founding member refuses"
                        );
                    }
                    Err(status) => {
                        tracing::info!(
                            node = to,
                            reason = status.message(),
                            "waiting for a founding member"
                        );
                    }
                }
            }
            if !silent.is_empty() {
                node.env.clock.sleep(FOUNDING_RETRY).await;
            }
        }
        match node.raft.initialize(node.config.members.clone()).await {
            Ok(()) => tracing::info!(members = node.config.members.len(), "founded"),
            // A member that was quicker has replicated it to this one already.
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(error) => {
                node.fail_stop.trip(EndReason::Contradicted(format!(
                    "the cluster cannot be founded: {error}: check that this node is among its peers"
                )));
                return;
            }
        }
    }
    bootstrap(&node, &founding).await;
}

/// The first command of a new ledger. Every founding member proposes it: whoever is first, the others are refused.
async fn bootstrap(node: &Inner, founding: &Founding) {
    let bootstrap = billing_core::Bootstrap {
        ledger_id: founding.ledger_id.clone(),
        no_prior_charges: founding.no_prior_charges,
    };
    let command = match founding.ttl_max {
        TtlMs::MAX => Command::Bootstrap(bootstrap),
        ttl_max => Command::BootstrapWithin(BootstrapWithin { bootstrap, ttl_max }),
    };
    loop {
        match node.propose(Actor::ledger(), command.clone()).await {
            Ok(Ok(_)) => {
                tracing::info!(ledger = %founding.ledger_id, "bootstrapped");
                return;
            }
            Ok(Err(refused)) => {
                tracing::debug!(%refused, "bootstrapped by another member");
                return;
            }
            Err(error) => {
                if *node.closing.borrow() {
                    return;
                }
                tracing::debug!(%error, "not bootstrapped yet");
                node.env.clock.sleep(FOUNDING_RETRY).await;
            }
        }
    }
}

/// Meets the other members where a restored node must. Then greets every one of them at once, when this node is elected, every
/// minute, when its wall clock is set; and when it was told to look around, or no leader has sent it anything for an election timeout: then it may have
/// been removed.
pub(crate) async fn run(node: Arc<Inner>) {
    meeting::meet(&node).await;
    let mut closing = node.closing.subscribe();
    let mut metrics = node.raft.server_metrics();
    let mut led = None;
    loop {
        round(&node).await;
        let lonely = async {
            loop {
                let before = node.membership.appends();
                node.env.clock.sleep(node.config.election_timeout_max).await;
                if node.membership.appends() == before && node.leadership().is_none() {
                    return;
                }
            }
        };
        let elected = async {
            loop {
                let leads = node.leadership();
                if leads != led {
                    led = leads;
                    if led.is_some() {
                        return;
                    }
                }
                if metrics.changed().await.is_err() {
                    return std::future::pending().await;
                }
            }
        };
        tokio::select! {
            biased;
            () = super::until_true(&mut closing) => return,
            () = elected => {}
            () = lonely => {}
            () = node.membership.look_around.notified() => {}
            () = node.replica.clock.doubted() => {}
            () = node.env.clock.sleep(GREETING_EVERY) => {}
        }
    }
}

async fn round(node: &Inner) {
    let members = node.members();
    let greeting = Greeting::default();
    let others: Vec<(u64, Peer)> = members
        .iter()
        .filter(|&(&to, _)| to != node.config.node)
        .map(|(&to, peer)| (to, peer.clone()))
        .collect();
    let mut answers: FuturesUnordered<_> = others
        .iter()
        .map(async |(to, peer)| (to, greet(node, *to, peer, &greeting).await))
        .collect();
    let read = node.replica.clock.reading();
    let majority = members.len() / 2 + 1;
    let (mut offsets, mut bans) = (Vec::new(), Vec::new());
    while let Some((to, answer)) = answers.next().await {
        match answer {
            Ok((_, offset)) => {
                offsets.push(offset);
                // A clock that was never compared is believed: not for as long as somebody is silent.
                if offsets.len() + 1 >= majority && !node.replica.clock.compared() {
                    compare_wall(node, &offsets, read);
                }
            }
            Err(status) if removed(&status) => {
                node.membership.was_removed(status.message());
                return;
            }
            Err(status) if banned(&status) || status.code() == Code::FailedPrecondition => {
                tracing::error!(
                    node = to,
                    reason = status.message(),
                    "a peer refuses this node"
                );
                if banned(&status) {
                    bans.push(status);
                }
            }
            Err(_) => {}
        }
    }
    // One node's word may be that of a stale folder, which takes everybody else for the stranger.
    if let Some(ban) = bans.first()
        && bans.len() >= majority.min(others.len())
    {
        node.fail_stop.trip(contradicted(ban));
        return;
    }
    // Not the leader alone: whoever is elected next stamps by it at once, and each node raises its own alarm.
    if offsets.len() + 1 >= majority {
        compare_wall(node, &offsets, read);
    }
}

/// A node whose wall clock a majority does not share stamps the majority's when it leads (§4). Nothing but audit, `due_at`
/// and closing goes by it.
fn compare_wall(node: &Inner, offsets: &[i64], read: Reading) {
    let correction = match compare(offsets, WALL_OFF_MAX_MS) {
        Compared::Agree { correction_ms } => correction_ms,
        Compared::Split { low_ms, high_ms } => {
            tracing::warn!(
                low_ms,
                high_ms,
                "the members' wall clocks differ, and as many say one time as another: correct them"
            );
            node.replica.clock.doubt_wall(low_ms, high_ms, read);
            return;
        }
    };
    if correction != 0 {
        tracing::warn!(
            off_ms = -correction,
            "this machine's wall clock differs from a majority's by more than {WALL_OFF_MAX_MS} ms; theirs is stamped: correct it"
        );
    }
    node.replica.clock.correct_wall(correction, read);
}

/// Another node's word that this one must not go on.
pub(super) fn contradicted(status: &Status) -> EndReason {
    EndReason::Contradicted(status.message().to_owned())
}

#[cfg(test)]
mod tests {
    use billing_env::{Env, Net, RealNet};
    use billing_store::Identity;

    use super::*;
    use crate::node::{FailStop, Node, NodeConfig};

    #[tokio::test]
    async fn an_address_that_leads_to_oneself_ends_nobody() -> Result<(), Box<dyn std::error::Error>>
    {
        let listener = RealNet.listen("127.0.0.1:0").await?;
        let own = Peer {
            client: "127.0.0.1:9".to_owned(),
            raft: listener.local_addr()?.to_string(),
        };
        // As after a member was added with this node's own address, under another name for it.
        let members = BTreeMap::from([(1, own.clone()), (2, own.clone())]);
        let folder = tempfile::tempdir()?;
        let identity = Identity {
            cluster: "tests".into(),
            node: 1,
            created_unix_ms: 0,
        };
        let disk = billing_store::create(&folder.path().join("node"), &identity)?;
        let config = NodeConfig::new(1, members);
        let fail_stop = FailStop::new(|_| {});
        let node = Node::start(config, Env::real(), disk, listener, fail_stop.clone()).await?;
        let refused = greet(&node.inner, 2, &own, &Greeting::default()).await;
        let status = refused.err().ok_or("it took itself for another node")?;
        assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
        assert!(status.message().contains("reached itself"), "{status:?}");
        round(&node.inner).await;
        assert!(!fail_stop.is_tripped());
        node.shutdown().await;
        Ok(())
    }
}
