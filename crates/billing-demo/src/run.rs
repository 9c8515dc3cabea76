//! The charge run that loses its leader: starts everything, breaks it in the middle, and says what the books say.
//! Decides when the leader dies and a worker stalls; never helps the cluster to recover.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use billing_client::{Client, v1};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    books::{self, Comparison, LedgerEntry},
    harness::{Cluster, ClusterOptions, Process, Provider, Signal, binary},
    probe::Probe,
};

/// Short, so that a stalled worker's leases end while people watch.
const SESSION_TTL: Duration = Duration::from_secs(4);
/// Longer than the TTL and its drift: the worker wakes up after its leases are gone.
const STALL: Duration = Duration::from_secs(7);
/// Every how many requests the provider does its work and loses the answer.
const LOSE_REPLY_EVERY: u64 = 97;
const LOSE_REPLY_EVERY_OF_FEW: u64 = 5;
/// Fewer invoices than this are charged slowly, or they would all be paid before anything breaks.
const FEW: usize = 1_000;
/// A request's time in ms times the number of invoices, for few; about ten seconds with 64 charges at once.
const FEW_TAKE_MS: u64 = 200_000;
const DELAY_MS_MIN: u64 = 4;
/// Well under the gate's patience with a provider.
const DELAY_MS_MAX: u64 = 1_500;
/// The leader dies when this share of the invoices is paid, and starts again at the next.
const KILL_AT: f64 = 0.30;
const RESTART_AT: f64 = 0.55;
/// One worker stalls from here on.
const STALL_AT: f64 = 0.10;
const LOOK_AGAIN: Duration = Duration::from_millis(50);
const LEADER_WITHIN: Duration = Duration::from_secs(30);
/// Without one more paid invoice for this long, the run is called stuck.
const STUCK_AFTER: Duration = Duration::from_secs(120);

/// Where the invoices come from.
#[derive(Debug, Clone)]
pub enum Source {
    Generate(u64),
    File(PathBuf),
}

/// What a run is told.
#[derive(Debug, Clone)]
pub struct RunOptions {
    pub source: Source,
    pub workers: usize,
    /// Logs and data of all processes.
    pub folder: PathBuf,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    pub comparison: Comparison,
    pub leader_killed: usize,
    pub worker_paused: usize,
    pub failover: Option<Duration>,
    /// From the first worker's start to the last worker's end.
    pub took: Duration,
}

impl Report {
    /// Everything that the demo promises.
    pub fn holds(&self) -> bool {
        self.comparison.holds()
            && self.leader_killed == 1
            && self.worker_paused == 1
            && self.failover.is_some()
    }

    /// The last three lines, for people and for programs.
    pub fn lines(&self) -> [String; 3] {
        let books = &self.comparison;
        let failover = self
            .failover
            .map_or_else(|| "-".to_owned(), |gap| gap.as_millis().to_string());
        [
            format!(
                "invoices={} paid={} in_doubt={} review={}",
                books.invoices, books.paid, books.in_doubt, books.review
            ),
            format!(
                "provider charges={} charged_twice={} missing={}",
                books.charges, books.charged_twice, books.missing
            ),
            format!(
                "faults leader_killed={} worker_paused={} failover_ms={failover}",
                self.leader_killed, self.worker_paused
            ),
        ]
    }
}

/// Everything that runs. Dropped in order: workers, provider, nodes.
struct Stage {
    workers: Vec<Process>,
    provider: Provider,
    cluster: Cluster,
    client: Client,
}

/// Runs it all. Whatever happens, no process is left behind.
pub async fn run(options: &RunOptions) -> Result<Report> {
    std::fs::create_dir_all(&options.folder)?;
    say(&format!("logs and data: {}", options.folder.display()));
    let mut cluster = Cluster::start(ClusterOptions::new(options.folder.join("nodes")))?;
    let client = Client::builder().endpoints(cluster.endpoints()).build()?;
    let leader = cluster.led(&client, LEADER_WITHIN).await?;
    say(&format!(
        "nodes: {}; node {leader} leads",
        cluster.endpoints().join(", ")
    ));

    let csv = invoices(options, &cluster)?;
    submit(&csv, &cluster)?;
    let submitted = books::ledger(&client).await?;
    let pace = Pace::of(submitted.len());
    check_due(&submitted, client.env().clock.wall_ms())?;
    let provider = start_sandbox(&options.folder, &pace).await?;
    say(&format!(
        "provider: http://{}, loses every {}th reply after doing the work",
        provider.address(),
        pace.lose_reply_every
    ));

    let mut stage = Stage {
        workers: Vec::new(),
        provider,
        cluster,
        client,
    };
    let begun = Instant::now();
    for number in 1..=options.workers {
        let worker = start_worker(number, &stage)?;
        stage.workers.push(worker);
    }
    say(&format!(
        "workers: {} processes, session TTL {SESSION_TTL:?}",
        options.workers
    ));
    let mut report = break_things(&mut stage, &pace).await?;
    report.took = begun.elapsed();
    let ledger = books::ledger(&stage.client).await?;
    let books = stage.provider.books().await?;
    report.comparison = books::compare(&ledger, &books);
    for process in &mut stage.workers {
        process.stop(Duration::from_secs(5)).await?;
    }
    stage
        .provider
        .process()
        .stop(Duration::from_secs(5))
        .await?;
    stage.cluster.stop().await?;
    Ok(report)
}

