//! Decides what an answer about a charge without an object means: the one that a request made, or those that a search finds
//! under a key. Only a parsed card error is a no; only a charge that carries the key is a yes. Decides nothing about leases.

use std::collections::BTreeMap;

use billing_core::{Charged, DeclineCode, IdempotencyKey};
use http::StatusCode;
use serde::Deserialize;

use super::params::KEY_IN_METADATA;
use super::{ChargeParams, Stripe, charged, declined, declines, path_segment};
use crate::http::{HttpAnswer, Ready, Silence};

/// Charges that one search shows. More under one key is more than anybody can judge.
const FOUND_MAX: usize = 100;

/// What was said about one charge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Money moved: what, and how much.
    Charged(Charged),
    /// At work; it may still succeed by itself. `replayed`: it was so when the key was first used.
    Working { id: String, replayed: bool },
    /// The card said no: in so many words, or later, where a bank takes its time.
    Declined { code: DeclineCode, retryable: bool },
    /// Nobody can tell. In words, for people.
    Unclear { why: String, replayed: bool },
}

/// What stands in the provider's books under one key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// More than one: the provider did not honour the key.
    pub charged: Vec<Charged>,
    /// Something under this key may still succeed by itself.
    pub working: bool,
    /// The newest no: its code and whether another try makes sense.
    pub declined: Option<(DeclineCode, bool)>,
}

#[derive(Deserialize)]
struct RawCharge {
    id: String,
    object: String,
    amount: u64,
    currency: String,
    status: String,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    #[serde(default)]
    failure_code: Option<String>,
    #[serde(default)]
    outcome: Option<RawOutcome>,
}

#[derive(Deserialize)]
struct RawOutcome {
    #[serde(default)]
    reason: Option<String>,
}

#[derive(Deserialize)]
struct RawFound {
    object: String,
    has_more: bool,
    data: Vec<RawCharge>,
}

/// A charge of ours, as far as it is known.
enum Stands {
    Succeeded(Charged),
    Pending,
    Failed(DeclineCode, bool),
}

impl Stripe {
    /// Charges, under `key:confirm`: the word for what moves money.
    pub async fn charge(
        &self,
        ready: Ready<'_>,
        charge: &ChargeParams,
        key: &IdempotencyKey,
    ) -> Said {
        let body = charge.charge_under(key);
        let heard = self
            .post(ready, "/v1/charges", &body, &format!("{key}:confirm"))
            .await;
        read_one(heard, key)
    }

    /// What has become of that charge of ours. Never behind, as a search may be.
    pub async fn retrieve_charge(&self, ready: Ready<'_>, id: &str, key: &IdempotencyKey) -> Said {
        let path = format!("/v1/charges/{}", path_segment(id));
        read_one(self.get(ready, &path).await, key)
    }

    /// What stands under that key, as far as the search knows by now. Err: nobody can tell, and why.
    pub async fn find(&self, ready: Ready<'_>, key: &IdempotencyKey) -> Result<Found, String> {
        // A quote inside quotes has a backslash before it, and so has a backslash.
        let quoted = key.to_string().replace('\\', "\\\\").replace('"', "\\\"");
        let query = format!("metadata[\"{KEY_IN_METADATA}\"]:\"{quoted}\"");
        let path = format!(
            "/v1/charges/search?limit={FOUND_MAX}&query={}",
            path_segment(&query)
        );
        read_found(self.get(ready, &path).await, key)
    }
}

fn read_one(heard: Result<HttpAnswer, Silence>, key: &IdempotencyKey) -> Said {
    let heard = match heard {
        Ok(heard) => heard,
        Err(silence) => {
            return Said::Unclear {
                why: silence.to_string(),
                replayed: false,
            };
        }
    };
    let replayed = heard.replayed;
    let unclear = |why: String| Said::Unclear { why, replayed };
    if heard.status != StatusCode::OK {
        return match declined(&heard) {
            Ok((code, retryable)) => Said::Declined { code, retryable },
            Err(why) => unclear(why),
        };
    }
    let raw = match serde_json::from_slice::<RawCharge>(&heard.body) {
        Ok(raw) if is_under(&raw, key) => raw,
        Ok(raw) => return unclear(format!("{} does not carry the key {key}", raw.id)),
        Err(error) => return unclear(format!("200 with a body that is no charge: {error}")),
    };
    match stands(&raw) {
        Ok(Stands::Succeeded(charged)) => Said::Charged(charged),
        Ok(Stands::Pending) => Said::Working {
            id: raw.id,
            replayed,
        },
        Ok(Stands::Failed(code, retryable)) => Said::Declined { code, retryable },
        Err(why) => unclear(why),
    }
}

fn read_found(heard: Result<HttpAnswer, Silence>, key: &IdempotencyKey) -> Result<Found, String> {
    let heard = heard.map_err(|silence| silence.to_string())?;
    if heard.status != StatusCode::OK {
        return Err(format!("search answered {}", heard.status.as_u16()));
    }
    let raw: RawFound = serde_json::from_slice(&heard.body)
        .map_err(|error| format!("200 with a body that is no search result: {error}"))?;
    if raw.object != "search_result" || raw.has_more {
        return Err(format!(
            "a {} of more than one page, or no search result",
            raw.object
        ));
    }
    let mut found = Found::default();
    // A search takes upper and lower case for the same; a key is exact.
    for charge in raw.data.iter().filter(|charge| is_under(charge, key)) {
        match stands(charge)? {
            Stands::Succeeded(charged) => found.charged.push(charged),
            Stands::Pending => found.working = true,
            Stands::Failed(code, retryable) => {
                found.declined.get_or_insert((code, retryable));
            }
        }
    }
    Ok(found)
}

