//! What must hold at every moment of every scenario: one file each. A property sees what the nodes say of themselves, each
//! record of the audit log once, and what the machines did; it never changes anything.
//!
//! "One leader in a term" is not among them: here a leadership is a term *and* a node, and a higher node may overtake a lower
//! one inside a term. What that must not harm is the state, and `replicas_agree` looks at it.

pub mod acked_survives;
pub mod audit_chain;
pub mod clock_never_back;
pub mod doubt_needs_evidence;
pub mod every_invoice_ends;
pub mod issued_keys_only;
pub mod linearizable;
pub mod one_charge;
pub mod one_holder;
pub mod one_open_attempt;
pub mod replicas_agree;
pub mod same_request_same_answer;
pub mod sends_in_time;
pub mod stale_token_refused;
#[cfg(test)]
mod tests;
pub mod tokens_grow;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use billing_core::{AuditRecord, ClusterTime};
use billing_server::raft::StateHash;

use crate::machines::provider::Books;
use crate::profile::Promises;
use crate::record::{Act, Record, Send};
use crate::replay::{Replay, Step};
use crate::world::Seen;

/// What is broken, for a person.
#[derive(Debug, Clone)]
pub struct Broken {
    pub property: String,
    pub invoice: Option<String>,
    pub what: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "property {} is broken: {}", self.property, self.what)
    }
}

impl std::error::Error for Broken {}

/// Why a property does not hold: on which invoice, if on one, and how.
pub type Verdict = Result<(), (Option<String>, String)>;

/// One node as it is now.
#[derive(Debug, Clone)]
pub struct NodeView {
    pub state: StateHash,
    pub cluster_time: ClusterTime,
}

/// One moment.
pub struct Moment<'a> {
    pub now: Duration,
    pub nodes: &'a BTreeMap<u64, NodeView>,
    /// The records that each node applied since the last moment. After a start it begins again.
    pub applied: &'a [(u64, Vec<AuditRecord>)],
    pub acts: &'a [Act],
    /// What moves money, as it reached the provider since the last moment.
    pub sends: &'a [Send],
    /// Now and then.
    pub books: Option<&'a Books>,
    /// What the provider and the clocks of this world keep.
    pub promises: &'a Promises,
}

/// The end, after the faults have stopped and everything has settled.
pub struct End<'a> {
    pub replay: &'a Replay,
    pub records: &'a [Seen],
    pub books: &'a Books,
    pub record: &'a Record,
    pub promises: &'a Promises,
    /// The invoices that workers charge, with what is owed.
    pub invoices: &'a BTreeMap<String, u64>,
}

pub trait Property {
    fn name(&self) -> &'static str;

    /// Every few steps.
    fn look(&mut self, _moment: &Moment<'_>) -> Verdict {
        Ok(())
    }

    /// Each record of the audit log once, in order, when the first node has applied it.
    fn step(&mut self, _step: &Step<'_>, _promises: &Promises) -> Verdict {
        Ok(())
    }

    /// A process is gone; what it had not made durable may be unsaid.
    fn crashed(&mut self, _node: u64) {}

    /// All nodes were lost, and what their log became: nothing that anybody was told is missing there.
    fn lost(&mut self, _end: &End<'_>) -> Verdict {
        Ok(())
    }

    /// The cluster is made anew from a backup that holds the first `kept` records, the last of them at that time.
    fn restored(&mut self, _kept: u64, _last: ClusterTime) {}

    fn end(&mut self, _end: &End<'_>) -> Verdict {
        Ok(())
    }
}

/// All of them.
pub fn all() -> Vec<Box<dyn Property>> {
    vec![
        Box::new(replicas_agree::ReplicasAgree::default()),
        Box::new(audit_chain::AuditChain::default()),
        Box::new(clock_never_back::ClockNeverBack::default()),
        Box::new(tokens_grow::TokensGrow),
        Box::new(one_holder::OneHolder::default()),
        Box::new(one_open_attempt::OneOpenAttempt),
        Box::new(stale_token_refused::StaleTokenRefused),
        Box::new(doubt_needs_evidence::DoubtNeedsEvidence::default()),
        Box::new(issued_keys_only::IssuedKeysOnly::default()),
        Box::new(sends_in_time::SendsInTime::default()),
        Box::new(one_charge::OneCharge),
        Box::new(acked_survives::AckedSurvives),
        Box::new(same_request_same_answer::SameRequestSameAnswer),
        Box::new(linearizable::Linearizable),
        Box::new(every_invoice_ends::EveryInvoiceEnds),
    ]
}

/// Broken on the invoice of a record.
pub(crate) fn on(record: &AuditRecord, what: String) -> Verdict {
    Err((
        record.invoice.as_ref().map(|id| id.as_str().to_owned()),
        format!("audit record {}: {what}", record.index),
    ))
}
