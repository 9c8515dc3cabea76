//! Invoices outside the cluster: read from CSV, or made up. Never talks to a cluster.

mod generate;
mod reader;

pub use generate::{Plan, write_csv};
pub use reader::{Broken, InvoiceLines, Line, NoInvoices, due_at};

/// The header of a file of invoices. The last two columns may be left out.
pub const COLUMNS: [&str; 6] = [
    "invoice_id",
    "customer_id",
    "amount_minor",
    "currency",
    "due_at",
    "priority",
];
/// How many of them every file has.
pub const COLUMNS_REQUIRED: usize = 4;
