//! What `billing-worker` can be told, and what it is told when nothing is said. Flags go before the environment. The provider's
//! key is never a flag: arguments are seen by everybody on the machine.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use billing_env::loopback_or_insecure;
use billing_gate::{GateConfig, Payer, Payers, Profile, SHIPPED, SecretKey};
use billing_worker::RunOptions;
use clap::Parser;

use crate::payers;

const ABOUT: &str =
    "The charge run: claims due invoices, has the gate charge them, gives the leases back.";

const LONG: &str = "\
The charge run. Opens a session, claims the invoices that are due, charges each through the gate (begin, create, attach, \
confirm, settle) and gives the leases back. As many workers as you like may run at once, anywhere: the cluster makes sure that \
each invoice is charged once. What stays in doubt is continued under its own key, by this worker or another.";

const AFTER: &str = "\
Examples:
  BILLING_PROVIDER_KEY=sk_test_sandbox billing-worker --until-empty     # charge what is due, then end
  billing-worker --provider-key-file /run/secrets/stripe --concurrency 64
  billing-worker --payers payers.csv --until-empty                      # each customer's own payment method

Signals: SIGTERM or Ctrl-C claims nothing more, finishes what is on the wire (--grace) and gives back the rest; a second one
ends at once. A worker that was stopped for longer than its session lives opens a new session and goes on.

Exit codes: 0 done, or stopped as asked; 1 something was refused, or stays in doubt for longer than --patience; 2 failed.";

#[derive(Debug, Parser)]
#[command(name = "billing-worker", version, about = ABOUT, long_about = LONG, after_help = AFTER)]
pub struct Args {
    /// Nodes of the cluster, any or all, separated by commas.
    #[arg(
        long,
        env = "BILLING_WORKER_ENDPOINTS",
        value_delimiter = ',',
        value_name = "HOST:PORT,...",
        default_value = "127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103"
    )]
    pub endpoints: Vec<String>,
    /// Who holds the leases, for people [default: worker-<pid>].
    #[arg(long, env = "BILLING_WORKER_HOLDER", value_name = "NAME")]
    holder: Option<String>,
    /// How long leases outlive this process's last word: 1s to 5m.
    #[arg(long, env = "BILLING_WORKER_SESSION_TTL", default_value = "10s", value_name = "TIME", value_parser = humantime::parse_duration)]
    session_ttl: Duration,
    /// Charges at once.
    #[arg(
        long,
        env = "BILLING_WORKER_CONCURRENCY",
        default_value_t = 16,
        value_name = "N"
    )]
    concurrency: u16,
    /// End once nothing is due, in doubt or at work in others' hands.
    #[arg(long)]
    until_empty: bool,
    /// With --until-empty: wait for what becomes due within this time, and as long for a cluster that does not answer.
    #[arg(long, env = "BILLING_WORKER_PATIENCE", default_value = "10m", value_name = "TIME", value_parser = humantime::parse_duration)]
    patience: Duration,
    /// After a signal: how long charges on the wire may take to end.
    #[arg(long, env = "BILLING_WORKER_GRACE", default_value = "30s", value_name = "TIME", value_parser = humantime::parse_duration)]
    grace: Duration,
    /// What to log on stderr, as in RUST_LOG.
    #[arg(
        long,
        env = "BILLING_WORKER_LOG",
        default_value = "info",
        value_name = "FILTER"
    )]
    pub log: String,

    /// Which provider: a name in the table of profiles. Built in: stripe (PaymentIntents), stripe-charges (keys alone).
    #[arg(
        long,
        env = "BILLING_WORKER_PROVIDER",
        default_value = "stripe",
        value_name = "NAME",
        help_heading = "Provider"
    )]
    provider: String,
    /// Where it is. Plain HTTP, on this machine; the default is the sandbox.
    #[arg(
        long,
        env = "BILLING_WORKER_PROVIDER_URL",
        default_value = "http://127.0.0.1:7301",
        value_name = "URL",
        help_heading = "Provider"
    )]
    provider_url: String,
    /// Speak plain HTTP to a provider beyond this machine.
    #[arg(long, help_heading = "Provider")]
    insecure: bool,
    /// A file with the provider's secret key. Without it the key is read from the variable BILLING_PROVIDER_KEY.
    #[arg(
        long,
        env = "BILLING_WORKER_PROVIDER_KEY_FILE",
        value_name = "FILE",
        help_heading = "Provider"
    )]
    provider_key_file: Option<PathBuf>,
    /// The account's name in the ledger; the same for every worker that charges on it.
    #[arg(
        long,
        env = "BILLING_WORKER_ACCOUNT",
        default_value = "default",
        value_name = "NAME",
        help_heading = "Provider"
    )]
    account: String,
    /// Another table of provider profiles (TOML) than the one that is built in.
    #[arg(
        long,
        env = "BILLING_WORKER_PROFILES",
        value_name = "FILE",
        help_heading = "Provider"
    )]
    profiles: Option<PathBuf>,
    /// How each customer pays: a CSV file with customer_id,provider_customer,payment_method.
    #[arg(
        long,
        env = "BILLING_WORKER_PAYERS",
        value_name = "FILE",
        conflicts_with = "payment_method",
        help_heading = "Provider"
    )]
    payers: Option<PathBuf>,
    /// Without --payers: the payment method of everybody, such as a test card.
    #[arg(
        long,
        env = "BILLING_WORKER_PAYMENT_METHOD",
        default_value = "pm_card_visa",
        value_name = "ID",
        help_heading = "Provider"
    )]
    payment_method: String,
}

