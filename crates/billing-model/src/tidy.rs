//! Drops what can have no effect any more, so that states which differ in nothing else are one. Each line here must be an
//! equivalence: a wrong one would hide states. `tests/equivalence.rs` searches with and without it and compares.

use crate::config::{Keys, Rule};
use crate::model::Money;
use crate::state::{
    Attempt, Doing, Memory, NONE, NUMBERS, OBJECTS, OPENINGS, Object, Send, State, Worker, stage,
};

impl Money {
    /// The state without what can have no effect any more.
    pub fn tidy(&self, state: &mut State) {
        for at in 0..state.workers.len() {
            let who = state.workers[at];
            if self.is_idle(state, &who) {
                state.workers[at] = Worker::default();
            } else if !self.config.counts_senders() {
                state.workers[at].opened = false;
                state.workers[at].alone = false;
                state.workers[at].sends = 0;
                if who.doing == Doing::Doubt {
                    // It may send again, as one may that has not sent yet.
                    state.workers[at].doing = Doing::Begun;
                }
                if who.doing == Doing::Leased {
                    state.workers[at].opening = NONE;
                }
            }
        }
        self.tidy_ledger(state);
        self.tidy_provider(state);
        for opening in 0..OPENINGS {
            if !self.time_matters(state, opening as u8) {
                state.stages[opening] = stage::QUIET;
            }
        }
        state.loose.sort_unstable();
    }

    /// A worker without a current token that can send nothing is refused whatever it tries.
    fn is_idle(&self, state: &State, who: &Worker) -> bool {
        let config = &self.config;
        if who.current || self.old_tokens_live() {
            return false;
        }
        match who.doing {
            Doing::Idle => true,
            Doing::Leased => config.has(Rule::BeginNeedsToken),
            Doing::Created => config.has(Rule::AttachNeedsToken),
            Doing::HeardNo => config.has(Rule::DeclineNeedsToken),
            Doing::SawNothing => config.has(Rule::LookUpNeedsToken),
            Doing::Waiting => false,
            Doing::Begun | Doing::Doubt => {
                let without_object =
                    config.objects && who.object == NONE && config.has(Rule::AttachNeedsToken);
                without_object || !self.may_send(state, who)
            }
        }
    }

    fn tidy_ledger(&self, state: &mut State) {
        let counts = self.config.counts_senders();
        for ledger in [Some(&mut state.ledger), state.backup.as_mut()]
            .into_iter()
            .flatten()
        {
            let live = ledger.live();
            if live.is_none() || !counts {
                ledger.taken = false;
            }
            if live.is_none() || self.config.timeless() {
                ledger.fresh = false;
                ledger.cluster = stage::OPEN;
            }
            for number in 0..NUMBERS {
                if ledger.attempts[number] == Attempt::Unused {
                    ledger.openings[number] = number as u8;
                }
            }
        }
        if state.restored {
            state.backup = None;
        }
        if state.live_opening().map(|opening| opening as u8) != Some(state.glance) {
            state.glance = NONE;
        }
    }

    fn tidy_provider(&self, state: &mut State) {
        for key in 0..OPENINGS {
            if self.key_matters(state, key) {
                continue;
            }
            state.memory[key] = Memory::Nothing;
            state.creates[key] = NONE;
        }
        for object in 0..OBJECTS {
            let unpaid = matches!(
                state.objects[object],
                Object::Confirmable | Object::Cancelled
            );
            if unpaid && !refers_to_object(state, object as u8) {
                state.objects[object] = Object::Absent;
            }
        }
        if self.config.keys == Keys::Ignored {
            state.memory = [Memory::Nothing; OPENINGS];
        }
    }

    /// Whether anything may be sent under this key, now or after it is issued (again).
    fn key_matters(&self, state: &State, key: usize) -> bool {
        let again = self.config.restore && !state.restored;
        let issued_later = (0..NUMBERS).any(|number| {
            let opening = if state.restored {
                number + NUMBERS
            } else {
                number
            } as u8;
            state.ledger.attempts[number] == Attempt::Unused && self.key_of(opening) == key
        });
        let live = state
            .ledger
            .live_all()
            .any(|number| self.key_of(state.ledger.openings[number]) == key);
        again || issued_later || live || uses(state, |opening| self.key_of(opening) == key)
    }

    /// Whether it makes a difference how far time has come for this opening.
    fn time_matters(&self, state: &State, opening: u8) -> bool {
        if self.config.timeless() {
            return false;
        }
        let live = |ledger: &crate::state::Ledger| {
            ledger
                .live_all()
                .any(|number| ledger.openings[number] == opening)
        };
        let remembered = self.config.keys == Keys::UntilQuiet
            && state.memory.iter().any(|memory| matches!(memory, Memory::Yes(first) | Memory::No(first) if *first == opening));
        live(&state.ledger)
            || state.backup.as_ref().is_some_and(live)
            || remembered
            || uses(state, |used| used == opening)
    }
}

/// Whether a worker or a request on the way is at work on such an opening.
fn uses(state: &State, such: impl Fn(u8) -> bool) -> bool {
    let worker = state
        .workers
        .iter()
        .any(|who| who.opening != NONE && such(who.opening));
    worker
        || state
            .loose
            .iter()
            .any(|send| *send != Send::GONE && such(send.opening))
}

fn refers_to_object(state: &State, object: u8) -> bool {
    state.ledger.object == object
        || state.backup.is_some_and(|backup| backup.object == object)
        || state.workers.iter().any(|who| who.object == object)
        || state.loose.iter().any(|send| send.object == object)
        || state.creates.contains(&object)
}
