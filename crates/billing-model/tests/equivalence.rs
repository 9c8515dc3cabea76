//! What a search does not tell apart makes no difference: with `tidy` and without it, and with each worker and object under its
//! own name, the same states are reached. Searches by itself, without the checker and its fingerprints.

use std::collections::{HashSet, VecDeque};

use billing_model::catalogue;
use billing_model::config::Config;
use billing_model::model::Money;
use billing_model::state::State;
use stateright::Model;

/// Whole states, compared field by field.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen(State);

impl std::hash::Hash for Seen {
    fn hash<H: std::hash::Hasher>(&self, hasher: &mut H) {
        self.0.hash(hasher);
    }
}

/// The one of all states that differ from this one in names only. `in_order` need not be that: it is quick, and leaves some apart.
fn nameless(state: &State) -> Seen {
    let orders = [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ];
    let renamed = orders.map(|names| {
        let mut other = *state;
        other.rename(names);
        other.workers.sort_unstable();
        other.loose.sort_unstable();
        other
    });
    Seen(renamed.into_iter().min().unwrap_or(*state))
}

/// Every state that is reached, none taken for another.
fn reached(model: Money) -> Vec<State> {
    let mut seen: HashSet<Seen> = HashSet::new();
    let mut todo: VecDeque<State> = model.init_states().into();
    seen.extend(todo.iter().copied().map(Seen));
    while let Some(state) = todo.pop_front() {
        for next in model.next_states(&state) {
            if seen.insert(Seen(next)) {
                todo.push_back(next);
            }
        }
    }
    seen.into_iter().map(|seen| seen.0).collect()
}

fn check(config: Config) {
    let tidied = Money {
        config,
        tidied: true,
    };
    let with: HashSet<Seen> = reached(tidied).iter().map(nameless).collect();
    let all = reached(Money {
        config,
        tidied: false,
    });
    let without: HashSet<Seen> = all
        .iter()
        .map(|state| {
            let mut state = *state;
            tidied.tidy(&mut state);
            nameless(&state)
        })
        .collect();
    println!(
        "{}: {} states told apart, {} in all",
        config.name,
        with.len(),
        all.len()
    );
    assert!(all.len() > with.len(), "nothing was dropped");
    let hidden = without.difference(&with).count();
    let invented = with.difference(&without).count();
    assert_eq!(
        (hidden, invented),
        (0, 0),
        "{}: states hidden, invented",
        config.name
    );
    let broken = |state: &State| model_breaks(&tidied, state);
    assert_eq!(
        all.iter().any(broken),
        with.iter().any(|seen| broken(&seen.0)),
        "{}: another verdict",
        config.name
    );
}

fn model_breaks(model: &Money, state: &State) -> bool {
    model
        .properties()
        .iter()
        .filter(|property| property.expectation == stateright::Expectation::Always)
        .any(|property| !(property.condition)(model, state))
}

/// A search's assumptions with bounds that leave something to compare.
fn small(name: &str, workers: u8, loose_max: u8) -> Config {
    let config = catalogue::named(name).expect("in the catalogue");
    Config {
        workers,
        loose_max,
        ..*config
    }
}

#[test]
fn keys_with_kept_declines() {
    check(small("sticky", 2, 1));
    check(small("sticky/blind", 2, 1));
}

#[test]
fn keys_without_kept_declines() {
    check(small("loose", 2, 1));
    check(Config {
        second_gates: false,
        ..small("loose", 3, 0)
    });
}

#[test]
fn no_keys() {
    check(small("nothing", 2, 2));
}

#[test]
fn a_restore() {
    for name in [
        "sticky/restore",
        "sticky/restore-new-keys",
        "nothing/restore",
    ] {
        check(Config {
            second_gates: false,
            restarts: false,
            people: false,
            ..small(name, 2, 0)
        });
    }
}

#[test]
fn objects() {
    // Objects that are made and forgotten fill their places for good where nothing is tidied away.
    check(Config {
        creates_forgotten: false,
        second_gates: false,
        people: false,
        slow_people: false,
        ..small("object", 2, 0)
    });
}

#[test]
fn a_missing_rule() {
    for name in [
        "sticky/look-up-any-token",
        "loose/decline-any-token",
        "loose/sole-send-restarted",
    ] {
        check(Config {
            second_gates: false,
            ..small(name, 2, 1)
        });
    }
}
