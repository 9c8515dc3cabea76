//! Decides what becomes of a PaymentIntent: one charge at most succeeds on it, a decline leaves it confirmable, a cancelled
//! or succeeded one stays so (`charges.rs`: what becomes of a charge without one). Keeps the books. Knows nothing of HTTP, keys or faults; time comes in through the door.

mod charges;
mod lists;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use billing_env::MonoTime;
use http::StatusCode;
use serde_json::{Value, json};

use crate::cards::{
    self, AUTHENTICATION_FAILED, AUTHENTICATION_REQUIRED, Behaviour, DRAWN, Decline, Ending, Traits,
};
use crate::error::ApiError;
use crate::objects::{Charge, ChargeStatus, Customer, Intent, IntentStatus, Metadata, Method};

use charges::AtWork;
pub use charges::DirectCharge;
pub use lists::{Page, metadata_key};

/// Now, as the caller read it.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub mono: MonoTime,
    pub unix_s: u64,
}

/// What a new PaymentIntent is made of.
pub struct NewIntent {
    pub amount: u64,
    pub currency: String,
    pub customer: Option<String>,
    pub method: Option<String>,
    pub description: Option<String>,
    pub metadata: Metadata,
}

/// How a PaymentIntent is to be confirmed.
#[derive(Clone, Debug, Default)]
pub struct Confirm {
    pub method: Option<String>,
    /// The customer is not there: a card that needs them declines.
    pub off_session: bool,
    /// As off_session, but said explicitly.
    pub error_on_requires_action: bool,
    /// Drawn by the faults: the card says no, whichever it is.
    pub declined_by_draw: bool,
}

pub struct Provider {
    processing_for: Duration,
    customers: HashMap<String, Customer>,
    methods: HashMap<String, Method>,
    intents: Vec<Intent>,
    intent_by_id: HashMap<String, usize>,
    intents_by_metadata: HashMap<(String, String), Vec<usize>>,
    intents_by_customer: HashMap<String, Vec<usize>>,
    charges: Vec<Charge>,
    charge_by_id: HashMap<String, usize>,
    charges_by_customer: HashMap<String, Vec<usize>>,
    charges_by_metadata: HashMap<(String, String), Vec<usize>>,
    /// metadata[invoice_id] -> its charges, oldest first; "?" for charges that name no invoice.
    books: BTreeMap<String, Vec<usize>>,
    /// Bank debits at work, in order of their end.
    processing: VecDeque<(MonoTime, AtWork)>,
    /// Charges whose status changed since they were last taken, for the journal.
    touched: Vec<usize>,
}

impl Provider {
    pub fn new(processing_for: Duration) -> Provider {
        Provider {
            processing_for,
            customers: HashMap::new(),
            methods: HashMap::new(),
            intents: Vec::new(),
            intent_by_id: HashMap::new(),
            intents_by_metadata: HashMap::new(),
            intents_by_customer: HashMap::new(),
            charges: Vec::new(),
            charge_by_id: HashMap::new(),
            charges_by_customer: HashMap::new(),
            charges_by_metadata: HashMap::new(),
            books: BTreeMap::new(),
            processing: VecDeque::new(),
            touched: Vec::new(),
        }
    }

    /// Ends the bank debits that are due. Every request passes here first.
    pub fn advance(&mut self, now: Moment) {
        while self
            .processing
            .front()
            .is_some_and(|(due, _)| *due <= now.mono)
        {
            let Some((_, at_work)) = self.processing.pop_front() else {
                return;
            };
            match at_work {
                AtWork::Intent(position) => self.end_intent(position),
                AtWork::Charge(position) => {
                    match self.ending_of(Some(&self.charges[position].method)) {
                        Ending::Never => {}
                        Ending::Succeeds => self.end_charge(position, None),
                        Ending::Fails(decline) => self.end_charge(position, Some(decline)),
                    }
                }
            }
        }
    }

    fn end_intent(&mut self, position: usize) {
        let intent = &self.intents[position];
        let ending = self.ending_of(intent.method.as_deref());
        match (ending, intent.charges.last().copied()) {
            (Ending::Never, _) | (_, None) => {}
            (Ending::Succeeds, Some(charge)) => {
                self.end_charge(charge, None);
                self.intents[position].status = IntentStatus::Succeeded;
            }
            (Ending::Fails(decline), Some(charge)) => {
                self.end_charge(charge, Some(decline));
                self.decline_intent(position, &decline);
            }
        }
    }

    // Customers and payment methods.

