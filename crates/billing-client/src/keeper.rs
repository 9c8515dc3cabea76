//! The two background tasks of a session: one keeps it alive, the other gives back what nobody wants any more. Decides
//! nothing about leases; when the session is lost both end, because everything else ends with it.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use billing_core::{
    FencingToken, Rejection,
    limits::{ANSWERS_KEPT_MAX, LEASES_PER_SESSION_MAX},
};
use billing_env::BootTime;
use billing_proto::Failure;
use tokio::sync::mpsc;

use crate::{
    calls::Budget,
    leases::{by_seq, by_token},
    life::Loss,
    session::Shared,
};

/// Every lease of a session may be dropped at once, and every request withdrawn. Full: left to the end of the session.
pub(crate) const CHORES_QUEUED_MAX: usize = LEASES_PER_SESSION_MAX + ANSWERS_KEPT_MAX;
/// One ReleaseLeases call; well below what the wire allows, so that a repeat is cheap.
const CHORES_BATCHED_MAX: usize = 256;
/// A TTL holds three beats, so that two may be lost.
const BEATS_PER_TTL: u32 = 3;
/// One attempt of a beat: two fit between beats, so that a dead node costs one of them and not the session.
const ATTEMPTS_PER_TTL: u32 = 6;
/// A session that nobody wants any more is closed for politeness; it ends without that too.
const CLOSE_TRIED_FOR: Duration = Duration::from_secs(5);
/// Between two rounds of a chore that failed, beyond the back-off inside the call.
const CHORE_PAUSE: Duration = Duration::from_millis(250);

/// What is given back in the background.
#[derive(Debug)]
pub(crate) enum Chore {
    Release {
        invoice_id: String,
        token: FencingToken,
    },
    Withdraw {
        seq: u64,
    },
}

/// Keeps the session alive until it is lost.
pub(crate) async fn beat(shared: Arc<Shared>, opened_at: BootTime) {
    let env = &shared.client.inner.env;
    let interval = shared.ttl / BEATS_PER_TTL;
    let mut last_at = opened_at;
    loop {
        let since = env.clock.boottime().since(last_at);
        tokio::select! {
            biased;
            _ = shared.life.lost() => return,
            () = env.clock.sleep(interval.saturating_sub(since)) => {}
        }
        // A failure has used up its time inside the call; until the session is lost there is nothing better to do than ask.
        let budget = Budget {
            deadline: shared.life.remaining(),
            attempt: shared.ttl / ATTEMPTS_PER_TTL,
        };
        let beat = tokio::select! {
            biased;
            _ = shared.life.lost() => return,
            beat = shared.client.keep_alive(shared.id, budget) => beat,
        };
        match beat {
            Ok(answered) => {
                last_at = answered.sent_at;
                shared.life.extend(answered.sent_at, shared.ttl);
            }
            Err(Failure::Rejected(rejection)) => {
                tracing::warn!(session = %shared.id, %rejection, "not kept alive");
                notice_end(&shared, &rejection);
                last_at = env.clock.boottime();
            }
            Err(failure @ (Failure::NotApplied(_) | Failure::Unknown(_))) => {
                tracing::warn!(session = %shared.id, %failure, "not kept alive");
                // Most failures have used up their time inside the call. One that came at once must not be asked for in a loop.
                tokio::select! {
                    biased;
                    _ = shared.life.lost() => return,
                    () = env.clock.sleep(shared.ttl / (ATTEMPTS_PER_TTL * 10)) => {}
                }
            }
        }
    }
}

/// The cluster has ended the session: nothing that hangs on it is ours any more.
pub(crate) fn notice_end(shared: &Shared, rejection: &Rejection) {
    let ours = match rejection {
        Rejection::SessionEnded { session } | Rejection::SessionNotFound { session } => {
            *session == shared.id
        }
        _ => false, // About an invoice, a lease or the cluster: the session may live.
    };
    if ours {
        shared.life.end(Loss::Ended(rejection.clone()));
    }
}

/// Releases and withdraws what it is handed, in batches, each repeated until acknowledged or the session is lost. Closes the
/// session when the last handle has gone.
pub(crate) async fn tidy(shared: Arc<Shared>, mut inbox: mpsc::Receiver<Chore>) {
    let mut batch = Vec::with_capacity(CHORES_BATCHED_MAX);
    loop {
        tokio::select! {
            biased;
            _ = shared.life.lost() => break,
            received = inbox.recv_many(&mut batch, CHORES_BATCHED_MAX) => {
                if received == 0 {
                    close(&shared).await;
                    return;
                }
            }
        }
        tokio::select! {
            biased;
            _ = shared.life.lost() => break,
            () = give_back(&shared, &mut batch) => {}
        }
    }
    // Lost, and so is everything in the inbox. A session that was given up is closed by whoever gave it up.
}

async fn give_back(shared: &Shared, batch: &mut Vec<Chore>) {
    while !batch.is_empty() {
        let items = batch
            .iter()
            .map(|chore| match chore {
                Chore::Release { invoice_id, token } => by_token(invoice_id, *token),
                Chore::Withdraw { seq } => by_seq(shared.id, *seq),
            })
            .collect();
        match shared.client.release_leases(items).await {
            Ok(results) => {
                let mut results = results.into_iter();
                batch.retain(|chore| match results.next() {
                    Some(Ok(_)) => {
                        acknowledged(shared, chore);
                        false
                    }
                    // It is not ours to release any more: nothing is held.
                    Some(Err(Failure::Rejected(rejection))) => {
                        tracing::debug!(session = %shared.id, %rejection, ?chore, "nothing to give back");
                        notice_end(shared, &rejection);
                        acknowledged(shared, chore);
                        false
                    }
                    Some(Err(Failure::NotApplied(_) | Failure::Unknown(_))) | None => true,
                });
            }
            Err(Failure::Rejected(rejection)) => {
                // Refused as a whole: repeating the same batch will not help.
                tracing::warn!(session = %shared.id, %rejection, count = batch.len(), "left to the end of the session");
                notice_end(shared, &rejection);
                batch.iter().for_each(|chore| acknowledged(shared, chore));
                batch.clear();
            }
            Err(failure @ (Failure::NotApplied(_) | Failure::Unknown(_))) => {
                tracing::debug!(session = %shared.id, %failure, count = batch.len(), "not given back yet");
            }
        }
        if !batch.is_empty() {
            shared.client.inner.env.clock.sleep(CHORE_PAUSE).await;
        }
    }
}

fn acknowledged(shared: &Shared, chore: &Chore) {
    match chore {
        Chore::Release { .. } => {}
        Chore::Withdraw { seq } => shared.seqs.done(*seq),
    }
}

/// The last handle has gone.
async fn close(shared: &Shared) {
    shared.life.end(Loss::GivenUp);
    if shared.closed.load(Ordering::Relaxed) {
        return;
    }
    let clock = &*shared.client.inner.env.clock;
    match crate::calls::within(
        clock,
        CLOSE_TRIED_FOR,
        shared.client.close_session(shared.id),
    )
    .await
    {
        Some(Ok(_)) => {}
        Some(Err(failure)) => {
            tracing::debug!(session = %shared.id, %failure, "not closed; it ends by its TTL")
        }
        None => tracing::debug!(session = %shared.id, "not closed in time; it ends by its TTL"),
    }
}
