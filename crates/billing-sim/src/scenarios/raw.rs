//! Calls as they stand in the proto, to a node of one's choice, sent once and as they are: what a client without our library
//! does, and what a network does that delivers a message twice. Decides nothing.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use billing_client::Rejection;
use billing_env::Env;
use billing_proto::v1::{
    self, invoice_service_client::InvoiceServiceClient, lease_service_client::LeaseServiceClient,
};
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
    Ok(LeaseServiceClient::new(channel(env, node)?))
}

fn channel(env: &Env, node: u64) -> Result<Channel, Status> {
    let address = format!("{}:{CLIENT_PORT}", node_name(node));
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    let net = env.net.clone();
    Ok(
        endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
            let connecting = net.connect(&address);
            async move { Ok::<_, std::io::Error>(TokioIo::new(connecting.await?)) }
        })),
    )
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

/// Copy after copy of any request to the nodes in turn, until one is answered; `Err` is the ledger's no.
pub async fn insist_on<T, F, Fut>(env: &Env, nodes: u64, first: u64, send: F) -> Result<T, String>
where
    F: Fn(Channel) -> Fut,
    Fut: Future<Output = Result<T, Status>>,
{
    let mut node = first;
    loop {
        if let Ok(channel) = channel(env, node) {
            let answer = tokio::select! {
                biased;
                answer = send(channel) => Some(answer),
                () = env.clock.sleep(Duration::from_secs(20)) => None,
            };
            match answer.map(|answer| answer.map_err(billing_proto::Failure::from)) {
                Some(Ok(answer)) => return Ok(answer),
                Some(Err(billing_proto::Failure::Rejected(no))) => return Err(no.to_string()),
                _ => {}
            }
        }
        env.clock.sleep(Duration::from_millis(200)).await;
        node = node % nodes + 1;
    }
}

/// The leases that one copy of a claim was told of, by invoice; None: no answer.
pub type Claimed = Option<Result<BTreeMap<String, u64>, String>>;

/// One copy of a claim, to one node; `patience` bounds the wait for its answer.
pub async fn claim(
    env: &Env,
    node: u64,
    request: v1::ClaimInvoicesRequest,
    patience: Duration,
) -> Claimed {
    let mut client = InvoiceServiceClient::new(channel(env, node).ok()?);
    let told = tokio::select! {
        biased;
        told = client.claim_invoices(request) => told,
        () = env.clock.sleep(patience) => return None,
    };
    match told.map_err(billing_proto::Failure::from) {
        Ok(told) => {
            let claimed = told.into_inner().claimed.into_iter();
            let leases = claimed.filter_map(|claimed| claimed.lease);
            Some(Ok(leases
                .map(|lease| (lease.invoice_id, lease.token))
                .collect()))
        }
        Err(billing_proto::Failure::Rejected(rejection)) => Some(Err(rejection.to_string())),
        Err(_) => None,
    }
}
