//! Decides how often a call may be sent and what its end proves. An attempt that got no answer leaves a doubt, and the doubt
//! outlives later attempts: a later refusal or failure never turns it into "nothing happened" unless the command is one
//! whose repeat gets the same answer.

use std::{future::Future, sync::Arc, time::Duration};

use billing_core::sabotaged;
use billing_env::{BootTime, Clock, MonoTime};
use billing_proto::{Failure, status::not_applied};
use tonic::{Code, Response, Status, transport::Channel};

use crate::{Client, ask::Ask, nodes::Node, pipe::Heard};

/// The first pause between attempts is anything up to this, the next up to twice as much ...
const BACK_OFF_FIRST: Duration = Duration::from_millis(25);
/// ... and never more than this, so that a new leader is found soon after its election.
const BACK_OFF_MAX: Duration = Duration::from_millis(500);
/// A repeat that has less time than this is not begun.
const ATTEMPT_MIN: Duration = Duration::from_millis(10);

/// What may be done after an attempt whose outcome is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// The same request gets the same answer: reads, requests with a seq or an id, releases, submissions.
    Freely,
    /// A repeat does no harm, but may be refused because the first one did its work (the lease is gone, the status is
    /// another). Such a refusal is no proof that nothing happened.
    DoubtingRefusals,
    /// A repeat means something else. BeginCharge: the attempt counts as taken over, which costs SOLE_SEND.
    Never,
}

/// How long a call may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    /// All attempts together.
    pub deadline: Duration,
    /// One attempt, while another one is possible.
    pub attempt: Duration,
}

impl Budget {
    /// For a request that may wait for its lease so long.
    pub fn and(self, wait: Duration) -> Budget {
        Budget {
            deadline: self.deadline + wait,
            attempt: self.attempt + wait,
        }
    }
}

/// An answer, and when its request was sent, read before sending.
#[derive(Debug)]
pub(crate) struct Answered<T> {
    pub value: T,
    /// Of the attempt that was answered: the bound for what that very request extended.
    pub sent_at: BootTime,
    /// Of the first attempt: the bound for what an earlier copy of the request may have been granted.
    pub first_sent_at: BootTime,
}

impl<T> Answered<T> {
    pub fn map<U>(self, map: impl FnOnce(T) -> U) -> Answered<U> {
        Answered {
            value: map(self.value),
            sent_at: self.sent_at,
            first_sent_at: self.first_sent_at,
        }
    }

    pub fn try_map<U>(
        self,
        map: impl FnOnce(T) -> Result<U, Failure>,
    ) -> Result<Answered<U>, Failure> {
        Ok(Answered {
            value: map(self.value)?,
            sent_at: self.sent_at,
            first_sent_at: self.first_sent_at,
        })
    }
}

/// What one attempt brought.
struct Attempt<T> {
    result: Result<T, Failure>,
    /// It names another leader than the one known.
    pointed_elsewhere: bool,
}

impl Client {
    pub(crate) fn budget(&self) -> Budget {
        Budget {
            deadline: self.inner.deadline,
            attempt: self.inner.attempt,
        }
    }

    /// Sends `request` as a call of its own until it is answered, must not be repeated, or time is up.
    pub(crate) async fn call<Req, Resp, Sent>(
        &self,
        what: &'static str,
        repeat: Repeat,
        budget: Budget,
        request: Req,
        send: impl Fn(Channel, Req) -> Sent,
    ) -> Result<Answered<Resp>, Failure>
    where
        Req: Clone,
        Sent: Future<Output = Result<Response<Resp>, Status>>,
    {
        let nodes = &self.inner.nodes;
        let pick = || nodes.pick();
        let attempt = |node: Arc<Node>, patience| {
            let sent = send(node.channel.clone(), request.clone());
            async move { self.alone(what, &node, patience, sent).await }
        };
        self.attempts(what, repeat, budget, pick, attempt).await
    }

