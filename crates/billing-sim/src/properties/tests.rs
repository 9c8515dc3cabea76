//! Every property that reads records rings on a log that breaks it, and is silent on the one beside it that does not.

use std::collections::BTreeMap;
use std::time::Duration;

use billing_core::{
    Actor, AuditRecord, CHAIN_START, ClusterTime, DeclineCode, FencingToken, Finality, HolderId,
    IdempotencyKey, InvoiceId, ObjectId, Reference, SessionId, WallTime, What, chain_hash,
};
use billing_server::raft::StateHash;
use porcupine_rs::CheckResult;

use super::acked_survives::keeps;
use super::same_request_same_answer::granted_once;
use super::*;
use crate::profile::{Provider, promises};
use crate::record::{Asked, Call, Forgotten, Heard, Promise, Send};

/// Numbered, chained records on one invoice.
#[derive(Default)]
struct Log(Vec<AuditRecord>);

impl Log {
    fn then(self, at_ms: u64, token: u64, what: What) -> Log {
        self.then_under("simulated.1.inv-1", at_ms, token, what)
    }

    fn then_under(mut self, key: &str, at_ms: u64, token: u64, what: What) -> Log {
        let mut record = AuditRecord {
            index: self.0.len() as u64 + 1,
            at: ClusterTime(at_ms),
            wall: WallTime(1_000_000 + at_ms),
            actor: Actor::ledger(),
            what,
            invoice: Some(InvoiceId::new("inv-1").expect("an id")),
            token: FencingToken(token),
            key: Some(IdempotencyKey::parse(key).expect("a key")),
            hash: CHAIN_START,
        };
        let before = self.0.last().map_or(CHAIN_START, |last| last.hash);
        record.hash = chain_hash(&before, &record.canonical());
        self.0.push(record);
        self
    }

    /// Charging is allowed, and `token` holds the lease.
    fn held(token: u64) -> Log {
        let evidence = billing_core::Evidence::new("the books").expect("evidence");
        let allowed = What::ChargesAllowed { evidence };
        Log::default()
            .then(0, 0, allowed)
            .then(0, token, acquired())
    }

    /// Each of them 1 ms after it was made.
    fn seen(self) -> Vec<Seen> {
        let seen = self.0.into_iter().map(|record| Seen {
            not_before: Duration::from_millis(record.at.0),
            at: Duration::from_millis(record.at.0 + 1),
            record,
        });
        seen.collect()
    }

    /// What the property says of it, record by record.
    fn shown_to(&self, property: &mut dyn Property, promises: &Promises) -> Verdict {
        let mut replay = Replay::default();
        for record in &self.0 {
            let seen = Duration::from_millis(record.at.0);
            replay.step(record, seen, |step| property.step(step, promises))?;
        }
        Ok(())
    }
}

fn holder() -> HolderId {
    HolderId::new("worker-1").expect("a holder")
}

fn acquired() -> What {
    What::Acquired {
        session: SessionId::new([1; 16]),
        holder: holder(),
    }
}

fn released() -> What {
    What::Released { holder: holder() }
}

fn declined(finality: Finality) -> What {
    What::Declined {
        code: DeclineCode::new("card_declined").expect("a code"),
        retryable: true,
        finality,
        proven: true,
    }
}

fn attached(object: &str) -> What {
    let object = ObjectId::new(object).expect("an object");
    What::ObjectAttached { object }
}

/// Whether it rings: on `broken`, and not on `whole`.
fn rings(mut property: impl FnMut() -> Box<dyn Property>, whole: &Log, broken: &Log) {
    let loose = promises(Provider::LooseKeys);
    let silent = whole.shown_to(&mut *property(), &loose);
    assert!(silent.is_ok(), "{silent:?}");
    assert!(broken.shown_to(&mut *property(), &loose).is_err());
}

#[test]
fn a_token_that_does_not_grow_rings() {
    let property = || Box::new(tokens_grow::TokensGrow) as Box<dyn Property>;
    let log = |token| {
        Log::held(5)
            .then(1, 5, released())
            .then(2, token, acquired())
    };
    rings(property, &log(6), &log(5));
}

