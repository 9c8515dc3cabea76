//! Decides what the invoices are that make a measured ledger large.

use anyhow::{Result, ensure};
use billing_client::v1;
use futures::future::try_join_all;

use crate::place::Place;

/// They are submitted over so many clients at once.
const SUBMITTERS: u64 = 4;

/// Submits `count` of them; every one is in the ledger when it resolves.
pub async fn submit(place: &Place, count: u64) -> Result<()> {
    let each = count.div_ceil(SUBMITTERS);
    let shares = (0..SUBMITTERS).map(|share| {
        let invoices = (share * each..((share + 1) * each).min(count)).map(invoice);
        place.client.submit_invoices(invoices, |_| {})
    });
    let submitted = try_join_all(shares).await?;
    let sum: u64 = submitted
        .iter()
        .map(|some| some.submitted + some.unchanged)
        .sum();
    ensure!(sum == count, "{sum} of {count} invoices were taken");
    Ok(())
}

fn invoice(number: u64) -> v1::Invoice {
    v1::Invoice {
        invoice_id: format!("inv-{number:09}"),
        customer_id: format!("customer-{}", number % 50_000),
        amount_minor: 1_000 + (number % 90_000) as i64,
        currency: "EUR".to_owned(),
        ..Default::default()
    }
}
