//! Decides which providers there are in a simulation and what each promises: the scaled profiles that the gates are given, and
//! the sandbox's settings that keep, or do not keep, to them.

use std::time::Duration;

use billing_gate::{GateConfig, Payer, Payers, Profile, SecretKey};
use billing_sandbox::{Faults, Settings};

use crate::machines::{PROVIDER, PROVIDER_PORT};

/// A provider, by what protects from charging twice there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    /// Single-use objects: safe under every fault and any clock.
    Objects,
    /// Keys only; a decline is kept under its key.
    StickyKeys,
    /// Keys only; a decline is not kept.
    LooseKeys,
    /// Keys that mean nothing, and nobody can look anything up.
    Nothing,
}

impl Provider {
    pub const ALL: [Provider; 4] = [
        Provider::Objects,
        Provider::StickyKeys,
        Provider::LooseKeys,
        Provider::Nothing,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Provider::Objects => "objects",
            Provider::StickyKeys => "sticky-keys",
            Provider::LooseKeys => "loose-keys",
            Provider::Nothing => "nothing",
        }
    }

    /// Whether the provider keeps declines under their key, as the gate's terms say.
    pub fn sticky(self) -> bool {
        match self {
            Provider::Objects | Provider::StickyKeys => true,
            Provider::LooseKeys | Provider::Nothing => false,
        }
    }

    fn by_key(self) -> bool {
        self != Provider::Objects
    }

    fn keeps_keys(self) -> bool {
        self != Provider::Nothing
    }
}

/// What holds in one world; properties ask for no more than that.
#[derive(Debug, Clone, Copy)]
pub struct Promises {
    /// At most one successful charge of an invoice.
    pub one_charge: bool,
    /// The provider keeps declines under their key.
    pub sticky: bool,
    /// No clock runs faster or slower than clients and nodes allow for.
    pub clocks_keep_drift: bool,
    /// Nothing comes between a gate's check and its send for long.
    pub sends_are_prompt: bool,
    pub valid_for: Duration,
    pub in_flight_max: Duration,
}

impl Promises {
    /// From BeginCharge until a look-up may count.
    pub fn quiet_after_ms(&self) -> u64 {
        u64::try_from((self.valid_for + self.in_flight_max).as_millis()).unwrap_or(u64::MAX)
    }
}

pub const VALID_FOR: Duration = Duration::from_secs(12);
pub const IN_FLIGHT_MAX: Duration = Duration::from_secs(6);
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
pub const KEY_RETENTION: Duration = Duration::from_secs(30);
/// A search does not show what is younger.
const SEARCH_LAG: Duration = Duration::from_secs(1);
/// A bank debit takes so long.
const PROCESSING: Duration = Duration::from_secs(4);

/// Who pays how: most can pay, some cannot, some only later.
pub const CUSTOMERS: [(&str, &str); 6] = [
    ("ana", "pm_card_visa"),
    ("ben", "pm_card_mastercard"),
    ("cleo", "pm_card_amex"),
    ("dora", "pm_card_visa_chargeDeclinedInsufficientFunds"),
    ("emil", "pm_card_visa_chargeDeclinedLostCard"),
    ("fred", "pm_usBankAccount"),
];

pub fn gate_config(provider: Provider) -> anyhow::Result<GateConfig> {
    let shown = humantime_of;
    let (api, objects) = match provider {
        Provider::Objects => ("payment_intents", true),
        _ => ("charges", false),
    };
    let retention = match provider.keeps_keys() {
        true => KEY_RETENTION,
        false => Duration::ZERO,
    };
    let table = format!(
        "[simulated]\nas_of = \"2026-11-26\"\nsources = []\napi = \"{api}\"\napi_version = \"2024-06-20\"\n\
         key_retention = \"{}\"\nsticky_declines = {}\nstored_errors = {keeps}\nsingle_use_object = {objects}\n\
         look_up = {keeps}\nlook_up_lag = \"{}\"\nin_flight_max = \"{}\"\nvalid_for = \"{}\"\ncancel = {objects}\n\
         request_timeout = \"{}\"\npending_every = \"3s\"\namount_max = 99999999\n",
        shown(retention),
        provider.sticky(),
        shown(look_up_lag(provider)),
        shown(IN_FLIGHT_MAX),
        shown(VALID_FOR),
        shown(REQUEST_TIMEOUT),
        keeps = provider.keeps_keys(),
    );
    let listed = CUSTOMERS
        .iter()
        .map(|(customer, method)| {
            let payer = Payer {
                provider_customer: None,
                payment_method: (*method).to_owned(),
            };
            Ok((billing_core::CustomerId::new(customer)?, payer))
        })
        .collect::<anyhow::Result<_>>()?;
    Ok(GateConfig {
        provider: provider.name().to_owned(),
        profile: Profile::named("simulated", &table)?,
        address: format!("{PROVIDER}:{PROVIDER_PORT}"),
        account: "default".to_owned(),
        key: SecretKey::new("sk_test_simulated")?,
        payers: Payers::Listed(listed),
    })
}

fn humantime_of(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

pub fn promises(provider: Provider) -> Promises {
    Promises {
        one_charge: true,
        sticky: provider.sticky(),
        clocks_keep_drift: true,
        sends_are_prompt: provider != Provider::Objects,
        valid_for: VALID_FOR,
        in_flight_max: IN_FLIGHT_MAX,
    }
}

/// The sandbox as the provider's promises say, before it misbehaves.
pub fn sandbox(provider: Provider, seed: u64) -> Settings {
    let faults = Faults {
        delay_ms: 1..=40,
        reply_delay_ms: 0..=40,
        ..Faults::default()
    };
    let faults = Faults {
        ignore_keys: !provider.keeps_keys(),
        forget_declines: !provider.sticky(),
        ..faults
    };
    Settings {
        faults,
        key_retention: KEY_RETENTION,
        processing: PROCESSING,
        search_lag: look_up_lag(provider),
        seed,
        ..Settings::default()
    }
}

/// A search is behind; an object that is retrieved is not.
fn look_up_lag(provider: Provider) -> Duration {
    match provider.by_key() && provider.keeps_keys() {
        true => SEARCH_LAG,
        false => Duration::ZERO,
    }
}
