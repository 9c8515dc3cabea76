//! Pipeline: many requests on one stream, each answered under its tag. Decides how many may be in flight; each request means
//! what the method of its name means.

use std::pin::Pin;

use billing_proto::v1;
use futures::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::Leases;

pub type Answers = Pin<Box<dyn Stream<Item = Result<v1::PipelineResponse, Status>> + Send>>;

pub async fn serve(
    _leases: &Leases,
    _request: Request<Streaming<v1::PipelineRequest>>,
) -> Result<Response<Answers>, Status> {
    Err(Status::unimplemented("Pipeline"))
}
