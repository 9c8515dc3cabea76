//! What an outcome proves. A charge is a fact, whoever reports it; a no counts only with evidence that no other send of the
//! key succeeded or still may; everything else leaves the attempt in doubt. Never takes silence, or a clock alone, for a no.

use super::leases::backoff_ms;
use super::state::{Attempt, Charge, Decline, Phase, Proof, SettledLast};
use super::*;
use crate::command::{Charged, Finality, Outcome, ResolveCharge, SettleCharge, Verdict};
use crate::rejection::Bound;
use crate::reply::{AttemptState, ReviewReason};

impl Ledger {
    pub(super) fn settle(&mut self, settle: &SettleCharge) -> Result<Reply, Rejection> {
        self.own_key(&settle.invoice, &settle.key)?;
        match &settle.outcome {
            Outcome::Charged(charged) | Outcome::LookedUp(Some(charged)) => {
                self.charged(&settle.invoice, settle.key.number, settle.token, charged)
            }
            Outcome::Cancelled { object } => self.object_cancelled(settle, object),
            Outcome::Declined { .. }
            | Outcome::LookedUp(None)
            | Outcome::Pending { .. }
            | Outcome::Unknown { .. } => self.settle_under_token(settle),
        }
    }

    fn own_key(&self, invoice: &InvoiceId, key: &IdempotencyKey) -> Result<(), Rejection> {
        if key.invoice != *invoice {
            return Err(Rejection::InvalidArgument {
                field: "idempotency_key".into(),
                bound: "a key of the invoice that the request names".into(),
            });
        }
        match &self.scalars.ledger_id {
            Some(ledger_id) if *ledger_id == key.ledger => Ok(()),
            Some(ledger_id) => Err(Rejection::ForeignKey {
                presented: key.clone(),
                ledger_id: ledger_id.clone(),
            }),
            None => Err(Rejection::NotBootstrapped),
        }
    }

    fn status_of(&self, id: &InvoiceId) -> Result<Reply, Rejection> {
        let invoice = self.invoice(id).ok_or_else(|| Rejection::NotFound {
            invoice: id.clone(),
        })?;
        Ok(Reply::Status {
            status: invoice.status(),
        })
    }

    /// What only the holder may say, and only of the attempt that is open or closing.
    fn settle_under_token(&mut self, settle: &SettleCharge) -> Result<Reply, Rejection> {
        let (id, now) = (&settle.invoice, self.scalars.now);
        let invoice = self.invoice(id).ok_or_else(|| Rejection::NotFound {
            invoice: id.clone(),
        })?;
        let outcome = digest(Tag::Outcome, &settle.outcome, &mut Vec::new());
        let this = SettledLast {
            token: settle.token,
            number: settle.key.number,
            outcome,
        };
        if invoice.settled_last == Some(this)
            && settle.token != FencingToken::NONE
            && invoice.lease_token() != settle.token
        {
            return self.status_of(id); // The answer was lost; the report was taken.
        }
        if invoice.phase == Phase::Paid
            && let Some(refused) = self.unleasable(invoice)
        {
            return Err(refused);
        }
        let decline = matches!(settle.outcome, Outcome::Declined { .. });
        match self.check_token(invoice, settle.token) {
            Err(_) if sabotaged!(NoTokenCheckAtSettle) => {}
            Err(_) if decline && sabotaged!(StaleDeclineTaken) => {}
            checked => checked?,
        }
        let attempt = invoice.live().ok_or_else(|| Rejection::NoOpenAttempt {
            invoice: id.clone(),
        })?;
        if attempt.number != settle.key.number {
            return Err(Rejection::WrongKey {
                invoice: id.clone(),
                presented: settle.key.clone(),
            });
        }
        let number = attempt.number;
        match &settle.outcome {
            Outcome::Declined {
                code,
                retryable,
                finality,
            } => {
                let object = invoice.standing_object().map(|object| object.id.clone());
                let proven = decline_is_final(attempt, *finality, settle.token, object.is_some());
                let what = What::Declined {
                    code: code.clone(),
                    retryable: *retryable,
                    finality: *finality,
                    proven,
                };
                self.note(what, Some(id), settle.token, Some(number));
                let decline = Decline {
                    code: code.clone(),
                    retryable: *retryable,
                };
                if let Some(attempt) = self.invoice_mut(id).and_then(Invoice::live_mut) {
                    attempt.decline = Some(decline);
                    if !proven {
                        attempt.state = AttemptState::Closing;
                    }
                }
                if proven {
                    let object = object.filter(|_| *finality == Finality::Object);
                    let proof = Proof::Declined {
                        finality: *finality,
                        object,
                    };
                    self.attempt_ended(id, AttemptState::Declined, proof);
                }
            }
            Outcome::LookedUp(_) => {
                let lease =
                    invoice
                        .lease
                        .as_ref()
                        .map(|lease| match sabotaged!(OldLookUpBelieved) {
                            false => (lease.granted_at, lease.granted_wall),
                            true => (now, self.wall_reached()),
                        });
                let counts = lease.filter(|(at, granted_wall)| {
                    attempt.look_up_counts(*at, *granted_wall) || sabotaged!(EarlyLookUpBelieved)
                });
                let what = What::LookedUpNone {
                    counts: counts.is_some(),
                };
                self.note(what, Some(id), settle.token, Some(number));
                if let Some((granted_at, granted_wall)) = counts {
                    self.attempt_ended(
                        id,
                        AttemptState::Cancelled,
                        Proof::LookedUp {
                            granted_at,
                            granted_wall,
                        },
                    );
                }
            }
            Outcome::Pending { expected_by } => {
                // Whoever is asked too early says so again; a report of money at work is not refused for a clock.
                let wait_ms = self.wall_perhaps().ms_until(*expected_by);
                if wait_ms > PENDING_MS_MAX {
                    return Err(Rejection::InvalidArgument {
                        field: "pending.expected_by".into(),
                        bound: "at most 30 days ahead".into(),
                    });
                }
                self.note(
                    What::Pending {
                        expected_by: *expected_by,
                    },
                    Some(id),
                    settle.token,
                    Some(number),
                );
                if let Some(invoice) = self.invoice_mut(id) {
                    // A time that has passed says nothing: then it is merely in doubt.
                    invoice.waiting_until = (wait_ms > 0).then(|| now.plus(wait_ms));
                }
            }
            Outcome::Unknown { detail } => {
                self.note(
                    What::Unknown {
                        detail: detail.clone(),
                    },
                    Some(id),
                    settle.token,
                    Some(number),
                );
            }
            // Facts: `settle` has taken them.
            Outcome::Charged(_) | Outcome::Cancelled { .. } => {}
        }
        if let Some(invoice) = self.invoice_mut(id) {
            invoice.settled_last = Some(this);
        }
        self.end_lease_with_it(id);
        self.refile(id);
        self.review_if_unanswered(id);
        self.status_of(id)
    }

