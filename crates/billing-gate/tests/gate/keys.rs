//! Providers without single-use objects: what the ledger's key alone can keep from happening twice, and what a provider that
//! keeps no keys leaves to people.

use std::sync::atomic::Ordering;
use std::time::Duration;

use billing_core::InvoiceStatus;
use billing_gate::{Gate, GateConfig, Outcome, Payers, Profile, SHIPPED};
use billing_sandbox::{Faults, Settings};
use tokio::sync::oneshot;

use crate::world::{QUIET, World};

const VISA: &str = "tok_visa";
const NO_FUNDS: &str = "tok_visa_chargeDeclinedInsufficientFunds";

/// What a provider without objects promises; the default is the best of them.
#[derive(Clone, Copy, Debug)]
pub struct Promises {
    pub keys: bool,
    pub sticky: bool,
    pub look_up: bool,
    pub look_up_lag_s: u64,
}

impl Default for Promises {
    fn default() -> Promises {
        Promises {
            keys: true,
            sticky: true,
            look_up: true,
            look_up_lag_s: 0,
        }
    }
}

const LOOSE: Promises = Promises {
    keys: true,
    sticky: false,
    look_up: true,
    look_up_lag_s: 0,
};
const BLIND: Promises = Promises {
    keys: true,
    sticky: true,
    look_up: false,
    look_up_lag_s: 0,
};
const NOTHING: Promises = Promises {
    keys: false,
    sticky: false,
    look_up: false,
    look_up_lag_s: 0,
};

impl Promises {
    /// How long keys are kept, where they are.
    pub fn retention(self) -> Duration {
        Duration::from_secs(2 * 3_600)
    }

    /// The profile, read from a table as an operator would write it.
    fn profile(self) -> Profile {
        let Promises {
            keys,
            sticky,
            look_up,
            look_up_lag_s,
        } = self;
        let retention_s = if keys { self.retention().as_secs() } else { 0 };
        let table = format!(
            r#"[tried]
api = "charges"
as_of = "2026-11-26"
sources = []
api_version = ""
key_retention = "{retention_s}s"
sticky_declines = {sticky}
stored_errors = {keys}
single_use_object = false
look_up = {look_up}
look_up_lag = "{look_up_lag_s}s"
in_flight_max = "10m"
valid_for = "30m"
cancel = false
request_timeout = "10s"
pending_every = "1h"
amount_max = 99999999
"#
        );
        Profile::named("tried", &table).expect("no contradiction")
    }

    pub fn gate(self, world: &World, method: &str) -> Gate {
        self.gate_with(world, method, |_| {})
    }

    fn gate_with(self, world: &World, method: &str, change: impl FnOnce(&mut GateConfig)) -> Gate {
        world.gate_with(method, |config| {
            config.provider = "tried".to_owned();
            config.profile = self.profile();
            change(config);
        })
    }
}

fn assert_paid_once(world: &World, invoice: &str) {
    assert_eq!(
        (world.status(invoice), world.charged(invoice)),
        (InvoiceStatus::Paid, 1),
        "{invoice}"
    );
    assert_eq!(world.alarms(), 0);
}

/// How often the provider carried a request out, for better or worse.
fn requests(world: &World) -> u64 {
    world.totals()["charges"].as_u64().expect("a number")
}

/// A holder takes the attempt to that place and is never heard of again.
async fn dies_at(world: &World, gate: &Gate, invoice: &str, place: &'static str) {
    let held = world.lease(invoice);
    world
        .places
        .once_async(place, || Box::pin(std::future::pending()));
    let dies = tokio::time::timeout(Duration::from_millis(300), world.charge(gate, &held)).await;
    assert!(dies.is_err(), "it never comes back from {place}");
    world.release(&held);
    assert_eq!(world.status(invoice), InvoiceStatus::InDoubt);
}

/// From the next request on: these faults.
fn before_the_send(world: &World, faults: Faults) {
    let witness = world.sandbox.witness();
    world
        .places
        .once("before_send", move || witness.set_faults(faults));
}

fn lossy() -> Faults {
    Faults {
        lose_reply_every: 1,
        ..Faults::default()
    }
}

