//! What comes over the wire or out of a backup file, as plain functions of bytes: every message, the requests that become
//! commands, refusals and failures on their way back, backups, restore ids. Each panics where a promise is broken and decides
//! nothing; the tests below and any other fuzzer call them.

use billing_core::{
    AllowCharges, AttachProviderObject, BeginCharge, CancelInvoice, ClaimInvoices, CloseSession,
    ForceRelease, KeepAlive, OutOfBounds, Outcome, PauseProvider, Rejection, ReleaseLease,
    RenewLease, RequeueInvoice, ResolveCharge, SettleCharge, SubmitInvoice, Terms,
};
use prost::Message;
use tonic::{Code, Status};

use crate::backup::{Reader, Whole};
use crate::restore::RestoreId;
use crate::v1::{self, settle_charge_request as settle};
use crate::{Failure, convert, raft, request, status};

/// The message, if it is one. What is written again is read as the same.
fn message<T: Message + Default + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> Option<T> {
    let message = T::decode(bytes).ok()?;
    assert_eq!(
        T::decode(message.encode_to_vec().as_slice()).ok().as_ref(),
        Some(&message)
    );
    Some(message)
}

/// A command, and that it does not depend on who reads it.
fn command<T, C: PartialEq + std::fmt::Debug>(
    bytes: &[u8],
    read: impl Fn(&T) -> Result<C, OutOfBounds>,
) where
    T: Message + Default + PartialEq + std::fmt::Debug,
{
    if let Some(request) = message::<T>(bytes) {
        assert_eq!(read(&request), read(&request));
    }
}

/// What clients ask.
pub fn requests(bytes: &[u8]) {
    const DRAWN: [u8; 16] = [7; 16];
    command(bytes, |asked| request::open_session(asked, DRAWN));
    command(bytes, |asked| request::acquire_lease(asked, || DRAWN));
    command(bytes, |asked: &v1::KeepAliveRequest| {
        KeepAlive::try_from(asked)
    });
    command(bytes, |asked: &v1::CloseSessionRequest| {
        CloseSession::try_from(asked)
    });
    command(bytes, |asked: &v1::ReleaseLeaseRequest| {
        ReleaseLease::try_from(asked)
    });
    command(bytes, |asked: &v1::RenewLeaseRequest| {
        RenewLease::try_from(asked)
    });
    command(bytes, |asked: &v1::ClaimInvoicesRequest| {
        ClaimInvoices::try_from(asked)
    });
    command(bytes, |asked: &v1::SubmitInvoicesRequest| {
        SubmitInvoice::try_from(asked.clone())
    });
    command(bytes, |asked: &v1::CancelInvoiceRequest| {
        CancelInvoice::try_from(asked)
    });
    command(bytes, |asked: &v1::RequeueInvoiceRequest| {
        RequeueInvoice::try_from(asked)
    });
    command(bytes, |asked: &v1::BeginChargeRequest| {
        BeginCharge::try_from(asked.clone())
    });
    command(bytes, |asked: &v1::AttachProviderObjectRequest| {
        AttachProviderObject::try_from(asked)
    });
    command(bytes, |asked: &v1::SettleChargeRequest| {
        SettleCharge::try_from(asked.clone())
    });
    command(bytes, |asked: &v1::ResolveChargeRequest| {
        ResolveCharge::try_from(asked.clone())
    });
    command(bytes, |asked: &v1::ForceReleaseRequest| {
        ForceRelease::try_from(asked)
    });
    command(bytes, |asked: &v1::PauseProviderRequest| {
        PauseProvider::try_from(asked)
    });
    command(bytes, |asked: &v1::AllowChargesRequest| {
        AllowCharges::try_from(asked)
    });
    command(bytes, |asked: &v1::ListInvoicesRequest| {
        convert::status_filter(asked.status)
            .and_then(|status| Ok((status, request::page_size(asked.page_size)?)))
    });
    message::<v1::AcquireLeasesRequest>(bytes);
    message::<v1::RenewLeasesRequest>(bytes);
    message::<v1::ReleaseLeasesRequest>(bytes);
    message::<v1::ReadAuditLogRequest>(bytes);
    message::<v1::WatchLeasesRequest>(bytes);
    message::<v1::AddLearnerRequest>(bytes);
    message::<v1::PipelineRequest>(bytes);
    message::<raft::Payload>(bytes);
}

