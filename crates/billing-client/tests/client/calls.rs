//! Which calls are repeated, where they go, and what their failures say.

use std::time::Duration;

use billing_client::{AcquireOptions, Failure, Outcome, Rejection, SessionOptions, v1};
use billing_core::{Command, DeclineCode, Finality, InvoiceId, Reference, RequeueInvoice};

use crate::fake::{Fake, Fault, eventually, soon, word};

const TTL: Duration = Duration::from_secs(30);

fn invoice(id: &str) -> v1::Invoice {
    v1::Invoice {
        invoice_id: id.into(),
        customer_id: "cus-1".into(),
        amount_minor: 1_999,
        currency: "EUR".into(),
        ..Default::default()
    }
}

/// A fake with one submitted invoice and a lease on it.
async fn leased(
    fake: &Fake,
) -> anyhow::Result<(billing_client::Client, billing_client::LeaseGuard)> {
    let client = fake.client()?;
    client.submit_invoices([invoice("inv-7")], |_| {}).await?;
    let session = client.open_session(SessionOptions::new("ana", TTL)).await?;
    let guard = session.acquire("inv-7", AcquireOptions::default()).await?;
    Ok((client, guard))
}

#[tokio::test]
async fn the_leader_that_a_reply_names_gets_the_next_call() -> anyhow::Result<()> {
    let fake = Fake::start(3).await?;
    let client = fake.builder().build()?;
    assert_eq!(client.leader(), None);
    client.get_lease("inv-7", false).await?;
    fake.cluster.set_hint(Some(&fake.addresses[2]));
    client.get_lease("inv-7", false).await?;
    assert_eq!(client.leader(), Some(fake.addresses[2].clone()));
    client.get_lease("inv-7", false).await?;
    let last = fake.cluster.calls().pop();
    assert_eq!(last, Some((2, "GetLease")));
    Ok(())
}

#[tokio::test]
async fn the_leader_that_an_error_names_is_asked_at_once() -> anyhow::Result<()> {
    let fake = Fake::start(2).await?;
    // One endpoint configured; the other one is known by hint only.
    let client = fake.builder().endpoints(Vec::<String>::new()).build()?;
    fake.cluster.set_hint(Some(&fake.addresses[1]));
    fake.cluster.fail_next("BeginCharge", [Fault::NotApplied]);
    let refused = client
        .begin_charge("inv-7", billing_client::FencingToken(1), None)
        .await;
    assert!(
        matches!(refused, Err(Failure::Rejected(_))),
        "the second attempt reached the ledger: {refused:?}"
    );
    let calls = fake.cluster.calls();
    assert_eq!(calls.len(), 2);
    assert_eq!(calls[1], (1, "BeginCharge"));
    Ok(())
}

#[tokio::test]
async fn an_endpoint_where_nobody_listens_costs_no_call_not_even_one_that_is_never_repeated()
-> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let dead = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        listener.local_addr()?.to_string()
    };
    for _ in 0..4 {
        let client = billing_client::Client::builder()
            .endpoints([dead.clone(), fake.addresses[0].clone()])
            .build()?;
        let refused = client
            .begin_charge("inv-7", billing_client::FencingToken(1), None)
            .await;
        assert!(matches!(refused, Err(Failure::Rejected(_))), "{refused:?}");
    }
    let client = billing_client::Client::builder()
        .endpoints([dead])
        .deadline(Duration::from_millis(200))
        .build()?;
    let failed = soon(
        "a refused connection",
        client.begin_charge("inv-7", billing_client::FencingToken(1), None),
    )
    .await?;
    assert!(
        matches!(failed, Err(Failure::NotApplied(_))),
        "no byte was sent: {failed:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_node_that_goes_quiet_is_left_for_another() -> anyhow::Result<()> {
    let fake = Fake::start(2).await?;
    let client = fake.builder().attempt(Duration::from_millis(100)).build()?;
    fake.cluster.fail_next("GetLease", [Fault::Hang]);
    soon("the other node's answer", client.get_lease("inv-7", false)).await??;
    let nodes: Vec<usize> = fake.cluster.calls().iter().map(|(node, _)| *node).collect();
    assert_eq!(nodes.len(), 2);
    assert_ne!(nodes[0], nodes[1]);
    Ok(())
}

