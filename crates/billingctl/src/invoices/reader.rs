//! Decides which lines of a CSV file are invoices, and says what is wrong with the others. One line, one record: a quote
//! that somebody forgot to close breaks its own line and never the rest of the file.
//!
//! The bounds are the ledger's own types; nothing here is laxer or stricter than they are.

use std::io::{self, BufRead, Read};

use billing_core::{
    currency::Currency,
    ids::{AmountMinor, CustomerId, InvoiceId, Priority},
};
use billing_proto::v1;

use super::{COLUMNS, COLUMNS_REQUIRED};

/// Longer lines are broken: six short fields do not need it, and a binary file has no line ends at all.
const LINE_BYTES_MAX: usize = 16 * 1024;
/// Of a wrong value, in a message.
const SHOWN_CHARS_MAX: usize = 40;

/// A line that is no invoice. The lines after it are read all the same.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Broken {
    /// Counted from 1, the header included, as an editor shows it.
    pub line: u64,
    pub reason: String,
}

/// The file as a whole holds no invoices.
#[derive(Debug, thiserror::Error)]
pub enum NoInvoices {
    /// Nothing was read that could be an invoice; the text says what to do.
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// One line of the file.
#[derive(Debug, PartialEq)]
pub struct Line {
    pub number: u64,
    pub invoice: v1::Invoice,
}

/// Reads invoices one by one; holds one line in memory.
pub struct InvoiceLines<R> {
    input: R,
    /// Where each of COLUMNS stands in this file.
    places: [Option<usize>; COLUMNS.len()],
    columns: usize,
    line: u64,
    bytes: u64,
    buffer: Vec<u8>,
}

impl<R: BufRead> InvoiceLines<R> {
    /// Reads the header. The columns may stand in any order; one that is not known is refused, since a misspelt
    /// `priority` that is silently ignored would be worse.
    pub fn open(input: R) -> Result<Self, NoInvoices> {
        let mut lines = InvoiceLines {
            input,
            places: [None; COLUMNS.len()],
            columns: 0,
            line: 0,
            bytes: 0,
            buffer: Vec::new(),
        };
        let header = loop {
            match lines.next_line()? {
                None => return Err(refused("the file is empty")),
                Some(Err(reason)) => {
                    return Err(refused(&format!("line {}: {reason}", lines.line)));
                }
                Some(Ok(text)) if text.trim().is_empty() => {}
                Some(Ok(text)) => break text,
            }
        };
        let names = match split(&header) {
            Ok(fields) => fields,
            Err(reason) => return Err(refused(&format!("line {}: {reason}", lines.line))),
        };
        lines.columns = names.len();
        for (place, name) in names.iter().enumerate() {
            let Some(column) = COLUMNS.iter().position(|known| known == name) else {
                return Err(refused(&format!(
                    "line {}: {}",
                    lines.line,
                    wrong_header(&header, name)
                )));
            };
            if lines.places[column].replace(place).is_some() {
                return Err(refused(&format!(
                    "line {}: the header names {name} twice",
                    lines.line
                )));
            }
        }
        for (column, name) in COLUMNS.iter().enumerate().take(COLUMNS_REQUIRED) {
            if lines.places[column].is_none() {
                return Err(refused(&format!(
                    "line {}: the header does not name {name}",
                    lines.line
                )));
            }
        }
        Ok(lines)
    }

    /// How many bytes of the file are behind us.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next line that is not blank: an invoice, or what is wrong with it. None: the file has ended.
    pub fn next(&mut self) -> io::Result<Option<Result<Line, Broken>>> {
        loop {
            let Some(text) = self.next_line()? else {
                return Ok(None);
            };
            let number = self.line;
            let invoice = match text {
                Ok(text) if text.trim().is_empty() => continue,
                Ok(text) => self.invoice(&text),
                Err(reason) => Err(reason),
            };
            return Ok(Some(match invoice {
                Ok(invoice) => Ok(Line { number, invoice }),
                Err(reason) => Err(Broken {
                    line: number,
                    reason,
                }),
            }));
        }
    }

