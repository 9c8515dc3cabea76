//! Decides nothing: marks the places where a process may stall for an hour, so that a simulation can make it.

use crate::BoxFuture;

/// Places between two steps where a stall is interesting. The real one never stalls.
pub trait PausePoints: Send + Sync + 'static {
    /// `at` names the step that is about to happen (`before_begin`) or has just happened (`after_send`).
    fn reach(&self, at: &'static str) -> BoxFuture<'static, ()>;
}

#[derive(Debug, Default)]
pub struct NoPauses;

impl PausePoints for NoPauses {
    fn reach(&self, _at: &'static str) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}
