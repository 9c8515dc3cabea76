//! Decides who may see the provider's key: the Authorization header and nobody else. Debug, logs and errors never show it.

use std::path::Path;

/// The provider's secret key. Comes from the environment or a file, never from an argument.
#[derive(Clone)]
pub struct SecretKey(String);

/// Why there is no key. Never holds the key.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("cannot read the provider's key from {path}: {source}")]
    Unreadable {
        path: String,
        source: std::io::Error,
    },
    #[error("the provider's key is empty or not printable")]
    Malformed,
    #[error(
        "the provider's key is neither a test key (sk_test_, rk_test_) nor a live one (sk_live_, rk_live_)"
    )]
    UnknownKind,
}

impl SecretKey {
    /// Takes the key as it was read, white space around it cut off.
    pub fn new(text: &str) -> Result<SecretKey, SecretError> {
        let key = text.trim();
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(SecretError::Malformed);
        }
        let known = ["sk_test_", "rk_test_", "sk_live_", "rk_live_"];
        if !known.iter().any(|prefix| key.starts_with(prefix)) {
            return Err(SecretError::UnknownKind);
        }
        Ok(SecretKey(key.to_owned()))
    }

    pub fn from_file(path: &Path) -> Result<SecretKey, SecretError> {
        let text = std::fs::read_to_string(path).map_err(|source| SecretError::Unreadable {
            path: path.display().to_string(),
            source,
        })?;
        SecretKey::new(&text)
    }

    /// Whether it moves real money.
    pub fn is_live(&self) -> bool {
        self.0.starts_with("sk_live_") || self.0.starts_with("rk_live_")
    }

    pub(crate) fn bearer(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_live() {
            "SecretKey(live, redacted)"
        } else {
            "SecretKey(test, redacted)"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_never_shown() {
        let key = SecretKey::new(" sk_live_abcdef\n").expect("a key");
        assert!(key.is_live());
        assert!(!format!("{key:?}").contains("abcdef"));
        for bad in ["", "sk_live_a b", "hunter2"] {
            let error = SecretKey::new(bad).map(|_| ()).expect_err(bad);
            assert!(bad.is_empty() || !error.to_string().contains(bad));
        }
    }
}