/// What nodes answer.
pub fn answers(bytes: &[u8]) {
    message::<v1::PipelineResponse>(bytes);
    message::<v1::AcquireLeaseResponse>(bytes);
    message::<v1::AcquireLeasesResponse>(bytes);
    message::<v1::ClaimInvoicesResponse>(bytes);
    message::<v1::GetInvoiceResponse>(bytes);
    message::<v1::ListInvoicesResponse>(bytes);
    message::<v1::GetInvoiceHistoryResponse>(bytes);
    message::<v1::GetStatusResponse>(bytes);
    message::<v1::ReadAuditLogResponse>(bytes);
    message::<v1::WatchLeasesResponse>(bytes);
    message::<v1::SubmitInvoicesResponse>(bytes);
    message::<v1::BackupResponse>(bytes);
}

/// What both sides translate: there and back is the same, or it is refused.
pub fn nouns(bytes: &[u8]) {
    if let Some(Ok(rejection)) = message::<v1::Rejection>(bytes).map(Rejection::try_from) {
        let back = Rejection::try_from(v1::Rejection::from(&rejection));
        assert_eq!(back, Ok(rejection));
    }
    if let Some(Ok(terms)) = message::<v1::ChargeTerms>(bytes).map(Terms::try_from) {
        assert_eq!(Terms::try_from(v1::ChargeTerms::from(&terms)), Ok(terms));
    }
    let settled = message::<v1::SettleChargeRequest>(bytes).and_then(|asked| asked.outcome);
    if let Some(Ok(outcome)) = settled.map(Outcome::try_from) {
        let back = Outcome::try_from(settle::Outcome::from(&outcome));
        assert_eq!(back, Ok(outcome));
    }
    if let Some(time) = message::<prost_types::Timestamp>(bytes)
        && let Ok(wall) = convert::wall_time(&time, "due_at")
    {
        let back = convert::wall_time(&convert::timestamp(wall), "due_at");
        assert_eq!(back, Ok(wall));
    }
}

/// The details of an error: they prove no more when they are passed on than they did.
pub fn error_details(bytes: &[u8]) {
    for code in [Code::Unavailable, Code::FailedPrecondition, Code::Unknown] {
        let told = Status::with_details(code, "", bytes.to_vec().into());
        let failure = Failure::from(told);
        let proves = std::mem::discriminant(&failure);
        if let Failure::Rejected(rejection) = &failure {
            let back = Failure::from(status::refused(rejection));
            assert_eq!(back.rejection(), Some(rejection));
        }
        let item = Failure::from(status::item_error(&failure));
        assert_eq!(std::mem::discriminant(&item), proves);
        let passed_on = Failure::from(Status::from(failure));
        assert_eq!(std::mem::discriminant(&passed_on), proves);
    }
    if let Some(item) = message::<v1::ItemError>(bytes) {
        drop(Failure::from(item));
    }
}

/// A backup is whole or refused: what it says of itself, and its contents.
pub fn backup(bytes: &[u8]) -> Option<(Whole, Vec<u8>)> {
    let mut contents = Vec::new();
    let mut reader = Reader::open(bytes).ok()?;
    while let Some(chunk) = reader.next_chunk().ok()? {
        contents.extend_from_slice(&chunk);
    }
    Some((reader.finish().ok()?, contents))
}

/// The same, down to the ledger in it. Its state hash.
pub fn backup_verified(bytes: &[u8]) -> Option<[u8; 32]> {
    let mut file = std::io::Cursor::new(bytes);
    let (_, ledger) = crate::backup::verify(&mut file, |_| ()).ok()?;
    Some(ledger.state_hash())
}

