//! BeginCharge and AttachProviderObject: one attempt at a time, one object per invoice.

use crate::check::{check, check_with};
use billing_core::Config;

#[test]
fn beginning_again_continues_the_same_attempt_and_marks_it_taken_over() {
    check(
        "
         0s  op submits inv-7                 => submitted
         0s  ana acquires inv-7 for 60s       => token 1
         0s  ana begins inv-7 with token 1    => L.1.inv-7 within 3600000 ms
        10s  ana begins inv-7 with token 1    => L.1.inv-7 within 3590000 ms, taken over
        60s  ben acquires inv-7 for 60s       => token 2, attempt 1 Open
        61s  ben begins inv-7 with token 2    => L.1.inv-7 within 3539000 ms, taken over
        61s  ana begins inv-7 with token 1    => refused: stale token 1, current 2
    ",
    );
}

#[test]
fn a_successor_must_name_the_same_provider_account_mode_and_parameters() {
    check("
         0s  op submits inv-7                 => submitted
         0s  ana acquires inv-7 for 60s       => token 1
         0s  ana begins inv-7 with token 1    => L.1.inv-7 within 3600000 ms
         0s  ana begins inv-7 with token 1 at other => refused: wrong terms for invoice inv-7: provider is psp, not other
         0s  ana begins inv-7 with token 1 account b => refused: wrong terms for invoice inv-7: account is main, not b
         0s  ana begins inv-7 with token 1 test => refused: wrong terms for invoice inv-7: mode is live, not test
         0s  ana begins inv-7 with token 1 print ab => refused: wrong terms for invoice inv-7: fingerprint is 6670, not 6162
         0s  ana begins inv-7 with token 1 valid 5s flight 0s sticky => L.1.inv-7 within 3600000 ms, taken over
    ");
}

#[test]
fn nothing_begins_on_what_is_unknown_paid_or_closing() {
    check("
         0s  ana begins inv-7 with token 1    => refused: invoice inv-7 is not known
         0s  op submits inv-7                 => submitted
         0s  ana begins inv-7 with token 1    => refused: stale token 1, current 0
         0s  ana acquires inv-7 for 60s       => token 1
         0s  ana begins inv-7 with token 1 valid 10s flight 5s lookup => L.1.inv-7 within 10000 ms
         0s  ana settles inv-7/1 with token 1 declined busy retryable => IN_DOUBT
         5s  ben acquires inv-7 for 60s       => token 2, attempt 1 Closing
         5s  ben begins inv-7 with token 2    => refused: attempt 1 of invoice inv-7 is closing: a look-up counts in 10001 ms
         5s  ben attaches pi-1 to inv-7 with token 2 => refused: attempt 1 of invoice inv-7 is closing: a look-up counts in 10001 ms
         6s  hook settles inv-7/1 charged ch-1 => PAID
         6s  ben begins inv-7 with token 2    => refused: invoice inv-7 is paid already, reference ch-1
         6s  ben attaches pi-1 to inv-7 with token 2 => refused: invoice inv-7 is paid already, reference ch-1
         6s  ben settles inv-7/1 with token 2 unknown => refused: invoice inv-7 is paid already, reference ch-1
    ");
}

#[test]
fn nothing_begins_before_it_is_due() {
    check("
         0s  op submits inv-7 due 30s         => submitted
         0s  ana acquires inv-7 for 60s       => token 1
        10s  ana begins inv-7 with token 1    => refused: invoice inv-7 is not due for another 20000 ms
        30s  ana begins inv-7 with token 1 sticky => L.1.inv-7 within 3600000 ms
        30s  ana settles inv-7/1 with token 1 declined busy retryable sticky => PENDING
        30s  look at inv-7                    => PENDING, next try in 60000 ms
        40s  ben acquires inv-7 for 300s      => token 2
        40s  ben begins inv-7 with token 2    => refused: invoice inv-7 is not due for another 50000 ms
        90s  ben begins inv-7 with token 2    => L.2.inv-7 within 3600000 ms
    ");
}

#[test]
fn a_key_is_sent_no_longer_than_either_clock_allows() {
    check(
        "
         0s  op submits inv-7                 => submitted
         0s  ana acquires inv-7 for 300s      => token 1
         0s  ana begins inv-7 with token 1 valid 100s => L.1.inv-7 within 100000 ms
        10s  wall is 50s ahead
        10s  ana begins inv-7 with token 1    => L.1.inv-7 within 40000 ms, taken over
        20s  wall is 20s behind
        20s  ana begins inv-7 with token 1    => L.1.inv-7 within 80000 ms, taken over
       100s  ana begins inv-7 with token 1    => L.1.inv-7 within 0 ms, taken over
    ",
    );
}

/// Until a majority's clocks were asked, a jump closes at once and opens nothing, and no deadline is counted from it.
#[test]
fn a_wall_clock_that_jumped_alone_only_closes() {
    check(
        "
         0s  op submits inv-1                 => submitted
         0s  op submits inv-9 due 1h          => submitted
         0s  ana opens a session for 60s      => session for 60000 ms
         1s  wall jumps 365d ahead
         1s  op submits inv-2                 => submitted
         1s  ana claims 9 as 1                => claimed [inv-1:1 inv-2:2]
         1s  ana begins inv-1 with token 1 valid 100s => refused: the wall clocks of the nodes are 31536000000 ms apart and nobody can tell which is right: no attempt would be sent in time
         2s  wall jumps 365d back
         2s  wall jumps 40s ahead
         2s  ana begins inv-1 with token 1 valid 100s => L.1.inv-1 within 60000 ms
         3s  wall jumps 40s back
         3s  ana begins inv-1 with token 1    => L.1.inv-1 within 99000 ms, taken over
         4s  wall jumps 1h back
         4s  ana begins inv-1 with token 1    => L.1.inv-1 within 98000 ms, taken over
    ",
    );
}

#[test]
fn the_first_object_wins_and_belongs_to_the_invoice() {
    check("
         0s  op submits inv-7                 => submitted
         0s  ana acquires inv-7 for 10s       => token 1
         0s  ana attaches pi-1 to inv-7 with token 1 => refused: invoice inv-7 has no open attempt
         0s  ana begins inv-7 with token 1    => L.1.inv-7 within 3600000 ms
         0s  ana attaches pi-1 to inv-7 with token 1 => attached pi-1
         1s  ana attaches pi-2 to inv-7 with token 1 => attached pi-1
        11s  ben acquires inv-7 for 300s      => token 2, attempt 1 Open
        11s  ana attaches pi-2 to inv-7 with token 1 => refused: stale token 1, current 2
        12s  ben begins inv-7 with token 2    => L.1.inv-7 within 3588000 ms, taken over, pi-1
        12s  ben settles inv-7/1 with token 2 declined busy retryable object => PENDING
        72s  cas acquires inv-7 for 300s      => token 3
        72s  cas begins inv-7 with token 3 at other => refused: wrong terms for invoice inv-7: provider is psp, not other
        72s  cas begins inv-7 with token 3 account b => refused: wrong terms for invoice inv-7: account is main, not b
        72s  cas begins inv-7 with token 3 test => refused: wrong terms for invoice inv-7: mode is live, not test
        72s  cas begins inv-7 with token 3 print other => L.2.inv-7 within 3600000 ms, pi-1
    ");
}

#[test]
fn another_object_comes_only_after_the_recorded_one_was_cancelled() {
    check("
         0s  op submits inv-7                 => submitted
         0s  ana acquires inv-7 for 10s       => token 1
         0s  hook settles inv-7/1 cancelled pi-1 => refused: pi-1 is not the provider object recorded for invoice inv-7
         0s  ana begins inv-7 with token 1    => L.1.inv-7 within 3600000 ms
         0s  ana attaches pi-1 to inv-7 with token 1 => attached pi-1
         1s  hook settles inv-7/1 cancelled pi-9 => refused: pi-9 is not the provider object recorded for invoice inv-7
         2s  ana settles inv-7/1 with token 1 cancelled pi-1 => PENDING
         3s  hook settles inv-7/1 cancelled pi-1 => PENDING
        62s  ben acquires inv-7 for 300s      => token 2
        62s  ben begins inv-7 with token 2 at other => L.2.inv-7 within 3600000 ms
        62s  ben attaches pi-1 to inv-7 with token 2 => refused: object must be another one than the object that was cancelled
        62s  ben attaches pi-2 to inv-7 with token 2 => attached pi-2
    ");
}

#[test]
fn attempts_have_a_limit_and_their_back_off_doubles() {
    check_with(
        Config {
            retries_max: 3,
            ..Config::default()
        },
        "
         0s  op submits inv-7                 => submitted
         0s  ana acquires inv-7 for 300s      => token 1
         0s  ana begins inv-7 with token 1 sticky => L.1.inv-7 within 3600000 ms
         0s  ana settles inv-7/1 with token 1 declined busy retryable sticky => PENDING
         0s  look at inv-7                    => PENDING, next try in 60000 ms
        60s  ana acquires inv-7 for 300s      => token 2
        60s  ana begins inv-7 with token 2 sticky => L.2.inv-7 within 3600000 ms
        60s  ana settles inv-7/2 with token 2 declined busy retryable sticky => PENDING
        60s  look at inv-7                    => PENDING, next try in 120000 ms
       180s  ana acquires inv-7 for 300s      => token 3
       180s  ana begins inv-7 with token 3 sticky => L.3.inv-7 within 3600000 ms
       180s  ana settles inv-7/3 with token 3 declined busy retryable sticky => FAILED
       181s  op requeues inv-7                => PENDING
       181s  ana acquires inv-7 for 300s      => token 4
       181s  ana begins inv-7 with token 4 sticky => L.4.inv-7 within 3600000 ms
       181s  ana settles inv-7/4 with token 4 declined busy retryable sticky => PENDING
    ",
    );
}
