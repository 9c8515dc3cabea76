//! Decides whose folder it is, and that one process has it. A folder is made in so many words and opened in so many words;
//! opening never makes anything, making never overwrites anything. Opening brings a folder of an older format up to the newest.
//!
//! ```text
//! lock         held (flock) by the process that has the folder open
//! identity     format version, cluster, node; written last, so a folder without it was never finished
//! creating     stands while the folder is being made: what a crash left of that may be removed
//! log/, high   sled_disk.rs
//! journal      journal.rs
//! snapshots/   files.rs, snapshots.rs
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::codec::{self, FORMAT, FORMAT_WITHOUT_JOURNAL, Fields, KIND_IDENTITY, Seed};
use crate::files::FolderFiles;
use crate::journal::JOURNAL_BYTES;
use crate::snapshots::Snapshots;
use crate::{CLUSTER_BYTES_MAX, Disk, Identity, StoreError, sled_disk};

const LOCK: &str = "lock";
const IDENTITY: &str = "identity";
const IDENTITY_TEMPORARY: &str = "identity.tmp";
const CREATING: &str = "creating";
const SNAPSHOTS: &str = "snapshots";
/// What a newly made file system puts there by itself.
const LOST_AND_FOUND: &str = "lost+found";

/// These twelve bytes and their checksum stay as they are in every later format, so that any binary can tell the version.
const MAGIC: &[u8; 8] = b"BILLINGD";
pub(crate) const PREFIX_BYTES: usize = 16;

/// Released when dropped, or when the process ends in whatever way.
pub(crate) struct FolderLock {
    _file: File,
}

fn io<'a>(doing: &'static str, path: &'a Path) -> impl Fn(std::io::Error) -> StoreError + 'a {
    move |error| StoreError::io(doing, path, error)
}

pub(crate) fn sync_folder(path: &Path) -> Result<(), StoreError> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(io("syncing", path))
}

/// What the kernel keeps of a file in memory is kept in pieces as large as it was written in, up to megabytes, and each small
/// write into such a piece, and each sync, looks through all of it.
const PAGE_BYTES: usize = 4 * 1024;

/// The file's contents are durable; its entry in the folder is not before the folder is synced.
pub(crate) fn write_durably(path: &Path, contents: &[u8]) -> Result<(), StoreError> {
    let mut file = File::create(path).map_err(io("creating", path))?;
    for page in contents.chunks(PAGE_BYTES) {
        file.write_all(page).map_err(io("writing", path))?;
    }
    file.sync_all().map_err(io("syncing", path))
}

fn lock(folder: &Path) -> Result<Arc<FolderLock>, StoreError> {
    let path = folder.join(LOCK);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(io("opening", &path))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Arc::new(FolderLock { _file: file })),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::Locked {
            folder: folder.to_owned(),
        }),
        Err(error) => Err(StoreError::io("locking", &path, error.into())),
    }
}

fn body(identity: &Identity) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend_from_slice(&identity.node.to_le_bytes());
    body.extend_from_slice(&identity.created_unix_ms.to_le_bytes());
    body.extend_from_slice(&(identity.cluster.len() as u32).to_le_bytes());
    body.extend_from_slice(&identity.cluster);
    body
}

/// Ties every record to this folder: other cluster, other node or made anew, other seed.
pub(crate) fn seed(identity: &Identity) -> Seed {
    Seed(crc32c::crc32c(&body(identity)))
}

pub(crate) fn encode(identity: &Identity) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend_from_slice(MAGIC);
    file.extend_from_slice(&FORMAT.to_le_bytes());
    file.extend_from_slice(&crc32c::crc32c(&file).to_le_bytes());
    file.extend_from_slice(&codec::seal_body(
        Seed(0),
        IDENTITY.as_bytes(),
        KIND_IDENTITY,
        &body(identity),
    ));
    file
}

