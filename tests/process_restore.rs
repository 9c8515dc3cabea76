//! The worst day: all nodes and their disks are lost in the middle of a charge run, and the cluster comes back out of a backup
//! that is older than the last charges. Real processes; the provider's own books say who was charged.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output as Ended},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use billing_client::{AcquireOptions, Client, Failure, Rejection, v1};
use billing_demo::{
    books,
    harness::{Cluster, ClusterOptions, Output, Process, binary},
};

const INVOICES: usize = 150;
const LED_WITHIN: Duration = Duration::from_secs(30);
const ENDS_WITHIN: Duration = Duration::from_secs(120);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// The ledger's longest TTL, and the workers': how long a restored cluster grants nothing.
const TTL: Duration = Duration::from_secs(2);
/// Of nodes that are made one by one.
const RESTORE_ID: &str = "00000000000000f1";
/// No reply of the sandbox takes longer than it is told to, by far.
const QUIET_FOR: Duration = Duration::from_secs(1);

/// A provider that outlives every cluster.
struct Provider {
    _process: Process,
    address: String,
}

impl Provider {
    async fn start(folder: &Path) -> Result<Provider> {
        let port_file = folder.join("sandbox.address");
        let mut command = Command::new(binary("billing-sandbox")?);
        command
            .args(["--listen", "127.0.0.1:0", "--delay-ms", "20..80"])
            .arg("--port-file")
            .arg(&port_file);
        let output = Output::File(folder.join("sandbox.log"));
        let process = Process::start("sandbox", command, &output)?;
        let mut address = String::new();
        until("the sandbox listens", LED_WITHIN, async || {
            address = fs::read_to_string(&port_file).unwrap_or_default();
            Ok(!address.trim().is_empty())
        })
        .await?;
        Ok(Provider {
            _process: process,
            address: address.trim().to_owned(),
        })
    }

    /// How many invoices were charged; never one of them twice.
    async fn charged(&self) -> Result<usize> {
        let mut charged = 0;
        for (invoice, rows) in books::ask(&self.address).await?.invoices {
            let succeeded = rows.iter().filter(|row| row.3 == "succeeded").count();
            ensure!(
                succeeded <= 1,
                "{invoice} was charged {succeeded} times: {rows:?}"
            );
            charged += succeeded;
        }
        Ok(charged)
    }

    async fn await_charged(&self, at_least: usize) -> Result<()> {
        until(&format!("{at_least} charged"), ENDS_WITHIN, async || {
            Ok(self.charged().await? >= at_least)
        })
        .await
    }
}

