//! What a client is told when it is built: where the nodes are, which world it lives in, how far clocks are trusted and how
//! long a call may take. Decides nothing later.

use std::{sync::Arc, time::Duration};

use billing_env::Env;

use crate::{
    background::Background,
    life::Trust,
    nodes::{Lanes, Nodes},
};

/// How wrong the clock of this machine or of a node may run. 1 %, far beyond any healthy quartz.
const DRIFT_DEFAULT: f64 = 0.01;
/// With more, a lease would be over before it began.
const DRIFT_MAX: f64 = 0.25;
/// Taken off every deadline: a scheduler's delay between a look at the clock and the act.
const MARGIN_DEFAULT: Duration = Duration::from_millis(100);
/// Outlives a change of leader (elections take one to two seconds, sometimes twice).
const DEADLINE_DEFAULT: Duration = Duration::from_secs(10);
/// One attempt. Longer than a slow disk, shorter than patience: a half-open connection must not eat the whole deadline.
const ATTEMPT_DEFAULT: Duration = Duration::from_secs(3);
const CONNECT_DEFAULT: Duration = Duration::from_secs(1);
/// To one node. One carries a process's load; several are for measuring, and for large answers that hold up small ones.
const CONNECTIONS_MAX: usize = 64;

/// A handle on a cluster. Cheap to clone; clones share connections and what is known about the leader.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub env: Env,
    pub nodes: Nodes,
    pub trust: Trust,
    pub deadline: Duration,
    pub attempt: Duration,
    pub background: Background,
}

impl Client {
    #[must_use]
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// The endpoints that it was built with, in that order, as `host:port`.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.inner.nodes.configured()
    }

    /// Where it sends calls now, if it has learned who leads.
    #[must_use]
    pub fn leader(&self) -> Option<String> {
        self.inner.nodes.leader()
    }

    /// The world that it was built for: whoever works beside a client counts on the same clocks.
    #[must_use]
    pub fn env(&self) -> &Env {
        &self.inner.env
    }
}

/// Collects what a [`Client`] needs; only the endpoints have no default.
#[derive(Debug)]
pub struct ClientBuilder {
    endpoints: Vec<String>,
    env: Env,
    drift: f64,
    margin: Duration,
    deadline: Duration,
    attempt: Duration,
    connect: Duration,
    lanes: Lanes,
}

impl Default for ClientBuilder {
    fn default() -> ClientBuilder {
        ClientBuilder {
            endpoints: Vec::new(),
            env: Env::real(),
            drift: DRIFT_DEFAULT,
            margin: MARGIN_DEFAULT,
            deadline: DEADLINE_DEFAULT,
            attempt: ATTEMPT_DEFAULT,
            connect: CONNECT_DEFAULT,
            lanes: Lanes {
                count: 1,
                piped: true,
            },
        }
    }
}

impl ClientBuilder {
    /// Nodes of one cluster, as `host:port` or `http://host:port`. One is enough; more survive its loss.
    #[must_use]
    pub fn endpoints<E: Into<String>>(mut self, endpoints: impl IntoIterator<Item = E>) -> Self {
        self.endpoints.extend(endpoints.into_iter().map(Into::into));
        self
    }

    /// The world to live in; default: the real one.
    #[must_use]
    pub fn env(mut self, env: Env) -> Self {
        self.env = env;
        self
    }

    /// By what share a clock may run too fast or too slow; default 0.01, at most 0.25. Taken off every deadline twice:
    /// for this machine's clock and for the cluster's.
    #[must_use]
    pub fn drift(mut self, drift: f64) -> Self {
        self.drift = drift;
        self
    }

    /// How much earlier than that a lease counts as lost; default 100 ms.
    #[must_use]
    pub fn margin(mut self, margin: Duration) -> Self {
        self.margin = margin;
        self
    }

    /// How long a call may take, repeats included; default 10 s. A wait for a lease comes on top.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// How long one attempt of a call waits for its answer before another node is tried; default 3 s.
    #[must_use]
    pub fn attempt(mut self, attempt: Duration) -> Self {
        self.attempt = attempt;
        self
    }

    /// How long a connection may take to be made; default 1 s.
    #[must_use]
    pub fn connect_timeout(mut self, connect: Duration) -> Self {
        self.connect = connect;
        self
    }

    /// Every request as a call of its own, never over a Pipeline; default: over one. For comparisons.
    #[must_use]
    pub fn unary_only(mut self, unary_only: bool) -> Self {
        self.lanes.piped = !unary_only;
        self
    }

