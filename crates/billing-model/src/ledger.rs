//! What the ledger does with a command: leases, attempts, settlements, and what time alone changes. Written from the design, and
//! read beside `billing-core/src/ledger`: a step that it would refuse cannot happen here.

use crate::config::{Keys, Rule};
use crate::model::Money;
use crate::state::{Attempt, Doing, NONE, NUMBERS, Object, Phase, State, Worker, number_of, stage};

impl State {
    /// The lease is over; its token is dead.
    pub fn end_lease(&mut self) {
        self.ledger.leased = false;
        self.ledger.fresh = false;
        for worker in &mut self.workers {
            worker.current = false;
        }
    }

    /// The attempt is over without money.
    pub fn attempt_dead(&mut self, number: usize) {
        self.ledger.attempts[number] = Attempt::Dead;
    }
}

impl Money {
    /// Granted when the status allows it and no lease stands. `old`: a missing rule, another worker's token is the same one.
    pub fn acquire(&self, before: &State, worker: u8, old: Option<u8>) -> Option<State> {
        let ledger = &before.ledger;
        let free = ledger.phase == Phase::Ready && !ledger.leased;
        if !free || before.workers[usize::from(worker)].doing != Doing::Idle {
            return None;
        }
        let mut after = *before;
        if let Some(old) = old {
            let holder = &mut after.workers[usize::from(old)];
            if !before.restored || holder.doing == Doing::Idle || old == worker {
                return None;
            }
            holder.current = true;
        }
        after.ledger.leased = true;
        after.ledger.fresh = self.quiet(before);
        after.workers[usize::from(worker)] = Worker {
            doing: Doing::Leased,
            current: true,
            ..Worker::default()
        };
        Some(after)
    }

    /// Whether a lease that is granted now is one under which a look-up that finds nothing counts.
    fn quiet(&self, state: &State) -> bool {
        let Some(opening) = state.live_opening() else {
            return false;
        };
        let cluster = state.ledger.cluster == stage::QUIET;
        // A wrong wall clock says whatever does the most harm.
        let wall = self.config.wall_wrong || state.stages[opening] == stage::QUIET;
        if self.config.has(Rule::LookUpBothClocks) {
            cluster && wall
        } else {
            cluster || wall
        }
    }

    /// Released, expired, or taken away by an operator.
    pub fn lease_ends(&self, before: &State) -> Option<State> {
        let mut after = *before;
        after.ledger.leased.then(|| after.end_lease())?;
        Some(after)
    }

    pub fn begin(&self, before: &State, worker: u8) -> Option<State> {
        let config = &self.config;
        let (ledger, who) = (&before.ledger, &before.workers[usize::from(worker)]);
        if who.doing != Doing::Leased || ledger.closed {
            return None;
        }
        if !who.current && (config.has(Rule::BeginNeedsToken) || ledger.phase == Phase::Paid) {
            return None;
        }
        match ledger.live() {
            Some(number) if ledger.attempts[number] == Attempt::Closing => None,
            Some(number) if config.has(Rule::OneKeyAtATime) => {
                Some(self.take_over(before, worker, number))
            }
            Some(_) | None => {
                let processing = ledger.phase == Phase::Ready && ledger.leased;
                if config.has(Rule::BeginOnlyProcessing) && !processing {
                    return None;
                }
                self.open(before, worker, ledger.next()?)
            }
        }
    }

    /// The attempt that is open, under the same key. Whoever asks may be a second gate.
    fn take_over(&self, before: &State, worker: u8, number: usize) -> State {
        let mut after = *before;
        let opening = before.ledger.openings[number];
        let who = &mut after.workers[usize::from(worker)];
        let own = who.opened && who.opening == opening;
        if !own || self.config.has(Rule::BeginAgainIsTakeOver) {
            after.ledger.taken = true;
        }
        // The window is what ClusterTime and wall time leave of it; the gate counts it down on a clock of its own.
        let passed = before.stages[usize::from(opening)] > stage::OPEN;
        let window_wrong =
            !self.config.wall_forbids() && before.ledger.cluster == stage::OPEN && passed;
        *who = Worker {
            doing: Doing::Begun,
            current: who.current,
            opening,
            opened: own,
            alone: !after.ledger.taken,
            sends: 0,
            window_wrong,
            late: false,
            object: before.ledger.standing_object().unwrap_or(NONE),
        };
        after
    }

