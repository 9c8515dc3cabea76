//! WatchLeases: what was granted and ended, from an index on, as this node applies it. Reads the replicated audit log, whose
//! indexes are the same on every node, so a watcher goes on anywhere. Keeps no queue: it reads on as the client takes, and
//! decides when a watcher has fallen too far behind. Never lets one wait where nothing can come: a node that no majority
//! answers any more ends its watches.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use billing_core::{InvoiceId, LeaseEvent, LeaseEventKind, LeaseEvents, OutOfBounds, Rejection};
use billing_env::{Clock, MonoTime};
use billing_proto::{status, v1};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tonic::{Request, Response, Status};

use super::{Door, rejected};

pub type Events = Pin<Box<dyn Stream<Item = Result<v1::WatchLeasesResponse, Status>> + Send>>;

/// Records that are looked at under one lock; the next ones when these were taken.
const RECORDS_PER_READ: usize = 256;
/// A watcher that has seen everything looks again this much later at the earliest: under load many entries are one look.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// After so many records without an event, or after so long, the client hears how far it is.
const PROGRESS_RECORDS: u64 = 1_000;
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// What all watchers of a node share.
#[derive(Clone)]
pub struct Watchers {
    clock: Arc<dyn Clock>,
    places: Arc<Semaphore>,
    places_max: usize,
    lag_max: u64,
}

impl Watchers {
    /// At most `places_max` at a time, none more than `lag_max` records behind the newest.
    pub fn new(clock: Arc<dyn Clock>, places_max: usize, lag_max: u64) -> Watchers {
        Watchers {
            clock,
            places: Arc::new(Semaphore::new(places_max)),
            places_max,
            lag_max,
        }
    }

    fn place(&self) -> Result<OwnedSemaphorePermit, Status> {
        let place = self.places.clone().try_acquire_owned();
        place.map_err(|_| status::queue_full("watchers", self.places_max))
    }
}

/// Begins a watch. The first message says where, so that a client whose stream breaks at once has an index to go on from.
pub async fn serve(
    door: &Door,
    request: Request<v1::WatchLeasesRequest>,
) -> Result<Response<Events>, Status> {
    let request = request.into_inner();
    let invoice = match request.invoice_id.as_str() {
        "" => None,
        id => Some(InvoiceId::new(id).map_err(rejected)?),
    };
    let place = door.watchers.place()?;
    // From here on nothing that is applied goes unnoticed.
    let applied = door.node.applied();
    // Linearizable: a watch from now on begins after everything that was answered before, and an index that this node then
    // still does not have is nobody's.
    let newest = door
        .read(false, |ledger| ledger.audit_last_index())
        .await?
        .value;
    let next = match request.from_index {
        0 => newest + 1,
        from if from > newest + 1 => {
            return Err(rejected(OutOfBounds::new(
                "from_index",
                "at most one above the newest record: it is of another ledger, or of one before a restore",
            )));
        }
        from => from,
    };
    let mut watch = Watch {
        door: door.clone(),
        invoice,
        next,
        told: next,
        told_at: door.watchers.clock.monotonic(),
        looked_at: None,
        applied,
        _place: place,
    };
    // Purged from the start: the call itself is refused.
    let first = watch.look().await?;
    let mut begun = vec![progress(next)];
    begun.extend(watch.take(first));
    let parts = stream::try_unfold(watch, |mut watch| async move {
        let parts = watch.parts().await?;
        Ok::<_, Status>(Some((parts, watch)))
    });
    let messages = stream::iter([Ok(begun)])
        .chain(parts)
        .map_ok(|parts| stream::iter(parts.into_iter().map(Ok)))
        .try_flatten();
    Ok(Response::new(Box::pin(messages)))
}

struct Watch {
    door: Door,
    /// Only this one's; `None`: all.
    invoice: Option<InvoiceId>,
    /// Everything below was looked at.
    next: u64,
    /// Everything below is known to the client to have been looked at.
    told: u64,
    told_at: MonoTime,
    looked_at: Option<MonoTime>,
    applied: watch::Receiver<Option<u64>>,
    _place: OwnedSemaphorePermit,
}

impl Watch {
    /// The next messages, at least one; or why the watch ends.
    async fn parts(&mut self) -> Result<Vec<v1::WatchLeasesResponse>, Status> {
        let stopping = self.door.stopping();
        tokio::select! {
            biased;
            () = stopping => Err(status::not_applied(
                "this node shuts down: watch on at another one, from the next index",
            )),
            parts = self.next_parts() => parts,
        }
    }

