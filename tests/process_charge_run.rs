//! The charge run as real processes: three nodes, the sandbox, workers that are stopped, stalled and killed.
//! The provider's own books say who was charged.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use billing_client::{Client, v1};
use billing_demo::{
    books::{self, Books},
    harness::{Cluster, ClusterOptions, Output, Process, Signal, binary},
};

const LED_WITHIN: Duration = Duration::from_secs(30);
const ENDS_WITHIN: Duration = Duration::from_secs(120);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const KEY: &str = "sk_test_never_shown";

struct Stage {
    cluster: Cluster,
    client: Client,
    sandbox: Process,
    address: String,
    folder: tempfile::TempDir,
}

impl Stage {
    async fn set(sandbox_flags: &[&str]) -> Result<Stage> {
        let folder = tempfile::tempdir()?;
        let mut cluster = Cluster::start(ClusterOptions::new(folder.path().join("cluster")))?;
        let client = Client::builder().endpoints(cluster.endpoints()).build()?;
        cluster.led(&client, LED_WITHIN).await?;
        let port_file = folder.path().join("sandbox.address");
        let mut command = Command::new(binary("billing-sandbox")?);
        command
            .args(["--listen", "127.0.0.1:0", "--port-file"])
            .arg(&port_file)
            .args(sandbox_flags);
        let sandbox = Process::start(
            "sandbox",
            command,
            &Output::File(folder.path().join("sandbox.log")),
        )?;
        let address = awaited("the sandbox listens", || {
            Ok(std::fs::read_to_string(&port_file).ok())
        })
        .await?;
        Ok(Stage {
            cluster,
            client,
            sandbox,
            address,
            folder,
        })
    }

    async fn submit(&self, count: usize) -> Result<()> {
        let invoices = (0..count).map(|number| v1::Invoice {
            invoice_id: format!("inv-{number}"),
            customer_id: if number % 10 == 9 {
                "broke".to_owned()
            } else {
                "solvent".to_owned()
            },
            amount_minor: 1_000 + number as i64,
            currency: "EUR".to_owned(),
            ..Default::default()
        });
        let submitted = self.client.submit_invoices(invoices, |_| {}).await?;
        ensure!(
            submitted.submitted + submitted.unchanged == count as u64,
            "{submitted:?}"
        );
        Ok(())
    }

    fn worker(&self, name: &str, flags: &[&str]) -> Result<Process> {
        let mut command = Command::new(binary("billing-worker")?);
        command
            .args(["--endpoints", &self.cluster.endpoints().join(",")])
            .args([
                "--provider-url",
                &format!("http://{}", self.address),
                "--holder",
                name,
                "--session-ttl",
                "2s",
            ])
            .args(flags)
            .env("BILLING_PROVIDER_KEY", KEY);
        Process::start(name, command, &Output::File(self.log(name)))
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.log"))
    }

    async fn books(&self) -> Result<Books> {
        books::ask(&self.address).await
    }

