//! Decides how figures are shown: text for people on standard output, the same facts as JSON. Computes none of them.

use std::fmt::Write as _;

/// What a measurement found.
#[derive(Debug, Default)]
pub struct Report {
    /// Whole lines.
    pub text: String,
    pub json: serde_json::Map<String, serde_json::Value>,
}

impl Report {
    pub fn line(&mut self, line: impl AsRef<str>) {
        self.text.push_str(line.as_ref());
        self.text.push('\n');
    }

    /// Columns as wide as their widest cell; the first is flushed left, the others right.
    pub fn table(&mut self, head: &[&str], rows: &[Vec<String>]) {
        let widths: Vec<usize> = head
            .iter()
            .enumerate()
            .map(|(column, title)| {
                let cells = rows.iter().filter_map(|row| row.get(column));
                cells
                    .map(|cell| cell.chars().count())
                    .fold(title.len(), usize::max)
            })
            .collect();
        let head: Vec<String> = head.iter().map(ToString::to_string).collect();
        for row in std::iter::once(&head).chain(rows) {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                // Writing to a String cannot fail.
                let _ = match column {
                    0 => write!(line, "{cell:<width$}"),
                    _ => write!(line, "  {cell:>width$}"),
                };
            }
            self.line(line.trim_end());
        }
    }

    pub fn fact(&mut self, name: &str, value: impl Into<serde_json::Value>) {
        self.json.insert(name.to_owned(), value.into());
    }

    /// Another report's text below this one's, its facts under `name`.
    pub fn section(&mut self, name: &str, other: Report) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.text.push_str(&other.text);
        self.fact(name, other.json);
    }
}

/// `12345.6` as `12,346`; below a hundred with one decimal, below one with two.
pub fn number(value: f64) -> String {
    if value.abs() < 1.0 {
        return format!("{value:.2}");
    }
    if value.abs() < 100.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{:.0}", value.abs());
    let mut grouped = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if value < 0.0 {
        grouped.insert(0, '-');
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(number(1_234_567.4), "1,234,567");
        assert_eq!(number(999.6), "1,000");
        assert_eq!(number(100.0), "100");
        assert_eq!(number(12.34), "12.3");
        assert_eq!(number(0.999), "1.00");
        assert_eq!(number(-4_321.0), "-4,321");
    }

    #[test]
    fn columns_line_up() {
        let mut report = Report::default();
        let row = |name: &str, value: &str| vec![name.to_owned(), value.to_owned()];
        report.table(
            &["way", "pairs/s"],
            &[row("unary", "7"), row("a longer one", "12,345,678")],
        );
        assert_eq!(
            report.text,
            "way              pairs/s\nunary                  7\na longer one  12,345,678\n"
        );
    }
}
