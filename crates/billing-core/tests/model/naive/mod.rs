//! What §2 to §5 say, written down a second time and as plainly as possible: maps in order, linear scans, one function per
//! command. Decides what the ledger must have answered; never looks at how the ledger does it.
//!
//! Where the design leaves a choice free the model follows the ledger's answer after checking that it is one of those
//! allowed: which of several true reasons a refusal names, and in which order invoices freed at one instant are served.

mod charges;
mod claims;
mod leases;
mod sessions;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use billing_core::*;

pub type Batch = Vec<(Actor, Command)>;
/// What is allowed: exactly this reply, or any one of these refusals.
pub type Expected = Result<Reply, Vec<Rejection>>;
pub type Told = Result<Reply, Rejection>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    Acquire {
        invoice: InvoiceId,
        wait: u64,
        ttl: Option<u64>,
    },
    Claim {
        max: u16,
    },
}

#[derive(Clone, Debug)]
pub enum Fate {
    Queued,
    Granted(InvoiceId, FencingToken),
    Claimed(Vec<(InvoiceId, FencingToken)>),
    Refused(Rejection),
    Withdrawn,
}

#[derive(Clone, Debug)]
pub struct Answer {
    /// None: withdrawn before it came.
    pub asked: Option<Asked>,
    pub fate: Fate,
}

impl Answer {
    pub fn is_queued(&self) -> bool {
        matches!(self.fate, Fate::Queued)
    }
}

#[derive(Clone, Debug)]
pub struct Session {
    pub holder: HolderId,
    pub ttl: u64,
    /// None: implicit, and its request still waits.
    pub deadline: Option<u64>,
    pub implicit: bool,
    pub floor: u64,
    pub answers: BTreeMap<u64, Answer>,
}

#[derive(Clone, Debug)]
pub struct Ended {
    pub implicit: bool,
    pub at: u64,
    /// Of an implicit session: what was asked for, and what became of it.
    pub answer: Option<Answer>,
}

#[derive(Clone, Debug)]
pub struct Lease {
    pub token: FencingToken,
    pub session: SessionId,
    pub own_ttl: Option<u64>,
    pub own_deadline: Option<u64>,
    /// A look-up that found nothing, reported under this lease, proves that the attempt open at its grant is dead.
    pub granted_at: u64,
    pub granted_wall: u64,
}

#[derive(Clone, Debug)]
pub struct Waiter {
    pub session: SessionId,
    pub seq: Seq,
    pub deadline: u64,
    pub ttl: Option<u64>,
}

#[derive(Clone, Debug)]
pub struct Attempt {
    pub number: AttemptNumber,
    pub token: FencingToken,
    pub opened_by: FencingToken,
    pub state: AttemptState,
    pub not_after: u64,
    pub not_after_wall: u64,
    pub taken_over: bool,
    /// None: known only from a report.
    pub terms: Option<Arc<Terms>>,
    /// A decline was heard after which the customer is not asked again.
    pub final_no: bool,
}