    /// Ends the live attempt without money, on evidence; the invoice is tried again later, or has FAILED.
    fn attempt_ended(&mut self, id: &InvoiceId, state: AttemptState, proof: Proof) {
        let (now, config) = (self.scalars.now, self.config.clone());
        let Some(invoice) = self.invoice_mut(id) else {
            return;
        };
        let Some(attempt) = invoice.live_mut() else {
            return;
        };
        attempt.state = state;
        attempt.proof = Some(proof);
        let retryable = attempt
            .decline
            .as_ref()
            .is_none_or(|decline| decline.retryable);
        invoice.waiting_until = None;
        invoice.doubts = 0;
        let wait = backoff_ms(
            config.retry_backoff_ms_min,
            config.retry_backoff_ms_max,
            invoice.retries,
        );
        invoice.retries += 1;
        invoice.next_try = now.plus(wait);
        let give_up = !retryable || invoice.retries >= config.retries_max;
        if invoice.phase == Phase::Ready && give_up {
            self.close_invoice(id, Phase::Failed, What::Failed);
        } else {
            self.refile(id);
        }
    }

    /// The recorded object can never succeed any more, and with it the attempt that goes through it.
    fn object_cancelled(
        &mut self,
        settle: &SettleCharge,
        object: &ObjectId,
    ) -> Result<Reply, Rejection> {
        let id = &settle.invoice;
        let invoice = self.invoice(id).ok_or_else(|| Rejection::NotFound {
            invoice: id.clone(),
        })?;
        let recorded = invoice.object.as_ref();
        let Some(known) = recorded.filter(|recorded| recorded.id == *object) else {
            let recorded = recorded.map(|recorded| recorded.id.clone());
            return Err(Rejection::OtherObject {
                invoice: id.clone(),
                presented: object.clone(),
                recorded,
            });
        };
        if known.cancelled {
            return self.status_of(id);
        }
        // No provider cancels what has succeeded: one of the two reports is wrong, and the money is the safer one.
        if let Some(charge) = invoice
            .charges
            .iter()
            .find(|charge| charge.reference.as_str() == object.as_str())
        {
            let reference = charge.reference.clone();
            return Err(Rejection::ChargeRecorded {
                invoice: id.clone(),
                reference,
            });
        }
        let number = invoice.live().map(|attempt| attempt.number);
        let by_holder = settle.token != FencingToken::NONE && invoice.lease_token() == settle.token;
        let what = What::ObjectCancelled {
            object: object.clone(),
        };
        self.note(what, Some(id), settle.token, number);
        if let Some(recorded) = self
            .invoice_mut(id)
            .and_then(|invoice| invoice.object.as_mut())
        {
            recorded.cancelled = true;
        }
        if number.is_some() {
            self.attempt_ended(
                id,
                AttemptState::Cancelled,
                Proof::ObjectCancelled {
                    object: object.clone(),
                },
            );
        }
        if by_holder {
            self.end_lease_with_it(id);
        }
        self.refile(id);
        self.status_of(id)
    }

