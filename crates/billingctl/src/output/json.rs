//! Decides what programs read: the messages of `proto/billing/v1`, field by field under the same names; and beside each,
//! how people see it. Three things differ from the messages: statuses and other enums lose their prefix (`PAID`), bytes
//! are hex, and tokens are strings, since they start at unix ms << 20 and a reader that keeps numbers as doubles would
//! round them into the token of somebody else.

use billing_proto::v1;
use serde::{Serialize, Serializer};

use super::{Card, Row, span};

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// RFC 3339 in UTC; what no calendar knows is shown as the seconds it came as.
pub fn time(stamp: &prost_types::Timestamp) -> String {
    match jiff::Timestamp::new(stamp.seconds, stamp.nanos) {
        Ok(time) => time.to_string(),
        Err(_) => format!("unix {}s", stamp.seconds),
    }
}

/// `PAID` for INVOICE_STATUS_PAID. A status that this binary is too old to know is shown by its number.
pub fn status(status: impl Into<i32>) -> String {
    let number = status.into();
    named(
        v1::InvoiceStatus::try_from(number)
            .ok()
            .map(|status| status.as_str_name()),
        "INVOICE_STATUS_",
        number,
    )
}

/// `LEADER` for NODE_ROLE_LEADER.
pub fn role(number: i32) -> String {
    named(
        v1::NodeRole::try_from(number)
            .ok()
            .map(|role| role.as_str_name()),
        "NODE_ROLE_",
        number,
    )
}

fn attempt_state(number: i32) -> String {
    named(
        v1::AttemptState::try_from(number)
            .ok()
            .map(|state| state.as_str_name()),
        "ATTEMPT_STATE_",
        number,
    )
}

fn named(name: Option<&str>, prefix: &str, number: i32) -> String {
    match name {
        Some(name) => name.strip_prefix(prefix).unwrap_or(name).to_owned(),
        None => number.to_string(),
    }
}

fn as_text<S: Serializer>(token: &u64, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(token)
}

fn or_empty<T>(value: Option<&T>, show: impl Fn(&T) -> String) -> String {
    value.map(show).unwrap_or_default()
}

#[derive(Clone, Debug, Serialize)]
pub struct Lease {
    pub invoice_id: String,
    #[serde(serialize_with = "as_text")]
    pub token: u64,
    pub holder: String,
    pub session_id: String,
    pub expires_in_ms: u64,
}

impl From<v1::Lease> for Lease {
    fn from(lease: v1::Lease) -> Self {
        let v1::Lease {
            invoice_id,
            token,
            holder,
            session_id,
            expires_in_ms,
        } = lease;
        Lease {
            invoice_id,
            token,
            holder,
            session_id: hex(&session_id),
            expires_in_ms,
        }
    }
}

impl Lease {
    /// `inv-7 1234`: what release and renew take.
    fn as_arguments(&self) -> String {
        format!("{} {}", self.invoice_id, self.token)
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        vec![
            ("invoice", self.invoice_id.clone()),
            ("token", self.token.to_string()),
            ("holder", self.holder.clone()),
            ("expires in", span(self.expires_in_ms)),
        ]
    }
}

impl Row for Lease {
    const HEADERS: &'static [&'static str] = &["INVOICE", "TOKEN", "HOLDER", "EXPIRES IN"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.invoice_id.clone(),
            self.token.to_string(),
            self.holder.clone(),
            span(self.expires_in_ms),
        ]
    }
    fn name(&self) -> String {
        self.as_arguments()
    }
}

/// A lease that was granted, has ended, or stood when somebody began to watch.
#[derive(Debug, Serialize)]
pub struct LeaseEvent {
    /// Null: none, it stood already.
    pub index: Option<u64>,
    pub kind: String,
    pub invoice_id: String,
    #[serde(serialize_with = "as_text")]
    pub token: u64,
    pub holder: String,
    pub cluster_time_ms: Option<u64>,
    pub what: String,
}

impl From<v1::LeaseEvent> for LeaseEvent {
    fn from(event: v1::LeaseEvent) -> Self {
        let v1::LeaseEvent {
            index,
            kind,
            invoice_id,
            token,
            holder,
            cluster_time_ms,
            what,
        } = event;
        let name = v1::LeaseEventKind::try_from(kind).ok();
        LeaseEvent {
            index: Some(index),
            kind: named(
                name.map(|kind| kind.as_str_name()),
                "LEASE_EVENT_KIND_",
                kind,
            ),
            invoice_id,
            token,
            holder,
            cluster_time_ms: Some(cluster_time_ms),
            what,
        }
    }
}

