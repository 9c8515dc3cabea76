//! One Pipeline stream to one node: many requests share it, each waits for the answer under its own tag. Decides in which order
//! requests leave (keep-alives first), how many may be on their way, and what the end of the stream proves about each of them:
//! one that the connection never took has not left. Never repeats anything.

use std::{
    collections::{BTreeMap, VecDeque},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use billing_env::Clock;
use billing_proto::{
    Failure,
    status::{not_applied, queue_full},
    v1::{
        self, lease_service_client::LeaseServiceClient, pipeline_request::Request as Wanted,
        pipeline_response::Result as Told,
    },
};
use futures::Stream;
use prost::Message;
use tokio::sync::oneshot;
use tonic::{Code, Status, metadata::MetadataMap, transport::Channel};

use crate::calls::within;

/// Requests that wait for their turn to leave. One more is not sent, and says so.
const QUEUED_MAX: usize = 16_384;
/// Requests that have left and are not answered, those that may wait for a lease apart. More gather here, where a keep-alive
/// overtakes them, and not in the connection, where it could not.
const ON_THEIR_WAY_MAX: usize = 2_048;
/// What a node reads as one message. Larger ones would break the stream for everybody on it.
const REQUEST_BYTES_MAX: usize = 4 << 20;

/// A handle on the stream. When the last one goes, the stream ends.
#[derive(Clone)]
pub(crate) struct Pipe {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
}

/// What one request brought.
#[allow(
    clippy::large_enum_variant,
    reason = "nearly always the answer; a box would cost each of them an allocation"
)]
pub(crate) enum Heard {
    /// The node's answer, and whom it names as the leader; empty: itself, or it does not say.
    Told {
        told: Told,
        leader_address: String,
    },
    /// This node has no Pipeline (an older one): nothing was done.
    NotSpoken,
    /// Out of patience.
    Late {
        /// Otherwise the connection never took it.
        has_left: bool,
    },
    Failed(Failure),
}

/// How a request is to be treated on its way.
#[derive(Clone, Copy)]
pub(crate) struct Manner {
    /// Before all that are not.
    pub urgent: bool,
    /// May stand in a queue for long; given up, it is withdrawn there.
    pub waits: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Not taken by the connection yet; by tag in each.
    urgent: VecDeque<Queued>,
    others: VecDeque<Queued>,
    /// Tags of what was given up after it had left.
    cancelled: VecDeque<u64>,
    sent: BTreeMap<u64, Sent>,
    /// Of `sent`, those that do not wait for a lease.
    answering: usize,
    tag_last: u64,
    /// Wakes the connection when there is something to take.
    writer: Option<Waker>,
    /// The leader's address as the stream's opening named it, for the first answer.
    leader_address: Option<String>,
    /// No handle is left.
    closing: bool,
    end: Option<End>,
}

struct Queued {
    tag: u64,
    wanted: Wanted,
    waits: bool,
    answer: oneshot::Sender<Heard>,
}

struct Sent {
    waits: bool,
    answer: oneshot::Sender<Heard>,
}

/// Why nothing more comes.
#[derive(Clone)]
enum End {
    NotSpoken,
    /// It was not opened; what its failure proves holds for all that was sent meanwhile.
    NotOpened(Status),
    Broken(Status),
}

impl Pipe {
    /// Opens the stream in the background; what is asked meanwhile waits for the connection. Must be called inside a runtime,
    /// which carries the stream from then on.
    pub fn open(channel: Channel) -> Pipe {
        let shared = Arc::new(Shared::default());
        tokio::spawn(carry(shared.clone(), channel));
        Pipe {
            handle: Arc::new(Handle { shared }),
        }
    }

    /// Nothing more comes from it.
    pub fn has_ended(&self) -> bool {
        self.handle.shared.state().end.is_some()
    }

