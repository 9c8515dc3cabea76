//! What no story can show: that the alarms ring when the state is broken by hand, that a snapshot is the same ledger or
//! refused, and that a clone stays as it was.

use super::audit::{CHAIN_START, verify_chain};
use super::state::{Phase, Proof};
use super::*;
use crate::command::*;
use crate::currency::Currency;
use crate::reply::AttemptState;

fn stamp(ms: u64) -> Stamp {
    Stamp {
        base: ClusterTime(0),
        elapsed_ms: ms,
        wall: WallTime(1_790_000_000_000 + ms),
        wall_jumped_ms: 0,
    }
}

fn id(text: &str) -> InvoiceId {
    InvoiceId::new(text).unwrap()
}

const ANA: SessionId = SessionId::new([1; 16]);

fn one(ledger: &mut Ledger, ms: u64, command: Command) -> Result<Reply, Rejection> {
    let applied = ledger.apply(stamp(ms), &[(Actor::new("tester").unwrap(), command)]);
    applied.results.into_iter().next().unwrap()
}

fn acquire(ledger: &mut Ledger, ms: u64, seq: u64, invoice: &str, wait_ms: u64) -> FencingToken {
    let requester = Requester::Session {
        session: ANA,
        seq: Seq::new(seq).unwrap(),
        done_below: 0,
        ttl: TtlMs::new(200_000).ok(),
    };
    let wait = WaitMs::new(wait_ms).unwrap();
    match one(
        ledger,
        ms,
        Command::AcquireLease(AcquireLease {
            invoice: id(invoice),
            requester,
            wait,
        }),
    ) {
        Ok(Reply::Leased(leased)) => leased.lease.token,
        Ok(_) | Err(_) => FencingToken::NONE,
    }
}

fn submit(ledger: &mut Ledger, ms: u64, invoice: &str) {
    let submit = SubmitInvoice {
        invoice: id(invoice),
        customer: CustomerId::new("cus-1").unwrap(),
        amount: AmountMinor::new(500).unwrap(),
        currency: Currency::new("EUR").unwrap(),
        due_at: None,
        priority: Priority::default(),
    };
    assert_eq!(
        one(ledger, ms, Command::SubmitInvoice(submit)),
        Ok(Reply::Submitted { unchanged: false })
    );
}

/// One invoice of nearly every kind, a waiter, an ended session.
fn busy() -> Ledger {
    let mut ledger = Ledger::new(Config::default());
    let bootstrap = Bootstrap {
        ledger_id: LedgerId::new("L").unwrap(),
        no_prior_charges: true,
    };
    one(&mut ledger, 0, Command::Bootstrap(bootstrap)).unwrap();
    let open = |session| OpenSession {
        session,
        holder: HolderId::new("ana").unwrap(),
        ttl: TtlMs::new(300_000).unwrap(),
    };
    one(&mut ledger, 0, Command::OpenSession(open(ANA))).unwrap();
    one(
        &mut ledger,
        0,
        Command::CloseSession(CloseSession {
            session: SessionId::new([9; 16]),
        }),
    )
    .unwrap();
    for invoice in [
        "charging", "doubtful", "paid", "pending", "leased", "failed",
    ] {
        submit(&mut ledger, 1, invoice);
    }
    let terms = Arc::new(Terms {
        sticky: true,
        can_look_up: true,
        ..Terms::manual()
    });
    for (seq, invoice) in [(1, "charging"), (2, "doubtful"), (3, "paid"), (4, "failed")] {
        let token = acquire(&mut ledger, 2, seq, invoice, 0);
        let begin = BeginCharge {
            invoice: id(invoice),
            token,
            terms: Arc::clone(&terms),
        };
        one(&mut ledger, 2, Command::BeginCharge(begin)).unwrap();
        let outcome = match invoice {
            "doubtful" => Outcome::Unknown { detail: None },
            "paid" => Outcome::Charged(Charged {
                reference: Reference::new("ch-1").unwrap(),
                amount: None,
                currency: None,
            }),
            "failed" => Outcome::Declined {
                code: DeclineCode::new("stolen").unwrap(),
                retryable: false,
                finality: Finality::Sticky,
            },
            _ => continue,
        };
        let key = IdempotencyKey::parse(&format!("L.1.{invoice}")).unwrap();
        let settle = SettleCharge {
            invoice: id(invoice),
            token,
            key,
            outcome,
        };
        one(&mut ledger, 3, Command::SettleCharge(Box::new(settle))).unwrap();
    }
    acquire(&mut ledger, 4, 5, "leased", 0);
    acquire(&mut ledger, 4, 6, "plain", 0);
    acquire(&mut ledger, 5, 7, "leased", 60_000);
    ledger.rehash_stale();
    assert_eq!(ledger.check_invariants(), Ok(()));
    ledger
}

