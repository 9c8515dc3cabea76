//! Checks of the nodes themselves: who answers, who leads, whether binaries, clocks and disks are fit for it.

use std::collections::BTreeSet;

use billing_proto::v1::{self, NodeRole};

use super::{Check, Finding, counted, nodes_listed};
use crate::{
    output::{
        members::{majority, strength, tolerated},
        span, tenths_of_ms,
    },
    survey::{Answer, Survey},
};

/// Nothing depends on clocks that agree to a second; people who read the audit log do.
const CLOCK_WARN_MS: u64 = 1_000;
/// Here a leader stops trusting its own wall clock (§4).
const CLOCK_FAIL_MS: u64 = 30_000;
/// A lone caller waits for two of these a pair; above, even he notices.
const FSYNC_P50_WARN_US: u64 = 10_000;
/// Half a heartbeat.
const FSYNC_P99_WARN_US: u64 = 100_000;
/// The shortest election timeout: a disk that stalls so long costs its node the lead.
const FSYNC_P99_FAIL_US: u64 = 1_000_000;

pub fn checks(survey: &Survey) -> Vec<Check> {
    vec![
        reach(survey),
        votes(survey),
        leader(survey),
        version(survey),
        clocks(survey),
        disk(survey),
    ]
}

fn reach(survey: &Survey) -> Check {
    let mut found = Vec::new();
    let members = survey.members_asked();
    let (voters, learners): (Vec<_>, Vec<_>) = members.iter().partition(|asked| asked.member.voter);
    for asked in &members {
        let id = asked.member.node_id;
        let Some(error) = asked.error() else { continue };
        let said = format!("node {id} at {}: {error}", asked.member.client_address);
        found.push(if asked.member.voter {
            Finding::fail(
                said,
                "start it again; one that is lost for good is replaced by a new one: billingd join --help",
            )
        } else {
            Finding::warn(said, "start it again, or take the learner out: billingctl cluster remove ID")
        });
    }
    let answering = voters
        .iter()
        .filter(|asked| asked.error().is_none())
        .count() as u64;
    let count = voters.len() as u64;
    if answering < majority(count) {
        found.push(Finding::fail(
            format!("{answering} of {count} voters answer: no majority, nothing can be changed"),
            "",
        ));
    }
    let addresses: BTreeSet<_> = members
        .iter()
        .map(|asked| asked.member.client_address.as_str())
        .collect();
    let ids: BTreeSet<_> = members.iter().map(|asked| asked.member.node_id).collect();
    for asked in survey.asked.iter().filter(|asked| asked.endpoint) {
        match &asked.answer {
            Err(error) if !addresses.contains(asked.address.as_str()) => {
                found.push(Finding::warn(
                    format!("{} is no member's address: {error}", asked.address),
                    "name the members in --endpoints or BILLINGCTL_ENDPOINTS: billingctl cluster members",
                ));
            }
            Ok(answer) if !ids.contains(&answer.status.node_id) => {
                found.push(Finding::warn(
                    format!(
                        "node {} at {} does not belong any more",
                        answer.status.node_id, asked.address
                    ),
                    "stop it, and leave it out of --endpoints",
                ));
            }
            Ok(_) | Err(_) => {}
        }
    }
    Check::worst("reach", found, || {
        let learners = match learners.len() {
            0 => String::new(),
            some => format!(" and {}", counted(some, "learner")),
        };
        format!("all answer: {}{learners}", counted(voters.len(), "voter"))
    })
}

fn votes(survey: &Survey) -> Check {
    let voters = survey
        .members()
        .iter()
        .filter(|member| member.voter)
        .count() as u64;
    let said = strength(voters);
    if tolerated(voters) == 0 {
        return Check::warn(
            "votes",
            said,
            "three voters survive the loss of one: billingd join --help",
        );
    }
    if voters.is_multiple_of(2) {
        return Check::warn(
            "votes",
            format!("{said}: no more than with {}", voters - 1),
            "add a voter, or remove one: billingctl cluster remove --help",
        );
    }
    Check::ok("votes", said)
}

