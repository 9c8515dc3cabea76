//! Promises of the translation: nothing is lost on the way, and an error never says more than it knows.

use std::collections::BTreeSet;

use billing_core::{
    AcquireLease, AmountMinor, AttemptNumber, Bound, Charged, Currency, DeclineCode, Detail,
    Evidence, FencingToken, Finality, HolderId, IdempotencyKey, InvoiceId, InvoiceStatus, LedgerId,
    MembershipReason, ObjectId, OutOfBounds, Outcome, ProviderId, Reference, Rejection,
    ReleaseLease, Requester, Seq, SessionId, SettleCharge, SubmitInvoice, Terms, TtlMs, WallTime,
};
use prost::Message;
use prost_types::FileDescriptorSet;
use tonic::{Code, Status};
use tonic_types::pb;

use crate::{
    DESCRIPTORS, Failure, convert, request,
    status::{self, NOT_APPLIED, item_error, not_applied, outcome_unknown, queue_full, refused},
    v1,
};

fn inv(id: &str) -> Result<InvoiceId, OutOfBounds> {
    InvoiceId::new(id)
}

fn key() -> Result<IdempotencyKey, OutOfBounds> {
    IdempotencyKey::parse("prod.3.inv-7")
}

/// One of each; a test below fails when one is missing.
pub(crate) fn every_rejection() -> Result<Vec<Rejection>, OutOfBounds> {
    let invoice = inv("inv-7")?;
    let session = SessionId::new([7; 16]);
    let (number, token) = (AttemptNumber::new(3)?, FencingToken(41));
    let (reference, seq) = (Reference::new("pi_1")?, Seq::new(9)?);
    Ok(vec![
        Rejection::InvalidArgument {
            field: "ttl_ms".into(),
            bound: "1000..=300000".into(),
        },
        Rejection::SeqReused { seq },
        Rejection::SeqBelow {
            seq,
            done_below: 12,
        },
        Rejection::NotBootstrapped,
        Rejection::AlreadyBootstrapped {
            ledger_id: LedgerId::new("prod")?,
        },
        Rejection::SessionNotFound { session },
        Rejection::SessionEnded { session },
        Rejection::HeldByOther {
            invoice: invoice.clone(),
            holder: HolderId::new("Zoë's laptop")?,
            expires_in_ms: 1_234,
        },
        Rejection::StaleToken {
            presented: token,
            current: FencingToken(42),
        },
        Rejection::StaleToken {
            presented: token,
            current: FencingToken::NONE,
        },
        Rejection::LeaseExpired {
            invoice: invoice.clone(),
            token,
        },
        Rejection::LeaseEnded {
            invoice: invoice.clone(),
            token: FencingToken::NONE,
        },
        Rejection::ClaimEnded { seq },
        Rejection::NotLeasable {
            invoice: invoice.clone(),
            status: InvoiceStatus::Paid,
        },
        Rejection::GrantsNotYet { in_ms: 5 },
        Rejection::NotFound {
            invoice: invoice.clone(),
        },
        Rejection::NotSubmitted {
            invoice: invoice.clone(),
        },
        Rejection::SubmittedOtherwise {
            invoice: invoice.clone(),
            field: "currency".into(),
            recorded: "EUR".into(),
            presented: "USD".into(),
        },
        Rejection::WrongStatus {
            invoice: invoice.clone(),
            status: InvoiceStatus::InDoubt,
            wanted: "FAILED".into(),
        },
        Rejection::AlreadyPaid {
            invoice: invoice.clone(),
            reference: reference.clone(),
        },
        Rejection::ChargeRecorded {
            invoice: invoice.clone(),
            reference,
        },
        Rejection::AttemptOpen {
            invoice: invoice.clone(),
            number,
        },
        Rejection::NotDue {
            invoice: invoice.clone(),
            due_in_ms: 60_000,
        },
        Rejection::WrongTerms {
            invoice: invoice.clone(),
            field: "account".into(),
            recorded: "a".into(),
            presented: "b".into(),
        },
        Rejection::Closing {
            invoice: invoice.clone(),
            number,
            look_up_in_ms: 8,
        },
        Rejection::NoOpenAttempt {
            invoice: invoice.clone(),
        },
        Rejection::WrongKey {
            invoice: invoice.clone(),
            presented: key()?,
        },
        Rejection::ForeignKey {
            presented: key()?,
            ledger_id: LedgerId::new("test")?,
        },
        Rejection::OtherObject {
            invoice: invoice.clone(),
            presented: ObjectId::new("pi_2")?,
            recorded: None,
        },
        Rejection::OtherObject {
            invoice: invoice.clone(),
            presented: ObjectId::new("pi_2")?,
            recorded: Some(ObjectId::new("pi_1")?),
        },
        Rejection::AttemptsUsedUp {
            invoice: invoice.clone(),
        },
        Rejection::TooEarly {
            invoice,
            in_ms: 3_600_000,
        },
        Rejection::ChargesNotAllowed,
        Rejection::ClocksDisagree {
            apart_ms: 3_600_000,
        },
        Rejection::ProviderPaused {
            provider: ProviderId::new("stripe")?,
            reason: Evidence::new("their outage")?,
        },
        Rejection::Overloaded {
            bound: Bound::SessionsOpen,
            max: 100_000,
        },
        Rejection::Overloaded {
            bound: Bound::LeasesPerSession,
            max: 1,
        },
        Rejection::Overloaded {
            bound: Bound::WaitersPerInvoice,
            max: 2,
        },
        Rejection::Overloaded {
            bound: Bound::WaitersPerSession,
            max: 3,
        },
        Rejection::Overloaded {
            bound: Bound::ProvidersPaused,
            max: 4,
        },
        Rejection::Overloaded {
            bound: Bound::ChargesPerInvoice,
            max: 5,
        },
        Rejection::IndexPurged {
            requested: 7,
            oldest: 4_711,
        },
        Rejection::MembershipRefused {
            node: 4,
            reason: MembershipReason::Lags,
            detail: "1,000 entries behind".to_owned(),
        },
    ])
}

