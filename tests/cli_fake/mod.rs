//! A cluster that answers from a script, over a network that lives in memory, and a way to run `billingctl` against it.
//! Decides what each invoice id provokes; keeps no state, so that the order of commands never shows.

#![allow(dead_code, reason = "each test binary uses its own part")]

mod cluster;
mod invoices;
mod leases;

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use billing_core::{
    AmountMinor, AuditRecord, CHAIN_START, ClusterTime, FencingToken, HolderId, IdempotencyKey,
    InvoiceId, Reference, Rejection, SessionId, WallTime, What, chain_hash,
};
use billing_env::{
    BootTime, BoxFuture, BoxIo, Clock, Env, Listener, MonoTime, Net, NoPauses, RandomSource,
    RealClock,
};
use billing_proto::{
    convert::timestamp,
    status::{not_applied, outcome_unknown, refused},
    v1::{
        self, charge_service_server::*, cluster_service_server::*, invoice_service_server::*,
        lease_service_server::*,
    },
};
use billingctl::{Exit, Streams, run};
use futures::{StreamExt, stream::BoxStream};
use prost_types::Timestamp;
use tokio::{io::DuplexStream, sync::mpsc};
use tonic::{Request, Response, Status, Streaming};

pub const TOKEN: u64 = (1_795_366_800_000 << 20) + 7;
const SESSION: [u8; 16] = [0xab; 16];
const DUE: Timestamp = Timestamp {
    seconds: 1_796_083_200,
    nanos: 0,
};
/// Bytes in flight of one connection.
const PIPE_BYTES: usize = 64 * 1024;
const CONNECTIONS_QUEUED_MAX: usize = 64;

/// Which nodes there are, and who plays what.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// Node number (0: does not exist) by address; the first is the leader.
    pub nodes: Vec<&'static str>,
    /// The last node's state hash differs from the others'.
    pub torn: bool,
    /// Index of an audit record that was changed behind the chain's back.
    pub forged: Option<u64>,
    /// Sessions end at their first keep-alive.
    pub sessions_end: bool,
    /// The answer to a withdrawal is lost as well.
    pub deaf: bool,
    /// Whatever `doctor` knows to look for is found somewhere.
    pub ill: bool,
    /// Node 4 belongs as a learner that lags, at an address where nobody listens.
    pub learner: bool,
    /// Node 9 was just added, and catches up while it is looked at.
    pub newcomer: bool,
    /// Nobody leads.
    pub leaderless: bool,
}

impl Script {
    pub fn three() -> Script {
        Script {
            nodes: vec!["127.0.0.1:7101", "127.0.0.1:7102", "127.0.0.1:7103"],
            ..Script::default()
        }
    }
}

/// What a command line left behind.
#[derive(Debug)]
pub struct Ran {
    pub stdout: String,
    pub stderr: String,
    pub code: u8,
}

/// How a command line is run, beside its words.
#[derive(Clone, Debug, Default)]
pub struct Stage {
    pub stdin: Vec<u8>,
    pub columns: Option<u16>,
    /// Somebody sits before it and can be asked.
    pub asked: bool,
}

/// Runs `billingctl` against a cluster of that script. The first word of `line` is the program's name.
pub fn ctl(script: &Script, stage: &Stage, line: &[&str]) -> Ran {
    let net = Arc::new(MemoryNet::default());
    let servers = serve(script, &net);
    let env = Env {
        clock: Arc::new(StillClock(RealClock::new())),
        net: net.clone(),
        random: Arc::new(Counting(Mutex::new(0))),
        pauses: Arc::new(NoPauses),
    };
    let ran = ctl_in(env, stage, line);
    drop(servers);
    ran
}

/// As `ctl`, but on clocks that move: for what takes time.
pub fn ctl_in_time(script: &Script, line: &[&str]) -> Ran {
    let net = Arc::new(MemoryNet::default());
    let servers = serve(script, &net);
    let ran = ctl_in(
        Env {
            net: net.clone(),
            ..Env::real()
        },
        &Stage::default(),
        line,
    );
    drop(servers);
    ran
}

fn ctl_in(env: Env, stage: &Stage, line: &[&str]) -> Ran {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let exit = run(
        line,
        env,
        Streams {
            stdin: &mut stage.stdin.as_slice(),
            stdout: &mut stdout,
            stderr: &mut stderr,
            stdout_columns: stage.columns,
            stderr_is_terminal: false,
            stdin_is_terminal: stage.asked,
        },
    );
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("billingctl writes UTF-8");
    Ran {
        stdout: text(stdout),
        stderr: text(stderr),
        code: Exit::code(exit),
    }
}

