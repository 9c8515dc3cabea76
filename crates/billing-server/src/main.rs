//! `billingd`: decides nothing but which words and which exit code a person gets. The node's life is `process.rs`.

use std::path::Path;
use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory, FromArgMatches};

use billing_env::Env;
use billing_proto::restore::RestoreId;
use billing_server::cli::{Cli, CliCommand, Settings};
use billing_server::config::Config;
use billing_server::exit::{self, Fatal};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let own = matches.subcommand().map_or(&matches, |(_, own)| own);
    let mut join = None;
    let (settings, only_check) = match cli.command {
        None => (cli.settings, false),
        Some(CliCommand::Run(settings)) => (*settings, false),
        Some(CliCommand::Join {
            join: asked,
            settings,
        }) => {
            join = Some(asked);
            (*settings, false)
        }
        Some(CliCommand::CheckConfig(settings)) => (*settings, true),
        Some(CliCommand::Restore {
            file,
            restore_id,
            settings,
        }) => return restore(&file, restore_id, *settings, own),
    };
    let loaded = Config::load(settings, own).and_then(|config| {
        let plan = join.map(|join| config.plan(join)).transpose()?;
        Ok((config, plan))
    });
    let (config, plan) = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            eprintln!("billingd: {error}");
            return ExitCode::from(exit::USAGE);
        }
    };
    if only_check {
        print!("{}", config.explain());
        return ExitCode::from(exit::DONE);
    }
    match billing_server::process::run(config, plan) {
        Ok(()) => ExitCode::from(exit::DONE),
        Err(fatal) => {
            eprintln!("billingd: {fatal}");
            ExitCode::from(fatal.code())
        }
    }
}

fn restore(
    file: &Path,
    id: Option<RestoreId>,
    settings: Settings,
    matches: &ArgMatches,
) -> ExitCode {
    let restored = Config::load(settings, matches)
        .map_err(|error| Fatal::Settings(error.to_string()))
        .and_then(|config| billing_server::restore::run(file, id, &config, &Env::real()));
    match restored {
        Ok(restored) => {
            println!("{}", restored.told);
            if let Some(next) = restored.next {
                eprintln!("billingd: {next}");
            }
            ExitCode::from(exit::DONE)
        }
        Err(fatal) => {
            eprintln!("billingd: {fatal}");
            ExitCode::from(fatal.code())
        }
    }
}
