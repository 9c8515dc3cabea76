//! The older Charges API: one request charges, and only its key keeps a second one from charging again.

use std::time::Duration;

use billing_sandbox::{Faults, Settings};

use crate::support::Caller;

const CHARGES: &str = "/v1/charges";
const VISA: &str = "tok_visa";
const NO_FUNDS: &str = "tok_visa_chargeDeclinedInsufficientFunds";

fn charge(invoice: &str, source: &str) -> String {
    format!(
        "amount=1500&currency=usd&source={source}&metadata[invoice_id]={invoice}&metadata[idempotency_key]=t.1.{invoice}"
    )
}

async fn search(caller: &Caller, key: &str) -> Vec<(String, String)> {
    let query: String = form_urlencoded::byte_serialize(
        format!("metadata['idempotency_key']:\"{key}\"").as_bytes(),
    )
    .collect();
    let found = caller
        .get(&format!("/v1/charges/search?query={query}"))
        .await;
    assert_eq!(found.status, 200, "{found:?}");
    found.body["data"]
        .as_array()
        .cloned()
        .unwrap_or_default()
        .iter()
        .map(|charge| {
            let text = |field: &str| charge[field].as_str().unwrap_or_default().to_owned();
            (text("id"), text("status"))
        })
        .collect()
}

#[tokio::test]
async fn a_charge_is_made_at_once_replayed_under_its_key_and_found_by_it() {
    let caller = Caller::of(Settings::default()).await;
    let paid = caller
        .post(CHARGES, Some("k"), &charge("inv-1", VISA))
        .await;
    assert_eq!(
        (paid.text("/object"), paid.text("/status")),
        ("charge", "succeeded")
    );
    assert_eq!(
        (&paid.body["amount"], &paid.body["payment_intent"]),
        (&1500.into(), &serde_json::Value::Null)
    );
    let again = caller
        .post(CHARGES, Some("k"), &charge("inv-1", VISA))
        .await;
    assert!(again.replayed && again.body == paid.body);
    assert_eq!(caller.booked("inv-1").await, ["succeeded"]);
    let id = paid.text("/id");
    assert_eq!(
        search(&caller, "t.1.inv-1").await,
        [(id.to_owned(), "succeeded".to_owned())]
    );
    assert!(search(&caller, "t.2.inv-1").await.is_empty());
    let one = caller.get(&format!("/v1/charges/{id}")).await;
    assert_eq!(one.body, paid.body);
}

#[tokio::test]
async fn another_key_charges_again_for_nothing_else_stops_it() {
    let caller = Caller::of(Settings::default()).await;
    for key in ["k1", "k2"] {
        caller
            .post(CHARGES, Some(key), &charge("inv-1", VISA))
            .await;
    }
    assert_eq!(caller.booked("inv-1").await, ["succeeded", "succeeded"]);
    assert_eq!(
        caller.get("/_config/books").await.body["totals"]["charged_twice"],
        1
    );
}

#[tokio::test]
async fn a_decline_is_402_with_a_failed_charge_and_sticky_unless_told_otherwise() {
    for forget_declines in [false, true] {
        let caller = Caller::with_faults(Faults {
            forget_declines,
            ..Faults::default()
        })
        .await;
        let no = caller
            .post(CHARGES, Some("k"), &charge("inv-1", NO_FUNDS))
            .await;
        assert_eq!(
            (
                no.status.as_u16(),
                no.text("/error/type"),
                no.text("/error/decline_code")
            ),
            (402, "card_error", "insufficient_funds")
        );
        let failed = caller
            .get(&format!("/v1/charges/{}", no.text("/error/charge")))
            .await;
        assert_eq!(
            (
                failed.text("/status"),
                failed.text("/failure_code"),
                failed.text("/outcome/reason")
            ),
            ("failed", "card_declined", "insufficient_funds")
        );
        let again = caller
            .post(CHARGES, Some("k"), &charge("inv-1", NO_FUNDS))
            .await;
        assert_eq!(again.replayed, !forget_declines);
        assert_eq!(
            search(&caller, "t.1.inv-1").await.len(),
            1 + usize::from(forget_declines)
        );
    }
    let caller = Caller::with_faults(Faults {
        decline_share: 1.0,
        ..Faults::default()
    })
    .await;
    let drawn = caller
        .post(CHARGES, Some("k"), &charge("inv-1", VISA))
        .await;
    assert_eq!(drawn.status, 402);
}