async fn until(
    what: &str,
    at_most: Duration,
    mut there: impl AsyncFnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = tokio::time::Instant::now() + at_most;
    while !there().await? {
        ensure!(
            tokio::time::Instant::now() < deadline,
            "waited in vain: {what}"
        );
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

fn billingctl(arguments: &[&str]) -> Result<Ended> {
    let command = Command::new(binary("billingctl")?).args(arguments).output();
    command.context("billingctl")
}

/// What it printed, or what it said about not doing it.
fn done(ended: Ended) -> Result<String> {
    ensure!(
        ended.status.success(),
        "{}: {}",
        ended.status,
        String::from_utf8_lossy(&ended.stderr)
    );
    Ok(String::from_utf8(ended.stdout)?)
}

fn worker(
    cluster: &Cluster,
    provider: &Provider,
    folder: &Path,
    name: &str,
    flags: &[&str],
) -> Result<Process> {
    let mut command = Command::new(binary("billing-worker")?);
    command
        .args(["--endpoints", &cluster.endpoints().join(",")])
        .args(["--provider-url", &format!("http://{}", provider.address)])
        .args(["--holder", name, "--session-ttl", "2s"])
        .args(flags)
        .env("BILLING_PROVIDER_KEY", "sk_test_drill");
    let log = folder.join(format!("{name}.log"));
    Process::start(name, command, &Output::File(log))
}

async fn found(folder: PathBuf) -> Result<(Cluster, Client)> {
    let mut options = ClusterOptions::new(folder);
    options.founding_flags = vec!["--ttl-max".to_owned(), "2s".to_owned()];
    let mut cluster = Cluster::start(options)?;
    let client = Client::builder().endpoints(cluster.endpoints()).build()?;
    cluster.led(&client, LED_WITHIN).await?;
    Ok((cluster, client))
}

async fn submit(client: &Client, count: usize) -> Result<()> {
    let invoices = (0..count).map(|number| v1::Invoice {
        invoice_id: format!("inv-{number}"),
        customer_id: "solvent".to_owned(),
        amount_minor: 1_000 + number as i64,
        currency: "EUR".to_owned(),
        ..Default::default()
    });
    let submitted = client.submit_invoices(invoices, |_| {}).await?;
    ensure!(submitted.submitted == count as u64, "{submitted:?}");
    Ok(())
}

/// Kills every node and deletes what it knew.
fn lose(mut cluster: Cluster) -> Result<()> {
    for node in 1..=3 {
        cluster.kill(node)?;
        fs::remove_dir_all(cluster.data(node))?;
    }
    Ok(())
}

/// Where a cluster stood.
struct Place {
    ports: Vec<u16>,
    peers: String,
}

impl Place {
    fn of(cluster: &Cluster) -> Place {
        Place {
            ports: cluster.ports(),
            peers: cluster.peers(),
        }
    }

    /// Makes a cluster here out of `backup`, and waits until it serves.
    async fn restore(&self, backup: &str, folder: PathBuf) -> Result<(Cluster, Client)> {
        let mut options = ClusterOptions::new(folder);
        options.ports = self.ports.clone();
        let mut arguments = vec![
            "cluster".to_owned(),
            "restore".to_owned(),
            backup.to_owned(),
        ];
        arguments.extend(["--peers".to_owned(), self.peers.clone()]);
        for node in 1..=3 {
            let data = options.folder.join(format!("node-{node}"));
            arguments.extend(["--node".to_owned(), format!("{node}={}", data.display())]);
        }
        fs::create_dir_all(&options.folder)?;
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        done(billingctl(&arguments)?)?;
        let mut cluster = Cluster::start(options)?;
        let client = Client::builder().endpoints(cluster.endpoints()).build()?;
        cluster.led(&client, LED_WITHIN).await?;
        Ok((cluster, client))
    }
}

async fn probe(client: &Client) -> Result<u64, Failure> {
    let guard = client
        .acquire("probe", "drill", AcquireOptions::default().ttl(TTL))
        .await?;
    let token = guard.token();
    guard.release().await?;
    Ok(token.0)
}

/// The first token that a restored cluster grants, once it grants any.
async fn first_token(client: &Client) -> Result<u64> {
    let mut token = 0;
    until("leases are granted again", LED_WITHIN, async || {
        match probe(client).await {
            Ok(granted) => token = granted,
            Err(Failure::Rejected(Rejection::GrantsNotYet { in_ms })) => {
                ensure!(in_ms <= TTL.as_millis() as u64, "waits for {in_ms} ms");
            }
            Err(other) => return Err(other.into()),
        }
        Ok(token > 0)
    })
    .await?;
    Ok(token)
}

/// Nothing begins and nothing continues before an operator says so.
async fn charges_are_refused(client: &Client) -> Result<()> {
    let mut tried = 0;
    for number in 0..INVOICES {
        let invoice = format!("inv-{number}");
        // Those that were paid, or wait for their next try, are nobody's to lease.
        let Ok(guard) = client
            .acquire(&invoice, "hasty", AcquireOptions::default().ttl(TTL))
            .await
        else {
            continue;
        };
        let refused = client
            .begin_charge(&invoice, guard.token(), None)
            .await
            .err();
        ensure!(
            matches!(
                &refused,
                Some(Failure::Rejected(Rejection::ChargesNotAllowed))
            ),
            "{invoice}: {refused:?}"
        );
        guard.release().await?;
        tried += 1;
    }
    ensure!(tried > INVOICES / 2, "only {tried} could be tried");
    Ok(())
}

/// What the rules ask of an operator: nothing can be on its way any more, and the books were looked into.
async fn allow(client: &Client, provider: &Provider, endpoints: &str) -> Result<()> {
    let before = provider.charged().await?;
    tokio::time::sleep(QUIET_FOR).await; // No process that could send lives; what was sent has arrived.
    let after = provider.charged().await?;
    ensure!(
        before == after,
        "the provider's books still move: {before}, {after}"
    );
    ensure!(
        !client.status().await?.charges_allowed,
        "nobody allowed charges"
    );
    let evidence = format!("the provider's books show {after} charges, and none since");
    let arguments = [
        "--endpoints",
        endpoints,
        "cluster",
        "allow-charges",
        "--evidence",
        &evidence,
    ];
    done(billingctl(&arguments)?)?;
    Ok(())
}

#[tokio::test]
async fn a_cluster_that_lost_every_disk_twice_charges_each_invoice_once() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let provider = Provider::start(folder.path()).await?;
    let (cluster, client) = found(folder.path().join("first")).await?;
    let endpoints = cluster.endpoints().join(",");
    submit(&client, INVOICES).await?;
    let mut run = worker(&cluster, &provider, folder.path(), "run", &[])?;
    provider.await_charged(15).await?;

    let backup = folder.path().join("ledger.backup");
    let backup = backup.to_str().context("a path in UTF-8")?;
    let taken = [
        "--endpoints",
        &endpoints,
        "cluster",
        "backup",
        "--out",
        backup,
    ];
    done(billingctl(&taken)?)?;
    let again = billingctl(&taken)?;
    ensure!(
        again.status.code() == Some(2),
        "a backup was written over another"
    );
    let shown = done(billingctl(&["cluster", "verify", backup, "-o", "json"])?)?;
    ensure!(shown.contains("\"ledger_id\": \"local\""), "{shown}");

    provider.await_charged(40).await?;
    // With the site go the workers: nobody is left who could send.
    run.kill()?;
    let mut newest = 0;
    if let Ok(token) = probe(&client).await {
        newest = token;
    }
    ensure!(newest > 0, "nothing was granted before the loss");
    let place = Place::of(&cluster);
    lose(cluster)?;

    // Twice out of the same old file: what the first life granted and charged, the second one never heard of.
    for life in ["second", "third"] {
        let (cluster, client) = place.restore(backup, folder.path().join(life)).await?;
        let token = first_token(&client).await?;
        ensure!(token > newest, "token {token} was granted after {newest}");
        charges_are_refused(&client).await?;
        allow(&client, &provider, &endpoints).await?;
        if life == "second" {
            let charged = provider.charged().await?;
            let mut run = worker(&cluster, &provider, folder.path(), life, &[])?;
            provider.await_charged(charged + 20).await?;
            run.kill()?;
            newest = probe(&client).await?;
            lose(cluster)?;
            continue;
        }
        let mut last = worker(&cluster, &provider, folder.path(), life, &["--until-empty"])?;
        let status = last
            .ended(ENDS_WITHIN)
            .await?
            .context("the last run does not end")?;
        ensure!(status.success(), "{status}:\n{}", last.last_words(20));
        ensure!(
            provider.charged().await? == INVOICES,
            "{} charged",
            provider.charged().await?
        );
        let request = v1::ListInvoicesRequest {
            status: v1::InvoiceStatus::Paid.into(),
            page_size: 1_000,
            ..Default::default()
        };
        let paid = client.list_invoices(request).await?.invoices.len();
        ensure!(paid == INVOICES, "{paid} are paid by the ledger");
        ensure!(
            client.status().await?.charge_alarms == 0,
            "a charge needs a person's eye"
        );
    }
    Ok(())
}

#[tokio::test]
async fn what_is_no_backup_is_refused_and_nothing_is_touched() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (mut cluster, client) = found(folder.path().join("first")).await?;
    let endpoints = cluster.endpoints().join(",");
    submit(&client, 20).await?;
    let good = folder.path().join("good");
    let path = |path: &Path| path.to_str().map(str::to_owned).context("a path in UTF-8");
    done(billingctl(&[
        "--endpoints",
        &endpoints,
        "cluster",
        "backup",
        "--out",
        &path(&good)?,
    ])?)?;
    let snapshots = done(billingctl(&[
        "--endpoints",
        &endpoints,
        "cluster",
        "snapshot",
        "-o",
        "json",
    ])?)?;
    ensure!(snapshots.matches("\"index\"").count() == 3, "{snapshots}");
    let (peers, data) = (cluster.peers(), cluster.data(1));
    cluster.stop().await?;

    let bytes = fs::read(&good)?;
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 1;
    let mut newer = bytes.clone();
    // The header's format is the first field of the first message's first field.
    let format = newer
        .windows(2)
        .position(|pair| pair == [8, 1])
        .context("the format")?;
    newer[format + 1] = 9;
    let new = folder.path().join("new");
    for (name, contents, said) in [
        ("flipped", &flipped[..], "damaged"),
        ("cut", &bytes[..bytes.len() - 3], "cut short"),
        ("newer", &newer[..], "use a newer version"),
        ("foreign", b"#!/bin/sh\nexit 0\n", "not a backup"),
        ("empty", b"", "not a backup"),
    ] {
        let file = folder.path().join(name);
        fs::write(&file, contents)?;
        let node = format!("1={}", path(&new)?);
        let restore = [
            "cluster",
            "restore",
            &path(&file)?,
            "--peers",
            &peers,
            "--node",
            &node,
        ];
        for ended in [
            billingctl(&["cluster", "verify", &path(&file)?])?,
            billingctl(&restore)?,
            billingd_restore(1, &path(&file)?, &peers, &new, &[])?,
        ] {
            let talk = String::from_utf8_lossy(&ended.stderr).into_owned();
            ensure!(
                ended.status.code() == Some(2),
                "{name}: {}: {talk}",
                ended.status
            );
            ensure!(talk.contains(said), "{name}: {talk}");
            ensure!(ended.stdout.is_empty(), "{name} is shown");
        }
        ensure!(!new.exists(), "{name}: a folder was made");
        ensure!(fs::read(&file)? == contents, "{name} was changed");
    }
    // A good one, over a node that exists.
    let before = fs::read(data.join("identity"))?;
    let ended = billingd_restore(1, &path(&good)?, &peers, &data, &[])?;
    let talk = String::from_utf8_lossy(&ended.stderr).into_owned();
    ensure!(ended.status.code() == Some(3), "{}: {talk}", ended.status);
    ensure!(talk.contains("never overwrites"), "{talk}");
    ensure!(fs::read(data.join("identity"))? == before);
    Ok(())
}

