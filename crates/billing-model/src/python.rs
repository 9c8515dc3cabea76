//! The verdicts of the four searches in Python that the design was drawn from (`money_model.py`, `holes.py`, `fixes.py`,
//! `object_model.py`), asked again of this model under their assumptions. Each name is the Python row's.
//!
//! Theirs differ in bounds (three leases, two sends each, three requests on the way; here leases and sends have no bound) and in
//! small things (there a closing attempt is looked up by itself). The verdicts must be the same; the numbers of states cannot.

use crate::catalogue::BASE;
use crate::config::{Config, Expected, Keys, Rule, Without};

/// Two workers, and nothing that the first search did not have.
const PYTHON: Config = Config {
    workers: 2,
    loose_max: 2,
    restarts: false,
    second_gates: false,
    people: false,
    standstill: false,
    ..BASE
};

const LOOSE: Config = Config {
    sticky: false,
    ..PYTHON
};

const NO_KEYS: Config = Config {
    keys: Keys::Ignored,
    sticky: false,
    look_up: false,
    ..PYTHON
};

const RESTARTS: Config = Config {
    restarts: true,
    without: Without::rule(Rule::BeginAgainIsTakeOver),
    ..PYTHON
};

const OBJECT: Config = Config {
    objects: true,
    keys: Keys::Unreliable,
    sticky: false,
    look_up: false,
    late_sends: true,
    ..PYTHON
};

/// A decline, then a cancellation; the next attempt makes a new object.
const CANCEL_FIRST: Config = Config {
    object_finality: false,
    sole_send: false,
    cancels: true,
    ..OBJECT
};

const PER_ATTEMPT: Config = Config {
    without: Without::rule(Rule::ObjectOfInvoice),
    ..OBJECT
};

const fn safe(name: &'static str, what: &'static str, config: Config) -> Config {
    Config {
        name,
        what,
        ..config
    }
}

const fn double(name: &'static str, what: &'static str, config: Config) -> Config {
    Config {
        name,
        what,
        expected: Expected::Double,
        ..config
    }
}

const fn less(config: Config, rule: Rule) -> Config {
    Config {
        without: config.without.and(rule),
        ..config
    }
}

const fn late(config: Config) -> Config {
    Config {
        late_sends: true,
        ..config
    }
}

/// Any token attaches, and replaces what was attached.
const fn attach_any(config: Config) -> Config {
    less(less(config, Rule::AttachNeedsToken), Rule::FirstObjectWins)
}

const fn forgotten(config: Config) -> Config {
    Config {
        creates_forgotten: true,
        ..config
    }
}

/// All 32, in the order in which the Python searches print them.
pub const SEARCHES: &[Config] = &[
    safe(
        "python/money-1",
        "sticky declines, keys forgotten, late sends die",
        PYTHON,
    ),
    safe(
        "python/money-2",
        "keys kept for ever, late sends live",
        Config {
            keys: Keys::Forever,
            look_up: false,
            ..late(PYTHON)
        },
    ),
    double("python/money-3", "as 1, late sends live", late(PYTHON)),
    safe(
        "python/money-4",
        "declines not sticky: sole send, or look-up after not_after",
        LOOSE,
    ),
    double("python/money-5", "as 4, late sends live", late(LOOSE)),
    double(
        "python/money-6",
        "as 4, a decline becomes final by waiting, no look-up",
        less(
            Config {
                look_up: false,
                ..LOOSE
            },
            Rule::ClosingNeedsEvidence,
        ),
    ),
    double(
        "python/money-7",
        "as 4, a decline ends the attempt at once",
        less(LOOSE, Rule::DeclineNeedsFinality),
    ),
    safe(
        "python/money-8",
        "as 4, a decline from a stale token",
        less(LOOSE, Rule::DeclineNeedsToken),
    ),
    safe("python/money-9", "no keys: one send, then review", NO_KEYS),
    safe("python/money-10", "no keys, late sends live", late(NO_KEYS)),
    double(
        "python/money-11",
        "as 1, second key on take-over",
        less(PYTHON, Rule::OneKeyAtATime),
    ),
    safe("python/holes-m0", "row 4 unchanged", LOOSE),
    double(
        "python/holes-m1",
        "row 4, gate restarts under the same token, SOLE_SEND",
        Config {
            sticky: false,
            ..RESTARTS
        },
    ),
    safe(
        "python/holes-m1b",
        "the same without SOLE_SEND",
        Config {
            sticky: false,
            sole_send: false,
            ..RESTARTS
        },
    ),
    safe("python/holes-m1c", "row 1, gate restarts", RESTARTS),
    double(
        "python/holes-m2",
        "row 4, look-up read early by anybody, reported after not_after",
        less(
            less(LOOSE, Rule::LookUpGrantedAfter),
            Rule::LookUpNeedsToken,
        ),
    ),
    double(
        "python/holes-m3",
        "row 1, requeue from REVIEW with an open attempt",
        less(
            Config {
                people: true,
                look_up: false,
                ..PYTHON
            },
            Rule::RequeueNotWhileOpen,
        ),
    ),
    double(
        "python/holes-m4",
        "row 1, a truthful person says not charged before not_after",
        less(
            Config {
                people: true,
                ..PYTHON
            },
            Rule::ResolveAfterQuiet,
        ),
    ),
    safe(
        "python/fixes-f1",
        "row 4, restarts, begin again is a take-over",
        Config {
            restarts: true,
            ..LOOSE
        },
    ),
    safe(
        "python/fixes-f2",
        "row 4, look-ups count under a lease granted after",
        LOOSE,
    ),
    double(
        "python/object-per-attempt",
        "an object for each attempt",
        PER_ATTEMPT,
    ),
    double(
        "python/object-per-attempt-forgotten",
        "the same, create key forgotten",
        forgotten(PER_ATTEMPT),
    ),
    double(
        "python/object-per-attempt-any",
        "the same, any token attaches",
        attach_any(PER_ATTEMPT),
    ),
    double(
        "python/object-per-attempt-any-forgotten",
        "both",
        forgotten(attach_any(PER_ATTEMPT)),
    ),
    safe(
        "python/object-cancel-first",
        "a decline, then a cancellation, then a new object",
        CANCEL_FIRST,
    ),
    safe(
        "python/object-cancel-first-forgotten",
        "the same, create key forgotten",
        forgotten(CANCEL_FIRST),
    ),
    safe(
        "python/object-cancel-first-any",
        "the same, any token attaches",
        attach_any(CANCEL_FIRST),
    ),
    double(
        "python/object-cancel-first-any-forgotten",
        "both",
        forgotten(attach_any(CANCEL_FIRST)),
    ),
    safe(
        "python/object-per-invoice",
        "the next attempt confirms the same object",
        OBJECT,
    ),
    safe(
        "python/object-per-invoice-forgotten",
        "the same, create key forgotten",
        forgotten(OBJECT),
    ),
    safe(
        "python/object-per-invoice-any",
        "the same, any token attaches",
        attach_any(OBJECT),
    ),
    double(
        "python/object-per-invoice-any-forgotten",
        "both",
        forgotten(attach_any(OBJECT)),
    ),
];
