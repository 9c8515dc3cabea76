//! Clocks that run wrong: a node's wall clock that jumps, a node's monotonic clock that runs too fast or too slow. The library in
//! between is libfaketime; what it says is read anew each second, so that clocks go wrong while the node runs.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use billing_client::{AcquireOptions, Client, v1};
use billing_demo::{
    books,
    harness::{Cluster, ClusterOptions, Home, Provider, until},
};

use crate::{
    Fault,
    needs::{Need, faketime},
    witness::{NODES, PATIENCE, Witness, agreed},
};

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "clock: walls jump an hour, a year, and back",
        needs: &[Need::Faketime],
        run: || Box::pin(walls_jump()),
    },
    Fault {
        name: "clock: leaders a fifth too fast and too slow, as declared",
        needs: &[Need::Faketime],
        run: || Box::pin(rates_within_the_declared()),
    },
    Fault {
        name: "clock: nodes at double and half speed, far beyond the declared",
        needs: &[Need::Faketime],
        run: || Box::pin(rates_beyond_the_declared()),
    },
];

const GRANTS: usize = 40;

/// Whose clock a library lies about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lies {
    AboutTheWall,
    /// About the monotonic clock too, and with it about every timer.
    AboutEverything,
}

struct Stage {
    folder: tempfile::TempDir,
    cluster: Cluster,
    client: Client,
}

fn clock(folder: &Path, id: usize) -> PathBuf {
    folder.join(format!("clock-{id}"))
}

