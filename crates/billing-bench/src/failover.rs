//! Decides how long nobody can acquire when the leader is killed, stopped or cut off. Not measured yet.

use anyhow::{Result, bail};

use crate::{Common, report::Report};

#[derive(Debug, clap::Args)]
pub struct Args {}

pub async fn run(_common: &Common, _args: &Args) -> Result<Report> {
    bail!("not measured yet")
}
