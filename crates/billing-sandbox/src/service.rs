//! Decides who is answered what over HTTP: the test key, idempotency, faults, then the act itself, in this order.
//! The work of a request goes on when its caller has gone, as a real provider's does.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use billing_env::{BoxIo, Env, Listener};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;

use crate::error::ApiError;
use crate::faults::{Dice, Fate, Faults};
use crate::form::Params;
use crate::journal::Journal;
use crate::keys::{Answer, Keys, Verdict};
use crate::provider::{Moment, Provider};
use crate::routes::{self, Context};
use crate::settings::{BODY_BYTES_MAX, CONNECTIONS_MAX, IN_FLIGHT_MAX, KEY_LENGTH_MAX, Settings};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
const ORIGINAL_REQUEST: HeaderName = HeaderName::from_static("original-request");
const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// Why a sandbox did not start. Nothing listens after one of these.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(
        "cannot listen on {address} (another process there? --listen 127.0.0.1:0 takes a free port)"
    )]
    Listen { address: String, source: io::Error },
    #[error("cannot append the books to {path}")]
    Journal { path: String, source: io::Error },
}

/// A provider that listens, until it is stopped or dropped.
pub struct Sandbox {
    address: std::net::SocketAddr,
    witness: Witness,
    stop: oneshot::Sender<()>,
    accepting: JoinHandle<()>,
}

impl Sandbox {
    /// Listens at `address` (port 0 takes a free one) and serves from tasks of the current runtime.
    pub async fn start(env: Env, settings: Settings, address: &str) -> Result<Sandbox, StartError> {
        let witness = Witness::new(env.clone(), settings)?;
        let listen_error = |source| StartError::Listen {
            address: address.to_owned(),
            source,
        };
        let listener = env.net.listen(address).await.map_err(listen_error)?;
        let local = listener.local_addr().map_err(listen_error)?;
        let (stop, stopped) = oneshot::channel();
        let accepting = tokio::spawn(accept(listener, witness.clone(), stopped));
        Ok(Sandbox {
            address: local,
            witness,
            stop,
            accepting,
        })
    }

    /// Where it listens, with the real port.
    pub fn local_addr(&self) -> std::net::SocketAddr {
        self.address
    }

    pub fn witness(&self) -> Witness {
        self.witness.clone()
    }

    /// Accepts nothing more and drops open connections; work that has begun ends on its own.
    pub async fn stop(self) {
        // A loop that has ended already has nobody to hear this.
        let _ = self.stop.send(());
        if let Err(error) = self.accepting.await {
            tracing::error!(%error, "the accept loop did not end well");
        }
    }
}

/// The provider behind the wire, for who started it: its books, and its faults. Cheap to clone.
#[derive(Clone)]
pub struct Witness(Arc<Inner>);

struct Inner {
    env: Env,
    settings: Settings,
    state: Mutex<State>,
    at_work: Arc<Semaphore>,
}

struct State {
    provider: Provider,
    keys: Keys,
    dice: Dice,
    faults: Faults,
    journal: Option<Journal>,
}

impl Witness {
    pub fn new(env: Env, settings: Settings) -> Result<Witness, StartError> {
        let journal = match &settings.journal {
            None => None,
            Some(path) => Some(
                Journal::append_to(path).map_err(|source| StartError::Journal {
                    path: path.display().to_string(),
                    source,
                })?,
            ),
        };
        let state = State {
            provider: Provider::new(settings.processing),
            keys: Keys::new(settings.key_retention),
            dice: Dice::new(settings.seed),
            faults: settings.faults.clone(),
            journal,
        };
        Ok(Witness(Arc::new(Inner {
            env,
            settings,
            state: Mutex::new(state),
            at_work: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
        })))
    }

    /// The books as `GET /_config/books` shows them.
    pub fn books(&self) -> Value {
        let now = self.0.now();
        let mut state = self.0.state();
        state.provider.advance(now);
        state.provider.books()
    }

    /// Every stored result is forgotten, as after its retention. Returns how many.
    pub fn forget_keys(&self) -> usize {
        self.0.state().keys.forget_all()
    }

