//! The audit log as one stream that survives the loss of the node that sends it: it goes on elsewhere after the last record
//! that arrived. Verifies nothing; whoever wants the hash chain checked does it over the records.

use billing_proto::{
    Failure,
    v1::{self, cluster_service_client::ClusterServiceClient},
};
use futures::Stream;
use tonic::{Status, Streaming};

use crate::{
    Client,
    calls::{Repeat, within},
    cluster::missing,
};

/// Streams that may break in a row without one record arriving, before the reader is told.
const BREAKS_MAX: u32 = 3;

struct Reading {
    client: Client,
    from_index: u64,
    /// None: all there is.
    left: Option<u64>,
    stream: Option<Streaming<v1::ReadAuditLogResponse>>,
    breaks: u32,
}

impl Client {
    /// Records from `from_index` on (0: the oldest kept), `limit` at most (0: all there are now).
    pub fn read_audit_log(
        &self,
        from_index: u64,
        limit: u64,
    ) -> impl Stream<Item = Result<v1::AuditRecord, Failure>> + Send + use<> {
        let left = (limit != 0).then_some(limit);
        let reading = Reading {
            client: self.clone(),
            from_index,
            left,
            stream: None,
            breaks: 0,
        };
        futures::stream::try_unfold(reading, |mut reading| async move {
            let record = reading.next().await?;
            Ok(record.map(|record| (record, reading)))
        })
    }
}

impl Reading {
    async fn next(&mut self) -> Result<Option<v1::AuditRecord>, Failure> {
        if self.left == Some(0) {
            return Ok(None);
        }
        loop {
            let stream = match &mut self.stream {
                Some(stream) => stream,
                None => self.stream.insert(
                    self.client
                        .open_audit_log(self.from_index, self.left.unwrap_or(0))
                        .await?,
                ),
            };
            let clock = &*self.client.inner.env.clock;
            let attempt = self.client.inner.attempt;
            let message = within(clock, attempt, stream.message())
                .await
                .unwrap_or_else(|| {
                    Err(Status::deadline_exceeded(format!(
                        "no record within {attempt:?}"
                    )))
                });
            match message {
                Ok(None) => return Ok(None),
                Ok(Some(message)) => {
                    let record = message.record.ok_or_else(|| missing("record"))?;
                    // Whatever a node says: behind the last of all indexes there is none.
                    self.from_index = record.index.saturating_add(1);
                    self.left = self.left.map(|left| left.saturating_sub(1));
                    self.breaks = 0;
                    return Ok(Some(record));
                }
                Err(status) => {
                    self.stream = None;
                    self.breaks += 1;
                    let failure = Failure::from(status);
                    if self.breaks > BREAKS_MAX || failure.rejection().is_some() {
                        return Err(failure);
                    }
                }
            }
        }
    }
}

impl Client {
    async fn open_audit_log(
        &self,
        from_index: u64,
        limit: u64,
    ) -> Result<Streaming<v1::ReadAuditLogResponse>, Failure> {
        let request = v1::ReadAuditLogRequest { from_index, limit };
        let send = |channel, request| async move {
            ClusterServiceClient::new(channel)
                .read_audit_log(request)
                .await
        };
        Ok(self
            .call("ReadAuditLog", Repeat::Freely, self.budget(), request, send)
            .await?
            .value)
    }
}
