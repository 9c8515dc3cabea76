//! Decides who on this node hears what became of an acquire that stands in a queue. Every node applies the same answers, so
//! a caller waits where it called, whoever leads. Never decides the answer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use billing_core::{Rejection, Reply, Seq, SessionId, WaiterAnswer};
use tokio::sync::oneshot;

use super::bounds::WAITERS_MAX;
use super::error::CallError;

/// What a waiter hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    Answer(Result<Reply, Rejection>),
    /// The state jumped past some answers, perhaps past this one: ask the ledger again.
    Skipped,
}

type Slot = (SessionId, Seq);

/// The callers of this node that wait.
#[derive(Default, Clone)]
pub struct Waiters {
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Default)]
struct Waiting {
    /// A request that was sent twice has two callers.
    slots: BTreeMap<Slot, Vec<(u64, oneshot::Sender<Heard>)>>,
    count: usize,
    next: u64,
}

/// A place among the waiters; given up when dropped.
pub struct Place {
    waiters: Waiters,
    slot: Slot,
    number: u64,
    pub heard: oneshot::Receiver<Heard>,
}

impl Waiters {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers for the answer to (session, seq). To be done before the acquire is proposed: the answer may be applied
    /// before the proposer hears that it was queued.
    pub fn register(&self, slot: Slot) -> Result<Place, CallError> {
        let (answer, heard) = oneshot::channel();
        let mut waiting = self.lock();
        if waiting.count >= WAITERS_MAX {
            return Err(CallError::Overloaded {
                bound: "acquires waiting on this node".to_owned(),
                max: WAITERS_MAX as u64,
            });
        }
        waiting.count += 1;
        waiting.next += 1;
        let number = waiting.next;
        waiting
            .slots
            .entry(slot)
            .or_default()
            .push((number, answer));
        Ok(Place {
            waiters: self.clone(),
            slot,
            number,
            heard,
        })
    }

    /// Hands out what one apply decided.
    pub fn answer(&self, answers: Vec<WaiterAnswer>) {
        if answers.is_empty() {
            return;
        }
        let mut waiting = self.lock();
        for answer in answers {
            let callers = waiting
                .slots
                .remove(&(answer.session, answer.seq))
                .unwrap_or_default();
            waiting.count -= callers.len();
            for (_, caller) in callers {
                // A caller that went away has given up its place, or is about to.
                let _ = caller.send(Heard::Answer(answer.result.clone()));
            }
        }
    }

    /// Tells everybody to ask again.
    pub fn skipped(&self) {
        let mut waiting = self.lock();
        waiting.count = 0;
        for (_, callers) in std::mem::take(&mut waiting.slots) {
            for (_, caller) in callers {
                let _ = caller.send(Heard::Skipped);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = self.waiters.lock();
        let Some(callers) = waiting.slots.get_mut(&self.slot) else {
            return;
        };
        let before = callers.len();
        callers.retain(|(number, _)| *number != self.number);
        let gone = before - callers.len();
        if callers.is_empty() {
            waiting.slots.remove(&self.slot);
        }
        waiting.count -= gone;
    }
}
