//! Attempts, outcomes and what they prove, as §2, §3 and §5 say them.

use std::sync::Arc;

use billing_core::*;

use super::leases::{already_paid, backoff, invalid};
use super::{Attempt, End, Expected, Invoice, Model, Object, Rest, Told};

impl Model {
    /// What the invoice has become, before its next waiter takes it.
    fn status_reply(&mut self, id: &InvoiceId) -> Expected {
        self.review_unanswered(id);
        let status = self
            .invoices
            .get(id)
            .map_or(InvoiceStatus::Pending, |invoice| self.status(invoice));
        Ok(Reply::Status { status })
    }

    fn wrong_status(&self, id: &InvoiceId, invoice: &Invoice) -> Rejection {
        Rejection::WrongStatus {
            invoice: id.clone(),
            status: self.status(invoice),
            wanted: "".into(),
        }
    }

    pub fn cancel(&mut self, cancel: &CancelInvoice) -> Expected {
        let id = &cancel.invoice;
        let Some(invoice) = self.invoices.get(id) else {
            return Err(vec![Rejection::NotFound {
                invoice: id.clone(),
            }]);
        };
        let mut reasons = Vec::new();
        if invoice.bill.is_none() {
            reasons.push(Rejection::NotSubmitted {
                invoice: id.clone(),
            });
            reasons.push(Rejection::NotFound {
                invoice: id.clone(),
            });
        }
        if let Some(attempt) = invoice.live() {
            reasons.push(Rejection::AttemptOpen {
                invoice: id.clone(),
                number: attempt.number,
            });
        }
        if let Some(reference) = invoice.charges.first().cloned() {
            reasons.push(Rejection::ChargeRecorded {
                invoice: id.clone(),
                reference,
            });
        }
        match &invoice.rest {
            Some(Rest::Paid) => reasons.push(already_paid(id, invoice)),
            Some(Rest::Cancelled) => return self.status_reply(id),
            Some(Rest::Review(_)) if !reasons.is_empty() => {
                reasons.push(self.wrong_status(id, invoice))
            }
            Some(Rest::Failed | Rest::Review(_)) | None => {}
        }
        if !reasons.is_empty() {
            return Err(reasons);
        }
        let invoice = self.invoices.get_mut(id).expect("looked up");
        invoice.rest = Some(Rest::Cancelled);
        invoice.was_cancelled = true;
        if invoice.lease.is_some() {
            self.end_lease(id, End::Ended);
        }
        self.freed.insert(id.clone());
        self.status_reply(id)
    }

    pub fn requeue(&mut self, requeue: &RequeueInvoice) -> Expected {
        let id = &requeue.invoice;
        let Some(invoice) = self.invoices.get(id) else {
            return Err(vec![Rejection::NotFound {
                invoice: id.clone(),
            }]);
        };
        let mut reasons = Vec::new();
        if invoice.bill.is_none() {
            reasons.push(Rejection::NotSubmitted {
                invoice: id.clone(),
            });
            reasons.push(Rejection::NotFound {
                invoice: id.clone(),
            });
        }
        if let Some(attempt) = invoice.live() {
            reasons.push(Rejection::AttemptOpen {
                invoice: id.clone(),
                number: attempt.number,
            });
        }
        if let Some(reference) = invoice.charges.first().cloned() {
            reasons.push(Rejection::ChargeRecorded {
                invoice: id.clone(),
                reference,
            });
        }
        match &invoice.rest {
            Some(Rest::Failed | Rest::Cancelled | Rest::Review(_)) => {}
            Some(Rest::Paid) => reasons.push(already_paid(id, invoice)),
            None => reasons.push(self.wrong_status(id, invoice)),
        }
        if !reasons.is_empty() {
            return Err(reasons);
        }
        let invoice = self.invoices.get_mut(id).expect("looked up");
        invoice.rest = None;
        invoice.was_cancelled = false;
        invoice.tries = 0;
        invoice.doubts = 0;
        invoice.next_try = 0;
        invoice.pending_until = 0;
        self.freed.insert(id.clone());
        self.status_reply(id)
    }

