//! Every switch of the ledger breaks the rule that it names, so that no canary sings about a switch that does nothing. A story
//! holds with the switch on and not with it off; where an alarm in the ledger is faster than the story, the alarm rings.
//! The switch is one for the process: the tests take turns.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

use billing_core::sabotage::{Sabotage, replica_is, switch_off, switch_on};
use billing_core::*;
use check::check;

#[path = "stories/check.rs"]
mod check;

static TURN: Mutex<()> = Mutex::new(());

/// While it lives nobody else touches the switch, which is off afterwards.
struct Turn(#[expect(dead_code, reason = "held, not read")] MutexGuard<'static, ()>);

impl Turn {
    fn take() -> Turn {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        switch_off();
        Turn(turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        switch_off();
    }
}

/// What the panic said.
fn said(outcome: std::thread::Result<()>) -> Option<String> {
    let panic = outcome.err()?;
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
}

/// The story is what happens when the rule is broken, and only then.
fn breaks(which: Sabotage, story: &str) {
    let _turn = Turn::take();
    let honest = catch_unwind(|| check(story));
    assert!(honest.is_err(), "{which} changes nothing in its story");
    switch_on(which);
    check(story);
}

/// The story is what happens when the rule holds; when it is broken, the ledger's own alarm ends it.
fn rings(which: Sabotage, alarm: &str, story: &str) {
    let _turn = Turn::take();
    check(story);
    switch_on(which);
    let told = said(catch_unwind(|| check(story)));
    assert!(
        told.as_ref().is_some_and(|told| told.contains(alarm)),
        "{which}: {told:?}"
    );
}

#[test]
fn names_are_kebab_case_and_lead_back() {
    for which in Sabotage::ALL {
        let name = which.name();
        assert_eq!(name.parse(), Ok(*which));
        let variant: String = name
            .split('-')
            .map(|word| word[..1].to_uppercase() + &word[1..])
            .collect();
        assert_eq!(format!("{which:?}"), variant);
        assert!(which.rule().ends_with('.'), "{which}: {}", which.rule());
    }
    assert!("no-such-thing".parse::<Sabotage>().is_err());
}

#[test]
fn no_token_check_at_settle() {
    breaks(
        Sabotage::NoTokenCheckAtSettle,
        "
         0s  op submits inv-7                 => submitted
         0s  ana acquires inv-7 for 10s       => token 1
         0s  ana begins inv-7 with token 1    => L.1.inv-7 within 3600000 ms
        10s  ben acquires inv-7 for 60s       => token 2, attempt 1 Open
        11s  ana settles inv-7/1 with token 1 unknown => IN_DOUBT
    ",
    );
}

#[test]
fn no_token_check_at_begin() {
    breaks(
        Sabotage::NoTokenCheckAtBegin,
        "
         0s  op submits inv-7                 => submitted
         0s  ana acquires inv-7 for 10s       => token 1
        10s  ben acquires inv-7 for 60s       => token 2
        11s  ana begins inv-7 with token 1    => L.1.inv-7 within 3600000 ms
        11s  ana attaches pi-1 to inv-7 with token 1 => attached pi-1
    ",
    );
}

#[test]
fn a_begin_with_a_past_token_on_a_free_invoice_rings() {
    rings(Sabotage::NoTokenCheckAtBegin, "only while PROCESSING", "
         0s  op submits inv-7                 => submitted
         0s  ana acquires inv-7 for 10s       => token 1
        10s  ana begins inv-7 with token 1    => refused: the lease on inv-7 with token 1 has expired
    ");
}

#[test]
fn a_stale_decline_is_taken_and_nothing_else() {
    breaks(
        Sabotage::StaleDeclineTaken,
        "
         0s  op submits inv-7                 => submitted
         0s  ana acquires inv-7 for 10s       => token 1
         0s  ana begins inv-7 with token 1 sticky => L.1.inv-7 within 3600000 ms
        10s  ben acquires inv-7 for 60s       => token 2, attempt 1 Open
        11s  ana settles inv-7/1 with token 1 unknown => refused: stale token 1, current 2
        11s  ana settles inv-7/1 with token 1 declined busy retryable sticky => PENDING
    ",
    );
}

#[test]
fn a_second_key_on_take_over() {
    breaks(
        Sabotage::SecondKeyOnTakeOver,
        "
         0s  op submits inv-7                 => submitted
         0s  ana acquires inv-7 for 10s       => token 1
         0s  ana begins inv-7 with token 1    => L.1.inv-7 within 3600000 ms
        10s  ben acquires inv-7 for 60s       => token 2, attempt 1 Open
        11s  ben begins inv-7 with token 2    => L.2.inv-7 within 3600000 ms
    ",
    );
}

#[test]
fn sole_send_is_believed_after_a_gate_restart() {
    breaks(
        Sabotage::SoleSendAfterGateRestart,
        "
         0s  op submits inv-7                 => submitted
         0s  ana acquires inv-7 for 60s       => token 1
         0s  ana begins inv-7 with token 1    => L.1.inv-7 within 3600000 ms
         5s  ana begins inv-7 with token 1    => L.1.inv-7 within 3595000 ms
         6s  ana settles inv-7/1 with token 1 declined busy retryable sole => PENDING
    ",
    );
}

/// A take-over by another token stays one.
#[test]
fn sole_send_is_not_believed_after_a_take_over() {
    let _turn = Turn::take();
    switch_on(Sabotage::SoleSendAfterGateRestart);
    check(
        "
         0s  op submits inv-7                 => submitted
         0s  ana acquires inv-7 for 10s       => token 1
         0s  ana begins inv-7 with token 1    => L.1.inv-7 within 3600000 ms
        10s  ben acquires inv-7 for 60s       => token 2, attempt 1 Open
        11s  ben begins inv-7 with token 2    => L.1.inv-7 within 3589000 ms, taken over
    ",
    );
}

const HELD_BEYOND_QUIET: &str = "
         0s  op submits inv-7                 => submitted
         0s  ana acquires inv-7 for 60s       => token 1
         0s  ana begins inv-7 with token 1 valid 10s flight 5s lookup => L.1.inv-7 within 10000 ms
";

#[test]
fn a_look_up_under_an_old_lease_is_believed() {
    let told = "16s  ana settles inv-7/1 with token 1 found none => PENDING";
    breaks(
        Sabotage::OldLookUpBelieved,
        &format!("{HELD_BEYOND_QUIET} {told}"),
    );
}

#[test]
fn an_early_look_up_rings() {
    let told = "14s  ana settles inv-7/1 with token 1 found none => IN_DOUBT";
    rings(
        Sabotage::EarlyLookUpBelieved,
        "I5",
        &format!("{HELD_BEYOND_QUIET} {told}"),
    );
}

#[test]
fn the_last_object_wins() {
    breaks(
        Sabotage::SecondObjectAttached,
        "
         0s  op submits inv-7                 => submitted
         0s  ana acquires inv-7 for 10s       => token 1
         0s  ana begins inv-7 with token 1    => L.1.inv-7 within 3600000 ms
         0s  ana attaches pi-1 to inv-7 with token 1 => attached pi-1
         1s  ana attaches pi-2 to inv-7 with token 1 => attached pi-2
    ",
    );
}

#[test]
fn a_requeue_forgets_the_open_attempt() {
    breaks(
        Sabotage::RequeueWhileOpen,
        "
         0s  op submits inv-7                 => submitted
         0s  ana acquires inv-7 for 5s        => token 1
         0s  ana begins inv-7 with token 1 valid 10s flight 5s => L.1.inv-7 within 10000 ms
        15s  tick                             => done
        15s  op requeues inv-7                => PENDING
        16s  ben acquires inv-7 for 60s       => token 2
        16s  ben begins inv-7 with token 2    => L.2.inv-7 within 3600000 ms
    ",
    );
}

#[test]
fn what_is_in_doubt_turns_pending() {
    breaks(
        Sabotage::InDoubtToPending,
        "
         0s  op submits inv-7                 => submitted
         0s  ana acquires inv-7 for 10s       => token 1
         0s  ana begins inv-7 with token 1    => L.1.inv-7 within 3600000 ms
        10s  tick                             => done
        10s  look at inv-7                    => PENDING
        11s  ben acquires inv-7 for 60s       => token 2
        11s  ben begins inv-7 with token 2    => L.2.inv-7 within 3600000 ms
    ",
    );
}

#[test]
fn charges_begin_before_they_are_allowed() {
    breaks(
        Sabotage::BeginBeforeAllowCharges,
        "
         0s  op submits inv-7                 => submitted
         1s  op restores                      => restored L
       301s  cas acquires inv-7 for 60s       => token 1048576001
       301s  cas begins inv-7 with token 1048576001 => L.1.inv-7 within 3600000 ms
    ",
    );
}

#[test]
fn tokens_come_again_after_a_restore() {
    breaks(
        Sabotage::TokensKeptAtRestore,
        "
         0s  op submits inv-7                 => submitted
         1s  op restores                      => restored L
       301s  cas acquires inv-7 for 60s       => token 1
    ",
    );
}

#[test]
fn leases_are_granted_at_once_after_a_restore() {
    breaks(
        Sabotage::GrantsAtOnceAfterRestore,
        "
         1s  op restores                      => restored L
         2s  cas acquires inv-7 for 60s       => token 1048576001
    ",
    );
}

#[test]
fn an_old_key_is_taken_for_new() {
    breaks(
        Sabotage::OldKeyTakenForNew,
        "
         0s  op submits inv-7                 => submitted
         1s  op restores                      => restored L
         2s  op allows charges                => done
       302s  ana acquires inv-7 for 60s       => token 1048576001
       302s  ana begins inv-7 with token 1048576001 sticky => L.1.inv-7 within 3600000 ms
       303s  ana settles inv-7/1 with token 1048576001 declined stolen sticky => FAILED
    ",
    );
}

#[test]
fn a_release_with_a_past_token_ends_the_lease() {
    breaks(
        Sabotage::StaleReleaseTaken,
        "
         0s  ana acquires inv-7 for 10s       => token 1
        10s  ben acquires inv-7 for 60s       => token 2
        11s  ana releases inv-7 with token 1  => released
        11s  cas acquires inv-7 for 60s       => token 3
    ",
    );
}

#[test]
fn an_acquire_is_answered_after_its_lease_ended() {
    breaks(
        Sabotage::AnswerAfterLeaseEnded,
        "
         0s  ana opens a session for 60s      => session for 60000 ms
         0s  ana acquires inv-7 as 1 for 5s   => token 1
         5s  ben acquires inv-7 for 60s       => token 2
         6s  ana acquires inv-7 as 1 for 5s   => token 1
    ",
    );
}

#[test]
fn a_repeated_claim_is_a_new_one() {
    breaks(
        Sabotage::ClaimReplyForgotten,
        "
         0s  op submits inv-1                 => submitted
         0s  op submits inv-2                 => submitted
         0s  ana opens a session for 60s      => session for 60000 ms
         0s  ana claims 1 as 1                => claimed [inv-1:1]
         1s  ana claims 1 as 1                => claimed [inv-2:2]
    ",
    );
}

#[test]
fn who_came_last_is_served_first() {
    breaks(
        Sabotage::WaitersServedBackwards,
        "
         0s  ana acquires inv-7 for 10s       => token 1
         0s  ben acquires inv-7 for 20s waiting 60s => queued
         1s  cas acquires inv-7 for 20s waiting 60s => queued
         3s  ana releases inv-7 with token 1  => released
             cas is told token 2
    ",
    );
}

#[test]
fn elapsed_time_is_counted_twice() {
    breaks(
        Sabotage::ElapsedAddedToNow,
        "
         1s  tick                             => done
         2s  tick                             => done
         2s  time is                          => 3000 ms
    ",
    );
}

#[test]
fn a_stalled_leader_shortens_what_it_extends() {
    breaks(Sabotage::DeadlineFromOldTime, "
         0s  ana opens a session for 10s      => session for 10000 ms
         9s  ana keeps alive                  => session for 10000 ms
        10s  tick                             => done
        11s  ana keeps alive                  => refused: session 01010101010101010101010101010101 has ended and is never revived
    ");
}

#[test]
fn sessions_end_a_second_early() {
    breaks(
        Sabotage::SessionsEndEarly,
        "
         0s  ana acquires inv-7 for 10s       => token 1
         9s  ben acquires inv-7 for 10s       => token 2
    ",
    );
}

#[test]
fn a_key_is_sent_beyond_its_wall_time() {
    breaks(
        Sabotage::NotAfterInClusterTimeAlone,
        "
         0s  op submits inv-7                 => submitted
         0s  ana acquires inv-7 for 300s      => token 1
         0s  ana begins inv-7 with token 1 valid 100s => L.1.inv-7 within 100000 ms
        10s  wall is 50s ahead
        10s  ana begins inv-7 with token 1    => L.1.inv-7 within 90000 ms, taken over
    ",
    );
}

/// A ledger in which ana holds inv-7 and ben waits for it; and what ben's request says when it is repeated.
fn waited_for() -> Ledger {
    let mut ledger = Ledger::new(Config::default());
    let bootstrap = Command::Bootstrap(Bootstrap {
        ledger_id: LedgerId::new("L").expect("short"),
        no_prior_charges: true,
    });
    let commands = [bootstrap, acquire(1, "ana"), acquire(2, "ben")];
    for command in commands {
        apply(&mut ledger, command).expect("taken");
    }
    ledger
}

fn acquire(request: u8, holder: &str) -> Command {
    Command::AcquireLease(AcquireLease {
        invoice: InvoiceId::new("inv-7").expect("short"),
        wait: WaitMs::new(60_000).expect("short"),
        requester: Requester::Implicit {
            request: RequestId::new([request; 16]),
            holder: HolderId::new(holder).expect("short"),
            ttl: TtlMs::new(10_000).expect("short"),
        },
    })
}

fn apply(ledger: &mut Ledger, command: Command) -> Result<Reply, Rejection> {
    let stamp = Stamp {
        base: ClusterTime(0),
        elapsed_ms: 0,
        wall: WallTime(1_790_000_000_000),
        wall_jumped_ms: 0,
    };
    let applied = ledger.apply(stamp, &[(Actor::ledger(), command)]);
    applied.results.into_iter().next().expect("one result")
}

#[test]
fn a_snapshot_without_waiters_is_one_that_can_be_read() {
    let _turn = Turn::take();
    let through_a_snapshot = |ledger: &Ledger| {
        let mut bytes = Vec::new();
        ledger.write_to(&mut bytes).expect("memory");
        Ledger::read_from(&mut bytes.as_slice()).expect("whole")
    };
    let ledger = waited_for();
    let mut honest = through_a_snapshot(&ledger);
    assert_eq!(honest.state_hash(), ledger.state_hash());
    assert_eq!(apply(&mut honest, acquire(2, "ben")), Ok(Reply::Queued));
    switch_on(Sabotage::WaitersLostInSnapshot);
    let mut lossy = through_a_snapshot(&ledger);
    assert_ne!(lossy.state_hash(), ledger.state_hash());
    let told = apply(&mut lossy, acquire(2, "ben"));
    assert!(
        matches!(told, Err(Rejection::LeaseEnded { .. })),
        "{told:?}"
    );
}

#[test]
fn node_2_skips_the_record_of_a_grant() {
    let _turn = Turn::take();
    switch_on(Sabotage::AuditRecordSkipped);
    let on_node = |node| {
        replica_is(node);
        let outcome = catch_unwind(AssertUnwindSafe(waited_for));
        replica_is(0);
        outcome.expect("applied")
    };
    let (one, two, three) = (on_node(1), on_node(2), on_node(3));
    assert_eq!(one.state_hash(), three.state_hash());
    assert_ne!(one.state_hash(), two.state_hash());
    switch_off();
    assert_eq!(on_node(2).state_hash(), one.state_hash());
}
