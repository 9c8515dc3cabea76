//! What the sandbox reads from its callers, as plain functions of bytes: forms, whole requests in a row, faults, keys in a header.
//! Each panics where a promise is broken and decides nothing; the tests below and any other fuzzer call them.

use std::time::Duration;

use billing_env::MonoTime;
use http::Method;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};

use crate::faults::{Dice, Faults};
use crate::form::Params;
use crate::provider::{Moment, Provider};
use crate::routes::{self, Context};
use crate::service;

/// Requests in a row to one provider, one per line: `GET /path?form` or `POST /path?form`. Every answer is one.
pub fn requests(bytes: &[u8]) {
    let mut provider = Provider::new(Duration::from_secs(1));
    let mut dice = Dice::new(7);
    for (line, second) in bytes.split(|byte| *byte == b'\n').zip(100..) {
        let (method, rest) = match line.strip_prefix(b"POST ") {
            Some(rest) => (Method::POST, rest),
            None => (Method::GET, line.strip_prefix(b"GET ").unwrap_or(line)),
        };
        let at = rest
            .iter()
            .position(|byte| *byte == b'?')
            .unwrap_or(rest.len());
        let (path, form) = rest.split_at(at);
        let Ok(params) = Params::parse(form.get(1..).unwrap_or_default()) else {
            continue;
        };
        let mut context = Context {
            now: Moment {
                mono: MonoTime(second * 1_000_000_000),
                unix_s: second,
            },
            dice: &mut dice,
            decline_share: 0.0,
            amount_min: 50,
            search_lag: Duration::ZERO,
        };
        let path = String::from_utf8_lossy(path);
        match routes::execute(&mut provider, &method, &path, params, &mut context) {
            Ok(value) => assert!(!value.to_string().is_empty()),
            Err(error) => assert!(!error.to_json().to_string().is_empty()),
        }
    }
}

/// A form whose parameters mean the same in any order, and faults that are taken whole or not at all.
pub fn form(bytes: &[u8]) {
    let Ok(mut params) = Params::parse(bytes) else {
        return;
    };
    let mut faults = Faults::default();
    if routes::change_faults(&mut faults, params.clone()).is_err() {
        assert_eq!(faults, Faults::default());
    }
    assert!(routes::faults_json(&faults).is_object());
    for prefix in ["metadata", "", "metadata["] {
        drop(params.take_map(prefix));
    }
    params.ignore("expand");
    drop(params.finish());
}

/// A header, and the ranges and shares of a command line.
pub fn header(bytes: &[u8]) {
    if let Ok(value) = HeaderValue::from_bytes(bytes) {
        let headers = HeaderMap::from_iter([(AUTHORIZATION, value)]);
        if let Ok(key) = service::test_key(&headers) {
            assert!(key.starts_with("sk_test_") || key.starts_with("rk_test_"));
        }
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(range) = routes::parse_range(text) {
        assert!(range.start() <= range.end());
    }
    if let Ok(share) = routes::parse_share(text) {
        assert!((0.0..=1.0).contains(&share));
    }
}

/// Panics where a promise is broken.
pub type Body = fn(&[u8]);

/// Each of them, under its name.
pub const BODIES: &[(&str, Body)] = &[
    ("sandbox_requests", requests),
    ("sandbox_form", form),
    ("sandbox_header", header),
];

#[cfg(test)]
mod tests {
    use billing_fuzz::{Decoder, Memory};

    use super::*;

    const DAY: &str = "POST /v1/customers?email=a%40b.c&metadata[crm]=7\n\
        POST /v1/payment_methods?type=card&card[number]=4242424242424242\n\
        POST /v1/payment_intents?amount=1500&currency=usd&payment_method=pm_card_visa&confirm=true&metadata[invoice_id]=inv-1\n\
        GET /v1/payment_intents/search?query=metadata['invoice_id']:'inv-1' AND status:'succeeded'\n\
        GET /v1/payment_intents?limit=3\nGET /v1/charges?limit=100\nGET /_config/books\n\
        POST /v1/payment_intents?amount=900&currency=eur&payment_method=pm_usBankAccount&confirm=true&off_session=true\n\
        POST /_config/authenticate/pi_1?outcome=success";

    #[test]
    fn every_request_is_answered() {
        let seeds: Vec<Vec<u8>> = std::iter::once(DAY.as_bytes().to_vec())
            .chain(DAY.lines().map(|line| line.as_bytes().to_vec()))
            .collect();
        let decoder = Decoder {
            name: "sandbox_requests",
            seeds: &seeds,
            words: &[
                b"GET ",
                b"POST ",
                b"/v1/",
                b"payment_intents",
                b"/search?query=",
                b"metadata['invoice_id']:",
                b"'",
                b"\"",
                b"\xc3\xa9",
                b"customer:",
                b" AND ",
                b"&",
                b"=",
                b"[",
                b"]",
                b"%",
                b"%ff",
                b"amount=18446744073709551615",
                b"\n",
                b"/confirm",
                b"limit=",
            ],
            memory: Memory {
                fixed: 512 * 1024,
                per_byte: 256,
            },
        };
        decoder.check(requests);
    }

    #[test]
    fn a_form_and_its_faults_are_taken_or_refused() {
        let seeds = [
            "delay_ms=20..200&lose_reply_every=3&decline_share=0.5&ignore_keys=true",
            "amount=1500&metadata[invoice_id]=inv-1&metadata[note]=a+b%26c&expand[]=x&expand[]=y",
        ]
        .map(|text| text.as_bytes().to_vec());
        let decoder = Decoder {
            name: "sandbox_form",
            seeds: &seeds,
            words: &[
                b"&",
                b"=",
                b"[]",
                b"[",
                b"]",
                b"%ff",
                b"..",
                b"NaN",
                b"1e999",
                b"-0",
                b"metadata",
                b"metadata[",
            ],
            memory: Memory {
                fixed: 64 * 1024,
                per_byte: 64,
            },
        };
        decoder.check(form);
    }

    #[test]
    fn a_header_and_a_range_are_taken_or_refused() {
        let seeds = [
            "Bearer sk_test_a",
            "Basic c2tfdGVzdF9hOg==",
            "20..200",
            "..=5",
            "0.25",
        ]
        .map(|text| text.as_bytes().to_vec());
        let decoder = Decoder {
            name: "sandbox_header",
            seeds: &seeds,
            words: &[
                b"Basic ",
                b"Bearer ",
                b"=",
                b"==",
                b"..",
                b"3600001",
                b"NaN",
                b"inf",
                b"\xc3\xa9",
            ],
            memory: Memory {
                fixed: 4_096,
                per_byte: 16,
            },
        };
        decoder.check(header);
    }
}
