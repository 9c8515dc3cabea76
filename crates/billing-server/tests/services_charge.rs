//! ChargeService over the wire: a charge from begin to settled, and what is refused on the way.

mod common;

use anyhow::{Context, Result};
use billing_core::Rejection;
use billing_proto::v1::{self, settle_charge_request as settle};
use common::{Cluster, acquire, invoice, lease, out_of_bounds, refused, submit};
use tonic::Code;

fn terms(provider: &str) -> v1::ChargeTerms {
    v1::ChargeTerms {
        provider: provider.into(),
        account: "acct-1".into(),
        live: false,
        fingerprint: vec![1; 32],
        valid_for_ms: 60_000,
        in_flight_max_ms: 1_000,
        can_look_up: true,
        sticky: false,
    }
}

fn begin(lease: &v1::Lease) -> v1::BeginChargeRequest {
    v1::BeginChargeRequest {
        invoice_id: lease.invoice_id.clone(),
        token: lease.token,
        terms: Some(terms("stripe")),
    }
}

fn settle(
    lease: &v1::Lease,
    attempt: &v1::ChargeAttempt,
    outcome: settle::Outcome,
) -> v1::SettleChargeRequest {
    v1::SettleChargeRequest {
        invoice_id: lease.invoice_id.clone(),
        token: lease.token,
        idempotency_key: attempt.idempotency_key.clone(),
        outcome: Some(outcome),
    }
}

fn charged(reference: &str) -> settle::Outcome {
    settle::Outcome::Charged(settle::Charged {
        reference: reference.into(),
        ..Default::default()
    })
}

