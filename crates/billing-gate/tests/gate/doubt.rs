//! What is lost, late, doubled or forgotten between begin and settle: at most one charge, and in the end the truth.

use std::sync::atomic::Ordering;
use std::time::Duration;

use billing_core::InvoiceStatus;
use billing_gate::Outcome;
use billing_sandbox::Faults;
use tokio::sync::oneshot;

use crate::world::{QUIET, World};

const VISA: &str = "pm_card_visa";

fn assert_paid_once(world: &World, invoice: &str) {
    assert_eq!(
        (world.status(invoice), world.charged(invoice)),
        (InvoiceStatus::Paid, 1),
        "{invoice}"
    );
    assert_eq!(world.alarms(), 0);
}

#[tokio::test]
async fn a_lost_reply_to_the_confirmation_is_looked_up() {
    // The first POST creates, the second confirms.
    let world = World::faulty(Faults {
        lose_reply_every: 2,
        ..Faults::default()
    })
    .await;
    world.submit("inv-1");
    let outcome = world.run(&world.gate(VISA), "inv-1").await;
    assert!(matches!(outcome, Outcome::Charged { .. }), "{outcome:?}");
    assert_paid_once(&world, "inv-1");
}

#[tokio::test]
async fn a_lost_reply_to_the_creation_is_asked_for_again_under_its_key() {
    let world = World::faulty(Faults {
        lose_reply_every: 1,
        ..Faults::default()
    })
    .await;
    world.submit("inv-1");
    let doubt = world.run(&world.gate(VISA), "inv-1").await;
    assert!(
        matches!(doubt, Outcome::InDoubt { .. }),
        "every reply was lost: {doubt:?}"
    );
    assert_eq!(world.totals()["payment_intents"], 1, "three sends, one key");
    world.faults(Faults::default());
    world.run(&world.gate(VISA), "inv-1").await;
    assert_paid_once(&world, "inv-1");
    assert_eq!(
        (
            world.totals()["payment_intents"].as_u64(),
            world.attempts("inv-1")
        ),
        (Some(1), 1)
    );
}

#[tokio::test]
async fn garbled_answers_are_no_answers() {
    let world = World::faulty(Faults {
        garble_share: 1.0,
        ..Faults::default()
    })
    .await;
    world.submit("inv-1");
    let doubt = world.run(&world.gate(VISA), "inv-1").await;
    assert!(matches!(doubt, Outcome::InDoubt { .. }), "{doubt:?}");
    world.faults(Faults::default());
    let witness = world.sandbox.witness();
    world.places.once("before_send", move || {
        witness.set_faults(Faults {
            garble_share: 1.0,
            ..Faults::default()
        })
    });
    let outcome = world.run(&world.gate(VISA), "inv-1").await;
    assert!(
        matches!(outcome, Outcome::Charged { .. }),
        "the look-up can be read: {outcome:?}"
    );
    assert_paid_once(&world, "inv-1");
}

#[tokio::test]
async fn a_500_that_hides_a_charge_is_looked_up() {
    let world = World::new().await;
    world.submit("inv-1");
    let witness = world.sandbox.witness();
    world.places.once("before_send", move || {
        witness.set_faults(Faults {
            error_after_share: 1.0,
            ..Faults::default()
        })
    });
    let outcome = world.run(&world.gate(VISA), "inv-1").await;
    assert!(matches!(outcome, Outcome::Charged { .. }), "{outcome:?}");
    assert_paid_once(&world, "inv-1");
}