fn billingd_restore(
    node: usize,
    file: &str,
    peers: &str,
    data: &Path,
    more: &[&str],
) -> Result<Ended> {
    let mut command = Command::new(binary("billingd")?);
    command
        .args(["restore", file, "--node-id", &node.to_string()])
        .args(["--peers", peers, "--data-dir"])
        .arg(data)
        .args(more);
    command.output().context("billingd")
}

#[tokio::test]
async fn nodes_made_from_different_backups_do_not_become_one_cluster() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (cluster, client) = found(folder.path().join("first")).await?;
    let endpoints = cluster.endpoints().join(",");
    let mut backups = Vec::new();
    for number in 1..=2 {
        submit(&client, number).await.ok();
        let file = folder.path().join(format!("{number}.backup"));
        let name = file.to_str().context("a path in UTF-8")?.to_owned();
        done(billingctl(&[
            "--endpoints",
            &endpoints,
            "cluster",
            "backup",
            "--out",
            &name,
        ])?)?;
        backups.push(name);
    }
    let place = Place::of(&cluster);
    lose(cluster)?;
    // Two of one, and one of the other, all under one id: the third is told, and the two wait for the one that they were made with.
    let mut options = ClusterOptions::new(folder.path().join("mixed"));
    options.ports = place.ports.clone();
    fs::create_dir_all(&options.folder)?;
    let nodes = options.folder.clone();
    let restore = |node: usize, backup: &str| {
        let to = format!("{node}={}", nodes.join(format!("node-{node}")).display());
        done(billingctl(&[
            "cluster",
            "restore",
            backup,
            "--peers",
            &place.peers,
            "--restore-id",
            RESTORE_ID,
            "--node",
            &to,
        ])?)
    };
    for (node, backup) in [(1, &backups[0]), (2, &backups[0]), (3, &backups[1])] {
        let shown = restore(node, backup)?;
        ensure!(shown.contains(RESTORE_ID), "{shown}");
    }
    let log = options.folder.join("node-3.log");
    let mut cluster = Cluster::start(options)?;
    let client = Client::builder().endpoints(cluster.endpoints()).build()?;
    until(
        "the third says why it stays alone",
        LED_WITHIN,
        async || Ok(fs::read_to_string(&log)?.contains("belongs to cluster")),
    )
    .await?;
    tokio::time::sleep(QUIET_FOR * 5).await;
    cluster.all_running()?;
    for node in 1..=3 {
        let status = client.status_of(&cluster.endpoint(node)).await?;
        ensure!(status.leader_id == 0 && status.term == 1, "{status:?}");
    }
    // Nobody was spoken to under that id by the wrong folder.
    cluster.kill(3)?;
    fs::remove_dir_all(cluster.data(3))?;
    restore(3, &backups[0])?;
    cluster.start_node(3, false)?;
    cluster.led(&client, LED_WITHIN).await?;
    first_token(&client).await?;
    cluster.stop().await
}

