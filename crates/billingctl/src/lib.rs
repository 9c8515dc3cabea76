//! What an operator types and sees. Decides how questions and orders are written and how answers look; asks the cluster for
//! every rule and keeps none of its own.
//!
//! [`run`] is the whole program; `main.rs` hands it the process's arguments and streams, tests hand it others.

mod args;
mod cluster;
mod commands;
mod doctor;
mod failure;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod invoices;
mod output;
mod progress;
mod survey;

use std::{
    ffi::OsString,
    io::{Read, Write},
};

use billing_env::Env;
use clap::{CommandFactory, FromArgMatches};

use crate::{args::Cli, failure::Problem};

pub use crate::failure::Exit;

/// The program's streams and what is known of the terminal behind them.
pub struct Streams<'a> {
    pub stdin: &'a mut dyn Read,
    pub stdout: &'a mut dyn Write,
    pub stderr: &'a mut dyn Write,
    /// How wide stdout's terminal is; none: stdout is not a terminal, and lines may be as long as need be.
    pub stdout_columns: Option<u16>,
    /// Whether progress may be drawn over itself.
    pub stderr_is_terminal: bool,
    /// Whether a command that is run under a lease may own the terminal.
    pub stdin_is_terminal: bool,
}

/// How wide help and tables are made for somebody who is not a terminal.
const COLUMNS_DEFAULT: u16 = 100;

/// Runs one command line, program name first. Blocks until it is done; starts its own runtime.
pub fn run<I, T>(args: I, env: Env, mut streams: Streams<'_>) -> Exit
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let columns = usize::from(streams.stdout_columns.unwrap_or(COLUMNS_DEFAULT));
    let cli = match parse(args, columns) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, &mut streams),
    };
    let outcome = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime.block_on(commands::run(cli, env, &mut streams)),
        Err(error) => Err(Problem::failed(format!("cannot start: {error}"), "")),
    };
    // A full disk behind stdout shows when the buffer is emptied.
    let outcome =
        outcome.and_then(|exit| streams.stdout.flush().map(|()| exit).map_err(Problem::from));
    match outcome {
        Ok(exit) => exit,
        Err(problem) => {
            // Nobody is left to be told when stderr is closed; the exit code still says it.
            let _ = streams.stderr.write_all(problem.text().as_bytes());
            problem.exit()
        }
    }
}

fn parse<I, T>(args: I, columns: usize) -> Result<Cli, clap::Error>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let mut command = Cli::command().term_width(columns.clamp(40, usize::from(COLUMNS_DEFAULT)));
    let matches = command.try_get_matches_from_mut(args)?;
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// `--help` and `--version` are data; a wrong command line is talk, and code 2.
fn usage(error: &clap::Error, streams: &mut Streams<'_>) -> Exit {
    let text = error.render().to_string();
    let (written, exit) = match error.exit_code() {
        0 => (
            streams
                .stdout
                .write_all(text.as_bytes())
                .and_then(|()| streams.stdout.flush()),
            Exit::Done,
        ),
        _ => (streams.stderr.write_all(text.as_bytes()), Exit::Failed),
    };
    match written.map_err(Problem::from) {
        Ok(()) | Err(Problem::NobodyReads) => exit,
        Err(_) => Exit::Failed,
    }
}
