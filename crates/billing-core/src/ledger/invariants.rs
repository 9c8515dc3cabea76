//! The rules that must hold after every apply (§3, I1 to I7), as questions to the state. They repair nothing: a broken rule
//! means that this crate is wrong, and whoever asks must stop.

use super::state::{Attempt, Phase, Proof, Request};
use super::*;
use crate::command::Finality;
use crate::reply::AttemptState;

/// A rule that does not hold, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invariant {rule} is broken: {what}")]
pub struct Broken {
    pub rule: &'static str,
    pub what: String,
}

fn broken(rule: &'static str, what: String) -> Result<(), Broken> {
    Err(Broken { rule, what })
}

macro_rules! must {
    ($holds:expr, $rule:literal, $($what:tt)+) => {
        if !$holds {
            return broken($rule, format!($($what)+));
        }
    };
}

impl Ledger {
    /// What the last apply touched: costs as much as the apply did.
    pub(super) fn check_touched(&self, time_before: ClusterTime) -> Result<(), Broken> {
        let now = self.scalars.now;
        must!(
            now >= time_before,
            "I4",
            "time went back from {time_before} to {now}"
        );
        for id in &self.turn.invoices {
            if let Some(invoice) = self.invoice(id) {
                self.check_invoice(invoice)?;
            }
        }
        for id in &self.turn.sessions {
            if let Some(session) = self.session(*id) {
                self.check_session(session)?;
            }
        }
        self.check_deadlines()
    }

    /// Every rule on every record, every index against the records, and the state hash from nothing.
    pub fn check_invariants(&self) -> Result<(), Broken> {
        let mut tokens = BTreeSet::new();
        let mut wanted = Index::default();
        for lease in self.invoices.values().filter_map(|one| one.lease.as_ref()) {
            let fresh = tokens.insert(lease.token);
            must!(fresh, "I3", "token {} stands twice", lease.token);
        }
        for invoice in self.invoices.values() {
            self.check_invoice(invoice)?;
            if let Some(own) = invoice.lease.as_ref().and_then(|lease| lease.own) {
                wanted.count_ttl(own.ttl);
            }
            wanted.list(&invoice.id, &invoice.filed, None);
            for (ticket, waiter) in invoice.queue.iter() {
                wanted
                    .waiter_deadlines
                    .insert((waiter.deadline, *ticket), (waiter.session, waiter.seq));
            }
        }
        let mut waiting = 0;
        for session in self.sessions.values() {
            self.check_session(session)?;
            waiting += session.waiting.len();
            if let Some(deadline) = session.deadline {
                wanted.session_deadlines.insert((deadline, session.id), ());
                wanted.count_ttl(session.ttl);
            }
        }
        must!(
            waiting == wanted.waiter_deadlines.len(),
            "I2",
            "{waiting} requests wait, but not all in one queue"
        );
        for ended in self.ended.values() {
            must!(
                !self.sessions.contains(&ended.id),
                "I2",
                "session {} is open and ended",
                ended.id
            );
            let index = if ended.how.implicit() {
                &mut wanted.ended_implicit
            } else {
                &mut wanted.ended_opened
            };
            index.insert((ended.at, ended.id), ());
        }
        self.check_deadlines()?;
        self.index.same_as(&wanted)?;
        self.check_hash()
    }

    fn check_deadlines(&self) -> Result<(), Broken> {
        let now = self.scalars.now;
        let overdue = self
            .index
            .session_deadlines
            .first()
            .filter(|((at, _), ())| *at <= now);
        must!(overdue.is_none(), "I4", "a session outlived its deadline");
        let overdue = self
            .index
            .waiter_deadlines
            .first()
            .filter(|((at, _), _)| *at <= now);
        must!(overdue.is_none(), "I4", "a waiter outlived its deadline");
        let overdue = self.index.events.first().filter(|((at, _), ())| *at <= now);
        must!(
            overdue.is_none(),
            "I4",
            "an invoice's event was missed: {overdue:?}"
        );
        Ok(())
    }

