//! Decides how a failure is told: what happened to one invoice, in order, by the audit log, the machines and the provider.

use std::fmt::Write;
use std::io;
use std::path::Path;

use billing_sim::trace;
use billing_sim::world::World;

/// Every event that names the invoice, and the provider's books of it.
pub fn of(world: &World, invoice: &str) -> String {
    let mut text = format!("what happened to {invoice} (simulated ms, event):\n");
    let names = |event: &str| {
        event
            .split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
            .any(|word| word == invoice)
    };
    for (at, event) in world.record.lines() {
        if names(&event) {
            // A string takes any number of lines.
            let _ = writeln!(text, "{}", trace::line(at, &event));
        }
    }
    for row in world.provider.books().of(invoice) {
        let _ = writeln!(text, "          in the books: {row:?}");
    }
    text
}

pub fn write_trace(world: &World, path: &Path) -> io::Result<()> {
    let mut text = String::new();
    for (at, event) in world.record.lines() {
        text.push_str(&trace::line(at, &event));
        text.push('\n');
    }
    std::fs::write(path, text)
}
