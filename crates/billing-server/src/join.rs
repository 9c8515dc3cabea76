//! Decides how a new node comes into a cluster that runs: it asks before it makes anything on disk, becomes a learner, is
//! told when it has caught up, and gets its vote, all in one command that may be repeated at any point. Whether it may come
//! at all, the cluster decides. Never founds anything, and never goes on in the place of a disk that was lost.

use std::path::Path;
use std::time::Duration;

use billing_core::{MembershipReason, Rejection};
use billing_env::Env;
use billing_proto::v1::cluster_service_client::ClusterServiceClient;
use billing_proto::{Failure, v1};
use billing_store::{Disk, Identity, StoreError};
use bytes::Bytes;
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use crate::config::Config;
use crate::exit::Fatal;
use crate::node::Node;
use crate::node::bounds::PROMOTE_LAG_MAX;
use crate::raft::Peer;
use crate::restore::ledger_of;

/// How long a cluster without a leader, or without an open port, is waited for before nothing was changed yet.
const PATIENCE: Duration = Duration::from_secs(15);
const CALL_PATIENCE: Duration = Duration::from_secs(25);
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// Looks between two lines about the progress.
const LOOKS_PER_LINE: u32 = 4;

/// What the operator wants this node to become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// `host:port` for clients, of members; one that answers is enough.
    pub cluster: Vec<String>,
    /// The voter whose place it takes.
    pub replaces: Option<u64>,
    /// A vote, even where it takes nobody's place.
    pub voter: bool,
    pub allow_even: bool,
}

impl Plan {
    fn wants_vote(&self) -> bool {
        self.voter || self.replaces.is_some()
    }
}

/// A call without a usable answer.
enum Trouble {
    Refused(Rejection),
    /// Nobody answered, or nobody could tell: what each of the nodes said.
    Silent(String),
}

/// The members as a joining node reaches them.
struct Members<'a> {
    env: &'a Env,
    addresses: Vec<String>,
}

impl Members<'_> {
    fn client(&self, address: &str) -> Result<ClusterServiceClient<Channel>, Status> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let net = self.env.net.clone();
        let address = address.to_owned();
        let channel = endpoint
            .connect_timeout(CONNECT_PATIENCE)
            .connect_with_connector_lazy(tower::service_fn(move |_| {
                let connecting = net.connect(&address);
                async move { Ok::<_, std::io::Error>(TokioIo::new(connecting.await?)) }
            }));
        Ok(ClusterServiceClient::new(channel))
    }

    /// The first answer of any member. Every call made through here may be repeated.
    async fn ask<T, Fut>(
        &self,
        patience: Duration,
        call: impl Fn(ClusterServiceClient<Channel>) -> Fut,
    ) -> Result<T, Trouble>
    where
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let mut said = Vec::new();
        for address in &self.addresses {
            let answered = match self.client(address) {
                Ok(client) => tokio::select! {
                    biased;
                    answered = call(client) => answered,
                    () = self.env.clock.sleep(patience) => Err(Status::deadline_exceeded("no answer in time")),
                },
                Err(status) => Err(status),
            };
            match answered {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => match Failure::from(status) {
                    Failure::Rejected(rejection) => return Err(Trouble::Refused(rejection)),
                    Failure::NotApplied(status) | Failure::Unknown(status) => {
                        said.push(format!("{address}: {}", status.message()));
                    }
                },
            }
        }
        Err(Trouble::Silent(said.join("; ")))
    }

    /// What the leader says of the cluster, or whoever answers where none is known.
    async fn status(&mut self) -> Result<v1::GetStatusResponse, Trouble> {
        let get = |mut client: ClusterServiceClient<Channel>| async move {
            client.get_status(v1::GetStatusRequest {}).await
        };
        let any = self.ask(CONNECT_PATIENCE, get).await?;
        for member in &any.members {
            if !self.addresses.contains(&member.client_address) {
                self.addresses.push(member.client_address.clone());
            }
        }
        if any.leader_id == any.node_id || any.leader_id == 0 {
            return Ok(any);
        }
        let leader = Members {
            env: self.env,
            addresses: vec![any.leader_address.clone()],
        };
        Ok(leader.ask(CONNECT_PATIENCE, get).await.unwrap_or(any))
    }
}

