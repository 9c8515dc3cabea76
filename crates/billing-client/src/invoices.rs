//! Invoices: submitting many, and looking at them. Submission is idempotent by invoice id, so it is sent in chunks that are
//! repeated until acknowledged; progress means "acknowledged", never "sent".

use std::{collections::VecDeque, future::Future};

use billing_proto::{
    Failure,
    v1::{self, invoice_service_client::InvoiceServiceClient},
};
use futures::Stream;

use crate::{
    Client,
    calls::{Answered, Repeat},
};

/// Invoices of one SubmitInvoices stream: what is repeated at most when an answer is lost.
const SUBMIT_CHUNK: usize = 1_000;

/// What became of a submission so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Submitted {
    /// New. One whose answer was lost is counted as unchanged when its repeat is acknowledged.
    pub submitted: u64,
    /// Known before, the same.
    pub unchanged: u64,
    /// Refused one by one; `position` counts from 0 over everything that was given to [`Client::submit_invoices`].
    pub refused: Vec<v1::submit_invoices_response::RefusedInvoice>,
}

impl Submitted {
    /// Invoices that the cluster has answered for.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.submitted + self.unchanged + self.refused.len() as u64
    }
}

impl Client {
    /// Submits `invoices` in order. `progress` is told the sums after each acknowledged chunk; what it was told is in the
    /// ledger. On a failure what was acknowledged stays; submitting everything again is safe.
    pub async fn submit_invoices(
        &self,
        invoices: impl IntoIterator<Item = v1::Invoice, IntoIter: Send>,
        mut progress: impl FnMut(&Submitted) + Send,
    ) -> Result<Submitted, Failure> {
        let mut invoices = invoices.into_iter();
        let mut sum = Submitted::default();
        let mut position = 0;
        loop {
            let chunk: Vec<_> = invoices
                .by_ref()
                .take(SUBMIT_CHUNK)
                .map(|invoice| v1::SubmitInvoicesRequest {
                    invoice: Some(invoice),
                })
                .collect();
            if chunk.is_empty() {
                return Ok(sum);
            }
            let count = chunk.len() as u64;
            let answer = self.submit_chunk(chunk).await?;
            sum.submitted += answer.submitted;
            sum.unchanged += answer.unchanged;
            sum.refused
                .extend(answer.refused.into_iter().map(|mut refused| {
                    refused.position += position;
                    refused
                }));
            position += count;
            progress(&sum);
        }
    }

    async fn submit_chunk(
        &self,
        chunk: Vec<v1::SubmitInvoicesRequest>,
    ) -> Result<v1::SubmitInvoicesResponse, Failure> {
        let send = |channel, chunk: Vec<_>| async move {
            InvoiceServiceClient::new(channel)
                .submit_invoices(tokio_stream::iter(chunk))
                .await
        };
        Ok(self
            .call("SubmitInvoices", Repeat::Freely, self.budget(), chunk, send)
            .await?
            .value)
    }

    /// An invoice with its status, lease, open attempt and charge. `stale_ok`: from the asked node's own state, however old.
    pub async fn get_invoice(
        &self,
        invoice_id: &str,
        stale_ok: bool,
    ) -> Result<v1::GetInvoiceResponse, Failure> {
        let request = v1::GetInvoiceRequest {
            invoice_id: invoice_id.to_owned(),
            stale_ok,
        };
        let answered = self.ask(Repeat::Freely, self.budget(), request).await?;
        Ok(answered.value)
    }

    /// One page, in order of invoice id.
    pub async fn list_invoices(
        &self,
        request: v1::ListInvoicesRequest,
    ) -> Result<v1::ListInvoicesResponse, Failure> {
        let send = |channel, request| async move {
            InvoiceServiceClient::new(channel)
                .list_invoices(request)
                .await
        };
        Ok(self
            .call("ListInvoices", Repeat::Freely, self.budget(), request, send)
            .await?
            .value)
    }

