//! Decides what the process says on stderr. Never logs a request's contents, a token of a session or any secret:
//! events name invoices, holders and fencing tokens, which are no secrets.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::cli::LogFormat;

/// Libraries whose info level is noise to an operator; a filter that names them wins.
const QUIET: &str = "openraft=warn,h2=warn,hyper=warn,tonic=warn,tower=warn,sled=warn";

/// Parses a filter such as `info` or `info,billing_server=debug`.
pub fn filter(text: &str) -> Result<EnvFilter, String> {
    EnvFilter::builder()
        .parse(format!("{QUIET},{text}"))
        .map_err(|error| format!("{error}; such as info, or info,billing_server=debug"))
}

/// Sends events to stderr for the rest of the process's life. A second call keeps the first.
pub fn start(log: &str, format: LogFormat) -> Result<(), String> {
    let registry = tracing_subscriber::registry().with(filter(log)?);
    let started = match format {
        LogFormat::Text => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .with_writer(std::io::stderr)
                    .with_ansi(false)
                    .with_target(false),
            )
            .try_init(),
        LogFormat::Json => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_writer(std::io::stderr),
            )
            .try_init(),
    };
    if started.is_err() {
        tracing::debug!("events were being recorded already");
    }
    Ok(())
}
