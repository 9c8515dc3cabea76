//! Decides what made-up invoices look like. The same seed gives the same invoices for ever: each is drawn from a hash of
//! seed and number, so that the first thousand of a million are the same thousand.

use std::io::{self, Write};

use billing_proto::v1;

use super::COLUMNS;
use crate::output::json;

const AMOUNT_MINOR_MIN: u64 = 100;
const AMOUNT_MINOR_MAX: u64 = 100_000;
/// `inv-000001`: ids of up to a million sort as they count.
const DIGITS: usize = 6;

/// What to draw, already checked against the ledger's bounds.
#[derive(Clone, Debug)]
pub struct Plan {
    pub count: u64,
    pub seed: u64,
    pub prefix: String,
    /// At least one.
    pub customers: u64,
    pub currency: String,
    pub due_at: Option<prost_types::Timestamp>,
}

impl Plan {
    /// In order; the first is number 1.
    pub fn invoices(&self) -> impl Iterator<Item = v1::Invoice> + '_ {
        (1..=self.count).map(|number| self.invoice(number))
    }

    /// The one with the longest id.
    pub fn last(&self) -> Option<v1::Invoice> {
        (self.count > 0).then(|| self.invoice(self.count))
    }

    fn invoice(&self, number: u64) -> v1::Invoice {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"billingctl invoice generate 1");
        hasher.update(&self.seed.to_le_bytes());
        hasher.update(&number.to_le_bytes());
        let drawn = hasher.finalize();
        let (customer, amount) = (word(&drawn, 0), word(&drawn, 1));
        let amount = AMOUNT_MINOR_MIN + amount % (AMOUNT_MINOR_MAX - AMOUNT_MINOR_MIN + 1);
        v1::Invoice {
            invoice_id: format!("{}{number:0DIGITS$}", self.prefix),
            customer_id: format!("cus-{:04}", customer % self.customers.max(1) + 1),
            amount_minor: i64::try_from(amount).unwrap_or(i64::MAX),
            currency: self.currency.clone(),
            due_at: self.due_at,
            priority: 0,
        }
    }
}

/// The nth 8 bytes of a hash.
fn word(hash: &blake3::Hash, nth: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash.as_bytes()[nth * 8..][..8]);
    u64::from_le_bytes(bytes)
}

/// Header and one line each, as `invoice submit` reads them.
pub fn write_csv(
    out: &mut dyn Write,
    invoices: impl Iterator<Item = v1::Invoice>,
) -> io::Result<()> {
    let mut writer = csv::Writer::from_writer(out);
    let mut record = |fields: [&str; COLUMNS.len()]| {
        // csv's own conversion hides a broken pipe, which is nobody's fault.
        writer
            .write_record(fields)
            .map_err(|error| match error.into_kind() {
                csv::ErrorKind::Io(error) => error,
                other => io::Error::other(format!("{other:?}")),
            })
    };
    record(COLUMNS)?;
    for invoice in invoices {
        record([
            &invoice.invoice_id,
            &invoice.customer_id,
            &invoice.amount_minor.to_string(),
            &invoice.currency,
            &invoice.due_at.as_ref().map(json::time).unwrap_or_default(),
            &invoice.priority.to_string(),
        ])?;
    }
    writer.flush()
}

#[cfg(test)]
mod tests {
    use super::super::InvoiceLines;
    use super::*;

    fn plan(count: u64, seed: u64) -> Plan {
        let due_at = Some(prost_types::Timestamp {
            seconds: 1_796_083_200,
            nanos: 0,
        });
        Plan {
            count,
            seed,
            prefix: "inv-".into(),
            customers: 10,
            currency: "EUR".into(),
            due_at,
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_invoices_and_another_seed_others() {
        let ten: Vec<_> = plan(10, 7).invoices().collect();
        let first_of_many: Vec<_> = plan(1_000, 7).invoices().take(10).collect();
        assert_eq!(ten, first_of_many);
        assert_ne!(ten, plan(10, 8).invoices().collect::<Vec<_>>());
        // Pinned: a change would make the second submission of somebody's file a refusal.
        let Some(first) = ten.first() else {
            panic!("ten were asked for")
        };
        assert_eq!(
            (first.customer_id.as_str(), first.amount_minor),
            ("cus-0010", 28_657)
        );
    }

    #[test]
    fn what_is_generated_is_read_back_the_same() {
        let mut file = Vec::new();
        write_csv(&mut file, plan(500, 3).invoices()).expect("a Vec takes every byte");
        let mut lines = InvoiceLines::open(file.as_slice()).expect("the header is ours");
        let mut read = Vec::new();
        while let Some(line) = lines.next().expect("a slice has no I/O errors") {
            read.push(line.expect("every line is an invoice").invoice);
        }
        assert_eq!(read, plan(500, 3).invoices().collect::<Vec<_>>());
    }
}
