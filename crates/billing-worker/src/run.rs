//! Decides what the run does next: claim, charge, wait, open a new session, end. Charges are tasks of their own, so a slow
//! provider never delays a keep-alive, and a lost session never cuts off a charge that is on the wire.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use billing_client::{
    Claimed, ClaimedInvoice, Client, Failure, LeaseGuard, Session, SessionOptions, v1,
};
use billing_core::Rejection;
use billing_env::MonoTime;
use billing_gate::{Attempt, Gate, Outcome, bill_of};
use futures::future::BoxFuture;
use tokio::task::JoinSet;

use crate::stop::Stop;
use crate::tally::Tally;

/// How often the ledger is asked for work while it has none to give.
const IDLE_MAX: Duration = Duration::from_secs(1);
/// After a claim that got less than it asked for: others take what comes, or little comes.
const IDLE_MIN: Duration = Duration::from_millis(50);
/// After a failure to reach the cluster, which has its own patience already.
const FAILED_PAUSE: Duration = Duration::from_millis(500);
/// While the cluster refuses all charges: an operator has to do something.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);
/// How long an invoice that this worker may not charge stays leased. Given back at once it would be claimed again at once,
/// before everything that is due later.
const ASIDE_FOR: Duration = Duration::from_secs(60);
/// Leases set aside; more: the oldest is given back.
const ASIDE_MAX: usize = 1_000;

/// How a run is made.
#[derive(Clone, Debug)]
pub struct RunOptions {
    pub holder: String,
    pub session_ttl: Duration,
    /// Charges at once. As many leases again may be held in hand.
    pub concurrency: usize,
    /// End when nothing is left that could become due within `patience`.
    pub until_empty: bool,
    pub patience: Duration,
    /// How long charges on the wire may take to end after a stop is wished.
    pub grace: Duration,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Nothing is left to do for this run.
    Empty,
    /// Nothing becomes due soon, and something is in doubt.
    Left { in_doubt: bool },
    /// As wished.
    Stopped,
    /// The cluster refuses every charge; in words.
    Refused(String),
}

/// One charge run.
pub struct Run {
    client: Client,
    gate: Arc<Gate>,
    tally: Arc<Tally>,
    options: RunOptions,
}

/// What goes on at the moment.
struct Work {
    charges: JoinSet<Charge>,
    in_hand: VecDeque<ClaimedInvoice>,
    aside: VecDeque<(MonoTime, LeaseGuard)>,
}

/// How one charge ended.
struct Charge {
    /// None: the invoice cannot be read.
    outcome: Option<Outcome>,
    /// The lease on an invoice that this worker may not charge, however often it tries.
    aside: Option<LeaseGuard>,
}

/// Why the work under one session ended.
enum Turn {
    Over(Ending),
    SessionLost,
}

impl Run {
    pub fn new(client: Client, gate: Arc<Gate>, tally: Arc<Tally>, options: RunOptions) -> Run {
        assert!(options.concurrency > 0, "a run without charges never ends");
        Run {
            client,
            gate,
            tally,
            options,
        }
    }

    /// Runs until it is over. `Err`: the cluster could not be reached, or would not open a session.
    pub async fn run(&self, mut stop: Stop) -> Result<Ending, Failure> {
        let mut work = Work {
            charges: JoinSet::new(),
            in_hand: VecDeque::new(),
            aside: VecDeque::new(),
        };
        loop {
            let session = tokio::select! {
                session = self.open_session() => session?,
                () = stop.wished() => {
                    self.finish(&mut work).await;
                    return Ok(Ending::Stopped);
                }
            };
            tracing::info!(session = %session.id(), holder = session.holder(), "session opened");
            let turn = self.work(&session, &mut work, &mut stop).await;
            // What is in hand and not begun is given back; what is on the wire finishes.
            work.in_hand.clear();
            work.aside.clear();
            match turn {
                Turn::SessionLost => {
                    self.tally.session_lost();
                    tracing::warn!(session = %session.id(), "session lost; opening another");
                }
                Turn::Over(ending) => {
                    self.finish(&mut work).await;
                    match session.close().await {
                        Ok(_) => {}
                        Err(failure) => {
                            tracing::warn!(%failure, "session not closed; it ends by itself")
                        }
                    }
                    return Ok(ending);
                }
            }
        }
    }

    /// A daemon waits for its cluster for as long as that takes; a run that is to end has its patience.
    async fn open_session(&self) -> Result<Session, Failure> {
        let clock = &self.client.env().clock;
        let since = clock.monotonic();
        loop {
            let options =
                SessionOptions::new(self.options.holder.clone(), self.options.session_ttl);
            let failure = match self.client.open_session(options).await {
                Ok(session) => return Ok(session),
                Err(Failure::Rejected(rejection))
                    if !matches!(rejection, Rejection::Overloaded { .. }) =>
                {
                    return Err(Failure::Rejected(rejection));
                }
                Err(failure) => failure,
            };
            if self.options.until_empty && clock.monotonic().since(since) >= self.options.patience {
                return Err(failure);
            }
            tracing::warn!(%failure, "the cluster does not open a session; trying on");
            clock.sleep(FAILED_PAUSE).await;
        }
    }