#[tokio::test]
async fn a_stored_500_with_nothing_done_ends_by_a_look_up_in_time_and_the_next_key_charges() {
    let world = World::new().await;
    world.submit("inv-1");
    let witness = world.sandbox.witness();
    world.places.once("before_send", move || {
        witness.set_faults(Faults {
            error_before_share: 1.0,
            ..Faults::default()
        })
    });
    let gate = world.gate(VISA);
    let doubt = world.run(&gate, "inv-1").await;
    assert!(matches!(doubt, Outcome::InDoubt { .. }), "{doubt:?}");
    world.faults(Faults::default());
    // The key answers 500 for as long as it is kept.
    let doubt = world.run(&gate, "inv-1").await;
    assert!(matches!(doubt, Outcome::InDoubt { .. }), "{doubt:?}");
    world.clock.advance(QUIET);
    let nothing = world.run(&gate, "inv-1").await;
    assert!(
        matches!(
            nothing,
            Outcome::NothingFound {
                status: InvoiceStatus::Pending
            }
        ),
        "{nothing:?}"
    );
    world.run(&gate, "inv-1").await;
    assert_paid_once(&world, "inv-1");
    assert_eq!(
        (
            world.attempts("inv-1"),
            world.totals()["payment_intents"].as_u64()
        ),
        (2, Some(1))
    );
}

#[tokio::test]
async fn a_look_up_too_early_proves_nothing() {
    let world = World::new().await;
    world.submit("inv-1");
    let clock = world.clock.clone();
    // The window closes before the send; not_after + in_flight_max has not passed.
    world.places.once("before_send", move || {
        clock.advance(Duration::from_secs(31 * 60))
    });
    let gate = world.gate(VISA);
    let held = world.lease("inv-1");
    let outcome = world.charge(&gate, &held).await;
    assert_eq!(
        world.charged("inv-1"),
        0,
        "nothing is sent after the window: {outcome:?}"
    );
    assert_eq!(
        (world.status("inv-1"), world.attempts("inv-1")),
        (InvoiceStatus::InDoubt, 1)
    );
    world.clock.advance(QUIET);
    assert!(matches!(
        world.run(&gate, "inv-1").await,
        Outcome::NothingFound {
            status: InvoiceStatus::Pending
        }
    ));
    world.run(&gate, "inv-1").await;
    assert_paid_once(&world, "inv-1");
}

#[tokio::test]
async fn nothing_is_sent_under_a_lost_lease() {
    for place in ["before_begin", "before_send"] {
        let world = World::new().await;
        world.submit("inv-1");
        let held = world.lease("inv-1");
        let stands = held.switch();
        world
            .places
            .once(place, move || stands.store(false, Ordering::SeqCst));
        let outcome = world.charge(&world.gate(VISA), &held).await;
        assert!(
            matches!(outcome, Outcome::LeaseLost),
            "{place}: {outcome:?}"
        );
        assert_eq!(world.totals()["charges"], 0, "{place}");
        world.release(&held);
        world.run(&world.gate(VISA), "inv-1").await;
        assert_paid_once(&world, "inv-1");
    }
}

/// A worker that slept through the end of its session wakes up just before BeginCharge: what it holds was charged meanwhile.
#[tokio::test]
async fn what_somebody_else_charged_meanwhile_is_a_lost_lease_and_no_refusal() {
    let world = World::new().await;
    world.submit("inv-1");
    let slept = world.lease("inv-1");
    world.release(&slept);
    world.run(&world.gate(VISA), "inv-1").await;
    let outcome = world.charge(&world.gate(VISA), &slept).await;
    assert!(matches!(outcome, Outcome::LeaseLost), "{outcome:?}");
    assert_paid_once(&world, "inv-1");
}

#[tokio::test]
async fn a_send_that_comes_an_hour_late_changes_nothing() {
    for forget in [false, true] {
        let world = World::new().await;
        world.submit("inv-1");
        let (slow, fast) = (world.gate(VISA), world.gate(VISA));
        let first = world.lease("inv-1");
        let (wake, asleep) = oneshot::channel::<()>();
        let (stalled, reached) = oneshot::channel::<()>();
        // Between the check and the send: no check can close this gap.
        world.places.once_async("checked", move || {
            Box::pin(async move {
                stalled.send(()).expect("awaited");
                asleep.await.expect("woken");
            })
        });
        let late = async { world.charge(&slow, &first).await };
        let meanwhile = async {
            reached.await.expect("it stalls");
            world.release(&first);
            let outcome = world.run(&fast, "inv-1").await;
            assert!(matches!(outcome, Outcome::Charged { .. }), "{outcome:?}");
            if forget {
                assert!(world.sandbox.witness().forget_keys() > 0);
            }
            wake.send(()).expect("it still sleeps");
        };
        let (late, ()) = tokio::join!(late, meanwhile);
        assert!(
            matches!(late, Outcome::Charged { .. }),
            "the fact is told twice, and is one: {late:?}"
        );
        assert_paid_once(&world, "inv-1");
    }
}