    pub fn begin(&mut self, begin: &BeginCharge) -> Expected {
        let id = &begin.invoice;
        let terms = &begin.terms;
        let mut reasons = self.token_reasons(id, begin.token);
        if !self.charges_allowed {
            reasons.push(Rejection::ChargesNotAllowed);
        }
        if let Some(reason) = self.paused.get(&terms.provider) {
            let (provider, reason) = (terms.provider.clone(), reason.clone());
            reasons.push(Rejection::ProviderPaused { provider, reason });
        }
        let Some(invoice) = self.invoices.get(id) else {
            reasons.push(Rejection::NotFound {
                invoice: id.clone(),
            });
            return Err(reasons);
        };
        if invoice.bill.is_none() {
            reasons.push(Rejection::NotSubmitted {
                invoice: id.clone(),
            });
        }
        match &invoice.rest {
            Some(Rest::Paid) => reasons.push(already_paid(id, invoice)),
            Some(_) => reasons.push(self.wrong_status(id, invoice)),
            None => {}
        }
        let mut due_in_ms = invoice.next_try.saturating_sub(self.now);
        if let Some(bill) = invoice.bill.as_ref().filter(|_| invoice.live().is_none()) {
            due_in_ms = due_in_ms.max(bill.due_at.0.saturating_sub(self.wall_low));
        }
        let apart_ms = self.wall_high - self.wall_low;
        if invoice.live().is_none() && apart_ms >= terms.valid_for.get() {
            reasons.push(Rejection::ClocksDisagree { apart_ms });
        }
        if due_in_ms > 0 {
            reasons.push(Rejection::NotDue {
                invoice: id.clone(),
                due_in_ms,
            });
        }
        match invoice.live() {
            Some(attempt) if attempt.state == AttemptState::Closing => {
                reasons.push(self.closing(id, attempt))
            }
            Some(attempt) => {
                let recorded = attempt.terms.as_ref().expect("opened with terms");
                if recorded.fingerprint != terms.fingerprint {
                    reasons.push(wrong_terms(id, "fingerprint"));
                }
                reasons.extend(other_account(id, recorded, terms));
            }
            None => {
                if let Some(object) = invoice.object.as_ref().filter(|object| !object.cancelled) {
                    reasons.extend(other_account(id, &object.terms, terms));
                }
                if invoice.highest >= limits::ATTEMPT_NUMBER_MAX {
                    reasons.push(Rejection::AttemptsUsedUp {
                        invoice: id.clone(),
                    });
                }
            }
        }
        if !reasons.is_empty() {
            return Err(reasons);
        }

        let (now, wall) = (self.now, self.wall_low);
        let invoice = self.invoices.get_mut(id).expect("looked up");
        match invoice.live_mut() {
            Some(attempt) => {
                attempt.taken_over = true;
                attempt.token = begin.token;
            }
            None => {
                invoice.highest += 1;
                invoice.tries += 1;
                invoice.doubts = 0;
                invoice.pending_until = 0;
                invoice.attempts.push(Attempt {
                    number: AttemptNumber::new(u64::from(invoice.highest))
                        .expect("below the bound"),
                    token: begin.token,
                    opened_by: begin.token,
                    state: AttemptState::Open,
                    not_after: now + terms.valid_for.get(),
                    not_after_wall: wall + terms.valid_for.get(),
                    taken_over: false,
                    terms: Some(Arc::new(Terms {
                        sticky: terms.sticky && now >= self.old_keys_until,
                        ..Terms::clone(terms)
                    })),
                    final_no: false,
                });
            }
        }
        let invoice = &self.invoices[id];
        let attempt = self.attempt_view(id, invoice, invoice.live().expect("open"));
        Ok(Reply::Begun(Box::new(attempt)))
    }

    fn closing(&self, id: &InvoiceId, attempt: &Attempt) -> Rejection {
        Rejection::Closing {
            invoice: id.clone(),
            number: attempt.number,
            look_up_in_ms: self.look_up_in(attempt),
        }
    }

