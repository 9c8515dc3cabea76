//! One seed: draws a profile, drives two ledgers and the model through the same log, and compares after every entry. One of
//! the ledgers goes through a snapshot now and then (I7).

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};

use billing_core::*;

use crate::clock::Clock;
use crate::deck::{Deck, LEDGER, evidence};
use crate::dice::Dice;
use crate::gates::Gates;
use crate::naive::{Batch, Model};
use crate::provider::{Caller, Profile, Provider};
use crate::tally::Tally;

/// What kind of run a seed draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scene {
    /// Anything goes, lies about money too: only the rules of the ledger are watched.
    Nonsense,
    /// Honest gates and a provider of this profile: the provider's books are watched as well.
    World(Profile),
}

/// What is compared. Books alone shows that the provider's books would notice without the model's word for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    Everything,
    BooksAlone,
}

pub struct Broken {
    pub what: String,
    pub commands: u64,
    pub timeline: String,
}

const FULL_CHECK_EVERY: u64 = 400; // Entries between two full checks and comparisons of the state hash.
const SNAPSHOT_EVERY: u64 = 2_500; // Commands between two snapshots of the second ledger.
const REMEMBERED: usize = 4_000; // Entries of the log that a timeline can show.

struct Run {
    dice: Dice,
    clock: Clock,
    ledger: Ledger,
    replica: Ledger,
    model: Model,
    watch: Watch,
    invoices: Vec<InvoiceId>,
    /// How many names were given to invoices so far.
    named: usize,
    views: Vec<(InvoiceId, Option<InvoiceView>)>,
    log: VecDeque<(Stamp, Batch, Applied)>,
    commands: u64,
    entries: u64,
    granted: FencingToken,
    snapshot_at: u64,
    audited: u64,
    audit_head: ChainHash,
    /// What a watcher believes: who holds what, from nothing but the events.
    watched: BTreeMap<InvoiceId, (FencingToken, HolderId)>,
    watch_next: u64,
    tally: Tally,
}

/// Runs one seed for this many commands. Returns how many there were, and of what kind.
pub fn run(seed: u64, commands: u64, watch: Watch) -> Result<(u64, Tally), Broken> {
    let mut dice = Dice::new(seed);
    let worlds = [
        Scene::World(Profile::Sticky),
        Scene::World(Profile::Loose),
        Scene::World(Profile::Keyless),
        Scene::World(Profile::Objects),
    ];
    let scene = match watch {
        Watch::Everything if dice.percent(60) => Scene::Nonsense,
        Watch::Everything | Watch::BooksAlone => *dice.pick(&worlds),
    };
    let keeps_forever = dice.percent(60);
    let wild_wall = match scene {
        Scene::Nonsense | Scene::World(Profile::Objects) => dice.percent(50),
        // A key that is forgotten is safe only while no clock lets a send outlive it (§5).
        Scene::World(_) => keeps_forever && dice.percent(50),
    };
    let far = *dice.pick(&[40_000, 400_000, 90_000_000]);
    let clock = Clock::new(&mut dice, wild_wall, scene == Scene::Nonsense, far);
    let invoices: Vec<InvoiceId> = (1..=dice.between(1, 5))
        .map(|n| InvoiceId::new(&format!("inv-{n}")).expect("short"))
        .collect();
    let config = Config {
        answers_kept_max: *dice.pick(&[4, 16, 1_024]),
        waiters_per_invoice_max: *dice.pick(&[2, 5, 1_024]),
        waiters_per_session_max: *dice.pick(&[2, 5, 1_024]),
        leases_per_session_max: *dice.pick(&[2, 10_000]),
        sessions_open_max: *dice.pick(&[8, 100_000]),
        retries_max: *dice.pick(&[2, 8, 1_000]),
        retry_backoff_ms_min: *dice.pick(&[1_000, 60_000]),
        ..Config::default()
    };
    let mut run = Run {
        clock,
        ledger: Ledger::new(config.clone()),
        replica: Ledger::new(config.clone()),
        model: Model::new(config),
        watch,
        views: invoices.iter().map(|id| (id.clone(), None)).collect(),
        named: invoices.len(),
        invoices,
        log: VecDeque::new(),
        commands: 0,
        entries: 0,
        granted: FencingToken::NONE,
        snapshot_at: SNAPSHOT_EVERY,
        audited: 0,
        audit_head: CHAIN_START,
        watched: BTreeMap::new(),
        watch_next: 1,
        tally: Tally::default(),
        dice,
    };
    let outcome = match scene {
        Scene::Nonsense => run.nonsense(commands),
        Scene::World(profile) => run.world(profile, keeps_forever, commands),
    };
    match outcome {
        Ok(()) => Ok((run.commands, run.tally)),
        Err(what) => {
            let timeline = run.timeline(&what);
            let what = format!("{scene:?}: {what}");
            Err(Broken {
                what,
                commands: run.commands,
                timeline,
            })
        }
    }
}

