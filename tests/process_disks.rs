//! Disks that go wrong under a node of a real cluster: full, failing, slow, damaged, older than they were. The node says so and
//! ends, or says so and goes on slowly; the cluster goes on; nothing that was acknowledged is lost.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use billing_client::{AcquireOptions, Client, Failure, LeaseGuard, Session, SessionOptions, v1};
use billing_demo::harness::{Cluster, ClusterOptions, Home, NodeView, until};

/// For what must happen; an idle machine needs a tenth of it.
const PATIENCE: Duration = Duration::from_secs(60);
/// Nothing ends by time here.
const LONG: Duration = Duration::from_secs(300);
const NODES: usize = 3;
/// The exit codes of `billingd --help`.
const DAMAGED: i32 = 4;
const DISK: i32 = 6;
const CONTRADICTED: i32 = 7;

/// A cluster whose disks can be made to misbehave one by one, and a client that holds whatever it was granted.
struct Stage {
    folder: tempfile::TempDir,
    cluster: Cluster,
    client: Client,
    session: Session,
    kept: Vec<LeaseGuard>,
    asked: usize,
}

impl Stage {
    /// `None` where there is no C compiler for the library that misbehaves; the test says that it skips.
    async fn with_bad_disks() -> Result<Option<Stage>> {
        let folder = tempfile::tempdir()?;
        let library = folder.path().join("disk_faults.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/disk_faults.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-o"]);
        match compiler.arg(&library).arg(source).output() {
            Err(error) => {
                eprintln!("SKIPPED: no C compiler: {error}");
                return Ok(None);
            }
            Ok(ran) => ensure!(
                ran.status.success(),
                "{}",
                String::from_utf8_lossy(&ran.stderr)
            ),
        }
        let nodes = folder.path().join("nodes");
        let home = |id: usize| {
            Home::here([
                "env".to_owned(),
                format!("LD_PRELOAD={}", library.display()),
                format!("DISK_FAULTS={}", control(folder.path(), id).display()),
                format!(
                    "DISK_FAULTS_IN={}",
                    nodes.join(format!("node-{id}")).display()
                ),
            ])
        };
        let mut options = ClusterOptions::new(&nodes);
        options.homes = (1..=NODES).map(home).collect();
        Stage::set(folder, options).await.map(Some)
    }

    async fn plain() -> Result<Stage> {
        let folder = tempfile::tempdir()?;
        let options = ClusterOptions::new(folder.path().join("nodes"));
        Stage::set(folder, options).await
    }

    async fn set(folder: tempfile::TempDir, options: ClusterOptions) -> Result<Stage> {
        let mut cluster = Cluster::start(options)?;
        let client = Client::builder()
            .endpoints(cluster.endpoints())
            .deadline(PATIENCE)
            .build()?;
        cluster.led(&client, PATIENCE).await?;
        let options = SessionOptions::new("witness", LONG);
        let session = client.open_session(options).await?;
        Ok(Stage {
            folder,
            cluster,
            client,
            session,
            kept: Vec::new(),
            asked: 0,
        })
    }

    /// From now on the disk of node `id` is so.
    fn disk(&self, id: usize, state: &str) -> Result<()> {
        Ok(fs::write(control(self.folder.path(), id), state)?)
    }

    /// One more lease, held until the end. Where nobody can tell, the next invoice is asked for.
    async fn grant(&mut self) -> Result<()> {
        let mut lease = None;
        until("a lease is granted", PATIENCE, async || {
            self.asked += 1;
            let invoice = format!("inv-{}", self.asked);
            match self
                .session
                .acquire(&invoice, AcquireOptions::default())
                .await
            {
                Ok(granted) => lease = Some(granted),
                Err(Failure::Unknown(_) | Failure::NotApplied(_)) => {}
                Err(refused) => return Err(refused).context("a new invoice"),
            }
            Ok(lease.is_some())
        })
        .await?;
        self.kept.extend(lease);
        Ok(())
    }

    async fn grants(&mut self, count: usize) -> Result<()> {
        for _ in 0..count {
            self.grant().await?;
        }
        Ok(())
    }

    /// The median and the longest of so many grants.
    async fn calls(&mut self, count: usize) -> Result<(Duration, Duration)> {
        let mut took = Vec::new();
        for _ in 0..count {
            let begun = Instant::now();
            self.grant().await?;
            took.push(begun.elapsed());
        }
        took.sort_unstable();
        Ok((took[count / 2], took[count - 1]))
    }

    async fn follower(&mut self) -> Result<usize> {
        let leader = self.cluster.led(&self.client, PATIENCE).await?;
        Ok(leader % NODES + 1)
    }

    /// Works on until node `id` has ended by itself, with this code and these words.
    async fn ends(&mut self, id: usize, code: i32, words: &[&str]) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.grant().await?;
            let process = self.cluster.node(id).context("it was started")?;
            if let Some(status) = process.exited()? {
                let said = process.last_words(20);
                ensure!(status.code() == Some(code), "{status}, not {code}:\n{said}");
                for word in words {
                    ensure!(said.contains(word), "`{word}` is not in:\n{said}");
                }
                break;
            }
            ensure!(Instant::now() < deadline, "node {id} goes on");
        }
        let ended = self.cluster.ended()?.map(|(ended, _)| ended);
        ensure!(ended == Some(id), "{ended:?} ended");
        self.cluster.all_running()
    }

    /// Waits until node `id` has applied all that the others have by now.
    async fn caught_up(&mut self, id: usize) -> Result<()> {
        let leader = self.cluster.led(&self.client, PATIENCE).await?;
        let goal = self.view(leader).await?.applied_index;
        let endpoint = self.cluster.endpoint(id);
        until(
            &format!("node {id} has entry {goal}"),
            PATIENCE,
            async || {
                self.cluster.all_running()?;
                let view = self.client.status_of(&endpoint).await;
                Ok(view.is_ok_and(|view| view.applied_index >= goal))
            },
        )
        .await
    }

    async fn view(&self, id: usize) -> Result<NodeView> {
        let endpoint = self.cluster.endpoint(id);
        let mut view = None;
        until(&format!("node {id} answers"), PATIENCE, async || {
            view = self.client.status_of(&endpoint).await.ok();
            Ok(view.is_some())
        })
        .await?;
        view.context("it answered")
    }

    /// Everything that was granted stands under its token.
    async fn check(mut self) -> Result<()> {
        for lease in std::mem::take(&mut self.kept) {
            let found = self.client.get_lease(lease.invoice_id(), false).await?;
            let token = found.map(|found| found.token);
            ensure!(
                token == Some(lease.token().0),
                "{} was acknowledged under {} and stands under {token:?}",
                lease.invoice_id(),
                lease.token()
            );
            lease.settled();
        }
        self.cluster.stop().await
    }
}

