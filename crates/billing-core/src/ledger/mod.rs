//! The one door of the ledger: `apply`. Branches on the command and on the order within a batch (§4); the rules themselves
//! stand in the files beside this one. Nothing in here looks at a clock, and nothing outside changes the state.

mod attempts;
pub mod audit;
mod audit_log;
mod claims;
mod hashes;
mod invariants;
mod invoices;
mod leases;
mod operator;
mod reads;
mod sessions;
mod settle;
mod snapshot;
mod state;
#[cfg(test)]
mod tests;
mod time;
mod waiters;

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::command::Command;
use crate::cow::CowMap;
use crate::digest::{Tag, digest, write_canonical};
use crate::ids::*;
use crate::limits::*;
use crate::rejection::Rejection;
use crate::reply::{Alarm, Applied, InvoiceStatus, Reply, WaiterAnswer};
use crate::sabotaged;
use crate::table::Table;
use audit::{AuditRecord, Facts, What};
use audit_log::AuditLog;
use hashes::Stale;
use state::{DueKey, Ended, Invoice, Session};

pub use invariants::Broken;
pub use snapshot::BadSnapshot;

/// Bounds and back-offs that a test may want smaller. Part of the state: equal on every replica, carried by snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The longest TTL that is granted. Chosen at the bootstrap, for good: a restore waits until all that a lost log granted
    /// has ended, and no later session may outlast that.
    pub ttl_max: TtlMs,
    pub answers_kept_max: usize,
    pub leases_per_session_max: usize,
    pub waiters_per_invoice_max: usize,
    pub waiters_per_session_max: usize,
    pub sessions_open_max: usize,
    pub sessions_ended_max: usize,
    pub audit_records_max: usize,
    pub retries_max: u32,
    pub retry_backoff_ms_min: u64,
    pub retry_backoff_ms_max: u64,
    pub doubt_backoff_ms_min: u64,
    pub doubt_backoff_ms_max: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ttl_max: TtlMs::MAX,
            answers_kept_max: ANSWERS_KEPT_MAX,
            leases_per_session_max: LEASES_PER_SESSION_MAX,
            waiters_per_invoice_max: WAITERS_PER_INVOICE_MAX,
            waiters_per_session_max: WAITERS_PER_SESSION_MAX,
            sessions_open_max: SESSIONS_OPEN_MAX,
            sessions_ended_max: SESSIONS_ENDED_MAX,
            audit_records_max: AUDIT_RECORDS_MAX,
            retries_max: RETRIES_MAX,
            retry_backoff_ms_min: RETRY_BACKOFF_MS_MIN,
            retry_backoff_ms_max: RETRY_BACKOFF_MS_MAX,
            doubt_backoff_ms_min: DOUBT_BACKOFF_MS_MIN,
            doubt_backoff_ms_max: DOUBT_BACKOFF_MS_MAX,
        }
    }
}

/// The replicated state. `clone` is cheap (the records are shared until one side writes), so a snapshot is a clone that
/// another thread serializes while applying goes on.
#[derive(Clone)]
pub struct Ledger {
    config: Config,
    scalars: Scalars,
    sessions: Table<Arc<Session>>,
    ended: Table<Ended>,
    invoices: Table<Arc<Invoice>>,
    paused: BTreeMap<ProviderId, Evidence>,
    audit: AuditLog,
    index: Index,
    /// The sum of all records' digests, but for what is stale.
    digests: u128,
    stale: Stale,
    turn: Turn,
}

/// What is neither a record nor an index.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Scalars {
    ledger_id: Option<LedgerId>,
    now: ClusterTime,
    wall: WallTime,
    /// Of the newest stamp; see [`Stamp::wall_jumped_ms`].
    wall_jumped_ms: i64,
    token_last: FencingToken,
    order_last: u64,
    ticket_last: u64,
    charges_allowed: bool,
    /// No lease is granted before.
    grants_from: ClusterTime,
    /// Attempts that are opened before may have a key that a lost log used already, and the provider may know it still.
    old_keys_until: ClusterTime,
    charge_alarms: u64,
    applies: u64,
}

