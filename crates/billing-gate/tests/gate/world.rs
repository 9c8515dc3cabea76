//! A world in one process: a ledger behind the gate's port, the sandbox on loopback, a clock that can be moved, and places to
//! interfere.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use billing_core::{
    AcquireLease, Actor, AmountMinor, AttachProviderObject, BeginCharge, Bill, Bootstrap,
    ClusterTime, Command, Config, Currency, CustomerId, FencingToken, HolderId, IdempotencyKey,
    InvoiceId, InvoiceStatus, InvoiceView, KeepAlive, Ledger, LedgerId, ObjectId, OpenSession,
    Outcome as Said, Priority, Rejection, ReleaseLease, Reply, Requester, Seq, SessionId,
    SettleCharge, Stamp, SubmitInvoice, Terms, TtlMs, WaitMs, WallTime,
};
use billing_env::{BootTime, BoxFuture, Clock, Env, MonoTime, PausePoints, RealClock};
use billing_gate::{
    Attempt, Begun, Gate, GateConfig, Hold, LedgerPort, Outcome, Payer, Payers, Profile, SHIPPED,
    SecretKey,
};
use billing_proto::Failure;
use billing_sandbox::{Faults, Sandbox, Settings};
use serde_json::Value;
use tonic::Status;

const SESSION: SessionId = SessionId::new([7; 16]);

/// The real clock, moved ahead by hand. Sleeping is real and short.
#[derive(Default)]
pub struct MovedClock {
    real: RealClock,
    ahead_ms: AtomicU64,
}

impl MovedClock {
    pub fn advance(&self, by: Duration) {
        self.ahead_ms
            .fetch_add(by.as_millis() as u64, Ordering::SeqCst);
    }

    fn ahead(&self) -> Duration {
        Duration::from_millis(self.ahead_ms.load(Ordering::SeqCst))
    }
}

impl Clock for MovedClock {
    fn monotonic(&self) -> MonoTime {
        self.real.monotonic() + self.ahead()
    }

    fn boottime(&self) -> BootTime {
        self.real.boottime() + self.ahead()
    }

    fn wall_ms(&self) -> u64 {
        self.real.wall_ms() + self.ahead().as_millis() as u64
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.real.sleep(duration)
    }
}

/// What happens once, when a gate next reaches a place.
type Surprise = Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>;

/// Places where a test interferes.
#[derive(Default)]
pub struct Places(Mutex<BTreeMap<&'static str, Vec<Surprise>>>);

impl Places {
    /// Runs `surprise` when `place` is reached the next time.
    pub fn once(&self, place: &'static str, surprise: impl FnOnce() + Send + 'static) {
        self.once_async(place, move || {
            surprise();
            Box::pin(std::future::ready(()))
        });
    }

    pub fn once_async(
        &self,
        place: &'static str,
        surprise: impl FnOnce() -> BoxFuture<'static, ()> + Send + 'static,
    ) {
        self.0
            .lock()
            .expect("places")
            .entry(place)
            .or_default()
            .push(Box::new(surprise));
    }
}

impl PausePoints for Places {
    fn reach(&self, at: &'static str) -> BoxFuture<'static, ()> {
        let next = self
            .0
            .lock()
            .expect("places")
            .get_mut(at)
            .and_then(|waiting| (!waiting.is_empty()).then(|| waiting.remove(0)));
        match next {
            Some(surprise) => surprise(),
            None => Box::pin(std::future::ready(())),
        }
    }
}

/// The ledger, and answers that get lost after it has done its work.
pub struct Desk {
    ledger: Mutex<Ledger>,
    clock: Arc<MovedClock>,
    began_at: MonoTime,
    seq: AtomicU64,
    pub lost_answers: AtomicU64,
}

impl Desk {
    pub fn apply(&self, command: Command) -> Result<Reply, Rejection> {
        let stamp = Stamp {
            base: ClusterTime(0),
            elapsed_ms: self.clock.monotonic().since(self.began_at).as_millis() as u64,
            wall: WallTime(self.clock.wall_ms()),
            wall_jumped_ms: 0,
        };
        let actor = Actor::new("test").expect("an actor");
        let applied = self
            .ledger
            .lock()
            .expect("the ledger")
            .apply(stamp, &[(actor, command)]);
        applied.results.into_iter().next().expect("one result")
    }

    fn answer(&self, result: Result<Reply, Rejection>) -> Result<Reply, Failure> {
        let lose = self
            .lost_answers
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            });
        if lose.is_ok() {
            return Err(Failure::Unknown(Status::unknown(
                "the answer is lost on purpose",
            )));
        }
        result.map_err(Failure::Rejected)
    }
}

impl LedgerPort for Desk {
    async fn begin(
        &self,
        invoice: &InvoiceId,
        token: FencingToken,
        terms: &Terms,
    ) -> Result<Begun, Failure> {
        let sent_at = self.clock.boottime();
        let begin = BeginCharge {
            invoice: invoice.clone(),
            token,
            terms: Arc::new(terms.clone()),
        };
        match self.answer(self.apply(Command::BeginCharge(begin)))? {
            Reply::Begun(attempt) => {
                let send_until = sent_at + Duration::from_millis(attempt.send_within_ms);
                Ok(Begun {
                    attempt: Attempt::from(&*attempt),
                    send_until,
                })
            }
            other => panic!("{other:?}"),
        }
    }