/// The members of `billing.v1.Rejection`, as the published descriptors name them.
fn wire_reasons() -> anyhow::Result<BTreeSet<String>> {
    let files = FileDescriptorSet::decode(DESCRIPTORS)?;
    let message = files
        .file
        .iter()
        .filter(|file| file.package() == "billing.v1")
        .flat_map(|file| &file.message_type)
        .find(|message| message.name() == "Rejection");
    let message = message.ok_or_else(|| anyhow::anyhow!("no message billing.v1.Rejection"))?;
    Ok(message
        .field
        .iter()
        .map(|field| field.name().to_uppercase())
        .collect())
}

#[test]
fn every_reason_on_the_wire_is_a_rejection_of_the_same_name() -> anyhow::Result<()> {
    let ours: BTreeSet<String> = every_rejection()?
        .iter()
        .map(|rejection| rejection.reason().to_owned())
        .collect();
    assert_eq!(ours, wire_reasons()?);
    Ok(())
}

#[test]
fn a_rejection_keeps_its_facts_as_a_status_and_as_an_item() -> anyhow::Result<()> {
    for rejection in every_rejection()? {
        let status = refused(&rejection);
        assert_eq!(status.code(), status::code(&rejection));
        assert_eq!(status.message(), rejection.to_string());
        let info = error_info(&status)?;
        assert_eq!(
            (info.reason.as_str(), info.domain.as_str()),
            (rejection.reason(), "billing.v1")
        );
        match Failure::from(status) {
            Failure::Rejected(back) => assert_eq!(back, rejection),
            Failure::NotApplied(_) | Failure::Unknown(_) => {
                panic!("{rejection:?} came back as a failure")
            }
        }
        match Failure::from(item_error(&Failure::Rejected(rejection.clone()))) {
            Failure::Rejected(back) => assert_eq!(back, rejection),
            Failure::NotApplied(_) | Failure::Unknown(_) => {
                panic!("{rejection:?} came back as a failed item")
            }
        }
    }
    Ok(())
}