impl LeaseEvent {
    pub fn standing(lease: v1::Lease) -> LeaseEvent {
        LeaseEvent {
            index: None,
            kind: "STANDS".to_owned(),
            invoice_id: lease.invoice_id,
            token: lease.token,
            holder: lease.holder,
            cluster_time_ms: None,
            what: format!("expires in {}", span(lease.expires_in_ms)),
        }
    }
}

impl Row for LeaseEvent {
    const HEADERS: &'static [&'static str] =
        &["INDEX", "EVENT", "INVOICE", "TOKEN", "HOLDER", "WHAT"];
    // Rows come one at a time: room for what most ids need, so that the columns seldom move.
    const WIDTHS_MIN: &'static [u16] = &[6, 7, 18, 19, 10, 8];
    fn cells(&self) -> Vec<String> {
        vec![
            self.index
                .map_or_else(|| "-".to_owned(), |index| index.to_string()),
            self.kind.clone(),
            self.invoice_id.clone(),
            self.token.to_string(),
            self.holder.clone(),
            self.what.clone(),
        ]
    }
    fn name(&self) -> String {
        format!("{} {}", self.invoice_id, self.token)
    }
}

/// What acquire and renew answer.
#[derive(Debug, Serialize)]
pub struct Granted {
    pub lease: Lease,
    /// A charge in doubt, which the holder should continue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_attempt: Option<Attempt>,
}

impl Card for Granted {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = self.lease.lines();
        if let Some(attempt) = &self.open_attempt {
            lines.extend(attempt.lines());
        }
        lines
    }
    fn name(&self) -> String {
        self.lease.as_arguments()
    }
}

#[derive(Debug, Serialize)]
pub struct Released {
    pub invoice_id: String,
    pub was_current: bool,
}

impl Card for Released {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let outcome = if self.was_current {
            "released"
        } else {
            "not held under this token: nothing changed"
        };
        vec![
            ("invoice", self.invoice_id.clone()),
            ("lease", outcome.to_owned()),
        ]
    }
    fn name(&self) -> String {
        self.invoice_id.clone()
    }
}

#[derive(Debug, Serialize)]
pub struct LeaseOf {
    pub invoice_id: String,
    /// Null: free.
    pub lease: Option<Lease>,
}

impl Card for LeaseOf {
    fn lines(&self) -> Vec<(&'static str, String)> {
        match &self.lease {
            Some(lease) => lease.lines(),
            None => vec![
                ("invoice", self.invoice_id.clone()),
                ("lease", "free".to_owned()),
            ],
        }
    }
    fn name(&self) -> String {
        match &self.lease {
            Some(lease) => lease.as_arguments(),
            None => self.invoice_id.clone(),
        }
    }
}

#[derive(Debug, Serialize)]
pub struct ForceReleased {
    pub invoice_id: String,
    pub was_leased: bool,
    pub status: String,
}

