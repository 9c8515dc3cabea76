//! ChargeService: reads requests, asks the ledger, shows answers. Decides nothing about money: the ledger does.

use billing_core::{
    AttachProviderObject, BeginCharge, Command, OutOfBounds, Reply, ResolveCharge, SettleCharge,
};
use billing_proto::v1;
use billing_proto::v1::charge_service_server::ChargeService;
use tonic::{Request, Response, Status};

use super::{Door, OneCommand, status_of, unexpected, who};

/// Answers the calls of ChargeService.
#[derive(Clone)]
pub struct Charges(pub Door);

#[tonic::async_trait]
impl ChargeService for Charges {
    async fn begin_charge(
        &self,
        request: Request<v1::BeginChargeRequest>,
    ) -> Result<Response<v1::BeginChargeResponse>, Status> {
        self.0.call(request).await
    }

    async fn attach_provider_object(
        &self,
        request: Request<v1::AttachProviderObjectRequest>,
    ) -> Result<Response<v1::AttachProviderObjectResponse>, Status> {
        self.0.call(request).await
    }

    async fn settle_charge(
        &self,
        request: Request<v1::SettleChargeRequest>,
    ) -> Result<Response<v1::SettleChargeResponse>, Status> {
        self.0.call(request).await
    }

    async fn resolve_charge(
        &self,
        request: Request<v1::ResolveChargeRequest>,
    ) -> Result<Response<v1::ResolveChargeResponse>, Status> {
        self.0.call(request).await
    }
}

impl OneCommand for v1::BeginChargeRequest {
    type Response = v1::BeginChargeResponse;

    fn command(self, _: impl FnOnce() -> [u8; 16]) -> Result<Command, OutOfBounds> {
        BeginCharge::try_from(self).map(Command::BeginCharge)
    }

    fn response(reply: Reply) -> Result<v1::BeginChargeResponse, Status> {
        match reply {
            Reply::Begun(attempt) => Ok(v1::BeginChargeResponse {
                attempt: Some((*attempt).into()),
            }),
            other => Err(unexpected(&other)),
        }
    }
}

impl OneCommand for v1::AttachProviderObjectRequest {
    type Response = v1::AttachProviderObjectResponse;

    fn command(self, _: impl FnOnce() -> [u8; 16]) -> Result<Command, OutOfBounds> {
        AttachProviderObject::try_from(&self).map(Command::AttachProviderObject)
    }

    fn response(reply: Reply) -> Result<v1::AttachProviderObjectResponse, Status> {
        match reply {
            Reply::Attached { object } => Ok(v1::AttachProviderObjectResponse {
                object: object.to_string(),
            }),
            other => Err(unexpected(&other)),
        }
    }
}

impl OneCommand for v1::SettleChargeRequest {
    type Response = v1::SettleChargeResponse;

    fn command(self, _: impl FnOnce() -> [u8; 16]) -> Result<Command, OutOfBounds> {
        SettleCharge::try_from(self).map(|settle| Command::SettleCharge(Box::new(settle)))
    }

    fn response(reply: Reply) -> Result<v1::SettleChargeResponse, Status> {
        let status = status_of(reply)?;
        Ok(v1::SettleChargeResponse { status })
    }
}

impl OneCommand for v1::ResolveChargeRequest {
    type Response = v1::ResolveChargeResponse;

    fn name(&self) -> &str {
        who::OPERATOR
    }

    fn command(self, _: impl FnOnce() -> [u8; 16]) -> Result<Command, OutOfBounds> {
        ResolveCharge::try_from(self).map(|resolve| Command::ResolveCharge(Box::new(resolve)))
    }

    fn response(reply: Reply) -> Result<v1::ResolveChargeResponse, Status> {
        let status = status_of(reply)?;
        Ok(v1::ResolveChargeResponse { status })
    }
}