    pub fn set_faults(&self, faults: Faults) {
        self.0.state().faults = faults;
    }
}

async fn accept(
    mut listener: Box<dyn Listener>,
    witness: Witness,
    mut stopped: oneshot::Receiver<()>,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            _ = &mut stopped => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            slot = slots.clone().acquire_owned() => match slot {
                Ok(slot) => tokio::select! {
                    _ = &mut stopped => break,
                    accepted = listener.accept() => accepted.map(|(io, _)| (io, slot)),
                },
                Err(_) => break,
            },
        };
        match accepted {
            Ok((io, slot)) => {
                let witness = witness.clone();
                connections.spawn(async move {
                    serve_connection(io, witness).await;
                    drop(slot);
                });
            }
            Err(error) => {
                // Out of descriptors, most often. Some connection ends sooner or later.
                tracing::warn!(%error, "accept failed");
                witness.0.env.clock.sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Speaks HTTP/1.1 on one connection until it ends.
pub async fn serve_connection(io: BoxIo, witness: Witness) {
    let service = service_fn(move |request| {
        let witness = witness.clone();
        async move { witness.answer(request).await }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(io), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection ended");
    }
}

/// The reply that a fault takes away: the connection is dropped instead.
#[derive(Debug, thiserror::Error)]
#[error("the reply is lost on purpose")]
struct Lost;

/// One request, read in full.
struct Call {
    method: Method,
    path: String,
    query: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Witness {
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Lost> {
        let (parts, body) = request.into_parts();
        let body = match Limited::new(body, BODY_BYTES_MAX).collect().await {
            Ok(body) => body.to_bytes(),
            Err(_) => return Ok(reply(&refusal(&ApiError::too_large()), &Meta::default())),
        };
        let Ok(permit) = self.0.at_work.clone().try_acquire_owned() else {
            return Ok(reply(&refusal(&ApiError::rate_limited()), &Meta::default()));
        };
        let call = Call {
            method: parts.method,
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            headers: parts.headers,
            body,
        };
        let witness = self.clone();
        // Its own task: a caller that hangs up does not stop the work.
        let work = tokio::spawn(async move {
            let heard = witness.0.handle(call).await;
            drop(permit);
            heard
        });
        work.await.unwrap_or(Err(Lost))
    }
}

/// What goes into an answer's headers.
#[derive(Default)]
struct Meta {
    request_id: String,
    key: Option<String>,
    replay_of: Option<String>,
}

impl Inner {
    fn now(&self) -> Moment {
        Moment {
            mono: self.env.clock.monotonic(),
            unix_s: self.env.clock.wall_ms() / 1_000,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic in another request leaves books that are still worth reading.
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn handle(&self, call: Call) -> Result<Response<Full<Bytes>>, Lost> {
        if !call.path.starts_with("/v1/") {
            let answered = self.configure(&call);
            return Ok(reply(
                &answered.unwrap_or_else(|error| refusal(&error)),
                &Meta::default(),
            ));
        }
        let meta = Meta {
            request_id: format!("req_{}", self.state().dice.letters()),
            ..Meta::default()
        };
        let (account, params) = match self.admit(&call) {
            Ok(admitted) => admitted,
            Err(error) => return Ok(reply(&refusal(&error), &meta)),
        };
        if call.method != Method::POST {
            let pause = self.pause_before();
            self.env.clock.sleep(pause).await;
            let answer = match self.execute(&mut self.state(), &call, params) {
                Ok(value) => success(&value),
                Err(error) => refusal(&error),
            };
            return Ok(reply(&answer, &meta));
        }
        self.post(call, account, params, meta).await
    }

    async fn post(
        &self,
        call: Call,
        account: String,
        params: Params,
        mut meta: Meta,
    ) -> Result<Response<Full<Bytes>>, Lost> {
        let key = match key_of(&call.headers) {
            Ok(key) => key,
            Err(error) => return Ok(reply(&refusal(&error), &meta)),
        };
        meta.key = key.clone();
        let (fate, key) = {
            let mut state = self.state();
            let faults = state.faults.clone();
            (
                state.dice.fate_of_a_post(&faults),
                key.filter(|_| !faults.ignore_keys),
            )
        };
        if let Some(key) = &key {
            let verdict = {
                let now = self.now().mono;
                self.state()
                    .keys
                    .claim(&account, key, &call.path, &params, now)
            };
            let error = match verdict {
                Verdict::Run => None,
                Verdict::Replay(answer) => {
                    meta.replay_of = Some(answer.request_id);
                    let answer = (answer.status, answer.body);
                    return self.deliver(answer, &meta, fate).await;
                }
                Verdict::InUse => Some(ApiError::key_in_use(key)),
                Verdict::OtherPath(path) => Some(ApiError::key_reused(&format!(
                    "Keys for idempotent requests can only be used for the same endpoint they were first used for ('{}' vs '{path}'). Try using a key other than '{key}' if you meant to execute a different request.",
                    call.path
                ))),
                Verdict::OtherParameters => Some(ApiError::key_reused(&format!(
                    "Keys for idempotent requests can only be used with the same parameters they were first used with. Try using a key other than '{key}' if you meant to execute a different request."
                ))),
            };
            if let Some(error) = error {
                return Ok(reply(&refusal(&error), &meta));
            }
        }
        let pause = self.pause_before();
        self.env.clock.sleep(pause).await;
        let answer = {
            let mut state = self.state();
            let result = if fate.error_before {
                Err(ApiError::internal())
            } else {
                let result = self.execute(&mut state, &call, params);
                let executed = result
                    .as_ref()
                    .map_or_else(|error| error.executed, |_| true);
                if fate.error_after && executed {
                    Err(ApiError::internal())
                } else {
                    result
                }
            };
            let (answer, remembered) = match &result {
                Ok(value) => (success(value), true),
                Err(error) => {
                    let forgotten = state.faults.forget_declines
                        && error.status == StatusCode::PAYMENT_REQUIRED;
                    (refusal(error), error.executed && !forgotten)
                }
            };
            if let Some(key) = &key {
                if remembered {
                    let (status, body) = answer.clone();
                    state.keys.store(
                        &account,
                        key,
                        Answer {
                            status,
                            body,
                            request_id: meta.request_id.clone(),
                        },
                    );
                } else {
                    state.keys.drop_claim(&account, key);
                }
            }
            answer
        };
        self.deliver(answer, &meta, fate).await
    }

    /// Hands the answer over, or what the fate of this request makes of it.
    async fn deliver(
        &self,
        answer: (StatusCode, Bytes),
        meta: &Meta,
        fate: Fate,
    ) -> Result<Response<Full<Bytes>>, Lost> {
        let pause = {
            let mut state = self.state();
            let range = state.faults.reply_delay_ms.clone();
            state.dice.pause(&range)
        };
        self.env.clock.sleep(pause).await;
        if fate.lose_reply {
            return Err(Lost);
        }
        if fate.garble {
            return Ok(reply(
                &(StatusCode::OK, Bytes::from_static(b"{\"id\": \"pi_\xff")),
                meta,
            ));
        }
        Ok(reply(&answer, meta))
    }

    fn execute(&self, state: &mut State, call: &Call, params: Params) -> Result<Value, ApiError> {
        let mut context = Context {
            now: self.now(),
            dice: &mut state.dice,
            decline_share: state.faults.decline_share,
            amount_min: self.settings.amount_min,
            search_lag: self.settings.search_lag,
        };
        let result = routes::execute(
            &mut state.provider,
            &call.method,
            &call.path,
            params,
            &mut context,
        );
        for charge in state.provider.take_touched() {
            tracing::debug!(%charge, "charged");
            if let Some(journal) = &mut state.journal
                && let Err(error) = journal.record(&charge)
            {
                tracing::error!(%error, %charge, "the books could not be appended to; the line is here");
            }
        }
        result
    }

    fn pause_before(&self) -> Duration {
        let mut state = self.state();
        let range = state.faults.delay_ms.clone();
        state.dice.pause(&range)
    }

    /// Who calls, and with which parameters. Nothing of a request that fails here is remembered.
    fn admit(&self, call: &Call) -> Result<(String, Params), ApiError> {
        let account = test_key(&call.headers)?;
        if call.method != Method::POST {
            return Ok((account, Params::parse(call.query.as_bytes())?));
        }
        let form = call
            .headers
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .is_none_or(|value| value.starts_with("application/x-www-form-urlencoded"));
        if !form && !call.body.is_empty() {
            return Err(ApiError::malformed(
                "Invalid request: send parameters as application/x-www-form-urlencoded, not as JSON.",
            ));
        }
        Ok((account, Params::parse(&call.body)?))
    }

    /// `/` and `/_config/…`: for who runs the sandbox. No key, no faults.
    fn configure(&self, call: &Call) -> Result<(StatusCode, Bytes), ApiError> {
        match (&call.method, call.path.as_str()) {
            (&Method::GET, "/") => Ok(success(&json!({ "speaks": routes::SPOKEN }))),
            (&Method::GET, "/_config/faults") => {
                Ok(success(&routes::faults_json(&self.state().faults)))
            }
            (&Method::POST, "/_config/faults") => {
                let params = Params::parse(&call.body)?;
                let mut state = self.state();
                routes::change_faults(&mut state.faults, params)?;
                Ok(success(&routes::faults_json(&state.faults)))
            }
            (&Method::POST, "/_config/forget_keys") => {
                let forgotten = self.state().keys.forget_all();
                Ok(success(&json!({ "forgotten": forgotten })))
            }
            _ => {
                let params = Params::parse(&call.body)?;
                let mut state = self.state();
                self.execute(&mut state, call, params)
                    .map(|value| success(&value))
            }
        }
    }
}

/// The test key of Basic (`-u sk_test_...:`) or Bearer authentication; it names the account that keys belong to.
pub(crate) fn test_key(headers: &HeaderMap) -> Result<String, ApiError> {
    let header = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let key = match header.split_once(' ') {
        Some(("Bearer", key)) => Some(key.trim().to_owned()),
        Some(("Basic", encoded)) => decode_base64(encoded.trim())
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .and_then(|pair| pair.split(':').next().map(str::to_owned)),
        _ => None,
    };
    match key.as_deref() {
        None | Some("") => Err(ApiError::unauthorized(
            "You did not provide an API key. Provide it with Bearer or Basic authentication, e.g. sk_test_sandbox.",
        )),
        // The key itself is never repeated: an answer may end in a log.
        Some(key) if !key.starts_with("sk_test_") && !key.starts_with("rk_test_") => {
            Err(ApiError::unauthorized(
                "Invalid API Key provided: the sandbox takes test keys only (sk_test_...).",
            ))
        }
        Some(key) => Ok(key.to_owned()),
    }
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut count) = (0_u32, 0);
    for letter in text.trim_end_matches('=').bytes() {
        let six = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(bytes)
}

fn key_of(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(key) if (1..=KEY_LENGTH_MAX).contains(&key.len()) => Ok(Some(key.to_owned())),
        Ok(_) | Err(_) => Err(ApiError::malformed(format!(
            "An Idempotency-Key has 1 to {KEY_LENGTH_MAX} printable characters."
        ))),
    }
}

fn success(value: &Value) -> (StatusCode, Bytes) {
    (StatusCode::OK, Bytes::from(value.to_string()))
}

fn refusal(error: &ApiError) -> (StatusCode, Bytes) {
    (error.status, Bytes::from(error.to_json().to_string()))
}

fn reply(answer: &(StatusCode, Bytes), meta: &Meta) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(answer.1.clone()));
    *response.status_mut() = answer.0;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let named = [
        (
            REQUEST_ID,
            Some(&meta.request_id).filter(|id| !id.is_empty()),
        ),
        (IDEMPOTENCY_KEY, meta.key.as_ref()),
        (ORIGINAL_REQUEST, meta.replay_of.as_ref()),
    ];
    for (name, value) in named {
        if let Some(value) = value.and_then(|text| HeaderValue::from_str(text).ok()) {
            headers.insert(name, value);
        }
    }
    if meta.replay_of.is_some() {
        headers.insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    }
    response
}