    /// Claims and charges under one session.
    async fn work(&self, session: &Session, work: &mut Work, stop: &mut Stop) -> Turn {
        let clock = self.client.env().clock.clone();
        let mut claiming: Option<BoxFuture<'_, Result<Claimed, Failure>>> = None;
        let mut nap: Option<BoxFuture<'static, ()>> = None;
        let mut lost = Box::pin(session.lost());
        loop {
            self.start_charges(work);
            let room = self.options.concurrency.saturating_sub(work.in_hand.len());
            if claiming.is_none() && nap.is_none() && room * 2 > self.options.concurrency {
                let now = clock.monotonic();
                work.aside
                    .retain(|(since, _)| now.since(*since) < ASIDE_FOR);
                let max = u32::try_from(room)
                    .unwrap_or(u32::MAX)
                    .min(billing_core::limits::CLAIM_MAX.into());
                claiming = Some(Box::pin(session.claim(max)));
            }
            tokio::select! {
                biased;
                () = stop.wished() => return Turn::Over(Ending::Stopped),
                _ = &mut lost => return Turn::SessionLost,
                Some(ended) = work.charges.join_next(), if !work.charges.is_empty() => {
                    if let Some(pause) = match self.count(ended, &mut work.aside) {
                        Next::GoOn => None,
                        Next::Pause(pause) => Some(pause),
                        Next::End(why) => return Turn::Over(Ending::Refused(why)),
                    } {
                        work.in_hand.clear();
                        nap = Some(clock.sleep(pause));
                    }
                }
                claimed = poll(&mut claiming) => {
                    claiming = None;
                    match claimed {
                        Ok(claimed) => {
                            let got = claimed.invoices.len();
                            work.in_hand.extend(claimed.invoices);
                            if got == 0 && work.charges.is_empty() && work.in_hand.is_empty() && self.options.until_empty {
                                match self.what_is_left(claimed.next_due_in, work.aside.len()).await {
                                    Ok(Some(ending)) => return Turn::Over(ending),
                                    Ok(None) => {}
                                    Err(failure) => tracing::warn!(%failure, "cannot tell what is left"),
                                }
                            }
                            if got < room {
                                let pause = if got > 0 { IDLE_MIN } else { claimed.next_due_in.unwrap_or(IDLE_MAX) };
                                nap = Some(clock.sleep(pause.clamp(IDLE_MIN, IDLE_MAX)));
                            }
                        }
                        Err(Failure::Rejected(rejection)) => {
                            tracing::info!(%rejection, "claim refused");
                            nap = Some(clock.sleep(FAILED_PAUSE));
                        }
                        Err(failure) => {
                            tracing::warn!(%failure, "claim not answered; trying on");
                            nap = Some(clock.sleep(FAILED_PAUSE));
                        }
                    }
                }
                () = poll(&mut nap) => nap = None,
            }
        }
    }

    fn start_charges(&self, work: &mut Work) {
        while work.charges.len() < self.options.concurrency {
            let Some(claimed) = work.in_hand.pop_front() else {
                return;
            };
            if !claimed.guard.is_valid() {
                continue; // Lost while it waited its turn: somebody else has it.
            }
            let (client, gate) = (self.client.clone(), self.gate.clone());
            work.charges.spawn(charge(client, gate, claimed));
        }
    }

    fn count(
        &self,
        ended: Result<Charge, tokio::task::JoinError>,
        aside: &mut VecDeque<(MonoTime, LeaseGuard)>,
    ) -> Next {
        let outcome = match ended {
            Ok(charge) => {
                if let Some(guard) = charge.aside {
                    aside.push_back((self.client.env().clock.monotonic(), guard));
                    if aside.len() > ASIDE_MAX {
                        aside.pop_front();
                    }
                }
                let Some(outcome) = charge.outcome else {
                    self.tally.refused();
                    return Next::GoOn;
                };
                outcome
            }
            Err(error) => {
                // A fault of ours: its lease is given back as its guard is dropped, and its attempt is in doubt.
                tracing::error!(%error, "a charge ended without an outcome");
                return Next::Pause(FAILED_PAUSE);
            }
        };
        self.tally.count(&outcome);
        match outcome {
            Outcome::Refused(
                rejection @ (Rejection::ChargesNotAllowed | Rejection::ProviderPaused { .. }),
            ) => {
                tracing::warn!(%rejection, "no charge begins");
                if self.options.until_empty {
                    Next::End(rejection.to_string())
                } else {
                    Next::Pause(REFUSED_PAUSE)
                }
            }
            // Nobody has to allow anything: the nodes compare again, or somebody corrects a clock.
            Outcome::Refused(rejection @ Rejection::ClocksDisagree { .. }) => {
                tracing::warn!(%rejection, "no charge begins");
                Next::Pause(REFUSED_PAUSE)
            }
            Outcome::NotBegun(_) => Next::Pause(FAILED_PAUSE),
            _ => Next::GoOn,
        }
    }

