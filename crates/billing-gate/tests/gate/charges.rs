//! What a charge that is not disturbed, or plainly refused, comes to.

use std::time::Duration;

use billing_core::InvoiceStatus;
use billing_gate::{GateConfig, GateError, Outcome, Payers, Profile, SHIPPED, SecretKey};
use billing_sandbox::{Faults, Settings};

use crate::world::World;

#[tokio::test]
async fn a_due_invoice_is_charged_once_and_its_reference_is_the_object() {
    let world = World::new().await;
    world.submit("inv-1");
    let outcome = world.run(&world.gate("pm_card_visa"), "inv-1").await;
    assert!(
        matches!(
            outcome,
            Outcome::Charged {
                status: InvoiceStatus::Paid,
                ..
            }
        ),
        "{outcome:?}"
    );
    assert_eq!(
        (world.status("inv-1"), world.charged("inv-1")),
        (InvoiceStatus::Paid, 1)
    );
    assert!(
        world
            .reference("inv-1")
            .is_some_and(|reference| reference.starts_with("pi_"))
    );
    assert!(world.try_lease("inv-1").is_none(), "nothing is left to do");
}

#[tokio::test]
async fn a_soft_decline_is_tried_again_on_the_same_object() {
    let world = World::new().await;
    world.submit("inv-1");
    let no = world
        .run(
            &world.gate("pm_card_visa_chargeDeclinedInsufficientFunds"),
            "inv-1",
        )
        .await;
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
    // Another card by now: other parameters are another fingerprint, which a new attempt may have.
    let yes = world.run(&world.gate("pm_card_visa"), "inv-1").await;
    assert!(
        matches!(
            yes,
            Outcome::Charged {
                status: InvoiceStatus::Paid,
                ..
            }
        ),
        "{yes:?}"
    );
    assert_eq!((world.attempts("inv-1"), world.charged("inv-1")), (2, 1));
    assert_eq!(
        world.totals()["payment_intents"],
        1,
        "the object belongs to the invoice"
    );
}

#[tokio::test]
async fn a_hard_decline_fails_the_invoice() {
    let world = World::new().await;
    world.submit("inv-1");
    let no = world
        .run(
            &world.gate("pm_card_visa_chargeDeclinedStolenCard"),
            "inv-1",
        )
        .await;
    assert!(
        matches!(
            no,
            Outcome::Declined {
                status: InvoiceStatus::Failed,
                ..
            }
        ),
        "{no:?}"
    );
    assert_eq!(world.charged("inv-1"), 0);
}

#[tokio::test]
async fn a_card_that_needs_its_customer_is_declined_off_session() {
    let world = World::new().await;
    world.submit("inv-1");
    let no = world
        .run(&world.gate("pm_card_authenticationRequired"), "inv-1")
        .await;
    assert!(
        matches!(
            no,
            Outcome::Declined {
                status: InvoiceStatus::Failed,
                ..
            }
        ),
        "{no:?}"
    );
}

#[tokio::test]
async fn a_bank_debit_waits_and_its_later_end_is_looked_up() {
    for (method, status, charged) in [
        ("pm_usBankAccount", InvoiceStatus::Paid, 1),
        (
            "pm_usBankAccount_insufficientFunds",
            InvoiceStatus::Pending,
            0,
        ),
    ] {
        let settings = Settings {
            processing: Duration::from_secs(600),
            ..Settings::default()
        };
        let world = World::with(Faults::default(), settings).await;
        world.submit("inv-1");
        let gate = world.gate(method);
        let pending = world.run(&gate, "inv-1").await;
        assert!(
            matches!(
                pending,
                Outcome::Pending {
                    status: InvoiceStatus::Waiting
                }
            ),
            "{pending:?}"
        );
        let still = world.run(&gate, "inv-1").await;
        assert!(
            matches!(still, Outcome::Pending { .. }),
            "asked too early: {still:?}"
        );
        world.clock.advance(Duration::from_secs(601));
        let ended = world.run(&gate, "inv-1").await;
        assert_eq!(
            (world.status("inv-1"), world.charged("inv-1")),
            (status, charged),
            "{method}: {ended:?}"
        );
    }
}

#[tokio::test]
async fn what_cannot_be_charged_fails_without_a_send() {
    let world = World::new().await;
    world.submit("inv-1");
    let gate = world.gate_with("", |config| {
        config.payers = Payers::Listed(Default::default())
    });
    let no = world.run(&gate, "inv-1").await;
    assert!(
        matches!(
            no,
            Outcome::Declined {
                status: InvoiceStatus::Failed,
                ..
            }
        ),
        "{no:?}"
    );
    assert_eq!(world.totals()["payment_intents"], 0);
}

#[tokio::test]
async fn a_gate_for_people_and_a_live_key_in_plain_text_are_refused() {
    let config = |provider: &str, key: &str| GateConfig {
        provider: provider.to_owned(),
        profile: Profile::named(provider, SHIPPED).expect("shipped"),
        address: "127.0.0.1:1".to_owned(),
        account: "default".to_owned(),
        key: SecretKey::new(key).expect("a key"),
        payers: Payers::Listed(Default::default()),
    };
    let make = |config| billing_gate::Gate::new(billing_env::Env::real(), config).map(|_| ());
    assert!(matches!(
        make(config("manual", "sk_test_x")),
        Err(GateError::NoProvider(_))
    ));
    assert!(matches!(
        make(config("stripe", "sk_live_x")),
        Err(GateError::LiveKeyInPlain(_))
    ));
    assert!(!format!("{:?}", config("stripe", "sk_test_hidden")).contains("hidden"));
}

#[tokio::test]
async fn a_provider_that_is_not_there_leaves_the_invoice_in_doubt_and_nothing_charged() {
    let world = World::new().await;
    world.submit("inv-1");
    let nowhere = world.gate_with("pm_card_visa", |config| {
        config.address = "127.0.0.1:1".to_owned()
    });
    let doubt = world.run(&nowhere, "inv-1").await;
    assert!(
        matches!(doubt, Outcome::InDoubt { told: true, .. }),
        "{doubt:?}"
    );
    assert_eq!(world.status("inv-1"), InvoiceStatus::InDoubt);
    world.run(&world.gate("pm_card_visa"), "inv-1").await;
    assert_eq!(
        (
            world.status("inv-1"),
            world.charged("inv-1"),
            world.attempts("inv-1")
        ),
        (InvoiceStatus::Paid, 1, 1)
    );
}
