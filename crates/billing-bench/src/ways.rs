//! Decides how a lease is asked for and given back: through the Rust client, by a call each, by tagged requests on one stream, a
//! hundred in one call. Every caller has a session of its own, opened beforehand; what is timed is the acquire and the release.

use std::{fmt, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use billing_client::{AcquireOptions, Client, SessionOptions};
use billing_proto::v1::{
    self, acquire_leases_response, pipeline_request, pipeline_response, release_leases_response,
};
use serde::Serialize;

use crate::{
    load::{Amount, Caller, Share, Turn, Way},
    place::{Measured, Place, watched},
    wire::{self, Lane, Leases, Pipeline, Session},
};

/// Leases of one AcquireLeases.
const BATCH: usize = 100;
/// For our client's sessions, which are kept alive meanwhile.
const TTL: Duration = Duration::from_secs(30);

/// How leases are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A call each
    Unary,
    /// Tagged requests on one stream, as the Rust client does unless told otherwise
    Pipeline,
    /// A hundred at once: acquire_each and release_leases
    Batch,
    /// A call each, without our client
    UnaryStubs,
    /// Tagged requests on one stream, without our client
    PipelineStubs,
    /// A hundred at once, without our client
    BatchStubs,
}

impl Kind {
    pub fn is_batch(self) -> bool {
        matches!(self, Kind::Batch | Kind::BatchStubs)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Unary => "unary",
            Kind::Pipeline => "Pipeline",
            Kind::Batch => "AcquireLeases(100)",
            Kind::UnaryStubs => "unary, stubs",
            Kind::PipelineStubs => "Pipeline, stubs",
            Kind::BatchStubs => "AcquireLeases(100), stubs",
        })
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// All callers want the same invoice; else each has its own.
    pub same: bool,
    /// How long to queue for it.
    pub wait: Duration,
}

impl Wish {
    pub const OWN: Wish = Wish {
        same: false,
        wait: Duration::ZERO,
    };

    fn invoice(self, caller: usize) -> String {
        if self.same {
            "bench-one".to_owned()
        } else {
            format!("bench-{caller}")
        }
    }
}

/// One window of that load.
pub async fn measure(
    place: &mut Place,
    kind: Kind,
    wish: Wish,
    amount: Amount,
) -> Result<Measured> {
    ensure!(
        !(wish.same && kind.is_batch()),
        "a hundred leases of one invoice cannot be had"
    );
    let leader = place.leader_endpoint().await?;
    let by_client = ByClient {
        endpoints: place.cluster.endpoints(),
        unary: kind == Kind::Unary,
        wish,
    };
    match kind {
        Kind::Unary | Kind::Pipeline => watched(place, &by_client, amount).await,
        Kind::Batch => watched(place, &ByClientHundred(by_client), amount).await,
        Kind::UnaryStubs => watched(place, &ByCall { leader, wish }, amount).await,
        Kind::PipelineStubs => watched(place, &ByStream { leader, wish }, amount).await,
        Kind::BatchStubs => watched(place, &ByHundred { leader }, amount).await,
    }
}

fn holder(caller: usize) -> String {
    format!("bench-{caller}")
}

/// Through the Rust client.
#[derive(Clone)]
struct ByClient {
    endpoints: Vec<String>,
    /// Never over a Pipeline.
    unary: bool,
    wish: Wish,
}

struct ClientCaller {
    session: billing_client::Session,
    invoice: String,
    options: AcquireOptions,
}

impl Way for ByClient {
    type Caller = ClientCaller;

    async fn open(&self, share: Share) -> Result<Vec<ClientCaller>> {
        let clients = clients(&self.endpoints, self.unary, &share)?;
        let mut callers = Vec::new();
        for caller in share.callers {
            let client = &clients[caller % clients.len()];
            let options = SessionOptions::new(holder(caller), TTL);
            callers.push(ClientCaller {
                session: client.open_session(options).await?,
                invoice: self.wish.invoice(caller),
                options: AcquireOptions::wait(self.wish.wait),
            });
        }
        Ok(callers)
    }
}

