//! I3: every grant has a greater token than all before it, whoever leads.

use billing_core::What;

use super::{Property, Verdict, on};
use crate::profile::Promises;
use crate::replay::Step;

pub struct TokensGrow;

impl Property for TokensGrow {
    fn name(&self) -> &'static str {
        "tokens_grow"
    }

    fn step(&mut self, step: &Step<'_>, _promises: &Promises) -> Verdict {
        if let What::Acquired { .. } = &step.record.what
            && step.record.token.0 <= step.token_last
        {
            return on(
                step.record,
                format!("token {} after {}", step.record.token, step.token_last),
            );
        }
        Ok(())
    }
}
