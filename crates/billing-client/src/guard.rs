//! The handle on a lease. Decides until when this process may work on the invoice; never that money may move, which only the
//! token decides, at the ledger. Dropping it gives the lease back in the background.

use std::time::Duration;

use billing_core::{FencingToken, RequestId, SessionId, limits};
use billing_env::BootTime;
use billing_proto::{Failure, v1};
use tokio::runtime::Handle;
use tonic::Status;

use crate::{
    AcquireOptions, Client, Loss, Session, cluster::missing, keeper::Chore, leases::ms, life::Life,
};

/// An implicit session has one request; this is its seq.
const IMPLICIT_SEQ: u64 = 1;

/// Who keeps the lease alive.
pub(crate) enum Owner {
    Session(Session),
    /// Nobody but this guard's `renew`. Gives back on the runtime on which it was acquired.
    Alone(Client, Handle),
}

/// The exclusive right to work on one invoice, as far as this process can know.
///
/// Check [`LeaseGuard::is_valid`] (or race [`LeaseGuard::lost`]) before each step that others should not do at the same time;
/// present [`LeaseGuard::token`] with each step that must not be done twice.
#[must_use = "dropped at once, the lease is given back at once"]
pub struct LeaseGuard {
    owner: Owner,
    lease: v1::Lease,
    session_id: SessionId,
    open_attempt: Option<Box<v1::ChargeAttempt>>,
    /// The lease's own deadline, if it has one, and its own end.
    own: Life,
    /// The cluster may still hold it for us.
    held: bool,
}

impl Client {
    /// Acquires a lease without a session: it lives for `ttl` (1 s to 300 s; without one, for the longest) unless renewed.
    ///
    /// For a script or a single job. A process with many leases opens a session, which keeps them all alive.
    /// A lost answer, or a dropped future, is withdrawn in the background, as with [`Session::acquire`]; whoever exits
    /// thereupon awaits [`Client::given_back`] first.
    pub async fn acquire(
        &self,
        invoice_id: &str,
        holder: &str,
        options: AcquireOptions,
    ) -> Result<LeaseGuard, Failure> {
        let ttl = options
            .ttl
            .unwrap_or(Duration::from_millis(limits::TTL_MS_MAX));
        let id = RequestId::new(self.inner.env.random.id());
        let request = v1::AcquireLeaseRequest {
            invoice_id: invoice_id.to_owned(),
            holder: holder.to_owned(),
            ttl_ms: ms(ttl),
            request_id: id.as_bytes().to_vec(),
            wait_ms: ms(options.wait),
            ..Default::default()
        };
        let mut withdrawal = Withdrawal {
            client: self.clone(),
            runtime: Handle::current(),
            session: id.session(),
            armed: true,
        };
        let answered = match self.acquire_lease(request).await {
            Ok(answered) => answered,
            Err(Failure::Unknown(status)) => return Err(Failure::Unknown(status)), // The withdrawal is armed.
            Err(failure) => {
                withdrawal.armed = false;
                return Err(failure);
            }
        };
        let owner = Owner::Alone(self.clone(), Handle::current());
        let guard = LeaseGuard::granted(owner, answered.value, answered.first_sent_at, Some(ttl))?;
        withdrawal.armed = false;
        guard.fresh(Some(ttl)).await
    }
}

/// Takes back an acquire without a session whose answer nobody received.
struct Withdrawal {
    client: Client,
    runtime: Handle,
    session: SessionId,
    armed: bool,
}

impl Drop for Withdrawal {
    fn drop(&mut self) {
        if self.armed {
            let (client, session) = (self.client.clone(), self.session);
            self.client.behind(&self.runtime, async move {
                match client.withdraw(session, IMPLICIT_SEQ).await {
                    Ok(_) | Err(Failure::Rejected(_)) => true,
                    Err(failure @ (Failure::NotApplied(_) | Failure::Unknown(_))) => {
                        tracing::debug!(%session, %failure, "not withdrawn; it ends by its TTL");
                        false
                    }
                }
            });
        }
    }
}

impl LeaseGuard {
    /// `sent_at`: before the first copy of the request was sent, since the grant may answer that one.
    pub(crate) fn granted(
        owner: Owner,
        granted: v1::AcquireLeaseResponse,
        sent_at: BootTime,
        ttl: Option<Duration>,
    ) -> Result<LeaseGuard, Failure> {
        let lease = granted.lease.ok_or_else(|| missing("lease"))?;
        let session_id = SessionId::from_slice(&lease.session_id)
            .map_err(|_| missing("session id of 16 bytes"))?;
        let inner = &owner.client().inner;
        let (clock, trust) = (inner.env.clock.clone(), inner.trust);
        let own = match ttl {
            Some(ttl) => Life::new(clock, trust, sent_at, ttl),
            None => Life::unbounded(clock, trust),
        };
        Ok(LeaseGuard {
            owner,
            lease,
            session_id,
            open_attempt: granted.open_attempt,
            own,
            held: true,
        })
    }

    /// A lease with a TTL of its own that was granted after a wait: nobody here knows when, so most of the TTL counts as
    /// gone. A renewal has an instant of its own.
    pub(crate) async fn fresh(self, ttl: Option<Duration>) -> Result<LeaseGuard, Failure> {
        let Some(ttl) = ttl else { return Ok(self) };
        if self.own.remaining() >= ttl / 2 {
            return Ok(self);
        }
        let client = self.owner.client();
        let renewed = client
            .renew(
                &self.lease.invoice_id,
                self.token(),
                ms(ttl),
                client.budget(),
            )
            .await?;
        let inner = &client.inner;
        let own = Life::new(inner.env.clock.clone(), inner.trust, renewed.sent_at, ttl);
        Ok(self.with_own(own))
    }

