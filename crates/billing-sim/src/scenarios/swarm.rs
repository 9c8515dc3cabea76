//! Everything at once, by seed: workers charge, callers fight for locks and charge by hand, and each seed draws which kinds of
//! faults there are, when they come and how long they last. Then the faults stop, and everything has to end well.
//!
//! The idea of drawing the set of faults, too, is swarm testing (Groce and others, ISSTA 2012): runs in which everything may
//! happen keep some things from ever happening together.

use std::time::Duration;

use anyhow::{Result, ensure};
use billing_client::v1;
use billing_core::InvoiceId;
use tokio::sync::oneshot;

use super::queue::Queue;
use super::steps::{at_rest, done, nothing_is_under_way, until_done};
use crate::chance::Chance;
use crate::clock::EPOCH_S;
use crate::faults::{Faults, Kind};
use crate::machines::node::NodeSettings;
use crate::profile::{CUSTOMERS, Provider};
use crate::properties::every_invoice_ends::waits_for_its_next_try;
use crate::record::Promise;
use crate::world::{Setting, World};

/// At least so much is simulated.
const LASTS_MIN: Duration = Duration::from_secs(120);
/// How long an invoice may take to end after the last fault: the back-off of a doubt doubles.
const ENDING_PATIENCE: Duration = Duration::from_secs(2_400);
/// Whatever stays in doubt for so long, a person looks for, whose word goes by ClusterTime alone (§4).
const PERSON_EVERY: Duration = Duration::from_secs(600);
/// A waiter is granted so long after the lease before it ended, at most.
const GRANT_PATIENCE: Duration = Duration::from_millis(1_500);

pub fn setting(chance: &Chance) -> Setting {
    let provider = chance.below(Provider::ALL.len() as u64);
    // Workers would claim what callers charge by hand, so a world has one or the other.
    let by_hand = chance.below(4) == 0;
    Setting {
        nodes: if chance.below(5) == 0 { 5 } else { 3 },
        workers: if by_hand { 0 } else { 2 + chance.below(2) },
        callers: if by_hand { 4 } else { 2 },
        provider: Provider::ALL[usize::try_from(provider).unwrap_or(0)],
        node: NodeSettings {
            snapshot_every: 60 + chance.below(400),
            log_kept: 10 + chance.below(90),
        },
        locks: 2,
        by_hand: if by_hand { 12 } else { 0 },
        worker_ttl: Duration::from_millis(1_500 + chance.below(4_000)),
        ..Setting::default()
    }
}

pub fn run(world: &mut World) -> Result<()> {
    let mut rough = Rough::begin(world)?;
    let lasts = Duration::from_millis(60_000 + world.chance.below(30_000));
    // Some seeds are hectic, some leave time between two faults.
    rough.pause_ms = 200 + world.chance.below(6_000);
    rough.go_on(world, lasts, |_| Ok(()))?;
    rough.calm(world)?;
    let all: Vec<u64> = world.hosts.keys().copied().collect();
    world.leader(&all)?;
    end(world)
}

/// A time in which anything may happen.
pub(super) struct Rough {
    submissions: Submissions,
    kinds: Vec<Kind>,
    faults: Faults,
    /// About so long until the next fault.
    pause_ms: u64,
}

impl Rough {
    /// Draws what kinds of faults there will be.
    pub fn begin(world: &mut World) -> Result<Rough> {
        if world.chance.below(8) == 0 {
            world.promises.clocks_keep_drift = false;
            world.promises.one_charge = world.setting.provider == Provider::Objects;
        }
        world.bootstrapped()?;
        // The desk takes jobs from its first step on.
        world.pass(Duration::from_millis(5))?;
        let kinds: Vec<Kind> = Kind::ALL
            .into_iter()
            .filter(|_| world.chance.below(2) == 0)
            .collect();
        world.note(format_args!(
            "faults of this seed: {kinds:?}, clocks keep drift: {}",
            world.promises.clocks_keep_drift
        ));
        Ok(Rough {
            submissions: Submissions {
                next: Duration::ZERO,
                number: 0,
                at_once: false,
                all: Vec::new(),
            },
            kinds,
            faults: Faults::default(),
            pause_ms: 2_000,
        })
    }

