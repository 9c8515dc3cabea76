//! The charge run. Decides what to claim, how much at once, when to pause and when to stop.
//! Never knows how a charge is made, and never works under a lease that it may have lost: the gate checks before each send.

mod run;
mod stop;
mod tally;

pub use run::{Ending, Run, RunOptions};
pub use stop::{Stop, Stopper};
pub use tally::{Tally, Totals};
