//! Decides which request means which act, and checks its parameters first: what fails here never began to execute.
//! Never decides what becomes of a payment.

use std::ops::RangeInclusive;
use std::time::Duration;

use billing_env::MonoTime;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::cards;
use crate::error::ApiError;
use crate::faults::{Dice, Faults};
use crate::form::Params;
use crate::objects::Customer;
use crate::provider::{Confirm, DirectCharge, Moment, NewIntent, Page, Provider, metadata_key};
use crate::settings::{AMOUNT_MAX, PAGE_MAX};

/// What GET / says.
pub const SPOKEN: &[&str] = &[
    "POST /v1/customers",
    "GET  /v1/customers/{id}",
    "POST /v1/payment_methods                   type=card&card[number]=..., or card[token]=tok_visa",
    "GET  /v1/payment_methods/{id}",
    "POST /v1/payment_methods/{id}/attach       customer=cus_...",
    "POST /v1/payment_intents                   amount, currency, customer, payment_method, confirm, metadata[...]",
    "GET  /v1/payment_intents/{id}",
    "POST /v1/payment_intents/{id}/confirm      payment_method, off_session",
    "POST /v1/payment_intents/{id}/cancel       cancellation_reason",
    "GET  /v1/payment_intents                   customer, limit, starting_after",
    "GET  /v1/payment_intents/search            query=metadata['invoice_id']:'inv-1' AND status:'succeeded'",
    "POST /v1/charges                           amount, currency, source, customer, metadata[...]: charged at once",
    "GET  /v1/charges                           customer, payment_intent, limit, starting_after",
    "GET  /v1/charges/{id}",
    "GET  /v1/charges/search                    query=metadata['idempotency_key']:'main.1.inv-1'",
    "GET  /_config/books                        the books, per invoice and in total",
    "GET  /_config/faults, POST /_config/faults what goes wrong, while running: lose_reply_every=3&delay_ms=20..200",
    "POST /_config/forget_keys                  every idempotency key is forgotten, as after its retention",
    "POST /_config/authenticate/{intent}        outcome=success|failure: the customer acts",
];

/// What one request needs beside the provider: time, chance and the bounds it is checked against.
pub struct Context<'a> {
    pub now: Moment,
    pub dice: &'a mut Dice,
    pub decline_share: f64,
    pub amount_min: u64,
    pub search_lag: Duration,
}

impl Context<'_> {
    fn id(&mut self, prefix: &str) -> String {
        format!("{prefix}_{}", self.dice.letters())
    }
}

/// Does what the request says.
pub fn execute(
    provider: &mut Provider,
    method: &Method,
    path: &str,
    mut params: Params,
    context: &mut Context<'_>,
) -> Result<Value, ApiError> {
    provider.advance(context.now);
    params.ignore("expand");
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    match (method, segments.as_slice()) {
        (&Method::POST, ["v1", "customers"]) => create_customer(provider, params, context),
        (&Method::GET, ["v1", "customers", id]) => {
            params.finish().and_then(|()| provider.customer(id))
        }
        (&Method::POST, ["v1", "payment_methods"]) => create_method(provider, params, context),
        (&Method::GET, ["v1", "payment_methods", id]) => {
            params.finish().and_then(|()| provider.method(id))
        }
        (&Method::POST, ["v1", "payment_methods", id, "attach"]) => {
            let customer = params.require("customer")?;
            params.finish()?;
            let fresh = context.id("pm");
            provider.attach(id, &customer, fresh, context.now)
        }
        (&Method::POST, ["v1", "payment_intents"]) => create_intent(provider, params, context),
        (&Method::GET, ["v1", "payment_intents"]) => {
            let customer = params.take("customer");
            let page = page(&mut params)?;
            params.finish()?;
            provider.list_intents(customer.as_deref(), &page)
        }
        (&Method::GET, ["v1", "payment_intents", "search"]) => {
            search(provider, Provider::search_intents, params, context)
        }
        (&Method::GET, ["v1", "payment_intents", id]) => {
            params.ignore("client_secret");
            params.finish().and_then(|()| provider.intent(id))
        }
        (&Method::POST, ["v1", "payment_intents", id, "confirm"]) => {
            let confirm = confirm(&mut params, context)?;
            params.finish()?;
            let (charge, fresh) = (context.id("ch"), context.id("pm"));
            provider.confirm(id, &confirm, charge, fresh, context.now)
        }
        (&Method::POST, ["v1", "payment_intents", id, "cancel"]) => {
            let reason = params.take("cancellation_reason");
            params.finish()?;
            provider.cancel(id, reason, context.now)
        }
        (&Method::POST, ["v1", "charges"]) => charge_directly(provider, params, context),
        (&Method::GET, ["v1", "charges", "search"]) => {
            search(provider, Provider::search_charges, params, context)
        }
        (&Method::GET, ["v1", "charges"]) => {
            let (customer, intent) = (params.take("customer"), params.take("payment_intent"));
            params.ignore("include");
            let page = page(&mut params)?;
            params.finish()?;
            provider.list_charges(customer.as_deref(), intent.as_deref(), &page)
        }
        (&Method::GET, ["v1", "charges", id]) => {
            params.finish().and_then(|()| provider.charge_json(id))
        }
        (&Method::GET, ["_config", "books"]) => Ok(provider.books()),
        (&Method::POST, ["_config", "authenticate", id]) => {
            let passes = match params.require("outcome")?.as_str() {
                "success" => true,
                "failure" => false,
                other => {
                    let message = format!("Invalid outcome: {other}; success or failure.");
                    return Err(ApiError::invalid("parameter_invalid", "outcome", message));
                }
            };
            let charge = context.id("ch");
            provider.authenticate(id, passes, charge)
        }
        _ => Err(ApiError::no_route(method.as_str(), path)),
    }
}

