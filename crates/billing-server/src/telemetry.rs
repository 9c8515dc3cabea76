//! Decides what the process says on stderr. Never logs a request's contents, a session's id or any secret: events name
//! invoices, holders and fencing tokens, which are no secrets.

use std::fmt;
use std::io::{self, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::cli::LogFormat;

/// Libraries that tell an operator what this program tells better; a filter that names them wins.
const QUIET: &str = "openraft=error,h2=warn,hyper=warn,tonic=warn,tower=warn,sled=warn";

/// Parses a filter such as `info` or `info,billing_server=debug`.
pub fn filter(text: &str) -> Result<EnvFilter, String> {
    EnvFilter::builder()
        .parse(format!("{QUIET},{text}"))
        .map_err(|error| format!("{error}; such as info, or info,billing_server=debug"))
}

/// Sends events to stderr for the rest of the process's life, each with the node's id: the lines of several nodes are often
/// read side by side. A second call keeps the first.
pub fn start(node: u64, log: &str, format: LogFormat) -> Result<(), String> {
    let registry = tracing_subscriber::registry().with(filter(log)?);
    let started = match format {
        LogFormat::Text => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .with_writer(io::stderr)
                    .with_timer(TimeAndNode(node))
                    .with_ansi(false)
                    .with_target(false),
            )
            .try_init(),
        LogFormat::Json => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_writer(JsonOf(node)),
            )
            .try_init(),
    };
    if started.is_err() {
        tracing::debug!("events were being recorded already");
    }
    Ok(())
}

/// Begins a line with the time and the node.
struct TimeAndNode(u64);

impl FormatTime for TimeAndNode {
    fn format_time(&self, to: &mut Writer<'_>) -> fmt::Result {
        SystemTime.format_time(to)?;
        write!(to, " node-{}", self.0)
    }
}

/// Puts the node first into every JSON object. The layer writes one whole object per call.
#[derive(Clone, Copy)]
struct JsonOf(u64);

impl<'a> MakeWriter<'a> for JsonOf {
    type Writer = JsonOf;
    fn make_writer(&'a self) -> JsonOf {
        *self
    }
}

impl Write for JsonOf {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut stderr = io::stderr().lock();
        match bytes.strip_prefix(b"{") {
            Some(rest) => {
                write!(stderr, "{{\"node_id\":{},", self.0)?;
                stderr.write_all(rest)?;
            }
            None => stderr.write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
