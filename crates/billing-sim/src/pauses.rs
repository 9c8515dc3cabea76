//! Decides where a process stalls, and for how long: what a garbage collector, a hypervisor or a laptop's lid would do.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use billing_env::{BoxFuture, PausePoints};

/// Stalls by name, one host's. Clones are the same.
#[derive(Default, Clone)]
pub struct Pauses(Arc<Mutex<BTreeMap<&'static str, Duration>>>);

impl Pauses {
    /// Whoever reaches `at` next stalls for so long, once.
    pub fn stall_at(&self, at: &'static str, lasts: Duration) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(at, lasts);
    }
}

impl PausePoints for Pauses {
    fn reach(&self, at: &'static str) -> BoxFuture<'static, ()> {
        let stall = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(at);
        Box::pin(async move {
            if let Some(lasts) = stall {
                tokio::time::sleep(lasts).await;
            }
        })
    }
}
