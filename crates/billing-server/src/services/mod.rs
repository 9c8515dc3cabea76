//! The edge: every method of `billing.v1`. Requests are read and bounded once, here, through billing-proto's conversions;
//! commands go through the [`Door`] to whichever node leads; what comes back is an answer, a refusal, or a failure that says
//! whether anything happened. Decides no rule about money or time.

mod audit;
mod backup;
mod batch;
mod charge;
mod cluster;
mod invoice;
mod lease;
mod membership;
pub(crate) mod page;
mod pipeline;
mod watch;
pub(crate) mod who;

use std::future::Future;
use std::sync::Arc;

use billing_core::{AcquireLease, Actor, Command, Ledger, OutOfBounds, Reply};
use billing_env::RandomSource;
use billing_proto::v1::charge_service_server::ChargeServiceServer;
use billing_proto::v1::cluster_service_server::ClusterServiceServer;
use billing_proto::v1::invoice_service_server::InvoiceServiceServer;
use billing_proto::v1::lease_service_server::LeaseServiceServer;
use billing_proto::{Failure, status};
use tokio_util::sync::CancellationToken;
use tonic::service::RoutesBuilder;
use tonic::{Extensions, Request, Response, Status};

use crate::node::{Answer, CallError, Consistency, Node};
use crate::serve::MESSAGE_BYTES_MAX;

pub use charge::Charges;
pub use cluster::Cluster;
pub use invoice::{Invoices, REFUSALS_LISTED_MAX};
pub use lease::Leases;
pub use watch::Watchers;

/// Adds the four services of `billing.v1` to `routes`.
pub fn add_to(routes: &mut RoutesBuilder, door: &Door) {
    routes
        .add_service(
            LeaseServiceServer::new(Leases(door.clone()))
                .max_decoding_message_size(MESSAGE_BYTES_MAX),
        )
        .add_service(
            InvoiceServiceServer::new(Invoices(door.clone()))
                .max_decoding_message_size(MESSAGE_BYTES_MAX),
        )
        .add_service(
            ChargeServiceServer::new(Charges(door.clone()))
                .max_decoding_message_size(MESSAGE_BYTES_MAX),
        )
        .add_service(
            ClusterServiceServer::new(Cluster(door.clone()))
                .max_decoding_message_size(MESSAGE_BYTES_MAX),
        );
}

/// The way from the services to the ledger.
#[derive(Clone)]
pub struct Door {
    node: Node,
    random: Arc<dyn RandomSource>,
    stop: CancellationToken,
    watchers: watch::Watchers,
}

/// A request that is one command of the ledger, however it came here.
trait OneCommand: Sized {
    type Response;

    /// What the caller calls itself, in the audit log.
    fn name(&self) -> &str {
        who::WORKER
    }

    /// `drawn`: the id that the client may leave to the server.
    fn command(self, drawn: impl FnOnce() -> [u8; 16]) -> Result<Command, OutOfBounds>;

    /// Shows the reply to that command.
    fn response(reply: Reply) -> Result<Self::Response, Status>;
}

/// Whoever calls, or has opened a stream.
#[derive(Clone)]
struct Caller {
    extensions: Extensions,
    /// Under the name that most go by.
    worker: Actor,
}

impl Caller {
    fn new(extensions: Extensions) -> Caller {
        let worker = who::actor(who::WORKER, &extensions);
        Caller { extensions, worker }
    }

    fn actor(&self, name: &str) -> Actor {
        if name == who::WORKER {
            self.worker.clone()
        } else {
            who::actor(name, &self.extensions)
        }
    }
}

/// What a read found, and how far the log was applied where it looked.
pub struct Read<T> {
    pub value: T,
    pub applied_index: u64,
}

impl Door {
    /// `stop` is cancelled when the node shuts down: calls that wait for others to act end then.
    pub fn new(
        node: Node,
        random: Arc<dyn RandomSource>,
        stop: CancellationToken,
        watchers: Watchers,
    ) -> Door {
        Door {
            node,
            random,
            stop,
            watchers,
        }
    }

    fn draw_id(&self) -> [u8; 16] {
        self.random.id()
    }

    /// Resolves when the node shuts down.
    fn stopping(&self) -> impl Future<Output = ()> + Send + use<> {
        self.stop.clone().cancelled_owned()
    }

    /// A call that is one command.
    async fn call<R: OneCommand>(
        &self,
        request: Request<R>,
    ) -> Result<Response<R::Response>, Status> {
        let actor = who::actor(request.get_ref().name(), request.extensions());
        let command = request
            .into_inner()
            .command(|| self.draw_id())
            .map_err(rejected)?;
        let reply = self.one(actor, command).await.map_err(of)?;
        Ok(Response::new(R::response(reply)?))
    }

    /// Proposes one command.
    async fn one(&self, actor: Actor, command: Command) -> Result<Reply, Failure> {
        heard(self.node.propose(actor, command).await)
    }

