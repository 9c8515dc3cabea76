//! Claims: order, doubt first up to half, back-offs.

use crate::check::check;

#[test]
fn claims_go_by_due_time_then_priority_then_order_of_submission() {
    check(
        "
         0s  op submits inv-late due 30s      => submitted
             & op submits inv-b due 10s       => submitted
             & op submits inv-a due 10s       => submitted
             & op submits inv-high due 10s priority 5 => submitted
             & op submits inv-first due 5s    => submitted
         0s  ana opens a session for 300s     => session for 300000 ms
         1s  ana claims 10 as 1               => claimed [], next in 4000 ms
        10s  ana claims 3 as 2                => claimed [inv-first:1 inv-high:2 inv-b:3]
        11s  ana claims 3 as 2                => claimed [inv-first:1 inv-high:2 inv-b:3]
        12s  ana releases inv-high with token 2 => released
        12s  ana claims 3 as 2                => claimed [inv-first:1 inv-b:3]
        13s  ana claims 3 as 3                => claimed [inv-high:4 inv-a:5]
        30s  ana claims 3 as 4                => claimed [inv-late:6]
        31s  ana releases request 3           => released
        31s  ana claims 3 as 3                => claimed [], next in 0 ms
        31s  ana claims 3 as 5                => claimed [inv-high:7 inv-a:8]
    ",
    );
}

#[test]
fn what_is_in_doubt_comes_first_but_never_more_than_half_of_a_claim() {
    check(
        "
         0s  op submits inv-1                 => submitted
             & op submits inv-2               => submitted
             & op submits inv-3               => submitted
             & op submits inv-4               => submitted
             & op submits inv-5               => submitted
             & op submits inv-6               => submitted
         0s  ana opens a session for 300s     => session for 300000 ms
         0s  ana claims 3 as 1                => claimed [inv-1:1 inv-2:2 inv-3:3]
         0s  ana begins inv-1 with token 1    => L.1.inv-1 within 3600000 ms
         0s  ana begins inv-2 with token 2    => L.1.inv-2 within 3600000 ms
         0s  ana begins inv-3 with token 3    => L.1.inv-3 within 3600000 ms
         1s  ana closes                       => closed
         1s  ben opens a session for 300s     => session for 300000 ms
         1s  ben claims 1 as 1                => claimed [inv-4:4]
         2s  ben claims 4 as 2                => claimed [inv-1:5 inv-2:6 inv-5:7 inv-6:8]
         2s  ben claims 1 as 3                => claimed [inv-3:9]
         2s  ben claims 9 as 4                => claimed []
    ",
    );
}

#[test]
fn an_attempt_in_doubt_backs_off_longer_each_time() {
    check("
         0s  op submits inv-1                 => submitted
         0s  ana opens a session for 300s     => session for 300000 ms
         0s  ana claims 1 as 1                => claimed [inv-1:1]
         0s  ana begins inv-1 with token 1    => L.1.inv-1 within 3600000 ms
         0s  ana settles inv-1/1 with token 1 unknown => IN_DOUBT
         0s  look at inv-1                    => IN_DOUBT, attempt 1 Open, next try in 1000 ms
         0s  ana claims 1 as 2                => claimed [], next in 1000 ms
         1s  ana claims 1 as 3                => claimed [inv-1:2]
         1s  ana releases inv-1 with token 2  => released
         1s  look at inv-1                    => IN_DOUBT, attempt 1 Open, next try in 2000 ms
         2s  ana acquires inv-1 as 4          => token 3, attempt 1 Open
         2s  ana begins inv-1 with token 3    => refused: invoice inv-1 is not due for another 1000 ms
         3s  ana begins inv-1 with token 3    => L.1.inv-1 within 3597000 ms, taken over
         3s  ana settles inv-1/1 with token 3 unknown => IN_DOUBT
         3s  look at inv-1                    => IN_DOUBT, attempt 1 Open, next try in 4000 ms
    ");
}

#[test]
fn a_closing_attempt_is_claimed_when_a_look_up_counts() {
    check(
        "
         0s  op submits inv-1                 => submitted
         0s  ana opens a session for 300s     => session for 300000 ms
         0s  ana claims 1 as 1                => claimed [inv-1:1]
         0s  ana begins inv-1 with token 1 lookup valid 10s flight 5s => L.1.inv-1 within 10000 ms
         1s  ana settles inv-1/1 with token 1 declined busy retryable => IN_DOUBT
        15s  ana claims 1 as 2                => claimed [], next in 1 ms
        16s  ana claims 1 as 3                => claimed [inv-1:2]
        16s  ana settles inv-1/1 with token 2 found none => PENDING
    ",
    );
}

#[test]
fn waiting_invoices_are_not_claimed() {
    check(
        "
         0s  op submits inv-1                 => submitted
         0s  ana opens a session for 300s     => session for 300000 ms
         0s  ana claims 1 as 1                => claimed [inv-1:1]
         0s  ana begins inv-1 with token 1 lookup => L.1.inv-1 within 3600000 ms
         0s  ana settles inv-1/1 with token 1 pending 60s => WAITING
        50s  ana claims 1 as 2                => claimed [], next in 10000 ms
        60s  ana claims 1 as 3                => claimed [inv-1:2]
    ",
    );
}