/// Above the progress bar, or as a plain line where there is no terminal to draw one on.
fn tell(bar: &ProgressBar, line: &str) {
    bar.suspend(|| say(line));
}

fn say(line: &str) {
    eprintln!("demo: {line}");
}

async fn start_sandbox(folder: &Path, pace: &Pace) -> Result<Provider> {
    let delay = format!("{}..{}", pace.delay_ms.0, pace.delay_ms.1);
    let lose = pace.lose_reply_every.to_string();
    Provider::start(folder, &["--delay-ms", &delay, "--lose-reply-every", &lose]).await
}

/// The CSV to submit: the user's, or a generated one.
fn invoices(options: &RunOptions, cluster: &Cluster) -> Result<PathBuf> {
    let count = match &options.source {
        Source::File(path) => return Ok(path.clone()),
        Source::Generate(count) => count,
    };
    let path = options.folder.join("invoices.csv");
    let made = Command::new(binary("billingctl")?)
        .args(["--endpoints", &cluster.endpoints().join(",")])
        .args(["invoice", "generate", &count.to_string()])
        .stdout(std::fs::File::create(&path)?)
        .status()
        .context("cannot run billingctl invoice generate")?;
    if !made.success() {
        bail!("billingctl invoice generate {count} failed ({made})");
    }
    Ok(path)
}

fn submit(csv: &Path, cluster: &Cluster) -> Result<()> {
    let status = Command::new(binary("billingctl")?)
        .args(["--endpoints", &cluster.endpoints().join(",")])
        .args(["invoice", "submit"])
        .arg(csv)
        // Its data would mix with our last three lines.
        .stdout(Stdio::null())
        .status()
        .context("cannot run billingctl invoice submit")?;
    match status.code() {
        Some(0) => Ok(()),
        Some(1) => {
            say("some lines were refused, as billingctl said above; going on with the others");
            Ok(())
        }
        _ => bail!(
            "billingctl invoice submit {} failed ({status})",
            csv.display()
        ),
    }
}

fn start_worker(number: usize, stage: &Stage) -> Result<Process> {
    let ttl = format!("{}s", SESSION_TTL.as_secs());
    stage.provider.worker(
        &format!("worker-{number}"),
        &stage.cluster.endpoints(),
        None,
        &["--session-ttl", &ttl, "--until-empty"],
    )
}

/// When what happens, so that a run of any size is still under way when it does.
#[derive(Debug)]
struct Pace {
    total: usize,
    /// Shares of paid invoices.
    stall_at: f64,
    kill_at: f64,
    restart_at: f64,
    /// How long the provider takes for each request, in ms, from and to.
    delay_ms: (u64, u64),
    lose_reply_every: u64,
}

impl Pace {
    fn of(total: usize) -> Pace {
        let shares = if total < FEW {
            (0.0, 0.0, 0.0)
        } else {
            (STALL_AT, KILL_AT, RESTART_AT)
        };
        // With few invoices the provider is slow instead: the charges on the wire are what the faults must meet.
        let delay = (FEW_TAKE_MS / total.max(1) as u64).clamp(DELAY_MS_MIN, DELAY_MS_MAX);
        Pace {
            total,
            stall_at: shares.0,
            kill_at: shares.1,
            restart_at: shares.2,
            delay_ms: (delay / 4, delay * 2),
            lose_reply_every: if total < FEW {
                LOSE_REPLY_EVERY_OF_FEW
            } else {
                LOSE_REPLY_EVERY
            },
        }
    }
}

/// A charge run charges what is due; the demo would wait for the rest for as long as a calendar does.
fn check_due(ledger: &BTreeMap<String, LedgerEntry>, now_ms: u64) -> Result<()> {
    if ledger.is_empty() {
        bail!("no invoice was submitted, so there is nothing to charge");
    }
    let now = i64::try_from(now_ms / 1_000).unwrap_or(i64::MAX);
    let mut later = ledger.iter().filter(|(_, entry)| entry.due_at > now);
    if let Some((first, _)) = later.next() {
        bail!(
            "{} of {} invoices become due only later, such as {first}: the demo charges what is due, so give them a due_at that has passed, or none",
            later.count() + 1,
            ledger.len()
        );
    }
    Ok(())
}

