//! Nodes that were made out of a backup: who takes part, from when on, and whom a restore that was repeated can harm.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use billing_core::{Actor, Bootstrap, ClusterTime, Command, Ledger, LedgerId, Stamp, WallTime};
use billing_env::Env;
use billing_proto::backup::{self, Composer};
use billing_proto::{convert, v1};
use billing_server::cli::{Cli, CliCommand};
use billing_server::config::Config;
use billing_server::node::{NodeConfig, Role};
use billing_server::restore;
use clap::{CommandFactory, FromArgMatches};

use crate::harness::*;

/// In which a node that could stand for election would have done so, more than once.
const QUIET: Duration = Duration::from_secs(4);
/// Two attempts.
const FIRST: &str = "00000000000000f1";
const SECOND: &str = "00000000000000f2";

fn plain(_: &mut NodeConfig) {}

fn patient(config: &mut NodeConfig) {
    config.election_timeout_min = Duration::from_secs(120);
    config.election_timeout_max = Duration::from_secs(240);
}

/// Three places, a backup, and no node yet.
struct Site {
    cluster: Cluster,
    folder: tempfile::TempDir,
}

impl Site {
    async fn new(tune: Tune) -> Result<Site> {
        // Whoever does not run refuses connections.
        let (cluster, _) = Cluster::prepare(tune).await?;
        let folder = tempfile::tempdir()?;
        let site = Site { cluster, folder };
        write_backup(&site.backup())?;
        Ok(site)
    }

    fn backup(&self) -> PathBuf {
        self.folder.path().join("ledger.backup")
    }

    /// What `billingd restore` does, with these words more.
    fn restore(&self, node: u64, more: &[&str]) -> Result<restore::Restored> {
        let peers: Vec<String> = (self.cluster.members.iter())
            .map(|(id, peer)| format!("{id}={}/{}", peer.client, peer.raft))
            .collect();
        let words = [
            "billingd".to_owned(),
            "restore".to_owned(),
            self.backup().display().to_string(),
            format!("--node-id={node}"),
            format!("--data-dir={}", self.cluster.folder(node).display()),
            format!("--peers={}", peers.join(",")),
        ];
        let words = words
            .into_iter()
            .chain(more.iter().map(|&word| word.to_owned()));
        let matches = Cli::command().try_get_matches_from(words)?;
        let (_, own) = matches.subcommand().context("a subcommand")?;
        let Some(CliCommand::Restore {
            file,
            restore_id,
            settings,
        }) = Cli::from_arg_matches(&matches)?.command
        else {
            return Err(anyhow!("not a restore"));
        };
        let config = Config::load(*settings, own)?;
        // It has a runtime of its own.
        let made =
            std::thread::spawn(move || restore::run(&file, restore_id, &config, &Env::real()));
        Ok(made.join().map_err(|_| anyhow!("it panicked"))??)
    }

    fn restore_all(&self, id: &str) -> Result<()> {
        for node in 1..=3 {
            self.restore(node, &["--restore-id", id])?;
        }
        Ok(())
    }

    async fn start(&mut self, nodes: &[u64]) -> Result<()> {
        for &node in nodes {
            self.cluster.restart(node).await?;
        }
        Ok(())
    }

    /// The node's disk dies.
    async fn lose(&mut self, node: u64) -> Result<()> {
        self.cluster.kill(node).await?;
        Ok(fs::remove_dir_all(self.cluster.folder(node))?)
    }

    /// Waits until `node` gives this as the reason why nobody leads.
    async fn says(&self, node: u64, said: &str) -> Result<()> {
        eventually(&format!("node {node} says: {said}"), || async {
            let answer = self
                .cluster
                .node(node)
                .propose(actor(), Command::Tick)
                .await;
            answer.is_err_and(|error| error.to_string().contains(said))
        })
        .await
    }

    /// Nobody leads, has voted or has stood for election, and nobody comes to.
    async fn stays_quiet(&self) -> Result<()> {
        tokio::time::sleep(QUIET).await;
        for (id, running) in &self.cluster.running {
            let status = running.node.status();
            ensure!(
                status.term == 1 && status.role == Role::Follower,
                "node {id}: {status:?}"
            );
        }
        Ok(())
    }