fn actor(command: &Command) -> Actor {
    let name = match command {
        Command::ResolveCharge(_) | Command::ForceRelease(_) | Command::AllowCharges(_) => {
            "operator"
        }
        _ => "worker",
    };
    Actor::new(name).expect("short")
}

impl Run {
    fn nonsense(&mut self, commands: u64) -> Result<(), String> {
        let first = self.dice.below(1 << 20) << 8;
        let mut deck = Deck::new(&mut self.dice, false, self.invoices.clone(), first);
        if self.dice.percent(90) {
            self.bootstrap()?; // Else sooner or later, by the deck.
        }
        let most = self.dice.between(1, 6);
        while self.commands < commands {
            for (at, invoice) in self.replace_what_is_over() {
                deck.replace(at, &invoice);
            }
            self.clock.step(&mut self.dice);
            let many = self.dice.between(1, most);
            let mut batch = Batch::new();
            for _ in 0..many {
                let command = deck.draw(&mut self.dice, &self.model);
                batch.push((actor(&command), command));
            }
            self.apply(batch)?;
        }
        self.finish()
    }

    fn world(
        &mut self,
        profile: Profile,
        keeps_forever: bool,
        commands: u64,
    ) -> Result<(), String> {
        let provider = Provider::new(&mut self.dice, profile, keeps_forever);
        let mut gates = Gates::new(&mut self.dice, provider, self.invoices.clone());
        let mut deck = Deck::new(&mut self.dice, true, self.invoices.clone(), 1 << 40);
        deck.use_terms(&gates.provider.terms);
        let nonsense = match self.watch {
            Watch::Everything => self.dice.between(0, 40),
            Watch::BooksAlone => 0, // The deck follows the model.
        };
        self.bootstrap()?;
        let mut next = 0;
        while self.commands < commands {
            for (at, invoice) in self.replace_what_is_over() {
                deck.replace(at, &invoice);
                gates.replace(at, &invoice);
            }
            self.clock.step(&mut self.dice);
            let now = self.clock.truth;
            gates.step(&mut self.dice, now, &self.views);
            let mut asked: Vec<(Option<Caller>, Command)> = gates.arrived(now);
            if self.dice.below(100) < nonsense {
                asked.push((None, deck.draw(&mut self.dice, &self.model)));
            }
            if self.dice.percent(10) {
                next += 1;
                asked.push((None, self.submit(next)));
            }
            if self.dice.below(200) == 0 {
                asked.push((
                    None,
                    Command::AllowCharges(AllowCharges {
                        evidence: evidence("compared"),
                    }),
                ));
            }
            if asked.is_empty() {
                if self.dice.percent(70) {
                    continue;
                }
                asked.push((None, Command::Tick));
            }
            let callers: Vec<Option<Caller>> = asked.iter().map(|(caller, _)| *caller).collect();
            let batch = asked
                .into_iter()
                .map(|(_, command)| (actor(&command), command))
                .collect();
            let applied = self.apply(batch)?;
            for (caller, told) in callers.into_iter().zip(&applied.results) {
                if let Some(caller) = caller {
                    gates.answer(&mut self.dice, caller, told);
                }
            }
            for answer in &applied.answers {
                gates.waiter_answer(answer);
            }
            self.watch_books(&gates.provider)?;
        }
        let what = match profile {
            Profile::Sticky => "charged with sticky keys",
            Profile::Loose => "charged with loose keys",
            Profile::Keyless => "charged without keys",
            Profile::Objects => "charged with objects",
        };
        self.tally.add(what, gates.provider.moved.len() as u64);
        self.finish()
    }

