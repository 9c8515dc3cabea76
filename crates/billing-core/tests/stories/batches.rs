//! The order in a batch, and time (§4).

use crate::check::check;

#[test]
fn a_stalled_leader_does_not_kill_sessions_whose_keep_alives_sat_in_its_queue() {
    check("
         0s  ana opens a session for 10s      => session for 10000 ms
         0s  ana acquires inv-7 as 1          => token 1
        15s  ben acquires inv-7 for 10s       => refused: invoice inv-7 is held by ana for another 10000 ms
             & ana keeps alive                => session for 10000 ms
        24s  ana keeps alive                  => session for 10000 ms
    ");
}

#[test]
fn a_keep_alive_in_a_later_batch_comes_too_late() {
    check("
         0s  ana opens a session for 10s      => session for 10000 ms
        10s  tick                             => done
        10s  ana keeps alive                  => refused: session 01010101010101010101010101010101 has ended and is never revived
    ");
}

#[test]
fn open_keep_and_close_of_one_session_keep_their_order() {
    check("
         0s  ana opens a session for 10s      => session for 10000 ms
             & ana keeps alive                => session for 10000 ms
         1s  ana keeps alive                  => session for 10000 ms
             & ana closes                     => closed
         2s  ben opens a session for 10s      => session for 10000 ms
         3s  ben closes                       => closed
             & ben keeps alive                => refused: session 02020202020202020202020202020202 has ended and is never revived
         4s  cas keeps alive                  => refused: session 03030303030303030303030303030303 is not known
             & cas opens a session for 10s    => session for 10000 ms
    ");
}

#[test]
fn every_due_session_ends_before_any_waiter_is_granted() {
    check("
         0s  ana opens a session for 10s      => session for 10000 ms
         0s  ben opens a session for 10s      => session for 10000 ms
         0s  ana acquires inv-7 as 1          => token 1
         0s  ben acquires inv-7 as 1 waiting 60s => queued
         0s  cas acquires inv-7 for 60s waiting 60s => queued
        12s  tick                             => done
             ben is told refused: session 02020202020202020202020202020202 has ended and is never revived
             cas is told token 2
    ");
}

#[test]
fn expiry_comes_before_the_commands_of_its_batch() {
    check(
        "
         0s  ana acquires inv-7 for 10s       => token 1
        10s  ben acquires inv-7 for 10s       => token 2
             & ana releases inv-7 with token 1 => was not current
    ",
    );
}

#[test]
fn time_never_goes_back_and_is_never_counted_twice() {
    check(
        "
         0s  ana acquires inv-7 for 60s       => token 1
        10s  tick                             => done
        10s  time is                          => 10000 ms
        20s  a new leader counts from 10s
        25s  tick                             => done
        25s  time is                          => 15000 ms
        26s  a new leader counts from 3s
        27s  tick                             => done
        27s  time is                          => 15000 ms
        58s  tick                             => done
        58s  time is                          => 35000 ms
    ",
    );
}

#[test]
fn a_wall_clock_that_jumps_a_year_ends_no_lease() {
    check("
         0s  ana acquires inv-7 for 10s       => token 1
         1s  wall is 365d ahead
         2s  ben acquires inv-7 for 10s       => refused: invoice inv-7 is held by ana for another 8000 ms
         3s  wall is 365d behind
         4s  ben acquires inv-7 for 10s       => refused: invoice inv-7 is held by ana for another 6000 ms
        10s  ben acquires inv-7 for 10s       => token 2
    ");
}

#[test]
fn the_leader_ticks_as_often_as_the_shortest_ttl_needs() {
    check(
        "
         0s  ana opens a session for 300s     => session for 300000 ms
         0s  ticks                            => every 30000 ms
         5s  ben opens a session for 1s       => session for 1000 ms
         5s  ticks                            => every 100 ms
         6s  tick                             => done
         6s  ticks                            => every 30000 ms
    ",
    );
}

#[test]
fn the_leader_ticks_while_something_pends_and_not_otherwise() {
    check(
        "
         0s  ticks                            => none
         0s  ana acquires inv-7 for 1s        => token 1
         0s  ticks                            => every 100 ms
         0s  ana renews inv-7 with token 1 for 30s => renewed for 30000 ms
         0s  ticks                            => every 3000 ms
         1s  op submits inv-8                 => submitted
         1s  ana releases inv-7 with token 1  => released
         1s  ticks                            => none
         2s  ana acquires inv-8 for 30s       => token 2
         2s  ana begins inv-8 with token 2    => L.1.inv-8 within 3600000 ms
         3s  ana releases inv-8 with token 2  => released
         3s  ticks                            => every 1000 ms
    ",
    );
}

#[test]
fn items_of_one_command_stand_alone() {
    check("
         0s  ana opens a session for 10s      => session for 10000 ms
         0s  ben acquires inv-8 for 60s       => token 1
         1s  ana acquires each: inv-7 as 1; inv-8 as 2; inv-9 as 3; inv-7 as 1 => [token 2; refused: invoice inv-8 is held by ben for another 59000 ms; token 3; token 2]
         2s  ana renews each: inv-7 with token 2 for 5s; inv-8 with token 2; inv-9 with token 3 for 4s => [renewed for 5000 ms; refused: stale token 2, current 1; renewed for 4000 ms]
         3s  ana releases each: inv-7 with token 2; inv-7 with token 2; request 3; request 9 => [released; was not current; released; was not current]
         3s  ana acquires each: inv-7 as 9; inv-7 as 10 => [refused: the lease on inv-7 with token 0 has ended; token 4]
    ");
}

#[test]
fn an_item_that_waits_is_answered_by_its_slot() {
    check(
        "
         0s  ana opens a session for 60s      => session for 60000 ms
         0s  ben acquires inv-8 for 60s       => token 1
         0s  ana acquires each: inv-7 as 1; inv-8 as 2 waiting 30s => [token 2; queued]
         1s  ben releases inv-8 with token 1  => released
             ana is told token 3
         2s  ana acquires each: inv-7 as 1; inv-8 as 2 waiting 30s => [token 2; token 3]
    ",
    );
}

#[test]
fn what_one_item_frees_the_next_waiter_has_before_the_next_item() {
    check("
         0s  ana opens a session for 60s      => session for 60000 ms
         0s  ana acquires each: inv-7 as 1; inv-8 as 2 => [token 1; token 2]
         0s  ben acquires inv-7 for 10s waiting 30s => queued
         0s  cas acquires inv-8 for 10s waiting 30s => queued
         1s  ana releases each: inv-8 with token 2; inv-7 with token 1; inv-8 with token 3 => [released; released; released]
             cas is told token 3
             ben is told token 4
    ");
}

#[test]
fn a_batch_that_frees_an_invoice_and_asks_for_it_keeps_its_order() {
    check("
         0s  ana opens a session for 60s      => session for 60000 ms
         0s  ana acquires each: inv-7 as 1    => [token 1]
         1s  ben acquires each: inv-7 for 10s => [refused: invoice inv-7 is held by ana for another 59000 ms]
             & ana releases each: inv-7 with token 1 => [released]
             & cas acquires each: inv-7 for 10s => [token 2]
    ");
}

#[test]
fn many_in_one_command_are_refused_whole_before_the_bootstrap() {
    check(
        "
         0s  ana acquires each: inv-7 for 10s => refused: the ledger is not bootstrapped
         0s  op bootstraps L, no prior charges => bootstrapped L
    ",
    );
}
