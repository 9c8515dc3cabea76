//! Rules broken on purpose, one at a time, so that somebody can show that a simulation notices (issue 4, "the alarm rings").
//! Decides which rule is broken in this process; a rule's own place says what happens then, and every alarm (invariant,
//! assertion, comparison of states) stays as it is.
//!
//! Nothing of this is in a build without the feature `sabotage`: there `sabotaged!` is the word `false`. No manifest enables
//! the feature, and it does not compile without debug assertions, so nothing that is shipped can have it.
//!
//! This is the one exception to "the ledger is pure": a switch for the whole process. A parameter would have to go through
//! every call of the product, in every build; the switch is set once before a run, so that a run is as repeatable as ever.

#[cfg(all(feature = "sabotage", not(debug_assertions)))]
compile_error!(
    "the feature `sabotage` breaks rules about money: only for builds with debug assertions"
);

/// Whether the rule that stands here is to be broken. `on node 2`: only where node 2's replica is at work.
#[cfg(not(feature = "sabotage"))]
#[macro_export]
macro_rules! sabotaged {
    ($which:ident $(on node $node:literal)?) => {
        false
    };
}

/// Whether the rule that stands here is to be broken. `on node 2`: only where node 2's replica is at work.
#[cfg(feature = "sabotage")]
#[macro_export]
macro_rules! sabotaged {
    ($which:ident) => {
        $crate::sabotage::is_on($crate::sabotage::Sabotage::$which)
    };
    ($which:ident on node $node:literal) => {
        $crate::sabotaged!($which) && $crate::sabotage::replica() == $node
    };
}

#[cfg(feature = "sabotage")]
pub use switch::{Sabotage, Unknown, is_on, replica, replica_is, switch_off, switch_on};

#[cfg(feature = "sabotage")]
mod switch {
    use std::cell::Cell;
    use std::fmt;
    use std::str::FromStr;
    use std::sync::atomic::{AtomicUsize, Ordering};

