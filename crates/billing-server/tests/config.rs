//! Promises of the command line: which layer wins, what is refused, and that each refusal names the setting, its source and the way out.

use std::path::PathBuf;

use billing_server::cli::Cli;
use billing_server::config::{Config, ConfigError};
use clap::{CommandFactory, FromArgMatches};

const PEERS: &str = "1=127.0.0.1:7101/127.0.0.1:7201,2=127.0.0.1:7102/127.0.0.1:7202";

/// What would hold for this command line; `{file}` stands for a file with `toml` in it.
fn load(toml: &str, line: &str) -> Result<Config, String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let file: PathBuf = folder.path().join("billingd.toml");
    std::fs::write(&file, toml).map_err(|error| error.to_string())?;
    let line = line.replace("{file}", &file.display().to_string());
    let words = std::iter::once("billingd").chain(line.split_whitespace());
    let matches = Cli::command()
        .try_get_matches_from(words)
        .map_err(|error| error.to_string())?;
    let cli = Cli::from_arg_matches(&matches).map_err(|error| error.to_string())?;
    Config::load(cli.settings, &matches).map_err(|error: ConfigError| error.to_string())
}

/// The command line is refused, and the words say all of `needles`.
fn refused(toml: &str, line: &str, needles: &[&str]) {
    match load(toml, line) {
        Ok(_) => panic!("`{line}` with file `{toml}` was taken"),
        Err(words) => {
            for needle in needles {
                assert!(words.contains(needle), "`{needle}` is not in: {words}");
            }
        }
    }
}

#[test]
fn a_flag_wins_over_the_file_and_the_file_over_the_default() -> Result<(), String> {
    let config = load(
        "node_id = 1\ndata_dir = \"from-file\"\nheartbeat = \"200ms\"\nsnapshot_every = 500\n",
        "--config {file} --data-dir from-flag",
    )?;
    assert_eq!(config.data_dir, PathBuf::from("from-flag"));
    assert_eq!(config.snapshot_every, 500);
    let explained = config.explain();
    for (setting, source) in [
        ("data_dir = \"from-flag\"", "--data-dir"),
        ("heartbeat = \"200ms\"", "billingd.toml"),
        ("calls_max = 8192", "default"),
        ("listen = \"127.0.0.1:7101\"", "default"),
    ] {
        let line = explained.lines().find(|line| line.starts_with(setting));
        assert!(
            line.is_some_and(|line| line.contains(source)),
            "{setting} from {source} is not in:\n{explained}"
        );
    }
    Ok(())
}

#[test]
fn what_check_config_prints_is_a_file_that_means_the_same() -> Result<(), String> {
    let first = load(
        "",
        &format!("--node-id 2 --data-dir d --peers {PEERS} --heartbeat 300ms"),
    )?;
    let again = load(&first.explain(), "--config {file}")?;
    assert_eq!(again.peers, first.peers);
    assert_eq!(again.heartbeat, first.heartbeat);
    assert_eq!(
        again.listen, "127.0.0.1:7102",
        "found in its own entry of the peers"
    );
    assert_eq!(again.raft_listen, "127.0.0.1:7202");
    Ok(())
}

#[test]
fn an_unknown_key_is_refused_with_its_line() {
    refused(
        "node_id = 1\ndata_dir = \"d\"\nhartbeat = \"200ms\"\n",
        "--config {file}",
        &["line 3", "hartbeat", "heartbeat"],
    );
    refused(
        "node_id = 1\ndata_dir = \"d\"\npeers = [\"2=here\"]\n",
        "--config {file}",
        &["line 3", "ID=CLIENTS/NODES"],
    );
    refused(
        "ledger_id = \"a.b\"\n",
        "--config {file}",
        &["line 1", "ledger_id"],
    );
    // Founding a cluster is said once, by a person; in a file it would be said again at every start.
    refused(
        "bootstrap = true\n",
        "--config {file}",
        &["line 1", "bootstrap"],
    );
}

#[test]
fn what_cannot_work_is_refused_with_its_name_and_the_way_out() {
    let base = "--node-id 1 --data-dir d";
    let cases: &[(String, &[&str])] = &[
        (
            "--data-dir d".into(),
            &["node_id is missing", "--node-id", "BILLINGD_NODE_ID"],
        ),
        ("--node-id 1".into(), &["data_dir is missing", "--data-dir"]),
        (
            "--node-id 0 --data-dir d".into(),
            &["node_id", "start at 1"],
        ),
        (
            format!("{base} --config nowhere.toml"),
            &["nowhere.toml", "cannot read"],
        ),
        (
            format!("{base} --listen 0.0.0.0:7101"),
            &["--listen", "loopback", "--insecure"],
        ),
        (
            format!("{base} --raft-listen 0.0.0.0:7201"),
            &["--raft-listen", "--insecure"],
        ),
        (format!("{base} --listen here"), &["--listen", "HOST:PORT"]),
        (
            format!("{base} --raft-listen 127.0.0.1:7101"),
            &["raft_listen", "their own"],
        ),
        (
            format!("--node-id 3 --data-dir d --peers {PEERS}"),
            &["this node, 3, is not among them"],
        ),
        (
            format!("{base} --peers {PEERS},1=127.0.0.1:1/127.0.0.1:2"),
            &["node id 1 stands there twice"],
        ),
        (
            format!("{base} --peers {PEERS},3=127.0.0.1:7101/127.0.0.1:2"),
            &["address 127.0.0.1:7101 stands there twice"],
        ),
        (
            format!("{base} --peers {PEERS} --listen 127.0.0.1:7105"),
            &["7105", "7101", "another node has this id"],
        ),
        (format!("{base} --heartbeat soon"), &["heartbeat", "250ms"]),
        (
            format!("{base} --election-timeout-min 300ms"),
            &[
                "election_timeout_min",
                "--election-timeout-min",
                "twice the heartbeat",
            ],
        ),
        (
            format!("{base} --election-timeout-max 1s"),
            &["election_timeout_max", "longer than election_timeout_min"],
        ),
        (format!("{base} --calls-max 0"), &["calls_max", "1 to"]),
        (format!("{base} --log !!"), &["--log", "info"]),
        (format!("{base} --no-prior-charges"), &["--bootstrap"]),
        (
            format!("{base} --bootstrap --ledger-id a.b"),
            &["ledger", "letters, digits"],
        ),
        (
            format!("{base} --peers {PEERS} --bootstrap"),
            &["ledger_id", "the same at each", "--ledger-id"],
        ),
    ];
    for (line, needles) in cases {
        refused("", line, needles);
    }
}

#[test]
fn a_lone_node_may_leave_its_ledger_id_to_chance() -> Result<(), String> {
    let config = load("", "--node-id 1 --data-dir d --bootstrap")?;
    assert!(config.ledger_id.is_none());
    assert!(
        config
            .bootstrap
            .is_some_and(|bootstrap| !bootstrap.no_prior_charges)
    );
    Ok(())
}
