//! Decides what we believe of a provider: a dated table in TOML, shipped with the crate, replaceable. Refuses a table whose
//! times contradict each other. Never decides what to do with it.

use std::collections::BTreeMap;
use std::time::Duration;

use billing_core::limits::{KEY_RETENTION_MS_MAX, PENDING_MS_MAX};
use serde::Deserialize;

/// The table that ships with the crate.
pub const SHIPPED: &str = include_str!("../profiles.toml");

/// Which of a provider's interfaces the gate speaks. A name keeps its interface for good: what was begun through one is
/// neither sent nor looked up through the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Api {
    /// Nothing is sent: people do the charging.
    None,
    /// Stripe's PaymentIntents: single-use objects.
    PaymentIntents,
    /// Stripe's older Charges: each request that is carried out charges.
    Charges,
}

/// What one provider promises. `profiles.toml` says what each field means and where it was read.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    pub as_of: String,
    pub sources: Vec<String>,
    pub api: Api,
    pub api_version: String,
    #[serde(deserialize_with = "duration")]
    pub key_retention: Duration,
    pub sticky_declines: bool,
    pub stored_errors: bool,
    pub single_use_object: bool,
    pub look_up: bool,
    #[serde(deserialize_with = "duration")]
    pub look_up_lag: Duration,
    #[serde(deserialize_with = "duration")]
    pub in_flight_max: Duration,
    #[serde(deserialize_with = "duration")]
    pub valid_for: Duration,
    pub cancel: bool,
    #[serde(deserialize_with = "duration")]
    pub request_timeout: Duration,
    #[serde(deserialize_with = "duration")]
    pub pending_every: Duration,
    pub amount_max: u64,
}

fn duration<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    humantime::parse_duration(&text).map_err(serde::de::Error::custom)
}

/// Why a table was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("the provider profiles are not understood: {0}")]
    Malformed(#[from] toml::de::Error),
    #[error("there is no provider profile `{name}`; there are: {known}")]
    Unknown { name: String, known: String },
    #[error("provider profile `{name}`: {what}")]
    Contradiction { name: String, what: String },
}

impl Profile {
    /// The profile of that name in a table.
    pub fn named(name: &str, table: &str) -> Result<Profile, ProfileError> {
        let mut profiles: BTreeMap<String, Profile> = toml::from_str(table)?;
        let Some(profile) = profiles.remove(name) else {
            let known = profiles.into_keys().collect::<Vec<_>>().join(", ");
            return Err(ProfileError::Unknown {
                name: name.to_owned(),
                known,
            });
        };
        profile.check(name)?;
        Ok(profile)
    }

    /// A provider that keeps no keys carries out every request that it gets: one send, ever.
    pub fn keeps_keys(&self) -> bool {
        !self.key_retention.is_zero()
    }

