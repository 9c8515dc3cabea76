//! What people do: look, decide, requeue, restore, allow. They tell the truth about what they saw; what they saw may be old.

use crate::config::Rule;
use crate::model::Money;
use crate::state::{NONE, OBJECTS, Object, Phase, State, stage};

impl Money {
    /// A person reads the provider's books, and speaks later.
    pub fn person_looks(&self, before: &State) -> Option<State> {
        let opening = before.live_opening()?;
        if !self.config.slow_people || !self.shows_nothing(before, opening) {
            return None;
        }
        let mut after = *before;
        after.glance = opening as u8;
        Some(after)
    }

    /// ResolveCharge, "not charged". By ClusterTime alone, so that a wrong wall clock cannot hold it up.
    pub fn not_charged(&self, before: &State) -> Option<State> {
        let (config, ledger) = (&self.config, &before.ledger);
        let number = ledger.live()?;
        let opening = before.live_opening()?;
        let leased = ledger.leased && config.has(Rule::ResolveNotWhileLeased);
        let early = ledger.cluster != stage::QUIET && config.has(Rule::ResolveAfterQuiet);
        let seen = before.glance == opening as u8 || self.shows_nothing(before, opening);
        if !config.people || leased || early || !seen || ledger.phase == Phase::Paid {
            return None;
        }
        let mut after = *before;
        after.attempt_dead(number);
        after.glance = NONE;
        if ledger.recorded == 0 {
            after.ledger.phase = Phase::Failed;
            after.end_lease();
        }
        Some(after)
    }

    /// ResolveCharge, "charged", for the one charge that is recorded already.
    pub fn charge_confirmed(&self, before: &State) -> Option<State> {
        let ledger = &before.ledger;
        let payable = ledger.phase == Phase::Review
            && ledger.recorded.count_ones() == 1
            && ledger.live().is_none();
        if !self.config.people || !payable {
            return None;
        }
        let mut after = *before;
        after.ledger.phase = Phase::Paid;
        Some(after)
    }

    pub fn requeue(&self, before: &State) -> Option<State> {
        let ledger = &before.ledger;
        let over = matches!(ledger.phase, Phase::Failed | Phase::Review) && ledger.recorded == 0;
        let live = ledger.live();
        if !self.config.people || !over {
            return None;
        }
        if live.is_some() && self.config.has(Rule::RequeueNotWhileOpen) {
            return None;
        }
        let mut after = *before;
        if let Some(number) = live {
            after.attempt_dead(number);
        }
        after.ledger.phase = Phase::Ready;
        Some(after)
    }

    pub fn back_up(&self, before: &State) -> Option<State> {
        if !self.config.restore || before.restored || before.backup.is_some() {
            return None;
        }
        let mut after = *before;
        let mut backup = before.ledger;
        backup.leased = false;
        backup.fresh = false;
        after.backup = Some(backup);
        Some(after)
    }

    /// The ledger is what it was at the backup, ClusterTime too. Whatever came since is unknown to it, not to the provider.
    pub fn restore(&self, before: &State) -> Option<State> {
        let backup = before.backup?;
        let mut after = *before;
        after.backup = None;
        after.restored = true;
        after.ledger = backup;
        after.end_lease();
        after.ledger.closed = self.config.has(Rule::RestoreClosesCharges);
        after.glance = NONE;
        Some(after)
    }

    /// After the longest `valid_for` + `in_flight_max`, and a comparison with the provider's books.
    pub fn allow_charges(&self, before: &State) -> Option<State> {
        let config = &self.config;
        let quiet = before.stages.iter().all(|stage| *stage == stage::QUIET)
            || !config.has(Rule::AllowAfterQuiet);
        let books =
            before.charged & !before.ledger.recorded == 0 || !config.has(Rule::AllowAfterBooks);
        if !before.ledger.closed || !quiet || !books {
            return None;
        }
        let mut after = *before;
        after.ledger.closed = false;
        if config.leftovers_cancelled {
            for object in 0..OBJECTS {
                let recorded = before.ledger.standing_object() == Some(object as u8);
                if before.objects[object] == Object::Confirmable && !recorded {
                    after.objects[object] = Object::Cancelled;
                }
            }
        }
        Some(after)
    }
}