fn error_info(status: &Status) -> anyhow::Result<pb::ErrorInfo> {
    let details = pb::Status::decode(status.details())?.details;
    let info = details
        .iter()
        .find(|detail| detail.type_url.ends_with("/google.rpc.ErrorInfo"));
    let info = info.ok_or_else(|| anyhow::anyhow!("no ErrorInfo in {details:?}"))?;
    Ok(pb::ErrorInfo::decode(info.value.as_slice())?)
}

#[test]
fn codes_are_those_of_the_contract() -> anyhow::Result<()> {
    let codes = every_rejection()?
        .iter()
        .map(|rejection| (rejection.reason(), status::code(rejection)))
        .collect::<Vec<_>>();
    for (reason, wanted) in [
        ("HELD_BY_OTHER", Code::Aborted),
        ("STALE_TOKEN", Code::FailedPrecondition),
        ("LEASE_EXPIRED", Code::FailedPrecondition),
        ("LEASE_ENDED", Code::FailedPrecondition),
        ("NOT_DUE", Code::FailedPrecondition),
        ("WRONG_TERMS", Code::FailedPrecondition),
        ("ALREADY_PAID", Code::AlreadyExists),
        ("NOT_FOUND", Code::NotFound),
        ("INVALID_ARGUMENT", Code::InvalidArgument),
        ("OVERLOADED", Code::ResourceExhausted),
    ] {
        assert!(codes.contains(&(reason, wanted)), "{reason} is {wanted:?}");
    }
    assert!(
        codes
            .iter()
            .all(|(_, code)| !matches!(code, Code::Ok | Code::Unavailable | Code::Unknown))
    );
    Ok(())
}

fn word(failure: &Failure) -> &'static str {
    match failure {
        Failure::Rejected(_) => "rejected",
        Failure::NotApplied(_) => "not applied",
        Failure::Unknown(_) => "unknown",
    }
}

#[test]
fn only_what_is_proved_counts_as_not_applied() {
    let cases = [
        (not_applied("no leader"), "not applied"),
        (queue_full("proposals queued", 7), "not applied"),
        (Status::unimplemented("older server"), "not applied"),
        (Status::unauthenticated("who?"), "not applied"),
        (outcome_unknown("the leader changed"), "unknown"),
        // No detail, no proof: a proxy, a broken connection, a handler that died.
        (Status::unavailable("transport error"), "unknown"),
        (Status::cancelled("stream reset"), "unknown"),
        (Status::deadline_exceeded("too slow"), "unknown"),
        (Status::internal("handler died"), "unknown"),
        (Status::resource_exhausted("of somebody else's"), "unknown"),
        (Status::aborted("of somebody else's"), "unknown"),
        (
            Status::with_details(Code::Unavailable, "garbage", vec![255, 255, 255].into()),
            "unknown",
        ),
    ];
    for (status, wanted) in cases {
        let failure = Failure::from(status.clone());
        assert_eq!(word(&failure), wanted, "{status:?}");
        // The same through an item of a batch, and for whoever passes the status on.
        assert_eq!(
            word(&Failure::from(item_error(&failure))),
            wanted,
            "{status:?} as an item"
        );
        assert_eq!(
            word(&Failure::from(Status::from(failure))),
            wanted,
            "{status:?} passed on"
        );
    }
}

