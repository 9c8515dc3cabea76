//! A node votes and loses power right then, before it has heard anything from the leader that it elected. It comes back, and
//! somebody else stands for the same term, who never heard of that election. It has voted in that term: it remembers, and does
//! not vote a second time for a lower candidate. Otherwise two leaders of one term would each find a majority, and what the lower one
//! had acknowledged would be overwritten when the greater one is back.

use std::time::Duration;

use anyhow::{Result, ensure};
use billing_server::node::Role;

use super::steps::{all_but, end_well, insist, pick, writes};
use crate::chance::Chance;
use crate::machines::node_name;
use crate::world::{Setting, World};

const ROUNDS: u64 = 4;
const ELECTED_WITHIN: Duration = Duration::from_secs(3);
/// A greater node may be elected over a lower one within a term, never the other way: so the first one is the greatest.
const FIRST: u64 = 3;

pub fn setting(_: &Chance) -> Setting {
    Setting::default()
}

pub fn run(world: &mut World) -> Result<()> {
    world.bootstrapped()?;
    let mut told = 0;
    for _ in 0..ROUNDS {
        told += u64::from(one_round(world)?);
    }
    ensure!(
        told > 0,
        "nobody lost power between its vote and the first entry: this proves nothing"
    );
    end_well(world)
}

/// Whether it came to the story.
fn one_round(world: &mut World) -> Result<bool> {
    let all: Vec<u64> = world.hosts.keys().copied().collect();
    let lower = all_but(world, &[FIRST]);
    world.leader(&all)?;
    writes(world, 2)?;
    let voter = pick(world, &lower)?;
    insist(world, "transfer the leadership", move |client| async move {
        client.transfer_leader(Some(voter)).await
    })?;
    world.until("it leads", |world| leads(world, voter))?;
    ensure!(world.leader(&all)? == voter, "node {voter} does not lead");
    writes(world, 1)?;
    world.settled()?;
    let term = term(world, voter);
    let other = all_but(world, &[FIRST, voter])[0];
    let names = [FIRST, voter, other].map(node_name);
    let [first_name, voter_name, other_name] = &names;
    world
        .network()
        .partition(first_name.as_str(), other_name.as_str());
    // The greatest node stands, the one that leads votes for it, and the third never hears of it.
    drop(
        world.desk_begin(
            |client| async move { client.transfer_leader(Some(FIRST)).await.is_ok() },
        )?,
    );
    let deadline = world.elapsed() + ELECTED_WITHIN;
    while self::term(world, voter) <= term && world.elapsed() < deadline {
        world.step()?;
    }
    // Its vote is on the way; nothing from the one that it elects will reach it.
    world
        .network()
        .partition_oneway(first_name.as_str(), voter_name.as_str());
    while !leads(world, FIRST) && world.elapsed() < deadline {
        world.step()?;
    }
    let elected = leads(world, FIRST) && self::term(world, FIRST) == term + 1;
    world.crash(voter)?;
    world
        .network()
        .partition(first_name.as_str(), voter_name.as_str());
    world.note(format_args!(
        "node {voter} voted for node {FIRST} and lost power; elected in the next term: {elected}"
    ));
    let down = world.chance.between_ms(0, 200);
    world.pass(down)?;
    world.restart(voter);
    world.leader(&lower)?;
    writes(world, 3)?;
    world.note(format_args!("node {FIRST} is back"));
    for name in [voter_name, other_name] {
        world.network().repair(first_name.as_str(), name.as_str());
    }
    world.leader(&all)?;
    writes(world, 1)?;
    world.settled()?;
    Ok(elected)
}

fn term(world: &World, id: u64) -> u64 {
    world.status(id).map_or(0, |status| status.term)
}

fn leads(world: &World, id: u64) -> bool {
    let status = world.status(id);
    status.is_some_and(|status| status.role == Role::Leader)
}
