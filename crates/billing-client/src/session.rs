//! A session: this process's liveness in the cluster, and the leases that hang on it. Decides what a lost answer means for a
//! lease (it is withdrawn by its seq); never revives what was lost: the application opens a new session.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use billing_core::{Rejection, SessionId};
use billing_env::BootTime;
use billing_proto::{Failure, request, v1};
use futures::future::join_all;
use tokio::sync::mpsc;

use crate::{
    Client, LeaseGuard, Loss,
    cluster::missing,
    guard::Owner,
    keeper::{self, CHORES_QUEUED_MAX, Chore},
    leases::{counted, ms},
    life::Life,
    seqs::Seqs,
};

/// A request whose grant or waiter ended before its answer arrived is made anew this often.
const REISSUES_MAX: u32 = 3;

/// What a session is opened with.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// 1..=128 characters, for people: who holds the leases.
    pub holder: String,
    /// 1 s to 300 s: how long the leases outlive this process's last word.
    pub ttl: Duration,
}

impl SessionOptions {
    pub fn new(holder: impl Into<String>, ttl: Duration) -> SessionOptions {
        SessionOptions {
            holder: holder.into(),
            ttl,
        }
    }
}

/// How a lease is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct AcquireOptions {
    /// How long to queue while somebody else holds it, up to 300 s; zero: be refused at once.
    pub wait: Duration,
    /// A TTL of the lease's own, beside the session's: for a stuck thread in a live process. Renew such a lease.
    pub ttl: Option<Duration>,
}

impl AcquireOptions {
    #[must_use]
    pub fn wait(wait: Duration) -> AcquireOptions {
        AcquireOptions { wait, ttl: None }
    }

    #[must_use]
    pub fn ttl(self, ttl: Duration) -> AcquireOptions {
        AcquireOptions {
            ttl: Some(ttl),
            ..self
        }
    }
}

/// Invoices that were due, leased.
#[derive(Debug)]
pub struct Claimed {
    pub invoices: Vec<ClaimedInvoice>,
    /// Nothing claimed: when the next one becomes due, as far as the ledger knows.
    pub next_due_in: Option<Duration>,
}

#[derive(Debug)]
pub struct ClaimedInvoice {
    pub guard: LeaseGuard,
    pub invoice: v1::Invoice,
}

/// An open session, kept alive by a task of its own. Clones are the same session; when the last clone and the last guard are
/// gone it is closed in the background. A process that is about to exit awaits [`Session::close`] instead: its background
/// ends with it, and the leases would stand until their TTL.
#[derive(Clone)]
pub struct Session {
    pub(crate) handle: Arc<Handle>,
}

/// What the application's handles share. The background tasks hold only `shared`, so that they see the last handle go.
pub(crate) struct Handle {
    pub shared: Arc<Shared>,
    pub chores: mpsc::Sender<Chore>,
}

pub(crate) struct Shared {
    pub client: Client,
    pub id: SessionId,
    pub holder: String,
    pub ttl: Duration,
    pub life: Life,
    pub seqs: Seqs,
    /// The cluster has acknowledged the end.
    pub closed: AtomicBool,
}

impl Client {
    /// Opens a session and keeps it alive until it is closed, dropped or lost.
    /// `Unknown`: nothing to undo, an unused session ends by itself.
    pub async fn open_session(&self, options: SessionOptions) -> Result<Session, Failure> {
        let id = SessionId::new(self.inner.env.random.id());
        let request = v1::OpenSessionRequest {
            session_id: id.as_bytes().to_vec(),
            holder: options.holder.clone(),
            ttl_ms: ms(options.ttl),
        };
        let opened = self.open(request).await?;
        // A repeat may have found the session half used up: count what the cluster says is left of it.
        let ttl = options
            .ttl
            .min(Duration::from_millis(opened.value.expires_in_ms));
        let life = Life::new(
            self.inner.env.clock.clone(),
            self.inner.trust,
            opened.sent_at,
            ttl,
        );
        let (chores, inbox) = mpsc::channel(CHORES_QUEUED_MAX);
        let shared = Arc::new(Shared {
            client: self.clone(),
            id,
            holder: options.holder,
            ttl: options.ttl,
            life,
            seqs: Seqs::new(),
            closed: AtomicBool::new(false),
        });
        tokio::spawn(keeper::beat(shared.clone(), opened.sent_at));
        tokio::spawn(keeper::tidy(shared.clone(), inbox));
        Ok(Session {
            handle: Arc::new(Handle { shared, chores }),
        })
    }
}

