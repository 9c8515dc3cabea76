//! Real `billingd` processes and everything that an operator can get wrong: each ends with a message that says what to do and
//! with the exit code that `billingd --help` documents, and nothing is lost. The binary is built before (`make test`).

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use billing_demo::harness::{Output, Process, Signal, binary, free_ports};
use billing_proto::v1::{self, invoice_service_client::InvoiceServiceClient};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

/// For what must happen; an idle machine needs a tenth of it.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Does something to the files of a folder that a node will open.
type Damage = fn(&Path) -> Result<()>;

/// The exit codes of `billingd --help`.
const USAGE: i32 = 2;
const FOLDER: i32 = 3;
const DAMAGED: i32 = 4;
const ADDRESS: i32 = 5;
const DISK: i32 = 6;
const CONTRADICTED: i32 = 7;
const HURRIED: i32 = 8;

/// A place for folders and logs, and the ports of one node.
struct Place {
    folder: tempfile::TempDir,
    listen: String,
    raft_listen: String,
    started: std::cell::Cell<u32>,
}

impl Place {
    fn new() -> Result<Place> {
        let ports = free_ports(2)?;
        Ok(Place {
            folder: tempfile::tempdir()?,
            listen: format!("127.0.0.1:{}", ports[0]),
            raft_listen: format!("127.0.0.1:{}", ports[1]),
            started: std::cell::Cell::new(0),
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Node `id` with its data in the folder `name`, at this place's addresses.
    fn node(&self, id: u32, name: &str, more: &[&str]) -> Result<Command> {
        let mut command = Command::new(binary("billingd")?);
        command
            .args([
                "--node-id",
                &id.to_string(),
                "--listen",
                &self.listen,
                "--raft-listen",
                &self.raft_listen,
            ])
            .arg("--data-dir")
            .arg(self.path(name))
            .args(more);
        Ok(command)
    }

    fn start(&self, command: Command) -> Result<Process> {
        let nth = self.started.get();
        self.started.set(nth + 1);
        Process::start(
            "billingd",
            command,
            &Output::File(self.path(&format!("log-{nth}"))),
        )
    }

    /// Founds a cluster of one in the folder `name` and leaves it in order.
    async fn found(&self, name: &str) -> Result<()> {
        let mut process = self.start(self.node(1, name, FOUND)?)?;
        serves(&mut process).await?;
        process.signal(Signal::TERM)?;
        ends(&mut process, 0, &["ended"]).await
    }

    /// The process ends by itself, with this code and these words.
    async fn refused(&self, command: Command, code: i32, words: &[&str]) -> Result<()> {
        ends(&mut self.start(command)?, code, words).await
    }
}

const FOUND: &[&str] = &["--bootstrap", "--ledger-id", "mine", "--no-prior-charges"];

fn said(process: &Process) -> String {
    process
        .log()
        .and_then(|log| fs::read_to_string(log).ok())
        .unwrap_or_default()
}

async fn ends(process: &mut Process, code: i32, words: &[&str]) -> Result<()> {
    let Some(status) = process.ended(PATIENCE).await? else {
        bail!("it did not end:\n{}", said(process));
    };
    let said = said(process);
    ensure!(status.code() == Some(code), "{status}, not {code}:\n{said}");
    ensure!(!said.contains("panicked"), "a panic:\n{said}");
    for word in words {
        ensure!(said.contains(word), "`{word}` is not in:\n{said}");
    }
    Ok(())
}

async fn serves(process: &mut Process) -> Result<()> {
    says(process, "serving=true").await
}

/// The process logs these words, and has not ended before. Its log is all that another process shows.
async fn says(process: &mut Process, words: &str) -> Result<()> {
    let seen = async {
        while !said(process).contains(words) {
            if let Some(status) = process.exited()? {
                bail!("it ended ({status})");
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    };
    match timeout(PATIENCE, seen).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => bail!("{error}:\n{}", said(process)),
        Err(_) => bail!("it does not say `{words}`:\n{}", said(process)),
    }
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
    let mut bytes = fs::read(path)?;
    change(&mut bytes);
    fs::write(path, bytes)?;
    Ok(())
}

#[tokio::test]
async fn wrong_settings_start_nothing() -> Result<()> {
    let place = Place::new()?;
    place
        .refused(
            place.node(1, "a", &["--frobnicate"])?,
            USAGE,
            &["--frobnicate", "--help"],
        )
        .await?;
    place
        .refused(place.node(0, "a", &[])?, USAGE, &["node_id", "start at 1"])
        .await?;
    let mut outside = Command::new(binary("billingd")?);
    outside.args([
        "--node-id",
        "1",
        "--data-dir",
        "a",
        "--listen",
        "0.0.0.0:7101",
    ]);
    place
        .refused(outside, USAGE, &["--listen", "--insecure"])
        .await?;
    let file = place.path("billingd.toml");
    fs::write(&file, "heartbeat = \"250ms\"\nhartbeat = \"250ms\"\n")?;
    let file = file.display().to_string();
    place
        .refused(
            place.node(1, "a", &["--config", &file])?,
            USAGE,
            &["line 2", "hartbeat"],
        )
        .await?;
    ensure!(!place.path("a").exists(), "nothing was made");
    Ok(())
}

#[tokio::test]
async fn check_config_says_what_holds_and_why_and_starts_nothing() -> Result<()> {
    let place = Place::new()?;
    let file = place.path("billingd.toml");
    fs::write(&file, "node_id = 1\nsnapshot_every = 500\n")?;
    let ran = Command::new(binary("billingd")?)
        .args(["check-config", "--data-dir", "nowhere", "--config"])
        .arg(&file)
        .env("BILLINGD_HEARTBEAT", "300ms")
        .output()?;
    let said = String::from_utf8(ran.stdout)?;
    ensure!(
        ran.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    for (setting, source) in [
        ("snapshot_every = 500", "billingd.toml"),
        ("heartbeat = \"300ms\"", "BILLINGD_HEARTBEAT"),
        ("data_dir = \"nowhere\"", "--data-dir"),
        ("log = \"info\"", "default"),
    ] {
        let line = said.lines().find(|line| line.starts_with(setting));
        ensure!(
            line.is_some_and(|line| line.contains(source)),
            "{setting} from {source}:\n{said}"
        );
    }
    ensure!(!Path::new("nowhere").exists(), "nothing was made");
    Ok(())
}

#[tokio::test]
async fn a_folder_serves_the_node_that_it_was_made_for_and_no_other() -> Result<()> {
    let place = Place::new()?;
    let empty = &["holds no node", "--bootstrap", "billingd join"];
    place
        .refused(place.node(1, "a", &[])?, FOLDER, empty)
        .await?;
    fs::create_dir(place.path("empty"))?;
    place
        .refused(place.node(1, "empty", &[])?, FOLDER, empty)
        .await?;
    place.found("a").await?;
    place
        .refused(
            place.node(1, "a", FOUND)?,
            FOLDER,
            &["already holds node 1", "leave --bootstrap"],
        )
        .await?;
    place
        .refused(
            place.node(2, "a", &[])?,
            FOLDER,
            &["belongs to node 1, not to node 2", "its own folder"],
        )
        .await?;
    let other = &["--ledger-id", "other"];
    place
        .refused(
            place.node(1, "a", other)?,
            FOLDER,
            &["cluster mine, not to other", "its own folder"],
        )
        .await?;
    fs::create_dir(place.path("mail"))?;
    fs::write(place.path("mail").join("inbox"), "hello")?;
    place
        .refused(
            place.node(1, "mail", FOUND)?,
            FOLDER,
            &["not made by billingd", "inbox", "empty folder"],
        )
        .await?;
    ensure!(
        fs::read_to_string(place.path("mail").join("inbox"))? == "hello",
        "it was touched"
    );

    // After all that was refused the node itself is as well as before.
    let mut process = place.start(place.node(1, "a", &[])?)?;
    serves(&mut process).await?;
    let elsewhere = Place::new()?;
    let mut second = elsewhere.node(1, "unused", &[])?;
    second.arg("--data-dir").arg(place.path("a"));
    // A flag given twice is a mistake of its own.
    elsewhere.refused(second, USAGE, &["--data-dir"]).await?;
    let mut second = Command::new(binary("billingd")?);
    second
        .args([
            "--node-id",
            "1",
            "--listen",
            &elsewhere.listen,
            "--raft-listen",
            &elsewhere.raft_listen,
            "--data-dir",
        ])
        .arg(place.path("a"));
    elsewhere
        .refused(
            second,
            FOLDER,
            &["in use by another process", "stop the other one"],
        )
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_newer_format_is_refused_and_left_alone() -> Result<()> {
    let place = Place::new()?;
    place.found("a").await?;
    let identity = place.path("a").join("identity");
    change(&identity, |bytes| {
        bytes[8] = bytes[8].wrapping_add(1);
        let crc = crc32c::crc32c(&bytes[..12]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    })?;
    let before = fs::read(&identity)?;
    place
        .refused(
            place.node(1, "a", &[])?,
            FOLDER,
            &["newer billingd", "format 3", "upgrade the binary"],
        )
        .await?;
    ensure!(fs::read(&identity)? == before, "it was touched");
    Ok(())
}

#[tokio::test]
async fn a_damaged_folder_never_votes_again() -> Result<()> {
    let place = Place::new()?;
    place.found("a").await?;
    let damages: [(&str, Damage); 5] = [
        ("identity", |folder| {
            change(&folder.join("identity"), |bytes| bytes[40] ^= 1)
        }),
        ("log/db flipped", |folder| {
            change(&folder.join("log/db"), |bytes| {
                let end = bytes.iter().rposition(|&byte| byte != 0).unwrap_or(0);
                bytes[end / 2] ^= 1;
            })
        }),
        ("journal lost", |folder| {
            Ok(fs::remove_file(folder.join("journal"))?)
        }),
        ("log lost", |folder| {
            Ok(fs::remove_dir_all(folder.join("log"))?)
        }),
        ("identity lost", |folder| {
            Ok(fs::remove_file(folder.join("identity"))?)
        }),
    ];
    for (what, damage) in damages {
        let copy = place.path("copy");
        let copied = Command::new("cp")
            .arg("-r")
            .arg(place.path("a"))
            .arg(&copy)
            .status()?;
        ensure!(copied.success(), "cp");
        damage(&copy)?;
        let advice = &[
            "is damaged",
            "do not start this node again under its id",
            "billingd join",
        ];
        place
            .refused(place.node(1, "copy", &[])?, DAMAGED, advice)
            .await
            .with_context(|| what.to_owned())?;
        fs::remove_dir_all(copy)?;
    }
    Ok(())
}

#[tokio::test]
async fn a_port_in_use_is_named_before_any_folder_is_touched() -> Result<()> {
    let place = Place::new()?;
    let mut running = place.start(place.node(1, "a", FOUND)?)?;
    serves(&mut running).await?;
    let taken = &[
        "cannot listen on",
        place.listen.as_str(),
        "--listen",
        "another port",
    ];
    place
        .refused(place.node(1, "b", FOUND)?, ADDRESS, taken)
        .await?;
    let mut raft = Command::new(binary("billingd")?);
    raft.args([
        "--node-id",
        "1",
        "--listen",
        "127.0.0.1:0",
        "--raft-listen",
        &place.raft_listen,
        "--data-dir",
    ])
    .arg(place.path("b"))
    .args(FOUND);
    place
        .refused(
            raft,
            ADDRESS,
            &["cannot listen on", &place.raft_listen, "--raft-listen"],
        )
        .await?;
    ensure!(!place.path("b").exists(), "nothing was made");
    Ok(())
}

/// `id=clients/nodes` of three nodes.
fn peers(ports: &[u16]) -> Vec<String> {
    let one = |(id, pair): (usize, &[u16])| {
        format!("{}=127.0.0.1:{}/127.0.0.1:{}", id + 1, pair[0], pair[1])
    };
    ports.chunks(2).enumerate().map(one).collect()
}

#[tokio::test]
async fn a_second_node_under_an_id_and_a_lost_disk_are_told_so() -> Result<()> {
    let place = Place::new()?;
    let ports = free_ports(8)?;
    let members = peers(&ports[..6]);
    let member = |id: usize, name: &str, members: &[String], more: &[&str]| -> Result<Command> {
        let mut command = Command::new(binary("billingd")?);
        command
            .args([
                "--node-id",
                &id.to_string(),
                "--peers",
                &members.join(","),
                "--data-dir",
            ])
            .arg(place.path(name))
            .args(more);
        Ok(command)
    };
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(place.start(member(id, &format!("n{id}"), &members, FOUND)?)?);
    }
    for node in &mut nodes {
        serves(node).await?;
    }
    // Another machine is given id 2 by mistake, with addresses of its own.
    let mut mistaken = members.clone();
    mistaken[1] = format!("2=127.0.0.1:{}/127.0.0.1:{}", ports[6], ports[7]);
    let twice = &["two nodes must not share an id", "known at"];
    place
        .refused(member(2, "other", &mistaken, FOUND)?, CONTRADICTED, twice)
        .await?;
    // Node 3 loses its disk, and somebody starts it again as if nothing had been.
    nodes[2].kill()?;
    fs::remove_dir_all(place.path("n3"))?;
    place
        .refused(member(3, "n3", &members, &[])?, FOLDER, &["holds no node"])
        .await?;
    let lost = &["billingd join", "never"];
    place
        .refused(member(3, "n3", &members, FOUND)?, CONTRADICTED, lost)
        .await?;
    for node in &mut nodes[..2] {
        ensure!(
            node.exited()?.is_none(),
            "the others go on:\n{}",
            said(node)
        );
    }
    Ok(())
}

fn invoice(n: usize) -> v1::SubmitInvoicesRequest {
    v1::SubmitInvoicesRequest {
        invoice: Some(v1::Invoice {
            invoice_id: format!("inv-{n:0>100}"),
            customer_id: "c".repeat(128),
            amount_minor: 100,
            currency: "EUR".into(),
            due_at: None,
            priority: 0,
        }),
    }
}

fn client(place: &Place) -> Result<InvoiceServiceClient<Channel>> {
    Ok(InvoiceServiceClient::new(
        Endpoint::from_shared(format!("http://{}", place.listen))?.connect_lazy(),
    ))
}

/// Submits until the node ends under it; returns how many invoices it had acknowledged.
async fn submit_until_it_ends(place: &Place, process: &mut Process) -> Result<usize> {
    const BATCH: usize = 500;
    let mut client = client(place)?;
    let mut acknowledged = 0;
    let submits = async {
        loop {
            let batch: Vec<_> = (acknowledged..acknowledged + BATCH).map(invoice).collect();
            if client
                .submit_invoices(tokio_stream::iter(batch))
                .await
                .is_err()
            {
                return;
            }
            acknowledged += BATCH;
        }
    };
    timeout(PATIENCE, submits)
        .await
        .with_context(|| format!("it goes on:\n{}", said(process)))?;
    Ok(acknowledged)
}

async fn counted(place: &Place, process: &mut Process) -> Result<usize> {
    serves(process).await?;
    let mut client = client(place)?;
    let (mut count, mut page) = (
        0,
        v1::ListInvoicesRequest {
            page_size: 1_000,
            ..Default::default()
        },
    );
    loop {
        let answer = client.list_invoices(page.clone()).await?.into_inner();
        count += answer.invoices.len();
        if answer.next_page_token.is_empty() {
            return Ok(count);
        }
        page.page_token = answer.next_page_token;
    }
}

/// A file system of its own size, where the kernel lets an ordinary user mount one. Says that it skips elsewhere.
#[tokio::test]
async fn a_full_disk_ends_the_node_and_nothing_acknowledged_is_lost() -> Result<()> {
    let place = Place::new()?;
    let small = place.path("small");
    fs::create_dir(&small)?;
    // A process namespace too: whatever ends the shell ends the node with it. What the disk held is copied before the mount
    // goes away.
    let script = r#"mount -t tmpfs -o size=12m none "$0" || exit 99
        saved=$1; shift; "$@"; code=$?; cp -r "$0/node" "$saved"; exit $code"#;
    let inside = |program: &Command| {
        let mut inside = Command::new("unshare");
        inside.args([
            "--user",
            "--map-root-user",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child=KILL",
        ]);
        inside
            .args(["sh", "-c", script])
            .arg(&small)
            .arg(place.path("saved"));
        inside.arg(program.get_program()).args(program.get_args());
        inside
    };
    let mut probe = Command::new("mkdir");
    probe.arg(small.join("node"));
    let possible = inside(&probe).output();
    if !possible.as_ref().is_ok_and(|ran| ran.status.success()) {
        eprintln!("SKIPPED: no file system of its own can be mounted here: {possible:?}");
        return Ok(());
    }
    fs::remove_dir(place.path("saved"))?;
    let inside = inside(&place.node(1, "small/node", FOUND)?);
    let mut process = place.start(inside)?;
    serves(&mut process).await?;
    let acknowledged = submit_until_it_ends(&place, &mut process).await?;
    ends(&mut process, DISK, &["no space left", "free space"]).await?;
    let mut again = place.start(place.node(1, "saved", &[])?)?;
    let found = counted(&place, &mut again).await?;
    ensure!(
        found >= acknowledged,
        "{acknowledged} were acknowledged, {found} are there"
    );
    Ok(())
}

/// What `ulimit` says, and then the node in its place: the same process, so that signals reach it.
fn limited(ulimit: &str, program: &Command) -> Command {
    let mut inside = Command::new("sh");
    inside
        .args(["-c", &format!("ulimit {ulimit} && exec \"$0\" \"$@\"")])
        .arg(program.get_program())
        .args(program.get_args());
    inside
}

#[tokio::test]
async fn connections_leave_the_node_the_files_that_it_needs() -> Result<()> {
    const FILES: usize = 300;
    const CONNECTIONS: usize = 44;
    let place = Place::new()?;
    let starved = limited("-n 200", &place.node(1, "starved", FOUND)?);
    place
        .refused(starved, USAGE, &["may open 200 files", "ulimit -n 4352"])
        .await?;
    ensure!(!place.path("starved").exists(), "nothing was begun");
    let mut process = place.start(limited(
        &format!("-n {FILES}"),
        &place.node(1, "node", FOUND)?,
    ))?;
    serves(&mut process).await?;
    let warned = format!("only {CONNECTIONS} client connections fit");
    ensure!(said(&process).contains(&warned), "{}", said(&process));
    // One of them is the client's, which is there first; the rest is taken by somebody who never says a word.
    let channel = Endpoint::from_shared(format!("http://{}", place.listen))?
        .connect()
        .await?;
    let mut crowd = Vec::new();
    while crowd.len() < CONNECTIONS + 20 {
        crowd.push(tokio::net::TcpStream::connect(&place.listen).await?);
    }
    says(&mut process, "client connections are refused").await?;
    // With all of them there: the disk is written, read and synced, files are made and opened.
    let mut cluster = v1::cluster_service_client::ClusterServiceClient::new(channel);
    let snapshot = cluster.take_snapshot(v1::TakeSnapshotRequest::default());
    timeout(PATIENCE, snapshot).await??;
    drop(crowd);
    process.signal(Signal::TERM)?;
    ends(&mut process, 0, &["snapshot written", "ended"]).await?;
    ensure!(
        !said(&process).contains("Too many open files"),
        "{}",
        said(&process)
    );
    // A soft limit is no obstacle where the hard one is higher.
    let mut again = place.start(limited("-Sn 100", &place.node(1, "node", &[])?))?;
    serves(&mut again).await?;
    let warned = said(&again).contains("client connections fit");
    again.signal(Signal::TERM)?;
    ends(&mut again, 0, &["ended"]).await?;
    ensure!(!warned, "{}", said(&again));
    Ok(())
}

/// A library that makes fdatasync fail once a file exists. Says that it skips where there is no C compiler.
#[tokio::test]
async fn a_failed_fsync_ends_the_node_at_once_and_is_never_tried_again() -> Result<()> {
    let place = Place::new()?;
    let (library, switch, count) = (
        place.path("failing.so"),
        place.path("switch"),
        place.path("count"),
    );
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/failing_fdatasync.c");
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(source)
        .output();
    match compiled {
        Err(error) => {
            eprintln!("SKIPPED: no C compiler: {error}");
            return Ok(());
        }
        Ok(ran) => ensure!(
            ran.status.success(),
            "{}",
            String::from_utf8_lossy(&ran.stderr)
        ),
    }
    let mut command = place.node(1, "a", FOUND)?;
    command
        .env("LD_PRELOAD", &library)
        .env("FAIL_FDATASYNC_WHEN", &switch)
        .env("FAIL_FDATASYNC_COUNT", &count);
    let mut process = place.start(command)?;
    serves(&mut process).await?;
    fs::write(&switch, "")?;
    let acknowledged = submit_until_it_ends(&place, &mut process).await?;
    ends(&mut process, DISK, &["failed", "check the disk"]).await?;
    ensure!(
        fs::metadata(&count)?.len() == 1,
        "it was tried again: {} times",
        fs::metadata(&count)?.len()
    );
    let mut again = place.start(place.node(1, "a", &[])?)?;
    let found = counted(&place, &mut again).await?;
    ensure!(
        found >= acknowledged,
        "{acknowledged} were acknowledged, {found} are there"
    );
    Ok(())
}

#[tokio::test]
async fn one_signal_finishes_the_calls_in_flight_and_a_second_one_ends_at_once() -> Result<()> {
    let place = Place::new()?;
    place.found("a").await?;
    for hurried in [false, true] {
        let mut process = place.start(place.node(1, "a", &["--shutdown-grace", "60s"])?)?;
        serves(&mut process).await?;
        let (invoices, stream) = mpsc::channel(1);
        let mut client = client(&place)?;
        let call =
            tokio::spawn(async move { client.submit_invoices(ReceiverStream::new(stream)).await });
        invoices.send(invoice(usize::from(hurried))).await?;
        // Taken by the server, and applied, before the signal.
        let mut view = self::client(&place)?;
        let seen = async {
            let ask = invoice(usize::from(hurried))
                .invoice
                .map(|i| i.invoice_id)
                .unwrap_or_default();
            let ask = v1::GetInvoiceRequest {
                invoice_id: ask,
                stale_ok: false,
            };
            while view.get_invoice(ask.clone()).await.is_err() {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        timeout(PATIENCE, seen).await?;
        process.signal(Signal::TERM)?;
        let heard = async {
            while !said(&process).contains("shutting down") {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        timeout(PATIENCE, heard).await?;
        ensure!(process.exited()?.is_none(), "a call is in flight");
        if hurried {
            process.signal(Signal::INT)?;
            ends(&mut process, HURRIED, &["second signal"]).await?;
            ensure!(call.await?.is_err(), "it was cut off");
        } else {
            drop(invoices);
            let answer = call.await??.into_inner();
            ensure!(answer.submitted + answer.unchanged == 1, "{answer:?}");
            ends(&mut process, 0, &["ended"]).await?;
        }
    }
    Ok(())
}
