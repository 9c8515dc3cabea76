//! Decides what goes out where the provider has single-use objects: create, attach, confirm what the ledger returned, look up.
//! Never confirms an object that the ledger did not return; never makes a second one beside it.

use billing_core::ObjectId;
use billing_proto::Failure;

use super::{Gate, Job, Known, LEDGER_TRIES_MAX, SENDS_MAX, back_off};
use crate::port::{Attempt, Hold, LedgerPort};
use crate::stripe::{Answer, ChargeParams, Intent, IntentState};

impl Gate {
    /// From an open attempt to what is known of it.
    pub(super) async fn carry_out_by_object<L: LedgerPort, H: Hold>(
        &self,
        job: &Job<'_, L, H>,
    ) -> Known {
        let object = match &job.attempt.object {
            Some(object) => object.clone(),
            None => match self.create_and_attach(job).await {
                Ok(object) => object,
                Err(known) => return known,
            },
        };
        // Somebody else may have sent: under this key if it was taken over, under an older one if the object is older than the
        // attempt, or if another gate's object was recorded before ours.
        let fresh = job.attempt.object.is_none() && !job.attempt.taken_over;
        if !fresh {
            match self.look_up(&object, job.params).await {
                Known::Nothing => {}
                known => return known,
            }
        }
        self.confirm(job, &object).await
    }

    /// Makes the single-use object and records it. Returns the recorded one; ours is withdrawn if it is another.
    async fn create_and_attach<L: LedgerPort, H: Hold>(
        &self,
        job: &Job<'_, L, H>,
    ) -> Result<ObjectId, Known> {
        let key = &job.attempt.key;
        let mut why = String::new();
        for sends in 0..SENDS_MAX {
            self.pause_between_sends(sends).await;
            let ready = match self.stripe.connect().await {
                Ok(ready) => ready,
                Err(error) => {
                    why = error.to_string();
                    continue;
                }
            };
            self.may_send(job)?;
            match self.stripe.create(ready, job.params, key).await {
                Answer::Intent { intent, .. } => return self.attach(job, intent.object).await,
                // Nothing was confirmed, so no card can have said no.
                Answer::Declined { code, .. } => {
                    return Err(Known::Unclear(format!("create answered a decline, {code}")));
                }
                Answer::Unclear {
                    why: unclear,
                    replayed,
                } => {
                    why = unclear;
                    if replayed {
                        break;
                    }
                }
            }
        }
        Err(Known::Unclear(format!("no object was made: {why}")))
    }

    async fn attach<L: LedgerPort, H: Hold>(
        &self,
        job: &Job<'_, L, H>,
        ours: ObjectId,
    ) -> Result<ObjectId, Known> {
        let mut tries = 0;
        let recorded = loop {
            let failure = match job
                .ledger
                .attach(&job.bill.invoice, job.hold.token(), &ours)
                .await
            {
                Ok(recorded) => break recorded,
                Err(Failure::Rejected(rejection)) => {
                    tracing::info!(invoice = %job.bill.invoice, object = %ours, %rejection, "attach refused");
                    return Err(Known::LeaseLost);
                }
                Err(failure @ (Failure::NotApplied(_) | Failure::Unknown(_))) => failure,
            };
            tries += 1;
            if tries >= LEDGER_TRIES_MAX {
                return Err(Known::Unclear(format!(
                    "the object {ours} could not be recorded: {failure}"
                )));
            }
            self.env.clock.sleep(back_off(tries)).await;
        };
        if recorded != ours && self.config.profile.cancel {
            // Nobody will confirm ours: whether the cancellation arrives changes nothing about money.
            tracing::info!(invoice = %job.bill.invoice, %recorded, %ours, "another object was recorded first");
            if let Ok(ready) = self.stripe.connect().await {
                let answer = self
                    .stripe
                    .cancel(ready, &ours, job.params, &job.attempt.key)
                    .await;
                tracing::debug!(?answer, %ours, "withdrawn");
            }
        }
        if recorded != ours {
            match self.look_up(&recorded, job.params).await {
                Known::Nothing => {}
                known => return Err(known),
            }
        }
        Ok(recorded)
    }