impl Card for ForceReleased {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let outcome = if self.was_leased {
            "ended; its token is dead"
        } else {
            "none stood"
        };
        vec![
            ("invoice", self.invoice_id.clone()),
            ("lease", outcome.to_owned()),
            ("status", self.status.clone()),
        ]
    }
    fn name(&self) -> String {
        self.invoice_id.clone()
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct Attempt {
    pub number: u32,
    pub idempotency_key: String,
    #[serde(serialize_with = "as_text")]
    pub token: u64,
    pub send_within_ms: u64,
    pub provider_object: String,
    pub taken_over: bool,
    pub state: String,
    pub look_up_in_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terms: Option<Terms>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Terms {
    pub provider: String,
    pub account: String,
    pub live: bool,
    pub fingerprint: String,
    pub valid_for_ms: u64,
    pub in_flight_max_ms: u64,
    pub can_look_up: bool,
    pub sticky: bool,
}

impl From<v1::ChargeAttempt> for Attempt {
    fn from(attempt: v1::ChargeAttempt) -> Self {
        let v1::ChargeAttempt {
            number,
            idempotency_key,
            token,
            send_within_ms,
            provider_object,
            taken_over,
            state,
            terms,
            look_up_in_ms,
        } = attempt;
        Attempt {
            number,
            idempotency_key,
            token,
            send_within_ms,
            provider_object,
            taken_over,
            state: attempt_state(state),
            look_up_in_ms,
            terms: terms.map(Terms::from),
        }
    }
}

impl From<v1::ChargeTerms> for Terms {
    fn from(terms: v1::ChargeTerms) -> Self {
        let v1::ChargeTerms {
            provider,
            account,
            live,
            fingerprint,
            valid_for_ms,
            in_flight_max_ms,
            can_look_up,
            sticky,
        } = terms;
        Terms {
            provider,
            account,
            live,
            fingerprint: hex(&fingerprint),
            valid_for_ms,
            in_flight_max_ms,
            can_look_up,
            sticky,
        }
    }
}

impl Attempt {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let taken_over = if self.taken_over { ", taken over" } else { "" };
        vec![
            (
                "attempt",
                format!("{} {}{taken_over}", self.number, self.state),
            ),
            ("key", self.idempotency_key.clone()),
            ("provider", or_empty(self.terms.as_ref(), Terms::said)),
            ("object", self.provider_object.clone()),
        ]
    }
}

impl Terms {
    fn said(&self) -> String {
        let mode = if self.live { "live" } else { "test" };
        format!("{} {} {mode}", self.provider, self.account)
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct Invoice {
    pub invoice_id: String,
    pub customer_id: String,
    pub amount_minor: i64,
    pub currency: String,
    /// Null: was due when it was submitted.
    pub due_at: Option<String>,
    pub priority: i32,
}

impl From<v1::Invoice> for Invoice {
    fn from(invoice: v1::Invoice) -> Self {
        let v1::Invoice {
            invoice_id,
            customer_id,
            amount_minor,
            currency,
            due_at,
            priority,
        } = invoice;
        Invoice {
            invoice_id,
            customer_id,
            amount_minor,
            currency,
            due_at: due_at.as_ref().map(time),
            priority,
        }
    }
}

impl Invoice {
    /// `1250 EUR`, in minor units; whoever shows it says so.
    fn sum(&self) -> String {
        format!("{} {}", self.amount_minor, self.currency)
    }
}

/// An invoice and what became of it: GetInvoiceResponse.
#[derive(Debug, Serialize)]
pub struct InvoiceState {
    /// Null: known only through a lease or a reported charge, never submitted.
    pub invoice: Option<Invoice>,
    pub status: String,
    pub lease: Option<Lease>,
    pub open_attempt: Option<Attempt>,
    pub charge_reference: String,
    pub attempts: u32,
    pub note: String,
    pub applied_index: u64,
}

impl From<v1::GetInvoiceResponse> for InvoiceState {
    fn from(state: v1::GetInvoiceResponse) -> Self {
        let v1::GetInvoiceResponse {
            invoice,
            status: number,
            lease,
            open_attempt,
            charge_reference,
            attempts,
            applied_index,
            note,
        } = state;
        InvoiceState {
            invoice: invoice.map(Invoice::from),
            status: status(number),
            lease: lease.map(Lease::from),
            open_attempt: open_attempt.map(Attempt::from),
            charge_reference,
            attempts,
            note,
            applied_index,
        }
    }
}

impl InvoiceState {
    fn id(&self) -> String {
        let leased = self.lease.as_ref().map(|lease| &lease.invoice_id);
        or_empty(
            self.invoice
                .as_ref()
                .map(|invoice| &invoice.invoice_id)
                .or(leased),
            |id| (*id).clone(),
        )
    }

    fn invoiced(&self, show: impl Fn(&Invoice) -> String) -> String {
        or_empty(self.invoice.as_ref(), show)
    }
}

impl Row for InvoiceState {
    const HEADERS: &'static [&'static str] = &[
        "INVOICE",
        "STATUS",
        "AMOUNT MINOR",
        "CUSTOMER",
        "DUE",
        "HOLDER",
    ];
    fn cells(&self) -> Vec<String> {
        vec![
            self.id(),
            self.status.clone(),
            self.invoiced(Invoice::sum),
            self.invoiced(|invoice| invoice.customer_id.clone()),
            self.invoiced(|invoice| invoice.due_at.clone().unwrap_or_default()),
            or_empty(self.lease.as_ref(), |lease| lease.holder.clone()),
        ]
    }
    fn name(&self) -> String {
        self.id()
    }
}

impl Card for InvoiceState {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![
            ("invoice", self.id()),
            ("status", self.status.clone()),
            ("note", self.note.clone()),
            (
                "customer",
                self.invoiced(|invoice| invoice.customer_id.clone()),
            ),
            (
                "amount",
                self.invoiced(|invoice| format!("{} (minor units)", invoice.sum())),
            ),
            (
                "due",
                self.invoiced(|invoice| invoice.due_at.clone().unwrap_or_default()),
            ),
            (
                "priority",
                self.invoiced(|invoice| invoice.priority.to_string()),
            ),
            ("charge", self.charge_reference.clone()),
            ("attempts", self.attempts.to_string()),
        ];
        if let Some(attempt) = &self.open_attempt {
            lines.extend(attempt.lines());
        }
        if let Some(lease) = &self.lease {
            lines.extend(lease.lines().into_iter().skip(1));
        }
        lines
    }
    fn name(&self) -> String {
        self.id()
    }
}

/// An invoice seen through its open attempt: the same JSON, other columns.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct ChargeState(pub InvoiceState);

impl Row for ChargeState {
    const HEADERS: &'static [&'static str] = &[
        "INVOICE",
        "STATUS",
        "ATTEMPT",
        "KEY",
        "AMOUNT MINOR",
        "PROVIDER",
        "OBJECT",
        "NOTE",
    ];
    fn cells(&self) -> Vec<String> {
        let attempt = self.0.open_attempt.as_ref();
        let terms = attempt.and_then(|attempt| attempt.terms.as_ref());
        vec![
            self.0.id(),
            self.0.status.clone(),
            or_empty(attempt, |attempt| {
                format!("{} {}", attempt.number, attempt.state)
            }),
            or_empty(attempt, |attempt| attempt.idempotency_key.clone()),
            self.0.invoiced(Invoice::sum),
            or_empty(terms, |terms| terms.provider.clone()),
            or_empty(attempt, |attempt| attempt.provider_object.clone()),
            self.0.note.clone(),
        ]
    }
    fn name(&self) -> String {
        self.0.id()
    }
}