    async fn attach(
        &self,
        invoice: &InvoiceId,
        token: FencingToken,
        object: &ObjectId,
    ) -> Result<ObjectId, Failure> {
        let attach = AttachProviderObject {
            invoice: invoice.clone(),
            token,
            object: object.clone(),
        };
        match self.answer(self.apply(Command::AttachProviderObject(attach)))? {
            Reply::Attached { object } => Ok(object),
            other => panic!("{other:?}"),
        }
    }

    async fn settle(
        &self,
        invoice: &InvoiceId,
        token: FencingToken,
        key: &IdempotencyKey,
        outcome: Said,
    ) -> Result<InvoiceStatus, Failure> {
        let settle = SettleCharge {
            invoice: invoice.clone(),
            token,
            key: key.clone(),
            outcome,
        };
        match self.answer(self.apply(Command::SettleCharge(Box::new(settle))))? {
            Reply::Status { status } => Ok(status),
            other => panic!("{other:?}"),
        }
    }
}

/// A lease that a test can take away.
pub struct Held {
    pub bill: Bill,
    pub known: Option<Attempt>,
    token: FencingToken,
    stands: Arc<AtomicBool>,
}

impl Held {
    /// From now on the holder knows that it has lost it.
    pub fn switch(&self) -> Arc<AtomicBool> {
        self.stands.clone()
    }
}

impl Hold for Held {
    fn token(&self) -> FencingToken {
        self.token
    }

    fn stands(&self) -> bool {
        self.stands.load(Ordering::SeqCst)
    }
}

pub struct World {
    pub desk: Desk,
    pub sandbox: Sandbox,
    pub clock: Arc<MovedClock>,
    pub places: Arc<Places>,
    env: Env,
}

impl World {
    pub async fn new() -> World {
        World::with(Faults::default(), Settings::default()).await
    }

    pub async fn faulty(faults: Faults) -> World {
        World::with(faults, Settings::default()).await
    }

    pub async fn with(faults: Faults, settings: Settings) -> World {
        let clock = Arc::new(MovedClock::default());
        let places = Arc::new(Places::default());
        let env = Env {
            clock: clock.clone(),
            pauses: places.clone(),
            ..Env::real()
        };
        let settings = Settings { faults, ..settings };
        let sandbox = Sandbox::start(env.clone(), settings, "127.0.0.1:0")
            .await
            .expect("a sandbox on loopback");
        let config = Config {
            retries_max: 100,
            ..Config::default()
        };
        let desk = Desk {
            ledger: Mutex::new(Ledger::new(config)),
            began_at: clock.monotonic(),
            clock: clock.clone(),
            seq: AtomicU64::new(0),
            lost_answers: AtomicU64::new(0),
        };
        let ledger_id = LedgerId::new("test").expect("an id");
        desk.apply(Command::Bootstrap(Bootstrap {
            ledger_id,
            no_prior_charges: true,
        }))
        .expect("bootstrapped");
        World {
            desk,
            sandbox,
            clock,
            places,
            env,
        }
    }

    pub fn gate(&self, method: &str) -> Gate {
        self.gate_with(method, |_| {})
    }

    pub fn gate_with(&self, method: &str, change: impl FnOnce(&mut GateConfig)) -> Gate {
        let payer = Payer {
            provider_customer: None,
            payment_method: method.to_owned(),
        };
        let mut config = GateConfig {
            provider: "stripe".to_owned(),
            profile: Profile::named("stripe", SHIPPED).expect("shipped"),
            address: self.sandbox.local_addr().to_string(),
            account: "default".to_owned(),
            key: SecretKey::new("sk_test_gate").expect("a test key"),
            payers: Payers::Everyone(payer),
        };
        change(&mut config);
        Gate::new(self.env.clone(), config).expect("a gate")
    }

    pub fn submit(&self, invoice: &str) {
        let submit = SubmitInvoice {
            invoice: id(invoice),
            customer: CustomerId::new("ana").expect("an id"),
            amount: AmountMinor::new(1500).expect("an amount"),
            currency: Currency::new("EUR").expect("a currency"),
            due_at: None,
            priority: Priority::default(),
        };
        self.desk
            .apply(Command::SubmitInvoice(submit))
            .expect("submitted");
    }

    /// Leases it, with time moved until that is allowed (back-offs).
    pub fn lease(&self, invoice: &str) -> Held {
        match self.lease_unless_ended(invoice) {
            Some(held) => held,
            None => panic!("{invoice} cannot be leased: {}", self.status(invoice)),
        }
    }

