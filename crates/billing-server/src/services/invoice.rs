//! InvoiceService: reads requests, asks the ledger, shows answers. Decides only how much one call may carry.

use billing_core::{
    Actor, AuditRecord, CHAIN_START, CancelInvoice, ClaimInvoices, Command, CustomerId, InvoiceId,
    OutOfBounds, Rejection, Reply, RequeueInvoice, SubmitInvoice,
};
use billing_proto::v1::invoice_service_server::InvoiceService;
use billing_proto::v1::submit_invoices_response::RefusedInvoice;
use billing_proto::{Failure, convert, request, status, v1};
use futures::StreamExt;
use tonic::{Request, Response, Status, Streaming};

use super::{Door, OneCommand, audit, page, rejected, status_of, who};

/// Invoices of one stream that travel in one proposal. The next ones gather in the connection's window meanwhile; one
/// proposal at a time keeps the order of submission, by which equal invoices are claimed.
const SUBMITS_PER_PROPOSAL: usize = 1_024;
/// Refusals that one answer lists; with one more the stream ends, since most of what is sent must be wrong.
pub const REFUSALS_LISTED_MAX: usize = 4_096;

/// Answers the calls of InvoiceService.
#[derive(Clone)]
pub struct Invoices(pub Door);

#[tonic::async_trait]
impl InvoiceService for Invoices {
    async fn submit_invoices(
        &self,
        request: Request<Streaming<v1::SubmitInvoicesRequest>>,
    ) -> Result<Response<v1::SubmitInvoicesResponse>, Status> {
        let actor = who::actor(who::WORKER, request.extensions());
        let mut chunks = request.into_inner().ready_chunks(SUBMITS_PER_PROPOSAL);
        let mut submission = Submission::default();
        while let Some(chunk) = chunks.next().await {
            submission.chunk(&self.0, &actor, chunk).await?;
        }
        Ok(Response::new(submission.answer))
    }

    async fn claim_invoices(
        &self,
        request: Request<v1::ClaimInvoicesRequest>,
    ) -> Result<Response<v1::ClaimInvoicesResponse>, Status> {
        self.0.call(request).await
    }

    async fn get_invoice(
        &self,
        request: Request<v1::GetInvoiceRequest>,
    ) -> Result<Response<v1::GetInvoiceResponse>, Status> {
        Ok(Response::new(
            get_invoice(&self.0, request.into_inner()).await?,
        ))
    }

    async fn list_invoices(
        &self,
        request: Request<v1::ListInvoicesRequest>,
    ) -> Result<Response<v1::ListInvoicesResponse>, Status> {
        let request = request.into_inner();
        let rows = request::page_size(request.page_size).map_err(rejected)?;
        let after = page::read(&request.page_token).map_err(rejected)?;
        let status = convert::status_filter(request.status).map_err(rejected)?;
        let customer = match request.customer_id.as_str() {
            "" => None,
            id => Some(CustomerId::new(id).map_err(rejected)?),
        };
        let read = page::walk(
            &self.0,
            request.stale_ok,
            after,
            rows,
            |ledger, after, rows| ledger.invoices(status, None, after, rows),
            |view| &view.invoice,
            |view| {
                let owes = view.bill.as_ref().map(|bill| &bill.customer);
                customer.is_none() || owes == customer.as_ref()
            },
        )
        .await?;
        let applied_index = read.applied_index;
        Ok(Response::new(v1::ListInvoicesResponse {
            next_page_token: page::next(&read.value, rows, |view| &view.invoice),
            invoices: read
                .value
                .into_iter()
                .map(|view| convert::invoice_to_wire(view, applied_index))
                .collect(),
            applied_index,
        }))
    }

    async fn get_invoice_history(
        &self,
        request: Request<v1::GetInvoiceHistoryRequest>,
    ) -> Result<Response<v1::GetInvoiceHistoryResponse>, Status> {
        let request = request.into_inner();
        let invoice = InvoiceId::new(&request.invoice_id).map_err(rejected)?;
        let wanted = invoice.clone();
        let read = self
            .0
            .read(request.stale_ok, move |ledger| {
                let records = ledger.history(&wanted).into_iter();
                let follows = |record: &AuditRecord| {
                    ledger
                        .audit_hash_before(record.index)
                        .unwrap_or(CHAIN_START)
                };
                records
                    .map(|record| audit::to_wire(&record, follows(&record)))
                    .collect::<Vec<_>>()
            })
            .await?;
        if read.value.is_empty() {
            return Err(status::refused(&Rejection::NotFound { invoice }));
        }
        Ok(Response::new(v1::GetInvoiceHistoryResponse {
            records: read.value,
        }))
    }

    async fn cancel_invoice(
        &self,
        request: Request<v1::CancelInvoiceRequest>,
    ) -> Result<Response<v1::CancelInvoiceResponse>, Status> {
        self.0.call(request).await
    }

    async fn requeue_invoice(
        &self,
        request: Request<v1::RequeueInvoiceRequest>,
    ) -> Result<Response<v1::RequeueInvoiceResponse>, Status> {
        self.0.call(request).await
    }
}

