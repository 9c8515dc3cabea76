//! DESIGN §5, layers 3 and 4, as the provider's own door sees it: what moves money arrives within the window of its attempt, and
//! from a worker whose lease or session had not ended by itself before. Asked only where nothing may come between the gate's check and its send
//! for long: with single-use objects a stall there does no harm, and so there are some.

use std::collections::BTreeMap;
use std::time::Duration;

use billing_core::{ClusterTime, IdempotencyKey, InvoiceId, LeaseEventKind, What};

use super::{Moment, Property, Verdict};
use crate::profile::Promises;
use crate::replay::Step;

/// From the check until the provider hears it: a short stall, the network at its slowest, and the time between two looks.
const ON_ITS_WAY_MAX: Duration = Duration::from_millis(3_500);

#[derive(Default)]
pub struct SendsInTime {
    /// By which record, and when that was seen.
    begun: BTreeMap<IdempotencyKey, (u64, Duration)>,
    /// By invoice and holder: None while the lease stands, else when it ended.
    leases: BTreeMap<(InvoiceId, String), Option<Duration>>,
}

impl Property for SendsInTime {
    fn name(&self) -> &'static str {
        "sends_in_time"
    }

    fn step(&mut self, step: &Step<'_>, _promises: &Promises) -> Verdict {
        let record = step.record;
        if let (What::Begun, Some(key)) = (&record.what, &record.key) {
            self.begun.insert(key.clone(), (record.index, step.seen));
        }
        if let (Some((kind, holder)), Some(invoice)) = (record.what.lease(), &record.invoice) {
            let ended = (kind == LeaseEventKind::Ended).then_some(step.seen);
            let lease = (invoice.clone(), holder.as_str().to_owned());
            // Ended by somebody else: the holder hears of it when it next asks for anything, and until then has its window.
            if matches!(
                record.what,
                What::ForceReleased { .. } | What::LeaseEnded { .. }
            ) {
                self.leases.remove(&lease);
            } else {
                self.leases.insert(lease, ended);
            }
        }
        Ok(())
    }

    fn look(&mut self, moment: &Moment<'_>) -> Verdict {
        if !moment.promises.sends_are_prompt || !moment.promises.clocks_keep_drift {
            return Ok(());
        }
        for send in moment.sends {
            let Ok(key) = IdempotencyKey::parse(&send.key) else {
                continue;
            };
            let wrong = |what: String| Err((Some(key.invoice.as_str().to_owned()), what));
            // One that came before the driver saw the record of its attempt came soon.
            let Some((_, begun)) = self.begun.get(&key) else {
                continue;
            };
            let window = moment.promises.valid_for.mul_f64(1.02) + ON_ITS_WAY_MAX;
            if send.at > *begun + window {
                return wrong(format!(
                    "{} sent {key} at {:?}, begun at {begun:?}: later than {window:?}",
                    send.from, send.at
                ));
            }
            let lease = (key.invoice.clone(), send.from.clone());
            if let Some(Some(ended)) = self.leases.get(&lease)
                && send.at > *ended + ON_ITS_WAY_MAX
            {
                return wrong(format!(
                    "{} sent {key} at {:?}, and its lease had ended at {ended:?}",
                    send.from, send.at
                ));
            }
        }
        Ok(())
    }

    fn restored(&mut self, kept: u64, _last: ClusterTime) {
        // An attempt that is forgotten may be begun anew, under the same key.
        self.begun.retain(|_, (index, _)| *index <= kept);
        self.leases.clear();
    }
}