    /// One more kind of fault, in one seed in two.
    pub fn perhaps_also(&mut self, world: &World, kind: Kind) {
        if world.chance.below(2) == 0 {
            self.kinds.push(kind);
            world.note(format_args!("and {kind:?}"));
        }
    }

    /// From now on invoices name no `due_at`.
    pub fn submit_due_at_once(&mut self) {
        self.submissions.at_once = true;
    }

    /// Faults come and go, invoices are submitted, and `also` is asked at each step.
    pub fn go_on(
        &mut self,
        world: &mut World,
        lasts: Duration,
        mut also: impl FnMut(&mut World) -> Result<()>,
    ) -> Result<()> {
        let until = world.elapsed() + lasts;
        let mut next = world.elapsed();
        while world.elapsed() < until {
            self.faults.cure_due(world)?;
            self.submissions.by_now(world)?;
            also(world)?;
            if world.elapsed() >= next && !self.kinds.is_empty() {
                let nth = world.chance.below(self.kinds.len() as u64);
                self.faults
                    .bring(world, self.kinds[usize::try_from(nth)?])?;
                let pause = Duration::from_millis(50 + world.chance.below(2 * self.pause_ms));
                next = world.elapsed() + pause;
            }
            world.step()?;
        }
        Ok(())
    }

    /// Submits every invoice so far once more: nothing changes where it is known.
    pub fn submit_again(&self, world: &mut World) -> Result<()> {
        let all = self.submissions.all.clone();
        let wanted = all.len() as u64;
        let job = submit(world, all)?;
        let known = done(world, "submit all invoices again", job)?;
        ensure!(known == wanted, "only {known} of {wanted} were submitted");
        Ok(())
    }

    /// All disks are lost. Every other fault stays.
    pub fn nodes_are_lost(&mut self, world: &mut World) {
        self.faults.nodes_are_lost(world);
    }

    /// What nodes have sent arrives, and is heard.
    pub fn let_arrive(&mut self, world: &mut World) -> Result<()> {
        self.faults.let_arrive(world)
    }

    /// Every fault ends.
    pub fn calm(&mut self, world: &mut World) -> Result<()> {
        self.faults.cure_all(world)
    }
}

/// Everything ends well, and the properties are asked.
pub(super) fn end(world: &mut World) -> Result<()> {
    world.pass(Duration::from_secs(5))?;
    for caller in world.callers.values() {
        caller.rest();
    }
    waiters_are_served(world)?;
    ended(world)?;
    let left = LASTS_MIN.saturating_sub(world.elapsed());
    world.pass(left)?;
    // The next try of some may have begun meanwhile.
    ended(world)?;
    at_rest(world)?;
    world.judge()
}

/// A few invoices at a time, as long as faults come: for workers, by customers who can pay and who cannot; or, where callers
/// charge by hand, all of theirs at once.
struct Submissions {
    next: Duration,
    number: u64,
    /// No `due_at` is named.
    at_once: bool,
    all: Vec<v1::Invoice>,
}

impl Submissions {
    fn by_now(&mut self, world: &mut World) -> Result<()> {
        if world.elapsed() < self.next {
            return Ok(());
        }
        self.next = world.elapsed() + Duration::from_millis(500 + world.chance.below(9_000));
        let mut bills = Vec::new();
        if world.setting.workers == 0 {
            for number in 1..=world.setting.by_hand {
                bills.push(bill(format!("hand-{number}"), "hand", 7, self.at_once));
            }
            self.next = Duration::MAX;
        } else {
            for _ in 0..1 + world.chance.below(3) {
                self.number += 1;
                // Most can pay.
                let customer = match world.chance.below(3) {
                    0 => world.chance.below(CUSTOMERS.len() as u64),
                    _ => world.chance.below(3),
                };
                let (invoice, amount) = (format!("inv-{}", self.number), 100 + self.number);
                world.invoices.insert(invoice.clone(), amount);
                bills.push(bill(
                    invoice,
                    CUSTOMERS[usize::try_from(customer)?].0,
                    amount,
                    self.at_once,
                ));
            }
        }
        self.all.extend(bills.iter().cloned());
        submit(world, bills).map(drop)
    }
}