/// Derived: every question that must not cost a walk over all records.
#[derive(Clone, Default)]
struct Index {
    counts: [u64; InvoiceStatus::ALL.len()],
    /// In the order in which people page through them; what is merely leased stands in `by_status` alone.
    named: CowMap<InvoiceId, ()>,
    /// The records of each status that people list. PENDING and PAID are nearly all there are: counted only.
    by_status: [CowMap<InvoiceId, ()>; InvoiceStatus::ALL.len()],
    due: CowMap<DueKey, InvoiceId>,
    doubt: CowMap<(ClusterTime, InvoiceId), ()>,
    events: CowMap<(ClusterTime, InvoiceId), ()>,
    session_deadlines: CowMap<(ClusterTime, SessionId), ()>,
    waiter_deadlines: CowMap<(ClusterTime, u64), (SessionId, Seq)>,
    ended_opened: CowMap<(ClusterTime, SessionId), ()>,
    ended_implicit: CowMap<(ClusterTime, SessionId), ()>,
    /// How many sessions and leases live by each TTL.
    ttls: BTreeMap<TtlMs, usize>,
}

/// What the current `apply` gathers. Empty between two.
#[derive(Clone)]
struct Turn {
    actor: Actor,
    ledger_actor: Actor,
    answers: Vec<WaiterAnswer>,
    alarms: Vec<Alarm>,
    /// What was changed, for the check of the invariants in debug builds.
    invoices: Vec<InvoiceId>,
    sessions: Vec<SessionId>,
    /// Invoices whose lease has ended and that nobody looked at since.
    freed: Vec<InvoiceId>,
    scratch: Vec<u8>,
}

impl Turn {
    fn new() -> Self {
        let ledger_actor = Actor::ledger();
        Self {
            actor: ledger_actor.clone(),
            ledger_actor,
            answers: Vec::new(),
            alarms: Vec::new(),
            invoices: Vec::new(),
            sessions: Vec::new(),
            freed: Vec::new(),
            scratch: Vec::new(),
        }
    }
}