    /// Invoices that are paid, or have been in another end long enough, make room for new ones, or soon nothing happens.
    fn replace_what_is_over(&mut self) -> Vec<(usize, InvoiceId)> {
        let mut replaced = Vec::new();
        for at in 0..self.views.len() {
            let chance = match self.views[at]
                .1
                .as_ref()
                .map(|view| (view.status, view.charge_reference.is_some()))
            {
                Some((InvoiceStatus::Paid, _)) => 100,
                Some((InvoiceStatus::Review, true)) => 20,
                Some((
                    InvoiceStatus::Failed | InvoiceStatus::Cancelled | InvoiceStatus::Review,
                    _,
                )) => 5,
                _ => 0,
            };
            if self.dice.below(1_000) < chance {
                self.named += 1;
                let invoice = InvoiceId::new(&format!("inv-{}", self.named)).expect("short");
                self.invoices[at] = invoice.clone();
                self.views[at] = (invoice.clone(), self.ledger.invoice_view(&invoice));
                replaced.push((at, invoice));
            }
        }
        replaced
    }

    /// An invoice after the other; a name that was used before is unchanged.
    fn submit(&mut self, next: usize) -> Command {
        let invoice = self.invoices[next % self.invoices.len()].clone();
        Command::SubmitInvoice(SubmitInvoice {
            invoice,
            customer: CustomerId::new("cus-1").expect("short"),
            amount: AmountMinor::new(1_000).expect("in bounds"),
            currency: Currency::new("EUR").expect("known"),
            due_at: None,
            priority: Priority::default(),
        })
    }

    fn bootstrap(&mut self) -> Result<(), String> {
        let ledger_id = LedgerId::new(LEDGER).expect("short");
        let no_prior_charges = self.dice.percent(80);
        let command = Command::Bootstrap(Bootstrap {
            ledger_id,
            no_prior_charges,
        });
        self.apply(vec![(actor(&command), command)]).map(|_| ())
    }

    fn watch_books(&self, provider: &Provider) -> Result<(), String> {
        if let Some(invoice) = provider.charged_twice() {
            return Err(format!("the provider's books: {invoice} was charged twice"));
        }
        if provider.profile == Profile::Objects || self.watch == Watch::BooksAlone {
            return Ok(()); // A declined attempt's object may still be confirmed, by the next one too.
        }
        for moved in &provider.moved {
            let dead = self
                .model
                .invoices
                .get(&moved.key.invoice)
                .is_some_and(|invoice| {
                    invoice.attempts.iter().any(|attempt| {
                        attempt.number == moved.key.number
                            && matches!(
                                attempt.state,
                                AttemptState::Declined | AttemptState::Cancelled
                            )
                    })
                });
            if dead {
                return Err(format!(
                    "I5: {} is dead to the ledger, and charged",
                    moved.key
                ));
            }
        }
        Ok(())
    }

