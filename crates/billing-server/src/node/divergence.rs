//! Decides whether this node's state is the one that the log gives (§7, I7). Every node compares the hashes of its state with
//! the other voters': when it starts, when it caught up or was given a snapshot, soon after every published index, and every
//! minute. A node that differs from a majority of the voters ends itself, in every build.
//!
//! Never ends a node for less than a majority's word. Where no majority agrees on a hash (three nodes, three opinions; or two
//! that differ and a third that is away) nobody can tell which state is right. All go on, and say so as errors until it is
//! settled: to end them all would lose the cluster to whatever confused it, and the majority that counts may come back.
//!
//! Nor does a start wait for the comparison. What a node wrote down while its memory was wrong it had served before, too; its
//! disk is checksummed; and a cluster that starts as a whole would wait for the slowest. It is compared within a second of
//! catching up, as a rule before it could be elected.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use super::bounds::GREETING_EVERY;
use super::greet::{Greeting, greet};
use super::{EndReason, Inner, until_true};
use crate::raft::StateHash;

/// After an index was published: the others apply it about now.
const COMPARE_SOON: Duration = Duration::from_millis(100);
/// While a comparison is due and no majority could be compared with.
const COMPARE_AGAIN: Duration = Duration::from_secs(1);

type Hash = [u8; 32];

/// What the comparison of one round says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// There is no index at which a majority's hashes are known.
    NotCompared,
    /// This node's state is a majority's at `index`; `others` have another one there.
    Agrees { index: u64, others: BTreeSet<u64> },
    /// Voters differ at `index`, and no majority is known to agree on anything.
    Undecided {
        index: u64,
        opinions: BTreeMap<u64, Hash>,
    },
    /// A majority of the voters agrees on another state.
    Differs {
        index: u64,
        own: Hash,
        theirs: Hash,
        majority: BTreeSet<u64>,
    },
}

/// `voters` is one set, or two while the membership changes: a majority is one of each.
fn is_majority(nodes: &BTreeSet<u64>, voters: &[BTreeSet<u64>]) -> bool {
    !voters.is_empty()
        && voters
            .iter()
            .all(|config| config.intersection(nodes).count() > config.len() / 2)
}

/// Compares this node's hashes with the others'. One index at which a majority says otherwise is enough; else the newest index
/// that says anything counts.
fn judge(
    me: u64,
    own: &[StateHash],
    others: &BTreeMap<u64, Vec<StateHash>>,
    voters: &[BTreeSet<u64>],
) -> Verdict {
    let own: BTreeMap<u64, Hash> = own.iter().map(|state| (state.index, state.hash)).collect();
    let votes = |node: &u64| voters.iter().any(|config| config.contains(node));
    let mut newest = Verdict::NotCompared;
    for (&index, &mine) in &own {
        let said = others.iter().filter_map(|(&node, states)| {
            let state = states.iter().find(|state| state.index == index)?;
            Some((node, state.hash))
        });
        let opinions: BTreeMap<u64, Hash> = said.chain([(me, mine)]).collect();
        let mut shared: BTreeMap<Hash, BTreeSet<u64>> = BTreeMap::new();
        for (&node, &hash) in opinions.iter().filter(|(node, _)| votes(node)) {
            shared.entry(hash).or_default().insert(node);
        }
        let majority = shared
            .iter()
            .find(|(_, nodes)| is_majority(nodes, voters))
            .map(|(&hash, nodes)| (hash, nodes.clone()));
        match majority {
            Some((theirs, majority)) if theirs != mine => {
                return Verdict::Differs {
                    index,
                    own: mine,
                    theirs,
                    majority,
                };
            }
            Some(_) => {
                let others = opinions.into_iter().filter(|&(_, hash)| hash != mine);
                newest = Verdict::Agrees {
                    index,
                    others: others.map(|(node, _)| node).collect(),
                };
            }
            None if shared.len() > 1 => newest = Verdict::Undecided { index, opinions },
            None => {}
        }
    }
    newest
}

