//! One invoice, everybody who works on it, and the provider's books: what a search tells apart. Holds no rule.
//!
//! Two kinds of states are told apart by nothing: those in which the workers have changed places (they are hashed in order, so
//! that a search visits one of them), and those that differ in what can have no effect any more (see `model::tidy`).

use std::hash::{Hash, Hasher};

pub const WORKERS: usize = 3;
/// Attempts of one ledger.
pub const NUMBERS: usize = 2;
/// Attempts that were ever opened: a restored ledger may open a number again. Number 1, 2, and again after the restore.
pub const OPENINGS: usize = 2 * NUMBERS;
pub const OBJECTS: usize = 3;
pub const LOOSE_MAX: usize = 3;

/// No opening, no object.
pub const NONE: u8 = u8::MAX;

/// How far true time has come for one opening.
pub mod stage {
    /// Before `not_after`.
    pub const OPEN: u8 = 0;
    /// `not_after` has passed; what was sent before may still arrive.
    pub const CLOSED: u8 = 1;
    /// `not_after` + `in_flight_max` has passed: what was sent in time has arrived, or never will.
    pub const QUIET: u8 = 2;
}

/// What a worker and its gate are doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Doing {
    #[default]
    Idle,
    /// Holds a token; has not begun, or has forgotten that it did.
    Leased,
    /// Knows the key. May create an object, or send.
    Begun,
    /// Has made an object, not attached yet.
    Created,
    /// Its request is on the way.
    Waiting,
    /// The answer was a decline.
    HeardNo,
    /// No answer came.
    Doubt,
    /// Has looked up, and nothing was there.
    SawNothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Worker {
    pub doing: Doing,
    /// Its token is the one that stands.
    pub current: bool,
    /// The opening it works on.
    pub opening: u8,
    /// Its token opened that one.
    pub opened: bool,
    /// BeginCharge told its gate that nobody took the attempt over.
    pub alone: bool,
    pub sends: u8,
    /// BeginCharge told it a send window that ends too late.
    pub window_wrong: bool,
    /// Its request on the way outlives `in_flight_max`.
    pub late: bool,
    /// The object that it would confirm.
    pub object: u8,
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            doing: Doing::Idle,
            current: false,
            opening: NONE,
            opened: false,
            alone: false,
            sends: 0,
            window_wrong: false,
            late: false,
            object: NONE,
        }
    }
}

/// A request that nobody waits for and that may still arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Send {
    pub opening: u8,
    pub object: u8,
    pub late: bool,
}

impl Send {
    pub const GONE: Self = Self {
        opening: NONE,
        object: NONE,
        late: false,
    };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// PENDING, PROCESSING, CHARGING or IN_DOUBT, by lease and attempt.
    Ready,
    Paid,
    Review,
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Attempt {
    Unused,
    Open,
    Closing,
    /// Declined or cancelled, on evidence.
    Dead,
    Settled,
}

/// The replicated record of the invoice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ledger {
    pub phase: Phase,
    pub attempts: [Attempt; NUMBERS],
    /// Which opening each number is.
    pub openings: [u8; NUMBERS],
    /// The attempt that is open was taken over.
    pub taken: bool,
    pub leased: bool,
    /// The lease was granted after the open attempt was quiet.
    pub fresh: bool,
    /// How far ClusterTime has come for the open attempt; never ahead of true time.
    pub cluster: u8,
    pub object: u8,
    /// The recorded object is known to be cancelled.
    pub cancelled: bool,
    /// The keys under which a charge is recorded, as bits.
    pub recorded: u8,
    /// Charges are closed until AllowCharges.
    pub closed: bool,
}

