//! What the sandbox promises to whoever knows Stripe's API: PaymentIntents, cards, lists, refusals.

use std::time::Duration;

use crate::support::{Caller, VISA};
use billing_sandbox::Settings;

async fn caller() -> Caller {
    Caller::of(Settings::default()).await
}

#[tokio::test]
async fn a_customers_card_is_charged_once_and_the_charge_carries_the_metadata() {
    let caller = caller().await;
    let customer = caller
        .post("/v1/customers", None, "name=Ana&metadata[ours]=cust-1")
        .await;
    let card = caller
        .post("/v1/payment_methods", None, "type=card&card[number]=4242424242424242&card[exp_month]=4&card[exp_year]=2040&card[cvc]=314")
        .await;
    let (customer, card) = (customer.text("/id").to_owned(), card.text("/id").to_owned());
    let attached = caller
        .post(
            &format!("/v1/payment_methods/{card}/attach"),
            None,
            &format!("customer={customer}"),
        )
        .await;
    assert_eq!(attached.text("/customer"), customer);
    assert_eq!(
        caller
            .get(&format!("/v1/customers/{customer}"))
            .await
            .text("/metadata/ours"),
        "cust-1"
    );

    let body = format!(
        "amount=1500&currency=USD&customer={customer}&payment_method={card}&confirm=true&off_session=true&metadata[invoice_id]=inv-1"
    );
    let paid = caller
        .post("/v1/payment_intents", Some("inv-1"), &body)
        .await;
    assert_eq!(
        (paid.status.as_u16(), paid.text("/status")),
        (200, "succeeded")
    );
    let charge = caller
        .get(&format!("/v1/charges/{}", paid.text("/latest_charge")))
        .await;
    assert_eq!(charge.text("/metadata/invoice_id"), "inv-1");
    assert_eq!(charge.text("/currency"), "usd");
    assert_eq!(charge.text("/payment_intent"), paid.text("/id"));
    assert_eq!(caller.booked("inv-1").await, ["succeeded"]);

    let again = caller.confirm(paid.text("/id"), None, VISA).await;
    assert_eq!(
        (again.status.as_u16(), again.text("/error/code")),
        (400, "payment_intent_unexpected_state")
    );
    assert_eq!(again.text("/error/payment_intent/status"), "succeeded");
    assert_eq!(caller.booked("inv-1").await, ["succeeded"]);
}

#[tokio::test]
async fn a_decline_names_its_reason_and_leaves_the_intent_confirmable() {
    let caller = caller().await;
    let intent = caller.intent("inv-2").await;
    let no = caller
        .confirm(
            &intent,
            None,
            "payment_method=pm_card_visa_chargeDeclinedInsufficientFunds",
        )
        .await;
    assert_eq!(no.status, 402);
    assert_eq!(no.text("/error/type"), "card_error");
    assert_eq!(no.text("/error/code"), "card_declined");
    assert_eq!(no.text("/error/decline_code"), "insufficient_funds");
    assert_eq!(
        no.text("/error/payment_intent/status"),
        "requires_payment_method"
    );
    assert!(no.text("/error/charge").starts_with("ch_"));
    let bare = caller.confirm(&intent, None, "").await;
    assert_eq!(
        bare.text("/error/code"),
        "payment_intent_unexpected_state",
        "the declined method is gone"
    );
    let yes = caller.confirm(&intent, None, VISA).await;
    assert_eq!(yes.text("/status"), "succeeded");
    assert_eq!(caller.booked("inv-2").await, ["failed", "succeeded"]);
}

#[tokio::test]
async fn a_card_may_decline_when_attached_or_only_when_charged() {
    let caller = caller().await;
    let customer = caller
        .post("/v1/customers", None, "")
        .await
        .text("/id")
        .to_owned();
    let attach = format!("customer={customer}");
    let at_once = caller
        .post(
            "/v1/payment_methods/pm_card_chargeDeclined/attach",
            None,
            &attach,
        )
        .await;
    assert_eq!(at_once.text("/error/code"), "card_declined");
    let later = caller
        .post(
            "/v1/payment_methods/pm_card_chargeCustomerFail/attach",
            None,
            &attach,
        )
        .await;
    assert_eq!(later.status, 200);
    let body = format!(
        "amount=900&currency=eur&customer={customer}&payment_method={}&confirm=true",
        later.text("/id")
    );
    let no = caller.post("/v1/payment_intents", None, &body).await;
    assert_eq!(no.text("/error/decline_code"), "generic_decline");
    let other = caller
        .post("/v1/customers", None, "")
        .await
        .text("/id")
        .to_owned();
    let stolen = body.replace(&customer, &other);
    assert_eq!(
        caller
            .post("/v1/payment_intents", None, &stolen)
            .await
            .status,
        400,
        "another customer's card"
    );
}

