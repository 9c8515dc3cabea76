//! Disks of their own: one that is really full, and disks that lose at a power cut what was not synced. Mounted where nobody else
//! sees them, and gone with this program.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use billing_client::{Client, v1};
use billing_demo::harness::{
    Cluster, ClusterOptions, Home, Output, Process, mount, private_mounts, until,
};
use billing_env::Env;

use crate::{
    Fault,
    needs::{Need, lossy_disk},
    witness::{NODES, PATIENCE, Witness, agreed},
};

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "disk: a small file system is full",
        needs: &[Need::Mounts],
        run: || Box::pin(full()),
    },
    Fault {
        name: "disk: the power goes and unsynced writes are lost",
        needs: &[Need::Mounts, Need::Fuse],
        run: || Box::pin(power_loss()),
    },
];

/// Of `billingd --help`.
const DISK: i32 = 6;
const GRANTS: usize = 40;

async fn full() -> Result<()> {
    const BATCH: usize = 500;
    private_mounts()?;
    let folder = tempfile::tempdir()?;
    let small = folder.path().join("small");
    fs::create_dir(&small)?;
    let at = small.to_str().context("a path in UTF-8")?;
    mount(&["-t", "tmpfs", "-o", "size=12m", "none", at])?;
    let mut homes = vec![Home::here(["env".to_owned()]); NODES];
    homes[0].disk = Some(small.clone());
    let mut options = ClusterOptions::new(folder.path().join("nodes"));
    options.homes = homes;
    let mut cluster = Cluster::start(options)?;
    let client = Client::builder()
        .endpoints(cluster.endpoints())
        .deadline(PATIENCE)
        .build()?;
    cluster.led(&client, PATIENCE).await?;
    let invoice = |number: usize| v1::Invoice {
        invoice_id: format!("inv-{number:0>100}"),
        customer_id: "c".repeat(128),
        amount_minor: 100,
        currency: "EUR".to_owned(),
        ..Default::default()
    };
    let mut submitted = 0;
    let status = loop {
        let batch = (submitted..submitted + BATCH).map(invoice);
        let done = client.submit_invoices(batch, |_| {}).await?;
        ensure!(done.submitted + done.unchanged == BATCH as u64, "{done:?}");
        submitted += BATCH;
        if let Some(status) = cluster.node(1).context("it was started")?.exited()? {
            break status;
        }
        ensure!(submitted < 500_000, "its disk is never full");
    };
    let said = cluster.node(1).context("it was started")?.last_words(20);
    ensure!(status.code() == Some(DISK), "{status}:\n{said}");
    for word in ["no space left", "free space"] {
        ensure!(said.contains(word), "`{word}` is not in:\n{said}");
    }
    ensure!(cluster.ended()?.map(|(id, _)| id) == Some(1));
    println!("  full after {submitted} invoices; the others go on");
    let more = (submitted..submitted + BATCH).map(invoice);
    client.submit_invoices(more, |_| {}).await?;

    mount(&["-o", "remount,size=512m", at])?;
    cluster.start_node(1, false)?;
    agreed(&mut cluster, &client).await?;
    let goal = client.status().await?.applied_index;
    let endpoint = cluster.endpoint(1);
    until("it has caught up", PATIENCE, async || {
        cluster.all_running()?;
        let view = client.status_of(&endpoint).await;
        Ok(view.is_ok_and(|view| view.applied_index >= goal))
    })
    .await?;
    cluster.stop().await
}

/// One disk: its platter, where it is mounted, and who serves it.
struct Disk {
    program: PathBuf,
    platter: PathBuf,
    mounted: PathBuf,
    server: Option<Process>,
    log: PathBuf,
}

impl Disk {
    fn new(program: &Path, folder: &Path, id: usize) -> Result<Disk> {
        let disk = Disk {
            program: program.to_owned(),
            platter: folder.join(format!("platter-{id}")),
            mounted: folder.join(format!("disk-{id}")),
            server: None,
            log: folder.join(format!("disk-{id}.log")),
        };
        fs::create_dir(&disk.platter)?;
        fs::create_dir(&disk.mounted)?;
        Ok(disk)
    }