fn is_under(raw: &RawCharge, key: &IdempotencyKey) -> bool {
    raw.object == "charge"
        && raw
            .metadata
            .get(KEY_IN_METADATA)
            .is_some_and(|held| *held == key.to_string())
}

/// Whatever the sum: what was charged under the key is a fact, and the ledger compares.
fn stands(raw: &RawCharge) -> Result<Stands, String> {
    match raw.status.as_str() {
        "succeeded" => {
            charged(&raw.id, raw.amount, &raw.currency.to_uppercase()).map(Stands::Succeeded)
        }
        "pending" => Ok(Stands::Pending),
        "failed" => {
            let reason = raw.outcome.as_ref().and_then(|said| said.reason.as_deref());
            let code = reason.or(raw.failure_code.as_deref()).unwrap_or("failed");
            let retryable = declines::is_retryable(code);
            let code = DeclineCode::new(code).map_err(|error| format!("{}: {error}", raw.id))?;
            Ok(Stands::Failed(code, retryable))
        }
        other => Err(format!("{} has the unknown status {other}", raw.id)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use billing_core::AmountMinor;
    use bytes::Bytes;

    const KEY: &str = "main.1.inv-1";

    fn key() -> IdempotencyKey {
        IdempotencyKey::parse(KEY).expect("a key")
    }

    fn answer(status: u16, body: &str) -> Result<HttpAnswer, Silence> {
        Ok(HttpAnswer {
            status: StatusCode::from_u16(status).expect("a status"),
            replayed: false,
            body: Bytes::copy_from_slice(body.as_bytes()),
        })
    }

    fn charge(id: &str, status: &str, key: &str) -> String {
        format!(
            r#"{{"id":"{id}","object":"charge","amount":1500,"currency":"eur","status":"{status}","failure_code":"card_declined","outcome":{{"reason":"stolen_card"}},"metadata":{{"idempotency_key":"{key}"}}}}"#
        )
    }

    fn page(charges: &[String], has_more: bool) -> String {
        format!(
            r#"{{"object":"search_result","has_more":{has_more},"data":[{}]}}"#,
            charges.join(",")
        )
    }

    #[test]
    fn only_a_charge_that_carries_the_key_is_a_yes() {
        let yes = read_one(answer(200, &charge("ch_1", "succeeded", KEY)), &key());
        let Said::Charged(charged) = yes else {
            panic!("{yes:?}")
        };
        assert_eq!(
            (
                charged.reference.as_str(),
                charged.amount.map(AmountMinor::get)
            ),
            ("ch_1", Some(1500))
        );
        for wrong in [
            charge("ch_1", "succeeded", "main.2.inv-1"),
            charge("ch_1", "succeeded", "MAIN.1.inv-1"),
            charge("ch_1", "succeeded", KEY).replace("idempotency_key", "key"),
            charge("ch_1", "succeeded", KEY).replace(r#""charge""#, r#""refund""#),
            charge("ch_1", "on_holiday", KEY),
            charge("ch_1", "succeeded", KEY).replace("eur", "euro"),
            "{\"id\": \"ch_".to_owned(),
            String::new(),
        ] {
            let heard = read_one(answer(200, &wrong), &key());
            assert!(matches!(heard, Said::Unclear { .. }), "{wrong}: {heard:?}");
        }
    }

    #[test]
    fn only_a_parsed_no_is_a_no() {
        let no = r#"{"error":{"type":"card_error","code":"card_declined","decline_code":"insufficient_funds"}}"#;
        let heard = read_one(answer(402, no), &key());
        assert!(
            matches!(
                heard,
                Said::Declined {
                    retryable: true,
                    ..
                }
            ),
            "{heard:?}"
        );
        for (status, body) in [
            (402, "<html>"),
            (400, no),
            (
                409,
                r#"{"error":{"type":"idempotency_error","code":"idempotency_key_in_use"}}"#,
            ),
            (500, r#"{"error":{"type":"api_error"}}"#),
        ] {
            let heard = read_one(answer(status, body), &key());
            assert!(matches!(heard, Said::Unclear { .. }), "{status}: {heard:?}");
        }
        let later = read_one(answer(200, &charge("py_1", "failed", KEY)), &key());
        assert!(
            matches!(&later, Said::Declined { code, retryable: false } if code.as_str() == "stolen_card"),
            "{later:?}"
        );
    }

    #[test]
    fn a_search_shows_what_stands_under_the_exact_key_and_nothing_else() {
        let found = |body: &str| read_found(answer(200, body), &key());
        assert_eq!(found(&page(&[], false)), Ok(Found::default()));
        let others = [
            charge("ch_1", "succeeded", "main.1.INV-1"),
            charge("ch_2", "succeeded", "main.11.inv-1"),
        ];
        assert_eq!(found(&page(&others, false)), Ok(Found::default()));
        let several = [
            charge("ch_3", "succeeded", KEY),
            charge("ch_4", "pending", KEY),
            charge("ch_5", "failed", KEY),
            charge("ch_6", "succeeded", KEY),
        ];
        let all = found(&page(&several, false)).expect("readable");
        assert_eq!((all.charged.len(), all.working), (2, true));
        assert!(all.declined.is_some());
        // What cannot be read to its end proves nothing, least of all that there is nothing.
        for unreadable in [
            page(&several, true),
            page(&[], true),
            page(&[charge("ch_1", "on_holiday", KEY)], false),
            page(&[], false).replace("search_result", "list"),
            "{}".to_owned(),
            String::new(),
        ] {
            assert!(found(&unreadable).is_err(), "{unreadable}");
        }
        assert!(read_found(answer(500, &page(&[], false)), &key()).is_err());
        assert!(read_found(Err(Silence::Unreadable("cut".to_owned())), &key()).is_err());
    }
}
