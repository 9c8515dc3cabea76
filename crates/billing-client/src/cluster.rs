//! The operator's calls. A status is one node's own view, so it is asked of a particular node or of all of them.

use billing_proto::{
    Failure,
    v1::{self, cluster_service_client::ClusterServiceClient},
};
use tonic::Status;

use crate::{
    Client,
    calls::{Repeat, within},
};

/// A reply without a part that it always has: the other side is broken or much newer, and what it did is not known.
pub(crate) fn missing(part: &str) -> Failure {
    Failure::Unknown(Status::data_loss(format!("the reply has no {part}")))
}

impl Client {
    /// The view of whichever node is asked first: the leader while one is known.
    pub async fn status(&self) -> Result<v1::GetStatusResponse, Failure> {
        let request = v1::GetStatusRequest {};
        let send = |channel, request| async move {
            ClusterServiceClient::new(channel).get_status(request).await
        };
        Ok(self
            .call("GetStatus", Repeat::Freely, self.budget(), request, send)
            .await?
            .value)
    }

    /// The view of the node at `address` (`host:port`) and no other, asked once and answered within one attempt's time.
    pub async fn status_of(&self, address: &str) -> Result<v1::GetStatusResponse, Failure> {
        let channel = self.inner.nodes.at(address).channel;
        let attempt = self.inner.attempt;
        let mut client = ClusterServiceClient::new(channel);
        match within(
            &*self.inner.env.clock,
            attempt,
            client.get_status(v1::GetStatusRequest {}),
        )
        .await
        {
            Some(Ok(response)) => Ok(response.into_inner()),
            Some(Err(status)) => Err(Failure::from(status)),
            None => Err(Failure::Unknown(Status::deadline_exceeded(format!(
                "no answer from {address} within {attempt:?}"
            )))),
        }
    }

    /// Ends somebody's lease; its token is dead, an open attempt is in doubt. Audited with `reason`.
    /// `Unknown`: read the lease; a repeat that finds none says `was_leased = false`.
    pub async fn force_release(
        &self,
        invoice_id: &str,
        reason: &str,
    ) -> Result<v1::ForceReleaseResponse, Failure> {
        let request = v1::ForceReleaseRequest {
            invoice_id: invoice_id.to_owned(),
            reason: reason.to_owned(),
        };
        let send = |channel, request| async move {
            ClusterServiceClient::new(channel)
                .force_release(request)
                .await
        };
        // Not repeated after a lost answer: the lease that a repeat meets may be the next holder's.
        Ok(self
            .call("ForceRelease", Repeat::Never, self.budget(), request, send)
            .await?
            .value)
    }

    /// Refuses, or allows again, BeginCharge for one provider. Audited.
    pub async fn pause_provider(
        &self,
        provider: &str,
        paused: bool,
        reason: &str,
    ) -> Result<(), Failure> {
        let request = v1::PauseProviderRequest {
            provider: provider.to_owned(),
            paused,
            reason: reason.to_owned(),
        };
        let send = |channel, request| async move {
            ClusterServiceClient::new(channel)
                .pause_provider(request)
                .await
        };
        self.call(
            "PauseProvider",
            Repeat::DoubtingRefusals,
            self.budget(),
            request,
            send,
        )
        .await?;
        Ok(())
    }

    /// Opens charging after a restore or a bootstrap that was not the first. `evidence`: what was compared. Audited.
    pub async fn allow_charges(&self, evidence: &str) -> Result<(), Failure> {
        let request = v1::AllowChargesRequest {
            evidence: evidence.to_owned(),
        };
        let send = |channel, request| async move {
            ClusterServiceClient::new(channel)
                .allow_charges(request)
                .await
        };
        self.call(
            "AllowCharges",
            Repeat::DoubtingRefusals,
            self.budget(),
            request,
            send,
        )
        .await?;
        Ok(())
    }
}