    pub(crate) fn check(&self, name: &str) -> Result<(), ProfileError> {
        let contradiction = |what: String| ProfileError::Contradiction {
            name: name.to_owned(),
            what,
        };
        let shown = humantime::format_duration;
        if self.single_use_object != (self.api == Api::PaymentIntents) {
            return Err(contradiction(
                "single_use_object goes with api payment_intents, and only with it".to_owned(),
            ));
        }
        if self.cancel && !self.single_use_object {
            return Err(contradiction(
                "cancel withdraws an object, and single_use_object says that there is none"
                    .to_owned(),
            ));
        }
        if !self.keeps_keys() && (self.sticky_declines || self.stored_errors) {
            return Err(contradiction(
                "key_retention 0s: declines and errors cannot be kept under a key that is not"
                    .to_owned(),
            ));
        }
        // A send that outlives the provider's memory of its key charges twice, whatever else we do (§5, layer 3). Where no
        // key is kept there is no second send.
        if self.keeps_keys()
            && self.valid_for.saturating_add(self.in_flight_max) >= self.key_retention
        {
            return Err(contradiction(format!(
                "valid_for {} and in_flight_max {} together must stay below key_retention {}",
                shown(self.valid_for),
                shown(self.in_flight_max),
                shown(self.key_retention)
            )));
        }
        // After a restore the ledger takes declines under old keys for kept ones again when no provider knows those keys.
        let retention_max = Duration::from_millis(KEY_RETENTION_MS_MAX);
        if self.sticky_declines && !self.single_use_object && self.key_retention > retention_max {
            return Err(contradiction(format!(
                "key_retention {} is more than the {} that a ledger counts on where sticky_declines holds",
                shown(self.key_retention),
                shown(retention_max)
            )));
        }
        if self.request_timeout.saturating_add(self.look_up_lag) > self.in_flight_max {
            return Err(contradiction(format!(
                "in_flight_max {} must cover request_timeout {} and look_up_lag {}",
                shown(self.in_flight_max),
                shown(self.request_timeout),
                shown(self.look_up_lag)
            )));
        }
        // The ledger refuses a longer wait, so each payment that the provider calls pending would stay unreported.
        let pending_max = Duration::from_millis(PENDING_MS_MAX);
        if self.pending_every > pending_max {
            return Err(contradiction(format!(
                "pending_every {} must be at most {}",
                shown(self.pending_every),
                shown(pending_max)
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shipped_profile_is_consistent() {
        for (name, api, single_use_object) in [
            ("stripe", Api::PaymentIntents, true),
            ("stripe-charges", Api::Charges, false),
            ("manual", Api::None, false),
        ] {
            let profile = Profile::named(name, SHIPPED).expect(name);
            assert!(!profile.as_of.is_empty());
            assert_eq!(
                (profile.api, profile.single_use_object),
                (api, single_use_object),
                "{name}"
            );
        }
    }

    #[test]
    fn a_profile_without_keys_is_taken_when_it_promises_nothing_that_needs_them() {
        let none = |profile: &mut Profile| {
            profile.key_retention = Duration::ZERO;
            profile.sticky_declines = false;
            profile.stored_errors = false;
        };
        type Change = fn(&mut Profile);
        let changes: [(Change, &str); 6] = [
            (|_| {}, ""),
            (|profile| profile.sticky_declines = true, "key_retention 0s"),
            (|profile| profile.stored_errors = true, "key_retention 0s"),
            (
                |profile| {
                    profile.sticky_declines = true;
                    profile.key_retention = Duration::from_secs(31 * 86_400);
                },
                "sticky_declines",
            ),
            (
                |profile| profile.single_use_object = true,
                "payment_intents",
            ),
            (|profile| profile.cancel = true, "cancel"),
        ];
        for (change, refused) in changes {
            let mut profile = Profile::named("stripe-charges", SHIPPED).expect("shipped");
            none(&mut profile);
            change(&mut profile);
            let said = match profile.check("keyless") {
                Ok(()) => String::new(),
                Err(error) => error.to_string(),
            };
            assert!(
                said.contains(refused) && said.is_empty() == refused.is_empty(),
                "`{said}`, not `{refused}`"
            );
        }
    }

    #[test]
    fn a_profile_that_outlives_the_providers_memory_is_refused() {
        let longer = SHIPPED.replace("valid_for = \"30m\"", "valid_for = \"24h\"");
        let refused = Profile::named("stripe", &longer)
            .expect_err("too long")
            .to_string();
        assert!(
            refused.contains("must stay below key_retention"),
            "{refused}"
        );
        let slower = SHIPPED.replace("request_timeout = \"80s\"", "request_timeout = \"11m\"");
        assert!(Profile::named("stripe", &slower).is_err());
        let endless = SHIPPED.replace(
            "in_flight_max = \"10m\"",
            "in_flight_max = \"18446744073709551615s\"",
        );
        assert!(
            Profile::named("stripe", &endless).is_err(),
            "no sum of times overflows"
        );
        let rarely = SHIPPED.replace("pending_every = \"1h\"", "pending_every = \"31d\"");
        let refused = Profile::named("stripe", &rarely)
            .expect_err("too rare")
            .to_string();
        assert!(refused.contains("pending_every"), "{refused}");
        let typo = SHIPPED.replace("look_up_lag", "lookup_lag");
        assert!(matches!(
            Profile::named("stripe", &typo),
            Err(ProfileError::Malformed(_))
        ));
        let missing = Profile::named("adyen", SHIPPED)
            .expect_err("not there")
            .to_string();
        assert!(missing.contains("manual, stripe"), "{missing}");
    }
}