    async fn next_parts(&mut self) -> Result<Vec<v1::WatchLeasesResponse>, Status> {
        loop {
            // Before looking: what is applied from here on wakes the wait below.
            self.applied.mark_unchanged();
            let page = self.look().await?;
            let caught_up = page.next_index == self.next;
            let parts = self.take(page);
            if !parts.is_empty() {
                return Ok(parts);
            }
            if !caught_up {
                tokio::task::yield_now().await;
                continue;
            }
            let clock = self.door.watchers.clock.clone();
            let silent = clock.monotonic().since(self.told_at);
            if let Some(patience) = PROGRESS_EVERY.checked_sub(silent) {
                tokio::select! {
                    biased;
                    changed = self.applied.changed() => {
                        if changed.is_err() {
                            return Err(status::not_applied("this node ends"));
                        }
                        let since = self.looked_at.map(|at| clock.monotonic().since(at));
                        let early = since.and_then(|since| LOOK_EVERY.checked_sub(since));
                        clock.sleep(early.unwrap_or_default()).await;
                        continue;
                    }
                    () = clock.sleep(patience) => {}
                }
            }
            // Silence must mean that nothing happened, not that this node hears nothing.
            self.door.read(false, |_| ()).await?;
            let page = self.look().await?;
            let mut parts = self.take(page);
            if parts.is_empty() {
                parts.push(self.progress());
            }
            return Ok(parts);
        }
    }

    /// The next records, or IndexPurged: what the client missed cannot be told to it any more.
    async fn look(&mut self) -> Result<LeaseEvents, Status> {
        let (next, lag_max) = (self.next, self.door.watchers.lag_max);
        self.looked_at = Some(self.door.watchers.clock.monotonic());
        let page = self
            .door
            .read(true, move |ledger| {
                let newest = ledger.audit_last_index();
                not_behind(next, newest, lag_max)?;
                ledger.lease_events(next, RECORDS_PER_READ)
            })
            .await?;
        page.value.map_err(|refused| status::refused(&refused))
    }

    /// What the client hears of a page.
    fn take(&mut self, page: LeaseEvents) -> Vec<v1::WatchLeasesResponse> {
        self.next = page.next_index;
        let wanted = page.events.into_iter().filter(|event| {
            self.invoice
                .as_ref()
                .is_none_or(|invoice| *invoice == event.invoice)
        });
        let mut parts: Vec<v1::WatchLeasesResponse> = wanted.map(shown).collect();
        if !parts.is_empty() {
            self.note_told();
        } else if self.next - self.told >= PROGRESS_RECORDS {
            parts.push(self.progress());
        }
        parts
    }

    fn progress(&mut self) -> v1::WatchLeasesResponse {
        self.note_told();
        progress(self.next)
    }

    fn note_told(&mut self) {
        self.told = self.next;
        self.told_at = self.door.watchers.clock.monotonic();
    }
}

/// A watcher is let fall behind by so much, and is then told, before it costs others: the log does not wait for it.
fn not_behind(next: u64, newest: u64, lag_max: u64) -> Result<(), Rejection> {
    let oldest = (newest + 1).saturating_sub(lag_max);
    if next < oldest {
        return Err(Rejection::IndexPurged {
            requested: next,
            oldest,
        });
    }
    Ok(())
}

fn progress(next_index: u64) -> v1::WatchLeasesResponse {
    v1::WatchLeasesResponse {
        part: Some(v1::watch_leases_response::Part::Progress(
            v1::WatchProgress { next_index },
        )),
    }
}

fn shown(event: LeaseEvent) -> v1::WatchLeasesResponse {
    let kind = match event.kind {
        LeaseEventKind::Granted => v1::LeaseEventKind::Granted,
        LeaseEventKind::Ended => v1::LeaseEventKind::Ended,
    };
    let event = v1::LeaseEvent {
        index: event.index,
        kind: kind.into(),
        invoice_id: event.invoice.to_string(),
        token: event.token.0,
        holder: event.holder.to_string(),
        cluster_time_ms: event.at.0,
        what: event.what.to_owned(),
    };
    v1::WatchLeasesResponse {
        part: Some(v1::watch_leases_response::Part::Event(event)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watcher_may_lag_by_the_bound_and_no_more() {
        assert_eq!(not_behind(1, 0, 10), Ok(()), "nothing there yet");
        assert_eq!(not_behind(1, 10, 10), Ok(()));
        assert_eq!(
            not_behind(1, 11, 10),
            Err(Rejection::IndexPurged {
                requested: 1,
                oldest: 2
            })
        );
        assert_eq!(not_behind(12, 11, 10), Ok(()), "it has seen everything");
    }
}
