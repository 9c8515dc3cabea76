//! What the gate needs of the cluster, and of the lease under which it works: three calls and a question. Decides nothing.
//! `billing-client` is the real one; tests put a ledger of their own behind it.

use billing_core::{
    AccountId, AttemptState, ChargeAttempt, FencingToken, Fingerprint, IdempotencyKey, InvoiceId,
    InvoiceStatus, ObjectId, Outcome, ProviderId, Terms,
};
use billing_env::BootTime;
use billing_proto::Failure;

use crate::stripe;

/// A charge attempt, as far as the gate reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub key: IdempotencyKey,
    /// Never sent again; only looked up.
    pub closing: bool,
    pub object: Option<ObjectId>,
    /// Somebody else may have sent under this key.
    pub taken_over: bool,
    /// The ledger believes that a decline under this key is kept: the profile said so, and the key is none of before a restore.
    pub keeps_declines: bool,
    /// Where it is made. None: known only from a report that named its key.
    pub account: Option<Account>,
}

/// One account at one provider, in live or in test mode, and how it is charged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub provider: ProviderId,
    pub account: AccountId,
    pub live: bool,
    /// Without an object: a look-up for one would find nothing, whatever was charged.
    pub by_key: bool,
}

impl Account {
    /// The account of an attempt whose terms say so.
    pub fn new(
        provider: ProviderId,
        account: AccountId,
        live: bool,
        fingerprint: &Fingerprint,
    ) -> Account {
        Account {
            provider,
            account,
            live,
            by_key: stripe::is_by_key(fingerprint),
        }
    }
}

impl From<&Terms> for Account {
    fn from(terms: &Terms) -> Account {
        Account::new(
            terms.provider.clone(),
            terms.account.clone(),
            terms.live,
            &terms.fingerprint,
        )
    }
}

impl From<&ChargeAttempt> for Attempt {
    fn from(attempt: &ChargeAttempt) -> Attempt {
        Attempt {
            key: attempt.idempotency_key.clone(),
            closing: attempt.state == AttemptState::Closing,
            object: attempt.provider_object.clone(),
            taken_over: attempt.taken_over,
            keeps_declines: attempt.terms.as_ref().is_some_and(|terms| terms.sticky),
            account: attempt.terms.as_deref().map(Account::from),
        }
    }
}

/// An attempt, and until when something may be sent under its key.
#[derive(Clone, Debug)]
pub struct Begun {
    pub attempt: Attempt,
    /// On CLOCK_BOOTTIME, counted from before BeginCharge was sent.
    pub send_until: BootTime,
}

/// The ledger's three doors for a charge. Each future may be dropped; the command may take effect all the same.
pub trait LedgerPort: Send + Sync {
    /// Opens the next attempt or returns the open one, then marked taken over.
    fn begin(
        &self,
        invoice: &InvoiceId,
        token: FencingToken,
        terms: &Terms,
    ) -> impl Future<Output = Result<Begun, Failure>> + Send;

    /// Records the object; returns the recorded one, which may be another's.
    fn attach(
        &self,
        invoice: &InvoiceId,
        token: FencingToken,
        object: &ObjectId,
    ) -> impl Future<Output = Result<ObjectId, Failure>> + Send;

    /// Records what is known, and returns the invoice's status.
    fn settle(
        &self,
        invoice: &InvoiceId,
        token: FencingToken,
        key: &IdempotencyKey,
        outcome: Outcome,
    ) -> impl Future<Output = Result<InvoiceStatus, Failure>> + Send;
}

/// The lease under which a charge is made.
pub trait Hold: Send + Sync {
    fn token(&self) -> FencingToken;

    /// Whether this process may still believe that it holds the lease. Needs no network.
    fn stands(&self) -> bool;
}