/// A restore's name has one spelling.
pub fn restore_id(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(id) = text.parse::<RestoreId>()
    {
        assert_eq!(id.to_string(), text);
    }
}

/// Panics where a promise is broken.
pub type Body = fn(&[u8]);

/// Each of them, under its name.
pub const BODIES: &[(&str, Body)] = &[
    ("proto_requests", requests),
    ("proto_answers", answers),
    ("proto_nouns", nouns),
    ("proto_error_details", error_details),
    ("proto_backup", |bytes| drop(backup(bytes))),
    ("proto_backup_verified", |bytes| {
        backup_verified(bytes);
    }),
    ("proto_restore_id", restore_id),
];

#[cfg(test)]
mod tests {
    use billing_core::{
        AccountId, Actor, Bootstrap, Command, Config, Fingerprint, InFlightMs, Ledger, LedgerId,
        ProviderId, Stamp, ValidForMs,
    };
    use billing_fuzz::proptest::collection::vec;
    use billing_fuzz::proptest::prelude::*;
    use billing_fuzz::{Decoder, Memory, holds};

    use super::*;
    use crate::backup::Composer;

    /// An item of a batch takes two bytes on the wire and 136 in memory, its row grows by doubling, and everything is there
    /// twice while it is compared.
    const MESSAGES: Memory = Memory {
        fixed: 16 * 1024,
        per_byte: 600,
    };

    fn acquire() -> v1::AcquireLeaseRequest {
        v1::AcquireLeaseRequest {
            invoice_id: "inv-7".into(),
            holder: "ana".into(),
            ttl_ms: 10_000,
            request_id: vec![1; 16],
            wait_ms: 300_000,
            ..Default::default()
        }
    }

    fn terms() -> v1::ChargeTerms {
        v1::ChargeTerms {
            provider: "stripe".into(),
            account: "acct_1".into(),
            live: true,
            fingerprint: vec![9; 32],
            valid_for_ms: 1_800_000,
            in_flight_max_ms: 600_000,
            can_look_up: true,
            sticky: true,
        }
    }

    fn settles() -> Vec<v1::SettleChargeRequest> {
        let charged = settle::Charged {
            reference: "pi_1".into(),
            amount_minor: 500,
            currency: "EUR".into(),
        };
        let outcomes = [
            settle::Outcome::Charged(charged),
            settle::Outcome::Declined(settle::Declined {
                code: "card_declined".into(),
                retryable: true,
                finality: v1::Finality::SoleSend.into(),
            }),
            settle::Outcome::LookedUp(settle::LookedUp::default()),
            settle::Outcome::Cancelled(settle::Cancelled {
                object: "pi_1".into(),
            }),
            settle::Outcome::Pending(settle::Pending {
                expected_by: Some(prost_types::Timestamp {
                    seconds: 1_795_366_800,
                    nanos: 5_000_000,
                }),
            }),
            settle::Outcome::Unknown(settle::Unknown {
                detail: "no answer".into(),
            }),
        ];
        let request = |outcome| v1::SettleChargeRequest {
            invoice_id: "inv-7".into(),
            token: 41,
            idempotency_key: "demo.1.inv-7".into(),
            outcome: Some(outcome),
        };
        outcomes.map(request).into()
    }

