//! Decides where the nodes under measurement run: three release binaries of this build, durable, in a folder of their own on the
//! disk that is measured.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use billing_client::{Client, SessionOptions};
use billing_demo::harness::{Cluster, ClusterOptions};

use crate::{
    Common,
    load::{self, Amount, Seen, Way},
};

pub const NODES: usize = 3;
const LED_WITHIN: Duration = Duration::from_secs(30);

/// Three running nodes. Dropped: killed, their folder removed.
pub struct Place {
    pub cluster: Cluster,
    /// For questions beside the load.
    pub client: Client,
    // Last: the nodes end before their folder does.
    folder: tempfile::TempDir,
}

impl Place {
    pub async fn start(common: &Common) -> Result<Place> {
        Place::with_flags(common, &[]).await
    }

    /// `flags`: more of them for every node.
    pub async fn with_flags(common: &Common, flags: &[&str]) -> Result<Place> {
        let folder = folder(common)?;
        let mut options = ClusterOptions::new(folder.path().join("nodes"));
        "warn".clone_into(&mut options.log);
        options.flags = flags.iter().map(ToString::to_string).collect();
        let mut cluster = Cluster::start(options)?;
        let client = Client::builder().endpoints(cluster.endpoints()).build()?;
        cluster.led(&client, LED_WITHIN).await?;
        // A leader that is still founding the cluster refuses; our client asks again, the stubs of a measurement do not.
        let first = SessionOptions::new("bench", Duration::from_secs(1));
        client.open_session(first).await?.close().await?;
        Ok(Place {
            cluster,
            client,
            folder,
        })
    }

    /// On the disk that the nodes use.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Which node leads now; from 1.
    pub async fn leader(&mut self) -> Result<usize> {
        self.cluster.led(&self.client, LED_WITHIN).await
    }

    /// Where the leader listens.
    pub async fn leader_endpoint(&mut self) -> Result<String> {
        let leader = self.leader().await?;
        Ok(self.cluster.endpoint(leader))
    }

    /// The nodes' processes, in order of their ids.
    pub fn pids(&mut self) -> Result<Vec<u32>> {
        (1..=NODES)
            .map(|id| {
                let node = self.cluster.node(id);
                node.map(|process| process.pid())
                    .with_context(|| format!("node {id} does not run"))
            })
            .collect()
    }

    /// How far the log of node `id` is known to be committed.
    async fn committed(&self, id: usize) -> Result<u64> {
        let status = self.client.status_of(&self.cluster.endpoint(id)).await?;
        Ok(status.committed_index)
    }

    pub async fn stop(mut self) -> Result<()> {
        self.cluster.stop().await
    }
}

/// A folder on the measured disk that goes with its value.
pub fn folder(common: &Common) -> Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix("bench-")
        .tempdir_in(&common.folder)
        .with_context(|| format!("cannot make a folder in {}", common.folder.display()))
}

/// One window, with the server's CPU told apart.
pub struct Measured {
    pub seen: Seen,
    pub leader: Duration,
    pub followers: Duration,
    /// Raft entries that became committed meanwhile.
    pub entries: u64,
}

impl Measured {
    pub fn server(&self) -> Duration {
        self.leader + self.followers
    }
}

/// Runs the load under one leader, whose CPU is then told from the followers'.
pub async fn watched<W: Way>(place: &mut Place, way: &W, amount: Amount) -> Result<Measured> {
    let leader = place.leader().await?;
    let pids = place.pids()?;
    let before = place.committed(leader).await?;
    let seen = load::run(way, amount, &pids).await?;
    let after = place.committed(leader).await?;
    place.cluster.all_running()?;
    let leads_now = place.leader().await?;
    ensure!(
        leads_now == leader,
        "node {leader} led at the beginning of a measurement and node {leads_now} at its end: the machine is too busy"
    );
    let used = |chosen: fn(usize, usize) -> bool| {
        let ids = (1..).zip(&seen.watched);
        ids.filter(|(id, _)| chosen(*id, leader))
            .map(|(_, used)| *used)
            .sum()
    };
    Ok(Measured {
        leader: used(|id, leader| id == leader),
        followers: used(|id, leader| id != leader),
        entries: after.saturating_sub(before),
        seen,
    })
}