    pub fn attach(&mut self, attach: &AttachProviderObject) -> Expected {
        let id = &attach.invoice;
        let mut reasons = self.token_reasons(id, attach.token);
        if let Some(attempt) = self.invoices.get(id).and_then(|invoice| invoice.live())
            && attempt.state == AttemptState::Closing
            && self.invoices[id]
                .object
                .as_ref()
                .is_none_or(|object| object.cancelled)
        {
            reasons.push(self.closing(id, attempt)); // Nothing is sent for it any more.
        }
        let Some(invoice) = self.invoices.get_mut(id) else {
            reasons.push(Rejection::NotFound {
                invoice: id.clone(),
            });
            return Err(reasons);
        };
        if invoice.live().is_none() {
            reasons.push(Rejection::NoOpenAttempt {
                invoice: id.clone(),
            });
        }
        if invoice.rest == Some(Rest::Paid) {
            reasons.push(already_paid(id, invoice));
        }
        let known = invoice.object.as_ref();
        if known.is_some_and(|known| known.cancelled && known.id == attach.object) {
            reasons.push(invalid()); // It can never succeed any more.
        }
        if !reasons.is_empty() {
            return Err(reasons);
        }
        if let Some(object) = invoice.object.as_ref().filter(|object| !object.cancelled) {
            return Ok(Reply::Attached {
                object: object.id.clone(),
            });
        }
        let terms = invoice
            .live()
            .and_then(|attempt| attempt.terms.clone())
            .expect("opened with terms");
        invoice.object = Some(Object {
            id: attach.object.clone(),
            cancelled: false,
            terms,
        });
        Ok(Reply::Attached {
            object: attach.object.clone(),
        })
    }

    pub fn settle(&mut self, settle: &SettleCharge, told: &Told) -> Expected {
        let expected = self.settle_once(settle);
        let Some(invoice) = self.invoices.get_mut(&settle.invoice) else {
            return expected;
        };
        if expected.is_ok() {
            invoice.settled.push(settle.clone());
        } else if told.is_ok() && invoice.settled.contains(settle) {
            return self.status_reply(&settle.invoice);
        }
        expected
    }

    fn settle_once(&mut self, settle: &SettleCharge) -> Expected {
        let id = &settle.invoice;
        let mut reasons = Vec::new();
        let ledger_id = self.ledger_id.clone().expect("bootstrapped");
        if settle.key.ledger != ledger_id {
            reasons.push(Rejection::ForeignKey {
                presented: settle.key.clone(),
                ledger_id,
            });
        }
        if settle.key.invoice != *id {
            reasons.push(wrong_key(settle));
            reasons.push(invalid());
        }
        match &settle.outcome {
            Outcome::Charged(charged) | Outcome::LookedUp(Some(charged)) => {
                if !reasons.is_empty() {
                    return Err(reasons);
                }
                self.charged(id, settle.key.number, charged)
            }
            Outcome::Cancelled { object } => self.cancelled(settle, object, reasons),
            Outcome::Declined {
                code,
                retryable,
                finality,
            } => {
                reasons.extend(self.not_about_the_live_attempt(settle));
                if !reasons.is_empty() {
                    return Err(reasons);
                }
                self.declined(settle, code, *retryable, *finality)
            }
            Outcome::LookedUp(None) => {
                reasons.extend(self.not_about_the_live_attempt(settle));
                if !reasons.is_empty() {
                    return Err(reasons);
                }
                self.looked_up_none(settle)
            }
            Outcome::Pending { expected_by } => {
                reasons.extend(self.not_about_the_live_attempt(settle));
                if !reasons.is_empty() {
                    return Err(reasons);
                }
                let wait = expected_by.0.saturating_sub(self.wall_high);
                if wait > limits::PENDING_MS_MAX {
                    return Err(vec![invalid()]);
                }
                let until = self.now + wait;
                self.invoices.get_mut(id).expect("leased").pending_until = until;
                self.end_lease(id, End::Ended);
                self.status_reply(id)
            }
            Outcome::Unknown { .. } => {
                reasons.extend(self.not_about_the_live_attempt(settle));
                if !reasons.is_empty() {
                    return Err(reasons);
                }
                self.end_lease(id, End::Ended);
                self.status_reply(id)
            }
        }
    }

    /// What is no fact about money needs the current token and the key of the open or closing attempt.
    fn not_about_the_live_attempt(&self, settle: &SettleCharge) -> Vec<Rejection> {
        let id = &settle.invoice;
        let mut reasons = self.token_reasons(id, settle.token);
        let Some(invoice) = self.invoices.get(id) else {
            reasons.push(Rejection::NotFound {
                invoice: id.clone(),
            });
            return reasons;
        };
        if invoice.rest == Some(Rest::Paid) {
            reasons.push(already_paid(id, invoice));
        }
        match invoice.live() {
            None => {
                reasons.push(Rejection::NoOpenAttempt {
                    invoice: id.clone(),
                });
                if !invoice
                    .attempts
                    .iter()
                    .any(|attempt| attempt.number == settle.key.number)
                {
                    reasons.push(wrong_key(settle));
                }
            }
            Some(attempt) if attempt.number != settle.key.number => reasons.push(wrong_key(settle)),
            Some(_) => {}
        }
        reasons
    }

