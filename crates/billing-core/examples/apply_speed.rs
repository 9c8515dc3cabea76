//! Prints what one command costs inside the ledger, in CPU time: acquire and release, at several sizes of the table. Times
//! this crate alone, on one thread; decides nothing.
//!
//! `cargo run --release -p billing-core --example apply_speed [pairs [invoices]]`

#![allow(clippy::expect_used, reason = "an example: what it makes is in bounds")]

use billing_core::*;

const PAIRS: u64 = 400_000;
const PER_ENTRY: usize = 512; // About what the proposer finds queued under load.
const SESSIONS: u64 = 256;

fn main() {
    let number = |nth| std::env::args().nth(nth).and_then(|text| text.parse().ok());
    let pairs = number(1).unwrap_or(PAIRS);
    let sizes = number(2).map_or(vec![1_000, 100_000, 1_000_000], |size| vec![size]);
    println!("ns per command, acquire and release in turn, {PER_ENTRY} commands per entry:");
    println!(
        "{:>10}  {:>9}  {:>9}  {:>9}  {:>9}",
        "invoices", "session", "implicit", "lists", "unknown"
    );
    for invoices in sizes {
        let by_session = time(invoices, pairs, Kind::Session);
        let implicit = time(invoices, pairs, Kind::Implicit);
        let lists = time(invoices, pairs, Kind::Lists);
        let unknown = time(invoices, pairs, Kind::Unknown);
        println!("{invoices:>10}  {by_session:>9}  {implicit:>9}  {lists:>9}  {unknown:>9}");
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// By sessions that are open all the time.
    Session,
    /// Each with a session of its own.
    Implicit,
    /// By sessions, a hundred in one command.
    Lists,
    /// By sessions, on ids that were never submitted.
    Unknown,
}

struct World {
    ledger: Ledger,
    actor: Actor,
    elapsed_ms: u64,
    inside: u64,
}

impl World {
    fn apply(&mut self, commands: Vec<Command>) -> Applied {
        self.elapsed_ms += 1;
        let stamp = Stamp {
            base: ClusterTime(0),
            elapsed_ms: self.elapsed_ms,
            wall: WallTime(1_790_000_000_000 + self.elapsed_ms),
            wall_jumped_ms: 0,
        };
        let batch: Vec<(Actor, Command)> = commands
            .into_iter()
            .map(|command| (self.actor.clone(), command))
            .collect();
        let began = cpu_ns();
        let applied = self.ledger.apply(stamp, &batch);
        self.inside += cpu_ns() - began;
        applied
    }
}

/// What this thread had of a CPU: on a busy machine the wall clock says nothing. Counted by the kernel in ticks, so only a
/// long sum is exact.
fn cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux has it");
    let ns = text.split(' ').next().and_then(|ns| ns.parse().ok());
    ns.expect("the first number is the time on a CPU")
}

fn id16(number: u64) -> [u8; 16] {
    // Ids are drawn by chance, so they come in no order.
    let mixed = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut id = [0; 16];
    id[..8].copy_from_slice(&mixed.to_be_bytes());
    id[8..].copy_from_slice(&number.to_be_bytes());
    id
}

fn invoice(number: u64) -> InvoiceId {
    InvoiceId::new(&format!("inv-{number:09}")).expect("short")
}

