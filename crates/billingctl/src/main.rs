//! Hands the process's arguments and streams to the library. Decides nothing.

use std::{
    io::{self, BufWriter, IsTerminal},
    process::ExitCode,
};

use billing_env::Env;
use billingctl::{Streams, run};

fn main() -> ExitCode {
    let stdout = io::stdout();
    let stdout_columns = stdout
        .is_terminal()
        .then(|| rustix::termios::tcgetwinsize(&stdout).ok())
        .flatten()
        .map(|size| size.ws_col)
        .filter(|columns| *columns > 0);
    let exit = run(
        std::env::args_os(),
        Env::real(),
        Streams {
            stdin: &mut io::stdin().lock(),
            stdout: &mut BufWriter::new(stdout.lock()),
            stderr: &mut io::stderr(),
            stdout_columns,
            stderr_is_terminal: io::stderr().is_terminal(),
            stdin_is_terminal: io::stdin().is_terminal(),
        },
    );
    ExitCode::from(exit.code())
}