    /// Money moved. Whatever the token and the status, it is recorded.
    fn charged(&mut self, id: &InvoiceId, number: AttemptNumber, charged: &Charged) -> Expected {
        let invoice = self.invoices.entry(id.clone()).or_default();
        if invoice.charges.contains(&charged.reference) {
            return self.status_reply(id);
        }
        if invoice.charges.len() >= limits::CHARGES_PER_INVOICE_MAX {
            return Err(vec![Rejection::Overloaded {
                bound: Bound::ChargesPerInvoice,
                max: limits::CHARGES_PER_INVOICE_MAX as u64,
            }]);
        }
        let live = invoice.live().map(|attempt| attempt.number);
        // The object belongs to the invoice: whichever attempt's confirm went through, it pays the one that is live.
        let of_object = invoice.object.as_ref().is_some_and(|object| {
            !object.cancelled && object.id.as_str() == charged.reference.as_str()
        });
        let number = live.filter(|_| of_object).unwrap_or(number);
        let mut wrong = Vec::new();
        match &invoice.bill {
            None => wrong.push(ReviewReason::NotSubmitted),
            Some(bill) => {
                let other_amount = charged.amount.is_some_and(|amount| amount != bill.amount);
                let other_currency = charged
                    .currency
                    .is_some_and(|currency| currency != bill.currency);
                if other_amount || other_currency {
                    wrong.push(ReviewReason::OtherSum);
                }
            }
        }
        if !invoice.charges.is_empty() {
            wrong.push(ReviewReason::SecondCharge);
        }
        if invoice.was_cancelled {
            wrong.push(ReviewReason::WasCancelled);
        }
        let in_review = matches!(invoice.rest, Some(Rest::Review(_)));
        let excused = in_review && live.is_none();
        if live != Some(number) && !excused {
            wrong.push(ReviewReason::AttemptNotOpen);
        }

        invoice.charges.push(charged.reference.clone());
        invoice.highest = invoice.highest.max(number.get());
        match invoice
            .attempts
            .iter_mut()
            .find(|attempt| attempt.number == number)
        {
            Some(attempt) => attempt.state = AttemptState::Settled,
            None => invoice.attempts.push(Attempt {
                number,
                token: FencingToken::NONE,
                opened_by: FencingToken::NONE,
                state: AttemptState::Settled,
                not_after: 0,
                not_after_wall: 0,
                taken_over: false,
                terms: None,
                final_no: false,
            }),
        }
        if wrong.is_empty() {
            invoice.rest = Some(Rest::Paid);
        } else {
            let mut reasons = wrong.clone();
            if let Some(Rest::Review(before)) = &invoice.rest {
                reasons.extend(before);
            }
            invoice.rest = Some(Rest::Review(reasons));
            invoice.pending_until = 0; // A person looks now.
            self.alarms
                .push((id.clone(), charged.reference.clone(), wrong));
        }
        // Whoever holds it: nothing that is settled or in front of a person can be leased.
        if self.invoices[id].lease.is_some() {
            self.end_lease(id, End::Ended);
        }
        self.freed.insert(id.clone());
        self.status_reply(id)
    }

    /// The attempt is dead by evidence; what becomes of the invoice.
    fn after_death(&mut self, id: &InvoiceId, state: AttemptState) {
        let now = self.now;
        let (least, most) = (
            self.config.retry_backoff_ms_min,
            self.config.retry_backoff_ms_max,
        );
        let invoice = self.invoices.get_mut(id).expect("has a live attempt");
        let attempt = invoice.live_mut().expect("dies now");
        attempt.state = state;
        let failed = attempt.final_no;
        invoice.pending_until = 0;
        invoice.next_try = 0;
        if invoice.rest.is_none() {
            if failed || invoice.tries >= self.config.retries_max {
                invoice.rest = Some(Rest::Failed);
            } else {
                invoice.next_try = now + backoff(least, most, invoice.tries);
            }
        }
    }

