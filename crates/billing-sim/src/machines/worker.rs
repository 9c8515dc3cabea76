//! Decides how a worker's process lives: the charge run, the gate and the client as `billing-worker` puts them together, for
//! as long as the machine lets it. A crash of it is a restart of the gate.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use billing_client::Client;
use billing_gate::{Gate, GateConfig};
use billing_worker::{Run, RunOptions, Stopper, Tally, Totals};

use super::{Machine, endpoints};

/// Between two processes of one worker, where one ended by itself.
const RESTART_AFTER: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub struct WorkerSettings {
    pub nodes: u64,
    pub session_ttl: Duration,
    pub concurrency: usize,
    pub gate: GateConfig,
    /// What the client allows for as the drift of clocks.
    pub drift: f64,
}

/// One worker's machine.
pub struct Worker {
    pub machine: Machine,
    settings: WorkerSettings,
    /// What the next process is given.
    gate: Mutex<GateConfig>,
    /// Of all its processes, the newest last.
    tallies: Mutex<Vec<Arc<Tally>>>,
}

impl Worker {
    pub fn new(machine: Machine, settings: WorkerSettings) -> Worker {
        Worker {
            machine,
            gate: Mutex::new(settings.gate.clone()),
            settings,
            tallies: Mutex::default(),
        }
    }

    /// The gate of its next process is set up like this.
    pub fn reconfigure(&self, gate: GateConfig) {
        *self.gate.lock().unwrap_or_else(PoisonError::into_inner) = gate;
    }

    fn gate_config(&self) -> GateConfig {
        self.gate
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// What its processes counted, each.
    pub fn totals(&self) -> Vec<Totals> {
        let tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        tallies.iter().map(|tally| tally.totals()).collect()
    }

    pub async fn run(self: Arc<Worker>) -> turmoil::Result {
        loop {
            let ended = self.live().await?;
            self.machine
                .record
                .note(format_args!("{} ended: {ended}", self.machine.name));
            tokio::time::sleep(RESTART_AFTER).await;
        }
    }

    async fn live(&self) -> Result<String, Box<dyn std::error::Error>> {
        let env = self.machine.env();
        let client = Client::builder()
            .endpoints(endpoints(self.settings.nodes))
            .env(env.clone())
            .drift(self.settings.drift)
            .build()?;
        let gate = Gate::new(env, self.gate_config())?;
        let tally = Arc::new(Tally::default());
        self.tallies
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(tally.clone());
        let options = RunOptions {
            holder: self.machine.name.clone(),
            session_ttl: self.settings.session_ttl,
            concurrency: self.settings.concurrency,
            until_empty: false,
            patience: Duration::from_secs(600),
            grace: Duration::from_secs(5),
        };
        let (_stopper, stop) = Stopper::new();
        Ok(
            match Run::new(client, Arc::new(gate), tally, options)
                .run(stop)
                .await
            {
                Ok(ending) => format!("{ending:?}"),
                Err(failure) => failure.to_string(),
            },
        )
    }
}