#[tokio::test]
async fn a_cancelled_intent_stays_cancelled_and_a_succeeded_one_cannot_be_cancelled() {
    let caller = caller().await;
    let intent = caller.intent("inv-3").await;
    let path = format!("/v1/payment_intents/{intent}/cancel");
    let cancelled = caller
        .post(&path, None, "cancellation_reason=abandoned")
        .await;
    assert_eq!(
        (
            cancelled.text("/status"),
            cancelled.text("/cancellation_reason")
        ),
        ("canceled", "abandoned")
    );
    assert_eq!(
        caller.post(&path, None, "").await.text("/error/code"),
        "payment_intent_unexpected_state"
    );
    assert_eq!(
        caller
            .confirm(&intent, None, VISA)
            .await
            .text("/error/code"),
        "payment_intent_unexpected_state"
    );
    let paid = caller.intent("inv-4").await;
    caller.confirm(&paid, None, VISA).await;
    let refused = caller
        .post(&format!("/v1/payment_intents/{paid}/cancel"), None, "")
        .await;
    assert_eq!(refused.text("/error/payment_intent/status"), "succeeded");
    assert!(caller.booked("inv-3").await.is_empty());
}

#[tokio::test]
async fn a_card_that_needs_its_customer_waits_on_session_and_declines_off_session() {
    let caller = caller().await;
    let intent = caller.intent("inv-5").await;
    let off = caller
        .confirm(
            &intent,
            None,
            "payment_method=pm_card_authenticationRequired&off_session=true",
        )
        .await;
    assert_eq!(
        (off.status.as_u16(), off.text("/error/code")),
        (402, "authentication_required")
    );
    let on = caller
        .confirm(
            &intent,
            None,
            "payment_method=pm_card_authenticationRequired",
        )
        .await;
    assert_eq!(on.text("/status"), "requires_action");
    assert_eq!(on.text("/next_action/type"), "use_stripe_sdk");
    let failed = caller
        .post(
            &format!("/_config/authenticate/{intent}"),
            None,
            "outcome=failure",
        )
        .await;
    assert_eq!(
        failed.text("/last_payment_error/code"),
        "payment_intent_authentication_failure"
    );
    caller
        .confirm(
            &intent,
            None,
            "payment_method=pm_card_authenticationRequired",
        )
        .await;
    let passed = caller
        .post(
            &format!("/_config/authenticate/{intent}"),
            None,
            "outcome=success",
        )
        .await;
    assert_eq!(passed.text("/status"), "succeeded");
    assert_eq!(caller.booked("inv-5").await, ["failed", "succeeded"]);
}

#[tokio::test]
async fn a_bank_debit_is_processing_first_and_then_succeeds_fails_or_stays() {
    let caller = Caller::of(Settings {
        processing: Duration::from_millis(150),
        ..Settings::default()
    })
    .await;
    for (invoice, method, ending) in [
        ("inv-6", "pm_usBankAccount", "succeeded"),
        ("inv-7", "pm_usBankAccount_insufficientFunds", "failed"),
        ("inv-8", "pm_usBankAccount_processing", "pending"),
    ] {
        let intent = caller.intent(invoice).await;
        let body = format!("payment_method={method}");
        assert_eq!(
            caller.confirm(&intent, None, &body).await.text("/status"),
            "processing"
        );
        assert_eq!(
            caller.confirm(&intent, None, VISA).await.status,
            400,
            "nothing else while it processes"
        );
        caller.await_booked(invoice, &[ending]).await;
    }
}

#[tokio::test]
async fn lists_go_newest_first_by_page_and_by_filter() {
    let caller = caller().await;
    let customer = caller
        .post("/v1/customers", None, "")
        .await
        .text("/id")
        .to_owned();
    let mut charges = Vec::new();
    for number in 0..25 {
        let whose = if number % 5 == 0 {
            format!("&customer={customer}")
        } else {
            String::new()
        };
        let body = format!(
            "amount={}&currency=usd&{VISA}&confirm=true&metadata[invoice_id]=inv-{number}{whose}",
            1000 + number
        );
        charges.push(
            caller
                .post("/v1/payment_intents", None, &body)
                .await
                .text("/latest_charge")
                .to_owned(),
        );
    }
    charges.reverse();
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let page = caller
            .get(&format!("/v1/charges?limit=10{after}"))
            .await
            .body;
        assert_eq!(page["total_count"], 25);
        let ids: Vec<String> = page["data"]
            .as_array()
            .expect("data")
            .iter()
            .map(|row| row["id"].as_str().unwrap_or("").to_owned())
            .collect();
        after = format!(
            "&starting_after={}",
            ids.last().expect("never an empty page here")
        );
        seen.extend(ids);
        if page["has_more"] == false {
            break;
        }
    }
    assert_eq!(seen, charges);
    let mine = caller
        .get(&format!("/v1/charges?customer={customer}&limit=3"))
        .await
        .body;
    assert_eq!(
        (mine["total_count"].as_u64(), mine["has_more"].as_bool()),
        (Some(5), Some(true))
    );
    assert_eq!(mine["data"][0]["metadata"]["invoice_id"], "inv-20");
    let intents = caller
        .get(&format!("/v1/payment_intents?customer={customer}"))
        .await
        .body;
    assert_eq!(intents["data"].as_array().map(Vec::len), Some(5));
    assert_eq!(
        caller
            .get("/v1/charges?starting_after=ch_nobody")
            .await
            .text("/error/code"),
        "resource_missing"
    );
    assert_eq!(
        caller
            .get("/v1/charges?limit=101")
            .await
            .text("/error/param"),
        "limit"
    );
}

