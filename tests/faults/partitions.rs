//! Networks that are cut: each node lives on a machine of its own, a network namespace tied to a switch. What is cut loses packets
//! in silence, in one direction or both.

use std::{process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use billing_client::{AcquireOptions, Client};
use billing_demo::harness::{Cluster, ClusterOptions, Home, Lan, Output, Process, binary};

use crate::{
    Fault,
    needs::Need,
    witness::{NODES, PATIENCE, Witness, agreed},
};

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "partition: the leader in the minority",
        needs: &[Need::Networks],
        run: || Box::pin(leader_in_the_minority()),
    },
    Fault {
        name: "partition: a follower hears nothing and speaks",
        needs: &[Need::Networks, Need::Nft],
        run: || Box::pin(deaf_follower()),
    },
    Fault {
        name: "partition: the leader hears nothing and speaks",
        needs: &[Need::Networks, Need::Nft],
        run: || Box::pin(one_way(Cut::LeaderIsDeaf)),
    },
    Fault {
        name: "partition: nobody hears the leader, which hears all",
        needs: &[Need::Networks, Need::Nft],
        run: || Box::pin(one_way(Cut::LeaderIsMute)),
    },
    Fault {
        name: "partition: two nodes do not meet, the third meets both",
        needs: &[Need::Networks, Need::Nft],
        run: || Box::pin(one_way(Cut::Bridge)),
    },
    Fault {
        name: "partition: only the clients and the leader",
        needs: &[Need::Networks, Need::Nft],
        run: || Box::pin(one_way(Cut::ClientsAndLeader)),
    },
];

/// After a healed network a node that never stood for election alone disturbs nobody: a term or two at most.
const TERMS_MAX: u64 = 2;
/// How long a one-way partition lasts beyond the first grants under it: several election timeouts.
const CUT_FOR: Duration = Duration::from_secs(6);
/// Grants before, under and after a cut.
const GRANTS: usize = 40;

struct Stage {
    folder: tempfile::TempDir,
    lan: Lan,
    homes: Vec<Home>,
    cluster: Cluster,
    client: Client,
    witness: Witness,
    leader: usize,
    term: u64,
}

impl Stage {
    async fn set() -> Result<Stage> {
        let folder = tempfile::tempdir()?;
        let lan = Lan::plug_in(NODES)?;
        let homes = lan.homes();
        let mut options = ClusterOptions::new(folder.path().join("nodes"));
        options.homes = homes.clone();
        options.flags.push("--insecure".to_owned());
        let mut cluster = Cluster::start(options)?;
        let client = Client::builder()
            .endpoints(cluster.endpoints())
            .deadline(PATIENCE)
            .build()?;
        cluster.led(&client, PATIENCE).await?;
        let (leader, term) = agreed(&mut cluster, &client).await?;
        let witness = Witness::start(&client, 2).await?;
        witness.goes_on(GRANTS).await?;
        Ok(Stage {
            folder,
            lan,
            homes,
            cluster,
            client,
            witness,
            leader,
            term,
        })
    }

    /// Runs billingctl on the machine of node `id`, against that node alone: its exit code and its words.
    async fn ask_there(&self, id: usize, words: &[&str]) -> Result<(Option<i32>, String)> {
        let (first, rest) = self.homes[id - 1]
            .enter
            .split_first()
            .context("no way in")?;
        let mut command = Command::new(first);
        command
            .args(rest)
            .arg(binary("billingctl")?)
            .args(["--endpoints", &self.cluster.endpoint(id), "--timeout", "4s"])
            .args(words);
        let log = self.folder.path().join("asked.log");
        // What an earlier question left there is not this one's answer.
        let _ = std::fs::remove_file(&log);
        let mut asked = Process::start("billingctl", command, &Output::File(log))?;
        let status = asked.ended(PATIENCE).await?.context("it does not end")?;
        Ok((status.code(), asked.last_words(20)))
    }

    /// Everything is as before, everybody follows one leader, and whatever was acknowledged stands.
    async fn check(mut self) -> Result<()> {
        let (_, term) = agreed(&mut self.cluster, &self.client).await?;
        println!("  term {} before, {term} after", self.term);
        self.witness.goes_on(GRANTS).await?;
        let checked = self.witness.check(&self.client).await?;
        println!("  {checked} acknowledged leases stand");
        self.cluster.stop().await
    }
}