/// Compares whenever it is due, until the node closes.
pub(crate) async fn run(node: Arc<Inner>) {
    let mut closing = node.closing.subscribe();
    let mut due = node.replica.hash_due();
    let mut told = Told::default();
    loop {
        let wanted = *due.borrow_and_update();
        let verdict = tokio::select! {
            biased;
            () = until_true(&mut closing) => return,
            verdict = round(&node) => verdict,
        };
        told.tell(&node, &verdict);
        let settled = match verdict {
            Verdict::Agrees { index, .. } => index >= wanted,
            Verdict::Differs { .. } => return,
            Verdict::NotCompared | Verdict::Undecided { .. } => false,
        };
        let pause = if settled {
            GREETING_EVERY
        } else {
            COMPARE_AGAIN
        };
        tokio::select! {
            biased;
            () = until_true(&mut closing) => return,
            changed = due.changed() => match changed {
                Ok(()) => node.env.clock.sleep(COMPARE_SOON).await,
                Err(_) => return,
            },
            () = node.env.clock.sleep(pause) => {}
        }
    }
}

/// Asks every member. A refusal that concerns more than the state is met, and judged, by the greetings themselves.
async fn round(node: &Inner) -> Verdict {
    let mut members = node.members();
    members.remove(&node.config.node);
    let greeting = Greeting::default();
    let asked = members.iter().map(|(&to, peer)| {
        let greeting = &greeting;
        async move {
            let (greeted, _) = greet(node, to, peer, greeting).await.ok()?;
            Some((to, greeted.hashes))
        }
    });
    let answers = futures::future::join_all(asked).await;
    let others = answers.into_iter().flatten().collect();
    let (own, voters) = {
        let state = node.replica.state();
        let voters = state.membership.membership().get_joint_config().clone();
        (state.known_hashes(), voters)
    };
    judge(node.config.node, &own, &others, &voters)
}

/// What was said already, so that a state of things is told once and then every minute.
#[derive(Default)]
struct Told {
    differing: BTreeSet<u64>,
    at: Option<billing_env::MonoTime>,
}

impl Told {
    fn tell(&mut self, node: &Inner, verdict: &Verdict) {
        let me = node.config.node;
        match verdict {
            Verdict::NotCompared => {}
            Verdict::Agrees { index, others } => {
                if self.is_new(node, others) {
                    tracing::error!(
                        nodes = ?others, index,
                        "the state of other nodes differs from a majority's, this node's among them; they end when they compare"
                    );
                }
            }
            Verdict::Undecided { index, opinions } => {
                if self.is_new(node, &opinions.keys().copied().collect()) {
                    let opinions: Vec<String> = opinions
                        .iter()
                        .map(|(node, hash)| format!("node {node}: {}", hex(hash)))
                        .collect();
                    tracing::error!(
                        index,
                        opinions = opinions.join(", "),
                        "the voters' states differ and no majority agrees on one: nobody can tell which is right. Stop charging \
                         (billingctl cluster pause-provider), start the voters that are away; if none agree, restore a backup"
                    );
                }
            }
            Verdict::Differs {
                index,
                own,
                theirs,
                majority,
            } => node.fail_stop.trip(EndReason::Contradicted(differs(
                me, *index, own, theirs, majority,
            ))),
        }
    }

    fn is_new(&mut self, node: &Inner, differing: &BTreeSet<u64>) -> bool {
        let now = node.env.clock.monotonic();
        let new = !differing.is_empty()
            && (self.differing != *differing
                || self.at.is_none_or(|at| now.since(at) >= GREETING_EVERY));
        if new {
            self.at = Some(now);
        }
        self.differing = differing.clone();
        new
    }
}

fn differs(me: u64, index: u64, own: &Hash, theirs: &Hash, majority: &BTreeSet<u64>) -> String {
    let majority: Vec<String> = majority.iter().map(u64::to_string).collect();
    format!(
        "the state of node {me} after index {index} hashes to {}, that of a majority (nodes {}) to {}: this node's memory or disk \
         changed what the log says; {}",
        hex(own),
        majority.join(", "),
        hex(theirs),
        billing_store::REJOIN
    )
}

