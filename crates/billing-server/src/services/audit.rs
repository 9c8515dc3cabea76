//! Decides how a record of the audit log looks on the wire. The canonical bytes travel with it, so that a reader can check
//! the chain without trusting what is shown beside them.

use billing_core::{AuditRecord, ChainHash};
use billing_proto::convert::timestamp;
use billing_proto::v1;

/// A record that follows one with the hash `previous`.
pub fn to_wire(record: &AuditRecord, previous: ChainHash) -> v1::AuditRecord {
    v1::AuditRecord {
        index: record.index,
        cluster_time_ms: record.at.0,
        wall_time: Some(timestamp(record.wall)),
        actor: record.actor.to_string(),
        what: record.what.word().to_owned(),
        invoice_id: record
            .invoice
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        token: record.token.0,
        idempotency_key: record
            .key
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        detail: record.what.detail(),
        previous_hash: previous.to_vec(),
        hash: record.hash.to_vec(),
        canonical: record.canonical(),
    }
}