async fn leader_in_the_minority() -> Result<()> {
    let stage = Stage::set().await?;
    let (old, term) = (stage.leader, stage.term);
    let held = stage
        .client
        .acquire("held", "ana", AcquireOptions::default())
        .await?;
    stage.lan.unplug(old)?;
    // At once: it still believes that it leads.
    let (read, said) = stage.ask_there(old, &["lease", "get", "held"]).await?;
    ensure!(read != Some(0), "it read without a majority: {said}");
    let (took, said) = stage.ask_there(old, &["lease", "acquire", "new"]).await?;
    ensure!(took != Some(0), "it granted without a majority: {said}");
    let gap = stage.witness.goes_on(GRANTS).await?;
    println!("  the majority goes on after {gap:.1?}");
    held.release().await?;
    let next = stage
        .client
        .acquire("held", "ben", AcquireOptions::default())
        .await?;
    let others = (1..=NODES).filter(|&id| id != old);
    for id in others {
        let view = stage.client.status_of(&stage.cluster.endpoint(id)).await?;
        ensure!(
            view.term > term && view.leader_id != old as u64,
            "node {id} follows {} in term {}",
            view.leader_id,
            view.term
        );
    }
    // And later, when it has given up.
    let (read, said) = stage.ask_there(old, &["lease", "get", "held"]).await?;
    ensure!(read != Some(0), "it read without a majority: {said}");
    stage.lan.plug(old)?;
    let found = stage.client.get_lease("held", false).await?;
    ensure!(found.map(|lease| lease.token) == Some(next.token().0));
    next.release().await?;
    stage.check().await
}

async fn deaf_follower() -> Result<()> {
    let mut stage = Stage::set().await?;
    let deaf = stage.leader % NODES + 1;
    for other in (1..=NODES).filter(|&id| id != deaf) {
        stage.lan.deafen(deaf, other)?;
    }
    stage.witness.goes_on(GRANTS).await?;
    tokio::time::sleep(CUT_FOR).await; // The cut itself.
    let gap = stage.witness.goes_on(GRANTS).await?;
    println!("  {GRANTS} more grants in {gap:.1?}");
    let leader = stage.cluster.endpoint(stage.leader);
    let view = stage.client.status_of(&leader).await?;
    ensure!(
        (view.leader_id, view.term) == (stage.leader as u64, stage.term),
        "it disturbed the others: node {} leads in term {}, not {}",
        view.leader_id,
        view.term,
        stage.term
    );
    stage.lan.hear(deaf)?;
    let (_, term) = agreed(&mut stage.cluster, &stage.client).await?;
    ensure!(
        term <= stage.term + TERMS_MAX,
        "{term} after {}",
        stage.term
    );
    stage.check().await
}

#[derive(Clone, Copy)]
enum Cut {
    LeaderIsDeaf,
    LeaderIsMute,
    Bridge,
    ClientsAndLeader,
}

async fn one_way(cut: Cut) -> Result<()> {
    let mut stage = Stage::set().await?;
    let leader = stage.leader;
    let others: Vec<usize> = (1..=NODES).filter(|&id| id != leader).collect();
    let deaf: Vec<(usize, usize)> = match cut {
        Cut::LeaderIsDeaf => others.iter().map(|&other| (leader, other)).collect(),
        Cut::LeaderIsMute => others.iter().map(|&other| (other, leader)).collect(),
        Cut::Bridge => vec![(leader, others[0]), (others[0], leader)],
        // Zero is where the clients are.
        Cut::ClientsAndLeader => vec![(leader, 0)],
    };
    for &(who, from) in &deaf {
        stage.lan.deafen(who, from)?;
    }
    let gap = stage.witness.goes_on(GRANTS).await?;
    println!("  grants go on: {GRANTS} took {gap:.1?}");
    tokio::time::sleep(CUT_FOR).await; // The cut itself.
    let gap = stage.witness.goes_on(GRANTS).await?;
    println!("  and later: {GRANTS} took {gap:.1?}");
    // Of those that the others hear; a node that nobody hears may be anything.
    let mut terms = Vec::new();
    for id in 1..=NODES {
        if let Ok(view) = stage.client.status_of(&stage.cluster.endpoint(id)).await {
            terms.push((id, view.term, view.leader_id));
        }
    }
    println!("  (node, term, leader) under it: {terms:?}");
    let highest = terms.iter().map(|(_, term, _)| *term).max();
    ensure!(
        highest.is_some_and(|highest| highest <= stage.term + 2 * TERMS_MAX),
        "elections without end: {terms:?} after term {}",
        stage.term
    );
    if let Cut::ClientsAndLeader = cut {
        ensure!(
            terms.iter().all(|(_, term, _)| *term == stage.term),
            "the nodes among themselves are well: {terms:?}"
        );
    }
    let mut hearers: Vec<usize> = deaf.iter().map(|(who, _)| *who).collect();
    hearers.sort_unstable();
    hearers.dedup();
    for who in hearers {
        stage.lan.hear(who)?;
    }
    let (_, term) = agreed(&mut stage.cluster, &stage.client).await?;
    ensure!(
        term <= stage.term + 3 * TERMS_MAX,
        "elections without end: {term} after {}",
        stage.term
    );
    stage.check().await
}