#[tokio::test]
async fn a_lost_reply_and_ignored_or_forgotten_keys_show_in_the_books() {
    let caller = Caller::with_faults(Faults {
        lose_reply_every: 1,
        ..Faults::default()
    })
    .await;
    let body = charge("inv-1", VISA);
    assert!(
        caller
            .send("POST", CHARGES, Some("k"), &body)
            .await
            .is_none()
    );
    assert_eq!(caller.booked("inv-1").await, ["succeeded"]);
    caller.sandbox.witness().set_faults(Faults::default());
    assert!(caller.post(CHARGES, Some("k"), &body).await.replayed);
    assert_eq!(caller.sandbox.witness().forget_keys(), 1);
    assert!(!caller.post(CHARGES, Some("k"), &body).await.replayed);
    caller.sandbox.witness().set_faults(Faults {
        ignore_keys: true,
        ..Faults::default()
    });
    assert!(!caller.post(CHARGES, Some("k"), &body).await.replayed);
    assert_eq!(caller.booked("inv-1").await, ["succeeded"; 3]);
    assert_eq!(search(&caller, "t.1.inv-1").await.len(), 3);
}

#[tokio::test]
async fn a_search_lags_and_retrieval_does_not() {
    let caller = Caller::of(Settings {
        search_lag: Duration::from_secs(3_600),
        ..Settings::default()
    })
    .await;
    let paid = caller.post(CHARGES, None, &charge("inv-1", VISA)).await;
    assert!(search(&caller, "t.1.inv-1").await.is_empty());
    let one = caller
        .get(&format!("/v1/charges/{}", paid.text("/id")))
        .await;
    assert_eq!(one.text("/status"), "succeeded");
}

#[tokio::test]
async fn a_bank_debit_is_pending_first_and_then_ends_in_the_books() {
    for (source, ends) in [
        ("pm_usBankAccount", "succeeded"),
        ("pm_usBankAccount_insufficientFunds", "failed"),
    ] {
        let caller = Caller::of(Settings {
            processing: Duration::from_millis(150),
            ..Settings::default()
        })
        .await;
        let pending = caller
            .post(CHARGES, Some("k"), &charge("inv-1", source))
            .await;
        assert_eq!(pending.text("/status"), "pending");
        caller.await_booked("inv-1", &[ends]).await;
        let replayed = caller
            .post(CHARGES, Some("k"), &charge("inv-1", source))
            .await;
        assert_eq!(
            (replayed.replayed, replayed.text("/status")),
            (true, "pending"),
            "a replay tells how it stood then"
        );
        assert_eq!(search(&caller, "t.1.inv-1").await[0].1, ends);
    }
}

#[tokio::test]
async fn what_cannot_be_charged_is_named_and_a_quote_in_a_search_is_escaped() {
    let caller = Caller::of(Settings::default()).await;
    for (body, param) in [
        ("currency=usd&source=tok_visa", "amount"),
        ("amount=1500&source=tok_visa", "currency"),
        ("amount=1500&currency=usd", "source"),
        (
            "amount=1500&currency=usd&source=tok_visa&capture=false",
            "capture",
        ),
        (
            "amount=1500&currency=usd&source=tok_visa&payment_method=pm_1",
            "payment_method",
        ),
        (
            "amount=1500&currency=usd&source=tok_visa&customer=cus_nobody",
            "customer",
        ),
    ] {
        let refused = caller.post(CHARGES, Some("k"), body).await;
        assert_eq!(
            (refused.status.as_u16(), refused.text("/error/param")),
            (400, param),
            "{body}"
        );
    }
    // A card that wants its customer has nobody to ask.
    let absent = caller
        .post(
            CHARGES,
            None,
            &charge("inv-1", "tok_authenticationRequired"),
        )
        .await;
    assert_eq!(absent.text("/error/code"), "authentication_required");
    let odd = charge("a%22b%5C", VISA);
    let paid = caller.post(CHARGES, None, &odd).await;
    assert_eq!(
        search(&caller, "t.1.a\\\"b\\\\").await[0].0,
        paid.text("/id")
    );
}
