//! I1 and I6: a new attempt only where none is open or closing and charging is allowed, under a lease, with the next number.

use billing_core::What;

use super::{Property, Verdict, on};
use crate::profile::Promises;
use crate::replay::Step;

pub struct OneOpenAttempt;

impl Property for OneOpenAttempt {
    fn name(&self) -> &'static str {
        "one_open_attempt"
    }

    fn step(&mut self, step: &Step<'_>, _promises: &Promises) -> Verdict {
        let (record, before) = (step.record, step.before);
        match (&record.what, &before.attempt) {
            (What::Begun, Some(open)) => on(record, format!("begun while {} is open", open.key)),
            (What::Begun | What::TakenOver, _) if !step.charges_allowed => {
                on(record, "begun while charging is closed".to_owned())
            }
            (What::Begun, None) if before.closed => {
                on(record, "begun although nothing is left to do".to_owned())
            }
            (What::TakenOver, None) => on(record, "nothing is open to take over".to_owned()),
            (What::TakenOver, Some(open)) if record.key.as_ref() != Some(&open.key) => on(
                record,
                format!("taken over under another key than {}", open.key),
            ),
            (What::Requeued { .. } | What::InvoiceCancelled { .. }, Some(open)) => {
                on(record, format!("while {} is open", open.key))
            }
            (What::ObjectAttached { object }, _)
                if before.object.as_ref().is_some_and(|first| first != object) =>
            {
                on(record, "a second object was attached".to_owned())
            }
            _ => Ok(()),
        }
    }
}
