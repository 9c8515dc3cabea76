//! The search itself: which steps there are, what must hold in every state, what must be reachable. A step's rule stands in
//! `gate`, `ledger`, `people` or `provider`; what can have no effect any more is dropped by `tidy`.

use stateright::{Model, Property};

use crate::config::Config;
use crate::state::{
    Attempt, Doing, Ledger, NUMBERS, OBJECTS, OPENINGS, Phase, Send, State, WORKERS, number_of,
    stage,
};

/// What must never happen.
pub const ONE_CHARGE: &str = "at most one successful charge";
pub const ONE_OPEN_ATTEMPT: &str = "at most one open or closing attempt";
pub const STATUS_TRUE: &str = "PAID is paid, and a recorded charge is PAID or in REVIEW";
/// What must be possible.
pub const PAID: &str = "PAID is reachable";
pub const SECOND_PAYS: &str = "PAID by a second attempt is reachable";
pub const REVIEW: &str = "REVIEW is reachable";

/// One thing that happens. Workers, numbers, keys and objects count from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Acquire(u8),
    /// A missing rule: the new lease has a token that another worker holds already.
    AcquireOldToken(u8, u8),
    LeaseEnds,
    Begin(u8),
    Create(u8),
    Attach(u8),
    Send(u8),
    GiveUp(u8),
    Answer(u8, bool),
    Land(u8, bool),
    Decline(u8),
    LookUp(u8),
    ReportNothing(u8),
    Restart(u8),
    SecondGate(u8),
    Dies(u8),
    ChargeReported(u8),
    CancelObject(u8),
    CancelReported,
    TimePasses(u8),
    ClusterTimeMoves,
    GoesToReview,
    ClosingExpires,
    PersonLooks,
    NotCharged,
    ChargeConfirmed,
    Requeue,
    Backup,
    Restore,
    AllowCharges,
    KeyForgotten(u8),
    CreateForgotten(u8),
}

/// A search: the rules are those of its [`Config`].
#[derive(Clone, Copy, Debug)]
pub struct Money {
    pub config: Config,
    /// Drops what can have no effect any more. Off: to check that this hides nothing.
    pub tidied: bool,
}

impl Money {
    /// What the provider calls the same key. A restored ledger issues the keys of its numbers again, unless told otherwise.
    pub fn key_of(&self, opening: u8) -> usize {
        if self.config.new_keys_after_restore {
            usize::from(opening)
        } else {
            number_of(opening)
        }
    }

    /// The step's outcome, or None where it cannot happen.
    fn apply(&self, before: &State, step: Step) -> Option<State> {
        match step {
            Step::Acquire(worker) => self.acquire(before, worker, None),
            Step::AcquireOldToken(worker, other) => self.acquire(before, worker, Some(other)),
            Step::LeaseEnds => self.lease_ends(before),
            Step::Begin(worker) => self.begin(before, worker),
            Step::Create(worker) => self.create(before, worker),
            Step::Attach(worker) => self.attach(before, worker),
            Step::Send(worker) => self.send(before, worker),
            Step::GiveUp(worker) => self.give_up(before, worker),
            Step::Answer(worker, approves) => self.answer(before, worker, approves),
            Step::Land(which, approves) => self.land(before, which, approves),
            Step::Decline(worker) => self.decline(before, worker),
            Step::LookUp(worker) => self.look_up(before, worker),
            Step::ReportNothing(worker) => self.report_nothing(before, worker),
            Step::Restart(worker) => self.restart(before, worker),
            Step::SecondGate(worker) => self.second_gate(before, worker),
            Step::Dies(worker) => self.dies(before, worker),
            Step::ChargeReported(key) => self.charge_reported(before, key),
            Step::CancelObject(object) => self.cancel_object(before, object),
            Step::CancelReported => self.cancel_reported(before),
            Step::TimePasses(opening) => self.time_passes(before, opening),
            Step::ClusterTimeMoves => self.cluster_time_moves(before),
            Step::GoesToReview => self.goes_to_review(before),
            Step::ClosingExpires => self.closing_expires(before),
            Step::PersonLooks => self.person_looks(before),
            Step::NotCharged => self.not_charged(before),
            Step::ChargeConfirmed => self.charge_confirmed(before),
            Step::Requeue => self.requeue(before),
            Step::Backup => self.back_up(before),
            Step::Restore => self.restore(before),
            Step::AllowCharges => self.allow_charges(before),
            Step::KeyForgotten(key) => self.key_forgotten(before, key),
            Step::CreateForgotten(key) => self.create_forgotten(before, key),
        }
    }
}

