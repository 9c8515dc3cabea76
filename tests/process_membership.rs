//! Real nodes come, are replaced and go while real clients take and give back leases without a pause. The witness is the
//! clients' own record of what was acknowledged: every lease stands in the audit log, tokens only grow, nobody stops.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use billing_client::{AcquireOptions, Client, SessionOptions};
use billing_demo::harness::{Cluster, ClusterOptions, NodeView};
use billing_proto::v1;
use billing_proto::v1::cluster_service_client::ClusterServiceClient;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
const CONTRADICTED: i32 = 7;
const NOT_JOINED: i32 = 9;
const FOLDER: i32 = 3;

/// Clients that work on one invoice each, and what they were told.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Result<Vec<u64>>>>,
}

impl Load {
    /// `count` clients, all of which know only `endpoints`.
    async fn start(endpoints: Vec<String>, count: usize) -> Result<Load> {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let mut clients = Vec::new();
        for number in 0..count {
            let client = Client::builder().endpoints(endpoints.clone()).build()?;
            let options = SessionOptions::new(format!("load-{number}"), Duration::from_secs(60));
            let session = client.open_session(options).await?;
            let (stop, done) = (stop.clone(), done.clone());
            clients.push(tokio::spawn(async move {
                let invoice = format!("busy-{number}");
                let mut tokens = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    let lease = session
                        .acquire(&invoice, AcquireOptions::wait(PATIENCE))
                        .await
                        .with_context(|| format!("{invoice} after {} leases", tokens.len()))?;
                    tokens.push(lease.token().0);
                    lease.release().await.context("release")?;
                    done.fetch_add(1, Ordering::SeqCst);
                }
                session.close().await?;
                Ok(tokens)
            }));
        }
        Ok(Load {
            stop,
            done,
            clients,
        })
    }

    /// Waits until each client has, on average, worked a few times more: nobody is left behind by what just happened.
    async fn goes_on(&self) -> Result<()> {
        let wanted = self.done.load(Ordering::SeqCst) + 20 * self.clients.len() as u64;
        until("the clients go on", async || {
            if let Some(ended) = self.clients.iter().position(JoinHandle::is_finished) {
                bail!("client {ended} stopped");
            }
            Ok(self.done.load(Ordering::SeqCst) >= wanted)
        })
        .await
    }

    /// Ends the clients and compares what they were told with what the cluster wrote down.
    async fn check(self, cluster: &Cluster) -> Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        let mut told = Vec::new();
        for (number, client) in self.clients.into_iter().enumerate() {
            let tokens = client.await??;
            ensure!(!tokens.is_empty(), "client {number} never had a lease");
            ensure!(
                tokens.windows(2).all(|pair| pair[0] < pair[1]),
                "tokens of client {number} do not grow: {tokens:?}"
            );
            told.extend(tokens);
        }
        told.sort_unstable();
        ensure!(
            told.windows(2).all(|pair| pair[0] < pair[1]),
            "a token was given twice"
        );
        // The newest member's copy. It may have started a moment ago, and says so until it has caught up.
        let mut client = operator(&cluster.endpoint(cluster.endpoints().len()))?;
        let mut written = Vec::new();
        until("the newest member shows its audit log", async || {
            let request = v1::ReadAuditLogRequest::default();
            let mut records = match client.read_audit_log(request).await {
                Ok(records) => records.into_inner(),
                Err(status) if status.code() == tonic::Code::Unavailable => return Ok(false),
                Err(status) => bail!(status),
            };
            while let Some(answer) = records.message().await? {
                let record = answer.record.context("a record")?;
                if record.invoice_id.starts_with("busy-") && record.token != 0 {
                    written.push(record.token);
                }
            }
            Ok(true)
        })
        .await?;
        written.sort_unstable();
        for token in told {
            ensure!(
                written.binary_search(&token).is_ok(),
                "lease {token} was acknowledged and is lost"
            );
        }
        Ok(())
    }
}

fn operator(address: &str) -> Result<ClusterServiceClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    Ok(ClusterServiceClient::new(endpoint.connect_lazy()))
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let seen = async {
        while !holds().await? {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, seen)
        .await
        .with_context(|| format!("waited in vain until {what}"))?
}

fn voters(view: &NodeView) -> Vec<u64> {
    let voters = view.members.iter().filter(|member| member.voter);
    voters.map(|member| member.node_id).collect()
}

/// Waits until the leader counts exactly these voters.
async fn has_voters(cluster: &Cluster, client: &Client, wanted: &[u64]) -> Result<()> {
    until(&format!("the voters are {wanted:?}"), async || {
        let views = cluster.views(client).await;
        let leading = |view: &&NodeView| view.role == v1::NodeRole::Leader as i32;
        let leader = views
            .iter()
            .flatten()
            .filter(leading)
            .max_by_key(|view| view.term);
        Ok(leader.is_some_and(|leader| voters(leader) == wanted))
    })
    .await
}