    /// One physical line as text, without its end.
    fn next_line(&mut self) -> io::Result<Option<Result<String, String>>> {
        self.buffer.clear();
        let limit = LINE_BYTES_MAX as u64 + 1;
        let read = (&mut self.input)
            .take(limit)
            .read_until(b'\n', &mut self.buffer)?;
        if read == 0 {
            return Ok(None);
        }
        self.line += 1;
        self.bytes += read as u64;
        if self.buffer.last() != Some(&b'\n') && read > LINE_BYTES_MAX {
            self.skip_line()?;
            return Ok(Some(Err(format!("is longer than {LINE_BYTES_MAX} bytes"))));
        }
        let mut text = self.buffer.as_slice();
        text = text.strip_suffix(b"\n").unwrap_or(text);
        text = text.strip_suffix(b"\r").unwrap_or(text);
        if self.line == 1 {
            if text.starts_with(b"\xff\xfe") || text.starts_with(b"\xfe\xff") {
                return Ok(Some(Err("the file is UTF-16; save it as UTF-8".to_owned())));
            }
            text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        }
        Ok(Some(match std::str::from_utf8(text) {
            Ok(text) if text.contains('\r') => {
                Err("holds a carriage return; end lines with LF or CR LF".to_owned())
            }
            Ok(text) => Ok(text.to_owned()),
            Err(error) => Err(format!(
                "is not UTF-8 (byte {} of the line)",
                error.valid_up_to() + 1
            )),
        }))
    }

    /// Reads on to the end of a line that is too long to keep.
    fn skip_line(&mut self) -> io::Result<()> {
        loop {
            let ahead = self.input.fill_buf()?;
            let (used, ended) = match ahead.iter().position(|byte| *byte == b'\n') {
                Some(at) => (at + 1, true),
                None => (ahead.len(), ahead.is_empty()),
            };
            self.input.consume(used);
            self.bytes += used as u64;
            if ended {
                return Ok(());
            }
        }
    }

    fn invoice(&self, text: &str) -> Result<v1::Invoice, String> {
        let fields = split(text)?;
        if fields.len() > self.columns {
            return Err(format!(
                "has {} fields, the header has {}",
                fields.len(),
                self.columns
            ));
        }
        // Trailing fields may be left out; a required one that is missing is told by its name.
        let field = |column: usize| -> &str {
            self.places[column]
                .and_then(|place| fields.get(place))
                .map_or("", String::as_str)
        };
        if let Some(missing) = (0..COLUMNS_REQUIRED).find(|column| field(*column).is_empty()) {
            return Err(format!("{} is missing", COLUMNS[missing]));
        }
        let [
            invoice_id,
            customer_id,
            amount_minor,
            currency,
            due,
            priority,
        ] = std::array::from_fn(field);
        InvoiceId::new(invoice_id).map_err(|bound| wrong(invoice_id, &bound))?;
        CustomerId::new(customer_id).map_err(|bound| wrong(customer_id, &bound))?;
        let amount: u64 = amount_minor.parse().map_err(|_| {
            wrong(
                amount_minor,
                &"amount_minor must be a whole number of minor units (1250 for 12.50)",
            )
        })?;
        AmountMinor::new(amount).map_err(|bound| wrong(amount_minor, &bound))?;
        let raised = Currency::new(currency).map_err(|bound| wrong(currency, &bound))?;
        let due_at = match due {
            "" => None,
            due => Some(due_at(due).map_err(|bound| wrong(due, &bound))?),
        };
        let priority = match priority {
            "" => 0,
            text => {
                let number: i64 = text
                    .parse()
                    .map_err(|_| wrong(text, &"priority must be a whole number"))?;
                Priority::new(number)
                    .map_err(|bound| wrong(text, &bound))?
                    .get()
            }
        };
        Ok(v1::Invoice {
            invoice_id: invoice_id.to_owned(),
            customer_id: customer_id.to_owned(),
            amount_minor: amount
                .try_into()
                .map_err(|_| wrong(amount_minor, &"amount_minor is too large"))?,
            currency: raised.as_str().to_owned(),
            due_at,
            priority: i32::from(priority),
        })
    }
}

/// A time as people write it: RFC 3339, or a date, which means its first instant in UTC.
pub fn due_at(text: &str) -> Result<prost_types::Timestamp, &'static str> {
    const BOUND: &str =
        "due_at must be RFC 3339 with an offset (2026-12-01T09:00:00Z) or a date (2026-12-01)";
    let time = match text.parse::<jiff::Timestamp>() {
        Ok(time) => time,
        Err(_) if text.len() == "2026-12-01".len() => {
            let date: jiff::civil::Date = text.parse().map_err(|_| BOUND)?;
            date.to_zoned(jiff::tz::TimeZone::UTC)
                .map_err(|_| BOUND)?
                .timestamp()
        }
        Err(_) => return Err(BOUND),
    };
    Ok(prost_types::Timestamp {
        seconds: time.as_second(),
        nanos: time.subsec_nanosecond(),
    })
}