/// Breaks a copy of the busy ledger, and expects this rule to ring.
#[track_caller]
fn rings(rule: &str, break_it: impl FnOnce(&mut Ledger)) {
    let mut ledger = busy();
    break_it(&mut ledger);
    match ledger.check_invariants() {
        Err(broken) => assert_eq!(broken.rule, rule, "{broken}"),
        Ok(()) => panic!("nothing rang"),
    }
}

fn edit(ledger: &mut Ledger, invoice: &str, change: impl FnOnce(&mut Invoice)) {
    change(Arc::make_mut(
        ledger.invoices.get_mut(&id(invoice)).unwrap(),
    ));
}

#[test]
fn i1_rings_when_two_attempts_are_open_or_a_paid_invoice_was_not_charged_once() {
    rings("I1", |ledger| {
        edit(ledger, "charging", |invoice| {
            let mut second = invoice.attempts[0].clone();
            second.number = AttemptNumber::new(2).unwrap();
            invoice.number_last = 2;
            invoice.attempts.push(second);
        });
    });
    rings("I1", |ledger| {
        edit(ledger, "paid", |invoice| invoice.attempts.clear())
    });
    rings("I1", |ledger| {
        edit(ledger, "pending", |invoice| invoice.phase = Phase::Paid)
    });
}

#[test]
fn i2_rings_when_leases_sessions_queues_and_indexes_disagree() {
    rings("I2", |ledger| {
        edit(ledger, "leased", |invoice| invoice.lease = None)
    });
    rings("I2", |ledger| {
        edit(ledger, "leased", |invoice| invoice.phase = Phase::Failed)
    });
    rings("I2", |ledger| {
        edit(ledger, "leased", |invoice| {
            invoice.queue = CowMap::default()
        })
    });
    rings("I2", |ledger| {
        Arc::make_mut(ledger.sessions.get_mut(&ANA).unwrap())
            .leases
            .insert(FencingToken(1), id("pending"));
    });
    rings("I2", |ledger| {
        let due = ledger.index.due.first().map(|(key, _)| *key).unwrap();
        ledger.index.due.remove(&due);
    });
    rings("I2", |ledger| {
        ledger.index.counts[InvoiceStatus::Paid as usize] += 1
    });
}

#[test]
fn i3_rings_when_a_token_was_never_granted_or_stands_twice() {
    rings("I3", |ledger| {
        edit(ledger, "pending", |invoice| {
            invoice.token_last = FencingToken(u64::MAX)
        })
    });
    rings("I3", |ledger| {
        let token = ledger.invoice(&id("plain")).unwrap().lease_token();
        edit(ledger, "leased", |invoice| {
            invoice.token_last = token;
            invoice.lease.as_mut().unwrap().token = token;
        });
    });
    rings("I3", |ledger| {
        edit(ledger, "leased", |invoice| {
            invoice.lease.as_mut().unwrap().token.0 -= 1
        })
    });
}

#[test]
fn i4_rings_when_time_passed_a_deadline_or_went_back() {
    rings("I4", |ledger| ledger.scalars.now = ClusterTime(400_000));
    rings("I4", |ledger| {
        Arc::make_mut(ledger.sessions.get_mut(&ANA).unwrap()).deadline = Some(ClusterTime(299_999));
    });
    let ledger = busy();
    assert_eq!(
        ledger
            .check_touched(ClusterTime(6))
            .map_err(|broken| broken.rule),
        Err("I4")
    );
}