#[tokio::test]
async fn a_holder_that_died_before_sending_is_continued_under_its_key_on_its_object() {
    let world = World::new().await;
    world.submit("inv-1");
    let first = world.lease("inv-1");
    world
        .places
        .once_async("before_send", || Box::pin(std::future::pending()));
    let dies = tokio::time::timeout(
        Duration::from_millis(300),
        world.charge(&world.gate(VISA), &first),
    )
    .await;
    assert!(dies.is_err(), "it never comes back");
    world.release(&first);
    assert_eq!(world.status("inv-1"), InvoiceStatus::InDoubt);
    world.run(&world.gate(VISA), "inv-1").await;
    assert_paid_once(&world, "inv-1");
    assert_eq!(
        (
            world.attempts("inv-1"),
            world.totals()["payment_intents"].as_u64()
        ),
        (1, Some(1))
    );
}

#[tokio::test]
async fn a_holder_that_died_after_sending_is_found_out_by_a_look_up() {
    let world = World::new().await;
    world.submit("inv-1");
    let first = world.lease("inv-1");
    world
        .places
        .once_async("after_send", || Box::pin(std::future::pending()));
    let dies = tokio::time::timeout(
        Duration::from_millis(300),
        world.charge(&world.gate(VISA), &first),
    )
    .await;
    assert!(dies.is_err(), "it never comes back");
    assert_eq!(world.charged("inv-1"), 1);
    world.release(&first);
    world.sandbox.witness().forget_keys();
    world.run(&world.gate(VISA), "inv-1").await;
    assert_paid_once(&world, "inv-1");
}

#[tokio::test]
async fn a_confirmation_still_at_work_is_in_use_and_then_found() {
    let world = World::new().await;
    world.submit("inv-1");
    let first = world.lease("inv-1");
    let witness = world.sandbox.witness();
    world.places.once("before_send", move || {
        witness.set_faults(Faults {
            delay_ms: 400..=400,
            ..Faults::default()
        })
    });
    // The connection breaks while the provider is at work.
    let cut = tokio::time::timeout(
        Duration::from_millis(150),
        world.charge(&world.gate(VISA), &first),
    )
    .await;
    assert!(cut.is_err());
    world.release(&first);
    world.faults(Faults::default());
    let gate = world.gate(VISA);
    for _ in 0..5 {
        if world.status("inv-1") == InvoiceStatus::Paid {
            break;
        }
        world.run(&gate, "inv-1").await;
    }
    assert_paid_once(&world, "inv-1");
}

#[tokio::test]
async fn two_gates_with_one_token_and_two_objects_confirm_one() {
    // Keys mean nothing here, so each creation makes an object of its own.
    let world = World::faulty(Faults {
        ignore_keys: true,
        ..Faults::default()
    })
    .await;
    world.submit("inv-1");
    let held = world.lease("inv-1");
    let (first, second) = (world.gate(VISA), world.gate(VISA));
    let (wake, asleep) = oneshot::channel::<()>();
    let (stalled, reached) = oneshot::channel::<()>();
    world.places.once_async("after_begin", move || {
        Box::pin(async move {
            stalled.send(()).expect("awaited");
            asleep.await.expect("woken");
        })
    });
    let late = world.charge(&first, &held);
    let meanwhile = async {
        reached.await.expect("it stalls");
        world.places.once_async("before_send", move || {
            wake.send(()).expect("it still sleeps");
            Box::pin(tokio::time::sleep(Duration::from_millis(200)))
        });
        world.charge(&second, &held).await
    };
    let (late, other) = tokio::join!(late, meanwhile);
    assert!(matches!(late, Outcome::Charged { .. }), "{late:?}");
    assert!(matches!(other, Outcome::Charged { .. }), "{other:?}");
    assert_paid_once(&world, "inv-1");
    assert_eq!(
        world.totals()["payment_intents"],
        2,
        "one of them was withdrawn"
    );
}