    fn open(&self, before: &State, worker: u8, number: usize) -> Option<State> {
        let mut after = *before;
        let era = if before.restored { NUMBERS } else { 0 };
        let opening = (number + era) as u8;
        let ledger = &mut after.ledger;
        ledger.attempts[number] = Attempt::Open;
        ledger.openings[number] = opening;
        ledger.taken = false;
        ledger.fresh = false;
        ledger.cluster = stage::OPEN;
        after.stages[usize::from(opening)] = stage::OPEN;
        let who = &mut after.workers[usize::from(worker)];
        *who = Worker {
            doing: Doing::Begun,
            current: who.current,
            opening,
            opened: true,
            alone: true,
            object: before.ledger.standing_object().unwrap_or(NONE),
            ..Worker::default()
        };
        Some(after)
    }

    /// The first one wins and is returned to everyone.
    pub fn attach(&self, before: &State, worker: u8) -> Option<State> {
        let who = &before.workers[usize::from(worker)];
        let ledger = &before.ledger;
        if who.doing != Doing::Created {
            return None;
        }
        if !who.current && (self.config.has(Rule::AttachNeedsToken) || ledger.phase == Phase::Paid)
        {
            return None;
        }
        let number = ledger.live()?;
        let mut after = *before;
        let object = match ledger.standing_object() {
            Some(standing) if self.config.has(Rule::FirstObjectWins) => standing,
            _ => {
                let known_cancelled = ledger.cancelled && ledger.object == who.object;
                if ledger.attempts[number] != Attempt::Open || known_cancelled {
                    return None;
                }
                after.ledger.object = who.object;
                after.ledger.cancelled = false;
                who.object
            }
        };
        let who = &mut after.workers[usize::from(worker)];
        who.object = object;
        who.doing = Doing::Begun;
        Some(after)
    }

    /// A gate that heard a decline says so, and why it is final. The ledger checks the reason.
    pub fn decline(&self, before: &State, worker: u8) -> Option<State> {
        let config = &self.config;
        let who = before.workers[usize::from(worker)];
        if who.doing != Doing::HeardNo {
            return None;
        }
        let number = self.settles(before, &who, Rule::DeclineNeedsToken)?;
        let mut after = *before;
        if self.final_no(before, number, &who) {
            after.attempt_dead(number);
            if !config.has(Rule::ObjectOfInvoice) {
                after.ledger.object = NONE;
            }
        } else {
            after.ledger.attempts[number] = Attempt::Closing;
        }
        after.end_lease();
        after.workers[usize::from(worker)] = Worker::default();
        Some(after)
    }

    /// The gate names the strongest reason that it has; the ledger looks whether that one holds.
    fn final_no(&self, before: &State, number: usize, who: &Worker) -> bool {
        let (config, ledger) = (&self.config, &before.ledger);
        if config.objects && config.object_finality {
            return ledger.standing_object().is_some();
        }
        // Within the model's time the provider has not forgotten all that was sent before the restore.
        let key_may_be_older = usize::from(who.opening) >= NUMBERS
            && !config.new_keys_after_restore
            && config.has(Rule::StickyNotAfterRestore);
        if (config.sticky && !key_may_be_older) || !config.has(Rule::StickyNeedsTerms) {
            return true;
        }
        let believed = config.has(Rule::SoleSendNotAfterTakeOver);
        if config.sole_send && who.sends == 1 && (who.alone || !believed) {
            let open = ledger.attempts[number] == Attempt::Open;
            return !believed || (open && who.opened && !ledger.taken);
        }
        !config.has(Rule::DeclineNeedsFinality)
    }

    /// The attempt that a report under a token is about; None: refused.
    fn settles(&self, before: &State, who: &Worker, rule: Rule) -> Option<usize> {
        let stale_taken = !self.config.has(rule) && before.ledger.phase != Phase::Paid;
        if !who.current && !stale_taken {
            return None;
        }
        let number = before.ledger.live()?;
        (number_of(who.opening) == number).then_some(number)
    }