/// The node ends by itself, with this code and these words.
async fn ends(cluster: &mut Cluster, id: usize, code: i32, words: &[&str]) -> Result<()> {
    let process = cluster.node(id).context("it was started")?;
    let Some(status) = process.ended(PATIENCE).await? else {
        bail!("node {id} did not end:\n{}", process.last_words(10));
    };
    let said = process.last_words(10);
    ensure!(status.code() == Some(code), "{status}, not {code}:\n{said}");
    for word in words {
        ensure!(said.contains(word), "`{word}` is not in:\n{said}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_come_and_go_under_load_and_no_lease_is_lost() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut options = ClusterOptions::new(folder.path());
    // Snapshots are taken and the log is purged while it lasts: newcomers get a snapshot too.
    options.flags = ["--snapshot-every", "300"].map(str::to_owned).to_vec();
    let mut cluster = Cluster::start(options)?;
    let client = Client::builder().endpoints(cluster.endpoints()).build()?;
    cluster.led(&client, PATIENCE).await?;
    let load = Load::start(cluster.endpoints(), 6).await?;
    load.goes_on().await?;

    // Three to five, by way of four.
    let fourth = cluster.join(None, &["--voter", "--allow-even"])?;
    has_voters(&cluster, &client, &[1, 2, 3, 4]).await?;
    let fifth = cluster.join(None, &["--voter"])?;
    has_voters(&cluster, &client, &[1, 2, 3, 4, 5]).await?;
    load.goes_on().await?;
    assert_eq!((fourth, fifth), (4, 5));

    // Shrink by the leader itself, asked at its own door: it answers, and ends.
    let leader = cluster.led(&client, PATIENCE).await?;
    let mut asked = operator(&cluster.endpoint(leader))?;
    let remove = v1::RemoveMemberRequest {
        node_id: leader as u64,
        allow_even: true,
    };
    let left = asked.remove_member(remove).await?.into_inner().members;
    ensure!(
        left.iter().all(|member| member.node_id != leader as u64),
        "{left:?}"
    );
    let removed = format!("node {leader} was removed");
    ends(
        &mut cluster,
        leader,
        CONTRADICTED,
        &[&removed, "billingd join"],
    )
    .await?;
    load.goes_on().await?;

    // kill -9 one that follows; a new node takes its place with one command.
    let next = cluster.led(&client, PATIENCE).await?;
    let dead = (1..=5)
        .find(|id| ![leader, next].contains(id))
        .context("a follower")?;
    cluster.kill(dead)?;
    let replaces = dead.to_string();
    let sixth = cluster.join(None, &["--replaces", &replaces])?;
    let mut wanted: Vec<u64> = (1..=6).collect();
    wanted.retain(|&id| id != leader as u64 && id != dead as u64);
    has_voters(&cluster, &client, &wanted).await?;
    load.goes_on().await?;

    // The same command again is the same node; so is a start after kill -9.
    cluster.kill(sixth)?;
    cluster.join(Some(sixth), &["--replaces", &replaces])?;
    until("the newcomer serves again", async || {
        let view = client.status_of(&cluster.endpoint(sixth)).await;
        Ok(view.is_ok_and(|view| voters(&view) == wanted))
    })
    .await?;

    // Who was replaced comes back and is sent away, and so is whoever takes its id.
    cluster.join(Some(dead), &[])?;
    ends(
        &mut cluster,
        dead,
        CONTRADICTED,
        &["was removed", "never used again"],
    )
    .await?;
    std::fs::remove_dir_all(cluster.data(dead))?;
    cluster.join(Some(dead), &["--voter"])?;
    ends(
        &mut cluster,
        dead,
        NOT_JOINED,
        &["never used twice", "such as 7"],
    )
    .await?;
    ensure!(!cluster.data(dead).exists(), "nothing was made on disk");

    load.goes_on().await?;
    load.check(&cluster).await
}

#[tokio::test]
async fn a_join_that_cannot_be_says_why_and_makes_nothing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut cluster = Cluster::start(ClusterOptions::new(folder.path()))?;
    let client = Client::builder().endpoints(cluster.endpoints()).build()?;
    cluster.led(&client, PATIENCE).await?;

    // An even number that nobody asked for: it stays a learner, and the same command goes on when it is allowed.
    let fourth = cluster.join(None, &["--voter"])?;
    ends(
        &mut cluster,
        fourth,
        NOT_JOINED,
        &["4 voters", "allow_even", "a learner meanwhile"],
    )
    .await?;
    cluster.join(Some(fourth), &["--voter", "--allow-even"])?;
    has_voters(&cluster, &client, &[1, 2, 3, 4]).await?;

    // A folder that is somebody else's.
    let fifth = cluster.join(None, &[])?;
    cluster.kill(fifth)?;
    let foreign = cluster.data(6);
    std::fs::create_dir_all(&foreign)?;
    std::fs::write(foreign.join("letters"), b"dear")?;
    let sixth = cluster.join(None, &[])?;
    assert_eq!(sixth, 6);
    ends(
        &mut cluster,
        sixth,
        FOLDER,
        &["letters", "choose an empty folder"],
    )
    .await?;
    assert_eq!(std::fs::read(foreign.join("letters"))?, b"dear");

    // A voter's folder that was lost: never again under its id.
    cluster.kill(fourth)?;
    std::fs::remove_dir_all(cluster.data(fourth))?;
    cluster.join(Some(fourth), &["--voter", "--allow-even"])?;
    ends(
        &mut cluster,
        fourth,
        NOT_JOINED,
        &["is a voter of this cluster", "--replaces"],
    )
    .await?;

    // Nobody there.
    cluster.stop().await?;
    let seventh = cluster.join(None, &["--voter"])?;
    ends(
        &mut cluster,
        seventh,
        NOT_JOINED,
        &["--cluster", "a majority of its nodes runs"],
    )
    .await?;
    ensure!(!cluster.data(seventh).exists(), "nothing was made on disk");
    Ok(())
}
