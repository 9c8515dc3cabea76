//! Idempotency keys as Stripe documents them, and every fault: the books decide.

use std::time::Duration;

use crate::support::{Caller, VISA};
use billing_sandbox::{Faults, Settings};

const CREATE: &str = "/v1/payment_intents";

fn charge(invoice: &str) -> String {
    format!("amount=1500&currency=usd&{VISA}&confirm=true&metadata[invoice_id]={invoice}")
}

#[tokio::test]
async fn the_first_result_is_replayed_yes_or_no() {
    let caller = Caller::of(Settings::default()).await;
    let first = caller.post(CREATE, Some("k1"), &charge("inv-1")).await;
    let again = caller.post(CREATE, Some("k1"), &charge("inv-1")).await;
    assert!(!first.replayed && again.replayed);
    assert_eq!(first.body, again.body);
    assert_eq!(caller.booked("inv-1").await, ["succeeded"]);

    let intent = caller.intent("inv-2").await;
    let no = caller
        .confirm(&intent, Some("k2"), "payment_method=pm_card_chargeDeclined")
        .await;
    let still_no = caller
        .confirm(&intent, Some("k2"), "payment_method=pm_card_chargeDeclined")
        .await;
    assert_eq!(
        (
            no.status.as_u16(),
            still_no.status.as_u16(),
            still_no.replayed
        ),
        (402, 402, true)
    );
    assert_eq!(
        caller.booked("inv-2").await,
        ["failed"],
        "a decline is sticky under its key"
    );
}

#[tokio::test]
async fn a_key_with_other_parameters_or_another_path_is_refused_and_nothing_happens() {
    let caller = Caller::of(Settings::default()).await;
    caller.post(CREATE, Some("k"), &charge("inv-1")).await;
    let other = caller.post(CREATE, Some("k"), &charge("inv-2")).await;
    assert_eq!(
        (other.status.as_u16(), other.text("/error/type")),
        (400, "idempotency_error")
    );
    let elsewhere = caller
        .post("/v1/customers", Some("k"), &charge("inv-1"))
        .await;
    assert_eq!(
        (elsewhere.status.as_u16(), elsewhere.text("/error/type")),
        (400, "idempotency_error")
    );
    assert!(caller.booked("inv-2").await.is_empty());
    let too_long = "k".repeat(256);
    assert_eq!(
        caller
            .post(CREATE, Some(&too_long), &charge("inv-3"))
            .await
            .status,
        400
    );
}

#[tokio::test]
async fn keys_belong_to_an_account() {
    let mut caller = Caller::of(Settings::default()).await;
    caller.post(CREATE, Some("k"), &charge("inv-1")).await;
    caller.auth = Some("Bearer sk_test_other".to_owned());
    assert!(
        !caller
            .post(CREATE, Some("k"), &charge("inv-1"))
            .await
            .replayed
    );
}

#[tokio::test]
async fn what_fails_validation_is_not_remembered() {
    let caller = Caller::of(Settings::default()).await;
    assert_eq!(
        caller
            .post(CREATE, Some("k"), "amount=no&currency=usd")
            .await
            .status,
        400
    );
    let mended = caller.post(CREATE, Some("k"), &charge("inv-1")).await;
    assert_eq!((mended.status.as_u16(), mended.replayed), (200, false));
}

#[tokio::test]
async fn fifty_concurrent_requests_under_one_key_make_one_charge() {
    let caller = Caller::with_faults(Faults {
        delay_ms: 30..=60,
        ..Faults::default()
    })
    .await;
    let body = charge("inv-1");
    let heard = futures_of(50, || caller.post(CREATE, Some("k"), &body)).await;
    let done: Vec<_> = heard.iter().filter(|heard| heard.status == 200).collect();
    assert!(!done.is_empty());
    assert!(
        done.iter()
            .all(|heard| heard.text("/id") == done[0].text("/id"))
    );
    assert_eq!(
        heard
            .iter()
            .filter(|heard| heard.status == 200 && !heard.replayed)
            .count(),
        1
    );
    for refused in heard.iter().filter(|heard| heard.status != 200) {
        assert_eq!(
            (refused.status.as_u16(), refused.text("/error/code")),
            (409, "idempotency_key_in_use")
        );
    }
    assert_eq!(caller.booked("inv-1").await, ["succeeded"]);
}

#[tokio::test]
async fn without_keys_the_same_run_charges_fifty_times() {
    let caller = Caller::with_faults(Faults {
        ignore_keys: true,
        ..Faults::default()
    })
    .await;
    let body = charge("inv-1");
    futures_of(50, || caller.post(CREATE, Some("k"), &body)).await;
    assert_eq!(caller.booked("inv-1").await.len(), 50);
    assert_eq!(
        caller.get("/_config/books").await.body["totals"]["charged_twice"],
        1,
        "one invoice"
    );
}

#[tokio::test]
async fn an_intent_is_paid_once_whatever_the_keys() {
    let caller = Caller::with_faults(Faults {
        ignore_keys: true,
        delay_ms: 0..=20,
        ..Faults::default()
    })
    .await;
    let intent = caller.intent("inv-1").await;
    let heard = futures_of(50, || caller.confirm(&intent, None, VISA)).await;
    assert_eq!(heard.iter().filter(|heard| heard.status == 200).count(), 1);
    assert_eq!(caller.booked("inv-1").await, ["succeeded"]);
}

