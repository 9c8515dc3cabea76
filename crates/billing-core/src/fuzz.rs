//! What this crate reads from outside or from disk, as plain functions of bytes: the ledger of a snapshot or a backup, commands
//! and answers as the log and other nodes carry them, audit records as they are hashed, ids as people and providers write them. Each panics where a promise is
//! broken and decides nothing; the tests below and any other fuzzer call them.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use serde::{Serialize, de::DeserializeOwned};

use crate::*;

/// A ledger is read whole or refused; what was read is written back as the same one. Its state hash, if there is one.
pub fn ledger(mut bytes: &[u8]) -> Option<[u8; 32]> {
    let ledger = Ledger::read_from(&mut bytes).ok()?;
    let mut written = Vec::new();
    ledger
        .write_to(&mut written)
        .expect("a Vec takes every byte");
    let again = Ledger::read_from(&mut written.as_slice()).expect("what was written is read");
    assert_eq!(again.state_hash(), ledger.state_hash());
    Some(ledger.state_hash())
}

/// What the log, the vote's neighbours and other nodes' messages are packed from.
pub fn packed(bytes: &[u8]) {
    packed_as::<Command>(bytes);
    packed_as::<Reply>(bytes);
    packed_as::<Rejection>(bytes);
    packed_as::<Stamp>(bytes);
    packed_as::<Vec<(Actor, Command)>>(bytes);
    packed_as::<What>(bytes);
}

fn packed_as<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    let Ok((value, rest)) = postcard::take_from_bytes::<T>(bytes) else {
        return;
    };
    let written = postcard::to_stdvec(&value).expect("a Vec takes every byte");
    assert!(
        written.len() <= bytes.len() - rest.len(),
        "nothing is made up"
    );
    assert_eq!(postcard::from_bytes::<T>(&written).ok(), Some(value));
}

/// A record of the audit log, in the one form that is hashed, or refused.
pub fn audit(bytes: &[u8]) {
    if let Ok(record) = AuditRecord::from_canonical(bytes, CHAIN_START) {
        // Its fields stand there one by one, and nothing else does.
        let (index, rest) = postcard::take_from_bytes::<u64>(bytes).expect("an index");
        let (at, rest) = postcard::take_from_bytes::<ClusterTime>(rest).expect("a time");
        let (wall, rest) = postcard::take_from_bytes::<WallTime>(rest).expect("a time");
        let (actor, rest) = postcard::take_from_bytes::<Actor>(rest).expect("a name");
        let (what, rest) = postcard::take_from_bytes::<What>(rest).expect("what happened");
        assert_eq!(
            (index, at, wall, actor, what),
            (
                record.index,
                record.at,
                record.wall,
                record.actor,
                record.what
            )
        );
        let rest = postcard::from_bytes(rest).expect("all that is left");
        assert_eq!((record.invoice, record.token, record.key), rest);
    }
}

/// Every id and every key has one spelling.
pub fn ids(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    spelled::<InvoiceId>(text);
    spelled::<CustomerId>(text);
    spelled::<HolderId>(text);
    spelled::<Reference>(text);
    spelled::<ObjectId>(text);
    spelled::<ProviderId>(text);
    spelled::<AccountId>(text);
    spelled::<Detail>(text);
    spelled::<DeclineCode>(text);
    spelled::<Evidence>(text);
    spelled::<Actor>(text);
    spelled::<LedgerId>(text);
    spelled::<IdempotencyKey>(text);
    if let Ok(currency) = Currency::new(text) {
        assert!(currency.as_str().eq_ignore_ascii_case(text));
    }
}

fn spelled<T: FromStr + Display>(text: &str) {
    if let Ok(value) = T::from_str(text) {
        assert_eq!(value.to_string(), text);
    }
}

/// Panics where a promise is broken.
pub type Body = fn(&[u8]);

/// Each of them, under its name.
pub const BODIES: &[(&str, Body)] = &[
    ("core_ledger", |bytes| {
        ledger(bytes);
    }),
    ("core_packed", packed),
    ("core_audit", audit),
    ("core_ids", ids),
];

#[cfg(test)]
mod tests {
    use billing_fuzz::proptest::collection::vec;
    use billing_fuzz::proptest::prelude::*;
    use billing_fuzz::{Decoder, Memory, holds};

    use super::*;

    fn text<T: FromStr<Err: Debug>>(text: &str) -> T {
        text.parse().expect("within its bounds")
    }

    fn ttl(ms: u64) -> TtlMs {
        TtlMs::new(ms).expect("within its bounds")
    }

    /// One thing that somebody asks of a ledger: which, of whom, of what, and how late.
    type Act = (u8, u8, u8, u64);