    /// Sends the request and waits for its answer, `patience` at most. Dropped before that, or out of patience, it is given up:
    /// one that has not left never does, one that waits for a lease is withdrawn.
    pub async fn ask(
        &self,
        clock: &dyn Clock,
        wanted: Wanted,
        manner: Manner,
        patience: Duration,
    ) -> Heard {
        let shared = &self.handle.shared;
        let (tag, answer) = match shared.queue(wanted, manner) {
            Ok(queued) => queued,
            Err(refused) => return *refused,
        };
        let mut asking = Asking {
            shared,
            tag,
            open: true,
        };
        match within(clock, patience, answer).await {
            Some(Ok(heard)) => {
                asking.open = false;
                heard
            }
            // The task that carries the stream is gone with its runtime.
            Some(Err(_)) => {
                Heard::Failed(Failure::Unknown(Status::unavailable("the stream is gone")))
            }
            None => {
                asking.open = false;
                Heard::Late {
                    has_left: !shared.give_up(tag),
                }
            }
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.change(|state| state.closing = true);
    }
}

/// A request somebody waits for.
struct Asking<'a> {
    shared: &'a Shared,
    tag: u64,
    open: bool,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if self.open {
            self.shared.give_up(self.tag);
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and lets the connection look if there may be something for it.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let changed = change(&mut state);
        let writer = if state.has_work() {
            state.writer.take()
        } else {
            None
        };
        drop(state);
        if let Some(writer) = writer {
            writer.wake();
        }
        changed
    }

    fn queue(
        &self,
        wanted: Wanted,
        manner: Manner,
    ) -> Result<(u64, oneshot::Receiver<Heard>), Box<Heard>> {
        let request = v1::PipelineRequest {
            tag: u64::MAX,
            request: Some(wanted),
        };
        let bytes = request.encoded_len();
        let Some(wanted) = request.request else {
            return Err(Box::new(Heard::NotSpoken));
        };
        if bytes > REQUEST_BYTES_MAX {
            let large = format!("the request has {bytes} bytes, the bound is {REQUEST_BYTES_MAX}");
            let failure = Failure::NotApplied(Status::out_of_range(large));
            return Err(Box::new(Heard::Failed(failure)));
        }
        self.change(|state| {
            if let Some(end) = &state.end {
                return Err(Box::new(end.of_unsent()));
            }
            if state.urgent.len() + state.others.len() >= QUEUED_MAX {
                let full = queue_full("requests of this client queued for one node", QUEUED_MAX);
                return Err(Box::new(Heard::Failed(Failure::NotApplied(full))));
            }
            state.tag_last += 1;
            let tag = state.tag_last;
            let (answer, heard) = oneshot::channel();
            let queue = if manner.urgent {
                &mut state.urgent
            } else {
                &mut state.others
            };
            queue.push_back(Queued {
                tag,
                wanted,
                waits: manner.waits,
                answer,
            });
            Ok((tag, heard))
        })
    }

    /// Nobody waits for it any more. True: it has not left, and never will.
    fn give_up(&self, tag: u64) -> bool {
        self.change(|state| {
            if let Some(sent) = state.sent.remove(&tag) {
                if sent.waits {
                    state.cancelled.push_back(tag);
                } else {
                    state.answering -= 1;
                }
                return false;
            }
            for queue in [&mut state.urgent, &mut state.others] {
                if let Ok(at) = queue.binary_search_by_key(&tag, |queued| queued.tag) {
                    queue.remove(at);
                    return true;
                }
            }
            // Its answer, or the end of the stream, has come in this very moment.
            false
        })
    }

    fn opened(&self, metadata: &MetadataMap) {
        let named = metadata
            .get(billing_proto::status::LEADER_ADDRESS)
            .and_then(|address| address.to_str().ok());
        self.state().leader_address = named.map(str::to_owned);
    }

    fn told(&self, response: v1::PipelineResponse) {
        let v1::PipelineResponse {
            tag,
            result,
            mut leader_address,
        } = response;
        let sent = self.change(|state| {
            let sent = state.sent.remove(&tag)?;
            if !sent.waits {
                state.answering -= 1;
            }
            if let Some(named) = state.leader_address.take()
                && leader_address.is_empty()
            {
                leader_address = named;
            }
            Some(sent)
        });
        // Otherwise it was given up.
        if let Some(sent) = sent {
            let heard = match result {
                Some(Told::Error(error)) if error.code == i32::from(Code::Unimplemented) => {
                    Heard::NotSpoken
                }
                Some(told) => Heard::Told {
                    told,
                    leader_address,
                },
                None => Heard::Failed(crate::cluster::missing("result")),
            };
            let _ = sent.answer.send(heard); // Given up meanwhile.
        }
    }

