//! The name of one restore: drawn for its first node, told to all others. Decides what is such a name, and nothing else: what
//! it is good for, `billingd restore` knows.

use std::fmt;
use std::str::FromStr;

/// Two restores with one id, of one file and the same peers, would make nodes of one cluster: never drawn twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoreId(pub [u8; RestoreId::BYTES]);

/// A text that was never printed as a restore id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{found}` is not a restore id: 16 of 0-9 and a-f, as the restore of the first node printed them"
)]
pub struct NoRestoreId {
    found: String,
}

impl RestoreId {
    pub const BYTES: usize = 8;
}

impl fmt::Display for RestoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for RestoreId {
    type Err = NoRestoreId;

    fn from_str(text: &str) -> Result<RestoreId, NoRestoreId> {
        let written = || NoRestoreId {
            found: text.to_owned(),
        };
        // Not by the number alone, which may begin with a plus sign or be shorter.
        let digits = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() != 2 * RestoreId::BYTES || !text.bytes().all(digits) {
            return Err(written());
        }
        let number = u64::from_str_radix(text, 16).map_err(|_| written())?;
        Ok(RestoreId(number.to_be_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_printed_is_read_back_and_nothing_else_is() {
        for bytes in [[0; 8], [0xff; 8], [0, 1, 2, 3, 0xab, 0xcd, 0xef, 0x10]] {
            let id = RestoreId(bytes);
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        for text in [
            "",
            "0123456789abcde",
            "0123456789abcdef0",
            "+123456789abcdef",
            "0123456789ABCDEF",
            "0123456789abcdeg",
            " 123456789abcdef",
            "01234567-9abcdef",
            "ä123456789abcde",
        ] {
            let refused = text.parse::<RestoreId>().err();
            let said = refused.map(|refused| refused.to_string());
            let said = said.unwrap_or_default();
            assert!(said.contains(&format!("`{text}`")), "{text}: {said}");
            assert!(said.contains("16 of 0-9 and a-f"), "{text}: {said}");
        }
    }
}
