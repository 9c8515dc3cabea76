//! The services of a fake node, as far as the tests call them.

use std::pin::Pin;

use billing_core::{
    AttachProviderObject, BeginCharge, CHAIN_START, ClaimInvoices, CloseSession, Command,
    InvoiceId, KeepAlive, Rejection, ReleaseLease, RenewLease, Reply, SettleCharge, SubmitInvoice,
};
use billing_env::{RandomSource, RealRandom};
use billing_proto::{
    Failure, convert, request,
    status::{item_error, not_applied, refused},
    v1::{
        self, charge_service_server::ChargeService, cluster_service_server::ClusterService,
        invoice_service_server::InvoiceService, lease_service_server::LeaseService,
    },
};
use futures::{Stream, StreamExt, TryStreamExt, future::join_all, stream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Fault, Node};

fn watch_part(next_index: u64) -> v1::WatchLeasesResponse {
    let progress = v1::WatchProgress { next_index };
    v1::WatchLeasesResponse {
        part: Some(v1::watch_leases_response::Part::Progress(progress)),
    }
}

fn watch_event(event: billing_core::LeaseEvent) -> v1::WatchLeasesResponse {
    let event = v1::LeaseEvent {
        index: event.index,
        invoice_id: event.invoice.to_string(),
        token: event.token.0,
        holder: event.holder.to_string(),
        cluster_time_ms: event.at.0,
        what: event.what.to_owned(),
        ..Default::default()
    };
    v1::WatchLeasesResponse {
        part: Some(v1::watch_leases_response::Part::Event(event)),
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn bad(out: billing_core::OutOfBounds) -> Status {
    refused(&out.into())
}

fn odd<T>(reply: Reply) -> Result<T, Status> {
    Err(Status::internal(format!(
        "the ledger answered something else: {reply:?}"
    )))
}

fn not_here<T>() -> Result<T, Status> {
    Err(Status::unimplemented("no test calls this"))
}

impl Node {
    pub(super) async fn run(
        &self,
        method: &'static str,
        command: Command,
    ) -> Result<Reply, Status> {
        self.cluster.serve(self.number, method, command).await
    }
}

#[tonic::async_trait]
impl LeaseService for Node {
    async fn open_session(
        &self,
        request: Request<v1::OpenSessionRequest>,
    ) -> Result<Response<v1::OpenSessionResponse>, Status> {
        let open = request::open_session(request.get_ref(), RealRandom.id()).map_err(bad)?;
        self.hinted(
            match self.run("OpenSession", Command::OpenSession(open)).await {
                Ok(Reply::Session(view)) => Ok(v1::OpenSessionResponse {
                    session: Some(view.into()),
                }),
                Ok(other) => odd(other),
                Err(status) => Err(status),
            },
        )
    }

    type KeepAliveStream = Answers<v1::KeepAliveResponse>;

    async fn keep_alive(
        &self,
        request: Request<Streaming<v1::KeepAliveRequest>>,
    ) -> Result<Response<Self::KeepAliveStream>, Status> {
        let node = self.clone();
        let answers = request.into_inner().then(move |beat| {
            let node = node.clone();
            async move {
                let beat = beat?;
                let keep = KeepAlive::try_from(&beat).map_err(bad)?;
                let result = match node.run("KeepAlive", Command::KeepAlive(keep)).await {
                    Ok(Reply::Session(view)) => {
                        v1::keep_alive_response::Result::Session(view.into())
                    }
                    Ok(other) => return odd(other),
                    Err(status) => {
                        v1::keep_alive_response::Result::Error(item_error(&Failure::from(status)))
                    }
                };
                Ok(v1::KeepAliveResponse {
                    tag: beat.tag,
                    result: Some(result),
                })
            }
        });
        self.hinted(Ok(Box::pin(answers) as Self::KeepAliveStream))
    }

    async fn close_session(
        &self,
        request: Request<v1::CloseSessionRequest>,
    ) -> Result<Response<v1::CloseSessionResponse>, Status> {
        let close = CloseSession::try_from(request.get_ref()).map_err(bad)?;
        self.hinted(
            match self.run("CloseSession", Command::CloseSession(close)).await {
                Ok(Reply::SessionClosed { was_open }) => Ok(v1::CloseSessionResponse { was_open }),
                Ok(other) => odd(other),
                Err(status) => Err(status),
            },
        )
    }

    async fn acquire_lease(
        &self,
        request: Request<v1::AcquireLeaseRequest>,
    ) -> Result<Response<v1::AcquireLeaseResponse>, Status> {
        let acquire = request::acquire_lease(request.get_ref(), || RealRandom.id()).map_err(bad)?;
        self.hinted(
            match self
                .run("AcquireLease", Command::AcquireLease(acquire))
                .await
            {
                Ok(Reply::Leased(leased)) => Ok(leased.into()),
                Ok(other) => odd(other),
                Err(status) => Err(status),
            },
        )
    }

    async fn release_lease(
        &self,
        request: Request<v1::ReleaseLeaseRequest>,
    ) -> Result<Response<v1::ReleaseLeaseResponse>, Status> {
        let release = ReleaseLease::try_from(request.get_ref()).map_err(bad)?;
        self.hinted(
            match self
                .run("ReleaseLease", Command::ReleaseLease(release))
                .await
            {
                Ok(Reply::Released { was_current }) => Ok(v1::ReleaseLeaseResponse { was_current }),
                Ok(other) => odd(other),
                Err(status) => Err(status),
            },
        )
    }

    async fn renew_lease(
        &self,
        request: Request<v1::RenewLeaseRequest>,
    ) -> Result<Response<v1::RenewLeaseResponse>, Status> {
        let renew = RenewLease::try_from(request.get_ref()).map_err(bad)?;
        self.hinted(
            match self.run("RenewLease", Command::RenewLease(renew)).await {
                Ok(Reply::Renewed(lease)) => Ok(v1::RenewLeaseResponse {
                    lease: Some(lease.into()),
                }),
                Ok(other) => odd(other),
                Err(status) => Err(status),
            },
        )
    }

    async fn acquire_leases(
        &self,
        request: Request<v1::AcquireLeasesRequest>,
    ) -> Result<Response<v1::AcquireLeasesResponse>, Status> {
        use v1::acquire_leases_response::{Item, item};
        let items = request.into_inner().items;
        let asked = items.iter().map(|wanted| async move {
            let acquire = request::acquire_lease(wanted, || RealRandom.id()).map_err(bad)?;
            match self
                .run("AcquireLeases", Command::AcquireLease(acquire))
                .await?
            {
                Reply::Leased(leased) => Ok(leased.into()),
                other => odd(other),
            }
        });
        let items = join_all(asked).await.into_iter().map(|granted| Item {
            result: Some(match granted {
                Ok(granted) => item::Result::Granted(granted),
                Err(status) => item::Result::Error(item_error(&Failure::from(status))),
            }),
        });
        self.hinted(Ok(v1::AcquireLeasesResponse {
            items: items.collect(),
        }))
    }

    async fn release_leases(
        &self,
        request: Request<v1::ReleaseLeasesRequest>,
    ) -> Result<Response<v1::ReleaseLeasesResponse>, Status> {
        use v1::release_leases_response::{Item, item};
        let mut items = Vec::new();
        for wanted in request.into_inner().items {
            let release = ReleaseLease::try_from(&wanted).map_err(bad)?;
            items.push(Item {
                result: Some(
                    match self
                        .run("ReleaseLeases", Command::ReleaseLease(release))
                        .await
                    {
                        Ok(Reply::Released { was_current }) => {
                            item::Result::Released(v1::ReleaseLeaseResponse { was_current })
                        }
                        Ok(other) => return odd(other),
                        Err(status) => item::Result::Error(item_error(&Failure::from(status))),
                    },
                ),
            });
        }
        self.hinted(Ok(v1::ReleaseLeasesResponse { items }))
    }

    async fn renew_leases(
        &self,
        request: Request<v1::RenewLeasesRequest>,
    ) -> Result<Response<v1::RenewLeasesResponse>, Status> {
        use v1::renew_leases_response::{Item, item};
        let items = request.into_inner().items;
        let asked = items.iter().map(|wanted| async move {
            let renew = RenewLease::try_from(wanted).map_err(bad)?;
            match self.run("RenewLeases", Command::RenewLease(renew)).await? {
                Reply::Renewed(lease) => Ok(v1::RenewLeaseResponse {
                    lease: Some(lease.into()),
                }),
                other => odd(other),
            }
        });
        let items = join_all(asked).await.into_iter().map(|renewed| Item {
            result: Some(match renewed {
                Ok(renewed) => item::Result::Renewed(renewed),
                Err(status) => item::Result::Error(item_error(&Failure::from(status))),
            }),
        });
        self.hinted(Ok(v1::RenewLeasesResponse {
            items: items.collect(),
        }))
    }

    async fn get_lease(
        &self,
        request: Request<v1::GetLeaseRequest>,
    ) -> Result<Response<v1::GetLeaseResponse>, Status> {
        self.run("GetLease", Command::Tick).await?;
        let invoice = InvoiceId::new(&request.get_ref().invoice_id).map_err(bad)?;
        let lease = self
            .cluster
            .read(|ledger| ledger.lease(&invoice))
            .map(v1::Lease::from);
        self.hinted(Ok(v1::GetLeaseResponse {
            lease,
            applied_index: 1,
            watch_index: 1,
        }))
    }

    async fn list_leases(
        &self,
        request: Request<v1::ListLeasesRequest>,
    ) -> Result<Response<v1::ListLeasesResponse>, Status> {
        self.run("ListLeases", Command::Tick).await?;
        let v1::ListLeasesRequest {
            page_size,
            page_token,
            ..
        } = request.into_inner();
        let rows = request::page_size(page_size).map_err(bad)?;
        let after = if page_token.is_empty() {
            None
        } else {
            Some(InvoiceId::new(&page_token).map_err(bad)?)
        };
        let leases = self
            .cluster
            .read(|ledger| ledger.leases(after.as_ref(), rows));
        let next = leases
            .last()
            .filter(|_| leases.len() == rows)
            .map(|lease| lease.invoice.to_string());
        let leases = leases.into_iter().map(v1::Lease::from).collect();
        let next_page_token = next.unwrap_or_default();
        self.hinted(Ok(v1::ListLeasesResponse {
            leases,
            next_page_token,
            applied_index: 1,
            watch_index: 1,
        }))
    }

    type WatchLeasesStream = Answers<v1::WatchLeasesResponse>;

    /// The ledger's events. Fault LoseReply: the stream breaks after three of its messages. Delay: it falls behind after one.
    async fn watch_leases(
        &self,
        request: Request<v1::WatchLeasesRequest>,
    ) -> Result<Response<Self::WatchLeasesStream>, Status> {
        let v1::WatchLeasesRequest {
            invoice_id,
            from_index,
        } = request.into_inner();
        let end = match self.cluster.next_fault(self.number, "WatchLeases") {
            None => None,
            Some(Fault::LoseReply) => Some((3, Status::unknown("the connection broke"))),
            Some(Fault::Delay(_)) => {
                let behind = Rejection::IndexPurged {
                    requested: 1,
                    oldest: 1_000,
                };
                Some((1, refused(&behind)))
            }
            Some(Fault::NotApplied) => return Err(not_applied("no leader is known")),
            Some(other) => {
                return Err(Status::internal(format!(
                    "{other:?} is not made for watches"
                )));
            }
        };
        let next = match from_index {
            0 => self.cluster.read(|ledger| ledger.audit_last_index()) + 1,
            from => from,
        };
        let cluster = self.cluster.clone();
        let pages = stream::try_unfold((next, true), move |(next, begins)| {
            let (cluster, invoice_id) = (cluster.clone(), invoice_id.clone());
            async move {
                if begins {
                    return Ok(Some((vec![watch_part(next)], (next, false))));
                }
                loop {
                    let page = cluster
                        .read(|ledger| ledger.lease_events(next, 256))
                        .map_err(|rejection| refused(&rejection))?;
                    let wanted = page.events.into_iter().filter(|event| {
                        invoice_id.is_empty() || event.invoice.as_str() == invoice_id
                    });
                    let parts: Vec<_> = wanted.map(watch_event).collect();
                    if page.next_index > next {
                        return Ok::<_, Status>(Some((parts, (page.next_index, false))));
                    }
                    // The fake announces nothing.
                    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
                }
            }
        });
        let messages = pages
            .map_ok(|parts| stream::iter(parts.into_iter().map(Ok)))
            .try_flatten();
        self.hinted(Ok(match end {
            None => Box::pin(messages) as Self::WatchLeasesStream,
            Some((after, status)) => {
                Box::pin(messages.take(after).chain(stream::iter([Err(status)])))
            }
        }))
    }

    type PipelineStream = Answers<v1::PipelineResponse>;

    async fn pipeline(
        &self,
        request: Request<Streaming<v1::PipelineRequest>>,
    ) -> Result<Response<Self::PipelineStream>, Status> {
        let answers = super::pipeline::open(self, request.into_inner())?;
        self.hinted(Ok(
            Box::pin(ReceiverStream::new(answers)) as Self::PipelineStream
        ))
    }
}

#[tonic::async_trait]
impl InvoiceService for Node {
    async fn submit_invoices(
        &self,
        request: Request<Streaming<v1::SubmitInvoicesRequest>>,
    ) -> Result<Response<v1::SubmitInvoicesResponse>, Status> {
        let mut stream = request.into_inner();
        let mut answer = v1::SubmitInvoicesResponse::default();
        let mut position = 0;
        while let Some(submit) = stream.message().await? {
            let invoice_id = submit
                .invoice
                .as_ref()
                .map(|invoice| invoice.invoice_id.clone())
                .unwrap_or_default();
            let refusal = match SubmitInvoice::try_from(submit) {
                Err(out) => Some(out.into()),
                Ok(submit) => match self.cluster.apply(Command::SubmitInvoice(submit)) {
                    Ok(Reply::Submitted { unchanged: false }) => {
                        answer.submitted += 1;
                        None
                    }
                    Ok(Reply::Submitted { unchanged: true }) => {
                        answer.unchanged += 1;
                        None
                    }
                    Ok(other) => return odd(other),
                    Err(rejection) => Some(rejection),
                },
            };
            if let Some(rejection) = refusal {
                answer
                    .refused
                    .push(v1::submit_invoices_response::RefusedInvoice {
                        invoice_id,
                        reason: rejection.to_string(),
                        rejection: Some((&rejection).into()),
                        position,
                    });
            }
            position += 1;
        }
        // The stream as a whole: what goes wrong with it goes wrong with its answer.
        self.run("SubmitInvoices", Command::Tick).await?;
        self.hinted(Ok(answer))
    }

    async fn claim_invoices(
        &self,
        request: Request<v1::ClaimInvoicesRequest>,
    ) -> Result<Response<v1::ClaimInvoicesResponse>, Status> {
        let claim = ClaimInvoices::try_from(request.get_ref()).map_err(bad)?;
        self.hinted(
            match self
                .run("ClaimInvoices", Command::ClaimInvoices(claim))
                .await
            {
                Ok(Reply::Claimed(claimed)) => Ok(claimed.into()),
                Ok(other) => odd(other),
                Err(status) => Err(status),
            },
        )
    }

    async fn get_invoice(
        &self,
        request: Request<v1::GetInvoiceRequest>,
    ) -> Result<Response<v1::GetInvoiceResponse>, Status> {
        self.run("GetInvoice", Command::Tick).await?;
        let invoice = InvoiceId::new(&request.get_ref().invoice_id).map_err(bad)?;
        let view = self.cluster.read(|ledger| ledger.invoice_view(&invoice));
        let view = view.ok_or_else(|| refused(&billing_core::Rejection::NotFound { invoice }))?;
        self.hinted(Ok(convert::invoice_to_wire(view, 1)))
    }

    async fn list_invoices(
        &self,
        _: Request<v1::ListInvoicesRequest>,
    ) -> Result<Response<v1::ListInvoicesResponse>, Status> {
        not_here()
    }

    async fn get_invoice_history(
        &self,
        _: Request<v1::GetInvoiceHistoryRequest>,
    ) -> Result<Response<v1::GetInvoiceHistoryResponse>, Status> {
        not_here()
    }

    async fn cancel_invoice(
        &self,
        _: Request<v1::CancelInvoiceRequest>,
    ) -> Result<Response<v1::CancelInvoiceResponse>, Status> {
        not_here()
    }

    async fn requeue_invoice(
        &self,
        _: Request<v1::RequeueInvoiceRequest>,
    ) -> Result<Response<v1::RequeueInvoiceResponse>, Status> {
        not_here()
    }
}

#[tonic::async_trait]
impl ChargeService for Node {
    async fn begin_charge(
        &self,
        request: Request<v1::BeginChargeRequest>,
    ) -> Result<Response<v1::BeginChargeResponse>, Status> {
        let begin = BeginCharge::try_from(request.into_inner()).map_err(bad)?;
        self.hinted(
            match self.run("BeginCharge", Command::BeginCharge(begin)).await {
                Ok(Reply::Begun(attempt)) => Ok(v1::BeginChargeResponse {
                    attempt: Some((*attempt).into()),
                }),
                Ok(other) => odd(other),
                Err(status) => Err(status),
            },
        )
    }

    async fn attach_provider_object(
        &self,
        request: Request<v1::AttachProviderObjectRequest>,
    ) -> Result<Response<v1::AttachProviderObjectResponse>, Status> {
        let attach = AttachProviderObject::try_from(request.get_ref()).map_err(bad)?;
        self.hinted(
            match self
                .run(
                    "AttachProviderObject",
                    Command::AttachProviderObject(attach),
                )
                .await
            {
                Ok(Reply::Attached { object }) => Ok(v1::AttachProviderObjectResponse {
                    object: object.to_string(),
                }),
                Ok(other) => odd(other),
                Err(status) => Err(status),
            },
        )
    }

    async fn settle_charge(
        &self,
        request: Request<v1::SettleChargeRequest>,
    ) -> Result<Response<v1::SettleChargeResponse>, Status> {
        let settle = SettleCharge::try_from(request.into_inner()).map_err(bad)?;
        self.hinted(
            match self
                .run("SettleCharge", Command::SettleCharge(Box::new(settle)))
                .await
            {
                Ok(Reply::Status { status }) => Ok(v1::SettleChargeResponse {
                    status: v1::InvoiceStatus::from(status).into(),
                }),
                Ok(other) => odd(other),
                Err(status) => Err(status),
            },
        )
    }

    async fn resolve_charge(
        &self,
        _: Request<v1::ResolveChargeRequest>,
    ) -> Result<Response<v1::ResolveChargeResponse>, Status> {
        not_here()
    }
}

#[tonic::async_trait]
impl ClusterService for Node {
    async fn get_status(
        &self,
        _: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        self.run("GetStatus", Command::Tick).await?;
        self.hinted(Ok(v1::GetStatusResponse {
            node_id: self.number as u64,
            ..Default::default()
        }))
    }

    async fn force_release(
        &self,
        _: Request<v1::ForceReleaseRequest>,
    ) -> Result<Response<v1::ForceReleaseResponse>, Status> {
        not_here()
    }

    async fn pause_provider(
        &self,
        _: Request<v1::PauseProviderRequest>,
    ) -> Result<Response<v1::PauseProviderResponse>, Status> {
        not_here()
    }

    async fn allow_charges(
        &self,
        _: Request<v1::AllowChargesRequest>,
    ) -> Result<Response<v1::AllowChargesResponse>, Status> {
        not_here()
    }

    type ReadAuditLogStream = Answers<v1::ReadAuditLogResponse>;

    /// Records that say only their index, from 1 to 10. Fault LoseReply: the stream breaks after three of them.
    async fn read_audit_log(
        &self,
        request: Request<v1::ReadAuditLogRequest>,
    ) -> Result<Response<Self::ReadAuditLogStream>, Status> {
        let v1::ReadAuditLogRequest { from_index, limit } = *request.get_ref();
        let breaks = match self.cluster.next_fault(self.number, "ReadAuditLog") {
            None => false,
            Some(Fault::LoseReply) => true,
            Some(other) => {
                return Err(Status::internal(format!(
                    "{other:?} is not made for streams"
                )));
            }
        };
        let from = from_index.max(1);
        let to = if limit == 0 {
            10
        } else {
            10.min(from + limit - 1)
        };
        let records = (from..=to).map(|index| {
            let record = v1::AuditRecord {
                index,
                previous_hash: CHAIN_START.to_vec(),
                ..Default::default()
            };
            Ok(v1::ReadAuditLogResponse {
                record: Some(record),
            })
        });
        let records: Vec<_> = if breaks {
            records
                .take(3)
                .chain([Err(Status::unavailable("connection reset"))])
                .collect()
        } else {
            records.collect()
        };
        self.hinted(Ok(
            Box::pin(tokio_stream::iter(records)) as Self::ReadAuditLogStream
        ))
    }

    async fn add_learner(
        &self,
        _: Request<v1::AddLearnerRequest>,
    ) -> Result<Response<v1::AddLearnerResponse>, Status> {
        not_here()
    }

    async fn promote_member(
        &self,
        _: Request<v1::PromoteMemberRequest>,
    ) -> Result<Response<v1::PromoteMemberResponse>, Status> {
        not_here()
    }

    async fn remove_member(
        &self,
        _: Request<v1::RemoveMemberRequest>,
    ) -> Result<Response<v1::RemoveMemberResponse>, Status> {
        not_here()
    }

    async fn transfer_leader(
        &self,
        _: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderResponse>, Status> {
        not_here()
    }

    async fn take_snapshot(
        &self,
        _: Request<v1::TakeSnapshotRequest>,
    ) -> Result<Response<v1::TakeSnapshotResponse>, Status> {
        not_here()
    }

    type BackupStream = Answers<v1::BackupResponse>;

    async fn backup(
        &self,
        _: Request<v1::BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        not_here()
    }
}