fn create_customer(
    provider: &mut Provider,
    mut params: Params,
    context: &mut Context<'_>,
) -> Result<Value, ApiError> {
    let (email, name, description) = (
        params.take("email"),
        params.take("name"),
        params.take("description"),
    );
    let metadata = params.take_map("metadata")?;
    // A customer's default method has no say here: a PaymentIntent names its own, as in the real service.
    params.ignore("invoice_settings");
    params.finish()?;
    let id = context.id("cus");
    Ok(provider.create_customer(Customer {
        id,
        created: context.now.unix_s,
        email,
        name,
        description,
        metadata,
    }))
}

fn create_method(
    provider: &mut Provider,
    mut params: Params,
    context: &mut Context<'_>,
) -> Result<Value, ApiError> {
    let kind = params.require("type")?;
    if kind != "card" {
        let message = "The sandbox creates cards; for a bank debit use pm_usBankAccount.";
        return Err(ApiError::invalid("parameter_invalid", "type", message));
    }
    let traits = match (params.take("card[token]"), params.take("card[number]")) {
        (Some(token), _) => cards::by_name(&token).ok_or_else(|| {
            ApiError::no_such("token", &token, "card[token]", StatusCode::BAD_REQUEST)
        })?,
        (None, Some(number)) => cards::by_number(&number)?,
        (None, None) => return Err(ApiError::missing("card[number]")),
    };
    let metadata = params.take_map("metadata")?;
    params.ignore("card");
    params.ignore("billing_details");
    params.finish()?;
    let id = context.id("pm");
    Ok(provider.create_method(id, traits, metadata, context.now))
}

/// What is to be charged: `amount` and `currency`, within the bounds.
fn sum(params: &mut Params, context: &Context<'_>) -> Result<(u64, String), ApiError> {
    let amount = params
        .take_integer("amount")?
        .ok_or_else(|| ApiError::missing("amount"))?;
    if amount < context.amount_min.max(1) {
        return Err(ApiError::invalid(
            "amount_too_small",
            "amount",
            "Amount must be at least the minimum for its currency.",
        ));
    }
    if amount > AMOUNT_MAX {
        let message = format!("Amount must be no more than {AMOUNT_MAX}.");
        return Err(ApiError::invalid("amount_too_large", "amount", message));
    }
    let currency = params.require("currency")?.to_lowercase();
    if currency.len() != 3 || !currency.bytes().all(|letter| letter.is_ascii_lowercase()) {
        return Err(ApiError::invalid(
            "parameter_invalid",
            "currency",
            format!("Invalid currency: {currency}."),
        ));
    }
    Ok((amount, currency))
}

