//! Decides what a new folder must hold so that nodes which are made from one backup start as one cluster: the same snapshot, a
//! log that begins behind it, a membership of their own. Decides nothing about money: the ledger says what a restore means,
//! and takes nothing before that.

use std::collections::{BTreeMap, BTreeSet};

use billing_core::Ledger;
use billing_store::Disk;

use super::codec;
use super::folders::{FolderId, Folders, FoldersError};
use super::snapshot::{self, Description, Offload, SnapshotError};
use super::types::{LeaderId, LogId, Membership, Peer, SnapshotMeta, Vote};

/// Of the entry that the snapshot ends with; the first election is in the next one. No node has id 0, so nobody proposed it.
const TERM: u64 = 1;

#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error(transparent)]
    Folder(#[from] FoldersError),
    #[error("these members make no cluster: {0}")]
    Members(String),
}

/// Fills a folder that was just made. `index` is the entry after which the ledger was copied. Everything is durable when it
/// resolves, but a crash in here leaves a folder that must not be started.
pub async fn fill(
    disk: &Disk,
    node: u64,
    folder: FolderId,
    members: BTreeMap<u64, Peer>,
    mut ledger: Ledger,
    index: u64,
) -> Result<(), RestoreError> {
    ledger.await_restore();
    let last = LogId {
        leader_id: LeaderId {
            term: TERM,
            node_id: 0,
        },
        index,
    };
    let voters: BTreeSet<u64> = members.keys().copied().collect();
    let membership = openraft::Membership::new(vec![voters.clone()], members)
        .map_err(|error| RestoreError::Members(error.to_string()))?;
    let what = Description {
        meta: SnapshotMeta {
            last_log_id: Some(last),
            last_membership: Membership::new(Some(last), membership),
        },
        ids_used: voters,
    };
    snapshot::write(&*disk.snapshots, &what, ledger, Offload::Inline).await?;
    let marker = codec::encode("purge marker", &last).map_err(SnapshotError::Codec)?;
    let purged = disk.log.purge_through(index, marker).await;
    purged.map_err(SnapshotError::Store)?;
    let folders = Folders::open(disk.log.clone(), folder).await?;
    let voted = folders.save_vote(Vote::new(TERM, node)).await;
    voted.map_err(SnapshotError::Store)?;
    disk.log.close().await.map_err(SnapshotError::Store)?;
    Ok(())
}
