//! Decides nothing: names what a process takes from the outside world, so that a simulation can stand in for all of it.
//!
//! Everything above this crate reaches the network, a clock, chance and its own pauses through an [`Env`]; nothing above it
//! calls `std::time`, `tokio::net` or a random number generator of its own. Disks are the exception: they belong to
//! `billing-store`, which knows what "durable" means.

mod clock;
mod net;
mod pause;
mod random;

use std::sync::Arc;

pub use clock::{BootTime, Clock, MonoTime, RealClock};
pub use net::{BoxIo, Io, Listener, Net, RealNet, loopback_or_insecure};
pub use pause::{NoPauses, PausePoints};
pub use random::{RandomSource, RealRandom};

/// A boxed future that may move between threads, as the object-safe traits of this crate return it.
pub type BoxFuture<'a, T> = futures::future::BoxFuture<'a, T>;

/// The outside world of one process (or of one simulated host). Cheap to clone.
#[derive(Clone)]
pub struct Env {
    pub clock: Arc<dyn Clock>,
    pub net: Arc<dyn Net>,
    pub random: Arc<dyn RandomSource>,
    pub pauses: Arc<dyn PausePoints>,
}

impl Env {
    /// The real world: the operating system's clocks and sockets, its entropy, and no pauses.
    pub fn real() -> Env {
        Env {
            clock: Arc::new(RealClock::new()),
            net: Arc::new(RealNet),
            random: Arc::new(RealRandom),
            pauses: Arc::new(NoPauses),
        }
    }
}

impl std::fmt::Debug for Env {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Env")
    }
}
