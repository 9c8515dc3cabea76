//! A request that arrives twice has one effect: an implicit session, which is one request, is granted one lease at most, and a
//! session whose only request is a claim no more than that claim asked for. (That both copies hear the same is compared by
//! whoever sent them.)

use std::collections::BTreeMap;

use billing_core::{SessionId, What};

use super::{End, Property, Verdict};
use crate::record::Record;
use crate::world::Seen;

pub struct SameRequestSameAnswer;

impl Property for SameRequestSameAnswer {
    fn name(&self) -> &'static str {
        "same_request_same_answer"
    }

    fn lost(&mut self, end: &End<'_>) -> Verdict {
        self.end(end)
    }

    fn end(&mut self, end: &End<'_>) -> Verdict {
        granted_once(end.records, end.record)
    }
}

pub(super) fn granted_once(records: &[Seen], requests: &Record) -> Verdict {
    let mut grants: BTreeMap<SessionId, u64> = BTreeMap::new();
    for seen in records {
        let record = &seen.record;
        if let What::Acquired { session, .. } = &record.what {
            let grants = grants.entry(*session).or_default();
            *grants += 1;
            if let Some(most) = requests.leases_of_one_request(session)
                && *grants > most
            {
                let invoice = record.invoice.as_ref().map(|id| id.as_str().to_owned());
                let what =
                    format!("the request of {session} asked for {most}, and was granted {grants}");
                return Err((invoice, what));
            }
        }
    }
    Ok(())
}