#[tokio::test]
async fn a_begin_whose_answer_is_lost_is_not_repeated_behind_the_callers_back() -> anyhow::Result<()>
{
    let fake = Fake::start(1).await?;
    let (client, guard) = leased(&fake).await?;
    for fault in [Fault::LoseReply, Fault::OutcomeUnknown] {
        let before = fake.cluster.count("BeginCharge");
        fake.cluster.fail_next("BeginCharge", [fault.clone()]);
        let lost = client.begin_charge("inv-7", guard.token(), None).await;
        assert!(
            matches!(lost, Err(Failure::Unknown(_))),
            "{fault:?}: {lost:?}"
        );
        assert_eq!(fake.cluster.count("BeginCharge"), before + 1, "{fault:?}");
    }
    // The caller may repeat it, and is told the price.
    let begun = client.begin_charge("inv-7", guard.token(), None).await?;
    assert!(begun.attempt.taken_over);
    assert_eq!(begun.attempt.number, 1);
    Ok(())
}

#[tokio::test]
async fn a_begin_that_never_reached_the_log_is_repeated_and_keeps_sole_send() -> anyhow::Result<()>
{
    let fake = Fake::start(1).await?;
    let (client, guard) = leased(&fake).await?;
    let before = client.env().clock.boottime();
    fake.cluster
        .fail_next("BeginCharge", [Fault::NotApplied, Fault::NotApplied]);
    let begun = client.begin_charge("inv-7", guard.token(), None).await?;
    assert!(!begun.attempt.taken_over);
    assert_eq!(fake.cluster.count("BeginCharge"), 3);
    assert!(begun.sent_at > before && begun.sent_at <= client.env().clock.boottime());
    Ok(())
}

#[tokio::test]
async fn a_settlement_whose_answer_is_lost_is_repeated_and_says_the_same() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let (client, guard) = leased(&fake).await?;
    let begun = client.begin_charge("inv-7", guard.token(), None).await?;
    fake.cluster
        .fail_next("SettleCharge", [Fault::LoseReply, Fault::NotApplied]);
    let charged = Outcome::Charged(billing_core::Charged {
        reference: Reference::new("ch_1")?,
        amount: None,
        currency: None,
    });
    let status = client
        .settle_charge(
            "inv-7",
            guard.token(),
            &begun.attempt.idempotency_key,
            &charged,
        )
        .await?;
    assert_eq!(status, v1::InvoiceStatus::Paid);
    assert_eq!(fake.cluster.count("SettleCharge"), 3);
    let read = client.get_invoice("inv-7", false).await?;
    assert_eq!((read.charge_reference.as_str(), read.attempts), ("ch_1", 1));
    guard.settled();
    Ok(())
}

