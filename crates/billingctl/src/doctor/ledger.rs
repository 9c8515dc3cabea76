//! Checks of what the nodes keep together: that it is one ledger, how its log grows, and what in it waits for a person.

use std::collections::{BTreeMap, BTreeSet};

use billing_core::limits::{SESSIONS_OPEN_MAX, WAITERS_PER_INVOICE_MAX};
use billing_proto::v1::{self, InvoiceStatus};

use super::{Check, Finding, counted, nodes_listed};
use crate::{
    output::{bytes, json},
    survey::Survey,
};

/// Entries in a log, or since its snapshot, beyond which purging or snapshots seem to have stopped. Above any sensible
/// `snapshot_every`.
const LOG_ENTRIES_WARN: u64 = 1_000_000;
/// What a node catches up with in about a second.
const LAG_ENTRIES_WARN: u64 = 10_000;
/// Of a bound: so near, somebody should know.
const NEAR_PERCENT: u64 = 80;

pub fn checks(survey: &Survey) -> Vec<Check> {
    let mut checks = vec![ledger(survey), state(survey), log(survey), lag(survey)];
    if let Some(best) = survey.best() {
        let status = &best.status;
        checks.extend([
            load(status),
            alarms(status),
            doubt(status),
            review(status),
            charges(status),
        ]);
    }
    checks
}

fn statuses(survey: &Survey) -> Vec<&v1::GetStatusResponse> {
    survey
        .nodes()
        .into_iter()
        .map(|(_, answer)| &answer.status)
        .collect()
}

fn ledger(survey: &Survey) -> Check {
    let statuses = statuses(survey);
    let ids: BTreeSet<&str> = statuses
        .iter()
        .map(|status| status.ledger_id.as_str())
        .filter(|id| !id.is_empty())
        .collect();
    let ids: Vec<&str> = ids.into_iter().collect();
    match ids.as_slice() {
        [] => Check::fail(
            "ledger",
            "no node has a ledger yet",
            "bootstrap the cluster: billingd --help",
        ),
        [one] => Check::ok("ledger", format!("{one} on all nodes")),
        many => Check::fail(
            "ledger",
            format!(
                "the nodes are of {} clusters: ledgers {}",
                many.len(),
                many.join(", ")
            ),
            "name the nodes of one cluster in --endpoints",
        ),
    }
}

/// The same entries give the same state (§3, I7): equal indexes with unequal hashes are two ledgers.
fn state(survey: &Survey) -> Check {
    type Nodes<'a> = BTreeMap<&'a [u8], Vec<u64>>;
    let mut by_index: BTreeMap<(&str, u64), Nodes<'_>> = BTreeMap::new();
    let mut statuses = statuses(survey);
    statuses.sort_by_key(|status| status.node_id);
    for status in &statuses {
        if !status.state_hash.is_empty() {
            let at = (status.ledger_id.as_str(), status.state_hash_index);
            let hashes = by_index.entry(at).or_default();
            hashes
                .entry(&status.state_hash)
                .or_default()
                .push(status.node_id);
        }
    }
    let mut found = Vec::new();
    let mut compared = Vec::new();
    for ((_, index), hashes) in &by_index {
        if hashes.len() > 1 {
            let groups: Vec<_> = hashes
                .iter()
                .map(|(hash, nodes)| {
                    let hash: String = json::hex(hash).chars().take(8).collect();
                    format!("{hash} on {}", nodes_listed(nodes))
                })
                .collect();
            found.push(Finding::fail(
                format!("states differ after entry {index}: {}", groups.join(", ")),
                "stop charging, keep all data folders; replace the minority by new nodes: billingd join --help",
            ));
        } else if let Some(nodes) = hashes.values().find(|nodes| nodes.len() > 1) {
            compared.push(format!(
                "equal after entry {index} on {}",
                nodes_listed(nodes)
            ));
        }
    }
    Check::worst("state", found, || {
        if by_index.is_empty() {
            "no hash yet: the first comes at entry 10000".to_owned()
        } else if statuses.len() == 1 {
            "one node answers: nothing to compare with".to_owned()
        } else if compared.is_empty() {
            "not comparable now: every node is at another mark".to_owned()
        } else {
            compared.join("; ")
        }
    })
}

fn log(survey: &Survey) -> Check {
    let mut found = Vec::new();
    let (mut kept_max, mut age_max, mut bytes_max) = (0, 0, 0);
    for status in statuses(survey) {
        let age = status.last_log_index.saturating_sub(status.snapshot_index);
        let kept = match status.first_log_index {
            // Nothing was purged yet, or all of it: the log holds what no snapshot does.
            0 => age,
            first => (status.last_log_index + 1).saturating_sub(first),
        };
        let node = status.node_id;
        if age > LOG_ENTRIES_WARN {
            found.push(Finding::warn(
                format!("node {node} has taken no snapshot for {age} entries"),
                "see its log for why; or take one now: billingctl cluster snapshot",
            ));
        } else if kept > LOG_ENTRIES_WARN {
            found.push(Finding::warn(
                format!("node {node} keeps {kept} entries in its log"),
                "a member that is down for good holds nothing back; see the node's log for why it does not purge",
            ));
        }
        kept_max = kept.max(kept_max);
        age_max = age.max(age_max);
        bytes_max = status.data_bytes.max(bytes_max);
    }
    Check::worst("log", found, || {
        let on_disk = if bytes_max == 0 {
            String::new()
        } else {
            format!(", {} on disk", bytes(bytes_max))
        };
        format!("at most {kept_max} entries kept, {age_max} since a snapshot{on_disk}")
    })
}

