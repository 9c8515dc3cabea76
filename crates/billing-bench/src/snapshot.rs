//! Decides what a snapshot of many invoices does to the latency of an acquire. Not measured yet.

use anyhow::{Result, bail};

use crate::{Common, report::Report};

#[derive(Debug, clap::Args)]
pub struct Args {}

pub async fn run(_common: &Common, _args: &Args) -> Result<Report> {
    bail!("not measured yet")
}