/// Whose folder it is, and of which format.
pub(crate) fn decode(path: &Path, file: &[u8]) -> Result<(Identity, u32), StoreError> {
    let where_ = path.display().to_string();
    let damaged = |what: &str| StoreError::damaged(where_.clone(), what);
    let (prefix, record) = file
        .split_at_checked(PREFIX_BYTES)
        .ok_or_else(|| damaged("the file is cut short"))?;
    let (head, crc) = prefix.split_at(PREFIX_BYTES - 4);
    if !head.starts_with(MAGIC) || crc != crc32c::crc32c(head).to_le_bytes() {
        return Err(damaged(
            "a checksum does not match, or it is no identity file",
        ));
    }
    let format = Fields(&head[MAGIC.len()..]).u32().unwrap_or(0);
    if format > FORMAT {
        return Err(StoreError::NewerFormat {
            where_,
            found: format,
            reads: FORMAT,
        });
    }
    if format < FORMAT_WITHOUT_JOURNAL {
        return Err(damaged("it names a format that never was"));
    }
    let mut fields = Fields(codec::open(
        Seed(0),
        IDENTITY.as_bytes(),
        KIND_IDENTITY,
        record,
        &where_,
    )?);
    let parsed = (|| {
        let (node, created_unix_ms) = (fields.u64()?, fields.u64()?);
        Some(Identity {
            node,
            created_unix_ms,
            cluster: Bytes::copy_from_slice(fields.last()?),
        })
    })();
    let identity = parsed.ok_or_else(|| damaged("the file is cut short"))?;
    Ok((identity, format))
}

/// What a folder is, without opening it for work and without a lock. `None`: missing, or nothing of ours in it, or never finished.
pub fn inspect(folder: &Path) -> Result<Option<Identity>, StoreError> {
    Ok(read_identity(folder)?.map(|(identity, _)| identity))
}

fn read_identity(folder: &Path) -> Result<Option<(Identity, u32)>, StoreError> {
    let path = folder.join(IDENTITY);
    match fs::read(&path) {
        Ok(file) => decode(&path, &file).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("reading", &path, error)),
    }
}

fn names(folder: &Path) -> Result<Vec<String>, StoreError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(io("reading", folder))? {
        names.push(
            entry
                .map_err(io("reading", folder))?
                .file_name()
                .to_string_lossy()
                .into_owned(),
        );
    }
    names.sort();
    Ok(names)
}

/// Makes a node's folder (parents too) and opens it. Refused where a node already is ([`StoreError::AlreadyMade`]), and where
/// anything else is ([`StoreError::NotOurs`]); what a crash left of an earlier attempt is cleared away.
/// After a crash in here there is either no node or a whole one.
pub fn create(folder: &Path, identity: &Identity) -> Result<Disk, StoreError> {
    create_with_journal(folder, identity, JOURNAL_BYTES)
}

/// Like [`create`], with a journal of so many bytes (sectors of 512, more than 16): a small one is full soon, for tests of that.
pub fn create_with_journal(
    folder: &Path,
    identity: &Identity,
    journal_bytes: u64,
) -> Result<Disk, StoreError> {
    if identity.cluster.is_empty() || identity.cluster.len() > CLUSTER_BYTES_MAX {
        return Err(StoreError::misuse(format!(
            "a cluster id has 1 to {CLUSTER_BYTES_MAX} bytes, not {}",
            identity.cluster.len()
        )));
    }
    fs::create_dir_all(folder).map_err(io("creating", folder))?;
    let lock = lock(folder)?;
    if let Some(found) = inspect(folder)? {
        return Err(StoreError::AlreadyMade {
            folder: folder.to_owned(),
            node: found.node,
        });
    }
    clear_unfinished(folder)?;
    write_durably(&folder.join(CREATING), b"")?;
    sync_folder(folder)?;
    sled_disk::create(folder, seed(identity), journal_bytes)?;
    let snapshots = folder.join(SNAPSHOTS);
    fs::create_dir(&snapshots).map_err(io("creating", &snapshots))?;
    sync_folder(&snapshots)?;
    write_identity(folder, identity)?;
    if let Some(parent) = folder
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        sync_folder(parent)?;
    }
    finish_creating(folder)?;
    open_locked(folder, identity.clone(), lock)
}

/// Replaces what is there, durably.
fn write_identity(folder: &Path, identity: &Identity) -> Result<(), StoreError> {
    let temporary = folder.join(IDENTITY_TEMPORARY);
    write_durably(&temporary, &encode(identity))?;
    sync_folder(folder)?;
    fs::rename(&temporary, folder.join(IDENTITY)).map_err(io("renaming", &temporary))?;
    sync_folder(folder)
}

