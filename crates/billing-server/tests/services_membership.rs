//! Who belongs to the cluster, over the wire: any node answers, and what would harm is refused with its reason.

mod common;

use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use billing_core::{MembershipReason, Rejection};
use billing_env::Env;
use billing_proto::{Failure, v1};
use billing_server::join::{self, Plan};
use billing_server::node::NodeConfig;
use billing_server::server::ClientLimits;
use common::{Cluster, PATIENCE, out_of_bounds, refused};
use tonic::{Code, Status};

/// Between two tries of what is refused for a moment.
const ASK_AGAIN: Duration = Duration::from_millis(20);

fn promote(node_id: u64, replaces: u64, allow_even: bool) -> v1::PromoteMemberRequest {
    v1::PromoteMemberRequest {
        node_id,
        replaces,
        allow_even,
    }
}

fn remove(node_id: u64, allow_even: bool) -> v1::RemoveMemberRequest {
    v1::RemoveMemberRequest {
        node_id,
        allow_even,
    }
}

fn transfer(node_id: u64) -> v1::TransferLeaderRequest {
    v1::TransferLeaderRequest { node_id }
}

/// A node that nobody ever started.
fn nowhere(node_id: u64) -> v1::AddLearnerRequest {
    v1::AddLearnerRequest {
        node_id,
        client_address: "127.0.0.1:9".into(),
        raft_address: "127.0.0.1:9".into(),
    }
}

/// The answer must be a refusal of a change, about this node and for this reason; returns the advice.
#[track_caller]
fn refused_for<T: Debug>(
    answer: Result<T, Status>,
    about: u64,
    wanted: MembershipReason,
) -> String {
    match refused(answer, Code::FailedPrecondition) {
        Rejection::MembershipRefused {
            node,
            reason,
            detail,
        } => {
            assert_eq!((node, reason), (about, wanted), "{detail}");
            detail
        }
        other => panic!("{other:?}"),
    }
}

fn reason<T>(answer: Result<T, Status>) -> Option<MembershipReason> {
    match Failure::from(answer.err()?) {
        Failure::Rejected(Rejection::MembershipRefused { reason, .. }) => Some(reason),
        _ => None,
    }
}

fn voters(members: &[v1::Member]) -> Vec<u64> {
    let voters = members.iter().filter(|member| member.voter);
    voters.map(|member| member.node_id).collect()
}

async fn members(cluster: &Cluster, at: usize) -> Result<Vec<v1::Member>> {
    let mut operators = cluster.operators(at)?;
    let status = operators.get_status(v1::GetStatusRequest {}).await?;
    Ok(status.into_inner().members)
}