    fn declined(
        &mut self,
        settle: &SettleCharge,
        code: &DeclineCode,
        retryable: bool,
        finality: Finality,
    ) -> Expected {
        let id = &settle.invoice;
        let invoice = self.invoices.get_mut(id).expect("leased");
        let object = invoice
            .object
            .as_ref()
            .is_some_and(|object| !object.cancelled);
        let attempt = invoice.live_mut().expect("checked");
        attempt.final_no = !retryable;
        let sticky = attempt.terms.as_ref().is_some_and(|terms| terms.sticky);
        let proven = match finality {
            Finality::None => false,
            Finality::Sticky => sticky,
            Finality::SoleSend => attempt.opened_by == settle.token && !attempt.taken_over,
            Finality::Object => object,
        };
        if proven {
            self.after_death(id, AttemptState::Declined);
        } else {
            attempt.state = AttemptState::Closing;
        }
        let invoice = self.invoices.get_mut(id).expect("leased");
        invoice.declined = Some(code.clone());
        self.end_lease(id, End::Ended);
        self.status_reply(id)
    }

    fn looked_up_none(&mut self, settle: &SettleCharge) -> Expected {
        let id = &settle.invoice;
        let invoice = &self.invoices[id];
        let lease = invoice.lease.as_ref().expect("current");
        let attempt = invoice.live().expect("checked");
        let in_flight = attempt
            .terms
            .as_ref()
            .map_or(0, |terms| terms.in_flight_max.get());
        // Under a lease granted after nothing could be in flight any more, by both clocks.
        let can_look_up = attempt
            .terms
            .as_ref()
            .is_some_and(|terms| terms.can_look_up);
        let dead = can_look_up
            && lease.granted_at > attempt.not_after + in_flight
            && lease.granted_wall > attempt.not_after_wall + in_flight;
        if dead {
            self.after_death(id, AttemptState::Cancelled);
        }
        self.end_lease(id, End::Ended);
        self.status_reply(id)
    }

    /// A fact, whoever says it: the recorded object can never succeed any more, and no attempt ever confirmed another.
    fn cancelled(
        &mut self,
        settle: &SettleCharge,
        object: &ObjectId,
        mut reasons: Vec<Rejection>,
    ) -> Expected {
        let id = &settle.invoice;
        let Some(invoice) = self.invoices.get_mut(id) else {
            reasons.push(Rejection::NotFound {
                invoice: id.clone(),
            });
            return Err(reasons);
        };
        let recorded = invoice.object.as_ref().map(|object| object.id.clone());
        if recorded.as_ref() != Some(object) {
            let (invoice, presented) = (id.clone(), object.clone());
            reasons.push(Rejection::OtherObject {
                invoice,
                presented,
                recorded,
            });
        }
        if !reasons.is_empty() {
            return Err(reasons);
        }
        let known = invoice.object.as_mut().expect("recorded");
        if known.cancelled {
            // Said twice: an attempt that was begun since knows nothing of this object.
            return self.status_reply(id);
        }
        if let Some(reference) = invoice
            .charges
            .iter()
            .find(|reference| reference.as_str() == object.as_str())
            .cloned()
        {
            // It cannot have done both, and money is the fact to keep.
            return Err(vec![Rejection::ChargeRecorded {
                invoice: id.clone(),
                reference,
            }]);
        }
        known.cancelled = true;
        if invoice.live().is_some() {
            self.after_death(id, AttemptState::Cancelled);
        }
        let rests = self.invoices[id].rest.is_some() && self.invoices[id].lease.is_some();
        if rests || self.stands(id, settle.token) {
            self.end_lease(id, End::Ended);
        }
        self.freed.insert(id.clone());
        self.status_reply(id)
    }

