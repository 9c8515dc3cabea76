//! Nodes and workers of a charge run that are killed again and again, at moments that nobody chose, and a whole cluster that is
//! down for longer than the provider remembers its keys. The ledger and the provider's own books must tell one story.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use billing_client::{AcquireOptions, Client, Failure, SessionOptions, v1};
use billing_demo::{
    books,
    harness::{Cluster, ClusterOptions, Process, Provider, Signal, Tap, Way, until},
};
use billing_env::Env;

/// For what must happen; an idle machine needs a tenth of it.
const PATIENCE: Duration = Duration::from_secs(120);
const NODES: usize = 3;

async fn submit(client: &Client, count: usize) -> Result<()> {
    let invoice = |number: usize| v1::Invoice {
        invoice_id: format!("inv-{number}"),
        customer_id: "cus-1".to_owned(),
        amount_minor: 1_000 + number as i64,
        currency: "EUR".to_owned(),
        ..Default::default()
    };
    let submitted = client
        .submit_invoices((0..count).map(invoice), |_| {})
        .await?;
    ensure!(submitted.submitted == count as u64, "{submitted:?}");
    Ok(())
}

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

/// A number below `bound`, by the system's chance.
fn drawn(bound: u64) -> u64 {
    Env::real().random.next_u64() % bound
}

#[tokio::test]
async fn a_charge_run_under_kills_of_everybody_charges_each_invoice_once() -> Result<()> {
    const INVOICES: usize = 240;
    const ROUNDS: usize = 8;
    const FLAGS: [&str; 3] = ["--until-empty", "--session-ttl", "2s"];
    let folder = tempfile::tempdir()?;
    let mut options = ClusterOptions::new(folder.path().join("nodes"));
    // Often enough that nodes are killed between a snapshot and its purge, too.
    options.flags = ["--snapshot-every", "150"].map(str::to_owned).to_vec();
    let mut cluster = Cluster::start(options)?;
    let client = Client::builder()
        .endpoints(cluster.endpoints())
        .deadline(PATIENCE)
        .build()?;
    cluster.led(&client, PATIENCE).await?;
    let faults = ["--delay-ms", "20..120", "--lose-reply-every", "11"];
    let provider = Provider::start(folder.path(), &faults).await?;
    submit(&client, INVOICES).await?;
    let endpoints = cluster.endpoints();
    let mut workers = Vec::new();
    for number in 0..2 {
        workers.push(provider.worker(&format!("worker-{number}"), &endpoints, None, &FLAGS)?);
    }
    for round in 0..ROUNDS {
        // A moment is what is tested here: anything between two writes may be cut off.
        tokio::time::sleep(Duration::from_millis(drawn(400))).await;
        let first = 1 + drawn(NODES as u64) as usize;
        // One, two, or all of them.
        let count = [1, 1, 2, NODES][drawn(4) as usize];
        let fallen: Vec<usize> = (0..count)
            .map(|nth| (first - 1 + nth) % NODES + 1)
            .collect();
        let mut said = format!("round {round}: killed nodes {fallen:?}");
        for &id in &fallen {
            cluster.kill(id)?;
        }
        if drawn(3) == 0 {
            let which = drawn(workers.len() as u64) as usize;
            // It may have found nothing left to do.
            if workers[which].exited()?.is_none() {
                workers[which].kill()?;
            }
            said += &format!(", worker {which}");
            let name = format!("worker-{}", round + 2);
            workers[which] = provider.worker(&name, &endpoints, None, &FLAGS)?;
        }
        println!("{said}");
        tokio::time::sleep(Duration::from_millis(drawn(600))).await;
        for &id in &fallen {
            cluster.start_node(id, false)?;
        }
        cluster.led(&client, PATIENCE).await?;
        provider.charged().await?;
    }
    for worker in &mut workers {
        ends_well(worker).await?;
    }
    cluster.all_running()?;
    let result = books::compare(&books::ledger(&client).await?, &provider.books().await?);
    ensure!(result.holds() && result.paid == INVOICES, "{result:?}");
    ensure!(client.status().await?.charge_alarms == 0, "an alarm");
    cluster.stop().await
}

/// What the provider of these tests promises: everything in seconds.
const PROFILES: &str = r#"
[stripe]
as_of = "2026-11-26"
sources = []
api_version = "2024-06-20"
key_retention = "6s"
sticky_declines = true
stored_errors = true
api = "payment_intents"
single_use_object = true
look_up = true
look_up_lag = "0s"
in_flight_max = "2s"
valid_for = "2s"
cancel = true
request_timeout = "2s"
pending_every = "1h"
amount_max = 99999999
"#;

/// The retention of `PROFILES` and the sandbox, and a little.
const DOWN_FOR: Duration = Duration::from_secs(7);

