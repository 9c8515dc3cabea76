//! Pipeline: many requests on one stream, each answered under its tag as soon as its answer is known, in whatever order. Decides
//! how many may be in flight; each request means what the method of its name means, through the same functions.
//!
//! No task, timer or channel of its own is spent on a request that is one command: it is queued for the proposer as it is read,
//! together with all that arrived with it, and one timer looks after the patience of the whole stream.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use billing_core::{OutOfBounds, Reply};
use billing_env::MonoTime;
use billing_proto::v1::pipeline_request::Request as Wanted;
use billing_proto::v1::pipeline_response::Result as Told;
use billing_proto::{Failure, request, status, v1};
use futures::future::{AbortHandle, Abortable, BoxFuture};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, Stream, StreamExt};
use tokio::task::coop::unconstrained;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{Caller, Door, Leases, OneCommand, batch, failure, heard, invoice, item, lease};
use crate::node::proposer::Asked;

/// Commands and reads of one stream that are being answered, the items of a batch counted one by one. As many: the stream is not
/// read, and its window makes the client wait.
pub const ANSWERING_MAX: usize = 4_096;
/// Acquires of one stream that may stand in a queue, apart from the others so that no release has to wait behind them. One
/// more: Overloaded, under its tag.
pub const WAITING_MAX: usize = 16_384;
/// How often a stream looks for requests whose time is up, within the time that a call may take.
const LOOKS_PER_TIMEOUT: u32 = 10;

pub type Answers = Pin<Box<dyn Stream<Item = Result<v1::PipelineResponse, Status>> + Send>>;

pub async fn serve(
    leases: &Leases,
    request: Request<Streaming<v1::PipelineRequest>>,
) -> Result<Response<Answers>, Status> {
    let (_, extensions, requests) = request.into_parts();
    let pipeline = Pipeline {
        stopped: leases.0.stopping().boxed(),
        door: leases.0.clone(),
        caller: Caller::new(extensions),
        requests: Some(requests),
        tags: BTreeSet::new(),
        in_flight: FuturesUnordered::new(),
        withdrawals: BTreeMap::new(),
        told: VecDeque::new(),
        answering: 0,
        waiting: 0,
        slept: true,
        leader_elsewhere: None,
        look: None,
        broken: None,
    };
    Ok(Response::new(Box::pin(pipeline)))
}

struct Pipeline {
    door: Door,
    caller: Caller,
    /// None: the client has ended its side, or broke it, or this node stops; what is in flight is still answered.
    requests: Option<Streaming<v1::PipelineRequest>>,
    /// Of what is in flight.
    tags: BTreeSet<u64>,
    in_flight: FuturesUnordered<InFlight>,
    /// How what may wait is given up, by tag.
    withdrawals: BTreeMap<u64, (AbortHandle, usize)>,
    /// Answers that needed nobody.
    told: VecDeque<(u64, Told)>,
    answering: usize,
    waiting: usize,
    /// Nothing was known at the last look: something has happened since.
    slept: bool,
    /// Looked up once for the answers that leave together.
    leader_elsewhere: Option<Option<String>>,
    look: Option<BoxFuture<'static, ()>>,
    stopped: BoxFuture<'static, ()>,
    /// Why the client's side broke; said after the last answer.
    broken: Option<Status>,
}

/// A request on its way to its answer.
struct InFlight {
    tag: u64,
    items: usize,
    waits: bool,
    work: Work,
}

