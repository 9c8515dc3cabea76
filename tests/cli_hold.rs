//! `billingctl lease acquire ... -- COMMAND` with real commands: what they see, how they end, and that nothing of them
//! outlives the lease.

mod cli_fake;

use std::{fs, path::Path};

use cli_fake::{Ran, Script, TOKEN, ctl_in_time};

/// Runs `sh -c script` under the lease on `invoice`; `$1` is `file`.
fn hold(script: &Script, invoice: &str, file: &Path, sh: &str) -> Ran {
    let file = file.to_str().expect("a temporary folder has a plain name");
    let words = [
        "billingctl",
        "lease",
        "acquire",
        invoice,
        "--ttl",
        "1s",
        "--",
        "sh",
        "-c",
        sh,
        "sh",
        file,
    ];
    ctl_in_time(script, &words)
}

fn read(file: &Path) -> String {
    fs::read_to_string(file)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

#[test]
fn the_command_finds_invoice_and_token_and_its_exit_code_is_passed_on() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("seen");
    let ran = hold(
        &Script::three(),
        "inv-7",
        &file,
        "echo $BILLING_INVOICE $BILLING_TOKEN > $1; exit 7",
    );
    assert_eq!(
        (ran.code, ran.stderr.as_str(), ran.stdout.as_str()),
        (7, "", "")
    );
    assert_eq!(read(&file), format!("inv-7 {TOKEN}"));
    Ok(())
}

#[test]
fn a_command_outlasts_the_ttl_while_the_lease_is_kept_alive() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("seen");
    let ran = hold(&Script::three(), "inv-7", &file, "sleep 2; echo done > $1");
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    assert_eq!(read(&file), "done");
    Ok(())
}

#[test]
fn a_refused_lease_runs_nothing() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("seen");
    let ran = hold(&Script::three(), "inv-held", &file, "echo ran > $1");
    assert_eq!(ran.code, 1);
    assert_eq!(
        ran.stderr,
        "refused: invoice inv-held is held by ben for another 12s\n"
    );
    assert!(!file.exists(), "the command must not run without the lease");
    Ok(())
}

#[test]
fn a_command_that_is_not_there_or_dies_says_so_as_a_shell_would() {
    let words = [
        "billingctl",
        "lease",
        "acquire",
        "inv-7",
        "--",
        "no-such-command-anywhere",
    ];
    let ran = ctl_in_time(&Script::three(), &words);
    assert_eq!(ran.code, 127);
    assert!(
        ran.stderr
            .starts_with("failed: cannot run no-such-command-anywhere: "),
        "{}",
        ran.stderr
    );
    let ran = ctl_in_time(
        &Script::three(),
        &["billingctl", "lease", "acquire", "inv-7", "--", "/"],
    );
    assert_eq!(ran.code, 126, "{}", ran.stderr);
    let killed = hold(
        &Script::three(),
        "inv-7",
        Path::new("/dev/null"),
        "kill -9 $$",
    );
    assert_eq!(killed.code, 128 + 9);
}

#[test]
fn a_lost_lease_ends_the_command_and_its_children() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("seen");
    let ending = Script {
        sessions_end: true,
        ..Script::three()
    };
    let sh = "sleep 1000 & echo $! > $1; trap 'echo asked >> $1; exit 0' TERM; wait";
    let ran = hold(&ending, "inv-7", &file, sh);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(
        ran.stderr
            .starts_with("failed: the lease on inv-7 was lost ("),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("sh was stopped"), "{}", ran.stderr);
    let seen = read(&file);
    let mut lines = seen.lines();
    let child = lines.next().unwrap_or_default().to_owned();
    assert_eq!(lines.next(), Some("asked"), "SIGTERM comes first");
    // Whoever adopts orphans here may not have waited for it yet: a zombie does nothing any more.
    let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
    let state = stat
        .rsplit(')')
        .next()
        .and_then(|rest| rest.split_whitespace().next());
    assert!(
        matches!(state, None | Some("Z" | "X")),
        "process {child} goes on: {stat}"
    );
    Ok(())
}
