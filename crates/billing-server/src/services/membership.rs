//! Who belongs to the cluster: reads what an operator asks and shows what became of it. The rules are the node's.

use std::borrow::Cow;
use std::net::SocketAddr;

use billing_core::OutOfBounds;
use billing_proto::{Failure, status, v1};
use tonic::{Request, Response, Status};

use super::{Door, failure, of, rejected, who};
use crate::config;
use crate::node::{Change, Changed, Member};
use crate::raft::Peer;

/// Where another node or a client is reached; a name is as good as a number.
const ADDRESS_CHARACTERS_MAX: usize = 255;

impl From<Member> for v1::Member {
    fn from(member: Member) -> v1::Member {
        v1::Member {
            node_id: member.node,
            client_address: member.client,
            raft_address: member.raft,
            voter: member.voter,
            matched_index: member.matched.unwrap_or(0),
        }
    }
}

fn out(field: &'static str, bound: impl Into<Cow<'static, str>>) -> Status {
    rejected(OutOfBounds {
        field: field.into(),
        bound: bound.into(),
    })
}

fn node_id(field: &'static str, id: u64) -> Result<u64, Status> {
    match id {
        0 => Err(out(field, "1 or more")),
        id => Ok(id),
    }
}

fn address(field: &'static str, text: &str) -> Result<String, Status> {
    let wrong = || {
        let bound = format!(
            "HOST:PORT as others reach it, of at most {ADDRESS_CHARACTERS_MAX} characters, and no port 0"
        );
        out(field, bound)
    };
    let address = config::host_and_port(text).map_err(|_| wrong())?;
    let plain = address.len() <= ADDRESS_CHARACTERS_MAX
        && address.bytes().all(|byte| byte.is_ascii_graphic());
    // Everybody who dialled such an address would reach itself.
    let everywhere = address
        .parse()
        .is_ok_and(|at: SocketAddr| at.ip().is_unspecified());
    if plain && !everywhere && config::port(&address) != "0" {
        Ok(address)
    } else {
        Err(wrong())
    }
}

/// Asks the node, and says in the log who asked.
async fn change<T>(door: &Door, request: &Request<T>, change: Change) -> Result<Changed, Status> {
    let actor = who::actor(who::OPERATOR, request.extensions());
    tracing::info!(%actor, ?change, "a change of the membership is asked for");
    match door.node.change(change).await {
        Ok(Ok(changed)) => Ok(changed),
        Ok(Err(rejection)) => {
            tracing::info!(%rejection, "refused");
            Err(of(Failure::Rejected(rejection)))
        }
        Err(error) => Err(of(failure(error))),
    }
}

/// Another kind of answer than the question has: a bug, and no proof of anything.
fn unexpected(changed: &Changed) -> Status {
    tracing::error!(
        ?changed,
        "the node answered something else than it was asked"
    );
    status::outcome_unknown("a bug in billingd: the answer is of another kind than the question")
}

fn members(changed: Changed) -> Result<Vec<v1::Member>, Status> {
    match changed {
        Changed::Members(members) => Ok(members.into_iter().map(v1::Member::from).collect()),
        other => Err(unexpected(&other)),
    }
}

pub async fn add_learner(
    door: &Door,
    request: Request<v1::AddLearnerRequest>,
) -> Result<Response<v1::AddLearnerResponse>, Status> {
    let asked = request.get_ref();
    let node = node_id("node_id", asked.node_id)?;
    let peer = Peer {
        client: address("client_address", &asked.client_address)?,
        raft: address("raft_address", &asked.raft_address)?,
    };
    match change(door, &request, Change::AddLearner { node, peer }).await? {
        Changed::Added { last_log } => Ok(Response::new(v1::AddLearnerResponse {
            last_log_index: last_log,
            cluster: door.node.status().cluster,
        })),
        other => Err(unexpected(&other)),
    }
}

pub async fn promote(
    door: &Door,
    request: Request<v1::PromoteMemberRequest>,
) -> Result<Response<v1::PromoteMemberResponse>, Status> {
    let asked = request.get_ref();
    let node = node_id("node_id", asked.node_id)?;
    if asked.replaces == node {
        return Err(out(
            "replaces",
            "another node than the one that is promoted",
        ));
    }
    let promote = Change::Promote {
        node,
        replaces: (asked.replaces != 0).then_some(asked.replaces),
        allow_even: asked.allow_even,
    };
    let members = members(change(door, &request, promote).await?)?;
    Ok(Response::new(v1::PromoteMemberResponse { members }))
}

pub async fn remove(
    door: &Door,
    request: Request<v1::RemoveMemberRequest>,
) -> Result<Response<v1::RemoveMemberResponse>, Status> {
    let asked = request.get_ref();
    let remove = Change::Remove {
        node: node_id("node_id", asked.node_id)?,
        allow_even: asked.allow_even,
    };
    let members = members(change(door, &request, remove).await?)?;
    Ok(Response::new(v1::RemoveMemberResponse { members }))
}

pub async fn transfer_leader(
    door: &Door,
    request: Request<v1::TransferLeaderRequest>,
) -> Result<Response<v1::TransferLeaderResponse>, Status> {
    let to = request.get_ref().node_id;
    let transfer = Change::TransferLeader {
        to: (to != 0).then_some(to),
    };
    match change(door, &request, transfer).await? {
        Changed::Leads(leader_id) => Ok(Response::new(v1::TransferLeaderResponse { leader_id })),
        other => Err(unexpected(&other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_leads_to_one_node() {
        for fine in ["10.0.0.4:7201", "node-4.internal:7201", "[::1]:7201"] {
            assert!(address("raft_address", fine).is_ok(), "{fine}");
        }
        for wrong in ["0.0.0.0:7201", "[::]:7201", "10.0.0.4:0", "10.0.0.4"] {
            assert!(address("raft_address", wrong).is_err(), "{wrong}");
        }
    }
}
