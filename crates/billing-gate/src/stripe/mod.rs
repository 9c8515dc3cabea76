//! Decides what a Stripe answer means. Only a parsed card error is a no; only a parsed PaymentIntent of the right id, sum and
//! currency is a yes; everything else is unclear. Decides nothing about leases or attempts.

mod amount;
mod charges;
mod declines;
mod params;

use std::time::Duration;

use billing_core::{
    AmountMinor, Bill, Charged, Currency, DeclineCode, IdempotencyKey, ObjectId, Reference,
};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use serde::Deserialize;

use crate::http::{Connections, HttpAnswer, NotConnected, Ready, Silence};
use crate::payers::Payer;
use crate::profile::{Api, Profile};
use crate::secret::SecretKey;

pub use charges::Said;
pub use params::{ChargeParams, is_by_key, nothing_sent};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const STRIPE_VERSION: HeaderName = HeaderName::from_static("stripe-version");

/// What the provider said about a PaymentIntent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It stands as described. `replayed`: it stood so when the key was first used.
    Intent { intent: Intent, replayed: bool },
    /// The card said no, in so many words.
    Declined { code: DeclineCode, retryable: bool },
    /// Nobody can tell. In words, for people.
    Unclear { why: String, replayed: bool },
}

/// A PaymentIntent, as far as a charge needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    pub object: ObjectId,
    pub state: IntentState,
    /// The last card error on it, if it has one: its code and whether another try makes sense.
    pub last_error: Option<(DeclineCode, bool)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IntentState {
    /// Money moved: what, and how much.
    Succeeded(Charged),
    /// At work: `processing`, `requires_action`, `requires_capture`. May still succeed by itself.
    Working,
    /// May be confirmed; nothing succeeded.
    Confirmable,
    /// Can never succeed any more.
    Cancelled,
}

/// Stripe, or what speaks like it.
pub struct Stripe {
    connections: Connections,
    headers: HeaderMap,
    request_timeout: Duration,
}

#[derive(Deserialize)]
struct RawIntent {
    id: String,
    object: String,
    amount: u64,
    currency: String,
    status: String,
    #[serde(default)]
    amount_received: u64,
    #[serde(default)]
    last_payment_error: Option<RawError>,
}

#[derive(Deserialize)]
struct RawError {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    decline_code: Option<String>,
    #[serde(default)]
    message: Option<String>,
}

#[derive(Deserialize)]
struct RawEnvelope {
    error: RawError,
}

impl Stripe {
    /// Speaks to host:port under that key. Sends nothing yet.
    pub fn new(
        connections: Connections,
        key: &SecretKey,
        profile: &Profile,
    ) -> Result<Stripe, http::Error> {
        let mut headers = HeaderMap::new();
        let mut authorization = HeaderValue::from_str(&key.bearer())?;
        authorization.set_sensitive(true);
        headers.insert(AUTHORIZATION, authorization);
        if !profile.api_version.is_empty() {
            headers.insert(STRIPE_VERSION, HeaderValue::from_str(&profile.api_version)?);
        }
        Ok(Stripe {
            connections,
            headers,
            request_timeout: profile.request_timeout,
        })
    }