/// What is still to be done to them, in order of progress.
#[derive(Debug, Default)]
struct Faults {
    stalled: Option<(usize, Instant)>,
    stalled_once: bool,
    killed: Option<(usize, Instant)>,
    restarted: bool,
}

async fn break_things(stage: &mut Stage, pace: &Pace) -> Result<Report> {
    let probe = Probe::start(&stage.cluster.endpoints())?;
    let bar = ProgressBar::new(pace.total as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} paid  {elapsed}  {msg}") {
        bar.set_style(style);
    }
    let mut faults = Faults::default();
    let mut failover = None;
    let (mut paid_before, mut progressed) = (0, Instant::now());
    loop {
        let paid = paid(stage).await.unwrap_or(paid_before);
        if paid > paid_before {
            (paid_before, progressed) = (paid, Instant::now());
        }
        bar.set_position(paid as u64);
        let share = paid as f64 / pace.total as f64;
        if share >= pace.stall_at && !faults.stalled_once {
            faults.stalled_once = stall_one(stage, &mut faults, &bar).await?;
        }
        if let Some((number, since)) = faults.stalled.filter(|(_, since)| since.elapsed() >= STALL)
        {
            stage.workers[number].signal(Signal::CONT)?;
            faults.stalled = None;
            tell(
                &bar,
                &format!(
                    "{} goes on after {:.1} s",
                    stage.workers[number].name(),
                    since.elapsed().as_secs_f64()
                ),
            );
        }
        if faults.stalled_once && share >= pace.kill_at && faults.killed.is_none() {
            let leader = stage.cluster.led(&stage.client, LEADER_WITHIN).await?;
            let now = Instant::now();
            stage.cluster.kill(leader)?;
            faults.killed = Some((leader, now));
            tell(
                &bar,
                &format!("killed node {leader}, the leader, with SIGKILL at {paid} paid"),
            );
            let gap = probe.gap(now, LEADER_WITHIN).await?;
            failover = Some(gap);
            tell(
                &bar,
                &format!("the next lease was granted {} ms later", gap.as_millis()),
            );
        }
        if let Some((leader, _)) = faults
            .killed
            .filter(|_| share >= pace.restart_at && !faults.restarted)
        {
            stage.cluster.start_node(leader, false)?;
            faults.restarted = true;
            tell(&bar, &format!("node {leader} starts again"));
        }
        stage.cluster.all_running()?;
        if let Some(status) = stage.provider.process().exited()? {
            bail!(
                "the sandbox ended ({status}):\n{}",
                stage.provider.process().last_words(10)
            );
        }
        if all_ended(stage)? && faults.stalled.is_none() {
            break;
        }
        if progressed.elapsed() > STUCK_AFTER {
            bail!(
                "no invoice was paid for {STUCK_AFTER:?}, {paid} of {} are; the logs tell more",
                pace.total
            );
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    bar.finish_and_clear();
    Ok(Report {
        comparison: Comparison::default(),
        leader_killed: usize::from(faults.killed.is_some() && faults.restarted),
        worker_paused: usize::from(faults.stalled_once),
        failover,
        took: Duration::ZERO,
    })
}

/// SIGSTOPs a worker that holds leases, so that its sleep matters. False: none does just now.
async fn stall_one(stage: &mut Stage, faults: &mut Faults, bar: &ProgressBar) -> Result<bool> {
    for number in 0..stage.workers.len() {
        if stage.workers[number].exited()?.is_some() {
            continue;
        }
        stage.workers[number].signal(Signal::STOP)?;
        let name = stage.workers[number].name().to_owned();
        let request = v1::ListLeasesRequest {
            holder: name.clone(),
            page_size: books::PAGE,
            ..Default::default()
        };
        let held = stage
            .client
            .list_leases(request)
            .await
            .map_or(0, |page| page.leases.len());
        if held > 0 {
            faults.stalled = Some((number, Instant::now()));
            tell(
                bar,
                &format!("stopped {name} with SIGSTOP while it holds {held} leases"),
            );
            return Ok(true);
        }
        stage.workers[number].signal(Signal::CONT)?;
    }
    Ok(false)
}

fn all_ended(stage: &mut Stage) -> Result<bool> {
    let mut all = true;
    for worker in &mut stage.workers {
        match worker.exited()? {
            None => all = false,
            Some(status) if status.success() => {}
            Some(status) => bail!(
                "{} ended ({status}):\n{}",
                worker.name(),
                worker.last_words(10)
            ),
        }
    }
    Ok(all)
}

/// How many invoices are paid, by the node that has applied most.
async fn paid(stage: &Stage) -> Option<usize> {
    let views = stage.cluster.views(&stage.client).await;
    let newest = views
        .into_iter()
        .flatten()
        .max_by_key(|view| view.applied_index)?;
    let count = newest
        .invoices
        .iter()
        .find(|count| count.status == v1::InvoiceStatus::Paid as i32);
    Some(count.map_or(0, |count| count.count as usize))
}
