//! Decides what an Idempotency-Key answers: run, replay, refuse. Remembers a result once execution has begun, whatever it
//! was (2xx, 402, 5xx), and forgets it after the retention. Knows nothing of payments.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use billing_env::MonoTime;
use bytes::Bytes;
use http::StatusCode;

use crate::form::Params;

/// An answer as it was first given.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Bytes,
    pub request_id: String,
}

/// What a key says about a request.
pub enum Verdict {
    /// First of its key: run it, then `store` or `drop_claim`.
    Run,
    Replay(Answer),
    /// The same key came with another path.
    OtherPath(String),
    /// The same key came with other parameters.
    OtherParameters,
    InUse,
}

struct Entry {
    path: String,
    params: Params,
    since: MonoTime,
    answer: Option<Answer>,
}

/// Keys by (account, key). O(1) per request: the queue is in order of age, and each entry is pruned once.
pub struct Keys {
    retention: Duration,
    entries: HashMap<(String, String), Entry>,
    by_age: VecDeque<(MonoTime, (String, String))>,
}

impl Keys {
    pub fn new(retention: Duration) -> Keys {
        Keys {
            retention,
            entries: HashMap::new(),
            by_age: VecDeque::new(),
        }
    }

    pub fn claim(
        &mut self,
        account: &str,
        key: &str,
        path: &str,
        params: &Params,
        now: MonoTime,
    ) -> Verdict {
        self.prune(now);
        let name = (account.to_owned(), key.to_owned());
        if let Some(entry) = self.entries.get(&name) {
            return match &entry.answer {
                _ if entry.path != path => Verdict::OtherPath(entry.path.clone()),
                _ if entry.params != *params => Verdict::OtherParameters,
                Some(answer) => Verdict::Replay(answer.clone()),
                None => Verdict::InUse,
            };
        }
        let entry = Entry {
            path: path.to_owned(),
            params: params.clone(),
            since: now,
            answer: None,
        };
        self.by_age.push_back((now, name.clone()));
        self.entries.insert(name, entry);
        Verdict::Run
    }

    pub fn store(&mut self, account: &str, key: &str, answer: Answer) {
        if let Some(entry) = self.entries.get_mut(&(account.to_owned(), key.to_owned())) {
            entry.answer = Some(answer);
        }
    }

    /// Execution never began: the key is as if it had not been used.
    pub fn drop_claim(&mut self, account: &str, key: &str) {
        self.entries.remove(&(account.to_owned(), key.to_owned()));
    }

    /// Forgets every stored result now, as if all were older than the retention. Requests at work keep their claim.
    pub fn forget_all(&mut self) -> usize {
        let before = self.entries.len();
        self.entries.retain(|_, entry| entry.answer.is_none());
        before - self.entries.len()
    }

    fn prune(&mut self, now: MonoTime) {
        while let Some((since, _)) = self.by_age.front() {
            if now.since(*since) < self.retention {
                return;
            }
            let Some((since, name)) = self.by_age.pop_front() else {
                return;
            };
            // A claim that was dropped and made again is younger than this line of the queue: it has its own.
            let stale = self
                .entries
                .get(&name)
                .is_some_and(|entry| entry.since == since && entry.answer.is_some());
            if stale {
                self.entries.remove(&name);
            }
        }
    }
}