#[tokio::test]
async fn a_due_invoice_is_charged_once_and_its_reference_is_the_charge() {
    let world = World::new().await;
    world.submit("inv-1");
    let gate = world.gate_with(VISA, |config| {
        config.provider = "stripe-charges".to_owned();
        config.profile = Profile::named("stripe-charges", SHIPPED).expect("shipped");
    });
    let outcome = world.run(&gate, "inv-1").await;
    assert!(matches!(outcome, Outcome::Charged { .. }), "{outcome:?}");
    assert_paid_once(&world, "inv-1");
    assert!(
        world
            .reference("inv-1")
            .is_some_and(|reference| reference.starts_with("ch_"))
    );
    assert_eq!(world.totals()["payment_intents"], 0);
}

#[tokio::test]
async fn whoever_takes_over_continues_the_same_key() {
    for promises in [Promises::default(), LOOSE, BLIND] {
        for place in ["after_begin", "before_send", "after_send", "before_settle"] {
            let world = World::new().await;
            world.submit("inv-1");
            dies_at(&world, &promises.gate(&world, VISA), "inv-1", place).await;
            let outcome = world.run(&promises.gate(&world, VISA), "inv-1").await;
            assert!(
                matches!(outcome, Outcome::Charged { .. }),
                "{place}, {promises:?}: {outcome:?}"
            );
            assert_paid_once(&world, "inv-1");
            assert_eq!((world.attempts("inv-1"), requests(&world)), (1, 1));
        }
    }
}

#[tokio::test]
async fn a_sticky_decline_is_final_whoever_hears_it() {
    for promises in [Promises::default(), BLIND] {
        for taken_over_at in [None, Some("before_send"), Some("after_send")] {
            let world = World::new().await;
            world.submit("inv-1");
            let poor = promises.gate(&world, NO_FUNDS);
            if let Some(place) = taken_over_at {
                dies_at(&world, &poor, "inv-1", place).await;
            }
            let no = world.run(&poor, "inv-1").await;
            assert!(
                matches!(
                    no,
                    Outcome::Declined {
                        status: InvoiceStatus::Pending,
                        ..
                    }
                ),
                "{taken_over_at:?}, {promises:?}: {no:?}"
            );
            assert_eq!(requests(&world), 1, "one no under one key");
            world.run(&promises.gate(&world, VISA), "inv-1").await;
            assert_paid_once(&world, "inv-1");
            assert_eq!(world.attempts("inv-1"), 2);
        }
    }
}

#[tokio::test]
async fn a_decline_that_is_not_kept_is_final_after_a_sole_send_only() {
    let forgetful = Faults {
        forget_declines: true,
        ..Faults::default()
    };
    for promises in [
        LOOSE,
        Promises {
            look_up: false,
            ..LOOSE
        },
    ] {
        let world = World::faulty(forgetful.clone()).await;
        world.submit("sole");
        let sole = world.run(&promises.gate(&world, NO_FUNDS), "sole").await;
        assert!(
            matches!(
                sole,
                Outcome::Declined {
                    status: InvoiceStatus::Pending,
                    ..
                }
            ),
            "{sole:?}"
        );
        world.run(&promises.gate(&world, VISA), "sole").await;
        assert_paid_once(&world, "sole");

        // Taken over, or sent twice by one gate: another send of the key may have succeeded, or still may.
        for invoice in ["taken", "twice"] {
            world.submit(invoice);
            let poor = promises.gate(&world, NO_FUNDS);
            if invoice == "taken" {
                dies_at(&world, &poor, invoice, "before_send").await;
            } else {
                let (witness, then) = (world.sandbox.witness(), forgetful.clone());
                before_the_send(
                    &world,
                    Faults {
                        lose_reply_every: 1,
                        ..forgetful.clone()
                    },
                );
                world
                    .places
                    .once("after_send", move || witness.set_faults(then));
            }
            let no = world.run(&poor, invoice).await;
            assert!(
                matches!(
                    no,
                    Outcome::Declined {
                        status: InvoiceStatus::InDoubt,
                        ..
                    }
                ),
                "{invoice}: {no:?}"
            );
            let sent = requests(&world);
            let gate = promises.gate(&world, VISA);
            if !promises.look_up {
                world.clock.advance(QUIET);
                assert_eq!(world.status(invoice), InvoiceStatus::Review);
                assert_eq!((requests(&world), world.charged(invoice)), (sent, 0));
                continue;
            }
            // Closing: looked up and never sent, until a look-up counts.
            for status in [InvoiceStatus::InDoubt, InvoiceStatus::Pending] {
                let nothing = world.run(&gate, invoice).await;
                assert!(
                    matches!(nothing, Outcome::NothingFound { status: now } if now == status),
                    "{invoice}: {nothing:?}, not {status}"
                );
                assert_eq!(requests(&world), sent, "{invoice}");
                world.clock.advance(QUIET);
            }
            world.run(&gate, invoice).await;
            assert_paid_once(&world, invoice);
        }
    }
}