    fn apply(&mut self, batch: Batch) -> Result<Applied, String> {
        let before = self.ledger.now();
        let stamp = self.clock.stamp(&mut self.dice, before.0);
        self.commands += batch.len() as u64;
        self.entries += 1;
        // The ledger's own assertions end it with a panic; here that is a failure like any other.
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            (
                self.ledger.apply(stamp, &batch),
                self.replica.apply(stamp, &batch),
            )
        }));
        let panicked = outcome.is_err();
        let (applied, again) = outcome.unwrap_or_default();
        if self.log.len() == REMEMBERED {
            self.log.pop_front();
        }
        for ((_, command), told) in batch.iter().zip(&applied.results) {
            self.tally.count(command, told);
        }
        self.log.push_back((stamp, batch, applied.clone()));
        if panicked {
            return Err("the ledger panicked in its last batch, see above".into());
        }
        if self.watch == Watch::Everything {
            if applied != again {
                return Err(format!("I7: a replica answers {again:?}, not {applied:?}"));
            }
            self.compare(before, &applied)?;
        }
        let ledger = &self.ledger;
        for (id, view) in &mut self.views {
            *view = ledger.invoice_view(id);
        }
        if self.watch == Watch::Everything {
            for (id, view) in &self.views {
                self.model.check_view(id, view.as_ref())?;
            }
        }
        Ok(applied)
    }

    fn compare(&mut self, before: ClusterTime, applied: &Applied) -> Result<(), String> {
        let (stamp, batch, _) = self.log.back().expect("just pushed");
        self.model.check(stamp, batch, applied)?;
        if self.ledger.now() < before || self.ledger.now().0 != self.model.now {
            return Err(format!(
                "I4: time went from {before} to {}",
                self.ledger.now()
            ));
        }
        if self.ledger.token_last().0 != self.model.token_last
            || self.ledger.token_last() < self.granted
        {
            return Err(format!(
                "I3: the last token is {}",
                self.ledger.token_last()
            ));
        }
        self.granted = self.ledger.token_last();
        if self.entries.is_multiple_of(FULL_CHECK_EVERY) {
            self.check_in_full()?;
        }
        if self.commands >= self.snapshot_at {
            self.snapshot_at = self.commands + SNAPSHOT_EVERY;
            self.reborn()?;
        }
        Ok(())
    }

    fn check_in_full(&mut self) -> Result<(), String> {
        self.ledger
            .check_invariants()
            .map_err(|broken| broken.to_string())?;
        self.model.check_invariants()?;
        for id in self.model.invoices.keys() {
            self.model
                .check_view(id, self.ledger.invoice_view(id).as_ref())?;
        }
        self.watch_leases()?;
        // One of them keeps what hashing computes, the other never does.
        if self.ledger.state_hash() != self.replica.state_hash_kept() {
            return Err("I7: a replica has another state hash".into());
        }
        loop {
            let (records, anchor) = self.ledger.audit(self.audited + 1, limits::PAGE_MAX);
            if records.is_empty() {
                return Ok(());
            }
            if anchor != self.audit_head {
                return Err(format!(
                    "audit record {} follows another chain",
                    self.audited + 1
                ));
            }
            self.audit_head =
                verify_chain(&records, anchor).map_err(|broken| broken.to_string())?;
            self.audited += records.len() as u64;
        }
    }

    /// Whoever follows the events knows every lease that stands, without having asked for one.
    fn watch_leases(&mut self) -> Result<(), String> {
        loop {
            let page = self.dice.between(1, 60) as usize;
            let heard = self.ledger.lease_events(self.watch_next, page);
            let heard = heard.map_err(|refused| format!("watch: {refused}"))?;
            for event in heard.events {
                let before = match event.kind {
                    LeaseEventKind::Granted => self
                        .watched
                        .insert(event.invoice.clone(), (event.token, event.holder.clone())),
                    LeaseEventKind::Ended => self.watched.remove(&event.invoice),
                };
                let fits = match event.kind {
                    LeaseEventKind::Granted => before.is_none(),
                    LeaseEventKind::Ended => before == Some((event.token, event.holder.clone())),
                };
                if !fits {
                    return Err(format!("watch: {event:?} after {before:?}"));
                }
            }
            if heard.next_index == self.watch_next {
                break;
            }
            self.watch_next = heard.next_index;
        }
        let standing = self.ledger.leases(None, limits::PAGE_MAX);
        let standing = standing
            .into_iter()
            .map(|lease| (lease.invoice, (lease.token, lease.holder)));
        if !standing.eq(self.watched.clone()) {
            return Err(format!("watch: believed are {:?}", self.watched));
        }
        Ok(())
    }

    /// The second ledger is written down and read back.
    fn reborn(&mut self) -> Result<(), String> {
        let mut bytes = Vec::new();
        let written = self.replica.write_to(&mut bytes);
        written.map_err(|error| error.to_string())?;
        self.replica = Ledger::read_from(&mut bytes.as_slice())
            .map_err(|error| format!("I7: snapshot: {error}"))?;
        if self.ledger.state_hash() != self.replica.state_hash() {
            return Err("I7: a ledger read from a snapshot has another state hash".into());
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), String> {
        if self.watch == Watch::Everything {
            self.check_in_full()?;
            self.reborn()?;
        }
        Ok(())
    }

    /// The last commands that touched the invoice that the failure names, or all of them.
    fn timeline(&self, what: &str) -> String {
        let named = self.invoices.iter().find(|id| what.contains(id.as_str()));
        let mut lines = Vec::new();
        for (stamp, batch, applied) in self.log.iter().rev() {
            let mut entry = Vec::new();
            for ((_, command), told) in batch.iter().zip(&applied.results) {
                entry.push(format!("  {command:?}\n      => {told:?}"));
            }
            for answer in &applied.answers {
                entry.push(format!(
                    "  answer to {} seq {}: {:?}",
                    answer.session, answer.seq, answer.result
                ));
            }
            if applied.results.is_empty() {
                entry.extend(
                    batch
                        .iter()
                        .map(|(_, command)| format!("  {command:?}\n      => panic")),
                );
            }
            entry.retain(|line| named.is_none_or(|id| line.contains(&format!("{id:?}"))));
            if !entry.is_empty() {
                let head = format!("{} (wall {})", stamp.proposed(), stamp.wall.0);
                lines.push(format!("{head}\n{}", entry.join("\n")));
            }
            if lines.len() == 16 {
                break;
            }
        }
        lines.reverse();
        lines.join("\n")
    }
}