#[test]
fn a_reason_of_another_domain_proves_nothing() {
    let info = pb::ErrorInfo {
        reason: NOT_APPLIED.into(),
        domain: "proxy.example".into(),
        metadata: Default::default(),
    };
    let any = prost_types::Any {
        type_url: "type.googleapis.com/google.rpc.ErrorInfo".into(),
        value: info.encode_to_vec(),
    };
    let details = pb::Status {
        code: 14,
        message: String::new(),
        details: vec![any],
    }
    .encode_to_vec();
    let failure = Failure::from(Status::with_details(Code::Unavailable, "", details.into()));
    assert_eq!(word(&failure), "unknown");
}

#[test]
fn a_refusal_of_a_newer_server_is_still_a_refusal() {
    // Field 900 of the oneof: unknown here.
    let newer = prost_types::Any {
        type_url: "type.googleapis.com/billing.v1.Rejection".into(),
        value: vec![0xa2, 0x38, 0],
    };
    let details = pb::Status {
        code: 9,
        message: String::new(),
        details: vec![newer],
    }
    .encode_to_vec();
    let failure = Failure::from(Status::with_details(
        Code::FailedPrecondition,
        "new rule",
        details.into(),
    ));
    assert_eq!(
        word(&failure),
        "not applied",
        "nothing changed, whatever the reason was"
    );
}

#[test]
fn statuses_terms_and_outcomes_come_back_as_they_went() -> Result<(), OutOfBounds> {
    for status in InvoiceStatus::ALL {
        assert_eq!(
            convert::status_from_wire(v1::InvoiceStatus::from(status).into())?,
            status
        );
        assert_eq!(
            v1::InvoiceStatus::from(status).as_str_name(),
            format!("INVOICE_STATUS_{status}")
        );
    }
    assert_eq!(convert::status_filter(0)?, None);
    assert!(convert::status_from_wire(0).is_err() && convert::status_filter(99).is_err());

    let manual = Terms::manual();
    assert_eq!(Terms::try_from(v1::ChargeTerms::from(&manual))?, manual);

    let charged = Charged {
        reference: Reference::new("pi_1")?,
        amount: None,
        currency: None,
    };
    let summed = Charged {
        amount: Some(AmountMinor::new(5)?),
        currency: Some(Currency::new("EUR")?),
        ..charged.clone()
    };
    let mut outcomes = vec![
        Outcome::Charged(charged.clone()),
        Outcome::Charged(summed.clone()),
        Outcome::LookedUp(None),
        Outcome::LookedUp(Some(charged)),
        Outcome::LookedUp(Some(summed)),
        Outcome::Cancelled {
            object: ObjectId::new("pi_1")?,
        },
        Outcome::Pending {
            expected_by: WallTime(1_790_000_000_123),
        },
        Outcome::Unknown { detail: None },
        Outcome::Unknown {
            detail: Some(Detail::new("timeout after 10 s")?),
        },
    ];
    for finality in [
        Finality::None,
        Finality::Sticky,
        Finality::SoleSend,
        Finality::Object,
    ] {
        outcomes.push(Outcome::Declined {
            code: DeclineCode::new("card_declined")?,
            retryable: true,
            finality,
        });
    }
    for outcome in outcomes {
        let wire = v1::settle_charge_request::Outcome::from(&outcome);
        assert_eq!(Outcome::try_from(wire)?, outcome);
    }
    Ok(())
}

#[test]
fn a_look_up_that_found_something_unreadable_is_never_taken_for_none() {
    let found = v1::settle_charge_request::LookedUp {
        reference: Some(String::new()),
        ..Default::default()
    };
    let read = Outcome::try_from(v1::settle_charge_request::Outcome::LookedUp(found));
    assert_eq!(read.map_err(|out| out.field), Err("reference".into()));
}

#[test]
fn a_finality_that_is_not_known_is_refused_and_one_that_is_unset_proves_nothing() {
    assert_eq!(convert::finality_from_wire(0), Ok(Finality::None));
    assert!(convert::finality_from_wire(77).is_err());
}

