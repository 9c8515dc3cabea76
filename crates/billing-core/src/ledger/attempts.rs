//! Charge attempts: opened one at a time, continued under the same key by whoever takes over, tied to one provider object.
//! Never opens a second one beside one that is open or closing; never says what became of one.

use super::state::{Attempt, Object, Phase};
use super::*;
use crate::command::{AttachProviderObject, BeginCharge, Terms};
use crate::reply::{AttemptState, ChargeAttempt};

impl Ledger {
    pub(super) fn begin(&mut self, begin: &BeginCharge) -> Result<Reply, Rejection> {
        let invoice = self.chargeable(&begin.invoice, begin.token)?;
        let sum = invoice
            .sum
            .as_ref()
            .ok_or_else(|| Rejection::NotSubmitted {
                invoice: begin.invoice.clone(),
            })?;
        if !self.scalars.charges_allowed && !sabotaged!(BeginBeforeAllowCharges) {
            return Err(Rejection::ChargesNotAllowed);
        }
        if let Some(reason) = self.paused.get(&begin.terms.provider) {
            let provider = begin.terms.provider.clone();
            return Err(Rejection::ProviderPaused {
                provider,
                reason: reason.clone(),
            });
        }
        let not_due = |due_in_ms: u64| Rejection::NotDue {
            invoice: begin.invoice.clone(),
            due_in_ms,
        };
        let next_try_in_ms = self.scalars.now.ms_until(invoice.next_try);
        match invoice.live() {
            Some(attempt) if attempt.state == AttemptState::Closing => Err(Rejection::Closing {
                invoice: begin.invoice.clone(),
                number: attempt.number,
                look_up_in_ms: self.look_up_in_ms(attempt),
            }),
            Some(_) if next_try_in_ms > 0 => Err(not_due(next_try_in_ms)),
            Some(_) if sabotaged!(SecondKeyOnTakeOver) => {
                if let Some(invoice) = self.invoice_mut(&begin.invoice) {
                    invoice.attempts.retain(|attempt| !attempt.is_live());
                }
                self.open_attempt(begin)
            }
            Some(attempt) => {
                if let Some(recorded) = &attempt.terms {
                    same_terms(&begin.invoice, recorded, &begin.terms)?;
                }
                self.take_over(begin)
            }
            None => {
                // A wrong clock may hold a charge back; it can never let one through.
                let due_in_ms = next_try_in_ms.max(self.wall_reached().ms_until(sum.due_at));
                if due_in_ms > 0 {
                    return Err(not_due(due_in_ms));
                }
                // Its window would be over by what time it may be already.
                let apart_ms = self.wall_reached().ms_until(self.wall_perhaps());
                if apart_ms >= begin.terms.valid_for.get() {
                    return Err(Rejection::ClocksDisagree { apart_ms });
                }
                if let Some(object) = invoice.standing_object() {
                    same_account(
                        &begin.invoice,
                        (&object.provider, &object.account, object.live),
                        &begin.terms,
                    )?;
                }
                self.open_attempt(begin)
            }
        }
    }

    /// The record, if the token holds its lease.
    fn chargeable(&self, id: &InvoiceId, token: FencingToken) -> Result<&Invoice, Rejection> {
        let invoice = self.invoice(id).ok_or_else(|| Rejection::NotFound {
            invoice: id.clone(),
        })?;
        if invoice.phase == Phase::Paid
            && let Some(refused) = self.unleasable(invoice)
        {
            return Err(refused);
        }
        if !sabotaged!(NoTokenCheckAtBegin) {
            self.check_token(invoice, token)?;
        }
        Ok(invoice)
    }

    /// The same attempt under the same key. Whoever asks may be a second gate, so its sends are no longer the only ones.
    fn take_over(&mut self, begin: &BeginCharge) -> Result<Reply, Rejection> {
        let number = self
            .invoice_mut(&begin.invoice)
            .and_then(Invoice::live_mut)
            .map(|attempt| {
                let same_token = attempt.token == begin.token;
                attempt.taken_over |= !(same_token && sabotaged!(SoleSendAfterGateRestart));
                attempt.token = begin.token;
                attempt.number
            });
        self.note(What::TakenOver, Some(&begin.invoice), begin.token, number);
        self.begun(&begin.invoice)
    }

    pub(super) fn open_attempt(&mut self, begin: &BeginCharge) -> Result<Reply, Rejection> {
        let (now, wall) = (self.scalars.now, self.wall_reached());
        let used_up = || Rejection::AttemptsUsedUp {
            invoice: begin.invoice.clone(),
        };
        let number_last = self
            .invoice(&begin.invoice)
            .map_or(0, |invoice| invoice.number_last);
        let number = AttemptNumber::new(u64::from(number_last) + 1).map_err(|_| used_up())?;
        let valid_for_ms = begin.terms.valid_for.get();
        let attempt = Attempt {
            number,
            state: AttemptState::Open,
            opened_by: begin.token,
            token: begin.token,
            taken_over: false,
            terms: Some(self.terms_of_new(&begin.terms)),
            not_after: now.plus(valid_for_ms),
            not_after_wall: wall.plus(valid_for_ms),
            decline: None,
            proof: None,
        };
        if let Some(invoice) = self.invoice_mut(&begin.invoice) {
            assert!(
                invoice.status() == InvoiceStatus::Processing,
                "a new attempt on {} only while PROCESSING",
                invoice.id
            );
            invoice.doubts = 0;
            invoice.add_attempt(attempt);
        }
        self.note(What::Begun, Some(&begin.invoice), begin.token, Some(number));
        self.refile(&begin.invoice);
        self.begun(&begin.invoice)
    }

