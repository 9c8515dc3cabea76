//! A small cluster in this process: the real ledger behind the real services' messages, and switches that break what a
//! network breaks. Decides nothing of its own; a refusal in a test is the ledger's refusal.

mod pipeline;
mod services;

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use billing_client::{Client, ClientBuilder, Failure};
use billing_core::{
    Actor, Bootstrap, Command, Config, InvoiceId, LeaseView, Ledger, LedgerId, Rejection, Reply,
    Seq, SessionId, Stamp, WallTime, WithdrawWaiter,
};
use billing_env::{BootTime, BoxFuture, Clock, Env, MonoTime, RealClock};
use billing_proto::{
    status::{LEADER_ADDRESS, not_applied, outcome_unknown, refused},
    v1,
};
use tokio::sync::oneshot;
use tonic::{Response, Status, transport::Server};

/// What goes wrong with one call.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The node says that it handed nothing to Raft.
    NotApplied,
    /// The node says that it does not know what became of it; it was applied.
    OutcomeUnknown,
    /// The connection breaks before the request is read. The client cannot tell.
    LoseRequest,
    /// It is applied, and the connection breaks before the answer.
    LoseReply,
    /// A waiter is queued, the connection breaks, and the node withdraws the waiter.
    LoseWaiter,
    /// Nothing comes back, ever; nothing was applied.
    Hang,
    /// It is applied, and nothing comes back, ever.
    HangAfter,
    /// Answered late.
    Delay(Duration),
}

pub struct Cluster {
    state: Mutex<State>,
    clock: RealClock,
    begun_at: MonoTime,
}

struct State {
    ledger: Ledger,
    waiters: BTreeMap<(SessionId, Seq), oneshot::Sender<Result<Reply, Rejection>>>,
    /// Per method, what goes wrong with the next calls, whichever node gets them.
    faults: BTreeMap<&'static str, VecDeque<Fault>>,
    /// Goes wrong with every call of the method.
    always: BTreeMap<&'static str, Fault>,
    calls: Vec<(usize, &'static str)>,
    /// The address that every answer names as the leader's.
    hint: Option<String>,
    /// Nodes as they were before there was a Pipeline.
    old: bool,
    /// Pipelines opened, by node.
    pipelines: Vec<usize>,
    /// How many Pipelines have ended, one way or another.
    ended: usize,
}

impl Cluster {
    fn new() -> anyhow::Result<Arc<Cluster>> {
        let clock = RealClock::new();
        let state = State {
            ledger: Ledger::new(Config::default()),
            waiters: BTreeMap::new(),
            faults: BTreeMap::new(),
            always: BTreeMap::new(),
            calls: Vec::new(),
            hint: None,
            old: false,
            pipelines: Vec::new(),
            ended: 0,
        };
        let begun_at = clock.monotonic();
        let cluster = Arc::new(Cluster {
            state: Mutex::new(state),
            clock,
            begun_at,
        });
        let bootstrap = Bootstrap {
            ledger_id: LedgerId::new("test")?,
            no_prior_charges: true,
        };
        cluster
            .apply(Command::Bootstrap(bootstrap))
            .map_err(|rejection| anyhow::anyhow!("{rejection}"))?;
        Ok(cluster)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One entry of one command, stamped with the time since the cluster began.
    pub fn apply(&self, command: Command) -> Result<Reply, Rejection> {
        let elapsed = self.clock.monotonic().since(self.begun_at);
        let stamp = Stamp {
            elapsed_ms: elapsed.as_millis() as u64,
            wall: WallTime(self.clock.wall_ms()),
            ..Stamp::default()
        };
        let mut state = self.state();
        let mut applied = state.ledger.apply(stamp, &[(Actor::ledger(), command)]);
        for answer in applied.answers {
            if let Some(waiter) = state.waiters.remove(&(answer.session, answer.seq)) {
                let _ = waiter.send(answer.result); // Its caller may have gone.
            }
        }
        applied
            .results
            .pop()
            .unwrap_or(Err(Rejection::NotBootstrapped))
    }

    /// As [`Cluster::apply`], and waits for the answer of an acquire that is queued.
    async fn propose(&self, command: Command) -> Result<Reply, Status> {
        let slot = match &command {
            Command::AcquireLease(acquire) => Some(acquire.requester.slot()),
            _ => None,
        };
        let told = slot.map(|slot| {
            let (tell, told) = oneshot::channel();
            self.state().waiters.insert(slot, tell);
            (slot, told)
        });
        let reply = self.apply(command);
        match (reply, told) {
            (Ok(Reply::Queued), Some((_, told))) => match told.await {
                Ok(result) => result.map_err(|rejection| refused(&rejection)),
                // A repeat of the same request has taken its place.
                Err(_) => Err(outcome_unknown("asked again elsewhere")),
            },
            (reply, told) => {
                if let Some((slot, _)) = told {
                    self.state().waiters.remove(&slot);
                }
                reply.map_err(|rejection| refused(&rejection))
            }
        }
    }

    /// One call at one node, with whatever is to go wrong with it.
    async fn serve(
        &self,
        node: usize,
        method: &'static str,
        command: Command,
    ) -> Result<Reply, Status> {
        let fault = self.next_fault(node, method);
        let broken = || Status::unavailable("connection reset");
        let slot = match &command {
            Command::AcquireLease(acquire) => Some(acquire.requester.slot()),
            _ => None,
        };
        match fault {
            None => self.propose(command).await,
            Some(Fault::NotApplied) => Err(not_applied("no leader is known")),
            Some(Fault::LoseRequest) => Err(broken()),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Delay(by)) => {
                self.clock.sleep(by).await;
                self.propose(command).await
            }
            Some(Fault::OutcomeUnknown) => {
                self.propose(command).await?;
                Err(outcome_unknown("the leader changed"))
            }
            Some(Fault::LoseReply) => {
                self.propose(command).await?;
                Err(broken())
            }
            Some(Fault::HangAfter) => {
                self.propose(command).await?;
                std::future::pending().await
            }
            Some(Fault::LoseWaiter) => {
                let queued = self
                    .apply(command)
                    .map_err(|rejection| refused(&rejection))?;
                assert_eq!(
                    queued,
                    Reply::Queued,
                    "this fault is for a request that waits"
                );
                if let Some((session, seq)) = slot {
                    self.apply(Command::WithdrawWaiter(WithdrawWaiter { session, seq }))
                        .map_err(|rejection| refused(&rejection))?;
                }
                Err(broken())
            }
        }
    }