    #[test]
    fn every_request_is_a_command_or_refused() {
        let invoice = v1::Invoice {
            invoice_id: "inv-7".into(),
            customer_id: "cus-1".into(),
            amount_minor: 500,
            currency: "EUR".into(),
            due_at: Some(prost_types::Timestamp::default()),
            priority: -5,
        };
        let submit = v1::SubmitInvoicesRequest {
            invoice: Some(invoice),
        };
        let begin = v1::BeginChargeRequest {
            invoice_id: "inv-7".into(),
            token: 41,
            terms: Some(terms()),
        };
        let many = v1::AcquireLeasesRequest {
            items: vec![acquire(); 3],
        };
        let open = v1::OpenSessionRequest {
            session_id: vec![2; 16],
            holder: "ana".into(),
            ttl_ms: 10_000,
        };
        let mut seeds = vec![
            acquire().encode_to_vec(),
            submit.encode_to_vec(),
            begin.encode_to_vec(),
            many.encode_to_vec(),
            open.encode_to_vec(),
        ];
        seeds.extend(settles().iter().map(Message::encode_to_vec));
        let decoder = Decoder {
            name: "proto_requests",
            seeds: &seeds,
            words: &[
                b"\x0a\0",
                b"\x12\0",
                b"\x0a\x05inv-7",
                b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            ],
            memory: MESSAGES,
        };
        decoder.check(requests);
        let empty: Vec<u8> = b"\x0a\0".repeat(10_000);
        Decoder {
            seeds: &[empty],
            name: "proto_requests_empty",
            ..decoder
        }
        .check(|bytes| {
            message::<v1::AcquireLeasesRequest>(bytes);
        });
    }

    #[test]
    fn every_answer_is_read_or_refused() {
        let leased = v1::AcquireLeaseResponse {
            lease: Some(v1::Lease {
                invoice_id: "inv-7".into(),
                token: u64::MAX,
                holder: "ana".into(),
                session_id: vec![1; 16],
                expires_in_ms: 9_000,
            }),
            open_attempt: Some(Box::new(v1::ChargeAttempt {
                number: 1,
                idempotency_key: "demo.1.inv-7".into(),
                terms: Some(terms()),
                ..Default::default()
            })),
        };
        let refused = crate::tests::every_rejection().expect("within bounds");
        let failed = |rejection| status::item_error(&Failure::Rejected(rejection));
        let items = refused.into_iter().take(4).map(|rejection| {
            use v1::acquire_leases_response::{Item, item::Result as Answer};
            Item {
                result: Some(Answer::Error(failed(rejection))),
            }
        });
        let many = v1::AcquireLeasesResponse {
            items: items.collect(),
        };
        let status = v1::GetStatusResponse {
            members: vec![v1::Member::default(); 3],
            state_hash: vec![1; 32],
            ..Default::default()
        };
        let seeds = [
            leased.encode_to_vec(),
            many.encode_to_vec(),
            status.encode_to_vec(),
        ];
        let decoder = Decoder {
            name: "proto_answers",
            seeds: &seeds,
            words: &[b"\x0a\0", b"\x12\0"],
            memory: MESSAGES,
        };
        decoder.check(answers);
    }

