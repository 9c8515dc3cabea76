//! Decides which question or order each command line becomes: one file per noun. Rules live in the cluster, looks in `output`.

mod audit;
mod backup;
mod bench;
mod charge;
mod cluster;
mod completion;
mod doctor;
mod hold;
mod invoice;
mod lease;
mod members;
mod signals;
mod submit;
mod watch;

use billing_env::Env;

use crate::{
    Streams,
    args::{Cli, Noun},
    cluster::Cluster,
    failure::{Exit, Problem},
    output::Printer,
};

/// What every command works with.
struct Context<'c, 's> {
    cluster: Cluster,
    env: Env,
    cli: &'c crate::args::Global,
    streams: &'c mut Streams<'s>,
}

impl Context<'_, '_> {
    fn printer(&mut self) -> Printer<'_> {
        Printer::new(
            self.streams.stdout,
            self.cli.output,
            self.streams.stdout_columns,
        )
    }

    /// A line of talk, below what was printed so far.
    fn say(&mut self, text: &str) {
        // What cannot be written there fails the command when it ends.
        let _ = self.streams.stdout.flush();
        // Nobody is left to be told when stderr is closed; the exit code still says it.
        let _ = writeln!(self.streams.stderr, "{text}");
    }
}

pub async fn run(cli: Cli, env: Env, streams: &mut Streams<'_>) -> Result<Exit, Problem> {
    let Cli { global, noun } = cli;
    if let Noun::Completion { shell } = noun {
        return completion::print(shell, streams.stdout);
    }
    let cluster = Cluster::connect(&global, env.clone())?;
    let context = Context {
        cluster,
        env,
        cli: &global,
        streams,
    };
    match noun {
        Noun::Lease(verb) => lease::run(context, verb).await,
        Noun::Invoice(verb) => invoice::run(context, verb).await,
        Noun::Charge(verb) => charge::run(context, verb).await,
        Noun::Cluster(verb) => cluster::run(context, verb).await,
        Noun::Audit(verb) => audit::run(context, verb).await,
        Noun::Bench(bench) => bench::run(context, bench).await,
        Noun::Doctor => doctor::run(context).await,
        Noun::Completion { shell } => completion::print(shell, context.streams.stdout),
    }
}

/// Rows of one request. The server's own bound is the same.
const PAGE_ROWS: u64 = billing_core::limits::PAGE_MAX as u64;

/// How many rows to ask for next, when `printed` of at most `limit` (0: all) are there.
fn page_size(limit: u64, printed: u64) -> u32 {
    let left = if limit == 0 {
        PAGE_ROWS
    } else {
        limit.saturating_sub(printed).min(PAGE_ROWS)
    };
    u32::try_from(left).unwrap_or(u32::MAX)
}

/// What people read below a list that was cut.
fn cut(limit: u64) -> String {
    format!("there are more; --limit {limit} cut them, --limit 0 shows all")
}
