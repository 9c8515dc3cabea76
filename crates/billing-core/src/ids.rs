//! The words of §2 as types: what an id, a token, a key, an amount may look like. Checks bounds where a value is made and
//! where it comes back (deserialized); knows no state, so it never says whether a thing exists.

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use crate::limits::*;

/// A value outside its bound: names the field as it is called on the wire, and what it must be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{field} must be {bound}")]
pub struct OutOfBounds {
    pub field: Cow<'static, str>,
    pub bound: Cow<'static, str>,
}

impl OutOfBounds {
    #[must_use]
    pub const fn new(field: &'static str, bound: &'static str) -> Self {
        Self {
            field: Cow::Borrowed(field),
            bound: Cow::Borrowed(bound),
        }
    }
}

fn is_word(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn is_readable(text: &str) -> bool {
    !text.chars().any(char::is_control)
}

fn is_ledger_id(text: &str) -> bool {
    // No dot: it separates the parts of a key.
    text.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// Reads a text where it lies, without a copy that is thrown away: a follower makes two ids of every command.
struct Text<T>(fn(&str) -> Result<T, OutOfBounds>);

impl<T> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        (self.0)(text).map_err(E::custom)
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $field:literal, $max:expr, $allowed:path, $bound:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            pub fn new(text: &str) -> Result<Self, OutOfBounds> {
                if text.is_empty() || text.len() > $max || !$allowed(text) {
                    return Err(OutOfBounds::new($field, $bound));
                }
                Ok(Self(Arc::from(text)))
            }

            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = OutOfBounds;
            fn from_str(text: &str) -> Result<Self, OutOfBounds> {
                Self::new(text)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                from.deserialize_str(Text(Self::new))
            }
        }
    };
}

text_id!(
    /// Names one sum owed. Chosen by the caller.
    InvoiceId, "invoice_id", TEXT_BYTES_MAX, is_word, "1..=128 printable ASCII characters without spaces"
);
text_id!(
    CustomerId,
    "customer_id",
    TEXT_BYTES_MAX,
    is_word,
    "1..=128 printable ASCII characters without spaces"
);
text_id!(
    /// Names who holds a lease, for people; two sessions may carry the same name.
    HolderId, "holder", TEXT_BYTES_MAX, is_readable, "1..=128 bytes of text without control characters"
);
text_id!(
    /// The provider's name for a charge; the id of the single-use object where there is one.
    Reference, "reference", TEXT_BYTES_MAX, is_readable, "1..=128 bytes of text without control characters"
);
text_id!(
    /// The provider's name for a single-use object.
    ObjectId, "object", TEXT_BYTES_MAX, is_word, "1..=128 printable ASCII characters without spaces"
);
text_id!(
    ProviderId,
    "provider",
    PROVIDER_BYTES_MAX,
    is_word,
    "1..=64 printable ASCII characters without spaces"
);
text_id!(
    AccountId,
    "account",
    PROVIDER_BYTES_MAX,
    is_word,
    "1..=64 printable ASCII characters without spaces"
);
text_id!(
    /// What was seen, in words, for people.
    Detail, "detail", EVIDENCE_BYTES_MAX, is_readable, "1..=1024 bytes of text without control characters"
);
text_id!(
    /// The provider's word for why it declined.
    DeclineCode, "code", TEXT_BYTES_MAX, is_readable, "1..=128 bytes of text without control characters"
);
text_id!(
    /// Why a person (or an operator's script) did it; kept in the audit log.
    Evidence, "evidence", EVIDENCE_BYTES_MAX, is_readable, "1..=1024 bytes of text without control characters"
);
text_id!(
    /// Who sent a command, as the server authenticated it. Only the audit log reads it.
    Actor, "actor", TEXT_BYTES_MAX, is_readable, "1..=128 bytes of text without control characters"
);
text_id!(
    /// The name that the operator gives at bootstrap; a restore keeps it. The first part of every idempotency key.
    LedgerId, "ledger_id", LEDGER_ID_BYTES_MAX, is_ledger_id, "1..=32 letters, digits, '-' or '_'"
);

impl ProviderId {
    /// For a provider that the code itself names.
    pub(crate) fn constant(text: &'static str) -> Self {
        debug_assert!(Self::new(text).is_ok());
        Self(Arc::from(text))
    }
}

