//! Decides how the state of the nodes looks, and what in it a person should notice. Reads only what the nodes said.

use std::collections::{BTreeMap, BTreeSet};

use billing_proto::v1;
use serde::Serialize;

use super::{Card, Row, bytes, json, span, tenths_of_ms};

/// What one endpoint answered, or why it did not.
#[derive(Debug, Serialize)]
pub struct Node {
    pub endpoint: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<NodeStatus>,
}

/// GetStatusResponse.
#[derive(Debug, Serialize)]
pub struct NodeStatus {
    pub node_id: u64,
    pub ledger_id: String,
    pub role: String,
    pub term: u64,
    pub leader_id: u64,
    pub leader_address: String,
    pub members: Vec<Member>,
    pub last_log_index: u64,
    pub committed_index: u64,
    pub applied_index: u64,
    pub snapshot_index: u64,
    pub cluster_time_ms: u64,
    pub state_hash: String,
    pub state_hash_index: u64,
    pub charges_allowed: bool,
    /// Status -> how many.
    pub invoices: BTreeMap<String, u64>,
    pub leases: u64,
    pub sessions: u64,
    pub wall_clock_alarm: bool,
    pub charge_alarms: u64,
    pub version: String,
    pub format: u32,
    pub paused_providers: Vec<String>,
    /// Null: the node is of an older version.
    pub wall_time: Option<String>,
    pub fsync_p50_us: u64,
    pub fsync_p99_us: u64,
    pub first_log_index: u64,
    pub data_bytes: u64,
    pub waiters: u64,
}

#[derive(Debug, Serialize)]
pub struct Member {
    pub node_id: u64,
    pub client_address: String,
    pub raft_address: String,
    pub voter: bool,
    pub matched_index: u64,
}

impl From<v1::GetStatusResponse> for NodeStatus {
    fn from(said: v1::GetStatusResponse) -> Self {
        let v1::GetStatusResponse {
            node_id,
            ledger_id,
            role,
            term,
            leader_id,
            leader_address,
            members,
            last_log_index,
            committed_index,
            applied_index,
            snapshot_index,
            cluster_time_ms,
            state_hash,
            state_hash_index,
            charges_allowed,
            invoices,
            leases,
            sessions,
            wall_clock_alarm,
            charge_alarms,
            version,
            format,
            paused_providers,
            wall_time,
            fsync_p50_us,
            fsync_p99_us,
            first_log_index,
            data_bytes,
            waiters,
        } = said;
        NodeStatus {
            node_id,
            ledger_id,
            role: json::role(role),
            term,
            leader_id,
            leader_address,
            members: members.into_iter().map(Member::from).collect(),
            last_log_index,
            committed_index,
            applied_index,
            snapshot_index,
            cluster_time_ms,
            state_hash: json::hex(&state_hash),
            state_hash_index,
            charges_allowed,
            invoices: invoices
                .into_iter()
                .map(|count| (json::status(count.status), count.count))
                .collect(),
            leases,
            sessions,
            wall_clock_alarm,
            charge_alarms,
            version,
            format,
            paused_providers,
            wall_time: wall_time.as_ref().map(json::time),
            fsync_p50_us,
            fsync_p99_us,
            first_log_index,
            data_bytes,
            waiters,
        }
    }
}

impl From<v1::Member> for Member {
    fn from(member: v1::Member) -> Self {
        let v1::Member {
            node_id,
            client_address,
            raft_address,
            voter,
            matched_index,
        } = member;
        Member {
            node_id,
            client_address,
            raft_address,
            voter,
            matched_index,
        }
    }
}

impl Row for Node {
    const HEADERS: &'static [&'static str] = &[
        "ENDPOINT",
        "NODE",
        "ROLE",
        "TERM",
        "LEADER",
        "COMMITTED",
        "APPLIED",
        "SNAPSHOT",
    ];
    fn cells(&self) -> Vec<String> {
        let Some(status) = &self.status else {
            let mut cells = vec![
                self.endpoint.clone(),
                "-".to_owned(),
                "UNREACHABLE".to_owned(),
            ];
            cells.resize(Self::HEADERS.len(), "-".to_owned());
            return cells;
        };
        vec![
            self.endpoint.clone(),
            status.node_id.to_string(),
            status.role.clone(),
            status.term.to_string(),
            if status.leader_id == 0 {
                "none".to_owned()
            } else {
                status.leader_id.to_string()
            },
            status.committed_index.to_string(),
            status.applied_index.to_string(),
            status.snapshot_index.to_string(),
        ]
    }
    fn name(&self) -> String {
        self.endpoint.clone()
    }
}

/// All nodes together.
#[derive(Debug, Serialize)]
pub struct Report {
    pub nodes: Vec<Node>,
    /// What a person should see to; empty: all is well.
    pub problems: Vec<String>,
}

impl Report {
    pub fn new(nodes: Vec<Node>) -> Report {
        let problems = problems(&nodes);
        Report { nodes, problems }
    }

    /// Whether every endpoint answered and all know the same leader.
    pub fn healthy(&self) -> bool {
        let mut leaders = self
            .nodes
            .iter()
            .map(|node| node.status.as_ref().map_or(0, |status| status.leader_id));
        let first = leaders.next().unwrap_or(0);
        first != 0 && leaders.all(|leader| leader == first)
    }