/// The ledger may believe less than the profile says (after a restore), and a profile may be corrected while attempts are open.
#[tokio::test]
async fn a_decline_counts_as_kept_only_where_the_terms_and_the_profile_say_so() {
    let loose = Promises {
        sticky: false,
        ..Promises::default()
    };
    for (opens, takes_over) in [(Promises::default(), loose), (loose, Promises::default())] {
        let world = World::new().await;
        world.submit("inv-1");
        dies_at(
            &world,
            &opens.gate(&world, NO_FUNDS),
            "inv-1",
            "before_send",
        )
        .await;
        let no = world.run(&takes_over.gate(&world, NO_FUNDS), "inv-1").await;
        assert!(
            matches!(
                no,
                Outcome::Declined {
                    status: InvoiceStatus::InDoubt,
                    ..
                }
            ),
            "{no:?}"
        );
    }
}

#[tokio::test]
async fn a_lost_reply_is_looked_up() {
    for faults in [
        lossy(),
        Faults {
            error_after_share: 1.0,
            ..Faults::default()
        },
        Faults {
            garble_share: 1.0,
            ..Faults::default()
        },
    ] {
        let world = World::faulty(faults).await;
        world.submit("inv-1");
        // Every answer is lost, so only the look-up can tell.
        let outcome = world
            .run(&Promises::default().gate(&world, VISA), "inv-1")
            .await;
        assert!(matches!(outcome, Outcome::Charged { .. }), "{outcome:?}");
        assert_paid_once(&world, "inv-1");
    }
}

#[tokio::test]
async fn a_lost_reply_without_a_look_up_is_asked_for_again_under_its_key() {
    let world = World::faulty(Faults {
        lose_reply_every: 2,
        ..Faults::default()
    })
    .await;
    world.submit("inv-1");
    world.submit("inv-2");
    world.run(&BLIND.gate(&world, VISA), "inv-1").await;
    // The second POST is lost, the third is a replay.
    let outcome = world.run(&BLIND.gate(&world, VISA), "inv-2").await;
    assert!(matches!(outcome, Outcome::Charged { .. }), "{outcome:?}");
    assert_paid_once(&world, "inv-2");
    assert_eq!(requests(&world), 2);
}

#[tokio::test]
async fn a_look_up_that_is_behind_is_no_reason_for_another_key() {
    let world = World::with(
        Faults::default(),
        Settings {
            search_lag: Duration::from_secs(300),
            ..Settings::default()
        },
    )
    .await;
    let late = Promises {
        look_up_lag_s: 300,
        ..Promises::default()
    };
    world.submit("inv-1");
    before_the_send(&world, lossy());
    let doubt = world.run(&late.gate(&world, VISA), "inv-1").await;
    assert!(matches!(doubt, Outcome::InDoubt { .. }), "{doubt:?}");
    assert_eq!(world.charged("inv-1"), 1, "three sends, one key");
    // The window has closed, and the search has caught up by then.
    world.clock.advance(QUIET);
    let found = world.run(&late.gate(&world, VISA), "inv-1").await;
    assert!(matches!(found, Outcome::Charged { .. }), "{found:?}");
    assert_paid_once(&world, "inv-1");
    assert_eq!(world.attempts("inv-1"), 1);
}