#[test]
fn a_grant_while_another_lease_stands_rings() {
    let property = || Box::new(one_holder::OneHolder::default()) as Box<dyn Property>;
    let whole = Log::held(5).then(1, 5, released()).then(2, 6, acquired());
    rings(property, &whole, &Log::held(5).then(2, 6, acquired()));
}

#[test]
fn a_second_attempt_and_a_second_object_ring() {
    let property = || Box::new(one_open_attempt::OneOpenAttempt) as Box<dyn Property>;
    let begun = || Log::held(5).then(1, 5, What::Begun);
    rings(property, &begun(), &begun().then(2, 5, What::Begun));
    let twice = |object| {
        begun()
            .then(2, 5, attached("pi_1"))
            .then(3, 5, attached(object))
    };
    rings(property, &twice("pi_1"), &twice("pi_2"));
    let requeued = What::Requeued { reason: None };
    rings(property, &begun(), &begun().then(2, 0, requeued));
}

#[test]
fn an_attempt_before_charging_is_allowed_rings() {
    let property = || Box::new(one_open_attempt::OneOpenAttempt) as Box<dyn Property>;
    let early = Log::default()
        .then(0, 5, acquired())
        .then(1, 5, What::Begun);
    rings(property, &Log::held(5).then(1, 5, What::Begun), &early);
}

#[test]
fn a_holders_word_under_another_token_rings() {
    let property = || Box::new(stale_token_refused::StaleTokenRefused) as Box<dyn Property>;
    let log = |token| Log::held(5).then(1, token, What::Begun);
    rings(property, &log(5), &log(4));
}

#[test]
fn a_no_without_evidence_rings() {
    let property = || Box::new(doubt_needs_evidence::DoubtNeedsEvidence::default()) as _;
    let begun = || Log::held(5).then(1, 5, What::Begun);
    let sole = || declined(Finality::SoleSend);
    let taken_over = begun().then(2, 5, What::TakenOver).then(3, 5, sole());
    rings(property, &begun().then(2, 5, sole()), &taken_over);
    let sticky = begun().then(2, 5, declined(Finality::Sticky));
    rings(property, &begun(), &sticky);
    let object = || declined(Finality::Object);
    let with_object = begun().then(2, 5, attached("pi_1")).then(3, 5, object());
    rings(property, &with_object, &begun().then(2, 5, object()));
}

#[test]
fn a_look_up_under_a_lease_that_is_too_old_rings() {
    let property = || Box::new(doubt_needs_evidence::DoubtNeedsEvidence::default()) as _;
    let quiet = promises(Provider::LooseKeys).quiet_after_ms();
    let log = |granted_at| {
        Log::held(5)
            .then(1, 5, What::Begun)
            .then(2, 5, released())
            .then(granted_at, 6, acquired())
            .then(quiet + 9, 6, What::LookedUpNone { counts: true })
    };
    rings(property, &log(quiet + 2), &log(quiet + 1));
}

#[test]
fn a_charge_under_a_key_that_was_not_issued_rings() {
    let property = || Box::new(issued_keys_only::IssuedKeysOnly::default()) as Box<dyn Property>;
    let log = |key| {
        let reference = Reference::new("ch_1").expect("a reference");
        let charged = What::Charged { reference };
        Log::held(5)
            .then(1, 5, What::Begun)
            .then_under(key, 2, 5, charged)
    };
    rings(
        property,
        &log("simulated.1.inv-1"),
        &log("simulated.2.inv-1"),
    );
}

#[test]
fn a_request_that_is_granted_more_than_it_asked_for_rings() {
    let requests = Record::default();
    let seen = |count: usize| -> Vec<Seen> {
        let log = Log::held(5).then(1, 6, acquired()).then(2, 7, acquired());
        log.seen().into_iter().take(1 + count).collect()
    };
    assert!(granted_once(&seen(3), &requests).is_ok(), "many requests");
    requests.one_request(SessionId::new([1; 16]), 2);
    assert!(granted_once(&seen(2), &requests).is_ok());
    assert!(granted_once(&seen(3), &requests).is_err());
}