#[test]
fn i5_rings_when_an_attempt_is_over_without_good_evidence() {
    rings("I5", |ledger| {
        edit(ledger, "failed", |invoice| invoice.attempts[0].proof = None);
    });
    rings("I5", |ledger| {
        edit(ledger, "doubtful", |invoice| {
            let (at, wall) = (ClusterTime(5), WallTime(1_790_000_000_005)); // Long before nothing could be in flight.
            invoice.attempts[0].state = AttemptState::Cancelled;
            invoice.attempts[0].proof = Some(Proof::LookedUp {
                granted_at: at,
                granted_wall: wall,
            });
        });
    });
    rings("I5", |ledger| {
        edit(ledger, "failed", |invoice| {
            invoice.attempts[0].proof = Some(Proof::Declined {
                finality: Finality::Object,
                object: None,
            });
        });
    });
}

#[test]
fn i6_rings_when_attempt_numbers_could_come_again() {
    rings("I6", |ledger| {
        edit(ledger, "charging", |invoice| invoice.number_last = 0)
    });
}

#[test]
#[should_panic(expected = "only while PROCESSING")]
fn i6_rings_when_an_attempt_would_open_beside_another() {
    let mut ledger = busy();
    // The door checks it too; broken by hand behind the door, the second lock must hold.
    let token = ledger.invoice(&id("charging")).unwrap().lease_token();
    let terms = Arc::new(Terms::manual());
    let _ = ledger.open_attempt(&BeginCharge {
        invoice: id("charging"),
        token,
        terms,
    });
}

#[test]
fn i7_rings_when_a_record_changed_behind_the_hash() {
    rings("I7", |ledger| {
        edit(ledger, "pending", |invoice| invoice.retries = 3)
    });
    rings("I7", |ledger| {
        let session = Arc::make_mut(ledger.sessions.get_mut(&ANA).unwrap());
        session.answered.remove(&1);
    });
}

fn bytes(ledger: &Ledger) -> Vec<u8> {
    let mut bytes = Vec::new();
    ledger.write_to(&mut bytes).unwrap();
    bytes
}

fn read_back(mut bytes: &[u8]) -> Result<Ledger, BadSnapshot> {
    let read = Ledger::read_from(&mut bytes)?;
    assert!(bytes.is_empty(), "it was read to its end");
    Ok(read)
}

#[test]
fn a_snapshot_is_the_same_ledger_and_goes_on_the_same() {
    let mut ledger = busy();
    let mut back = read_back(&bytes(&ledger)).unwrap();
    assert_eq!(back.state_hash(), ledger.state_hash());
    for (ms, seq) in [(6, 8), (60_010, 9), (200_010, 10), (400_000, 11)] {
        let claim = Command::ClaimInvoices(ClaimInvoices {
            session: ANA,
            seq: Seq::new(seq).unwrap(),
            done_below: 0,
            max: ClaimMax::new(2).unwrap(),
        });
        let batch = [(Actor::new("tester").unwrap(), claim)];
        assert_eq!(
            back.apply(stamp(ms), &batch),
            ledger.apply(stamp(ms), &batch),
            "at {ms}"
        );
        // Asked with what it computes kept or not, again and again: the same.
        assert_eq!(back.state_hash_kept(), ledger.state_hash(), "at {ms}");
        assert_eq!(back.state_hash(), ledger.state_hash(), "at {ms}");
    }
}

#[test]
fn a_clone_stays_as_it_was_while_applying_goes_on() {
    let mut ledger = busy();
    let then = (ledger.clone(), ledger.state_hash(), bytes(&ledger));
    for n in 0..500 {
        submit(&mut ledger, 6, &format!("later-{n}"));
    }
    one(&mut ledger, 500_000, Command::Tick).unwrap();
    assert_ne!(ledger.state_hash(), then.1);
    assert_eq!(then.0.state_hash(), then.1);
    assert_eq!(bytes(&then.0), then.2);
    assert_eq!(then.0.check_invariants(), Ok(()));
}

