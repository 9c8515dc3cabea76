//! LeaseService: reads requests, asks the ledger, shows answers. Decides only how much one call may carry.

use std::pin::Pin;

use billing_core::{
    CloseSession, Command, HolderId, InvoiceId, KeepAlive, ReleaseLease, RenewLease, Reply,
};
use billing_proto::v1::lease_service_server::LeaseService;
use billing_proto::{Failure, request, v1};
use futures::future::join_all;
use futures::{Stream, StreamExt, stream};
use tonic::{Request, Response, Status, Streaming};

use super::{Door, answer, item, page, pipeline, rejected, watch, who};

/// KeepAlive requests that travel in one proposal. More than that gather in the connection's window.
const KEEP_ALIVES_PER_PROPOSAL: usize = 1_024;

/// Answers the calls of LeaseService.
#[derive(Clone)]
pub struct Leases(pub Door);

type KeepAlives = Pin<Box<dyn Stream<Item = Result<v1::KeepAliveResponse, Status>> + Send>>;

#[tonic::async_trait]
impl LeaseService for Leases {
    async fn open_session(
        &self,
        request: Request<v1::OpenSessionRequest>,
    ) -> Result<Response<v1::OpenSessionResponse>, Status> {
        let actor = who::actor(&request.get_ref().holder, request.extensions());
        let command =
            request::open_session(request.get_ref(), self.0.draw_id()).map_err(rejected)?;
        let session = answer!(self.0.one(actor, Command::OpenSession(command)).await, Reply::Session(view) => view)?;
        Ok(Response::new(v1::OpenSessionResponse {
            session: Some(session.into()),
        }))
    }

    type KeepAliveStream = KeepAlives;

    async fn keep_alive(
        &self,
        request: Request<Streaming<v1::KeepAliveRequest>>,
    ) -> Result<Response<KeepAlives>, Status> {
        let actor = who::actor(who::WORKER, request.extensions());
        let door = self.0.clone();
        let stopped = door.stopping();
        // One proposal at a time: what arrives meanwhile gathers into the next one, and answers keep the order of requests.
        let answers = request
            .into_inner()
            .ready_chunks(KEEP_ALIVES_PER_PROPOSAL)
            .then(move |requests| keep_alive(door.clone(), actor.clone(), requests))
            .flat_map(stream::iter)
            .take_until(stopped);
        Ok(Response::new(Box::pin(answers)))
    }

    async fn close_session(
        &self,
        request: Request<v1::CloseSessionRequest>,
    ) -> Result<Response<v1::CloseSessionResponse>, Status> {
        let actor = who::actor(who::WORKER, request.extensions());
        let command = CloseSession::try_from(request.get_ref()).map_err(rejected)?;
        let was_open = answer!(self.0.one(actor, Command::CloseSession(command)).await, Reply::SessionClosed { was_open } => was_open)?;
        Ok(Response::new(v1::CloseSessionResponse { was_open }))
    }

    async fn acquire_lease(
        &self,
        request: Request<v1::AcquireLeaseRequest>,
    ) -> Result<Response<v1::AcquireLeaseResponse>, Status> {
        let actor = who::actor(holder(request.get_ref()), request.extensions());
        let command =
            request::acquire_lease(request.get_ref(), self.0.draw_id()).map_err(rejected)?;
        let leased =
            answer!(self.0.acquire(actor, command).await, Reply::Leased(leased) => leased)?;
        Ok(Response::new(leased.into()))
    }

    async fn release_lease(
        &self,
        request: Request<v1::ReleaseLeaseRequest>,
    ) -> Result<Response<v1::ReleaseLeaseResponse>, Status> {
        let actor = who::actor(who::WORKER, request.extensions());
        let command = ReleaseLease::try_from(request.get_ref()).map_err(rejected)?;
        let was_current = answer!(self.0.one(actor, Command::ReleaseLease(command)).await, Reply::Released { was_current } => was_current)?;
        Ok(Response::new(v1::ReleaseLeaseResponse { was_current }))
    }

    async fn renew_lease(
        &self,
        request: Request<v1::RenewLeaseRequest>,
    ) -> Result<Response<v1::RenewLeaseResponse>, Status> {
        let actor = who::actor(who::WORKER, request.extensions());
        let command = RenewLease::try_from(request.get_ref()).map_err(rejected)?;
        let lease = answer!(self.0.one(actor, Command::RenewLease(command)).await, Reply::Renewed(view) => view)?;
        Ok(Response::new(v1::RenewLeaseResponse {
            lease: Some(lease.into()),
        }))
    }

    async fn acquire_leases(
        &self,
        request: Request<v1::AcquireLeasesRequest>,
    ) -> Result<Response<v1::AcquireLeasesResponse>, Status> {
        use v1::acquire_leases_response::{Item, item::Result as Item_};
        request::items(request.get_ref().items.len()).map_err(rejected)?;
        let (_, extensions, request) = request.into_parts();
        // Polled in order, so their commands stand in the queue in order, and travel together.
        let items = join_all(request.items.iter().map(|one| {
            let actor = who::actor(holder(one), &extensions);
            let command = request::acquire_lease(one, self.0.draw_id());
            async move {
                let granted = match command {
                    Ok(command) => answer!(item: self.0.acquire(actor, command).await, Reply::Leased(leased) => leased),
                    Err(out) => Err(item(Failure::Rejected(out.into()))),
                };
                let result = granted.map_or_else(Item_::Error, |leased| Item_::Granted(leased.into()));
                Item { result: Some(result) }
            }
        }))
        .await;
        Ok(Response::new(v1::AcquireLeasesResponse { items }))
    }

