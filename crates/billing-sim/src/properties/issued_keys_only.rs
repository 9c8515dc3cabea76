//! DESIGN §2: an idempotency key is issued by the ledger, never chosen by a client. So whatever is said of a charge is said of a
//! key under which an attempt was begun before: in this log, or in what a restore has forgotten of it.

use std::collections::BTreeSet;

use billing_core::{IdempotencyKey, What};

use super::{Property, Verdict, on};
use crate::profile::Promises;
use crate::replay::Step;

#[derive(Default)]
pub struct IssuedKeysOnly {
    /// A restore takes none of them back: what was sent under them was sent.
    issued: BTreeSet<IdempotencyKey>,
}

impl Property for IssuedKeysOnly {
    fn name(&self) -> &'static str {
        "issued_keys_only"
    }

    fn step(&mut self, step: &Step<'_>, _promises: &Promises) -> Verdict {
        let record = step.record;
        let Some(key) = &record.key else {
            return Ok(());
        };
        match &record.what {
            What::Begun => drop(self.issued.insert(key.clone())),
            What::TakenOver
            | What::Charged { .. }
            | What::Declined { .. }
            | What::LookedUpNone { .. }
            | What::Pending { .. }
            | What::Unknown { .. }
            | What::Resolved { .. }
                if !self.issued.contains(key) =>
            {
                return on(record, format!("{key} was never issued"));
            }
            _ => {}
        }
        Ok(())
    }
}