#[tokio::test]
async fn the_first_node_of_a_restore_prints_what_the_others_need() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (cluster, client) = found(folder.path().join("first")).await?;
    let endpoints = cluster.endpoints().join(",");
    submit(&client, 3).await?;
    let file = folder.path().join("ledger.backup");
    let file = file.to_str().context("a path in UTF-8")?;
    let backup = ["cluster", "backup", "--out", file];
    done(billingctl(
        &[&["--endpoints", &endpoints], &backup[..]].concat(),
    )?)?;
    let place = Place::of(&cluster);
    lose(cluster)?;
    let mut options = ClusterOptions::new(folder.path().join("second"));
    options.ports = place.ports.clone();
    fs::create_dir_all(&options.folder)?;
    let restore = |node: usize, more: &[&str]| {
        let data = options.folder.join(format!("node-{node}"));
        billingd_restore(node, file, &place.peers, &data, more)
    };

    let wrong = restore(1, &["--restore-id", "the first one"])?;
    let talk = String::from_utf8_lossy(&wrong.stderr).into_owned();
    ensure!(wrong.status.code() == Some(2), "{}: {talk}", wrong.status);
    ensure!(
        talk.contains("`the first one` is not a restore id: 16 of 0-9 and a-f"),
        "{talk}"
    );
    ensure!(!options.folder.join("node-1").exists(), "a folder was made");

    let first = restore(1, &[])?;
    let talk = String::from_utf8_lossy(&first.stderr).into_owned();
    let shown = done(first)?;
    let id = shown
        .lines()
        .find_map(|line| line.strip_prefix("restore id: "))
        .context("an id")?;
    ensure!(talk.contains(&format!("with --restore-id {id}")), "{talk}");
    for node in 2..=3 {
        let other = restore(node, &["--restore-id", id])?;
        ensure!(other.stderr.is_empty(), "nothing is left to say");
        let shown = done(other)?;
        ensure!(shown.contains(&format!("restore id: {id}")), "{shown}");
    }
    let mut cluster = Cluster::start(options)?;
    cluster.led(&client, LED_WITHIN).await?;
    first_token(&client).await?;
    cluster.stop().await
}
