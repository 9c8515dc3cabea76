//! The swarm with operators at work in the middle of it: members are added, replaced and removed while faults come and go.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::sync::oneshot;

use super::membership::{gone, leaving};
use super::steps::{begin_add, begin_promote, begin_remove, done, fresh_id};
use super::swarm::{self, Rough};
use crate::chance::Chance;
use crate::faults::Kind;
use crate::world::{Setting, World};

pub fn setting(chance: &Chance) -> Setting {
    Setting {
        // Members come and go here.
        nodes: 3,
        ..swarm::setting(chance)
    }
}

pub fn run(world: &mut World) -> Result<()> {
    let mut rough = Rough::begin(world)?;
    rough.submit_due_at_once();
    rough.perhaps_also(world, Kind::ReadsFail);
    let mut changes = Changes::default();
    some_time(world, &mut rough, &mut changes)?;
    some_time(world, &mut rough, &mut changes)?;
    swarm::end(world)
}

/// Faults and changes, and then calm: what was begun is brought to its end.
fn some_time(world: &mut World, rough: &mut Rough, changes: &mut Changes) -> Result<()> {
    let lasts = world.chance.between_ms(15_000, 40_000);
    rough.go_on(world, lasts, |world| changes.go_on(world))?;
    rough.calm(world)?;
    changes.finish(world)
}

/// What the members are to become, step by step as an operator would: a learner is added, it starts, it gets its vote, and
/// with that another one's place; whoever is removed ends by itself.
#[derive(Default)]
struct Changes {
    under_way: Option<Change>,
    /// Not before.
    next: Duration,
    /// Members no more, as far as the desk knows; each must end by itself.
    leaving: Vec<u64>,
}

struct Change {
    what: &'static str,
    job: oneshot::Receiver<()>,
    then: Then,
}

#[derive(Debug, Clone, Copy)]
enum Then {
    Start { fresh: u64, replaces: Option<u64> },
    Promoted,
    Removed,
}

impl Changes {
    /// Begins the next change when it is time, and the next step of one where the last is done.
    fn go_on(&mut self, world: &mut World) -> Result<()> {
        // Whoever repaired its disk did not know.
        world.may_end.extend(&self.leaving);
        match self.under_way.take() {
            None if world.elapsed() >= self.next => self.begin(world),
            None => Ok(()),
            Some(mut change) => match change.job.try_recv() {
                Ok(()) => self.step_done(world, change.what, change.then),
                Err(_) => {
                    self.under_way = Some(change);
                    Ok(())
                }
            },
        }
    }

    fn pause(&mut self, world: &World) {
        self.next = world.elapsed() + world.chance.between_ms(1_000, 15_000);
    }

    fn begin(&mut self, world: &mut World) -> Result<()> {
        let voters = self.voters(world);
        let victim = leaving(world, &voters, world.leads_now())?;
        let remove = voters.len() > 3 && world.chance.below(2) == 0;
        let change = if remove {
            self.leaving.push(victim);
            world.may_end.insert(victim);
            Change {
                what: "remove a member",
                job: begin_remove(world, victim)?,
                then: Then::Removed,
            }
        } else {
            let fresh = fresh_id(world);
            let replaces = (voters.len() > 3 || world.chance.below(2) == 0).then_some(victim);
            Change {
                what: "add a learner",
                job: begin_add(world, fresh)?,
                then: Then::Start { fresh, replaces },
            }
        };
        world.note(format_args!(
            "somebody wants to {}: {:?}",
            change.what, change.then
        ));
        self.under_way = Some(change);
        Ok(())
    }

    fn voters(&self, world: &World) -> Vec<u64> {
        let members = world.hosts.keys().copied();
        members.filter(|id| !self.leaving.contains(id)).collect()
    }

    fn step_done(&mut self, world: &mut World, what: &str, then: Then) -> Result<()> {
        world.note(format_args!("done: {what}"));
        match then {
            Then::Start { fresh, replaces } => {
                world.add_node(fresh);
                world.note(format_args!("node {fresh} joins"));
                if let Some(victim) = replaces {
                    self.leaving.push(victim);
                    world.may_end.insert(victim);
                }
                self.under_way = Some(Change {
                    what: "promote a member",
                    job: begin_promote(world, fresh, replaces)?,
                    then: Then::Promoted,
                });
            }
            Then::Promoted | Then::Removed => self.pause(world),
        }
        Ok(())
    }

    /// After the faults: what is under way comes to its end, whoever left is gone, and the others are the members.
    fn finish(&mut self, world: &mut World) -> Result<()> {
        world.may_end.extend(&self.leaving);
        while let Some(Change { what, job, then }) = self.under_way.take() {
            done(world, what, job)?;
            self.step_done(world, what, then)?;
        }
        for victim in std::mem::take(&mut self.leaving) {
            gone(world, victim)?;
        }
        let voters: Vec<u64> = world.hosts.keys().copied().collect();
        ensure!(voters.len() >= 3, "{voters:?} are left");
        world.leader(&voters)?;
        self.pause(world);
        Ok(())
    }
}