/// One call on the log's invoice.
fn call(called_ms: u64, returned_ms: u64, asked: Asked, heard: Heard) -> Call {
    Call {
        who: called_ms,
        invoice: "inv-1".to_owned(),
        asked,
        heard,
        called: Duration::from_millis(called_ms),
        returned: Some(Duration::from_millis(returned_ms)),
    }
}

fn in_some_order(calls: &[Call], log: Log, forgotten: &Forgotten) -> bool {
    let (calls, seen) = (calls.iter().collect::<Vec<_>>(), log.seen());
    let history = linearizable::history(&calls, &seen.iter().collect::<Vec<_>>(), forgotten);
    let result = porcupine_rs::check_operations_timeout(&history, Duration::from_secs(10));
    assert_ne!(result, CheckResult::Unknown);
    result == CheckResult::Ok
}

#[test]
fn a_late_word_of_a_charge_does_not_hide_when_its_lease_ended() {
    let charged = Asked::Settle {
        token: 5,
        charged: true,
    };
    let calls = [
        call(0, 5, Asked::Acquire, Heard::Granted { token: 5 }),
        call(20, 25, Asked::Acquire, Heard::Granted { token: 6 }),
        call(40, 45, charged, Heard::Settled),
    ];
    let log = |expired_ms| {
        let expired = What::LeaseExpired { holder: holder() };
        Log::default()
            .then(1, 5, acquired())
            .then(expired_ms, 5, expired)
            .then(21, 6, acquired())
            .then(41, 0, What::Paid)
    };
    assert!(in_some_order(&calls, log(10), &Forgotten::default()));
    // While the second was granted, it was not over yet.
    assert!(!in_some_order(&calls, log(30), &Forgotten::default()));
}

#[test]
fn a_release_and_its_record_are_one_end() {
    let released_at = |called, returned| {
        let heard = Heard::Released { was_current: true };
        let calls = [
            call(0, 5, Asked::Acquire, Heard::Granted { token: 5 }),
            call(called, returned, Asked::Release { token: 5 }, heard),
        ];
        let log = Log::default()
            .then(1, 5, acquired())
            .then(20, 5, released());
        in_some_order(&calls, log, &Forgotten::default())
    };
    assert!(released_at(15, 25));
    // Nothing was left to be ended.
    assert!(!released_at(30, 35));
}

/// Restored at 10 ms; what was made since 3 ms is forgotten, a lease with token 5 among it.
fn forgetful() -> Record {
    let record = Record::default();
    record.at(Duration::from_millis(10));
    record.forget(Duration::from_millis(3), [5]);
    record
}

#[test]
fn what_a_restore_forgets_explains_what_was_answered_then_and_nothing_else() {
    let granted =
        |called, returned, token| call(called, returned, Asked::Acquire, Heard::Granted { token });
    let free = |called, returned| call(called, returned, Asked::Get, Heard::Holds { token: None });
    // The backup has a lease, and the restored ledger another; both were let go.
    let log = || {
        Log::default()
            .then(1, 4, acquired())
            .then(12, 4, released())
            .then(20, 6, acquired())
    };
    let (nothing, forgotten) = (Forgotten::default(), forgetful().forgotten());
    let fits = |calls: &[Call], forgotten| in_some_order(calls, log(), forgotten);
    // Made and answered in between.
    assert!(!fits(&[granted(4, 6, 5)], &nothing));
    assert!(fits(&[granted(4, 6, 5)], &forgotten));
    // Asked before and answered in between; asked in between and answered after.
    assert!(!fits(&[granted(2, 4, 5)], &nothing));
    assert!(fits(&[granted(2, 4, 5)], &forgotten));
    assert!(!fits(&[granted(9, 11, 5)], &nothing));
    assert!(fits(&[granted(9, 11, 5)], &forgotten));
    // Answered before, and asked after.
    assert!(fits(&[granted(0, 1, 4)], &forgotten));
    assert!(!fits(&[granted(0, 1, 4), free(2, 2)], &forgotten));
    assert!(!fits(&[free(30, 31)], &forgotten));
    assert!(fits(&[free(14, 15)], &forgotten));
    // Asked when it was over.
    assert!(!fits(&[granted(10, 11, 5)], &forgotten));
}

