//! What billingctl reads from files, as plain functions of bytes: lists of invoices, times. Each panics where a promise is
//! broken and decides nothing; the tests below and any other fuzzer call them.

use billing_core::SubmitInvoice;

use crate::invoices::{InvoiceLines, due_at};

/// A list of invoices: every line is one, or told by its number; none is lost, and no line spoils another.
pub fn invoices(bytes: &[u8]) {
    let Ok(mut lines) = InvoiceLines::open(bytes) else {
        return;
    };
    let (mut last, mut told) = (0, 0);
    while let Some(line) = lines.next().expect("a slice has no I/O errors") {
        let number = match line {
            Ok(line) => {
                // The one thing that only the cluster refuses is a time before 1970.
                let early = line.invoice.due_at.is_some_and(|due| due.seconds < 0);
                let taken = SubmitInvoice::try_from(line.invoice);
                assert!(early || taken.is_ok(), "{taken:?}");
                line.number
            }
            Err(broken) => {
                assert!(!broken.reason.is_empty());
                broken.line
            }
        };
        assert!(number > last, "lines are counted up");
        (last, told) = (number, told + 1);
    }
    assert_eq!(lines.bytes(), bytes.len() as u64, "every byte is counted");
    assert!(told <= bytes.iter().filter(|byte| **byte == b'\n').count() + 1);
}

/// A time as people write it.
pub fn due(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(time) = due_at(text)
    {
        assert!(time.seconds.unsigned_abs() < 1 << 40);
    }
}

/// Panics where a promise is broken.
pub type Body = fn(&[u8]);

/// Each of them, under its name.
pub const BODIES: &[(&str, Body)] = &[("ctl_invoices", invoices), ("ctl_due", due)];

#[cfg(test)]
mod tests {
    use billing_fuzz::proptest::collection::vec;
    use billing_fuzz::{Decoder, Memory, holds};

    use super::*;

    const HEADER: &str = "invoice_id,customer_id,amount_minor,currency,due_at,priority\n";

    #[test]
    fn every_line_is_an_invoice_or_told() {
        let seeds = [
            format!("{HEADER}inv-1,cus-1,1250,EUR,2026-12-01,5\ninv-2,cus-2,1,jpy,2026-12-01T09:00:00+01:00,\ninv-3,c,7,USD\n"),
            format!("\u{feff}{HEADER}\r\n\"inv-1\",\"c\",5,EUR,,-3\r\n"),
            "currency,invoice_id,amount_minor,customer_id\nEUR,a,1,c\n".to_owned(),
        ]
        .map(String::into_bytes);
        let decoder = Decoder {
            name: "ctl_invoices",
            seeds: &seeds,
            words: &[
                b",",
                b"\n",
                b"\r",
                b"\"",
                b"\"\"",
                b"\xff\xfe",
                b"\xef\xbb\xbf",
                b"\xc3\xa9",
                b"invoice_id",
                b"priority",
                b"18446744073709551615",
                b"-1001",
                b"9999-12-31",
                b"-009999-01-01T00:00:00Z",
                b"EUR",
            ],
            // One line at a time, of 16 KiB at most, and what is wrong with it.
            memory: Memory {
                fixed: 128 * 1024,
                per_byte: 4,
            },
        };
        decoder.check(invoices);
    }

    #[test]
    fn every_list_that_is_written_is_read_back() {
        let one = (
            "[!-~&&[^\",]]{1,40}",
            "[!-~&&[^\",]]{1,40}",
            1_u64..=1_000_000_000_000,
            -1_000_i32..=1_000,
        );
        holds("ctl_lists", vec(one, 0..20), |rows| {
            let mut file = HEADER.to_owned();
            for (invoice, customer, amount, priority) in &rows {
                file += &format!("{invoice},{customer},{amount},EUR,,{priority}\n");
            }
            let mut lines = InvoiceLines::open(file.as_bytes()).expect("the header is ours");
            for (invoice, customer, amount, priority) in rows {
                let line = lines.next().expect("no I/O errors").expect("a line");
                let read = line.expect("an invoice").invoice;
                assert_eq!((read.invoice_id, read.customer_id), (invoice, customer));
                assert_eq!(
                    (read.amount_minor as u64, read.priority),
                    (amount, priority)
                );
            }
            assert_eq!(lines.next().expect("no I/O errors"), None);
        });
    }

    #[test]
    fn a_time_is_read_or_refused() {
        let seeds = [
            "2026-12-01",
            "2026-12-01T09:00:00Z",
            "2026-12-01T09:00:00.123456789+14:00",
        ]
        .map(|text| text.as_bytes().to_vec());
        let decoder = Decoder {
            name: "ctl_due",
            seeds: &seeds,
            words: &[
                b"T",
                b"Z",
                b"-",
                b"+",
                b":",
                b"[UTC]",
                b"9999",
                b"-009999",
                b"24:00:60",
                b"\xc3\xa9",
                b"2026-W49-1",
            ],
            memory: Memory {
                fixed: 16 * 1024,
                per_byte: 16,
            },
        };
        decoder.check(due);
    }
}