    /// A look-up found nothing. Whether that counts depends on when the lease was granted, not on when anybody looked.
    pub fn report_nothing(&self, before: &State, worker: u8) -> Option<State> {
        let config = &self.config;
        let who = before.workers[usize::from(worker)];
        if who.doing != Doing::SawNothing {
            return None;
        }
        let number = self.settles(before, &who, Rule::LookUpNeedsToken)?;
        let counts = if !config.has(Rule::LookUpAfterQuiet) {
            true
        } else if config.has(Rule::LookUpGrantedAfter) {
            before.ledger.fresh
        } else {
            self.quiet(before)
        };
        let mut after = *before;
        if counts {
            after.attempt_dead(number);
        }
        after.end_lease();
        after.workers[usize::from(worker)] = Worker::default();
        Some(after)
    }

    /// A charge is a fact, whoever reports it (the gate that heard it, a look-up, a webhook, a person), and whenever.
    pub fn charge_reported(&self, before: &State, key: u8) -> Option<State> {
        let bit = 1 << key;
        if before.charged & bit == 0 || before.ledger.recorded & bit != 0 {
            return None;
        }
        let mut after = *before;
        let ledger = &mut after.ledger;
        let live = ledger.live();
        // The report carries the object's id, which settles whatever attempt is open through that object.
        let object = ledger
            .standing_object()
            .is_some_and(|object| before.objects[usize::from(object)] == Object::Succeeded);
        let named = (0..NUMBERS).find(|number| {
            ledger.attempts[*number] != Attempt::Unused
                && self.key_of(ledger.openings[*number]) == usize::from(key)
        });
        // A number that a restore forgot: known from now on, and never issued again.
        let number = named.unwrap_or_else(|| {
            let number = number_of(key);
            let free = ledger.attempts[number] == Attempt::Unused;
            if free { number } else { NUMBERS }
        });
        let settled = live
            .filter(|live| object || *live == number)
            .unwrap_or(number);
        let foreseen = live == Some(settled);
        let first = ledger.recorded == 0;
        ledger.recorded |= bit;
        if settled < NUMBERS {
            if ledger.attempts[settled] == Attempt::Unused {
                ledger.openings[settled] = key;
            }
            ledger.attempts[settled] = Attempt::Settled;
        }
        let pays = first
            && match ledger.phase {
                Phase::Review => foreseen || live.is_none(),
                Phase::Ready | Phase::Failed => foreseen,
                Phase::Paid => false,
            };
        ledger.phase = if pays { Phase::Paid } else { Phase::Review };
        after.end_lease();
        Some(after)
    }

    /// The recorded object is cancelled, says whoever: it can never succeed, nor can the attempt that goes through it.
    pub fn cancel_reported(&self, before: &State) -> Option<State> {
        let object = before.ledger.standing_object()?;
        if before.objects[usize::from(object)] != Object::Cancelled {
            return None;
        }
        let mut after = *before;
        after.ledger.cancelled = true;
        if let Some(number) = before.ledger.live() {
            after.attempt_dead(number);
        }
        Some(after)
    }

    /// Nobody can look it up, and nothing is in flight any more: a person's turn. By ClusterTime alone.
    pub fn goes_to_review(&self, before: &State) -> Option<State> {
        let ledger = &before.ledger;
        ledger.live()?;
        let due = ledger.cluster == stage::QUIET && !ledger.leased && ledger.phase == Phase::Ready;
        if self.config.look_up || !due {
            return None;
        }
        let mut after = *before;
        after.ledger.phase = Phase::Review;
        Some(after)
    }

    /// A missing rule: a decline that proved nothing becomes one that does by waiting.
    pub fn closing_expires(&self, before: &State) -> Option<State> {
        let number = before.ledger.live()?;
        let due = before.ledger.attempts[number] == Attempt::Closing
            && before.ledger.cluster == stage::QUIET;
        if self.config.has(Rule::ClosingNeedsEvidence) || !due {
            return None;
        }
        let mut after = *before;
        after.attempt_dead(number);
        Some(after)
    }

    /// A send may leave within the window that BeginCharge named, if the gate keeps it.
    pub fn may_send(&self, state: &State, who: &Worker) -> bool {
        let config = &self.config;
        let within = state.stages[usize::from(who.opening)] == stage::OPEN
            || who.window_wrong
            || !config.has(Rule::GateKeepsNotAfter);
        // A provider that honours no key gets one send, from the gate that opened the attempt.
        let once = config.keys != Keys::Ignored
            || config.objects
            || !config.has(Rule::OneSend)
            || (who.alone && who.sends == 0);
        within && once
    }
}
