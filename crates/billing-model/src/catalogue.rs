//! The searches: what each profile promises with every rule in place, and what comes of it when one is missing. Decides which
//! verdict is the right one for each; runs nothing.

use crate::config::{Config, Expected, Keys, Rule, Without};

/// Everything that may go wrong within a profile's conditions is on.
pub const BASE: Config = Config {
    name: "",
    what: "",
    expected: Expected::Safe,
    workers: 3,
    loose_max: 3,
    keys: Keys::UntilQuiet,
    sticky: true,
    look_up: true,
    sole_send: true,
    objects: false,
    object_finality: true,
    cancels: false,
    creates_forgotten: false,
    late_sends: false,
    restarts: true,
    second_gates: true,
    people: true,
    slow_people: false,
    restore: false,
    new_keys_after_restore: false,
    leftovers_cancelled: false,
    standstill: true,
    wall_wrong: false,
    without: Without::nothing(),
    review_reachable: false,
    second_pays: true,
};

/// Single-use objects, and nothing else to rely on: no key, no clock, no window, no person who takes the time to look. No
/// rule here asks what time it is, so a search in which they do would see fewer states, not others.
const OBJECT: Config = Config {
    name: "object",
    what: "single-use objects; keys forgotten at any moment, sends however late, no clock at all, people who say anything",
    keys: Keys::Unreliable,
    objects: true,
    cancels: true,
    creates_forgotten: true,
    late_sends: true,
    loose_max: 2,
    standstill: false,
    without: Without::rule(Rule::GateKeepsNotAfter)
        .and(Rule::LookUpAfterQuiet)
        .and(Rule::ResolveAfterQuiet),
    ..BASE
};

/// The same with a restore: what is forgotten with the ledger is which object it was, so sends must end in time.
const OBJECT_RESTORE: Config = Config {
    name: "object/restore",
    what: "objects, and a restore; sends end by not_after + in_flight_max",
    keys: Keys::Unreliable,
    objects: true,
    cancels: true,
    creates_forgotten: true,
    workers: 2,
    loose_max: 1,
    restore: true,
    ..BASE
};

const ONE_GATE_RESTORE: Config = Config {
    second_gates: false,
    ..OBJECT_RESTORE
};

const STICKY: Config = Config {
    name: "sticky",
    what: "keys and their declines kept until nothing is in flight; look-up; ClusterTime may stand still",
    ..BASE
};

const STICKY_RESTORE: Config = Config {
    name: "sticky/restore",
    what: "the same and a restore, after which old keys are issued again, and their declines prove nothing for a while",
    restore: true,
    // Who sent how often is told apart in a search of its own: that makes sixty times the states.
    sole_send: false,
    ..STICKY
};

const LOOSE: Config = Config {
    name: "loose",
    what: "keys kept until nothing is in flight, declines not kept; look-up",
    sticky: false,
    ..BASE
};

const LOOSE_RESTORE: Config = Config {
    name: "loose/restore",
    what: "the same and a restore",
    restore: true,
    ..LOOSE
};

const NOTHING: Config = Config {
    name: "nothing",
    what: "no keys, no look-up: one send, then REVIEW",
    keys: Keys::Ignored,
    sticky: false,
    look_up: false,
    review_reachable: true,
    ..BASE
};

const NOTHING_RESTORE: Config = Config {
    name: "nothing/restore",
    what: "the same and a restore",
    restore: true,
    ..NOTHING
};

const fn safe(name: &'static str, what: &'static str, config: Config) -> Config {
    Config {
        name,
        what,
        expected: Expected::Safe,
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

/// The profile's search with one more rule left out.
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

const fn blind(config: Config) -> Config {
    Config {
        look_up: false,
        review_reachable: true,
        ..config
    }
}

const fn wrong_wall(config: Config) -> Config {
    Config {
        wall_wrong: true,
        ..config
    }
}

const fn two_workers(config: Config) -> Config {
    Config {
        workers: 2,
        ..config
    }
}

const fn steady(config: Config) -> Config {
    Config {
        standstill: false,
        ..config
    }
}

/// Those that take more than a few seconds.
pub const SLOW: &[&str] = &[
    "object",
    "object/restore",
    "object/restore-three-workers",
    "object/restore-leftovers",
    "object/attach-any-token",
    "object/decline-any-token",
    "object/second-key",
    "sticky/restore-sole-send",
    "loose/restore",
];

/// The search of that name, here or among those of [`crate::python`].
#[must_use]
pub fn named(name: &str) -> Option<&'static Config> {
    all().find(|search| search.name == name)
}

/// Every search, in the order in which they are shown.
pub fn all() -> impl Iterator<Item = &'static Config> {
    SEARCHES.iter().chain(crate::python::SEARCHES)
}

