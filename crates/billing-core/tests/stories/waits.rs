//! The queue in front of a leased invoice.

use crate::check::{check, check_with};
use billing_core::Config;

#[test]
fn waiters_are_granted_in_order_in_the_apply_that_frees_the_invoice() {
    check(
        "
         0s  ana acquires inv-7 for 10s       => token 1
         0s  ben acquires inv-7 for 20s waiting 60s => queued
         1s  cas acquires inv-7 for 20s waiting 60s => queued
         2s  ben acquires inv-7 for 20s waiting 60s again => queued
         3s  ana releases inv-7 with token 1  => released
             ben is told token 2
         3s  ben acquires inv-7 for 20s waiting 60s again => token 2
        23s  tick                             => done
             cas is told token 3
        23s  look at inv-7                    => PROCESSING, cas holds token 3
    ",
    );
}

#[test]
fn a_wait_ends_at_its_deadline() {
    check("
         0s  ana acquires inv-7 for 60s       => token 1
         0s  ben acquires inv-7 for 20s waiting 5s => queued
         5s  tick                             => done
             ben is told refused: invoice inv-7 is held by ana for another 55000 ms
         6s  ana releases inv-7 with token 1  => released
         6s  ben acquires inv-7 for 20s waiting 5s again => refused: invoice inv-7 is held by ana for another 55000 ms
    ");
}

#[test]
fn a_cancelled_call_withdraws_its_waiter_and_never_a_grant() {
    check("
         0s  ana acquires inv-7 for 60s       => token 1
         0s  ben opens a session for 60s      => session for 60000 ms
         0s  ben acquires inv-7 as 1 waiting 30s => queued
         1s  ben withdraws request 1          => withdrawn
             ben is told refused: the lease on inv-7 with token 0 has ended
         1s  ben withdraws request 1          => was not waiting
         1s  ben acquires inv-7 as 1 waiting 30s => refused: the lease on inv-7 with token 0 has ended
         2s  ben acquires inv-7 as 2 waiting 30s => queued
         3s  ana releases inv-7 with token 1  => released
             ben is told token 2
         3s  ben withdraws request 2          => was not waiting
         3s  look at inv-7                    => PROCESSING, ben holds token 2
    ");
}

#[test]
fn a_request_whose_answer_was_lost_is_released_by_its_seq() {
    check("
         0s  ana acquires inv-7 for 60s       => token 1
         0s  ben acquires inv-7 for 60s waiting 30s => queued
         1s  ben releases request             => was not current
             ben is told refused: the lease on inv-7 with token 0 has ended
         1s  ben acquires inv-7 for 60s waiting 30s again => refused: the lease on inv-7 with token 0 has ended
         2s  ana releases request             => released
         2s  look at inv-7                    => nothing
    ");
}

#[test]
fn an_invoice_that_is_over_answers_all_its_waiters_in_the_same_apply() {
    check(
        "
         0s  op submits inv-1                 => submitted
         0s  ana acquires inv-1 for 60s       => token 1
         0s  ben acquires inv-1 for 60s waiting 60s => queued
         0s  cas acquires inv-1 for 60s waiting 60s => queued
         1s  ana begins inv-1 with token 1    => L.1.inv-1 within 3600000 ms
         2s  ana settles inv-1/1 with token 1 charged ch-1 => PAID
             ben is told refused: invoice inv-1 is paid already, reference ch-1
             cas is told refused: invoice inv-1 is paid already, reference ch-1
    ",
    );
    check(
        "
         0s  op submits inv-1                 => submitted
         0s  ana acquires inv-1 for 60s       => token 1
         0s  ben acquires inv-1 for 60s waiting 60s => queued
         1s  op cancels inv-1                 => CANCELLED
             ben is told refused: invoice inv-1 is CANCELLED and cannot be leased
         1s  ana begins inv-1 with token 1    => refused: the lease on inv-1 with token 1 has ended
    ",
    );
    check(
        "
         0s  op submits inv-1                 => submitted
         0s  ana acquires inv-1 for 60s       => token 1
         0s  ana begins inv-1 with token 1 sticky => L.1.inv-1 within 3600000 ms
         0s  ben acquires inv-1 for 60s waiting 60s => queued
         1s  ana settles inv-1/1 with token 1 declined stolen sticky => FAILED
             ben is told refused: invoice inv-1 is FAILED and cannot be leased
    ",
    );
    check("
         0s  op submits inv-1                 => submitted
         0s  ana acquires inv-1 for 300s      => token 1
         0s  ana begins inv-1 with token 1 valid 10s flight 10s => L.1.inv-1 within 10000 ms
         0s  ben acquires inv-1 for 60s waiting 60s => queued
        30s  ana releases inv-1 with token 1  => released
             ben is told refused: invoice inv-1 is REVIEW and cannot be leased
        30s  look at inv-1                    => REVIEW, attempt 1 Open, no answer, and the provider cannot be asked, next try in 1000 ms
    ");
}

#[test]
fn queues_have_bounds() {
    check_with(Config { waiters_per_invoice_max: 1, ..Config::default() }, "
         0s  ana acquires inv-7 for 60s       => token 1
         0s  ben acquires inv-7 for 60s waiting 60s => queued
         0s  cas acquires inv-7 for 60s waiting 60s => refused: overloaded: more than 1 waiters on one invoice
    ");
    check_with(Config { waiters_per_session_max: 1, ..Config::default() }, "
         0s  ana acquires inv-1 for 60s       => token 1
         0s  ana acquires inv-2 for 60s       => token 2
         0s  ben opens a session for 60s      => session for 60000 ms
         0s  ben acquires inv-1 as 1 waiting 60s => queued
         0s  ben acquires inv-2 as 2 waiting 60s => refused: overloaded: more than 1 waiting requests in one session
    ");
    check_with(
        Config {
            leases_per_session_max: 1,
            ..Config::default()
        },
        "
         0s  ana acquires inv-1 for 60s       => token 1
         0s  ben opens a session for 60s      => session for 60000 ms
         0s  ben acquires inv-1 as 1 waiting 60s => queued
         0s  ben acquires inv-2 as 2          => token 2
         0s  cas acquires inv-1 for 60s waiting 60s => queued
         1s  ana releases inv-1 with token 1  => released
             ben is told refused: overloaded: more than 1 leases in one session
             cas is told token 3
    ",
    );
}
