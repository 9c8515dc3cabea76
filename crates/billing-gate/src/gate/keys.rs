//! Decides what goes out where the provider has no single-use object: each request that it carries out charges, and only the
//! ledger's key makes the second one the first. Where not even a key is kept, at most one request goes out, ever.
//! Never takes what is not found for what did not happen: the ledger says when a look-up counts.

use billing_core::{DeclineCode, Finality};

use super::{Gate, Job, Known, SENDS_MAX};
use crate::port::{Attempt, Hold, LedgerPort};
use crate::stripe::Said;

impl Gate {
    /// From an open attempt to what is known of it.
    pub(super) async fn carry_out_by_key<L: LedgerPort, H: Hold>(
        &self,
        job: &Job<'_, L, H>,
    ) -> Known {
        let profile = &self.config.profile;
        if let Some(object) = &job.attempt.object {
            // Made through another interface under this profile's name: it may still be confirmed, whatever we send.
            return Known::Unclear(format!(
                "{object} is recorded, and this profile has no objects"
            ));
        }
        if job.attempt.taken_over {
            if profile.look_up {
                match self.look_up_key(job.attempt).await {
                    Known::Nothing if profile.keeps_keys() => {}
                    known => return known,
                }
            } else if !profile.keeps_keys() {
                return Known::Unclear(
                    "somebody else may have sent, and the provider keeps no keys".to_owned(),
                );
            }
        }
        self.send_by_key(job).await
    }

    /// Connect first, check second, send third; what is unclear is looked up, and sent again under the same key if the provider
    /// keeps it.
    async fn send_by_key<L: LedgerPort, H: Hold>(&self, job: &Job<'_, L, H>) -> Known {
        let profile = &self.config.profile;
        let key = &job.attempt.key;
        let mut sends = 0;
        let mut why = String::new();
        for round in 0..SENDS_MAX {
            self.pause_between_sends(round).await;
            let ready = match self.stripe.connect().await {
                Ok(ready) => ready,
                Err(error) => {
                    why = error.to_string();
                    continue;
                }
            };
            self.env.pauses.reach("before_send").await;
            if let Err(known) = self.may_send(job) {
                return match known {
                    // What went out before is still worth a look, which needs no lease.
                    _ if sends > 0 => self.look_up_key_or(job.attempt, why).await,
                    // Too late. Only where the key was looked up may "nothing" be said.
                    Known::Nothing if !(job.attempt.taken_over && profile.look_up) => {
                        Known::Unclear("too late to send under this key".to_owned())
                    }
                    known => known,
                };
            }
            // From here to the wire nothing waits for anything but this pause, which only a simulation has.
            self.env.pauses.reach("checked").await;
            sends += 1;
            let said = self.stripe.charge(ready, job.params, key).await;
            self.env.pauses.reach("after_send").await;
            match said {
                Said::Charged(charged) => return Known::Charged(charged),
                Said::Declined { code, retryable } => {
                    return Known::Declined {
                        code,
                        retryable,
                        finality: self.finality(job, sends),
                    };
                }
                Said::Working {
                    replayed: false, ..
                } => return Known::Working,
                // How it stood when the key was first used; since then it may have ended.
                Said::Working { id, replayed: true } => return self.after_pending(job, &id).await,
                Said::Unclear {
                    why: unclear,
                    replayed,
                } => {
                    tracing::info!(invoice = %job.bill.invoice, %key, why = %unclear, "no clear answer");
                    why = unclear;
                    if profile.look_up {
                        match self.look_up_key(job.attempt).await {
                            // It may be behind, and the request still on its way.
                            Known::Nothing | Known::Unclear(_) => {}
                            known => return known,
                        }
                    }
                    // Without a kept key a second request is a second charge; a kept error tells nothing new.
                    if !profile.keeps_keys() || (replayed && profile.stored_errors) {
                        break;
                    }
                }
            }
        }
        Known::Unclear(why)
    }

    /// The key was carried out before, and the payment was at work then. The charge itself says how it ended.
    async fn after_pending<L: LedgerPort, H: Hold>(&self, job: &Job<'_, L, H>, id: &str) -> Known {
        let ready = match self.stripe.connect().await {
            Ok(ready) => ready,
            Err(error) => return Known::Unclear(error.to_string()),
        };
        match self
            .stripe
            .retrieve_charge(ready, id, &job.attempt.key)
            .await
        {
            Said::Charged(charged) => Known::Charged(charged),
            Said::Working { .. } => Known::Working,
            Said::Declined { code, retryable } => {
                self.declined_before(job.attempt, code, retryable)
            }
            Said::Unclear { why, .. } => Known::Unclear(format!("look-up: {why}")),
        }
    }

    /// What stands in the provider's books under the attempt's key.
    pub(super) async fn look_up_key(&self, attempt: &Attempt) -> Known {
        let profile = &self.config.profile;
        if !profile.look_up {
            return Known::Unclear("the provider cannot be asked what became of a key".to_owned());
        }
        if let Some(object) = &attempt.object {
            return Known::Unclear(format!(
                "{object} is recorded, and this profile has no objects"
            ));
        }
        let ready = match self.stripe.connect().await {
            Ok(ready) => ready,
            Err(error) => return Known::Unclear(error.to_string()),
        };
        let mut found = match self.stripe.find(ready, &attempt.key).await {
            Ok(found) => found,
            Err(why) => return Known::Unclear(format!("look-up: {why}")),
        };
        match (found.charged.pop(), found.working, found.declined) {
            (Some(first), _, _) if found.charged.is_empty() => Known::Charged(first),
            // Newest first, so this is the oldest. The ledger shall know of all, and put the invoice in front of a person.
            (Some(first), _, _) => Known::ChargedTwice {
                first,
                others: found.charged,
            },
            (None, true, _) => Known::Working,
            (None, false, Some((code, retryable))) => {
                self.declined_before(attempt, code, retryable)
            }
            (None, false, None) => Known::Nothing,
        }
    }

    /// A no to some send of this key, whoever's. Where declines are kept it is what the key answers for good; where they are
    /// not, another send may have succeeded since, or still may, and what was found is that nothing has.
    fn declined_before(&self, attempt: &Attempt, code: DeclineCode, retryable: bool) -> Known {
        if self.keeps_declines(attempt) {
            Known::Declined {
                code,
                retryable,
                finality: Finality::Sticky,
            }
        } else {
            Known::Nothing
        }
    }

    /// After a send that got no clear answer: what a look-up shows, or the doubt that is left.
    async fn look_up_key_or(&self, attempt: &Attempt, why: String) -> Known {
        match self.look_up_key(attempt).await {
            Known::Nothing | Known::Unclear(_) => Known::Unclear(why),
            known => known,
        }
    }
}