enum Work {
    /// One command in the proposer's queue.
    Command {
        asked: Asked,
        show: Show,
        since: MonoTime,
    },
    /// A read, a batch, or an acquire that may wait.
    Other(Abortable<BoxFuture<'static, Result<Told, Failure>>>),
}

/// How the reply to a command is shown.
#[derive(Clone, Copy)]
enum Show {
    OpenSession,
    /// With the tag inside of the request.
    KeepAlive(u64),
    CloseSession,
    AcquireLease,
    ReleaseLease,
    RenewLease,
    ClaimInvoices,
    BeginCharge,
    AttachProviderObject,
    SettleCharge,
}

impl Show {
    fn reply(self, reply: Reply) -> Result<Told, Status> {
        fn shown<R: OneCommand>(
            reply: Reply,
            wrap: fn(R::Response) -> Told,
        ) -> Result<Told, Status> {
            R::response(reply).map(wrap)
        }
        match self {
            Show::OpenSession => shown::<v1::OpenSessionRequest>(reply, Told::OpenSession),
            Show::KeepAlive(tag) => {
                let session = v1::KeepAliveRequest::response(reply)?;
                Ok(Told::KeepAlive(v1::KeepAliveResponse {
                    tag,
                    result: Some(v1::keep_alive_response::Result::Session(session)),
                }))
            }
            Show::CloseSession => shown::<v1::CloseSessionRequest>(reply, Told::CloseSession),
            Show::AcquireLease => shown::<v1::AcquireLeaseRequest>(reply, Told::AcquireLease),
            Show::ReleaseLease => shown::<v1::ReleaseLeaseRequest>(reply, Told::ReleaseLease),
            Show::RenewLease => shown::<v1::RenewLeaseRequest>(reply, Told::RenewLease),
            Show::ClaimInvoices => shown::<v1::ClaimInvoicesRequest>(reply, Told::ClaimInvoices),
            Show::BeginCharge => {
                shown::<v1::BeginChargeRequest>(reply, |it| Told::BeginCharge(Box::new(it)))
            }
            Show::AttachProviderObject => {
                shown::<v1::AttachProviderObjectRequest>(reply, Told::AttachProviderObject)
            }
            Show::SettleCharge => {
                shown::<v1::SettleChargeRequest>(reply, |it| Told::SettleCharge(Box::new(it)))
            }
        }
    }

    fn result(self, result: Result<Reply, Failure>) -> Told {
        told(result.and_then(|reply| self.reply(reply).map_err(Failure::Unknown)))
    }
}

fn told(result: Result<Told, Failure>) -> Told {
    result.unwrap_or_else(|failure| Told::Error(item(failure)))
}

/// What became of it. None: it was given up, and nobody is told.
struct Done {
    tag: u64,
    items: usize,
    waits: bool,
    told: Option<Told>,
}

impl Future for InFlight {
    type Output = Done;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Done> {
        let told = match &mut self.work {
            Work::Command { asked, show, .. } => match asked.poll_answer(cx) {
                Poll::Ready(answer) => Some(show.result(heard(answer))),
                Poll::Pending => return Poll::Pending,
            },
            Work::Other(work) => match work.poll_unpin(cx) {
                Poll::Ready(Ok(result)) => Some(told(result)),
                Poll::Ready(Err(_aborted)) => None,
                Poll::Pending => return Poll::Pending,
            },
        };
        Poll::Ready(Done {
            tag: self.tag,
            items: self.items,
            waits: self.waits,
            told,
        })
    }
}

impl Stream for Pipeline {
    type Item = Result<v1::PipelineResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if std::mem::take(&mut this.slept) {
            this.leader_elsewhere = None;
            // First what has arrived, so that it is under way while answers leave.
            this.read(cx);
        }
        loop {
            if let Some((tag, told)) = this.told.pop_front() {
                return Poll::Ready(Some(Ok(this.response(tag, told))));
            }
            // Without the runtime's budget: each answer costs a unit of it, and what leaves here is bounded already.
            match pin!(unconstrained(this.in_flight.next())).poll(cx) {
                Poll::Ready(Some(done)) => {
                    this.done(done);
                    continue;
                }
                Poll::Ready(None) | Poll::Pending => {}
            }
            if this.read(cx) || this.look(cx) {
                continue;
            }
            if this.requests.is_none() && this.in_flight.is_empty() {
                return Poll::Ready(this.broken.take().map(Err));
            }
            this.slept = true;
            return Poll::Pending;
        }
    }
}