#[tokio::test]
async fn a_kept_error_with_nothing_done_ends_by_a_look_up_in_time_or_in_review() {
    for promises in [Promises::default(), BLIND] {
        let world = World::new().await;
        world.submit("inv-1");
        before_the_send(
            &world,
            Faults {
                error_before_share: 1.0,
                ..Faults::default()
            },
        );
        let doubt = world.run(&promises.gate(&world, VISA), "inv-1").await;
        assert!(matches!(doubt, Outcome::InDoubt { .. }), "{doubt:?}");
        world.faults(Faults::default());
        let doubt = world.run(&promises.gate(&world, VISA), "inv-1").await;
        assert!(
            matches!(doubt, Outcome::InDoubt { .. }),
            "the key answers 500: {doubt:?}"
        );
        world.clock.advance(QUIET);
        if promises.look_up {
            let nothing = world.run(&promises.gate(&world, VISA), "inv-1").await;
            assert!(
                matches!(
                    nothing,
                    Outcome::NothingFound {
                        status: InvoiceStatus::Pending
                    }
                ),
                "{nothing:?}"
            );
            world.run(&promises.gate(&world, VISA), "inv-1").await;
            assert_paid_once(&world, "inv-1");
        } else {
            assert_eq!(
                (world.status("inv-1"), requests(&world)),
                (InvoiceStatus::Review, 0)
            );
        }
    }
}

#[tokio::test]
async fn nothing_is_sent_after_the_window_or_under_a_lost_lease() {
    for promises in [Promises::default(), BLIND, NOTHING] {
        let world = World::new().await;
        world.submit("late");
        let clock = world.clock.clone();
        world.places.once("before_send", move || {
            clock.advance(Duration::from_secs(31 * 60))
        });
        let held = world.lease("late");
        let late = world.charge(&promises.gate(&world, VISA), &held).await;
        assert!(
            !matches!(late, Outcome::NothingFound { .. }),
            "nobody looked: {late:?}"
        );
        // Whoever takes over is as late.
        let later = world.run(&promises.gate(&world, VISA), "late").await;
        assert!(
            matches!(later, Outcome::NothingFound { .. }) == promises.look_up,
            "{promises:?}: {later:?}"
        );
        world.submit("lost");
        let held = world.lease("lost");
        let stands = held.switch();
        world
            .places
            .once("before_send", move || stands.store(false, Ordering::SeqCst));
        let lost = world.charge(&promises.gate(&world, VISA), &held).await;
        assert!(matches!(lost, Outcome::LeaseLost), "{lost:?}");
        assert_eq!(requests(&world), 0, "{promises:?}");
    }
}

#[tokio::test]
async fn a_late_send_changes_nothing_while_its_key_is_kept_and_is_not_silent_after() {
    for forget in [false, true] {
        let world = World::new().await;
        world.submit("inv-1");
        let promises = Promises::default();
        let (slow, fast) = (promises.gate(&world, VISA), promises.gate(&world, VISA));
        let first = world.lease("inv-1");
        let (wake, asleep) = oneshot::channel::<()>();
        let (stalled, reached) = oneshot::channel::<()>();
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
        assert!(matches!(late, Outcome::Charged { .. }), "{late:?}");
        if forget {
            // A send that outlives the provider's memory of its key: nothing but an object helps. It is told all the same.
            assert_eq!(
                (
                    world.status("inv-1"),
                    world.charged("inv-1"),
                    world.alarms()
                ),
                (InvoiceStatus::Review, 2, 1)
            );
        } else {
            assert_paid_once(&world, "inv-1");
        }
    }
}

#[tokio::test]
async fn two_charges_under_one_key_are_both_told() {
    // A provider that does not do what its profile says.
    let world = World::with(
        Faults {
            ignore_keys: true,
            ..lossy()
        },
        Settings {
            search_lag: Duration::from_secs(60),
            ..Settings::default()
        },
    )
    .await;
    world.submit("inv-1");
    let gate = Promises::default().gate(&world, VISA);
    let doubt = world.run(&gate, "inv-1").await;
    assert!(matches!(doubt, Outcome::InDoubt { .. }), "{doubt:?}");
    assert_eq!(world.charged("inv-1"), 3);
    world.clock.advance(Duration::from_secs(61));
    let found = world.run(&gate, "inv-1").await;
    assert!(
        matches!(
            found,
            Outcome::Charged {
                status: InvoiceStatus::Review,
                ..
            }
        ),
        "{found:?}"
    );
    assert_eq!(
        (world.status("inv-1"), world.alarms()),
        (InvoiceStatus::Review, 2),
        "each charge beyond the first is an alarm"
    );
}

