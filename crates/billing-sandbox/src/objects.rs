//! Decides what customers, payment methods, PaymentIntents and charges hold and how they look as JSON.
//! Never decides what becomes of them.

use std::collections::BTreeMap;

use billing_env::MonoTime;
use serde_json::{Value, json};

use crate::cards::{Decline, Traits};

pub type Metadata = BTreeMap<String, String>;

pub struct Customer {
    pub id: String,
    pub created: u64,
    pub email: Option<String>,
    pub name: Option<String>,
    pub description: Option<String>,
    pub metadata: Metadata,
}

impl Customer {
    pub fn to_json(&self) -> Value {
        json!({
            "id": self.id, "object": "customer", "created": self.created, "livemode": false, "email": self.email,
            "name": self.name, "description": self.description, "metadata": self.metadata,
        })
    }
}

pub struct Method {
    pub id: String,
    pub created: u64,
    pub traits: Traits,
    pub customer: Option<String>,
    pub metadata: Metadata,
}

impl Method {
    pub fn to_json(&self) -> Value {
        let kind = if self.traits.bank_account {
            "us_bank_account"
        } else {
            "card"
        };
        let details = if self.traits.bank_account {
            json!({ "bank_name": self.traits.brand, "last4": self.traits.last4 })
        } else {
            json!({ "brand": self.traits.brand, "last4": self.traits.last4, "exp_month": 12, "exp_year": 2040 })
        };
        json!({
            "id": self.id, "object": "payment_method", "created": self.created, "livemode": false, "type": kind,
            kind: details, "customer": self.customer, "metadata": self.metadata,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntentStatus {
    RequiresPaymentMethod,
    RequiresConfirmation,
    RequiresAction,
    Processing,
    Succeeded,
    Canceled,
}

impl IntentStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            IntentStatus::RequiresPaymentMethod => "requires_payment_method",
            IntentStatus::RequiresConfirmation => "requires_confirmation",
            IntentStatus::RequiresAction => "requires_action",
            IntentStatus::Processing => "processing",
            IntentStatus::Succeeded => "succeeded",
            IntentStatus::Canceled => "canceled",
        }
    }
}

pub struct Intent {
    pub id: String,
    pub created: u64,
    /// For the search lag only.
    pub created_at: MonoTime,
    pub amount: u64,
    pub currency: String,
    pub customer: Option<String>,
    pub method: Option<String>,
    pub description: Option<String>,
    pub metadata: Metadata,
    pub status: IntentStatus,
    pub latest_charge: Option<String>,
    pub last_error: Option<Value>,
    pub cancellation_reason: Option<String>,
    pub canceled: Option<u64>,
    /// Positions in the list of charges, oldest first.
    pub charges: Vec<usize>,
}

impl Intent {
    pub fn to_json(&self) -> Value {
        let received = if self.status == IntentStatus::Succeeded {
            self.amount
        } else {
            0
        };
        let action = (self.status == IntentStatus::RequiresAction)
            .then(|| json!({ "type": "use_stripe_sdk", "use_stripe_sdk": { "type": "three_d_secure_redirect" } }));
        json!({
            "id": self.id, "object": "payment_intent", "created": self.created, "livemode": false,
            "amount": self.amount, "amount_received": received, "amount_capturable": 0, "currency": self.currency,
            "capture_method": "automatic", "confirmation_method": "automatic",
            "client_secret": format!("{}_secret_sandbox", self.id),
            "customer": self.customer, "payment_method": self.method, "description": self.description,
            "metadata": self.metadata, "status": self.status.as_str(), "latest_charge": self.latest_charge,
            "last_payment_error": self.last_error, "next_action": action,
            "cancellation_reason": self.cancellation_reason, "canceled_at": self.canceled,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChargeStatus {
    Pending,
    Succeeded,
    Failed,
}

impl ChargeStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            ChargeStatus::Pending => "pending",
            ChargeStatus::Succeeded => "succeeded",
            ChargeStatus::Failed => "failed",
        }
    }
}

pub struct Charge {
    pub id: String,
    pub created: u64,
    /// For the search lag only; a PaymentIntent's charge has its intent's.
    pub created_at: MonoTime,
    pub amount: u64,
    pub currency: String,
    pub customer: Option<String>,
    /// None: charged directly.
    pub intent: Option<String>,
    pub method: String,
    pub metadata: Metadata,
    pub status: ChargeStatus,
    pub failure: Option<Decline>,
}

impl Charge {
    pub fn to_json(&self) -> Value {
        let captured = self.status != ChargeStatus::Failed;
        json!({
            "id": self.id, "object": "charge", "created": self.created, "livemode": false, "amount": self.amount,
            "amount_captured": if captured { self.amount } else { 0 }, "amount_refunded": 0, "refunded": false,
            "captured": captured, "paid": self.status == ChargeStatus::Succeeded, "currency": self.currency,
            "customer": self.customer, "payment_intent": self.intent, "payment_method": self.method,
            "metadata": self.metadata, "status": self.status.as_str(),
            "failure_code": self.failure.map(|decline| decline.code),
            "failure_message": self.failure.map(|decline| decline.message),
            "outcome": { "reason": self.failure.and_then(|decline| decline.decline_code) },
        })
    }
}