fn leader(survey: &Survey) -> Check {
    let nodes = survey.nodes();
    let mut leaders: Vec<&v1::GetStatusResponse> = nodes
        .iter()
        .map(|(_, answer)| &answer.status)
        .filter(|status| status.role() == NodeRole::Leader)
        .collect();
    leaders.sort_by_key(|status| status.term);
    let again = "look again in a few seconds: an election takes one to two; if it stays, the nodes do not reach one another on their raft ports";
    let Some(newest) = leaders.last() else {
        return Check::fail("leader", "no node leads", again);
    };
    let (id, term) = (newest.node_id, newest.term);
    let mut found = Vec::new();
    for status in &leaders[..leaders.len() - 1] {
        let said = format!(
            "node {} takes itself for the leader of term {}, node {id} for that of term {term}",
            status.node_id, status.term
        );
        found.push(if status.term == term {
            Finding::fail(said, "these are two clusters, or one that is broken: stop charging and keep all data folders")
        } else {
            Finding::warn(said, again)
        });
    }
    for (_, answer) in &nodes {
        let status = &answer.status;
        let follows = status.role() != NodeRole::Leader;
        if follows && status.leader_id == 0 {
            found.push(Finding::warn(
                format!("node {} knows no leader", status.node_id),
                again,
            ));
        } else if follows && (status.leader_id, status.term) != (id, term) {
            found.push(Finding::warn(
                format!(
                    "node {} follows node {} in term {}",
                    status.node_id, status.leader_id, status.term
                ),
                again,
            ));
        }
    }
    let mut check = Check::worst("leader", found, || {
        format!("node {id} leads in term {term}, all agree")
    });
    if !check.next.is_empty() {
        check.said = format!("node {id} leads in term {term}; {}", check.said);
    }
    check
}

fn version(survey: &Survey) -> Check {
    let nodes = survey.nodes();
    let mut found = Vec::new();
    let versions: BTreeSet<_> = nodes
        .iter()
        .map(|(_, answer)| answer.status.version.as_str())
        .collect();
    let formats: BTreeSet<_> = nodes
        .iter()
        .map(|(_, answer)| answer.status.format)
        .collect();
    let each = |show: &dyn Fn(&v1::GetStatusResponse) -> String| {
        let said: Vec<_> = nodes
            .iter()
            .map(|(_, answer)| format!("node {} {}", answer.status.node_id, show(&answer.status)))
            .collect();
        said.join(", ")
    };
    if formats.len() > 1 {
        found.push(Finding::fail(
            format!(
                "formats differ: {}",
                each(&|status| status.format.to_string())
            ),
            "an older node cannot take over what a newer one writes: finish the upgrade",
        ));
    }
    if versions.len() > 1 {
        found.push(Finding::warn(
            format!(
                "versions differ: {}",
                each(&|status| status.version.clone())
            ),
            "finish the upgrade, one node at a time",
        ));
    }
    let ours = env!("CARGO_PKG_VERSION");
    if versions.len() == 1 && !versions.contains(ours) {
        found.push(Finding::warn(
            format!(
                "this billingctl is {ours}, the nodes are {}",
                each(&|status| status.version.clone())
            ),
            "use the billingctl of the nodes' version",
        ));
    }
    Check::worst("version", found, || {
        let formats: Vec<_> = formats.iter().map(u32::to_string).collect();
        format!("{ours} on all nodes, format {}", formats.join(", "))
    })
}

/// How far a node's wall clock is from this machine's, and how far that may be wrong: the answer left somewhere within the
/// round trip.
struct Offset {
    node_id: u64,
    ms: i64,
    wrong_by_ms: u64,
}

fn offset(answer: &Answer) -> Option<Offset> {
    let wall = answer.status.wall_time.as_ref()?;
    let theirs = wall
        .seconds
        .checked_mul(1_000)?
        .checked_add(i64::from(wall.nanos) / 1_000_000)?;
    let half = u64::try_from(answer.round_trip.as_millis()).ok()? / 2;
    let ours = i64::try_from(answer.sent_wall_ms.checked_add(half)?).ok()?;
    Some(Offset {
        node_id: answer.status.node_id,
        ms: theirs.checked_sub(ours)?,
        wrong_by_ms: half,
    })
}

fn clocks(survey: &Survey) -> Check {
    let nodes = survey.nodes();
    let mut found = Vec::new();
    let set = "set the clocks (NTP); charges stay safe meanwhile, due times and the audit log go by a median";
    let level = |ms: u64, said: String| {
        if ms > CLOCK_FAIL_MS {
            Finding::fail(said, set)
        } else {
            Finding::warn(said, set)
        }
    };
    for (_, answer) in nodes
        .iter()
        .filter(|(_, answer)| answer.status.wall_clock_alarm)
    {
        found.push(Finding::fail(
            format!(
                "node {} says that its clock is off by more than 30s from a majority's",
                answer.status.node_id
            ),
            set,
        ));
    }
    let offsets: Vec<Offset> = nodes
        .iter()
        .filter_map(|(_, answer)| offset(answer))
        .collect();
    for Offset {
        node_id,
        ms,
        wrong_by_ms,
    } in &offsets
    {
        let apart = ms.unsigned_abs().saturating_sub(*wrong_by_ms);
        if apart > CLOCK_WARN_MS {
            let way = if *ms > 0 { "ahead of" } else { "behind" };
            found.push(level(
                apart,
                format!("node {node_id} is {} {way} this machine", span(apart)),
            ));
        }
    }
    let first = offsets.iter().min_by_key(|offset| offset.ms);
    let last = offsets.iter().max_by_key(|offset| offset.ms);
    if let (Some(first), Some(last)) = (first, last) {
        let apart = last
            .ms
            .abs_diff(first.ms)
            .saturating_sub(first.wrong_by_ms + last.wrong_by_ms);
        if apart > CLOCK_WARN_MS {
            found.push(level(
                apart,
                format!(
                    "nodes {} and {} are {} apart",
                    first.node_id,
                    last.node_id,
                    span(apart)
                ),
            ));
        }
    }
    let silent: Vec<u64> = nodes
        .iter()
        .map(|(_, answer)| &answer.status)
        .filter(|status| status.wall_time.is_none())
        .map(|status| status.node_id)
        .collect();
    if !silent.is_empty() {
        let said = format!("no word of its time from {}", nodes_listed(&silent));
        found.push(Finding::warn(
            said,
            "it is of an older version: finish the upgrade",
        ));
    }
    Check::worst("clocks", found, || {
        "within 1s of one another and of this machine".to_owned()
    })
}

