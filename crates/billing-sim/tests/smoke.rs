//! A handful of seeds of the smoke scenario, each in a process of its own, and one seed twice: the same trace.

use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

const SEEDS: [u64; 6] = [1, 2, 3, 5, 8, 13];

/// The lines that seeds print when everything held.
fn run(scenario: &str, seeds: &[u64]) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    // Two at a time: they share nothing, and the machine is small.
    for pair in seeds.chunks(2) {
        let running = pair
            .iter()
            .map(|seed| {
                Command::new(env!("CARGO_BIN_EXE_billing-sim"))
                    .args(["run", scenario, "--seed", &seed.to_string()])
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
            })
            .collect::<std::io::Result<Vec<_>>>()?;
        for child in running {
            let output = child.wait_with_output()?;
            ensure!(
                output.status.success(),
                "{}\n{}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
            lines.push(String::from_utf8(output.stdout)?);
        }
    }
    Ok(lines)
}

#[test]
fn three_nodes_survive_a_partition_and_a_crash() -> Result<()> {
    let mut lines = run("smoke", &SEEDS)?;
    lines.sort();
    lines.dedup();
    ensure!(
        lines.len() == SEEDS.len(),
        "every seed is another world: {lines:#?}"
    );
    Ok(())
}

#[test]
fn the_same_seed_gives_the_same_trace_in_another_process() -> Result<()> {
    let lines = run("smoke", &[7, 7])?;
    ensure!(lines[0] == lines[1], "{lines:#?}");
    ensure!(lines[0].contains("trace="), "{lines:#?}");
    Ok(())
}

#[test]
fn a_node_whose_disk_fails_ends_and_the_others_go_on() -> Result<()> {
    run("broken_disk", &[1, 2, 3, 4]).map(drop)
}