impl Attempt {
    pub fn is_live(&self) -> bool {
        matches!(self.state, AttemptState::Open | AttemptState::Closing)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rest {
    Paid,
    Failed,
    Cancelled,
    /// Any of these reasons is true.
    Review(Vec<ReviewReason>),
}

#[derive(Clone, Debug)]
pub struct Object {
    pub id: ObjectId,
    pub cancelled: bool,
    pub terms: Arc<Terms>,
}

#[derive(Clone, Debug, Default)]
pub struct Invoice {
    pub bill: Option<Bill>,
    pub order: u64,
    pub rest: Option<Rest>,
    pub was_cancelled: bool,
    pub lease: Option<Lease>,
    pub token_last: FencingToken,
    pub last_expired: bool,
    pub waiters: Vec<Waiter>,
    pub attempts: Vec<Attempt>,
    pub highest: u32,
    pub object: Option<Object>,
    pub charges: Vec<Reference>,
    pub tries: u32,
    pub doubts: u32,
    pub next_try: u64,
    pub pending_until: u64,
    pub declined: Option<DeclineCode>,
    /// What was settled under a current token. A copy of it may be refused, or answered; it changes nothing.
    pub settled: Vec<SettleCharge>,
}

impl Invoice {
    pub fn live(&self) -> Option<&Attempt> {
        self.attempts.iter().find(|attempt| attempt.is_live())
    }

    pub fn live_mut(&mut self) -> Option<&mut Attempt> {
        self.attempts.iter_mut().find(|attempt| attempt.is_live())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Expired,
    Ended,
}

pub struct Model {
    pub config: Config,
    pub ledger_id: Option<LedgerId>,
    pub now: u64,
    pub wall: u64,
    /// The wall clock as it is and as it was compared last: what is sure, and what may be.
    pub wall_low: u64,
    pub wall_high: u64,
    pub token_last: u64,
    pub charges_allowed: bool,
    pub grants_from: u64,
    pub old_keys_until: u64,
    pub sessions: BTreeMap<SessionId, Session>,
    pub ended: BTreeMap<SessionId, Ended>,
    pub invoices: BTreeMap<InvoiceId, Invoice>,
    pub paused: BTreeMap<ProviderId, Evidence>,
    submitted: u64,
    freed: BTreeSet<InvoiceId>,
    answers: Vec<(SessionId, Seq, Expected)>,
    alarms: Vec<(InvoiceId, Reference, Vec<ReviewReason>)>,
    told: Vec<WaiterAnswer>,
}

impl Model {
    pub fn new(config: Config) -> Self {
        Self {
            config,
            ledger_id: None,
            now: 0,
            wall: 0,
            wall_low: 0,
            wall_high: 0,
            token_last: 0,
            charges_allowed: false,
            grants_from: 0,
            old_keys_until: 0,
            sessions: BTreeMap::new(),
            ended: BTreeMap::new(),
            invoices: BTreeMap::new(),
            paused: BTreeMap::new(),
            submitted: 0,
            freed: BTreeSet::new(),
            answers: Vec::new(),
            alarms: Vec::new(),
            told: Vec::new(),
        }
    }

    /// Takes one batch, and says what in the ledger's account of it contradicts the design.
    pub fn check(&mut self, stamp: &Stamp, batch: &Batch, applied: &Applied) -> Result<(), String> {
        self.told.clone_from(&applied.answers);
        self.answers.clear();
        self.alarms.clear();
        if applied.results.len() != batch.len() {
            return Err(format!(
                "{} commands, {} results",
                batch.len(),
                applied.results.len()
            ));
        }

        // Keep-alives are judged against the old time, unless an open or close of their session stands before them.
        let mut moved: BTreeSet<SessionId> = BTreeSet::new();
        let mut kept: Vec<Option<Result<SessionId, Vec<Rejection>>>> = Vec::new();
        for (_, command) in batch {
            kept.push(match command {
                Command::OpenSession(open) => {
                    moved.insert(open.session);
                    None
                }
                Command::CloseSession(close) => {
                    moved.insert(close.session);
                    None
                }
                Command::KeepAlive(keep) if moved.contains(&keep.session) => None,
                Command::KeepAlive(keep) if self.is_alive(keep.session) => Some(Ok(keep.session)),
                Command::KeepAlive(_) if self.ledger_id.is_none() => {
                    Some(Err(vec![Rejection::NotBootstrapped]))
                }
                Command::KeepAlive(keep) => Some(Err(self.session_reasons(keep.session))),
                _ => None,
            });
        }
        self.now = self.now.max(stamp.proposed().0);
        self.wall = stamp.wall.0;
        let jumped = self.wall.saturating_add_signed(-stamp.wall_jumped_ms);
        (self.wall_low, self.wall_high) = (self.wall.min(jumped), self.wall.max(jumped));
        for session in kept.iter().flatten().flatten() {
            self.keep(*session);
        }
        let kept: Vec<Option<Expected>> = kept
            .into_iter()
            .map(|kept| {
                kept.map(|kept| kept.map(|session| Reply::Session(self.session_view(session))))
            })
            .collect();
        self.expire();

        for (at, (_, command)) in batch.iter().enumerate() {
            let told = &applied.results[at];
            match (&kept[at], items_of(command)) {
                (Some(judged), _) => compare(command, judged, told)?,
                (None, Some(items)) if self.ledger_id.is_some() => {
                    let Ok(Reply::Each(results)) = told else {
                        return Err(format!("{command:?}\n  ledger: {told:?}"));
                    };
                    if items.len() != results.len() {
                        return Err(format!("{command:?}: {} results", results.len()));
                    }
                    for (item, told) in items.iter().zip(results) {
                        self.check_one(item, told)?;
                    }
                }
                (None, _) => self.check_one(command, told)?,
            }
        }
        self.check_answers(applied)?;
        self.check_alarms(applied)
    }

    fn check_one(&mut self, command: &Command, told: &Told) -> Result<(), String> {
        let expected = self.one(command, told);
        compare(command, &expected, told)?;
        self.serve_freed();
        Ok(())
    }

    /// Grants in their order; refusals that fall due at one instant may come in any.
    fn check_answers(&self, applied: &Applied) -> Result<(), String> {
        let mut expected: Vec<_> = self.answers.iter().collect();
        let mut told: Vec<_> = applied.answers.iter().collect();
        expected
            .sort_by_key(|(session, seq, expected)| expected.is_err().then_some((*session, *seq)));
        told.sort_by_key(|told| told.result.is_err().then_some((told.session, told.seq)));
        let same = told.len() == expected.len()
            && told
                .iter()
                .zip(&expected)
                .all(|(told, (session, seq, expected))| {
                    told.session == *session && told.seq == *seq && allows(expected, &told.result)
                });
        if same {
            return Ok(());
        }
        Err(format!(
            "answers to waiters\n  ledger: {:?}\n  model:  {:?}",
            applied.answers, self.answers
        ))
    }

    fn check_alarms(&self, applied: &Applied) -> Result<(), String> {
        let same = applied.alarms.len() == self.alarms.len()
            && applied.alarms.iter().zip(&self.alarms).all(
                |(told, (invoice, reference, reasons))| {
                    told.invoice == *invoice
                        && told.reference == *reference
                        && reasons.contains(&told.reason)
                },
            );
        if same {
            return Ok(());
        }
        Err(format!(
            "alarms\n  ledger: {:?}\n  model:  {:?}",
            applied.alarms, self.alarms
        ))
    }

    fn one(&mut self, command: &Command, told: &Told) -> Expected {
        if self.ledger_id.is_none() && !matches!(command, Command::Bootstrap(_) | Command::Tick) {
            return Err(vec![Rejection::NotBootstrapped]);
        }
        match command {
            Command::Bootstrap(bootstrap) => self.bootstrap(bootstrap),
            Command::BootstrapWithin(_) => unreachable!("a story tells it"),
            Command::Restore(_) => self.restore(),
            Command::OpenSession(open) => self.open_session(open),
            Command::KeepAlive(keep) => self.keep_alive(keep),
            Command::CloseSession(close) => self.close_session(close),
            Command::AcquireLease(acquire) => self.acquire(acquire, told),
            Command::WithdrawWaiter(withdraw) => self.withdraw(withdraw),
            Command::RenewLease(renew) => self.renew(renew),
            Command::ReleaseLease(ReleaseLease::ByToken { invoice, token }) => {
                self.release_by_token(invoice, *token)
            }
            Command::ReleaseLease(ReleaseLease::BySeq { session, seq }) => {
                self.release_by_seq(*session, *seq)
            }
            Command::ClaimInvoices(claim) => self.claim(claim, told),
            Command::SubmitInvoice(submit) => self.submit(submit),
            Command::CancelInvoice(cancel) => self.cancel(cancel),
            Command::RequeueInvoice(requeue) => self.requeue(requeue),
            Command::BeginCharge(begin) => self.begin(begin),
            Command::AttachProviderObject(attach) => self.attach(attach),
            Command::SettleCharge(settle) => self.settle(settle, told),
            Command::ResolveCharge(resolve) => self.resolve(resolve),
            Command::ForceRelease(force) => self.force_release(force),
            Command::PauseProvider(pause) => self.pause(pause),
            Command::AllowCharges(_) => {
                if !self.charges_allowed {
                    self.old_keys_until = self.now + limits::OLD_KEYS_MS;
                }
                self.charges_allowed = true;
                Ok(Reply::Done)
            }
            Command::Tick => Ok(Reply::Done),
            Command::AcquireLeases(_) | Command::RenewLeases(_) | Command::ReleaseLeases(_) => {
                unreachable!("its items are checked one by one")
            }
        }
    }

    fn bootstrap(&mut self, bootstrap: &Bootstrap) -> Expected {
        if let Some(ledger_id) = self.ledger_id.clone() {
            return Err(vec![Rejection::AlreadyBootstrapped { ledger_id }]);
        }
        self.ledger_id = Some(bootstrap.ledger_id.clone());
        self.jump_tokens();
        self.charges_allowed = bootstrap.no_prior_charges;
        if !bootstrap.no_prior_charges {
            self.grants_from = self.now + limits::TTL_MS_MAX;
            self.old_keys_until = u64::MAX;
        }
        Ok(Reply::Bootstrapped {
            ledger_id: bootstrap.ledger_id.clone(),
        })
    }

    fn restore(&mut self) -> Expected {
        let open: Vec<SessionId> = self.sessions.keys().copied().collect();
        // Nobody is granted anything while the sessions end.
        self.grants_from = self.now + limits::TTL_MS_MAX;
        self.old_keys_until = u64::MAX;
        self.charges_allowed = false;
        for session in open {
            self.end_session(session, End::Ended);
        }
        self.jump_tokens();
        let ledger_id = self
            .ledger_id
            .clone()
            .ok_or(vec![Rejection::NotBootstrapped])?;
        Ok(Reply::Restored { ledger_id })
    }

    fn jump_tokens(&mut self) {
        self.token_last =
            (self.token_last + limits::TOKEN_JUMP).max(self.wall_high << limits::TOKEN_MS_SHIFT);
    }

    fn pause(&mut self, pause: &PauseProvider) -> Expected {
        if pause.paused {
            if !self.paused.contains_key(&pause.provider)
                && self.paused.len() >= limits::PROVIDERS_PAUSED_MAX
            {
                return Err(vec![Rejection::Overloaded {
                    bound: Bound::ProvidersPaused,
                    max: limits::PROVIDERS_PAUSED_MAX as u64,
                }]);
            }
            self.paused
                .insert(pause.provider.clone(), pause.reason.clone());
        } else {
            self.paused.remove(&pause.provider);
        }
        Ok(Reply::Done)
    }

    fn submit(&mut self, submit: &SubmitInvoice) -> Expected {
        let bill = Bill {
            invoice: submit.invoice.clone(),
            customer: submit.customer.clone(),
            amount: submit.amount,
            currency: submit.currency,
            due_at: submit.due_at.unwrap_or(WallTime(self.wall_low)),
            priority: submit.priority,
        };
        self.submitted += 1;
        let order = self.submitted;
        let invoice = self.invoices.entry(submit.invoice.clone()).or_default();
        let Some(recorded) = &invoice.bill else {
            invoice.bill = Some(bill);
            invoice.order = order;
            return Ok(Reply::Submitted { unchanged: false });
        };
        let mut reasons = Vec::new();
        let mut differs = |field: &'static str, recorded: String, presented: String| {
            if recorded != presented {
                reasons.push(Rejection::SubmittedOtherwise {
                    invoice: submit.invoice.clone(),
                    field: field.into(),
                    recorded: recorded.into(),
                    presented: presented.into(),
                });
            }
        };
        differs(
            "customer_id",
            recorded.customer.to_string(),
            bill.customer.to_string(),
        );
        differs(
            "amount_minor",
            recorded.amount.to_string(),
            bill.amount.to_string(),
        );
        differs(
            "currency",
            recorded.currency.to_string(),
            bill.currency.to_string(),
        );
        if reasons.is_empty() {
            return Ok(Reply::Submitted { unchanged: true });
        }
        Err(reasons)
    }

    /// The model's own invariants, as far as they say more than that it agrees with the ledger.
    pub fn check_invariants(&self) -> Result<(), String> {
        for (id, invoice) in &self.invoices {
            let live = invoice
                .attempts
                .iter()
                .filter(|attempt| attempt.is_live())
                .count();
            if live > 1 {
                return Err(format!("I1: {id} has {live} live attempts"));
            }
            let settled = invoice
                .attempts
                .iter()
                .filter(|attempt| attempt.state == AttemptState::Settled)
                .count();
            if invoice.rest == Some(Rest::Paid) && (settled != 1 || invoice.charges.len() != 1) {
                return Err(format!("I1: {id} is paid with {settled} settled attempts"));
            }
            if let Some(lease) = &invoice.lease
                && (!self.sessions.contains_key(&lease.session) || lease.token.0 > self.token_last)
            {
                return Err(format!("I2: the lease on {id} is nobody's"));
            }
            for waiter in &invoice.waiters {
                if !self.sessions.contains_key(&waiter.session) || waiter.deadline <= self.now {
                    return Err(format!("I2: a waiter on {id} is dead or overdue"));
                }
            }
        }
        Ok(())
    }
}

/// Texts for people and the argument's bound are the ledger's own choice; everything else must agree.
fn same_refusal(left: &Rejection, right: &Rejection) -> bool {
    use Rejection as R;
    match (left, right) {
        (R::InvalidArgument { .. }, R::InvalidArgument { .. }) => true,
        (
            R::WrongStatus {
                invoice, status, ..
            },
            R::WrongStatus {
                invoice: other,
                status: other_status,
                ..
            },
        ) => invoice == other && status == other_status,
        (
            R::WrongTerms { invoice, field, .. },
            R::WrongTerms {
                invoice: other,
                field: other_field,
                ..
            },
        ) => invoice == other && field == other_field,
        _ => left == right,
    }
}

/// What a command of many consists of; each item means what it means alone.
fn items_of(command: &Command) -> Option<Vec<Command>> {
    match command {
        Command::AcquireLeases(items) => {
            Some(items.iter().cloned().map(Command::AcquireLease).collect())
        }
        Command::RenewLeases(items) => {
            Some(items.iter().cloned().map(Command::RenewLease).collect())
        }
        Command::ReleaseLeases(items) => {
            Some(items.iter().cloned().map(Command::ReleaseLease).collect())
        }
        _ => None,
    }
}

fn compare(command: &Command, expected: &Expected, told: &Told) -> Result<(), String> {
    if allows(expected, told) {
        return Ok(());
    }
    Err(format!(
        "{command:?}\n  ledger: {told:?}\n  model:  {expected:?}"
    ))
}

pub fn allows(expected: &Expected, told: &Told) -> bool {
    match (expected, told) {
        (Ok(expected), Ok(told)) => same_reply(expected, told),
        (Err(reasons), Err(told)) => reasons.iter().any(|reason| same_refusal(reason, told)),
        _ => false,
    }
}

fn same_reply(left: &Reply, right: &Reply) -> bool {
    match (left, right) {
        // When the next invoice becomes due is a hint that may be too early.
        (Reply::Claimed(left), Reply::Claimed(right)) => left.leased == right.leased,
        _ => left == right,
    }
}
