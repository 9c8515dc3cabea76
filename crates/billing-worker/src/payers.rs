//! Reads the table of payers: one line per customer, in CSV. Every mistake is named with its line.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use billing_core::CustomerId;
use billing_gate::{Payer, Payers};

/// Why a table of payers was not taken.
#[derive(Debug, thiserror::Error)]
pub enum PayersError {
    #[error("payers file {path}: {what}")]
    Malformed { path: String, what: csv::Error },
    #[error("payers file {path}, line {line}: {what}")]
    Line {
        path: String,
        line: u64,
        what: String,
    },
}

const COLUMNS: [&str; 3] = ["customer_id", "provider_customer", "payment_method"];

/// Reads a CSV file with the columns customer_id, provider_customer (may be empty) and payment_method.
pub fn read(path: &Path) -> Result<Payers, PayersError> {
    let shown = path.display().to_string();
    let file = File::open(path).map_err(|error| PayersError::Malformed {
        path: shown.clone(),
        what: error.into(),
    })?;
    table(file, &shown)
}

/// `shown` names the file in errors.
fn table(from: impl Read, shown: &str) -> Result<Payers, PayersError> {
    let malformed = |what| PayersError::Malformed {
        path: shown.to_owned(),
        what,
    };
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_reader(from);
    let headers = reader.headers().map_err(malformed)?.clone();
    let wrong = |line: u64, what: String| PayersError::Line {
        path: shown.to_owned(),
        line,
        what,
    };
    if !headers.iter().eq(COLUMNS) {
        return Err(wrong(
            1,
            format!("the columns must be {}", COLUMNS.join(",")),
        ));
    }
    let mut listed = BTreeMap::new();
    for record in reader.records() {
        let record = record.map_err(malformed)?;
        let line = record.position().map_or(0, csv::Position::line);
        let (customer_id, provider_customer, payment_method) = (&record[0], &record[1], &record[2]);
        let customer =
            CustomerId::new(customer_id).map_err(|error| wrong(line, error.to_string()))?;
        if payment_method.is_empty() {
            return Err(wrong(line, "payment_method is empty".to_owned()));
        }
        let provider_customer =
            (!provider_customer.is_empty()).then(|| provider_customer.to_owned());
        let payer = Payer {
            provider_customer,
            payment_method: payment_method.to_owned(),
        };
        if listed.insert(customer, payer).is_some() {
            return Err(wrong(
                line,
                format!("customer {customer_id} is listed twice"),
            ));
        }
    }
    Ok(Payers::Listed(listed))
}

#[cfg(test)]
mod tests {
    use billing_fuzz::{Decoder, Memory};

    use super::*;

    /// Every customer who is listed has a payment method, and nobody is listed under a name that is none.
    fn payers(bytes: &[u8]) {
        match table(bytes, "fuzzed") {
            Ok(Payers::Listed(listed)) => {
                assert!(
                    listed
                        .values()
                        .all(|payer| !payer.payment_method.is_empty())
                );
            }
            Ok(Payers::Everyone(_)) => panic!("a table is no rule for all"),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn a_table_of_payers_is_taken_or_refused() {
        let head = "customer_id,provider_customer,payment_method\n";
        let seeds = [
            format!("{head}ana,cus_1,pm_1\nben,,pm_card_visa\n"),
            format!("{head}\"eve\",\"cus,2\",\" pm \"\r\n"),
        ]
        .map(String::into_bytes);
        let decoder = Decoder {
            name: "worker_payers",
            seeds: &seeds,
            words: &[
                b",",
                b"\n",
                b"\r",
                b"\"",
                b"\"\"",
                b"\xef\xbb\xbf",
                b"\xff",
                b"ana",
            ],
            memory: Memory {
                fixed: 64 * 1024,
                per_byte: 64,
            },
        };
        decoder.check(payers);
    }

    #[test]
    fn a_table_of_payers_is_read_and_its_mistakes_are_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("payers.csv");
        let read_text = |text: &str| {
            std::fs::write(&path, text).expect("written");
            read(&path)
        };
        let head = "customer_id,provider_customer,payment_method\n";
        let payers =
            read_text(&format!("{head}ana,cus_1,pm_1\nben,,pm_card_visa\n")).expect("a table");
        let ana = CustomerId::new("ana").expect("an id");
        assert_eq!(
            payers
                .of(&ana)
                .and_then(|payer| payer.provider_customer.as_deref()),
            Some("cus_1")
        );
        assert!(payers.of(&CustomerId::new("eve").expect("an id")).is_none());
        let twice = read_text(&format!("{head}ana,,pm_1\nana,,pm_2\n"))
            .expect_err("twice")
            .to_string();
        assert!(
            twice.contains("line 3") && twice.contains("twice"),
            "{twice}"
        );
        assert!(read_text(&format!("{head}ana,cus_1,\n")).is_err());
        assert!(read_text("who,what\na,b\n").is_err());
    }
}
