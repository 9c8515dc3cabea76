//! What is done to a cluster: one file each.

pub mod broken_disk;
pub mod smoke;

use anyhow::Result;

use crate::world::World;

/// One scenario and how many machines it wants.
pub struct Scenario {
    pub name: &'static str,
    pub nodes: u64,
    pub run: fn(&mut World) -> Result<()>,
}

pub const ALL: [Scenario; 2] = [
    Scenario {
        name: "smoke",
        nodes: 3,
        run: smoke::run,
    },
    Scenario {
        name: "broken_disk",
        nodes: 3,
        run: broken_disk::run,
    },
];
