//! Pipeline over the wire: each answer under its tag, nothing behind what waits, and how a stream ends.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use billing_core::Rejection;
use billing_proto::Failure;
use billing_proto::v1::{
    self, acquire_leases_response as acquired, pipeline_request::Request as Wanted,
    pipeline_response::Result as Told,
};
use common::{Cluster, PATIENCE, acquire, release, until};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

/// One stream to one node.
struct Pipe {
    requests: mpsc::Sender<v1::PipelineRequest>,
    answers: Streaming<v1::PipelineResponse>,
}

impl Pipe {
    async fn open(cluster: &Cluster, at: usize) -> Result<Pipe> {
        let (requests, sent) = mpsc::channel(16_384);
        let answers = cluster
            .leases(at)?
            .pipeline(ReceiverStream::new(sent))
            .await?;
        Ok(Pipe {
            requests,
            answers: answers.into_inner(),
        })
    }

    async fn send(&self, tag: u64, wanted: Wanted) -> Result<()> {
        let request = Some(wanted);
        self.requests
            .send(v1::PipelineRequest { tag, request })
            .await?;
        Ok(())
    }

    async fn response(&mut self) -> Result<v1::PipelineResponse> {
        let answer = tokio::time::timeout(PATIENCE, self.answers.message()).await;
        answer.context("no answer")??.context("the stream ended")
    }

    async fn next(&mut self) -> Result<(u64, Told)> {
        let v1::PipelineResponse { tag, result, .. } = self.response().await?;
        Ok((tag, result.context("no result")?))
    }

    async fn ask(&mut self, tag: u64, wanted: Wanted) -> Result<Told> {
        self.send(tag, wanted).await?;
        let (answered, told) = self.next().await?;
        ensure!(answered == tag, "{answered} instead of {tag}: {told:?}");
        Ok(told)
    }

    /// How the stream ends, when nothing more is answered.
    async fn end(mut self) -> Result<Result<(), Status>> {
        match tokio::time::timeout(PATIENCE, self.answers.message()).await? {
            Ok(None) => Ok(Ok(())),
            Ok(Some(answer)) => anyhow::bail!("another answer: {answer:?}"),
            Err(status) => Ok(Err(status)),
        }
    }
}

fn granted(told: Told) -> Result<v1::Lease> {
    match told {
        Told::AcquireLease(granted) => granted.lease.context("a grant without a lease"),
        other => anyhow::bail!("no grant: {other:?}"),
    }
}

fn error(told: Told) -> Result<(Code, Failure)> {
    match told {
        Told::Error(error) => Ok((Code::from(error.code), Failure::from(error))),
        other => anyhow::bail!("no error: {other:?}"),
    }
}

fn get_lease(invoice: &str) -> Wanted {
    Wanted::GetLease(v1::GetLeaseRequest {
        invoice_id: invoice.into(),
        stale_ok: false,
    })
}

fn waits(invoice: &str, holder: &str) -> Wanted {
    Wanted::AcquireLease(v1::AcquireLeaseRequest {
        wait_ms: 60_000,
        ..acquire(invoice, holder)
    })
}

async fn waiting(cluster: &Cluster, invoice: &str, count: u64) -> Result<()> {
    until(|| async { Ok(cluster.waiters(invoice).await? == count) }).await
}