fn member(status: &v1::GetStatusResponse, node: u64) -> Option<&v1::Member> {
    status.members.iter().find(|member| member.node_id == node)
}

fn refused(rejection: &Rejection) -> Fatal {
    Fatal::NotJoined(rejection.to_string())
}

/// Gives this node its place and its folder, in this order, or opens the folder of one that has both.
pub async fn enter(plan: &Plan, config: &Config, env: &Env, own: &Peer) -> Result<Disk, Fatal> {
    let (path, node) = (config.data_dir.as_path(), config.node_id);
    let mut members = Members {
        env,
        addresses: plan.cluster.clone(),
    };
    let found = billing_store::inspect(path)?;
    if found.is_none() {
        unused(path, node)?;
    }
    let begun = env.clock.monotonic();
    let status = loop {
        match members.status().await {
            Ok(status) => break status,
            Err(Trouble::Refused(rejection)) => return Err(refused(&rejection)),
            Err(Trouble::Silent(why)) if found.is_some() => {
                tracing::warn!(
                    why,
                    "the cluster does not answer; this node has its folder and starts"
                );
                return Ok(billing_store::open(path, node, None)?);
            }
            Err(Trouble::Silent(why)) => wait(env, begun, why).await?,
        }
    };
    if let Some(found) = &found {
        let here = String::from_utf8_lossy(&found.cluster).into_owned();
        if !status.ledger_id.is_empty() && ledger_of(&here) != status.ledger_id {
            return Err(Fatal::Store(StoreError::OtherCluster {
                folder: path.to_owned(),
                found: ledger_of(&here).to_owned(),
                expected: status.ledger_id,
            }));
        }
        // A member that starts again: by `join` or by `run`, it is the same.
        return Ok(billing_store::open(path, node, None)?);
    }
    if let Some(known) = member(&status, node).filter(|known| known.voter) {
        return Err(Fatal::NotJoined(format!(
            "node {node} is a voter of this cluster, at {}, and folder {} is empty: {}",
            known.raft_address,
            path.display(),
            billing_store::REJOIN
        )));
    }
    let add = v1::AddLearnerRequest {
        node_id: node,
        client_address: own.client.clone(),
        raft_address: own.raft.clone(),
    };
    let begun = env.clock.monotonic();
    let added = loop {
        let add = &add;
        let asked = members.ask(CALL_PATIENCE, |mut client| async move {
            client.add_learner(Request::new(add.clone())).await
        });
        match asked.await {
            Ok(added) => break added,
            Err(Trouble::Refused(Rejection::MembershipRefused {
                reason: MembershipReason::InProgress,
                detail,
                ..
            })) => wait(env, begun, detail).await?,
            Err(Trouble::Refused(rejection)) => return Err(refused(&rejection)),
            Err(Trouble::Silent(why)) => wait(env, begun, why).await?,
        }
    };
    tracing::info!(
        cluster = added.cluster,
        last_log = added.last_log_index,
        "added as a learner"
    );
    let identity = Identity {
        cluster: Bytes::from(added.cluster),
        node,
        created_unix_ms: env.clock.wall_ms(),
    };
    Ok(billing_store::create(path, &identity)?)
}

/// Waits a moment, and not for ever.
async fn wait(env: &Env, begun: billing_env::MonoTime, why: String) -> Result<(), Fatal> {
    if env.clock.monotonic().since(begun) > PATIENCE {
        return Err(Fatal::NotJoined(format!(
            "no member of the cluster could take it in ({why}): check --cluster, and that a majority of its nodes runs; \
             the same command goes on where this one ended"
        )));
    }
    tracing::info!(why, "waiting for the cluster");
    env.clock.sleep(ASK_AGAIN).await;
    Ok(())
}

