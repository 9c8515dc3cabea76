//! Every search that takes a few seconds at most comes to its verdict, and what it shows is a way that a reader can follow. The
//! slow ones run with `make model`. Knows no rule.

use std::collections::BTreeSet;

use billing_model::catalogue::{self, SEARCHES, SLOW};
use billing_model::config::{Config, Expected};
use billing_model::search::{Verdict, search};

fn check(profile: &str) {
    let chosen: Vec<&Config> = SEARCHES
        .iter()
        .filter(|config| config.name.split('/').next() == Some(profile))
        .filter(|config| !SLOW.contains(&config.name))
        .collect();
    assert!(chosen.len() > 3, "no searches of {profile}");
    for config in chosen {
        let outcome = search(config);
        assert!(
            outcome.as_expected(config.expected),
            "{}: {:?}, expected {:?}",
            config.name,
            outcome.verdict,
            config.expected
        );
    }
}

#[test]
fn objects_charge_once_without_any_clock() {
    check("object");
}

#[test]
fn kept_declines_charge_once_while_no_send_outlives_its_key() {
    check("sticky");
}

#[test]
fn declines_that_are_not_kept_need_a_proof() {
    check("loose");
}

#[test]
fn without_keys_there_is_one_send_and_a_review() {
    check("nothing");
}

#[test]
fn names_are_unique_and_slow_ones_exist() {
    let names: BTreeSet<&str> = catalogue::all().map(|config| config.name).collect();
    assert_eq!(names.len(), catalogue::all().count());
    assert!(SLOW.iter().all(|name| names.contains(name)));
}

/// What makes a charge double must be the missing rule: with all rules in place each profile is safe.
#[test]
fn every_profile_has_a_safe_search() {
    for config in SEARCHES {
        let profile = config.name.split('/').next();
        let safe = SEARCHES
            .iter()
            .any(|base| base.expected == Expected::Safe && profile == Some(base.name));
        assert!(safe, "{} has no profile that is safe", config.name);
    }
}

/// A search that stops early must have gone the shortest way: the one that DESIGN §5 tells.
#[test]
fn a_second_key_on_take_over_charges_twice_at_once() {
    let config = catalogue::named("python/money-11").expect("in the catalogue");
    let Verdict::Double(steps) = search(config).verdict else {
        panic!("no double charge");
    };
    assert_eq!(steps.len(), 9, "{steps:#?}");
    assert_eq!(
        steps[..3],
        ["w1 acquires the lease", "w1 begins K1", "w1 sends K1"]
    );
    assert_eq!(
        steps
            .iter()
            .filter(|step| step.ends_with("CHARGED"))
            .count(),
        2
    );
}
