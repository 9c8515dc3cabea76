//! Decides how calls are made without our client: generated stubs on connections straight to the leader, nothing repeated, no guard,
//! no deadline. What is left beside it is what the Rust client costs.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use billing_proto::v1::{
    self, lease_service_client::LeaseServiceClient, pipeline_request, pipeline_response,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

/// As long as a session may be: no keep-alive within a measurement.
pub const TTL: Duration = Duration::from_secs(300);

pub type Leases = LeaseServiceClient<Channel>;

/// One connection to `endpoint`, `host:port`.
pub async fn connect(endpoint: &str) -> Result<Leases> {
    let channel = Endpoint::from_shared(format!("http://{endpoint}"))?
        .connect()
        .await
        .with_context(|| format!("cannot connect to {endpoint}"))?;
    Ok(LeaseServiceClient::new(channel))
}

/// A session and its next seq.
#[derive(Clone, Debug)]
pub struct Session {
    pub id: Vec<u8>,
    seq: u64,
}

impl Session {
    pub async fn open(leases: &mut Leases, holder: &str, ttl: Duration) -> Result<Session> {
        let request = v1::OpenSessionRequest {
            session_id: Vec::new(), // The server draws one.
            holder: holder.to_owned(),
            ttl_ms: u64::try_from(ttl.as_millis())?,
        };
        let opened = leases.open_session(request).await?.into_inner();
        let session = opened.session.context("the answer names no session")?;
        Ok(Session {
            id: session.session_id,
            seq: 0,
        })
    }

    /// Ends it with all its leases. False: it had ended before.
    pub async fn close(&self, leases: &mut Leases) -> Result<bool> {
        let request = v1::CloseSessionRequest {
            session_id: self.id.clone(),
        };
        Ok(leases.close_session(request).await?.into_inner().was_open)
    }

    /// The next request of this session, which has no other one unanswered.
    pub fn acquire(&mut self, invoice: &str, wait: Duration) -> v1::AcquireLeaseRequest {
        let done_below = self.seq + 1;
        self.acquire_beside(invoice, wait, done_below)
    }

    /// The next request while those from `done_below` on are unanswered.
    pub fn acquire_beside(
        &mut self,
        invoice: &str,
        wait: Duration,
        done_below: u64,
    ) -> v1::AcquireLeaseRequest {
        self.seq += 1;
        v1::AcquireLeaseRequest {
            invoice_id: invoice.to_owned(),
            session_id: self.id.clone(),
            seq: self.seq,
            done_below,
            wait_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
            ..Default::default()
        }
    }

    /// The seq of the next request.
    pub fn next_seq(&self) -> u64 {
        self.seq + 1
    }
}

pub fn release(invoice: &str, token: u64) -> v1::ReleaseLeaseRequest {
    v1::ReleaseLeaseRequest {
        invoice_id: invoice.to_owned(),
        token,
        ..Default::default()
    }
}

pub fn token(granted: v1::AcquireLeaseResponse) -> Result<u64> {
    Ok(granted.lease.context("the answer names no lease")?.token)
}

/// One Pipeline stream, shared by callers who have one request unanswered each.
pub struct Pipeline {
    requests: mpsc::Sender<v1::PipelineRequest>,
}

/// One caller's place on a [`Pipeline`]; its tag is its place.
pub struct Lane {
    tag: u64,
    requests: mpsc::Sender<v1::PipelineRequest>,
    answers: mpsc::Receiver<v1::PipelineResponse>,
}

impl Pipeline {
    /// A stream with `lanes` places. Its answers are handed out until it ends; a lane whose answer never comes says so.
    pub async fn open(leases: &mut Leases, lanes: usize) -> Result<Vec<Lane>> {
        let (requests, outgoing) = mpsc::channel(lanes.max(1));
        let mut incoming = leases
            .pipeline(ReceiverStream::new(outgoing))
            .await
            .context("cannot open a Pipeline")?
            .into_inner();
        let pipeline = Pipeline { requests };
        let (doors, lanes): (Vec<_>, Vec<_>) = (0_u64..)
            .take(lanes)
            .map(|tag| {
                let (door, answers) = mpsc::channel(1);
                let lane = Lane {
                    tag,
                    requests: pipeline.requests.clone(),
                    answers,
                };
                (door, lane)
            })
            .unzip();
        tokio::spawn(async move {
            // Ends with the stream: the doors close, and whoever waits behind one hears it.
            while let Ok(Some(answer)) = incoming.message().await {
                let door = usize::try_from(answer.tag)
                    .ok()
                    .and_then(|tag| doors.get(tag));
                if let Some(door) = door {
                    // Its caller has gone, or asked twice; both are its own affair.
                    let _ = door.try_send(answer);
                }
            }
        });
        Ok(lanes)
    }
}

impl Lane {
    pub async fn ask(
        &mut self,
        request: pipeline_request::Request,
    ) -> Result<pipeline_response::Result> {
        let request = v1::PipelineRequest {
            tag: self.tag,
            request: Some(request),
        };
        self.requests
            .send(request)
            .await
            .ok()
            .context("the Pipeline has ended")?;
        let answer = self
            .answers
            .recv()
            .await
            .context("the Pipeline ended before its answer")?;
        match answer.result.context("an answer without a result")? {
            pipeline_response::Result::Error(error) => {
                bail!("refused: {}", error.message)
            }
            result => Ok(result),
        }
    }
}
