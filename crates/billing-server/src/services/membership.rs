//! Who belongs to the cluster: reads what an operator asks and shows what became of it. The rules are the node's.

use billing_proto::v1;
use tonic::{Request, Response, Status};

use super::Door;

pub async fn add_learner(
    _door: &Door,
    _request: Request<v1::AddLearnerRequest>,
) -> Result<Response<v1::AddLearnerResponse>, Status> {
    Err(Status::unimplemented("AddLearner"))
}

pub async fn promote(
    _door: &Door,
    _request: Request<v1::PromoteMemberRequest>,
) -> Result<Response<v1::PromoteMemberResponse>, Status> {
    Err(Status::unimplemented("PromoteMember"))
}

pub async fn remove(
    _door: &Door,
    _request: Request<v1::RemoveMemberRequest>,
) -> Result<Response<v1::RemoveMemberResponse>, Status> {
    Err(Status::unimplemented("RemoveMember"))
}

pub async fn transfer_leader(
    _door: &Door,
    _request: Request<v1::TransferLeaderRequest>,
) -> Result<Response<v1::TransferLeaderResponse>, Status> {
    Err(Status::unimplemented("TransferLeader"))
}
