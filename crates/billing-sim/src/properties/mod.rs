//! What must hold at every moment of every scenario: one file each.
//!
//! "One leader in a term" is not among them: here a leadership is a term *and* a node, and a higher node may overtake a lower
//! one inside a term. What that must not harm is the state, and `same_state` looks at it.

pub mod same_state;

use std::collections::BTreeMap;

use billing_server::node::NodeStatus;

/// Looked at after every few steps.
pub trait Property {
    fn name(&self) -> &'static str;

    /// `Err` says what is broken, for a person.
    fn look(&mut self, nodes: &BTreeMap<u64, NodeStatus>) -> Result<(), String>;

    /// A process is gone; what it had not made durable may be unsaid.
    fn crashed(&mut self, _node: u64) {}
}
