//! The operator's switches: bootstrap, restore, AllowCharges, PauseProvider, ForceRelease.

use crate::check::check;

#[test]
fn nothing_works_before_the_bootstrap() {
    check(
        "
         0s  ana opens a session for 10s      => refused: the ledger is not bootstrapped
         0s  ana keeps alive                  => refused: the ledger is not bootstrapped
         0s  op restores                      => refused: the ledger is not bootstrapped
         0s  tick                             => done
         1s  op bootstraps L no prior charges => bootstrapped L
         1s  op bootstraps M no prior charges => refused: the ledger is bootstrapped already, as L
    ",
    );
}

#[test]
fn a_bootstrap_that_is_not_said_to_be_the_first_holds_leases_and_charges_back() {
    check("
         0s  op bootstraps L                  => bootstrapped L
         0s  op submits inv-7                 => submitted
         0s  ana opens a session for 300s     => session for 300000 ms
         0s  ana acquires inv-7 as 1 waiting 60s => refused: no lease is granted for another 300000 ms after a bootstrap or restore
       200s  ana keeps alive                  => session for 300000 ms
       200s  ana claims 1 as 2                => refused: no lease is granted for another 100000 ms after a bootstrap or restore
    ");
}

#[test]
fn after_a_restore_nothing_begins_or_continues_until_charges_are_allowed() {
    check("
         0s  op submits inv-1                 => submitted
         0s  op submits inv-2                 => submitted
         0s  ana opens a session for 60s      => session for 60000 ms
         0s  ana acquires inv-1 as 1          => token 1
         0s  ana begins inv-1 with token 1    => L.1.inv-1 within 3600000 ms
         0s  ben acquires inv-1 for 60s waiting 60s => queued
         1s  op restores                      => restored L
             ben is told refused: session 02020202020202020202020202020202 has ended and is never revived
         1s  look at inv-1                    => IN_DOUBT, attempt 1 Open, next try in 1000 ms
         1s  ana begins inv-1 with token 1    => refused: the lease on inv-1 with token 1 has ended
         2s  cas acquires inv-2 for 60s       => refused: no lease is granted for another 299000 ms after a bootstrap or restore
       301s  cas acquires inv-2 for 60s       => token 1048576001
       301s  cas begins inv-2 with token 1048576001 => refused: charges are not allowed since a bootstrap or restore: compare with the provider's books, then AllowCharges
       302s  dan acquires inv-1 for 60s       => token 1048576002, attempt 1 Open
       302s  dan begins inv-1 with token 1048576002 => refused: charges are not allowed since a bootstrap or restore: compare with the provider's books, then AllowCharges
       303s  op allows charges                => done
       303s  op allows charges                => done
       303s  cas begins inv-2 with token 1048576001 => L.1.inv-2 within 3600000 ms
       303s  dan begins inv-1 with token 1048576002 => L.1.inv-1 within 3297000 ms, taken over
    ");
}

/// The restored ledger does not know that attempt 1 was made; the provider may, and may forget it at any moment.
#[test]
fn a_decline_under_a_key_that_may_be_older_than_the_restore_proves_nothing_for_two_months() {
    check(
        "
         0s  op submits inv-1                 => submitted
         0s  op submits inv-2                 => submitted
         0s  op restores                      => restored L
       300s  op allows charges                => done
       300s  ana acquires inv-1 for 60s       => token 536870913
       300s  ana begins inv-1 with token 536870913 sticky => L.1.inv-1 within 3600000 ms
       301s  ana settles inv-1/1 with token 536870913 declined stolen sticky => IN_DOUBT
        61d  ana acquires inv-2 for 60s       => token 536870914
        61d  ana begins inv-2 with token 536870914 sticky => L.1.inv-2 within 3600000 ms
        61d  ana settles inv-2/1 with token 536870914 declined stolen sticky => FAILED
    ",
    );
}

#[test]
fn a_shorter_longest_ttl_is_kept_by_everybody_and_is_what_a_restore_waits_for() {
    check("
         0s  op bootstraps L no prior charges for 5s => bootstrapped L
         0s  op bootstraps L no prior charges for 9s => refused: the ledger is bootstrapped already, as L
         0s  op submits inv-7                 => submitted
         0s  ana opens a session for 6s       => refused: ttl_ms must be at most 5000, the longest that this ledger was founded with
         0s  ana opens a session for 5s       => session for 5000 ms
         0s  ana acquires inv-7 as 1 for 6s   => refused: ttl_ms must be at most 5000, the longest that this ledger was founded with
         0s  ben acquires inv-7 for 6s        => refused: ttl_ms must be at most 5000, the longest that this ledger was founded with
         1s  op restores                      => restored L
         2s  ben acquires inv-7 for 5s        => refused: no lease is granted for another 4000 ms after a bootstrap or restore
    ");
}

#[test]
fn facts_about_money_are_taken_while_charges_are_not_allowed() {
    check(
        "
         0s  op submits inv-1                 => submitted
         0s  ana acquires inv-1 for 60s       => token 1
         0s  ana begins inv-1 with token 1    => L.1.inv-1 within 3600000 ms
         1s  op restores                      => restored L
         2s  hook settles inv-1/1 charged ch-1 => PAID
    ",
    );
}

#[test]
fn a_paused_provider_begins_and_continues_nothing() {
    check(
        "
         0s  op submits inv-7                 => submitted
         0s  ana acquires inv-7 for 60s       => token 1
         0s  op pauses psp                    => done
         0s  ana begins inv-7 with token 1    => refused: provider psp is paused: an outage
         0s  ana begins inv-7 with token 1 at other => L.1.inv-7 within 3600000 ms
         0s  op pauses other                  => done
         0s  ana begins inv-7 with token 1 at other => refused: provider other is paused: an outage
         1s  op resumes other                 => done
         1s  ana begins inv-7 with token 1 at other => L.1.inv-7 within 3599000 ms, taken over
         1s  op pauses other                  => done
         1s  ana settles inv-7/1 with token 1 charged ch-1 => PAID
    ",
    );
}

#[test]
fn a_forced_release_kills_the_token_and_leaves_the_attempt_in_doubt() {
    check("
         0s  op forces inv-7                  => refused: invoice inv-7 is not known
         0s  op submits inv-7                 => submitted
         0s  op forces inv-7                  => was not leased, PENDING
         0s  ana acquires inv-7 for 60s       => token 1
         0s  ana begins inv-7 with token 1    => L.1.inv-7 within 3600000 ms
         0s  ben acquires inv-7 for 60s waiting 60s => queued
         1s  op forces inv-7                  => forced, IN_DOUBT
             ben is told token 2, attempt 1 Open
         1s  ana settles inv-7/1 with token 1 unknown => refused: stale token 1, current 2
         1s  look at inv-7                    => CHARGING, ben holds token 2, attempt 1 Open, next try in 1000 ms
    ");
}