fn charge_directly(
    provider: &mut Provider,
    mut params: Params,
    context: &mut Context<'_>,
) -> Result<Value, ApiError> {
    let (amount, currency) = sum(&mut params, context)?;
    if params
        .take("capture")
        .is_some_and(|capture| capture != "true")
    {
        let message = "The sandbox captures at once.";
        return Err(ApiError::invalid("parameter_invalid", "capture", message));
    }
    let new = DirectCharge {
        amount,
        currency,
        customer: params.take("customer"),
        source: params.require("source")?,
        metadata: params.take_map("metadata")?,
        declined_by_draw: context.dice.happens(context.decline_share),
    };
    for harmless in ["description", "receipt_email", "statement_descriptor"] {
        params.ignore(harmless);
    }
    params.finish()?;
    let (id, fresh) = (context.id("ch"), context.id("pm"));
    provider.charge_directly(id, new, fresh, context.now)
}

fn create_intent(
    provider: &mut Provider,
    mut params: Params,
    context: &mut Context<'_>,
) -> Result<Value, ApiError> {
    let (amount, currency) = sum(&mut params, context)?;
    if params
        .take("capture_method")
        .is_some_and(|method| !method.starts_with("automatic"))
    {
        let message = "The sandbox captures automatically.";
        return Err(ApiError::invalid(
            "parameter_invalid",
            "capture_method",
            message,
        ));
    }
    let new = NewIntent {
        amount,
        currency,
        customer: params.take("customer"),
        method: params.take("payment_method"),
        description: params.take("description"),
        metadata: params.take_map("metadata")?,
    };
    for harmless in [
        "payment_method_types",
        "automatic_payment_methods",
        "receipt_email",
        "statement_descriptor",
    ] {
        params.ignore(harmless);
    }
    let at_once = params.take_bool("confirm")?;
    let confirm = confirm(&mut params, context)?;
    params.finish()?;
    let confirm = if at_once {
        Some((confirm, context.id("ch")))
    } else {
        None
    };
    let (id, fresh) = (context.id("pi"), context.id("pm"));
    provider.create_intent(id, new, confirm, fresh, context.now)
}

fn confirm(params: &mut Params, context: &mut Context<'_>) -> Result<Confirm, ApiError> {
    for harmless in [
        "return_url",
        "use_stripe_sdk",
        "mandate_data",
        "setup_future_usage",
    ] {
        params.ignore(harmless);
    }
    Ok(Confirm {
        method: params.take("payment_method"),
        off_session: params.take_bool("off_session")?,
        error_on_requires_action: params.take_bool("error_on_requires_action")?,
        declined_by_draw: context.dice.happens(context.decline_share),
    })
}

fn page(params: &mut Params) -> Result<Page, ApiError> {
    let limit = params.take_integer("limit")?.unwrap_or(10);
    if limit == 0 || limit > PAGE_MAX as u64 {
        let message = format!("Invalid limit: {limit}; 1 to {PAGE_MAX}.");
        return Err(ApiError::invalid(
            "parameter_invalid_integer",
            "limit",
            message,
        ));
    }
    Ok(Page {
        limit: limit as usize,
        starting_after: params.take("starting_after"),
    })
}

/// One kind's search: provider, clauses, limit, and until when what it finds was created.
type Search = fn(&Provider, &[(String, String)], usize, MonoTime) -> Result<Value, ApiError>;

fn search(
    provider: &Provider,
    by: Search,
    mut params: Params,
    context: &Context<'_>,
) -> Result<Value, ApiError> {
    let query = params.require("query")?;
    let page = page(&mut params)?;
    params.finish()?;
    let mut clauses = Vec::new();
    for clause in query.split(" AND ") {
        let malformed = || {
            ApiError::invalid(
                "parameter_invalid",
                "query",
                format!("Not understood: {clause}"),
            )
        };
        // The value is the last quoted part; a field may hold quotes too.
        let (field, value) = clause.trim().split_once(':').ok_or_else(malformed)?;
        let quoted = ['\'', '"'].into_iter().find_map(|quote| {
            let opened = value.trim().strip_prefix(quote)?;
            opened.strip_suffix(quote)
        });
        let known = matches!(field, "customer" | "status") || metadata_key(field).is_some();
        let value = quoted.filter(|_| known).ok_or_else(malformed)?;
        clauses.push((field.to_owned(), unescaped(value)));
    }
    let lag = u64::try_from(context.search_lag.as_nanos()).unwrap_or(u64::MAX);
    let Some(visible_until) = context.now.mono.0.checked_sub(lag).map(MonoTime) else {
        return by(provider, &clauses, 0, MonoTime(0));
    };
    by(provider, &clauses, page.limit, visible_until)
}