/// As many as connections: each client has one to the leader.
pub fn clients(endpoints: &[String], unary: bool, share: &Share) -> Result<Vec<Client>> {
    (0..share.connections)
        .map(|_| {
            let client = Client::builder().endpoints(endpoints.to_vec());
            Ok(client.unary_only(unary).build()?)
        })
        .collect()
}

impl Caller for ClientCaller {
    async fn turn(&mut self) -> Result<Turn> {
        let lease = self.session.acquire(&self.invoice, self.options).await?;
        lease.release().await?;
        Ok(Turn::Did(1))
    }
}

/// Through the Rust client, a hundred at once.
#[derive(Clone)]
struct ByClientHundred(ByClient);

struct ClientHundredCaller {
    session: billing_client::Session,
    invoices: Vec<String>,
}

impl Way for ByClientHundred {
    type Caller = ClientHundredCaller;

    async fn open(&self, share: Share) -> Result<Vec<ClientHundredCaller>> {
        let callers = share.callers.clone().zip(self.0.open(share).await?);
        Ok(callers
            .map(|(number, caller)| ClientHundredCaller {
                session: caller.session,
                invoices: hundred(number),
            })
            .collect())
    }
}

impl Caller for ClientHundredCaller {
    async fn turn(&mut self) -> Result<Turn> {
        let options = AcquireOptions::default();
        let acquired = self.session.acquire_each(&self.invoices, options).await?;
        let mut items = Vec::with_capacity(BATCH);
        for (invoice, guard) in self.invoices.iter().zip(acquired) {
            let guard = guard?;
            items.push(wire::release(invoice, guard.token().0));
            // Given back below, all at once, and not by the guard.
            guard.settled();
        }
        for released in self.session.client().release_leases(items).await? {
            ensure!(released?, "the lease was not ours any more");
        }
        Ok(Turn::Did(BATCH as u64))
    }
}

fn hundred(caller: usize) -> Vec<String> {
    (0..BATCH)
        .map(|number| format!("bench-{caller}-{number}"))
        .collect()
}

/// Connections to the leader for one thread's share.
async fn connections(leader: &str, share: &Share) -> Result<Vec<Leases>> {
    let mut connections = Vec::new();
    for _ in 0..share.connections {
        connections.push(wire::connect(leader).await?);
    }
    Ok(connections)
}

#[derive(Clone)]
struct ByCall {
    leader: String,
    wish: Wish,
}

struct CallCaller {
    leases: Leases,
    session: Session,
    invoice: String,
    wait: Duration,
}

impl Way for ByCall {
    type Caller = CallCaller;

    async fn open(&self, share: Share) -> Result<Vec<CallCaller>> {
        let connections = connections(&self.leader, &share).await?;
        let mut callers = Vec::new();
        for caller in share.callers {
            let mut leases = connections[caller % connections.len()].clone();
            let session = Session::open(&mut leases, &holder(caller), wire::TTL).await?;
            callers.push(CallCaller {
                leases,
                session,
                invoice: self.wish.invoice(caller),
                wait: self.wish.wait,
            });
        }
        Ok(callers)
    }
}

impl Caller for CallCaller {
    async fn turn(&mut self) -> Result<Turn> {
        let request = self.session.acquire(&self.invoice, self.wait);
        let granted = self.leases.acquire_lease(request).await?.into_inner();
        let request = wire::release(&self.invoice, wire::token(granted)?);
        let released = self.leases.release_lease(request).await?.into_inner();
        ensure!(released.was_current, "the lease was not ours any more");
        Ok(Turn::Did(1))
    }
}

#[derive(Clone)]
struct ByStream {
    leader: String,
    wish: Wish,
}

struct StreamCaller {
    lane: Lane,
    session: Session,
    invoice: String,
    wait: Duration,
}

impl Way for ByStream {
    type Caller = StreamCaller;