/// The fields of one line, without the spaces around them.
fn split(line: &str) -> Result<Vec<String>, String> {
    if !line.contains('"') {
        return Ok(line
            .split(',')
            .map(|field| field.trim().to_owned())
            .collect());
    }
    // The csv crate reads a quote that is never closed as if it closed at the end.
    if line.matches('"').count() % 2 == 1 {
        return Err("has a quote that is not closed".to_owned());
    }
    let mut record = csv::StringRecord::new();
    csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(csv::Trim::All)
        .buffer_capacity(line.len().max(1))
        .from_reader(line.as_bytes())
        .read_record(&mut record)
        .map_err(|error| format!("is not CSV: {error}"))?;
    Ok(record.iter().map(str::to_owned).collect())
}

fn wrong_header(header: &str, name: &str) -> String {
    let expected = COLUMNS.join(",");
    if header.contains("invoice_id;") || header.contains("invoice_id\t") {
        return format!("separate the columns with commas: {expected}");
    }
    if !header.contains(COLUMNS[0]) {
        return format!("the header is missing; put this line on top: {expected}");
    }
    format!(
        "the header names {}, which is no column; known are {expected}",
        quoted(name)
    )
}

fn refused(reason: &str) -> NoInvoices {
    NoInvoices::Refused(reason.to_owned())
}

/// `amount_minor must be 1..=10^12, not "0"`.
fn wrong(value: &str, bound: &impl std::fmt::Display) -> String {
    format!("{bound}, not {}", quoted(value))
}