    fn acts(count: usize) -> impl Strategy<Value = Vec<Act>> {
        vec((0_u8..22, 0_u8..3, 0_u8..4, 0_u64..20_000), 0..count)
    }

    /// The token that stands on the invoice now, or one that never did.
    fn token(ledger: &Ledger, invoice: &InvoiceId) -> FencingToken {
        let lease = ledger.lease(invoice);
        lease.map_or(FencingToken(7), |lease| lease.token)
    }

    fn command(ledger: &Ledger, seq: u64, (kind, who, what, _): Act) -> Command {
        let session = SessionId::new([who; 16]);
        let invoice: InvoiceId = text(&format!("inv-{what}"));
        let token = token(ledger, &invoice);
        let key: IdempotencyKey = text(&format!("demo.{}.inv-{what}", 1 + kind % 2));
        let charged = Charged {
            reference: text(&format!("pi_{who}")),
            amount: None,
            currency: None,
        };
        let settle = |outcome| {
            Command::SettleCharge(Box::new(SettleCharge {
                invoice: invoice.clone(),
                token,
                key: key.clone(),
                outcome,
            }))
        };
        let acquire = |requester, wait| {
            Command::AcquireLease(AcquireLease {
                invoice: invoice.clone(),
                requester,
                wait: WaitMs::new(wait).expect("within its bounds"),
            })
        };
        let requester = Requester::Session {
            session,
            seq: Seq::new(seq + 1).expect("above zero"),
            done_below: 0,
            ttl: (kind % 2 == 0).then(|| ttl(2_000)),
        };
        match kind {
            0..=2 => Command::SubmitInvoice(SubmitInvoice {
                invoice,
                customer: text("cus-1"),
                amount: AmountMinor::new(500).expect("within its bounds"),
                currency: Currency::new("EUR").expect("a currency"),
                due_at: None,
                priority: Priority::default(),
            }),
            3 => Command::OpenSession(OpenSession {
                session,
                holder: text("ana"),
                ttl: ttl(30_000),
            }),
            4..=6 => acquire(requester, 0),
            7 | 8 => acquire(requester, 60_000),
            9 => acquire(
                Requester::Implicit {
                    request: RequestId::new([100 + who; 16]),
                    holder: text("ben"),
                    ttl: ttl(1_000),
                },
                60_000,
            ),
            10 => Command::ClaimInvoices(ClaimInvoices {
                session,
                seq: Seq::new(seq + 1).expect("above zero"),
                done_below: 0,
                max: ClaimMax::new(2).expect("within its bounds"),
            }),
            11 | 12 => Command::BeginCharge(BeginCharge {
                invoice,
                token,
                terms: Terms::manual().into(),
            }),
            13 => Command::AttachProviderObject(AttachProviderObject {
                invoice,
                token,
                object: text("pi_1"),
            }),
            14 => settle(Outcome::Charged(charged)),
            15 => settle(Outcome::Declined {
                code: text("card_declined"),
                retryable: true,
                finality: Finality::SoleSend,
            }),
            16 => settle(Outcome::Unknown {
                detail: Some(text("no answer")),
            }),
            17 => Command::ReleaseLease(ReleaseLease::ByToken { invoice, token }),
            18 => Command::CloseSession(CloseSession { session }),
            19 => Command::PauseProvider(PauseProvider {
                provider: text("manual"),
                paused: what % 2 == 0,
                reason: text("their outage"),
            }),
            20 => Command::RequeueInvoice(RequeueInvoice {
                invoice,
                reason: Some(text("card renewed")),
            }),
            _ => Command::Tick,
        }
    }

    fn ledger_of(acts: &[Act]) -> Ledger {
        let mut ledger = Ledger::new(Config::default());
        let mut at = 0;
        let mut apply = |ledger: &mut Ledger, late: u64, command| {
            at += late;
            let stamp = Stamp {
                base: ClusterTime(0),
                elapsed_ms: at,
                wall: WallTime(1_790_000_000_000 + at),
                wall_jumped_ms: 0,
            };
            let _ = ledger.apply(stamp, &[(text("tester"), command)]);
        };
        let bootstrap = Bootstrap {
            ledger_id: text("demo"),
            no_prior_charges: true,
        };
        apply(&mut ledger, 0, Command::Bootstrap(bootstrap));
        for (seq, act) in acts.iter().enumerate() {
            let command = command(&ledger, seq as u64, *act);
            apply(&mut ledger, act.3, command);
        }
        ledger
    }

    fn written(ledger: &Ledger) -> Vec<u8> {
        let mut bytes = Vec::new();
        ledger.write_to(&mut bytes).expect("a Vec takes every byte");
        bytes
    }

