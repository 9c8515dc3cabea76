//! Decides which data folder may speak under which node id, and keeps the vote in the same durable record.
//!
//! Every folder draws a name for itself when it is made. A node remembers, durably and before it answers, the first folder
//! that spoke under each other id; a second one is refused for ever. So a machine that lost its disk cannot vote again under
//! its old id, and two machines configured with one id are told so.
//!
//! Only members' folders are remembered, and the members are few: the record has a bound. An id whose node was removed needs
//! no folder any more: the replicated state remembers that it was used, and nobody hears it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use billing_core::sabotaged;
use billing_store::{LogDisk, StoreError};
use serde::{Deserialize, Serialize};

use super::codec::{self, CodecError};
use super::types::Vote;
use crate::node::bounds::MEMBERS_MAX;

/// What one folder takes in the record at most; and all that is not a folder: version, own name, vote, lengths.
const KNOWN_BYTES_MAX: usize = 10 + 8;
const FRAME_BYTES_MAX: usize = 1 + 8 + (1 + 10 + 10 + 1) + 1;
const _: () =
    assert!(FRAME_BYTES_MAX + MEMBERS_MAX * KNOWN_BYTES_MAX <= billing_store::VOTE_BYTES_MAX);

/// The name that a data folder drew when it was made.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FolderId(pub [u8; 8]);

impl fmt::Display for FolderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for FolderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) own: FolderId,
    pub(crate) vote: Option<Vote>,
    /// The other members' folders. This node's own stands there too from when all of them were known to know it.
    pub(crate) known: BTreeMap<u64, FolderId>,
}

/// Clones share the record.
#[derive(Clone)]
pub struct Folders {
    disk: Arc<dyn LogDisk>,
    record: Arc<Mutex<Record>>,
    /// Held from reading the record until its successor is durable, so that no save undoes another.
    saving: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug, thiserror::Error)]
pub enum FoldersError {
    #[error(transparent)]
    Disk(#[from] StoreError),
    #[error(transparent)]
    Codec(#[from] CodecError),
}

impl Folders {
    /// Reads the record, or makes the first one of a new folder under the name `fresh`.
    pub async fn open(disk: Arc<dyn LogDisk>, fresh: FolderId) -> Result<Folders, FoldersError> {
        let (record, save) = match disk.state()?.vote {
            Some(bytes) => (codec::decode("vote record", &bytes)?, false),
            None => (
                Record {
                    own: fresh,
                    vote: None,
                    known: BTreeMap::new(),
                },
                true,
            ),
        };
        let folders = Folders {
            disk,
            record: Arc::new(Mutex::new(record)),
            saving: Arc::default(),
        };
        if save {
            folders.save(|_| ()).await?;
        }
        Ok(folders)
    }

    pub fn own(&self) -> FolderId {
        self.with(|record| record.own)
    }

    pub fn vote(&self) -> Option<Vote> {
        self.with(|record| record.vote)
    }

    /// The folder that is known to speak under `node`.
    pub fn known(&self, node: u64) -> Option<FolderId> {
        self.with(|record| record.known.get(&node).copied())
    }

    /// Resolves when the vote is durable.
    pub async fn save_vote(&self, vote: Vote) -> Result<(), StoreError> {
        if sabotaged!(VoteNotPersisted) {
            let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
            record.vote = Some(vote);
            return Ok(());
        }
        self.save(|record| record.vote = Some(vote)).await
    }

    /// Admits `folder` under `node`, and remembers it before the answer when it is a member's first one.
    /// `Ok(Some(other))`: another folder spoke under that id before, so this one must not.
    pub async fn admit(
        &self,
        node: u64,
        folder: FolderId,
        is_member: impl Fn(u64) -> bool,
    ) -> Result<Option<FolderId>, StoreError> {
        if self.known(node).is_none() && is_member(node) {
            self.save(|record| {
                // Room for the new ones: those who left are not heard whatever their folder.
                record.known.retain(|&known, _| is_member(known));
                record.known.entry(node).or_insert(folder);
            })
            .await?;
        }
        Ok(self.known(node).filter(|&known| known != folder))
    }

    /// Whether [`Folders::known_to_all`] was said of this folder, in whatever life of the process.
    pub fn is_known_to_all(&self, own: u64) -> bool {
        self.known(own) == Some(self.own())
    }

    /// Every other member has written down that this folder speaks under `own`. Durable when it resolves.
    pub async fn known_to_all(&self, own: u64) -> Result<(), StoreError> {
        self.save(|record| {
            record.known.insert(own, record.own);
        })
        .await
    }

    fn with<T>(&self, read: impl FnOnce(&Record) -> T) -> T {
        read(&self.record.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Nobody sees the changed record before it is durable: an answer may rest on it.
    async fn save(&self, change: impl FnOnce(&mut Record)) -> Result<(), StoreError> {
        let _saving = self.saving.lock().await;
        let mut next = self.with(Record::clone);
        change(&mut next);
        let bytes = codec::encode("vote record", &next).map_err(|error| StoreError::Misuse {
            why: error.to_string(),
        })?;
        self.disk.save_vote(bytes).await?;
        *self.record.lock().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }
}
