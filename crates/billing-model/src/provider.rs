//! What the provider does with a request, and what it forgets. It knows no token, no lease and no `not_after`.

use crate::config::Keys;
use crate::model::Money;
use crate::state::{Doing, Memory, NONE, Object, Send, State, Worker, stage};

/// What the answer says, if it is heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    Yes,
    No,
    /// Neither: an error.
    Unclear,
}

impl Money {
    /// Carries a request out. `approves`: what the card's bank says, where it is asked. None: the bank is not asked, and
    /// would approve as well as not; counted once.
    fn carry_out(&self, after: &mut State, send: Send, approves: bool) -> Option<Answered> {
        let config = &self.config;
        let key = self.key_of(send.opening);
        let asked = match after.memory[key] {
            Memory::Yes(_) => Some(Answered::Yes),
            Memory::No(_) => Some(Answered::No),
            Memory::Nothing if send.object == NONE => None,
            Memory::Nothing => match after.objects[usize::from(send.object)] {
                Object::Succeeded => Some(Answered::Yes),
                Object::Cancelled | Object::Absent => Some(Answered::Unclear),
                Object::Confirmable => None,
            },
        };
        if let Some(answered) = asked {
            return approves.then_some(answered);
        }
        if approves {
            after.charged |= 1 << key;
            after.charges = after.charges.saturating_add(1);
            if send.object != NONE {
                after.objects[usize::from(send.object)] = Object::Succeeded;
            }
        }
        if config.keys != Keys::Ignored && (approves || config.sticky) {
            after.memory[key] = if approves {
                Memory::Yes(send.opening)
            } else {
                Memory::No(send.opening)
            };
        }
        Some(if approves {
            Answered::Yes
        } else {
            Answered::No
        })
    }

    /// A request arrives, and its answer is heard. A charge that was heard is reported in its own time.
    pub fn answer(&self, before: &State, worker: u8, approves: bool) -> Option<State> {
        let at = usize::from(worker);
        let request = before.workers[at].request()?;
        let mut after = *before;
        let answered = self.carry_out(&mut after, request, approves)?;
        let who = &mut after.workers[at];
        who.late = false;
        match answered {
            Answered::Yes => *who = Worker::default(),
            Answered::No => who.doing = Doing::HeardNo,
            Answered::Unclear => who.doing = Doing::Doubt,
        }
        Some(after)
    }

    /// A request arrives that nobody waits for.
    pub fn land(&self, before: &State, which: u8, approves: bool) -> Option<State> {
        let at = usize::from(which);
        let send = before.loose[at];
        if send == Send::GONE {
            return None;
        }
        let mut after = *before;
        self.carry_out(&mut after, send, approves)?;
        after.loose[at] = Send::GONE;
        Some(after)
    }

    /// The provider forgets a key when its retention is over, or earlier if it is one that does.
    pub fn key_forgotten(&self, before: &State, key: u8) -> Option<State> {
        let at = usize::from(key);
        let (Memory::Yes(first) | Memory::No(first)) = before.memory[at] else {
            return None;
        };
        let may = match self.config.keys {
            Keys::Ignored | Keys::Forever => false,
            Keys::UntilQuiet => before.stages[usize::from(first)] == stage::QUIET,
            Keys::Unreliable => true,
        };
        let mut after = *before;
        after.memory[at] = Memory::Nothing;
        may.then_some(after)
    }

    pub fn create_forgotten(&self, before: &State, key: u8) -> Option<State> {
        let at = usize::from(key);
        if !self.config.creates_forgotten || before.creates[at] == NONE {
            return None;
        }
        let mut after = *before;
        after.creates[at] = NONE;
        Some(after)
    }

    /// Somebody cancels an unpaid object: for good.
    pub fn cancel_object(&self, before: &State, object: u8) -> Option<State> {
        let at = usize::from(object);
        if !self.config.cancels || before.objects[at] != Object::Confirmable {
            return None;
        }
        let mut after = *before;
        after.objects[at] = Object::Cancelled;
        Some(after)
    }
}