/// A quote inside quotes has a backslash before it, and so has a backslash.
fn unescaped(quoted: &str) -> String {
    let mut letters = quoted.chars();
    let mut plain = String::with_capacity(quoted.len());
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => plain.extend(letters.next()),
            letter => plain.push(letter),
        }
    }
    plain
}

/// The faults as they stand, and as `POST /_config/faults` changes them: named ones only, the others stay.
pub fn change_faults(faults: &mut Faults, mut params: Params) -> Result<(), ApiError> {
    let mut changed = faults.clone();
    let ranges = [
        ("delay_ms", &mut changed.delay_ms),
        ("reply_delay_ms", &mut changed.reply_delay_ms),
    ];
    for (name, range) in ranges {
        if let Some(text) = params.take(name) {
            *range = parse_range(&text)
                .map_err(|message| ApiError::invalid("parameter_invalid", name, message))?;
        }
    }
    let shares = [
        ("lose_reply_share", &mut changed.lose_reply_share),
        ("error_before_share", &mut changed.error_before_share),
        ("error_after_share", &mut changed.error_after_share),
        ("garble_share", &mut changed.garble_share),
        ("decline_share", &mut changed.decline_share),
    ];
    for (name, share) in shares {
        if let Some(text) = params.take(name) {
            *share = parse_share(&text)
                .map_err(|message| ApiError::invalid("parameter_invalid", name, message))?;
        }
    }
    if let Some(every) = params.take_integer("lose_reply_every")? {
        changed.lose_reply_every = every;
    }
    for (name, switch) in [
        ("ignore_keys", &mut changed.ignore_keys),
        ("forget_declines", &mut changed.forget_declines),
    ] {
        match params.take(name).as_deref() {
            None => {}
            Some("true") => *switch = true,
            Some("false") => *switch = false,
            Some(text) => {
                let message = format!("Invalid boolean: {text}");
                return Err(ApiError::invalid("parameter_invalid", name, message));
            }
        }
    }
    params.finish()?;
    *faults = changed;
    Ok(())
}

pub fn faults_json(faults: &Faults) -> Value {
    let range = |range: &RangeInclusive<u64>| format!("{}..{}", range.start(), range.end());
    json!({
        "delay_ms": range(&faults.delay_ms), "reply_delay_ms": range(&faults.reply_delay_ms),
        "lose_reply_every": faults.lose_reply_every, "lose_reply_share": faults.lose_reply_share,
        "error_before_share": faults.error_before_share, "error_after_share": faults.error_after_share,
        "garble_share": faults.garble_share, "decline_share": faults.decline_share,
        "ignore_keys": faults.ignore_keys, "forget_declines": faults.forget_declines,
    })
}

/// `20` or `20..200`, milliseconds, an hour at most.
pub fn parse_range(text: &str) -> Result<RangeInclusive<u64>, String> {
    const HOUR_MS: u64 = 3_600_000;
    let (low, high) = text.split_once("..").unwrap_or((text, text));
    let bound = |part: &str| {
        part.trim_start_matches('=')
            .parse::<u64>()
            .ok()
            .filter(|ms| *ms <= HOUR_MS)
    };
    match (bound(low), bound(high)) {
        (Some(low), Some(high)) if low <= high => Ok(low..=high),
        _ => Err(format!(
            "`{text}` is no number of milliseconds up to {HOUR_MS}, nor a range like 20..200"
        )),
    }
}

/// A probability, 0 to 1.
pub fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err(format!("`{text}` is no share between 0 and 1")),
    }
}
