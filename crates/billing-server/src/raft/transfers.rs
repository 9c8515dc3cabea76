//! Decides when a leader's next snapshot has to wait: while one is on its way to another node. The log is purged behind every new
//! snapshot, and who is given an older one needs what follows it: under load it would be sent one after the other for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::node::bounds::LOG_HELD_MAX;

/// The snapshots on their way from this node to others. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Transfers(Arc<AtomicUsize>);

/// One of them, until it is dropped: installed there, or given up.
#[derive(Debug)]
pub struct Transfer(Transfers);

impl Transfers {
    pub fn begin(&self) -> Transfer {
        self.0.fetch_add(1, Ordering::SeqCst);
        Transfer(self.clone())
    }

    /// Whether the log must stay as it is, although `entries` of it follow the newest snapshot.
    pub fn hold(&self, entries: u64) -> bool {
        self.0.load(Ordering::SeqCst) > 0 && entries < LOG_HELD_MAX
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let before = self.0.0.fetch_sub(1, Ordering::SeqCst);
        assert!(before > 0, "every transfer ends once");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_held_while_any_snapshot_is_on_its_way_and_not_for_ever() {
        let transfers = Transfers::default();
        assert!(!transfers.hold(0));
        let (one, other) = (transfers.begin(), transfers.begin());
        drop(one);
        assert!(transfers.hold(LOG_HELD_MAX - 1));
        assert!(!transfers.hold(LOG_HELD_MAX), "its bound");
        drop(other);
        assert!(!transfers.hold(0));
    }
}
