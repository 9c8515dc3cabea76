//! Snapshots on request, and the whole ledger as a stream that makes a file. Decides how large its pieces are; a reader that
//! does not take them holds up its own stream and nobody else.

use std::pin::Pin;

use billing_core::{Ledger, Rejection, WallTime};
use billing_proto::backup::{CHUNK_BYTES_MAX, Composer};
use billing_proto::{Failure, convert, v1};
use futures::{Stream, StreamExt, stream};
use tonic::{Request, Response, Status};

use super::{Door, failure, of};
use crate::raft::pieces::Pieces;

pub type Parts = Pin<Box<dyn Stream<Item = Result<v1::BackupResponse, Status>> + Send>>;

pub async fn take_snapshot(
    door: &Door,
    _request: Request<v1::TakeSnapshotRequest>,
) -> Result<Response<v1::TakeSnapshotResponse>, Status> {
    let taken = door.node.take_snapshot().await;
    let taken = taken.map_err(|error| of(failure(error)))?;
    Ok(Response::new(v1::TakeSnapshotResponse {
        index: taken.index,
        bytes: taken.bytes,
    }))
}

pub async fn stream(
    door: &Door,
    _request: Request<v1::BackupRequest>,
) -> Result<Response<Parts>, Status> {
    let copy = door.node.copy().map_err(|error| of(failure(error)))?;
    let ledger_id = copy.ledger.ledger_id();
    let ledger_id = ledger_id.ok_or_else(|| of(Failure::Rejected(Rejection::NotBootstrapped)))?;
    let header = v1::BackupHeader {
        format: 0,
        ledger_format: u32::from(Ledger::FORMAT),
        ledger_id: ledger_id.to_string(),
        applied_index: copy.index,
        cluster_time_ms: copy.ledger.now().0,
        wall_time: Some(convert::timestamp(WallTime(copy.wall_ms))),
        node_id: copy.node,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        state_hash: copy.ledger.state_hash().to_vec(),
    };
    let (composer, first) = Composer::begin(header);
    let pieces = door
        .node
        .pieces(copy.ledger, CHUNK_BYTES_MAX)
        .map_err(|error| Status::internal(error.to_string()))?;
    // The copy counts until the stream is dropped, however slowly it is read.
    let place = copy.place;
    let rest = stream::try_unfold((Some(composer), pieces, place), |state| async move {
        let (Some(composer), pieces, place) = state else {
            return Ok(None);
        };
        let (part, composer, pieces) = next(composer, pieces).await?;
        Ok::<_, Status>(Some((part, (composer, pieces, place))))
    });
    let parts = stream::once(std::future::ready(Ok(first))).chain(rest);
    // Cut off without its trailer, no backup is taken for a whole one.
    Ok(Response::new(Box::pin(parts.take_until(door.stopping()))))
}

async fn next(
    mut composer: Composer,
    mut pieces: Pieces,
) -> Result<(v1::BackupResponse, Option<Composer>, Pieces), Status> {
    let piece = pieces.next().await;
    let piece = piece.map_err(|error| Status::internal(error.to_string()))?;
    Ok(match piece {
        Some(piece) => (composer.chunk(piece.into()), Some(composer), pieces),
        None => (composer.end(), None, pieces),
    })
}
