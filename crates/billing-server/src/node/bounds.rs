//! Every bound of a node's inside, on one screen, each with its behaviour. The ledger's own are in `billing_core::limits`.

use std::time::Duration;

pub const PROPOSALS_QUEUED_MAX: usize = 16_384; // Commands waiting to be proposed or forwarded. Full: Overloaded, at once.
pub const BATCH_COMMANDS_MAX: usize = 1_024; // A batch is closed at either bound;
pub const BATCH_BYTES_MAX: usize = 48 * 1024; // with its frame it stays below what one key of the log disk takes.
pub const SESSION_COMMANDS_FIRST_MAX: usize = 768; // Of a batch, or this many bytes of it:
pub const SESSION_BYTES_FIRST_MAX: usize = 36 * 1024; // then others that wait get their turn.
pub const ENTRIES_IN_FLIGHT_MAX: usize = 8; // More: commands gather into the next batch.
pub const FORWARDS_IN_FLIGHT_MAX: usize = 8; // Batches on their way to the leader; more: they gather too.
pub const WAITERS_MAX: usize = 65_536; // Acquires of this node's callers that wait for a lease. More: Overloaded.
pub const READS_WAITING_MAX: usize = 16_384; // Linearizable reads that wait for a round. More: Overloaded.
pub const WATCHERS_MAX: usize = 1_024; // Watches that stand on one node. One more: Overloaded, at once.
pub const WATCH_LAG_MAX: u64 = 500_000; // Records that a watcher may be behind the newest. More: it ends with IndexPurged.

pub const LOG_HELD_MAX: u64 = 500_000; // Entries that a leader keeps behind its snapshot while it sends one. More: purged; that node starts over.

pub const VOTERS_MAX: usize = 9; // More voters make every write slower and nothing safer. One more is refused.
pub const MEMBERS_MAX: usize = 12; // Voters and learners. One more is refused; each node remembers the folders of them all.
pub const PROMOTE_LAG_MAX: u64 = 100; // Entries that a learner, or an heir, may be behind the leader. More: refused.

pub const CALL_TIMEOUT: Duration = Duration::from_secs(10); // The default. Not yet proposed: NotApplied. Proposed: Unknown.
pub const GREETING_EVERY: Duration = Duration::from_secs(60); // Wall clocks and state hashes are compared at least this often (§4, §7).
pub const WALL_OFF_MAX_MS: u64 = 30_000; // From a majority's median; more: the median is stamped, with an alarm.

const _: () = assert!(BATCH_BYTES_MAX < 64 * 1024);
// A watcher is told that it lags before what it needs is gone.
const _: () = assert!(WATCH_LAG_MAX < billing_core::limits::AUDIT_RECORDS_MAX as u64);
const _: () = assert!(SESSION_COMMANDS_FIRST_MAX < BATCH_COMMANDS_MAX);
const _: () = assert!(SESSION_BYTES_FIRST_MAX < BATCH_BYTES_MAX);
