//! A cluster that answers from a script, over a network that lives in memory, and a way to run `billingctl` against it.
//! Decides what each invoice id provokes; keeps no state, so that the order of commands never shows.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use billing_core::{
    CHAIN_START, FencingToken, HolderId, InvoiceId, Reference, Rejection, chain_hash,
};
use billing_env::{
    BootTime, BoxFuture, BoxIo, Clock, Env, Listener, MonoTime, Net, NoPauses, RandomSource,
    RealClock,
};
use billing_proto::{
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
            stdin_is_terminal: false,
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

/// The ledger's form of a record's bytes, as its reader recomputes them.
fn records(count: u64, forged: Option<u64>) -> Vec<v1::AuditRecord> {
    let mut previous = CHAIN_START;
    let mut records = Vec::new();
    for index in 1..=count {
        let (what, invoice, token, key, detail) = match index % 3 {
            1 => (
                "submitted",
                "inv-7",
                0,
                String::new(),
                "1250 EUR owed by cus-0042",
            ),
            2 => ("acquired", "inv-7", TOKEN, String::new(), "by ana@desk"),
            _ => ("begun", "inv-7", TOKEN, "demo.1.inv-7".to_owned(), ""),
        };
        let wall_ms = 1_795_366_800_000 + index * 1_000;
        let mut canonical = Vec::new();
        canonical.extend_from_slice(&index.to_le_bytes());
        canonical.extend_from_slice(&(index * 1_000).to_le_bytes());
        canonical.extend_from_slice(&wall_ms.to_le_bytes());
        let text = |text: &str, into: &mut Vec<u8>| {
            into.extend_from_slice(&(text.len() as u64).to_le_bytes());
            into.extend_from_slice(text.as_bytes());
        };
        text("worker-1", &mut canonical);
        text(what, &mut canonical);
        canonical.push(1);
        text(invoice, &mut canonical);
        canonical.extend_from_slice(&token.to_le_bytes());
        canonical.push(u8::from(!key.is_empty()));
        if !key.is_empty() {
            text(&key, &mut canonical);
        }
        let hash = chain_hash(&previous, &canonical);
        records.push(v1::AuditRecord {
            index,
            cluster_time_ms: index * 1_000,
            wall_time: Some(Timestamp {
                seconds: (wall_ms / 1_000) as i64,
                nanos: 0,
            }),
            actor: if forged == Some(index) {
                "mallory".into()
            } else {
                "worker-1".into()
            },
            what: what.into(),
            invoice_id: invoice.into(),
            token,
            idempotency_key: key,
            detail: detail.into(),
            previous_hash: previous.to_vec(),
            hash: hash.to_vec(),
            canonical,
        });
        previous = hash;
    }
    records
}

type Answer<T> = Result<Response<T>, Status>;

fn unscripted<T>() -> Answer<T> {
    Err(Status::unimplemented("not in the script"))
}

#[tonic::async_trait]
impl LeaseService for Node {
    async fn open_session(
        &self,
        request: Request<v1::OpenSessionRequest>,
    ) -> Answer<v1::OpenSessionResponse> {
        let v1::OpenSessionRequest {
            session_id,
            holder,
            ttl_ms,
        } = request.into_inner();
        let session = v1::Session {
            session_id,
            holder,
            ttl_ms,
            expires_in_ms: ttl_ms,
        };
        Ok(Response::new(v1::OpenSessionResponse {
            session: Some(session),
        }))
    }

    type KeepAliveStream = BoxStream<'static, Result<v1::KeepAliveResponse, Status>>;

    async fn keep_alive(
        &self,
        request: Request<Streaming<v1::KeepAliveRequest>>,
    ) -> Answer<Self::KeepAliveStream> {
        let end = self.script.sessions_end;
        let answers = request.into_inner().map(move |request| {
            let v1::KeepAliveRequest { tag, session_id } = request?;
            if end {
                let session = billing_core::SessionId::from_slice(&session_id).expect("16 bytes");
                return Err(refused(&Rejection::SessionEnded { session }));
            }
            let session = v1::Session {
                session_id,
                holder: "ana".into(),
                ttl_ms: 1_000,
                expires_in_ms: 1_000,
            };
            Ok(v1::KeepAliveResponse {
                tag,
                result: Some(v1::keep_alive_response::Result::Session(session)),
            })
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn close_session(
        &self,
        _: Request<v1::CloseSessionRequest>,
    ) -> Answer<v1::CloseSessionResponse> {
        Ok(Response::new(v1::CloseSessionResponse { was_open: true }))
    }

    async fn acquire_lease(
        &self,
        request: Request<v1::AcquireLeaseRequest>,
    ) -> Answer<v1::AcquireLeaseResponse> {
        let request = request.into_inner();
        provoked(&request.invoice_id)?;
        let holder = if request.holder.is_empty() {
            "ana@desk".to_owned()
        } else {
            request.holder
        };
        let lease = v1::Lease {
            holder,
            expires_in_ms: request.ttl_ms,
            ..lease(&request.invoice_id)
        };
        let doubtful = request.invoice_id == "inv-doubt";
        let open_attempt = doubtful.then(|| attempt(&request.invoice_id, v1::AttemptState::Open));
        Ok(Response::new(v1::AcquireLeaseResponse {
            lease: Some(lease),
            open_attempt,
        }))
    }

    async fn release_lease(
        &self,
        request: Request<v1::ReleaseLeaseRequest>,
    ) -> Answer<v1::ReleaseLeaseResponse> {
        let request = request.into_inner();
        provoked(&request.invoice_id)?;
        Ok(Response::new(v1::ReleaseLeaseResponse {
            was_current: request.token == TOKEN,
        }))
    }

    async fn renew_lease(
        &self,
        request: Request<v1::RenewLeaseRequest>,
    ) -> Answer<v1::RenewLeaseResponse> {
        let request = request.into_inner();
        provoked(&request.invoice_id)?;
        let lease = v1::Lease {
            expires_in_ms: request.ttl_ms,
            ..lease(&request.invoice_id)
        };
        Ok(Response::new(v1::RenewLeaseResponse { lease: Some(lease) }))
    }

    async fn acquire_leases(
        &self,
        _: Request<v1::AcquireLeasesRequest>,
    ) -> Answer<v1::AcquireLeasesResponse> {
        unscripted()
    }
    async fn release_leases(
        &self,
        _: Request<v1::ReleaseLeasesRequest>,
    ) -> Answer<v1::ReleaseLeasesResponse> {
        unscripted()
    }
    async fn renew_leases(
        &self,
        _: Request<v1::RenewLeasesRequest>,
    ) -> Answer<v1::RenewLeasesResponse> {
        unscripted()
    }

    async fn get_lease(
        &self,
        request: Request<v1::GetLeaseRequest>,
    ) -> Answer<v1::GetLeaseResponse> {
        let id = request.into_inner().invoice_id;
        provoked(&id)?;
        let lease = (id != "inv-free").then(|| lease(&id));
        Ok(Response::new(v1::GetLeaseResponse {
            lease,
            applied_index: 4_711,
            watch_index: 4_712,
        }))
    }

    async fn list_leases(
        &self,
        request: Request<v1::ListLeasesRequest>,
    ) -> Answer<v1::ListLeasesResponse> {
        let request = request.into_inner();
        let all = match request.holder.as_str() {
            "nobody" => Vec::new(),
            "mallory" => vec![v1::Lease {
                holder: "mal\u{1b}[2Jlory".into(),
                ..lease("inv-9")
            }],
            _ => vec![
                lease("inv-7"),
                v1::Lease {
                    holder: "ben@backoffice".into(),
                    ..lease("inv-8-rather-long")
                },
            ],
        };
        // One row a page: the pages are the reader's business.
        let nth: usize = request.page_token.parse().unwrap_or(0);
        let next_page_token = if nth + 1 < all.len() {
            (nth + 1).to_string()
        } else {
            String::new()
        };
        let leases = all.into_iter().skip(nth).take(1).collect();
        Ok(Response::new(v1::ListLeasesResponse {
            leases,
            next_page_token,
            applied_index: 4_711,
            watch_index: 4_712,
        }))
    }

    type WatchLeasesStream = BoxStream<'static, Result<v1::WatchLeasesResponse, Status>>;

    async fn watch_leases(
        &self,
        _: Request<v1::WatchLeasesRequest>,
    ) -> Result<Response<Self::WatchLeasesStream>, Status> {
        unscripted()
    }

    type PipelineStream = BoxStream<'static, Result<v1::PipelineResponse, Status>>;

    async fn pipeline(
        &self,
        _: Request<Streaming<v1::PipelineRequest>>,
    ) -> Result<Response<Self::PipelineStream>, Status> {
        unscripted()
    }
}

#[tonic::async_trait]
impl InvoiceService for Node {
    async fn submit_invoices(
        &self,
        request: Request<Streaming<v1::SubmitInvoicesRequest>>,
    ) -> Answer<v1::SubmitInvoicesResponse> {
        let mut stream = request.into_inner();
        let mut answer = v1::SubmitInvoicesResponse::default();
        let mut seen: BTreeMap<String, i64> = BTreeMap::new();
        let mut position = 0;
        while let Some(request) = stream.message().await? {
            let invoice = request.invoice.unwrap_or_default();
            provoked(&invoice.invoice_id)?;
            match seen.get(&invoice.invoice_id) {
                None => {
                    answer.submitted += 1;
                    seen.insert(invoice.invoice_id, invoice.amount_minor);
                }
                Some(amount) if *amount == invoice.amount_minor => answer.unchanged += 1,
                Some(amount) => {
                    let rejection = Rejection::SubmittedOtherwise {
                        invoice: invoice_id(&invoice.invoice_id),
                        field: "amount_minor".into(),
                        recorded: amount.to_string(),
                        presented: invoice.amount_minor.to_string(),
                    };
                    answer
                        .refused
                        .push(v1::submit_invoices_response::RefusedInvoice {
                            invoice_id: invoice.invoice_id,
                            reason: rejection.to_string(),
                            rejection: Some((&rejection).into()),
                            position,
                        });
                }
            }
            position += 1;
        }
        Ok(Response::new(answer))
    }

    async fn claim_invoices(
        &self,
        _: Request<v1::ClaimInvoicesRequest>,
    ) -> Answer<v1::ClaimInvoicesResponse> {
        unscripted()
    }

    async fn get_invoice(
        &self,
        request: Request<v1::GetInvoiceRequest>,
    ) -> Answer<v1::GetInvoiceResponse> {
        use v1::InvoiceStatus as S;
        let id = request.into_inner().invoice_id;
        let status = match id.as_str() {
            "inv-charging" => S::Charging,
            "inv-review" => S::Review,
            "inv-settled" => S::Paid,
            _ => S::Pending,
        };
        provoked(&id)?;
        Ok(Response::new(state(&id, status)))
    }

    async fn list_invoices(
        &self,
        request: Request<v1::ListInvoicesRequest>,
    ) -> Answer<v1::ListInvoicesResponse> {
        use v1::InvoiceStatus as S;
        let request = request.into_inner();
        let all = [
            ("inv-1", S::Pending),
            ("inv-2", S::Charging),
            ("inv-3", S::InDoubt),
            ("inv-4", S::Waiting),
            ("inv-5", S::Review),
            ("inv-6", S::Paid),
        ];
        let wanted = request.status();
        let nth: usize = request.page_token.parse().unwrap_or(0);
        let fitting: Vec<_> = all
            .into_iter()
            .filter(|(_, status)| wanted == S::Unspecified || *status == wanted)
            .filter(|_| request.customer_id != "cus-nobody")
            .map(|(id, status)| state(id, status))
            .collect();
        let size = usize::try_from(request.page_size)
            .unwrap_or(usize::MAX)
            .min(2);
        let next_page_token = if nth + size < fitting.len() {
            (nth + size).to_string()
        } else {
            String::new()
        };
        let invoices = fitting.into_iter().skip(nth).take(size).collect();
        Ok(Response::new(v1::ListInvoicesResponse {
            invoices,
            next_page_token,
            applied_index: 4_711,
        }))
    }

    async fn get_invoice_history(
        &self,
        request: Request<v1::GetInvoiceHistoryRequest>,
    ) -> Answer<v1::GetInvoiceHistoryResponse> {
        provoked(&request.into_inner().invoice_id)?;
        Ok(Response::new(v1::GetInvoiceHistoryResponse {
            records: records(3, None),
        }))
    }

    async fn cancel_invoice(
        &self,
        request: Request<v1::CancelInvoiceRequest>,
    ) -> Answer<v1::CancelInvoiceResponse> {
        provoked(&request.into_inner().invoice_id)?;
        Ok(Response::new(v1::CancelInvoiceResponse {
            status: v1::InvoiceStatus::Cancelled.into(),
        }))
    }

    async fn requeue_invoice(
        &self,
        request: Request<v1::RequeueInvoiceRequest>,
    ) -> Answer<v1::RequeueInvoiceResponse> {
        provoked(&request.into_inner().invoice_id)?;
        Ok(Response::new(v1::RequeueInvoiceResponse {
            status: v1::InvoiceStatus::Pending.into(),
        }))
    }
}

#[tonic::async_trait]
impl ChargeService for Node {
    async fn begin_charge(
        &self,
        _: Request<v1::BeginChargeRequest>,
    ) -> Answer<v1::BeginChargeResponse> {
        unscripted()
    }
    async fn attach_provider_object(
        &self,
        _: Request<v1::AttachProviderObjectRequest>,
    ) -> Answer<v1::AttachProviderObjectResponse> {
        unscripted()
    }
    async fn settle_charge(
        &self,
        _: Request<v1::SettleChargeRequest>,
    ) -> Answer<v1::SettleChargeResponse> {
        unscripted()
    }
    async fn resolve_charge(
        &self,
        request: Request<v1::ResolveChargeRequest>,
    ) -> Answer<v1::ResolveChargeResponse> {
        let request = request.into_inner();
        provoked(&request.invoice_id)?;
        let status = match request.word {
            Some(v1::resolve_charge_request::Word::Charged(_)) => v1::InvoiceStatus::Paid,
            Some(v1::resolve_charge_request::Word::NotCharged(_)) => v1::InvoiceStatus::Failed,
            None => return Err(Status::invalid_argument("no word")),
        };
        Ok(Response::new(v1::ResolveChargeResponse {
            status: status.into(),
        }))
    }
}

#[tonic::async_trait]
impl ClusterService for Node {
    async fn get_status(&self, _: Request<v1::GetStatusRequest>) -> Answer<v1::GetStatusResponse> {
        let last = self.id == self.script.nodes.len() as u64;
        let member = |(address, node_id): (&&str, u64)| v1::Member {
            node_id,
            client_address: (*address).to_owned(),
            raft_address: address.replace(":71", ":72"),
            voter: true,
            matched_index: 12_345,
        };
        let count = |status: v1::InvoiceStatus, count| v1::StatusCount {
            status: status.into(),
            count,
        };
        Ok(Response::new(v1::GetStatusResponse {
            node_id: self.id,
            ledger_id: "demo".into(),
            role: if self.id == 1 {
                v1::NodeRole::Leader
            } else {
                v1::NodeRole::Follower
            }
            .into(),
            term: 3,
            leader_id: 1,
            leader_address: "127.0.0.1:7101".into(),
            members: self.script.nodes.iter().zip(1..).map(member).collect(),
            last_log_index: 12_346,
            committed_index: 12_345,
            applied_index: 12_345,
            snapshot_index: 10_000,
            cluster_time_ms: 3_723_000,
            state_hash: if self.script.torn && last {
                vec![9; 16]
            } else {
                vec![7; 16]
            },
            state_hash_index: 10_000,
            charges_allowed: true,
            invoices: vec![
                count(v1::InvoiceStatus::Pending, 12),
                count(v1::InvoiceStatus::Paid, 988),
            ],
            leases: 4,
            sessions: 2,
            wall_clock_alarm: self.script.torn && last,
            charge_alarms: 0,
            version: "0.1.0".into(),
            format: 1,
            paused_providers: Vec::new(),
            wall_time: None,
            fsync_p50_us: 0,
            fsync_p99_us: 0,
            first_log_index: 0,
            data_bytes: 0,
            waiters: 0,
        }))
    }

    async fn force_release(
        &self,
        request: Request<v1::ForceReleaseRequest>,
    ) -> Answer<v1::ForceReleaseResponse> {
        let id = request.into_inner().invoice_id;
        provoked(&id)?;
        let was_leased = id != "inv-free";
        let status = if was_leased {
            v1::InvoiceStatus::InDoubt
        } else {
            v1::InvoiceStatus::Pending
        };
        Ok(Response::new(v1::ForceReleaseResponse {
            was_leased,
            status: status.into(),
        }))
    }

    async fn pause_provider(
        &self,
        _: Request<v1::PauseProviderRequest>,
    ) -> Answer<v1::PauseProviderResponse> {
        Ok(Response::new(v1::PauseProviderResponse {}))
    }

    async fn allow_charges(
        &self,
        _: Request<v1::AllowChargesRequest>,
    ) -> Answer<v1::AllowChargesResponse> {
        Ok(Response::new(v1::AllowChargesResponse {}))
    }

    type ReadAuditLogStream = BoxStream<'static, Result<v1::ReadAuditLogResponse, Status>>;

    async fn read_audit_log(
        &self,
        request: Request<v1::ReadAuditLogRequest>,
    ) -> Answer<Self::ReadAuditLogStream> {
        let v1::ReadAuditLogRequest { from_index, limit } = request.into_inner();
        let limit = if limit == 0 {
            usize::MAX
        } else {
            usize::try_from(limit).unwrap_or(usize::MAX)
        };
        let records = records(6, self.script.forged)
            .into_iter()
            .filter(move |record| record.index >= from_index)
            .take(limit)
            .map(|record| {
                Ok(v1::ReadAuditLogResponse {
                    record: Some(record),
                })
            });
        Ok(Response::new(
            futures::stream::iter(records.collect::<Vec<_>>()).boxed(),
        ))
    }

    async fn add_learner(
        &self,
        _: Request<v1::AddLearnerRequest>,
    ) -> Result<Response<v1::AddLearnerResponse>, Status> {
        unscripted()
    }

    async fn promote_member(
        &self,
        _: Request<v1::PromoteMemberRequest>,
    ) -> Result<Response<v1::PromoteMemberResponse>, Status> {
        unscripted()
    }

    async fn remove_member(
        &self,
        _: Request<v1::RemoveMemberRequest>,
    ) -> Result<Response<v1::RemoveMemberResponse>, Status> {
        unscripted()
    }

    async fn transfer_leader(
        &self,
        _: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderResponse>, Status> {
        unscripted()
    }

    async fn take_snapshot(
        &self,
        _: Request<v1::TakeSnapshotRequest>,
    ) -> Result<Response<v1::TakeSnapshotResponse>, Status> {
        unscripted()
    }

    type BackupStream = BoxStream<'static, Result<v1::BackupResponse, Status>>;

    async fn backup(
        &self,
        _: Request<v1::BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        unscripted()
    }
}
