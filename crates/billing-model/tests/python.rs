//! A test for each verdict of the four searches in Python under the design's `model/`, named by file and line. Their thoughts:
//! `money_model.py` asks which declines end an attempt, `holes.py` what restarts, early look-ups and hasty people do to that,
//! `fixes.py` whether "a begin again is a take-over" and "granted after" close it, `object_model.py` whose an object is.

use std::collections::BTreeSet;

use billing_model::catalogue;
use billing_model::python::SEARCHES;
use billing_model::search::search;

/// Each line: the test, the search, and what Python prints. The expected verdict is compared with it, then the found one.
macro_rules! verdicts {
    ($($(#[$doc:meta])* $test:ident: $name:literal is $verdict:ident,)*) => {
        $($(#[$doc])* #[test] fn $test() { check($name, billing_model::config::Expected::$verdict); })*

        #[test]
        fn every_python_verdict_has_a_test() {
            let tested: BTreeSet<&str> = [$($name),*].into();
            let known: BTreeSet<&str> = SEARCHES.iter().map(|search| search.name).collect();
            assert_eq!(tested, known);
            assert_eq!(known.len(), 32, "11 + 7 + 2 + 12 rows");
        }
    };
}

fn check(name: &str, verdict: billing_model::config::Expected) {
    let config = catalogue::named(name).expect("in the catalogue");
    assert_eq!(config.expected, verdict, "{name}: what Python prints");
    let outcome = search(config);
    assert!(
        outcome.as_expected(verdict),
        "{name}: {:?}",
        outcome.verdict
    );
}

verdicts! {
    /// money_model.py, line 76.
    money_1: "python/money-1" is Safe,
    /// money_model.py, line 77.
    money_2: "python/money-2" is Safe,
    /// money_model.py, line 78.
    money_3: "python/money-3" is Double,
    /// money_model.py, line 79.
    money_4: "python/money-4" is Safe,
    /// money_model.py, line 80.
    money_5: "python/money-5" is Double,
    /// money_model.py, line 81.
    money_6: "python/money-6" is Double,
    /// money_model.py, line 82.
    money_7: "python/money-7" is Double,
    /// money_model.py, line 83.
    money_8: "python/money-8" is Safe,
    /// money_model.py, line 84.
    money_9: "python/money-9" is Safe,
    /// money_model.py, line 85.
    money_10: "python/money-10" is Safe,
    /// money_model.py, line 86.
    money_11: "python/money-11" is Double,
    /// holes.py, line 85.
    holes_m0: "python/holes-m0" is Safe,
    /// holes.py, line 85.
    holes_m1: "python/holes-m1" is Double,
    /// holes.py, line 87.
    holes_m1b: "python/holes-m1b" is Safe,
    /// holes.py, line 88.
    holes_m1c: "python/holes-m1c" is Safe,
    /// holes.py, line 89.
    holes_m2: "python/holes-m2" is Double,
    /// holes.py, line 90.
    holes_m3: "python/holes-m3" is Double,
    /// holes.py, line 91.
    holes_m4: "python/holes-m4" is Double,
    /// fixes.py, line 87.
    fixes_f1: "python/fixes-f1" is Safe,
    /// fixes.py, line 88.
    fixes_f2: "python/fixes-f2" is Safe,
    /// object_model.py, line 61.
    object_per_attempt: "python/object-per-attempt" is Double,
    /// object_model.py, line 61.
    object_per_attempt_forgotten: "python/object-per-attempt-forgotten" is Double,
    /// object_model.py, line 61.
    object_per_attempt_any: "python/object-per-attempt-any" is Double,
    /// object_model.py, line 61.
    object_per_attempt_any_forgotten: "python/object-per-attempt-any-forgotten" is Double,
    /// object_model.py, line 61.
    object_cancel_first: "python/object-cancel-first" is Safe,
    /// object_model.py, line 61.
    object_cancel_first_forgotten: "python/object-cancel-first-forgotten" is Safe,
    /// object_model.py, line 61.
    object_cancel_first_any: "python/object-cancel-first-any" is Safe,
    /// object_model.py, line 61.
    object_cancel_first_any_forgotten: "python/object-cancel-first-any-forgotten" is Double,
    /// object_model.py, line 61.
    object_per_invoice: "python/object-per-invoice" is Safe,
    /// object_model.py, line 61.
    object_per_invoice_forgotten: "python/object-per-invoice-forgotten" is Safe,
    /// object_model.py, line 61.
    object_per_invoice_any: "python/object-per-invoice-any" is Safe,
    /// object_model.py, line 61.
    object_per_invoice_any_forgotten: "python/object-per-invoice-any-forgotten" is Double,
}