    pub fn create_customer(&mut self, customer: Customer) -> Value {
        let json = customer.to_json();
        self.customers.insert(customer.id.clone(), customer);
        json
    }

    pub fn customer(&self, id: &str) -> Result<Value, ApiError> {
        self.customers
            .get(id)
            .map(Customer::to_json)
            .ok_or_else(|| missing_customer(id, StatusCode::NOT_FOUND))
    }

    pub fn create_method(
        &mut self,
        id: String,
        traits: Traits,
        metadata: Metadata,
        now: Moment,
    ) -> Value {
        let method = Method {
            id: id.clone(),
            created: now.unix_s,
            traits,
            customer: None,
            metadata,
        };
        let json = method.to_json();
        self.methods.insert(id, method);
        json
    }

    pub fn method(&self, id: &str) -> Result<Value, ApiError> {
        self.methods
            .get(id)
            .map(Method::to_json)
            .ok_or_else(|| missing_method(id, StatusCode::NOT_FOUND))
    }

    pub fn attach(
        &mut self,
        id: &str,
        customer: &str,
        fresh_id: String,
        now: Moment,
    ) -> Result<Value, ApiError> {
        if !self.customers.contains_key(customer) {
            return Err(missing_customer(customer, StatusCode::BAD_REQUEST));
        }
        let id = self
            .own_method(id, fresh_id, now)
            .ok_or_else(|| missing_method(id, StatusCode::NOT_FOUND))?;
        let Some(method) = self.methods.get_mut(&id) else {
            return Err(missing_method(&id, StatusCode::NOT_FOUND));
        };
        if method
            .customer
            .as_deref()
            .is_some_and(|owner| owner != customer)
        {
            return Err(ApiError::malformed(
                "The payment method you provided has already been attached to a customer.",
            ));
        }
        if let (true, Behaviour::Declines(decline)) =
            (method.traits.attach_declines, method.traits.behaviour)
        {
            return Err(decline.error());
        }
        method.customer = Some(customer.to_owned());
        Ok(method.to_json())
    }

    // PaymentIntents.

    pub fn create_intent(
        &mut self,
        id: String,
        new: NewIntent,
        confirm: Option<(Confirm, String)>,
        fresh_id: String,
        now: Moment,
    ) -> Result<Value, ApiError> {
        if let Some(customer) = &new.customer
            && !self.customers.contains_key(customer)
        {
            return Err(missing_customer(customer, StatusCode::BAD_REQUEST));
        }
        let method = match &new.method {
            None => None,
            Some(name) => Some(self.usable_method(name, new.customer.as_deref(), fresh_id, now)?),
        };
        if confirm.is_some() && method.is_none() {
            return Err(ApiError::missing("payment_method"));
        }
        let position = self.intents.len();
        let status = if method.is_some() {
            IntentStatus::RequiresConfirmation
        } else {
            IntentStatus::RequiresPaymentMethod
        };
        for (key, value) in &new.metadata {
            self.intents_by_metadata
                .entry((key.clone(), value.clone()))
                .or_default()
                .push(position);
        }
        if let Some(customer) = &new.customer {
            self.intents_by_customer
                .entry(customer.clone())
                .or_default()
                .push(position);
        }
        self.intent_by_id.insert(id.clone(), position);
        self.intents.push(Intent {
            id,
            created: now.unix_s,
            created_at: now.mono,
            amount: new.amount,
            currency: new.currency,
            customer: new.customer,
            method,
            description: new.description,
            metadata: new.metadata,
            status,
            latest_charge: None,
            last_error: None,
            cancellation_reason: None,
            canceled: None,
            charges: Vec::new(),
        });
        match confirm {
            None => Ok(self.intents[position].to_json()),
            Some((confirm, charge_id)) => self.confirm_at(position, &confirm, charge_id, now),
        }
    }

    pub fn intent(&self, id: &str) -> Result<Value, ApiError> {
        self.position(id)
            .map(|position| self.intents[position].to_json())
    }