impl Session {
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.shared().id
    }

    #[must_use]
    pub fn holder(&self) -> &str {
        &self.shared().holder
    }

    #[must_use]
    pub fn client(&self) -> &Client {
        &self.shared().client
    }

    /// Until when it is ours without another word from the cluster.
    #[must_use]
    pub fn valid_until(&self) -> BootTime {
        self.shared().life.valid_until()
    }

    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.shared().life.loss().is_none()
    }

    /// Completes when the session is lost, closed or refused. Needs no network, and counts the time of a suspended machine.
    pub async fn lost(&self) -> Loss {
        self.shared().life.lost().await
    }

    /// Asks for the lease on `invoice_id` and holds it until it is released, dropped or lost.
    ///
    /// When the answer is lost (`Unknown`), or this future is dropped, the request is withdrawn in the background: either
    /// way nothing stays held that nobody knows of.
    pub async fn acquire(
        &self,
        invoice_id: &str,
        options: AcquireOptions,
    ) -> Result<LeaseGuard, Failure> {
        let shared = self.shared();
        let clock = &shared.client.inner.env.clock;
        let begun_at = (!options.wait.is_zero()).then(|| clock.monotonic());
        let mut reissues = 0;
        loop {
            let ticket = self.ticket().await?;
            let waited =
                begun_at.map_or(Duration::ZERO, |begun_at| clock.monotonic().since(begun_at));
            let wait = options.wait.saturating_sub(waited);
            let request = v1::AcquireLeaseRequest {
                invoice_id: invoice_id.to_owned(),
                ttl_ms: options.ttl.map_or(0, ms),
                session_id: shared.id.as_bytes().to_vec(),
                seq: ticket.seq,
                done_below: ticket.done_below,
                wait_ms: ms(wait),
                ..Default::default()
            };
            match shared.client.acquire_lease(request).await {
                Ok(answered) => {
                    let guard = LeaseGuard::granted(
                        Owner::Session(self.clone()),
                        answered.value,
                        answered.first_sent_at,
                        options.ttl,
                    )?;
                    ticket.done();
                    return guard.fresh(options.ttl).await;
                }
                // The connection broke, the node withdrew the waiter (or the grant ended), and the repeat was told so.
                Err(Failure::Rejected(Rejection::LeaseEnded { .. })) if reissues < REISSUES_MAX => {
                    ticket.done();
                    reissues += 1;
                }
                Err(Failure::Unknown(status)) => return Err(Failure::Unknown(status)), // The ticket withdraws.
                Err(failure) => {
                    ticket.done();
                    return Err(self.refused(failure));
                }
            }
        }
    }

    /// Asks for the leases on many invoices in one command; at most 1,000. A result for each, in order; those that are held by
    /// others do not hold up the rest, except that the answer comes when all are known.
    ///
    /// As with [`Session::acquire`], what is unknown, and everything when this future is dropped, is withdrawn in the
    /// background. Unlike there, an item whose request ended before its answer arrived (LeaseEnded) is not made anew.
    pub async fn acquire_each<I: AsRef<str>>(
        &self,
        invoice_ids: &[I],
        options: AcquireOptions,
    ) -> Result<Vec<Result<LeaseGuard, Failure>>, Failure> {
        let shared = self.shared();
        request::items(invoice_ids.len()).map_err(|out| Failure::Rejected(out.into()))?;
        if invoice_ids.is_empty() {
            return Ok(Vec::new());
        }
        let tickets = self.tickets(invoice_ids.len() as u64).await?;
        let items = invoice_ids.iter().zip(&tickets);
        let items = items.map(|(invoice_id, ticket)| v1::AcquireLeaseRequest {
            invoice_id: invoice_id.as_ref().to_owned(),
            ttl_ms: options.ttl.map_or(0, ms),
            session_id: shared.id.as_bytes().to_vec(),
            seq: ticket.seq,
            done_below: ticket.done_below,
            wait_ms: ms(options.wait),
            ..Default::default()
        });
        let answered = match shared.client.acquire_items(items.collect()).await {
            Ok(answered) => answered,
            Err(Failure::Unknown(status)) => return Err(Failure::Unknown(status)), // The tickets withdraw.
            Err(failure) => {
                tickets.into_iter().for_each(Ticket::done);
                return Err(self.refused(failure));
            }
        };
        let results = counted(tickets.len(), answered.value)?;
        let granted = tickets.into_iter().zip(results).map(|(ticket, result)| {
            let guard = match result {
                Ok(granted) => LeaseGuard::granted(
                    Owner::Session(self.clone()),
                    granted,
                    answered.first_sent_at,
                    options.ttl,
                ),
                Err(failure) => Err(self.refused(failure)),
            };
            if !matches!(guard, Err(Failure::Unknown(_))) {
                ticket.done();
            }
            async move { guard?.fresh(options.ttl).await }
        });
        Ok(join_all(granted).await)
    }

    /// Asks once, without queueing. None: somebody else holds it.
    pub async fn try_acquire(&self, invoice_id: &str) -> Result<Option<LeaseGuard>, Failure> {
        match self.acquire(invoice_id, AcquireOptions::default()).await {
            Ok(guard) => Ok(Some(guard)),
            Err(Failure::Rejected(Rejection::HeldByOther { .. })) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Leases the next due invoices, `max` at most (1..=1,000). As with [`Session::acquire`], a lost answer is withdrawn.
    pub async fn claim(&self, max: u32) -> Result<Claimed, Failure> {
        let shared = self.shared();
        let mut reissues = 0;
        loop {
            let ticket = self.ticket().await?;
            let request = v1::ClaimInvoicesRequest {
                session_id: shared.id.as_bytes().to_vec(),
                seq: ticket.seq,
                done_below: ticket.done_below,
                max,
            };
            match shared.client.claim_invoices(request).await {
                Ok(answered) => {
                    let mut invoices = Vec::with_capacity(answered.value.claimed.len());
                    for claimed in answered.value.claimed {
                        let granted = v1::AcquireLeaseResponse {
                            lease: claimed.lease,
                            open_attempt: claimed.open_attempt.map(Box::new),
                        };
                        let owner = Owner::Session(self.clone());
                        // An answer that cannot be read withdraws the whole claim: the ticket is still open.
                        let guard =
                            LeaseGuard::granted(owner, granted, answered.first_sent_at, None)?;
                        invoices.push(ClaimedInvoice {
                            guard,
                            invoice: claimed.invoice.ok_or_else(|| missing("invoice"))?,
                        });
                    }
                    ticket.done();
                    let next_due_in_ms = answered.value.next_due_in_ms;
                    let next_due_in =
                        (next_due_in_ms != 0).then(|| Duration::from_millis(next_due_in_ms));
                    return Ok(Claimed {
                        invoices,
                        next_due_in,
                    });
                }
                Err(Failure::Rejected(Rejection::ClaimEnded { .. })) if reissues < REISSUES_MAX => {
                    ticket.done();
                    reissues += 1;
                }
                Err(Failure::Unknown(status)) => return Err(Failure::Unknown(status)), // The ticket withdraws.
                Err(failure) => {
                    ticket.done();
                    return Err(self.refused(failure));
                }
            }
        }
    }

    /// Ends the session and all its leases, for everybody at once. Its guards count as lost from now on, whatever comes back.
    /// False: the cluster had ended it before.
    pub async fn close(&self) -> Result<bool, Failure> {
        let shared = self.shared();
        shared.life.end(Loss::GivenUp);
        let was_open = shared.client.close_session(shared.id).await?;
        shared.closed.store(true, Ordering::Relaxed);
        Ok(was_open)
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.handle.shared
    }

    /// Hands work to the background task. What does not fit is left to the end of the session.
    pub(crate) fn chore(&self, chore: Chore) {
        self.handle.chore(chore);
    }

    /// The cluster may say in any answer that the session is over.
    fn refused(&self, failure: Failure) -> Failure {
        if let Failure::Rejected(rejection) = &failure {
            keeper::notice_end(self.shared(), rejection);
        }
        failure
    }

    async fn ticket(&self) -> Result<Ticket, Failure> {
        let (seqs, done_below) = self.issue(1).await?;
        Ok(Ticket::new(&self.handle, seqs.start, done_below))
    }

    /// For requests that travel together.
    async fn tickets(&self, count: u64) -> Result<Vec<Ticket>, Failure> {
        let (seqs, done_below) = self.issue(count).await?;
        let ticket = |seq| Ticket::new(&self.handle, seq, done_below);
        Ok(seqs.map(ticket).collect())
    }

    async fn issue(&self, count: u64) -> Result<(Range<u64>, u64), Failure> {
        let shared = self.shared();
        if let Some(loss) = shared.life.loss() {
            return Err(loss.failure("session"));
        }
        tokio::select! {
            biased;
            issued = shared.seqs.issue(count) => Ok((issued.seq..issued.seq + count, issued.done_below)),
            loss = shared.life.lost() => Err(loss.failure("session")),
        }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Shared {
            id, holder, life, ..
        } = self.shared();
        f.debug_struct("Session")
            .field("id", id)
            .field("holder", holder)
            .field("life", life)
            .finish_non_exhaustive()
    }
}

impl Handle {
    fn chore(&self, chore: Chore) {
        if self.shared.life.loss().is_some() {
            return; // Everything that it held ends with the session.
        }
        if let Err(error) = self.chores.try_send(chore) {
            tracing::warn!(session = %self.shared.id, %error, "left to the end of the session");
        }
    }
}

/// A request on its way. Dropped without an answer (lost, or its caller has gone), it is withdrawn.
struct Ticket {
    handle: Arc<Handle>,
    seq: u64,
    done_below: u64,
    open: bool,
}

impl Ticket {
    fn new(handle: &Arc<Handle>, seq: u64, done_below: u64) -> Ticket {
        Ticket {
            handle: handle.clone(),
            seq,
            done_below,
            open: true,
        }
    }

    fn done(mut self) {
        self.open = false;
        self.handle.shared.seqs.done(self.seq);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.open {
            self.handle.chore(Chore::Withdraw { seq: self.seq });
        }
    }
}