/// A worker stands still and the cluster is lost while the network holds what is said this way, until the key is forgotten.
async fn down_past_the_retention(way: Way, words: &str, sent: bool) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let profiles = folder.path().join("profiles.toml");
    fs::write(&profiles, PROFILES)?;
    let profiles = profiles.to_str().context("a path in UTF-8")?;
    let flags = [
        "--until-empty",
        "--session-ttl",
        "2s",
        "--profiles",
        profiles,
    ];
    let mut cluster = Cluster::start(ClusterOptions::new(folder.path().join("nodes")))?;
    let client = Client::builder()
        .endpoints(cluster.endpoints())
        .deadline(PATIENCE)
        .build()?;
    cluster.led(&client, PATIENCE).await?;
    let provider = Provider::start(folder.path(), &["--key-retention", "6s"]).await?;
    let endpoints = cluster.endpoints();
    let till = Tap::before(&[provider.address().to_owned()]).await?;
    submit(&client, 2).await?;

    // People charge the other one, and nobody can ask them.
    let people = SessionOptions::new("people", Duration::from_secs(2));
    let people = client.open_session(people).await?;
    let lease = people.acquire("inv-1", AcquireOptions::default()).await?;
    let terms = v1::ChargeTerms {
        provider: "people".to_owned(),
        account: "desk".to_owned(),
        live: false,
        fingerprint: vec![1],
        valid_for_ms: 1_000,
        in_flight_max_ms: 1_000,
        can_look_up: false,
        sticky: false,
    };
    client
        .begin_charge("inv-1", lease.token(), Some(terms.clone()))
        .await?;

    till.hold_from(way, words.as_bytes());
    let through = till.addresses().first().map(String::as_str);
    let mut worker = provider.worker("still", &endpoints, through, &flags)?;
    until("the worker waits for its provider", PATIENCE, async || {
        ensure!(worker.exited()?.is_none(), "{}", worker.last_words(20));
        Ok(till.holds())
    })
    .await?;
    let open = client.get_invoice("inv-0", false).await?.open_attempt;
    let object = open.context("an attempt is open")?.provider_object;
    ensure!(!object.is_empty() && provider.charged().await? == usize::from(sent));
    // Stopped, not killed: what it has said stays under way.
    worker.signal(Signal::STOP)?;
    for id in 1..=NODES {
        cluster.kill(id)?;
    }
    tokio::time::sleep(DOWN_FOR).await; // The outage itself.
    for id in 1..=NODES {
        cluster.start_node(id, false)?;
    }
    cluster.led(&client, PATIENCE).await?;

    let mut next = provider.worker("next", &endpoints, None, &flags[1..])?;
    until("its attempt has ended", PATIENCE, async || {
        ensure!(next.exited()?.is_none(), "{}", next.last_words(20));
        let found = client.get_invoice("inv-0", false).await?;
        let lease = found.lease.is_some() || found.open_attempt.is_some();
        Ok(!lease && found.status() != v1::InvoiceStatus::InDoubt)
    })
    .await?;
    let ended = client.get_invoice("inv-0", false).await?;
    ensure!(ended.attempts == 1, "{ended:?}");
    if sent {
        ensure!(
            ended.status() == v1::InvoiceStatus::Paid && ended.charge_reference == object,
            "{ended:?}"
        );
    } else {
        // Found unsent, and to be tried again in a minute under a key of its own.
        ensure!(
            ended.status() == v1::InvoiceStatus::Pending && provider.charged().await? == 0,
            "{ended:?}"
        );
    }
    until("inv-1 is before a person", PATIENCE, async || {
        let found = client.get_invoice("inv-1", false).await?;
        Ok(found.status() == v1::InvoiceStatus::Review)
    })
    .await?;
    let again = people_again(&client, terms).await;
    ensure!(matches!(again, Err(Failure::Rejected(_))), "{again:?}");
    next.stop(PATIENCE).await?;
    // What the first worker had said arrives last of all: its object takes one charge, however late.
    till.let_go();
    until("it was charged once", PATIENCE, async || {
        Ok(provider.charged().await? == 1)
    })
    .await?;
    cluster.stop().await
}

/// Nobody gets to charge what is before a person.
async fn people_again(client: &Client, terms: v1::ChargeTerms) -> Result<(), Failure> {
    let lease = client
        .acquire(
            "inv-1",
            "people",
            AcquireOptions::default().ttl(Duration::from_secs(2)),
        )
        .await?;
    client
        .begin_charge("inv-1", lease.token(), Some(terms))
        .await
        .map(|_| ())
}

#[tokio::test]
async fn what_was_charged_unheard_is_looked_up_after_an_outage_past_the_key_retention() -> Result<()>
{
    down_past_the_retention(Way::Back, "\"succeeded\"", true).await
}

#[tokio::test]
async fn what_was_not_sent_is_not_sent_under_its_key_after_an_outage_past_the_key_retention()
-> Result<()> {
    down_past_the_retention(Way::There, "/confirm", false).await
}