    async fn open(&self, share: Share) -> Result<Vec<StreamCaller>> {
        let mut connections = connections(&self.leader, &share).await?;
        let lanes_each = share.callers.len().div_ceil(connections.len());
        let mut lanes = Vec::new();
        for leases in &mut connections {
            lanes.push(Pipeline::open(leases, lanes_each).await?);
        }
        let mut callers = Vec::new();
        for caller in share.callers {
            let at = caller % connections.len();
            let lane = lanes[at].pop().context("more callers than lanes")?;
            callers.push(StreamCaller {
                lane,
                session: Session::open(&mut connections[at], &holder(caller), wire::TTL).await?,
                invoice: self.wish.invoice(caller),
                wait: self.wish.wait,
            });
        }
        Ok(callers)
    }
}

impl Caller for StreamCaller {
    async fn turn(&mut self) -> Result<Turn> {
        use pipeline_request::Request;
        use pipeline_response::Result as Answer;
        let request = self.session.acquire(&self.invoice, self.wait);
        let granted = match self.lane.ask(Request::AcquireLease(request)).await? {
            Answer::AcquireLease(granted) => granted,
            other => bail!("an acquire was answered with {other:?}"),
        };
        let request = wire::release(&self.invoice, wire::token(granted)?);
        match self.lane.ask(Request::ReleaseLease(request)).await? {
            Answer::ReleaseLease(released) => {
                ensure!(released.was_current, "the lease was not ours any more");
            }
            other => bail!("a release was answered with {other:?}"),
        }
        Ok(Turn::Did(1))
    }
}

#[derive(Clone)]
struct ByHundred {
    leader: String,
}

struct HundredCaller {
    leases: Leases,
    session: Session,
    invoices: Vec<String>,
}

impl Way for ByHundred {
    type Caller = HundredCaller;

    async fn open(&self, share: Share) -> Result<Vec<HundredCaller>> {
        let connections = connections(&self.leader, &share).await?;
        let mut callers = Vec::new();
        for caller in share.callers {
            let mut leases = connections[caller % connections.len()].clone();
            callers.push(HundredCaller {
                session: Session::open(&mut leases, &holder(caller), wire::TTL).await?,
                leases,
                invoices: hundred(caller),
            });
        }
        Ok(callers)
    }
}

impl Caller for HundredCaller {
    async fn turn(&mut self) -> Result<Turn> {
        use release_leases_response::item::Result as Released;
        let held = acquire_all(&mut self.leases, &mut self.session, &self.invoices).await?;
        let items = self
            .invoices
            .iter()
            .zip(held)
            .map(|(invoice, token)| wire::release(invoice, token))
            .collect();
        let request = v1::ReleaseLeasesRequest { items };
        let released = self.leases.release_leases(request).await?.into_inner();
        for item in released.items {
            match item.result.context("an item without a result")? {
                Released::Released(released) => {
                    ensure!(released.was_current, "the lease was not ours any more");
                }
                Released::Error(error) => bail!("refused: {}", error.message),
            }
        }
        Ok(Turn::Did(BATCH as u64))
    }
}

/// The tokens of leases on all of `invoices`, in order, asked for in one call.
pub async fn acquire_all(
    leases: &mut Leases,
    session: &mut Session,
    invoices: &[String],
) -> Result<Vec<u64>> {
    use acquire_leases_response::item::Result as Acquired;
    let done_below = session.next_seq();
    let items = invoices
        .iter()
        .map(|invoice| session.acquire_beside(invoice, Duration::ZERO, done_below))
        .collect();
    let request = v1::AcquireLeasesRequest { items };
    let acquired = leases.acquire_leases(request).await?.into_inner();
    ensure!(
        acquired.items.len() == invoices.len(),
        "{} answers for {} items",
        acquired.items.len(),
        invoices.len()
    );
    acquired
        .items
        .into_iter()
        .map(
            |item| match item.result.context("an item without a result")? {
                Acquired::Granted(granted) => wire::token(granted),
                Acquired::Error(error) => bail!("refused: {}", error.message),
            },
        )
        .collect()
}
