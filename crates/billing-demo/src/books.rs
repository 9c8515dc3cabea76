//! Decides whether the ledger and the provider's own books tell the same story. Asks both, believes neither alone.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail};
use billing_client::{Client, v1};
use bytes::Bytes;
use futures::TryStreamExt;
use http_body_util::{BodyExt, Empty};
use hyper_util::{client::legacy::Client as HttpClient, rt::TokioExecutor};
use serde::Deserialize;

pub(crate) const PAGE: u32 = 1_000;
const ASK_WITHIN: Duration = Duration::from_secs(30);
/// Under this name the sandbox keeps charges that name no invoice.
const NO_INVOICE: &str = "?";

/// One charge in the provider's books: id, amount in minor units, currency, status.
#[derive(Debug, Clone, Deserialize)]
pub struct BookedCharge(pub String, pub u64, pub String, pub String);

impl BookedCharge {
    pub fn succeeded(&self) -> bool {
        self.3 == "succeeded"
    }
}

/// The provider's books: what it did, by the invoice that the charge's metadata name.
#[derive(Debug, Default, Deserialize)]
pub struct Books {
    pub invoices: BTreeMap<String, Vec<BookedCharge>>,
}

/// Asks the sandbox at `address` (`host:port`) for its books.
pub async fn ask(address: &str) -> Result<Books> {
    let http = HttpClient::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let uri = format!("http://{address}/_config/books").parse()?;
    let asked = async {
        let response = http.get(uri).await?;
        if !response.status().is_success() {
            bail!("answered {}", response.status());
        }
        Ok(response.into_body().collect().await?.to_bytes())
    };
    let body = tokio::time::timeout(ASK_WITHIN, asked)
        .await
        .unwrap_or_else(|_| bail!("no answer within {ASK_WITHIN:?}"))
        .with_context(|| format!("cannot read the provider's books at {address}"))?;
    serde_json::from_slice(&body).context("the provider's books are not what this version reads")
}

/// What the ledger says of one invoice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerEntry {
    pub status: Status,
    pub amount_minor: u64,
    pub currency: String,
    /// Empty: none recorded.
    pub reference: String,
    /// Unix seconds; a charge before is refused.
    pub due_at: i64,
}

/// Every invoice of the ledger, linearizably read.
pub async fn ledger(client: &Client) -> Result<BTreeMap<String, LedgerEntry>> {
    let mut all = BTreeMap::new();
    let request = v1::ListInvoicesRequest {
        page_size: PAGE,
        ..Default::default()
    };
    let mut found = std::pin::pin!(client.invoices(request));
    while let Some(found) = found.try_next().await? {
        let Some(invoice) = found.invoice else {
            continue;
        };
        // Never submitted: the lease by which the probe looks whether anybody grants one.
        if invoice.customer_id.is_empty() {
            continue;
        }
        let status = match v1::InvoiceStatus::try_from(found.status) {
            Ok(v1::InvoiceStatus::Paid) => Status::Paid,
            Ok(v1::InvoiceStatus::Failed) => Status::Failed,
            Ok(v1::InvoiceStatus::InDoubt) => Status::InDoubt,
            Ok(v1::InvoiceStatus::Review) => Status::Review,
            _ => Status::Other,
        };
        let entry = LedgerEntry {
            status,
            amount_minor: invoice.amount_minor.unsigned_abs(),
            currency: invoice.currency,
            reference: found.charge_reference,
            due_at: invoice.due_at.map_or(0, |due| due.seconds),
        };
        all.insert(invoice.invoice_id, entry);
    }
    Ok(all)
}

/// As far as a comparison needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Paid,
    Failed,
    InDoubt,
    Review,
    /// Not finished: pending, leased, waiting, cancelled.
    Other,
}

/// The two sides side by side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    pub invoices: usize,
    pub paid: usize,
    pub failed: usize,
    pub in_doubt: usize,
    pub review: usize,
    pub unfinished: usize,
    /// Successful charges in the provider's books.
    pub charges: usize,
    /// Invoices with more than one successful charge.
    pub charged_twice: usize,
    /// Invoices that the ledger calls PAID and the provider never charged with that sum, or charged although the ledger
    /// knows no charge of them.
    pub missing: usize,
    /// One sentence for each invoice that is not as it should be.
    pub findings: Vec<String>,
}

