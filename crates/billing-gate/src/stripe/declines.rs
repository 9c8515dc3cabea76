//! Decides which card declines are worth another try, by Stripe's own advice per decline code.
//! Never decides when: the ledger spaces the tries and ends them.

/// Trying the same card again cannot help, or must not be done: the customer or a person has to act.
const FINAL: &[&str] = &[
    "authentication_required",
    "card_not_supported",
    "currency_not_supported",
    "duplicate_transaction",
    "expired_card",
    "fraudulent",
    "incorrect_address",
    "incorrect_cvc",
    "incorrect_number",
    "incorrect_pin",
    "incorrect_zip",
    "invalid_account",
    "invalid_cvc",
    "invalid_expiry_month",
    "invalid_expiry_year",
    "invalid_number",
    "invalid_pin",
    "live_mode_test_card",
    "lost_card",
    "merchant_blacklist",
    "new_account_information_available",
    "no_action_taken",
    "not_permitted",
    "offline_pin_required",
    "online_or_offline_pin_required",
    "pickup_card",
    "pin_try_exceeded",
    "restricted_card",
    "revocation_of_all_authorizations",
    "revocation_of_authorization",
    "security_violation",
    "service_not_allowed",
    "stolen_card",
    "stop_payment_order",
    "test_mode_live_card",
    "testmode_decline",
    "transaction_not_allowed",
];

/// A code that is not listed is worth another try: the number of tries is bounded.
pub fn is_retryable(code: &str) -> bool {
    FINAL.binary_search(&code).is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_can_be_searched_and_says_what_it_should() {
        assert!(FINAL.is_sorted());
        assert!(
            is_retryable("insufficient_funds")
                && is_retryable("processing_error")
                && is_retryable("brand_new_code")
        );
        assert!(!is_retryable("stolen_card") && !is_retryable("authentication_required"));
    }
}
