//! What a gate does: creates, sends, waits, gives up, looks up, forgets. It may stall between any two of these. It reads no lease
//! before it sends: that check is politeness, and a search must do without it.

use crate::config::Rule;
use crate::model::Money;
use crate::state::{Doing, LOOSE_MAX, NONE, Object, Send, State, Worker, stage};

impl State {
    /// Nobody waits for it any more. Beyond the bound it never arrives, which may happen to any request.
    fn set_loose(&mut self, send: Send, max: u8) {
        let bound = LOOSE_MAX.min(usize::from(max));
        if let Some(free) = self.loose[..bound]
            .iter_mut()
            .find(|slot| **slot == Send::GONE)
        {
            *free = send;
        }
    }
}

impl Worker {
    /// The request that it waits for.
    pub fn request(&self) -> Option<Send> {
        (self.doing == Doing::Waiting).then_some(Send {
            opening: self.opening,
            object: self.object,
            late: self.late,
        })
    }
}

impl Money {
    /// Makes an object under the attempt's create key: the same one again, as long as the provider remembers.
    pub fn create(&self, before: &State, worker: u8) -> Option<State> {
        let who = before.workers[usize::from(worker)];
        let ready = self.config.objects && who.doing == Doing::Begun && who.object == NONE;
        if !ready || !self.may_send(before, &who) {
            return None;
        }
        let mut after = *before;
        let key = self.key_of(who.opening);
        let object = match before.creates[key] {
            NONE => {
                let free = before
                    .objects
                    .iter()
                    .position(|object| *object == Object::Absent)?;
                after.objects[free] = Object::Confirmable;
                after.creates[key] = free as u8;
                free as u8
            }
            known => known,
        };
        let who = &mut after.workers[usize::from(worker)];
        who.object = object;
        who.doing = Doing::Created;
        Some(after)
    }

    /// The check has passed; from here on the request may take any time.
    pub fn send(&self, before: &State, worker: u8) -> Option<State> {
        let who = before.workers[usize::from(worker)];
        let ready = matches!(who.doing, Doing::Begun | Doing::Doubt)
            && (!self.config.objects || who.object != NONE);
        if !ready || !self.may_send(before, &who) {
            return None;
        }
        let mut after = *before;
        let late = self.config.late_sends || before.stages[usize::from(who.opening)] != stage::OPEN;
        let who = &mut after.workers[usize::from(worker)];
        who.doing = Doing::Waiting;
        // One, or more than one: nothing asks for more.
        who.sends = (who.sends + 1).min(2);
        who.late = late;
        Some(after)
    }

    /// Waits no longer, or the answer was lost.
    pub fn give_up(&self, before: &State, worker: u8) -> Option<State> {
        let mut after = *before;
        let who = &mut after.workers[usize::from(worker)];
        let request = who.request()?;
        who.doing = Doing::Doubt;
        who.late = false;
        after.set_loose(request, self.config.loose_max);
        Some(after)
    }

    /// The provider's books show nothing, yet: before the attempt is quiet the answer may be an old one.
    pub fn look_up(&self, before: &State, worker: u8) -> Option<State> {
        let who = before.workers[usize::from(worker)];
        let free = matches!(who.doing, Doing::Leased | Doing::Begun | Doing::Doubt);
        if !self.config.look_up || !free || !who.current {
            return None;
        }
        let opening = before.live_opening()?;
        if !self.shows_nothing(before, opening) {
            return None;
        }
        let mut after = *before;
        after.workers[usize::from(worker)] = Worker {
            doing: Doing::SawNothing,
            current: true,
            opening: opening as u8,
            ..Worker::default()
        };
        Some(after)
    }

    /// What somebody may see who looks now.
    pub fn shows_nothing(&self, state: &State, opening: usize) -> bool {
        if self.config.timeless() || state.stages[opening] != stage::QUIET {
            return true;
        }
        if self.config.objects {
            let object = state.ledger.standing_object();
            return object
                .is_none_or(|object| state.objects[usize::from(object)] == Object::Confirmable);
        }
        state.charged & (1 << self.key_of(opening as u8)) == 0
    }

    /// A second gate works under a lease that another one was given: it has the same token.
    pub fn second_gate(&self, before: &State, worker: u8) -> Option<State> {
        let at = usize::from(worker);
        let idle = before.workers[at].doing == Doing::Idle;
        if !self.config.second_gates || !idle || !before.ledger.leased {
            return None;
        }
        let mut after = *before;
        let opener = before.workers.iter().find(|who| who.current && who.opened);
        after.workers[at] = Worker {
            doing: Doing::Leased,
            current: true,
            opening: opener.map_or(NONE, |who| who.opening),
            opened: opener.is_some(),
            ..Worker::default()
        };
        Some(after)
    }

    /// The gate starts again under the same lease, and forgets that it sent; what it sent stays on the way.
    pub fn restart(&self, before: &State, worker: u8) -> Option<State> {
        let who = before.workers[usize::from(worker)];
        let nothing_to_forget = matches!(who.doing, Doing::Idle | Doing::Leased);
        if !self.config.restarts || !who.current || nothing_to_forget {
            return None;
        }
        let mut after = *before;
        after.workers[usize::from(worker)] = Worker {
            doing: Doing::Leased,
            current: true,
            opening: if who.opened { who.opening } else { NONE },
            opened: who.opened,
            ..Worker::default()
        };
        if let Some(request) = who.request() {
            after.set_loose(request, self.config.loose_max);
        }
        Some(after)
    }

    /// A worker whose lease has ended drops everything. One that holds a lease dies by the lease's end.
    pub fn dies(&self, before: &State, worker: u8) -> Option<State> {
        let who = before.workers[usize::from(worker)];
        if who.doing == Doing::Idle || who.current {
            return None;
        }
        let mut after = *before;
        after.workers[usize::from(worker)] = Worker::default();
        Some(after)
    }

    /// True time. What was sent in time arrives before the attempt is quiet, or never.
    pub fn time_passes(&self, before: &State, opening: u8) -> Option<State> {
        let at = usize::from(opening);
        // Attempts have equal terms: an earlier one's time passes first.
        let in_order = before.stages[..at]
            .iter()
            .all(|earlier| *earlier > before.stages[at]);
        if before.stages[at] == stage::QUIET || !in_order {
            return None;
        }
        let mut after = *before;
        after.stages[at] += 1;
        if after.stages[at] == stage::QUIET {
            for send in &mut after.loose {
                if send.opening == opening && !send.late {
                    *send = Send::GONE;
                }
            }
            for who in &mut after.workers {
                if who.doing == Doing::Waiting && who.opening == opening && !who.late {
                    who.doing = Doing::Doubt;
                }
            }
        }
        if !self.config.cluster_lags() && before.live_opening() == Some(at) {
            after.ledger.cluster = after.stages[at];
        }
        Some(after)
    }

    /// ClusterTime goes on where it stood still, or where a backup had it.
    pub fn cluster_time_moves(&self, before: &State) -> Option<State> {
        let opening = before.live_opening()?;
        if !self.config.cluster_lags() || before.ledger.cluster >= before.stages[opening] {
            return None;
        }
        let mut after = *before;
        after.ledger.cluster += 1;
        Some(after)
    }

    /// Whether a token of the past may come to life again.
    pub fn old_tokens_live(&self) -> bool {
        self.config.restore && !self.config.has(Rule::TokensJump)
    }
}
