//! I4: ClusterTime never goes back, in the log or on a node.

use std::collections::BTreeMap;

use billing_core::ClusterTime;

use super::{Moment, Property, Verdict, on};
use crate::profile::Promises;
use crate::replay::Step;

#[derive(Default)]
pub struct ClockNeverBack {
    log: ClusterTime,
    nodes: BTreeMap<u64, ClusterTime>,
}

impl Property for ClockNeverBack {
    fn name(&self) -> &'static str {
        "clock_never_back"
    }

    fn look(&mut self, moment: &Moment<'_>) -> Verdict {
        for (&id, node) in moment.nodes {
            let before = self.nodes.insert(id, node.cluster_time).unwrap_or_default();
            if node.cluster_time < before {
                let what = format!(
                    "on node {id} from {} to {} ms",
                    before.0, node.cluster_time.0
                );
                return Err((None, what));
            }
        }
        Ok(())
    }

    fn step(&mut self, step: &Step<'_>, _promises: &Promises) -> Verdict {
        let before = std::mem::replace(&mut self.log, step.record.at);
        if step.record.at < before {
            return on(
                step.record,
                format!("at {} ms, after one at {} ms", step.record.at.0, before.0),
            );
        }
        Ok(())
    }

    fn crashed(&mut self, node: u64) {
        self.nodes.remove(&node);
    }

    fn restored(&mut self, _kept: u64, last: ClusterTime) {
        self.log = last;
        self.nodes.clear();
    }
}
