//! Decides how the consensus library's types become bytes, on the wire and on disk: one version byte, then postcard.
//! Never guesses: a byte string of a newer version is refused with advice, a broken one is refused.

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

/// Version 4: entries, votes, log ids, snapshot headers and peer messages as of the first release; 1 to 3 were never released.
/// Raise it with every change that an older binary would misread, and keep reading the older ones.
pub const FORMAT: u8 = 4;

#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum CodecError {
    #[error(
        "{what} has format {found}, this billingd reads format {FORMAT}: upgrade this binary before it meets newer ones"
    )]
    Newer { what: &'static str, found: u8 },
    #[error("{what} cannot be read: {why}")]
    Broken { what: &'static str, why: String },
}

impl From<CodecError> for std::io::Error {
    fn from(error: CodecError) -> Self {
        std::io::Error::new(std::io::ErrorKind::InvalidData, error)
    }
}

/// `what` names the value in errors.
pub fn encode<T: Serialize>(what: &'static str, value: &T) -> Result<Bytes, CodecError> {
    postcard::to_extend(value, vec![FORMAT])
        .map(Bytes::from)
        .map_err(|error| broken(what, error))
}

/// Reads what [`encode`] wrote, all of it: bytes left over are an error too.
pub fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, CodecError> {
    let (&version, body) = bytes
        .split_first()
        .ok_or_else(|| broken(what, "it is empty"))?;
    if version > FORMAT {
        return Err(CodecError::Newer {
            what,
            found: version,
        });
    }
    if version < FORMAT {
        let why = format!(
            "it has format {version}, which no released billingd wrote: begin with a new data folder"
        );
        return Err(broken(what, why));
    }
    let (value, rest) = postcard::take_from_bytes(body).map_err(|error| broken(what, error))?;
    if rest.is_empty() {
        Ok(value)
    } else {
        Err(broken(what, format!("{} bytes are left over", rest.len())))
    }
}

fn broken(what: &'static str, why: impl std::fmt::Display) -> CodecError {
    CodecError::Broken {
        what,
        why: why.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_back_and_nothing_else_is() -> Result<(), CodecError> {
        let bytes = encode("pair", &(7u64, "seven".to_owned()))?;
        assert_eq!(
            decode::<(u64, String)>("pair", &bytes)?,
            (7, "seven".to_owned())
        );
        let mut longer = bytes.to_vec();
        longer.push(0);
        for bad in [
            &[][..],
            &[0, 7],
            &[FORMAT],
            &bytes[..bytes.len() - 1],
            &longer,
        ] {
            assert!(
                matches!(
                    decode::<(u64, String)>("pair", bad),
                    Err(CodecError::Broken { .. })
                ),
                "{bad:?}"
            );
        }
        Ok(())
    }

    #[test]
    fn a_newer_format_is_refused_with_advice() {
        let error = decode::<u64>("vote", &[FORMAT + 1, 1]).err();
        assert_eq!(
            error,
            Some(CodecError::Newer {
                what: "vote",
                found: FORMAT + 1
            })
        );
        assert!(error.is_some_and(|e| e.to_string().contains("upgrade")));
    }
}
