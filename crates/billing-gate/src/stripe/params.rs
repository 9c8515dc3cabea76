//! Decides the exact parameters of a charge, and their fingerprint: equal parameters, equal bytes, on every gate.
//! Holds nothing that changes between two tries of one attempt: no time, no token, no worker.

use billing_core::{Bill, Fingerprint};
use form_urlencoded::Serializer;

use crate::payers::Payer;

/// The bodies of create and confirm, byte for byte what every holder of this attempt sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChargeParams {
    pub create: String,
    pub confirm: String,
    /// In Stripe's unit.
    pub amount: u64,
    /// Upper case, as in ISO 4217.
    pub currency: String,
}

impl ChargeParams {
    pub fn new(bill: &Bill, payer: &Payer, amount: u64) -> ChargeParams {
        let currency = bill.currency.as_str();
        let mut create = Serializer::new(String::new());
        create
            .append_pair("amount", &amount.to_string())
            .append_pair("currency", &currency.to_lowercase())
            .append_pair("automatic_payment_methods[enabled]", "true")
            // Nobody is there to be redirected.
            .append_pair("automatic_payment_methods[allow_redirects]", "never")
            .append_pair("metadata[invoice_id]", bill.invoice.as_str())
            .append_pair("metadata[customer_id]", bill.customer.as_str());
        if let Some(customer) = &payer.provider_customer {
            create.append_pair("customer", customer);
        }
        let mut confirm = Serializer::new(String::new());
        // With the confirmation, not with the object: a declined object takes another method at the next attempt.
        confirm
            .append_pair("payment_method", &payer.payment_method)
            .append_pair("off_session", "true");
        ChargeParams {
            create: create.finish(),
            confirm: confirm.finish(),
            amount,
            currency: currency.to_owned(),
        }
    }

    /// A hash over both bodies, each with its length before it, so that no two charges share one.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut hasher = blake3::Hasher::new();
        for body in [&self.create, &self.confirm] {
            hasher.update(&(body.len() as u64).to_le_bytes());
            hasher.update(body.as_bytes());
        }
        // 32 bytes are within the bound of 1 to 64.
        Fingerprint::new(hasher.finalize().as_bytes()).expect("a blake3 hash has 32 bytes")
    }
}
