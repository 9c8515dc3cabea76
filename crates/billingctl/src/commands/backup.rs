//! `billingctl cluster snapshot|backup|verify|restore`. Decides when a backup gets its name: whole, verified and on the disk,
//! and never over another file unless told. What is inside is the ledger's business.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::time::Duration;

use billing_client::Backup as Parts;
use billing_proto::backup::{self, BackupError, Checker, Whole};
use billing_proto::restore::RestoreId;
use tokio::process::Command;

use super::Context;
use crate::{
    args::Restore,
    cluster::Cluster,
    failure::{Exit, Problem},
    output::{
        backup::{Backup, Restored, Snapshot},
        bytes,
    },
    progress::Progress,
};

const BILLINGD: &str = "billingd";
/// Behind the name of a backup that is not whole yet.
const UNFINISHED: &str = ".partial";

pub async fn snapshot(
    mut context: Context<'_, '_>,
    nodes: Vec<String>,
    patience: Duration,
) -> Result<Exit, Problem> {
    let nodes = match nodes.is_empty() {
        true => context.cluster.endpoints().to_vec(),
        false => nodes,
    };
    let cluster = &context.cluster;
    let taken = futures::future::join_all(
        nodes
            .iter()
            .map(|node| cluster.take_snapshot_of(node, patience)),
    );
    let taken = taken.await;
    let mut rows = Vec::new();
    let mut problems = Vec::new();
    for (node, taken) in nodes.iter().zip(taken) {
        match taken {
            Ok(taken) => rows.push(Snapshot {
                node: node.clone(),
                index: taken.index,
                bytes: taken.bytes,
            }),
            Err(why) => problems.push(format!("! {node}: {why}")),
        }
    }
    let mut printer = context.printer();
    let mut listing = printer.listing("snapshots");
    listing.page(&rows)?;
    listing.end(false, "")?;
    for problem in &problems {
        context.say(&crate::output::clean(problem));
    }
    Ok(if problems.is_empty() {
        Exit::Done
    } else {
        Exit::Failed
    })
}

pub async fn backup(
    mut context: Context<'_, '_>,
    out: PathBuf,
    force: bool,
) -> Result<Exit, Problem> {
    let name = out.display().to_string();
    if !force && out.exists() {
        return Err(Problem::failed(
            format!("{name} exists"),
            "choose another name, or replace it with --force",
        ));
    }
    let unfinished = with_suffix(&out, UNFINISHED);
    let unwritten = |error: io::Error| cannot_write(&unfinished, &error);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&unfinished)
        .map_err(unwritten)?;
    let written = receive(&mut context, file, &unfinished).await;
    let published = match written {
        Ok(whole) => publish(&unfinished, &out, force)
            .map(|()| whole)
            .map_err(|error| cannot_write(&out, &error)),
        Err(problem) => Err(problem),
    };
    let whole = match published {
        Ok(whole) => whole,
        Err(problem) => {
            // Best effort: what stays is named for what it is.
            let _ = fs::remove_file(&unfinished);
            return Err(problem);
        }
    };
    let shown = Backup::new(name, &whole, None);
    context.printer().one(&shown)?;
    Ok(Exit::Done)
}

/// Writes what comes, verified part by part. On the disk when it returns.
async fn receive(context: &mut Context<'_, '_>, file: File, path: &Path) -> Result<Whole, Problem> {
    let unwritten = |error: io::Error| cannot_write(path, &error);
    let mut parts = context.cluster.backup().await?;
    let mut progress = Progress::new(
        &mut *context.streams.stderr,
        context.streams.stderr_is_terminal,
        &*context.env.clock,
        None,
    );
    let mut to = BufWriter::new(file);
    let mut checker = Checker::new();
    while let Some(part) = next(&context.cluster, &mut parts).await? {
        checker.take(&part).map_err(|error| broken_off(&error))?;
        backup::write(&mut to, &part).map_err(unwritten)?;
        progress.update(checker.bytes(), &bytes(checker.bytes()));
    }
    progress.finish();
    let whole = checker.finish().map_err(|error| broken_off(&error))?;
    let file = to
        .into_inner()
        .map_err(|error| unwritten(error.into_error()))?;
    file.sync_all().map_err(unwritten)?;
    Ok(whole)
}

async fn next(
    cluster: &Cluster,
    parts: &mut Parts,
) -> Result<Option<billing_proto::v1::BackupResponse>, Problem> {
    match parts.next().await {
        Ok(part) => Ok(part),
        Err(failure) => match cluster.explain(failure).await {
            // A backup changes nothing: that it is unknown how far it got is no doubt about anything.
            Problem::Unknown(words) => Err(Problem::failed(words.what, "repeat")),
            problem => Err(problem),
        },
    }
}

