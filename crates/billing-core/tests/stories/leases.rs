//! Leases: granted, refused, renewed, released; tokens; requests that come again.

use crate::check::{check, check_with};
use billing_core::Config;

#[test]
fn one_holder_at_a_time_and_tokens_grow() {
    check("
         0s  ana acquires inv-7 for 10s       => token 1
         1s  ben acquires inv-7 for 10s       => refused: invoice inv-7 is held by ana for another 9000 ms
         2s  ana releases inv-7 with token 1  => released
         2s  ben acquires inv-7 for 10s       => token 2
         2s  ana releases inv-7 with token 1  => was not current
         3s  look at inv-7                    => PROCESSING, ben holds token 2
         4s  ben releases inv-7 with token 2  => released
         4s  ben releases inv-7 with token 2  => was not current
         4s  look at inv-7                    => nothing
    ");
}

#[test]
fn a_holder_that_overslept_cannot_begin() {
    check("
         0s  op submits inv-7                 => submitted
         0s  ana acquires inv-7 for 10s       => token 1
        11s  ben acquires inv-7 for 10s       => token 2
        12s  ana begins inv-7 with token 1    => refused: stale token 1, current 2
        12s  ana renews inv-7 with token 1 for 10s => refused: stale token 1, current 2
        13s  ben releases inv-7 with token 2  => released
        13s  ben begins inv-7 with token 2    => refused: the lease on inv-7 with token 2 has ended
        13s  ana begins inv-7 with token 1    => refused: stale token 1, current 2
        14s  cas acquires inv-7 for 1s        => token 3
        15s  cas begins inv-7 with token 3    => refused: the lease on inv-7 with token 3 has expired
        15s  cas renews inv-7 with token 3    => refused: the lease on inv-7 with token 3 has expired
    ");
}

#[test]
fn two_threads_of_one_process_exclude_each_other() {
    check("
         0s  ana opens a session for 10s      => session for 10000 ms
         0s  ana acquires inv-7 as 1          => token 1
         0s  ana acquires inv-7 as 2          => refused: invoice inv-7 is held by ana for another 10000 ms
         0s  ana acquires inv-7 as 3 waiting 5s => queued
         1s  ana releases request 1           => released
             ana is told token 2
    ");
}

#[test]
fn the_same_seq_gives_the_same_answer_while_the_lease_stands_and_never_a_new_grant() {
    check("
         0s  ana opens a session for 60s      => session for 60000 ms
         0s  ana acquires inv-7 as 1          => token 1
         1s  ana acquires inv-7 as 1          => token 1
         2s  ben acquires inv-8 for 60s       => token 2
         2s  ana acquires inv-8 as 2          => refused: invoice inv-8 is held by ben for another 60000 ms
         3s  ben releases inv-8 with token 2  => released
         3s  ana acquires inv-8 as 2          => refused: invoice inv-8 is held by ben for another 60000 ms
         4s  ana releases inv-7 with token 1  => released
         4s  ana acquires inv-7 as 1          => refused: the lease on inv-7 with token 1 has ended
    ");
}

#[test]
fn the_same_seq_with_other_contents_is_refused() {
    check("
         0s  ana opens a session for 60s      => session for 60000 ms
         0s  ana acquires inv-7 as 1          => token 1
         0s  ana acquires inv-8 as 1          => refused: seq 1 of this session was used for another request
         0s  ana acquires inv-7 as 1 for 5s   => refused: seq 1 of this session was used for another request
         0s  ana claims 3 as 1                => refused: seq 1 of this session was used for another request
         0s  ana acquires inv-8 as 2 below 3  => refused: done_below must be no more than the request's own seq
    ");
}

#[test]
fn an_answer_that_is_no_longer_kept_is_refused() {
    check("
         0s  ana opens a session for 60s      => session for 60000 ms
         0s  ana acquires inv-7 as 1          => token 1
         0s  ana acquires inv-8 as 5 below 5  => token 2
         0s  ana acquires inv-7 as 1          => refused: seq 1 is below 5: its answer is no longer kept
         0s  ana acquires inv-9 as 4          => refused: seq 4 is below 5: its answer is no longer kept
         0s  ana releases request 1           => was not current
         0s  look at inv-7                    => PROCESSING, ana holds token 1
    ");
    check_with(Config { answers_kept_max: 2, ..Config::default() }, "
         0s  ana opens a session for 60s      => session for 60000 ms
         0s  ana acquires inv-1 as 1          => token 1
         0s  ana acquires inv-2 as 2          => token 2
         0s  ana acquires inv-3 as 3          => token 3
         0s  ana acquires inv-1 as 1          => refused: seq 1 is below 2: its answer is no longer kept
         0s  ana acquires inv-2 as 2          => token 2
    ");
}

#[test]
fn a_request_that_was_withdrawn_is_refused_even_if_it_arrives_late() {
    check(
        "
         0s  ana opens a session for 60s      => session for 60000 ms
         0s  ana releases request 1           => was not current
         1s  ana acquires inv-7 as 1          => refused: the lease on inv-7 with token 0 has ended
         1s  ana releases request 2           => was not current
         1s  ana claims 3 as 2                => refused: the claim with seq 2 has ended
         1s  ben releases request             => was not current
         2s  ben acquires inv-7 for 10s again => refused: the lease on inv-7 with token 0 has ended
    ",
    );
}

#[test]
fn the_same_request_id_gives_the_same_lease_and_no_second_one_after_its_end() {
    check("
         0s  ana acquires inv-7 for 10s       => token 1
         1s  ana acquires inv-7 for 10s again => token 1
         1s  ana acquires inv-7 for 20s again => refused: seq 1 of this session was used for another request
         2s  ana releases inv-7 with token 1  => released
         3s  ana acquires inv-7 for 10s again => refused: the lease on inv-7 with token 1 has ended
       600s  ana acquires inv-7 for 10s again => refused: the lease on inv-7 with token 1 has ended
       602s  ana acquires inv-7 for 10s again => token 2
    ");
    check("
         0s  ana acquires inv-7 for 10s       => token 1
         1s  ben acquires inv-7 for 10s       => refused: invoice inv-7 is held by ana for another 9000 ms
        11s  ben acquires inv-7 for 10s again => refused: invoice inv-7 is held by ana for another 9000 ms
        11s  ben acquires inv-7 for 10s       => token 2
    ");
}

#[test]
fn a_lease_with_a_ttl_of_its_own_ends_at_whichever_comes_first() {
    check(
        "
         0s  ana opens a session for 10s      => session for 10000 ms
         0s  ana acquires inv-1 as 1 for 4s   => token 1
         0s  ana acquires inv-2 as 2 for 60s  => token 2
         3s  ana renews inv-1 with token 1    => renewed for 4000 ms
         4s  ana renews inv-2 with token 2    => renewed for 6000 ms
         7s  ben acquires inv-1 for 60s       => token 3
         7s  ana renews inv-1 with token 1    => refused: stale token 1, current 3
        10s  ben acquires inv-2 for 60s       => token 4
    ",
    );
}

#[test]
fn renewing_moves_an_implicit_session_and_nothing_for_who_has_no_ttl_of_its_own() {
    check(
        "
         0s  ana acquires inv-7 for 10s       => token 1
         9s  ana renews inv-7 with token 1    => renewed for 10000 ms
        18s  ana renews inv-7 with token 1 for 60s => renewed for 60000 ms
        18s  cas renews inv-9 with token 1    => refused: the lease on inv-9 with token 1 has ended
        20s  ben opens a session for 10s      => session for 10000 ms
        20s  ben acquires inv-8 as 1          => token 2
        22s  ben renews inv-8 with token 2    => renewed for 8000 ms
        23s  ben renews inv-8 with token 2 for 2s => renewed for 2000 ms
        25s  cas acquires inv-8 for 10s       => token 3
    ",
    );
}

#[test]
fn only_what_is_pending_in_doubt_or_waiting_can_be_leased() {
    check("
         0s  op submits inv-1                 => submitted
         0s  op cancels inv-1                 => CANCELLED
         0s  ana acquires inv-1 for 10s       => refused: invoice inv-1 is CANCELLED and cannot be leased
         0s  op submits inv-2                 => submitted
         0s  ana acquires inv-2 for 10s       => token 1
         0s  ana begins inv-2 with token 1 sticky => L.1.inv-2 within 3600000 ms
         0s  ana settles inv-2/1 with token 1 declined stolen sticky => FAILED
         0s  ana acquires inv-2 for 10s       => refused: invoice inv-2 is FAILED and cannot be leased
         0s  op submits inv-3                 => submitted
         0s  ana acquires inv-3 for 10s       => token 2
         0s  ana begins inv-3 with token 2    => L.1.inv-3 within 3600000 ms
         0s  ana settles inv-3/1 with token 2 charged ch-3 => PAID
         0s  ana acquires inv-3 for 10s       => refused: invoice inv-3 is paid already, reference ch-3
         0s  hook settles inv-1/1 charged ch-1 => REVIEW
             alarm: inv-1 ch-1: charged although cancelled
         0s  ana acquires inv-1 for 10s waiting 10s => refused: invoice inv-1 is REVIEW and cannot be leased
    ");
}

#[test]
fn leases_of_one_session_have_a_bound() {
    check_with(Config { leases_per_session_max: 2, ..Config::default() }, "
         0s  op submits inv-1                 => submitted
         0s  op submits inv-2                 => submitted
         0s  ana opens a session for 60s      => session for 60000 ms
         0s  ana acquires inv-9 as 1          => token 1
         0s  ana claims 5 as 2                => claimed [inv-1:2]
         0s  ana acquires inv-2 as 3          => refused: overloaded: more than 2 leases in one session
         0s  ana claims 5 as 4                => refused: overloaded: more than 2 leases in one session
    ");
}

#[test]
fn a_watcher_hears_every_grant_and_every_end_and_by_whom() {
    check("
         0s  ana opens a session for 10s      => session for 10000 ms
         0s  ana acquires inv-1 as 1          => token 1
         0s  ana acquires inv-2 as 2 for 5s   => token 2
         0s  op submits inv-3                 => submitted
         0s  ana acquires inv-3 as 3          => token 3
         0s  ana acquires inv-4 as 4          => token 4
         0s  ben acquires inv-5 for 20s       => token 5
         0s  events from 1                    => [acquired inv-1 1 ana; acquired inv-2 2 ana; acquired inv-3 3 ana; acquired inv-4 4 ana; acquired inv-5 5 ben], next 8
         1s  ana releases inv-1 with token 1  => released
         2s  op forces inv-5                  => forced, PENDING
         3s  op cancels inv-3                 => CANCELLED
         4s  events from 8                    => [released inv-1 1 ana; force-released inv-5 5 ben; lease ended inv-3 3 ana], next 12
        20s  tick                             => done
        20s  events from 12                   => [lease ended with its session inv-2 2 ana; lease ended with its session inv-4 4 ana], next 15
        20s  events from 15                   => [], next 15
        20s  events from 99                   => [], next 99
    ");
}

#[test]
fn a_settlement_ends_the_lease_for_its_watchers_too() {
    check("
         0s  op submits inv-1                 => submitted
         0s  ana acquires inv-1 for 60s       => token 1
         1s  ana begins inv-1 with token 1    => L.1.inv-1 within 3600000 ms
         2s  ana settles inv-1/1 charged ch-1 with token 1 => PAID
         2s  events from 1                    => [acquired inv-1 1 ana; lease ended inv-1 1 ana], next 7
    ");
}