    fn check_session(&self, session: &Session) -> Result<(), Broken> {
        let id = session.id;
        match session.deadline {
            Some(deadline) => {
                must!(
                    deadline > self.scalars.now,
                    "I4",
                    "session {id} outlived its deadline"
                );
                let listed = self.index.session_deadlines.contains(&(deadline, id));
                must!(listed, "I4", "session {id} would never expire");
            }
            None => {
                must!(
                    session.implicit && session.waiting.len() == 1,
                    "I4",
                    "session {id} has no deadline"
                );
            }
        }
        must!(
            !session.implicit || session.leases.len() + session.waiting.len() == 1,
            "I2",
            "implicit session {id} holds no one lease"
        );
        let sorted = session.waiting.values().all(Request::is_queued)
            && !session.answered.values().any(Request::is_queued);
        must!(sorted, "I2", "session {id} confuses who waits");
        let answered = session.answered.len();
        must!(
            answered <= self.config.answers_kept_max,
            "I2",
            "session {id} keeps {answered} answers"
        );
        for (token, invoice) in session.leases.iter() {
            let held = self.invoice(invoice).and_then(|held| held.lease.as_ref());
            must!(
                held.is_some_and(|lease| lease.session == id && lease.token == *token),
                "I2",
                "session {id} lists {invoice}, which it does not hold"
            );
        }
        Ok(())
    }

    fn check_invoice(&self, invoice: &Invoice) -> Result<(), Broken> {
        let id = &invoice.id;
        let live = invoice
            .attempts
            .iter()
            .filter(|attempt| attempt.is_live())
            .count();
        must!(live <= 1, "I1", "{id} has {live} open or closing attempts");
        let settled = invoice
            .attempts
            .iter()
            .filter(|attempt| attempt.state == AttemptState::Settled)
            .count();
        if invoice.phase == Phase::Paid {
            must!(
                settled == 1,
                "I1",
                "{id} is PAID with {settled} settled attempts"
            );
            must!(live == 0, "I1", "{id} is PAID with an attempt open");
            must!(
                invoice.charges.len() == 1,
                "I1",
                "{id} is PAID with {} recorded charges",
                invoice.charges.len()
            );
        }
        must!(!invoice.is_spent(), "I2", "{id} has nothing to stay for");
        self.check_lease(invoice)?;
        must!(
            invoice.token_last <= self.scalars.token_last,
            "I3",
            "{id} saw a token that was never granted"
        );
        let ordered = invoice
            .attempts
            .windows(2)
            .all(|pair| pair[0].number < pair[1].number);
        must!(ordered, "I6", "the attempts of {id} are out of order");
        let highest = invoice
            .attempts
            .last()
            .map_or(0, |attempt| attempt.number.get());
        must!(
            highest <= invoice.number_last,
            "I6",
            "{id} may use an attempt number again"
        );
        for attempt in &invoice.attempts {
            check_proof(id, attempt)?;
        }
        must!(
            invoice.filed == invoice.filing(self.scalars.now),
            "I2",
            "{id} is filed as {:?}",
            invoice.filed
        );
        Ok(())
    }

    fn check_lease(&self, invoice: &Invoice) -> Result<(), Broken> {
        let id = &invoice.id;
        match &invoice.lease {
            Some(lease) => {
                must!(
                    invoice.phase == Phase::Ready,
                    "I2",
                    "{id} is leased although it is {}",
                    invoice.status()
                );
                must!(
                    lease.token == invoice.token_last,
                    "I3",
                    "the newest token of {id} does not hold it"
                );
                let session = self.session(lease.session);
                let listed =
                    session.is_some_and(|session| session.leases.get(&lease.token) == Some(id));
                must!(
                    listed,
                    "I2",
                    "{id} is leased by a session that does not list it"
                );
                must!(
                    lease.granted_at <= self.scalars.now,
                    "I4",
                    "the lease on {id} was granted in the future"
                );
            }
            None => must!(
                invoice.queue.is_empty(),
                "I2",
                "{id} is free but {} wait for it",
                invoice.queue.len()
            ),
        }
        for waiter in invoice.queue.values() {
            let request = self
                .session(waiter.session)
                .and_then(|session| session.request(waiter.seq));
            must!(
                request.is_some_and(Request::is_queued),
                "I2",
                "a waiter on {id} is not alive, or does not wait"
            );
        }
        Ok(())
    }

