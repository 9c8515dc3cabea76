//! Runs one search and says what it came to. Knows no rule.

use std::time::Instant;

use stateright::{Checker, Expectation, HasDiscoveries, Model};

use crate::config::{Config, Expected};
use crate::model::{Money, ONE_CHARGE, ONE_OPEN_ATTEMPT, Step};
use crate::state::State;

/// What a search came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every reachable state was seen, and every property held.
    Safe,
    /// Two successful charges: the shortest way there, one line a step.
    Double(Vec<String>),
    /// Two attempts are open at once, though money moves once at most: the way there.
    TwoOpen(Vec<String>),
    /// Another property broke, or what must be reachable is not: the model itself is wrong.
    Broken(String),
}

/// One search's figures.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub verdict: Verdict,
    /// States told apart.
    pub states: usize,
    /// Steps from the first state to the farthest one that was visited.
    pub depth: usize,
    pub seconds: f64,
}

impl Outcome {
    #[must_use]
    pub fn as_expected(&self, expected: Expected) -> bool {
        match (&self.verdict, expected) {
            (Verdict::Safe, Expected::Safe)
            | (Verdict::Double(_), Expected::Double)
            | (Verdict::TwoOpen(_), Expected::TwoOpen) => true,
            (Verdict::Safe | Verdict::Double(_) | Verdict::TwoOpen(_) | Verdict::Broken(_), _) => {
                false
            }
        }
    }
}

/// Searches breadth first on one thread, so that the way it shows is a shortest one.
#[must_use]
pub fn search(config: &Config) -> Outcome {
    let started = Instant::now();
    let model = Money {
        config: *config,
        tidied: true,
    };
    let checker = model
        .checker()
        .finish_when(HasDiscoveries::AllOf([ONE_CHARGE].into()))
        .spawn_bfs()
        .join();
    let (states, depth) = (checker.unique_state_count(), checker.max_depth() - 1);
    let verdict = match checker.discovery(ONE_CHARGE) {
        Some(mut path) => {
            // The checker goes on for a block of states and shows the last one it found there. Shorter ones are looked for
            // until there is none.
            loop {
                let shorter = model
                    .checker()
                    .target_max_depth(path.clone().into_states().len())
                    .finish_when(HasDiscoveries::AllOf([ONE_CHARGE].into()))
                    .spawn_bfs()
                    .join();
                match shorter.discovery(ONE_CHARGE) {
                    Some(found) => path = found,
                    None => break,
                }
            }
            Verdict::Double(told(&model, path.into_vec()))
        }
        None => judge(&model, &checker),
    };
    Outcome {
        verdict,
        states,
        depth,
        seconds: started.elapsed().as_secs_f64(),
    }
}

/// No double charge: then everything else must be as it should.
fn judge<C: Checker<Money>>(model: &Money, checker: &C) -> Verdict {
    let found = checker.discoveries();
    if let Some(path) = found.get(ONE_OPEN_ATTEMPT) {
        return Verdict::TwoOpen(told(model, path.clone().into_vec()));
    }
    for property in model.properties() {
        let path = found.get(property.name);
        match (property.expectation, path) {
            (Expectation::Always | Expectation::Eventually, Some(path)) => {
                let steps = told(model, path.clone().into_vec()).join("\n  ");
                return Verdict::Broken(format!("not always: {}\n  {steps}", property.name));
            }
            (Expectation::Sometimes, None) => {
                return Verdict::Broken(format!("never: {}", property.name));
            }
            (Expectation::Always | Expectation::Eventually, None)
            | (Expectation::Sometimes, Some(_)) => {}
        }
    }
    Verdict::Safe
}

fn told(model: &Money, path: Vec<(State, Option<Step>)>) -> Vec<String> {
    let steps = path.iter().zip(path.iter().skip(1));
    steps
        .filter_map(|((before, step), (after, _))| step.map(|step| model.say(before, step, after)))
        .collect()
}
