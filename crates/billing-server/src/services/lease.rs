//! LeaseService: reads requests, asks the ledger, shows answers. Decides only how much one call may carry.

use std::pin::Pin;
use std::sync::OnceLock;

use billing_core::{
    CloseSession, Command, HolderId, InvoiceId, KeepAlive, OutOfBounds, ReleaseLease, RenewLease,
    Reply,
};
use billing_proto::v1::lease_service_server::LeaseService;
use billing_proto::{request, v1};
use futures::{Stream, StreamExt, stream};
use tonic::{Request, Response, Status, Streaming};

use super::{
    Caller, Door, OneCommand, answer, batch, of, page, pipeline, rejected, unexpected, watch, who,
};

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
        self.0.call(request).await
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
        self.0.call(request).await
    }

    async fn acquire_lease(
        &self,
        request: Request<v1::AcquireLeaseRequest>,
    ) -> Result<Response<v1::AcquireLeaseResponse>, Status> {
        let actor = who::actor(request.get_ref().name(), request.extensions());
        let command =
            request::acquire_lease(request.get_ref(), || self.0.draw_id()).map_err(rejected)?;
        let reply = self.0.acquire(actor, command).await.map_err(of)?;
        Ok(Response::new(v1::AcquireLeaseRequest::response(reply)?))
    }

    async fn release_lease(
        &self,
        request: Request<v1::ReleaseLeaseRequest>,
    ) -> Result<Response<v1::ReleaseLeaseResponse>, Status> {
        self.0.call(request).await
    }

    async fn renew_lease(
        &self,
        request: Request<v1::RenewLeaseRequest>,
    ) -> Result<Response<v1::RenewLeaseResponse>, Status> {
        self.0.call(request).await
    }

    async fn acquire_leases(
        &self,
        request: Request<v1::AcquireLeasesRequest>,
    ) -> Result<Response<v1::AcquireLeasesResponse>, Status> {
        let (_, extensions, request) = request.into_parts();
        let answer = batch::acquire(&self.0, &Caller::new(extensions), request).await?;
        Ok(Response::new(answer))
    }

    async fn release_leases(
        &self,
        request: Request<v1::ReleaseLeasesRequest>,
    ) -> Result<Response<v1::ReleaseLeasesResponse>, Status> {
        let (_, extensions, request) = request.into_parts();
        let answer = batch::release(&self.0, &Caller::new(extensions), request).await?;
        Ok(Response::new(answer))
    }

    async fn renew_leases(
        &self,
        request: Request<v1::RenewLeasesRequest>,
    ) -> Result<Response<v1::RenewLeasesResponse>, Status> {
        let (_, extensions, request) = request.into_parts();
        let answer = batch::renew(&self.0, &Caller::new(extensions), request).await?;
        Ok(Response::new(answer))
    }

    async fn get_lease(
        &self,
        request: Request<v1::GetLeaseRequest>,
    ) -> Result<Response<v1::GetLeaseResponse>, Status> {
        Ok(Response::new(
            get_lease(&self.0, request.into_inner()).await?,
        ))
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
        let watch_index = OnceLock::new();
        let read = page::walk(
            &self.0,
            request.stale_ok,
            after,
            rows,
            |ledger, after, rows| {
                // The first look's: a watch from there on sees what changes between the looks.
                watch_index.get_or_init(|| ledger.audit_last_index() + 1);
                ledger.leases(after, rows)
            },
            |lease| &lease.invoice,
            |lease| holder.as_ref().is_none_or(|holder| lease.holder == *holder),
        )
        .await?;
        Ok(Response::new(v1::ListLeasesResponse {
            next_page_token: page::next(&read.value, rows, |lease| &lease.invoice),
            leases: read.value.into_iter().map(v1::Lease::from).collect(),
            applied_index: read.applied_index,
            watch_index: watch_index.get().copied().unwrap_or(0),
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

/// GetLease, however the request came here.
pub(super) async fn get_lease(
    door: &Door,
    request: v1::GetLeaseRequest,
) -> Result<v1::GetLeaseResponse, Status> {
    let invoice = InvoiceId::new(&request.invoice_id).map_err(rejected)?;
    let read = door
        .read(request.stale_ok, move |ledger| {
            (ledger.lease(&invoice), ledger.audit_last_index() + 1)
        })
        .await?;
    let (lease, watch_index) = read.value;
    Ok(v1::GetLeaseResponse {
        lease: lease.map(v1::Lease::from),
        applied_index: read.applied_index,
        watch_index,
    })
}

impl OneCommand for v1::OpenSessionRequest {
    type Response = v1::OpenSessionResponse;

    fn name(&self) -> &str {
        &self.holder
    }

    fn command(self, drawn: impl FnOnce() -> [u8; 16]) -> Result<Command, OutOfBounds> {
        request::open_session(&self, drawn()).map(Command::OpenSession)
    }

    fn response(reply: Reply) -> Result<v1::OpenSessionResponse, Status> {
        let session = session(reply)?;
        Ok(v1::OpenSessionResponse {
            session: Some(session),
        })
    }
}

/// Answered under the tag that the caller adds.
impl OneCommand for v1::KeepAliveRequest {
    type Response = v1::Session;

    fn command(self, _: impl FnOnce() -> [u8; 16]) -> Result<Command, OutOfBounds> {
        KeepAlive::try_from(&self).map(Command::KeepAlive)
    }

    fn response(reply: Reply) -> Result<v1::Session, Status> {
        session(reply)
    }
}

fn session(reply: Reply) -> Result<v1::Session, Status> {
    match reply {
        Reply::Session(view) => Ok(view.into()),
        other => Err(unexpected(&other)),
    }
}

impl OneCommand for v1::CloseSessionRequest {
    type Response = v1::CloseSessionResponse;

    fn command(self, _: impl FnOnce() -> [u8; 16]) -> Result<Command, OutOfBounds> {
        CloseSession::try_from(&self).map(Command::CloseSession)
    }

    fn response(reply: Reply) -> Result<v1::CloseSessionResponse, Status> {
        match reply {
            Reply::SessionClosed { was_open } => Ok(v1::CloseSessionResponse { was_open }),
            other => Err(unexpected(&other)),
        }
    }
}

/// One command where it does not wait; a wait is [`Door::acquire`]'s.
impl OneCommand for v1::AcquireLeaseRequest {
    type Response = v1::AcquireLeaseResponse;

    fn name(&self) -> &str {
        batch::holder(self)
    }

    fn command(self, drawn: impl FnOnce() -> [u8; 16]) -> Result<Command, OutOfBounds> {
        request::acquire_lease(&self, drawn).map(Command::AcquireLease)
    }

    fn response(reply: Reply) -> Result<v1::AcquireLeaseResponse, Status> {
        match reply {
            Reply::Leased(leased) => Ok(leased.into()),
            other => Err(unexpected(&other)),
        }
    }
}

impl OneCommand for v1::ReleaseLeaseRequest {
    type Response = v1::ReleaseLeaseResponse;

    fn command(self, _: impl FnOnce() -> [u8; 16]) -> Result<Command, OutOfBounds> {
        ReleaseLease::try_from(&self).map(Command::ReleaseLease)
    }

    fn response(reply: Reply) -> Result<v1::ReleaseLeaseResponse, Status> {
        match reply {
            Reply::Released { was_current } => Ok(v1::ReleaseLeaseResponse { was_current }),
            other => Err(unexpected(&other)),
        }
    }
}

impl OneCommand for v1::RenewLeaseRequest {
    type Response = v1::RenewLeaseResponse;

    fn command(self, _: impl FnOnce() -> [u8; 16]) -> Result<Command, OutOfBounds> {
        RenewLease::try_from(&self).map(Command::RenewLease)
    }

    fn response(reply: Reply) -> Result<v1::RenewLeaseResponse, Status> {
        match reply {
            Reply::Renewed(lease) => Ok(v1::RenewLeaseResponse {
                lease: Some(lease.into()),
            }),
            other => Err(unexpected(&other)),
        }
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
