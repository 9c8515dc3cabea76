//! ChargeService: reads requests, asks the ledger, shows answers. Decides nothing about money: the ledger does.

use billing_core::{
    AttachProviderObject, BeginCharge, Command, Reply, ResolveCharge, SettleCharge,
};
use billing_proto::v1;
use billing_proto::v1::charge_service_server::ChargeService;
use tonic::{Request, Response, Status};

use super::{Door, answer, rejected, who};

/// Answers the calls of ChargeService.
#[derive(Clone)]
pub struct Charges(pub Door);

#[tonic::async_trait]
impl ChargeService for Charges {
    async fn begin_charge(
        &self,
        request: Request<v1::BeginChargeRequest>,
    ) -> Result<Response<v1::BeginChargeResponse>, Status> {
        let actor = who::actor(who::WORKER, request.extensions());
        let command = BeginCharge::try_from(request.into_inner()).map_err(rejected)?;
        let attempt = answer!(self.0.one(actor, Command::BeginCharge(command)).await, Reply::Begun(attempt) => attempt)?;
        Ok(Response::new(v1::BeginChargeResponse {
            attempt: Some(attempt.into()),
        }))
    }

    async fn attach_provider_object(
        &self,
        request: Request<v1::AttachProviderObjectRequest>,
    ) -> Result<Response<v1::AttachProviderObjectResponse>, Status> {
        let actor = who::actor(who::WORKER, request.extensions());
        let command = AttachProviderObject::try_from(request.get_ref()).map_err(rejected)?;
        let object = answer!(
            self.0.one(actor, Command::AttachProviderObject(command)).await,
            Reply::Attached { object } => object
        )?;
        Ok(Response::new(v1::AttachProviderObjectResponse {
            object: object.to_string(),
        }))
    }

    async fn settle_charge(
        &self,
        request: Request<v1::SettleChargeRequest>,
    ) -> Result<Response<v1::SettleChargeResponse>, Status> {
        let actor = who::actor(who::WORKER, request.extensions());
        let command = SettleCharge::try_from(request.into_inner()).map_err(rejected)?;
        let status = answer!(self.0.one(actor, Command::SettleCharge(command)).await, Reply::Status { status } => status)?;
        let status = v1::InvoiceStatus::from(status).into();
        Ok(Response::new(v1::SettleChargeResponse { status }))
    }

    async fn resolve_charge(
        &self,
        request: Request<v1::ResolveChargeRequest>,
    ) -> Result<Response<v1::ResolveChargeResponse>, Status> {
        let actor = who::actor(who::OPERATOR, request.extensions());
        let command = ResolveCharge::try_from(request.into_inner()).map_err(rejected)?;
        let status = answer!(self.0.one(actor, Command::ResolveCharge(command)).await, Reply::Status { status } => status)?;
        let status = v1::InvoiceStatus::from(status).into();
        Ok(Response::new(v1::ResolveChargeResponse { status }))
    }
}
