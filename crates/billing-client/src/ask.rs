//! The requests that go over a Pipeline where the node has one, and as calls of their own where it has not: how each is wrapped,
//! unwrapped and called. Decides nothing else.

use std::future::Future;

use billing_proto::{
    Failure,
    v1::{
        self, charge_service_client::ChargeServiceClient,
        invoice_service_client::InvoiceServiceClient, keep_alive_response as kept,
        lease_service_client::LeaseServiceClient, pipeline_request::Request as Wanted,
        pipeline_response::Result as Told,
    },
};
use tonic::{Response, Status, transport::Channel};

use crate::{cluster::missing, pipe::Manner};

pub(crate) trait Ask: Clone + Send + Sync + 'static {
    /// The method's name, for people.
    const METHOD: &'static str;
    type Answer: Send + 'static;

    fn manner(&self) -> Manner {
        Manner {
            urgent: false,
            waits: false,
        }
    }

    fn wrap(self) -> Wanted;

    fn unwrap(told: Told) -> Result<Self::Answer, Failure>;

    fn call(
        self,
        channel: Channel,
    ) -> impl Future<Output = Result<Response<Self::Answer>, Status>> + Send;
}

/// `Kind(*)`: its answer travels in a box.
macro_rules! ask {
    ($request:ident -> $answer:ident, $kind:ident $(($open:tt))?, $client:ident.$call:ident $(, $manner:expr)?) => {
        impl Ask for v1::$request {
            const METHOD: &'static str = stringify!($kind);
            type Answer = v1::$answer;

            $(fn manner(&self) -> Manner {
                let manner: fn(&Self) -> Manner = $manner;
                manner(self)
            })?

            fn wrap(self) -> Wanted {
                Wanted::$kind(self)
            }

            fn unwrap(told: Told) -> Result<v1::$answer, Failure> {
                match told {
                    Told::$kind(answer) => Ok($($open)?answer),
                    Told::Error(error) => Err(error.into()),
                    _ => Err(missing("answer of its kind")), // Every other kind, and those to come.
                }
            }

            async fn call(self, channel: Channel) -> Result<Response<v1::$answer>, Status> {
                $client::new(channel).$call(self).await
            }
        }
    };
}

ask!(OpenSessionRequest -> OpenSessionResponse, OpenSession, LeaseServiceClient.open_session);
ask!(CloseSessionRequest -> CloseSessionResponse, CloseSession, LeaseServiceClient.close_session);
ask!(AcquireLeaseRequest -> AcquireLeaseResponse, AcquireLease, LeaseServiceClient.acquire_lease, |request| Manner {
    urgent: false,
    waits: request.wait_ms != 0,
});
ask!(ReleaseLeaseRequest -> ReleaseLeaseResponse, ReleaseLease, LeaseServiceClient.release_lease);
ask!(RenewLeaseRequest -> RenewLeaseResponse, RenewLease, LeaseServiceClient.renew_lease);
ask!(AcquireLeasesRequest -> AcquireLeasesResponse, AcquireLeases, LeaseServiceClient.acquire_leases, |request| Manner {
    urgent: false,
    waits: request.items.iter().any(|item| item.wait_ms != 0),
});
ask!(ReleaseLeasesRequest -> ReleaseLeasesResponse, ReleaseLeases, LeaseServiceClient.release_leases);
ask!(RenewLeasesRequest -> RenewLeasesResponse, RenewLeases, LeaseServiceClient.renew_leases);
ask!(GetLeaseRequest -> GetLeaseResponse, GetLease(*), LeaseServiceClient.get_lease);
ask!(ClaimInvoicesRequest -> ClaimInvoicesResponse, ClaimInvoices, InvoiceServiceClient.claim_invoices);
ask!(GetInvoiceRequest -> GetInvoiceResponse, GetInvoice(*), InvoiceServiceClient.get_invoice);
ask!(BeginChargeRequest -> BeginChargeResponse, BeginCharge(*), ChargeServiceClient.begin_charge);
ask!(AttachProviderObjectRequest -> AttachProviderObjectResponse, AttachProviderObject, ChargeServiceClient.attach_provider_object);
ask!(SettleChargeRequest -> SettleChargeResponse, SettleCharge(*), ChargeServiceClient.settle_charge);

/// One beat. Where there is no Pipeline, on a short stream of its own, so that it follows the leader and repeats like every
/// other call.
impl Ask for v1::KeepAliveRequest {
    const METHOD: &'static str = "KeepAlive";
    type Answer = v1::Session;

    fn manner(&self) -> Manner {
        Manner {
            urgent: true,
            waits: false,
        }
    }

    fn wrap(self) -> Wanted {
        Wanted::KeepAlive(self)
    }

    fn unwrap(told: Told) -> Result<v1::Session, Failure> {
        match told {
            Told::KeepAlive(v1::KeepAliveResponse {
                result: Some(kept::Result::Session(session)),
                ..
            }) => Ok(session),
            Told::KeepAlive(v1::KeepAliveResponse {
                result: Some(kept::Result::Error(error)),
                ..
            })
            | Told::Error(error) => Err(error.into()),
            _ => Err(missing("answer of its kind")), // Every other kind, and those to come.
        }
    }

    async fn call(self, channel: Channel) -> Result<Response<v1::Session>, Status> {
        let mut client = LeaseServiceClient::new(channel);
        let (metadata, mut answers, _) = client
            .keep_alive(tokio_stream::once(self))
            .await?
            .into_parts();
        let answer = answers.message().await?;
        match answer.and_then(|answer| answer.result) {
            Some(kept::Result::Session(session)) => {
                Ok(Response::from_parts(metadata, session, Default::default()))
            }
            Some(kept::Result::Error(error)) => Err(Status::from(Failure::from(error))),
            None => Err(Status::unknown("the stream ended without an answer")),
        }
    }
}
