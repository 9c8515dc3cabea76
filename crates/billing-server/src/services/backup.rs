//! Snapshots on request, and the whole ledger as a stream that makes a file. Decides how large its pieces are.

use std::pin::Pin;

use billing_proto::v1;
use futures::Stream;
use tonic::{Request, Response, Status};

use super::Door;

pub type Parts = Pin<Box<dyn Stream<Item = Result<v1::BackupResponse, Status>> + Send>>;

pub async fn take_snapshot(
    _door: &Door,
    _request: Request<v1::TakeSnapshotRequest>,
) -> Result<Response<v1::TakeSnapshotResponse>, Status> {
    Err(Status::unimplemented("TakeSnapshot"))
}

pub async fn stream(
    _door: &Door,
    _request: Request<v1::BackupRequest>,
) -> Result<Response<Parts>, Status> {
    Err(Status::unimplemented("Backup"))
}
