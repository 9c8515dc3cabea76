//! Decides how each test card and test payment method behaves, as Stripe's testing page lists them.
//! Never touches money or state: a behaviour is a constant.

use crate::error::ApiError;

/// A card's no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decline {
    pub code: &'static str,
    pub decline_code: Option<&'static str>,
    pub message: &'static str,
}

impl Decline {
    pub fn error(&self) -> ApiError {
        ApiError::card(self.code, self.decline_code, self.message)
    }
}

/// What happens when a payment with this method is confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    Succeeds,
    Declines(Decline),
    /// The customer must act first (3D Secure). Off session it is a decline. `then` is what follows.
    RequiresAction {
        then: &'static Behaviour,
    },
    /// A bank debit: `processing` first; afterwards it succeeds, fails, or stays so for ever.
    Processes(Ending),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Succeeds,
    Fails(Decline),
    Never,
}

/// A payment method's fixed traits.
#[derive(Clone, Copy, Debug)]
pub struct Traits {
    pub brand: &'static str,
    pub last4: &'static str,
    pub bank_account: bool,
    /// Declined already when attached to a customer.
    pub attach_declines: bool,
    pub behaviour: Behaviour,
}

const GENERIC: Decline = Decline {
    code: "card_declined",
    decline_code: Some("generic_decline"),
    message: "Your card was declined.",
};
const INSUFFICIENT: Decline = Decline {
    code: "card_declined",
    decline_code: Some("insufficient_funds"),
    message: "Your card has insufficient funds.",
};
const LOST: Decline = Decline {
    code: "card_declined",
    decline_code: Some("lost_card"),
    message: "Your card was declined.",
};
const STOLEN: Decline = Decline {
    code: "card_declined",
    decline_code: Some("stolen_card"),
    message: "Your card was declined.",
};
const VELOCITY: Decline = Decline {
    code: "card_declined",
    decline_code: Some("card_velocity_exceeded"),
    message: "Your card was declined for making repeated attempts too frequently or exceeding its amount limit.",
};
const EXPIRED: Decline = Decline {
    code: "expired_card",
    decline_code: None,
    message: "Your card has expired.",
};
const CVC: Decline = Decline {
    code: "incorrect_cvc",
    decline_code: None,
    message: "Your card's security code is incorrect.",
};
const PROCESSING_ERROR: Decline = Decline {
    code: "processing_error",
    decline_code: None,
    message: "An error occurred while processing your card. Try again in a little bit.",
};
const BANK_FUNDS: Decline = Decline {
    code: "payment_intent_payment_attempt_failed",
    decline_code: Some("insufficient_funds"),
    message: "The customer's account has insufficient funds to cover this payment.",
};
/// A card that needs the customer, charged without the customer.
pub const AUTHENTICATION_REQUIRED: Decline = Decline {
    code: "authentication_required",
    decline_code: Some("authentication_required"),
    message: "Your card was declined. This transaction requires authentication.",
};
/// The customer came, and failed the authentication.
pub const AUTHENTICATION_FAILED: Decline = Decline {
    code: "payment_intent_authentication_failure",
    decline_code: None,
    message: "The provided PaymentMethod has failed authentication.",
};
/// What a share of confirmations is told when faults ask for it.
pub const DRAWN: Decline = GENERIC;

static SUCCEEDS: Behaviour = Behaviour::Succeeds;
static NO_FUNDS: Behaviour = Behaviour::Declines(INSUFFICIENT);

const fn card(brand: &'static str, last4: &'static str, behaviour: Behaviour) -> Traits {
    Traits {
        brand,
        last4,
        bank_account: false,
        attach_declines: false,
        behaviour,
    }
}

const fn declining(last4: &'static str, decline: Decline) -> Traits {
    Traits {
        attach_declines: true,
        ..card("visa", last4, Behaviour::Declines(decline))
    }
}

const fn bank(ending: Ending) -> Traits {
    Traits {
        bank_account: true,
        ..card("STRIPE TEST BANK", "6789", Behaviour::Processes(ending))
    }
}

