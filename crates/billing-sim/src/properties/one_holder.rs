//! I2: one lease on an invoice in ClusterTime, always. And in true time, while clocks keep the declared drift: nobody acts as
//! the holder once somebody with a greater token did.

use std::collections::BTreeMap;

use billing_core::What;

use super::{Moment, Property, Verdict, on};
use crate::profile::Promises;
use crate::record::Act;
use crate::replay::Step;

#[derive(Default)]
pub struct OneHolder {
    /// By invoice, the last act under the greatest token.
    last: BTreeMap<String, Act>,
}

impl Property for OneHolder {
    fn name(&self) -> &'static str {
        "one_holder"
    }

    fn look(&mut self, moment: &Moment<'_>) -> Verdict {
        for act in moment.acts {
            let last = self
                .last
                .entry(act.invoice.clone())
                .or_insert_with(|| act.clone());
            if act.token < last.token && moment.promises.clocks_keep_drift {
                let what = format!(
                    "{} acted with token {} at {:?}, after {} with token {} at {:?}",
                    act.who, act.token, act.at, last.who, last.token, last.at
                );
                return Err((Some(act.invoice.clone()), what));
            }
            if act.token >= last.token {
                *last = act.clone();
            }
        }
        Ok(())
    }

    fn step(&mut self, step: &Step<'_>, _promises: &Promises) -> Verdict {
        match (&step.record.what, &step.before.lease) {
            (What::Acquired { .. }, Some(lease)) => on(
                step.record,
                format!("granted while token {} holds it", lease.token),
            ),
            (What::Acquired { .. }, None) if step.before.closed => on(
                step.record,
                "granted although nothing is left to do".to_owned(),
            ),
            _ => Ok(()),
        }
    }
}