/// The end of a world with one invoice over 111 in it, which was charged so often, and of which the log says this.
fn at_the_end(property: &mut dyn Property, log: Log, charged: &[u64]) -> Verdict {
    let rows: Vec<_> = charged
        .iter()
        .enumerate()
        .map(|(number, amount)| {
            serde_json::json!([format!("ch_{number}"), amount, "usd", "succeeded"])
        })
        .collect();
    let books = Books::from(serde_json::json!({ "invoices": { "inv-1": rows } }));
    let promises = promises(Provider::LooseKeys);
    property.look(&Moment {
        now: Duration::ZERO,
        nodes: &BTreeMap::new(),
        applied: &[],
        acts: &[],
        sends: &[],
        books: Some(&books),
        promises: &promises,
    })?;
    let mut replay = Replay::default();
    for record in &log.0 {
        replay.step(record, Duration::from_millis(record.at.0), |_| ());
    }
    property.end(&End {
        replay: &replay,
        records: &log.seen(),
        books: &books,
        record: &Record::default(),
        promises: &promises,
        invoices: &BTreeMap::from([("inv-1".to_owned(), 111)]),
    })
}

#[test]
fn a_second_charge_rings_and_so_does_a_log_that_differs_from_the_books() {
    let judged =
        |log: Log, charged: &[u64]| at_the_end(&mut one_charge::OneCharge, log, charged).is_ok();
    let open = || Log::held(5).then(1, 5, What::Begun);
    let paid = || open().then(2, 5, What::Paid);
    let failed = || open().then(2, 5, What::Failed);
    assert!(judged(paid(), &[111]));
    assert!(!judged(paid(), &[111, 111]));
    assert!(!judged(paid(), &[]));
    assert!(!judged(paid(), &[110]));
    assert!(judged(failed(), &[]));
    assert!(!judged(failed(), &[111]));
    assert!(judged(open(), &[111]));
    assert!(!judged(open(), &[111, 111]));
}

#[test]
fn an_invoice_that_stays_open_rings() {
    let judged = |log| at_the_end(&mut every_invoice_ends::EveryInvoiceEnds, log, &[]).is_ok();
    let open = || Log::held(5).then(1, 5, What::Begun);
    assert!(!judged(open()));
    assert!(judged(open().then(2, 5, What::Paid)));
    assert!(judged(open().then(2, 5, What::Failed)));
}

#[test]
fn what_was_promised_before_a_disaster_binds_and_after_a_restore_too() {
    let kept = |heard_ms, promise: Promise| {
        let record = Record::default();
        let log = Log::held(4).seen();
        if heard_ms >= 10 {
            record.at(Duration::from_millis(10));
            record.forget(Duration::from_millis(3), [5]);
        }
        record.at(Duration::from_millis(heard_ms));
        record.promise(&InvoiceId::new("inv-1").expect("an id"), promise);
        if heard_ms < 10 {
            record.at(Duration::from_millis(10));
            record.forget(Duration::from_millis(3), [5]);
        }
        let end = End {
            replay: &Replay::default(),
            records: &log,
            books: &Books::default(),
            record: &record,
            promises: &promises(Provider::Objects),
            invoices: &BTreeMap::new(),
        };
        acked_survives::AckedSurvives.end(&end).is_ok()
    };
    let granted = |token| Promise::Granted { token };
    let over = |token| Promise::Released {
        token,
        was_current: false,
    };
    assert!(kept(1, granted(4)));
    assert!(!kept(1, granted(7)));
    assert!(kept(5, granted(7)));
    assert!(!kept(10, granted(7)));
    // The new ledger must not know a lease that it forgot, but it may say that it is over.
    assert!(!kept(20, granted(5)));
    assert!(kept(20, over(5)));
    assert!(!kept(20, over(7)));
}

