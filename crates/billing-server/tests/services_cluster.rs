//! ClusterService, health, reflection and the bounds of the listener, over the wire.

mod common;

use anyhow::{Context, Result};
use billing_core::Rejection;
use billing_proto::v1;
use billing_server::server::ClientLimits;
use common::{Cluster, PATIENCE, acquire, invoice, lease, out_of_bounds, refused, submit};
use tokio_stream::StreamExt;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

#[tokio::test]
async fn status_counts_what_is_there() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    submit(&cluster, vec![invoice("a", 100), invoice("b", 100)]).await?;
    cluster
        .leases(0)?
        .acquire_lease(acquire("a", "ana"))
        .await?;
    let mut operators = cluster.operators(0)?;
    let status = operators
        .get_status(v1::GetStatusRequest {})
        .await?
        .into_inner();
    assert_eq!((status.node_id, status.leader_id), (1, 1));
    assert_eq!(status.leader_address, cluster.addresses[0]);
    assert_eq!(status.role(), v1::NodeRole::Leader);
    assert_eq!(status.ledger_id, "tests");
    assert!(status.charges_allowed);
    assert_eq!((status.leases, status.sessions), (1, 1));
    assert!(status.applied_index > 0 && status.format > 0 && !status.version.is_empty());
    assert_eq!(status.members.len(), 1);
    let count = |wanted: v1::InvoiceStatus| {
        let found = status
            .invoices
            .iter()
            .find(|count| count.status() == wanted);
        found.map(|count| count.count)
    };
    assert_eq!(count(v1::InvoiceStatus::Pending), Some(1));
    assert_eq!(count(v1::InvoiceStatus::Processing), Some(1));
    assert_eq!(count(v1::InvoiceStatus::Paid), Some(0));
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn an_operator_ends_a_lease_and_its_token_is_dead() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let (mut leases, mut operators) = (cluster.leases(0)?, cluster.operators(0)?);
    let held = lease(leases.acquire_lease(acquire("inv-7", "ana")).await?)?;
    let force = v1::ForceReleaseRequest {
        invoice_id: "inv-7".into(),
        reason: "ana is on leave".into(),
    };
    assert!(
        operators
            .force_release(force.clone())
            .await?
            .get_ref()
            .was_leased
    );
    let renew = v1::RenewLeaseRequest {
        invoice_id: "inv-7".into(),
        token: held.token,
        ttl_ms: 5_000,
    };
    refused(leases.renew_lease(renew).await, Code::FailedPrecondition);
    let no_reason = v1::ForceReleaseRequest {
        reason: String::new(),
        ..force
    };
    out_of_bounds(operators.force_release(no_reason).await, "reason");
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_paused_provider_refuses_to_begin_until_it_goes_on() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let (mut charges, mut operators) = (cluster.charges(0)?, cluster.operators(0)?);
    submit(&cluster, vec![invoice("inv-7", 100)]).await?;
    let held = lease(
        cluster
            .leases(0)?
            .acquire_lease(acquire("inv-7", "ana"))
            .await?,
    )?;
    let pause = |paused| v1::PauseProviderRequest {
        provider: "manual".into(),
        paused,
        reason: "their status page is red".into(),
    };
    operators.pause_provider(pause(true)).await?;
    let status = operators
        .get_status(v1::GetStatusRequest {})
        .await?
        .into_inner();
    assert_eq!(status.paused_providers, ["manual"]);
    let begin = v1::BeginChargeRequest {
        invoice_id: "inv-7".into(),
        token: held.token,
        terms: None,
    };
    match refused(
        charges.begin_charge(begin.clone()).await,
        Code::FailedPrecondition,
    ) {
        Rejection::ProviderPaused { reason, .. } => {
            assert_eq!(reason.as_str(), "their status page is red")
        }
        other => panic!("{other:?}"),
    }
    operators.pause_provider(pause(false)).await?;
    charges.begin_charge(begin).await?;
    operators
        .allow_charges(v1::AllowChargesRequest {
            evidence: "compared".into(),
        })
        .await?;
    let empty = v1::AllowChargesRequest {
        evidence: String::new(),
    };
    out_of_bounds(operators.allow_charges(empty).await, "evidence");
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn the_audit_log_is_a_chain_that_a_reader_can_check() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    submit(
        &cluster,
        (0..600)
            .map(|n| invoice(&format!("inv-{n}"), 100))
            .collect(),
    )
    .await?;
    let mut operators = cluster.operators(0)?;
    let mut ask = async |from_index, limit| -> Result<Vec<v1::AuditRecord>> {
        let request = v1::ReadAuditLogRequest { from_index, limit };
        let answers: Vec<_> = operators
            .read_audit_log(request)
            .await?
            .into_inner()
            .collect()
            .await;
        let mut records = Vec::new();
        for answer in answers {
            records.push(answer?.record.context("a record")?);
        }
        Ok(records)
    };
    let all = ask(0, 0).await?;
    assert!(all.len() > 600, "{}", all.len());
    assert_eq!((all[0].index, all[0].what.as_str()), (1, "bootstrapped"));
    let mut previous = billing_core::CHAIN_START;
    for (record, index) in all.iter().zip(1..) {
        assert_eq!(record.index, index, "without a gap, in order");
        assert_eq!(record.previous_hash, previous);
        previous = billing_core::chain_hash(&previous, &record.canonical);
        assert_eq!(record.hash, previous, "record {index}");
    }
    let some = ask(300, 5).await?;
    assert_eq!(some.len(), 5);
    assert_eq!((some[0].index, &some[0].hash), (300, &all[299].hash));
    assert!(ask(1_000_000, 0).await?.is_empty());
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn reflection_names_every_service_in_both_versions() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let expected = [
        "billing.v1.ChargeService",
        "billing.v1.ClusterService",
        "billing.v1.InvoiceService",
        "billing.v1.LeaseService",
        "grpc.health.v1.Health",
    ];
    macro_rules! listed {
        ($version:ident) => {{
            use tonic_reflection::pb::$version as pb;
            let mut client =
                pb::server_reflection_client::ServerReflectionClient::new(cluster.channel(0)?);
            let ask = |message_request| pb::ServerReflectionRequest {
                host: String::new(),
                message_request: Some(message_request),
            };
            let list = pb::server_reflection_request::MessageRequest::ListServices(String::new());
            let file = pb::server_reflection_request::MessageRequest::FileContainingSymbol(
                "billing.v1.AcquireLeaseRequest".into(),
            );
            let requests = futures::stream::iter([ask(list), ask(file)]);
            let mut answers = client.server_reflection_info(requests).await?.into_inner();
            use pb::server_reflection_response::MessageResponse;
            let names = match answers
                .message()
                .await?
                .and_then(|answer| answer.message_response)
            {
                Some(MessageResponse::ListServicesResponse(list)) => {
                    let mut names: Vec<String> = list
                        .service
                        .into_iter()
                        .map(|service| service.name)
                        .collect();
                    names.retain(|name| !name.starts_with("grpc.reflection."));
                    names.sort();
                    names
                }
                other => anyhow::bail!("{other:?}"),
            };
            assert_eq!(names, expected);
            match answers
                .message()
                .await?
                .and_then(|answer| answer.message_response)
            {
                Some(MessageResponse::FileDescriptorResponse(files)) => {
                    assert!(!files.file_descriptor_proto.is_empty());
                }
                other => anyhow::bail!("{other:?}"),
            }
        }};
    }
    listed!(v1);
    listed!(v1alpha);
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_node_that_shuts_down_says_so_finishes_calls_and_ends_those_that_wait() -> Result<()> {
    let mut cluster = Cluster::start(1).await?;
    let mut leases = cluster.leases(0)?;
    leases.acquire_lease(acquire("inv-7", "ana")).await?;
    let mut health = HealthClient::new(cluster.channel(0)?);
    let mut said = health
        .watch(HealthCheckRequest::default())
        .await?
        .into_inner();
    assert_eq!(
        said.message().await?.context("first word")?.status(),
        ServingStatus::Serving
    );
    let mut waiting = leases.clone();
    let waits = tokio::spawn(async move {
        let wait = v1::AcquireLeaseRequest {
            wait_ms: 60_000,
            ..acquire("inv-7", "ben")
        };
        waiting.acquire_lease(wait).await
    });
    common::until(|| async {
        let view = v1::GetInvoiceRequest {
            invoice_id: "inv-7".into(),
            stale_ok: true,
        };
        Ok(cluster.waiters("inv-7").await? > 0
            && cluster.invoices(0)?.get_invoice(view).await.is_ok())
    })
    .await?;
    let node = cluster.nodes.remove(0);
    let ends = tokio::spawn(node.finish(PATIENCE));
    assert_eq!(
        said.message().await?.context("last word")?.status(),
        ServingStatus::NotServing
    );
    drop((said, health));
    let status = waits.await?.err().context("granted")?;
    assert_eq!(
        status.code(),
        Code::Unknown,
        "nobody may believe that nothing happened: {status:?}"
    );
    tokio::time::timeout(PATIENCE, ends).await??;
    assert!(leases.acquire_lease(acquire("inv-8", "ana")).await.is_err());
    Ok(())
}

