//! I7: the same log gives the same state on every node, through crashes and snapshots too. And no node goes back.

use std::collections::BTreeMap;

use billing_core::ClusterTime;

use super::{Moment, Property, Verdict};

#[derive(Default)]
pub struct ReplicasAgree {
    /// The first state seen at each index.
    hashes: BTreeMap<u64, ([u8; 32], u64)>,
    applied: BTreeMap<u64, u64>,
}

impl Property for ReplicasAgree {
    fn name(&self) -> &'static str {
        "replicas_agree"
    }

    fn look(&mut self, moment: &Moment<'_>) -> Verdict {
        for (&id, node) in moment.nodes {
            let state = node.state;
            let (hash, first) = *self.hashes.entry(state.index).or_insert((state.hash, id));
            if hash != state.hash {
                return Err((
                    None,
                    format!("nodes {first} and {id} differ at index {}", state.index),
                ));
            }
            let before = self.applied.insert(id, state.index).unwrap_or(0);
            if state.index < before {
                return Err((
                    None,
                    format!("node {id} went back from index {before} to {}", state.index),
                ));
            }
        }
        Ok(())
    }

    fn crashed(&mut self, node: u64) {
        self.applied.remove(&node);
    }

    fn restored(&mut self, _kept: u64, _last: ClusterTime) {
        // Their log begins anew behind the backup's index.
        self.hashes.clear();
        self.applied.clear();
    }
}
