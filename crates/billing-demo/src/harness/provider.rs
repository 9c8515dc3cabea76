//! Decides how the sandbox is started as the provider of a run, and the workers that charge through it. Its books are asked for,
//! and believed only as far as one charge for each invoice goes.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Result, ensure};

use super::{Output, Process, binary, until};
use crate::books::{self, Books};

const LISTENS_WITHIN: Duration = Duration::from_secs(30);
/// The sandbox takes any test key; a real one would come from the operator's secret store.
const TEST_KEY: &str = "sk_test_demo";

/// A provider that outlives every cluster. Dropped: killed, with its books.
#[derive(Debug)]
pub struct Provider {
    process: Process,
    address: String,
    folder: PathBuf,
}

impl Provider {
    /// Starts it on a free port of 127.0.0.1; its log and the workers' are made in `folder`.
    pub async fn start(folder: &Path, flags: &[&str]) -> Result<Provider> {
        std::fs::create_dir_all(folder)?;
        let port_file = folder.join("sandbox.address");
        let mut command = Command::new(binary("billing-sandbox")?);
        command
            .args(["--listen", "127.0.0.1:0", "--port-file"])
            .arg(&port_file)
            .args(flags);
        let output = Output::File(folder.join("sandbox.log"));
        let mut process = Process::start("billing-sandbox", command, &output)?;
        let mut address = String::new();
        until("the sandbox listens", LISTENS_WITHIN, async || {
            if let Some(status) = process.exited()? {
                let words = process.last_words(10);
                anyhow::bail!("the sandbox did not start ({status}):\n{words}");
            }
            address = std::fs::read_to_string(&port_file).unwrap_or_default();
            Ok(!address.trim().is_empty())
        })
        .await?;
        Ok(Provider {
            process,
            address: address.trim().to_owned(),
            folder: folder.to_owned(),
        })
    }

    /// `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    pub async fn books(&self) -> Result<Books> {
        books::ask(&self.address).await
    }

    /// How many invoices were charged; an error when one of them was charged twice.
    pub async fn charged(&self) -> Result<usize> {
        let mut charged = 0;
        for (invoice, rows) in self.books().await?.invoices {
            let succeeded = rows.iter().filter(|row| row.succeeded()).count();
            ensure!(
                succeeded <= 1,
                "{invoice} was charged {succeeded} times: {rows:?}"
            );
            charged += succeeded;
        }
        Ok(charged)
    }

    /// Starts `billing-worker` as holder `name`, with its log beside the provider's. `through`: an address in front of the
    /// provider, where there is one.
    pub fn worker(
        &self,
        name: &str,
        endpoints: &[String],
        through: Option<&str>,
        flags: &[&str],
    ) -> Result<Process> {
        let url = format!("http://{}", through.unwrap_or(&self.address));
        let mut command = Command::new(binary("billing-worker")?);
        command
            .args(["--endpoints", &endpoints.join(",")])
            .args(["--provider-url", &url])
            .args(["--holder", name])
            .args(flags)
            .env("BILLING_PROVIDER_KEY", TEST_KEY);
        let output = Output::File(self.folder.join(format!("{name}.log")));
        Process::start(name, command, &output)
    }
}
