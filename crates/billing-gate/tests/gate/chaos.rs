//! Everything at once, by seed: lost replies, 500s, garbled bodies, declines, gates that die anywhere, forgotten and ignored
//! keys. In the end every invoice is paid, and the books show one charge for each; where the provider has no objects, all this
//! holds while it keeps its keys, and what nobody can find out is in REVIEW.

use std::time::Duration;

use billing_core::InvoiceStatus;
use billing_gate::Outcome;
use billing_sandbox::{Faults, Settings};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::keys::Promises;
use crate::world::{QUIET, World};

const INVOICES: usize = 10;
const ROUNDS_MAX: usize = 60;
const PLACES: [&str; 6] = [
    "before_begin",
    "after_begin",
    "before_send",
    "checked",
    "after_send",
    "before_settle",
];

#[tokio::test]
async fn one_charge_whatever_happens() {
    for seed in 0..4 {
        let ignore_keys = seed % 3 == 2;
        let faults = Faults {
            lose_reply_share: 0.2,
            error_before_share: 0.05,
            error_after_share: 0.1,
            garble_share: 0.05,
            decline_share: 0.1,
            ignore_keys,
            forget_declines: seed % 2 == 1,
            ..Faults::default()
        };
        let world = World::with(
            faults,
            Settings {
                seed,
                ..Settings::default()
            },
        )
        .await;
        let mut random = StdRng::seed_from_u64(seed);
        let names: Vec<String> = (0..INVOICES)
            .map(|number| format!("inv-{number}"))
            .collect();
        for name in &names {
            world.submit(name);
        }
        for round in 0..ROUNDS_MAX {
            let mut open = 0;
            for name in &names {
                if matches!(
                    world.status(name),
                    InvoiceStatus::Paid | InvoiceStatus::Failed
                ) {
                    continue;
                }
                open += 1;
                disturb(&world, &mut random);
                let held = world.lease(name);
                let gate = world.gate("pm_card_visa");
                // A gate that stalls for ever is one that has died: its future is dropped, its sends live on.
                let outcome =
                    tokio::time::timeout(Duration::from_millis(600), world.charge(&gate, &held))
                        .await;
                if !outcome.as_ref().is_ok_and(Outcome::ended_the_lease) {
                    world.release(&held);
                }
            }
            if open == 0 {
                break;
            }
            if round % 8 == 7 {
                world.clock.advance(QUIET);
            }
            if random.random_bool(0.2) {
                world.sandbox.witness().forget_keys();
            }
        }
        for name in &names {
            let (status, charged) = (world.status(name), world.charged(name));
            assert_eq!(
                (status, charged),
                (InvoiceStatus::Paid, 1),
                "{name}, seed {seed}"
            );
        }
        assert_eq!(world.alarms(), 0, "seed {seed}");
        assert_eq!(world.totals()["charged_twice"], 0, "seed {seed}");
    }
}

/// Without objects the keys are all there is: they are kept for the retention and then forgotten, as the clock moves. Declines
/// are kept under them or not, charges can be looked up or not, and one provider keeps nothing at all.
#[tokio::test]
async fn one_charge_by_key_while_keys_are_kept_and_at_most_one_without() {
    let kinds = [
        (true, true, true),
        (true, false, true),
        (true, true, false),
        (true, false, false),
        (false, false, false),
    ];
    for (seed, (keys, sticky, look_up)) in (0..).zip(kinds) {
        let promises = Promises {
            keys,
            sticky,
            look_up,
            ..Promises::default()
        };
        let faults = Faults {
            lose_reply_share: 0.2,
            error_before_share: 0.05,
            error_after_share: 0.1,
            garble_share: 0.05,
            decline_share: 0.15,
            ignore_keys: !promises.keys,
            forget_declines: !promises.sticky,
            ..Faults::default()
        };
        let world = World::with(
            faults,
            Settings {
                seed,
                key_retention: promises.retention(),
                ..Settings::default()
            },
        )
        .await;
        let mut random = StdRng::seed_from_u64(seed);
        let names: Vec<String> = (0..INVOICES)
            .map(|number| format!("inv-{number}"))
            .collect();
        for name in &names {
            world.submit(name);
        }
        for round in 0..ROUNDS_MAX {
            let mut open = 0;
            for name in &names {
                let Some(held) = world.lease_unless_ended(name) else {
                    continue;
                };
                disturb(&world, &mut random);
                open += 1;
                let gate = promises.gate(&world, "tok_visa");
                let outcome =
                    tokio::time::timeout(Duration::from_millis(600), world.charge(&gate, &held))
                        .await;
                if !outcome.as_ref().is_ok_and(Outcome::ended_the_lease) {
                    world.release(&held);
                }
            }
            if open == 0 {
                break;
            }
            if round % 4 == 3 {
                world.clock.advance(QUIET);
            }
        }
        let mut paid = 0;
        for name in &names {
            let (status, charged) = (world.status(name), world.charged(name));
            match status {
                InvoiceStatus::Paid => assert_eq!(charged, 1, "{name}, seed {seed}"),
                InvoiceStatus::Review if !promises.look_up => {
                    assert!(charged <= 1, "{name}, seed {seed}");
                }
                other => panic!("{name} is {other}, charged {charged} times, seed {seed}"),
            }
            paid += usize::from(status == InvoiceStatus::Paid);
        }
        assert!(
            paid > 0,
            "seed {seed}: whoever puts all in REVIEW charges nobody twice either"
        );
        assert_eq!(world.alarms(), 0, "seed {seed}");
        assert_eq!(world.totals()["charged_twice"], 0, "seed {seed}");
    }
}

/// Something may happen to the next charge, at some place.
fn disturb(world: &World, random: &mut StdRng) {
    let place = PLACES[random.random_range(0..PLACES.len())];
    let clock = world.clock.clone();
    match random.random_range(0..10) {
        0 => world
            .places
            .once_async(place, || Box::pin(std::future::pending())),
        1 => world
            .places
            .once(place, move || clock.advance(Duration::from_secs(31 * 60))),
        2 => world.desk.lost_answers.store(
            random.random_range(1..=3),
            std::sync::atomic::Ordering::SeqCst,
        ),
        _ => {}
    }
}
