//! Decides what becomes of a charge that is made directly, without a PaymentIntent: each request that runs makes one more.
//! Nothing here keeps a sum from being charged twice; only the caller's idempotency key does, before a request gets here.

use http::StatusCode;
use serde_json::Value;

use super::{INVOICE_KEY, Moment, NO_INVOICE, Provider, missing_customer};
use crate::cards::{AUTHENTICATION_REQUIRED, Behaviour, DRAWN, Decline, Ending};
use crate::error::ApiError;
use crate::objects::{Charge, ChargeStatus, Metadata};

/// What a direct charge is made of.
pub struct DirectCharge {
    pub amount: u64,
    pub currency: String,
    pub customer: Option<String>,
    /// A token, a test card's name or a payment method.
    pub source: String,
    pub metadata: Metadata,
    /// Drawn by the faults: the card says no, whichever it is.
    pub declined_by_draw: bool,
}

/// A payment that ends by itself later: on which object, by its position.
#[derive(Clone, Copy)]
pub enum AtWork {
    Intent(usize),
    Charge(usize),
}

impl Provider {
    /// Charges the source at once. A refusal leaves a failed charge in the books, as the real service does.
    pub fn charge_directly(
        &mut self,
        id: String,
        new: DirectCharge,
        fresh_id: String,
        now: Moment,
    ) -> Result<Value, ApiError> {
        if let Some(customer) = &new.customer
            && !self.customers.contains_key(customer)
        {
            return Err(missing_customer(customer, StatusCode::BAD_REQUEST));
        }
        let method = self.usable_method(&new.source, new.customer.as_deref(), fresh_id, now)?;
        let behaviour = match self.methods.get(&method) {
            _ if new.declined_by_draw => Behaviour::Declines(DRAWN),
            Some(method) => method.traits.behaviour,
            None => return Err(ApiError::missing("source")),
        };
        let (status, failure) = match behaviour {
            Behaviour::Succeeds => (ChargeStatus::Succeeded, None),
            Behaviour::Processes(_) => (ChargeStatus::Pending, None),
            Behaviour::Declines(decline) => (ChargeStatus::Failed, Some(decline)),
            // Without a PaymentIntent nobody can ask the customer to act.
            Behaviour::RequiresAction { .. } => {
                (ChargeStatus::Failed, Some(AUTHENTICATION_REQUIRED))
            }
        };
        let position = self.book(Charge {
            id: id.clone(),
            created: now.unix_s,
            created_at: now.mono,
            amount: new.amount,
            currency: new.currency,
            customer: new.customer,
            intent: None,
            method,
            metadata: new.metadata,
            status,
            failure,
        });
        if let Some(decline) = failure {
            return Err(decline.error().of_charge(&id));
        }
        if let Behaviour::Processes(Ending::Succeeds | Ending::Fails(_)) = behaviour {
            self.processing
                .push_back((now.mono + self.processing_for, AtWork::Charge(position)));
        }
        Ok(self.charges[position].to_json())
    }

    /// Writes a charge into the books and every index, and returns its position.
    pub(super) fn book(&mut self, charge: Charge) -> usize {
        let position = self.charges.len();
        let invoice = charge
            .metadata
            .get(INVOICE_KEY)
            .map_or(NO_INVOICE, String::as_str);
        self.books
            .entry(invoice.to_owned())
            .or_default()
            .push(position);
        if let Some(customer) = &charge.customer {
            self.charges_by_customer
                .entry(customer.clone())
                .or_default()
                .push(position);
        }
        for (key, value) in &charge.metadata {
            self.charges_by_metadata
                .entry((key.clone(), value.clone()))
                .or_default()
                .push(position);
        }
        self.charge_by_id.insert(charge.id.clone(), position);
        self.charges.push(charge);
        self.touched.push(position);
        position
    }

    /// A bank debit's charge ends well, or with the bank's no.
    pub(super) fn end_charge(&mut self, position: usize, failure: Option<Decline>) {
        let charge = &mut self.charges[position];
        charge.status = match failure {
            None => ChargeStatus::Succeeded,
            Some(_) => ChargeStatus::Failed,
        };
        charge.failure = failure;
        self.touched.push(position);
    }

    /// How a bank debit with that method ends.
    pub(super) fn ending_of(&self, method: Option<&str>) -> Ending {
        method
            .and_then(|id| self.methods.get(id))
            .map_or(Ending::Never, |method| match method.traits.behaviour {
                Behaviour::Processes(ending) => ending,
                _ => Ending::Succeeds,
            })
    }
}