    fn nobody_ended(&self) -> Result<()> {
        for (id, running) in &self.cluster.running {
            ensure!(
                running.ended().is_none(),
                "node {id}: {:?}",
                running.ended()
            );
        }
        Ok(())
    }

    /// The cluster is led, and has restored its ledger.
    async fn serves(&self) -> Result<()> {
        let leader = self.cluster.leader().await?;
        insist(self.cluster.node(leader), open_session(1, 60_000)?).await??;
        self.cluster.same_state().await?;
        self.nobody_ended()
    }

    async fn ends(&self, node: u64) -> Result<String> {
        eventually(&format!("node {node} is told to end"), || {
            std::future::ready(self.cluster.running[&node].ended().is_some())
        })
        .await?;
        Ok(self.cluster.running[&node].ended().unwrap_or_default())
    }
}

/// Of a ledger in which nothing happened but its founding.
fn write_backup(path: &std::path::Path) -> Result<()> {
    let mut ledger = Ledger::new(billing_core::Config::default());
    let stamp = Stamp {
        base: ClusterTime(0),
        elapsed_ms: 0,
        wall: WallTime(1_700_000_000_000),
        wall_jumped_ms: 0,
    };
    let bootstrap = Command::Bootstrap(Bootstrap {
        ledger_id: LedgerId::new("demo")?,
        no_prior_charges: true,
    });
    ledger.apply(stamp, &[(Actor::ledger(), bootstrap)]);
    let (mut composer, first) = Composer::begin(v1::BackupHeader {
        ledger_format: u32::from(Ledger::FORMAT),
        ledger_id: "demo".to_owned(),
        applied_index: 7,
        wall_time: Some(convert::timestamp(stamp.wall)),
        state_hash: ledger.state_hash().to_vec(),
        ..Default::default()
    });
    let mut bytes = Vec::new();
    ledger.write_to(&mut bytes)?;
    let mut file = File::create(path)?;
    backup::write(&mut file, &first)?;
    for piece in bytes.chunks(backup::CHUNK_BYTES_MAX) {
        backup::write(&mut file, &composer.chunk(piece.to_vec()))?;
    }
    Ok(backup::write(&mut file, &composer.end())?)
}

#[tokio::test]
async fn restored_nodes_take_part_once_all_have_met() -> Result<()> {
    let mut site = Site::new(plain).await?;
    site.restore_all(FIRST)?;
    site.start(&[1, 2]).await?;
    site.says(1, "node 1 has not met node 3 yet").await?;
    site.says(2, "node 2 has not met node 3 yet").await?;
    site.stays_quiet().await?;
    // In the middle of it: what was met before is met again.
    site.cluster.kill(2).await?;
    site.start(&[2]).await?;
    site.says(2, "node 2 has not met node 3 yet").await?;
    site.stays_quiet().await?;
    site.start(&[3]).await?;
    site.serves().await
}

#[tokio::test]
async fn a_node_that_is_restored_alone_waits_for_nobody() -> Result<()> {
    let mut site = Site::new(plain).await?;
    site.cluster.members.retain(|&id, _| id == 2);
    let made = site.restore(2, &[])?;
    ensure!(made.next.is_none(), "nobody else needs the id: {made:?}");
    site.start(&[2]).await?;
    site.serves().await
}

#[tokio::test]
async fn a_folder_restored_in_place_of_one_that_others_met_never_votes() -> Result<()> {
    let mut site = Site::new(plain).await?;
    site.restore_all(FIRST)?;
    site.start(&[1, 2]).await?;
    site.says(1, "has not met node 3 yet").await?;
    site.says(2, "has not met node 3 yet").await?;
    site.lose(2).await?;
    site.restore(2, &["--restore-id", FIRST])?;
    site.start(&[2]).await?;
    let reason = site.ends(2).await?;
    ensure!(
        reason.contains("node 2 is known with data folder"),
        "{reason}"
    );
    ensure!(reason.contains("restore every node anew"), "{reason}");
    site.stays_quiet().await?;
    site.lose(2).await?;
    site.nobody_ended()?;
    // As the words said: everything anew.
    site.lose(1).await?;
    fs::remove_dir_all(site.cluster.folder(3))?;
    site.restore_all(SECOND)?;
    site.start(&[1, 2, 3]).await?;
    site.serves().await
}

