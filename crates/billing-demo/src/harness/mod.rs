//! Real processes on this machine, as the demo and the process tests start, signal and end them.
//! Decides where binaries, ports and folders are; knows nothing of invoices.

mod cluster;
mod ports;
mod process;

pub use cluster::{Cluster, ClusterOptions, Home, NodeView};
pub use ports::free_ports;
pub use process::{Output, Process, Signal, binary};
