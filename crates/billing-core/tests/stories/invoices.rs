//! Invoices: submitted, cancelled, requeued.

use crate::check::check;

#[test]
fn submitting_is_idempotent_and_other_contents_are_refused() {
    check("
         0s  op submits inv-1 of 500 in EUR to cus-1 => submitted
         1s  op submits inv-1 of 500 in eur to cus-1 priority 9 => unchanged
         1s  op submits inv-1 of 501 in EUR to cus-1 => refused: invoice inv-1 was submitted with amount_minor 500, not 501
         1s  op submits inv-1 of 500 in USD to cus-1 => refused: invoice inv-1 was submitted with currency EUR, not USD
         1s  op submits inv-1 of 500 in EUR to cus-2 => refused: invoice inv-1 was submitted with customer_id cus-1, not cus-2
    ");
}

#[test]
fn an_id_that_was_never_submitted_can_be_leased_but_not_charged_cancelled_or_requeued() {
    check("
         0s  ana acquires inv-7 for 60s       => token 1
         0s  ana begins inv-7 with token 1    => refused: invoice inv-7 was never submitted, so it cannot be charged
         0s  op cancels inv-7                 => refused: invoice inv-7 is not known
         0s  op requeues inv-7                => refused: invoice inv-7 is not known
         0s  op cancels inv-8                 => refused: invoice inv-8 is not known
         1s  op submits inv-7                 => submitted
         1s  look at inv-7                    => PROCESSING, ana holds token 1
         1s  ana begins inv-7 with token 1    => L.1.inv-7 within 3600000 ms
    ");
}

#[test]
fn cancelling_is_refused_while_money_may_move_or_has() {
    check("
         0s  op submits inv-1                 => submitted
         0s  ana acquires inv-1 for 60s       => token 1
         0s  ana begins inv-1 with token 1 lookup => L.1.inv-1 within 3600000 ms
         0s  op cancels inv-1                 => refused: attempt 1 of invoice inv-1 is still open
         0s  op requeues inv-1                => refused: attempt 1 of invoice inv-1 is still open
         1s  ana settles inv-1/1 with token 1 declined busy => IN_DOUBT
         1s  op cancels inv-1                 => refused: attempt 1 of invoice inv-1 is still open
         2s  hook settles inv-1/1 charged ch-1 => PAID
         2s  op cancels inv-1                 => refused: invoice inv-1 is paid already, reference ch-1
         2s  op requeues inv-1                => refused: invoice inv-1 is paid already, reference ch-1
         3s  hook settles inv-1/1 charged ch-2 => REVIEW
             alarm: inv-1 ch-2: charged a second time
         3s  op cancels inv-1                 => refused: invoice inv-1 has a recorded charge, reference ch-1
         3s  op requeues inv-1                => refused: invoice inv-1 has a recorded charge, reference ch-1
    ");
}

#[test]
fn requeue_takes_what_has_failed_or_was_cancelled_and_nothing_else() {
    check("
         0s  op submits inv-1                 => submitted
         0s  op requeues inv-1                => refused: invoice inv-1 is PENDING, not FAILED, CANCELLED or REVIEW
         0s  op cancels inv-1                 => CANCELLED
         0s  op cancels inv-1                 => CANCELLED
         0s  op requeues inv-1                => PENDING
         0s  ana acquires inv-1 for 60s       => token 1
         0s  op requeues inv-1                => refused: invoice inv-1 is PROCESSING, not FAILED, CANCELLED or REVIEW
         0s  ana begins inv-1 with token 1 sticky => L.1.inv-1 within 3600000 ms
         0s  ana settles inv-1/1 with token 1 declined stolen sticky => FAILED
         1s  op requeues inv-1                => PENDING
         1s  ana acquires inv-1 for 60s       => token 2
         1s  ana begins inv-1 with token 2    => L.2.inv-1 within 3600000 ms
    ");
}