fn world(invoices: u64) -> World {
    let mut world = World {
        ledger: Ledger::new(Config::default()),
        actor: Actor::new("worker").expect("short"),
        elapsed_ms: 0,
        inside: 0,
    };
    world.apply(vec![Command::Bootstrap(Bootstrap {
        ledger_id: LedgerId::new("speed").expect("short"),
        no_prior_charges: true,
    })]);
    for from in (0..invoices).step_by(PER_ENTRY) {
        let submits = (from..invoices.min(from + PER_ENTRY as u64)).map(|number| {
            Command::SubmitInvoice(SubmitInvoice {
                invoice: invoice(number),
                customer: CustomerId::new(&format!("cus-{}", number % 1_000)).expect("short"),
                amount: AmountMinor::new(1_000).expect("in bounds"),
                currency: Currency::new("EUR").expect("known"),
                due_at: None,
                priority: Priority::default(),
            })
        });
        let submits = submits.collect();
        world.apply(submits);
    }
    let opens = (0..SESSIONS).map(|number| {
        Command::OpenSession(OpenSession {
            session: SessionId::new(id16(number)),
            holder: HolderId::new("worker-1").expect("short"),
            ttl: TtlMs::new(300_000).expect("in bounds"),
        })
    });
    let opens = opens.collect();
    world.apply(opens);
    world
}

fn time(invoices: u64, pairs: u64, kind: Kind) -> u64 {
    let mut world = world(invoices);
    world.inside = 0;
    let mut next = 0_u64;
    let mut seqs = vec![0_u64; SESSIONS as usize];
    // What is acquired in one entry is released in the next, among the acquires of others.
    let mut held: Vec<(InvoiceId, FencingToken)> = Vec::new();
    while next < pairs {
        let mut acquires = Vec::with_capacity(PER_ENTRY / 2);
        for _ in 0..PER_ENTRY / 2 {
            let number = next.wrapping_mul(7_919) % invoices;
            let id = match kind {
                Kind::Unknown => InvoiceId::new(&format!("free-{number:09}")).expect("short"),
                Kind::Session | Kind::Implicit | Kind::Lists => invoice(number),
            };
            let requester = match kind {
                Kind::Implicit => Requester::Implicit {
                    request: RequestId::new(id16((1 << 40) + next)),
                    holder: HolderId::new("worker-1").expect("short"),
                    ttl: TtlMs::new(30_000).expect("in bounds"),
                },
                Kind::Session | Kind::Lists | Kind::Unknown => {
                    let nth = (next % SESSIONS) as usize;
                    seqs[nth] += 1;
                    Requester::Session {
                        session: SessionId::new(id16(nth as u64)),
                        seq: Seq::new(seqs[nth]).expect("from 1"),
                        done_below: seqs[nth].saturating_sub(2),
                        ttl: None,
                    }
                }
            };
            next += 1;
            acquires.push(AcquireLease {
                invoice: id,
                requester,
                wait: WaitMs::new(0).expect("in bounds"),
            });
        }
        let releases: Vec<ReleaseLease> = held
            .drain(..)
            .map(|(invoice, token)| ReleaseLease::ByToken { invoice, token })
            .collect();
        let commands = match kind {
            Kind::Lists => {
                let releases = releases
                    .chunks(100)
                    .map(|some| Command::ReleaseLeases(some.to_vec()));
                let acquires = acquires
                    .chunks(100)
                    .map(|some| Command::AcquireLeases(some.to_vec()));
                releases.chain(acquires).collect()
            }
            Kind::Session | Kind::Implicit | Kind::Unknown => {
                let mut mixed = Vec::with_capacity(PER_ENTRY);
                let mut releases = releases.into_iter();
                for acquire in acquires {
                    mixed.extend(releases.next().map(Command::ReleaseLease));
                    mixed.push(Command::AcquireLease(acquire));
                }
                mixed
            }
        };
        let applied = world.apply(commands);
        for result in applied.results {
            keep(result, &mut held);
        }
    }
    world.inside / (next * 2)
}

fn keep(result: Result<Reply, Rejection>, held: &mut Vec<(InvoiceId, FencingToken)>) {
    match result.expect("nothing is refused here") {
        Reply::Leased(leased) => held.push((leased.lease.invoice, leased.lease.token)),
        Reply::Each(results) => {
            for result in results {
                keep(result, held);
            }
        }
        Reply::Released { was_current } => assert!(was_current, "it was held"),
        other => panic!("not an answer to these: {other:?}"),
    }
}