    /// Confirms; `charge_id` names the charge that this makes, if it makes one.
    pub fn confirm(
        &mut self,
        id: &str,
        confirm: &Confirm,
        charge_id: String,
        fresh_id: String,
        now: Moment,
    ) -> Result<Value, ApiError> {
        let position = self.position(id)?;
        let intent = &self.intents[position];
        match intent.status {
            IntentStatus::RequiresPaymentMethod
            | IntentStatus::RequiresConfirmation
            | IntentStatus::RequiresAction => {}
            IntentStatus::Succeeded => {
                let message = "You cannot confirm this PaymentIntent because it has already succeeded after being previously confirmed.";
                return Err(ApiError::unexpected_state(
                    message.to_owned(),
                    intent.to_json(),
                ));
            }
            IntentStatus::Processing | IntentStatus::Canceled => {
                let message = format!(
                    "This PaymentIntent's status is {}: it could not be confirmed in this state.",
                    intent.status.as_str()
                );
                return Err(ApiError::unexpected_state(message, intent.to_json()));
            }
        }
        if let Some(name) = &confirm.method {
            let customer = intent.customer.clone();
            let method = self.usable_method(name, customer.as_deref(), fresh_id, now)?;
            self.intents[position].method = Some(method);
        } else if intent.method.is_none() {
            let message =
                "You cannot confirm this PaymentIntent because it's missing a payment method.";
            return Err(ApiError::unexpected_state(
                message.to_owned(),
                intent.to_json(),
            ));
        }
        self.confirm_at(position, confirm, charge_id, now)
    }

    pub fn cancel(
        &mut self,
        id: &str,
        reason: Option<String>,
        now: Moment,
    ) -> Result<Value, ApiError> {
        let position = self.position(id)?;
        let intent = &mut self.intents[position];
        match intent.status {
            IntentStatus::RequiresPaymentMethod
            | IntentStatus::RequiresConfirmation
            | IntentStatus::RequiresAction => {
                intent.status = IntentStatus::Canceled;
                intent.canceled = Some(now.unix_s);
                intent.cancellation_reason = reason;
                Ok(intent.to_json())
            }
            IntentStatus::Processing | IntentStatus::Succeeded | IntentStatus::Canceled => {
                let message = format!(
                    "You cannot cancel this PaymentIntent because it has a status of {}.",
                    intent.status.as_str()
                );
                Err(ApiError::unexpected_state(message, intent.to_json()))
            }
        }
    }

    /// The customer comes and authenticates, or fails to: what a browser would do for a real one.
    pub fn authenticate(
        &mut self,
        id: &str,
        passes: bool,
        charge_id: String,
    ) -> Result<Value, ApiError> {
        let position = self.position(id)?;
        if self.intents[position].status != IntentStatus::RequiresAction {
            let message = "This PaymentIntent does not wait for its customer.".to_owned();
            return Err(ApiError::unexpected_state(
                message,
                self.intents[position].to_json(),
            ));
        }
        let then = self.traits_of(position).map(|traits| traits.behaviour);
        match then {
            Some(Behaviour::RequiresAction { then }) if passes => match then {
                Behaviour::Declines(decline) => {
                    self.charge(position, ChargeStatus::Failed, Some(decline), charge_id);
                    self.decline_intent(position, decline);
                }
                _ => self.succeed(position, charge_id),
            },
            _ => self.decline_intent(position, &AUTHENTICATION_FAILED),
        }
        Ok(self.intents[position].to_json())
    }

    /// Charges made or changed since the last call, as the journal writes them.
    pub fn take_touched(&mut self) -> Vec<Value> {
        let touched = std::mem::take(&mut self.touched);
        touched
            .into_iter()
            .map(|position| {
                let charge = &self.charges[position];
                json!({
                    "charge": charge.id, "payment_intent": charge.intent, "status": charge.status.as_str(),
                    "invoice_id": charge.metadata.get(INVOICE_KEY), "amount": charge.amount,
                    "currency": charge.currency, "created": charge.created,
                })
            })
            .collect()
    }

    fn position(&self, id: &str) -> Result<usize, ApiError> {
        self.intent_by_id
            .get(id)
            .copied()
            .ok_or_else(|| ApiError::no_such("payment_intent", id, "intent", StatusCode::NOT_FOUND))
    }

    fn traits_of(&self, position: usize) -> Option<Traits> {
        let id = self.intents[position].method.as_ref()?;
        self.methods.get(id).map(|method| method.traits)
    }

    /// The method of that id; a test method's name (`pm_card_visa`) becomes a fresh one, as Stripe does it.
    fn own_method(&mut self, name: &str, fresh_id: String, now: Moment) -> Option<String> {
        if self.methods.contains_key(name) {
            return Some(name.to_owned());
        }
        let traits = cards::by_name(name)?;
        self.create_method(fresh_id.clone(), traits, Metadata::new(), now);
        Some(fresh_id)
    }