    #[test]
    fn nouns_and_errors_mean_the_same_there_and_back() {
        let rejections = crate::tests::every_rejection().expect("within bounds");
        let mut seeds: Vec<Vec<u8>> = rejections
            .iter()
            .map(|rejection| v1::Rejection::from(rejection).encode_to_vec())
            .collect();
        seeds.push(terms().encode_to_vec());
        seeds.extend(settles().iter().map(Message::encode_to_vec));
        let decoder = |name, seeds| Decoder {
            name,
            seeds,
            words: &[b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"],
            memory: MESSAGES,
        };
        decoder("proto_nouns", &seeds).check(nouns);
        let mut details: Vec<Vec<u8>> = rejections
            .iter()
            .map(|rejection| status::refused(rejection).details().to_vec())
            .collect();
        details.push(status::not_applied("no leader").details().to_vec());
        details.push(status::outcome_unknown("lost").details().to_vec());
        decoder("proto_error_details", &details).check(error_details);
    }

    #[test]
    fn every_set_of_terms_is_read_back() {
        let values = (
            "[!-~]{1,64}",
            "[!-~]{1,64}",
            any::<[bool; 3]>(),
            vec(any::<u8>(), 1..65),
            1_000_u64..=2_592_000_000,
            0_u64..=604_800_000,
        );
        holds(
            "proto_terms",
            values,
            |(provider, account, flags, fingerprint, valid_for, in_flight)| {
                let terms = Terms {
                    provider: ProviderId::new(&provider).expect("within its bounds"),
                    account: AccountId::new(&account).expect("within its bounds"),
                    live: flags[0],
                    fingerprint: Fingerprint::new(&fingerprint).expect("within its bounds"),
                    valid_for: ValidForMs::new(valid_for).expect("within its bounds"),
                    in_flight_max: InFlightMs::new(in_flight).expect("within its bounds"),
                    can_look_up: flags[1],
                    sticky: flags[2],
                };
                let bytes = v1::ChargeTerms::from(&terms).encode_to_vec();
                let read = v1::ChargeTerms::decode(bytes.as_slice()).expect("a message");
                assert_eq!(Terms::try_from(read), Ok(terms));
            },
        );
    }

    /// A backup file of these contents in pieces.
    fn file(header: v1::BackupHeader, pieces: &[Vec<u8>]) -> Vec<u8> {
        let (mut composer, first) = Composer::begin(header);
        let mut messages = vec![first];
        messages.extend(pieces.iter().map(|piece| composer.chunk(piece.clone())));
        messages.push(composer.end());
        let mut file = Vec::new();
        for message in &messages {
            crate::backup::write(&mut file, message).expect("a Vec takes every byte");
        }
        file
    }

    fn header(hash: [u8; 32]) -> v1::BackupHeader {
        v1::BackupHeader {
            ledger_id: "demo".into(),
            applied_index: 7,
            state_hash: hash.to_vec(),
            ..Default::default()
        }
    }

    fn a_backup() -> Vec<u8> {
        let mut ledger = Ledger::new(Config::default());
        let bootstrap = Command::Bootstrap(Bootstrap {
            ledger_id: LedgerId::new("demo").expect("an id"),
            no_prior_charges: true,
        });
        ledger.apply(
            Stamp::default(),
            &[(Actor::new("tester").expect("a name"), bootstrap)],
        );
        let mut bytes = Vec::new();
        ledger.write_to(&mut bytes).expect("a Vec takes every byte");
        let pieces: Vec<Vec<u8>> = bytes.chunks(100).map(<[u8]>::to_vec).collect();
        file(header(ledger.state_hash()), &pieces)
    }

    #[test]
    fn a_backup_is_whole_or_refused() {
        let seeds = [
            file(header([1; 32]), &[]),
            file(header([2; 32]), &[vec![1; 30], vec![], vec![2; 3]]),
            a_backup(),
        ];
        let decoder = |name, seeds| Decoder {
            name,
            seeds,
            words: &[b"\x80\x80\x80\x80\x01", b"\x80\x80\x40"],
            // A length is believed up to the longest message, of a MiB; what is read is decoded, and encoded to compare.
            memory: Memory {
                fixed: 2 << 20,
                per_byte: 64,
            },
        };
        decoder("proto_backup", &seeds).check_sealed(backup);
        decoder("proto_backup_verified", &seeds[2..]).check_sealed(backup_verified);
        let pieces = vec(vec(any::<u8>(), 0..200), 0..6);
        holds(
            "proto_backups",
            (any::<[u8; 32]>(), pieces),
            |(hash, pieces)| {
                let (whole, contents) =
                    backup(&file(header(hash), &pieces)).expect("it was just written");
                assert_eq!(whole.header.state_hash, hash);
                assert_eq!(contents, pieces.concat());
            },
        );
    }

    #[test]
    fn a_restore_id_has_one_spelling() {
        let seeds = [RestoreId([0xab; 8]).to_string().into_bytes()];
        let decoder = Decoder {
            name: "proto_restore_id",
            seeds: &seeds,
            words: &[b"+", b"A", b"0"],
            memory: Memory {
                fixed: 1_024,
                per_byte: 8,
            },
        };
        decoder.check(restore_id);
    }
}
