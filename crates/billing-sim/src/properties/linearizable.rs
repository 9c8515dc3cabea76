//! The histories of all callers are linearizable, invoice by invoice: there is one order of all calls, each at some moment
//! between its call and its answer, in which every answer is the one that a single table would have given. What nobody heard
//! the end of, and what the ledger does by itself (a lease that expires, a waiter that is granted, an invoice that goes to a
//! person), comes from the audit log, as a call that ended when the first node had applied it. So does what was answered by a
//! ledger that a restore forgets, as far as the backup has it.
//!
//! The search is that of Wing and Gong with Lowe's memory, as porcupine-rs has it. `Unknown` from it is a failure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use billing_core::{LeaseEventKind, What};
use porcupine_rs::{CheckResult, Model, Operation, check_operations_timeout};

use super::{End, Property, Verdict};
use crate::record::{Asked, Call, Forgotten, Heard};
use crate::world::Seen;

const PATIENCE: Duration = Duration::from_secs(60);

pub struct Linearizable;

/// What happened at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Called(Asked, Heard),
    /// Seen in the audit log only.
    Granted {
        token: u64,
    },
    Ended {
        token: u64,
    },
    /// The same, where it may be what an answered call did, a release or a settlement: which it was, the order says.
    EndedPerhapsByCall {
        token: u64,
    },
    Begun {
        number: u32,
    },
    Closed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Table {
    lease: Option<u64>,
    open: Option<u32>,
    attempts: u32,
    closed: bool,
}

/// One invoice.
#[derive(Debug, Clone)]
pub struct Invoice;

impl Model for Invoice {
    type State = Table;
    type Op = Event;
    type Metadata = ();

    fn init() -> Table {
        Table::default()
    }

    fn step(table: &Table, event: &Event) -> (bool, Table) {
        match after(*table, event) {
            Some(next) => (true, next),
            None => (false, *table),
        }
    }
}

/// The table after the event; None: it cannot happen there.
fn after(table: Table, event: &Event) -> Option<Table> {
    let holds = |token: u64| table.lease == Some(token);
    let mut next = table;
    let possible = match event {
        Event::Granted { token } | Event::Called(Asked::Acquire, Heard::Granted { token }) => {
            next.lease = Some(*token);
            table.lease.is_none() && !table.closed
        }
        Event::Ended { token } => {
            next.lease = None;
            holds(*token)
        }
        Event::EndedPerhapsByCall { token } => {
            if holds(*token) {
                next.lease = None;
            }
            true
        }
        Event::Begun { number } => {
            next.open = Some(*number);
            next.attempts = *number;
            table.open.is_none() && *number == table.attempts + 1
        }
        Event::Closed => {
            next = Table {
                lease: None,
                open: None,
                closed: true,
                ..table
            };
            true
        }
        Event::Called(Asked::Acquire, Heard::Refused) => table.lease.is_some(),
        Event::Called(Asked::Renew { token }, Heard::Renewed) => holds(*token),
        Event::Called(
            Asked::Renew { token } | Asked::Begin { token } | Asked::Settle { token, .. },
            Heard::Stale,
        ) => !holds(*token),
        Event::Called(Asked::Release { token }, Heard::Released { was_current }) => {
            if holds(*token) {
                next.lease = None;
            }
            // "It was over already" is also what a repeat hears whose first copy ended it.
            holds(*token) || !was_current
        }
        Event::Called(Asked::Get, Heard::Holds { token }) => table.lease == *token,
        Event::Called(Asked::Begin { token }, Heard::Begun { attempt }) => {
            next.open = Some(*attempt);
            next.attempts = *attempt;
            let number_fits = match table.open {
                Some(open) => open == *attempt,
                None => *attempt == table.attempts + 1,
            };
            holds(*token) && !table.closed && number_fits
        }
        Event::Called(Asked::Settle { token, charged }, Heard::Settled) => {
            next.open = None;
            next.lease = None;
            next.closed |= charged;
            // A charge is a fact, whoever reports it; a decline is the holder's word.
            *charged || holds(*token)
        }
        Event::Called(..) => false,
    };
    possible.then_some(next)
}

fn nanos(at: Duration) -> i64 {
    i64::try_from(at.as_nanos()).unwrap_or(i64::MAX / 2)
}

