//! The operator's calls. A status is one node's own view, so it is asked of a particular node or of all of them.
//!
//! A change of membership is given the whole deadline for one attempt: a repeat that meets the first copy under way would be
//! refused for being in its own way.

use billing_proto::{
    Failure,
    v1::{self, cluster_service_client::ClusterServiceClient},
};
use tonic::Status;

use crate::{
    Client,
    calls::{Budget, Repeat, within},
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
        let channel = self.inner.nodes.at(address).channel.clone();
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

    /// Lets a new node receive the log without a vote; returns where the leader's log ended then. The id must never have been
    /// used before. `Unknown`: read the members; a repeat that is refused because the id is taken may have met its own first copy.
    pub async fn add_learner(
        &self,
        node_id: u64,
        client_address: &str,
        raft_address: &str,
    ) -> Result<u64, Failure> {
        let request = v1::AddLearnerRequest {
            node_id,
            client_address: client_address.to_owned(),
            raft_address: raft_address.to_owned(),
        };
        let send = |channel, request| async move {
            ClusterServiceClient::new(channel)
                .add_learner(request)
                .await
        };
        Ok(self
            .call(
                "AddLearner",
                Repeat::DoubtingRefusals,
                self.patient(),
                request,
                send,
            )
            .await?
            .value
            .last_log_index)
    }

    /// Gives a learner its vote and, with `replaces`, takes that voter out for ever, in one change. Returns the members after
    /// it. `Unknown`: read the members; a repeat of a promotion that happened is refused, since the node is a voter by then.
    pub async fn promote_member(
        &self,
        node_id: u64,
        replaces: Option<u64>,
        allow_even: bool,
    ) -> Result<Vec<v1::Member>, Failure> {
        let request = v1::PromoteMemberRequest {
            node_id,
            replaces: replaces.unwrap_or(0),
            allow_even,
        };
        let send = |channel, request| async move {
            ClusterServiceClient::new(channel)
                .promote_member(request)
                .await
        };
        Ok(self
            .call(
                "PromoteMember",
                Repeat::DoubtingRefusals,
                self.patient(),
                request,
                send,
            )
            .await?
            .value
            .members)
    }

    /// Takes a node out of the cluster for ever and returns the members that are left. `Unknown`: read the members; a repeat
    /// of a removal that happened is refused, since the node is no member by then.
    pub async fn remove_member(
        &self,
        node_id: u64,
        allow_even: bool,
    ) -> Result<Vec<v1::Member>, Failure> {
        let request = v1::RemoveMemberRequest {
            node_id,
            allow_even,
        };
        let send = |channel, request| async move {
            ClusterServiceClient::new(channel)
                .remove_member(request)
                .await
        };
        Ok(self
            .call(
                "RemoveMember",
                Repeat::DoubtingRefusals,
                self.patient(),
                request,
                send,
            )
            .await?
            .value
            .members)
    }

    /// Hands the lead to `node_id`, or to the voter whose log reaches farthest, and returns who leads then.
    /// `Unknown`: read a status. With an id a repeat asks for the same end; without one it would pass the lead on once more,
    /// and so is not made.
    pub async fn transfer_leader(&self, node_id: Option<u64>) -> Result<u64, Failure> {
        let request = v1::TransferLeaderRequest {
            node_id: node_id.unwrap_or(0),
        };
        let send = |channel, request| async move {
            ClusterServiceClient::new(channel)
                .transfer_leader(request)
                .await
        };
        let repeat = match node_id {
            Some(_) => Repeat::DoubtingRefusals,
            None => Repeat::Never,
        };
        Ok(self
            .call("TransferLeader", repeat, self.patient(), request, send)
            .await?
            .value
            .leader_id)
    }

    fn patient(&self) -> Budget {
        let deadline = self.budget().deadline;
        Budget {
            deadline,
            attempt: deadline,
        }
    }
}