    /// Proposes the commands that could be read, together; a result each, in order. What could not be read is refused by
    /// itself.
    async fn each(
        &self,
        actor: Actor,
        commands: impl Iterator<Item = Result<Command, OutOfBounds>>,
    ) -> Vec<Result<Reply, Failure>> {
        let mut asked = Vec::new();
        let mut results: Vec<Option<OutOfBounds>> = Vec::new();
        for command in commands {
            match command {
                Ok(command) => {
                    asked.push((actor.clone(), command));
                    results.push(None);
                }
                Err(out) => results.push(Some(out)),
            }
        }
        let mut answers = self.node.propose_many(asked).await.into_iter();
        let answered = results.into_iter().map(|refused| match refused {
            Some(out) => Err(Failure::Rejected(out.into())),
            None => match answers.next() {
                Some(answer) => heard(answer),
                None => Err(Failure::Unknown(status::outcome_unknown(
                    "an answer is missing",
                ))),
            },
        });
        answered.collect()
    }

    /// Proposes an acquire and waits for its answer. Dropped meanwhile: its waiter is withdrawn, never a grant (§3).
    async fn acquire(&self, actor: Actor, acquire: AcquireLease) -> Result<Reply, Failure> {
        if acquire.wait.get() == 0 {
            return self.one(actor, Command::AcquireLease(acquire)).await;
        }
        tokio::select! {
            biased;
            answer = self.node.acquire_waiting(actor, acquire) => heard(answer),
            () = self.stop.cancelled() => Err(stopped_waiting()),
        }
    }

    /// Proposes acquires in one command and waits for all their answers. Dropped meanwhile: as [`Door::acquire`].
    async fn acquire_each(
        &self,
        actor: Actor,
        acquires: Vec<AcquireLease>,
    ) -> Vec<Result<Reply, Failure>> {
        let count = acquires.len();
        tokio::select! {
            biased;
            answers = self.node.acquire_each(actor, acquires) => answers.into_iter().map(heard).collect(),
            () = self.stop.cancelled() => (0..count).map(|_| Err(stopped_waiting())).collect(),
        }
    }

    /// Proposes one command that has `count` items.
    async fn one_for_each(
        &self,
        actor: Actor,
        count: usize,
        command: Command,
    ) -> Vec<Result<Reply, Failure>> {
        let answer = self.node.propose(actor, command).await;
        let answers = crate::node::waiting::each(answer, count);
        answers.into_iter().map(heard).collect()
    }

    /// Looks at the ledger: linearizably, or at this node's own state, however old.
    async fn read<T>(
        &self,
        stale_ok: bool,
        look: impl FnOnce(&Ledger) -> T + Send,
    ) -> Result<Read<T>, Status> {
        let consistency = if stale_ok {
            Consistency::Stale
        } else {
            Consistency::Linearizable
        };
        let (value, applied_index) = self
            .node
            .read(consistency, look)
            .await
            .map_err(|error| of(failure(error)))?;
        Ok(Read {
            value,
            applied_index,
        })
    }
}

/// The client withdraws by seq, or repeats its request_id, at another node.
fn stopped_waiting() -> Failure {
    Failure::Unknown(status::outcome_unknown(
        "this node shuts down while the request waits for its lease",
    ))
}

/// The ledger's word, or what the lack of one proves.
fn heard(answer: Answer) -> Result<Reply, Failure> {
    match answer {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(rejection)) => Err(Failure::Rejected(rejection)),
        Err(error) => Err(failure(error)),
    }
}

/// What a failed call proves, in the words of the wire.
fn failure(error: CallError) -> Failure {
    match error {
        CallError::NotApplied { reason } => Failure::NotApplied(status::not_applied(reason)),
        CallError::Unknown { reason } => Failure::Unknown(status::outcome_unknown(reason)),
        CallError::Overloaded { bound, max } => Failure::NotApplied(status::queue_full(
            &bound,
            usize::try_from(max).unwrap_or(usize::MAX),
        )),
    }
}

/// The status of a whole call.
fn of(failure: Failure) -> Status {
    match failure {
        Failure::Rejected(rejection) => status::refused(&rejection),
        Failure::NotApplied(status) | Failure::Unknown(status) => status,
    }
}

/// The error of one item.
fn item(failure: Failure) -> billing_proto::v1::ItemError {
    status::item_error(&failure)
}

/// A request outside its bounds.
fn rejected(out: OutOfBounds) -> Status {
    status::refused(&out.into())
}

/// The ledger answered another command than the one asked: a bug, and no proof of anything.
fn unexpected(reply: &Reply) -> Status {
    tracing::error!(
        ?reply,
        "the ledger answered something else than it was asked"
    );
    status::outcome_unknown("a bug in billingd: the answer is of another kind than the question")
}

/// The status in which a command has left its invoice, as the wire shows it.
fn status_of(reply: Reply) -> Result<i32, Status> {
    match reply {
        Reply::Status { status } => Ok(billing_proto::v1::InvoiceStatus::from(status).into()),
        other => Err(unexpected(&other)),
    }
}

/// Takes the answer of the kind that the question has: for a whole call, or (`item:`) for one item of it.
macro_rules! answer {
    (item: $result:expr, $reply:pat => $value:expr) => {
        match $result {
            Ok($reply) => Ok($value),
            Ok(other) => Err($crate::services::item(billing_proto::Failure::Unknown(
                $crate::services::unexpected(&other),
            ))),
            Err(failure) => Err($crate::services::item(failure)),
        }
    };
    ($result:expr, $reply:pat => $value:expr) => {
        match $result {
            Ok($reply) => Ok($value),
            Ok(other) => Err($crate::services::unexpected(&other)),
            Err(failure) => Err($crate::services::of(failure)),
        }
    };
}
use answer;