fn quoted(value: &str) -> String {
    match value.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{:?}...", &value[..end]),
        None => format!("{value:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "invoice_id,customer_id,amount_minor,currency,due_at,priority\n";

    /// Every line of the file as one line of text: an invoice, or what is wrong.
    fn read(bytes: impl AsRef<[u8]>) -> Vec<String> {
        let mut lines = match InvoiceLines::open(bytes.as_ref()) {
            Ok(lines) => lines,
            Err(error) => return vec![format!("file: {error}")],
        };
        let mut said = Vec::new();
        while let Some(line) = lines.next().expect("a slice has no I/O errors") {
            said.push(match line {
                Ok(Line { number, invoice }) => format!(
                    "{number}: {} {} {} {} {} {}",
                    invoice.invoice_id,
                    invoice.customer_id,
                    invoice.amount_minor,
                    invoice.currency,
                    invoice.due_at.map_or(-1, |due| due.seconds),
                    invoice.priority
                ),
                Err(Broken { line, reason }) => format!("{line}! {reason}"),
            });
        }
        assert_eq!(
            lines.bytes(),
            bytes.as_ref().len() as u64,
            "every byte is counted"
        );
        said
    }

    #[test]
    fn dates_are_midnight_utc_and_empty_means_now() {
        let said = read(format!(
            "{HEADER}a,c,1,EUR,2026-12-01,5\nb,c,1,EUR,2026-12-01T01:00:00+01:00,\nc,c,1,EUR,,\nd,c,1,EUR\n"
        ));
        assert_eq!(
            said,
            [
                "2: a c 1 EUR 1796083200 5",
                "3: b c 1 EUR 1796083200 0",
                "4: c c 1 EUR -1 0",
                "5: d c 1 EUR -1 0"
            ]
        );
    }

    #[test]
    fn a_mark_in_front_and_dos_line_ends_are_no_part_of_the_data() {
        let said = read(
            "\u{feff}invoice_id,customer_id,amount_minor,currency\r\n\r\na, c ,1,eur\r\n\"b\",c,2,USD",
        );
        assert_eq!(said, ["3: a c 1 EUR -1 0", "4: b c 2 USD -1 0"]);
    }

    #[test]
    fn a_quote_that_is_never_closed_breaks_only_its_own_line() {
        let said = read(format!("{HEADER}\"a,c,1,EUR\nb,c,1,EUR\n"));
        assert_eq!(
            said,
            ["2! has a quote that is not closed", "3: b c 1 EUR -1 0"]
        );
    }

    #[test]
    fn a_line_without_end_breaks_itself_and_is_not_kept() {
        let long = "x".repeat(3 * LINE_BYTES_MAX);
        let said = read(format!("{HEADER}{long}\nb,c,1,EUR\n{long}"));
        assert_eq!(
            said,
            [
                "2! is longer than 16384 bytes",
                "3: b c 1 EUR -1 0",
                "4! is longer than 16384 bytes"
            ]
        );
    }

    #[test]
    fn bytes_that_are_not_text_are_told_by_line() {
        let mut file = HEADER.as_bytes().to_vec();
        file.extend_from_slice(b"a,c\xff,1,EUR\nb,c,1,EUR\n");
        assert_eq!(
            read(file),
            ["2! is not UTF-8 (byte 4 of the line)", "3: b c 1 EUR -1 0"]
        );
    }

    #[test]
    fn columns_may_stand_in_any_order() {
        let said = read("currency,invoice_id,amount_minor,customer_id\nEUR,a,1,c\n");
        assert_eq!(said, ["2: a c 1 EUR -1 0"]);
    }

    #[test]
    fn a_file_without_the_header_is_refused_with_the_line_to_add() {
        for (file, said) in [
            ("", "file: the file is empty"),
            ("\n\n", "file: the file is empty"),
            (
                "inv-1,cus-1,100,EUR\n",
                "file: line 1: the header is missing; put this line on top: \
                 invoice_id,customer_id,amount_minor,currency,due_at,priority",
            ),
            (
                "invoice_id;customer_id;amount_minor;currency\n",
                "file: line 1: separate the columns with commas: \
                 invoice_id,customer_id,amount_minor,currency,due_at,priority",
            ),
            (
                "invoice_id,customer_id,amount_minor,currency,prio\n",
                "file: line 1: the header names \"prio\", which is no column; known are \
                 invoice_id,customer_id,amount_minor,currency,due_at,priority",
            ),
            (
                "invoice_id,customer_id,amount_minor\n",
                "file: line 1: the header does not name currency",
            ),
            (
                "invoice_id,invoice_id\n",
                "file: line 1: the header names invoice_id twice",
            ),
        ] {
            assert_eq!(read(file), [said]);
        }
        assert_eq!(
            read(b"\xff\xfei\0n\0"),
            ["file: line 1: the file is UTF-16; save it as UTF-8"]
        );
    }
}
