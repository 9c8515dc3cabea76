//! What a record of the audit log says, and how records are chained: each is hashed together with the one before it. Keeps
//! none (audit_log.rs does), decides nothing.

use serde::{Deserialize, Serialize};
use std::fmt;

use super::audit_log::Packed;
use crate::command::{Finality, Verdict};
use crate::ids::*;
use crate::reply::{LeaseEventKind, ReviewReason};

pub type ChainHash = [u8; 32];

/// What the first record of a log follows.
pub const CHAIN_START: ChainHash = [0; 32];

/// One transition. `hash` covers the rest and the record before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// From 1, without a gap.
    pub index: u64,
    pub at: ClusterTime,
    pub wall: WallTime,
    pub actor: Actor,
    pub what: What,
    pub invoice: Option<InvoiceId>,
    /// NONE: no token had a part in it.
    pub token: FencingToken,
    pub key: Option<IdempotencyKey>,
    pub hash: ChainHash,
}

/// A record without what its place says: its index, and the hash that follows from the one before.
#[derive(Serialize)]
pub(crate) struct Facts<'a> {
    pub at: ClusterTime,
    pub wall: WallTime,
    pub actor: &'a Actor,
    pub what: &'a What,
    pub invoice: Option<&'a InvoiceId>,
    pub token: FencingToken,
    pub key: Option<&'a IdempotencyKey>,
}

/// Bytes that are no record in its canonical form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotCanonical {
    #[error("the bytes are no record: {0}")]
    Unreadable(String),
    /// Two forms for one record would let a node hash the one and show the other.
    #[error("the bytes are not in canonical form")]
    OtherForm,
}

impl AuditRecord {
    /// Everything that goes into the hash besides the record before: the index and the facts, in their order, as postcard
    /// writes them.
    #[must_use]
    pub fn canonical(&self) -> Vec<u8> {
        // Fails only for a sequence of unknown length, and no record has one.
        postcard::to_allocvec(&(self.index, self.facts())).expect("a record is written to memory")
    }

    pub(crate) fn facts(&self) -> Facts<'_> {
        Facts {
            at: self.at,
            wall: self.wall,
            actor: &self.actor,
            what: &self.what,
            invoice: self.invoice.as_ref(),
            token: self.token,
            key: self.key.as_ref(),
        }
    }

    /// The record whose canonical form these bytes are; its hash is not among them.
    pub fn from_canonical(bytes: &[u8], hash: ChainHash) -> Result<AuditRecord, NotCanonical> {
        let unreadable = |error: postcard::Error| NotCanonical::Unreadable(error.to_string());
        let (index, packed): (u64, Packed) = postcard::from_bytes(bytes).map_err(unreadable)?;
        let record = packed.record(index, hash);
        if record.canonical() == bytes {
            Ok(record)
        } else {
            Err(NotCanonical::OtherForm)
        }
    }
}

/// The hash of a record: over the one before and the record's canonical bytes.
#[must_use]
pub fn chain_hash(previous: &ChainHash, canonical: &[u8]) -> ChainHash {
    chain_hash_of(previous, canonical, &[])
}

/// The same of canonical bytes that lie in two places.
pub(crate) fn chain_hash_of(previous: &ChainHash, begin: &[u8], rest: &[u8]) -> ChainHash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(previous);
    hasher.update(begin);
    hasher.update(rest);
    *hasher.finalize().as_bytes()
}

/// The record at which a chain does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokenChain {
    #[error("audit record {index} does not hash to what it says")]
    Hash { index: u64 },
    #[error("audit record {index} follows {previous}: records are missing")]
    Gap { previous: u64, index: u64 },
}

/// Checks that each record follows the one before, the first one `anchor`. Returns the hash of the last.
pub fn verify_chain(records: &[AuditRecord], anchor: ChainHash) -> Result<ChainHash, BrokenChain> {
    let mut previous = anchor;
    for (nth, record) in records.iter().enumerate() {
        if nth > 0 && records[nth - 1].index.checked_add(1) != Some(record.index) {
            return Err(BrokenChain::Gap {
                previous: records[nth - 1].index,
                index: record.index,
            });
        }
        if chain_hash(&previous, &record.canonical()) != record.hash {
            return Err(BrokenChain::Hash {
                index: record.index,
            });
        }
        previous = record.hash;
    }
    Ok(previous)
}