    /// The terms of an attempt that is opened now. Its key may be one that a lost log used: then the provider may forget what it
    /// declined under it between two sends, and the second one would charge. So no decline is taken for a kept one.
    fn terms_of_new(&self, terms: &Arc<Terms>) -> Arc<Terms> {
        let may_be_old = self.scalars.now < self.scalars.old_keys_until;
        if !(terms.sticky && may_be_old) || sabotaged!(OldKeyTakenForNew) {
            return Arc::clone(terms);
        }
        Arc::new(Terms {
            sticky: false,
            ..Terms::clone(terms)
        })
    }

    fn begun(&self, id: &InvoiceId) -> Result<Reply, Rejection> {
        let attempt = self
            .invoice(id)
            .and_then(|invoice| self.open_attempt_view(invoice));
        attempt
            .map(|attempt| Reply::Begun(Box::new(attempt)))
            .ok_or_else(|| Rejection::NoOpenAttempt {
                invoice: id.clone(),
            })
    }

    pub(super) fn attach(&mut self, attach: &AttachProviderObject) -> Result<Reply, Rejection> {
        let invoice = self.chargeable(&attach.invoice, attach.token)?;
        let attempt = invoice.live().ok_or_else(|| Rejection::NoOpenAttempt {
            invoice: attach.invoice.clone(),
        })?;
        if let Some(object) = invoice.standing_object()
            && !sabotaged!(SecondObjectAttached)
        {
            return Ok(Reply::Attached {
                object: object.id.clone(),
            });
        }
        let terms = match (&attempt.terms, attempt.state) {
            (Some(terms), AttemptState::Open) => Arc::clone(terms),
            (_, _) => {
                return Err(Rejection::Closing {
                    invoice: attach.invoice.clone(),
                    number: attempt.number,
                    look_up_in_ms: self.look_up_in_ms(attempt),
                });
            }
        };
        if invoice
            .object
            .as_ref()
            .is_some_and(|cancelled| cancelled.id == attach.object)
        {
            return Err(Rejection::InvalidArgument {
                field: "object".into(),
                bound: "another one than the object that was cancelled".into(),
            });
        }
        let number = attempt.number;
        if let Some(invoice) = self.invoice_mut(&attach.invoice) {
            invoice.object = Some(Object {
                id: attach.object.clone(),
                provider: terms.provider.clone(),
                account: terms.account.clone(),
                live: terms.live,
                cancelled: false,
            });
        }
        let what = What::ObjectAttached {
            object: attach.object.clone(),
        };
        self.note(what, Some(&attach.invoice), attach.token, Some(number));
        Ok(Reply::Attached {
            object: attach.object.clone(),
        })
    }

    /// How long until a lease can be granted under which a look-up that finds nothing counts: both clocks must agree.
    fn look_up_in_ms(&self, attempt: &Attempt) -> u64 {
        let cluster = self.scalars.now.ms_until(attempt.quiet_at().plus(1));
        cluster.max(self.wall_reached().ms_until(attempt.quiet_wall().plus(1)))
    }

    pub(super) fn open_attempt_view(&self, invoice: &Invoice) -> Option<ChargeAttempt> {
        let attempt = invoice.live()?;
        Some(ChargeAttempt {
            number: attempt.number,
            idempotency_key: IdempotencyKey {
                ledger: self.scalars.ledger_id.clone()?,
                number: attempt.number,
                invoice: invoice.id.clone(),
            },
            token: attempt.token,
            state: attempt.state,
            send_within_ms: attempt.send_within_ms(self.scalars.now, self.wall_perhaps()),
            provider_object: invoice.standing_object().map(|object| object.id.clone()),
            taken_over: attempt.taken_over,
            terms: attempt.terms.clone(),
            look_up_in_ms: self.look_up_in_ms(attempt),
        })
    }
}

fn wrong(
    invoice: &InvoiceId,
    field: &'static str,
    recorded: String,
    presented: String,
) -> Rejection {
    Rejection::WrongTerms {
        invoice: invoice.clone(),
        field: field.into(),
        recorded: recorded.into(),
        presented: presented.into(),
    }
}

fn same_account(
    invoice: &InvoiceId,
    (provider, account, live): (&ProviderId, &AccountId, bool),
    presented: &Terms,
) -> Result<(), Rejection> {
    let mode = |live: bool| if live { "live" } else { "test" }.to_owned();
    if *provider != presented.provider {
        return Err(wrong(
            invoice,
            "provider",
            provider.to_string(),
            presented.provider.to_string(),
        ));
    }
    if *account != presented.account {
        return Err(wrong(
            invoice,
            "account",
            account.to_string(),
            presented.account.to_string(),
        ));
    }
    if live != presented.live {
        return Err(wrong(invoice, "mode", mode(live), mode(presented.live)));
    }
    Ok(())
}

/// What a successor must present: the provider would take anything else for another charge, or refuse the key.
fn same_terms(invoice: &InvoiceId, recorded: &Terms, presented: &Terms) -> Result<(), Rejection> {
    same_account(
        invoice,
        (&recorded.provider, &recorded.account, recorded.live),
        presented,
    )?;
    if recorded.fingerprint != presented.fingerprint {
        let (recorded, presented) = (
            recorded.fingerprint.to_string(),
            presented.fingerprint.to_string(),
        );
        return Err(wrong(invoice, "fingerprint", recorded, presented));
    }
    Ok(())
}