    fn next_fault(&self, node: usize, method: &'static str) -> Option<Fault> {
        let mut state = self.state();
        state.calls.push((node, method));
        let next = state.faults.get_mut(method).and_then(VecDeque::pop_front);
        next.or_else(|| state.always.get(method).cloned())
    }

    pub fn fail_next(&self, method: &'static str, faults: impl IntoIterator<Item = Fault>) {
        self.state()
            .faults
            .entry(method)
            .or_default()
            .extend(faults);
    }

    /// None: works again.
    pub fn fail_always(&self, method: &'static str, fault: Option<Fault>) {
        let mut state = self.state();
        match fault {
            Some(fault) => state.always.insert(method, fault),
            None => state.always.remove(method),
        };
    }

    /// Calls that arrived, by node and method, except keep-alives.
    pub fn calls(&self) -> Vec<(usize, &'static str)> {
        self.state()
            .calls
            .iter()
            .copied()
            .filter(|(_, method)| *method != "KeepAlive")
            .collect()
    }

    pub fn count(&self, method: &str) -> usize {
        self.state()
            .calls
            .iter()
            .filter(|(_, called)| *called == method)
            .count()
    }

    /// Before the first call: nodes know no Pipeline.
    pub fn make_old(&self) {
        self.state().old = true;
    }

    /// The nodes at which a Pipeline was opened, in order.
    pub fn pipelines(&self) -> Vec<usize> {
        self.state().pipelines.clone()
    }

    pub fn pipelines_ended(&self) -> usize {
        self.state().ended
    }

    pub fn set_hint(&self, address: Option<&str>) {
        self.state().hint = address.map(str::to_owned);
    }

    pub fn read<T>(&self, look: impl FnOnce(&Ledger) -> T) -> T {
        look(&self.state().ledger)
    }

    pub fn lease(&self, invoice: &str) -> anyhow::Result<Option<LeaseView>> {
        let invoice = InvoiceId::new(invoice)?;
        Ok(self.read(|ledger| ledger.lease(&invoice)))
    }

