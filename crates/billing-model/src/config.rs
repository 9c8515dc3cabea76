//! What one search assumes of the provider, of the clocks and of people, and which rules it leaves out. Decides nothing about a step.

/// How long the provider honours an idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// It honours none: each send is a charge of its own.
    Ignored,
    /// For ever.
    Forever,
    /// At least until nothing sent under it before `not_after` is in flight any more: `not_after` + `in_flight_max` < retention.
    UntilQuiet,
    /// It may forget them at any moment.
    Unreliable,
}

/// A rule of the ledger, of the gate or of the people around them. Each can be left out of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Rule {
    /// BeginCharge needs the current token, and with it a status that can be leased.
    BeginNeedsToken,
    /// Without the token check, a new attempt still opens on PROCESSING only (invariant I6).
    BeginOnlyProcessing,
    /// A decline needs the current token.
    DeclineNeedsToken,
    /// A look-up that found nothing needs the current token.
    LookUpNeedsToken,
    /// Attaching a provider object needs the current token.
    AttachNeedsToken,
    /// Whoever takes over continues under the same key.
    OneKeyAtATime,
    /// A decline that is not proven final leaves the attempt closing.
    DeclineNeedsFinality,
    /// STICKY is believed only if the terms say that the provider keeps declines.
    StickyNeedsTerms,
    /// A restored ledger, which may issue a key again, takes STICKY for nothing until the provider has forgotten all old keys.
    StickyNotAfterRestore,
    /// SOLE_SEND is not believed once somebody took the attempt over.
    SoleSendNotAfterTakeOver,
    /// A second BeginCharge under the same token is a take-over too.
    BeginAgainIsTakeOver,
    /// A closing attempt dies on evidence, never because time passed.
    ClosingNeedsEvidence,
    /// A look-up proves nothing unless its lease was granted after `not_after` + `in_flight_max`.
    LookUpGrantedAfter,
    /// A look-up proves nothing before `not_after` + `in_flight_max` at all.
    LookUpAfterQuiet,
    /// The look-up deadline has passed only when both clocks say so.
    LookUpBothClocks,
    /// The first object that is attached is the one, for everybody.
    FirstObjectWins,
    /// The object belongs to the invoice: the next attempt confirms it again.
    ObjectOfInvoice,
    /// RequeueInvoice is refused while an attempt is open or closing.
    RequeueNotWhileOpen,
    /// A person's "not charged" is refused before `not_after` + `in_flight_max`.
    ResolveAfterQuiet,
    /// A person's "not charged" is refused while a lease stands.
    ResolveNotWhileLeased,
    /// A restored ledger begins and continues no charge until AllowCharges.
    RestoreClosesCharges,
    /// AllowCharges waits until nothing sent before the restore is in flight any more.
    AllowAfterQuiet,
    /// AllowCharges comes after a comparison with the provider's books.
    AllowAfterBooks,
    /// Tokens of a restored ledger lie above all that were ever granted.
    TokensJump,
    /// `not_after` is kept in wall time too.
    NotAfterInWallTime,
    /// The gate sends nothing after `not_after`.
    GateKeepsNotAfter,
    /// Where the provider honours no key, only the gate that opened the attempt sends, once.
    OneSend,
}

/// The rules that a search leaves out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Without(u32);

impl Without {
    #[must_use]
    pub const fn nothing() -> Self {
        Self(0)
    }

    #[must_use]
    pub const fn rule(rule: Rule) -> Self {
        Self(1 << rule as u32)
    }

    #[must_use]
    pub const fn and(self, rule: Rule) -> Self {
        Self(self.0 | 1 << rule as u32)
    }

    #[must_use]
    pub const fn has(self, rule: Rule) -> bool {
        self.0 & (1 << rule as u32) != 0
    }

    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// What a search must come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// No reachable state breaks a property.
    Safe,
    /// Some reachable state has two successful charges.
    Double,
    /// Some reachable state has two open attempts, none has two successful charges.
    TwoOpen,
}

/// One search.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    pub name: &'static str,
    /// One line for people: what is assumed, or which rule is missing.
    pub what: &'static str,
    pub expected: Expected,
    /// At most [`crate::state::WORKERS`].
    pub workers: u8,
    /// Sends that nobody waits for and that may still arrive, at most [`crate::state::LOOSE_MAX`].
    pub loose_max: u8,
    pub keys: Keys,
    /// The same key gives the same decline again, as long as it is kept.
    pub sticky: bool,
    /// What the terms claim; a provider that is not what they say is a search of its own.
    pub look_up: bool,
    /// The gate may claim SOLE_SEND.
    pub sole_send: bool,
    /// Charges go through single-use objects.
    pub objects: bool,
    /// The gate may claim OBJECT.
    pub object_finality: bool,
    /// Somebody may cancel an unpaid object at the provider.
    pub cancels: bool,
    /// The provider may forget which object a create key made.
    pub creates_forgotten: bool,
    /// A send may arrive at any later moment, however late.
    pub late_sends: bool,
    /// Gates restart under their lease and forget what they sent.
    pub restarts: bool,
    /// Two gates may work under one lease.
    pub second_gates: bool,
    /// People resolve and requeue. They look before they speak.
    pub people: bool,
    /// A person may speak long after they looked.
    pub slow_people: bool,
    /// One backup, restored once.
    pub restore: bool,
    /// A restored ledger's new keys are none that it issued before.
    pub new_keys_after_restore: bool,
    /// Before AllowCharges the operator cancels what is left confirmable at the provider and not in the ledger.
    pub leftovers_cancelled: bool,
    /// ClusterTime may stand still for any time.
    pub standstill: bool,
    /// Wall time may say anything.
    pub wall_wrong: bool,
    pub without: Without,
    /// REVIEW must be reachable, or the search proves nothing about it.
    pub review_reachable: bool,
    /// PAID must be reachable by a second attempt.
    pub second_pays: bool,
}

impl Config {
    #[must_use]
    pub const fn has(&self, rule: Rule) -> bool {
        !self.without.has(rule)
    }

    /// Whether ClusterTime can lie behind true time: it stood still, or went back to a backup's.
    #[must_use]
    pub const fn cluster_lags(&self) -> bool {
        self.standstill || self.restore
    }

    /// Whether wall time can be relied on to forbid a send.
    #[must_use]
    pub const fn wall_forbids(&self) -> bool {
        self.has(Rule::NotAfterInWallTime) && !self.wall_wrong
    }

    /// Whether no step asks what time it is.
    #[must_use]
    pub const fn timeless(&self) -> bool {
        !self.has(Rule::GateKeepsNotAfter)
            && !self.has(Rule::LookUpAfterQuiet)
            && !self.has(Rule::ResolveAfterQuiet)
            && self.late_sends
            && self.look_up
            && !matches!(self.keys, Keys::UntilQuiet)
            && !self.restore
    }

    /// Whether anything depends on who opened an attempt and whether it was taken over.
    #[must_use]
    pub const fn counts_senders(&self) -> bool {
        let old_keys = self.restore && !self.new_keys_after_restore;
        matches!(self.keys, Keys::Ignored)
            || (self.sole_send && !self.objects && (!self.sticky || old_keys))
    }
}