/// (card number, the test payment method of the same behaviour, traits).
const CARDS: &[(&str, &str, Traits)] = &[
    (
        "4242424242424242",
        "pm_card_visa",
        card("visa", "4242", Behaviour::Succeeds),
    ),
    (
        "4000056655665556",
        "pm_card_visa_debit",
        card("visa", "5556", Behaviour::Succeeds),
    ),
    (
        "5555555555554444",
        "pm_card_mastercard",
        card("mastercard", "4444", Behaviour::Succeeds),
    ),
    (
        "378282246310005",
        "pm_card_amex",
        card("amex", "0005", Behaviour::Succeeds),
    ),
    (
        "4000000000000002",
        "pm_card_visa_chargeDeclined",
        declining("0002", GENERIC),
    ),
    (
        "4000000000009995",
        "pm_card_visa_chargeDeclinedInsufficientFunds",
        declining("9995", INSUFFICIENT),
    ),
    (
        "4000000000009987",
        "pm_card_visa_chargeDeclinedLostCard",
        declining("9987", LOST),
    ),
    (
        "4000000000009979",
        "pm_card_visa_chargeDeclinedStolenCard",
        declining("9979", STOLEN),
    ),
    (
        "4000000000006975",
        "pm_card_visa_chargeDeclinedVelocityLimitExceeded",
        declining("6975", VELOCITY),
    ),
    (
        "4000000000000069",
        "pm_card_chargeDeclinedExpiredCard",
        declining("0069", EXPIRED),
    ),
    (
        "4000000000000127",
        "pm_card_chargeDeclinedIncorrectCvc",
        declining("0127", CVC),
    ),
    (
        "4000000000000119",
        "pm_card_chargeDeclinedProcessingError",
        declining("0119", PROCESSING_ERROR),
    ),
    // Attaches, and declines when charged.
    (
        "4000000000000341",
        "pm_card_chargeCustomerFail",
        card("visa", "0341", Behaviour::Declines(GENERIC)),
    ),
    (
        "4000002500003155",
        "pm_card_authenticationRequiredOnSetup",
        card(
            "visa",
            "3155",
            Behaviour::RequiresAction { then: &SUCCEEDS },
        ),
    ),
    (
        "4000002760003184",
        "pm_card_authenticationRequired",
        card(
            "visa",
            "3184",
            Behaviour::RequiresAction { then: &SUCCEEDS },
        ),
    ),
    (
        "4000008260003178",
        "pm_card_authenticationRequiredChargeDeclinedInsufficientFunds",
        card(
            "visa",
            "3178",
            Behaviour::RequiresAction { then: &NO_FUNDS },
        ),
    ),
    ("", "pm_usBankAccount", bank(Ending::Succeeds)),
    (
        "",
        "pm_usBankAccount_insufficientFunds",
        bank(Ending::Fails(BANK_FUNDS)),
    ),
    ("", "pm_usBankAccount_processing", bank(Ending::Never)),
];

/// Traits of a test payment method or token (`pm_card_visa`, `tok_visa`); None when there is none of that name.
pub fn by_name(name: &str) -> Option<Traits> {
    let wanted = name
        .strip_prefix("pm_card_")
        .or_else(|| name.strip_prefix("tok_"))
        .map(|rest| {
            // Stripe has both spellings, with and without the brand.
            rest.strip_prefix("visa_").unwrap_or(rest)
        });
    CARDS.iter().find_map(|(_, method, traits)| {
        let same = match wanted {
            Some(wanted) => method
                .strip_prefix("pm_card_")
                .is_some_and(|known| known.strip_prefix("visa_").unwrap_or(known) == wanted),
            None => *method == name,
        };
        same.then_some(*traits)
    })
}

/// Traits of a card number. A number that fails the check sum, or that is no test card, is refused as Stripe does.
pub fn by_number(number: &str) -> Result<Traits, ApiError> {
    let digits: String = number
        .chars()
        .filter(|letter| !matches!(letter, ' ' | '-'))
        .collect();
    let known = CARDS
        .iter()
        .find(|(card, _, _)| !card.is_empty() && *card == digits);
    match known {
        Some((_, _, traits)) => Ok(*traits),
        None if !checks(&digits) => Err(ApiError::card(
            "incorrect_number",
            None,
            "Your card number is incorrect.",
        )),
        None => Err(ApiError::card(
            "card_declined",
            Some("test_mode_live_card"),
            "Your card was declined. Your request was in test mode, but used a non test card.",
        )),
    }
}

/// The check sum of card numbers (Luhn).
fn checks(digits: &str) -> bool {
    let mut sum = 0;
    for (position, letter) in digits.chars().rev().enumerate() {
        let Some(digit) = letter.to_digit(10) else {
            return false;
        };
        sum += match (position % 2, digit) {
            (0, digit) => digit,
            (_, digit) if digit * 2 > 9 => digit * 2 - 9,
            (_, digit) => digit * 2,
        };
    }
    (12..=19).contains(&digits.len()) && sum % 10 == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_card_passes_its_own_check_sum_and_is_found_under_both_names() {
        for (number, method, traits) in CARDS {
            assert_eq!(
                by_name(method).expect(method).behaviour,
                traits.behaviour,
                "{method}"
            );
            if !number.is_empty() {
                assert!(checks(number), "{number}");
                assert_eq!(
                    by_number(number).expect(number).last4,
                    &number[number.len() - 4..]
                );
            }
        }
        assert_eq!(
            by_name("pm_card_chargeDeclined")
                .expect("short spelling")
                .last4,
            "0002"
        );
        assert_eq!(by_name("tok_visa").expect("token").last4, "4242");
    }

    #[test]
    fn a_mistyped_number_and_a_real_card_are_refused_differently() {
        let mistyped = by_number("4242424242424241")
            .expect_err("check sum")
            .to_json();
        assert_eq!(mistyped["error"]["code"], "incorrect_number");
        let real = by_number("4111111111111111")
            .expect_err("not a test card")
            .to_json();
        assert_eq!(real["error"]["decline_code"], "test_mode_live_card");
        assert!(by_name("pm_card_nobody").is_none());
    }
}
