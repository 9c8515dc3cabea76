//! A node that is brought back by a snapshot while sessions end by the dozen. Needs nothing but patience: a node keeps ten thousand
//! entries for those that lag a little, which is more than a quick test writes.

use std::time::Duration;

use anyhow::{Result, ensure};
use billing_client::{AcquireOptions, Client};
use billing_demo::harness::{Cluster, ClusterOptions, until};

use crate::{
    Fault,
    witness::{NODES, PATIENCE},
};

pub const FAULTS: &[Fault] = &[Fault {
    name: "snapshot: a node gets one while sessions expire",
    needs: &[],
    run: || Box::pin(installed_while_sessions_expire()),
}];

/// Ten thousand entries take minutes on a crowded machine.
const PURGED_WITHIN: Duration = Duration::from_secs(600);
const ASKERS: usize = 6;

/// Asks for new leases that nobody gives back, one after the other, until dropped: each ends by itself a second later.
struct Forgotten(tokio::task::JoinHandle<Result<()>>);

impl Forgotten {
    fn start(client: Client, asker: usize) -> Forgotten {
        Forgotten(tokio::spawn(async move {
            let options = AcquireOptions::default().ttl(Duration::from_secs(1));
            for number in 0_u64.. {
                let invoice = format!("forgotten-{asker}-{number}");
                // Nobody can tell while the leader changes, and the next one is another.
                if let Ok(lease) = client.acquire(&invoice, "nobody", options).await {
                    lease.settled();
                }
            }
            Ok(())
        }))
    }
}

impl Drop for Forgotten {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn installed_while_sessions_expire() -> Result<()> {
    /// Entries behind the snapshot: each compares states at least once.
    const MORE: u64 = 64;
    let folder = tempfile::tempdir()?;
    let mut options = ClusterOptions::new(folder.path().join("nodes"));
    options.flags = ["--snapshot-every", "100"].map(str::to_owned).to_vec();
    let mut cluster = Cluster::start(options)?;
    let client = Client::builder()
        .endpoints(cluster.endpoints())
        .deadline(PATIENCE)
        .build()?;
    let leader = cluster.led(&client, PATIENCE).await?;
    let late = leader % NODES + 1;
    let forgotten: Vec<_> = (0..ASKERS)
        .map(|asker| Forgotten::start(client.clone(), asker))
        .collect();
    let leads = cluster.endpoint(leader);
    let comes = cluster.endpoint(late);
    until("the late node has something", PATIENCE, async || {
        Ok(client.status_of(&comes).await?.last_log_index > 50)
    })
    .await?;
    let had = client.status_of(&comes).await?.last_log_index;
    cluster.kill(late)?;
    until("what it has is purged", PURGED_WITHIN, async || {
        ensure!(
            forgotten.iter().all(|asker| !asker.0.is_finished()),
            "somebody stopped"
        );
        Ok(client.status_of(&leads).await?.first_log_index > had + 100)
    })
    .await?;
    println!("  what node {late} lacks is purged");
    cluster.start_node(late, false)?;
    let mut installed = 0;
    until("it is there again", PATIENCE, async || {
        cluster.all_running()?;
        let Ok(view) = client.status_of(&comes).await else {
            return Ok(false);
        };
        installed = view.snapshot_index;
        Ok(view.applied_index > had && view.applied_index >= installed && installed > had)
    })
    .await?;
    println!("  it had {had} entries, and got a snapshot of {installed}");
    let goal = client.status_of(&leads).await?.applied_index + MORE;
    until("it has applied more", PATIENCE, async || {
        cluster.all_running()?;
        ensure!(
            forgotten.iter().all(|asker| !asker.0.is_finished()),
            "somebody stopped"
        );
        Ok(client.status_of(&comes).await?.applied_index >= goal)
    })
    .await?;
    // Nothing that expired was left behind in the snapshot: a TTL after the last one, nobody holds anything, on no node.
    drop(forgotten);
    for id in 1..=NODES {
        let endpoint = cluster.endpoint(id);
        until("every session has ended", PATIENCE, async || {
            let view = client.status_of(&endpoint).await?;
            Ok(view.leases == 0 && view.sessions == 0)
        })
        .await?;
    }
    cluster.all_running()?;
    cluster.stop().await
}
