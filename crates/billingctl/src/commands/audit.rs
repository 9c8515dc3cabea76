//! `billingctl audit ...`: reads the log of everything that changed, and recomputes its hash chain.

use billing_core::ledger::audit::{CHAIN_START, ChainHash, chain_hash};
use billing_proto::v1;
use serde::Serialize;

use super::{Context, cut};
use crate::{
    args::Audit as Verb,
    failure::{Exit, Problem},
    output::{
        Card, Printer,
        json::{self, AuditRecord},
    },
};

pub async fn run(context: Context<'_, '_>, verb: Verb) -> Result<Exit, Problem> {
    match verb {
        Verb::Read { from, limit } => read(context, from, limit.limit).await,
        Verb::Verify { expect } => verify(context, expect).await,
    }
}

async fn read(mut context: Context<'_, '_>, from: u64, limit: u64) -> Result<Exit, Problem> {
    let Context {
        cluster,
        cli,
        streams,
        ..
    } = &mut context;
    // One more than is shown tells whether there is more.
    let asked = if limit == 0 {
        0
    } else {
        limit.saturating_add(1)
    };
    let mut records = cluster.read_audit_log(from, asked).await?;
    let mut printer = Printer::new(streams.stdout, cli.output, streams.stdout_columns);
    let mut listing = printer.listing::<AuditRecord>("records");
    let mut more = false;
    while let Some(record) = records.next().await? {
        if limit > 0 && listing.rows() >= limit {
            more = true;
            break;
        }
        listing.page(&[AuditRecord::from(record)])?;
    }
    listing.end(more, "no audit record.")?;
    if more {
        context.say(&cut(limit));
    }
    Ok(Exit::Done)
}

/// What a whole chain says.
#[derive(Debug, Serialize)]
struct Verified {
    records: u64,
    first_index: u64,
    last_index: u64,
    /// False: older records are no longer kept, and the first one's word is taken for what it follows.
    from_the_start: bool,
    hash: String,
}

impl Card for Verified {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let reach = match (self.records, self.from_the_start) {
            (0, _) => "empty".to_owned(),
            (_, true) => format!(
                "{} to {}, from the very first",
                self.first_index, self.last_index
            ),
            (_, false) => format!(
                "{} to {}; older ones are no longer kept",
                self.first_index, self.last_index
            ),
        };
        vec![
            ("chain", "holds".to_owned()),
            ("records", self.records.to_string()),
            ("indexes", reach),
            ("hash", self.hash.clone()),
        ]
    }
    fn name(&self) -> String {
        self.hash.clone()
    }
}

async fn verify(mut context: Context<'_, '_>, expect: Option<String>) -> Result<Exit, Problem> {
    let mut records = context.cluster.read_audit_log(0, 0).await?;
    let mut chain = Chain::default();
    while let Some(record) = records.next().await? {
        chain.follow(&record).map_err(broken)?;
    }
    let verified = chain.end();
    if let Some(expect) = expect
        && !expect.eq_ignore_ascii_case(&verified.hash)
    {
        return Err(broken(format!(
            "the last hash is {}, not {expect}",
            verified.hash
        )));
    }
    context.printer().one(&verified)?;
    Ok(Exit::Done)
}

fn broken(what: String) -> Problem {
    Problem::failed(
        format!("the audit log does not hold: {what}"),
        "keep the data folders of all nodes; verify against each node alone with --endpoints to find which one differs",
    )
}

/// The chain so far. Holds no records: a log of any length is verified as it streams by.
#[derive(Default)]
struct Chain {
    records: u64,
    first_index: u64,
    last_index: u64,
    from_the_start: bool,
    hash: ChainHash,
}

impl Chain {
    /// Says what is wrong with the record in its place.
    fn follow(&mut self, record: &v1::AuditRecord) -> Result<(), String> {
        let index = record.index;
        let previous = fixed(&record.previous_hash)
            .ok_or(format!("record {index} names no record before it"))?;
        if self.records == 0 {
            self.first_index = index;
            self.from_the_start = index == 1;
            if self.from_the_start && previous != CHAIN_START {
                return Err(format!("record {index} is the first and follows another"));
            }
        } else {
            if self.last_index.checked_add(1) != Some(index) {
                return Err(format!(
                    "record {index} follows {}: records are missing",
                    self.last_index
                ));
            }
            if previous != self.hash {
                return Err(format!(
                    "record {index} does not follow record {}",
                    self.last_index
                ));
            }
        }
        if fixed(&record.hash) != Some(chain_hash(&previous, &record.canonical)) {
            return Err(format!("record {index} does not hash to what it says"));
        }
        if !shown_is_hashed(record) {
            return Err(format!("record {index} shows other facts than were hashed"));
        }
        self.records += 1;
        self.last_index = index;
        self.hash = fixed(&record.hash).unwrap_or(previous);
        Ok(())
    }

    fn end(self) -> Verified {
        let Chain {
            records,
            first_index,
            last_index,
            from_the_start,
            hash,
        } = self;
        Verified {
            records,
            first_index,
            last_index,
            from_the_start,
            hash: json::hex(&hash),
        }
    }
}

fn fixed(bytes: &[u8]) -> Option<ChainHash> {
    bytes.try_into().ok()
}

/// Whether the fields that people read are the ones under the hash: a node could hash one thing and show another.
/// The canonical form is index, cluster time, wall time, actor, *what*, invoice, token, key: fixed-width little-endian
/// numbers, lengths before texts, a 0 or 1 before what may be absent. What happened and its detail stand in between, and
/// are the only part that is not compared.
fn shown_is_hashed(record: &v1::AuditRecord) -> bool {
    let mut head = Vec::new();
    head.extend_from_slice(&record.index.to_le_bytes());
    head.extend_from_slice(&record.cluster_time_ms.to_le_bytes());
    let Some(wall_ms) = record.wall_time.as_ref().and_then(millis) else {
        return false;
    };
    head.extend_from_slice(&wall_ms.to_le_bytes());
    text(&record.actor, &mut head);
    let mut tail = Vec::new();
    optional(&record.invoice_id, &mut tail);
    tail.extend_from_slice(&record.token.to_le_bytes());
    optional(&record.idempotency_key, &mut tail);
    let canonical = &record.canonical;
    canonical.len() >= head.len() + tail.len()
        && canonical.starts_with(&head)
        && canonical.ends_with(&tail)
}

fn millis(time: &prost_types::Timestamp) -> Option<u64> {
    let seconds = u64::try_from(time.seconds).ok()?;
    let nanos = u64::try_from(time.nanos).ok()?;
    seconds.checked_mul(1_000)?.checked_add(nanos / 1_000_000)
}

fn text(text: &str, into: &mut Vec<u8>) {
    into.extend_from_slice(&(text.len() as u64).to_le_bytes());
    into.extend_from_slice(text.as_bytes());
}

fn optional(shown: &str, into: &mut Vec<u8>) {
    if shown.is_empty() {
        into.push(0);
    } else {
        into.push(1);
        text(shown, into);
    }
}