#[tokio::test]
async fn a_bank_debit_waits_and_its_later_end_is_found() {
    for promises in [Promises::default(), BLIND] {
        for (method, status, charged) in [
            ("pm_usBankAccount", InvoiceStatus::Paid, 1),
            (
                "pm_usBankAccount_insufficientFunds",
                InvoiceStatus::Pending,
                0,
            ),
        ] {
            let world = World::with(
                Faults::default(),
                Settings {
                    processing: Duration::from_secs(600),
                    ..Settings::default()
                },
            )
            .await;
            world.submit("inv-1");
            let gate = promises.gate(&world, method);
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
                "what is at work is not nothing: {still:?}"
            );
            world.clock.advance(Duration::from_secs(601));
            let ended = world.run(&gate, "inv-1").await;
            assert_eq!(
                (world.status("inv-1"), world.charged("inv-1")),
                (status, charged),
                "{method}, {promises:?}: {ended:?}"
            );
            assert_eq!(requests(&world), 1);
        }
    }
}

#[tokio::test]
async fn what_is_still_at_work_when_the_window_is_over_is_not_nothing() {
    for promises in [Promises::default(), LOOSE] {
        let world = World::with(
            Faults::default(),
            Settings {
                processing: Duration::from_secs(90 * 60),
                ..Settings::default()
            },
        )
        .await;
        world.submit("inv-1");
        let gate = promises.gate(&world, "pm_usBankAccount");
        dies_at(&world, &gate, "inv-1", "after_send").await;
        world.clock.advance(QUIET);
        let still = world.run(&gate, "inv-1").await;
        assert!(
            matches!(
                still,
                Outcome::Pending {
                    status: InvoiceStatus::Waiting
                }
            ),
            "{still:?}"
        );
        world.clock.advance(Duration::from_secs(60 * 60));
        world.run(&gate, "inv-1").await;
        assert_paid_once(&world, "inv-1");
        assert_eq!((world.attempts("inv-1"), requests(&world)), (1, 1));
    }
}

#[tokio::test]
async fn a_provider_that_keeps_nothing_gets_one_request_and_then_a_person() {
    // The reply is lost: it charged, and nobody can find out.
    let world = World::faulty(Faults {
        ignore_keys: true,
        ..lossy()
    })
    .await;
    world.submit("sent");
    let gate = NOTHING.gate(&world, VISA);
    let doubt = world.run(&gate, "sent").await;
    assert!(
        matches!(doubt, Outcome::InDoubt { told: true, .. }),
        "{doubt:?}"
    );
    // Whoever takes it over sends nothing.
    for _ in 0..3 {
        let doubt = world.run(&NOTHING.gate(&world, VISA), "sent").await;
        assert!(
            matches!(doubt, Outcome::InDoubt { told: true, .. }),
            "{doubt:?}"
        );
    }
    world.clock.advance(QUIET);
    assert_eq!(
        (
            world.status("sent"),
            world.charged("sent"),
            requests(&world)
        ),
        (InvoiceStatus::Review, 1, 1)
    );

    // It died before it sent, which nobody can know.
    let world = World::new().await;
    world.submit("unsent");
    dies_at(&world, &NOTHING.gate(&world, VISA), "unsent", "before_send").await;
    let doubt = world.run(&NOTHING.gate(&world, VISA), "unsent").await;
    assert!(matches!(doubt, Outcome::InDoubt { .. }), "{doubt:?}");
    world.clock.advance(QUIET);
    assert_eq!(
        (world.status("unsent"), requests(&world)),
        (InvoiceStatus::Review, 0)
    );

    // A no to the only send there will ever be is final, and the next attempt has its own.
    world.submit("poor");
    let no = world.run(&NOTHING.gate(&world, NO_FUNDS), "poor").await;
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
    world.run(&NOTHING.gate(&world, VISA), "poor").await;
    assert_paid_once(&world, "poor");
}

