//! Decides with which code and which last words the process ends. Every message says what to do. The codes are documented in
//! `billingd --help`; a supervisor may restart on 6, must not on 3, 4 and 7.

use billing_store::StoreError;

use crate::node::StartError;
use crate::raft::folders::FoldersError;

/// Ended as it was asked to.
pub const DONE: u8 = 0;
/// Wrong flags, environment or configuration file (also clap's own code). Nothing was started.
pub const USAGE: u8 = 2;
/// This data folder cannot serve this node: empty, another's, in use, of a newer format. Nothing in it was changed.
pub const FOLDER: u8 = 3;
/// The data folder is damaged: this node must not vote again under its id.
pub const DAMAGED: u8 = 4;
/// A listening address cannot be had.
pub const ADDRESS: u8 = 5;
/// The disk failed or is full. Everything acknowledged is kept.
pub const DISK: u8 = 6;
/// Another node contradicts this one.
pub const CONTRADICTED: u8 = 7;
/// The cluster cannot be joined: it is not reached, or it refuses.
pub const NOT_JOINED: u8 = 9;
/// A second signal: ended at once, calls in flight cut off.
pub const HURRIED: u8 = 8;
/// A bug in billingd.
pub const BUG: u8 = 70;

/// Why the process cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    #[error("{0}")]
    Store(#[from] StoreError),
    /// `--bootstrap` on a folder that holds a node.
    #[error(
        "{0}. --bootstrap founds a new cluster, once; from the second start on leave --bootstrap and --no-prior-charges away"
    )]
    FoundedAlready(StoreError),
    /// `billingd restore` into a folder that holds something.
    #[error("{0}. A restore makes a new folder and never overwrites one; nothing was changed")]
    RestoreOver(StoreError),
    /// No `--bootstrap`, and nothing to start from.
    #[error("{0}. For a new cluster: start every founding node once with --bootstrap")]
    NothingThere(StoreError),
    /// What the folder says cannot be understood.
    #[error("{0}")]
    Unreadable(String),
    #[error("{0}")]
    Settings(String),
    #[error("{0}")]
    Address(String),
    #[error("{0}")]
    Contradicted(String),
    #[error("{0}")]
    NotJoined(String),
    #[error("a bug in billingd, please report it: {0}")]
    Bug(String),
    #[error(
        "ended at once by a second signal; calls in flight were cut off, everything acknowledged is kept"
    )]
    Hurried,
}

impl From<StartError> for Fatal {
    fn from(error: StartError) -> Fatal {
        match error {
            StartError::Folder(FoldersError::Disk(error)) => Fatal::Store(error),
            StartError::Folder(FoldersError::Codec(error)) => Fatal::Unreadable(error.to_string()),
            StartError::NotAMember { .. } | StartError::Settings(_) => {
                Fatal::Settings(error.to_string())
            }
            StartError::Consensus(why) => Fatal::Unreadable(why),
        }
    }
}

impl Fatal {
    /// Turns the error of a listening address into advice.
    pub fn address(setting: &str, address: &str, error: &std::io::Error) -> Fatal {
        let advice = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                "another process listens there, perhaps this very node: stop it, or choose another port"
            }
            std::io::ErrorKind::AddrNotAvailable => "this machine does not have that address",
            std::io::ErrorKind::PermissionDenied => {
                "ports below 1024 need a privilege: choose a higher one"
            }
            _ => "choose another address",
        };
        Fatal::Address(format!(
            "cannot listen on {address} (--{setting}): {error}; {advice}"
        ))
    }

    /// The process's exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::Store(error)
            | Self::FoundedAlready(error)
            | Self::RestoreOver(error)
            | Self::NothingThere(error) => store_code(error),
            Self::Unreadable(_) => DAMAGED,
            Self::Settings(_) => USAGE,
            Self::Address(_) => ADDRESS,
            Self::Contradicted(_) => CONTRADICTED,
            Self::NotJoined(_) => NOT_JOINED,
            Self::Bug(_) => BUG,
            Self::Hurried => HURRIED,
        }
    }
}

fn store_code(error: &StoreError) -> u8 {
    match error {
        StoreError::NewerFormat { .. }
        | StoreError::OtherCluster { .. }
        | StoreError::OtherNode { .. }
        | StoreError::Empty { .. }
        | StoreError::AlreadyMade { .. }
        | StoreError::NotOurs { .. }
        | StoreError::Locked { .. } => FOLDER,
        StoreError::Damaged { .. } | StoreError::SnapshotDamaged { .. } => DAMAGED,
        StoreError::DiskFull { .. } | StoreError::Io { .. } => DISK,
        StoreError::Failed { first } => store_code(first),
        StoreError::Closed
        | StoreError::Misuse { .. }
        | StoreError::EntryTooLarge { .. }
        | StoreError::NoSnapshot { .. } => BUG,
    }
}
