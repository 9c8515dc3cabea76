//! Leases as single calls, for those who keep no session or look at other people's leases: each says what its `Unknown`
//! means. Handles that renew and release themselves are in session.rs and guard.rs.

use std::time::Duration;

use billing_core::{FencingToken, SessionId};
use billing_proto::{
    Failure,
    v1::{self, lease_service_client::LeaseServiceClient},
};
use futures::Stream;
use tonic::{Response, Status};

use crate::{
    Client,
    calls::{Answered, Budget, Repeat},
    cluster::missing,
    invoices::pages,
};

/// Milliseconds on the wire; what is too long for it is out of every bound anyway.
pub(crate) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Client {
    /// Who holds it; None: nobody. `stale_ok`: from the asked node's own state, however old.
    pub async fn get_lease(
        &self,
        invoice_id: &str,
        stale_ok: bool,
    ) -> Result<Option<v1::Lease>, Failure> {
        let request = v1::GetLeaseRequest {
            invoice_id: invoice_id.to_owned(),
            stale_ok,
        };
        let send = |channel, request| async move {
            LeaseServiceClient::new(channel).get_lease(request).await
        };
        let answered = self
            .call("GetLease", Repeat::Freely, self.budget(), request, send)
            .await?;
        Ok(answered.value.lease)
    }

    /// One page, in order of invoice id.
    pub async fn list_leases(
        &self,
        request: v1::ListLeasesRequest,
    ) -> Result<v1::ListLeasesResponse, Failure> {
        let send = |channel, request| async move {
            LeaseServiceClient::new(channel).list_leases(request).await
        };
        Ok(self
            .call("ListLeases", Repeat::Freely, self.budget(), request, send)
            .await?
            .value)
    }

    /// Every lease, page by page from `request.page_token` on; each page is a read of its own moment.
    pub fn leases(
        &self,
        request: v1::ListLeasesRequest,
    ) -> impl Stream<Item = Result<v1::Lease, Failure>> + Send + use<> {
        let client = self.clone();
        pages(request, move |request| {
            let client = client.clone();
            async move {
                let page = client.list_leases(request.clone()).await?;
                let next = v1::ListLeasesRequest {
                    page_token: page.next_page_token,
                    ..request
                };
                Ok((page.leases, (!next.page_token.is_empty()).then_some(next)))
            }
        })
    }

    /// Ends a lease by its token, whoever granted it. False: the token was of the past already. May be repeated freely.
    pub async fn release_lease(
        &self,
        invoice_id: &str,
        token: FencingToken,
    ) -> Result<bool, Failure> {
        self.release(by_token(invoice_id, token)).await
    }

    /// Takes back an acquire whose answer was lost: its waiter is withdrawn, its grant ended, a late copy refused.
    pub async fn withdraw(&self, session: SessionId, seq: u64) -> Result<bool, Failure> {
        self.release(by_seq(session, seq)).await
    }

    async fn release(&self, request: v1::ReleaseLeaseRequest) -> Result<bool, Failure> {
        let send = |channel, request| async move {
            LeaseServiceClient::new(channel)
                .release_lease(request)
                .await
        };
        let answered = self
            .call("ReleaseLease", Repeat::Freely, self.budget(), request, send)
            .await?;
        Ok(answered.value.was_current)
    }

    /// A result per item, in order; at most 1,000.
    pub(crate) async fn release_leases(
        &self,
        items: Vec<v1::ReleaseLeaseRequest>,
    ) -> Result<Vec<Result<bool, Failure>>, Failure> {
        use v1::release_leases_response::item::Result as Item;
        let request = v1::ReleaseLeasesRequest { items };
        let send = |channel, request| async move {
            LeaseServiceClient::new(channel)
                .release_leases(request)
                .await
        };
        let answered = self
            .call(
                "ReleaseLeases",
                Repeat::Freely,
                self.budget(),
                request,
                send,
            )
            .await?;
        let results = answered
            .value
            .items
            .into_iter()
            .map(|item| match item.result {
                Some(Item::Released(released)) => Ok(released.was_current),
                Some(Item::Error(error)) => Err(Failure::from(error)),
                None => Err(missing("a result")),
            });
        Ok(results.collect())
    }

    /// Extends a lease by its token to `ttl` from the cluster's now. `Unknown`: it may have been renewed; trust only the old
    /// deadline. [`crate::LeaseGuard::renew`] does the arithmetic of deadlines; this does not.
    pub async fn renew_lease(
        &self,
        invoice_id: &str,
        token: FencingToken,
        ttl: Duration,
    ) -> Result<v1::Lease, Failure> {
        Ok(self
            .renew(invoice_id, token, ms(ttl), self.budget())
            .await?
            .value)
    }

    pub(crate) async fn renew(
        &self,
        invoice_id: &str,
        token: FencingToken,
        ttl_ms: u64,
        budget: Budget,
    ) -> Result<Answered<v1::Lease>, Failure> {
        let request = v1::RenewLeaseRequest {
            invoice_id: invoice_id.to_owned(),
            token: token.0,
            ttl_ms,
        };
        let send = |channel, request| async move {
            LeaseServiceClient::new(channel).renew_lease(request).await
        };
        // A renewal repeated is a renewal later: nothing that a later refusal could hide.
        let answered = self
            .call("RenewLease", Repeat::Freely, budget, request, send)
            .await?;
        let lease = answered.value.lease.ok_or_else(|| missing("lease"))?;
        Ok(Answered {
            value: lease,
            sent_at: answered.sent_at,
            first_sent_at: answered.first_sent_at,
        })
    }

    pub(crate) async fn acquire_lease(
        &self,
        request: v1::AcquireLeaseRequest,
    ) -> Result<Answered<v1::AcquireLeaseResponse>, Failure> {
        let wait = Duration::from_millis(request.wait_ms);
        let Budget { deadline, attempt } = self.budget();
        let budget = Budget {
            deadline: deadline + wait,
            attempt: attempt + wait,
        };
        let send = |channel, request| async move {
            LeaseServiceClient::new(channel)
                .acquire_lease(request)
                .await
        };
        self.call("AcquireLease", Repeat::Freely, budget, request, send)
            .await
    }

    pub(crate) async fn open(
        &self,
        request: v1::OpenSessionRequest,
    ) -> Result<Answered<v1::Session>, Failure> {
        let send = |channel, request| async move {
            LeaseServiceClient::new(channel).open_session(request).await
        };
        let answered = self
            .call("OpenSession", Repeat::Freely, self.budget(), request, send)
            .await?;
        let session = answered.value.session.ok_or_else(|| missing("session"))?;
        Ok(Answered {
            value: session,
            sent_at: answered.sent_at,
            first_sent_at: answered.first_sent_at,
        })
    }

    /// Ends the session and all its leases. False: it had ended before. May be repeated freely.
    pub async fn close_session(&self, session: SessionId) -> Result<bool, Failure> {
        let request = v1::CloseSessionRequest {
            session_id: session.as_bytes().to_vec(),
        };
        let send = |channel, request| async move {
            LeaseServiceClient::new(channel)
                .close_session(request)
                .await
        };
        Ok(self
            .call("CloseSession", Repeat::Freely, self.budget(), request, send)
            .await?
            .value
            .was_open)
    }

    /// One beat, on a stream of its own: a beat is rare, and so it follows the leader and repeats like every other call,
    /// instead of noticing late that a stream has gone quiet.
    pub(crate) async fn keep_alive(
        &self,
        session: SessionId,
        budget: Budget,
    ) -> Result<Answered<v1::Session>, Failure> {
        let request = v1::KeepAliveRequest {
            tag: 1,
            session_id: session.as_bytes().to_vec(),
        };
        let send = |channel, request| async move {
            let mut client = LeaseServiceClient::new(channel);
            let (metadata, mut answers, _) = client
                .keep_alive(tokio_stream::once(request))
                .await?
                .into_parts();
            let answer = answers.message().await?;
            match answer.and_then(|answer| answer.result) {
                Some(v1::keep_alive_response::Result::Session(session)) => {
                    Ok(Response::from_parts(metadata, session, Default::default()))
                }
                Some(v1::keep_alive_response::Result::Error(error)) => {
                    Err(Status::from(Failure::from(error)))
                }
                None => Err(Status::unknown("the stream ended without an answer")),
            }
        };
        self.call("KeepAlive", Repeat::Freely, budget, request, send)
            .await
    }
}

pub(crate) fn by_token(invoice_id: &str, token: FencingToken) -> v1::ReleaseLeaseRequest {
    v1::ReleaseLeaseRequest {
        invoice_id: invoice_id.to_owned(),
        token: token.0,
        ..Default::default()
    }
}

pub(crate) fn by_seq(session: SessionId, seq: u64) -> v1::ReleaseLeaseRequest {
    v1::ReleaseLeaseRequest {
        session_id: session.as_bytes().to_vec(),
        seq,
        ..Default::default()
    }
}