fn control(folder: &Path, id: usize) -> PathBuf {
    folder.join(format!("disk-{id}"))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = Command::new("cp").arg("-r").arg(from).arg(to).status()?;
    ensure!(copied.success(), "cp");
    Ok(())
}

#[tokio::test]
async fn a_node_whose_disk_fails_or_is_full_ends_and_the_cluster_goes_on() -> Result<()> {
    let Some(mut stage) = Stage::with_bad_disks().await? else {
        return Ok(());
    };
    for (state, words) in [
        ("full", ["no space left", "free space"]),
        ("eio", ["failed", "check the disk"]),
    ] {
        for leads in [false, true] {
            let follower = stage.follower().await?;
            let leader = stage.cluster.led(&stage.client, PATIENCE).await?;
            let victim = if leads { leader } else { follower };
            stage.grants(5).await?;
            stage.disk(victim, state)?;
            stage
                .ends(victim, DISK, &words)
                .await
                .with_context(|| format!("{state}, leads: {leads}"))?;
            stage.grants(5).await?;
            // The operator made room, or changed the disk's cable: nothing was lost, so it goes on under its id.
            stage.disk(victim, "ok")?;
            stage.cluster.start_node(victim, false)?;
            stage.caught_up(victim).await?;
        }
    }
    stage.check().await
}

#[tokio::test]
async fn a_slow_disk_slows_nobody_but_its_node() -> Result<()> {
    /// A hundred times slower than a bad disk, and longer than every election timeout.
    const SLOW: &str = "slow 2000";
    /// What a call may take although one disk hardly answers: a majority of the other two takes milliseconds. And as long again
    /// as some calls took with good disks, which is what a crowded machine adds.
    const CALL_MAX: Duration = Duration::from_secs(8);
    const CALLS: usize = 60;
    let Some(mut stage) = Stage::with_bad_disks().await? else {
        return Ok(());
    };
    for leads in [false, true] {
        let follower = stage.follower().await?;
        let leader = stage.cluster.led(&stage.client, PATIENCE).await?;
        let victim = if leads { leader } else { follower };
        let (_, before) = stage.calls(CALLS).await?;
        stage.disk(victim, SLOW)?;
        let (median, longest) = stage.calls(CALLS).await?;
        let shown = format!(
            "slow disk of a leader: {leads}; longest {before:?} before, median {median:?}, longest {longest:?}"
        );
        println!("{shown}");
        ensure!(longest < CALL_MAX + 4 * before, "{shown}");
        stage.disk(victim, "ok")?;
        stage.caught_up(victim).await?;
    }
    stage.check().await
}