/// Asks until it is done or refused for another reason than one of `passing`. Those pass when another node has caught up or was
/// heard from, which nothing but the answer shows.
async fn asked_until_done<T, Fut>(passing: &[MembershipReason], ask: impl Fn() -> Fut) -> Result<T>
where
    Fut: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
{
    let asked = async {
        loop {
            let failure = match ask().await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => Failure::from(status),
            };
            match failure {
                Failure::Rejected(Rejection::MembershipRefused { reason, .. })
                    if passing.contains(&reason) => {}
                other => bail!("{other:?}"),
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    };
    let answered = tokio::time::timeout(PATIENCE, asked).await;
    answered.context("it was refused for too long")?
}

/// Asks until the node has caught up.
async fn promoted(
    cluster: &Cluster,
    at: usize,
    what: v1::PromoteMemberRequest,
) -> Result<Vec<v1::Member>> {
    let operators = cluster.operators(at)?;
    let done = asked_until_done(&[MembershipReason::Lags], || {
        let mut operators = operators.clone();
        async move { operators.promote_member(what).await }
    });
    Ok(done.await?.members)
}

/// Asks until it is done: a leader of a moment ago has not heard from everybody yet.
async fn transferred(cluster: &Cluster, at: usize, to: u64) -> Result<u64> {
    let operators = cluster.operators(at)?;
    let passing = [MembershipReason::Lags, MembershipReason::NoMajority];
    let done = asked_until_done(&passing, || {
        let mut operators = operators.clone();
        async move { operators.transfer_leader(transfer(to)).await }
    });
    Ok(done.await?.leader_id)
}

#[tokio::test]
async fn a_node_comes_gets_a_vote_and_goes_asked_at_a_follower() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let (_, followers) = cluster.leader_and_followers().await?;
    let (asked, replaced) = (followers[0], followers[1] as u64 + 1);
    let comes = cluster.launch(4).await?;
    let mut operators = cluster.operators(asked)?;
    let added = operators.add_learner(comes.clone()).await?.into_inner();
    assert_eq!(added.cluster, "tests");
    assert!(added.last_log_index > 0, "{added:?}");
    // The same again is the same, not a second node.
    operators.add_learner(comes.clone()).await?;
    let learner = members(&cluster, asked).await?;
    let learner = learner.iter().find(|member| member.node_id == 4);
    let learner = learner.context("a member")?;
    assert!(!learner.voter);
    assert_eq!(
        (&learner.client_address, &learner.raft_address),
        (&comes.client_address, &comes.raft_address)
    );
    let now = promoted(&cluster, asked, promote(4, replaced, false)).await?;
    let expected: Vec<u64> = (1..=4).filter(|&id| id != replaced).collect();
    assert_eq!(voters(&now), expected);
    assert_eq!(now.len(), 3, "whom it replaces has left: {now:?}");
    let left = operators.remove_member(remove(4, true)).await?;
    let left = left.into_inner().members;
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left.iter().all(|member| member.node_id != 4), "{left:?}");
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn what_would_harm_is_refused_with_its_reason_wherever_it_is_asked() -> Result<()> {
    let cluster = Cluster::start(3).await?;
    let (leader, followers) = cluster.leader_and_followers().await?;
    let voter = followers[0] as u64 + 1;
    // A learner that does not run, and an id that one had.
    let mut operators = cluster.operators(followers[1])?;
    operators.add_learner(nowhere(5)).await?;
    operators.remove_member(remove(5, false)).await?;
    operators.add_learner(nowhere(4)).await?;
    for at in [leader, followers[0]] {
        let mut operators = cluster.operators(at)?;
        let never = refused_for(
            operators.promote_member(promote(9, 0, false)).await,
            9,
            MembershipReason::NotAMember,
        );
        assert!(never.contains("never was a member"), "{never}");
        refused_for(
            operators.remove_member(remove(9, false)).await,
            9,
            MembershipReason::NotAMember,
        );
        refused_for(
            operators.transfer_leader(transfer(9)).await,
            9,
            MembershipReason::NotAMember,
        );
        let gone = refused_for(
            operators.promote_member(promote(5, 0, false)).await,
            5,
            MembershipReason::NotAMember,
        );
        assert!(gone.contains("removed already"), "{gone}");
        let used = refused_for(
            operators.add_learner(nowhere(5)).await,
            5,
            MembershipReason::IdUsed,
        );
        assert!(used.contains("such as 6"), "{used}");
        refused_for(
            operators.add_learner(nowhere(voter)).await,
            voter,
            MembershipReason::IdUsed,
        );
        refused_for(
            operators.add_learner(nowhere(6)).await,
            6,
            MembershipReason::WrongRole,
        );
        refused_for(
            operators.promote_member(promote(4, 0, true)).await,
            4,
            MembershipReason::Lags,
        );
        refused_for(
            operators.promote_member(promote(voter, 0, true)).await,
            voter,
            MembershipReason::WrongRole,
        );
        refused_for(
            operators.transfer_leader(transfer(4)).await,
            4,
            MembershipReason::WrongRole,
        );
        let even = refused_for(
            operators.remove_member(remove(voter, false)).await,
            voter,
            MembershipReason::EvenVoters,
        );
        assert!(even.contains("allow_even"), "{even}");
    }
    let now = members(&cluster, leader).await?;
    assert_eq!(voters(&now), [1, 2, 3], "nothing of it was changed");
    assert_eq!(now.len(), 4, "{now:?}");
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_request_out_of_its_bounds_is_told_which() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let mut operators = cluster.operators(0)?;
    out_of_bounds(operators.add_learner(nowhere(0)).await, "node_id");
    let everywhere = v1::AddLearnerRequest {
        raft_address: "0.0.0.0:7201".into(),
        ..nowhere(2)
    };
    out_of_bounds(operators.add_learner(everywhere).await, "raft_address");
    let no_port = v1::AddLearnerRequest {
        client_address: "10.0.0.4".into(),
        ..nowhere(2)
    };
    out_of_bounds(operators.add_learner(no_port).await, "client_address");
    out_of_bounds(
        operators.promote_member(promote(0, 0, false)).await,
        "node_id",
    );
    out_of_bounds(
        operators.promote_member(promote(2, 2, false)).await,
        "replaces",
    );
    out_of_bounds(operators.remove_member(remove(0, false)).await, "node_id");
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn an_even_number_of_voters_must_be_meant() -> Result<()> {
    let mut cluster = Cluster::start(1).await?;
    let comes = cluster.launch(2).await?;
    let mut operators = cluster.operators(0)?;
    operators.add_learner(comes).await?;
    common::until(|| async {
        let mut operators = cluster.operators(0)?;
        let answer = operators.promote_member(promote(2, 0, false)).await;
        Ok(reason(answer) != Some(MembershipReason::Lags))
    })
    .await?;
    let even = refused_for(
        operators.promote_member(promote(2, 0, false)).await,
        2,
        MembershipReason::EvenVoters,
    );
    assert!(even.contains("2 voters (1, 2)"), "{even}");
    let now = operators.promote_member(promote(2, 0, true)).await?;
    assert_eq!(voters(&now.get_ref().members), [1, 2]);
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn nobody_is_removed_whom_a_majority_needs() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let (leader, followers) = cluster.leader_and_followers().await?;
    let (dead, needed) = (followers[1] as u64 + 1, followers[0] as u64 + 1);
    let mut operators = cluster.operators(leader)?;
    let at_follower = cluster.operators(followers[0])?;
    cluster.nodes.remove(followers[1]).finish(PATIENCE).await;
    // At once: the leader heard from it a moment ago, and asks whether it is still there.
    for mut operators in [operators.clone(), at_follower] {
        let left = refused_for(
            operators.remove_member(remove(needed, true)).await,
            needed,
            MembershipReason::NoMajority,
        );
        assert!(left.contains("only 1 of 2 needed"), "{left}");
    }
    // The dead one can go.
    let now = operators.remove_member(remove(dead, true)).await?;
    assert_eq!(now.get_ref().members.len(), 2);
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_lone_voter_neither_goes_nor_gives_way() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let mut operators = cluster.operators(0)?;
    refused_for(
        operators.remove_member(remove(1, true)).await,
        1,
        MembershipReason::NoMajority,
    );
    refused_for(
        operators.transfer_leader(transfer(0)).await,
        1,
        MembershipReason::NoMajority,
    );
    let leads = operators.transfer_leader(transfer(1)).await?;
    assert_eq!(leads.get_ref().leader_id, 1, "it leads already");
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn the_leadership_goes_where_it_is_sent_asked_at_any_node() -> Result<()> {
    let cluster = Cluster::start(3).await?;
    let (leader, followers) = cluster.leader_and_followers().await?;
    // At the one that is to lead, at one that is not concerned; in the end at the one that leads.
    let mut leads = leader as u64 + 1;
    for at in [followers[0], leader, followers[1]] {
        let to = at as u64 + 1;
        let asked_at = if at == leader { followers[1] } else { at };
        assert_eq!(transferred(&cluster, asked_at, to).await?, to);
        leads = to;
    }
    let at = usize::try_from(leads)? - 1;
    let moved = transferred(&cluster, at, 0).await?;
    assert_ne!(moved, leads, "to whoever is ready");
    cluster.stop().await;
    Ok(())
}

fn patient(config: &mut NodeConfig) {
    // Whoever was heard from once counts as reached for as long as this test lasts.
    config.election_timeout_max = Duration::from_secs(240);
}

#[tokio::test]
async fn one_change_at_a_time() -> Result<()> {
    let mut cluster = Cluster::tuned(2, ClientLimits::default(), patient).await?;
    let (leader, followers) = cluster.leader_and_followers().await?;
    let leads = leader as u64 + 1;
    let mut asked = cluster.operators(leader)?;
    let mut operators = asked.clone();
    // A change that cannot end: it needs the word of a voter that has just gone.
    cluster.nodes.remove(followers[0]).finish(PATIENCE).await;
    let stands = tokio::spawn(async move { asked.add_learner(nowhere(3)).await });
    common::until(|| async {
        let answer = operators.clone().add_learner(nowhere(4)).await;
        Ok(reason(answer) == Some(MembershipReason::InProgress))
    })
    .await?;
    refused_for(
        operators.remove_member(remove(leads, true)).await,
        leads,
        MembershipReason::InProgress,
    );
    // It leads already, and would hear so without the other change.
    refused_for(
        operators.transfer_leader(transfer(leads)).await,
        leads,
        MembershipReason::InProgress,
    );
    stands.abort();
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn who_joins_with_a_vote_already_takes_nobody_s_place() -> Result<()> {
    let cluster = Cluster::start(3).await?;
    let plan = Plan {
        cluster: cluster.addresses.clone(),
        replaces: Some(2),
        voter: true,
        allow_even: false,
    };
    let env = Env::real();
    let settled = join::settle(&plan, cluster.nodes[0].node(), &env);
    let settled = tokio::time::timeout(PATIENCE, settled).await?;
    assert!(
        settled.is_ok(),
        "{:?}",
        settled.err().map(|fatal| fatal.to_string())
    );
    assert_eq!(voters(&members(&cluster, 0).await?), [1, 2, 3]);
    cluster.stop().await;
    Ok(())
}