impl Ledger {
    /// Empty and not bootstrapped: until [`crate::Bootstrap`] is applied everything but Tick is refused.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            scalars: Scalars::default(),
            sessions: Table::default(),
            ended: Table::default(),
            invoices: Table::default(),
            paused: BTreeMap::new(),
            audit: AuditLog::default(),
            index: Index::default(),
            digests: 0,
            stale: Stale::default(),
            turn: Turn::new(),
        }
    }

    /// Applies one log entry: a stamp and a batch of commands, in the order of §4. Results are positional; what waiters of
    /// earlier batches (or of this one) are told stands in `answers`. A result that is refused has changed nothing but what
    /// is remembered to refuse its repetition.
    ///
    /// # Panics
    /// In debug builds, when an invariant is broken: that is a fault in this crate, and going on could cost money.
    pub fn apply(&mut self, stamp: Stamp, batch: &[(Actor, Command)]) -> Applied {
        let time_before = self.scalars.now;
        self.scalars.applies += 1;
        self.scalars.wall = stamp.wall;
        self.scalars.wall_jumped_ms = stamp.wall_jumped_ms;
        let mut results: Vec<Option<Result<Reply, Rejection>>> = vec![None; batch.len()];

        // Keep-alives are judged against the old time, unless an open or close of the same session stands before them.
        let mut reordered: BTreeSet<SessionId> = BTreeSet::new();
        let mut kept: Vec<(usize, SessionId)> = Vec::new();
        for (nth, (_, command)) in batch.iter().enumerate() {
            match early(command) {
                Early::Keep(session) if !reordered.contains(&session) => {
                    if let Some(refused) = self.keep_alive_refused(session) {
                        results[nth] = Some(Err(refused));
                    } else {
                        kept.push((nth, session));
                    }
                }
                Early::OpenOrClose(session) => {
                    reordered.insert(session);
                }
                Early::Keep(_) | Early::Later => {}
            }
        }
        let proposed = match sabotaged!(ElapsedAddedToNow) {
            false => stamp.proposed(),
            true => time_before.plus(stamp.elapsed_ms),
        };
        if !sabotaged!(DeadlineFromOldTime) {
            self.advance(proposed);
        }
        for (nth, session) in kept {
            results[nth] = Some(Ok(self.extend_session(session)));
        }
        if sabotaged!(DeadlineFromOldTime) {
            self.advance(proposed);
        }
        self.expire();
        for (nth, (actor, command)) in batch.iter().enumerate() {
            if results[nth].is_none() {
                self.turn.actor = actor.clone();
                results[nth] = Some(self.run(command));
                self.settle_freed();
            }
        }
        self.turn.actor = self.turn.ledger_actor.clone();
        let results = results.into_iter();
        let results = results.map(|result| result.expect("one of the two loops filled it"));
        let results = results.collect();
        self.finish(time_before);
        Applied {
            results,
            answers: std::mem::take(&mut self.turn.answers),
            alarms: std::mem::take(&mut self.turn.alarms),
        }
    }

    fn run(&mut self, command: &Command) -> Result<Reply, Rejection> {
        self.in_service(command)?;
        match command {
            Command::Bootstrap(bootstrap) => self.bootstrap(bootstrap),
            Command::BootstrapWithin(within) => self.bootstrap_within(within),
            Command::Restore(restore) => self.restore(restore),
            Command::OpenSession(open) => self.open_session(open),
            Command::KeepAlive(keep) => self.keep_alive(keep),
            Command::CloseSession(close) => Ok(self.close_session(close)),
            Command::AcquireLease(acquire) => self.acquire(acquire),
            Command::WithdrawWaiter(withdraw) => Ok(self.withdraw_waiter(withdraw)),
            Command::RenewLease(renew) => self.renew(renew),
            Command::ReleaseLease(release) => self.release(release),
            Command::ClaimInvoices(claim) => self.claim(claim),
            Command::SubmitInvoice(submit) => self.submit(submit),
            Command::CancelInvoice(cancel) => self.cancel(cancel),
            Command::RequeueInvoice(requeue) => self.requeue(requeue),
            Command::BeginCharge(begin) => self.begin(begin),
            Command::AttachProviderObject(attach) => self.attach(attach),
            Command::SettleCharge(settle) => self.settle(settle),
            Command::ResolveCharge(resolve) => self.resolve(resolve),
            Command::ForceRelease(force) => self.force_release(force),
            Command::PauseProvider(pause) => self.pause_provider(pause),
            Command::AllowCharges(allow) => Ok(self.allow_charges(allow)),
            Command::Tick => Ok(Reply::Done),
            Command::AcquireLeases(items) => Ok(self.each(items, Self::acquire)),
            Command::RenewLeases(items) => Ok(self.each(items, Self::renew)),
            Command::ReleaseLeases(items) => Ok(self.each(items, Self::release)),
        }
    }

    /// Runs the items as if each were a command of its own: what one frees, the next waiter has before the next item runs.
    fn each<T>(
        &mut self,
        items: &[T],
        run: fn(&mut Self, &T) -> Result<Reply, Rejection>,
    ) -> Reply {
        let results = items.iter().map(|item| {
            let result = run(self, item);
            self.settle_freed();
            result
        });
        Reply::Each(results.collect())
    }

    /// Brings the digests up to date now and then, and looks whether the rules still hold.
    fn finish(&mut self, time_before: ClusterTime) {
        debug_assert!(
            self.turn.freed.is_empty(),
            "a freed invoice was left without a look"
        );
        self.rehash_if_many();
        if cfg!(debug_assertions) {
            let full = self.scalars.applies.is_multiple_of(FULL_CHECK_EVERY);
            let checked = self.check_touched(time_before);
            let checked = if full {
                checked.and_then(|()| self.check_invariants())
            } else {
                checked
            };
            if let Err(broken) = checked {
                panic!("{broken}");
            }
        }
        self.turn.invoices.clear();
        self.turn.sessions.clear();
    }

    /// Appends one audit record, by whoever sent the command that is being applied.
    fn note(
        &mut self,
        what: What,
        invoice: Option<&InvoiceId>,
        token: FencingToken,
        number: Option<AttemptNumber>,
    ) {
        if matches!(what, What::Acquired { .. }) && sabotaged!(AuditRecordSkipped on node 2) {
            return;
        }
        let key = match (&self.scalars.ledger_id, number, invoice) {
            (Some(ledger), Some(number), Some(invoice)) => Some(IdempotencyKey {
                ledger: ledger.clone(),
                number,
                invoice: invoice.clone(),
            }),
            (None, _, _) | (_, None, _) | (_, _, None) => None,
        };
        let facts = Facts {
            at: self.scalars.now,
            wall: self.scalars.wall,
            actor: &self.turn.actor,
            what: &what,
            invoice,
            token,
            key: key.as_ref(),
        };
        self.audit.push(&facts, self.config.audit_records_max);
    }

    /// The record, to be changed: it is hashed again when the apply ends. Whoever changes it calls `refile` after.
    fn invoice_mut(&mut self, id: &InvoiceId) -> Option<&mut Invoice> {
        let invoice = Arc::make_mut(self.invoices.get_mut(id)?);
        if !invoice.stale {
            invoice.stale = true;
            self.stale.invoices.push(id.clone());
        }
        if cfg!(debug_assertions) && invoice.touched != self.scalars.applies {
            invoice.touched = self.scalars.applies;
            self.turn.invoices.push(id.clone());
        }
        Some(invoice)
    }

    /// The record, to be changed: it is hashed again when the apply ends. The deadline is changed by `set_deadline` only.
    fn session_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        let session = Arc::make_mut(self.sessions.get_mut(&id)?);
        if !session.stale {
            session.stale = true;
            self.stale.sessions.push(id);
        }
        if cfg!(debug_assertions) && session.touched != self.scalars.applies {
            session.touched = self.scalars.applies;
            self.turn.sessions.push(id);
        }
        Some(session)
    }

    fn invoice(&self, id: &InvoiceId) -> Option<&Invoice> {
        self.invoices.get(id).map(Arc::as_ref)
    }

    fn session(&self, id: SessionId) -> Option<&Session> {
        self.sessions.get(&id).map(Arc::as_ref)
    }

    /// Lists the record where it belongs by now.
    fn refile(&mut self, id: &InvoiceId) {
        let now = self.scalars.now;
        let Some(shared) = self.invoices.get_mut(id) else {
            return;
        };
        let wanted = shared.filing(now);
        if wanted == shared.filed {
            return;
        }
        let listed = std::mem::replace(&mut Arc::make_mut(shared).filed, wanted.clone());
        self.index.unlist(id, &listed, Some(&wanted));
        self.index.list(id, &wanted, Some(&listed));
    }

    /// Puts a new record into the table, listed where it belongs; it is hashed when the apply ends.
    fn insert_invoice(&mut self, mut invoice: Invoice) {
        invoice.stale = true;
        self.stale.invoices.push(invoice.id.clone());
        if cfg!(debug_assertions) {
            invoice.touched = self.scalars.applies;
            self.turn.invoices.push(invoice.id.clone());
        }
        invoice.filed = invoice.filing(self.scalars.now);
        self.index.list(&invoice.id, &invoice.filed, None);
        self.invoices.insert(Arc::new(invoice));
    }

    /// Takes a spent record out of the table and of everything that lists it.
    fn remove_if_spent(&mut self, id: &InvoiceId) {
        if self.invoice(id).is_some_and(Invoice::is_spent)
            && let Some(spent) = self.invoices.remove(id)
        {
            self.index.unlist(id, &spent.filed, None);
            self.digests = self.digests.wrapping_sub(spent.digest);
        }
    }
}