#[tokio::test]
async fn a_folder_that_nobody_met_may_be_restored_again() -> Result<()> {
    let mut site = Site::new(plain).await?;
    site.restore_all(FIRST)?;
    site.start(&[1, 2]).await?;
    site.says(1, "has not met node 3 yet").await?;
    fs::remove_dir_all(site.cluster.folder(3))?;
    site.restore(3, &["--restore-id", FIRST])?;
    site.start(&[3]).await?;
    site.serves().await
}

#[tokio::test]
async fn a_node_restored_without_the_id_is_a_stranger_and_ends_nobody() -> Result<()> {
    let mut site = Site::new(plain).await?;
    let first = site.restore(1, &[])?;
    let id = (first
        .told
        .lines()
        .find_map(|line| line.strip_prefix("restore id: ")))
    .context("an id")?;
    let next = first.next.context("what to do")?;
    ensure!(next.contains(&format!("--restore-id {id}")), "{next}");
    for node in 2..=3 {
        let made = site.restore(node, &["--restore-id", id])?;
        ensure!(made.next.is_none(), "{made:?}");
    }
    site.start(&[1, 2]).await?;
    site.says(1, "has not met node 3 yet").await?;
    site.says(2, "has not met node 3 yet").await?;
    site.lose(2).await?;
    let other = site.restore(2, &[])?;
    ensure!(!other.told.contains(id), "{other:?}");
    site.start(&[2, 3]).await?;
    site.says(2, "has not met nodes 1, 3 yet").await?;
    site.says(3, "has not met node 2 yet").await?;
    site.stays_quiet().await?;
    site.nobody_ended()
}

#[tokio::test]
async fn a_node_of_an_earlier_attempt_ends_nobody() -> Result<()> {
    let mut site = Site::new(plain).await?;
    site.restore_all(FIRST)?;
    site.start(&[1, 2, 3]).await?;
    site.serves().await?;
    // Two are made anew, and the third one is forgotten: it remembers the folders that are gone.
    site.lose(1).await?;
    site.lose(2).await?;
    for node in [1, 2] {
        site.restore(node, &["--restore-id", SECOND])?;
    }
    site.start(&[1, 2]).await?;
    site.says(1, "has not met node 3 yet").await?;
    site.says(2, "has not met node 3 yet").await?;
    tokio::time::sleep(QUIET).await;
    site.nobody_ended()?;
    site.lose(3).await?;
    site.restore(3, &["--restore-id", SECOND])?;
    site.start(&[3]).await?;
    site.serves().await
}

#[tokio::test]
async fn a_stale_folder_under_the_same_id_ends_itself_and_nobody_else() -> Result<()> {
    let mut site = Site::new(plain).await?;
    site.restore_all(FIRST)?;
    site.start(&[1, 2, 3]).await?;
    site.serves().await?;
    let stale = site.folder.path().join("stale");
    site.cluster.kill(3).await?;
    fs::rename(site.cluster.folder(3), &stale)?;
    site.lose(1).await?;
    site.lose(2).await?;
    site.restore_all(FIRST)?;
    site.start(&[1, 2, 3]).await?;
    site.serves().await?;
    site.lose(3).await?;
    fs::rename(&stale, site.cluster.folder(3))?;
    site.start(&[3]).await?;
    let reason = site.ends(3).await?;
    ensure!(reason.contains("data folder"), "{reason}");
    tokio::time::sleep(QUIET).await;
    site.cluster.kill(3).await?;
    site.nobody_ended()?;
    site.cluster.leader().await?;
    Ok(())
}

#[tokio::test]
async fn a_member_that_is_lost_after_the_meeting_holds_up_nobody() -> Result<()> {
    let mut site = Site::new(patient).await?;
    site.restore_all(FIRST)?;
    site.start(&[1, 2, 3]).await?;
    for node in 1..=3 {
        site.says(node, "knows no leader").await?;
    }
    // Nobody was elected, nothing is restored: only the meeting is over.
    site.stays_quiet().await?;
    site.lose(3).await?;
    for node in [1, 2] {
        site.cluster.kill(node).await?;
    }
    site.cluster.retune_later(plain);
    site.start(&[1, 2]).await?;
    site.serves().await
}