/// Compares what the ledger believes with what the provider did.
pub fn compare(ledger: &BTreeMap<String, LedgerEntry>, books: &Books) -> Comparison {
    let mut result = Comparison {
        invoices: ledger.len(),
        ..Comparison::default()
    };
    for (invoice, entry) in ledger {
        match entry.status {
            Status::Paid => result.paid += 1,
            Status::Failed => result.failed += 1,
            Status::InDoubt => result.in_doubt += 1,
            Status::Review => result.review += 1,
            Status::Other => result.unfinished += 1,
        }
        let booked = books.invoices.get(invoice).map_or(&[][..], Vec::as_slice);
        let succeeded: Vec<_> = booked.iter().filter(|charge| charge.succeeded()).collect();
        if entry.status == Status::Paid {
            let as_invoiced = succeeded.iter().any(|charge| {
                charge.1 == entry.amount_minor && charge.2.eq_ignore_ascii_case(&entry.currency)
            });
            if !as_invoiced {
                result.missing += 1;
                result.findings.push(format!(
                    "{invoice} is PAID with reference {}, and the provider has no charge of {} {}",
                    entry.reference, entry.amount_minor, entry.currency
                ));
            }
        } else if !succeeded.is_empty() && entry.reference.is_empty() {
            result.missing += 1;
            result.findings.push(format!(
                "the provider charged {invoice} ({}), and the ledger knows of no charge",
                succeeded[0].0
            ));
        }
    }
    for (invoice, booked) in &books.invoices {
        let succeeded: Vec<_> = booked.iter().filter(|charge| charge.succeeded()).collect();
        result.charges += succeeded.len();
        if succeeded.len() > 1 && invoice != NO_INVOICE {
            result.charged_twice += 1;
            let ids: Vec<_> = succeeded.iter().map(|charge| charge.0.as_str()).collect();
            result.findings.push(format!(
                "{invoice} was charged {} times: {}",
                ids.len(),
                ids.join(", ")
            ));
        }
        if !succeeded.is_empty() && !ledger.contains_key(invoice) {
            result.missing += 1;
            result.findings.push(format!(
                "the provider charged {invoice}, which the ledger does not know"
            ));
        }
    }
    result
}

impl Comparison {
    /// Every invoice ended (paid, or declined for good), each as often charged as paid.
    pub fn holds(&self) -> bool {
        self.findings.is_empty()
            && self.paid + self.failed == self.invoices
            && self.charges == self.paid
            && self.charged_twice == 0
            && self.missing == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(entries: &[(&str, Status)]) -> BTreeMap<String, LedgerEntry> {
        let entry = |status| LedgerEntry {
            status,
            amount_minor: 1500,
            currency: "USD".to_owned(),
            reference: if status == Status::Paid {
                "pi_1".to_owned()
            } else {
                String::new()
            },
            due_at: 0,
        };
        entries
            .iter()
            .map(|(id, status)| ((*id).to_owned(), entry(*status)))
            .collect()
    }

    fn books(json: &str) -> Books {
        serde_json::from_str(json).expect("a test's own books")
    }

    #[test]
    fn one_charge_for_each_paid_invoice_holds() {
        let books = books(
            r#"{"invoices":{"a":[["ch_0",1500,"usd","failed"],["ch_1",1500,"usd","succeeded"]]}}"#,
        );
        let result = compare(
            &ledger(&[("a", Status::Paid), ("b", Status::Failed)]),
            &books,
        );
        assert!(result.holds(), "{result:?}");
        assert_eq!(
            (result.invoices, result.paid, result.failed, result.charges),
            (2, 1, 1, 1)
        );
    }

    #[test]
    fn each_way_to_be_wrong_is_seen() {
        let twice = r#"{"invoices":{"a":[["ch_1",1500,"usd","succeeded"],["ch_2",1500,"usd","succeeded"]]}}"#;
        let result = compare(&ledger(&[("a", Status::Paid)]), &books(twice));
        assert!(!result.holds() && result.charged_twice == 1 && result.charges == 2);

        let result = compare(
            &ledger(&[("a", Status::Paid)]),
            &books(r#"{"invoices":{}}"#),
        );
        assert!(
            !result.holds() && result.missing == 1,
            "paid, and nobody charged it"
        );

        let other_sum = r#"{"invoices":{"a":[["ch_1",999,"usd","succeeded"]]}}"#;
        let result = compare(&ledger(&[("a", Status::Paid)]), &books(other_sum));
        assert!(
            !result.holds() && result.missing == 1,
            "charged with another sum"
        );

        let once = r#"{"invoices":{"a":[["ch_1",1500,"usd","succeeded"]]}}"#;
        let result = compare(&ledger(&[("a", Status::Failed)]), &books(once));
        assert!(
            !result.holds() && result.missing == 1,
            "charged, and the ledger does not know"
        );

        let result = compare(&ledger(&[]), &books(once));
        assert!(
            !result.holds() && result.missing == 1,
            "charged, and never submitted"
        );

        for status in [Status::InDoubt, Status::Review, Status::Other] {
            assert!(!compare(&ledger(&[("a", status)]), &books(r#"{"invoices":{}}"#)).holds());
        }
    }
}