#[tokio::test]
async fn keys_forgotten_between_two_creations_leave_one_confirmed_object() {
    let world = World::new().await;
    world.submit("inv-1");
    world.faults(Faults {
        lose_reply_every: 1,
        ..Faults::default()
    });
    world.run(&world.gate(VISA), "inv-1").await;
    world.sandbox.witness().forget_keys();
    world.faults(Faults::default());
    world.run(&world.gate(VISA), "inv-1").await;
    assert_paid_once(&world, "inv-1");
    assert_eq!(world.totals()["payment_intents"], 2);
}

#[tokio::test]
async fn declines_that_are_not_sticky_end_by_their_object() {
    let world = World::faulty(Faults {
        forget_declines: true,
        decline_share: 1.0,
        ..Faults::default()
    })
    .await;
    world.submit("inv-1");
    let loose = |config: &mut billing_gate::GateConfig| config.profile.sticky_declines = false;
    let no = world.run(&world.gate_with(VISA, loose), "inv-1").await;
    assert!(
        matches!(
            no,
            Outcome::Declined {
                status: InvoiceStatus::Pending,
                ..
            }
        ),
        "{no:?}"
    );
    world.faults(Faults {
        forget_declines: true,
        ..Faults::default()
    });
    world.run(&world.gate_with(VISA, loose), "inv-1").await;
    assert_paid_once(&world, "inv-1");
}

#[tokio::test]
async fn lost_answers_of_the_ledger_are_asked_for_again() {
    for lost in 1..=3 {
        for place in ["before_begin", "after_begin", "before_settle"] {
            let world = std::sync::Arc::new(World::new().await);
            world.submit("inv-1");
            let theirs = world.clone();
            world.places.once(place, move || {
                theirs.desk.lost_answers.store(lost, Ordering::SeqCst)
            });
            world.run(&world.gate(VISA), "inv-1").await;
            world.desk.lost_answers.store(0, Ordering::SeqCst);
            if world.status("inv-1") != InvoiceStatus::Paid {
                world.run(&world.gate(VISA), "inv-1").await;
            }
            assert_paid_once(&world, "inv-1");
        }
    }
}

#[tokio::test]
async fn an_attempt_with_other_parameters_is_looked_up_and_never_sent_with_ours() {
    let world = World::new().await;
    world.submit("inv-1");
    let first = world.lease("inv-1");
    world
        .places
        .once_async("before_send", || Box::pin(std::future::pending()));
    let dies = tokio::time::timeout(
        Duration::from_millis(300),
        world.charge(&world.gate(VISA), &first),
    )
    .await;
    assert!(dies.is_err());
    world.release(&first);
    let other = world.gate("pm_card_mastercard");
    let nothing = world.run(&other, "inv-1").await;
    assert!(
        matches!(
            nothing,
            Outcome::NothingFound {
                status: InvoiceStatus::InDoubt
            }
        ),
        "{nothing:?}"
    );
    assert_eq!(world.charged("inv-1"), 0);
    world.clock.advance(QUIET);
    assert!(matches!(
        world.run(&other, "inv-1").await,
        Outcome::NothingFound {
            status: InvoiceStatus::Pending
        }
    ));
    world.run(&other, "inv-1").await;
    assert_paid_once(&world, "inv-1");
    let elsewhere = world.gate_with(VISA, |config| config.account = "another".to_owned());
    world.submit("inv-2");
    let held = world.lease("inv-2");
    world
        .places
        .once_async("before_send", || Box::pin(std::future::pending()));
    let dies = tokio::time::timeout(
        Duration::from_millis(300),
        world.charge(&world.gate(VISA), &held),
    )
    .await;
    assert!(dies.is_err());
    world.release(&held);
    let refused = world.run(&elsewhere, "inv-2").await;
    assert!(matches!(refused, Outcome::Refused(_)), "{refused:?}");
}