#[tokio::test]
async fn a_status_tells_of_disk_clock_and_waiters() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let status = async || -> Result<v1::GetStatusResponse> {
        let mut operators = cluster.operators(0)?;
        let told = operators.get_status(v1::GetStatusRequest {}).await?;
        Ok(told.into_inner())
    };
    let mut leases = cluster.leases(0)?;
    let held = common::lease(
        leases
            .acquire_lease(common::acquire("inv-1", "ana"))
            .await?,
    )?;
    let waiting = v1::AcquireLeaseRequest {
        wait_ms: 60_000,
        ..common::acquire("inv-1", "ben")
    };
    let waiting = tokio::spawn(async move { leases.acquire_lease(waiting).await });
    common::until(|| async { Ok(status().await?.waiters == 1) }).await?;
    let told = status().await?;
    assert!(told.fsync_p50_us > 0, "{told:?}");
    assert!(told.fsync_p50_us <= told.fsync_p99_us, "{told:?}");
    assert!(told.data_bytes > 1_000, "{told:?}");
    assert!(told.first_log_index <= told.last_log_index, "{told:?}");
    let wall = told.wall_time.map(|time| time.seconds).unwrap_or_default();
    let here = std::time::UNIX_EPOCH.elapsed()?.as_secs();
    assert!(here.abs_diff(u64::try_from(wall)?) < 30, "{wall} at {here}");
    assert!(!told.wall_clock_alarm);
    cluster
        .leases(0)?
        .release_lease(common::release(&held))
        .await?;
    waiting.await??;
    assert_eq!(status().await?.waiters, 0);
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn one_call_too_many_is_refused_at_once_and_health_still_answers() -> Result<()> {
    let limits = ClientLimits {
        calls_max: 1,
        connections_max: 10,
        ..ClientLimits::default()
    };
    let cluster = Cluster::with_limits(1, limits).await?;
    // The watch takes no place; the open stream takes the only one.
    let (requests, stream) = tokio::sync::mpsc::channel(1);
    let mut leases = cluster.leases(0)?;
    let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
    let answers = leases.keep_alive(stream).await?;
    let status = leases
        .acquire_lease(acquire("inv-7", "ana"))
        .await
        .err()
        .context("let in")?;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(
        status.message().contains("more than 1 calls in flight"),
        "{}",
        status.message()
    );
    assert!(
        status.metadata().contains_key("billing-leader-id"),
        "even a refusal names the leader"
    );
    cluster.says(0, ServingStatus::Serving).await?;
    drop((requests, answers));
    common::until(|| async {
        Ok(cluster
            .leases(0)?
            .acquire_lease(acquire("inv-7", "ana"))
            .await
            .is_ok())
    })
    .await?;
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_call_that_outlasts_the_grace_is_cut_off_and_the_node_ends() -> Result<()> {
    let mut cluster = Cluster::start(1).await?;
    let (requests, stream) = tokio::sync::mpsc::channel(1);
    let mut invoices = cluster.invoices(0)?;
    let call = tokio::spawn(async move {
        let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
        invoices.submit_invoices(stream).await
    });
    requests
        .send(v1::SubmitInvoicesRequest {
            invoice: Some(invoice("inv-7", 100)),
        })
        .await?;
    let view = v1::GetInvoiceRequest {
        invoice_id: "inv-7".into(),
        stale_ok: false,
    };
    common::until(|| async { Ok(cluster.invoices(0)?.get_invoice(view.clone()).await.is_ok()) })
        .await?;
    let node = cluster.nodes.remove(0);
    let grace = std::time::Duration::from_millis(200);
    tokio::time::timeout(PATIENCE, node.finish(grace)).await?;
    drop(requests);
    // Whatever the call hears, it comes to an end.
    let _ = tokio::time::timeout(PATIENCE, call).await??;
    Ok(())
}

#[tokio::test]
async fn one_connection_too_many_is_closed_and_the_others_go_on() -> Result<()> {
    let limits = ClientLimits {
        calls_max: 100,
        connections_max: 1,
        ..ClientLimits::default()
    };
    let cluster = Cluster::with_limits(1, limits).await?;
    // The connections that asked for health are gone soon; their place is this one's.
    let mut first = cluster.leases(0)?;
    common::until(|| async {
        Ok(first
            .clone()
            .acquire_lease(acquire("a", "ana"))
            .await
            .is_ok())
    })
    .await?;
    let second = cluster.leases(0)?.acquire_lease(acquire("b", "ana")).await;
    assert!(second.is_err(), "{second:?}");
    first.acquire_lease(acquire("b", "ana")).await?;
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_message_beyond_the_bound_is_refused_unread() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let mut leases = cluster.leases(0)?;
    let huge = acquire("inv-7", &"x".repeat(5 << 20));
    let status = leases.acquire_lease(huge).await.err().context("taken")?;
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    leases.acquire_lease(acquire("inv-7", "ana")).await?;
    cluster.stop().await;
    Ok(())
}
