//! Prints completion scripts; the grammar is `args.rs`.

use std::io::Write;

use clap::CommandFactory;
use clap_complete::{Shell, generate};

use crate::{
    args::Cli,
    failure::{Exit, Problem},
};

pub fn print(shell: Shell, out: &mut dyn Write) -> Result<Exit, Problem> {
    // The generator panics when its output is gone, so it writes into memory.
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), "billingctl", &mut script);
    out.write_all(&script)?;
    Ok(Exit::Done)
}
