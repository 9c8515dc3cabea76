//! The state hash: a sum over the digests of all records, brought up to date when it is asked for or when enough records have
//! changed. A record that changes ten times, or comes and goes, in between is hashed once, or never. Decides nothing else.

use super::*;

/// Changed records wait for their digest until there are so many: few enough to hash in about a millisecond.
const STALE_MAX: usize = 4_096;

/// What changed since its digest was added to the sum. A record that was removed meanwhile may be named here still.
#[derive(Clone, Default)]
pub(super) struct Stale {
    pub invoices: Vec<InvoiceId>,
    pub sessions: Vec<SessionId>,
    pub requests: Vec<(SessionId, Seq)>,
}

impl Ledger {
    /// Equal on every replica that applied the same log, through snapshots and restarts too. Costs what changed since it
    /// was last asked, a millisecond at most.
    #[must_use]
    pub fn state_hash(&self) -> [u8; 32] {
        let mut scratch = Vec::new();
        let mut sum = self.digests;
        // Removed and made again, a record may be named twice.
        for id in self.stale.invoices.iter().collect::<BTreeSet<_>>() {
            if let Some(invoice) = self.invoice(id).filter(|invoice| invoice.stale) {
                let fresh = digest(Tag::Invoice, invoice, &mut scratch);
                sum = sum.wrapping_sub(invoice.digest).wrapping_add(fresh);
            }
        }
        for id in self.stale.sessions.iter().collect::<BTreeSet<_>>() {
            if let Some(session) = self.session(*id).filter(|session| session.stale) {
                let fresh = digest(Tag::Session, &session.hashed(), &mut scratch);
                sum = sum.wrapping_sub(session.digest).wrapping_add(fresh);
            }
        }
        for (id, seq) in self.stale.requests.iter().collect::<BTreeSet<_>>() {
            let request = self.session(*id).and_then(|session| session.request(*seq));
            if let Some(request) = request.filter(|request| request.digest.is_none()) {
                let fresh = digest(Tag::Request, &request.hashed(*id), &mut scratch);
                sum = sum.wrapping_add(fresh);
            }
        }
        self.hash_over(sum)
    }

    /// As [`Ledger::state_hash`], and what it costs is paid once: what changed since is not hashed again next time.
    pub fn state_hash_kept(&mut self) -> [u8; 32] {
        self.rehash_stale();
        self.hash_over(self.digests)
    }

    pub(super) fn hash_over(&self, digests: u128) -> [u8; 32] {
        let mut bytes = Vec::with_capacity(512);
        let small = (&self.config, &self.scalars, &self.paused);
        write_canonical(
            &(small, self.audit.head(), self.audit.first_index(), digests),
            &mut bytes,
        );
        *blake3::hash(&bytes).as_bytes()
    }

    pub(super) fn rehash_if_many(&mut self) {
        let stale = &self.stale;
        if stale.invoices.len() + stale.sessions.len() + stale.requests.len() >= STALE_MAX {
            self.rehash_stale();
        }
    }

    /// Brings the sum up to date with what changed.
    pub(super) fn rehash_stale(&mut self) {
        let mut scratch = std::mem::take(&mut self.turn.scratch);
        let stale = std::mem::take(&mut self.stale);
        let mut sum = self.digests;
        for id in &stale.invoices {
            if self.invoice(id).is_some_and(|invoice| invoice.stale)
                && let Some(shared) = self.invoices.get_mut(id)
            {
                let invoice = Arc::make_mut(shared);
                let fresh = digest(Tag::Invoice, &*invoice, &mut scratch);
                sum = sum.wrapping_sub(invoice.digest).wrapping_add(fresh);
                invoice.digest = fresh;
                invoice.stale = false;
            }
        }
        for id in &stale.sessions {
            if self.session(*id).is_some_and(|session| session.stale)
                && let Some(shared) = self.sessions.get_mut(id)
            {
                let session = Arc::make_mut(shared);
                let fresh = digest(Tag::Session, &session.hashed(), &mut scratch);
                sum = sum.wrapping_sub(session.digest).wrapping_add(fresh);
                session.digest = fresh;
                session.stale = false;
            }
        }
        for (id, seq) in &stale.requests {
            let session = self.session(*id);
            let request = session.and_then(|session| session.request(*seq));
            if request.is_some_and(|request| request.digest.is_none())
                && let Some(shared) = self.sessions.get_mut(id)
                && let Some(request) = Arc::make_mut(shared).request_mut(*seq)
            {
                let fresh = digest(Tag::Request, &request.hashed(*id), &mut scratch);
                sum = sum.wrapping_add(fresh);
                request.digest = Some(fresh);
            }
        }
        self.digests = sum;
        self.turn.scratch = scratch;
    }
}
