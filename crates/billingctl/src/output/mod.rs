//! Decides how an answer becomes bytes on stdout, by the format that was asked for. Never talks to a cluster, never writes to stderr.
//!
//! A command hands over either one thing ([`Printer::one`]) or rows, page by page ([`Printer::listing`]); what a thing looks
//! like to people and to programs stands beside its JSON form in `json.rs`.

pub mod backup;
mod doctor;
mod human;
pub mod json;
pub mod members;
pub mod status;
mod table;

use std::io::{self, Write};

use serde::Serialize;

use crate::args::Format;

pub use human::{bytes, clean, span, tenths_of_ms};

/// A row of a list.
pub trait Row: Serialize {
    const HEADERS: &'static [&'static str];
    /// How wide columns are at least; shorter than HEADERS: the others are as wide as need be.
    const WIDTHS_MIN: &'static [u16] = &[];
    /// As many as there are headers.
    fn cells(&self) -> Vec<String>;
    /// What another command takes to mean this row.
    fn name(&self) -> String;
}

/// One thing, shown by itself.
pub trait Card: Serialize {
    /// Label and value, in reading order.
    fn lines(&self) -> Vec<(&'static str, String)>;
    fn name(&self) -> String;
}

/// Rows of a table that are held back until the width of its columns is known.
const LAID_OUT_ROWS: usize = 500;

/// Stdout, and how to write to it.
pub struct Printer<'a> {
    out: &'a mut dyn Write,
    format: Format,
    /// Of the terminal; none: not a terminal, and as wide as need be.
    columns: Option<u16>,
}

impl<'a> Printer<'a> {
    pub fn new(out: &'a mut dyn Write, format: Format, columns: Option<u16>) -> Self {
        Printer {
            out,
            format,
            columns,
        }
    }

    pub fn format(&self) -> Format {
        self.format
    }

    /// For people only: a card below a table.
    pub fn below(&mut self, card: &impl Card) -> io::Result<()> {
        let lines = card.lines();
        if lines.is_empty() {
            return Ok(());
        }
        writeln!(self.out)?;
        table::card(self.out, &lines, self.columns)
    }

    /// For people only: columns without headers.
    pub fn rows(&mut self, rows: &[[String; 3]]) -> io::Result<()> {
        table::rows(self.out, rows, self.columns)
    }

    pub fn one(&mut self, card: &impl Card) -> io::Result<()> {
        match self.format {
            Format::Table => table::card(self.out, &card.lines(), self.columns),
            Format::Json => {
                serde_json::to_writer_pretty(&mut *self.out, card)?;
                writeln!(self.out)
            }
            Format::Jsonl => {
                serde_json::to_writer(&mut *self.out, card)?;
                writeln!(self.out)
            }
            Format::Name => writeln!(self.out, "{}", clean(&card.name())),
        }
    }

    /// Rows that arrive in pages; `field` names them in JSON.
    pub fn listing<'p, R: Row>(&'p mut self, field: &'static str) -> Listing<'p, 'a, R> {
        Listing {
            printer: self,
            field,
            layout: None,
            waiting: Vec::new(),
            rows: 0,
            row_type: std::marker::PhantomData,
        }
    }
}

/// A list under way. A list that is dropped before [`Listing::end`] leaves a JSON document open: it did not end.
pub struct Listing<'p, 'a, R> {
    printer: &'p mut Printer<'a>,
    field: &'static str,
    layout: Option<table::Layout>,
    /// Rows of a table that are not laid out yet.
    waiting: Vec<Vec<String>>,
    rows: u64,
    row_type: std::marker::PhantomData<R>,
}