#[tokio::test]
async fn a_node_whose_log_rots_ends_and_another_takes_its_place() -> Result<()> {
    let mut stage = Stage::plain().await?;
    stage.grants(200).await?;
    let hurt = stage.follower().await?;
    stage.caught_up(hurt).await?;
    stage.cluster.kill(hurt)?;
    let journal = stage.cluster.data(hurt).join("journal");
    let mut bytes = fs::read(&journal)?;
    let name = b"inv-50";
    let found = bytes.windows(name.len()).position(|at| at == name);
    bytes[found.context("an old record is in the journal")?] ^= 1;
    fs::write(&journal, bytes)?;
    stage.cluster.start_node(hurt, false)?;
    let words = [
        "is damaged",
        "do not start this node again",
        "billingd join",
    ];
    stage.ends(hurt, DAMAGED, &words).await?;

    // As it says: a new node, under a new id, in its place.
    let new = stage
        .cluster
        .join(None, &["--replaces", &hurt.to_string()])?;
    until("the new node has its vote", PATIENCE, async || {
        stage.cluster.all_running()?;
        let view = stage.client.status_of(&stage.cluster.endpoint(new)).await;
        Ok(view.is_ok_and(|view| {
            let mut voters = view.members.iter().filter(|member| member.voter);
            voters.any(|member| member.node_id == new as u64)
                && view
                    .members
                    .iter()
                    .all(|member| member.node_id != hurt as u64)
        }))
    })
    .await?;
    stage.caught_up(new).await?;
    stage.check().await
}

#[tokio::test]
async fn a_folder_that_was_rolled_back_as_a_whole_is_seen() -> Result<()> {
    let mut stage = Stage::plain().await?;
    stage.grants(20).await?;
    let odd = stage.follower().await?;
    stage.caught_up(odd).await?;
    stage.cluster.kill(odd)?;
    let (data, older) = (stage.cluster.data(odd), stage.folder.path().join("older"));
    copy(&data, &older)?;
    stage.cluster.start_node(odd, false)?;
    stage.grants(100).await?;
    stage.caught_up(odd).await?;
    let leader = stage.cluster.led(&stage.client, PATIENCE).await?;
    stage.cluster.kill(odd)?;
    fs::remove_dir_all(&data)?;
    copy(&older, &data)?;
    stage.cluster.start_node(odd, false)?;
    let words = ["older", billing_store::REJOIN];
    stage.ends(odd, CONTRADICTED, &words).await?;
    ensure!(stage.cluster.led(&stage.client, PATIENCE).await? == leader);
    stage.grants(5).await?;
    stage.check().await
}

#[tokio::test]
async fn a_follower_whose_log_is_cut_back_is_there_again_after_any_kill() -> Result<()> {
    const ROUNDS: u64 = 4;
    let mut stage = Stage::plain().await?;
    for round in 0..ROUNDS {
        stage.grants(10).await?;
        let old = stage.cluster.led(&stage.client, PATIENCE).await?;
        let others: Vec<usize> = (1..=NODES).filter(|&id| id != old).collect();
        for &other in &others {
            stage.caught_up(other).await?;
        }
        // Alone, a leader goes on writing what nobody else has: the tail that is cut off later.
        for &other in &others {
            stage.cluster.kill(other)?;
        }
        let before = stage.view(old).await?;
        let lonely = Client::builder()
            .endpoints([stage.cluster.endpoint(old)])
            .deadline(Duration::from_secs(2))
            .build()?;
        for nth in 0..20 {
            let options = AcquireOptions::default().ttl(LONG);
            let invoice = format!("lonely-{round}-{nth}");
            let client = lonely.clone();
            // Never granted: nobody waits for it.
            tokio::spawn(async move { client.acquire(&invoice, "nobody", options).await });
        }
        until("the tail is written", PATIENCE, async || {
            let view = stage.view(old).await?;
            Ok(view.last_log_index > before.last_log_index)
        })
        .await?;
        let tail = stage.view(old).await?;
        ensure!(tail.committed_index < tail.last_log_index, "{tail:?}");
        stage.cluster.kill(old)?;
        for &other in &others {
            stage.cluster.start_node(other, false)?;
        }
        stage.cluster.led(&stage.client, PATIENCE).await?;
        stage.grants(30).await?;

        // Killed again at different moments of being brought to heel.
        for nth in 0..3 {
            stage.cluster.start_node(old, false)?;
            tokio::time::sleep(Duration::from_millis(40 * (1 + round * 3 + nth))).await;
            stage.cluster.all_running()?;
            stage.cluster.kill(old)?;
        }
        stage.cluster.start_node(old, false)?;
        stage.caught_up(old).await?;
        for nth in 0..20 {
            let request = format!("lonely-{round}-{nth}");
            let stands = stage.client.get_lease(&request, false).await?;
            ensure!(
                stands.is_none(),
                "{request} was never committed: {stands:?}"
            );
        }
    }
    let views = stage.cluster.views(&stage.client).await;
    if let Some(missing) = views.iter().position(Option::is_none) {
        bail!("node {} does not answer", missing + 1);
    }
    let hashes: Vec<_> = views.iter().flatten().map(|view| view.term).collect();
    ensure!(
        hashes.windows(2).all(|pair| pair[0] == pair[1]),
        "{hashes:?}"
    );
    ensure!(
        views
            .iter()
            .flatten()
            .filter(|view| view.role == v1::NodeRole::Leader as i32)
            .count()
            == 1
    );
    stage.check().await
}