#[test]
fn a_log_whose_time_goes_back_rings() {
    let property = || Box::new(clock_never_back::ClockNeverBack::default()) as Box<dyn Property>;
    let log = |at| Log::held(5).then(7, 5, What::Begun).then(at, 5, released());
    rings(property, &log(7), &log(6));
}

#[test]
fn a_release_is_kept_by_an_end_and_not_by_the_grant() {
    let log = Log::held(5).then(1, 5, released());
    for was_current in [true, false] {
        let promise = Promise::Released {
            token: 5,
            was_current,
        };
        assert!(!keeps(&log.0[1], &promise), "the grant");
        assert!(keeps(&log.0[2], &promise), "the end");
    }
    let granted = Promise::Granted { token: 5 };
    assert!(keeps(&log.0[1], &granted) && !keeps(&log.0[2], &granted));
    // Whose lease had ended by itself was not told that the release ended it.
    let expired = Log::held(5).then(1, 5, What::LeaseExpired { holder: holder() });
    let told = |was_current| Promise::Released {
        token: 5,
        was_current,
    };
    assert!(keeps(&expired.0[2], &told(false)) && !keeps(&expired.0[2], &told(true)));
}

/// The provider hears the key of the log's attempt.
fn heard(property: &mut dyn Property) -> Verdict {
    let send = Send {
        at: Duration::ZERO,
        from: "worker-1".to_owned(),
        key: "simulated.1.inv-1".to_owned(),
    };
    property.look(&Moment {
        now: Duration::ZERO,
        nodes: &BTreeMap::new(),
        applied: &[],
        acts: &[],
        sends: &[send],
        books: None,
        promises: &promises(Provider::LooseKeys),
    })
}

#[test]
fn a_second_send_of_a_key_that_its_only_send_ended_rings() {
    let loose = promises(Provider::LooseKeys);
    let told = Log::held(5)
        .then(1, 5, What::Begun)
        .then(2, 5, declined(Finality::SoleSend));
    // Before the word.
    let mut once = doubt_needs_evidence::DoubtNeedsEvidence::default();
    assert!(heard(&mut once).is_ok());
    assert!(told.shown_to(&mut once, &loose).is_ok(), "one send");
    let mut twice = doubt_needs_evidence::DoubtNeedsEvidence::default();
    assert!(heard(&mut twice).is_ok() && heard(&mut twice).is_ok());
    assert!(told.shown_to(&mut twice, &loose).is_err(), "two sends");
    // And after it.
    assert!(heard(&mut once).is_err(), "one that came late");
}

/// One look at two nodes.
fn looked(
    property: &mut dyn Property,
    states: [(u64, u64, u8); 2],
    applied: &[(u64, Vec<AuditRecord>)],
) -> Verdict {
    let view = |(id, index, hash): (u64, u64, u8)| {
        let state = StateHash {
            index,
            hash: [hash; 32],
        };
        let view = NodeView {
            state,
            cluster_time: ClusterTime(0),
        };
        (id, view)
    };
    property.look(&Moment {
        now: Duration::ZERO,
        nodes: &BTreeMap::from(states.map(view)),
        applied,
        acts: &[],
        sends: &[],
        books: None,
        promises: &promises(Provider::Objects),
    })
}

#[test]
fn states_that_differ_at_one_index_ring() {
    let mut property = replicas_agree::ReplicasAgree::default();
    assert!(looked(&mut property, [(1, 7, 1), (2, 6, 2)], &[]).is_ok());
    assert!(looked(&mut property, [(1, 7, 1), (2, 7, 2)], &[]).is_err());
}

#[test]
fn a_record_that_is_another_one_elsewhere_rings() {
    let states = [(1, 7, 1), (2, 7, 1)];
    let log = Log::held(5).0;
    let other = Log::held(6).0;
    let mut same = audit_chain::AuditChain::default();
    assert!(looked(&mut same, states, &[(1, log.clone()), (2, log.clone())]).is_ok());
    let mut differs = audit_chain::AuditChain::default();
    assert!(looked(&mut differs, states, &[(1, log), (2, other)]).is_err());
}