    /// As [`Client::call`], over the node's Pipeline where it has one.
    pub(crate) async fn ask<A: Ask>(
        &self,
        repeat: Repeat,
        budget: Budget,
        request: A,
    ) -> Result<Answered<A::Answer>, Failure> {
        let nodes = &self.inner.nodes;
        let pick = || nodes.pick_with_pipe();
        let request = &request;
        let attempt = |node: Arc<Node>, patience| async move {
            self.together(&node, patience, request).await
        };
        self.attempts(A::METHOD, repeat, budget, pick, attempt)
            .await
    }

    /// One attempt as a call of its own.
    async fn alone<Resp>(
        &self,
        what: &'static str,
        node: &Node,
        patience: Duration,
        sent: impl Future<Output = Result<Response<Resp>, Status>>,
    ) -> Attempt<Resp> {
        let nodes = &self.inner.nodes;
        let status = match within(&*self.inner.env.clock, patience, sent).await {
            Some(Ok(response)) => {
                let pointed_elsewhere = nodes.learn(response.metadata());
                return Attempt {
                    result: Ok(response.into_inner()),
                    pointed_elsewhere,
                };
            }
            Some(Err(status)) => status,
            None => Status::deadline_exceeded(no_answer(what, node, patience)),
        };
        let pointed_elsewhere = nodes.learn(status.metadata());
        Attempt {
            result: Err(Failure::from(status)),
            pointed_elsewhere,
        }
    }

    /// One attempt over the node's Pipeline; as a call of its own where this node, or this client, has none.
    async fn together<A: Ask>(
        &self,
        node: &Node,
        patience: Duration,
        request: &A,
    ) -> Attempt<A::Answer> {
        let nodes = &self.inner.nodes;
        let clock = &*self.inner.env.clock;
        let begun_at = clock.monotonic();
        if let Some(pipe) = &node.pipe {
            let (manner, wanted) = (request.manner(), request.clone().wrap());
            match pipe.ask(clock, wanted, manner, patience).await {
                Heard::Told {
                    told,
                    leader_address,
                } => {
                    return Attempt {
                        result: A::unwrap(told),
                        pointed_elsewhere: nodes.learn_address(&leader_address),
                    };
                }
                Heard::Failed(failure) => {
                    return Attempt {
                        result: Err(failure),
                        pointed_elsewhere: false,
                    };
                }
                Heard::Late { has_left } => {
                    let late = no_answer(A::METHOD, node, patience);
                    let failure = if has_left {
                        Failure::Unknown(Status::deadline_exceeded(late))
                    } else {
                        Failure::NotApplied(not_applied(format!("{late}, and it has not left")))
                    };
                    return Attempt {
                        result: Err(failure),
                        pointed_elsewhere: false,
                    };
                }
                Heard::NotSpoken => nodes.has_no_pipe(node),
            }
        }
        let left = left(clock, begun_at, patience);
        let sent = request.clone().call(node.channel.clone());
        self.alone(A::METHOD, node, left, sent).await
    }

