//! I7: the same log gives the same state on every node, through crashes and snapshots too. And no node goes back.

use std::collections::BTreeMap;

use billing_server::node::NodeStatus;

use super::Property;

#[derive(Default)]
pub struct SameState {
    /// The first state seen at each index.
    hashes: BTreeMap<u64, ([u8; 32], u64)>,
    applied: BTreeMap<u64, u64>,
}

impl Property for SameState {
    fn name(&self) -> &'static str {
        "same_state"
    }

    fn look(&mut self, nodes: &BTreeMap<u64, NodeStatus>) -> Result<(), String> {
        for (&id, status) in nodes {
            let state = status.state_hash;
            let (hash, first) = *self.hashes.entry(state.index).or_insert((state.hash, id));
            if hash != state.hash {
                return Err(format!(
                    "nodes {first} and {id} differ at index {}",
                    state.index
                ));
            }
            let before = self.applied.insert(id, state.index).unwrap_or(0);
            if state.index < before {
                return Err(format!(
                    "node {id} went back from index {before} to {}",
                    state.index
                ));
            }
        }
        Ok(())
    }

    fn crashed(&mut self, node: u64) {
        self.applied.remove(&node);
    }
}