    /// Money moved. Recorded whatever the token and the status; what the rules did not foresee goes in front of a person.
    fn charged(
        &mut self,
        id: &InvoiceId,
        number: AttemptNumber,
        token: FencingToken,
        charged: &Charged,
    ) -> Result<Reply, Rejection> {
        if self
            .invoice(id)
            .is_some_and(|invoice| invoice.has_charge(&charged.reference))
        {
            return self.status_of(id);
        }
        if !self.invoices.contains(id) {
            self.insert_invoice(Invoice::new(id.clone()));
        }
        let Some(invoice) = self.invoice_mut(id) else {
            return Err(Rejection::NotFound {
                invoice: id.clone(),
            });
        };
        if invoice.charges.len() >= CHARGES_PER_INVOICE_MAX {
            let max = CHARGES_PER_INVOICE_MAX as u64;
            return Err(Rejection::Overloaded {
                bound: Bound::ChargesPerInvoice,
                max,
            });
        }
        let live = invoice.live().map(|attempt| attempt.number);
        // An object belongs to the invoice: a report about it may still carry the key under which it was created.
        let object = invoice
            .standing_object()
            .is_some_and(|object| object.id.as_str() == charged.reference.as_str());
        let settled = live
            .filter(|live| *live == number || object)
            .unwrap_or(number);
        let foreseen = live == Some(settled);
        let first = invoice.charges.is_empty();
        let was = invoice.phase;
        let verdict = match (&invoice.sum, was) {
            _ if !first => Err(ReviewReason::SecondCharge),
            (None, _) => Err(ReviewReason::NotSubmitted),
            (Some(sum), _)
                if charged.amount.is_some_and(|amount| amount != sum.amount)
                    || charged
                        .currency
                        .is_some_and(|currency| currency != sum.currency) =>
            {
                Err(ReviewReason::OtherSum)
            }
            (Some(_), Phase::Cancelled) => Err(ReviewReason::WasCancelled),
            (Some(_), Phase::Review(_)) if foreseen || live.is_none() => Ok(()),
            (Some(_), Phase::Ready | Phase::Failed) if foreseen => Ok(()),
            (Some(_), Phase::Ready | Phase::Failed | Phase::Review(_) | Phase::Paid) => {
                Err(ReviewReason::AttemptNotOpen)
            }
        };
        invoice.charges.push(Charge::new(charged, settled));
        invoice.settle_attempt(settled, &charged.reference);
        self.note(
            What::Charged {
                reference: charged.reference.clone(),
            },
            Some(id),
            token,
            Some(settled),
        );
        match verdict {
            Ok(()) => self.close_invoice(id, Phase::Paid, What::Paid),
            Err(reason) => {
                self.scalars.charge_alarms += 1;
                self.turn.alarms.push(Alarm {
                    invoice: id.clone(),
                    reference: charged.reference.clone(),
                    reason,
                });
                self.put_in_review(id, reason);
            }
        }
        self.status_of(id)
    }

    pub(super) fn resolve(&mut self, resolve: &ResolveCharge) -> Result<Reply, Rejection> {
        self.own_key(&resolve.invoice, &resolve.key)?;
        match &resolve.verdict {
            Verdict::Charged(charged) => self.resolve_charged(resolve, charged),
            Verdict::NotCharged => self.resolve_not_charged(resolve),
        }
    }

    /// A person found the money. A reference that is recorded already is thereby confirmed to pay the invoice.
    fn resolve_charged(
        &mut self,
        resolve: &ResolveCharge,
        charged: &Charged,
    ) -> Result<Reply, Rejection> {
        let id = &resolve.invoice;
        let confirmed = self
            .invoice(id)
            .is_some_and(|invoice| invoice.has_charge(&charged.reference));
        let what = What::Resolved {
            verdict: resolve.verdict.clone(),
            evidence: resolve.evidence.clone(),
        };
        if !confirmed {
            let reply = self.charged(id, resolve.key.number, FencingToken::NONE, charged)?;
            self.note(what, Some(id), FencingToken::NONE, Some(resolve.key.number));
            return Ok(reply);
        }
        self.note(what, Some(id), FencingToken::NONE, Some(resolve.key.number));
        let payable = self.invoice(id).is_some_and(|invoice| {
            matches!(invoice.phase, Phase::Review(_))
                && invoice.charges.len() == 1
                && invoice.live().is_none()
                && invoice.sum.is_some()
        });
        if payable {
            self.close_invoice(id, Phase::Paid, What::Paid);
        }
        self.status_of(id)
    }

