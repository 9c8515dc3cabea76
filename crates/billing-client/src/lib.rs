//! The Rust client of a billingd cluster: sessions that are kept alive, leases with a local deadline, and calls that find
//! the leader and are repeated only when that is honest. Decides what this process may still believe about its leases;
//! never decides that money may move (the ledger does), and never sees the provider.
//!
//! ```text
//! let client = Client::builder().endpoints(["127.0.0.1:7101", "127.0.0.1:7102"]).build()?;
//! let session = client.open_session(SessionOptions::new("worker-1", Duration::from_secs(10))).await?;
//! let lease = session.acquire("inv-7", AcquireOptions::wait(Duration::from_secs(5))).await?;
//! tokio::select! {
//!     done = work(lease.token()) => done?,
//!     loss = lease.lost() => return Err(loss.into()),   // Needs no network, counts a suspended laptop's sleep.
//! }
//! lease.release().await?;
//! ```
//!
//! [`Client`] and [`Session`] are cheap to clone and may be used from any thread: two threads that acquire through the same
//! session exclude each other like two processes. Calls need a tokio runtime; a session's background tasks live on the
//! runtime on which it was opened.

mod ask;
mod audit;
mod background;
mod backup;
mod calls;
mod charges;
mod cluster;
mod config;
mod guard;
mod invoices;
mod keeper;
mod leases;
mod life;
mod nodes;
mod pipe;
mod seqs;
mod session;
mod watch;

pub use backup::Backup;
pub use billing_core::{FencingToken, Outcome, Rejection};
pub use billing_proto::{Failure, v1};
pub use charges::Begun;
pub use config::{BuildError, Client, ClientBuilder};
pub use guard::LeaseGuard;
pub use invoices::Submitted;
pub use life::Loss;
pub use session::{AcquireOptions, Claimed, ClaimedInvoice, Session, SessionOptions};
pub use watch::{WatchOptions, Watched};
