//! What is done to a cluster: one file each.

pub mod smoke;

use anyhow::Result;

use crate::world::World;

/// One scenario and how many machines it wants.
pub struct Scenario {
    pub name: &'static str,
    pub nodes: u64,
    pub run: fn(&mut World) -> Result<()>,
}

pub const ALL: [Scenario; 1] = [Scenario {
    name: "smoke",
    nodes: 3,
    run: smoke::run,
}];
