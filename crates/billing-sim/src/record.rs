//! Keeps what happened and what was promised, as the machines saw it, in true simulated time: the trace, the acts of lease
//! holders, what was acknowledged to whom, and the histories of calls. Judges nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use billing_core::{IdempotencyKey, InvoiceId, SessionId};

use crate::trace::Trace;

/// A holder did something that others should not do at the same time, while its guard said that the lease is its own.
#[derive(Debug, Clone)]
pub struct Act {
    pub at: Duration,
    pub invoice: String,
    pub token: u64,
    pub who: String,
}

/// What moves money, as it reached the provider.
#[derive(Debug, Clone)]
pub struct Send {
    pub at: Duration,
    /// The machine that sent it.
    pub from: String,
    /// The ledger's key, without the gate's suffix.
    pub key: String,
}

/// What a client was told has happened. It must be in the audit log in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Promise {
    Submitted,
    Granted {
        token: u64,
    },
    Begun {
        token: u64,
        key: IdempotencyKey,
    },
    Charged {
        reference: String,
    },
    Declined {
        token: u64,
    },
    /// `was_current`: it was this release that ended the lease.
    Released {
        token: u64,
        was_current: bool,
    },
}

/// What was asked in a call of a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    Acquire,
    Renew {
        token: u64,
    },
    Release {
        token: u64,
    },
    Get,
    Begin {
        token: u64,
    },
    Settle {
        token: u64,
        charged: bool,
    },
    /// By the ledger itself: the lease of that token ended with its time, by force, or with its session.
    Expire {
        token: u64,
    },
}

/// What was answered. A call that was certainly not applied is in no history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    Granted {
        token: u64,
    },
    /// Held by somebody, or nothing to be had any more.
    Refused,
    Renewed,
    Released {
        was_current: bool,
    },
    Holds {
        token: Option<u64>,
    },
    Begun {
        attempt: u32,
    },
    Settled,
    /// The token is not the current one, or its lease is over.
    Stale,
    Expired,
    /// Nobody can tell.
    Unknown,
}

/// One call of a history, in true time.
#[derive(Debug, Clone)]
pub struct Call {
    pub who: u64,
    pub invoice: String,
    pub asked: Asked,
    pub heard: Heard,
    pub called: Duration,
    /// None: nobody heard the end of it.
    pub returned: Option<Duration>,
}

/// What a restore forgets.
#[derive(Debug, Clone, Default)]
pub struct Forgotten {
    /// From when the first record was made that the backup does not have, until nobody can hear any more what was answered by
    /// those who had it.
    times: Vec<(Duration, Duration)>,
    /// Leases that were granted then.
    tokens: BTreeSet<u64>,
}

impl Forgotten {
    /// What was heard at that time may be lost.
    pub fn heard_at(&self, at: Duration) -> bool {
        self.times.iter().any(|(from, to)| *from <= at && at < *to)
    }

    /// The release of a lease that is forgotten: the new ledger says that it is over, and has no record of it.
    pub fn is_over_with_it(&self, promise: &Promise) -> bool {
        match promise {
            Promise::Released {
                token,
                was_current: false,
            } => self.tokens.contains(token),
            _ => false,
        }
    }

    /// Nobody knows who answered: a ledger that is forgotten, or the one that was made from the backup.
    pub fn answer_to(&self, called: Duration, returned: Duration) -> bool {
        let mut times = self.times.iter();
        times.any(|(from, to)| called < *to && *from <= returned)
    }
}

#[derive(Default)]
struct Inner {
    trace: Trace,
    now: Duration,
    acts: Vec<Act>,
    sends: Vec<Send>,
    promises: BTreeMap<InvoiceId, Vec<(Duration, Promise)>>,
    calls: Vec<Call>,
    forgotten: Forgotten,
    one_request: BTreeMap<SessionId, u64>,
    broken: Option<(String, Option<String>, String)>,
}

