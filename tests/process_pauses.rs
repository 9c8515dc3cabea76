//! Real processes that stand still at the wrong moment: a leader past the lease that it believes in, a worker between two steps
//! of a charge past its session's TTL. Whoever wakes up is told that the world went on; the provider's books show one charge.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use billing_client::{AcquireOptions, Client, SessionOptions, v1};
use billing_demo::{
    books,
    harness::{Cluster, ClusterOptions, Process, Provider, Signal, Tap, Way, free_ports, until},
};
use billing_proto::v1::lease_service_client::LeaseServiceClient;
use tonic::transport::{Channel, Endpoint};

/// For what must happen; an idle machine needs a tenth of it.
const PATIENCE: Duration = Duration::from_secs(60);
/// Nothing ends by time where leases are only witnesses.
const LONG: Duration = Duration::from_secs(300);
const ROUNDS: usize = 2;
/// Over so long nobody may stand for election although everybody is there: several election timeouts.
const CALM_FOR: Duration = Duration::from_secs(3);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

async fn cluster(options: ClusterOptions) -> Result<(Cluster, Client)> {
    let mut cluster = Cluster::start(options)?;
    let client = Client::builder()
        .endpoints(cluster.endpoints())
        .deadline(PATIENCE)
        .build()?;
    cluster.led(&client, PATIENCE).await?;
    Ok((cluster, client))
}

/// Waits until all nodes follow one leader; who leads, and in which term.
async fn agreed(cluster: &mut Cluster, client: &Client) -> Result<(usize, u64)> {
    let mut found = (0, 0);
    until("all nodes follow one leader", PATIENCE, async || {
        cluster.all_running()?;
        let views = cluster.views(client).await;
        let mut told: Vec<_> = views
            .iter()
            .map(|view| view.as_ref().map(|view| (view.leader_id, view.term)))
            .collect();
        told.dedup();
        let &[Some((leader, term))] = told.as_slice() else {
            return Ok(false);
        };
        found = (usize::try_from(leader)?, term);
        Ok(leader != 0)
    })
    .await?;
    Ok(found)
}

async fn direct(address: &str) -> Result<LeaseServiceClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    Ok(LeaseServiceClient::new(endpoint.connect().await?))
}

#[tokio::test]
async fn a_leader_that_was_stopped_past_its_lease_answers_nothing_of_its_own() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (mut cluster, client) = cluster(ClusterOptions::new(folder.path())).await?;
    let ana = client
        .open_session(SessionOptions::new("ana", LONG))
        .await?;
    let ben = client
        .open_session(SessionOptions::new("ben", LONG))
        .await?;
    let (_, mut term) = agreed(&mut cluster, &client).await?;
    for round in 0..ROUNDS {
        let invoice = format!("inv-{round}");
        let held = ana.acquire(&invoice, AcquireOptions::default()).await?;
        let (old, before) = agreed(&mut cluster, &client).await?;
        ensure!(before >= term, "the term went back");
        // Connected while it is well, or its SIGSTOP would show before anything is asked.
        let mut reader = direct(&cluster.endpoint(old)).await?;
        let mut taker = direct(&cluster.endpoint(old)).await?;
        cluster.signal(old, Signal::STOP)?;

        // Asked while it stands still, so that these are the first words that it hears, and it still believes that it leads.
        let asked = v1::GetLeaseRequest {
            invoice_id: invoice.clone(),
            stale_ok: false,
        };
        let read = tokio::spawn(async move { reader.get_lease(asked).await });
        let wanted = v1::AcquireLeaseRequest {
            invoice_id: invoice.clone(),
            holder: "cem".to_owned(),
            ttl_ms: 60_000,
            request_id: vec![round as u8 + 1; 16],
            ..Default::default()
        };
        let take = tokio::spawn(async move { taker.acquire_lease(wanted).await });

        // Meanwhile the others go on without it, and the lease changes hands.
        let given_back = held.release().await.context("release while it stands")?;
        ensure!(given_back, "the lease stood");
        let next = ben
            .acquire(&invoice, AcquireOptions::wait(PATIENCE))
            .await
            .context("the others grant while it stands")?;
        let new = cluster.leader(&client).await;
        ensure!(new.is_some_and(|new| new != old), "{new:?} after {old}");
        ensure!(!read.is_finished() && !take.is_finished(), "it answered");
        cluster.signal(old, Signal::CONT)?;

        // A refusal is fine, and so is the truth. What it believed before it stopped is not.
        match tokio::time::timeout(PATIENCE, read).await?? {
            Ok(answer) => {
                let holder = answer.into_inner().lease.map(|lease| lease.holder);
                ensure!(holder.as_deref() == Some("ben"), "it read {holder:?}");
            }
            Err(status) => ensure!(!status.message().is_empty(), "{status}"),
        }
        if let Ok(granted) = tokio::time::timeout(PATIENCE, take).await?? {
            bail!("it granted what ben holds: {granted:?}");
        }
        ensure!(next.is_valid(), "ben's lease stands");
        let found = client.get_lease(&invoice, false).await?;
        ensure!(found.map(|lease| lease.token) == Some(next.token().0));
        next.release().await?;

        // It comes back as a follower, and then nobody stands for election any more.
        let (_, settled) = agreed(&mut cluster, &client).await?;
        ensure!(settled > before, "nobody was elected: {settled}");
        let deadline = tokio::time::Instant::now() + CALM_FOR;
        let mut calm = settled;
        while tokio::time::Instant::now() < deadline {
            (_, calm) = agreed(&mut cluster, &client).await?;
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        // One more is a crowded machine's; a node that disturbs the others makes several.
        ensure!(
            calm <= settled + 1,
            "elections without end: {settled}, {calm}"
        );
        term = calm;
    }
    cluster.stop().await
}