    /// Every invoice that fits, page by page from `request.page_token` on; each page is a read of its own moment.
    pub fn invoices(
        &self,
        request: v1::ListInvoicesRequest,
    ) -> impl Stream<Item = Result<v1::GetInvoiceResponse, Failure>> + Send + use<> {
        let client = self.clone();
        pages(request, move |request| {
            let client = client.clone();
            async move {
                let page = client.list_invoices(request.clone()).await?;
                let next = v1::ListInvoicesRequest {
                    page_token: page.next_page_token,
                    ..request
                };
                Ok((page.invoices, (!next.page_token.is_empty()).then_some(next)))
            }
        })
    }

    /// What happened to it, oldest first, as far back as the audit log reaches.
    pub async fn get_invoice_history(
        &self,
        invoice_id: &str,
        stale_ok: bool,
    ) -> Result<Vec<v1::AuditRecord>, Failure> {
        let request = v1::GetInvoiceHistoryRequest {
            invoice_id: invoice_id.to_owned(),
            stale_ok,
        };
        let send = |channel, request| async move {
            InvoiceServiceClient::new(channel)
                .get_invoice_history(request)
                .await
        };
        Ok(self
            .call(
                "GetInvoiceHistory",
                Repeat::Freely,
                self.budget(),
                request,
                send,
            )
            .await?
            .value
            .records)
    }

    /// Never to be charged, unless requeued. `reason` may be empty. `Unknown`: read the invoice.
    pub async fn cancel_invoice(
        &self,
        invoice_id: &str,
        reason: &str,
    ) -> Result<v1::InvoiceStatus, Failure> {
        let request = v1::CancelInvoiceRequest {
            invoice_id: invoice_id.to_owned(),
            reason: reason.to_owned(),
        };
        let send = |channel, request| async move {
            InvoiceServiceClient::new(channel)
                .cancel_invoice(request)
                .await
        };
        let answered = self
            .call(
                "CancelInvoice",
                Repeat::DoubtingRefusals,
                self.budget(),
                request,
                send,
            )
            .await?;
        Ok(answered.value.status())
    }

    /// Back to PENDING. `reason` may be empty. `Unknown`: read the invoice.
    pub async fn requeue_invoice(
        &self,
        invoice_id: &str,
        reason: &str,
    ) -> Result<v1::InvoiceStatus, Failure> {
        let request = v1::RequeueInvoiceRequest {
            invoice_id: invoice_id.to_owned(),
            reason: reason.to_owned(),
        };
        let send = |channel, request| async move {
            InvoiceServiceClient::new(channel)
                .requeue_invoice(request)
                .await
        };
        let answered = self
            .call(
                "RequeueInvoice",
                Repeat::DoubtingRefusals,
                self.budget(),
                request,
                send,
            )
            .await?;
        Ok(answered.value.status())
    }

    pub(crate) async fn claim_invoices(
        &self,
        request: v1::ClaimInvoicesRequest,
    ) -> Result<Answered<v1::ClaimInvoicesResponse>, Failure> {
        self.ask(Repeat::Freely, self.budget(), request).await
    }
}

/// The items of all pages: `page` reads one and names the request for the next.
pub(crate) fn pages<Req, Item, Page>(
    first: Req,
    page: impl Fn(Req) -> Page + Send,
) -> impl Stream<Item = Result<Item, Failure>> + Send
where
    Req: Send,
    Item: Send,
    Page: Future<Output = Result<(Vec<Item>, Option<Req>), Failure>> + Send,
{
    let state = (VecDeque::new(), Some(first), page);
    futures::stream::try_unfold(state, |(mut items, mut next, page)| async move {
        loop {
            if let Some(item) = items.pop_front() {
                return Ok(Some((item, (items, next, page))));
            }
            let Some(request) = next else { return Ok(None) };
            let (more, after) = page(request).await?;
            items = more.into();
            next = after;
        }
    })
}
