//! The four charge calls, each repeated only as far as its meaning allows. Decides nothing about money: the gate says what
//! happened, the ledger what it proves.

use billing_core::{FencingToken, Outcome};
use billing_env::BootTime;
use billing_proto::{
    Failure,
    v1::{self, charge_service_client::ChargeServiceClient, resolve_charge_request as resolve},
};

use crate::{Client, calls::Repeat, cluster::missing};

/// An attempt that may be sent, and since when its window counts.
#[derive(Clone, Debug)]
pub struct Begun {
    pub attempt: v1::ChargeAttempt,
    /// CLOCK_BOOTTIME before BeginCharge was sent: no send later than `sent_at` + `attempt.send_within_ms`.
    pub sent_at: BootTime,
}

impl Client {
    /// Opens the next attempt, or continues the open one. `terms`: None is profile `manual`.
    ///
    /// Sent again only when it certainly did not reach the log. After `Unknown` the attempt may be open: calling this again
    /// is allowed and returns it, but marked *taken over*, which costs the finality SOLE_SEND. That is the caller's choice.
    pub async fn begin_charge(
        &self,
        invoice_id: &str,
        token: FencingToken,
        terms: Option<v1::ChargeTerms>,
    ) -> Result<Begun, Failure> {
        let request = v1::BeginChargeRequest {
            invoice_id: invoice_id.to_owned(),
            token: token.0,
            terms,
        };
        let answered = self.ask(Repeat::Never, self.budget(), request).await?;
        let attempt = answered.value.attempt.ok_or_else(|| missing("attempt"))?;
        Ok(Begun {
            attempt,
            sent_at: answered.sent_at,
        })
    }

    /// Records the single-use object and returns the recorded one, which may be another's: confirm that one only.
    /// Repeated: the first one wins, whoever sent it.
    pub async fn attach_provider_object(
        &self,
        invoice_id: &str,
        token: FencingToken,
        object: &str,
    ) -> Result<String, Failure> {
        let request = v1::AttachProviderObjectRequest {
            invoice_id: invoice_id.to_owned(),
            token: token.0,
            object: object.to_owned(),
        };
        let answered = self
            .ask(Repeat::DoubtingRefusals, self.budget(), request)
            .await?;
        Ok(answered.value.object)
    }

    /// Records an outcome and ends the lease. The same facts again change nothing, so it is repeated; a refusal that follows
    /// a lost answer comes back as `Unknown`, since the first copy may have done it (read the invoice).
    pub async fn settle_charge(
        &self,
        invoice_id: &str,
        token: FencingToken,
        idempotency_key: &str,
        outcome: &Outcome,
    ) -> Result<v1::InvoiceStatus, Failure> {
        let request = v1::SettleChargeRequest {
            invoice_id: invoice_id.to_owned(),
            token: token.0,
            idempotency_key: idempotency_key.to_owned(),
            outcome: Some(outcome.into()),
        };
        let answered = self
            .ask(Repeat::DoubtingRefusals, self.budget(), request)
            .await?;
        Ok(answered.value.status())
    }

    /// A person's word on an unknown outcome. `charged`: its reference, sum and currency (0 and empty: as invoiced);
    /// None: not charged. `evidence`: where it was seen. `Unknown`: read the invoice.
    pub async fn resolve_charge(
        &self,
        invoice_id: &str,
        idempotency_key: &str,
        charged: Option<resolve::Charged>,
        evidence: &str,
    ) -> Result<v1::InvoiceStatus, Failure> {
        let request = v1::ResolveChargeRequest {
            invoice_id: invoice_id.to_owned(),
            idempotency_key: idempotency_key.to_owned(),
            word: Some(match charged {
                Some(charged) => resolve::Word::Charged(charged),
                None => resolve::Word::NotCharged(resolve::NotCharged {}),
            }),
            evidence: evidence.to_owned(),
        };
        let send = |channel, request| async move {
            ChargeServiceClient::new(channel)
                .resolve_charge(request)
                .await
        };
        let answered = self
            .call(
                "ResolveCharge",
                Repeat::DoubtingRefusals,
                self.budget(),
                request,
                send,
            )
            .await?;
        Ok(answered.value.status())
    }
}