    /// Every kind of record: sessions open and ended, answers, waiters, attempts, charges.
    const BUSY: &[Act] = &[
        (3, 1, 0, 0),
        (3, 2, 0, 0),
        (0, 0, 0, 1),
        (0, 0, 1, 1),
        (0, 0, 2, 1),
        (4, 1, 0, 1),
        (7, 2, 0, 1),
        (9, 0, 0, 1),
        (11, 0, 0, 1),
        (13, 0, 0, 1),
        (5, 1, 1, 1),
        (11, 0, 1, 1),
        (14, 1, 1, 1),
        (4, 2, 2, 1),
        (12, 0, 2, 1),
        (16, 0, 2, 1),
        (9, 1, 3, 1),
        (19, 0, 0, 1),
        (21, 0, 0, 1_500),
    ];

    #[test]
    fn a_ledger_is_read_whole_or_refused() {
        let busy = ledger_of(BUSY);
        assert!(busy.waiters_count() > 0 && busy.leases_count() > 0 && busy.sessions_count() > 0);
        for wanted in [InvoiceStatus::Paid, InvoiceStatus::Charging] {
            let counts: Vec<_> = busy.counts().into_iter().collect();
            let found = counts.iter().find(|(status, _)| *status == wanted);
            assert!(found.is_some_and(|(_, count)| *count > 0), "{counts:?}");
        }
        let seeds: Vec<Vec<u8>> = [0, 6, 12, BUSY.len()]
            .map(|acts| written(&ledger_of(&BUSY[..acts])))
            .into();
        let decoder = Decoder {
            name: "core_ledger",
            seeds: &seeds,
            words: &[],
            memory: Memory {
                fixed: 1 << 20,
                per_byte: 64,
            },
        };
        decoder.check_sealed(ledger);
    }

    #[test]
    fn every_ledger_is_read_back_as_it_was() {
        holds("core_ledgers", acts(60), |acts| {
            let ledger = ledger_of(&acts);
            let bytes = written(&ledger);
            let read = Ledger::read_from(&mut bytes.as_slice()).expect("what was written is read");
            assert_eq!(read.state_hash(), ledger.state_hash());
            assert_eq!(written(&read), bytes);
        });
    }

    #[test]
    fn what_is_packed_is_unpacked_or_refused() {
        let ledger = ledger_of(BUSY);
        let commands: Vec<(Actor, Command)> = (0..22)
            .map(|kind| (text("tester"), command(&ledger, 7, (kind, 1, 0, 0))))
            .collect();
        let mut seeds: Vec<Vec<u8>> = commands
            .iter()
            .map(|(_, command)| postcard::to_stdvec(command).expect("packed"))
            .collect();
        seeds.push(postcard::to_stdvec(&commands).expect("packed"));
        seeds.push(postcard::to_stdvec(&Stamp::default()).expect("packed"));
        let rejection = Rejection::NotFound {
            invoice: text("inv-7"),
        };
        seeds.push(postcard::to_stdvec(&rejection).expect("packed"));
        for record in ledger.audit(1, 100).0 {
            seeds.push(postcard::to_stdvec(&record.what).expect("packed"));
        }
        let decoder = Decoder {
            name: "core_packed",
            seeds: &seeds,
            words: &[],
            // postcard believes no length beyond the bytes that are there; an item takes a byte or three, and up to 180 in memory.
            memory: Memory {
                fixed: 64 * 1024,
                per_byte: 512,
            },
        };
        decoder.check(packed);
    }

    #[test]
    fn an_audit_record_is_read_whole_or_refused() {
        let decoder = Decoder {
            name: "core_audit",
            seeds: &crate::ledger::audit::tests::every_kind(),
            words: &[b"\xff\xff\xff\xff\xff\xff\xff\xff", b"\x80\0", b"\0\0\0\0"],
            memory: Memory {
                fixed: 8_192,
                per_byte: 64,
            },
        };
        decoder.check(audit);
    }

    #[test]
    fn every_id_has_one_spelling() {
        let seeds = [
            "inv-7",
            "demo.1.inv-7",
            "demo.1000000.inv.7",
            "EUR",
            "Zoë's laptop",
            "pi_3N",
        ]
        .map(|text| text.as_bytes().to_vec());
        let decoder = Decoder {
            name: "core_ids",
            seeds: &seeds,
            words: &[b".", b"0", b"+1", b"\0", b" ", b"\xc3\xa9", b"1000001"],
            memory: Memory {
                fixed: 4_096,
                per_byte: 16,
            },
        };
        decoder.check(ids);
    }
}