    async fn release_leases(
        &self,
        request: Request<v1::ReleaseLeasesRequest>,
    ) -> Result<Response<v1::ReleaseLeasesResponse>, Status> {
        use v1::release_leases_response::{Item, item::Result as Item_};
        request::items(request.get_ref().items.len()).map_err(rejected)?;
        let actor = who::actor(who::WORKER, request.extensions());
        let commands = request
            .get_ref()
            .items
            .iter()
            .map(|one| ReleaseLease::try_from(one).map(Command::ReleaseLease));
        let items = self
            .0
            .each(actor, commands)
            .await
            .into_iter()
            .map(|result| {
                let released =
                    answer!(item: result, Reply::Released { was_current } => was_current);
                let released = released.map(|was_current| v1::ReleaseLeaseResponse { was_current });
                Item {
                    result: Some(released.map_or_else(Item_::Error, Item_::Released)),
                }
            })
            .collect();
        Ok(Response::new(v1::ReleaseLeasesResponse { items }))
    }

    async fn renew_leases(
        &self,
        request: Request<v1::RenewLeasesRequest>,
    ) -> Result<Response<v1::RenewLeasesResponse>, Status> {
        use v1::renew_leases_response::{Item, item::Result as Item_};
        request::items(request.get_ref().items.len()).map_err(rejected)?;
        let actor = who::actor(who::WORKER, request.extensions());
        let commands = request
            .get_ref()
            .items
            .iter()
            .map(|one| RenewLease::try_from(one).map(Command::RenewLease));
        let items = self
            .0
            .each(actor, commands)
            .await
            .into_iter()
            .map(|result| {
                let renewed = answer!(item: result, Reply::Renewed(lease) => lease);
                let renewed = renewed.map(|lease| v1::RenewLeaseResponse {
                    lease: Some(lease.into()),
                });
                Item {
                    result: Some(renewed.map_or_else(Item_::Error, Item_::Renewed)),
                }
            })
            .collect();
        Ok(Response::new(v1::RenewLeasesResponse { items }))
    }

    async fn get_lease(
        &self,
        request: Request<v1::GetLeaseRequest>,
    ) -> Result<Response<v1::GetLeaseResponse>, Status> {
        let request = request.into_inner();
        let invoice = InvoiceId::new(&request.invoice_id).map_err(rejected)?;
        let read = self
            .0
            .read(request.stale_ok, move |ledger| ledger.lease(&invoice))
            .await?;
        Ok(Response::new(v1::GetLeaseResponse {
            lease: read.value.map(v1::Lease::from),
            applied_index: read.applied_index,
            watch_index: 0,
        }))
    }

    async fn list_leases(
        &self,
        request: Request<v1::ListLeasesRequest>,
    ) -> Result<Response<v1::ListLeasesResponse>, Status> {
        let request = request.into_inner();
        let rows = request::page_size(request.page_size).map_err(rejected)?;
        let after = page::read(&request.page_token).map_err(rejected)?;
        let holder = match request.holder.as_str() {
            "" => None,
            name => Some(HolderId::new(name).map_err(rejected)?),
        };
        let read = page::walk(
            &self.0,
            request.stale_ok,
            after,
            rows,
            |ledger, after, rows| ledger.leases(after, rows),
            |lease| &lease.invoice,
            |lease| holder.as_ref().is_none_or(|holder| lease.holder == *holder),
        )
        .await?;
        Ok(Response::new(v1::ListLeasesResponse {
            next_page_token: page::next(&read.value, rows, |lease| &lease.invoice),
            leases: read.value.into_iter().map(v1::Lease::from).collect(),
            applied_index: read.applied_index,
            watch_index: 0,
        }))
    }

    type WatchLeasesStream = watch::Events;

    async fn watch_leases(
        &self,
        request: Request<v1::WatchLeasesRequest>,
    ) -> Result<Response<watch::Events>, Status> {
        watch::serve(&self.0, request).await
    }

    type PipelineStream = pipeline::Answers;

    async fn pipeline(
        &self,
        request: Request<Streaming<v1::PipelineRequest>>,
    ) -> Result<Response<pipeline::Answers>, Status> {
        pipeline::serve(self, request).await
    }
}

/// What the one who acquires calls itself; inside a session the ledger knows.
fn holder(request: &v1::AcquireLeaseRequest) -> &str {
    if request.session_id.is_empty() {
        &request.holder
    } else {
        who::WORKER
    }
}

/// One proposal for what has gathered. The stream ends with the first request that could not be read.
async fn keep_alive(
    door: Door,
    actor: billing_core::Actor,
    requests: Vec<Result<v1::KeepAliveRequest, Status>>,
) -> Vec<Result<v1::KeepAliveResponse, Status>> {
    use v1::keep_alive_response::Result as Kept;
    let mut unread = None;
    let mut tags = Vec::with_capacity(requests.len());
    let mut commands = Vec::with_capacity(requests.len());
    for request in requests {
        match request {
            Ok(request) => {
                tags.push(request.tag);
                commands.push(KeepAlive::try_from(&request).map(Command::KeepAlive));
            }
            Err(status) => {
                unread = Some(Err(status));
                break;
            }
        }
    }
    let results = door.each(actor, commands.into_iter()).await;
    let answers = tags.into_iter().zip(results).map(|(tag, result)| {
        let kept = answer!(item: result, Reply::Session(view) => view);
        let result = kept.map_or_else(Kept::Error, |view| Kept::Session(view.into()));
        Ok(v1::KeepAliveResponse {
            tag,
            result: Some(result),
        })
    });
    answers.chain(unread).collect()
}