impl Ledger {
    /// Attempts that are open or closing, as numbers from 0.
    pub fn live_all(&self) -> impl Iterator<Item = usize> + '_ {
        (0..NUMBERS)
            .filter(|number| matches!(self.attempts[*number], Attempt::Open | Attempt::Closing))
    }

    /// The one that is open or closing; the newest, where a missing rule lets there be two.
    pub fn live(&self) -> Option<usize> {
        self.live_all().last()
    }

    /// The next number, within the bound.
    pub fn next(&self) -> Option<usize> {
        let used = (0..NUMBERS)
            .rev()
            .find(|number| self.attempts[*number] != Attempt::Unused);
        let next = used.map_or(0, |number| number + 1);
        (next < NUMBERS).then_some(next)
    }

    pub fn standing_object(&self) -> Option<u8> {
        (self.object != NONE && !self.cancelled).then_some(self.object)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Object {
    Absent,
    Confirmable,
    Succeeded,
    Cancelled,
}

/// What the provider answers under a key that it remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Memory {
    Nothing,
    /// First used by this opening.
    Yes(u8),
    No(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct State {
    pub ledger: Ledger,
    pub backup: Option<Ledger>,
    pub restored: bool,
    pub stages: [u8; OPENINGS],
    pub workers: [Worker; WORKERS],
    /// Sorted.
    pub loose: [Send; LOOSE_MAX],
    /// By key.
    pub memory: [Memory; OPENINGS],
    /// By key: the object that a create made.
    pub creates: [u8; OPENINGS],
    pub objects: [Object; OBJECTS],
    /// The keys under which money moved, as bits.
    pub charged: u8,
    /// How often money moved.
    pub charges: u8,
    /// The opening for which a person saw nothing, and has not said so yet.
    pub glance: u8,
}

impl State {
    pub fn new() -> Self {
        Self {
            ledger: Ledger {
                phase: Phase::Ready,
                attempts: [Attempt::Unused; NUMBERS],
                openings: [0, 1],
                taken: false,
                leased: false,
                fresh: false,
                cluster: stage::OPEN,
                object: NONE,
                cancelled: false,
                recorded: 0,
                closed: false,
            },
            backup: None,
            restored: false,
            stages: [stage::QUIET; OPENINGS],
            workers: [Worker::default(); WORKERS],
            loose: [Send::GONE; LOOSE_MAX],
            memory: [Memory::Nothing; OPENINGS],
            creates: [NONE; OPENINGS],
            objects: [Object::Absent; OBJECTS],
            charged: 0,
            charges: 0,
            glance: NONE,
        }
    }

    /// The opening of the attempt that is open or closing.
    pub fn live_opening(&self) -> Option<usize> {
        self.ledger
            .live()
            .map(|number| usize::from(self.ledger.openings[number]))
    }
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

impl Hash for State {
    /// As if the workers stood in order and the objects were numbered as the ledger and the create keys name them: no rule asks
    /// which worker or which object it is.
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let same = self.in_order();
        same.workers.hash(hasher);
        (
            same.ledger,
            same.backup,
            same.restored,
            same.stages,
            same.loose,
        )
            .hash(hasher);
        (same.memory, same.creates, same.objects).hash(hasher);
        (same.charged, same.charges, same.glance).hash(hasher);
    }
}

impl State {
    /// The one of all states that differ from this one in names only.
    #[must_use]
    pub fn in_order(&self) -> Self {
        let mut same = *self;
        if self.objects != [Object::Absent; OBJECTS] {
            same.rename_objects();
        }
        same.workers.sort_unstable();
        same.loose.sort_unstable();
        same
    }

    /// Objects get the names in which the ledger, the backup and the create keys mention them; the others keep their order.
    fn rename_objects(&mut self) {
        let backup = self.backup.map_or(NONE, |backup| backup.object);
        let named = [self.ledger.object, backup].into_iter().chain(self.creates);
        let all = named
            .chain(0..OBJECTS as u8)
            .filter(|object| *object != NONE);
        let mut names = [NONE; OBJECTS];
        let mut next = 0;
        for object in all {
            let name = &mut names[usize::from(object)];
            if *name == NONE {
                *name = next;
                next += 1;
            }
        }
        self.rename(names);
    }

    /// Gives each object another name: `names` holds each of them once.
    pub fn rename(&mut self, names: [u8; OBJECTS]) {
        let objects = self.objects;
        for (object, name) in names.iter().enumerate() {
            self.objects[usize::from(*name)] = objects[object];
        }
        let rename = |object: &mut u8| {
            if *object != NONE {
                *object = names[usize::from(*object)];
            }
        };
        rename(&mut self.ledger.object);
        if let Some(backup) = &mut self.backup {
            rename(&mut backup.object);
        }
        self.creates.iter_mut().for_each(rename);
        for who in &mut self.workers {
            rename(&mut who.object);
        }
        for send in &mut self.loose {
            rename(&mut send.object);
        }
    }
}

/// Number (from 0) of an opening.
pub fn number_of(opening: u8) -> usize {
    usize::from(opening) % NUMBERS
}
