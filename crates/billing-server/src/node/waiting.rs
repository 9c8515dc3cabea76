//! Decides how an acquire waits for its turn: it stands in the ledger's queue, and its caller waits on this node for the
//! answer that every node applies. A caller that goes away withdraws its waiter, never a grant.

use std::sync::Arc;
use std::time::Duration;

use billing_core::{AcquireLease, Actor, Command, Reply, Seq, SessionId, WithdrawWaiter};

use super::waiters::{Heard, Place};
use super::{Answer, CallError, Inner, Node};

/// Beyond its wait in cluster time, which stands still while nobody leads, a caller looks again itself.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

impl Node {
    /// Acquires, and where the lease is held, waits for the turn as long as the command says. The answer is the ledger's.
    /// Dropped before that, it withdraws the waiter in the background. `Unknown`: it may stand in the queue or be granted;
    /// release it by its seq.
    pub async fn acquire_waiting(&self, actor: Actor, acquire: AcquireLease) -> Answer {
        let slot = acquire.requester.slot();
        let inner = &self.inner;
        let wait = Duration::from_millis(acquire.wait.get());
        let give_up = inner.env.clock.monotonic() + wait + inner.config.call_timeout;
        let mut withdrawal = Withdrawal {
            inner: inner.clone(),
            actor: actor.clone(),
            slot,
            armed: false,
        };
        let mut queued = false;
        loop {
            let mut place = inner.replica.waiters.register(slot)?;
            withdrawal.armed = true;
            let answer = inner
                .propose(actor.clone(), Command::AcquireLease(acquire.clone()))
                .await;
            match answer {
                Ok(Ok(Reply::Queued)) => queued = true,
                // It stands in the queue since an earlier look: that this look failed says nothing about it.
                Err(_) if queued => {}
                answered => {
                    // What is unknown may stand in the queue: only then there is something to withdraw.
                    withdrawal.armed = matches!(answered, Err(CallError::Unknown { .. }));
                    return answered;
                }
            }
            if let Some(answer) = hear(inner, &mut place, wait + LOOK_AGAIN).await {
                withdrawal.armed = false;
                return Ok(answer);
            }
            // The answer may lie in a gap that this node jumped over, or time stood still: the same request asks again, and
            // gets the same answer, or its place in the queue.
            if *inner.closing.borrow() || inner.env.clock.monotonic() >= give_up {
                return Err(CallError::unknown(
                    "no answer in time to an acquire that waits",
                ));
            }
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
        if !self.armed {
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
