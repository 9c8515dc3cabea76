//! The machines of a simulated world, one file for each kind: what runs on them is the product's own code. Decides what a
//! machine has and what a process on it gets; never what is done to it.

pub mod caller;
pub mod desk;
pub mod node;
pub mod provider;
pub mod worker;

use std::sync::Arc;

use billing_env::Env;

use crate::chance::Chance;
use crate::clock::SimClock;
use crate::net::SimNet;
use crate::pauses::Pauses;
use crate::record::Record;

pub const RAFT_PORT: u16 = 7201;
pub const CLIENT_PORT: u16 = 7101;
pub const PROVIDER_PORT: u16 = 7301;
pub const PROVIDER: &str = "provider";
pub const DESK: &str = "desk";

pub fn node_name(id: u64) -> String {
    format!("node-{id}")
}

pub fn worker_name(number: u64) -> String {
    format!("worker-{number}")
}

pub fn caller_name(number: u64) -> String {
    format!("caller-{number}")
}

/// Where clients find the founding nodes.
pub fn endpoints(nodes: u64) -> Vec<String> {
    (1..=nodes)
        .map(|id| format!("{}:{CLIENT_PORT}", node_name(id)))
        .collect()
}

/// What every machine has, and what outlives its processes.
#[derive(Clone)]
pub struct Machine {
    pub name: String,
    pub clock: SimClock,
    pub pauses: Pauses,
    pub chance: Arc<Chance>,
    pub record: Record,
}

impl Machine {
    pub fn new(name: String, seed: u64, rate_ppm: i64, record: Record) -> Machine {
        let chance = Arc::new(Chance::new(seed, &name));
        Machine {
            clock: SimClock::new(rate_ppm),
            pauses: Pauses::new(name.clone(), record.clone()),
            name,
            chance,
            record,
        }
    }

    /// The world as a process on this machine sees it.
    pub fn env(&self) -> Env {
        Env {
            clock: Arc::new(self.clock.clone()),
            net: Arc::new(SimNet(self.clock.clone())),
            random: self.chance.clone(),
            pauses: Arc::new(self.pauses.clone()),
        }
    }
}