#[tokio::test]
async fn without_keys_but_with_a_look_up_what_was_sent_once_is_found() {
    let promises = Promises {
        keys: false,
        sticky: false,
        ..Promises::default()
    };
    let world = World::faulty(Faults {
        ignore_keys: true,
        ..lossy()
    })
    .await;
    world.submit("sent");
    let found = world.run(&promises.gate(&world, VISA), "sent").await;
    assert!(matches!(found, Outcome::Charged { .. }), "{found:?}");
    assert_paid_once(&world, "sent");
    world.submit("unsent");
    let gate = promises.gate(&world, VISA);
    dies_at(&world, &gate, "unsent", "before_send").await;
    let nothing = world.run(&gate, "unsent").await;
    assert!(
        matches!(
            nothing,
            Outcome::NothingFound {
                status: InvoiceStatus::InDoubt
            }
        ),
        "not sent: {nothing:?}"
    );
    world.clock.advance(QUIET);
    world.run(&gate, "unsent").await;
    assert_eq!(world.status("unsent"), InvoiceStatus::Pending);
    world.run(&gate, "unsent").await;
    assert_paid_once(&world, "unsent");
    assert_eq!((world.attempts("unsent"), requests(&world)), (2, 2));
}

#[tokio::test]
async fn what_was_begun_through_the_other_interface_is_neither_sent_nor_looked_up() {
    let by_object = |world: &World| {
        world.gate_with("pm_card_visa", |config| {
            config.provider = "tried".to_owned();
        })
    };
    let by_key = |world: &World| Promises::default().gate(world, "pm_card_visa");
    // Charged by key, reply lost: a gate that looks for objects finds none, which must prove nothing.
    let world = World::new().await;
    world.submit("keyed");
    dies_at(&world, &by_key(&world), "keyed", "after_send").await;
    world.clock.advance(QUIET);
    let doubt = world.run(&by_object(&world), "keyed").await;
    assert!(
        matches!(doubt, Outcome::InDoubt { told: false, .. }),
        "{doubt:?}"
    );
    world.run(&by_key(&world), "keyed").await;
    assert_paid_once(&world, "keyed");
    // An object that was confirmed, and one that may yet be.
    for place in ["after_send", "before_send"] {
        let world = World::new().await;
        world.submit("object");
        dies_at(&world, &by_object(&world), "object", place).await;
        let charged = world.charged("object");
        world.clock.advance(QUIET);
        let doubt = world.run(&by_key(&world), "object").await;
        assert!(
            matches!(doubt, Outcome::InDoubt { told: false, .. }),
            "{place}: {doubt:?}"
        );
        assert_eq!(world.charged("object"), charged, "{place}");
        assert_eq!(world.status("object"), InvoiceStatus::InDoubt, "{place}");
    }
    // A declined object stays confirmable: no charge beside it, under whichever attempt.
    let world = World::new().await;
    world.submit("standing");
    let poor = world.gate_with("pm_card_visa_chargeDeclinedInsufficientFunds", |config| {
        config.provider = "tried".to_owned();
    });
    world.run(&poor, "standing").await;
    let doubt = world.run(&by_key(&world), "standing").await;
    assert!(matches!(doubt, Outcome::InDoubt { .. }), "{doubt:?}");
    assert_eq!(world.charged("standing"), 0);
}

#[tokio::test]
async fn an_attempt_that_we_could_not_make_ourselves_is_looked_up_by_its_key() {
    let world = World::new().await;
    world.submit("inv-1");
    dies_at(
        &world,
        &Promises::default().gate(&world, VISA),
        "inv-1",
        "after_send",
    )
    .await;
    // No payer by now; another payer; either way the key says what became of it.
    let nobody = Promises::default().gate_with(&world, "", |config| {
        config.payers = Payers::Listed(Default::default())
    });
    let found = world.run(&nobody, "inv-1").await;
    assert!(matches!(found, Outcome::Charged { .. }), "{found:?}");
    assert_paid_once(&world, "inv-1");
    world.submit("inv-2");
    dies_at(
        &world,
        &Promises::default().gate(&world, VISA),
        "inv-2",
        "after_send",
    )
    .await;
    let other = Promises::default().gate(&world, "tok_mastercard");
    let found = world.run(&other, "inv-2").await;
    assert!(matches!(found, Outcome::Charged { .. }), "{found:?}");
    assert_paid_once(&world, "inv-2");
    world.submit("inv-3");
    let refused = world.run(&nobody, "inv-3").await;
    assert!(
        matches!(
            refused,
            Outcome::Declined {
                status: InvoiceStatus::Failed,
                ..
            }
        ),
        "{refused:?}"
    );
    assert_eq!(requests(&world), 2, "nothing was sent for it");
}