/// Refuses a folder in which there is anything, before the cluster is asked for a place.
fn unused(path: &Path, node: u64) -> Result<(), Fatal> {
    match billing_store::open(path, node, None) {
        Err(StoreError::Empty { .. }) => {}
        Err(error) => return Err(error.into()),
        // Made by somebody else since it was looked at.
        Ok(_) => {
            return Err(Fatal::Store(StoreError::AlreadyMade {
                folder: path.to_owned(),
                node,
            }));
        }
    }
    let names: Vec<String> = std::fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let unfinished = names.iter().any(|name| name == "creating");
    let foreign = names
        .iter()
        .find(|name| !["lock", "lost+found"].contains(&name.as_str()));
    match foreign {
        Some(found) if !unfinished => Err(Fatal::Store(StoreError::NotOurs {
            folder: path.to_owned(),
            found: format!("it holds {found}"),
        })),
        _ => Ok(()),
    }
}

/// Says how far the node has come, and gets it its vote when it has caught up. Resolves when it is what the plan wants.
pub async fn settle(plan: &Plan, node: &Node, env: &Env) -> Result<(), Fatal> {
    let mut members = Members {
        env,
        addresses: plan.cluster.clone(),
    };
    let mut looks = 0;
    loop {
        let here = node.status();
        let line = looks % LOOKS_PER_LINE == 0;
        looks += 1;
        if let Some(receiving) = here.receiving {
            if line {
                tracing::info!(
                    received = receiving.received,
                    bytes = receiving.bytes,
                    "joining: receiving a snapshot"
                );
            }
        } else if let Ok(status) = members.status().await {
            let known = member(&status, here.node);
            let replaced = plan
                .replaces
                .is_none_or(|old| member(&status, old).is_none());
            if known.is_some_and(|known| known.voter) && replaced {
                tracing::info!(node = here.node, "joined: this node has a vote");
                return Ok(());
            }
            if known.is_some_and(|known| known.voter) {
                // It got its vote some other way: no reason to take a voter out of the cluster.
                tracing::warn!(
                    node = here.node,
                    replaces = plan.replaces,
                    "this node has a vote already, and the node that it was to replace is still a member: `billingctl cluster remove` takes that one out"
                );
                return Ok(());
            }
            let applied = here.applied.unwrap_or(0);
            let behind = status.last_log_index.saturating_sub(applied);
            let caught_up = known.is_some() && applied > 0 && behind <= PROMOTE_LAG_MAX;
            if caught_up && !plan.wants_vote() {
                tracing::info!(
                    behind,
                    "joined: this node is a learner that has caught up; `billingctl cluster promote` gives it a vote"
                );
                return Ok(());
            }
            if line && !caught_up {
                tracing::info!(behind, applied, "joining: entries behind the leader");
            }
            if caught_up {
                promote(plan, here.node, &members).await?;
            }
        }
        env.clock.sleep(ASK_AGAIN).await;
    }
}

/// Asks for the vote. What is not refused for good is asked again, after another look at the members.
async fn promote(plan: &Plan, node: u64, members: &Members<'_>) -> Result<(), Fatal> {
    let promote = v1::PromoteMemberRequest {
        node_id: node,
        replaces: plan.replaces.unwrap_or(0),
        allow_even: plan.allow_even,
    };
    let promote = &promote;
    let asked = members.ask(CALL_PATIENCE, |mut client| async move {
        client.promote_member(Request::new(*promote)).await
    });
    match asked.await {
        Ok(_) => Ok(()),
        Err(Trouble::Silent(why)) => {
            tracing::info!(why, "joining: not promoted yet");
            Ok(())
        }
        Err(Trouble::Refused(Rejection::MembershipRefused {
            // Each of them passes; no majority may mean that somebody was slow to answer.
            reason:
                MembershipReason::Lags | MembershipReason::InProgress | MembershipReason::NoMajority,
            detail,
            ..
        })) => {
            tracing::info!(why = detail, "joining: not promoted yet");
            Ok(())
        }
        Err(Trouble::Refused(rejection)) => Err(Fatal::NotJoined(format!(
            "{rejection}; this node is a learner meanwhile and loses nothing: start the same command again when that is mended, \
             or start it with `billingd run`"
        ))),
    }
}
