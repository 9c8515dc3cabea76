//! The completion scripts: that shells take them, and that they know the commands.

mod cli_fake;

use std::{
    io::Write,
    process::{Command, Stdio},
};

use cli_fake::{Script, Stage, ctl};

#[test]
fn every_shell_gets_a_script_that_knows_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = ctl(
            &Script::default(),
            &Stage::default(),
            &["billingctl", "completion", shell],
        );
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{shell}");
        for word in ["force-release", "allow-charges", "in-doubt", "endpoints"] {
            assert!(ran.stdout.contains(word), "{shell} does not know {word}");
        }
    }
}

#[test]
fn bash_completes_a_verb() -> anyhow::Result<()> {
    let ran = ctl(
        &Script::default(),
        &Stage::default(),
        &["billingctl", "completion", "bash"],
    );
    // bash is what the Makefile runs with, so it is there.
    let mut bash = Command::new("bash")
        .arg("--norc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let asked = "\nCOMP_WORDS=(billingctl lease force); COMP_CWORD=2\n\
                 _billingctl billingctl force lease\necho \"${COMPREPLY[@]}\"\n";
    if let Some(mut stdin) = bash.stdin.take() {
        stdin.write_all(ran.stdout.as_bytes())?;
        stdin.write_all(asked.as_bytes())?;
    }
    let out = bash.wait_with_output()?;
    assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), "force-release");
    Ok(())
}
