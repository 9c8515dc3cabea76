//! Invoices and charges as the script has them: the id says what becomes of each.

use super::*;

#[tonic::async_trait]
impl InvoiceService for Node {
    async fn submit_invoices(
        &self,
        request: Request<Streaming<v1::SubmitInvoicesRequest>>,
    ) -> Answer<v1::SubmitInvoicesResponse> {
        let mut stream = request.into_inner();
        let mut answer = v1::SubmitInvoicesResponse::default();
        let mut seen: BTreeMap<String, i64> = BTreeMap::new();
        let mut position = 0;
        while let Some(request) = stream.message().await? {
            let invoice = request.invoice.unwrap_or_default();
            provoked(&invoice.invoice_id)?;
            match seen.get(&invoice.invoice_id) {
                None => {
                    answer.submitted += 1;
                    seen.insert(invoice.invoice_id, invoice.amount_minor);
                }
                Some(amount) if *amount == invoice.amount_minor => answer.unchanged += 1,
                Some(amount) => {
                    let rejection = Rejection::SubmittedOtherwise {
                        invoice: invoice_id(&invoice.invoice_id),
                        field: "amount_minor".into(),
                        recorded: amount.to_string().into(),
                        presented: invoice.amount_minor.to_string().into(),
                    };
                    answer
                        .refused
                        .push(v1::submit_invoices_response::RefusedInvoice {
                            invoice_id: invoice.invoice_id,
                            reason: rejection.to_string(),
                            rejection: Some((&rejection).into()),
                            position,
                        });
                }
            }
            position += 1;
        }
        Ok(Response::new(answer))
    }

    async fn claim_invoices(
        &self,
        _: Request<v1::ClaimInvoicesRequest>,
    ) -> Answer<v1::ClaimInvoicesResponse> {
        unscripted()
    }

    async fn get_invoice(
        &self,
        request: Request<v1::GetInvoiceRequest>,
    ) -> Answer<v1::GetInvoiceResponse> {
        use v1::InvoiceStatus as S;
        let id = request.into_inner().invoice_id;
        let status = match id.as_str() {
            "inv-charging" => S::Charging,
            "inv-review" => S::Review,
            "inv-settled" => S::Paid,
            _ => S::Pending,
        };
        provoked(&id)?;
        Ok(Response::new(state(&id, status)))
    }

    async fn list_invoices(
        &self,
        request: Request<v1::ListInvoicesRequest>,
    ) -> Answer<v1::ListInvoicesResponse> {
        use v1::InvoiceStatus as S;
        let request = request.into_inner();
        let all = [
            ("inv-1", S::Pending),
            ("inv-2", S::Charging),
            ("inv-3", S::InDoubt),
            ("inv-4", S::Waiting),
            ("inv-5", S::Review),
            ("inv-6", S::Paid),
        ];
        let wanted = request.status();
        let nth: usize = request.page_token.parse().unwrap_or(0);
        let fitting: Vec<_> = all
            .into_iter()
            .filter(|(_, status)| wanted == S::Unspecified || *status == wanted)
            .filter(|_| request.customer_id != "cus-nobody")
            .map(|(id, status)| state(id, status))
            .collect();
        let size = usize::try_from(request.page_size)
            .unwrap_or(usize::MAX)
            .min(2);
        let next_page_token = if nth + size < fitting.len() {
            (nth + size).to_string()
        } else {
            String::new()
        };
        let invoices = fitting.into_iter().skip(nth).take(size).collect();
        Ok(Response::new(v1::ListInvoicesResponse {
            invoices,
            next_page_token,
            applied_index: 4_711,
        }))
    }

    async fn get_invoice_history(
        &self,
        request: Request<v1::GetInvoiceHistoryRequest>,
    ) -> Answer<v1::GetInvoiceHistoryResponse> {
        provoked(&request.into_inner().invoice_id)?;
        Ok(Response::new(v1::GetInvoiceHistoryResponse {
            records: records(3, None),
        }))
    }

    async fn cancel_invoice(
        &self,
        request: Request<v1::CancelInvoiceRequest>,
    ) -> Answer<v1::CancelInvoiceResponse> {
        provoked(&request.into_inner().invoice_id)?;
        Ok(Response::new(v1::CancelInvoiceResponse {
            status: v1::InvoiceStatus::Cancelled.into(),
        }))
    }

    async fn requeue_invoice(
        &self,
        request: Request<v1::RequeueInvoiceRequest>,
    ) -> Answer<v1::RequeueInvoiceResponse> {
        provoked(&request.into_inner().invoice_id)?;
        Ok(Response::new(v1::RequeueInvoiceResponse {
            status: v1::InvoiceStatus::Pending.into(),
        }))
    }
}

#[tonic::async_trait]
impl ChargeService for Node {
    async fn begin_charge(
        &self,
        _: Request<v1::BeginChargeRequest>,
    ) -> Answer<v1::BeginChargeResponse> {
        unscripted()
    }
    async fn attach_provider_object(
        &self,
        _: Request<v1::AttachProviderObjectRequest>,
    ) -> Answer<v1::AttachProviderObjectResponse> {
        unscripted()
    }
    async fn settle_charge(
        &self,
        _: Request<v1::SettleChargeRequest>,
    ) -> Answer<v1::SettleChargeResponse> {
        unscripted()
    }
    async fn resolve_charge(
        &self,
        request: Request<v1::ResolveChargeRequest>,
    ) -> Answer<v1::ResolveChargeResponse> {
        let request = request.into_inner();
        provoked(&request.invoice_id)?;
        let status = match request.word {
            Some(v1::resolve_charge_request::Word::Charged(_)) => v1::InvoiceStatus::Paid,
            Some(v1::resolve_charge_request::Word::NotCharged(_)) => v1::InvoiceStatus::Failed,
            None => return Err(Status::invalid_argument("no word")),
        };
        Ok(Response::new(v1::ResolveChargeResponse {
            status: status.into(),
        }))
    }
}