/// Where a worker stands still, and from which words on its network does.
struct Stop {
    name: &'static str,
    /// What the network holds: the way to the provider, or to the cluster.
    of_provider: bool,
    way: Way,
    words: &'static str,
    /// What the ledger and the provider say of the invoice then.
    status: v1::InvoiceStatus,
    charged: usize,
    object: bool,
}

const STOPS: [Stop; 4] = [
    Stop {
        name: "before-begin",
        of_provider: false,
        way: Way::There,
        // Nothing that a worker says before BeginCharge names an invoice: it claims what is due.
        words: "inv-before-begin",
        status: v1::InvoiceStatus::Processing,
        charged: 0,
        object: false,
    },
    Stop {
        name: "before-create",
        of_provider: true,
        way: Way::There,
        words: "POST /v1/payment_intents",
        status: v1::InvoiceStatus::Charging,
        charged: 0,
        object: false,
    },
    Stop {
        name: "before-confirm",
        of_provider: true,
        way: Way::There,
        words: "/confirm",
        status: v1::InvoiceStatus::Charging,
        charged: 0,
        object: true,
    },
    Stop {
        name: "before-settle",
        of_provider: true,
        way: Way::Back,
        words: "\"succeeded\"",
        status: v1::InvoiceStatus::Charging,
        charged: 1,
        object: true,
    },
];

async fn ends_well(worker: &mut Process) -> Result<()> {
    let status = worker.ended(PATIENCE).await?;
    ensure!(
        status.is_some_and(|status| status.success()),
        "{} ended with {status:?}:\n{}",
        worker.name(),
        worker.last_words(20)
    );
    Ok(())
}

#[tokio::test]
async fn a_worker_that_stood_still_between_two_steps_changes_nothing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut options = ClusterOptions::new(folder.path().join("nodes"));
    options.ports = free_ports(options.nodes * 2)?;
    let listening = options.ports[..options.nodes].iter();
    let listening: Vec<_> = listening.map(|port| format!("127.0.0.1:{port}")).collect();
    // In front of the nodes for as long as they run: whoever leads names its own front.
    let nodes = Tap::before(&listening).await?;
    options.fronts = nodes.addresses().to_vec();
    let (mut cluster, client) = cluster(options).await?;
    let provider = Provider::start(folder.path(), &[]).await?;
    let till = Tap::before(&[provider.address().to_owned()]).await?;
    for (nth, stop) in STOPS.iter().enumerate() {
        one_stop((&nodes, &till), &client, &provider, nth, stop)
            .await
            .with_context(|| stop.name)?;
    }
    let result = books::compare(&books::ledger(&client).await?, &provider.books().await?);
    ensure!(result.holds() && result.paid == STOPS.len(), "{result:?}");
    cluster.stop().await
}

async fn one_stop(
    (nodes, till): (&Tap, &Tap),
    client: &Client,
    provider: &Provider,
    nth: usize,
    stop: &Stop,
) -> Result<()> {
    const FLAGS: [&str; 3] = ["--until-empty", "--session-ttl", "2s"];
    let invoice = format!("inv-{}", stop.name);
    let held = if stop.of_provider { till } else { nodes };
    let submitted = v1::Invoice {
        invoice_id: invoice.clone(),
        customer_id: "cus-1".to_owned(),
        amount_minor: 1_500,
        currency: "EUR".to_owned(),
        ..Default::default()
    };
    client.submit_invoices([submitted], |_| {}).await?;
    // From here on: we name the invoice too.
    held.hold_from(stop.way, stop.words.as_bytes());
    let stopped = format!("stopped-{}", stop.name);
    let through = till.addresses().first().map(String::as_str);
    let mut worker = provider.worker(&stopped, nodes.addresses(), through, &FLAGS)?;
    until("the worker is where it shall stop", PATIENCE, async || {
        ensure!(worker.exited()?.is_none(), "{}", worker.last_words(20));
        Ok(held.holds())
    })
    .await?;
    worker.signal(Signal::STOP)?;
    let found = client.get_invoice(&invoice, false).await?;
    ensure!(found.status() == stop.status, "{found:?}");
    ensure!(
        provider.charged().await? == nth + stop.charged,
        "nobody else was charged"
    );
    let first = found.open_attempt;
    let objects = first.iter().any(|open| !open.provider_object.is_empty());
    ensure!(objects == stop.object, "{first:?}");

    // Its session ends, and another worker gets the invoice.
    let successor = format!("successor-{}", stop.name);
    let mut next = provider.worker(&successor, nodes.addresses(), None, &FLAGS)?;
    ends_well(&mut next).await?;
    let paid = client.get_invoice(&invoice, false).await?;
    ensure!(paid.status() == v1::InvoiceStatus::Paid, "{paid:?}");
    ensure!(paid.attempts == 1, "it was one attempt: {paid:?}");
    if let Some(first) = first.filter(|open| !open.provider_object.is_empty()) {
        ensure!(
            paid.charge_reference == first.provider_object,
            "the successor went on with another object: {paid:?}"
        );
    }

    // What was under way arrives, and whoever sent it wakes up.
    held.let_go();
    worker.signal(Signal::CONT)?;
    ends_well(&mut worker).await?;
    let log = std::fs::read_to_string(worker.log().context("it has a log")?)?;
    ensure!(
        log.contains("session lost; opening another"),
        "it never noticed:\n{log}"
    );
    let after = client.get_invoice(&invoice, false).await?;
    ensure!(
        after.status() == v1::InvoiceStatus::Paid
            && after.attempts == 1
            && after.charge_reference == paid.charge_reference,
        "the late words changed it: {after:?}"
    );
    ensure!(
        provider.charged().await? == nth + 1,
        "one more invoice was charged"
    );
    Ok(())
}