impl Model for Money {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State::new()]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        for worker in 0..self.config.workers.min(WORKERS as u8) {
            match state.workers[usize::from(worker)].doing {
                Doing::Idle => {
                    steps.extend([Step::Acquire(worker), Step::SecondGate(worker)]);
                    if self.old_tokens_live() {
                        steps.extend(
                            (0..self.config.workers)
                                .map(|other| Step::AcquireOldToken(worker, other)),
                        );
                    }
                }
                Doing::Waiting => steps.extend([
                    Step::Answer(worker, true),
                    Step::Answer(worker, false),
                    Step::GiveUp(worker),
                    Step::Restart(worker),
                ]),
                _ => steps.extend([
                    Step::Begin(worker),
                    Step::Create(worker),
                    Step::Attach(worker),
                    Step::Send(worker),
                    Step::Decline(worker),
                    Step::LookUp(worker),
                    Step::ReportNothing(worker),
                    Step::Restart(worker),
                    Step::Dies(worker),
                ]),
            }
        }
        for (at, send) in state.loose.iter().enumerate() {
            if *send != Send::GONE {
                steps.extend([Step::Land(at as u8, true), Step::Land(at as u8, false)]);
            }
        }
        steps.push(Step::LeaseEnds);
        for at in 0..OPENINGS as u8 {
            steps.extend([
                Step::ChargeReported(at),
                Step::TimePasses(at),
                Step::KeyForgotten(at),
                Step::CreateForgotten(at),
            ]);
        }
        steps.extend((0..OBJECTS as u8).map(Step::CancelObject));
        steps.extend([
            Step::CancelReported,
            Step::ClusterTimeMoves,
            Step::GoesToReview,
            Step::ClosingExpires,
            Step::PersonLooks,
            Step::NotCharged,
            Step::ChargeConfirmed,
            Step::Requeue,
            Step::Backup,
            Step::Restore,
            Step::AllowCharges,
        ]);
    }

    fn next_state(&self, before: &State, step: Step) -> Option<State> {
        let mut after = self.apply(before, step)?;
        if self.tidied {
            self.tidy(&mut after);
        }
        (after != *before).then_some(after)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(ONE_CHARGE, |_, state: &State| state.charges <= 1),
            Property::always(ONE_OPEN_ATTEMPT, |_, state: &State| {
                state.ledger.live_all().count() <= 1
            }),
            Property::always(STATUS_TRUE, |_, state: &State| status_true(state)),
            Property::sometimes(PAID, |_, state: &State| state.ledger.phase == Phase::Paid),
        ];
        if self.config.second_pays {
            properties.push(Property::sometimes(SECOND_PAYS, |_, state: &State| {
                state.ledger.phase == Phase::Paid
                    && state.ledger.attempts == [Attempt::Dead, Attempt::Settled]
            }));
        }
        if self.config.review_reachable {
            properties.push(Property::sometimes(REVIEW, |_, state: &State| {
                state.ledger.phase == Phase::Review
            }));
        }
        properties
    }
}

/// What the ledger says of money is true, and is said aloud.
fn status_true(state: &State) -> bool {
    let Ledger {
        phase, recorded, ..
    } = state.ledger;
    let real = recorded & !state.charged == 0;
    let shown = match phase {
        Phase::Paid => recorded.count_ones() == 1,
        Phase::Review => true,
        Phase::Ready | Phase::Failed => recorded == 0,
    };
    real && shown
}

const _: () = assert!(OPENINGS == 2 * NUMBERS && stage::QUIET == 2);
