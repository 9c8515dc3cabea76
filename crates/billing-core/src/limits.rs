//! Every bound of the ledger, on one screen, each with its reason. Decides nothing else, and holds no state.
//! All of §2's bounds are here; whoever needs a number reads it from here, never repeats it.

pub const TEXT_BYTES_MAX: usize = 128; // invoice_id, customer_id, holder, reference, object ...
pub const PROVIDER_BYTES_MAX: usize = 64; // provider, account
pub const FINGERPRINT_BYTES_MAX: usize = 64; // The longest digest in use.
pub const EVIDENCE_BYTES_MAX: usize = 1_024; // A person's reason: a sentence or two and a link.
pub const LEDGER_ID_BYTES_MAX: usize = 32; // Part of every key, so it must leave room for the invoice.
pub const KEY_BYTES_MAX: usize = 255; // What Stripe takes as an Idempotency-Key, the longest suffix included.
pub const KEY_SUFFIX: &str = ":confirm"; // The longest of `key:create`, `key:confirm`, `key:cancel`.

pub const TTL_MS_MIN: u64 = 1_000; // Under a few heartbeats, no holder could keep a lease.
pub const TTL_MS_MAX: u64 = 300_000; // Also how long grants wait after a restore, unless the bootstrap chose less.
pub const WAIT_MS_MAX: u64 = 300_000;
pub const AMOUNT_MINOR_MAX: u64 = 1_000_000_000_000;
pub const PRIORITY_MIN: i16 = -1_000;
pub const PRIORITY_MAX: i16 = 1_000;
pub const CLAIM_MAX: u16 = 1_000;
pub const ATTEMPT_NUMBER_MAX: u32 = 1_000_000; // A reported key may name a number; no typing error may use them all up.

pub const VALID_FOR_MS_MIN: u64 = 1_000;
pub const VALID_FOR_MS_MAX: u64 = 30 * DAY_MS; // No provider documents keeping keys longer.
pub const KEY_RETENTION_MS_MAX: u64 = 30 * DAY_MS; // As VALID_FOR_MS_MAX.
pub const OLD_KEYS_MS: u64 = 2 * KEY_RETENTION_MS_MAX; // A key of a log that a restore lost may be known so long; some keep more than they promise.
pub const IN_FLIGHT_MS_MAX: u64 = 7 * DAY_MS;
pub const PENDING_MS_MAX: u64 = 30 * DAY_MS; // Bank debits settle in days; after that somebody must look.

pub const ANSWERS_KEPT_MAX: usize = 1_024; // Per session; the oldest answer goes first, its seq is refused from then on.
pub const LEASES_PER_SESSION_MAX: usize = 10_000; // More: Overloaded. A hundred sessions hold a million.
pub const WAITERS_PER_INVOICE_MAX: usize = 16_384; // More: Overloaded. A crowd of 10,000 with room; about 5 MB.
pub const WAITERS_PER_SESSION_MAX: usize = 10_000; // More: Overloaded. As many as it can hold leases, so a few sessions make a crowd.
pub const SESSIONS_OPEN_MAX: usize = 1_200_000; // More: Overloaded. A million implicit ones (each holds one lease) and 200,000 opened.
pub const SESSIONS_ENDED_MAX: usize = 1_000_000; // Ended ids kept of each kind; beyond, the oldest is forgotten.
pub const IMPLICIT_REMEMBERED_MS: u64 = 600_000; // A request_id used before is known for this long after its end.
pub const PROVIDERS_PAUSED_MAX: usize = 64; // More: Overloaded.
pub const CHARGES_PER_INVOICE_MAX: usize = 64; // More: Overloaded; an invoice with two is in front of a person anyway.
pub const ATTEMPTS_KEPT_MAX: usize = 32; // Oldest dead attempt goes first; never a live or a settled one.
pub const AUDIT_RECORDS_MAX: usize = 1_000_000; // Oldest dropped, a chunk at a time; the anchor hash stays.
pub const AUDIT_CHUNK_RECORDS: usize = 1_024;
pub const PAGE_MAX: usize = 1_000; // Rows of one read; a larger limit is cut to it.

pub const RETRIES_MAX: u32 = 8; // Attempts of one invoice before it is FAILED; a requeue starts the count again.
pub const RETRY_BACKOFF_MS_MIN: u64 = 60_000; // After a retryable decline: 1 min, 2, 4, ...
pub const RETRY_BACKOFF_MS_MAX: u64 = DAY_MS;
pub const DOUBT_BACKOFF_MS_MIN: u64 = 1_000; // After a lease that ended with its attempt open: 1 s, 2, 4, ...
pub const DOUBT_BACKOFF_MS_MAX: u64 = 3_600_000;

pub const TICK_MS_MIN: u64 = 100;
pub const TICK_MS_IDLE: u64 = 1_000; // While only deadlines pend that are no TTL.
// Restore and bootstrap move the tokens to unix ms << TOKEN_MS_SHIFT: fewer than 2^20 are granted in a millisecond, so that is
// beyond any that a lost log granted, and a backup that is restored twice does not grant the same ones again. Where the clock
// went back, last + TOKEN_JUMP. It is half a second of tokens, so that the clock overtakes it before a restored ledger may
// grant at all (TTL_MS_MIN): a wider jump would give two restores of one young backup the same tokens.
pub const TOKEN_MS_SHIFT: u32 = 20;
pub const TOKEN_JUMP: u64 = 1 << 29;
pub const FULL_CHECK_EVERY: u64 = 1_000; // Applies between two full checks of the invariants, in debug builds.

const DAY_MS: u64 = 86_400_000;

const _: () = assert!(TTL_MS_MIN < TTL_MS_MAX && PRIORITY_MIN < PRIORITY_MAX);
const _: () = assert!(
    TOKEN_JUMP >> TOKEN_MS_SHIFT < TTL_MS_MIN,
    "the clock overtakes the jump"
);
const _: () = assert!(VALID_FOR_MS_MIN < VALID_FOR_MS_MAX && IN_FLIGHT_MS_MAX < VALID_FOR_MS_MAX);
const _: () = assert!(
    RETRY_BACKOFF_MS_MIN < RETRY_BACKOFF_MS_MAX && DOUBT_BACKOFF_MS_MIN < DOUBT_BACKOFF_MS_MAX
);
const _: () = assert!(AUDIT_RECORDS_MAX >= 2 * AUDIT_CHUNK_RECORDS);
const _: () = assert!(
    LEDGER_ID_BYTES_MAX + 1 + 7 + 1 + TEXT_BYTES_MAX + KEY_SUFFIX.len() <= KEY_BYTES_MAX,
    "the longest key with its longest suffix must be one that a provider takes"
);
