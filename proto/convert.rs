//! Shows the ledger's nouns on the wire and reads those back that clients send. Decides nothing; what cannot be read is
//! refused by field and bound.

use std::sync::Arc;

use billing_core::{
    AccountId, AmountMinor, AttemptState, Bill, ChargeAttempt, Charged, Claimed, ClaimedInvoice,
    Currency, CustomerId, DeclineCode, Detail, Finality, Fingerprint, InFlightMs, InvoiceId,
    InvoiceStatus, InvoiceView, LeaseView, Leased, ObjectId, OutOfBounds, Outcome, Priority,
    ProviderId, Reference, SessionView, SubmitInvoice, Terms, ValidForMs, WallTime,
};
use prost_types::Timestamp;

use crate::v1::{self, settle_charge_request as wire};

/// A wall time as protobuf writes it.
#[must_use]
pub fn timestamp(time: WallTime) -> Timestamp {
    // Unix milliseconds fit an i64 of seconds a thousandfold, and a remainder below 10^9 an i32.
    Timestamp {
        seconds: (time.0 / 1_000) as i64,
        nanos: ((time.0 % 1_000) * 1_000_000) as i32,
    }
}

/// Reads a protobuf timestamp, rounded down to a millisecond; `field` is named when it is before 1970 or malformed.
pub fn wall_time(time: &Timestamp, field: &'static str) -> Result<WallTime, OutOfBounds> {
    let out = || OutOfBounds::new(field, "a time from 1970-01-01 to 9999-12-31");
    const SECONDS_MAX: u64 = 253_402_300_799; // The last second of year 9999, where protobuf's timestamps end.
    let seconds = u64::try_from(time.seconds).map_err(|_| out())?;
    let nanos = u64::try_from(time.nanos).map_err(|_| out())?;
    if seconds > SECONDS_MAX || nanos >= 1_000_000_000 {
        return Err(out());
    }
    Ok(WallTime(seconds * 1_000 + nanos / 1_000_000))
}

impl From<InvoiceStatus> for v1::InvoiceStatus {
    fn from(status: InvoiceStatus) -> v1::InvoiceStatus {
        match status {
            InvoiceStatus::Pending => v1::InvoiceStatus::Pending,
            InvoiceStatus::Processing => v1::InvoiceStatus::Processing,
            InvoiceStatus::Charging => v1::InvoiceStatus::Charging,
            InvoiceStatus::InDoubt => v1::InvoiceStatus::InDoubt,
            InvoiceStatus::Waiting => v1::InvoiceStatus::Waiting,
            InvoiceStatus::Paid => v1::InvoiceStatus::Paid,
            InvoiceStatus::Failed => v1::InvoiceStatus::Failed,
            InvoiceStatus::Review => v1::InvoiceStatus::Review,
            InvoiceStatus::Cancelled => v1::InvoiceStatus::Cancelled,
        }
    }
}

/// Reads a filter: unspecified means every status.
pub fn status_filter(status: i32) -> Result<Option<InvoiceStatus>, OutOfBounds> {
    match v1::InvoiceStatus::try_from(status) {
        Ok(v1::InvoiceStatus::Unspecified) => Ok(None),
        Ok(v1::InvoiceStatus::Pending) => Ok(Some(InvoiceStatus::Pending)),
        Ok(v1::InvoiceStatus::Processing) => Ok(Some(InvoiceStatus::Processing)),
        Ok(v1::InvoiceStatus::Charging) => Ok(Some(InvoiceStatus::Charging)),
        Ok(v1::InvoiceStatus::InDoubt) => Ok(Some(InvoiceStatus::InDoubt)),
        Ok(v1::InvoiceStatus::Waiting) => Ok(Some(InvoiceStatus::Waiting)),
        Ok(v1::InvoiceStatus::Paid) => Ok(Some(InvoiceStatus::Paid)),
        Ok(v1::InvoiceStatus::Failed) => Ok(Some(InvoiceStatus::Failed)),
        Ok(v1::InvoiceStatus::Review) => Ok(Some(InvoiceStatus::Review)),
        Ok(v1::InvoiceStatus::Cancelled) => Ok(Some(InvoiceStatus::Cancelled)),
        Err(_) => Err(OutOfBounds::new("status", "one of InvoiceStatus")),
    }
}

