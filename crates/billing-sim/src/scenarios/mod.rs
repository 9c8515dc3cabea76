//! What is done to a cluster: one file each.

pub mod broken_disk;
pub mod smoke;
pub mod swarm;

use anyhow::Result;

use crate::chance::Chance;
use crate::world::{Setting, World};

/// One scenario and the world that it wants.
pub struct Scenario {
    pub name: &'static str,
    pub setting: fn(&Chance) -> Setting,
    pub run: fn(&mut World) -> Result<()>,
}

fn nodes_only(_: &Chance) -> Setting {
    Setting::default()
}

pub const ALL: [Scenario; 3] = [
    Scenario {
        name: "swarm",
        setting: swarm::setting,
        run: swarm::run,
    },
    Scenario {
        name: "smoke",
        setting: nodes_only,
        run: smoke::run,
    },
    Scenario {
        name: "broken_disk",
        setting: nodes_only,
        run: broken_disk::run,
    },
];