    /// A person's word. "Not charged" only once nothing can be in flight, by ClusterTime alone.
    pub fn resolve(&mut self, resolve: &ResolveCharge) -> Expected {
        let id = &resolve.invoice;
        let mut reasons = Vec::new();
        let ledger_id = self.ledger_id.clone().expect("bootstrapped");
        let wrong_key = || Rejection::WrongKey {
            invoice: id.clone(),
            presented: resolve.key.clone(),
        };
        if resolve.key.ledger != ledger_id {
            reasons.push(Rejection::ForeignKey {
                presented: resolve.key.clone(),
                ledger_id,
            });
        }
        if resolve.key.invoice != *id {
            reasons.push(wrong_key());
            reasons.push(invalid());
        }
        if let Verdict::Charged(charged) = &resolve.verdict {
            if !reasons.is_empty() {
                return Err(reasons);
            }
            return self.confirmed(resolve, charged);
        }
        let Some(invoice) = self.invoices.get(id) else {
            reasons.push(Rejection::NotFound {
                invoice: id.clone(),
            });
            return Err(reasons);
        };
        if let Some(lease) = &invoice.lease {
            reasons.push(Rejection::HeldByOther {
                invoice: id.clone(),
                holder: self.sessions[&lease.session].holder.clone(),
                expires_in_ms: self.expires_in(lease),
            });
        }
        match invoice.live() {
            None => {
                reasons.push(Rejection::NoOpenAttempt {
                    invoice: id.clone(),
                });
                if !invoice
                    .attempts
                    .iter()
                    .any(|attempt| attempt.number == resolve.key.number)
                {
                    reasons.push(wrong_key());
                }
            }
            Some(attempt) => {
                if attempt.number != resolve.key.number {
                    reasons.push(wrong_key());
                }
                // Nor while the provider said that it is still at work.
                let quiet = self
                    .nothing_in_flight_at(attempt)
                    .max(invoice.pending_until);
                let in_ms = quiet.saturating_sub(self.now);
                if in_ms > 0 {
                    reasons.push(Rejection::TooEarly {
                        invoice: id.clone(),
                        in_ms,
                    });
                }
            }
        }
        if !reasons.is_empty() {
            return Err(reasons);
        }
        let charged_before = !invoice.charges.is_empty();
        let review = invoice.rest.clone();
        self.after_death(id, AttemptState::Cancelled);
        let invoice = self.invoices.get_mut(id).expect("looked up");
        invoice.rest = if charged_before {
            review
        } else {
            Some(Rest::Failed)
        };
        self.freed.insert(id.clone());
        self.status_reply(id)
    }

    /// A person who names the one recorded charge of an invoice in review says that it stands; else it is a report like any.
    fn confirmed(&mut self, resolve: &ResolveCharge, charged: &Charged) -> Expected {
        let id = &resolve.invoice;
        if let Some(invoice) = self.invoices.get_mut(id)
            && matches!(invoice.rest, Some(Rest::Review(_)))
            && invoice.charges == [charged.reference.clone()]
            && invoice.live().is_none()
            && invoice.bill.is_some()
        {
            invoice.rest = Some(Rest::Paid);
            return self.status_reply(id);
        }
        self.charged(id, resolve.key.number, charged)
    }

    pub fn nothing_in_flight_at(&self, attempt: &Attempt) -> u64 {
        attempt.not_after
            + attempt
                .terms
                .as_ref()
                .map_or(0, |terms| terms.in_flight_max.get())
    }

    /// No answer until nothing can be in flight any more, and a provider that cannot be asked: a person must.
    pub fn review_unanswered(&mut self, id: &InvoiceId) {
        let Some(invoice) = self.invoices.get(id) else {
            return;
        };
        let Some(attempt) = invoice.live() else {
            return;
        };
        let can_look_up = attempt
            .terms
            .as_ref()
            .is_some_and(|terms| terms.can_look_up);
        let due = invoice.rest.is_none()
            && invoice.lease.is_none()
            && !can_look_up
            && invoice.pending_until <= self.now
            && self.nothing_in_flight_at(attempt) <= self.now;
        if due {
            self.invoices.get_mut(id).expect("looked up").rest =
                Some(Rest::Review(vec![ReviewReason::Unanswered]));
        }
    }
}

fn wrong_key(settle: &SettleCharge) -> Rejection {
    Rejection::WrongKey {
        invoice: settle.invoice.clone(),
        presented: settle.key.clone(),
    }
}

fn wrong_terms(id: &InvoiceId, field: &'static str) -> Rejection {
    Rejection::WrongTerms {
        invoice: id.clone(),
        field: field.into(),
        recorded: "".into(),
        presented: "".into(),
    }
}

fn other_account(id: &InvoiceId, recorded: &Terms, presented: &Terms) -> Vec<Rejection> {
    let mut reasons = Vec::new();
    if recorded.provider != presented.provider {
        reasons.push(wrong_terms(id, "provider"));
    }
    if recorded.account != presented.account {
        reasons.push(wrong_terms(id, "account"));
    }
    if recorded.live != presented.live {
        reasons.push(wrong_terms(id, "mode"));
    }
    reasons
}
