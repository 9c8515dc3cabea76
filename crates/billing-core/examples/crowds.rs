//! Prints what crowds cost the ledger, in CPU time and in memory: a clone and the writes after it, ten thousand waiters, a
//! hundred thousand leases that expire at once, and the bytes of each kind of record. Decides nothing.
//!
//! `cargo run --release -p billing-core --example crowds [invoices]`

#![allow(clippy::expect_used, reason = "an example: what it makes is in bounds")]

use std::hint::black_box;
use std::time::Instant;

use billing_core::*;

const INVOICES: u64 = 1_000_000;
const LEASES: u64 = 100_000;
const WAITERS: u64 = 10_000;
const PER_ENTRY: u64 = 512;

fn main() {
    let invoices = std::env::args().nth(1).and_then(|text| text.parse().ok());
    let invoices: u64 = invoices.unwrap_or(INVOICES);
    let mut crowd = Crowd::new();

    let before = resident();
    crowd.many(invoices, submit);
    say_bytes("invoice, with its audit record", before, invoices);
    let before = resident();
    crowd.many(LEASES, |n| acquire(n, invoice(n), 30_000, 0));
    say_bytes(
        "lease with a session of its own, with its audit record",
        before,
        LEASES,
    );

    // Too short for the kernel's ticks: by the wall clock, the best of some, since others use this machine as well.
    let clones = (0..20).map(|_| {
        let began = Instant::now();
        black_box(crowd.ledger.clone());
        began.elapsed().as_micros()
    });
    let best = clones.min().unwrap_or(0);
    println!("clone of {invoices} invoices and {LEASES} leases: {best} us");
    let clone = crowd.ledger.clone();
    let mut after: Vec<u128> = Vec::new();
    for nth in 0..40 {
        let first = LEASES + nth * PER_ENTRY;
        let free = |n| invoice(LEASES + n * 7_919 % (invoices - LEASES));
        let batch = (first..first + PER_ENTRY).map(|n| acquire(n, free(n), 300_000, 0));
        let batch = batch.collect();
        let began = Instant::now();
        crowd.apply(batch);
        after.push(began.elapsed().as_micros());
    }
    let first = after[0];
    after.sort_unstable();
    let (median, slowest) = (after[after.len() / 2], after[after.len() - 1]);
    println!(
        "entries of {PER_ENTRY} after it: first {first} us, median {median}, slowest {slowest}"
    );
    let mut bytes = Vec::new();
    let (written, took) = timed(|| clone.write_to(&mut bytes));
    written.expect("memory takes it");
    println!("written: {} bytes in {} ms", bytes.len(), took / 1_000_000);
    let (read, took) = timed(|| Ledger::read_from(&mut bytes.as_slice()));
    assert_eq!(
        read.expect("it was just written").state_hash(),
        clone.state_hash()
    );
    println!("read and checked: {} ms", took / 1_000_000);
    drop((clone, bytes));

    crowd.now_ms += 30_000;
    let took = crowd.apply(vec![Command::Tick]);
    println!(
        "{LEASES} leases expire in one apply: {} ms",
        took / 1_000_000
    );

    let prize = InvoiceId::new("prize").expect("short");
    crowd.many(1, |_| acquire(1 << 40, prize.clone(), 300_000, 0));
    let took = crowd.many(WAITERS, |n| {
        acquire((1 << 41) + n, prize.clone(), 300_000, 300_000)
    });
    println!("{WAITERS} join one queue: {} ns each", took / WAITERS);
    let took = crowd.many(WAITERS / 2, |n| {
        Command::WithdrawWaiter(WithdrawWaiter {
            session: SessionId::new(id16((1 << 41) + 2 * n)),
            seq: Seq::FIRST,
        })
    });
    println!(
        "every second one withdraws: {} ns each",
        took / (WAITERS / 2)
    );
    let mut took = 0;
    for _ in 0..WAITERS / 2 {
        let lease = crowd.ledger.lease(&prize).expect("somebody holds it");
        took += crowd.apply(vec![Command::ReleaseLease(ReleaseLease::ByToken {
            invoice: prize.clone(),
            token: lease.token,
        })]);
    }
    println!(
        "{} hand-offs, an apply each: {} ns each",
        WAITERS / 2,
        took / (WAITERS / 2)
    );
}