fn broken_off(error: &BackupError) -> Problem {
    Problem::failed(
        format!("what arrived is no whole backup: {error}"),
        "repeat; no file was written",
    )
}

fn cannot_write(path: &Path, error: &io::Error) -> Problem {
    Problem::failed(
        format!("cannot write {}: {error}", path.display()),
        "choose another place with --out",
    )
}

/// Gives the file its name, durably.
fn publish(unfinished: &Path, out: &Path, force: bool) -> io::Result<()> {
    if force {
        fs::rename(unfinished, out)?;
    } else {
        // Unlike a rename this fails where somebody made that file meanwhile.
        fs::hard_link(unfinished, out)?;
        fs::remove_file(unfinished)?;
    }
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Needs no cluster, so it asks none.
pub fn verify(mut context: Context<'_, '_>, path: &Path) -> Result<Exit, Problem> {
    let shown = verified(&mut context, path)?;
    context.printer().one(&shown)?;
    Ok(Exit::Done)
}

fn verified(context: &mut Context<'_, '_>, path: &Path) -> Result<Backup, Problem> {
    let name = path.display().to_string();
    let wrong = |error: &dyn std::fmt::Display, next: &str| {
        Problem::failed(format!("{name}: {error}"), next.to_owned())
    };
    let another = "use another backup; this one was not changed";
    let mut file = File::open(path).map_err(|error| wrong(&error, ""))?;
    let length = file.metadata().map_err(|error| wrong(&error, ""))?.len();
    let mut progress = Progress::new(
        &mut *context.streams.stderr,
        context.streams.stderr_is_terminal,
        &*context.env.clock,
        Some(length.saturating_mul(2)),
    );
    let outcome = backup::verify(&mut file, |done| progress.update(done, &bytes(done / 2)));
    progress.finish();
    let (whole, ledger) = outcome.map_err(|error| match &error {
        BackupError::Newer { .. } => wrong(&error, "this one was not changed"),
        _ => wrong(&error, another),
    })?;
    Ok(Backup::new(name, &whole, Some(&ledger)))
}

pub async fn restore(mut context: Context<'_, '_>, restore: Restore) -> Result<Exit, Problem> {
    // Each run verifies it again: what is restored is what was read then. This one is for the words.
    let backup = verified(&mut context, &restore.file)?;
    for (nth, (node, folder)) in restore.nodes.iter().enumerate() {
        let twice = restore.nodes[..nth]
            .iter()
            .any(|(id, other)| id == node || other == folder);
        if twice {
            return Err(Problem::failed(
                format!(
                    "node {node} or its folder {} stands there twice",
                    folder.display()
                ),
                "give every node an id and a folder of its own",
            ));
        }
    }
    let billingd = restore.billingd.unwrap_or_else(beside_this);
    let id = restore.restore_id.unwrap_or_else(|| {
        let mut drawn = [0; RestoreId::BYTES];
        context.env.random.fill(&mut drawn);
        RestoreId(drawn)
    });
    let mut rows = Vec::new();
    for (node, folder) in &restore.nodes {
        let output = Command::new(&billingd)
            .arg("restore")
            .arg(&restore.file)
            .args(["--node-id", &node.to_string(), "--peers", &restore.peers])
            .args(["--restore-id", &id.to_string()])
            .arg("--data-dir")
            .arg(folder)
            .output()
            .await
            .map_err(|error| {
                Problem::failed(
                    format!("cannot run {}: {error}", billingd.display()),
                    "name it with --billingd",
                )
            })?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            let said = said.strip_prefix("billingd: ").unwrap_or(&said).to_owned();
            let next = match rows.is_empty() {
                true => "no folder was made",
                false => "remove the folders that this restore made before repeating it",
            };
            return Err(Problem::failed(format!("node {node}: {said}"), next));
        }
        rows.push(Restored {
            node_id: *node,
            data_dir: folder.display().to_string(),
            restore_id: id.to_string(),
        });
    }
    let mut printer = context.printer();
    let mut listing = printer.listing("restored");
    listing.page(&rows)?;
    listing.end(false, "")?;
    context.say(&format!(
        "ledger {} as of entry {}: make nodes elsewhere with --restore-id {id}; start all of them, without --bootstrap: none takes \
         part before it has met all others; charges wait for `billingctl cluster allow-charges`",
        backup.ledger_id, backup.applied_index
    ));
    Ok(Exit::Done)
}

/// The `billingd` that was installed with this program; else whatever PATH has.
fn beside_this() -> PathBuf {
    std::env::current_exe()
        .ok()
        .and_then(|own| own.parent().map(|folder| folder.join(BILLINGD)))
        .filter(|beside| beside.is_file())
        .unwrap_or_else(|| PathBuf::from(BILLINGD))
}
