//! Decides how a command is written: names, flags, defaults and every word of `--help`. Never talks to a cluster.

mod bench;
mod cluster;

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

pub use bench::{Bench, Mode};
pub use cluster::{Add, Cluster, Promote, Remove, Restore};

/// The three nodes that `make cluster` starts.
pub const ENDPOINTS_DEFAULT: &str = "127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103";
/// More would be a mistake in quoting, not a cluster.
pub const ENDPOINTS_MAX: usize = 64;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  refused: the cluster, or this program, said no; nothing changed (submit: the good lines are in)
  2  failed: it did not happen, nobody could be reached, or the command line was wrong
  3  unknown: sent, but the answer was lost; read the invoice before acting on it

Data goes to stdout, talk to stderr.";

const LEARN_MORE: &str = "\
Examples:
  billingctl invoice generate 1000 | billingctl invoice submit -
  billingctl lease acquire inv-7 --ttl 30s --wait 10s -- ./charge.sh
  billingctl lease release $(billingctl lease acquire inv-7 -o name)
  billingctl charge list --in-doubt -o json | jq '.invoices[].invoice.invoice_id'

JSON fields are named as in proto/billing/v1. Tokens are strings, since they do not fit a double; bytes \
are hex, times are RFC 3339, spans are milliseconds.";

const DOCTOR_EXAMPLES: &str = "\
Examples:
  billingctl doctor
  billingctl doctor -o json | jq -r '.checks[] | select(.level == \"FAIL\") | .said'
  billingctl doctor -o name            only the checks that are not ok";

const WATCH_EXAMPLES: &str = "\
Examples:
  billingctl lease watch                      from now on, all invoices
  billingctl lease watch --list               first those that stand now
  billingctl lease watch inv-7 --count 1      until something happens to inv-7
  billingctl lease watch --from 4712 -o json  one JSON object per line, resumed";

/// Asks, orders and repairs a billingd cluster: the cluster that makes sure an invoice is charged once.
#[derive(Debug, Parser)]
#[command(
    name = "billingctl",
    version,
    disable_help_subcommand = true,
    max_term_width = 100
)]
#[command(after_help = EXIT_CODES, after_long_help = format!("{EXIT_CODES}\n\n{LEARN_MORE}"))]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub noun: Noun,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Nodes to ask, `host:port` separated by commas. Any node answers any call.
    #[arg(
        long, global = true, value_name = "LIST", value_delimiter = ',', value_parser = host_port,
        env = "BILLINGCTL_ENDPOINTS", hide_env_values = true, default_value = ENDPOINTS_DEFAULT
    )]
    pub endpoints: Vec<String>,

    /// How to print what was asked for.
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT", default_value_t = Format::Table)]
    pub output: Format,

    /// How long to try before giving up on one call (`500ms`, `10s`, `2m`).
    #[arg(long, global = true, value_name = "SPAN", value_parser = timeout, default_value = "10s")]
    pub timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people; turns into one block per row where the terminal is narrow.
    Table,
    /// One JSON document.
    Json,
    /// One JSON object per line and row.
    Jsonl,
    /// Only the ids, one per line.
    Name,
}

#[derive(Debug, Subcommand)]
pub enum Noun {
    /// Leases: the exclusive right to work on one invoice.
    #[command(subcommand)]
    Lease(Lease),
    /// Invoices: sums owed, each charged at most once.
    #[command(subcommand)]
    Invoice(Invoice),
    /// Charge attempts that a person should know of.
    #[command(subcommand)]
    Charge(Charge),
    /// The nodes, and the operator's switches.
    #[command(subcommand)]
    Cluster(Cluster),
    /// The hash chain of everything that ever changed.
    #[command(subcommand)]
    Audit(Audit),
    /// Measure how many leases a second this cluster grants and takes back.
    Bench(Bench),
    /// Look at everything that an operator would look at, one line per check.
    ///
    /// Asks every endpoint and every member of the cluster, twice, and changes nothing. Each line says ok, WARN or FAIL; below
    /// a WARN or FAIL stands what to do.
    ///
    /// Ends with 0 when nothing fails (warnings are no failure), with 1 when something fails, with 2 when no node could be asked.
    #[command(after_help = DOCTOR_EXAMPLES)]
    Doctor,
    /// Print a completion script for a shell.
    ///
    /// bash: source <(billingctl completion bash);
    /// zsh: billingctl completion zsh > "${fpath[1]}/_billingctl";
    /// fish: billingctl completion fish | source
    Completion {
        #[arg(value_enum)]
        shell: Shell,
    },
}

