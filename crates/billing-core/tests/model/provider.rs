//! A payment provider in the small: remembers keys or objects as its profile says, delivers what was sent when it likes, and
//! keeps books. Decides whether money moved; knows nothing of the ledger.

use std::collections::BTreeMap;
use std::sync::Arc;

use billing_core::*;

use crate::deck::terms;
use crate::dice::Dice;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Keeps every answer under its key.
    Sticky,
    /// Keeps what succeeded; a declined key may succeed later.
    Loose,
    /// Ignores keys.
    Keyless,
    /// Single-use objects; a decline leaves them confirmable. Keys are forgotten at once, sends live for ever.
    Objects,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ObjectState {
    Ready,
    Succeeded,
    Cancelled,
}

/// Which run of which gate waits for the reply.
pub type Caller = (usize, u64);

pub struct Send {
    pub key: IdempotencyKey,
    pub object: Option<ObjectId>,
    pub arrives_at: u64,
    pub caller: Caller,
}

/// What the provider answered to one send. `charged` None: an error that says nothing.
pub struct Reply {
    pub caller: Caller,
    pub key: IdempotencyKey,
    pub charged: Option<bool>,
    pub moved: Option<Movement>,
}

#[derive(Clone)]
pub struct Movement {
    pub key: IdempotencyKey,
    pub reference: Reference,
    pub visible_at: u64,
}

pub struct Provider {
    pub profile: Profile,
    pub terms: Arc<Terms>,
    /// True time for which a key is honoured, from its first use. Never shorter than the longest send needs.
    keeps_ms: Option<u64>,
    lag_max: u64,
    declines: u64,
    stored: BTreeMap<String, (bool, u64)>,
    objects: BTreeMap<ObjectId, ObjectState>,
    made: u64,
    pub flight: Vec<Send>,
    pub moved: Vec<Movement>,
    twice: Option<InvoiceId>,
}

impl Provider {
    pub fn new(dice: &mut Dice, profile: Profile, keeps_forever: bool) -> Self {
        let valid_for = *dice.pick(&[1_000, 5_000, 15_000, 60_000]);
        let in_flight = *dice.pick(&[0, 800, 4_000, 10_000]);
        let can_look_up = profile == Profile::Loose || dice.percent(60);
        let sticky = profile == Profile::Sticky;
        Self {
            profile,
            terms: terms(
                "stripe",
                "acct-1",
                true,
                b"a",
                (valid_for, in_flight),
                (can_look_up, sticky),
            ),
            keeps_ms: (!keeps_forever).then_some(valid_for + in_flight + 1),
            lag_max: in_flight / 2,
            declines: dice.between(20, 60),
            stored: BTreeMap::new(),
            objects: BTreeMap::new(),
            made: 0,
            flight: Vec::new(),
            moved: Vec::new(),
            twice: None,
        }
    }

    /// Takes a confirm on its way: it arrives within `in_flight_max` less the look-up's lag, or, for objects, whenever.
    pub fn send(
        &mut self,
        dice: &mut Dice,
        now: u64,
        key: IdempotencyKey,
        object: Option<ObjectId>,
        caller: Caller,
    ) {
        if dice.percent(8) {
            return; // Lost on its way.
        }
        let most = self.terms.in_flight_max.get() - self.lag_max;
        let takes = match (self.profile, dice.below(3)) {
            (Profile::Objects, 0) => dice.between(0, 200_000),
            (_, 1) => most,
            _ => dice.between(0, most.min(50)),
        };
        self.flight.push(Send {
            key,
            object,
            arrives_at: now + takes,
            caller,
        });
    }

    /// What arrives by now, and is answered at once.
    pub fn deliver(&mut self, dice: &mut Dice, now: u64) -> Vec<Reply> {
        let (mut due, flying): (Vec<Send>, Vec<Send>) = std::mem::take(&mut self.flight)
            .into_iter()
            .partition(|send| send.arrives_at <= now);
        self.flight = flying;
        due.sort_by_key(|send| send.arrives_at);
        due.into_iter()
            .map(|send| {
                let (charged, moved) = self.process(dice, &send);
                Reply {
                    caller: send.caller,
                    key: send.key,
                    charged,
                    moved,
                }
            })
            .collect()
    }

    fn process(&mut self, dice: &mut Dice, send: &Send) -> (Option<bool>, Option<Movement>) {
        let at = send.arrives_at;
        if self.profile == Profile::Objects {
            let Some(state) = send
                .object
                .as_ref()
                .and_then(|object| self.objects.get_mut(object))
            else {
                return (None, None);
            };
            return match *state {
                ObjectState::Cancelled => (None, None),
                ObjectState::Succeeded => (Some(true), None),
                ObjectState::Ready if dice.below(100) < self.declines => (Some(false), None),
                ObjectState::Ready => {
                    *state = ObjectState::Succeeded;
                    let movement = self.book(dice, send, at);
                    (Some(true), Some(movement))
                }
            };
        }
        let text = send.key.to_string();
        let stored = self
            .stored
            .get(&text)
            .filter(|(_, first)| self.keeps_ms.is_none_or(|keeps| first + keeps > at))
            .map(|(charged, _)| *charged);
        if let Some(charged) = stored {
            return (Some(charged), None);
        }
        let charged = dice.below(100) >= self.declines;
        let kept = match self.profile {
            Profile::Sticky => true,
            Profile::Loose => charged,
            Profile::Keyless | Profile::Objects => false,
        };
        if kept {
            self.stored.insert(text, (charged, at));
        }
        let movement = charged.then(|| self.book(dice, send, at));
        (Some(charged), movement)
    }

    fn book(&mut self, dice: &mut Dice, send: &Send, at: u64) -> Movement {
        let name = match &send.object {
            Some(object) => object.to_string(),
            None => format!("ch-{}", self.moved.len()),
        };
        let movement = Movement {
            key: send.key.clone(),
            reference: Reference::new(&name).expect("short"),
            visible_at: at + dice.between(0, self.lag_max),
        };
        if self
            .moved
            .iter()
            .any(|moved| moved.key.invoice == send.key.invoice)
        {
            self.twice = Some(send.key.invoice.clone());
        }
        self.moved.push(movement.clone());
        movement
    }

    pub fn create(&mut self) -> ObjectId {
        self.made += 1;
        let object = ObjectId::new(&format!("pi-{}", self.made)).expect("short");
        self.objects.insert(object.clone(), ObjectState::Ready);
        object
    }

    /// Whether the object can never succeed any more; false: it has succeeded.
    pub fn cancel(&mut self, object: &ObjectId) -> bool {
        match self.objects.get_mut(object) {
            Some(ObjectState::Succeeded) | None => false,
            Some(state) => {
                *state = ObjectState::Cancelled;
                true
            }
        }
    }

    /// What the books show of a key by now, or of the object that it confirmed.
    pub fn look_up(
        &self,
        key: &IdempotencyKey,
        object: Option<&ObjectId>,
        now: u64,
    ) -> Option<Movement> {
        self.moved
            .iter()
            .find(|moved| {
                let same = moved.key == *key
                    || object.is_some_and(|object| object.as_str() == moved.reference.as_str());
                same && moved.visible_at <= now
            })
            .cloned()
    }

    /// The promise broken: an invoice that was charged twice.
    pub fn charged_twice(&self) -> Option<&InvoiceId> {
        self.twice.as_ref()
    }
}