    /// What the fullest node keeps, and how long the slowest disk takes; empty: no node says.
    fn data(&self) -> String {
        let statuses = || self.nodes.iter().filter_map(|node| node.status.as_ref());
        let kept = statuses().map(|status| status.data_bytes).max();
        let slowest = statuses().max_by_key(|status| status.fsync_p50_us);
        match (kept, slowest) {
            (Some(kept), Some(slowest)) if kept > 0 || slowest.fsync_p50_us > 0 => format!(
                "{} at most, a batch durable in {} median, {} p99 at worst",
                bytes(kept),
                tenths_of_ms(slowest.fsync_p50_us),
                tenths_of_ms(slowest.fsync_p99_us)
            ),
            _ => String::new(),
        }
    }

    /// The ledger as the node sees it that has applied most.
    fn newest(&self) -> Option<&NodeStatus> {
        self.nodes
            .iter()
            .filter_map(|node| node.status.as_ref())
            .max_by_key(|status| status.applied_index)
    }
}

impl Card for Report {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let Some(status) = self.newest() else {
            return Vec::new();
        };
        let invoices = status
            .invoices
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(status, count)| format!("{count} {status}"))
            .collect::<Vec<_>>();
        let invoices = if invoices.is_empty() {
            "none".to_owned()
        } else {
            invoices.join(", ")
        };
        let charges = if status.charges_allowed {
            "allowed"
        } else {
            "not allowed"
        };
        vec![
            ("ledger", status.ledger_id.clone()),
            ("invoices", invoices),
            ("leases", status.leases.to_string()),
            ("waiting", status.waiters.to_string()),
            ("sessions", status.sessions.to_string()),
            ("charges", charges.to_owned()),
            ("paused", status.paused_providers.join(", ")),
            ("cluster time", span(status.cluster_time_ms)),
            ("version", status.version.clone()),
            ("data", self.data()),
            (
                "members",
                status
                    .members
                    .iter()
                    .map(Member::said)
                    .collect::<Vec<_>>()
                    .join(", "),
            ),
        ]
    }
    fn name(&self) -> String {
        self.nodes
            .iter()
            .map(|node| node.endpoint.clone())
            .collect::<Vec<_>>()
            .join("\n")
    }
}

impl Member {
    fn said(&self) -> String {
        let learner = if self.voter { "" } else { " (learner)" };
        format!("{} at {}{learner}", self.node_id, self.client_address)
    }
}

/// In order of how much they hurt.
fn problems(nodes: &[Node]) -> Vec<String> {
    let mut problems = Vec::new();
    let answered = || {
        nodes
            .iter()
            .filter_map(|node| node.status.as_ref().map(|status| (node, status)))
    };
    if let Some((node, status)) = answered().find(|(_, status)| status.charge_alarms > 0) {
        problems.push(format!(
            "{} charges were booked twice or with another sum (as {} says): billingctl charge list --review",
            status.charge_alarms, node.endpoint
        ));
    }
    // The same entries give the same state: equal indexes with unequal hashes are two ledgers.
    let mut hashes: BTreeMap<(&str, u64), (&str, &str)> = BTreeMap::new();
    for (node, status) in answered().filter(|(_, status)| !status.state_hash.is_empty()) {
        let key = (status.ledger_id.as_str(), status.state_hash_index);
        let (hash, endpoint) = *hashes
            .entry(key)
            .or_insert((&status.state_hash, &node.endpoint));
        if hash != status.state_hash {
            problems.push(format!(
                "{} and {endpoint} differ in their state after entry {}: stop charging, keep both data folders",
                node.endpoint, status.state_hash_index
            ));
        }
    }
    let mut ledgers = answered()
        .map(|(_, status)| status.ledger_id.as_str())
        .filter(|id| !id.is_empty());
    if let Some(first) = ledgers.next()
        && let Some(other) = ledgers.find(|other| *other != first)
    {
        problems.push(format!(
            "the endpoints are of two clusters: ledgers {first} and {other}"
        ));
    }
    for node in nodes {
        if let Some(error) = &node.error {
            problems.push(format!("{} does not answer: {error}", node.endpoint));
        }
    }
    let versions: BTreeSet<&str> = answered()
        .map(|(_, status)| status.version.as_str())
        .collect();
    if versions.len() > 1 {
        let versions = versions.into_iter().collect::<Vec<_>>().join(", ");
        problems.push(format!("the nodes run different versions: {versions}"));
    }
    for (node, status) in answered() {
        if status.leader_id == 0 {
            problems.push(format!(
                "{} knows no leader: nothing can be changed through it",
                node.endpoint
            ));
        }
        if status.wall_clock_alarm {
            problems.push(format!(
                "{}: its wall clock is off by more than 30s; set it (NTP)",
                node.endpoint
            ));
        }
    }
    if let Some((_, status)) = answered().next()
        && !status.charges_allowed
    {
        problems.push(
            "charges are not allowed yet: billingctl cluster allow-charges --help".to_owned(),
        );
    }
    problems
}