    /// How many connections are held to a node, 1..=64, used in turn; default 1.
    #[must_use]
    pub fn connections(mut self, connections: usize) -> Self {
        self.lanes.count = connections;
        self
    }

    /// Connects to nothing yet; the first call does.
    pub fn build(self) -> Result<Client, BuildError> {
        if !(0.0..=DRIFT_MAX).contains(&self.drift) {
            return Err(BuildError::Drift { drift: self.drift });
        }
        let endpoints = self
            .endpoints
            .iter()
            .map(|endpoint| address(endpoint))
            .collect::<Result<Vec<_>, _>>()?;
        if endpoints.is_empty() {
            return Err(BuildError::NoEndpoints);
        }
        let connections = self.lanes.count;
        if !(1..=CONNECTIONS_MAX).contains(&connections) {
            return Err(BuildError::Connections { connections });
        }
        let nodes = Nodes::new(&self.env, endpoints, self.connect, self.lanes);
        let trust = Trust {
            drift: self.drift,
            margin: self.margin,
        };
        let inner = Inner {
            env: self.env,
            nodes,
            trust,
            deadline: self.deadline,
            attempt: self.attempt,
            background: Background::default(),
        };
        Ok(Client {
            inner: Arc::new(inner),
        })
    }
}

/// `host:port` of an endpoint as people write it.
fn address(endpoint: &str) -> Result<Arc<str>, BuildError> {
    let wrong = || BuildError::Endpoint {
        endpoint: endpoint.to_owned(),
    };
    if endpoint.starts_with("https://") {
        return Err(BuildError::Tls {
            endpoint: endpoint.to_owned(),
        });
    }
    let address = endpoint
        .strip_prefix("http://")
        .unwrap_or(endpoint)
        .trim_end_matches('/');
    let uri: http::Uri = format!("http://{address}").parse().map_err(|_| wrong())?;
    if uri.host().is_none_or(str::is_empty)
        || uri.port_u16().is_none()
        || !matches!(uri.path(), "" | "/")
    {
        return Err(wrong());
    }
    Ok(Arc::from(address))
}

/// Why a client could not be built.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum BuildError {
    #[error("no endpoints: name at least one node, such as 127.0.0.1:7101")]
    NoEndpoints,
    #[error("endpoint {endpoint:?} is not host:port, such as 127.0.0.1:7101")]
    Endpoint { endpoint: String },
    #[error(
        "endpoint {endpoint:?}: this version speaks plain HTTP/2 only, as http://host:port or host:port"
    )]
    Tls { endpoint: String },
    #[error("drift {drift} must be 0..={DRIFT_MAX}: the share by which a clock may run wrong")]
    Drift { drift: f64 },
    #[error("connections {connections} must be 1..={CONNECTIONS_MAX}")]
    Connections { connections: usize },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(endpoints: &[&str]) -> Result<Vec<String>, BuildError> {
        Client::builder()
            .endpoints(endpoints.iter().copied())
            .build()
            .map(|client| client.endpoints())
    }

    #[test]
    fn endpoints_are_host_and_port_and_the_message_says_so() {
        assert_eq!(
            build(&["127.0.0.1:7101", "http://node-2:7102/"]),
            Ok(vec!["127.0.0.1:7101".into(), "node-2:7102".into()])
        );
        assert_eq!(build(&["[::1]:7101"]), Ok(vec!["[::1]:7101".into()]));
        assert_eq!(build(&[]), Err(BuildError::NoEndpoints));
        for wrong in ["", "node", "node:port", "node:7101/path", ":7101", "a b:1"] {
            assert_eq!(
                build(&[wrong]),
                Err(BuildError::Endpoint {
                    endpoint: wrong.into()
                }),
                "{wrong:?}"
            );
        }
        assert!(matches!(
            build(&["https://node:7101"]),
            Err(BuildError::Tls { .. })
        ));
    }

    #[test]
    fn a_client_without_connections_or_with_too_many_is_refused() {
        for connections in [0, CONNECTIONS_MAX + 1] {
            let refused = Client::builder()
                .endpoints(["a:1"])
                .connections(connections);
            assert_eq!(
                refused.build().map(|client| client.endpoints()),
                Err(BuildError::Connections { connections })
            );
        }
    }

    #[test]
    fn a_drift_beyond_reason_is_refused() {
        for drift in [-0.01, 0.26, f64::NAN] {
            let refused = Client::builder().endpoints(["a:1"]).drift(drift).build();
            assert!(matches!(refused, Err(BuildError::Drift { .. })), "{drift}");
        }
    }
}