#[test]
fn an_invoice_is_read_within_its_bounds() -> Result<(), OutOfBounds> {
    let good = v1::Invoice {
        invoice_id: "inv-7".into(),
        customer_id: "c".into(),
        amount_minor: 1_999,
        currency: "EUR".into(),
        due_at: Some(prost_types::Timestamp {
            seconds: 1_790_000_000,
            nanos: 123_999_999,
        }),
        priority: -3,
    };
    let read = SubmitInvoice::try_from(good.clone())?;
    assert_eq!(
        (read.due_at, read.amount.get(), read.priority.get()),
        (Some(WallTime(1_790_000_000_123)), 1_999, -3)
    );

    type Spoil = fn(&mut v1::Invoice);
    let spoiled: [(&str, Spoil); 10] = [
        ("invoice_id", |i| i.invoice_id = String::new()),
        ("invoice_id", |i| i.invoice_id = "a b".into()),
        ("customer_id", |i| i.customer_id = "x".repeat(129)),
        ("amount_minor", |i| i.amount_minor = 0),
        ("amount_minor", |i| i.amount_minor = -1),
        ("amount_minor", |i| i.amount_minor = 1_000_000_000_001),
        ("currency", |i| i.currency = "XXX".into()),
        ("due_at", |i| {
            i.due_at = Some(prost_types::Timestamp {
                seconds: -1,
                nanos: 0,
            })
        }),
        ("due_at", |i| {
            i.due_at = Some(prost_types::Timestamp {
                seconds: 0,
                nanos: -1,
            })
        }),
        ("priority", |i| i.priority = 1_001),
    ];
    for (field, spoil) in spoiled {
        let mut bad = good.clone();
        spoil(&mut bad);
        assert_eq!(
            SubmitInvoice::try_from(bad.clone()).map_err(|out| out.field),
            Err(field.into()),
            "{bad:?}"
        );
    }
    Ok(())
}

#[test]
fn an_acquire_is_read_with_its_session_or_with_one_of_its_own() -> Result<(), OutOfBounds> {
    let plain = v1::AcquireLeaseRequest {
        invoice_id: "inv-7".into(),
        holder: "ana".into(),
        ttl_ms: 5_000,
        wait_ms: 10,
        ..Default::default()
    };
    let AcquireLease {
        requester, wait, ..
    } = request::acquire_lease(&plain, || [9; 16])?;
    assert_eq!(
        requester.slot(),
        (SessionId::new([9; 16]), Seq::FIRST),
        "the drawn id is the implicit session's"
    );
    assert_eq!(wait.get(), 10);

    let named = v1::AcquireLeaseRequest {
        request_id: vec![3; 16],
        ..plain.clone()
    };
    assert_eq!(
        request::acquire_lease(&named, || [9; 16])?
            .requester
            .slot()
            .0,
        SessionId::new([3; 16])
    );

    let within = v1::AcquireLeaseRequest {
        session_id: vec![1; 16],
        seq: 4,
        done_below: 2,
        ttl_ms: 0,
        ..plain.clone()
    };
    let wanted = Requester::Session {
        session: SessionId::new([1; 16]),
        seq: Seq::new(4)?,
        done_below: 2,
        ttl: None,
    };
    assert_eq!(
        request::acquire_lease(&within, || [9; 16])?.requester,
        wanted
    );
    let own = v1::AcquireLeaseRequest {
        ttl_ms: 7_000,
        ..within.clone()
    };
    let ttl = match request::acquire_lease(&own, || [9; 16])?.requester {
        Requester::Session { ttl, .. } => ttl,
        Requester::Implicit { .. } => None,
    };
    assert_eq!(ttl, Some(TtlMs::new(7_000)?));

    for (field, bad) in [
        (
            "ttl_ms",
            v1::AcquireLeaseRequest {
                ttl_ms: 0,
                ..plain.clone()
            },
        ),
        (
            "holder",
            v1::AcquireLeaseRequest {
                holder: String::new(),
                ..plain.clone()
            },
        ),
        (
            "request_id",
            v1::AcquireLeaseRequest {
                request_id: vec![1; 15],
                ..plain.clone()
            },
        ),
        (
            "wait_ms",
            v1::AcquireLeaseRequest {
                wait_ms: 300_001,
                ..plain
            },
        ),
        (
            "session_id",
            v1::AcquireLeaseRequest {
                session_id: vec![1; 17],
                ..within.clone()
            },
        ),
        (
            "seq",
            v1::AcquireLeaseRequest {
                seq: 0,
                ..within.clone()
            },
        ),
        (
            "ttl_ms",
            v1::AcquireLeaseRequest {
                ttl_ms: 999,
                ..within
            },
        ),
    ] {
        assert_eq!(
            request::acquire_lease(&bad, || [9; 16]).map_err(|out| out.field),
            Err(field.into()),
            "{bad:?}"
        );
    }
    Ok(())
}

