//! Leases as single calls, for those who keep no session or look at other people's leases: each says what its `Unknown`
//! means. Handles that renew and release themselves are in session.rs and guard.rs.

use std::time::Duration;

use billing_core::{FencingToken, SessionId};
use billing_proto::{
    Failure,
    v1::{self, lease_service_client::LeaseServiceClient},
};
use futures::Stream;

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
        let answered = self.ask(Repeat::Freely, self.budget(), request).await?;
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
        let answered = self.ask(Repeat::Freely, self.budget(), request).await?;
        Ok(answered.value.was_current)
    }

    /// Asks for many leases in one command: a result per item, in order; at most 1,000. Items do not depend on one another, and
    /// the answer comes when all are known, those that wait included. An item without a session gets a `request_id`, should it
    /// have none, so that repeats of this call are the same request.
    ///
    /// `Unknown`, of an item or of the whole: it may be granted or stand in the queue; withdraw it by its session and seq, or
    /// by its request_id's session and seq 1. [`crate::Session::acquire_each`] does that, and gives guards.
    pub async fn acquire_leases(
        &self,
        mut items: Vec<v1::AcquireLeaseRequest>,
    ) -> Result<Vec<Result<v1::AcquireLeaseResponse, Failure>>, Failure> {
        for item in &mut items {
            if item.session_id.is_empty() && item.request_id.is_empty() {
                item.request_id = self.inner.env.random.id().to_vec();
            }
        }
        let count = items.len();
        let answered = self.acquire_items(items).await?;
        counted(count, answered.value)
    }

    pub(crate) async fn acquire_items(
        &self,
        items: Vec<v1::AcquireLeaseRequest>,
    ) -> Result<Answered<Vec<Result<v1::AcquireLeaseResponse, Failure>>>, Failure> {
        use v1::acquire_leases_response::item::Result as Item;
        let wait_ms = items.iter().map(|item| item.wait_ms).max().unwrap_or(0);
        let budget = self.budget().and(Duration::from_millis(wait_ms));
        let request = v1::AcquireLeasesRequest { items };
        let answered = self.ask(Repeat::Freely, budget, request).await?;
        Ok(answered.map(|answer| {
            let results = answer.items.into_iter().map(|item| match item.result {
                Some(Item::Granted(granted)) => Ok(granted),
                Some(Item::Error(error)) => Err(Failure::from(error)),
                None => Err(missing("a result")),
            });
            results.collect()
        }))
    }

    /// Ends many leases in one command: for each whether its token was current, in order; at most 1,000. May be repeated
    /// freely.
    pub async fn release_leases(
        &self,
        items: Vec<v1::ReleaseLeaseRequest>,
    ) -> Result<Vec<Result<bool, Failure>>, Failure> {
        use v1::release_leases_response::item::Result as Item;
        let count = items.len();
        let request = v1::ReleaseLeasesRequest { items };
        let answered = self.ask(Repeat::Freely, self.budget(), request).await?;
        let results = answered
            .value
            .items
            .into_iter()
            .map(|item| match item.result {
                Some(Item::Released(released)) => Ok(released.was_current),
                Some(Item::Error(error)) => Err(Failure::from(error)),
                None => Err(missing("a result")),
            });
        counted(count, results.collect())
    }

    /// Extends many leases in one command: a result per item, in order; at most 1,000. As with [`Client::renew_lease`], what is
    /// unknown may have been renewed: trust only the old deadline.
    pub async fn renew_leases(
        &self,
        items: Vec<v1::RenewLeaseRequest>,
    ) -> Result<Vec<Result<v1::Lease, Failure>>, Failure> {
        use v1::renew_leases_response::item::Result as Item;
        let count = items.len();
        let request = v1::RenewLeasesRequest { items };
        let answered = self.ask(Repeat::Freely, self.budget(), request).await?;
        let results = answered
            .value
            .items
            .into_iter()
            .map(|item| match item.result {
                Some(Item::Renewed(renewed)) => renewed.lease.ok_or_else(|| missing("lease")),
                Some(Item::Error(error)) => Err(Failure::from(error)),
                None => Err(missing("a result")),
            });
        counted(count, results.collect())
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
        // A renewal repeated is a renewal later: nothing that a later refusal could hide.
        let answered = self.ask(Repeat::Freely, budget, request).await?;
        answered.try_map(|answer| answer.lease.ok_or_else(|| missing("lease")))
    }

    pub(crate) async fn acquire_lease(
        &self,
        request: v1::AcquireLeaseRequest,
    ) -> Result<Answered<v1::AcquireLeaseResponse>, Failure> {
        let budget = self.budget().and(Duration::from_millis(request.wait_ms));
        self.ask(Repeat::Freely, budget, request).await
    }

    pub(crate) async fn open(
        &self,
        request: v1::OpenSessionRequest,
    ) -> Result<Answered<v1::Session>, Failure> {
        let answered = self.ask(Repeat::Freely, self.budget(), request).await?;
        answered.try_map(|answer| answer.session.ok_or_else(|| missing("session")))
    }

    /// Ends the session and all its leases. False: it had ended before. May be repeated freely.
    pub async fn close_session(&self, session: SessionId) -> Result<bool, Failure> {
        let request = v1::CloseSessionRequest {
            session_id: session.as_bytes().to_vec(),
        };
        let answered = self.ask(Repeat::Freely, self.budget(), request).await?;
        Ok(answered.value.was_open)
    }

    /// One beat.
    pub(crate) async fn keep_alive(
        &self,
        session: SessionId,
        budget: Budget,
    ) -> Result<Answered<v1::Session>, Failure> {
        let request = v1::KeepAliveRequest {
            tag: 0,
            session_id: session.as_bytes().to_vec(),
        };
        self.ask(Repeat::Freely, budget, request).await
    }
}

/// An answer with another number of items than were sent is no answer to any of them.
pub(crate) fn counted<T>(count: usize, results: Vec<T>) -> Result<Vec<T>, Failure> {
    if results.len() == count {
        Ok(results)
    } else {
        Err(missing("result for each item"))
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