/// The nodes' threads; dropping it ends them.
pub struct Servers(Vec<(mpsc::Sender<()>, std::thread::JoinHandle<()>)>);

impl Drop for Servers {
    fn drop(&mut self) {
        for (stop, thread) in self.0.drain(..) {
            drop(stop);
            thread.join().expect("a fake node ends without a panic");
        }
    }
}

fn serve(script: &Script, net: &MemoryNet) -> Servers {
    let nodes = script.nodes.iter().zip(1..).map(|(address, id)| {
        let (sender, connections) = mpsc::channel(CONNECTIONS_QUEUED_MAX);
        net.nodes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert((*address).to_owned(), sender);
        let (stop, mut stopped) = mpsc::channel::<()>(1);
        let node = Node {
            id,
            script: script.clone(),
            looks: Arc::default(),
        };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async move {
                let incoming = tokio_stream::wrappers::ReceiverStream::new(connections)
                    .map(Ok::<_, io::Error>);
                let serving = tonic::transport::Server::builder()
                    .add_service(LeaseServiceServer::new(node.clone()))
                    .add_service(InvoiceServiceServer::new(node.clone()))
                    .add_service(ChargeServiceServer::new(node.clone()))
                    .add_service(ClusterServiceServer::new(node))
                    .serve_with_incoming(incoming);
                tokio::select! {
                    served = serving => served.expect("a fake node serves"),
                    _ = stopped.recv() => {}
                }
            });
        });
        (stop, thread)
    });
    Servers(nodes.collect())
}

/// Connections are pipes in memory; an address that nobody listens at refuses.
#[derive(Default)]
struct MemoryNet {
    nodes: Mutex<BTreeMap<String, mpsc::Sender<DuplexStream>>>,
}

impl Net for MemoryNet {
    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<BoxIo>> {
        let node = self
            .nodes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(address)
            .cloned();
        Box::pin(async move {
            let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
            let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
            node.ok_or_else(refused)?
                .send(theirs)
                .await
                .map_err(|_| refused())?;
            Ok(Box::new(ours) as BoxIo)
        })
    }

    fn listen(&self, _address: &str) -> BoxFuture<'static, io::Result<Box<dyn Listener>>> {
        Box::pin(async { Err(io::Error::from(io::ErrorKind::Unsupported)) })
    }
}

/// A clock on which nothing grows old, so that what is left of a lease is always the same.
struct StillClock(RealClock);

impl Clock for StillClock {
    fn monotonic(&self) -> MonoTime {
        self.0.monotonic()
    }
    fn boottime(&self) -> BootTime {
        BootTime(1_000_000_000)
    }
    fn wall_ms(&self) -> u64 {
        1_795_366_800_000
    }
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.0.sleep(duration)
    }
}

struct Counting(Mutex<u8>);

impl RandomSource for Counting {
    fn fill(&self, bytes: &mut [u8]) {
        let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        bytes.fill(*next);
        *next = next.wrapping_add(1);
    }
}

/// One node of the script.
#[derive(Clone)]
struct Node {
    id: u64,
    script: Script,
    /// How often it was asked how it is: the one thing here that time changes, so that somebody can catch up.
    looks: Arc<AtomicU64>,
}

fn invoice_id(id: &str) -> InvoiceId {
    InvoiceId::new(id).expect("the script's ids are within bounds")
}

/// What an id provokes, whatever is asked about it.
#[allow(clippy::result_large_err, reason = "tonic's own error type")]
fn provoked(id: &str) -> Result<(), Status> {
    let invoice = || invoice_id(id);
    match id {
        "inv-held" => Err(refused(&Rejection::HeldByOther {
            invoice: invoice(),
            holder: HolderId::new("ben").expect("a name"),
            expires_in_ms: 12_345,
        })),
        "inv-stale" => Err(refused(&Rejection::StaleToken {
            presented: FencingToken(5),
            current: FencingToken(9),
        })),
        "inv-nobody" => Err(refused(&Rejection::NotFound { invoice: invoice() })),
        "inv-paid" => Err(refused(&Rejection::AlreadyPaid {
            invoice: invoice(),
            reference: Reference::new("pi_123").expect("a reference"),
        })),
        "inv-lost" => Err(outcome_unknown("the leader went away before it answered")),
        "inv-leaderless" => Err(not_applied("no leader is known")),
        "" => Err(refused(&Rejection::InvalidArgument {
            field: "invoice_id".into(),
            bound: "1..=128 printable ASCII characters without spaces".into(),
        })),
        _ => Ok(()),
    }
}

