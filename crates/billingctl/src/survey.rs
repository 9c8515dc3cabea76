//! Asks every node there is: the endpoints, and then the members that the cluster names beside them. Decides which answers
//! are of one node and whose word counts; judges nothing.

use std::{collections::BTreeSet, time::Duration};

use billing_env::Env;
use billing_proto::v1::{self, NodeRole};
use futures::future::join_all;

use crate::cluster::Cluster;

/// What one address said.
pub struct Asked {
    pub address: String,
    /// Named by --endpoints; else known only as a member.
    pub endpoint: bool,
    /// Or in one line why not.
    pub answer: Result<Answer, String>,
}

pub struct Answer {
    pub status: v1::GetStatusResponse,
    /// This machine's wall clock when the question left.
    pub sent_wall_ms: u64,
    pub round_trip: Duration,
}

pub struct Survey {
    pub asked: Vec<Asked>,
}

/// A member, and how asking it went.
pub struct MemberAsked<'a> {
    pub member: &'a v1::Member,
    /// None: it was not asked, because it has no address.
    pub asked: Option<&'a Asked>,
}

impl MemberAsked<'_> {
    pub fn answer(&self) -> Option<&Answer> {
        self.asked?.answer.as_ref().ok()
    }

    /// Why it did not answer; none: it did.
    pub fn error(&self) -> Option<&str> {
        match self.asked {
            Some(asked) => asked.answer.as_ref().err().map(String::as_str),
            None => Some("it has no address"),
        }
    }
}

impl Survey {
    /// Asks all at once: a node that hangs must not hide the others, nor make the answer as late as all of them together.
    pub async fn ask(cluster: &Cluster, env: &Env) -> Survey {
        let mut asked = ask_all(cluster, env, cluster.endpoints().iter().cloned(), true).await;
        let survey = Survey { asked };
        let known: BTreeSet<&str> = survey
            .asked
            .iter()
            .map(|asked| asked.address.as_str())
            .collect();
        let answered: BTreeSet<u64> = survey
            .answers()
            .map(|(_, answer)| answer.status.node_id)
            .collect();
        let others: Vec<String> = survey
            .members()
            .iter()
            // A member may have answered under another name of its address.
            .filter(|member| {
                !answered.contains(&member.node_id)
                    && !known.contains(member.client_address.as_str())
            })
            .map(|member| member.client_address.clone())
            .filter(|address| !address.is_empty())
            .collect();
        let others = ask_all(cluster, env, others.into_iter(), false).await;
        asked = survey.asked;
        asked.extend(others);
        Survey { asked }
    }

    pub fn answers(&self) -> impl Iterator<Item = (&Asked, &Answer)> {
        self.asked
            .iter()
            .filter_map(|asked| Some((asked, asked.answer.as_ref().ok()?)))
    }

    /// One answer of each node, however many names it was asked under.
    pub fn nodes(&self) -> Vec<(&Asked, &Answer)> {
        let mut seen = BTreeSet::new();
        self.answers()
            .filter(|(_, answer)| seen.insert(answer.status.node_id))
            .collect()
    }

    /// Whoever says that it leads, in the newest term.
    pub fn leader(&self) -> Option<&Answer> {
        self.answers()
            .map(|(_, answer)| answer)
            .filter(|answer| answer.status.role() == NodeRole::Leader)
            .max_by_key(|answer| answer.status.term)
    }

    /// Whose word counts: the leader's, else that of the node which has applied most.
    pub fn best(&self) -> Option<&Answer> {
        self.leader().or_else(|| {
            self.answers()
                .map(|(_, answer)| answer)
                .max_by_key(|answer| answer.status.applied_index)
        })
    }

    /// In order of id.
    pub fn members(&self) -> Vec<&v1::Member> {
        let mut members: Vec<_> = self
            .best()
            .map(|answer| answer.status.members.iter().collect())
            .unwrap_or_default();
        members.sort_by_key(|member| member.node_id);
        members
    }

    pub fn members_asked(&self) -> Vec<MemberAsked<'_>> {
        let of = |member: &v1::Member| {
            let by_id = self
                .answers()
                .find(|(_, answer)| answer.status.node_id == member.node_id)
                .map(|(asked, _)| asked);
            by_id.or_else(|| {
                self.asked
                    .iter()
                    .find(|asked| asked.answer.is_err() && asked.address == member.client_address)
            })
        };
        self.members()
            .into_iter()
            .map(|member| MemberAsked {
                member,
                asked: of(member),
            })
            .collect()
    }
}

async fn ask_all(
    cluster: &Cluster,
    env: &Env,
    addresses: impl Iterator<Item = String>,
    endpoint: bool,
) -> Vec<Asked> {
    join_all(addresses.map(|address| async move {
        let answer = ask(cluster, env, &address).await;
        Asked {
            address,
            endpoint,
            answer,
        }
    }))
    .await
}

async fn ask(cluster: &Cluster, env: &Env, address: &str) -> Result<Answer, String> {
    // The first question also makes the connection, so its round trip says nothing about clocks.
    cluster.status_of(address).await?;
    let sent_wall_ms = env.clock.wall_ms();
    let sent_at = env.clock.monotonic();
    let status = cluster.status_of(address).await?;
    let round_trip = env.clock.monotonic().since(sent_at);
    Ok(Answer {
        status,
        sent_wall_ms,
        round_trip,
    })
}