#[derive(Debug, Subcommand)]
pub enum Lease {
    /// Acquire the lease on an invoice, or hold it while a command runs.
    ///
    /// Without a command: prints the lease and its token, and ends; the lease lasts for --ttl.
    ///
    /// With a command: holds the lease for as long as the command runs, renews it, and passes the command's exit code on
    /// (126 or 127 when it cannot be started, 128 + n when signal n ended it). The command finds BILLING_INVOICE and
    /// BILLING_TOKEN in its environment. When the lease is lost the command gets SIGTERM, and SIGKILL 5 s later, and
    /// billingctl ends with 2.
    ///
    /// A signal comes too late where the machine slept or the command ignores it: whatever the command changes elsewhere
    /// should carry the token.
    Acquire(Acquire),
    /// Give a lease back.
    ///
    /// Idempotent: a token of the past is answered with was_current=false.
    Release {
        /// The invoice's id.
        invoice_id: String,
        #[command(flatten)]
        token: Token,
    },
    /// Extend a lease from now on.
    Renew {
        /// The invoice's id.
        invoice_id: String,
        #[command(flatten)]
        token: Token,
        /// For how long from now (1s to 5m).
        #[arg(long, value_name = "SPAN", value_parser = span, default_value = "30s")]
        ttl: Duration,
    },
    /// Show who holds the lease on an invoice.
    Get {
        /// The invoice's id.
        invoice_id: String,
        #[command(flatten)]
        read: Read,
    },
    /// List the leases that stand, in order of invoice id.
    List {
        /// Only this holder's.
        #[arg(long, value_name = "NAME")]
        holder: Option<String>,
        #[command(flatten)]
        limit: Limit,
        #[command(flatten)]
        read: Read,
    },
    /// Print grants and ends of leases as they happen, each with its index, until Ctrl-C.
    ///
    /// Goes on over another node when the one that tells fails. Ctrl-C ends it with 0 and says from which index to resume:
    /// nothing is missed, and nothing told twice, by --from that index. Renewals are no events. An index that is no longer
    /// kept is refused (1): begin anew with --list.
    ///
    /// -o json and -o jsonl both print one object per line; -o name prints invoice and token.
    #[command(after_help = WATCH_EXAMPLES)]
    Watch(Watch),
    /// End somebody else's lease. Audited.
    ///
    /// Its token is dead; a charge attempt that is open under it is in doubt, and is continued by whoever leases next.
    ForceRelease {
        /// The invoice's id.
        invoice_id: String,
        #[command(flatten)]
        reason: Reason,
    },
}

#[derive(Debug, Args)]
pub struct Acquire {
    /// The invoice's id.
    pub invoice_id: String,
    /// How long the lease lasts without being renewed (1s to 5m).
    #[arg(long, value_name = "SPAN", value_parser = span, default_value = "30s")]
    pub ttl: Duration,
    /// How long to queue for it while somebody else holds it (0s to 5m). First come, first served.
    #[arg(long, value_name = "SPAN", value_parser = span, default_value = "0s")]
    pub wait: Duration,
    /// The name that others see. Default: user@host.
    #[arg(long, value_name = "NAME")]
    pub holder: Option<String>,
    /// What to run while holding the lease.
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct Watch {
    /// Only this invoice's. Default: all.
    pub invoice_id: Option<String>,
    /// The first index wanted: one more than the last that was seen. Default: from now on.
    #[arg(long, value_name = "INDEX", value_parser = clap::value_parser!(u64).range(1..))]
    pub from: Option<u64>,
    /// First print the leases that stand, without an index.
    #[arg(long, conflicts_with = "from")]
    pub list: bool,
    /// End after so many events; those that stand are none.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
}

#[derive(Debug, Args)]
pub struct Token {
    /// The token that acquire printed.
    #[arg(value_name = "TOKEN", env = "BILLING_TOKEN", hide_env_values = true)]
    pub token: u64,
}

#[derive(Debug, Args)]
pub struct Read {
    /// Answer from the asked node's own state, however old.
    #[arg(long)]
    pub stale: bool,
}

#[derive(Debug, Args)]
pub struct Limit {
    /// How many to print at most; 0: all.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub limit: u64,
}

#[derive(Debug, Args)]
pub struct Reason {
    /// Why, for the audit log.
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
}

#[derive(Debug, Subcommand)]
pub enum Invoice {
    /// Submit invoices from a CSV file.
    ///
    /// The first line is the header: invoice_id,customer_id,amount_minor,currency,due_at,priority
    /// (the last two may be left out). due_at is RFC 3339 (2026-12-01T09:00:00Z) or a date (2026-12-01, midnight UTC);
    /// empty means now. amount_minor is in the currency's minor unit (cents).
    ///
    /// A broken line is reported with its number and skipped; the good lines are submitted; the exit code is 1 then.
    /// Submitting the same file again is safe: what is in already is counted as unchanged. An id that is in with another
    /// amount, currency or customer is refused.
    Submit {
        /// The file; `-` reads stdin.
        file: PathBuf,
        /// Only read the file and report broken lines.
        #[arg(long)]
        dry_run: bool,
    },
    /// Write made-up invoices as CSV to stdout. The same seed gives the same invoices.
    Generate(Generate),
    /// Show an invoice.
    Get {
        /// The invoice's id.
        invoice_id: String,
        #[command(flatten)]
        read: Read,
    },
    /// List invoices in order of id.
    List {
        /// Only those of this status.
        #[arg(long, value_enum, ignore_case = true)]
        status: Option<Status>,
        /// Only this customer's.
        #[arg(long, value_name = "ID")]
        customer: Option<String>,
        #[command(flatten)]
        limit: Limit,
        #[command(flatten)]
        read: Read,
    },
    /// Show what happened to an invoice, oldest first.
    History {
        /// The invoice's id.
        invoice_id: String,
        #[command(flatten)]
        read: Read,
    },
    /// Cancel an invoice. Refused while a charge attempt is open.
    Cancel {
        /// The invoice's id.
        invoice_id: String,
        #[command(flatten)]
        reason: Reason,
    },
    /// Put a FAILED, CANCELLED or REVIEW invoice without a recorded charge back to PENDING.
    Requeue {
        /// The invoice's id.
        invoice_id: String,
        #[command(flatten)]
        reason: Reason,
    },
}

#[derive(Debug, Args)]
pub struct Generate {
    /// How many.
    #[arg(value_name = "N")]
    pub count: u64,
    /// The same seed gives the same invoices, whatever N.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// What invoice ids start with.
    #[arg(long, value_name = "TEXT", default_value = "inv-")]
    pub prefix: String,
    /// Among how many customers.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub customers: u64,
    /// ISO 4217, upper case.
    #[arg(long, value_name = "CODE", default_value = "EUR")]
    pub currency: String,
    /// due_at of all of them: RFC 3339 or a date. Default: empty, due when submitted.
    #[arg(long, value_name = "TIME")]
    pub due: Option<String>,
    /// Submit them instead of writing them.
    #[arg(long)]
    pub submit: bool,
}

/// Statuses as people see them (§2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Status {
    #[value(name = "PENDING")]
    Pending,
    #[value(name = "PROCESSING")]
    Processing,
    #[value(name = "CHARGING")]
    Charging,
    #[value(name = "IN_DOUBT")]
    InDoubt,
    #[value(name = "WAITING")]
    Waiting,
    #[value(name = "PAID")]
    Paid,
    #[value(name = "FAILED")]
    Failed,
    #[value(name = "REVIEW")]
    Review,
    #[value(name = "CANCELLED")]
    Cancelled,
}