/// What a command means to the order within its batch.
enum Early {
    Keep(SessionId),
    OpenOrClose(SessionId),
    Later,
}

fn early(command: &Command) -> Early {
    match command {
        Command::KeepAlive(keep) => Early::Keep(keep.session),
        Command::OpenSession(open) => Early::OpenOrClose(open.session),
        Command::CloseSession(close) => Early::OpenOrClose(close.session),
        Command::Bootstrap(_)
        | Command::BootstrapWithin(_)
        | Command::Restore(_)
        | Command::AcquireLease(_)
        | Command::WithdrawWaiter(_)
        | Command::RenewLease(_)
        | Command::ReleaseLease(_)
        | Command::ClaimInvoices(_)
        | Command::SubmitInvoice(_)
        | Command::CancelInvoice(_)
        | Command::RequeueInvoice(_)
        | Command::BeginCharge(_)
        | Command::AttachProviderObject(_)
        | Command::SettleCharge(_)
        | Command::ResolveCharge(_)
        | Command::ForceRelease(_)
        | Command::PauseProvider(_)
        | Command::AllowCharges(_)
        | Command::Tick
        | Command::AcquireLeases(_)
        | Command::RenewLeases(_)
        | Command::ReleaseLeases(_) => Early::Later,
    }
}

/// Whether an index lists the records of this status.
fn is_listed(status: InvoiceStatus) -> bool {
    match status {
        InvoiceStatus::Pending | InvoiceStatus::Paid => false,
        InvoiceStatus::Processing
        | InvoiceStatus::Charging
        | InvoiceStatus::InDoubt
        | InvoiceStatus::Waiting
        | InvoiceStatus::Failed
        | InvoiceStatus::Review
        | InvoiceStatus::Cancelled => true,
    }
}