    pub async fn connect(&self) -> Result<Ready<'_>, NotConnected> {
        self.connections.connect().await
    }

    /// Creates the object under `key:create`. Moves no money.
    pub async fn create(
        &self,
        ready: Ready<'_>,
        charge: &ChargeParams,
        key: &IdempotencyKey,
    ) -> Answer {
        let heard = self
            .post(
                ready,
                "/v1/payment_intents",
                &charge.create,
                &format!("{key}:create"),
            )
            .await;
        read(heard, None, charge)
    }

    /// Confirms that object under `key:confirm`. This is what moves money.
    pub async fn confirm(
        &self,
        ready: Ready<'_>,
        object: &ObjectId,
        charge: &ChargeParams,
        key: &IdempotencyKey,
    ) -> Answer {
        let path = format!(
            "/v1/payment_intents/{}/confirm",
            path_segment(object.as_str())
        );
        let heard = self
            .post(ready, &path, &charge.confirm, &format!("{key}:confirm"))
            .await;
        read(heard, Some(object), charge)
    }

    /// Withdraws an object that will not be confirmed, under `key:cancel`.
    pub async fn cancel(
        &self,
        ready: Ready<'_>,
        object: &ObjectId,
        charge: &ChargeParams,
        key: &IdempotencyKey,
    ) -> Answer {
        let path = format!(
            "/v1/payment_intents/{}/cancel",
            path_segment(object.as_str())
        );
        let body = "cancellation_reason=duplicate";
        let heard = self
            .post(ready, &path, body, &format!("{key}:cancel"))
            .await;
        read(heard, Some(object), charge)
    }

    /// What has become of that object.
    pub async fn retrieve(
        &self,
        ready: Ready<'_>,
        object: &ObjectId,
        charge: &ChargeParams,
    ) -> Answer {
        let path = format!("/v1/payment_intents/{}", path_segment(object.as_str()));
        read(self.get(ready, &path).await, Some(object), charge)
    }

    async fn get(&self, ready: Ready<'_>, path: &str) -> Result<HttpAnswer, Silence> {
        ready
            .send(
                Method::GET,
                path,
                self.headers.clone(),
                Bytes::new(),
                self.request_timeout,
            )
            .await
    }

    async fn post(
        &self,
        ready: Ready<'_>,
        path: &str,
        body: &str,
        key: &str,
    ) -> Result<HttpAnswer, Silence> {
        let mut headers = self.headers.clone();
        let key = HeaderValue::from_str(key)
            .map_err(|_| Silence::Unreadable(format!("{key} is no header")))?;
        headers.insert(IDEMPOTENCY_KEY, key);
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/x-www-form-urlencoded"),
        );
        ready
            .send(
                Method::POST,
                path,
                headers,
                Bytes::copy_from_slice(body.as_bytes()),
                self.request_timeout,
            )
            .await
    }
}

/// An id is printable, but may hold what a path gives a meaning to.
fn path_segment(id: &str) -> String {
    form_urlencoded::byte_serialize(id.as_bytes()).collect()
}

/// The one place where bytes become a meaning. `object`: whose answer this must be.
pub(crate) fn read(
    heard: Result<HttpAnswer, Silence>,
    object: Option<&ObjectId>,
    charge: &ChargeParams,
) -> Answer {
    let heard = match heard {
        Ok(heard) => heard,
        Err(silence) => {
            return Answer::Unclear {
                why: silence.to_string(),
                replayed: false,
            };
        }
    };
    let replayed = heard.replayed;
    let unclear = |why: String| Answer::Unclear { why, replayed };
    if heard.status == StatusCode::OK {
        return match serde_json::from_slice::<RawIntent>(&heard.body) {
            Err(error) => unclear(format!("200 with a body that is no PaymentIntent: {error}")),
            Ok(raw) => match intent(raw, object, charge) {
                Ok(intent) => Answer::Intent { intent, replayed },
                Err(why) => unclear(why),
            },
        };
    }
    match declined(&heard) {
        Ok((code, retryable)) => Answer::Declined { code, retryable },
        Err(why) => unclear(why),
    }
}

/// The card's no in an answer that is not 200; else, in words, why there is none: then nobody can tell.
fn declined(heard: &HttpAnswer) -> Result<(DeclineCode, bool), String> {
    let status = heard.status.as_u16();
    let error = match serde_json::from_slice::<RawEnvelope>(&heard.body) {
        Ok(envelope) => envelope.error,
        Err(_) => return Err(format!("{status} with a body that is no error")),
    };
    if heard.status == StatusCode::PAYMENT_REQUIRED
        && let Some(no) = card_error(&error)
    {
        return Ok(no);
    }
    let code = error.code.as_deref().unwrap_or("no code");
    let message = error.message.as_deref().unwrap_or_default();
    Err(format!("{status} {} ({code}): {message}", error.kind))
}

