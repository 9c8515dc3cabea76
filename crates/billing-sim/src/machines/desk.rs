//! Decides nothing: a machine with a client on it, on which the driver runs what an operator would do.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use billing_client::Client;
use tokio::sync::mpsc;

use super::{Machine, endpoints};

const JOBS_QUEUED_MAX: usize = 1_024;

pub type DeskJob = Box<dyn FnOnce(Client) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

pub struct Desk {
    pub machine: Machine,
    nodes: u64,
    jobs: Mutex<Option<mpsc::Sender<DeskJob>>>,
}

impl Desk {
    pub fn new(machine: Machine, nodes: u64) -> Desk {
        Desk {
            machine,
            nodes,
            jobs: Mutex::default(),
        }
    }

    /// Runs `job` there. False while nobody takes jobs.
    pub fn give(&self, job: DeskJob) -> bool {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.as_ref().is_some_and(|jobs| jobs.try_send(job).is_ok())
    }

    pub async fn run(self: Arc<Desk>) -> turmoil::Result {
        let client = Client::builder()
            .endpoints(endpoints(self.nodes))
            .env(self.machine.env())
            .build()?;
        let (sender, mut jobs) = mpsc::channel(JOBS_QUEUED_MAX);
        *self.jobs.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        while let Some(job) = jobs.recv().await {
            tokio::task::spawn_local(job(client.clone()));
        }
        Ok(())
    }
}