/// Reads a status that must be one.
pub fn status_from_wire(status: i32) -> Result<InvoiceStatus, OutOfBounds> {
    status_filter(status)?.ok_or(OutOfBounds::new("status", "one of InvoiceStatus"))
}

impl From<AttemptState> for v1::AttemptState {
    fn from(state: AttemptState) -> v1::AttemptState {
        match state {
            AttemptState::Open => v1::AttemptState::Open,
            AttemptState::Closing => v1::AttemptState::Closing,
            AttemptState::Settled => v1::AttemptState::Settled,
            AttemptState::Declined => v1::AttemptState::Declined,
            AttemptState::Cancelled => v1::AttemptState::Cancelled,
        }
    }
}

impl From<Finality> for v1::Finality {
    fn from(finality: Finality) -> v1::Finality {
        match finality {
            Finality::None => v1::Finality::None,
            Finality::Sticky => v1::Finality::Sticky,
            Finality::SoleSend => v1::Finality::SoleSend,
            Finality::Object => v1::Finality::Object,
        }
    }
}

/// Unset proves nothing; a word of a newer client is refused rather than guessed.
pub fn finality_from_wire(finality: i32) -> Result<Finality, OutOfBounds> {
    match v1::Finality::try_from(finality) {
        Ok(v1::Finality::Unspecified | v1::Finality::None) => Ok(Finality::None),
        Ok(v1::Finality::Sticky) => Ok(Finality::Sticky),
        Ok(v1::Finality::SoleSend) => Ok(Finality::SoleSend),
        Ok(v1::Finality::Object) => Ok(Finality::Object),
        Err(_) => Err(OutOfBounds::new("declined.finality", "one of Finality")),
    }
}

impl From<SessionView> for v1::Session {
    fn from(session: SessionView) -> v1::Session {
        v1::Session {
            session_id: session.session.as_bytes().to_vec(),
            holder: session.holder.to_string(),
            ttl_ms: session.ttl_ms,
            expires_in_ms: session.expires_in_ms.unwrap_or(0),
        }
    }
}

impl From<LeaseView> for v1::Lease {
    fn from(lease: LeaseView) -> v1::Lease {
        v1::Lease {
            invoice_id: lease.invoice.to_string(),
            token: lease.token.0,
            holder: lease.holder.to_string(),
            session_id: lease.session.as_bytes().to_vec(),
            expires_in_ms: lease.expires_in_ms,
        }
    }
}

impl From<&Terms> for v1::ChargeTerms {
    fn from(terms: &Terms) -> v1::ChargeTerms {
        v1::ChargeTerms {
            provider: terms.provider.to_string(),
            account: terms.account.to_string(),
            live: terms.live,
            fingerprint: terms.fingerprint.as_bytes().to_vec(),
            valid_for_ms: terms.valid_for.get(),
            in_flight_max_ms: terms.in_flight_max.get(),
            can_look_up: terms.can_look_up,
            sticky: terms.sticky,
        }
    }
}

impl TryFrom<v1::ChargeTerms> for Terms {
    type Error = OutOfBounds;
    fn try_from(terms: v1::ChargeTerms) -> Result<Terms, OutOfBounds> {
        Ok(Terms {
            provider: ProviderId::new(&terms.provider)?,
            account: AccountId::new(&terms.account)?,
            live: terms.live,
            fingerprint: Fingerprint::new(&terms.fingerprint)?,
            valid_for: ValidForMs::new(terms.valid_for_ms)?,
            in_flight_max: InFlightMs::new(terms.in_flight_max_ms)?,
            can_look_up: terms.can_look_up,
            sticky: terms.sticky,
        })
    }
}

impl From<ChargeAttempt> for v1::ChargeAttempt {
    fn from(attempt: ChargeAttempt) -> v1::ChargeAttempt {
        v1::ChargeAttempt {
            number: attempt.number.get(),
            idempotency_key: attempt.idempotency_key.to_string(),
            token: attempt.token.0,
            send_within_ms: attempt.send_within_ms,
            provider_object: attempt
                .provider_object
                .map(|object| object.to_string())
                .unwrap_or_default(),
            taken_over: attempt.taken_over,
            state: v1::AttemptState::from(attempt.state).into(),
            terms: attempt.terms.as_deref().map(v1::ChargeTerms::from),
            look_up_in_ms: attempt.look_up_in_ms,
        }
    }
}

