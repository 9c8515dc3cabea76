//! Three nodes of the consensus half of `billingd`, on loopback, with real disks in temporary folders.

mod basics;
mod divergence;
mod endings;
mod failover;
mod folders;
mod forge;
mod harness;
mod membership;
mod restored;
mod silence;
mod snapshots;
mod time;
mod wires;