    /// Connect first, check second, send third; what is unclear is looked up, and sent again under the same key.
    async fn confirm<L: LedgerPort, H: Hold>(
        &self,
        job: &Job<'_, L, H>,
        object: &ObjectId,
    ) -> Known {
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
                // What went out before is still worth a look, which needs no lease.
                return if sends == 0 {
                    known
                } else {
                    self.look_up_or(object, job.params, &why).await
                };
            }
            // From here to the wire nothing waits for anything but this pause, which only a simulation has.
            self.env.pauses.reach("checked").await;
            sends += 1;
            let answer = self
                .stripe
                .confirm(ready, object, job.params, &job.attempt.key)
                .await;
            self.env.pauses.reach("after_send").await;
            match answer {
                Answer::Declined { code, retryable } => {
                    return Known::Declined {
                        code,
                        retryable,
                        finality: self.finality(job, sends),
                    };
                }
                Answer::Intent {
                    intent,
                    replayed: false,
                } => match known_of(intent, "confirm") {
                    Known::Nothing => why = "confirmed, yet still to be confirmed".to_owned(),
                    known => return known,
                },
                Answer::Intent {
                    intent,
                    replayed: true,
                } => match intent.state {
                    IntentState::Succeeded(charged) => return Known::Charged(charged),
                    // How it stood when the key was first used; since then it may have ended.
                    _ => return self.after_replay(job, object, sends).await,
                },
                Answer::Unclear {
                    why: unclear,
                    replayed,
                } => {
                    tracing::info!(invoice = %job.bill.invoice, %object, why = %unclear, "no clear answer; looking it up");
                    why = unclear;
                    match self.look_up(object, job.params).await {
                        // The key answers an error for as long as it is kept: sending it again tells nothing new.
                        Known::Nothing if replayed && self.config.profile.stored_errors => break,
                        Known::Nothing | Known::Unclear(_) => {}
                        known => return known,
                    }
                }
            }
        }
        Known::Unclear(why)
    }

    /// The key was carried out before, and the payment was at work then. If the object is confirmable now, it failed since.
    async fn after_replay<L: LedgerPort, H: Hold>(
        &self,
        job: &Job<'_, L, H>,
        object: &ObjectId,
        sends: u32,
    ) -> Known {
        let ready = match self.stripe.connect().await {
            Ok(ready) => ready,
            Err(error) => return Known::Unclear(error.to_string()),
        };
        match self.stripe.retrieve(ready, object, job.params).await {
            Answer::Intent {
                intent:
                    Intent {
                        state: IntentState::Confirmable,
                        last_error: Some((code, retryable)),
                        ..
                    },
                ..
            } => Known::Declined {
                code,
                retryable,
                finality: self.finality(job, sends),
            },
            Answer::Intent { intent, .. } => match known_of(intent, "look-up") {
                Known::Nothing => {
                    Known::Unclear("the key was used, and the object is to be confirmed".to_owned())
                }
                known => known,
            },
            Answer::Declined { code, .. } => {
                Known::Unclear(format!("look-up answered a decline, {code}"))
            }
            Answer::Unclear { why, .. } => Known::Unclear(why),
        }
    }

    async fn look_up(&self, object: &ObjectId, params: &ChargeParams) -> Known {
        let ready = match self.stripe.connect().await {
            Ok(ready) => ready,
            Err(error) => return Known::Unclear(error.to_string()),
        };
        match self.stripe.retrieve(ready, object, params).await {
            Answer::Intent { intent, .. } => known_of(intent, "look-up"),
            Answer::Declined { code, .. } => {
                Known::Unclear(format!("look-up answered a decline, {code}"))
            }
            Answer::Unclear { why, .. } => Known::Unclear(format!("look-up: {why}")),
        }
    }

    /// After a send that got no clear answer: what a look-up shows, or the doubt that is left.
    async fn look_up_or(&self, object: &ObjectId, params: &ChargeParams, why: &str) -> Known {
        match self.look_up(object, params).await {
            Known::Nothing | Known::Unclear(_) => Known::Unclear(why.to_owned()),
            known => known,
        }
    }

    /// What has become of the attempt's object.
    pub(super) async fn look_up_recorded(&self, attempt: &Attempt, params: &ChargeParams) -> Known {
        match &attempt.object {
            Some(object) => self.look_up(object, params).await,
            // Only recorded objects are ever confirmed.
            None => Known::Nothing,
        }
    }
}

fn known_of(intent: Intent, from: &str) -> Known {
    match intent.state {
        IntentState::Succeeded(charged) => Known::Charged(charged),
        IntentState::Working => Known::Working,
        IntentState::Confirmable => Known::Nothing,
        IntentState::Cancelled => {
            tracing::info!(object = %intent.object, from, "the object is cancelled");
            Known::Cancelled(intent.object)
        }
    }
}