/// What happened: a participle, and the facts that only this record holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    Bootstrapped {
        ledger_id: LedgerId,
        no_prior_charges: bool,
    },
    Restored {
        reason: Evidence,
    },
    ChargesAllowed {
        evidence: Evidence,
    },
    ProviderPaused {
        provider: ProviderId,
        reason: Evidence,
    },
    ProviderResumed {
        provider: ProviderId,
        reason: Evidence,
    },
    SessionOpened {
        session: SessionId,
        holder: HolderId,
    },
    SessionClosed {
        session: SessionId,
    },
    SessionExpired {
        session: SessionId,
    },
    Acquired {
        session: SessionId,
        holder: HolderId,
    },
    Released {
        holder: HolderId,
    },
    LeaseExpired {
        holder: HolderId,
    },
    SessionLost {
        session: SessionId,
        holder: HolderId,
    },
    ForceReleased {
        reason: Evidence,
        holder: HolderId,
    },
    Submitted {
        customer: CustomerId,
        amount: AmountMinor,
        currency: crate::currency::Currency,
    },
    InvoiceCancelled {
        reason: Option<Evidence>,
    },
    Requeued {
        reason: Option<Evidence>,
    },
    Begun,
    TakenOver,
    ObjectAttached {
        object: ObjectId,
    },
    Charged {
        reference: Reference,
    },
    /// `proven` false: the ledger did not accept the finality, the attempt is closing.
    Declined {
        code: DeclineCode,
        retryable: bool,
        finality: Finality,
        proven: bool,
    },
    LookedUpNone {
        counts: bool,
    },
    ObjectCancelled {
        object: ObjectId,
    },
    Pending {
        expected_by: WallTime,
    },
    Unknown {
        detail: Option<Detail>,
    },
    Resolved {
        verdict: Verdict,
        evidence: Evidence,
    },
    WaitingEnded,
    PutInReview {
        reason: ReviewReason,
    },
    Paid,
    Failed,
    /// With the settlement, cancellation or decision that stands before it.
    LeaseEnded {
        holder: HolderId,
    },
}

impl What {
    /// Whose lease was granted or ended; None: no lease was. Every grant and every end of a lease is a record of its own.
    #[must_use]
    pub fn lease(&self) -> Option<(LeaseEventKind, &HolderId)> {
        match self {
            Self::Acquired { holder, .. } => Some((LeaseEventKind::Granted, holder)),
            Self::Released { holder }
            | Self::LeaseExpired { holder }
            | Self::SessionLost { holder, .. }
            | Self::ForceReleased { holder, .. }
            | Self::LeaseEnded { holder } => Some((LeaseEventKind::Ended, holder)),
            Self::Bootstrapped { .. }
            | Self::Restored { .. }
            | Self::ChargesAllowed { .. }
            | Self::ProviderPaused { .. }
            | Self::ProviderResumed { .. }
            | Self::SessionOpened { .. }
            | Self::SessionClosed { .. }
            | Self::SessionExpired { .. }
            | Self::Submitted { .. }
            | Self::InvoiceCancelled { .. }
            | Self::Requeued { .. }
            | Self::Begun
            | Self::TakenOver
            | Self::ObjectAttached { .. }
            | Self::Charged { .. }
            | Self::Declined { .. }
            | Self::LookedUpNone { .. }
            | Self::ObjectCancelled { .. }
            | Self::Pending { .. }
            | Self::Unknown { .. }
            | Self::Resolved { .. }
            | Self::WaitingEnded
            | Self::PutInReview { .. }
            | Self::Paid
            | Self::Failed => None,
        }
    }