#[tokio::test]
async fn each_request_means_what_the_call_of_its_name_means() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    common::submit(&cluster, vec![common::invoice("inv-8", 1_999)]).await?;
    let mut pipe = Pipe::open(&cluster, 0).await?;
    let open = v1::OpenSessionRequest {
        session_id: vec![1; 16],
        holder: "ana".into(),
        ttl_ms: 30_000,
    };
    let told = pipe.ask(1, Wanted::OpenSession(open)).await?;
    assert!(
        matches!(&told, Told::OpenSession(opened) if opened.session.is_some()),
        "{told:?}"
    );
    let beat = v1::KeepAliveRequest {
        tag: 77,
        session_id: vec![1; 16],
    };
    let told = pipe.ask(2, Wanted::KeepAlive(beat)).await?;
    assert!(
        matches!(&told, Told::KeepAlive(kept) if kept.tag == 77),
        "{told:?}"
    );
    let lease = granted(
        pipe.ask(3, Wanted::AcquireLease(acquire("inv-7", "ben")))
            .await?,
    )?;
    match pipe.ask(4, get_lease("inv-7")).await? {
        Told::GetLease(seen) => {
            assert_eq!(seen.lease.map(|seen| seen.token), Some(lease.token));
            assert!(seen.applied_index > 0);
        }
        other => panic!("{other:?}"),
    }
    let renew = v1::RenewLeaseRequest {
        invoice_id: "inv-7".into(),
        token: lease.token,
        ttl_ms: 60_000,
    };
    let told = pipe.ask(5, Wanted::RenewLease(renew)).await?;
    assert!(
        matches!(&told, Told::RenewLease(renewed) if renewed.lease.as_ref().is_some_and(|lease| lease.expires_in_ms > 30_000)),
        "{told:?}"
    );
    // Refusals have the facts of the call's status.
    let refused = pipe
        .ask(6, Wanted::AcquireLease(acquire("inv-7", "eve")))
        .await?;
    match error(refused)? {
        (Code::Aborted, Failure::Rejected(Rejection::HeldByOther { holder, .. })) => {
            assert_eq!(holder.as_str(), "ben");
        }
        other => panic!("{other:?}"),
    }
    let told = pipe.ask(7, Wanted::ReleaseLease(release(&lease))).await?;
    assert!(
        matches!(&told, Told::ReleaseLease(released) if released.was_current),
        "{told:?}"
    );
    let claim = v1::ClaimInvoicesRequest {
        session_id: vec![1; 16],
        seq: 1,
        done_below: 1,
        max: 10,
    };
    let claimed = match pipe.ask(8, Wanted::ClaimInvoices(claim)).await? {
        Told::ClaimInvoices(claimed) => claimed.claimed,
        other => panic!("{other:?}"),
    };
    let token = claimed[0].lease.as_ref().context("lease")?.token;
    let begin = v1::BeginChargeRequest {
        invoice_id: "inv-8".into(),
        token,
        terms: None,
    };
    let attempt = match pipe.ask(9, Wanted::BeginCharge(begin)).await? {
        Told::BeginCharge(begun) => begun.attempt.context("attempt")?,
        other => panic!("{other:?}"),
    };
    let attach = v1::AttachProviderObjectRequest {
        invoice_id: "inv-8".into(),
        token,
        object: "pi_1".into(),
    };
    let told = pipe.ask(10, Wanted::AttachProviderObject(attach)).await?;
    assert!(
        matches!(&told, Told::AttachProviderObject(attached) if attached.object == "pi_1"),
        "{told:?}"
    );
    let settle = v1::SettleChargeRequest {
        invoice_id: "inv-8".into(),
        token,
        idempotency_key: attempt.idempotency_key,
        outcome: Some(v1::settle_charge_request::Outcome::Charged(
            v1::settle_charge_request::Charged {
                reference: "pi_1".into(),
                ..Default::default()
            },
        )),
    };
    let told = pipe.ask(11, Wanted::SettleCharge(settle)).await?;
    assert!(
        matches!(&told, Told::SettleCharge(settled) if settled.status() == v1::InvoiceStatus::Paid),
        "{told:?}"
    );
    let read = v1::GetInvoiceRequest {
        invoice_id: "inv-8".into(),
        stale_ok: false,
    };
    let told = pipe.ask(12, Wanted::GetInvoice(read)).await?;
    assert!(
        matches!(&told, Told::GetInvoice(seen) if seen.charge_reference == "pi_1"),
        "{told:?}"
    );
    let close = v1::CloseSessionRequest {
        session_id: vec![1; 16],
    };
    let told = pipe.ask(13, Wanted::CloseSession(close)).await?;
    assert!(
        matches!(&told, Told::CloseSession(closed) if closed.was_open),
        "{told:?}"
    );
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_under_its_tag_and_the_stream_goes_on() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let mut pipe = Pipe::open(&cluster, 0).await?;
    let unknown = v1::PipelineRequest {
        tag: 1,
        request: None,
    };
    pipe.requests.send(unknown).await?;
    let (tag, told) = pipe.next().await?;
    assert_eq!((tag, error(told)?.0), (1, Code::Unimplemented));
    for wanted in [
        get_lease("two words"),
        Wanted::AcquireLease(acquire("", "ana")),
    ] {
        match error(pipe.ask(2, wanted).await?)? {
            (
                Code::InvalidArgument,
                Failure::Rejected(Rejection::InvalidArgument { field, .. }),
            ) => {
                assert_eq!(field, "invoice_id");
            }
            other => panic!("{other:?}"),
        }
    }
    granted(
        pipe.ask(2, Wanted::AcquireLease(acquire("inv-7", "ana")))
            .await?,
    )?;
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_tag_that_is_unanswered_is_nobody_elses() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let mut pipe = Pipe::open(&cluster, 0).await?;
    let held = granted(
        pipe.ask(1, Wanted::AcquireLease(acquire("inv-7", "ana")))
            .await?,
    )?;
    pipe.send(5, waits("inv-7", "ben")).await?;
    waiting(&cluster, "inv-7", 1).await?;
    match error(pipe.ask(5, get_lease("inv-7")).await?)? {
        (Code::InvalidArgument, Failure::Rejected(Rejection::InvalidArgument { field, .. })) => {
            assert_eq!(field, "tag");
        }
        other => panic!("{other:?}"),
    }
    pipe.send(6, Wanted::ReleaseLease(release(&held))).await?;
    let answers = BTreeMap::from([pipe.next().await?, pipe.next().await?]);
    assert!(
        matches!(answers.get(&5), Some(Told::AcquireLease(_))),
        "the first one's answer: {answers:?}"
    );
    assert!(matches!(answers.get(&6), Some(Told::ReleaseLease(_))));
    // Answered: free again.
    assert!(matches!(
        pipe.ask(5, get_lease("inv-7")).await?,
        Told::GetLease(_)
    ));
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn nothing_waits_behind_those_that_wait() -> Result<()> {
    const WAITERS: u64 = 1_000;
    let cluster = Cluster::start(1).await?;
    let mut pipe = Pipe::open(&cluster, 0).await?;
    let held = granted(
        pipe.ask(1, Wanted::AcquireLease(acquire("inv-7", "ana")))
            .await?,
    )?;
    for nth in 0..WAITERS {
        pipe.send(1_000 + nth, waits("inv-7", "ben")).await?;
    }
    pipe.send(2, Wanted::ReleaseLease(release(&held))).await?;
    let answers = BTreeMap::from([pipe.next().await?, pipe.next().await?]);
    assert!(matches!(answers.get(&2), Some(Told::ReleaseLease(_))));
    assert!(
        matches!(answers.get(&1_000), Some(Told::AcquireLease(_))),
        "first come, first served: {answers:?}"
    );
    // Those that are given up leave the queue, and are not answered.
    for nth in 1..WAITERS {
        let cancel = v1::CancelRequest {
            cancelled_tag: 1_000 + nth,
        };
        pipe.send(9_000 + nth, Wanted::Cancel(cancel)).await?;
    }
    waiting(&cluster, "inv-7", 0).await?;
    assert!(matches!(
        pipe.ask(3, get_lease("inv-7")).await?,
        Told::GetLease(_)
    ));
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_stream_that_breaks_takes_its_waiters_out_of_the_queue_but_no_lease_away() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let mut other = Pipe::open(&cluster, 0).await?;
    let mut pipe = Pipe::open(&cluster, 0).await?;
    let held = granted(
        pipe.ask(1, Wanted::AcquireLease(acquire("inv-7", "ana")))
            .await?,
    )?;
    pipe.send(2, waits("inv-7", "ben")).await?;
    let mut items = vec![acquire("inv-8", "ben")];
    items.push(v1::AcquireLeaseRequest {
        wait_ms: 60_000,
        ..acquire("inv-7", "ben")
    });
    let batch = Wanted::AcquireLeases(v1::AcquireLeasesRequest { items });
    pipe.send(3, batch).await?;
    waiting(&cluster, "inv-7", 2).await?;
    drop(pipe);
    waiting(&cluster, "inv-7", 0).await?;
    match other.ask(1, get_lease("inv-7")).await? {
        Told::GetLease(seen) => assert_eq!(seen.lease.map(|seen| seen.token), Some(held.token)),
        told => panic!("{told:?}"),
    }
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_client_that_has_said_all_still_hears_every_answer() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let mut other = Pipe::open(&cluster, 0).await?;
    let mut pipe = Pipe::open(&cluster, 0).await?;
    let held = granted(
        other
            .ask(1, Wanted::AcquireLease(acquire("inv-7", "ana")))
            .await?,
    )?;
    pipe.send(1, waits("inv-7", "ben")).await?;
    let (closed, _) = mpsc::channel(1);
    pipe.requests = closed;
    waiting(&cluster, "inv-7", 1).await?;
    other.ask(2, Wanted::ReleaseLease(release(&held))).await?;
    let (tag, told) = pipe.next().await?;
    assert_eq!((tag, granted(told)?.holder.as_str()), (1, "ben"));
    assert!(pipe.end().await?.is_ok());
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_message_beyond_the_bound_ends_the_stream_after_the_answers_before_it() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let mut other = Pipe::open(&cluster, 0).await?;
    other
        .ask(1, Wanted::AcquireLease(acquire("inv-9", "ana")))
        .await?;
    let mut pipe = Pipe::open(&cluster, 0).await?;
    pipe.send(1, waits("inv-9", "ben")).await?;
    waiting(&cluster, "inv-9", 1).await?;
    for tag in 2..100 {
        pipe.send(tag, get_lease("inv-7")).await?;
    }
    pipe.send(100, get_lease(&"x".repeat(5 << 20))).await?;
    for _ in 2..100 {
        let (tag, told) = pipe.next().await?;
        assert!(matches!(told, Told::GetLease(_)), "{tag}: {told:?}");
    }
    let ended = pipe.end().await?;
    assert!(
        matches!(&ended, Err(status) if status.code() == Code::OutOfRange && status.message().contains("limit")),
        "{ended:?}"
    );
    waiting(&cluster, "inv-9", 0).await?;
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn more_than_may_be_in_flight_are_read_later_and_all_answered() -> Result<()> {
    const REQUESTS: u64 = 10_000;
    let cluster = Cluster::start(1).await?;
    let pipe = Pipe::open(&cluster, 0).await?;
    let Pipe {
        requests,
        mut answers,
    } = pipe;
    for tag in 0..REQUESTS {
        let wanted = Wanted::AcquireLease(acquire(&format!("inv-{tag}"), "ana"));
        let request = Some(wanted);
        requests.send(v1::PipelineRequest { tag, request }).await?;
    }
    let mut tags = BTreeSet::new();
    for _ in 0..REQUESTS {
        let answer = tokio::time::timeout(PATIENCE, answers.message()).await??;
        let answer = answer.context("the stream ended")?;
        assert!(
            matches!(answer.result, Some(Told::AcquireLease(_))),
            "{answer:?}"
        );
        assert!(tags.insert(answer.tag), "{} twice", answer.tag);
    }
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_node_that_does_not_lead_says_who_does() -> Result<()> {
    let cluster = Cluster::start(3).await?;
    let (leader, followers) = cluster.leader_and_followers().await?;
    let mut direct = Pipe::open(&cluster, leader).await?;
    let mut around = Pipe::open(&cluster, followers[0]).await?;
    for (pipe, named, tag) in [
        (&mut direct, "", 1),
        (&mut around, cluster.addresses[leader].as_str(), 2),
    ] {
        let wanted = Wanted::AcquireLease(acquire(&format!("inv-{tag}"), "ana"));
        pipe.send(tag, wanted).await?;
        let response = pipe.response().await?;
        assert_eq!(response.leader_address, named);
        granted(response.result.context("result")?)?;
    }
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_batch_is_answered_item_by_item_those_that_wait_included() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let mut pipe = Pipe::open(&cluster, 0).await?;
    let held = granted(
        pipe.ask(1, Wanted::AcquireLease(acquire("inv-2", "ana")))
            .await?,
    )?;
    let items = vec![
        acquire("inv-1", "ben"),
        v1::AcquireLeaseRequest {
            wait_ms: 60_000,
            ..acquire("inv-2", "ben")
        },
        acquire("inv-2", "ben"),
        acquire("two words", "ben"),
        acquire("inv-3", "ben"),
    ];
    let batch = Wanted::AcquireLeases(v1::AcquireLeasesRequest { items });
    pipe.send(2, batch).await?;
    waiting(&cluster, "inv-2", 1).await?;
    // Not held up by the batch, and what the batch waits for.
    pipe.send(3, Wanted::ReleaseLease(release(&held))).await?;
    let told = BTreeMap::from([pipe.next().await?, pipe.next().await?]);
    assert!(
        matches!(told.get(&3), Some(Told::ReleaseLease(_))),
        "{told:?}"
    );
    let Some(Told::AcquireLeases(answer)) = told.get(&2) else {
        panic!("{told:?}")
    };
    let results: Vec<_> = answer
        .items
        .iter()
        .map(|item| match &item.result {
            Some(acquired::item::Result::Granted(granted)) => {
                let lease = granted.lease.as_ref();
                Ok(lease.map(|lease| lease.invoice_id.as_str()))
            }
            Some(acquired::item::Result::Error(error)) => Err(Code::from(error.code)),
            None => Err(Code::Unknown),
        })
        .collect();
    assert_eq!(
        results,
        [
            Ok(Some("inv-1")),
            Ok(Some("inv-2")),
            Err(Code::Aborted),
            Err(Code::InvalidArgument),
            Ok(Some("inv-3")),
        ]
    );
    let many = vec![release(&held); 1_001];
    let refused = pipe
        .ask(
            4,
            Wanted::ReleaseLeases(v1::ReleaseLeasesRequest { items: many }),
        )
        .await?;
    assert_eq!(error(refused)?.0, Code::InvalidArgument);
    let twice = vec![release(&held); 2];
    match pipe
        .ask(
            5,
            Wanted::ReleaseLeases(v1::ReleaseLeasesRequest { items: twice }),
        )
        .await?
    {
        Told::ReleaseLeases(answer) => assert_eq!(answer.items.len(), 2),
        other => panic!("{other:?}"),
    }
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_node_that_stops_ends_its_streams_and_gives_up_what_waits_on_them() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let mut pipe = Pipe::open(&cluster, 0).await?;
    granted(
        pipe.ask(1, Wanted::AcquireLease(acquire("inv-7", "ana")))
            .await?,
    )?;
    pipe.send(2, waits("inv-7", "ben")).await?;
    waiting(&cluster, "inv-7", 1).await?;
    let (_, ended) = tokio::join!(cluster.stop(), async {
        let (tag, told) = pipe.next().await?;
        let (code, failure) = error(told)?;
        ensure!((tag, code) == (2, Code::Unknown), "{tag} {failure:?}");
        pipe.end().await
    });
    let ended = ended?;
    assert!(ended.is_ok(), "{ended:?}");
    Ok(())
}
