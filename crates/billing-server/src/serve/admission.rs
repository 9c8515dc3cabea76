//! Decides whether a call is let in, and tells every caller who leads. Looks at the path only, never into a message.
//!
//! A call holds its place until its response has been sent to the end, streams included. Health checks take no place: an
//! overloaded node must still be able to say that it lives.

use std::sync::Arc;
use std::task::{Context, Poll};

use billing_proto::status::{LEADER_ADDRESS, LEADER_ID, queue_full};
use futures::future::BoxFuture;
use http::{HeaderValue, Request, Response};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::body::Body;
use tower::{Layer, Service};

const UNCOUNTED: &str = "/grpc.health.v1.Health/";

/// Who leads, as far as this node knows: id, and `host:port` for clients.
pub type LeaderHint = Arc<dyn Fn() -> Option<(u64, String)> + Send + Sync>;

/// Counts the calls of one node.
#[derive(Clone)]
pub struct Admission {
    free: Arc<Semaphore>,
    max: usize,
    leader: LeaderHint,
}

impl Admission {
    /// At most `calls_max` calls at the same time; one more gets RESOURCE_EXHAUSTED at once.
    pub fn new(calls_max: usize, leader: LeaderHint) -> Admission {
        Admission {
            free: Arc::new(Semaphore::new(calls_max)),
            max: calls_max,
            leader,
        }
    }

    fn hint(&self, response: &mut Response<Body>) {
        let Some((id, address)) = (self.leader)() else {
            return;
        };
        response
            .headers_mut()
            .insert(LEADER_ID, HeaderValue::from(id));
        // An address that cannot stand in a header was refused as configuration; without it the id still helps.
        if let Ok(address) = HeaderValue::try_from(address) {
            response.headers_mut().insert(LEADER_ADDRESS, address);
        }
    }
}

impl<S> Layer<S> for Admission {
    type Service = Admitted<S>;

    fn layer(&self, inner: S) -> Admitted<S> {
        Admitted {
            inner,
            admission: self.clone(),
        }
    }
}

/// A service behind an [`Admission`].
#[derive(Clone)]
pub struct Admitted<S> {
    inner: S,
    admission: Admission,
}

impl<S> Service<Request<Body>> for Admitted<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let admission = self.admission.clone();
        let uncounted = request.uri().path().starts_with(UNCOUNTED);
        let permit = match Arc::clone(&admission.free).try_acquire_owned() {
            _ if uncounted => None,
            Ok(permit) => Some(permit),
            Err(_) => {
                return Box::pin(async move {
                    let mut response =
                        queue_full("calls in flight", admission.max).into_http::<Body>();
                    admission.hint(&mut response);
                    Ok(response)
                });
            }
        };
        // The clone stays behind, unready; the one that `poll_ready` has made ready is used up.
        let standby = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, standby);
        Box::pin(async move {
            let mut response = inner.call(request).await?.map(|body| held(body, permit));
            admission.hint(&mut response);
            Ok(response)
        })
    }
}

/// The body keeps the call's place until it is dropped.
fn held(body: Body, permit: Option<OwnedSemaphorePermit>) -> Body {
    match permit {
        None => body,
        Some(permit) => Body::new(body.map_frame(move |frame| {
            let _place = &permit;
            frame
        })),
    }
}
