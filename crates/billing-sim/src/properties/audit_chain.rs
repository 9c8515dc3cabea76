//! The audit log is one chain, equal on every node: a record that one node has applied is never another one elsewhere, or
//! later. So nothing that was ever applied is unsaid, whatever crashed since.

use std::collections::BTreeMap;

use billing_core::{AuditRecord, CHAIN_START, ChainHash, ClusterTime, chain_hash};

use super::{Moment, Property, Verdict, on};

#[derive(Default)]
pub struct AuditChain {
    /// By index, what the first node that applied it said.
    hashes: BTreeMap<u64, (ChainHash, u64)>,
}

impl AuditChain {
    fn check(&mut self, node: u64, record: &AuditRecord) -> Verdict {
        if let Some((hash, first)) = self.hashes.get(&record.index) {
            if *hash != record.hash {
                return on(
                    record,
                    format!(
                        "node {node} says otherwise than node {first} did: {}",
                        record.what
                    ),
                );
            }
            return Ok(());
        }
        let before = match record.index.checked_sub(1) {
            None | Some(0) => Some(CHAIN_START),
            Some(index) => self.hashes.get(&index).map(|(hash, _)| *hash),
        };
        let Some(before) = before else {
            return on(record, format!("node {node} has no record before it"));
        };
        if chain_hash(&before, &record.canonical()) != record.hash {
            return on(
                record,
                format!("on node {node} it does not follow the one before"),
            );
        }
        self.hashes.insert(record.index, (record.hash, node));
        Ok(())
    }
}

impl Property for AuditChain {
    fn name(&self) -> &'static str {
        "audit_chain"
    }

    fn look(&mut self, moment: &Moment<'_>) -> Verdict {
        for (node, records) in moment.applied {
            for record in records {
                self.check(*node, record)?;
            }
        }
        Ok(())
    }

    fn restored(&mut self, kept: u64, _last: ClusterTime) {
        self.hashes.retain(|index, _| *index <= kept);
    }
}