fn lease(id: &str) -> v1::Lease {
    v1::Lease {
        invoice_id: id.to_owned(),
        token: TOKEN,
        holder: "ana@desk".into(),
        session_id: SESSION.to_vec(),
        expires_in_ms: 29_500,
    }
}

fn attempt(id: &str, state: v1::AttemptState) -> v1::ChargeAttempt {
    v1::ChargeAttempt {
        number: 2,
        idempotency_key: format!("demo.2.{id}"),
        token: TOKEN,
        send_within_ms: 240_000,
        provider_object: "pi_3MtwBw".into(),
        taken_over: true,
        state: state.into(),
        terms: Some(v1::ChargeTerms {
            provider: "stripe".into(),
            account: "acct_1".into(),
            live: false,
            fingerprint: vec![1, 2, 3],
            valid_for_ms: 300_000,
            in_flight_max_ms: 60_000,
            can_look_up: true,
            sticky: true,
        }),
        look_up_in_ms: 0,
    }
}

fn state(id: &str, status: v1::InvoiceStatus) -> v1::GetInvoiceResponse {
    use v1::InvoiceStatus as S;
    let leased = matches!(status, S::Processing | S::Charging);
    let charging = matches!(status, S::Charging | S::InDoubt | S::Waiting);
    v1::GetInvoiceResponse {
        invoice: Some(v1::Invoice {
            invoice_id: id.to_owned(),
            customer_id: "cus-0042".into(),
            amount_minor: 1_250,
            currency: "EUR".into(),
            due_at: Some(DUE),
            priority: 5,
        }),
        status: status.into(),
        lease: leased.then(|| lease(id)),
        open_attempt: charging.then(|| attempt(id, v1::AttemptState::Open)),
        charge_reference: if status == S::Paid {
            "pi_3MtwBw".into()
        } else {
            String::new()
        },
        attempts: if charging { 2 } else { 0 },
        applied_index: 4_711,
        note: if status == S::Review {
            "charged twice: pi_1 and pi_2".into()
        } else {
            String::new()
        },
    }
}

/// Records as a ledger makes them; the forged one shows something else than was hashed.
fn records(count: u64, forged: Option<u64>) -> Vec<v1::AuditRecord> {
    let mut previous = CHAIN_START;
    let mut records = Vec::new();
    for index in 1..=count {
        let (what, key) = match index % 3 {
            1 => (
                What::Submitted {
                    customer: "cus-0042".parse().expect("an id"),
                    amount: AmountMinor::new(1_250).expect("a sum"),
                    currency: "EUR".to_owned().try_into().expect("a currency"),
                },
                None,
            ),
            2 => (
                What::Acquired {
                    session: SessionId::from_slice(&SESSION).expect("16 bytes"),
                    holder: HolderId::new("ana@desk").expect("a name"),
                },
                None,
            ),
            _ => (
                What::Begun,
                Some(IdempotencyKey::parse("demo.1.inv-7").expect("a key")),
            ),
        };
        let mut record = AuditRecord {
            index,
            at: ClusterTime(index * 1_000),
            wall: WallTime(1_795_366_800_000 + index * 1_000),
            actor: "worker-1".parse().expect("a name"),
            token: FencingToken(if index % 3 == 1 { 0 } else { TOKEN }),
            what,
            invoice: Some(invoice_id("inv-7")),
            key,
            hash: CHAIN_START,
        };
        let canonical = record.canonical();
        record.hash = chain_hash(&previous, &canonical);
        let is_forged = forged == Some(index);
        records.push(v1::AuditRecord {
            index,
            cluster_time_ms: record.at.0,
            wall_time: Some(timestamp(record.wall)),
            actor: record.actor.to_string(),
            what: record.what.word().into(),
            invoice_id: "inv-7".into(),
            token: record.token.0,
            idempotency_key: record
                .key
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            detail: if is_forged {
                "125 EUR owed by cus-0042".into()
            } else {
                record.what.detail()
            },
            previous_hash: previous.to_vec(),
            hash: record.hash.to_vec(),
            canonical,
        });
        previous = record.hash;
    }
    records
}

type Answer<T> = Result<Response<T>, Status>;

fn unscripted<T>() -> Answer<T> {
    Err(Status::unimplemented("not in the script"))
}
