//! Decides how a sum in ISO 4217's minor unit is written for Stripe, which differs for a few currencies.
//! Never rounds: a sum that cannot be said exactly is not charged.

/// Stripe wants two decimals where ISO 4217 has none.
const TIMES_HUNDRED: &[&str] = &["ISK"];
/// Stripe wants none where ISO 4217 has two.
const BY_HUNDRED: &[&str] = &["MGA"];
/// Three decimals, the last of which must be zero.
const TENS_ONLY: &[&str] = &["BHD", "JOD", "KWD", "OMR", "TND"];
/// Listed as having no decimals in one place and two in another: not before somebody has tried.
const UNCLEAR: &[&str] = &["UGX"];

/// The amount as Stripe wants it, or why it cannot be said.
pub fn to_stripe(amount_minor: u64, currency: &str) -> Result<u64, String> {
    if UNCLEAR.contains(&currency) {
        return Err(format!(
            "Stripe's unit of {currency} is documented in two ways"
        ));
    }
    if TIMES_HUNDRED.contains(&currency) {
        return amount_minor
            .checked_mul(100)
            .ok_or_else(|| format!("{amount_minor} {currency} is too large"));
    }
    let divisor = match () {
        () if BY_HUNDRED.contains(&currency) => 100,
        () if TENS_ONLY.contains(&currency) => 10,
        () => 1,
    };
    if !amount_minor.is_multiple_of(divisor) {
        return Err(format!(
            "{amount_minor} {currency} is no multiple of {divisor}, which Stripe demands"
        ));
    }
    Ok(if BY_HUNDRED.contains(&currency) {
        amount_minor / 100
    } else {
        amount_minor
    })
}

/// Back to ISO 4217's minor unit; None when that would need a fraction.
pub fn from_stripe(amount: u64, currency: &str) -> Option<u64> {
    if TIMES_HUNDRED.contains(&currency) {
        return amount.is_multiple_of(100).then_some(amount / 100);
    }
    if BY_HUNDRED.contains(&currency) {
        amount.checked_mul(100)
    } else {
        Some(amount)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_said_exactly_or_not_at_all() {
        for (minor, currency, stripe) in [
            (1500, "USD", 1500),
            (500, "JPY", 500),
            (5, "ISK", 500),
            (100_000, "MGA", 1000),
            (5120, "KWD", 5120),
        ] {
            assert_eq!(to_stripe(minor, currency), Ok(stripe), "{minor} {currency}");
            assert_eq!(
                from_stripe(stripe, currency),
                Some(minor),
                "{stripe} {currency}"
            );
        }
        for (minor, currency) in [(5124, "KWD"), (150, "MGA"), (1500, "UGX")] {
            assert!(to_stripe(minor, currency).is_err(), "{minor} {currency}");
        }
        assert_eq!(from_stripe(150, "ISK"), None);
    }
}