#[tokio::test]
async fn a_refusal_after_a_lost_answer_is_no_proof_that_nothing_happened() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let (client, guard) = leased(&fake).await?;
    let key = client
        .begin_charge("inv-7", guard.token(), None)
        .await?
        .attempt
        .idempotency_key;
    let declined = Outcome::Declined {
        code: DeclineCode::new("card_declined")?,
        retryable: false,
        finality: Finality::SoleSend,
    };
    // The first copy is taken and its answer lost; the second one is so late that others have been at work meanwhile.
    fake.cluster.fail_next(
        "SettleCharge",
        [Fault::LoseReply, Fault::Delay(Duration::from_millis(300))],
    );
    let settling = {
        let (client, token) = (client.clone(), guard.token());
        tokio::spawn(async move { client.settle_charge("inv-7", token, &key, &declined).await })
    };
    eventually("the repeat is on its way", || {
        Ok(fake.cluster.count("SettleCharge") == 2)
    })
    .await?;
    let requeue = RequeueInvoice {
        invoice: InvoiceId::new("inv-7")?,
        reason: None,
    };
    fake.cluster
        .apply(Command::RequeueInvoice(requeue))
        .map_err(|rejection| anyhow::anyhow!("{rejection}"))?;
    let ben = client.open_session(SessionOptions::new("ben", TTL)).await?;
    let other = ben.acquire("inv-7", AcquireOptions::default()).await?;
    let begun = client.begin_charge("inv-7", other.token(), None).await?;
    assert_eq!(begun.attempt.number, 2);
    let unknown = Outcome::Unknown { detail: None };
    client
        .settle_charge(
            "inv-7",
            other.token(),
            &begun.attempt.idempotency_key,
            &unknown,
        )
        .await?;
    // Told as "refused", it would read "nothing changed", and attempt 1 would be thought open.
    let settled = soon("the repeat's answer", settling).await??;
    assert!(
        matches!(&settled, Err(Failure::Unknown(status)) if status.message().contains("stale token")),
        "{settled:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_doubt_outlives_the_failures_after_it() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let client = fake
        .builder()
        .deadline(Duration::from_millis(400))
        .build()?;
    for (first, wanted) in [
        (Fault::LoseReply, "unknown"),
        (Fault::LoseRequest, "unknown"),
        (Fault::NotApplied, "not applied"),
    ] {
        fake.cluster.fail_next("GetInvoice", [first.clone()]);
        fake.cluster
            .fail_always("GetInvoice", Some(Fault::NotApplied));
        let failed = soon("giving up", client.get_invoice("inv-7", false)).await?;
        assert_eq!(
            failed.as_ref().map_err(word).err(),
            Some(wanted),
            "{first:?}"
        );
        assert!(
            fake.cluster.count("GetInvoice") > 2,
            "tried until the deadline"
        );
    }
    Ok(())
}

#[tokio::test]
async fn what_a_node_said_is_not_hidden_by_the_silence_after_it() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let client = fake
        .builder()
        .deadline(Duration::from_millis(400))
        .build()?;
    fake.cluster.fail_next("GetInvoice", [Fault::LoseReply]);
    let quiet = Fault::Delay(Duration::from_secs(600));
    fake.cluster.fail_always("GetInvoice", Some(quiet));
    let failed = soon("giving up", client.get_invoice("inv-7", false)).await?;
    assert!(
        matches!(&failed, Err(Failure::Unknown(status)) if !status.message().contains("no answer")),
        "{failed:?}"
    );
    assert_eq!(fake.cluster.count("GetInvoice"), 2, "silence was met");
    Ok(())
}

#[tokio::test]
async fn a_refusal_keeps_its_facts() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let client = fake.client()?;
    let unknown = client.get_invoice("inv-9", false).await;
    match unknown {
        Err(Failure::Rejected(Rejection::NotFound { invoice })) => {
            assert_eq!(invoice.as_str(), "inv-9")
        }
        other => panic!("{other:?}"),
    }
    let bad = client.get_invoice("two words", false).await;
    match bad {
        Err(Failure::Rejected(Rejection::InvalidArgument { field, .. })) => {
            assert_eq!(field, "invoice_id")
        }
        other => panic!("{other:?}"),
    }
    Ok(())
}

#[tokio::test]
async fn a_method_that_the_server_does_not_have_is_not_asked_again() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let client = fake.client()?;
    let failed = soon("an answer at once", client.cancel_invoice("inv-7", "")).await?;
    assert!(matches!(failed, Err(Failure::NotApplied(_))), "{failed:?}");
    Ok(())
}

#[tokio::test]
async fn a_status_is_asked_of_one_node_and_no_other() -> anyhow::Result<()> {
    let fake = Fake::start(3).await?;
    let client = fake.client()?;
    fake.cluster.set_hint(Some(&fake.addresses[0]));
    for (number, address) in fake.addresses.iter().enumerate() {
        assert_eq!(client.status_of(address).await?.node_id, number as u64);
    }
    fake.cluster.fail_next("GetStatus", [Fault::NotApplied]);
    assert!(
        client.status_of(&fake.addresses[1]).await.is_err(),
        "asked once"
    );
    Ok(())
}
