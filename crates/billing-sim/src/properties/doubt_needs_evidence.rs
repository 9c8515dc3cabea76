//! I5: an attempt that is open or closing becomes dead on evidence only, and the evidence holds by the rules of the design. That
//! a send was the only one under its key is counted at the provider's own door, before the word and after it.

use std::collections::{BTreeMap, BTreeSet};

use billing_core::{ClusterTime, Finality, What};

use super::{Moment, Property, Verdict, on};
use crate::profile::Promises;
use crate::replay::Step;

#[derive(Default)]
pub struct DoubtNeedsEvidence {
    /// What reached the provider, by key.
    sends: BTreeMap<String, u32>,
    /// Keys that ended because the only send under them was declined.
    sole: BTreeSet<String>,
}

impl DoubtNeedsEvidence {
    fn sends_of(&self, key: &str) -> u32 {
        self.sends.get(key).copied().unwrap_or(0)
    }
}

impl Property for DoubtNeedsEvidence {
    fn name(&self) -> &'static str {
        "doubt_needs_evidence"
    }

    fn look(&mut self, moment: &Moment<'_>) -> Verdict {
        for send in moment.sends {
            let sends = self.sends.entry(send.key.clone()).or_default();
            *sends += 1;
            if *sends > 1 && self.sole.contains(&send.key) {
                let invoice = send.key.splitn(3, '.').nth(2).map(str::to_owned);
                let what = format!(
                    "{} was ended by the no to its only send, and {} sends it once more",
                    send.key, send.from
                );
                return Err((invoice, what));
            }
        }
        Ok(())
    }

    fn step(&mut self, step: &Step<'_>, promises: &Promises) -> Verdict {
        let (record, before) = (step.record, step.before);
        let Some(attempt) = &before.attempt else {
            return match &record.what {
                What::Declined { .. } | What::LookedUpNone { .. } => {
                    on(record, "nothing is open".to_owned())
                }
                _ => Ok(()),
            };
        };
        match &record.what {
            What::Declined {
                finality,
                proven: true,
                ..
            } => {
                let holds = match finality {
                    Finality::None => false,
                    Finality::Sticky => promises.sticky && attempt.key_is_new,
                    Finality::SoleSend => !attempt.taken_over && attempt.token == record.token.0,
                    Finality::Object => before.object.is_some(),
                };
                if !holds {
                    return on(record, format!("{finality:?} proves nothing here"));
                }
                if *finality == Finality::SoleSend {
                    let key = attempt.key.to_string();
                    let sends = self.sends_of(&key);
                    if sends > 1 {
                        return on(record, format!("SOLE_SEND, and {sends} came under {key}"));
                    }
                    self.sole.insert(key);
                }
            }
            What::LookedUpNone { counts: true } => {
                let quiet = promises.quiet_after_ms();
                let late = before.lease.as_ref().is_some_and(|lease| {
                    let by_wall = |begun: u64| lease.granted_wall_ms > begun + quiet;
                    lease.granted_at.0 > attempt.begun_at.0 + quiet
                        && attempt.begun_wall_ms.is_none_or(by_wall)
                });
                if !late {
                    return on(
                        record,
                        format!(
                            "its lease was granted before {quiet} ms had passed: begun at {:?}, wall {:?}; granted at {:?}",
                            attempt.begun_at,
                            attempt.begun_wall_ms,
                            before
                                .lease
                                .as_ref()
                                .map(|lease| (lease.granted_at, lease.granted_wall_ms)),
                        ),
                    );
                }
            }
            What::Resolved { .. } => {
                let charged = matches!(
                    &record.what,
                    What::Resolved {
                        verdict: billing_core::Verdict::Charged(_),
                        ..
                    }
                );
                let quiet = promises.quiet_after_ms();
                if !charged && record.at.0 < attempt.begun_at.0 + quiet {
                    return on(record, "not charged, said too early".to_owned());
                }
            }
            What::Failed => {
                return on(record, format!("failed while {} is open", attempt.key));
            }
            _ => {}
        }
        Ok(())
    }

    fn restored(&mut self, _kept: u64, _last: ClusterTime) {
        // An attempt that is forgotten may be begun anew, under the same key.
        self.sends.clear();
        self.sole.clear();
    }
}
