//! Every switch of the gate breaks the rule that it names. The switch is one for the process: the tests take turns, and each
//! does the same with it off first. What needs a provider without objects is left to the simulation.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use billing_core::sabotage::{Sabotage, switch_off, switch_on};
use billing_gate::Outcome;
use billing_sandbox::Faults;
use world::World;

#[path = "gate/world.rs"]
#[allow(dead_code, reason = "these tests use a part of it")]
mod world;

static TURN: Mutex<()> = Mutex::new(());

const VISA: &str = "pm_card_visa";

/// Plays `scene` without and with the sabotage, and returns what came of each.
fn both<T>(which: Sabotage, scene: impl AsyncFn() -> T) -> (T, T) {
    let _turn: MutexGuard<'_, ()> = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().expect("a runtime")
    };
    switch_off();
    let honest = runtime().block_on(scene());
    switch_on(which);
    let broken = runtime().block_on(scene());
    switch_off();
    (honest, broken)
}

#[test]
fn a_request_leaves_under_a_lost_lease() {
    let scene = async || {
        let world = World::new().await;
        world.submit("inv-1");
        let held = world.lease("inv-1");
        let stands = held.switch();
        let lose = move || stands.store(false, Ordering::SeqCst);
        world.places.once("before_send", lose);
        world.charge(&world.gate(VISA), &held).await;
        world.charged("inv-1")
    };
    assert_eq!(both(Sabotage::GateWithoutLeaseCheck, scene), (0, 1));
}

#[test]
fn a_key_is_sent_after_its_window() {
    let scene = async || {
        let world = World::new().await;
        world.submit("inv-1");
        let clock = world.clock.clone();
        let wait = move || clock.advance(Duration::from_secs(3_600));
        world.places.once("before_send", wait);
        let held = world.lease("inv-1");
        world.charge(&world.gate(VISA), &held).await;
        world.charged("inv-1")
    };
    assert_eq!(both(Sabotage::GateWithoutNotAfter, scene), (0, 1));
}

#[test]
fn silence_is_taken_for_a_decline() {
    let scene = async || {
        let world = World::faulty(Faults {
            lose_reply_every: 1,
            ..Faults::default()
        })
        .await;
        world.submit("inv-1");
        let outcome = world.run(&world.gate(VISA), "inv-1").await;
        matches!(outcome, Outcome::Declined { .. })
    };
    assert_eq!(both(Sabotage::SilenceTakenForDecline, scene), (false, true));
}

#[test]
fn a_settlement_is_told_again_under_another_key() {
    let scene = async || {
        let world = Arc::new(World::new().await);
        world.submit("inv-1");
        let theirs = world.clone();
        let lose = move || theirs.desk.lost_answers.store(1, Ordering::SeqCst);
        world.places.once("before_settle", lose);
        let declined = world.gate("pm_card_chargeDeclined");
        let outcome = world.run(&declined, "inv-1").await;
        // The decline was taken, and the other key is not the one that it was taken under.
        matches!(outcome, Outcome::Declined { .. })
    };
    assert_eq!(
        both(Sabotage::SettleRetriedUnderNewKey, scene),
        (true, false)
    );
}
