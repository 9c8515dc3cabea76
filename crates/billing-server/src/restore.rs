//! `billingd restore`: makes a node's folder out of a backup, offline. Decides what is refused: a backup that is not whole, a
//! folder that exists, a clock that stands before the backup. Never touches an existing folder, and never a cluster that runs.
//!
//! Every node of the new cluster is made by the same file, the same peers and the same restore id, which the first one draws. The
//! cluster's name in the folders says so: nodes that were made otherwise, those of an earlier attempt, and those of the lost
//! cluster, refuse to speak to these, and end nobody. What a restore that is repeated for one node alone can do under the same id,
//! `node/meeting.rs` has.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use billing_core::Ledger;
use billing_env::Env;
use billing_proto::backup::{self, BackupError, Whole};
use billing_proto::restore::RestoreId;
use billing_store::{Disk, Identity, StoreError};
use bytes::Bytes;

use crate::config::{Config, Peer};
use crate::exit::Fatal;
use crate::process::members_told;
use crate::raft::folders::FolderId;
use crate::raft::restore::{RestoreError, fill};
use crate::raft::snapshot::SnapshotError;

/// Between a ledger's id and what tells its restores apart. No ledger id has one.
const RESTORED: char = '+';
/// A clock may be this far behind the one that the backup was made by.
const CLOCK_BEHIND_MAX_MS: u64 = 30_000;
/// While it is filled, the folder has this behind its name.
const UNFINISHED: &str = ".restoring";

/// What a folder's cluster is called: the ledger's id, and for one that was put back what it was made from
/// and in which attempt.
fn cluster_name(whole: &Whole, id: RestoreId, peers: &[Peer]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&whole.blake3);
    hasher.update(&id.0);
    for peer in peers {
        hasher.update(format!("{peer}\n").as_bytes());
    }
    let made_from = &hasher.finalize().to_hex()[..16];
    format!("{}{RESTORED}{made_from}", whole.header.ledger_id)
}

/// The ledger's id in the name of a folder's cluster.
pub fn ledger_of(cluster: &str) -> &str {
    cluster
        .split_once(RESTORED)
        .map_or(cluster, |(ledger, _)| ledger)
}

/// A backup that was found whole, and the restore that it is put back by: what every node of the new cluster is made of.
pub struct Source {
    pub whole: Whole,
    pub ledger: Ledger,
    pub id: RestoreId,
}

impl Source {
    /// Reads all of `from`. Why it cannot be put back, for a person; nothing was changed then.
    pub fn read(from: &mut (impl Read + Seek), id: RestoreId, env: &Env) -> Result<Source, String> {
        let (whole, ledger) = backup::verify(from, |_| {}).map_err(|error| match error {
            BackupError::Io(error) => error.to_string(),
            other => format!("{other}; nothing was changed"),
        })?;
        check_clock(&whole, env)?;
        Ok(Source { whole, ledger, id })
    }

    /// Whose folder it becomes: that of `node`, one of `peers`.
    pub fn identity(&self, node: u64, peers: &[Peer], env: &Env) -> Identity {
        Identity {
            cluster: Bytes::from(cluster_name(&self.whole, self.id, peers)),
            node,
            created_unix_ms: env.clock.wall_ms(),
        }
    }

    /// Fills a disk that was just made with that identity. A crash in here leaves one that must not be started.
    pub async fn fill(
        self,
        disk: &Disk,
        node: u64,
        peers: &[Peer],
        env: &Env,
    ) -> Result<(), RestoreError> {
        let mut drawn = [0; 8];
        env.random.fill(&mut drawn);
        let index = self.whole.header.applied_index;
        let (folder, members) = (FolderId(drawn), members_told(peers));
        fill(disk, node, folder, members, self.ledger, index).await
    }
}

/// What a person is told of a folder that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// What was in the file, and the restore's id.
    pub told: String,
    /// What to do with an id that was just drawn.
    pub next: Option<String>,
}