    /// A person found no money. They may be hasty: a send that is still in flight, or a provider still at work, outlives them.
    fn resolve_not_charged(&mut self, resolve: &ResolveCharge) -> Result<Reply, Rejection> {
        let (id, now) = (&resolve.invoice, self.scalars.now);
        let invoice = self.invoice(id).ok_or_else(|| Rejection::NotFound {
            invoice: id.clone(),
        })?;
        let attempt = invoice.live().ok_or_else(|| Rejection::NoOpenAttempt {
            invoice: id.clone(),
        })?;
        if attempt.number != resolve.key.number {
            return Err(Rejection::WrongKey {
                invoice: id.clone(),
                presented: resolve.key.clone(),
            });
        }
        if invoice.lease.is_some() {
            return Err(self.held_by_other(invoice));
        }
        let quiet_at = invoice
            .waiting_until
            .map_or(attempt.quiet_at(), |until| until.max(attempt.quiet_at()));
        let in_ms = now.ms_until(quiet_at);
        if in_ms > 0 {
            return Err(Rejection::TooEarly {
                invoice: id.clone(),
                in_ms,
            });
        }
        let charged = !invoice.charges.is_empty();
        let number = attempt.number;
        let what = What::Resolved {
            verdict: resolve.verdict.clone(),
            evidence: resolve.evidence.clone(),
        };
        self.note(what, Some(id), FencingToken::NONE, Some(number));
        if let Some(attempt) = self.invoice_mut(id).and_then(Invoice::live_mut) {
            attempt.state = AttemptState::Cancelled;
            attempt.proof = Some(Proof::Person {
                at: now,
                evidence: resolve.evidence.clone(),
            });
        }
        if charged {
            self.refile(id); // Another attempt's charge is recorded: it stays in REVIEW until that one is resolved.
        } else {
            self.close_invoice(id, Phase::Failed, What::Failed);
        }
        self.status_of(id)
    }
}

/// Whether the gate's reason why the no is final holds against what the ledger knows.
fn decline_is_final(
    attempt: &Attempt,
    finality: Finality,
    token: FencingToken,
    object_recorded: bool,
) -> bool {
    match finality {
        Finality::None => false,
        Finality::Sticky => attempt.keeps_declines(),
        Finality::SoleSend => {
            attempt.state == AttemptState::Open && attempt.opened_by == token && !attempt.taken_over
        }
        Finality::Object => object_recorded,
    }
}

impl Invoice {
    /// The token that holds it now; NONE: nobody's.
    pub fn lease_token(&self) -> FencingToken {
        self.lease
            .as_ref()
            .map_or(FencingToken::NONE, |lease| lease.token)
    }

    pub fn has_charge(&self, reference: &Reference) -> bool {
        self.charges
            .iter()
            .any(|charge| charge.reference == *reference)
    }

    /// Adds an attempt in order of its number, and lets the oldest dead one go beyond the bound.
    pub fn add_attempt(&mut self, attempt: Attempt) {
        self.number_last = self.number_last.max(attempt.number.get());
        let at = self
            .attempts
            .partition_point(|known| known.number < attempt.number);
        self.attempts.insert(at, attempt);
        if self.attempts.len() > ATTEMPTS_KEPT_MAX {
            let dead = self
                .attempts
                .iter()
                .position(|attempt| match attempt.state {
                    AttemptState::Declined | AttemptState::Cancelled => true,
                    AttemptState::Open | AttemptState::Closing | AttemptState::Settled => false,
                });
            if let Some(dead) = dead {
                self.attempts.remove(dead);
            }
        }
    }

    /// Money moved under this number, known or not: a fact overrides whatever was proven before.
    fn settle_attempt(&mut self, number: AttemptNumber, reference: &Reference) {
        let proof = Some(Proof::Charged {
            reference: reference.clone(),
        });
        if let Some(known) = self
            .attempts
            .iter_mut()
            .find(|known| known.number == number)
        {
            known.state = AttemptState::Settled;
            known.proof = proof;
        } else {
            self.add_attempt(Attempt {
                number,
                state: AttemptState::Settled,
                opened_by: FencingToken::NONE,
                token: FencingToken::NONE,
                taken_over: false,
                terms: None,
                not_after: ClusterTime::default(),
                not_after_wall: WallTime::default(),
                decline: None,
                proof,
            });
        }
    }
}
