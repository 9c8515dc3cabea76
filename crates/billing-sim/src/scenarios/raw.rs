//! Calls as they stand in the proto, to a node of one's choice, sent once and as they are: what a client without our library
//! does, and what a network does that delivers a message twice. Decides nothing.

use std::time::Duration;

use billing_client::Rejection;
use billing_env::Env;
use billing_proto::v1::{self, lease_service_client::LeaseServiceClient};
use hyper_util::rt::TokioIo;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::machines::{CLIENT_PORT, node_name};

/// What became of one copy of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Granted(u64),
    /// Of another holder: who.
    Held(String),
    /// The lease, the session or the request is over.
    Over(String),
    Refused(String),
    /// Nobody can tell, or it never arrived.
    Nothing(String),
}

/// A connection of its own to a node, made when it is first used.
pub fn leases(env: &Env, node: u64) -> Result<LeaseServiceClient<Channel>, Status> {
    let address = format!("{}:{CLIENT_PORT}", node_name(node));
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    let net = env.net.clone();
    let channel = endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
        let connecting = net.connect(&address);
        async move { Ok::<_, std::io::Error>(TokioIo::new(connecting.await?)) }
    }));
    Ok(LeaseServiceClient::new(channel))
}

fn of_status(status: Status) -> Answer {
    match billing_proto::Failure::from(status) {
        billing_proto::Failure::Rejected(rejection) => match rejection {
            Rejection::HeldByOther { holder, .. } => Answer::Held(holder.to_string()),
            Rejection::LeaseEnded { .. }
            | Rejection::LeaseExpired { .. }
            | Rejection::SessionEnded { .. }
            | Rejection::SeqBelow { .. } => Answer::Over(rejection.to_string()),
            other => Answer::Refused(other.to_string()),
        },
        billing_proto::Failure::NotApplied(status) | billing_proto::Failure::Unknown(status) => {
            Answer::Nothing(status.message().to_owned())
        }
    }
}

/// One copy of the request, to one node; `patience` bounds the wait for its answer.
pub async fn acquire(
    env: &Env,
    node: u64,
    request: v1::AcquireLeaseRequest,
    patience: Duration,
) -> Answer {
    let mut client = match leases(env, node) {
        Ok(client) => client,
        Err(status) => return of_status(status),
    };
    tokio::select! {
        biased;
        answer = client.acquire_lease(request) => match answer {
            Ok(answer) => {
                let lease = answer.into_inner().lease;
                lease.map_or(Answer::Nothing("no lease in it".to_owned()), |lease| Answer::Granted(lease.token))
            }
            Err(status) => of_status(status),
        },
        () = env.clock.sleep(patience) => Answer::Nothing("no answer in time".to_owned()),
    }
}

/// Copy after copy to the nodes in turn, until one is answered.
pub async fn insist(
    env: &Env,
    nodes: u64,
    first: u64,
    request: &v1::AcquireLeaseRequest,
) -> Answer {
    let mut node = first;
    loop {
        let answer = acquire(env, node, request.clone(), Duration::from_secs(20)).await;
        if !matches!(answer, Answer::Nothing(_)) {
            return answer;
        }
        env.clock.sleep(Duration::from_millis(200)).await;
        node = node % nodes + 1;
    }
}