/// Makes the folder of `config` out of `file`. Without `said` it is the first node of a new attempt, and an id is drawn.
pub fn run(
    file: &Path,
    said: Option<RestoreId>,
    config: &Config,
    env: &Env,
) -> Result<Restored, Fatal> {
    let refused = |why: String| Fatal::Settings(format!("{}: {why}", file.display()));
    let mut opened = File::open(file).map_err(|error| refused(error.to_string()))?;
    let id = said.unwrap_or_else(|| {
        let mut drawn = [0; RestoreId::BYTES];
        env.random.fill(&mut drawn);
        RestoreId(drawn)
    });
    let source = Source::read(&mut opened, id, env).map_err(refused)?;
    let header = &source.whole.header;
    if let Some(named) = &config.ledger_id
        && named.as_str() != header.ledger_id
    {
        return Err(refused(format!(
            "it is a backup of ledger {}, not of {named}; nothing was changed",
            header.ledger_id
        )));
    }
    let (ledger_id, index) = (header.ledger_id.clone(), header.applied_index);
    let folder = &config.data_dir;
    check_vacant(folder)?;
    let unfinished = unfinished(folder);
    if unfinished.exists() {
        return Err(Fatal::Settings(format!(
            "{} is what an interrupted restore left: remove it, then repeat",
            unfinished.display()
        )));
    }
    let identity = source.identity(config.node_id, &config.peers, env);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Fatal::Bug(format!("the runtime cannot start: {error}")))?;
    runtime.block_on(async {
        let disk = billing_store::create(&unfinished, &identity)?;
        let filled = source.fill(&disk, config.node_id, &config.peers, env).await;
        filled.map_err(fatal)
    })?;
    // The log's thread lets go of the folder before it gets its name.
    drop(runtime);
    publish(&unfinished, folder)?;
    let told = format!(
        "restored ledger {} as of entry {index} into {}: node {} of {}\nrestore id: {id}",
        ledger_id,
        folder.display(),
        config.node_id,
        config.peers.len()
    );
    let next = (said.is_none() && config.peers.len() > 1).then(|| {
        format!(
            "make each of the other nodes with --restore-id {id}, the same file and the same --peers: one that is made without it \
             belongs to another restore. Then start them all: none takes part before it has met all others"
        )
    });
    Ok(Restored { told, next })
}

/// Tokens start at the wall clock after a restore: a clock that stands before the backup would start them too low.
fn check_clock(whole: &Whole, env: &Env) -> Result<(), String> {
    let made = whole.header.wall_time.as_ref();
    let made = made.and_then(|time| billing_proto::convert::wall_time(time, "wall_time").ok());
    let now = env.clock.wall_ms();
    match made {
        Some(made) if made.0 > now + CLOCK_BEHIND_MAX_MS => Err(format!(
            "it was made {} s after what this machine's clock says now: correct the clock; nothing was changed",
            (made.0 - now) / 1_000
        )),
        Some(_) => Ok(()),
        None => Err("its header does not say when it was made; nothing was changed".to_owned()),
    }
}

/// A folder is there only if nothing is in it: what exists is never overwritten.
fn check_vacant(folder: &Path) -> Result<(), Fatal> {
    if let Some(found) = billing_store::inspect(folder)? {
        return Err(Fatal::RestoreOver(StoreError::AlreadyMade {
            folder: folder.to_owned(),
            node: found.node,
        }));
    }
    let first = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unusable(folder, &error)),
        Ok(mut entries) => entries.next(),
    };
    match first {
        None => Ok(()),
        Some(Ok(entry)) => Err(Fatal::RestoreOver(StoreError::NotOurs {
            folder: folder.to_owned(),
            found: format!("it holds {}", entry.file_name().to_string_lossy()),
        })),
        Some(Err(error)) => Err(unusable(folder, &error)),
    }
}

fn unusable(path: &Path, error: &std::io::Error) -> Fatal {
    Fatal::Settings(format!("{} cannot be used: {error}", path.display()))
}

fn unfinished(folder: &Path) -> PathBuf {
    let mut name = folder.as_os_str().to_owned();
    name.push(UNFINISHED);
    PathBuf::from(name)
}

/// Gives the folder its name: from here on it can be started.
fn publish(unfinished: &Path, folder: &Path) -> Result<(), Fatal> {
    let publish = || {
        // Over nothing, or over an empty folder: anything else is an error.
        fs::rename(unfinished, folder)?;
        let parent = folder
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    };
    publish().map_err(|error| unusable(folder, &error))
}

fn fatal(error: RestoreError) -> Fatal {
    use crate::raft::folders::FoldersError;
    match error {
        RestoreError::Snapshot(SnapshotError::Store(error))
        | RestoreError::Folder(FoldersError::Disk(error)) => Fatal::Store(error),
        RestoreError::Members(_) => Fatal::Settings(error.to_string()),
        RestoreError::Snapshot(_) | RestoreError::Folder(_) => Fatal::Bug(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restores_of_other_files_or_peers_or_attempts_are_other_clusters_of_the_same_ledger() {
        let whole = |sum| Whole {
            header: billing_proto::v1::BackupHeader {
                ledger_id: "demo".to_owned(),
                ..Default::default()
            },
            bytes: 0,
            blake3: [sum; 32],
        };
        let peers = |text: &str| -> Vec<Peer> { text.split(',').flat_map(str::parse).collect() };
        let (few, many) = (peers("1=a:1/a:2"), peers("1=a:1/a:2,2=a:3/a:4"));
        assert_eq!((few.len(), many.len()), (1, 2));
        let (first, second) = (RestoreId([1; 8]), RestoreId([2; 8]));
        let name = cluster_name(&whole(1), first, &few);
        assert_eq!(name, cluster_name(&whole(1), first, &few));
        assert_ne!(name, cluster_name(&whole(2), first, &few));
        assert_ne!(name, cluster_name(&whole(1), first, &many));
        assert_ne!(name, cluster_name(&whole(1), second, &few));
        assert_eq!(ledger_of(&name), "demo");
        assert_eq!(ledger_of("demo"), "demo");
    }
}