/// What cancel, requeue and resolve leave behind.
#[derive(Debug, Serialize)]
pub struct NowStatus {
    pub invoice_id: String,
    pub status: String,
}

impl Card for NowStatus {
    fn lines(&self) -> Vec<(&'static str, String)> {
        vec![
            ("invoice", self.invoice_id.clone()),
            ("status", self.status.clone()),
        ]
    }
    fn name(&self) -> String {
        self.invoice_id.clone()
    }
}

/// An operator's switch, turned.
#[derive(Debug, Serialize)]
pub struct Switched {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    pub charges: &'static str,
}

impl Card for Switched {
    fn lines(&self) -> Vec<(&'static str, String)> {
        vec![
            ("provider", self.provider.clone().unwrap_or_default()),
            ("charges", self.charges.to_owned()),
        ]
    }
    fn name(&self) -> String {
        self.provider.clone().unwrap_or_default()
    }
}

#[derive(Debug, Serialize)]
pub struct AuditRecord {
    pub index: u64,
    pub cluster_time_ms: u64,
    pub wall_time: Option<String>,
    pub actor: String,
    pub what: String,
    pub invoice_id: String,
    #[serde(serialize_with = "as_text")]
    pub token: u64,
    pub idempotency_key: String,
    pub detail: String,
    pub previous_hash: String,
    pub hash: String,
    pub canonical: String,
}

impl From<v1::AuditRecord> for AuditRecord {
    fn from(record: v1::AuditRecord) -> Self {
        let v1::AuditRecord {
            index,
            cluster_time_ms,
            wall_time,
            actor,
            what,
            invoice_id,
            token,
            idempotency_key,
            detail,
            previous_hash,
            hash,
            canonical,
        } = record;
        AuditRecord {
            index,
            cluster_time_ms,
            wall_time: wall_time.as_ref().map(time),
            actor,
            what,
            invoice_id,
            token,
            idempotency_key,
            detail,
            previous_hash: hex(&previous_hash),
            hash: hex(&hash),
            canonical: hex(&canonical),
        }
    }
}

impl Row for AuditRecord {
    const HEADERS: &'static [&'static str] = &[
        "INDEX", "TIME", "ACTOR", "WHAT", "INVOICE", "TOKEN", "DETAIL",
    ];
    fn cells(&self) -> Vec<String> {
        vec![
            self.index.to_string(),
            self.wall_time.clone().unwrap_or_default(),
            self.actor.clone(),
            self.what.clone(),
            self.invoice_id.clone(),
            // Zero is no token.
            if self.token == 0 {
                String::new()
            } else {
                self.token.to_string()
            },
            self.detail.clone(),
        ]
    }
    fn name(&self) -> String {
        self.index.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_beyond_what_a_double_holds_stays_exact() {
        let token = (1_795_366_800_000_u64 << 20) + 1;
        assert_ne!(token as f64 as u64, token, "the case is worth having");
        let lease = Lease::from(v1::Lease {
            invoice_id: "inv-7".into(),
            token,
            ..v1::Lease::default()
        });
        let json = serde_json::to_value(&lease).expect("a lease has only plain fields");
        assert_eq!(json["token"], token.to_string());
    }

    #[test]
    fn a_status_from_a_newer_server_is_shown_by_its_number() {
        assert_eq!(status(v1::InvoiceStatus::Paid), "PAID");
        assert_eq!(status(77), "77");
    }
}