fn hex(hash: &Hash) -> String {
    hash.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(said: &[(u64, u8)]) -> Vec<StateHash> {
        said.iter()
            .map(|&(index, hash)| StateHash {
                index,
                hash: [hash; 32],
            })
            .collect()
    }

    /// Node 1 among `voters` says `own`; the others what stands beside their ids.
    fn heard(voters: &[&[u64]], own: &[(u64, u8)], others: &[(u64, &[(u64, u8)])]) -> Verdict {
        let voters: Vec<BTreeSet<u64>> = voters
            .iter()
            .map(|config| config.iter().copied().collect())
            .collect();
        let others = others
            .iter()
            .map(|&(node, said)| (node, states(said)))
            .collect();
        judge(1, &states(own), &others, &voters)
    }

    fn is_alone(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Differs { .. })
    }

    const THREE: &[&[u64]] = &[&[1, 2, 3]];

    #[test]
    fn two_of_three_that_agree_end_the_third() {
        let verdict = heard(THREE, &[(16, 7)], &[(2, &[(16, 8)]), (3, &[(16, 8)])]);
        assert_eq!(
            verdict,
            Verdict::Differs {
                index: 16,
                own: [7; 32],
                theirs: [8; 32],
                majority: [2, 3].into(),
            }
        );
    }

    #[test]
    fn two_that_differ_end_nobody_while_the_third_is_away() {
        let verdict = heard(THREE, &[(16, 7)], &[(2, &[(16, 8)])]);
        assert!(matches!(verdict, Verdict::Undecided { index: 16, .. }));
    }

    #[test]
    fn three_opinions_end_nobody() {
        let verdict = heard(THREE, &[(16, 7)], &[(2, &[(16, 8)]), (3, &[(16, 9)])]);
        let Verdict::Undecided { opinions, .. } = verdict else {
            panic!("{verdict:?}");
        };
        assert_eq!(opinions.len(), 3);
    }

    #[test]
    fn different_indexes_are_no_difference() {
        let verdict = heard(THREE, &[(16, 7)], &[(2, &[(32, 8)]), (3, &[(32, 8)])]);
        assert_eq!(verdict, Verdict::NotCompared);
    }

    #[test]
    fn an_older_index_counts_though_a_newer_one_agrees() {
        let says: &[(u64, u8)] = &[(16, 8), (32, 7)];
        let verdict = heard(THREE, &[(16, 7), (32, 7)], &[(2, says), (3, says)]);
        assert!(is_alone(&verdict), "{verdict:?}");
    }

    #[test]
    fn in_the_majority_one_names_who_is_not() {
        let verdict = heard(THREE, &[(16, 7)], &[(2, &[(16, 8)]), (3, &[(16, 7)])]);
        assert_eq!(
            verdict,
            Verdict::Agrees {
                index: 16,
                others: [2].into(),
            }
        );
    }

    #[test]
    fn learners_have_no_say_but_hear_one() {
        // Nodes 4 and 5 only learn: two voices more against node 1, and still no majority.
        let verdict = heard(
            THREE,
            &[(16, 7)],
            &[(2, &[(16, 7)]), (4, &[(16, 8)]), (5, &[(16, 8)])],
        );
        assert!(matches!(verdict, Verdict::Agrees { .. }), "{verdict:?}");
        // Node 1 only learns: the voters' majority ends it all the same.
        let verdict = heard(
            &[&[2, 3, 4]],
            &[(16, 7)],
            &[(2, &[(16, 8)]), (3, &[(16, 8)])],
        );
        assert!(is_alone(&verdict), "{verdict:?}");
    }

    #[test]
    fn while_the_membership_changes_a_majority_is_one_of_both() {
        let both: &[&[u64]] = &[&[1, 2, 3], &[1, 4, 5]];
        let old = heard(both, &[(16, 7)], &[(2, &[(16, 8)]), (3, &[(16, 8)])]);
        assert!(!is_alone(&old), "{old:?}");
        let all: Vec<(u64, &[(u64, u8)])> = (2..=5).map(|node| (node, &[(16, 8)][..])).collect();
        assert!(is_alone(&heard(both, &[(16, 7)], &all)));
    }

    #[test]
    fn before_there_are_voters_nothing_is_compared() {
        assert_eq!(
            heard(&[], &[(1, 7)], &[(2, &[(1, 8)])]),
            Verdict::NotCompared
        );
    }
}