    fn end(&self, end: End) {
        let (sent, unsent) = self.change(|state| {
            state.end = Some(end.clone());
            state.cancelled.clear();
            state.answering = 0;
            let unsent = std::mem::take(&mut state.urgent).into_iter();
            let unsent: Vec<_> = unsent.chain(std::mem::take(&mut state.others)).collect();
            (std::mem::take(&mut state.sent), unsent)
        });
        for sent in sent.into_values() {
            let _ = sent.answer.send(end.of_sent());
        }
        for queued in unsent {
            let _ = queued.answer.send(end.of_unsent());
        }
    }
}

impl State {
    fn has_work(&self) -> bool {
        self.closing
            || self.end.is_some()
            || !self.cancelled.is_empty()
            || !self.urgent.is_empty()
            || (!self.others.is_empty() && self.answering < ON_THEIR_WAY_MAX)
    }

    fn next(&mut self) -> Option<v1::PipelineRequest> {
        if let Some(cancelled_tag) = self.cancelled.pop_front() {
            self.tag_last += 1;
            return Some(v1::PipelineRequest {
                tag: self.tag_last,
                request: Some(Wanted::Cancel(v1::CancelRequest { cancelled_tag })),
            });
        }
        let queued = match self.urgent.pop_front() {
            Some(queued) => queued,
            None if self.answering < ON_THEIR_WAY_MAX => self.others.pop_front()?,
            None => return None,
        };
        let Queued {
            tag,
            wanted,
            waits,
            answer,
        } = queued;
        if !waits {
            self.answering += 1;
        }
        self.sent.insert(tag, Sent { waits, answer });
        Some(v1::PipelineRequest {
            tag,
            request: Some(wanted),
        })
    }
}

impl End {
    /// What it proves about a request that the connection has taken.
    fn of_sent(&self) -> Heard {
        match self {
            End::NotSpoken => Heard::NotSpoken,
            End::NotOpened(status) => Heard::Failed(Failure::from(status.clone())),
            End::Broken(status) => Heard::Failed(Failure::Unknown(status.clone())),
        }
    }

    /// ... and about one that it never took.
    fn of_unsent(&self) -> Heard {
        match self {
            End::NotSpoken => Heard::NotSpoken,
            // Says more where no connection was made.
            End::NotOpened(status) if billing_proto::status::never_connected(status) => {
                Heard::Failed(Failure::NotApplied(status.clone()))
            }
            End::NotOpened(status) | End::Broken(status) => Heard::Failed(Failure::NotApplied(
                not_applied(format!("the stream ended before: {}", status.message())),
            )),
        }
    }
}

/// Carries the answers of one stream to those who wait for them, until it ends.
async fn carry(shared: Arc<Shared>, channel: Channel) {
    let requests = Requests(shared.clone());
    let end = match LeaseServiceClient::new(channel).pipeline(requests).await {
        Ok(response) => {
            shared.opened(response.metadata());
            let mut answers = response.into_inner();
            loop {
                match answers.message().await {
                    Ok(Some(answer)) => shared.told(answer),
                    Ok(None) => {
                        break End::Broken(Status::unavailable("the node ended the stream"));
                    }
                    Err(status) => break End::Broken(status),
                }
            }
        }
        Err(status) if status.code() == Code::Unimplemented => End::NotSpoken,
        Err(status) => End::NotOpened(status),
    };
    shared.end(end);
}

/// What the connection takes its messages from.
struct Requests(Arc<Shared>);

impl Stream for Requests {
    type Item = v1::PipelineRequest;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<v1::PipelineRequest>> {
        let mut state = self.0.state();
        if let Some(next) = state.next() {
            return Poll::Ready(Some(next));
        }
        if state.closing || state.end.is_some() {
            return Poll::Ready(None); // Nothing was queued since.
        }
        if !state
            .writer
            .as_ref()
            .is_some_and(|writer| writer.will_wake(cx.waker()))
        {
            state.writer = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}