fn card_error(error: &RawError) -> Option<(DeclineCode, bool)> {
    if error.kind != "card_error" {
        return None;
    }
    let code = error.decline_code.as_deref().or(error.code.as_deref())?;
    Some((DeclineCode::new(code).ok()?, declines::is_retryable(code)))
}

fn intent(
    raw: RawIntent,
    object: Option<&ObjectId>,
    charge: &ChargeParams,
) -> Result<Intent, String> {
    if raw.object != "payment_intent" {
        return Err(format!(
            "{} is a {}, not a payment_intent",
            raw.id, raw.object
        ));
    }
    let id = ObjectId::new(&raw.id)
        .map_err(|error| format!("the provider's id is unusable: {error}"))?;
    if object.is_some_and(|object| *object != id) {
        return Err(format!("asked about {object:?}, heard about {id}"));
    }
    // An object made of something else is somebody else's: not confirmed, not believed.
    if raw.amount != charge.amount || !raw.currency.eq_ignore_ascii_case(&charge.currency) {
        return Err(format!(
            "{id} is for {} {}, not {} {}",
            raw.amount, raw.currency, charge.amount, charge.currency
        ));
    }
    let state = match raw.status.as_str() {
        "succeeded" => {
            IntentState::Succeeded(charged(&raw.id, raw.amount_received, &charge.currency)?)
        }
        "processing" | "requires_action" | "requires_capture" => IntentState::Working,
        "requires_payment_method" | "requires_confirmation" => IntentState::Confirmable,
        "canceled" => IntentState::Cancelled,
        other => return Err(format!("{id} has the unknown status {other}")),
    };
    Ok(Intent {
        object: id,
        state,
        last_error: raw.last_payment_error.as_ref().and_then(card_error),
    })
}

/// The fact as the ledger takes it; the reference is the provider's id. Another sum than asked for is reported as it is.
/// `currency`: upper case.
fn charged(id: &str, received: u64, currency: &str) -> Result<Charged, String> {
    let unusable = |what: String| format!("{id} succeeded, but {what}");
    let reference = Reference::new(id).map_err(|error| unusable(error.to_string()))?;
    let currency = Currency::new(currency).map_err(|error| unusable(error.to_string()))?;
    let amount = amount::from_stripe(received, currency.as_str())
        .and_then(|minor| AmountMinor::new(minor).ok())
        .ok_or_else(|| {
            unusable(format!(
                "received {received}, which is no sum in {currency}"
            ))
        })?;
    Ok(Charged {
        reference,
        amount: Some(amount),
        currency: Some(currency),
    })
}

