//! Decides the exact parameters of a charge, and their fingerprint: equal parameters, equal bytes, on every gate.
//! Holds nothing that changes between two tries of one attempt: no time, no token, no worker.

use billing_core::{Bill, Fingerprint, IdempotencyKey, OutOfBounds};
use form_urlencoded::Serializer;

use crate::payers::Payer;
use crate::profile::Api;

/// Under which name a charge carries the ledger's key, so that it can be found by it.
pub const KEY_IN_METADATA: &str = "idempotency_key";
/// Stands before the fingerprint of what is charged by key alone; an object's is a bare hash of 32 bytes.
const BY_KEY: &[u8] = b"key:";
const HASH_BYTES: usize = 32;

/// The bodies of a charge's requests, byte for byte what every holder of this attempt sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChargeParams {
    /// What the object is made of; empty: there is none.
    pub create: String,
    /// What moves the money: the confirmation, or the charge itself but for its key.
    pub confirm: String,
    /// In Stripe's unit.
    pub amount: u64,
    /// Upper case, as in ISO 4217.
    pub currency: String,
}

impl ChargeParams {
    /// For an object that is created, and then confirmed.
    pub fn of_object(bill: &Bill, payer: &Payer, amount: u64) -> ChargeParams {
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

    /// For one request that charges at once.
    pub fn of_charge(bill: &Bill, payer: &Payer, amount: u64) -> ChargeParams {
        let currency = bill.currency.as_str();
        let mut charge = Serializer::new(String::new());
        charge
            .append_pair("amount", &amount.to_string())
            .append_pair("currency", &currency.to_lowercase())
            .append_pair("source", &payer.payment_method)
            .append_pair("metadata[invoice_id]", bill.invoice.as_str())
            .append_pair("metadata[customer_id]", bill.customer.as_str());
        if let Some(customer) = &payer.provider_customer {
            charge.append_pair("customer", customer);
        }
        ChargeParams {
            create: String::new(),
            confirm: charge.finish(),
            amount,
            currency: currency.to_owned(),
        }
    }

    /// The charge's body with the key by which it is found. The key is the attempt's, so this too is the same for all.
    pub fn charge_under(&self, key: &IdempotencyKey) -> String {
        let mut body = Serializer::new(self.confirm.clone());
        body.append_pair(&format!("metadata[{KEY_IN_METADATA}]"), &key.to_string());
        body.finish()
    }

    /// A hash over both bodies, each with its length before it, so that no two charges share one; and whether there is an
    /// object, which the recorded attempt says thereby.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut hasher = blake3::Hasher::new();
        for body in [&self.create, &self.confirm] {
            hasher.update(&(body.len() as u64).to_le_bytes());
            hasher.update(body.as_bytes());
        }
        let mut bytes = if self.create.is_empty() {
            BY_KEY.to_vec()
        } else {
            Vec::new()
        };
        bytes.extend_from_slice(hasher.finalize().as_bytes());
        Fingerprint::new(&bytes).expect("32 or 36 bytes are within the bound of 1 to 64")
    }
}

/// Whether the attempt with that fingerprint is charged by key alone.
pub fn is_by_key(fingerprint: &Fingerprint) -> bool {
    let bytes = fingerprint.as_bytes();
    bytes.len() != HASH_BYTES && bytes.starts_with(BY_KEY)
}

/// The fingerprint of an attempt under which nothing is sent.
pub fn nothing_sent(api: Api) -> Result<Fingerprint, OutOfBounds> {
    Fingerprint::new(match api {
        Api::None | Api::PaymentIntents => b"nothing is sent",
        Api::Charges => b"key:nothing is sent",
    })
}