    fn with_own(mut self, own: Life) -> LeaseGuard {
        self.own = own;
        self
    }

    #[must_use]
    pub fn invoice_id(&self) -> &str {
        &self.lease.invoice_id
    }

    #[must_use]
    pub fn token(&self) -> FencingToken {
        FencingToken(self.lease.token)
    }

    #[must_use]
    pub fn holder(&self) -> &str {
        &self.lease.holder
    }

    /// The session that it belongs to; an implicit one for a lease that was acquired without.
    #[must_use]
    pub fn session_id(&self) -> SessionId {
        self.session_id
    }

    /// Set: a charge was in doubt when the lease was granted. BeginCharge continues it.
    #[must_use]
    pub fn open_attempt(&self) -> Option<&v1::ChargeAttempt> {
        self.open_attempt.as_deref()
    }

    /// Until when it is ours without another word from the cluster: the lease's own deadline or its session's, on
    /// CLOCK_BOOTTIME, whichever comes first.
    #[must_use]
    pub fn valid_until(&self) -> BootTime {
        let own = self.own.valid_until();
        self.session_life()
            .map_or(own, |session| own.min(session.valid_until()))
    }

    /// Looks at the clock: a process that was stopped for an hour gets the right answer at once.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.loss().is_none()
    }

    /// How long it stays valid without another word from the cluster; zero when lost.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        let own = self.own.remaining();
        self.session_life()
            .map_or(own, |session| own.min(session.remaining()))
    }

    /// None: still ours. Once there is a loss it is the answer for ever.
    #[must_use]
    pub fn loss(&self) -> Option<Loss> {
        self.own
            .loss()
            .or_else(|| self.session_life().and_then(Life::loss))
    }

    /// Completes when it is lost. Needs no network, and counts the time of a suspended machine.
    pub async fn lost(&self) -> Loss {
        match self.session_life() {
            None => self.own.lost().await,
            Some(session) => tokio::select! {
                biased;
                loss = self.own.lost() => loss,
                loss = session.lost() => loss,
            },
        }
    }

    /// Extends a lease that has a TTL of its own (or no session) to `ttl` from now, and returns the new local deadline. One
    /// that has none gets one. `Unknown`: it may have been renewed; the old deadline stands (a shorter `ttl` than before
    /// counts from the moment it is sent, answered or not).
    /// One that is lost is not renewed any more, even if the cluster would.
    pub async fn renew(&self, ttl: Duration) -> Result<BootTime, Failure> {
        if let Some(loss) = self.loss() {
            return Err(loss.failure("lease"));
        }
        let client = self.owner.client();
        self.own.cap(client.inner.env.clock.boottime(), ttl);
        match client
            .renew(
                &self.lease.invoice_id,
                self.token(),
                ms(ttl),
                client.budget(),
            )
            .await
        {
            Ok(renewed) => {
                // A TTL named for the first time, or a shorter one, bounds the lease from here on.
                if self.own.replace(renewed.sent_at, ttl) {
                    Ok(self.valid_until())
                } else {
                    Err(Failure::Unknown(Status::deadline_exceeded(
                        "renewed too late: the lease counts as lost here, whatever the cluster thinks",
                    )))
                }
            }
            Err(Failure::Rejected(rejection)) => {
                self.own.end(Loss::Ended(rejection.clone()));
                Err(Failure::Rejected(rejection))
            }
            Err(failure @ (Failure::NotApplied(_) | Failure::Unknown(_))) => Err(failure),
        }
    }

    /// Gives the lease back and waits until the cluster knows. False: it had ended before (or the
    /// answer to a first copy of this very call was lost).
    /// On a failure (and when this future is dropped) the background keeps trying, while the lease could still stand.
    pub async fn release(mut self) -> Result<bool, Failure> {
        self.own.end(Loss::GivenUp);
        let released = self
            .owner
            .client()
            .release_lease(&self.lease.invoice_id, self.token())
            .await;
        if let Ok(_) | Err(Failure::Rejected(_)) = &released {
            self.held = false;
        }
        released
    }

    /// The lease has ended by what was done under it: settling a charge with its token does that. Nothing is left to give
    /// back, and dropping the guard costs no call.
    pub fn settled(mut self) {
        self.held = false;
    }

    fn session_life(&self) -> Option<&Life> {
        match &self.owner {
            Owner::Session(session) => Some(&session.shared().life),
            Owner::Alone(..) => None,
        }
    }
}

impl Owner {
    fn client(&self) -> &Client {
        match self {
            Owner::Session(session) => session.client(),
            Owner::Alone(client, _) => client,
        }
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        if !self.held {
            return;
        }
        let (invoice_id, token) = (std::mem::take(&mut self.lease.invoice_id), self.token());
        match &self.owner {
            Owner::Session(session) => session.chore(Chore::Release { invoice_id, token }),
            Owner::Alone(client, runtime) => {
                let releasing = client.clone();
                client.behind(runtime, async move {
                    match releasing.release_lease(&invoice_id, token).await {
                        Ok(_) | Err(Failure::Rejected(_)) => true,
                        Err(failure @ (Failure::NotApplied(_) | Failure::Unknown(_))) => {
                            tracing::debug!(invoice = invoice_id, %failure, "not released; it ends by its TTL");
                            false
                        }
                    }
                });
            }
        }
    }
}

impl std::fmt::Debug for LeaseGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LeaseGuard")
            .field("invoice", &self.lease.invoice_id)
            .field("token", &self.lease.token)
            .field("own", &self.own)
            .finish_non_exhaustive()
    }
}
