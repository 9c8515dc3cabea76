//! The operator's switches: bootstrap, restore, allowing charges, pausing a provider, forcing a lease. Each is audited. None
//! of them ends an attempt: only evidence does.

use super::leases::LeaseEnd;
use super::*;
use crate::command::{
    AllowCharges, Bootstrap, BootstrapWithin, ForceRelease, PauseProvider, Restore,
};
use crate::rejection::Bound;

/// No cluster time reaches it: what a restored ledger waits for is the command, not a moment.
const GRANTS_NEVER: ClusterTime = FOREVER;
const FOREVER: ClusterTime = ClusterTime(u64::MAX);

impl Ledger {
    /// Makes of a backup's ledger one that awaits [`Command::Restore`]: until that is applied nothing but time is taken. To
    /// be called on every replica alike, before its first apply.
    pub fn await_restore(&mut self) {
        self.scalars.charges_allowed = false;
        self.scalars.grants_from = GRANTS_NEVER;
    }

    /// Whether [`Ledger::await_restore`] was called and [`Command::Restore`] was not applied since.
    #[must_use]
    pub fn awaits_restore(&self) -> bool {
        self.scalars.grants_from == GRANTS_NEVER
    }

    /// Refuses what may not be the first command of a new ledger, or of one that was put back.
    pub(super) fn in_service(&self, command: &Command) -> Result<(), Rejection> {
        let new = self.scalars.ledger_id.is_none();
        let allowed = match command {
            Command::Tick => true,
            Command::Bootstrap(_) | Command::BootstrapWithin(_) => true, // Refused by itself the second time.
            Command::Restore(_) => !new,
            _ => !new && !self.awaits_restore(),
        };
        if allowed {
            Ok(())
        } else {
            Err(Rejection::NotBootstrapped)
        }
    }

    pub(super) fn bootstrap_within(
        &mut self,
        within: &BootstrapWithin,
    ) -> Result<Reply, Rejection> {
        if self.scalars.ledger_id.is_none() {
            self.config.ttl_max = within.ttl_max;
        }
        self.bootstrap(&within.bootstrap)
    }

    /// Refuses a TTL that would outlast the wait after a restore.
    pub(super) fn check_ttl(&self, ttl: Option<TtlMs>) -> Result<(), Rejection> {
        let max = self.config.ttl_max;
        match ttl {
            Some(ttl) if ttl > max => Err(Rejection::InvalidArgument {
                field: "ttl_ms".into(),
                bound: format!("at most {max}, the longest that this ledger was founded with")
                    .into(),
            }),
            Some(_) | None => Ok(()),
        }
    }

    pub(super) fn bootstrap(&mut self, bootstrap: &Bootstrap) -> Result<Reply, Rejection> {
        if let Some(ledger_id) = &self.scalars.ledger_id {
            return Err(Rejection::AlreadyBootstrapped {
                ledger_id: ledger_id.clone(),
            });
        }
        self.scalars.ledger_id = Some(bootstrap.ledger_id.clone());
        self.jump_tokens();
        self.scalars.charges_allowed = bootstrap.no_prior_charges;
        let now = self.scalars.now;
        (self.scalars.grants_from, self.scalars.old_keys_until) = match bootstrap.no_prior_charges {
            true => (now, now),
            false => (now.plus(self.config.ttl_max.get()), FOREVER),
        };
        let (ledger_id, no_prior_charges) =
            (bootstrap.ledger_id.clone(), bootstrap.no_prior_charges);
        self.note(
            What::Bootstrapped {
                ledger_id,
                no_prior_charges,
            },
            None,
            FencingToken::NONE,
            None,
        );
        Ok(Reply::Bootstrapped {
            ledger_id: bootstrap.ledger_id.clone(),
        })
    }

    /// The state is an old one: whatever was granted or begun since is unknown. Nobody holds anything, no token of that time
    /// can come again, and no charge begins or continues until somebody has looked. Attempt numbers do come again, and keys with
    /// them: what the provider knows under one is then the answer, where the comparison overlooked it.
    pub(super) fn restore(&mut self, restore: &Restore) -> Result<Reply, Rejection> {
        let ledger_id = self
            .scalars
            .ledger_id
            .clone()
            .ok_or(Rejection::NotBootstrapped)?;
        self.note(
            What::Restored {
                reason: restore.reason.clone(),
            },
            None,
            FencingToken::NONE,
            None,
        );
        if !sabotaged!(TokensKeptAtRestore) {
            self.jump_tokens();
        }
        self.scalars.charges_allowed = false;
        self.scalars.grants_from = self.scalars.now.plus(self.config.ttl_max.get());
        self.scalars.old_keys_until = FOREVER;
        let mut sessions: Vec<SessionId> = self.sessions.values().map(|open| open.id).collect();
        sessions.sort_unstable(); // The order shows in the audit log.
        for session in &sessions {
            self.leave_queues(*session);
        }
        for session in sessions {
            self.end_session(session, &LeaseEnd::SessionClosed);
        }
        Ok(Reply::Restored { ledger_id })
    }

    fn jump_tokens(&mut self) {
        let beyond_log = self.scalars.token_last.0.saturating_add(TOKEN_JUMP);
        let beyond_time =
            self.wall_perhaps().0.min(u64::MAX >> (TOKEN_MS_SHIFT + 1)) << TOKEN_MS_SHIFT;
        self.scalars.token_last = FencingToken(beyond_log.max(beyond_time));
    }

    pub(super) fn allow_charges(&mut self, allow: &AllowCharges) -> Reply {
        if !self.scalars.charges_allowed {
            self.scalars.charges_allowed = true;
            // From here on nothing of the lost log is sent any more, and the provider forgets its keys.
            self.scalars.old_keys_until = self.scalars.now.plus(OLD_KEYS_MS);
            self.note(
                What::ChargesAllowed {
                    evidence: allow.evidence.clone(),
                },
                None,
                FencingToken::NONE,
                None,
            );
        }
        Reply::Done
    }

    pub(super) fn pause_provider(&mut self, pause: &PauseProvider) -> Result<Reply, Rejection> {
        let (provider, reason) = (pause.provider.clone(), pause.reason.clone());
        if !pause.paused {
            if self.paused.remove(&provider).is_some() {
                self.note(
                    What::ProviderResumed { provider, reason },
                    None,
                    FencingToken::NONE,
                    None,
                );
            }
            return Ok(Reply::Done);
        }
        if self.paused.len() >= PROVIDERS_PAUSED_MAX && !self.paused.contains_key(&provider) {
            return Err(Rejection::Overloaded {
                bound: Bound::ProvidersPaused,
                max: PROVIDERS_PAUSED_MAX as u64,
            });
        }
        if self
            .paused
            .insert(provider.clone(), reason.clone())
            .as_ref()
            != Some(&reason)
        {
            self.note(
                What::ProviderPaused { provider, reason },
                None,
                FencingToken::NONE,
                None,
            );
        }
        Ok(Reply::Done)
    }

    pub(super) fn force_release(&mut self, force: &ForceRelease) -> Result<Reply, Rejection> {
        let not_found = || Rejection::NotFound {
            invoice: force.invoice.clone(),
        };
        let was_leased = self
            .invoice(&force.invoice)
            .ok_or_else(not_found)?
            .lease
            .is_some();
        if was_leased {
            self.end_lease(&force.invoice, &LeaseEnd::Forced(force.reason.clone()));
        }
        self.review_if_unanswered(&force.invoice);
        let status = self.invoice(&force.invoice).ok_or_else(not_found)?.status();
        Ok(Reply::ForceReleased { was_leased, status })
    }
}