impl AccountId {
    /// For an account that the code itself names.
    pub(crate) fn constant(text: &'static str) -> Self {
        debug_assert!(Self::new(text).is_ok());
        Self(Arc::from(text))
    }
}

impl Actor {
    /// Who did what time alone did: expiry, a queue's grant, a review that nobody asked for.
    #[must_use]
    pub fn ledger() -> Self {
        Self(Arc::from("ledger"))
    }
}

macro_rules! bounded {
    ($(#[$doc:meta])* $name:ident, $int:ty, $field:literal, $min:expr, $max:expr, $bound:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "u64", into = "u64")]
        pub struct $name($int);

        impl $name {
            pub fn new(value: u64) -> Result<Self, OutOfBounds> {
                match <$int>::try_from(value) {
                    Ok(value) if ($min..=$max).contains(&value) => Ok(Self(value)),
                    Ok(_) | Err(_) => Err(OutOfBounds::new($field, $bound)),
                }
            }

            #[must_use]
            pub fn get(self) -> $int {
                self.0
            }
        }

        impl TryFrom<u64> for $name {
            type Error = OutOfBounds;
            fn try_from(value: u64) -> Result<Self, OutOfBounds> {
                Self::new(value)
            }
        }

        impl From<$name> for u64 {
            fn from(value: $name) -> u64 {
                u64::from(value.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

bounded!(
    /// How long a session, or a lease of its own, lives without being kept alive. Milliseconds.
    TtlMs, u64, "ttl_ms", TTL_MS_MIN, TTL_MS_MAX, "1000..=300000 (0 only beside a session_id: as long as the session)"
);
bounded!(
    /// How long an acquire may stand in the invoice's queue. Milliseconds; 0: not at all.
    WaitMs, u64, "wait_ms", 0, WAIT_MS_MAX, "0..=300000"
);
bounded!(
    /// A sum in the currency's minor unit.
    AmountMinor, u64, "amount_minor", 1, AMOUNT_MINOR_MAX, "1..=1000000000000"
);
bounded!(
    /// How many invoices one claim may lease.
    ClaimMax, u16, "max", 1, CLAIM_MAX, "1..=1000"
);
bounded!(
    /// Counts a session's requests from 1 up.
    Seq, u64, "seq", 1, u64::MAX, "1 or more, counting up in a session"
);
bounded!(
    /// Counts an invoice's charge attempts from 1 up.
    AttemptNumber, u32, "attempt", 1, ATTEMPT_NUMBER_MAX, "1..=1000000"
);
bounded!(
    /// How long after BeginCharge its key may be sent. Milliseconds.
    ValidForMs, u64, "terms.valid_for_ms", VALID_FOR_MS_MIN, VALID_FOR_MS_MAX, "1000..=2592000000"
);
bounded!(
    /// How long a send can take until a look-up sees its effect, the look-up's lag included. Milliseconds.
    InFlightMs, u64, "terms.in_flight_max_ms", 0, IN_FLIGHT_MS_MAX, "0..=604800000"
);

impl TtlMs {
    pub const MAX: Self = Self(TTL_MS_MAX);
}

impl Seq {
    /// An implicit session's only one.
    pub const FIRST: Self = Self(1);
}

impl ValidForMs {
    pub(crate) const MANUAL: Self = Self(3_600_000); // §6: profile `manual` is valid for an hour.
}

impl InFlightMs {
    pub(crate) const MANUAL: Self = Self(600_000); // A person types; ten minutes later they have pressed the button or not.
}

/// Higher is claimed first among invoices due at the same time.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(try_from = "i64", into = "i64")]
pub struct Priority(i16);

impl Priority {
    pub fn new(value: i64) -> Result<Self, OutOfBounds> {
        match i16::try_from(value) {
            Ok(value) if (PRIORITY_MIN..=PRIORITY_MAX).contains(&value) => Ok(Self(value)),
            Ok(_) | Err(_) => Err(OutOfBounds::new("priority", "-1000..=1000")),
        }
    }

    #[must_use]
    pub fn get(self) -> i16 {
        self.0
    }
}

impl TryFrom<i64> for Priority {
    type Error = OutOfBounds;
    fn try_from(value: i64) -> Result<Self, OutOfBounds> {
        Self::new(value)
    }
}

impl From<Priority> for i64 {
    fn from(priority: Priority) -> i64 {
        i64::from(priority.0)
    }
}

/// Names one worker process's liveness: 16 bytes, chosen by the client, never reopened.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionId([u8; 16]);

impl SessionId {
    #[must_use]
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// From the wire: exactly 16 bytes.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, OutOfBounds> {
        bytes
            .try_into()
            .map(Self)
            .map_err(|_| OutOfBounds::new("session_id", "16 bytes"))
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// Names one acquire of a client without a session; becomes the id of its implicit session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId([u8; 16]);

impl RequestId {
    #[must_use]
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// From the wire: exactly 16 bytes. (Empty: the server draws one before it proposes.)
    pub fn from_slice(bytes: &[u8]) -> Result<Self, OutOfBounds> {
        bytes
            .try_into()
            .map(Self)
            .map_err(|_| OutOfBounds::new("request_id", "16 bytes"))
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The implicit session of this request.
    #[must_use]
    pub fn session(self) -> SessionId {
        SessionId(self.0)
    }
}

/// Stands for the exact parameters of a charge: equal parameters, equal bytes. The gate computes it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct Fingerprint(Arc<[u8]>);

impl Fingerprint {
    pub fn new(bytes: &[u8]) -> Result<Self, OutOfBounds> {
        if bytes.is_empty() || bytes.len() > FINGERPRINT_BYTES_MAX {
            return Err(OutOfBounds::new("terms.fingerprint", "1..=64 bytes"));
        }
        Ok(Self(Arc::from(bytes)))
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// For one that the code itself gives.
    pub(crate) fn constant(bytes: &'static [u8]) -> Self {
        debug_assert!(Self::new(bytes).is_ok());
        Self(Arc::from(bytes))
    }
}

impl TryFrom<Vec<u8>> for Fingerprint {
    type Error = OutOfBounds;
    fn try_from(bytes: Vec<u8>) -> Result<Self, OutOfBounds> {
        Self::new(&bytes)
    }
}

impl From<Fingerprint> for Vec<u8> {
    fn from(fingerprint: Fingerprint) -> Vec<u8> {
        fingerprint.0.to_vec()
    }
}

macro_rules! hex_display {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

hex_display!(SessionId);
hex_display!(RequestId);
hex_display!(Fingerprint);

/// Grows with every granted lease in the whole cluster and is never reused. 0 is never granted: it stands for "none".
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct FencingToken(pub u64);

impl FencingToken {
    pub const NONE: Self = Self(0);
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Milliseconds that only a leader's elapsed monotonic time advances (§4). Means nothing outside this ledger.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct ClusterTime(pub u64);

impl ClusterTime {
    #[must_use]
    pub fn plus(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// How long until `later`; 0 when it lies behind.
    #[must_use]
    pub fn ms_until(self, later: Self) -> u64 {
        later.0.saturating_sub(self.0)
    }
}

impl fmt::Display for ClusterTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0)
    }
}

/// Unix time in milliseconds, as the leader stamped it. For people, `due_at`, and for forbidding; permits nothing. What a clock
/// says that jumped since it was compared closes a door at once, but opens none, and no deadline is counted from it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct WallTime(pub u64);

impl WallTime {
    #[must_use]
    pub fn plus(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// How long until `later`; 0 when it lies behind.
    #[must_use]
    pub fn ms_until(self, later: Self) -> u64 {
        later.0.saturating_sub(self.0)
    }
}

/// What the leader proposes as the time of an entry (§4). The ledger reads no other clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// The ClusterTime at which this leadership began to count.
    pub base: ClusterTime,
    /// The leader's monotonic time since it took `base`, in ms.
    pub elapsed_ms: u64,
    pub wall: WallTime,
    /// How far `wall` is ahead of what else the time may be, in ms; negative: behind. By the leader's last comparison with a
    /// majority's clocks and its monotonic time since; while as many say one thing as another, by the other ones. 0 before the
    /// first comparison.
    pub wall_jumped_ms: i64,
}

impl Stamp {
    #[must_use]
    pub fn proposed(&self) -> ClusterTime {
        self.base.plus(self.elapsed_ms)
    }
}

/// `<ledger id>.<n>.<invoice>`: what the provider remembers a charge attempt by. Issued by the ledger only; parsed when a
/// report names one. The provider sees it with a suffix: `key:create`, `key:confirm`, `key:cancel`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdempotencyKey {
    pub ledger: LedgerId,
    pub number: AttemptNumber,
    pub invoice: InvoiceId,
}

impl IdempotencyKey {
    /// Reads a key back, with or without one of the gate's suffixes cut off by the caller: `key:create` is no key.
    pub fn parse(text: &str) -> Result<Self, OutOfBounds> {
        let out = || {
            OutOfBounds::new(
                "idempotency_key",
                "<ledger id>.<attempt number>.<invoice id>, as BeginCharge returned it",
            )
        };
        let (ledger, rest) = text.split_once('.').ok_or_else(out)?;
        let (number, invoice) = rest.split_once('.').ok_or_else(out)?;
        // One spelling per key: "+1" and "01" parse as numbers but were never issued.
        if number.starts_with('0') || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(out());
        }
        Ok(Self {
            ledger: LedgerId::new(ledger).map_err(|_| out())?,
            number: number
                .parse()
                .ok()
                .and_then(|n| AttemptNumber::new(n).ok())
                .ok_or_else(out)?,
            invoice: InvoiceId::new(invoice).map_err(|_| out())?,
        })
    }
}

impl std::str::FromStr for IdempotencyKey {
    type Err = OutOfBounds;
    fn from_str(text: &str) -> Result<Self, OutOfBounds> {
        Self::parse(text)
    }
}

impl fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.ledger, self.number, self.invoice)
    }
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for IdempotencyKey {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for IdempotencyKey {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bound_is_met_at_its_edges_and_named_beyond_them() {
        assert!(InvoiceId::new(&"a".repeat(128)).is_ok());
        for bad in [
            String::new(),
            "a".repeat(129),
            "a b".into(),
            "ü".into(),
            "a\n".into(),
        ] {
            let refused = InvoiceId::new(&bad).map_err(|out| out.to_string());
            assert_eq!(
                refused,
                Err("invoice_id must be 1..=128 printable ASCII characters without spaces".into()),
                "{bad:?}"
            );
        }
        assert!(HolderId::new("Zoë's laptop").is_ok());
        assert!(HolderId::new("a\u{7}b").is_err());
        for (value, ok) in [
            (999, false),
            (1_000, true),
            (300_000, true),
            (300_001, false),
        ] {
            assert_eq!(TtlMs::new(value).is_ok(), ok, "{value}");
        }
        for (value, ok) in [
            (0, false),
            (1, true),
            (1_000_000_000_000, true),
            (1_000_000_000_001, false),
        ] {
            assert_eq!(AmountMinor::new(value).is_ok(), ok, "{value}");
        }
        for (value, ok) in [
            (0, false),
            (1, true),
            (1_000, true),
            (1_001, false),
            (65_537, false),
        ] {
            assert_eq!(ClaimMax::new(value).is_ok(), ok, "{value}");
        }
        for (value, ok) in [
            (-1_001, false),
            (-1_000, true),
            (1_000, true),
            (1_001, false),
            (65_536, false),
        ] {
            assert_eq!(Priority::new(value).is_ok(), ok, "{value}");
        }
        assert!(WaitMs::new(300_000).is_ok() && WaitMs::new(300_001).is_err());
        assert!(Seq::new(0).is_err());
        assert_eq!(
            SessionId::from_slice(&[0; 15]).map_err(|out| out.to_string()),
            Err("session_id must be 16 bytes".into())
        );
    }

    #[test]
    fn a_key_reads_back_as_it_was_written_and_has_one_spelling() {
        let key = IdempotencyKey {
            ledger: LedgerId::new("prod-eu").unwrap(),
            number: AttemptNumber::new(3).unwrap(),
            invoice: InvoiceId::new("2026.11/inv.7").unwrap(),
        };
        assert_eq!(key.to_string(), "prod-eu.3.2026.11/inv.7");
        assert_eq!(IdempotencyKey::parse(&key.to_string()), Ok(key));
        for bad in [
            "",
            "prod",
            "prod.1",
            "prod.0.i",
            "prod.01.i",
            "prod.+1.i",
            "prod.1000001.i",
            "pr od.1.i",
            "prod.1.",
        ] {
            assert!(IdempotencyKey::parse(bad).is_err(), "{bad:?}");
        }
    }
}
