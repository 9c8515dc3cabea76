//! `billingctl audit ...`: reads the log of everything that changed, and recomputes its hash chain.

use billing_core::ledger::audit::{
    AuditRecord as HashedRecord, CHAIN_START, ChainHash, chain_hash,
};
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
        let hash = chain_hash(&previous, &record.canonical);
        if fixed(&record.hash) != Some(hash) {
            return Err(format!("record {index} does not hash to what it says"));
        }
        // A record of a newer kind could say anything to a reader that took its word.
        let hashed = HashedRecord::from_canonical(&record.canonical, hash).map_err(|unreadable| {
            format!(
                "what was hashed as record {index} is not known to this billingctl: {unreadable}"
            )
        })?;
        if !shown_is_hashed(record, &hashed) {
            return Err(format!("record {index} shows other facts than were hashed"));
        }
        self.records += 1;
        self.last_index = index;
        self.hash = hash;
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

/// Whether what people read is what was hashed: a node could hash one thing and show another.
fn shown_is_hashed(shown: &v1::AuditRecord, hashed: &HashedRecord) -> bool {
    let HashedRecord {
        index,
        at,
        wall,
        actor,
        what,
        invoice,
        token,
        key,
        hash: _, // Compared already.
    } = hashed;
    let or_empty = |text: Option<String>| text.unwrap_or_default();
    shown.index == *index
        && shown.cluster_time_ms == at.0
        && shown.wall_time.as_ref().and_then(millis) == Some(wall.0)
        && shown.actor == actor.as_str()
        && shown.what == what.word()
        && shown.detail == what.detail()
        && shown.invoice_id == or_empty(invoice.as_ref().map(ToString::to_string))
        && shown.token == token.0
        && shown.idempotency_key == or_empty(key.as_ref().map(ToString::to_string))
}

fn millis(time: &prost_types::Timestamp) -> Option<u64> {
    let seconds = u64::try_from(time.seconds).ok()?;
    let nanos = u64::try_from(time.nanos).ok()?;
    seconds.checked_mul(1_000)?.checked_add(nanos / 1_000_000)
}