fn disk(survey: &Survey) -> Check {
    let nodes = survey.nodes();
    let timed: Vec<&v1::GetStatusResponse> = nodes
        .iter()
        .map(|(_, answer)| &answer.status)
        .filter(|status| status.fsync_p50_us > 0)
        .collect();
    let mut found = Vec::new();
    let faster = "a disk of its own with a power-safe cache; no other writer beside billingd";
    for status in &timed {
        let said = format!(
            "node {}: {} median, {} p99 to make a batch durable",
            status.node_id,
            tenths_of_ms(status.fsync_p50_us),
            tenths_of_ms(status.fsync_p99_us)
        );
        if status.fsync_p99_us > FSYNC_P99_FAIL_US {
            found.push(Finding::fail(
                said,
                format!("{faster}; while it stalls for more than 1s its node loses the lead"),
            ));
        } else if status.fsync_p50_us > FSYNC_P50_WARN_US || status.fsync_p99_us > FSYNC_P99_WARN_US
        {
            found.push(Finding::warn(said, faster));
        }
    }
    let mut check = Check::worst("disk", found, || {
        let worst = timed.iter().max_by_key(|status| status.fsync_p50_us);
        let slowest = timed.iter().map(|status| status.fsync_p99_us).max();
        match (worst, slowest) {
            (Some(worst), Some(slowest)) => format!(
                "a batch is durable in {} median, {} p99 at worst",
                tenths_of_ms(worst.fsync_p50_us),
                tenths_of_ms(slowest)
            ),
            _ => "nothing was written yet".to_owned(),
        }
    });
    if let Some(pairs) = lone_caller(survey) {
        check.said = format!(
            "{}; a lone caller gets at most {pairs} pairs/s from that",
            check.said
        );
    }
    check
}

/// Acquire and release are two entries, one after the other, each durable on a majority: as fast as the slowest disk of the
/// fastest majority.
fn lone_caller(survey: &Survey) -> Option<u64> {
    let members = survey.members_asked();
    let voters = members.iter().filter(|asked| asked.member.voter);
    let majority = usize::try_from(majority(voters.clone().count() as u64)).ok()?;
    let mut times: Vec<u64> = voters
        .filter_map(|asked| asked.answer())
        .map(|answer| answer.status.fsync_p50_us)
        .filter(|us| *us > 0)
        .collect();
    times.sort_unstable();
    let durable_us = times.get(majority.checked_sub(1)?)?;
    Some(1_000_000 / (2 * durable_us))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn answer(wall_ms: i64, sent_wall_ms: u64, round_trip_ms: u64) -> Answer {
        Answer {
            status: v1::GetStatusResponse {
                wall_time: Some(prost_types::Timestamp {
                    seconds: wall_ms.div_euclid(1_000),
                    nanos: i32::try_from(wall_ms.rem_euclid(1_000) * 1_000_000).unwrap_or(0),
                }),
                ..Default::default()
            },
            sent_wall_ms,
            round_trip: Duration::from_millis(round_trip_ms),
        }
    }

    #[test]
    fn half_the_round_trip_is_taken_for_the_way_there() {
        let offset = offset(&answer(1_000_300, 1_000_000, 600)).expect("it says its time");
        assert_eq!((offset.ms, offset.wrong_by_ms), (0, 300));
    }

    #[test]
    fn a_clock_that_no_calendar_knows_is_no_offset() {
        let mut wild = answer(0, 0, 0);
        wild.status.wall_time = Some(prost_types::Timestamp {
            seconds: i64::MAX,
            nanos: 0,
        });
        assert!(offset(&wild).is_none());
    }
}