/// Brings a folder of an older format up to this one. The identity is written last: until then it is of the older format, as a
/// whole, and this begins anew.
fn upgrade(folder: &Path, identity: &Identity, format: u32) -> Result<(), StoreError> {
    if format == FORMAT {
        // Whoever upgraded it may have been killed before the new identity was durable; nothing may be acknowledged before.
        return sync_folder(folder);
    }
    sled_disk::add_journal(folder, seed(identity))?;
    write_identity(folder, identity)?;
    tracing::info!(folder = %folder.display(), from = format, to = FORMAT, "upgraded");
    Ok(())
}

/// Removes what an unfinished `create` left. Without its mark nothing is removed: the identity may have been lost, not the node.
fn clear_unfinished(folder: &Path) -> Result<(), StoreError> {
    let names = names(folder)?;
    let others: Vec<_> = names
        .iter()
        .filter(|name| ![LOCK, LOST_AND_FOUND].contains(&name.as_str()))
        .collect();
    if !names.iter().any(|name| name == CREATING) {
        return match others.first() {
            Some(found) => Err(StoreError::NotOurs {
                folder: folder.to_owned(),
                found: format!("it holds {found}"),
            }),
            None => Ok(()),
        };
    }
    for name in ["log", SNAPSHOTS] {
        let path = folder.join(name);
        if path.exists() {
            fs::remove_dir_all(&path).map_err(io("removing", &path))?;
        }
    }
    for name in ["high", "journal", IDENTITY_TEMPORARY] {
        let path = folder.join(name);
        if path.exists() {
            fs::remove_file(&path).map_err(io("removing", &path))?;
        }
    }
    sync_folder(folder)
}

fn finish_creating(folder: &Path) -> Result<(), StoreError> {
    let mark = folder.join(CREATING);
    if mark.exists() {
        fs::remove_file(&mark).map_err(io("removing", &mark))?;
        sync_folder(folder)?;
    }
    Ok(())
}

/// Opens the folder of node `node`; `cluster` is compared when it is known. Reads and verifies the whole log, which takes a
/// while; call it off the async threads when that matters.
pub fn open(folder: &Path, node: u64, cluster: Option<&[u8]>) -> Result<Disk, StoreError> {
    if !folder.is_dir() {
        return Err(StoreError::Empty {
            folder: folder.to_owned(),
            node,
        });
    }
    let Some((found, _)) = read_identity(folder)? else {
        let names = names(folder)?;
        let ours = names.iter().any(|name| name == CREATING);
        let log = names
            .iter()
            .find(|name| ["log", "high", "journal"].contains(&name.as_str()));
        return Err(match log {
            Some(found) if !ours => {
                let where_ = folder.join(IDENTITY).display().to_string();
                StoreError::damaged(
                    where_,
                    format!("the file is missing, but there is a {found}"),
                )
            }
            _ => StoreError::Empty {
                folder: folder.to_owned(),
                node,
            },
        });
    };
    check_owner(folder, &found, node, cluster)?;
    let lock = lock(folder)?;
    finish_creating(folder)?;
    // Read once more: only who has the lock knows that nobody else upgrades it.
    let format = read_identity(folder)?.map_or(FORMAT, |(_, format)| format);
    upgrade(folder, &found, format)?;
    open_locked(folder, found, lock)
}

pub(crate) fn check_owner(
    folder: &Path,
    found: &Identity,
    node: u64,
    cluster: Option<&[u8]>,
) -> Result<(), StoreError> {
    if let Some(cluster) = cluster
        && found.cluster != cluster
    {
        return Err(StoreError::OtherCluster {
            folder: folder.to_owned(),
            found: printable(&found.cluster),
            expected: printable(cluster),
        });
    }
    if found.node != node {
        return Err(StoreError::OtherNode {
            folder: folder.to_owned(),
            found: found.node,
            expected: node,
        });
    }
    Ok(())
}

fn printable(cluster: &[u8]) -> String {
    String::from_utf8_lossy(cluster).escape_debug().collect()
}

fn open_locked(
    folder: &Path,
    identity: Identity,
    lock: Arc<FolderLock>,
) -> Result<Disk, StoreError> {
    let seed = seed(&identity);
    let snapshots: PathBuf = folder.join(SNAPSHOTS);
    let log = sled_disk::open(folder, seed, Arc::clone(&lock))?;
    let snapshots = Snapshots::open(FolderFiles::new(snapshots, lock), seed)?;
    Ok(Disk {
        log: Arc::new(log),
        snapshots: Arc::new(snapshots),
        identity,
    })
}
