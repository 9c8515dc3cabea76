//! Decides how rows and cards stand on a terminal: columns where they fit, one block per row where they do not.

use std::io::{self, Write};

use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width, presets};

use super::clean;

/// The columns of one list, kept over its pages: a column never becomes narrower than a page before it needed.
pub struct Layout {
    headers: &'static [&'static str],
    terminal: Option<u16>,
    widths: Vec<u16>,
    pages: u64,
    /// Decided by the first page: later pages look alike, even if they would fit.
    blocks: bool,
}

impl Layout {
    pub fn new(
        headers: &'static [&'static str],
        widths_min: &[u16],
        terminal: Option<u16>,
    ) -> Self {
        let mut widths = widths_min.to_vec();
        widths.resize(headers.len(), 0);
        Layout {
            headers,
            terminal,
            widths,
            pages: 0,
            blocks: false,
        }
    }

    pub fn page(&mut self, out: &mut dyn Write, rows: &[Vec<String>]) -> io::Result<()> {
        let mut table = empty_table();
        if self.pages == 0 {
            table.set_header(self.headers);
        }
        for row in rows {
            assert_eq!(row.len(), self.headers.len(), "a cell for every header");
            table.add_row(row.iter().map(|cell| clean(cell)));
        }
        align(&mut table);
        for (width, needed) in self
            .widths
            .iter_mut()
            .zip(table.column_max_content_widths())
        {
            *width = (*width).max(needed);
        }
        if self.pages == 0 {
            let gaps = 2 * (self.widths.len() as u64).saturating_sub(1);
            let natural = self
                .widths
                .iter()
                .map(|width| u64::from(*width))
                .sum::<u64>()
                + gaps;
            self.blocks = self
                .terminal
                .is_some_and(|terminal| natural > u64::from(terminal));
        }
        if self.blocks {
            for (nth, row) in rows.iter().enumerate() {
                if self.pages > 0 || nth > 0 {
                    writeln!(out)?;
                }
                let lines = self.headers.iter().copied().zip(row.iter().cloned());
                card(out, &lines.collect::<Vec<_>>(), self.terminal)?;
            }
        } else {
            for (column, width) in table.column_iter_mut().zip(&self.widths) {
                // comfy-table counts the padding as part of a column.
                let padded = width + column.padding_width();
                column.set_constraint(ColumnConstraint::Absolute(Width::Fixed(padded)));
            }
            write_lines(out, &table)?;
        }
        self.pages += 1;
        Ok(())
    }
}

/// Label and value, one below the other. Lines without a value are left out.
pub fn card(
    out: &mut dyn Write,
    lines: &[(&'static str, String)],
    terminal: Option<u16>,
) -> io::Result<()> {
    let mut table = empty_table();
    if let Some(terminal) = terminal {
        // A long value continues below itself, not below its label.
        table
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(terminal.max(CARD_COLUMNS_MIN));
    }
    for (label, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
        table.add_row([(*label).to_owned(), clean(value)]);
    }
    if let Some(labels) = table.column_mut(0) {
        labels.set_constraint(ColumnConstraint::ContentWidth);
    }
    align(&mut table);
    write_lines(out, &table)
}

/// Columns without headers, of which the last one breaks its lines where the terminal is narrow.
pub fn rows(out: &mut dyn Write, rows: &[[String; 3]], terminal: Option<u16>) -> io::Result<()> {
    let mut table = empty_table();
    if let Some(terminal) = terminal {
        table
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(terminal.max(CARD_COLUMNS_MIN));
    }
    for row in rows {
        table.add_row(row.iter().map(|cell| clean(cell)));
    }
    for nth in 0..2 {
        if let Some(column) = table.column_mut(nth) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    align(&mut table);
    write_lines(out, &table)
}

/// Labels need some of it; narrower terminals break the lines themselves.
const CARD_COLUMNS_MIN: u16 = 40;

fn empty_table() -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table
}

/// Two spaces between columns, none before the first.
fn align(table: &mut Table) {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
}

fn write_lines(out: &mut dyn Write, table: &Table) -> io::Result<()> {
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}
