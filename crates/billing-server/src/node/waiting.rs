//! Decides how an acquire waits for its turn: it stands in the ledger's queue, and its caller waits on this node for the
//! answer that every node applies. A caller that goes away withdraws its waiter, never a grant.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use billing_core::{AcquireLease, Actor, Command, Reply, Seq, SessionId, WithdrawWaiter};
use billing_env::{BoxFuture, MonoTime};
use futures::future::join_all;

use super::waiters::{Heard, Place};
use super::{Answer, CallError, Inner, Node};

/// Beyond its wait in cluster time, which stands still while nobody leads, a caller looks again itself.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

impl Node {
    /// Acquires, and where the lease is held, waits for the turn as long as the command says. The answer is the ledger's.
    /// Dropped before that, it withdraws the waiter in the background. `Unknown`: it may stand in the queue or be granted;
    /// release it by its seq.
    pub async fn acquire_waiting(&self, actor: Actor, acquire: AcquireLease) -> Answer {
        let turn = Turn::take(&self.inner, actor.clone(), acquire.clone())?;
        let first = self
            .inner
            .propose(actor, Command::AcquireLease(acquire))
            .await;
        turn.answer(first).await
    }

    /// As [`Node::acquire_waiting`] for each of them, in one command: who is granted at once hears it with all others.
    pub async fn acquire_each(&self, actor: Actor, acquires: Vec<AcquireLease>) -> Vec<Answer> {
        let mut turns = Vec::with_capacity(acquires.len());
        let mut asked = Vec::with_capacity(acquires.len());
        for acquire in acquires {
            let turn = if acquire.wait.get() == 0 {
                Ok(None)
            } else {
                Turn::take(&self.inner, actor.clone(), acquire.clone()).map(Some)
            };
            if turn.is_ok() {
                asked.push(acquire);
            }
            turns.push(turn);
        }
        let count = asked.len();
        let mut answers = if asked.is_empty() {
            Vec::new().into_iter()
        } else {
            let answer = self
                .inner
                .propose(actor, Command::AcquireLeases(asked))
                .await;
            each(answer, count).into_iter()
        };
        let settled = turns.into_iter().map(|turn| {
            let (turn, first) = match turn {
                Ok(turn) => (turn, answers.next().unwrap_or_else(unanswered)),
                Err(full) => (None, Err(full)),
            };
            async move {
                match turn {
                    Some(turn) => turn.answer(first).await,
                    None => first,
                }
            }
        });
        join_all(settled).await
    }

    pub(crate) fn now(&self) -> MonoTime {
        self.inner.env.clock.monotonic()
    }

    pub(crate) fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.inner.env.clock.sleep(duration)
    }
}

/// The answers to the `count` items of one command.
pub(crate) fn each(answer: Answer, count: usize) -> Vec<Answer> {
    match answer {
        Ok(Ok(Reply::Each(results))) if results.len() == count => {
            results.into_iter().map(Ok).collect()
        }
        Ok(Ok(other)) => {
            tracing::error!(
                ?other,
                count,
                "the ledger answered something else than it was asked"
            );
            (0..count).map(|_| unanswered()).collect()
        }
        Ok(Err(rejection)) => (0..count).map(|_| Ok(Err(rejection.clone()))).collect(),
        Err(error) => (0..count).map(|_| Err(error.clone())).collect(),
    }
}

fn unanswered() -> Answer {
    Err(CallError::unknown("an answer is missing"))
}

/// One acquire that may have to wait, from before it is proposed until its answer.
struct Turn {
    inner: Arc<Inner>,
    actor: Actor,
    acquire: AcquireLease,
    place: Place,
    give_up: MonoTime,
    withdrawal: Withdrawal,
}

impl Turn {
    /// To be taken before the acquire is proposed. Dropped without an answer, it withdraws the waiter.
    fn take(inner: &Arc<Inner>, actor: Actor, acquire: AcquireLease) -> Result<Turn, CallError> {
        let slot = acquire.requester.slot();
        let wait = Duration::from_millis(acquire.wait.get());
        Ok(Turn {
            place: inner.replica.waiters.register(slot)?,
            give_up: inner.env.clock.monotonic() + wait + inner.config.call_timeout,
            withdrawal: Withdrawal {
                inner: inner.clone(),
                actor: actor.clone(),
                slot,
                armed: true,
            },
            inner: inner.clone(),
            actor,
            acquire,
        })
    }

    /// The last word, after what the ledger said at once.
    async fn answer(mut self, first: Answer) -> Answer {
        let wait = Duration::from_millis(self.acquire.wait.get());
        let mut answer = first;
        let mut queued = false;
        loop {
            match answer {
                Ok(Ok(Reply::Queued)) => queued = true,
                // It stands in the queue since an earlier look: that this look failed says nothing about it.
                Err(_) if queued => {}
                answered => {
                    // What is unknown may stand in the queue: only then there is something to withdraw.
                    self.withdrawal.armed = matches!(answered, Err(CallError::Unknown { .. }));
                    return answered;
                }
            }
            if let Some(answer) = hear(&self.inner, &mut self.place, wait + LOOK_AGAIN).await {
                self.withdrawal.armed = false;
                return Ok(answer);
            }
            // The answer may lie in a gap that this node jumped over, or time stood still: the same request asks again, and
            // gets the same answer, or its place in the queue.
            if *self.inner.closing.borrow() || self.inner.env.clock.monotonic() >= self.give_up {
                return Err(CallError::unknown(
                    "no answer in time to an acquire that waits",
                ));
            }
            // It stands in the queue, or is granted by now: whatever fails from here on leaves that unknown.
            let place = self.inner.replica.waiters.register(self.withdrawal.slot);
            self.place = place.map_err(|full| CallError::unknown(full.to_string()))?;
            answer = self
                .inner
                .propose(
                    self.actor.clone(),
                    Command::AcquireLease(self.acquire.clone()),
                )
                .await;
        }
    }
}

async fn hear(
    inner: &Inner,
    place: &mut Place,
    patience: Duration,
) -> Option<Result<Reply, billing_core::Rejection>> {
    let mut closing = inner.closing.subscribe();
    tokio::select! {
        biased;
        heard = &mut place.heard => match heard {
            Ok(Heard::Answer(answer)) => Some(answer),
            Ok(Heard::Skipped) | Err(_) => None,
        },
        () = super::until_true(&mut closing) => None,
        () = inner.env.clock.sleep(patience) => None,
    }
}

/// Takes the waiter out of the queue when its caller went away.
struct Withdrawal {
    inner: Arc<Inner>,
    actor: Actor,
    slot: (SessionId, Seq),
    armed: bool,
}

impl Drop for Withdrawal {
    fn drop(&mut self) {
        // A node that goes tells its callers to ask another one, and there they find their place in the queue again.
        if !self.armed || self.inner.leaving.load(Ordering::Relaxed) {
            return;
        }
        let (session, seq) = self.slot;
        let command = Command::WithdrawWaiter(WithdrawWaiter { session, seq });
        // Best effort: without it the waiter stands until its deadline, and a grant until its session or TTL ends.
        if let Ok(asked) = self.inner.ask(self.actor.clone(), command)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let inner = self.inner.clone();
            runtime.spawn(async move {
                if let Err(error) = asked.answer(&inner.env, inner.config.call_timeout).await {
                    tracing::debug!(%error, "a waiter was not withdrawn; its deadline will");
                }
            });
        }
    }
}