    /// The participle alone.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Bootstrapped { .. } => "bootstrapped",
            Self::Restored { .. } => "restored",
            Self::ChargesAllowed { .. } => "charges allowed",
            Self::ProviderPaused { .. } => "provider paused",
            Self::ProviderResumed { .. } => "provider resumed",
            Self::SessionOpened { .. } => "session opened",
            Self::SessionClosed { .. } => "session closed",
            Self::SessionExpired { .. } => "session expired",
            Self::Acquired { .. } => "acquired",
            Self::Released { .. } => "released",
            Self::LeaseExpired { .. } => "lease expired",
            Self::SessionLost { .. } => "lease ended with its session",
            Self::ForceReleased { .. } => "force-released",
            Self::Submitted { .. } => "submitted",
            Self::InvoiceCancelled { .. } => "cancelled",
            Self::Requeued { .. } => "requeued",
            Self::Begun => "begun",
            Self::TakenOver => "taken over",
            Self::ObjectAttached { .. } => "object attached",
            Self::Charged { .. } => "charged",
            Self::Declined { .. } => "declined",
            Self::LookedUpNone { .. } => "looked up",
            Self::ObjectCancelled { .. } => "object cancelled",
            Self::Pending { .. } => "pending",
            Self::Unknown { .. } => "unknown",
            Self::Resolved { .. } => "resolved",
            Self::WaitingEnded => "waiting ended",
            Self::PutInReview { .. } => "put in review",
            Self::Paid => "paid",
            Self::Failed => "failed",
            Self::LeaseEnded { .. } => "lease ended",
        }
    }

    /// The facts in words; empty: there are none but the word.
    #[must_use]
    pub fn detail(&self) -> String {
        match self {
            Self::Bootstrapped {
                ledger_id,
                no_prior_charges: true,
            } => format!("{ledger_id}, no prior charges"),
            Self::Bootstrapped {
                ledger_id,
                no_prior_charges: false,
            } => ledger_id.to_string(),
            Self::Restored { reason } => reason.to_string(),
            Self::ForceReleased { reason, holder } => format!("held by {holder}: {reason}"),
            Self::ChargesAllowed { evidence } => evidence.to_string(),
            Self::ProviderPaused { provider, reason }
            | Self::ProviderResumed { provider, reason } => {
                format!("{provider}: {reason}")
            }
            Self::SessionOpened { session, holder } => format!("{session} by {holder}"),
            Self::SessionClosed { session } | Self::SessionExpired { session } => {
                session.to_string()
            }
            Self::SessionLost { session, holder } => format!("{session} by {holder}"),
            Self::Acquired { holder, .. } | Self::Released { holder } => format!("by {holder}"),
            Self::LeaseExpired { holder } | Self::LeaseEnded { holder } => {
                format!("held by {holder}")
            }
            Self::Submitted {
                customer,
                amount,
                currency,
            } => format!("{amount} {currency} owed by {customer}"),
            Self::InvoiceCancelled { reason } | Self::Requeued { reason } => {
                reason.as_ref().map(ToString::to_string).unwrap_or_default()
            }
            Self::ObjectAttached { object } | Self::ObjectCancelled { object } => {
                object.to_string()
            }
            Self::Charged { reference } => reference.to_string(),
            Self::Declined {
                code,
                retryable,
                finality,
                proven,
            } => {
                let retry = if *retryable { "retryable" } else { "final" };
                let proof = if *proven { "" } else { ", proves nothing" };
                format!("{code}, {retry}, {finality:?}{proof}")
            }
            Self::LookedUpNone { counts: true } => "found nothing".to_owned(),
            Self::LookedUpNone { counts: false } => "found nothing, too early to count".to_owned(),
            Self::Pending { expected_by } => format!("expected by {} ms", expected_by.0),
            Self::Unknown { detail } => {
                detail.as_ref().map(ToString::to_string).unwrap_or_default()
            }
            Self::Resolved {
                verdict: Verdict::Charged(charged),
                evidence,
            } => {
                format!("charged {}: {evidence}", charged.reference)
            }
            Self::Resolved {
                verdict: Verdict::NotCharged,
                evidence,
            } => format!("not charged: {evidence}"),
            Self::PutInReview { reason } => reason.to_string(),
            Self::Begun | Self::TakenOver | Self::WaitingEnded | Self::Paid | Self::Failed => {
                String::new()
            }
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let detail = self.detail();
        if detail.is_empty() {
            f.write_str(self.word())
        } else {
            write!(f, "{}: {detail}", self.word())
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::command::Charged;

    fn record_of(what: What, invoice: Option<&str>) -> AuditRecord {
        AuditRecord {
            index: 7,
            at: ClusterTime(1_000),
            wall: WallTime(1_795_366_800_000),
            actor: Actor::new("worker-1").expect("a name"),
            what,
            invoice: invoice.map(|id| InvoiceId::new(id).expect("an id")),
            token: FencingToken(u64::MAX),
            key: invoice.map(|_| IdempotencyKey::parse("demo.1.inv-7").expect("a key")),
            hash: CHAIN_START,
        }
    }

    /// The canonical bytes of one record of each shape.
    pub(crate) fn every_kind() -> Vec<Vec<u8>> {
        let records = kinds().into_iter();
        records
            .map(|what| record_of(what, Some("inv-7")).canonical())
            .collect()
    }

    fn text<T: std::str::FromStr<Err: fmt::Debug>>(text: &str) -> T {
        text.parse().expect("within its bounds")
    }

    /// One of each shape: bare, with texts, numbers, flags, ids, options, and enums inside.
    fn kinds() -> Vec<What> {
        let session = SessionId::new([0xab; 16]);
        vec![
            What::Begun,
            What::Failed,
            What::Bootstrapped {
                ledger_id: text("demo"),
                no_prior_charges: true,
            },
            What::Acquired {
                session,
                holder: HolderId::new("ana@desk").expect("a name"),
            },
            What::SessionExpired { session },
            What::Submitted {
                customer: text("cus-0042"),
                amount: AmountMinor::new(1_250).expect("a sum"),
                currency: "EUR".to_owned().try_into().expect("a currency"),
            },
            What::Requeued { reason: None },
            What::Requeued {
                reason: Some(text("card renewed")),
            },
            What::Declined {
                code: text("card_declined"),
                retryable: false,
                finality: Finality::SoleSend,
                proven: true,
            },
            What::Pending {
                expected_by: WallTime(1),
            },
            What::Resolved {
                verdict: Verdict::NotCharged,
                evidence: text("dashboard"),
            },
            What::Resolved {
                verdict: Verdict::Charged(Charged {
                    reference: text("pi_1"),
                    amount: Some(AmountMinor::new(125).expect("a sum")),
                    currency: None,
                }),
                evidence: text("dashboard"),
            },
            What::PutInReview {
                reason: ReviewReason::OtherSum,
            },
        ]
    }

    #[test]
    fn what_was_hashed_is_read_back_whole() {
        for what in kinds() {
            for invoice in [None, Some("inv-7")] {
                let written = record_of(what.clone(), invoice);
                let read = AuditRecord::from_canonical(&written.canonical(), CHAIN_START)
                    .expect("it was just written");
                assert_eq!(read, written);
            }
        }
    }

    fn read(bytes: &[u8]) -> Result<AuditRecord, NotCanonical> {
        AuditRecord::from_canonical(bytes, CHAIN_START)
    }

    /// Whoever keeps the bytes of a record may check them years later, with a program of their own.
    #[test]
    fn the_canonical_form_stays_as_it_is() {
        let written = record_of(What::Begun, Some("inv-7")).canonical();
        let expected = [
            &[7][..],                              // index
            &[0xe8, 0x07],                         // cluster time
            &[0x80, 0x95, 0xcd, 0xa1, 0xa0, 0x34], // wall time
            &[8],
            b"worker-1",
            &[16], // begun
            &[1, 5],
            b"inv-7",
            &[0xff; 9], // token
            &[1],
            &[1, 12],
            b"demo.1.inv-7",
        ];
        assert_eq!(written, expected.concat());
    }

    /// What the log keeps of a record and what is hashed are the same bytes.
    #[test]
    fn the_log_hashes_what_it_keeps() {
        let mut log = crate::ledger::audit_log::AuditLog::starting_at(7, CHAIN_START);
        let record = record_of(What::Begun, Some("inv-7"));
        log.push(&record.facts(), usize::MAX);
        let kept = log.get(7).expect("it was just pushed");
        assert_eq!(kept.hash, chain_hash(&CHAIN_START, &record.canonical()));
        assert_eq!(kept.canonical(), record.canonical());
    }

    /// A number has longer forms too, which postcard reads: none of them is canonical.
    #[test]
    fn a_longer_form_of_the_same_record_is_refused() {
        let bytes = record_of(What::Begun, None).canonical();
        assert_eq!(bytes[0], 7, "the index");
        let longer = [&[0x87, 0][..], &bytes[1..]].concat();
        assert_eq!(read(&longer), Err(NotCanonical::OtherForm));
    }

    #[test]
    fn bytes_that_are_short_long_or_otherwise_wrong_are_no_record() {
        for what in kinds() {
            let record = record_of(what, Some("inv-7"));
            let bytes = record.canonical();
            for end in 0..bytes.len() {
                assert!(read(&bytes[..end]).is_err(), "cut at {end}");
            }
            let longer = [bytes.as_slice(), &[0]].concat();
            assert!(read(&longer).is_err());
            // A flipped bit is another record or none: never the same, and never a panic.
            for nth in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[nth / 8] ^= 1 << (nth % 8);
                if let Ok(other) = read(&flipped) {
                    assert_ne!(other, record);
                }
            }
        }
    }
}