impl From<Leased> for v1::AcquireLeaseResponse {
    fn from(leased: Leased) -> v1::AcquireLeaseResponse {
        v1::AcquireLeaseResponse {
            lease: Some(leased.lease.into()),
            open_attempt: leased.open_attempt.map(|open| Box::new((*open).into())),
        }
    }
}

impl From<Bill> for v1::Invoice {
    fn from(bill: Bill) -> v1::Invoice {
        v1::Invoice {
            invoice_id: bill.invoice.to_string(),
            customer_id: bill.customer.to_string(),
            amount_minor: amount_to_wire(bill.amount),
            currency: bill.currency.to_string(),
            due_at: Some(timestamp(bill.due_at)),
            priority: bill.priority.get().into(),
        }
    }
}

impl TryFrom<v1::Invoice> for SubmitInvoice {
    type Error = OutOfBounds;
    fn try_from(invoice: v1::Invoice) -> Result<SubmitInvoice, OutOfBounds> {
        Ok(SubmitInvoice {
            invoice: InvoiceId::new(&invoice.invoice_id)?,
            customer: CustomerId::new(&invoice.customer_id)?,
            amount: amount_from_wire(invoice.amount_minor)?,
            currency: Currency::new(&invoice.currency)?,
            due_at: invoice
                .due_at
                .as_ref()
                .map(|due| wall_time(due, "due_at"))
                .transpose()?,
            priority: Priority::new(invoice.priority.into())?,
        })
    }
}

impl From<Claimed> for v1::ClaimInvoicesResponse {
    fn from(claimed: Claimed) -> v1::ClaimInvoicesResponse {
        v1::ClaimInvoicesResponse {
            claimed: claimed.leased.into_iter().map(claimed_to_wire).collect(),
            next_due_in_ms: claimed.next_due_in_ms.unwrap_or(0),
        }
    }
}

fn claimed_to_wire(claimed: ClaimedInvoice) -> v1::claim_invoices_response::ClaimedInvoice {
    v1::claim_invoices_response::ClaimedInvoice {
        lease: Some(claimed.lease.into()),
        invoice: Some(claimed.bill.into()),
        open_attempt: claimed.open_attempt.map(v1::ChargeAttempt::from),
    }
}

/// An invoice as GetInvoice and ListInvoices show it, at the applied index of the read.
#[must_use]
pub fn invoice_to_wire(view: InvoiceView, applied_index: u64) -> v1::GetInvoiceResponse {
    let note = note(&view);
    v1::GetInvoiceResponse {
        // One that was never submitted has an id and nothing else.
        invoice: Some(match view.bill {
            Some(bill) => bill.into(),
            None => v1::Invoice {
                invoice_id: view.invoice.to_string(),
                ..v1::Invoice::default()
            },
        }),
        status: v1::InvoiceStatus::from(view.status).into(),
        lease: view.lease.map(v1::Lease::from),
        open_attempt: view.open_attempt.map(v1::ChargeAttempt::from),
        charge_reference: view
            .charge_reference
            .map(|reference| reference.to_string())
            .unwrap_or_default(),
        attempts: view.attempts,
        applied_index,
        note,
    }
}

/// In words, when a person should know.
fn note(view: &InvoiceView) -> String {
    let mut notes = Vec::new();
    if let Some(reason) = view.review {
        notes.push(reason.to_string());
    }
    if let [_, others @ ..] = view.charge_references.as_slice()
        && !others.is_empty()
    {
        let others: Vec<String> = others.iter().map(ToString::to_string).collect();
        notes.push(format!("other charges: {}", others.join(", ")));
    }
    if let Some(code) = &view.declined {
        notes.push(format!("declined: {code}"));
    }
    notes.join("; ")
}

fn amount_to_wire(amount: AmountMinor) -> i64 {
    // Bounded by 10^12.
    amount.get() as i64
}

fn amount_from_wire(amount: i64) -> Result<AmountMinor, OutOfBounds> {
    // Zero is out of bounds too: a negative sum gets the very same refusal.
    AmountMinor::new(u64::try_from(amount).unwrap_or(0))
}

