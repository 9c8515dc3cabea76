//! Real OS threads of one process, and real processes, exclude each other over a real cluster of three nodes.
//! The witness is outside of billingd: flags in memory for threads, a folder that can be made only once for processes.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use billing_client::{AcquireOptions, Client, SessionOptions};
use billing_demo::harness::{Cluster, ClusterOptions, binary};

const LED_WITHIN: Duration = Duration::from_secs(30);
const WAIT: Duration = Duration::from_secs(60);
const TTL: Duration = Duration::from_secs(10);

/// What the threads guard: an invoice, and what must never happen on it.
#[derive(Default)]
struct Guarded {
    somebody_inside: AtomicBool,
    token_last: AtomicU64,
    /// Read, yield, write: an update is lost when two are inside.
    entered: AtomicU64,
}

impl Guarded {
    /// The section that only one may be in.
    fn enter(&self, token: u64) -> Result<()> {
        ensure!(
            !self.somebody_inside.swap(true, Ordering::SeqCst),
            "two threads are inside"
        );
        let before = self.token_last.swap(token, Ordering::SeqCst);
        ensure!(before < token, "token {token} came after token {before}");
        let entered = self.entered.load(Ordering::SeqCst);
        thread::yield_now();
        self.entered.store(entered + 1, Ordering::SeqCst);
        ensure!(
            self.somebody_inside.swap(false, Ordering::SeqCst),
            "somebody else left our section"
        );
        Ok(())
    }
}

fn in_threads(threads: usize, body: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|number| {
                scope.spawn({
                    let body = &body;
                    move || body(number)
                })
            })
            .collect();
        running.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| anyhow::bail!("a thread panicked"))
        })
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_threads_of_one_process_take_turns_on_few_invoices() -> Result<()> {
    const THREADS: usize = 24;
    const ROUNDS: usize = 6;
    let folder = tempfile::tempdir()?;
    let mut cluster = Cluster::start(ClusterOptions::new(folder.path()))?;
    let client = Client::builder().endpoints(cluster.endpoints()).build()?;
    cluster.led(&client, LED_WITHIN).await?;
    // Half of them share one session, the others one more: neither a session nor a process is a licence to enter twice.
    let sessions = [
        client
            .open_session(SessionOptions::new("threads-a", TTL))
            .await?,
        client
            .open_session(SessionOptions::new("threads-b", TTL))
            .await?,
    ];
    let invoices: Arc<[Guarded; 3]> = Arc::default();
    let runtime = tokio::runtime::Handle::current();
    let watched = Arc::clone(&invoices);
    let threads_sessions = sessions.clone();
    tokio::task::spawn_blocking(move || {
        in_threads(THREADS, |number| {
            for round in 0..ROUNDS {
                let which = (number + round) % watched.len();
                let session = &threads_sessions[number % threads_sessions.len()];
                let invoice = format!("shared-{which}");
                let lease =
                    runtime.block_on(session.acquire(&invoice, AcquireOptions::wait(WAIT)))?;
                watched[which].enter(lease.token().0)?;
                runtime.block_on(lease.release())?;
            }
            Ok(())
        })
    })
    .await??;
    let entered: u64 = invoices
        .iter()
        .map(|guarded| guarded.entered.load(Ordering::SeqCst))
        .sum();
    assert_eq!(
        entered,
        (THREADS * ROUNDS) as u64,
        "an update was lost, so two were inside"
    );
    for session in &sessions {
        session.close().await?;
    }
    cluster.stop().await
}

/// One process: `billingctl` holds the lease while a shell makes a folder, counts, and removes the folder.
fn holder(endpoints: &str, work: &Path) -> Result<Command> {
    // mkdir fails when another one is inside; `set -e` then makes the whole process fail.
    let script = "set -e; mkdir inside; n=$(cat count); echo $((n + 1)) > count; echo $BILLING_TOKEN >> tokens; rmdir inside";
    let mut command = Command::new(binary("billingctl")?);
    command
        .current_dir(work)
        .args([
            "--endpoints",
            endpoints,
            "lease",
            "acquire",
            "inv-shared",
            "--ttl",
            "10s",
            "--wait",
            "60s",
            "--",
            "sh",
            "-c",
            script,
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Ok(command)
}

#[tokio::test]
async fn several_processes_take_turns_although_the_leader_is_killed() -> Result<()> {
    const PROCESSES: usize = 12;
    let folder = tempfile::tempdir()?;
    let work = tempfile::tempdir()?;
    fs::write(work.path().join("count"), "0\n")?;
    let mut cluster = Cluster::start(ClusterOptions::new(folder.path()))?;
    let client = Client::builder().endpoints(cluster.endpoints()).build()?;
    let leader = cluster.led(&client, LED_WITHIN).await?;
    let endpoints = cluster.endpoints().join(",");
    let mut running = Vec::new();
    for _ in 0..PROCESSES {
        running.push(
            holder(&endpoints, work.path())?
                .spawn()
                .context("cannot start billingctl")?,
        );
    }
    cluster.kill(leader)?;
    let ended = tokio::task::spawn_blocking(move || {
        running
            .into_iter()
            .map(|child| child.wait_with_output())
            .collect::<std::io::Result<Vec<_>>>()
    })
    .await??;
    for output in &ended {
        assert!(
            output.status.success(),
            "{}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let count = fs::read_to_string(work.path().join("count"))?;
    assert_eq!(count.trim(), PROCESSES.to_string());
    let tokens = fs::read_to_string(work.path().join("tokens"))?;
    let tokens: Vec<u64> = tokens.lines().map(str::parse).collect::<Result<_, _>>()?;
    assert!(
        tokens.windows(2).all(|pair| pair[0] < pair[1]),
        "tokens only grow: {tokens:?}"
    );
    cluster.stop().await
}
