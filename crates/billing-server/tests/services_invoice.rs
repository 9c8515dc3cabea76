//! InvoiceService over the wire: each method, what it refuses and with which facts.

mod common;

use anyhow::{Context, Result};
use billing_core::Rejection;
use billing_proto::v1;
use billing_server::services::REFUSALS_LISTED_MAX;
use common::{Cluster, acquire, invoice, out_of_bounds, refused, send, submit};
use tonic::Code;

fn get(id: &str) -> v1::GetInvoiceRequest {
    v1::GetInvoiceRequest {
        invoice_id: id.into(),
        stale_ok: false,
    }
}

#[tokio::test]
async fn one_bad_invoice_is_refused_by_itself_and_the_stream_goes_on() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let answer = send(
        &cluster,
        0,
        vec![
            invoice("a", 100),
            invoice("b", 0),
            v1::Invoice {
                currency: "XXQ".into(),
                ..invoice("c", 100)
            },
            invoice("a", 100),
            invoice("a", 101),
            invoice("d", 100),
        ],
    )
    .await?;
    assert_eq!((answer.submitted, answer.unchanged), (2, 1));
    let refused: Vec<_> = answer
        .refused
        .iter()
        .map(|r| (r.position, r.invoice_id.as_str()))
        .collect();
    assert_eq!(refused, [(1, "b"), (2, "c"), (4, "a")]);
    assert!(
        answer
            .refused
            .iter()
            .all(|r| r.rejection.is_some() && !r.reason.is_empty())
    );
    assert!(
        answer.refused[0].reason.contains("amount_minor"),
        "{}",
        answer.refused[0].reason
    );
    assert!(
        answer.refused[1].reason.contains("currency"),
        "{}",
        answer.refused[1].reason
    );
    assert!(
        answer.refused[2].reason.contains("100"),
        "{}",
        answer.refused[2].reason
    );
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_stream_of_thousands_keeps_its_order_and_is_listed_in_pages() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let ids: Vec<String> = (0..2_500).map(|n| format!("inv-{n:04}")).collect();
    submit(&cluster, ids.iter().map(|id| invoice(id, 100)).collect()).await?;
    let mut invoices = cluster.invoices(0)?;
    let mut seen = Vec::new();
    let mut ask = v1::ListInvoicesRequest {
        page_size: 1_000,
        ..Default::default()
    };
    loop {
        let page = invoices.list_invoices(ask.clone()).await?.into_inner();
        assert!(page.applied_index > 0);
        seen.extend(
            page.invoices
                .into_iter()
                .filter_map(|row| row.invoice)
                .map(|i| i.invoice_id),
        );
        if page.next_page_token.is_empty() {
            break;
        }
        ask.page_token = page.next_page_token;
    }
    assert_eq!(seen, ids);
    let other = v1::ListInvoicesRequest {
        customer_id: "cus-2".into(),
        page_size: 10,
        ..Default::default()
    };
    assert!(
        invoices
            .list_invoices(other)
            .await?
            .get_ref()
            .invoices
            .is_empty()
    );
    let paid = v1::ListInvoicesRequest {
        status: v1::InvoiceStatus::Paid.into(),
        ..Default::default()
    };
    assert!(
        invoices
            .list_invoices(paid)
            .await?
            .get_ref()
            .invoices
            .is_empty()
    );
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_stream_in_which_nearly_everything_is_wrong_ends() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let bad = (0..=REFUSALS_LISTED_MAX)
        .map(|n| invoice(&format!("inv-{n}"), 0))
        .collect();
    let status = send(&cluster, 0, bad).await.err().context("it was taken")?;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("4096"), "{}", status.message());
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn claims_lease_the_next_due_ones_by_priority_and_the_same_seq_claims_the_same() -> Result<()>
{
    let cluster = Cluster::start(1).await?;
    let (mut leases, mut invoices) = (cluster.leases(0)?, cluster.invoices(0)?);
    let due = Some(prost_types::Timestamp {
        seconds: 1_700_000_000,
        nanos: 0,
    });
    let with = |id: &str, priority| v1::Invoice {
        priority,
        due_at: due,
        ..invoice(id, 100)
    };
    submit(
        &cluster,
        vec![with("low", -5), with("mid", 0), with("high", 5)],
    )
    .await?;
    let session_id = vec![1; 16];
    let open = v1::OpenSessionRequest {
        session_id: session_id.clone(),
        holder: "ana".into(),
        ttl_ms: 30_000,
    };
    leases.open_session(open).await?;
    let claim = v1::ClaimInvoicesRequest {
        session_id,
        seq: 1,
        done_below: 0,
        max: 2,
    };
    let ids = |answer: v1::ClaimInvoicesResponse| -> Vec<String> {
        answer
            .claimed
            .into_iter()
            .filter_map(|one| one.lease)
            .map(|lease| lease.invoice_id)
            .collect()
    };
    let first = ids(invoices.claim_invoices(claim.clone()).await?.into_inner());
    assert_eq!(first, ["high", "mid"]);
    assert_eq!(
        ids(invoices.claim_invoices(claim.clone()).await?.into_inner()),
        first
    );
    let next = v1::ClaimInvoicesRequest {
        seq: 2,
        ..claim.clone()
    };
    assert_eq!(
        ids(invoices.claim_invoices(next).await?.into_inner()),
        ["low"]
    );
    let held = invoices.get_invoice(get("mid")).await?.into_inner();
    assert_eq!(held.status(), v1::InvoiceStatus::Processing);
    assert_eq!(held.lease.context("leased")?.holder, "ana");
    for (field, request) in [
        (
            "max",
            v1::ClaimInvoicesRequest {
                max: 0,
                seq: 3,
                ..claim.clone()
            },
        ),
        (
            "max",
            v1::ClaimInvoicesRequest {
                max: 1_001,
                seq: 3,
                ..claim.clone()
            },
        ),
        (
            "session_id",
            v1::ClaimInvoicesRequest {
                session_id: vec![],
                ..claim.clone()
            },
        ),
    ] {
        out_of_bounds(invoices.claim_invoices(request).await, field);
    }
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn what_is_cancelled_can_be_requeued_and_its_history_tells() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let (mut leases, mut invoices) = (cluster.leases(0)?, cluster.invoices(0)?);
    submit(&cluster, vec![invoice("inv-7", 4_200)]).await?;
    let cancel = v1::CancelInvoiceRequest {
        invoice_id: "inv-7".into(),
        reason: "sent twice".into(),
    };
    let cancelled = invoices.cancel_invoice(cancel).await?.into_inner();
    assert_eq!(cancelled.status(), v1::InvoiceStatus::Cancelled);
    let not_leasable = refused(
        leases.acquire_lease(acquire("inv-7", "ana")).await,
        Code::FailedPrecondition,
    );
    assert!(
        matches!(not_leasable, Rejection::NotLeasable { .. }),
        "{not_leasable:?}"
    );
    let requeue = v1::RequeueInvoiceRequest {
        invoice_id: "inv-7".into(),
        reason: "it was not".into(),
    };
    let requeued = invoices
        .requeue_invoice(requeue.clone())
        .await?
        .into_inner();
    assert_eq!(requeued.status(), v1::InvoiceStatus::Pending);
    let again = refused(
        invoices.requeue_invoice(requeue).await,
        Code::FailedPrecondition,
    );
    assert!(matches!(again, Rejection::WrongStatus { .. }), "{again:?}");

    let history = v1::GetInvoiceHistoryRequest {
        invoice_id: "inv-7".into(),
        stale_ok: false,
    };
    let records = invoices
        .get_invoice_history(history)
        .await?
        .into_inner()
        .records;
    let words: Vec<&str> = records.iter().map(|record| record.what.as_str()).collect();
    assert_eq!(words, ["submitted", "cancelled", "requeued"]);
    assert_eq!(records[1].detail, "sent twice");
    assert_eq!(records[1].actor, "operator@127.0.0.1");

    let nobody = refused(invoices.get_invoice(get("inv-8")).await, Code::NotFound);
    assert!(matches!(nobody, Rejection::NotFound { .. }), "{nobody:?}");
    let unknown = v1::GetInvoiceHistoryRequest {
        invoice_id: "inv-8".into(),
        stale_ok: false,
    };
    refused(invoices.get_invoice_history(unknown).await, Code::NotFound);
    let long = v1::CancelInvoiceRequest {
        invoice_id: "inv-7".into(),
        reason: "x".repeat(1_025),
    };
    out_of_bounds(invoices.cancel_invoice(long).await, "reason");
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn every_bound_of_an_invoice_is_refused_by_field() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let wrong = |field: &'static str, change: fn(&mut v1::Invoice)| {
        let mut wrong = invoice("inv-1", 100);
        change(&mut wrong);
        (field, wrong)
    };
    let cases = [
        wrong("invoice_id", |i| i.invoice_id = "x".repeat(129)),
        wrong("customer_id", |i| i.customer_id.clear()),
        wrong("customer_id", |i| i.customer_id = "a b".into()),
        wrong("amount_minor", |i| i.amount_minor = -1),
        wrong("amount_minor", |i| i.amount_minor = 1_000_000_000_001),
        wrong("currency", |i| i.currency = "XXX".into()),
        wrong("currency", |i| i.currency = "EURO".into()),
        wrong("priority", |i| i.priority = 1_001),
        wrong("priority", |i| i.priority = -1_001),
        wrong("due_at", |i| {
            i.due_at = Some(prost_types::Timestamp {
                seconds: -1,
                nanos: 0,
            })
        }),
    ];
    let (fields, invoices): (Vec<_>, Vec<_>) = cases.into_iter().unzip();
    let answer = send(&cluster, 0, invoices).await?;
    assert_eq!(answer.submitted + answer.unchanged, 0);
    for (field, refused) in fields.iter().zip(&answer.refused) {
        assert!(
            refused.reason.starts_with(field),
            "{field}: {}",
            refused.reason
        );
    }
    assert_eq!(answer.refused.len(), fields.len());
    cluster.stop().await;
    Ok(())
}