#[test]
fn a_damaged_snapshot_is_an_error_whatever_bit_was_flipped_and_wherever_it_was_cut() {
    let good = bytes(&busy());
    for cut in 0..good.len() {
        assert!(read_back(&good[..cut]).is_err(), "cut at {cut}");
    }
    for at in 0..good.len() {
        let mut flipped = good.clone();
        flipped[at] ^= 1 << (at % 8);
        assert!(read_back(&flipped).is_err(), "flipped at {at}");
    }
}

#[test]
fn a_snapshot_of_a_newer_format_says_what_to_do() {
    let mut newer = bytes(&busy());
    assert_eq!(newer[..2], [5, 0], "the format comes first");
    newer[0] = 6;
    let refused = read_back(&newer).err().map(|refused| refused.to_string());
    assert_eq!(
        refused.as_deref(),
        Some("the snapshot has format 6, this binary reads up to 5: use a newer binary")
    );
}

#[test]
fn a_change_anywhere_in_the_audit_log_is_found() {
    let ledger = busy();
    let (records, anchor) = ledger.audit(0, 1_000);
    assert_eq!(
        (anchor, records.len() as u64),
        (CHAIN_START, ledger.audit_last_index())
    );
    assert_eq!(verify_chain(&records, anchor), Ok(ledger.audit.head()));
    for nth in 0..records.len() {
        let mut forged = records.clone();
        forged[nth].actor = Actor::new("somebody else").unwrap();
        assert!(verify_chain(&forged, anchor).is_err(), "record {nth}");
        let mut shorter = records.clone();
        shorter.remove(nth);
        let last = nth + 1 == records.len();
        assert_eq!(
            verify_chain(&shorter, anchor).is_ok(),
            last,
            "without record {nth}"
        ); // The head tells the last one.
    }
}

#[test]
fn the_audit_log_drops_whole_chunks_and_keeps_the_chain() {
    let config = Config {
        audit_records_max: 2 * AUDIT_CHUNK_RECORDS,
        ..Config::default()
    };
    let mut ledger = Ledger::new(config);
    let bootstrap = Bootstrap {
        ledger_id: LedgerId::new("L").unwrap(),
        no_prior_charges: true,
    };
    one(&mut ledger, 0, Command::Bootstrap(bootstrap)).unwrap();
    for n in 0..2 * AUDIT_CHUNK_RECORDS + 10 {
        submit(&mut ledger, 1, &format!("inv-{n}"));
    }
    let first = ledger.audit_first_index();
    assert_eq!(first, AUDIT_CHUNK_RECORDS as u64 + 1);
    let (records, anchor) = ledger.audit(0, 1_000);
    assert_eq!(records[0].index, first);
    assert!(verify_chain(&records, anchor).is_ok() && verify_chain(&records, CHAIN_START).is_err());
    assert!(
        ledger.history(&id("inv-0")).is_empty(),
        "its record was dropped"
    );
    let history = ledger.history(&id("inv-2000"));
    assert_eq!(
        history
            .iter()
            .map(|record| record.what.word())
            .collect::<Vec<_>>(),
        ["submitted"]
    );
    let back = read_back(&bytes(&ledger)).unwrap();
    assert_eq!(
        (back.audit_first_index(), back.state_hash()),
        (first, ledger.state_hash())
    );
}

#[test]
fn pages_hold_every_record_once_and_counts_agree() {
    let ledger = busy();
    for (status, count) in ledger.counts() {
        let (mut seen, mut after) = (0, None);
        loop {
            let page = ledger.invoices(Some(status), None, after.as_ref(), 1);
            let Some(view) = page.last() else { break };
            assert_eq!(view.status, status);
            after = Some(view.invoice.clone());
            seen += page.len() as u64;
        }
        assert_eq!(seen, count, "{status}");
    }
    let leases = ledger.leases(None, 10);
    assert_eq!(
        leases
            .iter()
            .map(|lease| lease.invoice.as_str())
            .collect::<Vec<_>>(),
        ["charging", "leased", "plain"]
    );
    assert_eq!(
        ledger.leases(Some(&id("charging")), 1)[0].invoice,
        id("leased")
    );
    assert_eq!(ledger.leases_count(), 3);
    assert_eq!(ledger.in_doubt(None, 10).len(), 1);
}