/// `at_once`: due when it is submitted, whatever the leader's wall clock says then. Else long since.
fn bill(invoice_id: String, customer: &str, amount: u64, at_once: bool) -> v1::Invoice {
    v1::Invoice {
        invoice_id,
        customer_id: customer.to_owned(),
        amount_minor: i64::try_from(amount).unwrap_or(i64::MAX),
        currency: "USD".to_owned(),
        due_at: (!at_once).then_some(prost_types::Timestamp {
            seconds: i64::try_from(EPOCH_S).unwrap_or(0),
            nanos: 0,
        }),
        ..Default::default()
    }
}

/// Insists on it in the background: a submission may be repeated freely. How many are known then.
fn submit(world: &mut World, bills: Vec<v1::Invoice>) -> Result<oneshot::Receiver<u64>> {
    let record = world.record.clone();
    world.desk_begin(move |client| async move {
        let wanted = bills.clone();
        let submitted = until_done(client, move |client| {
            let bills = wanted.clone();
            async move { client.submit_invoices(bills, |_| {}).await }
        })
        .await;
        let known = submitted.submitted + submitted.unchanged;
        if known == bills.len() as u64 {
            for bill in &bills {
                if let Ok(id) = InvoiceId::new(&bill.invoice_id) {
                    record.promise(&id, Promise::Submitted);
                }
            }
        }
        known
    })
}

/// A lease whose holder is silent ends in time, and its waiters are granted in the order in which they came.
fn waiters_are_served(world: &mut World) -> Result<()> {
    // How late is a question only to clocks that keep what was declared.
    let patience = match world.promises.clocks_keep_drift {
        true => GRANT_PATIENCE,
        false => Duration::MAX,
    };
    Queue::form(world, "order-1", Duration::from_secs(2), 3)?.served(world, patience)
}

/// Steps until every invoice of the workers has ended, or waits for a time that is far away.
fn ended(world: &mut World) -> Result<()> {
    let deadline = world.elapsed() + ENDING_PATIENCE;
    let mut person_at = world.elapsed() + PERSON_EVERY;
    while world.elapsed() < deadline {
        world.pass(Duration::from_millis(500))?;
        if world.elapsed() >= person_at {
            person_at = world.elapsed() + PERSON_EVERY;
            let waits =
                |invoice: &String| waits_for_its_next_try(world.replay(), world.records(), invoice);
            let open = world.open_invoices();
            for invoice in open.iter().filter(|invoice| !waits(invoice)) {
                a_person_looks(world, invoice)?;
            }
        }
        if nothing_is_under_way(world) {
            return Ok(());
        }
    }
    // What has not ended, the property names.
    Ok(())
}

/// Somebody looks at the provider's books, and says so where nothing was charged. The ledger judges whether it is too early.
fn a_person_looks(world: &World, invoice: &str) -> Result<()> {
    let rows = world.provider.books().of(invoice);
    if rows.iter().any(|row| row.succeeded) {
        return Ok(()); // The next look-up finds it.
    }
    world.note(format_args!("a person looks for {invoice}: nothing"));
    let invoice = invoice.to_owned();
    drop(world.desk_begin(move |client| async move {
        let read = client.get_invoice(&invoice, false).await.ok();
        let Some(attempt) = read.and_then(|read| read.open_attempt) else {
            return false;
        };
        let key = &attempt.idempotency_key;
        let word = client.resolve_charge(&invoice, key, None, "the provider's books");
        word.await.is_ok()
    })?);
    Ok(())
}