    /// As `lease`; None: nothing is left to do, or a person has to look at it.
    pub fn lease_unless_ended(&self, invoice: &str) -> Option<Held> {
        // A lease that ends unused lengthens the back-off: wait first.
        for _ in 0..3 {
            if matches!(
                self.status(invoice),
                InvoiceStatus::Paid | InvoiceStatus::Failed | InvoiceStatus::Review
            ) {
                return None;
            }
            let next_try_in_ms = self.view(invoice).next_try_in_ms;
            if next_try_in_ms == 0
                && let Some(held) = self.try_lease(invoice)
            {
                return Some(held);
            }
            self.clock
                .advance(Duration::from_millis(next_try_in_ms + 1));
        }
        panic!("{invoice} cannot be leased: {}", self.status(invoice));
    }

    pub fn try_lease(&self, invoice: &str) -> Option<Held> {
        let ttl = TtlMs::new(300_000).expect("a TTL");
        let keep = Command::KeepAlive(KeepAlive {
            session: self.session(),
        });
        if self.desk.apply(keep).is_err() {
            let holder = HolderId::new("gate").expect("a name");
            // Moving the clock ends sessions, whose ids are never used again.
            self.desk.seq.fetch_add(1 << 32, Ordering::SeqCst);
            self.desk
                .apply(Command::OpenSession(OpenSession {
                    session: self.session(),
                    holder,
                    ttl,
                }))
                .expect("opened");
        }
        let seq = (self.desk.seq.fetch_add(1, Ordering::SeqCst) & 0xffff_ffff) + 1;
        let requester = Requester::Session {
            session: self.session(),
            seq: Seq::new(seq).expect("a seq"),
            done_below: 0,
            ttl: None,
        };
        let wait = WaitMs::new(0).expect("no wait");
        let acquire = AcquireLease {
            invoice: id(invoice),
            requester,
            wait,
        };
        let Ok(Reply::Leased(leased)) = self.desk.apply(Command::AcquireLease(acquire)) else {
            return None;
        };
        let view = self.view(invoice);
        Some(Held {
            bill: view.bill.expect("submitted"),
            known: leased.open_attempt.as_deref().map(Attempt::from),
            token: leased.lease.token,
            stands: Arc::new(AtomicBool::new(true)),
        })
    }

    /// Sessions are numbered by the upper half of the counter.
    fn session(&self) -> SessionId {
        let mut bytes = *SESSION.as_bytes();
        bytes[..4]
            .copy_from_slice(&((self.desk.seq.load(Ordering::SeqCst) >> 32) as u32).to_be_bytes());
        SessionId::new(bytes)
    }

    /// Ends the lease, as its expiry would. The holder is not told.
    pub fn release(&self, held: &Held) {
        let release = ReleaseLease::ByToken {
            invoice: held.bill.invoice.clone(),
            token: held.token,
        };
        self.desk
            .apply(Command::ReleaseLease(release))
            .expect("released");
    }

    pub async fn charge(&self, gate: &Gate, held: &Held) -> Outcome {
        gate.charge(&self.desk, held, &held.bill, held.known.as_ref())
            .await
    }

    /// Leases and charges, and gives back what the outcome did not end.
    pub async fn run(&self, gate: &Gate, invoice: &str) -> Outcome {
        let held = self.lease(invoice);
        let outcome = self.charge(gate, &held).await;
        if !outcome.ended_the_lease() {
            self.release(&held);
        }
        outcome
    }

    pub fn status(&self, invoice: &str) -> InvoiceStatus {
        // Time moves with every entry, and what it brings.
        self.desk.apply(Command::Tick).expect("ticked");
        self.desk
            .ledger
            .lock()
            .expect("the ledger")
            .invoice_view(&id(invoice))
            .expect("submitted")
            .status
    }

    fn view(&self, invoice: &str) -> InvoiceView {
        let ledger = self.desk.ledger.lock().expect("the ledger");
        ledger.invoice_view(&id(invoice)).expect("submitted")
    }

    pub fn reference(&self, invoice: &str) -> Option<String> {
        let ledger = self.desk.ledger.lock().expect("the ledger");
        ledger
            .invoice_view(&id(invoice))?
            .charge_reference
            .map(|reference| reference.to_string())
    }

    pub fn alarms(&self) -> u64 {
        self.desk.ledger.lock().expect("the ledger").charge_alarms()
    }

    pub fn attempts(&self, invoice: &str) -> u32 {
        self.desk
            .ledger
            .lock()
            .expect("the ledger")
            .invoice_view(&id(invoice))
            .expect("submitted")
            .attempts
    }

    pub fn faults(&self, faults: Faults) {
        self.sandbox.witness().set_faults(faults);
    }

    /// How often the provider's books say that the invoice was charged.
    pub fn charged(&self, invoice: &str) -> usize {
        let books = self.sandbox.witness().books();
        let rows = books["invoices"][invoice]
            .as_array()
            .cloned()
            .unwrap_or_default();
        rows.iter().filter(|row| row[3] == "succeeded").count()
    }

    pub fn totals(&self) -> Value {
        self.sandbox.witness().books()["totals"].clone()
    }
}

pub fn id(invoice: &str) -> InvoiceId {
    InvoiceId::new(invoice).expect("an id")
}

/// Past `not_after` + `in_flight_max` of the shipped profile.
pub const QUIET: Duration = Duration::from_secs(41 * 60);
