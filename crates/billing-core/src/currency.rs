//! Decides which three letters are a currency: the active codes of ISO 4217 (list one, 2025). Converts nothing.

use serde::{Deserialize, Serialize};
use std::fmt;

use crate::ids::OutOfBounds;

/// An ISO 4217 code in upper case; lower case is accepted and raised (providers write it so).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Currency([u8; 3]);

impl Currency {
    pub fn new(code: &str) -> Result<Self, OutOfBounds> {
        let raised: [u8; 3] = code
            .as_bytes()
            .try_into()
            .map(|bytes: [u8; 3]| bytes.map(|byte| byte.to_ascii_uppercase()))
            .map_err(|_| Self::OUT_OF_BOUNDS)?;
        match CODES.binary_search_by(|known| known.as_bytes().cmp(&raised)) {
            Ok(_) => Ok(Self(raised)),
            Err(_) => Err(Self::OUT_OF_BOUNDS),
        }
    }

    const OUT_OF_BOUNDS: OutOfBounds =
        OutOfBounds::new("currency", "an active ISO 4217 code, such as EUR");

    #[must_use]
    pub fn as_str(&self) -> &str {
        // Every constructor goes through the table of ASCII codes.
        std::str::from_utf8(&self.0).unwrap_or("???")
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl TryFrom<String> for Currency {
    type Error = OutOfBounds;
    /// What was stored has the one spelling that is ever stored.
    fn try_from(code: String) -> Result<Self, OutOfBounds> {
        Self::new(&code).and_then(|known| {
            if known.as_str() == code {
                Ok(known)
            } else {
                Err(Self::OUT_OF_BOUNDS)
            }
        })
    }
}

impl From<Currency> for String {
    fn from(currency: Currency) -> String {
        currency.as_str().to_owned()
    }
}

/// Sorted, for the binary search; a test keeps it so.
#[rustfmt::skip]
const CODES: &[&str] = &[
    "AED", "AFN", "ALL", "AMD", "AOA", "ARS", "AUD", "AWG", "AZN", "BAM", "BBD", "BDT", "BHD", "BIF", "BMD", "BND",
    "BOB", "BOV", "BRL", "BSD", "BTN", "BWP", "BYN", "BZD", "CAD", "CDF", "CHE", "CHF", "CHW", "CLF", "CLP", "CNY",
    "COP", "COU", "CRC", "CUP", "CVE", "CZK", "DJF", "DKK", "DOP", "DZD", "EGP", "ERN", "ETB", "EUR", "FJD", "FKP",
    "GBP", "GEL", "GHS", "GIP", "GMD", "GNF", "GTQ", "GYD", "HKD", "HNL", "HTG", "HUF", "IDR", "ILS", "INR", "IQD",
    "IRR", "ISK", "JMD", "JOD", "JPY", "KES", "KGS", "KHR", "KMF", "KPW", "KRW", "KWD", "KYD", "KZT", "LAK", "LBP",
    "LKR", "LRD", "LSL", "LYD", "MAD", "MDL", "MGA", "MKD", "MMK", "MNT", "MOP", "MRU", "MUR", "MVR", "MWK", "MXN",
    "MXV", "MYR", "MZN", "NAD", "NGN", "NIO", "NOK", "NPR", "NZD", "OMR", "PAB", "PEN", "PGK", "PHP", "PKR", "PLN",
    "PYG", "QAR", "RON", "RSD", "RUB", "RWF", "SAR", "SBD", "SCR", "SDG", "SEK", "SGD", "SHP", "SLE", "SOS", "SRD",
    "SSP", "STN", "SVC", "SYP", "SZL", "THB", "TJS", "TMT", "TND", "TOP", "TRY", "TTD", "TWD", "TZS", "UAH", "UGX",
    "USD", "USN", "UYI", "UYU", "UYW", "UZS", "VED", "VES", "VND", "VUV", "WST", "XAF", "XCD", "XCG", "XOF", "XPF",
    "YER", "ZAR", "ZMW", "ZWG",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_every_code_in_it_is_found() {
        assert!(CODES.windows(2).all(|pair| pair[0] < pair[1]));
        for code in CODES {
            assert_eq!(
                Currency::new(code).map(|currency| currency.to_string()),
                Ok((*code).to_owned())
            );
            assert_eq!(Currency::new(&code.to_lowercase()), Currency::new(code));
        }
    }

    #[test]
    fn what_is_no_active_code_is_refused_by_field_and_bound() {
        for code in ["", "EU", "EURO", "XXX", "DEM", "€12"] {
            let refused = Currency::new(code).map_err(|out| out.to_string());
            assert_eq!(
                refused,
                Err("currency must be an active ISO 4217 code, such as EUR".to_owned()),
                "{code}"
            );
        }
    }
}
