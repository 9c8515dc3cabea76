//! Decides by which payment method a customer pays: the same for all (tests, demos), or one for each customer.
//! Never asks the provider: what a charge is made of must be the same for every holder that continues it.

use std::collections::BTreeMap;

use billing_core::CustomerId;

/// How one customer pays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payer {
    /// The provider's id of the customer; None: a payment method that belongs to nobody, such as a test card.
    pub provider_customer: Option<String>,
    pub payment_method: String,
}

#[derive(Clone, Debug)]
pub enum Payers {
    Everyone(Payer),
    Listed(BTreeMap<CustomerId, Payer>),
}

impl Payers {
    /// None: this customer is not listed, and cannot be charged.
    pub fn of(&self, customer: &CustomerId) -> Option<&Payer> {
        match self {
            Payers::Everyone(payer) => Some(payer),
            Payers::Listed(listed) => listed.get(customer),
        }
    }
}