    macro_rules! sabotages {
        ($($(#[doc = $rule:literal])+ $which:ident = $name:literal,)+) => {
            /// A rule that can be broken. The line of each says what the broken build does.
            #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
            pub enum Sabotage {
                $($(#[doc = $rule])+ $which,)+
            }

            impl Sabotage {
                pub const ALL: &[Sabotage] = &[$(Sabotage::$which,)+];

                /// As it is written on a command line.
                #[must_use]
                pub fn name(self) -> &'static str {
                    match self {
                        $(Sabotage::$which => $name,)+
                    }
                }

                /// What the broken build does, in one line, for people.
                #[must_use]
                pub fn rule(self) -> &'static str {
                    match self {
                        $(Sabotage::$which => concat!($($rule),+).trim_ascii(),)+
                    }
                }
            }
        };
    }

    sabotages! {
        // Tokens and attempts: the ledger.
        /// SettleCharge believes any token.
        NoTokenCheckAtSettle = "no-token-check-at-settle",
        /// BeginCharge and AttachProviderObject believe any token.
        NoTokenCheckAtBegin = "no-token-check-at-begin",
        /// A decline is taken from any token; every other outcome needs the current one.
        StaleDeclineTaken = "stale-decline-taken",
        /// Whoever begins while an attempt is open gets a new one, under a new key; the open one is forgotten.
        SecondKeyOnTakeOver = "second-key-on-take-over",
        /// Beginning again with the token that began last is no take-over: a restarted gate may claim SOLE_SEND.
        SoleSendAfterGateRestart = "sole-send-after-gate-restart",
        /// A look-up that found nothing counts by when it is told, not by when the lease was granted.
        OldLookUpBelieved = "old-look-up-believed",
        /// A look-up that found nothing counts at any time.
        EarlyLookUpBelieved = "early-look-up-believed",
        /// The last object attached wins, not the first.
        SecondObjectAttached = "second-object-attached",
        /// RequeueInvoice is taken while an attempt is open or closing, and forgets it.
        RequeueWhileOpen = "requeue-while-open",
        /// A lease that ends forgets the attempt that it leaves open: PENDING instead of IN_DOUBT.
        InDoubtToPending = "in-doubt-to-pending",
        /// BeginCharge works after a restore before anybody said AllowCharges.
        BeginBeforeAllowCharges = "begin-before-allow-charges",
        /// Tokens go on from the backup's last one after a restore.
        TokensKeptAtRestore = "tokens-kept-at-restore",
        /// A decline under a key that a lost log may have used counts as one that the provider keeps.
        OldKeyTakenForNew = "old-key-taken-for-new",
        /// Leases are granted after a restore before the longest TTL has passed.
        GrantsAtOnceAfterRestore = "grants-at-once-after-restore",

        // Leases, sessions, waiters, answers: the ledger.
        /// A release ends the lease whatever its token.
        StaleReleaseTaken = "stale-release-taken",
        /// An acquire that is repeated after its lease ended is told the old grant.
        AnswerAfterLeaseEnded = "answer-after-lease-ended",
        /// A claim that is repeated is a new claim.
        ClaimReplyForgotten = "claim-reply-forgotten",
        /// The waiter that came last is granted first.
        WaitersServedBackwards = "waiters-served-backwards",
        /// A snapshot holds no waiters.
        WaitersLostInSnapshot = "waiters-lost-in-snapshot",
        /// Node 2 leaves the record of a grant out of its audit log.
        AuditRecordSkipped = "audit-record-skipped",

        // Time.
        /// Each entry adds the leader's elapsed time to ClusterTime.
        ElapsedAddedToNow = "elapsed-added-to-now",
        /// A leader takes its base again whenever an entry of its own is applied.
        BaseRetakenAtEachApply = "base-retaken-at-each-apply",
        /// A keep-alive extends its session from the time before its batch.
        DeadlineFromOldTime = "deadline-from-old-time",
        /// Sessions end a second before their deadline.
        SessionsEndEarly = "sessions-end-early",
        /// How long a key may be sent is counted in ClusterTime alone, which stands still while the cluster is down.
        NotAfterInClusterTimeAlone = "not-after-in-cluster-time-alone",
        /// The client counts a TTL from when the answer arrived.
        DeadlineFromReply = "deadline-from-reply",

        // The consensus and the disk.
        /// A leader answers reads without asking whether it still leads.
        ReadWithoutQuorum = "read-without-quorum",
        /// A vote is remembered in memory only.
        VoteNotPersisted = "vote-not-persisted",
        /// What is appended is acknowledged before it is durable.
        AcknowledgedBeforeFlush = "acknowledged-before-flush",
        /// What the disk refused to write or to sync is acknowledged, and the node goes on.
        FailedWriteIgnored = "failed-write-ignored",
        /// Nobody compares the log and the vote with what the `high` file says.
        HighIgnored = "high-ignored",
        /// A snapshot counts before it is synced.
        SnapshotNotSynced = "snapshot-not-synced",
        /// The log is purged beyond the snapshot that was to replace it.
        PurgeBeyondSnapshot = "purge-beyond-snapshot",

        // The gate.
        /// Keys are sent after their window, too.
        GateWithoutNotAfter = "gate-without-not-after",
        /// Requests leave without a look at the lease.
        GateWithoutLeaseCheck = "gate-without-lease-check",
        /// A send without an answer is taken for a decline.
        SilenceTakenForDecline = "silence-taken-for-decline",
        /// A decline counts as that of the only send, however many there were under this token.
        SoleSendOfMany = "sole-send-of-many",
        /// A settlement whose answer was lost is told again under the next attempt's key.
        SettleRetriedUnderNewKey = "settle-retried-under-new-key",
    }

    /// No sabotage has this name.
    #[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
    #[error("no sabotage is called {0}")]
    pub struct Unknown(String);

    impl FromStr for Sabotage {
        type Err = Unknown;

        fn from_str(name: &str) -> Result<Self, Unknown> {
            let found = Self::ALL.iter().find(|which| which.name() == name);
            found.copied().ok_or_else(|| Unknown(name.to_owned()))
        }
    }

    impl fmt::Display for Sabotage {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.name())
        }
    }

    const NONE: usize = usize::MAX;
    static ON: AtomicUsize = AtomicUsize::new(NONE);

    thread_local! {
        static REPLICA: Cell<u64> = const { Cell::new(0) };
    }

    /// Breaks this rule in the whole process from now on, and no other. To be called before a run, never within one.
    pub fn switch_on(which: Sabotage) {
        ON.store(which as usize, Ordering::SeqCst);
    }

    /// No rule is broken any more: for tests that share a process.
    pub fn switch_off() {
        ON.store(NONE, Ordering::SeqCst);
    }

    #[must_use]
    pub fn is_on(which: Sabotage) -> bool {
        ON.load(Ordering::SeqCst) == which as usize
    }

    /// From now on this thread works for that node's replica.
    pub fn replica_is(node: u64) {
        REPLICA.set(node);
    }

    /// The node whose replica this thread works for; 0: nobody said.
    #[must_use]
    pub fn replica() -> u64 {
        REPLICA.get()
    }
}