/// GetInvoice, however the request came here.
pub(super) async fn get_invoice(
    door: &Door,
    request: v1::GetInvoiceRequest,
) -> Result<v1::GetInvoiceResponse, Status> {
    let invoice = InvoiceId::new(&request.invoice_id).map_err(rejected)?;
    let wanted = invoice.clone();
    let read = door
        .read(request.stale_ok, move |ledger| ledger.invoice_view(&wanted))
        .await?;
    let view = read
        .value
        .ok_or_else(|| status::refused(&Rejection::NotFound { invoice }))?;
    Ok(convert::invoice_to_wire(view, read.applied_index))
}

impl OneCommand for v1::ClaimInvoicesRequest {
    type Response = v1::ClaimInvoicesResponse;

    fn command(self, _: impl FnOnce() -> [u8; 16]) -> Result<Command, OutOfBounds> {
        ClaimInvoices::try_from(&self).map(Command::ClaimInvoices)
    }

    fn response(reply: Reply) -> Result<v1::ClaimInvoicesResponse, Status> {
        match reply {
            Reply::Claimed(claimed) => Ok(claimed.into()),
            other => Err(super::unexpected(&other)),
        }
    }
}

impl OneCommand for v1::CancelInvoiceRequest {
    type Response = v1::CancelInvoiceResponse;

    fn name(&self) -> &str {
        who::OPERATOR
    }

    fn command(self, _: impl FnOnce() -> [u8; 16]) -> Result<Command, OutOfBounds> {
        CancelInvoice::try_from(&self).map(Command::CancelInvoice)
    }

    fn response(reply: Reply) -> Result<v1::CancelInvoiceResponse, Status> {
        let status = status_of(reply)?;
        Ok(v1::CancelInvoiceResponse { status })
    }
}

impl OneCommand for v1::RequeueInvoiceRequest {
    type Response = v1::RequeueInvoiceResponse;

    fn name(&self) -> &str {
        who::OPERATOR
    }

    fn command(self, _: impl FnOnce() -> [u8; 16]) -> Result<Command, OutOfBounds> {
        RequeueInvoice::try_from(&self).map(Command::RequeueInvoice)
    }

    fn response(reply: Reply) -> Result<v1::RequeueInvoiceResponse, Status> {
        let status = status_of(reply)?;
        Ok(v1::RequeueInvoiceResponse { status })
    }
}

/// What has become of one stream so far.
#[derive(Default)]
struct Submission {
    answer: v1::SubmitInvoicesResponse,
    /// How many came.
    position: u64,
}

impl Submission {
    /// Submits what has gathered. An error ends the stream: what was submitted before it stays, and may be sent again.
    async fn chunk(
        &mut self,
        door: &Door,
        actor: &Actor,
        chunk: Vec<Result<v1::SubmitInvoicesRequest, Status>>,
    ) -> Result<(), Status> {
        let mut unread = Ok(());
        let mut ids = Vec::with_capacity(chunk.len());
        let mut commands = Vec::with_capacity(chunk.len());
        for request in chunk {
            match request {
                Ok(request) => {
                    let id = request
                        .invoice
                        .as_ref()
                        .map(|invoice| invoice.invoice_id.clone());
                    ids.push(id.unwrap_or_default());
                    commands.push(SubmitInvoice::try_from(request).map(Command::SubmitInvoice));
                }
                Err(status) => {
                    unread = Err(status);
                    break;
                }
            }
        }
        let results = door.each(actor.clone(), commands.into_iter()).await;
        // One that was not applied proves nothing about its neighbours: they may have travelled in another batch.
        let nothing_applied = self.position == 0
            && results
                .iter()
                .all(|result| matches!(result, Err(Failure::NotApplied(_) | Failure::Rejected(_))));
        for (invoice_id, result) in ids.into_iter().zip(results) {
            let position = self.position;
            self.position += 1;
            match result {
                Ok(Reply::Submitted { unchanged: false }) => self.answer.submitted += 1,
                Ok(Reply::Submitted { unchanged: true }) => self.answer.unchanged += 1,
                Ok(other) => return Err(super::unexpected(&other)),
                Err(Failure::Rejected(rejection)) => {
                    if self.answer.refused.len() >= REFUSALS_LISTED_MAX {
                        return Err(self.too_many_refused());
                    }
                    self.answer.refused.push(RefusedInvoice {
                        invoice_id,
                        reason: rejection.to_string(),
                        rejection: Some((&rejection).into()),
                        position,
                    });
                }
                Err(Failure::NotApplied(status)) if nothing_applied => return Err(status),
                Err(Failure::NotApplied(status) | Failure::Unknown(status)) => {
                    return Err(status::outcome_unknown(format!(
                        "invoice {invoice_id} at position {position} of the stream: {}; others of the stream may be \
                         submitted; all of it may be sent again",
                        status.message()
                    )));
                }
            }
        }
        unread
    }

    fn too_many_refused(&self) -> Status {
        Status::resource_exhausted(format!(
            "more than {REFUSALS_LISTED_MAX} invoices of one stream are refused, the last one at position {}; {} are \
             submitted or were known before",
            self.position - 1,
            self.answer.submitted + self.answer.unchanged
        ))
    }
}