struct Crowd {
    ledger: Ledger,
    actor: Actor,
    now_ms: u64,
}

impl Crowd {
    fn new() -> Self {
        let mut crowd = Self {
            ledger: Ledger::new(Config::default()),
            actor: Actor::new("worker").expect("short"),
            now_ms: 0,
        };
        crowd.apply(vec![Command::Bootstrap(Bootstrap {
            ledger_id: LedgerId::new("crowds").expect("short"),
            no_prior_charges: true,
        })]);
        crowd
    }

    /// Returns the CPU time.
    fn apply(&mut self, commands: Vec<Command>) -> u64 {
        let stamp = Stamp {
            base: ClusterTime(0),
            elapsed_ms: self.now_ms,
            wall: WallTime(1_790_000_000_000 + self.now_ms),
            wall_jumped_ms: 0,
        };
        let with_actor = commands
            .into_iter()
            .map(|command| (self.actor.clone(), command));
        let batch: Vec<(Actor, Command)> = with_actor.collect();
        let (applied, took) = timed(|| self.ledger.apply(stamp, &batch));
        assert!(
            applied.results.iter().all(Result::is_ok),
            "nothing is refused here"
        );
        took
    }

    fn many(&mut self, many: u64, command: impl Fn(u64) -> Command) -> u64 {
        let entries = (0..many).step_by(PER_ENTRY as usize);
        let took = entries.map(|from| {
            let commands = (from..many.min(from + PER_ENTRY)).map(&command);
            self.apply(commands.collect())
        });
        took.sum()
    }
}

fn submit(n: u64) -> Command {
    Command::SubmitInvoice(SubmitInvoice {
        invoice: invoice(n),
        customer: CustomerId::new(&format!("cus-{}", n % 1_000)).expect("short"),
        amount: AmountMinor::new(1_000).expect("in bounds"),
        currency: Currency::new("EUR").expect("known"),
        due_at: None,
        priority: Priority::default(),
    })
}

fn acquire(n: u64, invoice: InvoiceId, ttl_ms: u64, wait_ms: u64) -> Command {
    Command::AcquireLease(AcquireLease {
        invoice,
        requester: Requester::Implicit {
            request: RequestId::new(id16(n)),
            holder: HolderId::new("worker-1").expect("short"),
            ttl: TtlMs::new(ttl_ms).expect("in bounds"),
        },
        wait: WaitMs::new(wait_ms).expect("in bounds"),
    })
}

fn invoice(n: u64) -> InvoiceId {
    InvoiceId::new(&format!("inv-{n:09}")).expect("short")
}

fn id16(number: u64) -> [u8; 16] {
    // Ids are drawn by chance, so they come in no order.
    let mixed = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut id = [0; 16];
    id[..8].copy_from_slice(&mixed.to_be_bytes());
    id[8..].copy_from_slice(&number.to_be_bytes());
    id
}

/// The result, and what this thread had of a CPU meanwhile: on a busy machine the wall clock says nothing.
fn timed<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let began = cpu_ns();
    let result = black_box(work());
    (result, cpu_ns() - began)
}

fn cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux has it");
    let ns = text.split(' ').next().and_then(|ns| ns.parse().ok());
    ns.expect("the first number is the time on a CPU")
}

/// Bytes of memory that the process holds.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
    let pages = text
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    pages.expect("the second number is what is resident") * 4_096
}

fn say_bytes(what: &str, before: u64, many: u64) {
    println!("{what}: {} bytes", resident().saturating_sub(before) / many);
}