impl Stage {
    async fn set(lies: Lies, first: [&str; NODES]) -> Result<Stage> {
        let folder = tempfile::tempdir()?;
        let library = faketime().context("libfaketime")?;
        let mut homes = Vec::new();
        for (id, said) in (1..).zip(first) {
            let file = clock(folder.path(), id);
            fs::write(&file, format!("{said}\n"))?;
            let mut enter = vec![
                "env".to_owned(),
                format!("LD_PRELOAD={}", library.display()),
                format!("FAKETIME_TIMESTAMP_FILE={}", file.display()),
                "FAKETIME_CACHE_DURATION=1".to_owned(),
            ];
            if lies == Lies::AboutTheWall {
                enter.push("FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned());
            }
            homes.push(Home::here(enter));
        }
        let mut options = ClusterOptions::new(folder.path().join("nodes"));
        options.homes = homes;
        let mut cluster = Cluster::start(options)?;
        let client = Client::builder()
            .endpoints(cluster.endpoints())
            .deadline(PATIENCE)
            .drift(DRIFT)
            .build()?;
        cluster.led(&client, PATIENCE).await?;
        Ok(Stage {
            folder,
            cluster,
            client,
        })
    }

    fn say(&self, id: usize, said: &str) -> Result<()> {
        Ok(fs::write(
            clock(self.folder.path(), id),
            format!("{said}\n"),
        )?)
    }

    /// How far the wall clock of node `id` is from ours, in seconds.
    async fn wall_off(&self, id: usize) -> Result<i64> {
        let view = self.client.status_of(&self.cluster.endpoint(id)).await?;
        let there = view.wall_time.context("a wall time")?.seconds;
        let here = self.client.env().clock.wall_ms() / 1_000;
        Ok(there - i64::try_from(here)?)
    }
}

/// One lease that nobody keeps, and who waits for it: until when the first may believe in it, and when the second has it,
/// both counted from the request.
async fn hand_over(client: &Client, name: &str, ttl: Duration) -> Result<(Duration, Duration)> {
    let options = AcquireOptions::default().ttl(ttl);
    let (mut ana, mut begun, mut tries) = (None, Instant::now(), 0);
    // On a crowded machine an answer may come when the lease has ended, and is a refusal then.
    until("ana has a lease", PATIENCE, async || {
        begun = Instant::now();
        tries += 1;
        let name = format!("{name}-{tries}");
        ana = client.acquire(&name, "ana", options).await.ok();
        Ok(ana.is_some())
    })
    .await?;
    let ana = ana.context("granted")?;
    let believed = begun.elapsed() + ana.remaining();
    let options = AcquireOptions::wait(PATIENCE).ttl(ttl);
    let ben = client.acquire(ana.invoice_id(), "ben", options).await?;
    let granted = begun.elapsed();
    ensure!(ben.token() > ana.token(), "tokens grow");
    ensure!(!ana.is_valid(), "ana still believes in it, and ben has it");
    ana.settled();
    ben.release().await?;
    Ok((believed, granted))
}

/// By what share a clock may be wrong, as these clients are told.
const DRIFT: f64 = 0.2;
const TTL: Duration = Duration::from_secs(4);

async fn walls_jump() -> Result<()> {
    const HOUR: i64 = 3_600;
    const YEAR: i64 = 365 * 24 * HOUR;
    /// Between two looks at two clocks.
    const LOOSE: i64 = 5;
    let mut stage = Stage::set(Lies::AboutTheWall, ["+0"; NODES]).await?;
    let (leader, term) = agreed(&mut stage.cluster, &stage.client).await?;
    let witness = Witness::start(&stage.client, 2).await?;
    witness.goes_on(GRANTS).await?;
    let follower = leader % NODES + 1;
    for (who, off) in [
        (follower, HOUR),
        (leader, YEAR),
        (leader, -HOUR),
        (leader, 0),
    ] {
        stage.say(who, &format!("{off:+}"))?;
        until("the clock has jumped", PATIENCE, async || {
            Ok((stage.wall_off(who).await? - off).abs() <= LOOSE)
        })
        .await?;
        let (believed, granted) = hand_over(&stage.client, &format!("wall{off}"), TTL).await?;
        println!(
            "  wall of node {who} off by {off} s: believed for {believed:.2?}, granted to the next after {granted:.2?}"
        );
        ensure!(
            granted >= believed && granted >= TTL.mul_f64(0.99),
            "too early by the wall: {granted:?}"
        );
        ensure!(granted < TTL * 3, "nothing expires any more: {granted:?}");
        witness.goes_on(GRANTS).await?;
        let now = agreed(&mut stage.cluster, &stage.client).await?;
        ensure!(now == (leader, term), "an election by the wall: {now:?}");
    }
    let checked = witness.check(&stage.client).await?;
    println!("  {checked} acknowledged leases stand, node {leader} leads in term {term} as before");
    stage.cluster.stop().await
}

async fn rates_within_the_declared() -> Result<()> {
    const ROUNDS: usize = 3;
    const RATES: [f64; NODES] = [1.2, 0.8, 1.0];
    // From their start on: libfaketime makes a jump as a new rate takes hold, which no monotonic clock does.
    let mut stage = Stage::set(Lies::AboutEverything, ["+0 x1.2", "+0 x0.8", "+0"]).await?;
    let witness = Witness::start(&stage.client, 2).await?;
    for (id, rate) in (1..).zip(RATES) {
        let (leads, _) = agreed(&mut stage.cluster, &stage.client).await?;
        if leads != id {
            stage.client.transfer_leader(Some(id as u64)).await?;
            let (leads, _) = agreed(&mut stage.cluster, &stage.client).await?;
            ensure!(leads == id, "node {leads} leads, not {id}");
        }
        for round in 0..ROUNDS {
            let name = format!("rate{rate}-{round}");
            let (believed, granted) = hand_over(&stage.client, &name, TTL).await?;
            println!(
                "  node {id} leads at x{rate}: believed for {believed:.2?}, granted to the next after {granted:.2?}"
            );
            ensure!(granted > believed, "two held it");
            // The clock is wrong indeed, or this would show nothing; and nobody waits for longer than it makes them.
            let expected = TTL.div_f64(rate);
            ensure!(
                granted >= expected.mul_f64(0.95) && granted < expected.mul_f64(1.6),
                "{granted:?} is not about {expected:?}"
            );
        }
        witness.goes_on(GRANTS).await?;
        let (leads, _) = agreed(&mut stage.cluster, &stage.client).await?;
        ensure!(leads == id, "an election by a clock: node {leads} leads");
    }
    let checked = witness.check(&stage.client).await?;
    println!("  {checked} acknowledged leases stand");
    stage.cluster.stop().await
}

async fn rates_beyond_the_declared() -> Result<()> {
    const INVOICES: usize = 150;
    const AWAY_FOR: Duration = Duration::from_secs(2);
    const FLAGS: [&str; 3] = ["--until-empty", "--session-ttl", "1s"];
    let mut stage = Stage::set(Lies::AboutEverything, ["+0 x2", "+0 x0.5", "+0"]).await?;
    let provider = Provider::start(stage.folder.path(), &["--delay-ms", "20..300"]).await?;
    let invoice = |number: usize| v1::Invoice {
        invoice_id: format!("inv-{number}"),
        customer_id: "cus-1".to_owned(),
        amount_minor: 1_000,
        currency: "EUR".to_owned(),
        ..Default::default()
    };
    stage
        .client
        .submit_invoices((0..INVOICES).map(invoice), |_| {})
        .await?;
    let endpoints = stage.cluster.endpoints();
    let mut workers = Vec::new();
    for number in 0..3 {
        workers.push(provider.worker(&format!("worker-{number}"), &endpoints, None, &FLAGS)?);
    }
    // Every leadership is of another speed.
    for _ in 0..3 {
        let (leader, term) = agreed(&mut stage.cluster, &stage.client).await?;
        println!("  node {leader} leads in term {term}");
        provider.charged().await?;
        stage.cluster.kill(leader)?;
        tokio::time::sleep(AWAY_FOR).await; // The time that it is away.
        stage.cluster.start_node(leader, false)?;
    }
    for worker in &mut workers {
        let status = worker.ended(2 * PATIENCE).await?;
        ensure!(
            status.is_some_and(|status| status.success()),
            "{} ended with {status:?}:\n{}",
            worker.name(),
            worker.last_words(20)
        );
    }
    let ledger = books::ledger(&stage.client).await?;
    let result = books::compare(&ledger, &provider.books().await?);
    println!(
        "  {} paid, {} charged, {} twice",
        result.paid, result.charges, result.charged_twice
    );
    ensure!(result.holds() && result.paid == INVOICES, "{result:?}");
    stage.cluster.stop().await
}
