//! Pipeline of a fake node: each request goes to the method of its name, with whatever is to go wrong with that. Where a method
//! says that the connection broke, the whole stream breaks, and every request on it.

use std::collections::BTreeMap;

use billing_core::{Command, KeepAlive, Reply, Seq, SessionId, WithdrawWaiter};
use billing_proto::{
    Failure,
    status::{LEADER_ADDRESS, item_error},
    v1::{
        self, charge_service_server::ChargeService, invoice_service_server::InvoiceService,
        keep_alive_response as kept, lease_service_server::LeaseService,
        pipeline_request::Request as Wanted, pipeline_response::Result as Told,
    },
};
use futures::{FutureExt, StreamExt};
use tokio::{sync::mpsc, task::JoinSet};
use tonic::{Code, Request, Response, Status, Streaming, metadata::MetadataMap};

use super::Node;

/// What one request brought, with the leader that it names; an error breaks the stream.
type Outcome = Result<(Told, String), Status>;

pub fn open(
    node: &Node,
    requests: Streaming<v1::PipelineRequest>,
) -> Result<mpsc::Receiver<Result<v1::PipelineResponse, Status>>, Status> {
    let mut state = node.cluster.state();
    if state.old {
        return Err(Status::unimplemented("an older node"));
    }
    state.pipelines.push(node.number);
    drop(state);
    let (answers, heard) = mpsc::channel(1_024);
    let node = node.clone();
    tokio::spawn(async move {
        carry(&node, requests, &answers).await;
        node.cluster.state().ended += 1;
    });
    Ok(heard)
}

async fn carry(
    node: &Node,
    mut requests: Streaming<v1::PipelineRequest>,
    answers: &mpsc::Sender<Result<v1::PipelineResponse, Status>>,
) {
    let mut work = JoinSet::new();
    let mut waiting: BTreeMap<u64, (SessionId, Seq)> = BTreeMap::new();
    loop {
        tokio::select! {
            request = requests.next() => match request {
                Some(Ok(v1::PipelineRequest { request: Some(Wanted::Cancel(cancel)), .. })) => {
                    if let Some((session, seq)) = waiting.remove(&cancel.cancelled_tag) {
                        let withdraw = Command::WithdrawWaiter(WithdrawWaiter { session, seq });
                        let _ = node.cluster.apply(withdraw); // A grant in this moment stays.
                    }
                }
                Some(Ok(v1::PipelineRequest { tag, request: Some(wanted) })) => {
                    if let Wanted::AcquireLease(acquire) = &wanted
                        && let Ok(session) = SessionId::from_slice(&acquire.session_id)
                        && let Ok(seq) = Seq::new(acquire.seq)
                    {
                        waiting.insert(tag, (session, seq));
                    }
                    let node = node.clone();
                    work.spawn(async move { (tag, answer(&node, wanted).await) });
                }
                Some(Ok(v1::PipelineRequest { request: None, .. })) | Some(Err(_)) | None => return,
            },
            Some(Ok((tag, outcome))) = work.join_next() => {
                waiting.remove(&tag);
                let broke = outcome.is_err();
                let answer = outcome.map(|(told, leader_address)| v1::PipelineResponse {
                    tag,
                    result: Some(told),
                    leader_address,
                });
                if answers.send(answer).await.is_err() || broke {
                    return;
                }
            }
            () = answers.closed() => return,
        }
    }
}

async fn answer(node: &Node, wanted: Wanted) -> Outcome {
    match wanted {
        Wanted::OpenSession(request) => {
            let answer = node.open_session(Request::new(request)).await;
            told(answer, Told::OpenSession)
        }
        Wanted::KeepAlive(request) => keep_alive(node, request).await,
        Wanted::CloseSession(request) => {
            let answer = node.close_session(Request::new(request)).await;
            told(answer, Told::CloseSession)
        }
        Wanted::AcquireLease(request) => {
            let answer = node.acquire_lease(Request::new(request)).await;
            told(answer, Told::AcquireLease)
        }
        Wanted::ReleaseLease(request) => {
            let answer = node.release_lease(Request::new(request)).await;
            told(answer, Told::ReleaseLease)
        }
        Wanted::RenewLease(request) => {
            let answer = node.renew_lease(Request::new(request)).await;
            told(answer, Told::RenewLease)
        }
        Wanted::AcquireLeases(request) => {
            let answer = node.acquire_leases(Request::new(request)).await;
            told(answer, Told::AcquireLeases)
        }
        Wanted::ReleaseLeases(request) => {
            let answer = node.release_leases(Request::new(request)).await;
            told(answer, Told::ReleaseLeases)
        }
        Wanted::RenewLeases(request) => {
            let answer = node.renew_leases(Request::new(request)).await;
            told(answer, Told::RenewLeases)
        }
        Wanted::GetLease(request) => {
            let answer = node.get_lease(Request::new(request)).await;
            told(answer, |it| Told::GetLease(Box::new(it)))
        }
        Wanted::ClaimInvoices(request) => {
            let answer = node.claim_invoices(Request::new(request)).await;
            told(answer, Told::ClaimInvoices)
        }
        Wanted::GetInvoice(request) => {
            let answer = node.get_invoice(Request::new(request)).await;
            told(answer, |it| Told::GetInvoice(Box::new(it)))
        }
        Wanted::BeginCharge(request) => {
            let answer = node.begin_charge(Request::new(request)).await;
            told(answer, |it| Told::BeginCharge(Box::new(it)))
        }
        Wanted::AttachProviderObject(request) => {
            let answer = node.attach_provider_object(Request::new(request)).await;
            told(answer, Told::AttachProviderObject)
        }
        Wanted::SettleCharge(request) => {
            let answer = node.settle_charge(Request::new(request)).await;
            told(answer, |it| Told::SettleCharge(Box::new(it)))
        }
        Wanted::Cancel(_) => Err(Status::internal("has no answer")),
    }
}

async fn keep_alive(node: &Node, request: v1::KeepAliveRequest) -> Outcome {
    let kept = async {
        let keep = KeepAlive::try_from(&request)
            .map_err(|out| billing_proto::status::refused(&out.into()))?;
        match node.run("KeepAlive", Command::KeepAlive(keep)).await? {
            Reply::Session(view) => Ok(v1::KeepAliveResponse {
                tag: request.tag,
                result: Some(kept::Result::Session(view.into())),
            }),
            other => Err(Status::internal(format!("{other:?}"))),
        }
    };
    let kept = kept.map(|kept| node.hinted(kept)).await;
    told(kept, Told::KeepAlive)
}

fn told<T>(answer: Result<Response<T>, Status>, wrap: fn(T) -> Told) -> Outcome {
    match answer {
        Ok(response) => {
            let leader = leader(response.metadata());
            Ok((wrap(response.into_inner()), leader))
        }
        // The connection broke.
        Err(status) if status.code() == Code::Unavailable && status.details().is_empty() => {
            Err(status)
        }
        Err(status) => {
            let leader = leader(status.metadata());
            Ok((Told::Error(item_error(&Failure::from(status))), leader))
        }
    }
}

fn leader(metadata: &MetadataMap) -> String {
    let address = metadata.get(LEADER_ADDRESS);
    let address = address.and_then(|address| address.to_str().ok());
    address.unwrap_or_default().to_owned()
}
