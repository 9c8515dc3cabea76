//! Numbers a session's requests and remembers which answers are still needed. A number whose answer was lost stays open
//! until its withdrawal is acknowledged; never is one given out twice.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use billing_core::limits::ANSWERS_KEPT_MAX;
use tokio::sync::Notify;

/// The cluster keeps so many answers of a session; a request further ahead of an open one would push its answer out.
const SPAN_MAX: u64 = ANSWERS_KEPT_MAX as u64;

pub(crate) struct Seqs {
    state: Mutex<State>,
    freed: Notify,
}

struct State {
    next: u64,
    open: BTreeSet<u64>,
}

impl State {
    fn done_below(&self) -> u64 {
        self.open.first().copied().unwrap_or(self.next)
    }
}

/// A request's number, and below which number no answer is needed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Issued {
    pub seq: u64,
    pub done_below: u64,
}

impl Seqs {
    pub fn new() -> Seqs {
        Seqs {
            state: Mutex::new(State {
                next: 1,
                open: BTreeSet::new(),
            }),
            freed: Notify::new(),
        }
    }

    /// The next `count` numbers, in a row, and the first of them. Waits while the oldest open request is so far behind that its
    /// answer would be lost. All at once, since two that each had half of theirs could wait for one another; at most as many
    /// as a session may have open.
    pub async fn issue(&self, count: u64) -> Issued {
        debug_assert!((1..=SPAN_MAX).contains(&count), "{count} fit into the span");
        if let Some(issued) = self.issued(count) {
            return issued;
        }
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // Enabled before the look, so that a number freed in between is not missed.
            freed.as_mut().enable();
            if let Some(issued) = self.issued(count) {
                return issued;
            }
            freed.await;
        }
    }

    /// None: that would be too far ahead of the oldest open one.
    fn issued(&self, count: u64) -> Option<Issued> {
        let mut state = self.state();
        if state.next - state.done_below() + count > SPAN_MAX {
            return None;
        }
        let seq = state.next;
        state.next += count;
        state.open.extend(seq..seq + count);
        Some(Issued {
            seq,
            done_below: state.done_below(),
        })
    }

    /// Its answer has arrived, or it is withdrawn.
    pub fn done(&self, seq: u64) {
        let was_open = self.state().open.remove(&seq);
        debug_assert!(was_open, "seq {seq} is done once");
        self.freed.notify_waiters();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn done_below_is_the_oldest_open_request() {
        let seqs = Seqs::new();
        assert_eq!(
            seqs.issue(1).await,
            Issued {
                seq: 1,
                done_below: 1
            }
        );
        assert_eq!(
            seqs.issue(1).await,
            Issued {
                seq: 2,
                done_below: 1
            }
        );
        seqs.done(2);
        assert_eq!(
            seqs.issue(1).await,
            Issued {
                seq: 3,
                done_below: 1
            }
        );
        seqs.done(1);
        assert_eq!(
            seqs.issue(1).await,
            Issued {
                seq: 4,
                done_below: 3
            }
        );
        seqs.done(3);
        seqs.done(4);
        assert_eq!(
            seqs.issue(1).await,
            Issued {
                seq: 5,
                done_below: 5
            }
        );
    }

    #[tokio::test]
    async fn a_run_waits_until_there_is_room_for_all_of_it() {
        let seqs = Seqs::new();
        assert_eq!(seqs.issue(3).await.seq, 1);
        let mut run = Box::pin(seqs.issue(SPAN_MAX));
        for seq in [2, 1, 3] {
            assert_eq!((&mut run).now_or_never(), None, "{seq} is open");
            seqs.done(seq);
        }
        let first = Issued {
            seq: 4,
            done_below: 4,
        };
        assert_eq!(run.await, first);
        assert_eq!(seqs.state().next, 4 + SPAN_MAX);
    }

    #[tokio::test]
    async fn a_request_waits_rather_than_push_out_the_answer_of_an_open_one() {
        let seqs = Seqs::new();
        seqs.issue(1).await;
        for seq in 2..=SPAN_MAX {
            assert_eq!(seqs.issue(1).await.seq, seq);
            seqs.done(seq);
        }
        let mut beyond = Box::pin(seqs.issue(1));
        assert_eq!((&mut beyond).now_or_never(), None, "1 is still open");
        seqs.done(1);
        assert_eq!(
            beyond.await,
            Issued {
                seq: SPAN_MAX + 1,
                done_below: SPAN_MAX + 1
            }
        );
    }
}
