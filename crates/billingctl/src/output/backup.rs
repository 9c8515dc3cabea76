//! Decides how snapshots and backups look, to people and to programs. Reads only what a node or a verified file said.

use std::collections::BTreeMap;

use billing_core::Ledger;
use billing_proto::{backup::Whole, v1};
use serde::Serialize;

use super::{Card, Row, bytes, json};

/// What one node answered.
#[derive(Debug, Serialize)]
pub struct Snapshot {
    pub node: String,
    pub index: u64,
    pub bytes: u64,
}

impl Row for Snapshot {
    const HEADERS: &'static [&'static str] = &["NODE", "INDEX", "SIZE"];
    fn cells(&self) -> Vec<String> {
        vec![self.node.clone(), self.index.to_string(), bytes(self.bytes)]
    }
    fn name(&self) -> String {
        self.node.clone()
    }
}

/// A backup that is whole.
#[derive(Debug, Serialize)]
pub struct Backup {
    pub file: String,
    pub ledger_id: String,
    pub applied_index: u64,
    pub wall_time: Option<String>,
    pub cluster_time_ms: u64,
    pub node_id: u64,
    pub version: String,
    pub format: u32,
    pub ledger_format: u32,
    /// Of the encoded ledger.
    pub bytes: u64,
    /// Names this very backup.
    pub blake3: String,
    pub state_hash: String,
    /// Known once the ledger inside was read.
    #[serde(flatten)]
    pub inside: Option<Inside>,
}

#[derive(Debug, Serialize)]
pub struct Inside {
    /// By status, those that occur.
    pub invoices: BTreeMap<String, u64>,
    pub leases: u64,
    pub sessions: u64,
    pub audit_records: u64,
    pub charge_alarms: u64,
}

impl Backup {
    pub fn new(file: String, whole: &Whole, ledger: Option<&Ledger>) -> Backup {
        let header = &whole.header;
        Backup {
            file,
            ledger_id: header.ledger_id.clone(),
            applied_index: header.applied_index,
            wall_time: header.wall_time.as_ref().map(json::time),
            cluster_time_ms: header.cluster_time_ms,
            node_id: header.node_id,
            version: header.version.clone(),
            format: header.format,
            ledger_format: header.ledger_format,
            bytes: whole.bytes,
            blake3: json::hex(&whole.blake3),
            state_hash: json::hex(&header.state_hash),
            inside: ledger.map(Inside::new),
        }
    }
}

impl Inside {
    fn new(ledger: &Ledger) -> Inside {
        let counts = ledger.counts();
        let occur = counts.iter().filter(|(_, count)| *count > 0);
        let invoices = occur.map(|(status, count)| {
            let status = v1::InvoiceStatus::from(*status);
            (json::status(status), *count)
        });
        Inside {
            invoices: invoices.collect(),
            leases: ledger.leases_count(),
            sessions: ledger.sessions_count(),
            audit_records: (ledger.audit_last_index() + 1)
                .saturating_sub(ledger.audit_first_index()),
            charge_alarms: ledger.charge_alarms(),
        }
    }
}

impl Card for Backup {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![
            ("file", self.file.clone()),
            ("ledger", self.ledger_id.clone()),
            ("as of entry", self.applied_index.to_string()),
            ("made", self.wall_time.clone().unwrap_or_default()),
            (
                "by",
                format!("node {}, version {}", self.node_id, self.version),
            ),
            ("size", bytes(self.bytes)),
            ("blake3", self.blake3.clone()),
            ("state hash", self.state_hash.clone()),
        ];
        if let Some(inside) = &self.inside {
            let counts = inside.invoices.iter();
            let counts: Vec<String> = counts
                .map(|(status, count)| format!("{count} {status}"))
                .collect();
            lines.extend([
                ("invoices", counts.join(", ")),
                ("leases", inside.leases.to_string()),
                ("sessions", inside.sessions.to_string()),
                ("audit records", inside.audit_records.to_string()),
                ("charge alarms", inside.charge_alarms.to_string()),
            ]);
        }
        lines
    }
    fn name(&self) -> String {
        self.file.clone()
    }
}

/// The folders that were made.
#[derive(Debug, Serialize)]
pub struct Restored {
    pub node_id: u64,
    pub data_dir: String,
    /// The same for every node of one restore.
    pub restore_id: String,
}

impl Row for Restored {
    const HEADERS: &'static [&'static str] = &["NODE", "FOLDER", "RESTORE ID"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.node_id.to_string(),
            self.data_dir.clone(),
            self.restore_id.clone(),
        ]
    }
    fn name(&self) -> String {
        self.node_id.to_string()
    }
}