#[tokio::test]
async fn a_charge_is_begun_attached_settled_and_never_begun_again() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let (mut leases, mut charges) = (cluster.leases(0)?, cluster.charges(0)?);
    submit(&cluster, vec![invoice("inv-7", 4_200)]).await?;
    let held = lease(leases.acquire_lease(acquire("inv-7", "ana")).await?)?;
    let attempt = charges
        .begin_charge(begin(&held))
        .await?
        .into_inner()
        .attempt
        .context("attempt")?;
    assert_eq!(attempt.number, 1);
    assert_eq!(attempt.idempotency_key, "tests.1.inv-7");
    assert!(attempt.send_within_ms > 0 && attempt.send_within_ms <= 60_000);
    assert!(!attempt.taken_over);
    // A lost reply costs the proof of a sole send, and nothing else: the attempt stays the same.
    let again = charges
        .begin_charge(begin(&held))
        .await?
        .into_inner()
        .attempt
        .context("attempt")?;
    assert_eq!((again.number, again.taken_over), (1, true));

    let other_terms = v1::BeginChargeRequest {
        terms: Some(terms("adyen")),
        ..begin(&held)
    };
    match refused(
        charges.begin_charge(other_terms).await,
        Code::FailedPrecondition,
    ) {
        Rejection::WrongTerms {
            field,
            recorded,
            presented,
            ..
        } => {
            assert_eq!(
                (field.as_ref(), recorded.as_ref(), presented.as_ref()),
                ("provider", "stripe", "adyen")
            );
        }
        other => panic!("{other:?}"),
    }
    let stale = v1::BeginChargeRequest {
        token: held.token + 1,
        ..begin(&held)
    };
    let stale = refused(charges.begin_charge(stale).await, Code::FailedPrecondition);
    assert!(matches!(stale, Rejection::StaleToken { .. }), "{stale:?}");

    let attach = |object: &str| v1::AttachProviderObjectRequest {
        invoice_id: "inv-7".into(),
        token: held.token,
        object: object.into(),
    };
    assert_eq!(
        charges
            .attach_provider_object(attach("pi_1"))
            .await?
            .get_ref()
            .object,
        "pi_1"
    );
    assert_eq!(
        charges
            .attach_provider_object(attach("pi_2"))
            .await?
            .get_ref()
            .object,
        "pi_1",
        "the first one wins"
    );

    let paid = charges
        .settle_charge(settle(&held, &attempt, charged("pi_1")))
        .await?
        .into_inner();
    assert_eq!(paid.status(), v1::InvoiceStatus::Paid);
    let repeated = charges
        .settle_charge(settle(&held, &attempt, charged("pi_1")))
        .await?
        .into_inner();
    assert_eq!(
        repeated.status(),
        v1::InvoiceStatus::Paid,
        "a reference already recorded changes nothing"
    );
    match refused(
        leases.acquire_lease(acquire("inv-7", "ben")).await,
        Code::AlreadyExists,
    ) {
        Rejection::AlreadyPaid { reference, .. } => assert_eq!(reference.as_str(), "pi_1"),
        other => panic!("{other:?}"),
    }
    let view = cluster
        .invoices(0)?
        .get_invoice(v1::GetInvoiceRequest {
            invoice_id: "inv-7".into(),
            stale_ok: false,
        })
        .await?
        .into_inner();
    assert_eq!((view.charge_reference.as_str(), view.attempts), ("pi_1", 1));
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_second_charge_is_put_in_front_of_a_person_and_counted() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let (mut leases, mut charges) = (cluster.leases(0)?, cluster.charges(0)?);
    submit(&cluster, vec![invoice("inv-7", 4_200)]).await?;
    let held = lease(leases.acquire_lease(acquire("inv-7", "ana")).await?)?;
    let attempt = charges
        .begin_charge(begin(&held))
        .await?
        .into_inner()
        .attempt
        .context("attempt")?;
    charges
        .settle_charge(settle(&held, &attempt, charged("pi_1")))
        .await?;
    let second = charges
        .settle_charge(settle(&held, &attempt, charged("pi_2")))
        .await?
        .into_inner();
    assert_eq!(second.status(), v1::InvoiceStatus::Review);
    let status = cluster
        .operators(0)?
        .get_status(v1::GetStatusRequest {})
        .await?
        .into_inner();
    assert_eq!(status.charge_alarms, 1);
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn without_terms_it_is_the_manual_profile_and_a_person_may_resolve_it() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let (mut leases, mut charges) = (cluster.leases(0)?, cluster.charges(0)?);
    submit(&cluster, vec![invoice("inv-7", 4_200)]).await?;
    let held = lease(leases.acquire_lease(acquire("inv-7", "ana")).await?)?;
    let manual = v1::BeginChargeRequest {
        terms: None,
        ..begin(&held)
    };
    let attempt = charges
        .begin_charge(manual)
        .await?
        .into_inner()
        .attempt
        .context("attempt")?;
    assert_eq!(attempt.terms.as_ref().context("terms")?.provider, "manual");
    let unknown = settle::Outcome::Unknown(settle::Unknown {
        detail: "timeout".into(),
    });
    let doubtful = charges
        .settle_charge(settle(&held, &attempt, unknown))
        .await?
        .into_inner();
    assert_eq!(doubtful.status(), v1::InvoiceStatus::InDoubt);

    let resolve = |word| v1::ResolveChargeRequest {
        invoice_id: "inv-7".into(),
        idempotency_key: attempt.idempotency_key.clone(),
        word,
        evidence: "seen on the bank statement".into(),
    };
    use v1::resolve_charge_request::{Charged, NotCharged, Word};
    let no = refused(
        charges
            .resolve_charge(resolve(Some(Word::NotCharged(NotCharged {}))))
            .await,
        Code::FailedPrecondition,
    );
    assert!(matches!(no, Rejection::TooEarly { .. }), "{no:?}");
    let yes = Charged {
        reference: "slip-1".into(),
        ..Default::default()
    };
    let paid = charges
        .resolve_charge(resolve(Some(Word::Charged(yes))))
        .await?
        .into_inner();
    assert_eq!(paid.status(), v1::InvoiceStatus::Paid);
    out_of_bounds(charges.resolve_charge(resolve(None)).await, "word");
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn every_bound_of_a_charge_is_refused_by_field() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let (mut leases, mut charges) = (cluster.leases(0)?, cluster.charges(0)?);
    let plain = lease(
        leases
            .acquire_lease(acquire("never-submitted", "ana"))
            .await?,
    )?;
    let not_submitted = refused(
        charges.begin_charge(begin(&plain)).await,
        Code::FailedPrecondition,
    );
    assert!(
        matches!(not_submitted, Rejection::NotSubmitted { .. }),
        "{not_submitted:?}"
    );

    let wrong = |field: &'static str, change: fn(&mut v1::ChargeTerms)| {
        let mut terms = terms("stripe");
        change(&mut terms);
        (
            field,
            v1::BeginChargeRequest {
                terms: Some(terms),
                ..begin(&plain)
            },
        )
    };
    for (field, request) in [
        wrong("provider", |t| t.provider.clear()),
        wrong("provider", |t| t.provider = "x".repeat(65)),
        wrong("account", |t| t.account = "a b".into()),
        wrong("terms.fingerprint", |t| t.fingerprint.clear()),
        wrong("terms.fingerprint", |t| t.fingerprint = vec![0; 65]),
        wrong("terms.valid_for_ms", |t| t.valid_for_ms = 999),
        wrong("terms.in_flight_max_ms", |t| {
            t.in_flight_max_ms = 604_800_001
        }),
    ] {
        out_of_bounds(charges.begin_charge(request).await, field);
    }
    let object = v1::AttachProviderObjectRequest {
        invoice_id: "a".into(),
        token: 1,
        object: String::new(),
    };
    out_of_bounds(charges.attach_provider_object(object).await, "object");
    let good = v1::SettleChargeRequest {
        invoice_id: "inv-7".into(),
        token: 1,
        idempotency_key: "tests.1.inv-7".into(),
        outcome: Some(charged("pi_1")),
    };
    for (field, request) in [
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
                idempotency_key: "key".into(),
                ..good.clone()
            },
        ),
        (
            "reference",
            v1::SettleChargeRequest {
                outcome: Some(charged("")),
                ..good.clone()
            },
        ),
    ] {
        out_of_bounds(charges.settle_charge(request).await, field);
    }
    let foreign = v1::SettleChargeRequest {
        idempotency_key: "others.1.inv-7".into(),
        ..good
    };
    let foreign = refused(
        charges.settle_charge(foreign).await,
        Code::FailedPrecondition,
    );
    assert!(
        matches!(foreign, Rejection::ForeignKey { .. }),
        "{foreign:?}"
    );
    cluster.stop().await;
    Ok(())
}