/// The history of one invoice: what callers heard, and what only the log knows.
pub(super) fn history(
    calls: &[&Call],
    records: &[&Seen],
    forgotten: &Forgotten,
) -> Vec<Operation<Invoice>> {
    let mut operations = Vec::new();
    let (mut granted, mut ended, mut begun) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for call in calls {
        let Some(returned) = call.returned else {
            continue; // What became of it, the log says.
        };
        if forgotten.answer_to(call.called, returned) {
            continue;
        }
        match (&call.asked, &call.heard) {
            (_, Heard::Granted { token }) => drop(granted.insert(*token)),
            (Asked::Release { token }, Heard::Released { was_current: true })
            | (Asked::Settle { token, .. }, Heard::Settled) => drop(ended.insert(*token)),
            (Asked::Begin { token }, Heard::Begun { attempt }) => {
                begun.insert((*token, *attempt));
            }
            _ => {}
        }
        operations.push(Operation {
            client_id: u32::try_from(call.who).ok(),
            call_time: nanos(call.called),
            return_time: nanos(returned),
            op: Event::Called(call.asked.clone(), call.heard.clone()),
            metadata: None,
        });
    }
    for seen in records {
        let record = &seen.record;
        let token = record.token.0;
        let number = record.key.as_ref().map_or(0, |key| key.number.get());
        let event = match &record.what {
            What::Acquired { .. } if !granted.contains(&token) => Event::Granted { token },
            What::Begun if !begun.contains(&(token, number)) => Event::Begun { number },
            What::Paid | What::Failed | What::PutInReview { .. } => Event::Closed,
            What::Released { .. } | What::LeaseEnded { .. } if ended.contains(&token) => {
                Event::EndedPerhapsByCall { token }
            }
            what => match what.lease() {
                Some((LeaseEventKind::Ended, _)) => Event::Ended { token },
                _ => continue,
            },
        };
        operations.push(Operation {
            client_id: None,
            call_time: nanos(seen.not_before),
            return_time: nanos(seen.at),
            op: event,
            metadata: None,
        });
    }
    operations
}

impl Property for Linearizable {
    fn name(&self) -> &'static str {
        "linearizable"
    }

    fn lost(&mut self, end: &End<'_>) -> Verdict {
        self.end(end)
    }

    fn end(&mut self, end: &End<'_>) -> Verdict {
        let (calls, forgotten) = (end.record.calls(), end.record.forgotten());
        let mut by_invoice: BTreeMap<&str, Vec<&Call>> = BTreeMap::new();
        for call in &calls {
            by_invoice.entry(&call.invoice).or_default().push(call);
        }
        for (invoice, calls) in by_invoice {
            let own = |seen: &&Seen| {
                let id = seen.record.invoice.as_ref();
                id.is_some_and(|id| id.as_str() == invoice)
            };
            let records: Vec<_> = end.records.iter().filter(own).collect();
            let history = history(&calls, &records, &forgotten);
            let wrong = |what: &str| Err((Some(invoice.to_owned()), what.to_owned()));
            match check_operations_timeout(&history, PATIENCE) {
                CheckResult::Ok => {}
                CheckResult::Illegal => {
                    return wrong("no order of the calls explains what was answered");
                }
                CheckResult::Unknown => return wrong("the search for an order took too long"),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(at: (u64, u64), asked: Asked, heard: Heard) -> Call {
        Call {
            who: at.0,
            invoice: "inv-1".to_owned(),
            asked,
            heard,
            called: Duration::from_millis(at.0),
            returned: Some(Duration::from_millis(at.1)),
        }
    }

    fn judged(calls: &[Call]) -> CheckResult {
        let calls: Vec<_> = calls.iter().collect();
        check_operations_timeout(&history(&calls, &[], &Forgotten::default()), PATIENCE)
    }

    #[test]
    fn two_holders_at_once_have_no_order_and_one_after_the_other_have() {
        let first = call((0, 10), Asked::Acquire, Heard::Granted { token: 1 });
        let second = call((20, 30), Asked::Acquire, Heard::Granted { token: 2 });
        let between = call(
            (5, 25),
            Asked::Release { token: 1 },
            Heard::Released { was_current: true },
        );
        assert_eq!(
            judged(&[first.clone(), second.clone()]),
            CheckResult::Illegal
        );
        assert_eq!(judged(&[first, between, second]), CheckResult::Ok);
    }

    #[test]
    fn a_read_of_the_past_is_found() {
        let granted = call((0, 10), Asked::Acquire, Heard::Granted { token: 1 });
        let free = Heard::Holds { token: None };
        let late = call((20, 30), Asked::Get, free.clone());
        let early = call((5, 30), Asked::Get, free);
        assert_eq!(judged(&[granted.clone(), late]), CheckResult::Illegal);
        assert_eq!(judged(&[granted, early]), CheckResult::Ok);
    }

    #[test]
    fn a_second_attempt_beside_an_open_one_has_no_order() {
        let granted = call((0, 10), Asked::Acquire, Heard::Granted { token: 1 });
        let begun = |at, attempt| call(at, Asked::Begin { token: 1 }, Heard::Begun { attempt });
        let again = judged(&[granted.clone(), begun((20, 30), 1), begun((40, 50), 1)]);
        assert_eq!(again, CheckResult::Ok);
        let second = judged(&[granted, begun((20, 30), 1), begun((40, 50), 2)]);
        assert_eq!(second, CheckResult::Illegal);
    }
}