impl Args {
    pub fn gate(&self) -> anyhow::Result<GateConfig> {
        let table = match &self.profiles {
            None => SHIPPED.to_owned(),
            Some(path) => std::fs::read_to_string(path)
                .with_context(|| format!("cannot read profiles {}", path.display()))?,
        };
        let payers = match &self.payers {
            Some(path) => payers::read(path)?,
            None => Payers::Everyone(Payer {
                provider_customer: None,
                payment_method: self.payment_method.clone(),
            }),
        };
        Ok(GateConfig {
            profile: Profile::named(&self.provider, &table)?,
            provider: self.provider.clone(),
            address: self.address()?,
            account: self.account.clone(),
            key: self.key()?,
            payers,
        })
    }

    fn key(&self) -> anyhow::Result<SecretKey> {
        if let Some(path) = &self.provider_key_file {
            return Ok(SecretKey::from_file(path)?);
        }
        match std::env::var("BILLING_PROVIDER_KEY") {
            Ok(text) => Ok(SecretKey::new(&text)?),
            Err(_) => bail!(
                "no provider key: set BILLING_PROVIDER_KEY (the sandbox takes any sk_test_...) or name a --provider-key-file"
            ),
        }
    }

    /// host:port of the provider's URL.
    fn address(&self) -> anyhow::Result<String> {
        let url = &self.provider_url;
        let Some(rest) = url.strip_prefix("http://") else {
            bail!(
                "--provider-url {url}: this version speaks plain http:// only; put a TLS proxy on this machine in between"
            );
        };
        let address = rest.trim_end_matches('/');
        let port = address
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse::<u16>().ok());
        if address.contains('/') || port.is_none() {
            bail!("--provider-url {url} is not http://HOST:PORT");
        }
        if loopback_or_insecure(address, self.insecure).is_err() {
            bail!(
                "--provider-url {url} is beyond this machine, and the key would cross the network in plain text: use a local TLS proxy, or pass --insecure if the network itself is trusted"
            );
        }
        Ok(address.to_owned())
    }

    pub fn run_options(&self) -> anyhow::Result<RunOptions> {
        if self.concurrency == 0 {
            bail!("--concurrency must be 1 or more");
        }
        Ok(RunOptions {
            holder: self
                .holder
                .clone()
                .unwrap_or_else(|| format!("worker-{}", std::process::id())),
            session_ttl: self.session_ttl,
            concurrency: self.concurrency.into(),
            until_empty: self.until_empty,
            patience: self.patience,
            grace: self.grace,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &[&str]) -> Args {
        Args::try_parse_from(std::iter::once("billing-worker").chain(words.iter().copied()))
            .expect("flags")
    }

    #[test]
    fn the_flags_are_consistent() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn a_provider_url_is_http_on_this_machine_or_explicitly_insecure() {
        let address = |words: &[&str]| args(words).address().map_err(|error| error.to_string());
        assert_eq!(
            address(&["--provider-url", "http://127.0.0.1:9/"]),
            Ok("127.0.0.1:9".to_owned())
        );
        assert_eq!(
            address(&["--provider-url", "http://pay.example:80", "--insecure"]),
            Ok("pay.example:80".to_owned())
        );
        for wrong in [
            "https://api.stripe.com",
            "http://pay.example:80",
            "http://127.0.0.1",
            "http://127.0.0.1:9/v1",
            "127.0.0.1:9",
        ] {
            assert!(address(&["--provider-url", wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_run_needs_at_least_one_charge_at_a_time() {
        assert!(args(&["--concurrency", "0"]).run_options().is_err());
        assert_eq!(args(&["--endpoints", "a:1,b:2"]).endpoints, ["a:1", "b:2"]);
    }
}
