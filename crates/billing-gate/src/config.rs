//! What a gate is made of, and the terms that follow from it: the same for every gate of one account.
//! Never shows the key: its Debug is redacted.

use std::time::Duration;

use billing_core::{AccountId, InFlightMs, OutOfBounds, ProviderId, Terms, ValidForMs};

use crate::payers::Payers;
use crate::profile::{Profile, ProfileError};
use crate::secret::SecretKey;
use crate::stripe;

/// What a gate is made of.
#[derive(Clone, Debug)]
pub struct GateConfig {
    /// The name of the profile: `stripe`.
    pub provider: String,
    pub profile: Profile,
    /// The provider's host:port. Plain HTTP.
    pub address: String,
    /// The account's name in the ledger; every gate of one account must use the same.
    pub account: String,
    pub key: SecretKey,
    pub payers: Payers,
}

/// Why a gate cannot be made of that.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    #[error("profile `{0}` has no provider to send to: its charges are made by people")]
    NoProvider(String),
    #[error(
        "a live key is not sent to {0} in plain text: put the provider behind a local TLS proxy, or use a test key"
    )]
    LiveKeyInPlain(String),
    #[error("profile `{profile}`: {source}")]
    Terms {
        profile: String,
        source: OutOfBounds,
    },
    #[error(transparent)]
    Profile(#[from] ProfileError),
    #[error(transparent)]
    Header(#[from] http::Error),
}

/// The terms of every charge but for its fingerprint.
pub fn terms(config: &GateConfig) -> Result<Terms, OutOfBounds> {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Ok(Terms {
        provider: ProviderId::new(&config.provider)?,
        account: AccountId::new(&config.account)?,
        live: config.key.is_live(),
        fingerprint: stripe::nothing_sent(config.profile.api)?, // Replaced for each charge that is.
        valid_for: ValidForMs::new(ms(config.profile.valid_for))?,
        in_flight_max: InFlightMs::new(ms(config.profile.in_flight_max))?,
        can_look_up: config.profile.look_up,
        sticky: config.profile.sticky_declines,
    })
}
