//! What a gate reads from a provider, from its table of profiles and from a key file, as plain functions of bytes. Each panics
//! where a promise is broken and decides nothing; the tests below and any other fuzzer call them.

use billing_core::{
    AmountMinor, Bill, Currency, CustomerId, InvoiceId, ObjectId, Priority, WallTime,
};
use bytes::Bytes;
use http::StatusCode;

use crate::http::HttpAnswer;
use crate::payers::Payer;
use crate::profile::{Profile, SHIPPED};
use crate::secret::SecretKey;
use crate::stripe::{self, Answer, ChargeParams, IntentState};

const AMOUNT: u64 = 1_500;

/// The charge that is asked about, of so much in the currency's own unit.
fn charge(currency: &str) -> ChargeParams {
    let bill = Bill {
        invoice: InvoiceId::new("inv-1").expect("an id"),
        customer: CustomerId::new("ana").expect("an id"),
        amount: AmountMinor::new(AMOUNT).expect("an amount"),
        currency: Currency::new(currency).expect("a currency"),
        due_at: WallTime(0),
        priority: Priority::default(),
    };
    let payer = Payer {
        provider_customer: None,
        payment_method: "pm_card_visa".to_owned(),
    };
    let profile = Profile::named("stripe", SHIPPED).expect("it is shipped");
    stripe::params_of(&bill, &payer, &profile).expect("it can be made")
}

/// A provider's answer. A yes is about the object and the sum that were asked about, a no is a card's; the rest is unclear.
pub fn answer(bytes: &[u8]) {
    let object = ObjectId::new("pi_1").expect("an id");
    for currency in ["USD", "JPY", "KWD", "ISK"] {
        let charge = charge(currency);
        for (status, about) in [
            (200, Some(&object)),
            (200, None),
            (402, Some(&object)),
            (500, None),
        ] {
            let heard = HttpAnswer {
                status: StatusCode::from_u16(status).expect("a status"),
                replayed: false,
                body: Bytes::copy_from_slice(bytes),
            };
            match stripe::read(Ok(heard), about, &charge) {
                Answer::Intent { intent, .. } => {
                    assert!(status == 200 && about.is_none_or(|asked| *asked == intent.object));
                    if let IntentState::Succeeded(charged) = intent.state {
                        assert_eq!(charged.reference.as_str(), intent.object.as_str());
                        assert_eq!(
                            charged.currency.map(|known| known.to_string()),
                            Some(currency.to_owned())
                        );
                    }
                }
                Answer::Declined { .. } => assert_eq!(status, 402),
                Answer::Unclear { why, .. } => {
                    let told = crate::gate::readable(&why);
                    assert!(why.is_empty() || billing_core::Detail::new(&told).is_ok());
                }
            }
        }
    }
}

/// A table of profiles, whose times do not contradict each other.
pub fn profiles(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    for name in ["stripe", "manual"] {
        match Profile::named(name, text) {
            Ok(profile) => {
                let together = profile.valid_for.saturating_add(profile.in_flight_max);
                assert!(together < profile.key_retention);
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

/// A key is a header's value, and never shown.
pub fn secret(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match SecretKey::new(text) {
        Ok(key) => {
            assert!(http::HeaderValue::from_str(&key.bearer()).is_ok());
            assert!(format!("{key:?}").contains("redacted"));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Panics where a promise is broken.
pub type Body = fn(&[u8]);

/// Each of them, under its name.
pub const BODIES: &[(&str, Body)] = &[
    ("gate_answer", answer),
    ("gate_profiles", profiles),
    ("gate_secret", secret),
];

#[cfg(test)]
mod tests {
    use billing_fuzz::{Decoder, Memory};

    use super::*;

    fn intent(status: &str) -> String {
        format!(
            r#"{{"id":"pi_1","object":"payment_intent","amount":1500,"amount_received":1500,"currency":"usd","status":"{status}",
            "last_payment_error":{{"type":"card_error","code":"card_declined","decline_code":"lost_card","message":"no"}}}}"#
        )
    }

    #[test]
    fn an_answer_is_a_yes_a_no_or_unclear() {
        let no = r#"{"error":{"type":"card_error","code":"card_declined","decline_code":"insufficient_funds","message":"no \u00e9"}}"#;
        let seeds = [
            intent("succeeded"),
            intent("processing").replace("usd", "jpy"),
            intent("succeeded")
                .replace("usd", "kwd")
                .replace("1500", "15000"),
            intent("requires_payment_method")
                .replace("usd", "isk")
                .replace("1500", "150000"),
            no.to_owned(),
        ]
        .map(String::into_bytes);
        let decoder = Decoder {
            name: "gate_answer",
            seeds: &seeds,
            words: &[
                b"{",
                b"[",
                b"[[[[[[[[[[[[[[[[",
                b"}",
                b"null",
                b"-1",
                b"1e999",
                b"18446744073709551615",
                b"\\u0000",
                b"\"",
                b"\\ud800",
                b"\xc3\xa9",
                b"pi_1",
                b"succeeded",
                b"\x7f",
                b"true",
            ],
            memory: Memory {
                fixed: 64 * 1024,
                per_byte: 64,
            },
        };
        decoder.check(answer);
    }

    #[test]
    fn a_table_of_profiles_is_taken_or_refused() {
        let decoder = Decoder {
            name: "gate_profiles",
            seeds: &[SHIPPED.into()],
            words: &[
                b"[",
                b"[[",
                b"{",
                b"= [[[[[[[[[[[",
                b"\"\"\"",
                b"[stripe]\n",
                b"[manual]\n",
                b"valid_for = \"",
                b"18446744073709551615s\"",
                b"\"0s\"",
                b"true",
                b"-1",
                b"\xc3\xa9",
                b"584542046090y",
            ],
            memory: Memory {
                fixed: 256 * 1024,
                per_byte: 256,
            },
        };
        decoder.check(profiles);
    }

    #[test]
    fn a_key_is_taken_or_refused() {
        let decoder = Decoder {
            name: "gate_secret",
            seeds: &[b" sk_test_abc\n".to_vec(), b"rk_live_x".to_vec()],
            words: &[b"sk_live_", b"\n", b" ", b"\0", b"\xc3\xa9"],
            memory: Memory {
                fixed: 1_024,
                per_byte: 8,
            },
        };
        decoder.check(secret);
    }
}
