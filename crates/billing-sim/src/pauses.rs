//! Decides where a process stalls, and for how long: what a garbage collector, a hypervisor or a laptop's lid would do. The
//! places are the product's own; a stall at one holds up that task, and the rest of the process goes on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use billing_env::{BoxFuture, PausePoints};

use crate::record::Record;

/// Every place at which a worker may stall, in the order in which a charge reaches them.
pub const CHARGE_PLACES: [&str; 6] = [
    "before_begin",
    "after_begin",
    "before_send",
    "checked",
    "after_send",
    "before_settle",
];

/// Stalls by name, one machine's. Clones are the same.
#[derive(Clone)]
pub struct Pauses {
    machine: String,
    record: Record,
    stalls: Arc<Mutex<BTreeMap<&'static str, Duration>>>,
}

impl Pauses {
    pub fn new(machine: String, record: Record) -> Pauses {
        Pauses {
            machine,
            record,
            stalls: Arc::default(),
        }
    }

    /// Whoever reaches `at` next stalls for so long, once.
    pub fn stall_at(&self, at: &'static str, lasts: Duration) {
        self.stalls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(at, lasts);
    }

    /// Nobody has reached it yet since a stall was set there.
    pub fn is_set(&self, at: &str) -> bool {
        self.stalls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains_key(at)
    }

    /// Nobody stalls any more who does not yet.
    pub fn forget(&self) {
        self.stalls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }
}

impl PausePoints for Pauses {
    fn reach(&self, at: &'static str) -> BoxFuture<'static, ()> {
        let stall = self
            .stalls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(at);
        let (machine, record) = (self.machine.clone(), self.record.clone());
        Box::pin(async move {
            if let Some(lasts) = stall {
                record.note(format_args!("{machine} stalls at {at} for {lasts:?}"));
                tokio::time::sleep(lasts).await;
                record.note(format_args!("{machine} goes on at {at}"));
            }
        })
    }
}