#[tokio::test]
async fn a_lost_reply_leaves_one_charge_and_the_key_tells_of_it() {
    let caller = Caller::with_faults(Faults {
        lose_reply_every: 2,
        ..Faults::default()
    })
    .await;
    assert!(
        caller
            .send("POST", "/v1/customers", None, "")
            .await
            .is_some(),
        "first POST"
    );
    assert!(
        caller
            .send("POST", CREATE, Some("k"), &charge("inv-1"))
            .await
            .is_none(),
        "second POST"
    );
    assert_eq!(caller.booked("inv-1").await, ["succeeded"]);
    let told = caller.post(CREATE, Some("k"), &charge("inv-1")).await;
    assert_eq!((told.status.as_u16(), told.replayed), (200, true));
    assert_eq!(caller.booked("inv-1").await, ["succeeded"]);
}

#[tokio::test]
async fn work_goes_on_when_its_caller_hangs_up() {
    let caller = Caller::with_faults(Faults {
        delay_ms: 150..=150,
        ..Faults::default()
    })
    .await;
    let body = charge("inv-1");
    let hung_up = tokio::time::timeout(
        Duration::from_millis(50),
        caller.send("POST", CREATE, Some("k"), &body),
    );
    assert!(hung_up.await.is_err());
    caller.await_booked("inv-1", &["succeeded"]).await;
}

#[tokio::test]
async fn a_500_is_remembered_with_the_work_done_or_not() {
    for (faults, booked) in [
        (
            Faults {
                error_before_share: 1.0,
                ..Faults::default()
            },
            Vec::<&str>::new(),
        ),
        (
            Faults {
                error_after_share: 1.0,
                ..Faults::default()
            },
            vec!["succeeded"],
        ),
    ] {
        let caller = Caller::with_faults(faults).await;
        let first = caller.post(CREATE, Some("k"), &charge("inv-1")).await;
        assert_eq!(
            (first.status.as_u16(), first.text("/error/type")),
            (500, "api_error")
        );
        caller.sandbox.witness().set_faults(Faults::default());
        let again = caller.post(CREATE, Some("k"), &charge("inv-1")).await;
        assert_eq!((again.status.as_u16(), again.replayed), (500, true));
        assert_eq!(caller.booked("inv-1").await, booked);
    }
}

#[tokio::test]
async fn forgotten_keys_charge_again() {
    let caller = Caller::of(Settings {
        key_retention: Duration::from_millis(200),
        ..Settings::default()
    })
    .await;
    caller.post(CREATE, Some("k"), &charge("inv-1")).await;
    assert!(
        caller
            .post(CREATE, Some("k"), &charge("inv-1"))
            .await
            .replayed
    );
    tokio::time::sleep(Duration::from_millis(250)).await; // The retention itself is what is awaited.
    assert!(
        !caller
            .post(CREATE, Some("k"), &charge("inv-1"))
            .await
            .replayed
    );
    let forgotten = caller.post("/_config/forget_keys", None, "").await;
    assert_eq!(forgotten.body["forgotten"], 1);
    assert!(
        !caller
            .post(CREATE, Some("k"), &charge("inv-1"))
            .await
            .replayed
    );
    assert_eq!(caller.booked("inv-1").await.len(), 3);
}

#[tokio::test]
async fn declines_are_not_sticky_when_told_so() {
    let caller = Caller::with_faults(Faults {
        forget_declines: true,
        decline_share: 1.0,
        ..Faults::default()
    })
    .await;
    assert_eq!(
        caller
            .post(CREATE, Some("k"), &charge("inv-1"))
            .await
            .status,
        402
    );
    let changed = caller
        .post("/_config/faults", None, "decline_share=0")
        .await;
    assert_eq!(
        changed.body["forget_declines"], true,
        "what is not named stays"
    );
    assert_eq!(
        caller
            .post(CREATE, Some("k"), &charge("inv-1"))
            .await
            .status,
        200
    );
    assert_eq!(
        caller
            .post("/_config/faults", None, "decline_share=2")
            .await
            .status,
        400
    );
    assert_eq!(
        caller
            .post("/_config/faults", None, "delay=2")
            .await
            .text("/error/param"),
        "delay"
    );
}

#[tokio::test]
async fn a_garbled_body_hides_work_that_was_done() {
    let caller = Caller::with_faults(Faults {
        garble_share: 1.0,
        ..Faults::default()
    })
    .await;
    let heard = caller.post(CREATE, Some("k"), &charge("inv-1")).await;
    assert!(heard.body.is_null(), "not JSON");
    assert_eq!(caller.booked("inv-1").await, ["succeeded"]);
}

#[tokio::test]
async fn the_same_seed_draws_the_same_misfortunes() {
    let mut runs = Vec::new();
    for _ in 0..2 {
        let faults = Faults {
            error_before_share: 0.3,
            decline_share: 0.3,
            ..Faults::default()
        };
        let caller = Caller::of(Settings {
            faults,
            seed: 3053,
            ..Settings::default()
        })
        .await;
        let mut statuses = Vec::new();
        for number in 0..40 {
            statuses.push(
                caller
                    .post(CREATE, None, &charge(&format!("inv-{number}")))
                    .await
                    .status
                    .as_u16(),
            );
        }
        runs.push(statuses);
    }
    assert_eq!(runs[0], runs[1]);
    assert!(
        [200, 402, 500]
            .iter()
            .all(|status| runs[0].contains(status)),
        "{:?}",
        runs[0]
    );
}

/// Runs `count` of them at once and returns what each heard.
async fn futures_of<F: Future>(count: usize, make: impl Fn() -> F) -> Vec<F::Output> {
    futures::future::join_all((0..count).map(|_| make())).await
}
