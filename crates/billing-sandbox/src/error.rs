//! Decides how a refusal looks on the wire: Stripe's error envelope. Never decides whether something is refused.

use http::StatusCode;
use serde_json::{Map, Value, json};

/// A refusal, in the words of Stripe's API.
#[derive(Clone, Debug)]
pub struct ApiError {
    pub status: StatusCode,
    /// Whether the endpoint had begun to execute, so that an idempotency key remembers this answer.
    pub executed: bool,
    /// What stands inside `error`.
    fields: Map<String, Value>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &str, message: impl Into<String>) -> Self {
        let mut error = ApiError {
            status,
            executed: false,
            fields: Map::new(),
        };
        error.set("type", json!(kind));
        error.set("message", json!(message.into()));
        error
    }

    fn set(&mut self, name: &str, value: Value) {
        self.fields.insert(name.to_owned(), value);
    }

    /// The request itself is wrong; nothing was executed and no key remembers it.
    pub fn invalid(code: &str, param: &str, message: impl Into<String>) -> Self {
        let mut error = Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message);
        error.set("code", json!(code));
        error.set("param", json!(param));
        error
    }

    pub fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    pub fn too_large() -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "invalid_request_error",
            "The request body is too large.",
        )
    }

    pub fn missing(param: &str) -> Self {
        Self::invalid(
            "parameter_missing",
            param,
            format!("Missing required param: {param}."),
        )
    }

    pub fn unknown_parameter(param: &str) -> Self {
        Self::invalid(
            "parameter_unknown",
            param,
            format!("Received unknown parameter: {param}"),
        )
    }

    pub fn no_such(what: &str, id: &str, param: &str, status: StatusCode) -> Self {
        let mut error = Self::invalid("resource_missing", param, format!("No such {what}: '{id}'"));
        error.status = status;
        error
    }

    pub fn unauthorized(message: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "invalid_request_error", message)
    }

    pub fn no_route(method: &str, path: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "invalid_request_error",
            format!(
                "Unrecognized request URL ({method}: {path}). The sandbox speaks only what a charge needs; GET / lists it."
            ),
        )
    }

    pub fn key_reused(message: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "idempotency_error", message)
    }

    pub fn key_in_use(key: &str) -> Self {
        let mut error = Self::new(
            StatusCode::CONFLICT,
            "idempotency_error",
            format!(
                "There is currently another in-progress request using this Idempotency-Key: {key}"
            ),
        );
        error.set("code", json!("idempotency_key_in_use"));
        error
    }

    pub fn rate_limited() -> Self {
        let mut error = Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "invalid_request_error",
            "Too many requests are at work.",
        );
        error.set("code", json!("rate_limit"));
        error
    }

    /// Our fault. Says nothing about whether the work was done, as a real 500 says nothing.
    pub fn internal() -> Self {
        let mut error = Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "api_error",
            "An unknown error occurred.",
        );
        error.executed = true;
        error
    }

    /// The PaymentIntent is in a state that does not allow the request; the key remembers it.
    pub fn unexpected_state(message: String, intent: Value) -> Self {
        let mut error = Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message);
        error.set("code", json!("payment_intent_unexpected_state"));
        error.set("payment_intent", intent);
        error.executed = true;
        error
    }

    /// The card said no; the key remembers it.
    pub fn card(code: &str, decline_code: Option<&str>, message: &str) -> Self {
        let mut error = Self::new(StatusCode::PAYMENT_REQUIRED, "card_error", message);
        error.set("code", json!(code));
        if let Some(decline_code) = decline_code {
            error.set("decline_code", json!(decline_code));
        }
        error.executed = true;
        error
    }

    /// The failed charge that the refusal left in the books.
    pub fn of_charge(mut self, charge: &str) -> Self {
        self.set("charge", json!(charge));
        self
    }

    pub fn on_charge(self, charge: &str, intent: Value, method: Value) -> Self {
        let mut error = self.of_charge(charge);
        error.set("payment_intent", intent);
        error.set("payment_method", method);
        error
    }

    pub fn to_json(&self) -> Value {
        json!({ "error": self.fields })
    }
}