impl<R: Row> Listing<'_, '_, R> {
    pub fn page(&mut self, rows: &[R]) -> io::Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        match self.printer.format {
            Format::Table => {
                self.waiting.extend(rows.iter().map(Row::cells));
                if self.waiting.len() >= LAID_OUT_ROWS {
                    self.lay_out()?;
                }
            }
            Format::Json => {
                for row in rows {
                    match self.rows {
                        0 => write!(self.printer.out, "{{\n  \"{}\": [\n    ", self.field)?,
                        _ => write!(self.printer.out, ",\n    ")?,
                    }
                    serde_json::to_writer(&mut *self.printer.out, row)?;
                    self.rows += 1;
                }
                return Ok(());
            }
            Format::Jsonl => {
                for row in rows {
                    serde_json::to_writer(&mut *self.printer.out, row)?;
                    writeln!(self.printer.out)?;
                }
            }
            Format::Name => {
                for row in rows {
                    writeln!(self.printer.out, "{}", clean(&row.name()))?;
                }
            }
        }
        self.rows += rows.len() as u64;
        Ok(())
    }

    /// One row of a list that never ends, for whoever waits for it.
    pub fn now(&mut self, row: R) -> io::Result<()> {
        self.page(&[row])?;
        self.lay_out()?;
        self.printer.out.flush()
    }

    /// Prints the rows that wait, in columns that fit them all.
    fn lay_out(&mut self) -> io::Result<()> {
        let rows = std::mem::take(&mut self.waiting);
        if rows.is_empty() {
            return Ok(());
        }
        let columns = self.printer.columns;
        let layout = self
            .layout
            .get_or_insert_with(|| table::Layout::new(R::HEADERS, R::WIDTHS_MIN, columns));
        layout.page(self.printer.out, &rows)
    }

    /// How many rows were handed over.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Closes the list. `more`: there are rows beyond the limit. `empty` is what people read instead of no rows.
    pub fn end(mut self, more: bool, empty: &str) -> io::Result<()> {
        match self.printer.format {
            Format::Table if self.rows == 0 => writeln!(self.printer.out, "{empty}"),
            Format::Json if self.rows == 0 => {
                writeln!(
                    self.printer.out,
                    "{{\n  \"{}\": [],\n  \"more\": {more}\n}}",
                    self.field
                )
            }
            Format::Json => writeln!(self.printer.out, "\n  ],\n  \"more\": {more}\n}}"),
            Format::Table => self.lay_out(),
            Format::Jsonl | Format::Name => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Pair {
        left: &'static str,
        right: u32,
    }

    impl Row for Pair {
        const HEADERS: &'static [&'static str] = &["LEFT", "RIGHT"];
        fn cells(&self) -> Vec<String> {
            vec![self.left.to_owned(), self.right.to_string()]
        }
        fn name(&self) -> String {
            self.left.to_owned()
        }
    }

    fn print(format: Format, columns: Option<u16>, pages: &[&[Pair]]) -> String {
        let mut out = Vec::new();
        let mut printer = Printer::new(&mut out, format, columns);
        let mut listing = printer.listing("pairs");
        for page in pages {
            listing.page(page).expect("a Vec takes every byte");
        }
        listing.end(false, "none.").expect("a Vec takes every byte");
        String::from_utf8(out).expect("only text was written")
    }

    const ANA: Pair = Pair {
        left: "ana",
        right: 7,
    };
    const BENJAMIN: Pair = Pair {
        left: "benjamin",
        right: 12,
    };

    #[test]
    fn json_is_one_document_over_all_pages() {
        for pages in [&[][..], &[&[ANA][..]], &[&[ANA], &[], &[BENJAMIN, ANA]]] {
            let text = print(Format::Json, None, pages);
            let parsed: serde_json::Value = serde_json::from_str(&text).expect(&text);
            let rows: usize = pages.iter().map(|page| page.len()).sum();
            assert_eq!(
                parsed["pairs"].as_array().map(Vec::len),
                Some(rows),
                "{text}"
            );
        }
    }

    #[test]
    fn rows_of_one_table_stand_in_one_set_of_columns_however_they_arrive() {
        let text = print(Format::Table, None, &[&[ANA], &[BENJAMIN]]);
        assert_eq!(text, "LEFT      RIGHT\nana       7\nbenjamin  12\n");
    }

    #[test]
    fn a_table_of_many_rows_is_printed_on_the_way_with_one_header() {
        let rows: Vec<Pair> = (0..LAID_OUT_ROWS).map(|_| BENJAMIN).collect();
        let text = print(Format::Table, None, &[&rows, &[ANA]]);
        assert_eq!(text.matches("LEFT").count(), 1);
        assert!(
            text.ends_with("benjamin  12\nana       7\n"),
            "the columns keep their width"
        );
    }

    #[test]
    fn a_narrow_terminal_gets_blocks_instead_of_broken_lines() {
        assert_eq!(
            print(Format::Table, Some(15), &[&[BENJAMIN]]),
            "LEFT      RIGHT\nbenjamin  12\n"
        );
        assert_eq!(
            print(Format::Table, Some(14), &[&[BENJAMIN], &[ANA]]),
            "LEFT   benjamin\nRIGHT  12\n\nLEFT   ana\nRIGHT  7\n"
        );
    }

    #[test]
    fn no_rows_are_a_sentence_for_people_and_nothing_for_programs() {
        assert_eq!(print(Format::Table, None, &[]), "none.\n");
        assert_eq!(print(Format::Jsonl, None, &[]), "");
        assert_eq!(print(Format::Name, None, &[]), "");
    }
}
