//! Decides how the members of the cluster look, to people and to programs. Reads only what the nodes said.

use billing_proto::v1;
use serde::Serialize;

use super::{Card, Row, json, status::Member};
use crate::survey::{MemberAsked, Survey};

/// A member, what it says of itself, and what the leader knows of it.
#[derive(Debug, Serialize)]
pub struct MemberState {
    #[serde(flatten)]
    pub member: Member,
    /// None: it does not answer.
    pub role: Option<String>,
    /// How many entries it lacks; none: no leader answers, who alone knows it.
    pub lag: Option<u64>,
    pub reachable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Row for MemberState {
    const HEADERS: &'static [&'static str] = &[
        "NODE", "ROLE", "VOTE", "CLIENTS", "RAFT", "MATCHED", "LAG", "ANSWERS",
    ];
    fn cells(&self) -> Vec<String> {
        let dash = || "-".to_owned();
        vec![
            self.member.node_id.to_string(),
            self.role.clone().unwrap_or_else(dash),
            vote(self.member.voter).to_owned(),
            self.member.client_address.clone(),
            self.member.raft_address.clone(),
            self.lag
                .map_or_else(dash, |_| self.member.matched_index.to_string()),
            self.lag.map_or_else(dash, |lag| lag.to_string()),
            self.error.clone().unwrap_or_else(|| "yes".to_owned()),
        ]
    }
    fn name(&self) -> String {
        self.member.node_id.to_string()
    }
}

fn vote(voter: bool) -> &'static str {
    if voter { "voter" } else { "learner" }
}

/// All of them, and what their number means.
#[derive(Debug, Serialize)]
pub struct Members {
    pub members: Vec<MemberState>,
    /// Zero: none answers.
    pub leader_id: u64,
    pub voters: u64,
    pub majority: u64,
    pub tolerated_failures: u64,
    pub voters_reachable: u64,
}

impl Members {
    pub fn of(survey: &Survey) -> Members {
        let leader = survey.leader();
        let end = leader.map(|leader| leader.status.last_log_index);
        let members: Vec<MemberState> = survey
            .members_asked()
            .iter()
            .map(|asked| state(asked, end))
            .collect();
        let voters = members.iter().filter(|state| state.member.voter);
        let (count, reachable) = (
            voters.clone().count(),
            voters.filter(|state| state.reachable).count(),
        );
        Members {
            members,
            leader_id: leader.map_or(0, |leader| leader.status.node_id),
            voters: count as u64,
            majority: majority(count as u64),
            tolerated_failures: tolerated(count as u64),
            voters_reachable: reachable as u64,
        }
    }
}

fn state(asked: &MemberAsked<'_>, end: Option<u64>) -> MemberState {
    MemberState {
        member: Member::from(asked.member.clone()),
        role: asked.answer().map(|answer| json::role(answer.status.role)),
        lag: end.map(|end| end.saturating_sub(asked.member.matched_index)),
        reachable: asked.error().is_none(),
        error: asked.error().map(str::to_owned),
    }
}

/// How many voters must agree.
pub fn majority(voters: u64) -> u64 {
    voters / 2 + 1
}

/// How many voters may fail while the rest goes on.
pub fn tolerated(voters: u64) -> u64 {
    voters.saturating_sub(majority(voters))
}

/// `3 voters, 1 may fail`.
pub fn strength(voters: u64) -> String {
    let plural = if voters == 1 { "" } else { "s" };
    match tolerated(voters) {
        0 => format!("{voters} voter{plural}, none may fail"),
        may_fail => format!("{voters} voter{plural}, {may_fail} may fail"),
    }
}

impl Card for Members {
    fn lines(&self) -> Vec<(&'static str, String)> {
        vec![
            (
                "voters",
                format!(
                    "{} ({} answer)",
                    strength(self.voters),
                    self.voters_reachable
                ),
            ),
            ("majority", self.majority.to_string()),
            (
                "leader",
                if self.leader_id == 0 {
                    "none answers".to_owned()
                } else {
                    self.leader_id.to_string()
                },
            ),
        ]
    }
    fn name(&self) -> String {
        self.members
            .iter()
            .map(Row::name)
            .collect::<Vec<_>>()
            .join("\n")
    }
}

/// What AddLearner answers, and how far it has come.
#[derive(Debug, Serialize)]
pub struct Added {
    pub node_id: u64,
    /// What its log has to reach.
    pub last_log_index: u64,
    /// Whether it was waited for, and has.
    pub caught_up: bool,
}

impl Card for Added {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let state = if self.caught_up {
            format!("learner, has caught up with entry {}", self.last_log_index)
        } else {
            format!("learner, has to reach entry {}", self.last_log_index)
        };
        vec![("node", self.node_id.to_string()), ("is", state)]
    }
    fn name(&self) -> String {
        self.node_id.to_string()
    }
}

/// What is left after a promotion or a removal.
#[derive(Debug, Serialize)]
pub struct Changed {
    pub members: Vec<Member>,
    pub voters: u64,
    pub tolerated_failures: u64,
}

impl Changed {
    pub fn new(members: Vec<v1::Member>) -> Changed {
        let mut members: Vec<Member> = members.into_iter().map(Member::from).collect();
        members.sort_by_key(|member| member.node_id);
        let voters = members.iter().filter(|member| member.voter).count() as u64;
        Changed {
            members,
            voters,
            tolerated_failures: tolerated(voters),
        }
    }
}

impl Card for Changed {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let ids = |voter| {
            let of = self.members.iter().filter(|member| member.voter == voter);
            of.map(|member| member.node_id.to_string())
                .collect::<Vec<_>>()
                .join(", ")
        };
        vec![
            ("voters", ids(true)),
            ("learners", ids(false)),
            ("now", strength(self.voters)),
        ]
    }
    fn name(&self) -> String {
        self.members
            .iter()
            .map(|member| member.node_id.to_string())
            .collect::<Vec<_>>()
            .join("\n")
    }
}

#[derive(Debug, Serialize)]
pub struct Leads {
    pub leader_id: u64,
}

impl Card for Leads {
    fn lines(&self) -> Vec<(&'static str, String)> {
        vec![("leader", self.leader_id.to_string())]
    }
    fn name(&self) -> String {
        self.leader_id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_even_number_of_voters_tolerates_no_more_than_one_less() {
        let said: Vec<_> = (1..=5)
            .map(|voters| (majority(voters), tolerated(voters)))
            .collect();
        assert_eq!(said, [(1, 0), (2, 0), (2, 1), (3, 1), (3, 2)]);
        assert_eq!(strength(1), "1 voter, none may fail");
        assert_eq!(strength(5), "5 voters, 2 may fail");
    }
}