    /// I7: the hash kept along the way is the one of the contents.
    fn check_hash(&self) -> Result<(), Broken> {
        let mut scratch = Vec::new();
        let mut sum = 0_u128;
        for invoice in self.invoices.values() {
            sum = sum.wrapping_add(digest(Tag::Invoice, invoice.as_ref(), &mut scratch));
        }
        for session in self.sessions.values() {
            sum = sum.wrapping_add(digest(Tag::Session, &session.hashed(), &mut scratch));
            for request in session.requests() {
                sum = sum.wrapping_add(digest(
                    Tag::Request,
                    &request.hashed(session.id),
                    &mut scratch,
                ));
            }
        }
        for ended in self.ended.values() {
            sum = sum.wrapping_add(digest(Tag::Ended, ended, &mut scratch));
        }
        must!(
            self.hash_over(sum) == self.state_hash(),
            "I7",
            "the state hash is not the one of the contents"
        );
        must!(
            self.audit.len() <= self.config.audit_records_max + AUDIT_CHUNK_RECORDS,
            "I7",
            "the audit log outgrew its bound"
        );
        Ok(())
    }
}

/// I5: an attempt that is over names the evidence, and the evidence is good enough.
fn check_proof(id: &InvoiceId, attempt: &Attempt) -> Result<(), Broken> {
    let number = attempt.number;
    let good = match (&attempt.proof, attempt.state) {
        (None, AttemptState::Open | AttemptState::Closing) => attempt.terms.is_some(),
        (Some(_), AttemptState::Open | AttemptState::Closing) | (None, _) => false,
        (Some(Proof::Charged { .. }), state) => state == AttemptState::Settled,
        (Some(Proof::Declined { finality, object }), state) => {
            let held = match finality {
                Finality::None => false,
                Finality::Sticky => attempt.keeps_declines(),
                Finality::SoleSend => !attempt.taken_over,
                Finality::Object => object.is_some(),
            };
            state == AttemptState::Declined && held
        }
        (
            Some(Proof::LookedUp {
                granted_at,
                granted_wall,
            }),
            state,
        ) => state == AttemptState::Cancelled && attempt.look_up_counts(*granted_at, *granted_wall),
        (Some(Proof::ObjectCancelled { .. }), state) => state == AttemptState::Cancelled,
        (Some(Proof::Person { at, .. }), state) => {
            state == AttemptState::Cancelled && *at >= attempt.quiet_at()
        }
    };
    must!(
        good,
        "I5",
        "attempt {number} of {id} is {:?} without evidence for it",
        attempt.state
    );
    Ok(())
}

impl Index {
    fn same_as(&self, wanted: &Self) -> Result<(), Broken> {
        fn same<K: Ord + Clone, V: Clone + PartialEq>(a: &CowMap<K, V>, b: &CowMap<K, V>) -> bool {
            a.len() == b.len() && a.iter().eq(b.iter())
        }
        let statuses = self
            .by_status
            .iter()
            .zip(&wanted.by_status)
            .all(|(a, b)| same(a, b));
        must!(
            self.counts == wanted.counts,
            "I2",
            "the counts by status differ from the records"
        );
        must!(
            same(&self.named, &wanted.named),
            "I2",
            "the names differ from the records"
        );
        must!(
            statuses,
            "I2",
            "the index by status differs from the records"
        );
        must!(
            same(&self.due, &wanted.due),
            "I2",
            "the index of due invoices differs from the records"
        );
        must!(
            same(&self.doubt, &wanted.doubt),
            "I2",
            "the index of doubtful invoices differs from the records"
        );
        must!(
            same(&self.events, &wanted.events),
            "I4",
            "the index of events differs from the records"
        );
        let sessions = same(&self.session_deadlines, &wanted.session_deadlines);
        must!(
            sessions,
            "I4",
            "the index of session deadlines differs from the records"
        );
        let waiters = same(&self.waiter_deadlines, &wanted.waiter_deadlines);
        must!(
            waiters,
            "I4",
            "the index of waiters differs from the queues"
        );
        let ended = same(&self.ended_opened, &wanted.ended_opened)
            && same(&self.ended_implicit, &wanted.ended_implicit);
        must!(
            ended,
            "I2",
            "the index of ended sessions differs from the records"
        );
        must!(self.ttls == wanted.ttls, "I4", "the TTLs are counted wrong");
        Ok(())
    }
}