#[test]
fn a_release_names_a_token_or_a_seq_and_not_both() -> Result<(), OutOfBounds> {
    let by_token = v1::ReleaseLeaseRequest {
        invoice_id: "inv-7".into(),
        token: 5,
        ..Default::default()
    };
    let wanted = ReleaseLease::ByToken {
        invoice: inv("inv-7")?,
        token: FencingToken(5),
    };
    assert_eq!(ReleaseLease::try_from(&by_token)?, wanted);
    let by_seq = v1::ReleaseLeaseRequest {
        session_id: vec![1; 16],
        seq: 3,
        ..Default::default()
    };
    let wanted = ReleaseLease::BySeq {
        session: SessionId::new([1; 16]),
        seq: Seq::new(3)?,
    };
    assert_eq!(ReleaseLease::try_from(&by_seq)?, wanted);

    for (field, bad) in [
        ("invoice_id", v1::ReleaseLeaseRequest::default()),
        (
            "invoice_id",
            v1::ReleaseLeaseRequest {
                session_id: vec![1; 16],
                seq: 3,
                ..by_token.clone()
            },
        ),
        (
            "token",
            v1::ReleaseLeaseRequest {
                token: 0,
                ..by_token
            },
        ),
        ("seq", v1::ReleaseLeaseRequest { seq: 0, ..by_seq }),
    ] {
        assert_eq!(
            ReleaseLease::try_from(&bad).map_err(|out| out.field),
            Err(field.into()),
            "{bad:?}"
        );
    }
    Ok(())
}

#[test]
fn a_settlement_names_its_key_and_an_outcome() -> Result<(), OutOfBounds> {
    let unknown = v1::settle_charge_request::Outcome::Unknown(Default::default());
    let good = v1::SettleChargeRequest {
        invoice_id: "inv-7".into(),
        token: 0,
        idempotency_key: "prod.3.inv-7".into(),
        outcome: Some(unknown),
    };
    let read = SettleCharge::try_from(good.clone())?;
    assert_eq!(
        (read.token, read.key),
        (FencingToken::NONE, key()?),
        "a webhook has no token"
    );
    for (field, bad) in [
        (
            "outcome",
            v1::SettleChargeRequest {
                outcome: None,
                ..good.clone()
            },
        ),
        (
            "idempotency_key",
            v1::SettleChargeRequest {
                idempotency_key: "prod.3".into(),
                ..good
            },
        ),
    ] {
        assert_eq!(
            SettleCharge::try_from(bad.clone()).map_err(|out| out.field),
            Err(field.into()),
            "{bad:?}"
        );
    }
    Ok(())
}

#[test]
fn pages_and_batches_have_bounds() {
    assert_eq!(request::page_size(0), Ok(100));
    assert_eq!(request::page_size(1_000), Ok(1_000));
    assert_eq!(
        request::page_size(1_001).map_err(|out| out.field),
        Err("page_size".into())
    );
    assert!(request::items(1_000).is_ok() && request::items(1_001).is_err());
}