#[tokio::test]
async fn search_finds_by_metadata_once_the_lag_has_passed() {
    let caller = Caller::of(Settings {
        search_lag: Duration::from_millis(300),
        ..Settings::default()
    })
    .await;
    let intent = caller.intent("inv-9").await;
    let query = "/v1/payment_intents/search?query=metadata%5B%27invoice_id%27%5D%3A%27inv-9%27";
    assert_eq!(
        caller.get(query).await.body["data"]
            .as_array()
            .map(Vec::len),
        Some(0),
        "not indexed yet"
    );
    assert_eq!(
        caller
            .get(&format!("/v1/payment_intents/{intent}"))
            .await
            .status,
        200,
        "retrieve has no lag"
    );
    let found = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            let heard = caller.get(query).await;
            if heard.text("/data/0/id") == intent {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(found.await.is_ok());
    let succeeded = format!("{query}%20AND%20status%3A%27succeeded%27");
    assert_eq!(
        caller.get(&succeeded).await.body["data"]
            .as_array()
            .map(Vec::len),
        Some(0)
    );
    assert_eq!(
        caller
            .get("/v1/payment_intents/search?query=amount%3E5")
            .await
            .status,
        400
    );
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_named() {
    let mut caller = caller().await;
    let create = "/v1/payment_intents";
    for (body, code, param) in [
        ("currency=usd", "parameter_missing", "amount"),
        (
            "amount=15.5&currency=usd",
            "parameter_invalid_integer",
            "amount",
        ),
        ("amount=0&currency=usd", "amount_too_small", "amount"),
        (
            "amount=100000000&currency=usd",
            "amount_too_large",
            "amount",
        ),
        (
            "amount=15&currency=dollars",
            "parameter_invalid",
            "currency",
        ),
        (
            "amount=15&currency=usd&amuont=16",
            "parameter_unknown",
            "amuont",
        ),
        (
            "amount=15&currency=usd&customer=cus_nobody",
            "resource_missing",
            "customer",
        ),
        (
            "amount=15&currency=usd&payment_method=pm_card_nobody",
            "resource_missing",
            "payment_method",
        ),
        (
            "amount=15&currency=usd&confirm=true",
            "parameter_missing",
            "payment_method",
        ),
        (
            "amount=15&currency=usd&capture_method=manual",
            "parameter_invalid",
            "capture_method",
        ),
    ] {
        let heard = caller.post(create, None, body).await;
        assert_eq!(heard.status, 400, "{body}");
        assert_eq!(
            (heard.text("/error/code"), heard.text("/error/param")),
            (code, param),
            "{body}"
        );
    }
    assert_eq!(
        caller.get("/v1/payment_intents/pi_nobody").await.status,
        404
    );
    assert_eq!(caller.get("/v1/refunds").await.status, 404);
    assert_eq!(
        caller.post(create, None, &"a".repeat(70_000)).await.status,
        413
    );
    assert_eq!(
        caller.get("/_config/books").await.body["totals"]["payment_intents"],
        0,
        "nothing was made"
    );
    for auth in [None, Some("Bearer sk_live_real"), Some("Basic ???")] {
        caller.auth = auth.map(str::to_owned);
        let heard = caller.post(create, None, "amount=15&currency=usd").await;
        assert_eq!(heard.status, 401, "{auth:?}");
        assert!(
            !heard.body.to_string().contains("sk_live_real"),
            "a key is never repeated"
        );
    }
    // `curl -u sk_test_sandbox:`
    caller.auth = Some("Basic c2tfdGVzdF9zYW5kYm94Og==".to_owned());
    assert_eq!(
        caller
            .post(create, None, "amount=15&currency=usd")
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn the_journal_holds_a_line_for_each_charge() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("books.jsonl");
    let caller = Caller::of(Settings {
        journal: Some(path.clone()),
        ..Settings::default()
    })
    .await;
    let intent = caller.intent("inv-10").await;
    caller
        .confirm(&intent, None, "payment_method=pm_card_chargeDeclined")
        .await;
    caller.confirm(&intent, None, VISA).await;
    let lines: Vec<serde_json::Value> = std::fs::read_to_string(&path)
        .expect("written")
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(
        (&lines[0]["status"], &lines[1]["status"]),
        (&"failed".into(), &"succeeded".into())
    );
    assert_eq!(lines[1]["invoice_id"], "inv-10");
}