impl Pipeline {
    /// Takes what has arrived, as far as there is room. False: nothing.
    fn read(&mut self, cx: &mut Context<'_>) -> bool {
        if self.requests.is_some() && self.stopped.poll_unpin(cx).is_ready() {
            self.requests = None;
            return true;
        }
        let now = self.door.node.now();
        let mut any = false;
        while self.answering + self.told.len() < ANSWERING_MAX {
            let Some(requests) = &mut self.requests else {
                break;
            };
            match requests.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(request))) => self.start(request, now),
                // What cannot be read (too large, no message, a connection that broke) cannot be answered under a tag, and
                // nothing behind it can be read. What was read before is answered; what waits is given up.
                Poll::Ready(Some(Err(status))) => {
                    self.requests = None;
                    self.broken = Some(status);
                    let waiting: Vec<u64> = self.withdrawals.keys().copied().collect();
                    waiting.into_iter().for_each(|tag| self.withdraw(tag));
                }
                Poll::Ready(None) => self.requests = None,
                Poll::Pending => break,
            }
            any = true;
        }
        any
    }

    fn start(&mut self, request: v1::PipelineRequest, now: MonoTime) {
        let v1::PipelineRequest { tag, request } = request;
        let wanted = match request {
            Some(Wanted::Cancel(cancel)) => return self.withdraw(cancel.cancelled_tag),
            Some(wanted) => wanted,
            None => {
                let unknown = v1::ItemError {
                    code: Code::Unimplemented.into(),
                    message: "a request of a kind that this node does not know".to_owned(),
                    rejection: None,
                };
                return self.told.push_back((tag, Told::Error(unknown)));
            }
        };
        if self.tags.contains(&tag) {
            return self.refuse(
                tag,
                OutOfBounds::new("tag", "not that of a request that is still unanswered"),
            );
        }
        match wanted {
            Wanted::OpenSession(request) => self.command(tag, request, Show::OpenSession, now),
            Wanted::KeepAlive(request) => {
                let show = Show::KeepAlive(request.tag);
                self.command(tag, request, show, now);
            }
            Wanted::CloseSession(request) => self.command(tag, request, Show::CloseSession, now),
            Wanted::AcquireLease(request) if request.wait_ms == 0 => {
                self.command(tag, request, Show::AcquireLease, now);
            }
            Wanted::AcquireLease(request) => self.acquire(tag, &request),
            Wanted::ReleaseLease(request) => self.command(tag, request, Show::ReleaseLease, now),
            Wanted::RenewLease(request) => self.command(tag, request, Show::RenewLease, now),
            Wanted::ClaimInvoices(request) => self.command(tag, request, Show::ClaimInvoices, now),
            Wanted::BeginCharge(request) => self.command(tag, request, Show::BeginCharge, now),
            Wanted::AttachProviderObject(request) => {
                self.command(tag, request, Show::AttachProviderObject, now);
            }
            Wanted::SettleCharge(request) => self.command(tag, request, Show::SettleCharge, now),
            Wanted::AcquireLeases(request) => {
                let (door, caller) = (self.door.clone(), self.caller.clone());
                let items = request.items.len();
                let waits = request.items.iter().any(|item| item.wait_ms != 0);
                self.other(tag, items, waits, async move {
                    batch::acquire(&door, &caller, request)
                        .await
                        .map(Told::AcquireLeases)
                });
            }
            Wanted::ReleaseLeases(request) => {
                let (door, caller) = (self.door.clone(), self.caller.clone());
                self.other(tag, request.items.len(), false, async move {
                    batch::release(&door, &caller, request)
                        .await
                        .map(Told::ReleaseLeases)
                });
            }
            Wanted::RenewLeases(request) => {
                let (door, caller) = (self.door.clone(), self.caller.clone());
                self.other(tag, request.items.len(), false, async move {
                    batch::renew(&door, &caller, request)
                        .await
                        .map(Told::RenewLeases)
                });
            }
            Wanted::GetLease(request) => {
                let door = self.door.clone();
                self.other(tag, 1, false, async move {
                    let lease = lease::get_lease(&door, request).await?;
                    Ok(Told::GetLease(Box::new(lease)))
                });
            }
            Wanted::GetInvoice(request) => {
                let door = self.door.clone();
                self.other(tag, 1, false, async move {
                    let invoice = invoice::get_invoice(&door, request).await?;
                    Ok(Told::GetInvoice(Box::new(invoice)))
                });
            }
            // Taken above, since it has no answer.
            Wanted::Cancel(_) => {}
        }
    }

    /// Queues the one command of a request.
    fn command<R: OneCommand>(&mut self, tag: u64, request: R, show: Show, now: MonoTime) {
        let actor = self.caller.actor(request.name());
        let door = &self.door;
        let command = match request.command(|| door.draw_id()) {
            Ok(command) => command,
            Err(out) => return self.refuse(tag, out),
        };
        match door.node.ask(actor, command) {
            Ok(asked) => {
                let work = Work::Command {
                    asked,
                    show,
                    since: now,
                };
                self.keep(tag, 1, false, work);
            }
            Err(error) => {
                let told = Told::Error(item(failure(error)));
                self.told.push_back((tag, told));
            }
        }
    }

    fn acquire(&mut self, tag: u64, request: &v1::AcquireLeaseRequest) {
        let actor = self.caller.actor(request.name());
        let acquire = match request::acquire_lease(request, || self.door.draw_id()) {
            Ok(acquire) => acquire,
            Err(out) => return self.refuse(tag, out),
        };
        let door = self.door.clone();
        self.other(tag, 1, true, async move {
            let reply = door.acquire(actor, acquire).await.map_err(super::of)?;
            v1::AcquireLeaseRequest::response(reply).map(Told::AcquireLease)
        });
    }

    fn other(
        &mut self,
        tag: u64,
        items: usize,
        waits: bool,
        work: impl Future<Output = Result<Told, Status>> + Send + 'static,
    ) {
        if waits && self.waiting + items > WAITING_MAX {
            let full = status::queue_full("acquires of one stream that wait", WAITING_MAX);
            let told = Told::Error(item(Failure::NotApplied(full)));
            return self.told.push_back((tag, told));
        }
        let work = work.map(|result| result.map_err(Failure::from)).boxed();
        let (work, handle) = futures::future::abortable(work);
        if waits {
            self.withdrawals.insert(tag, (handle, items));
        }
        self.keep(tag, items, waits, Work::Other(work));
    }

    fn keep(&mut self, tag: u64, items: usize, waits: bool, work: Work) {
        *self.count(waits) += items;
        self.tags.insert(tag);
        self.in_flight.push(InFlight {
            tag,
            items,
            waits,
            work,
        });
    }

    fn count(&mut self, waits: bool) -> &mut usize {
        if waits {
            &mut self.waiting
        } else {
            &mut self.answering
        }
    }

    fn refuse(&mut self, tag: u64, out: OutOfBounds) {
        let told = Told::Error(item(Failure::Rejected(out.into())));
        self.told.push_back((tag, told));
    }

    /// Gives up what waits under this tag, as cancelling its call would. Anything else is on its way, and is answered.
    fn withdraw(&mut self, tag: u64) {
        if let Some((handle, items)) = self.withdrawals.remove(&tag) {
            handle.abort();
            self.waiting -= items;
            self.tags.remove(&tag);
        }
    }

    fn done(&mut self, done: Done) {
        let Done {
            tag,
            items,
            waits,
            told,
        } = done;
        // Given up: its tag is free since then, and may be another's.
        let Some(told) = told else { return };
        if waits {
            self.withdrawals.remove(&tag);
        }
        *self.count(waits) -= items;
        self.tags.remove(&tag);
        self.told.push_back((tag, told));
    }

    /// Gives up the commands whose time is up, now and then. True: there are answers.
    fn look(&mut self, cx: &mut Context<'_>) -> bool {
        if self.in_flight.is_empty() {
            self.look = None;
            return false;
        }
        let patience = self.door.node.call_timeout();
        let node = &self.door.node;
        let look = self
            .look
            .get_or_insert_with(|| node.sleep(patience / LOOKS_PER_TIMEOUT));
        if look.poll_unpin(cx).is_pending() {
            return false;
        }
        self.look = None;
        let now = self.door.node.now();
        let late = |in_flight: &InFlight| match &in_flight.work {
            Work::Command { since, .. } => now.since(*since) >= patience,
            Work::Other(_) => false, // These look after themselves.
        };
        if self.in_flight.iter().any(late) {
            for in_flight in std::mem::take(&mut self.in_flight) {
                match &in_flight.work {
                    Work::Command { asked, show, .. } if late(&in_flight) => {
                        let told = show.result(heard(Err(asked.give_up("no answer in time"))));
                        self.done(Done {
                            tag: in_flight.tag,
                            items: in_flight.items,
                            waits: in_flight.waits,
                            told: Some(told),
                        });
                    }
                    Work::Command { .. } | Work::Other(_) => self.in_flight.push(in_flight),
                }
            }
        }
        // Another look is due, whether or not anything was late.
        true
    }

    fn response(&mut self, tag: u64, told: Told) -> v1::PipelineResponse {
        let node = &self.door.node;
        let leader_address = self
            .leader_elsewhere
            .get_or_insert_with(|| node.leader_elsewhere())
            .clone()
            .unwrap_or_default();
        v1::PipelineResponse {
            tag,
            result: Some(told),
            leader_address,
        }
    }
}