    async fn power_on(&mut self) -> Result<()> {
        let seed = Env::real().random.next_u64();
        let mut command = Command::new(&self.program);
        command
            .arg(&self.platter)
            .arg(&self.mounted)
            .arg(seed.to_string());
        let mut server = Process::start("lossy_disk", command, &Output::File(self.log.clone()))?;
        let marker = self.mounted.to_str().context("a path in UTF-8")?.to_owned();
        until("the disk is mounted", PATIENCE, async || {
            if let Some(status) = server.exited()? {
                bail!("lossy_disk ended ({status}): {}", server.last_words(5));
            }
            // Of this thread's namespace, not of the process's first thread.
            Ok(fs::read_to_string("/proc/thread-self/mounts")?.contains(&marker))
        })
        .await?;
        self.server = Some(server);
        Ok(())
    }

    /// What was not synced is lost, page by page, as chance has it.
    async fn power_off(&mut self) -> Result<()> {
        let mut server = self.server.take().context("its power is off")?;
        // Its answer is that it is gone.
        let _ = fs::File::create(self.mounted.join("power-off"));
        let status = server.ended(PATIENCE).await?.context("it goes on")?;
        ensure!(status.success(), "{status}: {}", server.last_words(5));
        let ran = Command::new("umount")
            .arg("-l")
            .arg(&self.mounted)
            .status()?;
        ensure!(ran.success(), "umount {}", self.mounted.display());
        Ok(())
    }
}

async fn power_loss() -> Result<()> {
    const ROUNDS: usize = 8;
    private_mounts()?;
    let folder = tempfile::tempdir()?;
    let program = lossy_disk(folder.path())?;
    let (mut disks, mut homes) = (Vec::new(), Vec::new());
    for id in 1..=NODES {
        let mut disk = Disk::new(&program, folder.path(), id)?;
        disk.power_on().await?;
        let mut home = Home::here(["env".to_owned()]);
        home.disk = Some(disk.mounted.clone());
        homes.push(home);
        disks.push(disk);
    }
    let mut options = ClusterOptions::new(folder.path().join("nodes"));
    options.homes = homes;
    // Often enough that the power goes in the middle of a snapshot, too.
    options.flags = ["--snapshot-every", "200"].map(str::to_owned).to_vec();
    let mut cluster = Cluster::start(options)?;
    let client = Client::builder()
        .endpoints(cluster.endpoints())
        .deadline(PATIENCE)
        .build()?;
    cluster.led(&client, PATIENCE).await?;
    let witness = Witness::start(&client, 8).await?;
    for round in 0..ROUNDS {
        witness.goes_on(GRANTS).await?;
        // A moment is what is tested: anything may be under way.
        let moment = Env::real().random.next_u64() % 300;
        tokio::time::sleep(Duration::from_millis(moment)).await;
        // All at once, or one of them while the others go on.
        let struck: Vec<usize> = match round % 3 {
            2 => vec![cluster.led(&client, PATIENCE).await?],
            _ => (1..=NODES).collect(),
        };
        for &id in &struck {
            cluster.kill(id)?;
        }
        for &id in &struck {
            disks[id - 1].power_off().await?;
        }
        if struck.len() < NODES {
            witness.goes_on(GRANTS).await?;
        }
        for &id in &struck {
            disks[id - 1].power_on().await?;
            cluster.start_node(id, false)?;
        }
        cluster.led(&client, PATIENCE).await?;
        println!(
            "  round {round}: the power of {struck:?} went after {} grants",
            witness.granted()
        );
    }
    witness.goes_on(GRANTS).await?;
    agreed(&mut cluster, &client).await?;
    let checked = witness.check(&client).await?;
    println!("  {checked} acknowledged leases stand after {ROUNDS} power cuts");
    cluster.stop().await
}
