//! Snapshots and backups: asks one node, once. A backup that breaks off is begun anew by whoever wants it, since another node's
//! copy is another backup. Verifies nothing: `billing_proto::backup` does.

use std::time::Duration;

use billing_proto::{
    Failure,
    v1::{self, cluster_service_client::ClusterServiceClient},
};
use tonic::{Status, Streaming};

use crate::{
    Client,
    calls::{Repeat, within},
};

impl Client {
    /// Lets the node at `address` (`host:port`) make a snapshot, and waits until it is durable, `patience` at most.
    /// `Unknown`: it may still be made; that does no harm.
    pub async fn take_snapshot_of(
        &self,
        address: &str,
        patience: Duration,
    ) -> Result<v1::TakeSnapshotResponse, Failure> {
        let mut client = ClusterServiceClient::new(self.inner.nodes.at(address).channel.clone());
        let taken = client.take_snapshot(v1::TakeSnapshotRequest {});
        match within(&*self.inner.env.clock, patience, taken).await {
            Some(Ok(response)) => Ok(response.into_inner()),
            Some(Err(status)) => Err(Failure::from(status)),
            None => Err(Failure::Unknown(Status::deadline_exceeded(format!(
                "no answer from {address} within {patience:?}"
            )))),
        }
    }

    /// Begins a backup of the whole ledger, of whichever node is asked first.
    pub async fn backup(&self) -> Result<Backup, Failure> {
        let send = |channel, request| async move {
            ClusterServiceClient::new(channel).backup(request).await
        };
        let parts = self
            .call(
                "Backup",
                Repeat::Freely,
                self.budget(),
                v1::BackupRequest {},
                send,
            )
            .await?
            .value;
        Ok(Backup {
            client: self.clone(),
            parts,
        })
    }
}

/// The parts of a backup, in order. Whoever takes them slowly holds up nobody but the node that sends them its copy.
pub struct Backup {
    client: Client,
    parts: Streaming<v1::BackupResponse>,
}

impl Backup {
    /// `None` after the last one that came; only the trailer says that it was the last there is.
    pub async fn next(&mut self) -> Result<Option<v1::BackupResponse>, Failure> {
        let (clock, attempt) = (&*self.client.inner.env.clock, self.client.inner.attempt);
        match within(clock, attempt, self.parts.message()).await {
            Some(part) => part.map_err(Failure::from),
            None => Err(Failure::Unknown(Status::deadline_exceeded(format!(
                "no part of the backup within {attempt:?}"
            )))),
        }
    }
}