    async fn attempts<Resp, Sent>(
        &self,
        what: &'static str,
        repeat: Repeat,
        budget: Budget,
        pick: impl Fn() -> Arc<Node>,
        attempt: impl Fn(Arc<Node>, Duration) -> Sent,
    ) -> Result<Answered<Resp>, Failure>
    where
        Sent: Future<Output = Attempt<Resp>>,
    {
        let clock = &*self.inner.env.clock;
        let nodes = &self.inner.nodes;
        let begun_at = clock.monotonic();
        let mut first_sent_at = None;
        let mut doubt: Option<Status> = None;
        let mut back_off = BackOff::default();
        let mut followed = false;
        loop {
            let left = left(clock, begun_at, budget.deadline);
            let patience = match repeat {
                Repeat::Freely | Repeat::DoubtingRefusals => left.min(budget.attempt),
                Repeat::Never => left,
            };
            let node = pick();
            let sent_at = clock.boottime();
            let first_sent_at = *first_sent_at.get_or_insert(sent_at);
            let Attempt {
                result,
                pointed_elsewhere,
            } = attempt(node.clone(), patience).await;
            let failure = match result {
                Ok(value) => {
                    let (sent_at, first_sent_at) = match sabotaged!(DeadlineFromReply) {
                        false => (sent_at, first_sent_at),
                        true => (clock.boottime(), clock.boottime()),
                    };
                    return Ok(Answered {
                        value,
                        sent_at,
                        first_sent_at,
                    });
                }
                Err(failure) => failure,
            };
            let may_repeat = match failure {
                Failure::Rejected(rejection) => {
                    return Err(match (repeat, doubt) {
                        (Repeat::DoubtingRefusals, Some(_)) => {
                            Failure::Unknown(Status::unknown(format!(
                                "{what}: an attempt was not answered, and its repeat was refused: {rejection}"
                            )))
                        }
                        (Repeat::Freely | Repeat::Never | Repeat::DoubtingRefusals, _) => {
                            Failure::Rejected(rejection)
                        }
                    });
                }
                Failure::NotApplied(status) => {
                    note(what, &node, &status);
                    // Other codes say that asking again will not help: not implemented, not allowed.
                    let transient =
                        matches!(status.code(), Code::Unavailable | Code::ResourceExhausted);
                    if billing_proto::status::never_connected(&status) {
                        nodes.failed(&node);
                    } else if !pointed_elsewhere {
                        nodes.unhelpful(&node);
                    }
                    if !transient {
                        return Err(doubt.map_or(Failure::NotApplied(status), Failure::Unknown));
                    }
                    Failure::NotApplied(status)
                }
                Failure::Unknown(status) => {
                    nodes.failed(&node);
                    note(what, &node, &status);
                    if repeat == Repeat::Never {
                        return Err(Failure::Unknown(status));
                    }
                    // A node's own word says more than that nothing was heard.
                    let known = match doubt {
                        Some(known) if status.code() == Code::DeadlineExceeded => known,
                        Some(_) | None => status,
                    };
                    doubt = Some(known.clone());
                    Failure::Unknown(known)
                }
            };
            // At once, but not twice in a row: two nodes may each believe that the other one leads.
            followed = pointed_elsewhere && !followed;
            let pause = if followed {
                Duration::ZERO
            } else {
                back_off.next(self)
            };
            // Nor is a repeat begun that cannot be answered any more: its silence would hide what is known.
            let worth = |wait: Duration| self::left(clock, begun_at, budget.deadline) > wait;
            if !worth(pause + ATTEMPT_MIN) {
                return Err(doubt.map_or(may_repeat, Failure::Unknown));
            }
            clock.sleep(pause).await;
            if !worth(Duration::ZERO) {
                return Err(doubt.map_or(may_repeat, Failure::Unknown));
            }
        }
    }
}

fn no_answer(what: &str, node: &Node, patience: Duration) -> String {
    format!(
        "{what}: no answer from {} within {patience:?}",
        node.address
    )
}

fn note(what: &str, node: &Node, status: &Status) {
    tracing::debug!(what, node = %node.address, code = ?status.code(), message = status.message(), "attempt failed");
}

fn left(clock: &dyn Clock, begun_at: MonoTime, deadline: Duration) -> Duration {
    deadline.saturating_sub(clock.monotonic().since(begun_at))
}

/// The future's value, or None once `limit` has passed; the future is dropped then.
pub(crate) async fn within<T>(
    clock: &dyn Clock,
    limit: Duration,
    future: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        biased;
        value = future => Some(value),
        () = clock.sleep(limit) => None,
    }
}

/// Doubling pauses with full jitter.
#[derive(Default)]
struct BackOff {
    at_most: Option<Duration>,
}

impl BackOff {
    fn next(&mut self, client: &Client) -> Duration {
        let at_most = self
            .at_most
            .map_or(BACK_OFF_FIRST, |before| (before * 2).min(BACK_OFF_MAX));
        self.at_most = Some(at_most);
        // Half of it at least: a node that refuses at once must not be asked in a tight loop.
        at_most / 2 + client.inner.env.random.jitter(at_most / 2)
    }
}
