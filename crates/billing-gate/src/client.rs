//! Puts the cluster's client and its lease guards behind the gate's port. Translates words, decides nothing: what an answer
//! lacks or garbles is an unknown outcome, never a refusal.

use std::time::Duration;

use billing_client::{Client, LeaseGuard};
use billing_core::{
    AccountId, Bill, FencingToken, Fingerprint, IdempotencyKey, InvoiceId, InvoiceStatus, ObjectId,
    OutOfBounds, Outcome, ProviderId, SubmitInvoice, Terms, WallTime,
};
use billing_proto::{Failure, convert, v1};
use tonic::Status;

use crate::port::{Account, Attempt, Begun, Hold, LedgerPort};

impl LedgerPort for Client {
    async fn begin(
        &self,
        invoice: &InvoiceId,
        token: FencingToken,
        terms: &Terms,
    ) -> Result<Begun, Failure> {
        let begun = self
            .begin_charge(invoice.as_str(), token, Some(terms.into()))
            .await?;
        let attempt = Attempt::try_from(&begun.attempt).map_err(garbled)?;
        let send_until = begun.sent_at + Duration::from_millis(begun.attempt.send_within_ms);
        Ok(Begun {
            attempt,
            send_until,
        })
    }

    async fn attach(
        &self,
        invoice: &InvoiceId,
        token: FencingToken,
        object: &ObjectId,
    ) -> Result<ObjectId, Failure> {
        let recorded = self
            .attach_provider_object(invoice.as_str(), token, object.as_str())
            .await?;
        ObjectId::new(&recorded).map_err(garbled)
    }

    async fn settle(
        &self,
        invoice: &InvoiceId,
        token: FencingToken,
        key: &IdempotencyKey,
        outcome: Outcome,
    ) -> Result<InvoiceStatus, Failure> {
        let status = self
            .settle_charge(invoice.as_str(), token, &key.to_string(), &outcome)
            .await?;
        convert::status_from_wire(status.into()).map_err(garbled)
    }
}

impl Hold for LeaseGuard {
    fn token(&self) -> FencingToken {
        self.token()
    }

    fn stands(&self) -> bool {
        self.is_valid()
    }
}

impl TryFrom<&v1::ChargeAttempt> for Attempt {
    type Error = OutOfBounds;
    fn try_from(attempt: &v1::ChargeAttempt) -> Result<Attempt, OutOfBounds> {
        let object = attempt.provider_object.as_str();
        Ok(Attempt {
            key: IdempotencyKey::parse(&attempt.idempotency_key)?,
            closing: attempt.state() == v1::AttemptState::Closing,
            object: if object.is_empty() {
                None
            } else {
                Some(ObjectId::new(object)?)
            },
            taken_over: attempt.taken_over,
            keeps_declines: attempt.terms.as_ref().is_some_and(|terms| terms.sticky),
            account: attempt.terms.as_ref().map(account).transpose()?,
        })
    }
}

fn account(terms: &v1::ChargeTerms) -> Result<Account, OutOfBounds> {
    Ok(Account::new(
        ProviderId::new(&terms.provider)?,
        AccountId::new(&terms.account)?,
        terms.live,
        &Fingerprint::new(&terms.fingerprint)?,
    ))
}

/// The bill of an invoice as the wire carries it.
pub fn bill_of(invoice: &v1::Invoice) -> Result<Bill, OutOfBounds> {
    let submitted = SubmitInvoice::try_from(invoice.clone())?;
    Ok(Bill {
        invoice: submitted.invoice,
        customer: submitted.customer,
        amount: submitted.amount,
        currency: submitted.currency,
        due_at: submitted.due_at.unwrap_or(WallTime(0)),
        priority: submitted.priority,
    })
}

fn garbled(what: OutOfBounds) -> Failure {
    Failure::Unknown(Status::data_loss(format!(
        "the reply is not understood: {what}"
    )))
}
