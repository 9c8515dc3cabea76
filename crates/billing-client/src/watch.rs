//! What was granted and ended, as one stream that survives the loss of the node that sends it: it goes on elsewhere from the
//! next index, without a gap and without an event twice, since an index means the same on every node. Decides when a silent
//! stream counts as broken; never hides that events were missed.

use std::time::Duration;

use billing_proto::{
    Failure,
    v1::{self, lease_service_client::LeaseServiceClient, watch_leases_response::Part},
};
use futures::Stream;
use tonic::{Status, Streaming};

use crate::{
    Client,
    calls::{Repeat, within},
    cluster::missing,
};

/// A node says every few seconds how far it is. One that is silent for so long is not there, whatever its connection says.
const SILENT_MAX: Duration = Duration::from_secs(15);
/// Before a broken stream is opened again: a node that is about to end still takes calls.
const REOPEN_AFTER: Duration = Duration::from_millis(50);

/// What to watch.
#[derive(Clone, Debug, Default)]
pub struct WatchOptions {
    invoice_id: String,
    from_index: u64,
}

impl WatchOptions {
    /// All leases, from now on.
    #[must_use]
    pub fn all() -> WatchOptions {
        WatchOptions::default()
    }

    /// Those on one invoice, from now on.
    #[must_use]
    pub fn invoice(invoice_id: impl Into<String>) -> WatchOptions {
        WatchOptions {
            invoice_id: invoice_id.into(),
            from_index: 0,
        }
    }

    /// From an index on: that of a list (`watch_index`), or [`Watched::next_index`] of the last that was seen. 0: from now on.
    #[must_use]
    pub fn from(self, from_index: u64) -> WatchOptions {
        WatchOptions { from_index, ..self }
    }
}

/// One item of a watch.
#[derive(Clone, Debug, PartialEq)]
pub enum Watched {
    /// A lease was granted or ended. Their indexes grow.
    Event(v1::LeaseEvent),
    /// Everything below `next_index` was looked at. The first item of a watch is one, and says where it begins.
    Progress { next_index: u64 },
}

impl Watched {
    /// Where a watch that follows this item goes on.
    #[must_use]
    pub fn next_index(&self) -> u64 {
        match self {
            // Whatever a node says: behind the last of all indexes there is none.
            Watched::Event(event) => event.index.saturating_add(1),
            Watched::Progress { next_index } => *next_index,
        }
    }
}

impl Client {
    /// Watches leases until it is dropped. Broken streams are resumed, on whichever node answers; what ends it is a refusal, or
    /// that no node answered within this client's deadline. [`billing_core::Rejection::IndexPurged`]: what was missed is no
    /// longer kept; list the leases, and watch from the list's `watch_index`.
    pub fn watch_leases(
        &self,
        options: WatchOptions,
    ) -> impl Stream<Item = Result<Watched, Failure>> + Send + use<> {
        let watch = Watch {
            client: self.clone(),
            invoice_id: options.invoice_id,
            next_index: options.from_index,
            begun: false,
            stream: None,
        };
        futures::stream::try_unfold(watch, |mut watch| async move {
            let watched = watch.next().await?;
            Ok(Some((watched, watch)))
        })
    }

    async fn open_watch(
        &self,
        request: v1::WatchLeasesRequest,
    ) -> Result<Streaming<v1::WatchLeasesResponse>, Failure> {
        let send = |channel, request| async move {
            LeaseServiceClient::new(channel).watch_leases(request).await
        };
        Ok(self
            .call("WatchLeases", Repeat::Freely, self.budget(), request, send)
            .await?
            .value)
    }
}

struct Watch {
    client: Client,
    invoice_id: String,
    /// 0 until the first node said where now is.
    next_index: u64,
    /// Whether the application was told where it begins.
    begun: bool,
    stream: Option<Streaming<v1::WatchLeasesResponse>>,
}

impl Watch {
    async fn next(&mut self) -> Result<Watched, Failure> {
        loop {
            let stream = match &mut self.stream {
                Some(stream) => stream,
                None => {
                    let request = v1::WatchLeasesRequest {
                        invoice_id: self.invoice_id.clone(),
                        from_index: self.next_index,
                    };
                    self.stream.insert(self.client.open_watch(request).await?)
                }
            };
            let clock = self.client.inner.env.clock.clone();
            let message = within(&*clock, SILENT_MAX, stream.message()).await;
            match message {
                Some(Ok(Some(message))) => match message.part {
                    Some(Part::Event(event)) => {
                        self.next_index = event.index.saturating_add(1);
                        return Ok(Watched::Event(event));
                    }
                    Some(Part::Progress(progress)) => {
                        // A resumed stream begins with where it was asked to: nothing new.
                        let moved = progress.next_index > self.next_index;
                        self.next_index = progress.next_index.max(self.next_index);
                        if moved || !self.begun {
                            self.begun = true;
                            return Ok(Watched::Progress {
                                next_index: self.next_index,
                            });
                        }
                    }
                    None => return Err(missing("part")),
                },
                Some(Err(status)) => self.broken(status).await?,
                // Watches end with a status; this one was cut off.
                Some(Ok(None)) => {
                    self.broken(Status::unavailable("the watch was cut off"))
                        .await?
                }
                None => {
                    self.broken(Status::deadline_exceeded(format!(
                        "not a word within {SILENT_MAX:?}"
                    )))
                    .await?;
                }
            }
        }
    }

    /// Lets go of the stream; an error where the cluster's word is that another one would not help.
    async fn broken(&mut self, status: Status) -> Result<(), Failure> {
        self.stream = None;
        tracing::debug!(code = ?status.code(), message = status.message(), next = self.next_index, "a watch broke");
        let failure = Failure::from(status);
        if failure.rejection().is_some() {
            return Err(failure);
        }
        self.client.inner.env.clock.sleep(REOPEN_AFTER).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_at_the_end_of_all_indexes_is_followed_by_none() {
        let last = v1::LeaseEvent {
            index: u64::MAX,
            ..Default::default()
        };
        assert_eq!(Watched::Event(last).next_index(), u64::MAX);
    }
}
