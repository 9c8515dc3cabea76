//! Decides when a node that was restored takes part: once it has met all whom it was restored with.
//! Before that it greets and is greeted; it neither votes nor stands for election nor takes entries. Never holds up a node
//! whose cluster was restored long ago.
//!
//! What it is for. A restore makes a folder, and whoever repeats it for one node makes a second folder under the same id, in
//! the same cluster. Had the first one voted before it was lost, then the second one could vote once more in the same term: two
//! leaders, and two ledgers that both call themselves acknowledged.
//!
//! Why no folder's vote is ever followed by another folder's under the same id:
//! - X has met Y when Y answered a greeting of X. By then Y has written down, durably, which folder speaks under X's id (`hear`),
//!   and X which one speaks under Y's (`greet`). The first one that is written down stays for as long as X is a member.
//! - A folder votes, its own candidacy included, only after it has met all others. So whichever folder of X ever voted is
//!   written down by every other member, and any other folder of X is refused by each of them: it meets nobody, and never votes.
//! - A second folder could meet all others only if each of them had lost its own folder as well. Then no disk is left of
//!   whatever the first ones acknowledged: that is the day which a restore is for, and the whole cluster is made anew.
//! - Nor is the one folder's vote counted for the other's: a candidate has met everybody, names in each call the folder that it
//!   means, and another one that is reached in its place does not answer.
//!
//! Entries wait as votes do. Were they taken earlier, `Restore` could be applied by a folder that not all have met, and a vote
//! would not be far. And since they are not, a ledger that awaits its restore no more is proof of the meeting.
//!
//! One that has met all calls others that have not: it hears UNAVAILABLE and asks again; what it needs is a majority that has
//! met all. A node that is started again in the middle of it greets everybody anew, those too whose folders it knows: that it
//! knows them does not say that they know it. Having met all is written down before the first vote, so a member that is lost
//! later holds up nobody, however early.
//!
//! What this cannot see: a folder that was copied or rolled back as a whole is the same folder to all (DESIGN §7). And a whole
//! restore that is repeated under the id of an earlier one, while the folders of that one still run or may run again, makes two
//! clusters of one name: each refuses the other's nodes, but nobody refuses the second one as such.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use billing_store::StoreError;

use super::greet::{Greeting, banned, contradicted, greet, removed};
use super::{Inner, until_true};
use crate::raft::folders::Folders;
use crate::raft::replica::Replica;

/// Between two attempts to meet those who do not answer yet.
const MEETING_RETRY: Duration = Duration::from_millis(250);

/// Whom this node has yet to meet.
#[derive(Debug)]
pub(crate) struct Meeting {
    node: u64,
    /// `None`: it takes part. Empty: it has met all, and is about to write that down.
    missing: Mutex<Option<BTreeSet<u64>>>,
}

impl Meeting {
    /// To be asked when the state is read back from the disk, and before the consensus runs.
    pub fn due(node: u64, replica: &Replica, folders: &Folders) -> Meeting {
        let state = replica.state();
        let stands = state.ledger.awaits_restore() && !folders.is_known_to_all(node);
        let members = state.membership.membership().nodes().map(|(&id, _)| id);
        let missing = stands.then(|| members.filter(|&id| id != node).collect());
        Meeting {
            node,
            missing: Mutex::new(missing),
        }
    }

    pub fn is_over(&self) -> bool {
        self.with(|missing| missing.is_none())
    }

    /// Why this node takes no part, if it does not.
    pub fn why_not_yet(&self) -> Option<String> {
        self.with(|missing| missing.as_ref().map(|missing| why(self.node, missing)))
    }

    fn missing(&self) -> Option<BTreeSet<u64>> {
        self.with(|missing| missing.clone())
    }

    fn met(&self, other: u64) {
        self.with(|missing| {
            if let Some(missing) = missing {
                missing.remove(&other);
            }
        });
    }

    fn end(&self) {
        self.with(|missing| *missing = None);
    }