/// Zero and empty: as invoiced.
pub(crate) fn charged_from_wire(
    reference: &str,
    amount_minor: i64,
    currency: &str,
) -> Result<Charged, OutOfBounds> {
    Ok(Charged {
        reference: Reference::new(reference)?,
        amount: if amount_minor == 0 {
            None
        } else {
            Some(amount_from_wire(amount_minor)?)
        },
        currency: if currency.is_empty() {
            None
        } else {
            Some(Currency::new(currency)?)
        },
    })
}

fn sum_to_wire(charged: &Charged) -> (i64, String) {
    (
        charged.amount.map(amount_to_wire).unwrap_or_default(),
        charged
            .currency
            .map(|currency| currency.to_string())
            .unwrap_or_default(),
    )
}

impl From<&Outcome> for wire::Outcome {
    fn from(outcome: &Outcome) -> wire::Outcome {
        match outcome {
            Outcome::Charged(charged) => {
                let (amount_minor, currency) = sum_to_wire(charged);
                wire::Outcome::Charged(wire::Charged {
                    reference: charged.reference.to_string(),
                    amount_minor,
                    currency,
                })
            }
            Outcome::Declined {
                code,
                retryable,
                finality,
            } => wire::Outcome::Declined(wire::Declined {
                code: code.to_string(),
                retryable: *retryable,
                finality: v1::Finality::from(*finality).into(),
            }),
            Outcome::LookedUp(None) => wire::Outcome::LookedUp(wire::LookedUp::default()),
            Outcome::LookedUp(Some(charged)) => {
                let (amount_minor, currency) = sum_to_wire(charged);
                let reference = Some(charged.reference.to_string());
                wire::Outcome::LookedUp(wire::LookedUp {
                    reference,
                    amount_minor,
                    currency,
                })
            }
            Outcome::Cancelled { object } => wire::Outcome::Cancelled(wire::Cancelled {
                object: object.to_string(),
            }),
            Outcome::Pending { expected_by } => wire::Outcome::Pending(wire::Pending {
                expected_by: Some(timestamp(*expected_by)),
            }),
            Outcome::Unknown { detail } => wire::Outcome::Unknown(wire::Unknown {
                detail: detail.as_ref().map(ToString::to_string).unwrap_or_default(),
            }),
        }
    }
}

impl TryFrom<wire::Outcome> for Outcome {
    type Error = OutOfBounds;
    fn try_from(outcome: wire::Outcome) -> Result<Outcome, OutOfBounds> {
        Ok(match outcome {
            wire::Outcome::Charged(wire::Charged {
                reference,
                amount_minor,
                currency,
            }) => Outcome::Charged(charged_from_wire(&reference, amount_minor, &currency)?),
            wire::Outcome::Declined(wire::Declined {
                code,
                retryable,
                finality,
            }) => Outcome::Declined {
                code: DeclineCode::new(&code)?,
                retryable,
                finality: finality_from_wire(finality)?,
            },
            wire::Outcome::LookedUp(wire::LookedUp {
                reference: None, ..
            }) => Outcome::LookedUp(None),
            wire::Outcome::LookedUp(wire::LookedUp {
                reference: Some(reference),
                amount_minor,
                currency,
            }) => {
                // An empty reference is a malformed "found", never a "none": bounds refuse it.
                Outcome::LookedUp(Some(charged_from_wire(
                    &reference,
                    amount_minor,
                    &currency,
                )?))
            }
            wire::Outcome::Cancelled(wire::Cancelled { object }) => Outcome::Cancelled {
                object: ObjectId::new(&object)?,
            },
            wire::Outcome::Pending(wire::Pending { expected_by }) => Outcome::Pending {
                expected_by: wall_time(
                    &expected_by.ok_or(OutOfBounds::new("pending.expected_by", "set"))?,
                    "pending.expected_by",
                )?,
            },
            wire::Outcome::Unknown(wire::Unknown { detail }) => Outcome::Unknown {
                detail: if detail.is_empty() {
                    None
                } else {
                    Some(Detail::new(&detail)?)
                },
            },
        })
    }
}

/// The terms of a BeginCharge; unset means profile `manual`.
pub(crate) fn terms_or_manual(terms: Option<v1::ChargeTerms>) -> Result<Arc<Terms>, OutOfBounds> {
    terms
        .map_or_else(|| Ok(Terms::manual()), Terms::try_from)
        .map(Arc::new)
}
