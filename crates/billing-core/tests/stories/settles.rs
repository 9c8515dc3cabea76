//! What an outcome proves: SettleCharge and ResolveCharge.

use crate::check::check;

/// inv-7 is submitted, leased by ana with token 1, and attempt 1 is open: with keys only, or as `terms` says.
fn charging(terms: &str, story: &str) {
    check(&format!(
        "
         0s  op submits inv-7                 => submitted
         0s  ana acquires inv-7 for 60s       => token 1
         0s  ana begins inv-7 with token 1 {terms} valid 10s flight 5s => L.1.inv-7 within 10000 ms
         {story}
    "
    ));
}

#[test]
fn a_charge_is_a_fact_whatever_the_token() {
    charging(
        "",
        "
         1s  ana settles inv-7/1 with token 1 charged ch-1 of 500 in EUR => PAID
         2s  ana settles inv-7/1 with token 1 charged ch-1 => PAID
    ",
    );
    charging("", "
         1s  hook settles inv-7/1 charged ch-1 => PAID
         1s  ana settles inv-7/1 with token 1 declined busy sole => refused: invoice inv-7 is paid already, reference ch-1
    ");
    charging(
        "",
        "
         1s  hook settles inv-7/1 found ch-1  => PAID
    ",
    );
}

#[test]
fn a_second_charge_goes_in_front_of_a_person() {
    charging("", "
         1s  ana settles inv-7/1 with token 1 charged ch-1 => PAID
         2s  hook settles inv-7/1 charged ch-2 => REVIEW
             alarm: inv-7 ch-2: charged a second time
         3s  hook settles inv-7/1 charged ch-2 => REVIEW
         3s  cas acquires inv-7 for 60s       => refused: invoice inv-7 is REVIEW and cannot be leased
    ");
}

#[test]
fn another_sum_goes_in_front_of_a_person() {
    charging(
        "",
        "
         1s  ana settles inv-7/1 with token 1 charged ch-1 of 499 => REVIEW
             alarm: inv-7 ch-1: charged with another sum than invoiced
    ",
    );
    charging(
        "",
        "
         1s  ana settles inv-7/1 with token 1 charged ch-1 of 500 in USD => REVIEW
             alarm: inv-7 ch-1: charged with another sum than invoiced
         2s  eve resolves inv-7/1 charged ch-1 => PAID
    ",
    );
}

#[test]
fn a_key_of_another_ledger_or_invoice_is_refused() {
    charging("", "
         1s  ana settles inv-7/1 with token 1 charged ch-1 ledger M => refused: key M.1.inv-7 is not of this ledger, L
         1s  ana settles inv-7/2 with token 1 unknown => refused: L.2.inv-7 is not the key of the open attempt of invoice inv-7
         1s  eve resolves inv-7/1 not charged ledger M => refused: key M.1.inv-7 is not of this ledger, L
         1s  ana settles inv-8/1 with token 1 unknown => refused: invoice inv-8 is not known
    ");
}

#[test]
fn any_key_of_this_ledger_counts_even_one_that_a_restore_forgot() {
    check("
         0s  hook settles inv-9/4 charged ch-9 => REVIEW
             alarm: inv-9 ch-9: charged although never submitted
         0s  look at inv-9                    => REVIEW, charged although never submitted
         1s  op submits inv-9                 => submitted
         1s  look at inv-9                    => REVIEW, charged although never submitted
         2s  op requeues inv-9                => refused: invoice inv-9 has a recorded charge, reference ch-9
         2s  op cancels inv-9                 => refused: invoice inv-9 has a recorded charge, reference ch-9
         3s  eve resolves inv-9/4 charged ch-9 => PAID
    ");
    check(
        "
         0s  op submits inv-7                 => submitted
         0s  hook settles inv-7/6 charged ch-6 => REVIEW
             alarm: inv-7 ch-6: charged under an attempt that was not open
    ",
    );
    check(
        "
         0s  ana acquires inv-9 for 60s       => token 1
         1s  hook settles inv-9/1 charged ch-9 => REVIEW
             alarm: inv-9 ch-9: charged although never submitted
         1s  ana renews inv-9 with token 1    => refused: the lease on inv-9 with token 1 has ended
    ",
    );
}

#[test]
fn a_charge_under_a_dead_attempt_stops_the_one_that_is_open() {
    charging("sticky", "
         1s  ana settles inv-7/1 with token 1 declined busy retryable sticky => PENDING
        61s  ben acquires inv-7 for 60s       => token 2
        61s  ben begins inv-7 with token 2 sticky => L.2.inv-7 within 3600000 ms
        62s  hook settles inv-7/1 charged ch-1 => REVIEW
             alarm: inv-7 ch-1: charged under an attempt that was not open
        62s  ben begins inv-7 with token 2 sticky => refused: the lease on inv-7 with token 2 has ended
        63s  hook settles inv-7/2 charged ch-2 => REVIEW
             alarm: inv-7 ch-2: charged a second time
        64s  eve resolves inv-7/1 charged ch-1 => REVIEW
    ");
}

#[test]
fn a_cancelled_invoice_that_was_charged_is_never_paid_by_a_report() {
    check(
        "
         0s  op submits inv-7                 => submitted
         0s  op cancels inv-7                 => CANCELLED
         1s  hook settles inv-7/1 charged ch-1 => REVIEW
             alarm: inv-7 ch-1: charged although cancelled
         2s  hook settles inv-7/1 charged ch-1 => REVIEW
         3s  eve resolves inv-7/1 charged ch-1 => PAID
    ",
    );
}

#[test]
fn review_with_a_first_charge_and_nothing_open_is_paid() {
    charging("", "
         1s  ana releases inv-7 with token 1  => released
        15s  tick                             => done
        15s  look at inv-7                    => REVIEW, attempt 1 Open, no answer, and the provider cannot be asked
        16s  hook settles inv-7/1 charged ch-1 => PAID
    ");
}

#[test]
fn a_late_success_of_the_recorded_object_settles_the_attempt_that_is_open() {
    charging("", "
         0s  ana attaches pi-1 to inv-7 with token 1 => attached pi-1
         1s  ana settles inv-7/1 with token 1 declined busy retryable object => PENDING
        61s  ben acquires inv-7 for 60s       => token 2
        61s  ben begins inv-7 with token 2    => L.2.inv-7 within 3600000 ms, pi-1
        62s  hook settles inv-7/1 charged pi-1 => PAID
        63s  ben settles inv-7/2 with token 2 charged pi-1 => PAID
        63s  hook settles inv-7/1 cancelled pi-1 => refused: invoice inv-7 has a recorded charge, reference pi-1
    ");
}

#[test]
fn a_decline_needs_the_current_token() {
    charging("sticky", "
        60s  ben acquires inv-7 for 60s       => refused: invoice inv-7 is REVIEW and cannot be leased
    ");
    charging("sticky lookup", "
        60s  ben acquires inv-7 for 60s       => token 2, attempt 1 Open
        60s  ana settles inv-7/1 with token 1 declined busy sticky => refused: stale token 1, current 2
        60s  hook settles inv-7/1 declined busy sticky => refused: stale token 0, current 2
        60s  ana settles inv-7/1 with token 1 found none => refused: stale token 1, current 2
        60s  ana settles inv-7/1 with token 1 pending 60s => refused: stale token 1, current 2
        60s  ana settles inv-7/1 with token 1 unknown => refused: stale token 1, current 2
        61s  ben releases inv-7 with token 2  => released
        61s  ben settles inv-7/1 with token 2 unknown => refused: the lease on inv-7 with token 2 has ended
    ");
}

#[test]
fn a_sticky_decline_is_final_only_where_the_terms_say_so() {
    charging(
        "sticky",
        "
         1s  ana settles inv-7/1 with token 1 declined stolen sticky => FAILED
    ",
    );
    charging(
        "lookup",
        "
         1s  ana settles inv-7/1 with token 1 declined stolen sticky => IN_DOUBT
         1s  look at inv-7                    => IN_DOUBT, attempt 1 Closing, next try in 1000 ms
    ",
    );
}

#[test]
fn sole_send_holds_for_who_opened_the_attempt_and_was_never_taken_over() {
    charging(
        "lookup",
        "
         1s  ana settles inv-7/1 with token 1 declined stolen sole => FAILED
    ",
    );
    charging(
        "lookup",
        "
         1s  ana begins inv-7 with token 1    => L.1.inv-7 within 9000 ms, taken over
         1s  ana settles inv-7/1 with token 1 declined stolen sole => IN_DOUBT
         1s  look at inv-7                    => IN_DOUBT, attempt 1 Closing, next try in 1000 ms
    ",
    );
    charging(
        "lookup",
        "
         1s  ana releases inv-7 with token 1  => released
         2s  ben acquires inv-7 for 60s       => token 2, attempt 1 Open
         2s  ben settles inv-7/1 with token 2 declined stolen sole => IN_DOUBT
         2s  look at inv-7                    => IN_DOUBT, attempt 1 Closing, next try in 2000 ms
    ",
    );
}

#[test]
fn a_decline_with_an_object_is_final_only_while_one_is_recorded() {
    charging(
        "lookup",
        "
         1s  ana settles inv-7/1 with token 1 declined stolen object => IN_DOUBT
    ",
    );
    charging(
        "lookup",
        "
         1s  ana attaches pi-1 to inv-7 with token 1 => attached pi-1
         1s  ana settles inv-7/1 with token 1 declined stolen object => FAILED
    ",
    );
}

#[test]
fn a_decline_that_proves_nothing_closes_the_attempt_until_there_is_evidence() {
    charging("lookup", "
         1s  ana settles inv-7/1 with token 1 declined stolen => IN_DOUBT
         2s  ana settles inv-7/1 with token 1 declined stolen => IN_DOUBT
         2s  ana settles inv-7/1 with token 1 declined other => refused: the lease on inv-7 with token 1 has ended
         5s  ben acquires inv-7 for 5s        => token 2, attempt 1 Closing
         5s  ben settles inv-7/1 with token 2 found none => IN_DOUBT
         5s  look at inv-7                    => IN_DOUBT, attempt 1 Closing, next try in 2000 ms
        16s  ben acquires inv-7 for 5s        => token 3, attempt 1 Closing
        16s  ben settles inv-7/1 with token 3 found none => FAILED
    ");
}

#[test]
fn a_look_up_counts_only_under_a_lease_granted_after_anything_could_be_in_flight() {
    charging(
        "lookup",
        "
        14s  ana releases inv-7 with token 1  => released
        15s  ben acquires inv-7 for 60s       => token 2, attempt 1 Open
        20s  ben settles inv-7/1 with token 2 found none => IN_DOUBT
        20s  look at inv-7                    => IN_DOUBT, attempt 1 Open, next try in 2000 ms
        21s  cas acquires inv-7 for 60s       => token 3, attempt 1 Open
        21s  cas settles inv-7/1 with token 3 found none => PENDING
        21s  look at inv-7                    => PENDING, next try in 60000 ms
    ",
    );
}

#[test]
fn a_look_up_counts_only_when_both_clocks_agree() {
    charging(
        "lookup",
        "
         1s  ana settles inv-7/1 with token 1 unknown => IN_DOUBT
        10s  wall is 10s behind
        16s  ben acquires inv-7 for 60s       => token 2, attempt 1 Open
        16s  ben settles inv-7/1 with token 2 found none => IN_DOUBT
        26s  ben acquires inv-7 for 60s       => token 3, attempt 1 Open
        26s  ben settles inv-7/1 with token 3 found none => PENDING
    ",
    );
    charging(
        "lookup",
        "
         1s  ana settles inv-7/1 with token 1 unknown => IN_DOUBT
        10s  wall jumps 10s back
        12s  wall is compared
        12s  wall jumps 1h ahead
        16s  ben acquires inv-7 for 60s       => token 2, attempt 1 Open
        16s  ben settles inv-7/1 with token 2 found none => IN_DOUBT
    ",
    );
    charging(
        "lookup",
        "
         1s  ana settles inv-7/1 with token 1 unknown => IN_DOUBT
         2s  wall is 1h ahead
         5s  ben acquires inv-7 for 60s       => token 2, attempt 1 Open
         5s  ben settles inv-7/1 with token 2 found none => IN_DOUBT
    ",
    );
}

#[test]
fn a_look_up_means_nothing_where_the_terms_say_that_nobody_can_be_asked() {
    charging("", "
         5s  ana settles inv-7/1 with token 1 found none => IN_DOUBT
        15s  tick                             => done
        15s  look at inv-7                    => REVIEW, attempt 1 Open, no answer, and the provider cannot be asked
    ");
}

#[test]
fn review_waits_for_the_lease_to_end_and_for_cluster_time_alone() {
    charging("", "
         5s  wall is 365d ahead
        14s  tick                             => done
        14s  look at inv-7                    => CHARGING, ana holds token 1, attempt 1 Open
        30s  tick                             => done
        30s  look at inv-7                    => CHARGING, ana holds token 1, attempt 1 Open
        31s  ana releases inv-7 with token 1  => released
        31s  look at inv-7                    => REVIEW, attempt 1 Open, no answer, and the provider cannot be asked, next try in 1000 ms
    ");
}

#[test]
fn a_cancelled_object_ends_the_attempt_whoever_reports_it() {
    charging("", "
         1s  ana attaches pi-1 to inv-7 with token 1 => attached pi-1
         2s  hook settles inv-7/1 cancelled pi-1 => PROCESSING
         2s  ana begins inv-7 with token 1    => refused: invoice inv-7 is not due for another 60000 ms
         3s  ana settles inv-7/1 with token 1 unknown => refused: invoice inv-7 has no open attempt
    ");
    charging(
        "",
        "
         1s  ana attaches pi-1 to inv-7 with token 1 => attached pi-1
         1s  ana settles inv-7/1 with token 1 declined stolen => IN_DOUBT
         2s  hook settles inv-7/1 cancelled pi-1 => FAILED
    ",
    );
}

#[test]
fn waiting_lasts_until_the_provider_said_and_is_then_looked_up() {
    charging(
        "lookup",
        "
         1s  ana settles inv-7/1 with token 1 pending 60s => WAITING
         2s  ben acquires inv-7 for 10s       => token 2, attempt 1 Open
         2s  ben releases inv-7 with token 2  => released
         2s  look at inv-7                    => WAITING, attempt 1 Open
        61s  tick                             => done
        61s  look at inv-7                    => IN_DOUBT, attempt 1 Open
        61s  ben acquires inv-7 for 10s       => token 3, attempt 1 Open
        61s  ben settles inv-7/1 with token 3 found ch-1 => PAID
    ",
    );
    charging("", "
         1s  ana settles inv-7/1 with token 1 pending 60s => WAITING
        40s  tick                             => done
        40s  look at inv-7                    => WAITING, attempt 1 Open
        40s  eve resolves inv-7/1 not charged => refused: what was sent for invoice inv-7 may still succeed for another 21000 ms
        61s  tick                             => done
        61s  look at inv-7                    => REVIEW, attempt 1 Open, no answer, and the provider cannot be asked
    ");
    charging("", "
         1s  ana settles inv-7/1 with token 1 pending 31d => refused: pending.expected_by must be at most 30 days ahead
         1s  ana settles inv-7/1 with token 1 pending 30d => WAITING
    ");
}

#[test]
fn a_waiting_time_that_passed_under_a_lease_leaves_the_attempt_in_doubt() {
    charging(
        "lookup",
        "
         1s  ana settles inv-7/1 with token 1 pending 5s => WAITING
         2s  ben acquires inv-7 for 60s       => token 2, attempt 1 Open
        10s  ben releases inv-7 with token 2  => released
        10s  look at inv-7                    => IN_DOUBT, attempt 1 Open, next try in 1000 ms
    ",
    );
    charging("", "
         1s  ana settles inv-7/1 with token 1 pending 5s => WAITING
         2s  ben acquires inv-7 for 60s       => token 2, attempt 1 Open
        20s  ben releases inv-7 with token 2  => released
        20s  look at inv-7                    => REVIEW, attempt 1 Open, no answer, and the provider cannot be asked, next try in 1000 ms
    ");
}

#[test]
fn a_persons_no_is_refused_while_it_could_be_hasty() {
    charging("", "
         1s  eve resolves inv-7/1 not charged => refused: invoice inv-7 is held by ana for another 59000 ms
         2s  ana releases inv-7 with token 1  => released
         3s  eve resolves inv-7/1 not charged => refused: what was sent for invoice inv-7 may still succeed for another 12000 ms
         3s  eve resolves inv-7/2 not charged => refused: L.2.inv-7 is not the key of the open attempt of invoice inv-7
         3s  eve resolves inv-8/1 not charged => refused: invoice inv-8 is not known
         4s  wall is 365d behind
        15s  tick                             => done
        15s  eve resolves inv-7/1 not charged => FAILED
        16s  eve resolves inv-7/1 not charged => refused: invoice inv-7 has no open attempt
        17s  op requeues inv-7                => PENDING
    ");
}

#[test]
fn a_persons_yes_is_a_charge() {
    charging(
        "",
        "
         2s  ana releases inv-7 with token 1  => released
         3s  eve resolves inv-7/1 charged ch-1 => PAID
         4s  eve resolves inv-7/1 charged ch-1 => PAID
         5s  eve resolves inv-7/1 charged ch-2 => REVIEW
             alarm: inv-7 ch-2: charged a second time
    ",
    );
}

#[test]
fn an_invoice_with_another_attempts_charge_stays_in_review_when_the_open_one_is_found_dead() {
    charging(
        "sticky",
        "
         1s  ana settles inv-7/1 with token 1 declined busy retryable sticky => PENDING
        61s  ben acquires inv-7 for 60s       => token 2
        61s  ben begins inv-7 with token 2 valid 10s flight 5s => L.2.inv-7 within 10000 ms
        62s  hook settles inv-7/1 charged ch-1 => REVIEW
             alarm: inv-7 ch-1: charged under an attempt that was not open
        63s  eve resolves inv-7/1 charged ch-1 => REVIEW
        76s  eve resolves inv-7/2 not charged => REVIEW
        77s  eve resolves inv-7/1 charged ch-1 => PAID
    ",
    );
}
