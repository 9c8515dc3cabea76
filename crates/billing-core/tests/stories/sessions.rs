//! Sessions: opened, kept alive, closed, never revived.

use crate::check::{check, check_with};
use billing_core::Config;

#[test]
fn a_session_lives_as_long_as_it_is_kept_alive() {
    check("
         0s  ana opens a session for 10s      => session for 10000 ms
         9s  ana keeps alive                  => session for 10000 ms
        18s  ana keeps alive                  => session for 10000 ms
        28s  tick                             => done
        28s  ana keeps alive                  => refused: session 01010101010101010101010101010101 has ended and is never revived
    ");
}

#[test]
fn opening_is_idempotent_by_id_and_keeps_alive() {
    check(
        "
         0s  ana opens a session for 10s      => session for 10000 ms
         6s  ana opens a session for 10s      => session for 10000 ms
        12s  ana keeps alive                  => session for 10000 ms
    ",
    );
}

#[test]
fn the_id_of_an_open_session_is_nobody_elses() {
    check("
         0s  ana opens a session for 10s      => session for 10000 ms
         1s  ana opens a session for 20s      => refused: session_id must be an id of your own: this one is open with another holder or ttl_ms
         1s  ana opens a session for 10s as ben => refused: session_id must be an id of your own: this one is open with another holder or ttl_ms
    ");
}

#[test]
fn a_closed_or_expired_session_is_never_revived() {
    check("
         0s  ana opens a session for 10s      => session for 10000 ms
         1s  ana closes                       => closed
         1s  ana closes                       => was not open
         1s  ana opens a session for 10s      => refused: session 01010101010101010101010101010101 has ended and is never revived
         2s  ben opens a session for 10s      => session for 10000 ms
        12s  ben opens a session for 10s      => refused: session 02020202020202020202020202020202 has ended and is never revived
        12s  ben acquires inv-7 as 1          => refused: session 02020202020202020202020202020202 has ended and is never revived
    ");
}

#[test]
fn a_close_that_overtakes_its_open_keeps_it_out() {
    check("
         0s  ana closes                       => was not open
         1s  ana opens a session for 10s      => refused: session 01010101010101010101010101010101 has ended and is never revived
    ");
}

#[test]
fn who_never_opened_has_nothing_to_keep() {
    check("
         0s  ana keeps alive                  => refused: session 01010101010101010101010101010101 is not known
         0s  ana acquires inv-7 as 1          => refused: session 01010101010101010101010101010101 is not known
         0s  ana claims 5 as 1                => refused: session 01010101010101010101010101010101 is not known
         0s  ana releases request 2           => refused: session 01010101010101010101010101010101 is not known
    ");
}

#[test]
fn its_leases_and_waiters_end_with_a_session() {
    check("
         0s  ana opens a session for 10s      => session for 10000 ms
         0s  ana acquires inv-1 as 1          => token 1
         0s  ben acquires inv-2 for 60s       => token 2
         0s  ana acquires inv-2 as 2 waiting 60s => queued
         0s  cas acquires inv-1 for 60s waiting 60s => queued
        10s  tick                             => done
             ana is told refused: session 01010101010101010101010101010101 has ended and is never revived
             cas is told token 3
        11s  ben releases inv-2 with token 2  => released
        11s  look at inv-2                    => nothing
    ");
}

#[test]
fn sessions_have_a_bound() {
    check_with(
        Config {
            sessions_open_max: 2,
            ..Config::default()
        },
        "
         0s  ana opens a session for 10s      => session for 10000 ms
         0s  ben acquires inv-1 for 10s       => token 1
         0s  cas opens a session for 10s      => refused: overloaded: more than 2 open sessions
         0s  dan acquires inv-2 for 10s       => refused: overloaded: more than 2 open sessions
        10s  cas opens a session for 10s      => session for 10000 ms
    ",
    );
}

#[test]
fn ended_ids_have_a_bound_and_the_oldest_goes_first() {
    check_with(Config { sessions_ended_max: 1, ..Config::default() }, "
         0s  ana closes                       => was not open
         1s  ben closes                       => was not open
         2s  ben opens a session for 10s      => refused: session 02020202020202020202020202020202 has ended and is never revived
         2s  ana opens a session for 10s      => session for 10000 ms
    ");
}