    fn usable_method(
        &mut self,
        name: &str,
        customer: Option<&str>,
        fresh_id: String,
        now: Moment,
    ) -> Result<String, ApiError> {
        let id = self
            .own_method(name, fresh_id, now)
            .ok_or_else(|| missing_method(name, StatusCode::BAD_REQUEST))?;
        let owner = self
            .methods
            .get(&id)
            .and_then(|method| method.customer.as_deref());
        match owner {
            Some(owner) if Some(owner) != customer => Err(ApiError::malformed(
                "The payment method belongs to another Customer: name that customer on the PaymentIntent.",
            )),
            _ => Ok(id),
        }
    }

    fn confirm_at(
        &mut self,
        position: usize,
        confirm: &Confirm,
        charge_id: String,
        now: Moment,
    ) -> Result<Value, ApiError> {
        let Some(traits) = self.traits_of(position) else {
            return Err(ApiError::missing("payment_method"));
        };
        let behaviour = if confirm.declined_by_draw {
            Behaviour::Declines(DRAWN)
        } else {
            traits.behaviour
        };
        match behaviour {
            Behaviour::Succeeds => self.succeed(position, charge_id),
            Behaviour::Declines(decline) => return Err(self.refuse(position, &decline, charge_id)),
            Behaviour::RequiresAction { .. }
                if confirm.off_session || confirm.error_on_requires_action =>
            {
                return Err(self.refuse(position, &AUTHENTICATION_REQUIRED, charge_id));
            }
            Behaviour::RequiresAction { .. } => {
                self.intents[position].status = IntentStatus::RequiresAction
            }
            Behaviour::Processes(ending) => {
                self.charge(position, ChargeStatus::Pending, None, charge_id);
                self.intents[position].status = IntentStatus::Processing;
                if ending != Ending::Never {
                    self.processing
                        .push_back((now.mono + self.processing_for, AtWork::Intent(position)));
                }
            }
        }
        Ok(self.intents[position].to_json())
    }

    fn succeed(&mut self, position: usize, charge_id: String) {
        // The promise that everything above rests on: a PaymentIntent is paid once.
        assert!(
            self.intents[position].status != IntentStatus::Succeeded,
            "a PaymentIntent succeeds at most once"
        );
        self.charge(position, ChargeStatus::Succeeded, None, charge_id);
        self.intents[position].status = IntentStatus::Succeeded;
        self.intents[position].last_error = None;
    }

    fn refuse(&mut self, position: usize, decline: &Decline, charge_id: String) -> ApiError {
        let method = self.intents[position]
            .method
            .as_ref()
            .and_then(|id| self.methods.get(id))
            .map(Method::to_json);
        self.charge(
            position,
            ChargeStatus::Failed,
            Some(decline),
            charge_id.clone(),
        );
        self.decline_intent(position, decline);
        decline.error().on_charge(
            &charge_id,
            self.intents[position].to_json(),
            method.unwrap_or(Value::Null),
        )
    }

    /// Back to where another payment method may be tried.
    fn decline_intent(&mut self, position: usize, decline: &Decline) {
        let intent = &mut self.intents[position];
        intent.status = IntentStatus::RequiresPaymentMethod;
        intent.method = None;
        let mut error = decline.error().to_json();
        if let (Some(charge), Some(fields)) =
            (&intent.latest_charge, error["error"].as_object_mut())
        {
            fields.insert("charge".to_owned(), json!(charge));
        }
        intent.last_error = Some(error["error"].take());
    }

    fn charge(
        &mut self,
        position: usize,
        status: ChargeStatus,
        decline: Option<&Decline>,
        id: String,
    ) {
        let intent = &self.intents[position];
        let charge = self.book(Charge {
            id: id.clone(),
            created: intent.created,
            created_at: intent.created_at,
            amount: intent.amount,
            currency: intent.currency.clone(),
            customer: intent.customer.clone(),
            intent: Some(intent.id.clone()),
            method: intent.method.clone().unwrap_or_default(),
            metadata: intent.metadata.clone(),
            status,
            failure: decline.copied(),
        });
        let intent = &mut self.intents[position];
        intent.charges.push(charge);
        intent.latest_charge = Some(id);
    }
}

const INVOICE_KEY: &str = "invoice_id";
const NO_INVOICE: &str = "?";

fn missing_customer(id: &str, status: StatusCode) -> ApiError {
    ApiError::no_such("customer", id, "customer", status)
}

fn missing_method(id: &str, status: StatusCode) -> ApiError {
    ApiError::no_such("PaymentMethod", id, "payment_method", status)
}