impl Index {
    /// Only for a status that is listed.
    fn of_status(&self, status: InvoiceStatus) -> &CowMap<InvoiceId, ()> {
        debug_assert!(is_listed(status));
        &self.by_status[status as usize]
    }

    fn count(&self, status: InvoiceStatus) -> u64 {
        self.counts[status as usize]
    }

    /// Takes the record out of every list in which `filed` names it and `unless` does not.
    fn unlist(&mut self, id: &InvoiceId, filed: &state::Filed, unless: Option<&state::Filed>) {
        let stays = |same: fn(&state::Filed, &state::Filed) -> bool| {
            unless.is_some_and(|other| same(other, filed))
        };
        if let Some(status) = filed.status
            && !stays(|a, b| a.status == b.status)
        {
            self.counts[status as usize] -= 1;
            if is_listed(status) {
                self.by_status[status as usize].remove(id);
            }
        }
        if filed.named && !stays(|a, b| a.named == b.named) {
            self.named.remove(id);
        }
        if let Some(due) = filed.due
            && !stays(|a, b| a.due == b.due)
        {
            self.due.remove(&due);
        }
        if let Some(doubt) = filed.doubt
            && !stays(|a, b| a.doubt == b.doubt)
        {
            self.doubt.remove(&(doubt, id.clone()));
        }
        if let Some(event) = filed.event
            && !stays(|a, b| a.event == b.event)
        {
            self.events.remove(&(event, id.clone()));
        }
    }

    /// Puts the record into every list in which `filed` names it and `already` did not.
    fn list(&mut self, id: &InvoiceId, filed: &state::Filed, already: Option<&state::Filed>) {
        let stood = |same: fn(&state::Filed, &state::Filed) -> bool| {
            already.is_some_and(|other| same(other, filed))
        };
        if let Some(status) = filed.status
            && !stood(|a, b| a.status == b.status)
        {
            self.counts[status as usize] += 1;
            if is_listed(status) {
                self.by_status[status as usize].insert(id.clone(), ());
            }
        }
        if filed.named && !stood(|a, b| a.named == b.named) {
            self.named.insert(id.clone(), ());
        }
        if let Some(due) = filed.due
            && !stood(|a, b| a.due == b.due)
        {
            self.due.insert(due, id.clone());
        }
        if let Some(doubt) = filed.doubt
            && !stood(|a, b| a.doubt == b.doubt)
        {
            self.doubt.insert((doubt, id.clone()), ());
        }
        if let Some(event) = filed.event
            && !stood(|a, b| a.event == b.event)
        {
            self.events.insert((event, id.clone()), ());
        }
    }

    fn count_ttl(&mut self, ttl: TtlMs) {
        *self.ttls.entry(ttl).or_insert(0) += 1;
    }

    fn discount_ttl(&mut self, ttl: TtlMs) {
        if let Some(count) = self.ttls.get_mut(&ttl) {
            *count -= 1;
            if *count == 0 {
                self.ttls.remove(&ttl);
            }
        }
    }
}