fn lag(survey: &Survey) -> Check {
    let mut found = Vec::new();
    let mut copying = Vec::new();
    let look = "see whether it shrinks: billingctl cluster members; if not, the node or its network is too slow";
    if let Some(leader) = survey.leader() {
        for asked in survey.members_asked() {
            let behind = leader
                .status
                .last_log_index
                .saturating_sub(asked.member.matched_index);
            // One that does not answer is told about already.
            if behind > LAG_ENTRIES_WARN && asked.error().is_none() {
                let said = format!("node {} lacks {behind} entries", asked.member.node_id);
                if asked.member.voter {
                    found.push(Finding::warn(said, look));
                } else {
                    copying.push(format!("{said}, as a learner may"));
                }
            }
        }
    }
    if survey.leader().is_none() {
        found.push(Finding::warn("no leader answers, who alone knows", ""));
    }
    for status in statuses(survey) {
        let behind = status.committed_index.saturating_sub(status.applied_index);
        if behind > LAG_ENTRIES_WARN {
            found.push(Finding::warn(
                format!(
                    "node {} has not applied {behind} committed entries",
                    status.node_id
                ),
                look,
            ));
        }
    }
    Check::worst("lag", found, || match copying.is_empty() {
        true => format!("no node is more than {LAG_ENTRIES_WARN} entries behind"),
        false => copying.join("; "),
    })
}

fn load(status: &v1::GetStatusResponse) -> Check {
    let mut found = Vec::new();
    let v1::GetStatusResponse {
        sessions,
        waiters,
        leases,
        ..
    } = status;
    let (open_max, queue_max) = (SESSIONS_OPEN_MAX as u64, WAITERS_PER_INVOICE_MAX as u64);
    let near = |count: u64, max: u64| count.saturating_mul(100) >= max.saturating_mul(NEAR_PERCENT);
    if *sessions >= open_max {
        found.push(Finding::fail(
            format!("{sessions} sessions of {open_max}: new ones are refused"),
            "one session a process is enough; see who opens so many: billingctl lease list",
        ));
    } else if near(*sessions, open_max) {
        found.push(Finding::warn(
            format!("{sessions} sessions of {open_max}"),
            "one session a process is enough; see who opens so many: billingctl lease list",
        ));
    }
    if near(*waiters, queue_max) {
        found.push(Finding::warn(
            format!("{waiters} requests wait, and one invoice's queue takes {queue_max}"),
            "a queue that grows wants fewer workers on one invoice, or shorter leases",
        ));
    }
    Check::worst("load", found, || {
        format!(
            "{} and {}, {} waiting",
            counted(usize::try_from(*sessions).unwrap_or(usize::MAX), "session"),
            counted(usize::try_from(*leases).unwrap_or(usize::MAX), "lease"),
            waiters
        )
    })
}

fn alarms(status: &v1::GetStatusResponse) -> Check {
    match status.charge_alarms {
        0 => Check::ok("alarms", "no charge was booked twice or with another sum"),
        alarms => Check::fail(
            "alarms",
            format!(
                "{} booked twice or with another sum",
                counted(usize::try_from(alarms).unwrap_or(usize::MAX), "charge")
            ),
            "see which, and pay back what was too much: billingctl charge list --review",
        ),
    }
}

fn count_of(status: &v1::GetStatusResponse, of: InvoiceStatus) -> u64 {
    status
        .invoices
        .iter()
        .filter(|count| count.status() == of)
        .map(|count| count.count)
        .sum()
}

fn doubt(status: &v1::GetStatusResponse) -> Check {
    match count_of(status, InvoiceStatus::InDoubt) {
        0 => Check::ok("doubt", "no charge is in doubt"),
        count => Check::warn(
            "doubt",
            format!("{count} IN_DOUBT: an attempt is open and nobody works on it"),
            "workers continue these by themselves: is one running? billingctl charge list --in-doubt",
        ),
    }
}

fn review(status: &v1::GetStatusResponse) -> Check {
    match count_of(status, InvoiceStatus::Review) {
        0 => Check::ok("review", "no invoice waits for a person"),
        count => Check::warn(
            "review",
            format!("{count} in REVIEW wait for a person"),
            "billingctl charge list --review, then billingctl charge resolve --help",
        ),
    }
}

fn charges(status: &v1::GetStatusResponse) -> Check {
    let mut found = Vec::new();
    if !status.charges_allowed {
        found.push(Finding::warn(
            "charges are not allowed since a bootstrap or restore",
            "compare with the provider's books, then: billingctl cluster allow-charges --help",
        ));
    }
    for provider in &status.paused_providers {
        found.push(Finding::warn(
            format!("provider {provider} is paused"),
            format!("billingctl cluster resume-provider {provider} --reason TEXT"),
        ));
    }
    Check::worst("charges", found, || {
        "allowed, no provider is paused".to_owned()
    })
}