#[derive(Debug, Subcommand)]
pub enum Charge {
    /// List charges whose outcome is not known yet: CHARGING, IN_DOUBT, WAITING and REVIEW.
    ///
    /// The flags name one or several of these instead of all.
    List {
        /// Attempt open, nobody works on it.
        #[arg(long)]
        in_doubt: bool,
        /// A person must decide.
        #[arg(long)]
        review: bool,
        /// The provider says pending.
        #[arg(long)]
        waiting: bool,
        #[command(flatten)]
        limit: Limit,
        #[command(flatten)]
        read: Read,
    },
    /// Record a person's word on a charge whose outcome is unknown. Audited.
    ///
    /// Look into the provider's books first, for exactly the key that `charge list` shows.
    /// --not-charged is refused while a lease stands, and until no send under the key can take effect any more.
    /// Nothing that the books said before that time counts: look again, then say it.
    #[command(group = clap::ArgGroup::new("word").required(true))]
    Resolve {
        /// The invoice's id.
        invoice_id: String,
        /// The idempotency key of the attempt that was looked up.
        #[arg(long, value_name = "KEY")]
        key: String,
        /// Money moved: the provider's id of the charge.
        #[arg(long, group = "word", value_name = "REFERENCE")]
        charged: Option<String>,
        /// No money moved, and none will.
        #[arg(long, group = "word")]
        not_charged: bool,
        /// The sum that moved, when it is not the invoiced one.
        #[arg(
            long,
            value_name = "MINOR",
            requires = "charged",
            requires = "currency"
        )]
        amount: Option<i64>,
        /// Its currency.
        #[arg(long, value_name = "CODE", requires = "amount")]
        currency: Option<String>,
        /// Where it was seen.
        #[arg(long, value_name = "TEXT")]
        evidence: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum Audit {
    /// Print audit records, oldest first.
    Read {
        /// The index of the first record wanted; 0: the oldest kept.
        #[arg(long, value_name = "INDEX", default_value_t = 0)]
        from: u64,
        #[command(flatten)]
        limit: Limit,
    },
    /// Read the audit log and recompute its hash chain.
    ///
    /// Ends with 2 when a record was changed, left out or put in between, and names the first such record.
    Verify {
        /// The hash that the last record must have: what an earlier verify printed, say.
        #[arg(long, value_name = "HEX")]
        expect: Option<String>,
    },
}

fn timeout(text: &str) -> Result<Duration, String> {
    match span(text)? {
        Duration::ZERO => Err("no answer comes within no time".to_owned()),
        span => Ok(span),
    }
}

/// `30s`, `5m`, `1m30s`, `500ms`. A bare number would be a guess at its unit.
fn span(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write a number and its unit: 500ms, 30s, 5m"))
}

fn host_port(text: &str) -> Result<String, String> {
    let text = text
        .trim()
        .trim_start_matches("http://")
        .trim_end_matches('/');
    match text.rsplit_once(':') {
        Some((host, port))
            if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) =>
        {
            Ok(text.to_owned())
        }
        _ => Err("write host:port, such as 127.0.0.1:7101".to_owned()),
    }
}
