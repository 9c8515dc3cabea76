//! Decides by which payment method a customer pays: the same for all (tests, demos), or a table of one line per customer.
//! Never asks the provider: what a charge is made of must be the same for every holder that continues it.

use std::collections::BTreeMap;
use std::path::Path;

use billing_core::CustomerId;
use serde::Deserialize;

/// How one customer pays.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Payer {
    /// The provider's id of the customer; None: a payment method that belongs to nobody, such as a test card.
    #[serde(default)]
    pub provider_customer: Option<String>,
    pub payment_method: String,
}

#[derive(Clone, Debug)]
pub enum Payers {
    Everyone(Payer),
    Listed(BTreeMap<CustomerId, Payer>),
}

/// Why a table of payers was not taken.
#[derive(Debug, thiserror::Error)]
pub enum PayersError {
    #[error("payers file {path}: {source}")]
    Malformed { path: String, source: csv::Error },
    #[error("payers file {path}, line {line}: {what}")]
    Line {
        path: String,
        line: u64,
        what: String,
    },
}

#[derive(Deserialize)]
struct Row {
    customer_id: String,
    #[serde(flatten)]
    payer: Payer,
}

impl Payers {
    /// Reads a CSV file with the columns customer_id, provider_customer, payment_method.
    pub fn from_file(path: &Path) -> Result<Payers, PayersError> {
        let shown = path.display().to_string();
        let malformed = |source| PayersError::Malformed {
            path: shown.clone(),
            source,
        };
        let mut reader = csv::ReaderBuilder::new()
            .trim(csv::Trim::All)
            .from_path(path)
            .map_err(malformed)?;
        let headers = reader.headers().map_err(malformed)?.clone();
        let mut listed = BTreeMap::new();
        for record in reader.records() {
            let record = record.map_err(malformed)?;
            let line = record.position().map_or(0, csv::Position::line);
            let wrong = |what: String| PayersError::Line {
                path: shown.clone(),
                line,
                what,
            };
            let row: Row = record.deserialize(Some(&headers)).map_err(malformed)?;
            let customer =
                CustomerId::new(&row.customer_id).map_err(|error| wrong(error.to_string()))?;
            let payer = Payer {
                provider_customer: row.payer.provider_customer.filter(|text| !text.is_empty()),
                payment_method: row.payer.payment_method,
            };
            if payer.payment_method.is_empty() {
                return Err(wrong("payment_method is empty".to_owned()));
            }
            if listed.insert(customer, payer).is_some() {
                return Err(wrong(format!(
                    "customer {} is listed twice",
                    row.customer_id
                )));
            }
        }
        Ok(Payers::Listed(listed))
    }

    pub fn of(&self, customer: &CustomerId) -> Option<&Payer> {
        match self {
            Payers::Everyone(payer) => Some(payer),
            Payers::Listed(listed) => listed.get(customer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_payers_is_read_and_its_mistakes_are_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("payers.csv");
        let read = |text: &str| {
            std::fs::write(&path, text).expect("written");
            Payers::from_file(&path)
        };
        let head = "customer_id,provider_customer,payment_method\n";
        let payers = read(&format!("{head}ana,cus_1,pm_1\nben,,pm_card_visa\n")).expect("a table");
        let ana = CustomerId::new("ana").expect("an id");
        assert_eq!(
            payers
                .of(&ana)
                .and_then(|payer| payer.provider_customer.as_deref()),
            Some("cus_1")
        );
        assert!(payers.of(&CustomerId::new("eve").expect("an id")).is_none());
        let twice = read(&format!("{head}ana,,pm_1\nana,,pm_2\n"))
            .expect_err("twice")
            .to_string();
        assert!(
            twice.contains("line 3") && twice.contains("twice"),
            "{twice}"
        );
        assert!(read(&format!("{head}ana,cus_1,\n")).is_err());
        assert!(read("who,what\na,b\n").is_err());
    }
}