    fn with<T>(&self, see: impl FnOnce(&mut Option<BTreeSet<u64>>) -> T) -> T {
        // No change is left half made by a panic.
        see(&mut self.missing.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn why(node: u64, missing: &BTreeSet<u64>) -> String {
    let missing: Vec<String> = missing.iter().map(u64::to_string).collect();
    let whom = match missing.len() {
        0 => "is about to write down that it has met all others".to_owned(),
        1 => format!("has not met node {} yet", missing[0]),
        _ => format!("has not met nodes {} yet", missing.join(", ")),
    };
    format!(
        "the cluster is being restored: node {node} {whom}, and takes no part before it has met everybody: start all nodes of the restore"
    )
}

/// Greets until everybody has answered, then lets this node take part. Returns at once where nothing stands in the way.
pub(super) async fn meet(node: &Inner) {
    let mut closing = node.closing.subscribe();
    let mut told = BTreeMap::new();
    while let Some(missing) = node.meeting.missing() {
        if missing.is_empty() {
            take_part(node).await;
            return;
        }
        if !greet_all(node, &missing, &mut told).await {
            return;
        }
        if node.meeting.missing() != Some(BTreeSet::new()) {
            tokio::select! {
                biased;
                () = until_true(&mut closing) => return,
                () = node.env.clock.sleep(MEETING_RETRY) => {}
            }
        }
    }
}

/// False: this node ends. `told` has what each of the others said last, so that only news is logged.
async fn greet_all(
    node: &Inner,
    missing: &BTreeSet<u64>,
    told: &mut BTreeMap<u64, String>,
) -> bool {
    let mut members = node.members();
    members.retain(|id, _| missing.contains(id));
    let greeting = Greeting::default();
    let greetings = members
        .iter()
        .map(|(&to, peer)| greet(node, to, peer, &greeting));
    let answers = futures::future::join_all(greetings).await;
    for (&to, answer) in members.keys().zip(answers) {
        match answer {
            Ok(_) => node.meeting.met(to),
            Err(status) if removed(&status) => {
                node.membership.was_removed(status.message());
                return false;
            }
            Err(status) if banned(&status) => {
                node.fail_stop.trip(contradicted(&status));
                return false;
            }
            Err(status) => {
                let reason = status.message().to_owned();
                if told.get(&to) != Some(&reason) {
                    tracing::warn!(node = to, reason, "a restored node waits to meet another");
                    told.insert(to, reason);
                }
            }
        }
    }
    true
}

async fn take_part(node: &Inner) {
    match node.folders.known_to_all(node.config.node).await {
        Ok(()) => {
            node.meeting.end();
            node.raft.runtime_config().elect(true);
            tracing::info!("met every other node of the restore");
        }
        Err(StoreError::Closed) => {}
        Err(error) => node.fail_stop.trip(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use billing_core::Ledger;
    use billing_env::Env;
    use billing_store::{Identity, LogDisk};

    use super::*;
    use crate::node::FailStop;
    use crate::node::clock::LeaderClock;
    use crate::raft::folders::FolderId;

    async fn folders(disk: &Arc<dyn LogDisk>, drawn: u8) -> Folders {
        Folders::open(disk.clone(), FolderId([drawn; 8]))
            .await
            .expect("a record")
    }

    fn replica(awaits_restore: bool) -> Replica {
        let clock = LeaderClock::new(2, Env::real().clock);
        let replica = Replica::new(clock, FailStop::new(|_| {}));
        let mut ledger = Ledger::new(billing_core::Config::default());
        if awaits_restore {
            ledger.await_restore();
        }
        replica.state_mut().ledger = ledger;
        replica
    }

    #[tokio::test]
    async fn a_meeting_is_due_until_it_is_written_down_and_only_after_a_restore() {
        let folder = tempfile::tempdir().expect("a folder");
        let identity = Identity {
            cluster: "demo+1".into(),
            node: 2,
            created_unix_ms: 0,
        };
        let disk = billing_store::create(&folder.path().join("node"), &identity).expect("a disk");
        let first = folders(&disk.log, 1).await;
        assert!(Meeting::due(2, &replica(false), &first).is_over());
        assert!(!Meeting::due(2, &replica(true), &first).is_over());
        // To know the others is not to be known by them.
        first
            .admit(1, FolderId([7; 8]), |_| true)
            .await
            .expect("admitted");
        let again = folders(&disk.log, 2).await;
        assert!(!Meeting::due(2, &replica(true), &again).is_over());
        again.known_to_all(2).await.expect("written down");
        let again = folders(&disk.log, 3).await;
        assert!(Meeting::due(2, &replica(true), &again).is_over());
        assert_eq!(again.own(), FolderId([1; 8]));
        assert_eq!(again.known(1), Some(FolderId([7; 8])));
    }

    #[test]
    fn a_node_says_whom_it_waits_for() {
        let meeting = Meeting {
            node: 2,
            missing: Mutex::new(Some(BTreeSet::from([1, 3]))),
        };
        let why = meeting.why_not_yet().unwrap_or_default();
        assert!(why.contains("node 2 has not met nodes 1, 3 yet"), "{why}");
        meeting.met(1);
        let why = meeting.why_not_yet().unwrap_or_default();
        assert!(why.contains("node 2 has not met node 3 yet"), "{why}");
        meeting.met(3);
        assert!(!meeting.is_over(), "not before it is written down");
        meeting.end();
        assert_eq!(meeting.why_not_yet(), None);
    }
}