    /// How many invoices were charged; never one of them twice.
    async fn charged(&self) -> Result<usize> {
        let mut charged = 0;
        for (invoice, rows) in self.books().await?.invoices {
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
        let deadline = tokio::time::Instant::now() + ENDS_WITHIN;
        while self.charged().await? < at_least {
            ensure!(
                tokio::time::Instant::now() < deadline,
                "never charged {at_least}"
            );
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    async fn count(&self, status: v1::InvoiceStatus) -> Result<usize> {
        let request = v1::ListInvoicesRequest {
            status: status.into(),
            page_size: 1_000,
            ..Default::default()
        };
        Ok(self.client.list_invoices(request).await?.invoices.len())
    }

    async fn strike(mut self) -> Result<()> {
        self.sandbox.stop(Duration::from_secs(5)).await?;
        self.cluster.stop().await
    }
}

async fn awaited(what: &str, mut look: impl FnMut() -> Result<Option<String>>) -> Result<String> {
    let deadline = tokio::time::Instant::now() + LED_WITHIN;
    loop {
        if let Some(text) = look()?.filter(|text| !text.trim().is_empty()) {
            return Ok(text.trim().to_owned());
        }
        ensure!(
            tokio::time::Instant::now() < deadline,
            "waited in vain: {what}"
        );
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn ends_with(process: &mut Process, code: i32) -> Result<()> {
    let status = process
        .ended(ENDS_WITHIN)
        .await?
        .with_context(|| format!("{} does not end", process.name()))?;
    ensure!(
        status.code() == Some(code),
        "{} ended with {status}:\n{}",
        process.name(),
        process.last_words(20)
    );
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}

#[tokio::test]
async fn a_run_over_a_provider_that_loses_replies_ends_by_itself_with_the_truth() -> Result<()> {
    let stage = Stage::set(&[
        "--lose-reply-every",
        "5",
        "--garble-share",
        "0.05",
        "--seed",
        "7",
    ])
    .await?;
    let payers = stage.folder.path().join("payers.csv");
    let table = "customer_id,provider_customer,payment_method\nsolvent,,pm_card_visa\nbroke,,pm_card_visa_chargeDeclinedStolenCard\n";
    std::fs::write(&payers, table)?;
    stage.submit(60).await?;
    let payers = payers.display().to_string();
    let mut worker = stage.worker("w", &["--until-empty", "--payers", &payers])?;
    ends_with(&mut worker, 0).await?;
    assert_eq!(stage.charged().await?, 54);
    assert_eq!(stage.count(v1::InvoiceStatus::Paid).await?, 54);
    assert_eq!(
        stage.count(v1::InvoiceStatus::Failed).await?,
        6,
        "a stolen card is not tried again"
    );
    let log = read(&stage.log("w"))?;
    assert!(log.contains("charged=54 declined=6"), "{log}");
    assert!(!log.contains(KEY), "the key is in the log");
    assert!(
        !read(&stage.folder.path().join("sandbox.log"))?.contains(KEY),
        "the key is in the provider's log"
    );
    stage.strike().await
}

#[tokio::test]
async fn stopped_stalled_and_killed_workers_leave_one_charge_each() -> Result<()> {
    let stage = Stage::set(&["--delay-ms", "20..80"]).await?;
    stage.submit(150).await?;
    let mut stopped = stage.worker("stopped", &[])?;
    stage.await_charged(10).await?;
    stopped.signal(Signal::TERM)?;
    ends_with(&mut stopped, 0).await?;
    assert_eq!(
        stage.count(v1::InvoiceStatus::InDoubt).await?,
        0,
        "what was on the wire was finished"
    );
    assert_eq!(
        stage.count(v1::InvoiceStatus::Processing).await?,
        0,
        "what was in hand was given back"
    );

    let mut killed = stage.worker("killed", &[])?;
    let mut stalled = stage.worker("stalled", &["--until-empty"])?;
    stage.await_charged(40).await?;
    killed.kill()?;
    stalled.signal(Signal::STOP)?;
    // Beyond the session's two seconds: its leases go to the third.
    let mut last = stage.worker("last", &["--until-empty"])?;
    tokio::time::sleep(Duration::from_secs(4)).await; // The stall itself.
    stalled.signal(Signal::CONT)?;
    ends_with(&mut last, 0).await?;
    ends_with(&mut stalled, 0).await?;
    assert!(read(&stage.log("stalled"))?.contains("session lost; opening another"));
    assert_eq!(
        (
            stage.charged().await?,
            stage.count(v1::InvoiceStatus::Paid).await?
        ),
        (150, 150)
    );
    stage.strike().await
}

#[tokio::test]
async fn invoices_that_this_worker_may_not_charge_keep_nobody_else_waiting() -> Result<()> {
    let stage = Stage::set(&[]).await?;
    stage.submit(20).await?;
    let declined = [
        "--until-empty",
        "--payment-method",
        "pm_card_visa_chargeDeclinedStolenCard",
    ];
    let mut first = stage.worker("first", &declined)?;
    ends_with(&mut first, 0).await?;
    assert_eq!(stage.count(v1::InvoiceStatus::Failed).await?, 20);
    // Their objects belong to the first worker's account, and they are due before everything else.
    for number in 0..20 {
        stage
            .client
            .requeue_invoice(&format!("inv-{number}"), "the card was replaced")
            .await?;
    }
    stage.submit(25).await?;
    let elsewhere = [
        "--until-empty",
        "--account",
        "another",
        "--concurrency",
        "4",
    ];
    let mut other = stage.worker("other", &elsewhere)?;
    ends_with(&mut other, 1).await?;
    assert_eq!(stage.charged().await?, 5);
    let log = read(&stage.log("other"))?;
    assert!(log.contains("account is default, not another"), "{log}");
    assert_eq!(
        stage.count(v1::InvoiceStatus::Processing).await?,
        0,
        "they are given back"
    );
    let mut right = stage.worker("right", &["--until-empty"])?;
    ends_with(&mut right, 0).await?;
    assert_eq!(stage.charged().await?, 25);
    stage.strike().await
}

#[test]
fn what_a_worker_cannot_work_with_is_said_and_ends_with_2() -> Result<()> {
    let run = |flags: &[&str], key: Option<&str>| -> Result<(Option<i32>, String)> {
        let mut command = Command::new(binary("billing-worker")?);
        command
            .args(flags)
            .env_remove("BILLING_PROVIDER_KEY")
            .envs(key.map(|key| ("BILLING_PROVIDER_KEY", key)));
        let output = command.output()?;
        Ok((
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ))
    };
    for (flags, key, said) in [
        (&[][..], None, "BILLING_PROVIDER_KEY"),
        (&[], Some("hunter2"), "neither a test key"),
        (&[], Some("sk_live_hidden"), "plain text"),
        (
            &["--provider-url", "https://api.stripe.com"],
            Some(KEY),
            "plain http:// only",
        ),
        (
            &["--provider-url", "http://192.0.2.1:80"],
            Some(KEY),
            "--insecure",
        ),
        (&["--provider", "adyen"], Some(KEY), "manual, stripe"),
        (&["--provider", "manual"], Some(KEY), "made by people"),
        (&["--concurrency", "0"], Some(KEY), "--concurrency"),
        (
            &["--payers", "no/such/file.csv"],
            Some(KEY),
            "no/such/file.csv",
        ),
        (
            &[
                "--until-empty",
                "--patience",
                "1s",
                "--endpoints",
                "127.0.0.1:1",
            ],
            Some(KEY),
            "refused",
        ),
    ] {
        let (code, stderr) = run(flags, key)?;
        assert_eq!(code, Some(2), "{flags:?}: {stderr}");
        assert!(stderr.contains(said), "{flags:?}: {stderr}");
        assert!(
            !key.is_some_and(|key| stderr.contains(key)),
            "the key is shown: {stderr}"
        );
    }
    Ok(())
}