    /// Whether the run is over: nothing that is not ended, or nothing that becomes due within the patience.
    /// `aside`: how many of the leases that stand are on invoices that this worker may not charge.
    async fn what_is_left(
        &self,
        next_due_in: Option<Duration>,
        aside: usize,
    ) -> Result<Option<Ending>, Failure> {
        let soon = next_due_in.is_some_and(|due| due <= self.options.patience);
        if aside > 0 {
            // Others may have set aside what they may not charge: waiting for each other would never end.
            let why =
                format!("{aside} invoices cannot be charged by this worker; the log says why");
            return Ok((!soon).then_some(Ending::Refused(why)));
        }
        let in_doubt = self.any(v1::InvoiceStatus::InDoubt).await?;
        // Others' leases end, or come back to us when their holders are gone.
        let leased = self.any(v1::InvoiceStatus::Processing).await?
            || self.any(v1::InvoiceStatus::Charging).await?;
        let pending = self.any(v1::InvoiceStatus::Pending).await?;
        if !in_doubt && !leased && !pending {
            return Ok(Some(Ending::Empty));
        }
        if leased || soon {
            return Ok(None);
        }
        Ok(Some(Ending::Left { in_doubt }))
    }

    async fn any(&self, status: v1::InvoiceStatus) -> Result<bool, Failure> {
        let request = v1::ListInvoicesRequest {
            status: status.into(),
            page_size: 1,
            ..Default::default()
        };
        Ok(!self
            .client
            .list_invoices(request)
            .await?
            .invoices
            .is_empty())
    }

    /// Lets charges on the wire end, for as long as the grace lasts; the rest is in doubt and continued by somebody else.
    async fn finish(&self, work: &mut Work) {
        work.in_hand.clear();
        let grace = self.client.env().clock.sleep(self.options.grace);
        tokio::pin!(grace);
        while !work.charges.is_empty() {
            tokio::select! {
                Some(ended) = work.charges.join_next() => {
                    self.count(ended, &mut work.aside);
                }
                () = &mut grace => {
                    tracing::warn!(charges = work.charges.len(), "not waiting longer; these stay in doubt");
                    work.charges.shutdown().await;
                }
            }
        }
        work.aside.clear();
    }
}

/// What an ended charge means for the run.
enum Next {
    GoOn,
    Pause(Duration),
    End(String),
}

/// Charges one claimed invoice and gives its lease back, unless it has to be set aside.
async fn charge(client: Client, gate: Arc<Gate>, claimed: ClaimedInvoice) -> Charge {
    let ClaimedInvoice { guard, invoice } = claimed;
    let unreadable = |guard| Charge {
        outcome: None,
        aside: Some(guard),
    };
    let bill = match bill_of(&invoice) {
        Ok(bill) => bill,
        Err(error) => {
            tracing::error!(invoice = %invoice.invoice_id, %error, "cannot be read by this version");
            return unreadable(guard);
        }
    };
    let known = guard.open_attempt().map(Attempt::try_from);
    let outcome = match known.transpose() {
        Ok(known) => gate.charge(&client, &guard, &bill, known.as_ref()).await,
        Err(error) => {
            tracing::error!(invoice = %invoice.invoice_id, %error, "its attempt cannot be read by this version");
            return unreadable(guard);
        }
    };
    note(&bill.invoice, &outcome);
    let mut aside = None;
    if let Outcome::Refused(Rejection::WrongTerms { .. } | Rejection::AttemptsUsedUp { .. }) =
        &outcome
    {
        aside = Some(guard);
    } else if outcome.ended_the_lease() || !guard.is_valid() {
        guard.settled();
    } else if let Err(failure) = guard.release().await {
        tracing::info!(invoice = %bill.invoice, %failure, "not given back; it ends with the session");
    }
    Charge {
        outcome: Some(outcome),
        aside,
    }
}

fn note(invoice: &billing_core::InvoiceId, outcome: &Outcome) {
    match outcome {
        Outcome::Charged { charged, status } => {
            tracing::debug!(%invoice, reference = %charged.reference, %status, "charged");
        }
        Outcome::Declined { code, status } => tracing::info!(%invoice, %code, %status, "declined"),
        Outcome::Pending { status } => tracing::info!(%invoice, %status, "pending"),
        Outcome::NothingFound { status } => tracing::info!(%invoice, %status, "nothing found"),
        Outcome::ObjectCancelled { status } => {
            tracing::info!(%invoice, %status, "object cancelled")
        }
        Outcome::InDoubt { why, .. } => tracing::warn!(%invoice, %why, "in doubt"),
        Outcome::LeaseLost => tracing::warn!(%invoice, "lease lost; nothing more is sent"),
        Outcome::Refused(rejection) => tracing::warn!(%invoice, %rejection, "refused"),
        Outcome::NotBegun(failure) => tracing::warn!(%invoice, %failure, "not begun"),
        Outcome::ChargedUnsettled { charged, failure } => {
            tracing::error!(%invoice, reference = %charged.reference, %failure, "charged, not settled");
        }
    }
}

/// The future in the option, or one that never completes.
async fn poll<T>(future: &mut Option<BoxFuture<'_, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
