//! Decides until when this process may believe that a session or a lease is its own: from the instant before the request
//! was sent, on a clock that counts suspend, minus what clocks may drift. Needs no network, and never takes a loss back.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use billing_core::Rejection;
use billing_env::{BootTime, Clock};
use tokio::sync::watch;

/// Sleeps are counted by a clock that stands still in suspend: look at the other one at least this often.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Why something is not ours any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Loss {
    /// Not renewed in time, as far as this process can know. The cluster may still think otherwise for a moment.
    #[error("not kept alive in time")]
    Expired,
    /// The cluster said so.
    #[error("ended by the cluster: {0}")]
    Ended(Rejection),
    /// This process gave it up: released, settled or closed.
    #[error("given up by this process")]
    GivenUp,
}

/// How far clocks are trusted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trust {
    pub drift: f64,
    pub margin: Duration,
}

impl Trust {
    /// How much of a TTL may be used, counted from before the request was sent (§4).
    pub fn usable(self, ttl: Duration) -> Duration {
        ttl.mul_f64(1.0 - 2.0 * self.drift)
            .saturating_sub(self.margin)
    }
}

/// One deadline, shared by whoever extends it and whoever depends on it.
pub(crate) struct Life {
    clock: Arc<dyn Clock>,
    trust: Trust,
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

struct State {
    valid_until: BootTime,
    loss: Option<Loss>,
}

impl Life {
    /// Valid for `ttl` from `sent_at`, the instant before the request that granted it was sent.
    pub fn new(clock: Arc<dyn Clock>, trust: Trust, sent_at: BootTime, ttl: Duration) -> Life {
        let valid_until = sent_at + trust.usable(ttl);
        let state = Mutex::new(State {
            valid_until,
            loss: None,
        });
        Life {
            clock,
            trust,
            state,
            changed: watch::Sender::new(()),
        }
    }

    /// Has no deadline of its own; ends only when somebody ends it.
    pub fn unbounded(clock: Arc<dyn Clock>, trust: Trust) -> Life {
        let state = Mutex::new(State {
            valid_until: BootTime(u64::MAX),
            loss: None,
        });
        Life {
            clock,
            trust,
            state,
            changed: watch::Sender::new(()),
        }
    }

    /// Moves the deadline to `sent_at` + usable TTL, if that is later. False: it was lost before, and stays lost even if the
    /// cluster has just renewed it, because somebody may already have acted on the loss.
    pub fn extend(&self, sent_at: BootTime, ttl: Duration) -> bool {
        let mut state = self.state();
        if self.loss_in(&mut state).is_some() {
            return false;
        }
        let valid_until = sent_at + self.trust.usable(ttl);
        if valid_until > state.valid_until {
            state.valid_until = valid_until;
        }
        drop(state);
        self.changed.send_replace(());
        true
    }

    /// Sets the deadline to `sent_at` + usable TTL, later or earlier: the cluster counts by this TTL from now on.
    /// False as with [`Life::extend`].
    pub fn replace(&self, sent_at: BootTime, ttl: Duration) -> bool {
        let mut state = self.state();
        if self.loss_in(&mut state).is_some() {
            return false;
        }
        state.valid_until = sent_at + self.trust.usable(ttl);
        drop(state);
        self.changed.send_replace(());
        true
    }

    /// The first reason stays.
    pub fn end(&self, loss: Loss) {
        let mut state = self.state();
        if self.loss_in(&mut state).is_none() {
            state.loss = Some(loss);
        }
        drop(state);
        self.changed.send_replace(());
    }

    pub fn valid_until(&self) -> BootTime {
        self.state().valid_until
    }

    /// None: still ours. Once there is a loss it is the answer for ever.
    pub fn loss(&self) -> Option<Loss> {
        self.loss_in(&mut self.state())
    }

    fn loss_in(&self, state: &mut State) -> Option<Loss> {
        if state.loss.is_none() && self.clock.boottime() >= state.valid_until {
            state.loss = Some(Loss::Expired);
        }
        state.loss.clone()
    }

    /// How long it stays valid without another word from the cluster; zero when lost.
    pub fn remaining(&self) -> Duration {
        let mut state = self.state();
        match self.loss_in(&mut state) {
            Some(_) => Duration::ZERO,
            None => state.valid_until.since(self.clock.boottime()),
        }
    }

    /// Completes when it is lost.
    pub async fn lost(&self) -> Loss {
        let mut changed = self.changed.subscribe();
        loop {
            if let Some(loss) = self.loss() {
                return loss;
            }
            let nap = self.clock.sleep(self.remaining().min(LOOK_EVERY));
            tokio::select! {
                biased;
                // Fails only without a sender, and `self` holds it.
                _ = changed.changed() => {}
                () = nap => {}
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Life {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state();
        f.debug_struct("Life")
            .field("valid_until", &state.valid_until)
            .field("loss", &state.loss)
            .finish_non_exhaustive()
    }
}
