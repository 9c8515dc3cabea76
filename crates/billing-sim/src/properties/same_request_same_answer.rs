//! A request that arrives twice has one effect: an implicit session, which is one request, is granted one lease at most. (That
//! both copies hear the same is compared by the caller that sent them.)

use std::collections::BTreeMap;

use billing_core::{SessionId, What};

use super::{End, Property, Verdict};

pub struct SameRequestSameAnswer;

impl Property for SameRequestSameAnswer {
    fn name(&self) -> &'static str {
        "same_request_same_answer"
    }

    fn end(&mut self, end: &End<'_>) -> Verdict {
        let mut grants: BTreeMap<SessionId, u64> = BTreeMap::new();
        for seen in end.records {
            let record = &seen.record;
            if let What::Acquired { session, .. } = &record.what {
                let grants = grants.entry(*session).or_default();
                *grants += 1;
                if *grants > 1 && end.record.is_single_request(session) {
                    let invoice = record.invoice.as_ref().map(|id| id.as_str().to_owned());
                    return Err((invoice, format!("request {session} was granted twice")));
                }
            }
        }
        Ok(())
    }
}
