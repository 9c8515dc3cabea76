//! WatchLeases: what was granted and ended, from an index on. Decides when a watcher is told that it fell behind.

use std::pin::Pin;

use billing_proto::v1;
use futures::Stream;
use tonic::{Request, Response, Status};

use super::Door;

pub type Events = Pin<Box<dyn Stream<Item = Result<v1::WatchLeasesResponse, Status>> + Send>>;

pub async fn serve(
    _door: &Door,
    _request: Request<v1::WatchLeasesRequest>,
) -> Result<Response<Events>, Status> {
    Err(Status::unimplemented("WatchLeases"))
}