/// Shared by the driver and all machines: everything runs on one thread.
#[derive(Clone, Default)]
pub struct Record(Arc<Mutex<Inner>>);

impl Record {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_loud(&self) {
        self.inner().trace.loud = true;
    }

    /// The driver's time.
    pub fn at(&self, now: Duration) {
        self.inner().now = now;
    }

    /// True time, on a machine or off.
    pub fn now(&self) -> Duration {
        turmoil::sim_elapsed().unwrap_or_else(|| self.inner().now)
    }

    /// Puts an event into the trace.
    pub fn note(&self, event: fmt::Arguments<'_>) {
        let now = self.now();
        self.inner().trace.note(now, event);
    }

    pub fn act(&self, invoice: &str, token: u64, who: &str) {
        let at = self.now();
        let act = Act {
            at,
            invoice: invoice.to_owned(),
            token,
            who: who.to_owned(),
        };
        self.inner().acts.push(act);
    }

    /// Those since the last time.
    pub fn take_acts(&self) -> Vec<Act> {
        std::mem::take(&mut self.inner().acts)
    }

    pub fn sent(&self, from: &str, key: &str) {
        let at = self.now();
        let send = Send {
            at,
            from: from.to_owned(),
            key: key.to_owned(),
        };
        self.inner().sends.push(send);
    }

    /// Those since the last time.
    pub fn take_sends(&self) -> Vec<Send> {
        std::mem::take(&mut self.inner().sends)
    }

    pub fn promise(&self, invoice: &InvoiceId, promise: Promise) {
        let now = self.now();
        self.inner()
            .promises
            .entry(invoice.clone())
            .or_default()
            .push((now, promise));
    }

    pub fn promises(&self) -> BTreeMap<InvoiceId, Vec<(Duration, Promise)>> {
        self.inner().promises.clone()
    }

    /// Everything since `from` is forgotten, leases with `tokens` among it; and now nobody can hear of it any more.
    pub fn forget(&self, from: Duration, tokens: impl IntoIterator<Item = u64>) {
        let now = self.now();
        let mut inner = self.inner();
        // Some that a record was never seen of.
        let promises = inner.promises.values().flatten();
        let heard: Vec<u64> = promises
            .filter_map(|(at, promise)| match promise {
                Promise::Granted { token } if *at >= from => Some(*token),
                _ => None,
            })
            .collect();
        inner.forgotten.times.push((from, now));
        inner
            .forgotten
            .tokens
            .extend(tokens.into_iter().chain(heard));
    }

    pub fn forgotten(&self) -> Forgotten {
        self.inner().forgotten.clone()
    }

    pub fn call(&self, call: Call) {
        self.inner().calls.push(call);
    }

    pub fn calls(&self) -> Vec<Call> {
        self.inner().calls.clone()
    }

    /// The session is that of one request, however often it is sent, and that asks for so many leases at most.
    pub fn one_request(&self, session: SessionId, leases_max: u64) {
        self.inner().one_request.insert(session, leases_max);
    }

    /// How many leases the session's one request asks for; None: it makes more than one.
    pub fn leases_of_one_request(&self, session: &SessionId) -> Option<u64> {
        self.inner().one_request.get(session).copied()
    }

    /// A machine saw a promise broken; the driver stops at its next step.
    pub fn broken(&self, property: &str, invoice: Option<&str>, what: String) {
        self.inner()
            .broken
            .get_or_insert_with(|| (property.to_owned(), invoice.map(str::to_owned), what));
    }

    pub fn take_broken(&self) -> Option<(String, Option<String>, String)> {
        self.inner().broken.take()
    }

    pub fn events(&self) -> u64 {
        self.inner().trace.events()
    }

    pub fn hash(&self) -> String {
        self.inner().trace.hash()
    }

    /// The whole trace, one event a line.
    pub fn lines(&self) -> Vec<(Duration, String)> {
        self.inner().trace.lines().to_vec()
    }
}
