//! Many at a time: submission, pages, the audit log.

use std::time::Duration;

use billing_client::{AcquireOptions, Failure, SessionOptions, Submitted, v1};
use futures::TryStreamExt;

use crate::fake::{Fake, Fault};

fn invoices(count: usize) -> impl Iterator<Item = v1::Invoice> {
    (0..count).map(|nth| v1::Invoice {
        invoice_id: format!("inv-{nth:05}"),
        customer_id: "cus-1".into(),
        amount_minor: 100,
        currency: "EUR".into(),
        ..Default::default()
    })
}

#[tokio::test]
async fn progress_is_what_the_ledger_has() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let client = fake.client()?;
    let mut seen = Vec::new();
    let done = client
        .submit_invoices(invoices(2_500), |sum| seen.push(sum.acknowledged()))
        .await?;
    assert_eq!(seen, [1_000, 2_000, 2_500]);
    assert_eq!(
        done,
        Submitted {
            submitted: 2_500,
            ..Submitted::default()
        }
    );
    let again = client.submit_invoices(invoices(2_500), |_| {}).await?;
    assert_eq!((again.submitted, again.unchanged), (0, 2_500));
    assert_eq!(
        client.submit_invoices([], |_| {}).await?,
        Submitted::default()
    );
    Ok(())
}

#[tokio::test]
async fn bad_invoices_are_refused_by_their_place_and_the_good_ones_are_kept() -> anyhow::Result<()>
{
    let fake = Fake::start(1).await?;
    let client = fake.client()?;
    let spoiled = invoices(2_100).enumerate().map(|(nth, mut invoice)| {
        match nth {
            3 => invoice.currency = "XXX".into(),
            1_500 => invoice.amount_minor = 0,
            2_050 => invoice.invoice_id = "inv-00000".into(),
            _ => {}
        }
        if nth == 2_050 {
            invoice.amount_minor = 7;
        }
        invoice
    });
    let done = client.submit_invoices(spoiled, |_| {}).await?;
    assert_eq!((done.submitted, done.unchanged), (2_097, 0));
    let refused: Vec<(u64, &str)> = done
        .refused
        .iter()
        .map(|refused| (refused.position, refused.invoice_id.as_str()))
        .collect();
    assert_eq!(
        refused,
        [(3, "inv-00003"), (1_500, "inv-01500"), (2_050, "inv-00000")]
    );
    Ok(())
}

#[tokio::test]
async fn a_chunk_whose_answer_is_lost_is_sent_again() -> anyhow::Result<()> {
    let fake = Fake::start(2).await?;
    let client = fake.client()?;
    fake.cluster
        .fail_next("SubmitInvoices", [Fault::LoseReply, Fault::NotApplied]);
    let done = client.submit_invoices(invoices(10), |_| {}).await?;
    assert_eq!(done.acknowledged(), 10);
    assert_eq!(done.unchanged, 10, "the first copy had done it");
    Ok(())
}

#[tokio::test]
async fn a_submission_that_fails_says_so_and_keeps_what_was_acknowledged() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let client = fake
        .builder()
        .deadline(Duration::from_millis(200))
        .build()?;
    let mut acknowledged = 0;
    let cluster = fake.cluster.clone();
    let failed = client
        .submit_invoices(invoices(1_500), |sum| {
            acknowledged = sum.acknowledged();
            cluster.fail_always("SubmitInvoices", Some(Fault::LoseReply));
        })
        .await;
    assert!(matches!(failed, Err(Failure::Unknown(_))), "{failed:?}");
    assert_eq!(acknowledged, 1_000);
    Ok(())
}

#[tokio::test]
async fn pages_follow_one_another_without_gap_or_repeat() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let client = fake.client()?;
    let session = client
        .open_session(SessionOptions::new("ana", Duration::from_secs(60)))
        .await?;
    let mut guards = Vec::new();
    for nth in 0..7 {
        guards.push(
            session
                .acquire(&format!("inv-{nth}"), AcquireOptions::default())
                .await?,
        );
    }
    let request = v1::ListLeasesRequest {
        page_size: 3,
        ..Default::default()
    };
    let leases: Vec<v1::Lease> = client.leases(request.clone()).try_collect().await?;
    let ids: Vec<&str> = leases
        .iter()
        .map(|lease| lease.invoice_id.as_str())
        .collect();
    assert_eq!(
        ids,
        [
            "inv-0", "inv-1", "inv-2", "inv-3", "inv-4", "inv-5", "inv-6"
        ]
    );
    assert_eq!(fake.cluster.count("ListLeases"), 3);
    let bad = v1::ListLeasesRequest {
        page_size: 1_001,
        ..request
    };
    let refused = client.leases(bad).try_collect::<Vec<_>>().await;
    assert!(matches!(refused, Err(Failure::Rejected(_))), "{refused:?}");
    Ok(())
}

#[tokio::test]
async fn the_audit_log_goes_on_after_the_last_record_when_its_stream_breaks() -> anyhow::Result<()>
{
    let fake = Fake::start(2).await?;
    let client = fake.client()?;
    fake.cluster
        .fail_next("ReadAuditLog", [Fault::LoseReply, Fault::LoseReply]);
    let records: Vec<u64> = client
        .read_audit_log(0, 0)
        .map_ok(|record| record.index)
        .try_collect()
        .await?;
    assert_eq!(records, (1..=10).collect::<Vec<u64>>());
    fake.cluster.fail_next("ReadAuditLog", [Fault::LoseReply]);
    let records: Vec<u64> = client
        .read_audit_log(4, 5)
        .map_ok(|record| record.index)
        .try_collect()
        .await?;
    assert_eq!(records, [4, 5, 6, 7, 8]);
    Ok(())
}
