//! Real processes on this machine, as the demo and the process tests start, signal and end them.
//! Decides where binaries, ports and folders are; knows nothing of invoices.

mod cluster;
mod lan;
mod mounts;
mod ports;
mod process;
mod provider;
mod tap;
mod until;

pub use cluster::{Cluster, ClusterOptions, Home, NodeView};
pub use lan::Lan;
pub use mounts::{mount, private_mounts};
pub use ports::free_ports;
pub use process::{Output, Process, Signal, binary};
pub use provider::Provider;
pub use tap::{Tap, Way};
pub use until::until;