/// The exact parameters of a charge, or why it cannot be made at all.
pub fn params_of(bill: &Bill, payer: &Payer, profile: &Profile) -> Result<ChargeParams, String> {
    let amount = amount::to_stripe(bill.amount.get(), bill.currency.as_str())?;
    if amount > profile.amount_max {
        return Err(format!(
            "{amount} is more than the provider takes at once, {}",
            profile.amount_max
        ));
    }
    Ok(match profile.api {
        Api::PaymentIntents => ChargeParams::of_object(bill, payer, amount),
        Api::Charges => ChargeParams::of_charge(bill, payer, amount),
        Api::None => return Err("the profile has no provider to send to".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use billing_core::{CustomerId, InvoiceId, Priority, WallTime};

    fn charge() -> ChargeParams {
        let bill = Bill {
            invoice: InvoiceId::new("inv-1").expect("an id"),
            customer: CustomerId::new("ana").expect("an id"),
            amount: AmountMinor::new(1500).expect("an amount"),
            currency: Currency::new("USD").expect("a currency"),
            due_at: WallTime(0),
            priority: Priority::default(),
        };
        let payer = Payer {
            provider_customer: None,
            payment_method: "pm_card_visa".to_owned(),
        };
        ChargeParams::of_object(&bill, &payer, 1500)
    }

    fn heard(status: u16, body: &str) -> Answer {
        let status = StatusCode::from_u16(status).expect("a status");
        let answer = HttpAnswer {
            status,
            replayed: false,
            body: Bytes::copy_from_slice(body.as_bytes()),
        };
        read(
            Ok(answer),
            Some(&ObjectId::new("pi_1").expect("an id")),
            &charge(),
        )
    }

    fn intent_json(id: &str, amount: u64, status: &str) -> String {
        format!(
            r#"{{"id":"{id}","object":"payment_intent","amount":{amount},"amount_received":{amount},"currency":"usd","status":"{status}"}}"#
        )
    }

    #[test]
    fn only_the_right_intent_is_a_yes() {
        let yes = heard(200, &intent_json("pi_1", 1500, "succeeded"));
        let Answer::Intent {
            intent:
                Intent {
                    state: IntentState::Succeeded(charged),
                    ..
                },
            ..
        } = yes
        else {
            panic!("{yes:?}");
        };
        assert_eq!(charged.amount.map(AmountMinor::get), Some(1500));
        for wrong in [
            intent_json("pi_2", 1500, "succeeded"),
            intent_json("pi_1", 1501, "succeeded"),
            intent_json("pi_1", 1500, "succeeded").replace("usd", "eur"),
            intent_json("pi_1", 1500, "succeeded").replace("payment_intent", "setup_intent"),
            intent_json("pi_1", 1500, "on_holiday"),
            "{\"id\": \"pi_".to_owned(),
            String::new(),
        ] {
            assert!(
                matches!(heard(200, &wrong), Answer::Unclear { .. }),
                "{wrong}"
            );
        }
    }

    #[test]
    fn only_a_parsed_card_error_is_a_no() {
        let no = r#"{"error":{"type":"card_error","code":"card_declined","decline_code":"insufficient_funds","message":"no"}}"#;
        let Answer::Declined { code, retryable } = heard(402, no) else {
            panic!("{no}")
        };
        assert_eq!((code.as_str(), retryable), ("insufficient_funds", true));
        let lost = no.replace("insufficient_funds", "lost_card");
        assert!(matches!(
            heard(402, &lost),
            Answer::Declined {
                retryable: false,
                ..
            }
        ));
        for (status, body) in [
            (402, "<html>payment required</html>".to_owned()),
            (402, no.replace("card_error", "api_error")),
            (402, r#"{"error":{"type":"card_error"}}"#.to_owned()),
            (400, no.to_owned()),
            (
                409,
                r#"{"error":{"type":"idempotency_error","code":"idempotency_key_in_use"}}"#
                    .to_owned(),
            ),
            (
                429,
                r#"{"error":{"type":"invalid_request_error","code":"rate_limit"}}"#.to_owned(),
            ),
            (500, r#"{"error":{"type":"api_error"}}"#.to_owned()),
            (503, String::new()),
        ] {
            assert!(
                matches!(heard(status, &body), Answer::Unclear { .. }),
                "{status} {body}"
            );
        }
    }

    #[test]
    fn what_may_still_succeed_is_not_nothing() {
        for (status, state) in [
            ("processing", IntentState::Working),
            ("requires_action", IntentState::Working),
            ("requires_capture", IntentState::Working),
            ("requires_payment_method", IntentState::Confirmable),
            ("requires_confirmation", IntentState::Confirmable),
            ("canceled", IntentState::Cancelled),
        ] {
            let Answer::Intent { intent, .. } = heard(200, &intent_json("pi_1", 1500, status))
            else {
                panic!("{status}");
            };
            assert_eq!(intent.state, state, "{status}");
        }
    }
}