/// The searches, profile by profile.
pub const SEARCHES: &[Config] = &[
    OBJECT,
    safe(
        "object/two-workers",
        "the same with two workers and one more send on the way",
        Config {
            workers: 2,
            loose_max: 3,
            ..OBJECT
        },
    ),
    OBJECT_RESTORE,
    safe(
        "object/restore-three-workers",
        "the same with three workers, and no second gate under one lease",
        Config {
            workers: 3,
            ..ONE_GATE_RESTORE
        },
    ),
    double(
        "object/restore-late-sends",
        "limit: a confirmation that outlives in_flight_max and the ledger that knew its object",
        late(ONE_GATE_RESTORE),
    ),
    safe(
        "object/restore-leftovers",
        "the same, but before AllowCharges the operator cancels what the provider still has open",
        Config {
            leftovers_cancelled: true,
            ..late(ONE_GATE_RESTORE)
        },
    ),
    double(
        "object/restore-open",
        "a restored ledger charges at once",
        less(ONE_GATE_RESTORE, Rule::RestoreClosesCharges),
    ),
    double(
        "object/per-attempt",
        "each attempt makes an object of its own",
        less(OBJECT, Rule::ObjectOfInvoice),
    ),
    double(
        "object/second-attached",
        "a later attach replaces the object",
        less(OBJECT, Rule::FirstObjectWins),
    ),
    safe(
        "object/attach-any-token",
        "attach with a stale token; the first one still wins",
        less(two_workers(OBJECT), Rule::AttachNeedsToken),
    ),
    double(
        "object/attach-any-token-second",
        "attach with a stale token, and it replaces the object",
        less(less(OBJECT, Rule::AttachNeedsToken), Rule::FirstObjectWins),
    ),
    Config {
        name: "object/second-key",
        what: "a second key on take-over: two attempts are open, and the object is one",
        expected: Expected::TwoOpen,
        ..less(two_workers(OBJECT), Rule::OneKeyAtATime)
    },
    safe(
        "object/decline-any-token",
        "a decline with a stale token",
        less(two_workers(OBJECT), Rule::DeclineNeedsToken),
    ),
    STICKY,
    safe(
        "sticky/blind",
        "nobody can look up: REVIEW, and people",
        blind(STICKY),
    ),
    safe(
        "sticky/wall-wrong",
        "wall time may say anything, ClusterTime never stands still",
        steady(wrong_wall(STICKY)),
    ),
    double(
        "sticky/both-clocks",
        "limit: wall time may say anything while ClusterTime stands still",
        wrong_wall(STICKY),
    ),
    double(
        "sticky/not-after-cluster-only",
        "not_after in ClusterTime alone, which stood still",
        less(STICKY, Rule::NotAfterInWallTime),
    ),
    double(
        "sticky/no-not-after",
        "the gate sends after not_after",
        less(STICKY, Rule::GateKeepsNotAfter),
    ),
    double(
        "sticky/late-sends",
        "a send outlives in_flight_max, and the key",
        late(STICKY),
    ),
    safe(
        "sticky/late-sends-kept-keys",
        "the same, but the provider never forgets a key, and nobody takes its silence for a no",
        Config {
            keys: Keys::Forever,
            people: false,
            ..late(blind(STICKY))
        },
    ),
    double(
        "sticky/second-key",
        "whoever takes over begins under a new key",
        less(STICKY, Rule::OneKeyAtATime),
    ),
    double(
        "sticky/look-up-any-token",
        "a look-up with a stale token",
        less(STICKY, Rule::LookUpNeedsToken),
    ),
    double(
        "sticky/look-up-old-lease",
        "a look-up under a lease granted before not_after + in_flight_max",
        less(STICKY, Rule::LookUpGrantedAfter),
    ),
    double(
        "sticky/look-up-early",
        "a look-up believed at any time",
        less(STICKY, Rule::LookUpAfterQuiet),
    ),
    double(
        "sticky/look-up-one-clock",
        "the look-up deadline by whichever clock passes it first, and wall time is wrong",
        less(steady(wrong_wall(STICKY)), Rule::LookUpBothClocks),
    ),
    safe(
        "sticky/decline-any-token",
        "a decline with a stale token: costs no money (FAULTS: caught otherwise)",
        less(STICKY, Rule::DeclineNeedsToken),
    ),
    double(
        "sticky/requeue-open",
        "requeue drops the attempt that is open",
        less(blind(STICKY), Rule::RequeueNotWhileOpen),
    ),
    double(
        "sticky/resolve-early",
        "a person's word before not_after + in_flight_max",
        less(blind(STICKY), Rule::ResolveAfterQuiet),
    ),
    safe(
        "sticky/resolve-while-leased",
        "a person's word while a lease stands, but not early",
        less(blind(STICKY), Rule::ResolveNotWhileLeased),
    ),
    double(
        "sticky/slow-person",
        "limit: a person looks before not_after + in_flight_max and speaks after it",
        Config {
            slow_people: true,
            ..blind(STICKY)
        },
    ),
    STICKY_RESTORE,
    safe(
        "sticky/restore-sole-send",
        "the same with two workers, and the no to the only send of an old key ends its attempt",
        Config {
            workers: 2,
            sole_send: true,
            ..STICKY_RESTORE
        },
    ),
    double(
        "sticky/restore-declines-believed",
        "a restored ledger believes at once that a decline is kept: the provider may forget an older one midway",
        less(STICKY_RESTORE, Rule::StickyNotAfterRestore),
    ),
    safe(
        "sticky/restore-new-keys",
        "the other cure: a restored ledger issues no key twice, and believes declines",
        Config {
            new_keys_after_restore: true,
            ..STICKY_RESTORE
        },
    ),
    double(
        "sticky/restore-open",
        "a restored ledger charges at once",
        less(STICKY_RESTORE, Rule::RestoreClosesCharges),
    ),
    double(
        "sticky/allow-early",
        "AllowCharges before everything sent has arrived",
        less(STICKY_RESTORE, Rule::AllowAfterQuiet),
    ),
    double(
        "sticky/allow-unread",
        "AllowCharges without a comparison of the books",
        less(STICKY_RESTORE, Rule::AllowAfterBooks),
    ),
    double(
        "sticky/begin-any-token",
        "begin with a stale token, whatever the status (after a restore: one in REVIEW that was charged)",
        less(
            less(STICKY_RESTORE, Rule::BeginNeedsToken),
            Rule::BeginOnlyProcessing,
        ),
    ),
    safe(
        "sticky/begin-any-token-i6",
        "begin with a stale token, but a new attempt on PROCESSING only (I6 still stands)",
        less(STICKY_RESTORE, Rule::BeginNeedsToken),
    ),
    double(
        "sticky/tokens-reused",
        "tokens of a restored ledger are granted again",
        less(STICKY_RESTORE, Rule::TokensJump),
    ),
    LOOSE,
    safe(
        "loose/blind",
        "nobody can look up: REVIEW, and people",
        blind(LOOSE),
    ),
    LOOSE_RESTORE,
    double(
        "loose/late-sends",
        "a send outlives in_flight_max, and the key",
        late(LOOSE),
    ),
    double(
        "loose/decline-no-finality",
        "a decline ends the attempt, whatever else is on the way",
        less(LOOSE, Rule::DeclineNeedsFinality),
    ),
    double(
        "loose/sticky-believed",
        "STICKY believed of a provider whose terms do not say so",
        less(LOOSE, Rule::StickyNeedsTerms),
    ),
    double(
        "loose/sole-send-taken-over",
        "SOLE_SEND believed after a take-over",
        less(LOOSE, Rule::SoleSendNotAfterTakeOver),
    ),
    double(
        "loose/sole-send-restarted",
        "SOLE_SEND believed after a gate restart: begin again is no take-over",
        less(LOOSE, Rule::BeginAgainIsTakeOver),
    ),
    double(
        "loose/closing-expires",
        "a closing attempt dies when time has passed",
        less(blind(LOOSE), Rule::ClosingNeedsEvidence),
    ),
    safe(
        "loose/decline-any-token",
        "a decline with a stale token: costs no money",
        less(LOOSE, Rule::DeclineNeedsToken),
    ),
    double(
        "loose/second-key",
        "whoever takes over begins under a new key",
        less(LOOSE, Rule::OneKeyAtATime),
    ),
    double(
        "loose/look-up-old-lease",
        "a look-up under a lease granted before not_after + in_flight_max",
        less(LOOSE, Rule::LookUpGrantedAfter),
    ),
    double(
        "loose/restore-open",
        "a restored ledger charges at once",
        less(LOOSE_RESTORE, Rule::RestoreClosesCharges),
    ),
    NOTHING,
    safe(
        "nothing/look-up",
        "no keys, but a look-up",
        Config {
            look_up: true,
            review_reachable: false,
            ..NOTHING
        },
    ),
    NOTHING_RESTORE,
    double(
        "nothing/no-not-after",
        "the gate sends after not_after",
        less(NOTHING, Rule::GateKeepsNotAfter),
    ),
    double(
        "nothing/late-sends",
        "limit: a send outlives in_flight_max",
        late(NOTHING),
    ),
    double(
        "nothing/second-send",
        "whoever takes over sends again",
        less(NOTHING, Rule::OneSend),
    ),
    double(
        "nothing/sole-send-restarted",
        "a gate that restarted sends again: begin again is no take-over",
        less(NOTHING, Rule::BeginAgainIsTakeOver),
    ),
    double(
        "nothing/resolve-early",
        "a person's word before not_after + in_flight_max",
        less(NOTHING, Rule::ResolveAfterQuiet),
    ),
];
