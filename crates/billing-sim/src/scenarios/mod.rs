//! What is done to a cluster: one file each.

pub mod broken_disk;
pub mod copies;
pub mod cut_off_holder;
pub mod cut_off_worker;
pub mod duplicates;
pub mod flipped_bit;
pub mod half_cut;
pub mod long_outage;
pub mod lost_writes;
pub mod membership;
pub mod one_replica_wrong;
pub mod pace;
pub mod power_loss;
pub mod provider_changed;
mod queue;
mod raw;
pub mod repeated_claims;
pub mod restore;
pub mod rolled_back_folder;
pub mod smoke;
pub mod snapshot_install;
pub mod sole_send;
pub mod stale_words;
pub mod stalled_leader;
mod steps;
pub mod swarm;
pub mod swarm_changes;
pub mod swarm_restores;
pub mod truncation;
pub mod unheard_settlement;
pub mod unreadable_disk;
pub mod vote_then_power_loss;
pub mod webhook;
pub mod wiped_folder;

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

pub const ALL: [Scenario; 31] = [
    Scenario {
        name: "swarm",
        setting: swarm::setting,
        run: swarm::run,
    },
    Scenario {
        name: "swarm_changes",
        setting: swarm_changes::setting,
        run: swarm_changes::run,
    },
    Scenario {
        name: "swarm_restores",
        setting: swarm_restores::setting,
        run: swarm_restores::run,
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
    Scenario {
        name: "unreadable_disk",
        setting: unreadable_disk::setting,
        run: unreadable_disk::run,
    },
    Scenario {
        name: "flipped_bit",
        setting: flipped_bit::setting,
        run: flipped_bit::run,
    },
    Scenario {
        name: "wiped_folder",
        setting: wiped_folder::setting,
        run: wiped_folder::run,
    },
    Scenario {
        name: "rolled_back_folder",
        setting: rolled_back_folder::setting,
        run: rolled_back_folder::run,
    },
    Scenario {
        name: "membership",
        setting: membership::setting,
        run: membership::run,
    },
    Scenario {
        name: "snapshot_install",
        setting: snapshot_install::setting,
        run: snapshot_install::run,
    },
    Scenario {
        name: "duplicates",
        setting: duplicates::setting,
        run: duplicates::run,
    },
    Scenario {
        name: "one_replica_wrong",
        setting: one_replica_wrong::setting,
        run: one_replica_wrong::run,
    },
    Scenario {
        name: "truncation",
        setting: truncation::setting,
        run: truncation::run,
    },
    Scenario {
        name: "stalled_leader",
        setting: stalled_leader::setting,
        run: stalled_leader::run,
    },
    Scenario {
        name: "pace",
        setting: pace::setting,
        run: pace::run,
    },
    Scenario {
        name: "long_outage",
        setting: long_outage::setting,
        run: long_outage::run,
    },
    Scenario {
        name: "provider_changed",
        setting: provider_changed::setting,
        run: provider_changed::run,
    },
    Scenario {
        name: "restore",
        setting: restore::setting,
        run: restore::run,
    },
    Scenario {
        name: "sole_send",
        setting: sole_send::setting,
        run: sole_send::run,
    },
    Scenario {
        name: "cut_off_worker",
        setting: cut_off_worker::setting,
        run: cut_off_worker::run,
    },
    Scenario {
        name: "cut_off_holder",
        setting: cut_off_holder::setting,
        run: cut_off_holder::run,
    },
    Scenario {
        name: "vote_then_power_loss",
        setting: vote_then_power_loss::setting,
        run: vote_then_power_loss::run,
    },
    Scenario {
        name: "power_loss",
        setting: power_loss::setting,
        run: power_loss::run,
    },
    Scenario {
        name: "lost_writes",
        setting: lost_writes::setting,
        run: lost_writes::run,
    },
    Scenario {
        name: "stale_words",
        setting: stale_words::setting,
        run: stale_words::run,
    },
    Scenario {
        name: "copies",
        setting: nodes_only,
        run: copies::run,
    },
    Scenario {
        name: "half_cut",
        setting: half_cut::setting,
        run: half_cut::run,
    },
    Scenario {
        name: "webhook",
        setting: webhook::setting,
        run: webhook::run,
    },
    Scenario {
        name: "repeated_claims",
        setting: repeated_claims::setting,
        run: repeated_claims::run,
    },
    Scenario {
        name: "unheard_settlement",
        setting: unheard_settlement::setting,
        run: unheard_settlement::run,
    },
];