    pub fn waiters(&self, invoice: &str) -> anyhow::Result<u64> {
        let invoice = InvoiceId::new(invoice)?;
        Ok(self.read(|ledger| ledger.invoice_view(&invoice).map_or(0, |view| view.waiters)))
    }
}

/// One node: a listener and the number under which its calls are noted.
#[derive(Clone)]
pub struct Node {
    cluster: Arc<Cluster>,
    number: usize,
}

impl Node {
    /// A reply with the leader's address in its metadata, success or not.
    fn hinted<T>(&self, result: Result<T, Status>) -> Result<Response<T>, Status> {
        let hint = self
            .cluster
            .state()
            .hint
            .clone()
            .and_then(|hint| hint.parse().ok());
        match result {
            Ok(value) => {
                let mut response = Response::new(value);
                if let Some(hint) = hint {
                    response.metadata_mut().insert(LEADER_ADDRESS, hint);
                }
                Ok(response)
            }
            Err(mut status) => {
                if let Some(hint) = hint {
                    status.metadata_mut().insert(LEADER_ADDRESS, hint);
                }
                Err(status)
            }
        }
    }
}

/// A cluster with its nodes' addresses.
pub struct Fake {
    pub cluster: Arc<Cluster>,
    pub addresses: Vec<String>,
    servers: Vec<tokio::task::JoinHandle<()>>,
    ticker: tokio::task::JoinHandle<()>,
}

impl Fake {
    pub async fn start(nodes: usize) -> anyhow::Result<Fake> {
        let cluster = Cluster::new()?;
        let mut addresses = Vec::new();
        let mut servers = Vec::new();
        for number in 0..nodes {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
            addresses.push(listener.local_addr()?.to_string());
            let node = Node {
                cluster: cluster.clone(),
                number,
            };
            let serving = Server::builder()
                .add_service(v1::lease_service_server::LeaseServiceServer::new(
                    node.clone(),
                ))
                .add_service(v1::invoice_service_server::InvoiceServiceServer::new(
                    node.clone(),
                ))
                .add_service(v1::charge_service_server::ChargeServiceServer::new(
                    node.clone(),
                ))
                .add_service(v1::cluster_service_server::ClusterServiceServer::new(node))
                .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
            servers.push(tokio::spawn(async move {
                let _ = serving.await; // Ends with the test.
            }));
        }
        let ticking = cluster.clone();
        let ticker = tokio::spawn(async move {
            loop {
                ticking.clock.sleep(Duration::from_millis(50)).await;
                let _ = ticking.apply(Command::Tick);
            }
        });
        Ok(Fake {
            cluster,
            addresses,
            servers,
            ticker,
        })
    }

    /// A client of these nodes, in the real world, with short deadlines.
    pub fn client(&self) -> anyhow::Result<Client> {
        Ok(self.builder().build()?)
    }

    pub fn builder(&self) -> ClientBuilder {
        Client::builder()
            .endpoints(self.addresses.clone())
            .unary_only(crate::UNARY_ONLY)
            .attempt(Duration::from_millis(500))
            .deadline(Duration::from_secs(3))
            .connect_timeout(Duration::from_millis(500))
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.servers.iter().for_each(tokio::task::JoinHandle::abort);
        self.ticker.abort();
    }
}

/// The real clock of a machine that can be put to sleep: boot time jumps, timers do not notice.
pub struct Laptop {
    clock: RealClock,
    slept_ns: AtomicU64,
}

impl Laptop {
    pub fn new() -> Arc<Laptop> {
        Arc::new(Laptop {
            clock: RealClock::new(),
            slept_ns: AtomicU64::new(0),
        })
    }

    pub fn sleep_through(&self, by: Duration) {
        self.slept_ns
            .fetch_add(by.as_nanos() as u64, Ordering::SeqCst);
    }

    pub fn env(self: &Arc<Self>) -> Env {
        Env {
            clock: self.clone(),
            ..Env::real()
        }
    }
}

impl Clock for Laptop {
    fn monotonic(&self) -> MonoTime {
        self.clock.monotonic()
    }
    fn boottime(&self) -> BootTime {
        self.clock.boottime() + Duration::from_nanos(self.slept_ns.load(Ordering::SeqCst))
    }
    fn wall_ms(&self) -> u64 {
        self.clock.wall_ms()
    }
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.clock.sleep(duration)
    }
}

/// Waits until `holds`, and says what did not come true in five seconds.
pub async fn eventually(
    what: &str,
    mut holds: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let clock = RealClock::new();
    let begun_at = clock.monotonic();
    while !holds()? {
        anyhow::ensure!(
            clock.monotonic().since(begun_at) < Duration::from_secs(5),
            "never: {what}"
        );
        clock.sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// The future's value, or a failure that names what took too long.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> anyhow::Result<T> {
    tokio::time::timeout(Duration::from_secs(5), future)
        .await
        .map_err(|_| anyhow::anyhow!("took too long: {what}"))
}

pub fn word(failure: &Failure) -> &'static str {
    match failure {
        Failure::Rejected(_) => "rejected",
        Failure::NotApplied(_) => "not applied",
        Failure::Unknown(_) => "unknown",
    }
}
