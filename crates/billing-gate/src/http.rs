//! Decides how a request reaches the provider: connect first, check second, send third, so the three are separate here.
//! Never retries, never follows, never sends twice; every wait has a deadline, every body a bound.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use billing_env::{Env, MonoTime};
use bytes::Bytes;
use http::header::{HeaderMap, HeaderValue};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections to the provider at once. One more charge waits for one of them, `CONNECT_TIMEOUT` at most.
pub const CONNECTIONS_MAX: usize = 64;
/// Bytes of an answer. More is an answer that nobody can read: unknown.
pub const ANSWER_BYTES_MAX: usize = 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Servers close idle connections; one that lay longer than this is not trusted with a payment.
const IDLE_MAX: Duration = Duration::from_secs(4);

/// What was heard.
#[derive(Clone, Debug)]
pub struct HttpAnswer {
    pub status: StatusCode,
    pub replayed: bool,
    pub body: Bytes,
}

/// Why no connection: nothing was sent.
#[derive(Debug, thiserror::Error)]
#[error("no connection to {address}: {what}")]
pub struct NotConnected {
    address: String,
    what: String,
}

/// Why no answer. The request may have been carried out.
#[derive(Debug, thiserror::Error)]
pub enum Silence {
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    #[error("the connection broke: {0}")]
    Broke(#[from] hyper::Error),
    #[error("the answer could not be read: {0}")]
    Unreadable(String),
}

/// Connections to one address.
pub struct Connections {
    env: Env,
    address: String,
    slots: Arc<Semaphore>,
    idle: Mutex<Vec<(SendRequest<Full<Bytes>>, MonoTime)>>,
}

/// One connection, ready to send one request.
pub struct Ready<'a> {
    home: &'a Connections,
    sender: SendRequest<Full<Bytes>>,
    _slot: OwnedSemaphorePermit,
}

impl Connections {
    /// `address` is host:port.
    pub fn to(env: Env, address: String) -> Connections {
        Connections {
            env,
            address,
            slots: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            idle: Mutex::new(Vec::new()),
        }
    }

    /// A connection on which the provider's machine has answered. Nothing is sent.
    pub async fn connect(&self) -> Result<Ready<'_>, NotConnected> {
        match within(&self.env, CONNECT_TIMEOUT, self.connect_unbounded()).await {
            Some(result) => result,
            None => Err(self.not_connected(format!("not within {CONNECT_TIMEOUT:?}"))),
        }
    }

    async fn connect_unbounded(&self) -> Result<Ready<'_>, NotConnected> {
        let slot = self
            .slots
            .clone()
            .acquire_owned()
            .await
            .map_err(|error| self.not_connected(error.to_string()))?;
        while let Some(mut sender) = self.take_idle() {
            // The one that ended while it lay idle says so here, before anything depends on it.
            if sender.ready().await.is_ok() {
                return Ok(Ready {
                    home: self,
                    sender,
                    _slot: slot,
                });
            }
        }
        Ok(Ready {
            home: self,
            sender: self.open().await?,
            _slot: slot,
        })
    }

    async fn open(&self) -> Result<SendRequest<Full<Bytes>>, NotConnected> {
        let io = self
            .env
            .net
            .connect(&self.address)
            .await
            .map_err(|error| self.not_connected(error.to_string()))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io))
            .await
            .map_err(|error| self.not_connected(error.to_string()))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to the provider ended");
            }
        });
        sender
            .ready()
            .await
            .map_err(|error| self.not_connected(error.to_string()))?;
        Ok(sender)
    }

    fn take_idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        let now = self.env.clock.monotonic();
        let mut idle = self.idle();
        idle.retain(|(sender, since)| now.since(*since) < IDLE_MAX && !sender.is_closed());
        idle.pop().map(|(sender, _)| sender)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<(SendRequest<Full<Bytes>>, MonoTime)>> {
        self.idle
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn not_connected(&self, what: String) -> NotConnected {
        NotConnected {
            address: self.address.clone(),
            what,
        }
    }
}

impl Ready<'_> {
    /// Sends one request, once. `Silence` says nothing about what the provider did.
    pub async fn send(
        mut self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
        timeout: Duration,
    ) -> Result<HttpAnswer, Silence> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = path
            .parse()
            .map_err(|_| Silence::Unreadable(format!("{path} is no path")))?;
        *request.headers_mut() = headers;
        let host = HeaderValue::from_str(&self.home.address)
            .map_err(|_| Silence::Unreadable(format!("{} is no host", self.home.address)))?;
        request.headers_mut().insert(http::header::HOST, host);
        let env = self.home.env.clone();
        let exchange = async {
            let response = self.sender.send_request(request).await?;
            let status = response.status();
            let replayed = response
                .headers()
                .get("idempotent-replayed")
                .is_some_and(|value| value == "true");
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
                .collect()
                .await
                .map_err(|error| Silence::Unreadable(error.to_string()))?
                .to_bytes();
            Ok::<_, Silence>(HttpAnswer {
                status,
                replayed,
                body,
            })
        };
        let answer = match within(&env, timeout, exchange).await {
            Some(answer) => answer?,
            None => return Err(Silence::TimedOut(timeout)),
        };
        // Only a connection whose answer was read to its end is used again.
        let now = env.clock.monotonic();
        self.home.idle().push((self.sender, now));
        Ok(answer)
    }
}

/// The future's result, or None once the clock has moved by `limit`.
pub async fn within<T>(env: &Env, limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    let expired = env.clock.sleep(limit);
    tokio::pin!(future);
    tokio::select! {
        biased;
        result = &mut future => Some(result),
        () = expired => None,
    }
}
