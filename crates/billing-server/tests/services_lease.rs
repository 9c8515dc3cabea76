//! LeaseService over the wire: each method, what it refuses and with which facts.

mod common;

use anyhow::{Context, Result};
use billing_core::Rejection;
use billing_proto::v1;
use common::{Cluster, acquire, lease, out_of_bounds, refused, release};
use tonic::Code;

fn session(id: u8, holder: &str) -> v1::OpenSessionRequest {
    v1::OpenSessionRequest {
        session_id: vec![id; 16],
        holder: holder.into(),
        ttl_ms: 30_000,
    }
}

fn in_session(id: u8, seq: u64, invoice: &str) -> v1::AcquireLeaseRequest {
    v1::AcquireLeaseRequest {
        invoice_id: invoice.into(),
        session_id: vec![id; 16],
        seq,
        ..Default::default()
    }
}

#[tokio::test]
async fn a_plain_client_needs_two_calls_and_everybody_else_is_told_who_holds_it() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let mut leases = cluster.leases(0)?;
    let granted = lease(leases.acquire_lease(acquire("inv-7", "ana")).await?)?;
    assert_eq!(granted.holder, "ana");
    assert_eq!(granted.session_id.len(), 16, "the server drew an id");
    assert!(granted.expires_in_ms > 0 && granted.expires_in_ms <= 30_000);

    match refused(
        leases.acquire_lease(acquire("inv-7", "ben")).await,
        Code::Aborted,
    ) {
        Rejection::HeldByOther {
            invoice,
            holder,
            expires_in_ms,
        } => {
            assert_eq!((invoice.as_str(), holder.as_str()), ("inv-7", "ana"));
            assert!(expires_in_ms > 0);
        }
        other => panic!("{other:?}"),
    }
    let seen = leases
        .get_lease(v1::GetLeaseRequest {
            invoice_id: "inv-7".into(),
            stale_ok: false,
        })
        .await?
        .into_inner();
    assert_eq!(seen.lease.context("held")?.token, granted.token);
    assert!(seen.applied_index > 0);

    assert!(
        leases
            .release_lease(release(&granted))
            .await?
            .get_ref()
            .was_current
    );
    assert!(
        !leases
            .release_lease(release(&granted))
            .await?
            .get_ref()
            .was_current
    );
    let next = lease(leases.acquire_lease(acquire("inv-7", "ben")).await?)?;
    assert!(next.token > granted.token, "tokens only grow");
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn the_same_request_id_is_the_same_lease_and_never_a_second_one() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let mut leases = cluster.leases(0)?;
    let request = v1::AcquireLeaseRequest {
        request_id: vec![7; 16],
        ..acquire("inv-7", "ana")
    };
    let first = lease(leases.acquire_lease(request.clone()).await?)?;
    let again = lease(leases.acquire_lease(request.clone()).await?)?;
    assert_eq!(first.token, again.token);
    leases.release_lease(release(&first)).await?;
    let late = refused(
        leases.acquire_lease(request).await,
        Code::FailedPrecondition,
    );
    assert!(matches!(late, Rejection::LeaseEnded { .. }), "{late:?}");
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_session_lives_while_it_is_kept_alive_and_takes_its_leases_along() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let mut leases = cluster.leases(0)?;
    let opened = leases
        .open_session(session(1, "ana"))
        .await?
        .into_inner()
        .session
        .context("session")?;
    assert_eq!((opened.holder.as_str(), opened.ttl_ms), ("ana", 30_000));
    let drawn = v1::OpenSessionRequest {
        session_id: Vec::new(),
        ..session(0, "ben")
    };
    let drawn = leases
        .open_session(drawn)
        .await?
        .into_inner()
        .session
        .context("session")?;
    assert_eq!(drawn.session_id.len(), 16, "the server drew an id");

    let granted = lease(leases.acquire_lease(in_session(1, 1, "inv-1")).await?)?;
    // Another request of the same session is refused like anybody else's: two threads of one process exclude each other.
    let other = refused(
        leases.acquire_lease(in_session(1, 2, "inv-1")).await,
        Code::Aborted,
    );
    assert!(matches!(other, Rejection::HeldByOther { .. }), "{other:?}");
    let reused = refused(
        leases.acquire_lease(in_session(1, 1, "inv-2")).await,
        Code::InvalidArgument,
    );
    assert!(matches!(reused, Rejection::SeqReused { .. }), "{reused:?}");

    let renew = v1::RenewLeaseRequest {
        invoice_id: "inv-1".into(),
        token: granted.token,
        ttl_ms: 5_000,
    };
    let renewed = leases
        .renew_lease(renew.clone())
        .await?
        .into_inner()
        .lease
        .context("lease")?;
    assert!(
        renewed.expires_in_ms <= 5_000,
        "its own ttl is the shorter one"
    );
    let stale = v1::RenewLeaseRequest {
        token: granted.token + 1_000,
        ..renew
    };
    let stale = refused(leases.renew_lease(stale).await, Code::FailedPrecondition);
    assert!(matches!(stale, Rejection::StaleToken { .. }), "{stale:?}");

    let close = v1::CloseSessionRequest {
        session_id: vec![1; 16],
    };
    assert!(
        leases
            .close_session(close.clone())
            .await?
            .get_ref()
            .was_open
    );
    assert!(!leases.close_session(close).await?.get_ref().was_open);
    let freed = v1::GetLeaseRequest {
        invoice_id: "inv-1".into(),
        stale_ok: false,
    };
    assert!(leases.get_lease(freed).await?.get_ref().lease.is_none());
    let ended = refused(
        leases.open_session(session(1, "ana")).await,
        Code::FailedPrecondition,
    );
    assert!(matches!(ended, Rejection::SessionEnded { .. }), "{ended:?}");
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn many_sessions_share_a_keep_alive_stream_and_answers_name_their_tag() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let mut leases = cluster.leases(0)?;
    for id in [1, 2] {
        leases.open_session(session(id, "ana")).await?;
    }
    let requests = [
        (11, vec![1; 16]),
        (12, vec![9; 16]),
        (13, vec![2; 16]),
        (14, vec![1; 3]),
    ]
    .map(|(tag, session_id)| v1::KeepAliveRequest { tag, session_id });
    let mut answers = leases
        .keep_alive(futures::stream::iter(requests))
        .await?
        .into_inner();
    let mut heard = Vec::new();
    while let Some(answer) = answers.message().await? {
        let word = match answer.result.context("a result")? {
            v1::keep_alive_response::Result::Session(kept) => kept.holder,
            v1::keep_alive_response::Result::Error(error) => {
                assert!(error.rejection.is_some(), "{error:?}");
                format!("{:?}", Code::from(error.code))
            }
        };
        heard.push((answer.tag, word));
    }
    let expected = [
        (11, "ana"),
        (12, "NotFound"),
        (13, "ana"),
        (14, "InvalidArgument"),
    ];
    assert_eq!(heard, expected.map(|(tag, word)| (tag, word.to_owned())));
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_batch_gives_a_result_per_item_in_order() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let mut leases = cluster.leases(0)?;
    let items = vec![
        acquire("a", "ana"),
        acquire("a", "ben"),
        acquire("", "ana"),
        acquire("b", "ana"),
    ];
    let answer = leases
        .acquire_leases(v1::AcquireLeasesRequest { items })
        .await?
        .into_inner();
    let mut granted = Vec::new();
    let words: Vec<String> = answer
        .items
        .into_iter()
        .map(|item| match item.result {
            Some(v1::acquire_leases_response::item::Result::Granted(grant)) => {
                granted.extend(grant.lease);
                "granted".to_owned()
            }
            Some(v1::acquire_leases_response::item::Result::Error(error)) => {
                format!("{:?}", Code::from(error.code))
            }
            None => "nothing".to_owned(),
        })
        .collect();
    assert_eq!(words, ["granted", "Aborted", "InvalidArgument", "granted"]);

    let renew = |lease: &v1::Lease, more| v1::RenewLeaseRequest {
        invoice_id: lease.invoice_id.clone(),
        token: lease.token + more,
        ttl_ms: 20_000,
    };
    let items = vec![renew(&granted[0], 0), renew(&granted[1], 1_000)];
    let answer = leases
        .renew_leases(v1::RenewLeasesRequest { items })
        .await?
        .into_inner();
    use v1::renew_leases_response::item::Result as Renewed;
    assert!(matches!(&answer.items[0].result, Some(Renewed::Renewed(r)) if r.lease.is_some()));
    assert!(matches!(&answer.items[1].result, Some(Renewed::Error(e)) if e.rejection.is_some()));

    let items = granted
        .iter()
        .map(release)
        .chain([v1::ReleaseLeaseRequest::default()])
        .collect();
    let answer = leases
        .release_leases(v1::ReleaseLeasesRequest { items })
        .await?
        .into_inner();
    use v1::release_leases_response::item::Result as Released;
    assert!(matches!(&answer.items[0].result, Some(Released::Released(r)) if r.was_current));
    assert!(matches!(&answer.items[1].result, Some(Released::Released(r)) if r.was_current));
    assert!(
        matches!(&answer.items[2].result, Some(Released::Error(e)) if e.code == Code::InvalidArgument as i32)
    );

    let items = (0..1_001).map(|_| acquire("a", "ana")).collect();
    out_of_bounds(
        leases
            .acquire_leases(v1::AcquireLeasesRequest { items })
            .await,
        "items",
    );
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn leases_are_listed_in_pages_and_by_holder() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let mut leases = cluster.leases(0)?;
    let items = (0..25)
        .map(|n| {
            acquire(
                &format!("inv-{n:02}"),
                if n % 5 == 0 { "ana" } else { "ben" },
            )
        })
        .collect();
    leases
        .acquire_leases(v1::AcquireLeasesRequest { items })
        .await?;
    let mut all = Vec::new();
    let mut ask = v1::ListLeasesRequest {
        page_size: 10,
        ..Default::default()
    };
    loop {
        let page = leases.list_leases(ask.clone()).await?.into_inner();
        assert!(page.leases.len() <= 10);
        all.extend(page.leases.into_iter().map(|lease| lease.invoice_id));
        if page.next_page_token.is_empty() {
            break;
        }
        ask.page_token = page.next_page_token;
    }
    let expected: Vec<String> = (0..25).map(|n| format!("inv-{n:02}")).collect();
    assert_eq!(all, expected);
    // A page smaller than the gaps between the rows that fit.
    let anas = v1::ListLeasesRequest {
        holder: "ana".into(),
        page_size: 3,
        ..Default::default()
    };
    let page = leases.list_leases(anas.clone()).await?.into_inner();
    let ids = |leases: Vec<v1::Lease>| {
        leases
            .into_iter()
            .map(|lease| lease.invoice_id)
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(page.leases), ["inv-00", "inv-05", "inv-10"]);
    let rest = v1::ListLeasesRequest {
        page_token: page.next_page_token,
        ..anas
    };
    let rest = leases.list_leases(rest).await?.into_inner();
    assert_eq!(ids(rest.leases), ["inv-15", "inv-20"]);
    assert!(rest.next_page_token.is_empty());
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn every_bound_is_refused_by_field_and_bound() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let mut leases = cluster.leases(0)?;
    let good = acquire("inv-1", "ana");
    let wrong = |field: &'static str, change: fn(&mut v1::AcquireLeaseRequest)| {
        let mut request = good.clone();
        change(&mut request);
        (field, request)
    };
    let cases = [
        wrong("invoice_id", |r| r.invoice_id.clear()),
        wrong("invoice_id", |r| r.invoice_id = "x".repeat(129)),
        wrong("invoice_id", |r| r.invoice_id = "a b".into()),
        wrong("invoice_id", |r| r.invoice_id = "ü".into()),
        wrong("holder", |r| r.holder.clear()),
        wrong("holder", |r| r.holder = "x".repeat(129)),
        wrong("holder", |r| r.holder = "a\nb".into()),
        wrong("ttl_ms", |r| r.ttl_ms = 999),
        wrong("ttl_ms", |r| r.ttl_ms = 0),
        wrong("ttl_ms", |r| r.ttl_ms = 300_001),
        wrong("wait_ms", |r| r.wait_ms = 300_001),
        wrong("request_id", |r| r.request_id = vec![1; 15]),
        wrong("session_id", |r| r.session_id = vec![1; 17]),
        wrong("seq", |r| r.session_id = vec![1; 16]),
    ];
    for (field, request) in cases {
        out_of_bounds(leases.acquire_lease(request).await, field);
    }
    out_of_bounds(
        leases
            .open_session(v1::OpenSessionRequest {
                ttl_ms: 1,
                ..session(1, "ana")
            })
            .await,
        "ttl_ms",
    );
    out_of_bounds(
        leases
            .release_lease(v1::ReleaseLeaseRequest::default())
            .await,
        "invoice_id",
    );
    let no_token = v1::ReleaseLeaseRequest {
        invoice_id: "a".into(),
        ..Default::default()
    };
    out_of_bounds(leases.release_lease(no_token).await, "token");
    let page = v1::ListLeasesRequest {
        page_size: 1_001,
        ..Default::default()
    };
    out_of_bounds(leases.list_leases(page).await, "page_size");
    let page = v1::ListLeasesRequest {
        page_token: "?".into(),
        ..Default::default()
    };
    out_of_bounds(leases.list_leases(page).await, "page_token");
    cluster.stop().await;
    Ok(())
}
