//! The cluster as commands see it: billing-client, with every failure already in words. Decides nothing about retries or
//! leaders; the client does.

use std::{pin::Pin, time::Duration};

use billing_client::{
    AcquireOptions, Backup, Client, FencingToken, LeaseGuard, Session, SessionOptions, Submitted,
    WatchOptions, Watched,
};
use billing_env::Env;
use billing_proto::{Failure, v1};
use futures::{Stream, StreamExt};
use tokio::sync::OnceCell;

use crate::{
    args::{ENDPOINTS_MAX, Global},
    failure::{Problem, explain, nobody_answers, reason_of, somebody_listens},
};

/// Where a change of membership shows whose answer was lost.
const WHO_BELONGS: &str = "see what became of it before repeating: billingctl cluster members";

pub struct Cluster {
    client: Client,
    endpoints: Vec<String>,
    env: Env,
    timeout: Duration,
    /// Whether any endpoint accepted a connection, once that was tried.
    listening: OnceCell<bool>,
}

impl Cluster {
    /// Connects to nothing yet. Each request is a call of its own: most commands make one.
    pub fn connect(global: &Global, env: Env) -> Result<Cluster, Problem> {
        Cluster::with(global, env, true)
    }

    /// As `connect`, for many requests at once: they share a stream.
    pub fn connect_piped(global: &Global, env: Env) -> Result<Cluster, Problem> {
        Cluster::with(global, env, false)
    }

    fn with(global: &Global, env: Env, unary_only: bool) -> Result<Cluster, Problem> {
        let endpoints = global.endpoints.clone();
        if endpoints.len() > ENDPOINTS_MAX {
            return Err(Problem::failed(
                format!("more than {ENDPOINTS_MAX} endpoints"),
                "three to seven are a cluster",
            ));
        }
        let client = Client::builder()
            .endpoints(endpoints.iter().cloned())
            .env(env.clone())
            .unary_only(unary_only)
            .deadline(global.timeout)
            // A node that hangs must leave time to ask another one.
            .attempt(global.timeout / 3)
            .build()
            .map_err(|error| {
                Problem::failed(error.to_string(), "write --endpoints host:port,host:port")
            })?;
        Ok(Cluster {
            client,
            endpoints,
            env,
            timeout: global.timeout,
            listening: OnceCell::new(),
        })
    }

    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    /// For the first call: where no endpoint has a process behind it, nothing is gained by trying until time is up.
    async fn client(&self) -> Result<&Client, Problem> {
        let somebody = || somebody_listens(&self.endpoints, &self.env);
        if *self.listening.get_or_init(somebody).await {
            return Ok(&self.client);
        }
        Err(nobody_answers(&self.endpoints, &self.env).await)
    }

    /// A failed call in words.
    pub async fn explain(&self, failure: Failure) -> Problem {
        explain(failure, &self.endpoints, &self.env).await
    }

    async fn told<T>(&self, answer: Result<T, Failure>) -> Result<T, Problem> {
        match answer {
            Ok(value) => Ok(value),
            Err(failure) => Err(self.explain(failure).await),
        }
    }

    /// A lease without a session; nobody keeps it alive. When its answer is lost, waits until the request is taken back, so that
    /// nothing stands which nobody knows of.
    pub async fn acquire_lease(
        &self,
        invoice_id: &str,
        holder: &str,
        options: AcquireOptions,
    ) -> Result<LeaseGuard, Problem> {
        let client = self.client().await?;
        match client.acquire(invoice_id, holder, options).await {
            Ok(guard) => Ok(guard),
            Err(failure) => {
                // The withdrawal tries as long as one call may take.
                let given_back = client.given_back(self.timeout).await;
                Err(match (failure, given_back) {
                    (Failure::Unknown(status), true) => Problem::failed(
                        format!(
                            "the answer was lost, and the request was taken back: {}",
                            status.message()
                        ),
                        "nothing is held; repeat",
                    ),
                    (failure, _) => {
                        let until = "it may be held until its TTL has passed: billingctl lease get";
                        self.explain(failure)
                            .await
                            .look_at(&format!("{until} {invoice_id}"))
                    }
                })
            }
        }
    }

    pub async fn open_session(&self, options: SessionOptions) -> Result<Session, Problem> {
        self.told(self.client().await?.open_session(options).await)
            .await
    }

    pub async fn release_lease(&self, invoice_id: &str, token: u64) -> Result<bool, Problem> {
        self.told(
            self.client()
                .await?
                .release_lease(invoice_id, FencingToken(token))
                .await,
        )
        .await
    }

    pub async fn renew_lease(
        &self,
        invoice_id: &str,
        token: u64,
        ttl: std::time::Duration,
    ) -> Result<v1::Lease, Problem> {
        self.told(
            self.client()
                .await?
                .renew_lease(invoice_id, FencingToken(token), ttl)
                .await,
        )
        .await
    }

    pub async fn get_lease(
        &self,
        invoice_id: &str,
        stale_ok: bool,
    ) -> Result<Option<v1::Lease>, Problem> {
        self.told(self.client().await?.get_lease(invoice_id, stale_ok).await)
            .await
    }

    pub async fn list_leases(
        &self,
        request: v1::ListLeasesRequest,
    ) -> Result<v1::ListLeasesResponse, Problem> {
        self.told(self.client().await?.list_leases(request).await)
            .await
    }

    pub async fn watch_leases(&self, options: WatchOptions) -> Result<Told<'_, Watched>, Problem> {
        let stream = Box::pin(self.client().await?.watch_leases(options));
        Ok(Told {
            cluster: self,
            stream,
        })
    }

    pub async fn force_release(
        &self,
        invoice_id: &str,
        reason: &str,
    ) -> Result<v1::ForceReleaseResponse, Problem> {
        self.told(self.client().await?.force_release(invoice_id, reason).await)
            .await
    }

    /// What was acknowledged stays when this fails.
    pub async fn submit_invoices(&self, invoices: Vec<v1::Invoice>) -> Result<Submitted, Problem> {
        self.told(self.client().await?.submit_invoices(invoices, |_| ()).await)
            .await
    }

    pub async fn get_invoice(
        &self,
        invoice_id: &str,
        stale_ok: bool,
    ) -> Result<v1::GetInvoiceResponse, Problem> {
        self.told(self.client().await?.get_invoice(invoice_id, stale_ok).await)
            .await
    }

    pub async fn list_invoices(
        &self,
        request: v1::ListInvoicesRequest,
    ) -> Result<v1::ListInvoicesResponse, Problem> {
        self.told(self.client().await?.list_invoices(request).await)
            .await
    }

    pub async fn get_invoice_history(
        &self,
        invoice_id: &str,
        stale_ok: bool,
    ) -> Result<Vec<v1::AuditRecord>, Problem> {
        self.told(
            self.client()
                .await?
                .get_invoice_history(invoice_id, stale_ok)
                .await,
        )
        .await
    }

    pub async fn cancel_invoice(
        &self,
        invoice_id: &str,
        reason: &str,
    ) -> Result<v1::InvoiceStatus, Problem> {
        self.told(
            self.client()
                .await?
                .cancel_invoice(invoice_id, reason)
                .await,
        )
        .await
    }

    pub async fn requeue_invoice(
        &self,
        invoice_id: &str,
        reason: &str,
    ) -> Result<v1::InvoiceStatus, Problem> {
        self.told(
            self.client()
                .await?
                .requeue_invoice(invoice_id, reason)
                .await,
        )
        .await
    }

    /// `charged`: None says that no money moved.
    pub async fn resolve_charge(
        &self,
        invoice_id: &str,
        key: &str,
        charged: Option<v1::resolve_charge_request::Charged>,
        evidence: &str,
    ) -> Result<v1::InvoiceStatus, Problem> {
        self.told(
            self.client()
                .await?
                .resolve_charge(invoice_id, key, charged, evidence)
                .await,
        )
        .await
    }

    /// One node's own view, or in one line why it gave none.
    pub async fn status_of(&self, endpoint: &str) -> Result<v1::GetStatusResponse, String> {
        self.client
            .status_of(endpoint)
            .await
            .map_err(|failure| reason_of(&failure))
    }

    pub async fn pause_provider(
        &self,
        provider: &str,
        paused: bool,
        reason: &str,
    ) -> Result<(), Problem> {
        self.told(
            self.client()
                .await?
                .pause_provider(provider, paused, reason)
                .await,
        )
        .await
    }

    pub async fn allow_charges(&self, evidence: &str) -> Result<(), Problem> {
        self.told(self.client().await?.allow_charges(evidence).await)
            .await
    }

    /// As the leader sees it while it can be asked, else as whichever node answers.
    pub async fn status(&self) -> Result<v1::GetStatusResponse, Problem> {
        let any = self.told(self.client().await?.status().await).await?;
        if any.role() == v1::NodeRole::Leader || any.leader_address.is_empty() {
            return Ok(any);
        }
        Ok(self
            .client
            .status_of(&any.leader_address)
            .await
            .unwrap_or(any))
    }

    /// Where the leader's log ended when the node was added.
    pub async fn add_learner(
        &self,
        node_id: u64,
        client_address: &str,
        raft_address: &str,
    ) -> Result<u64, Problem> {
        self.told(
            self.client()
                .await?
                .add_learner(node_id, client_address, raft_address)
                .await,
        )
        .await
        .map_err(|problem| problem.look_at(WHO_BELONGS))
    }

    pub async fn promote_member(
        &self,
        node_id: u64,
        replaces: Option<u64>,
        allow_even: bool,
    ) -> Result<Vec<v1::Member>, Problem> {
        self.told(
            self.client()
                .await?
                .promote_member(node_id, replaces, allow_even)
                .await,
        )
        .await
        .map_err(|problem| problem.look_at(WHO_BELONGS))
    }

    pub async fn remove_member(
        &self,
        node_id: u64,
        allow_even: bool,
    ) -> Result<Vec<v1::Member>, Problem> {
        self.told(
            self.client()
                .await?
                .remove_member(node_id, allow_even)
                .await,
        )
        .await
        .map_err(|problem| problem.look_at(WHO_BELONGS))
    }

    /// Who leads then.
    pub async fn transfer_leader(&self, node_id: Option<u64>) -> Result<u64, Problem> {
        self.told(self.client().await?.transfer_leader(node_id).await)
            .await
            .map_err(|problem| problem.look_at(WHO_BELONGS))
    }

    /// Why not, in one line: others are asked at the same time.
    pub async fn take_snapshot_of(
        &self,
        endpoint: &str,
        patience: Duration,
    ) -> Result<v1::TakeSnapshotResponse, String> {
        self.client
            .take_snapshot_of(endpoint, patience)
            .await
            .map_err(|failure| reason_of(&failure))
    }

    pub async fn backup(&self) -> Result<Backup, Problem> {
        self.told(self.client().await?.backup().await).await
    }

    /// Records from `from_index` on (0: the oldest kept), `limit` at most (0: all).
    pub async fn read_audit_log(
        &self,
        from_index: u64,
        limit: u64,
    ) -> Result<Told<'_, v1::AuditRecord>, Problem> {
        let stream = Box::pin(self.client().await?.read_audit_log(from_index, limit));
        Ok(Told {
            cluster: self,
            stream,
        })
    }
}

/// A stream of the client's, with every failure in words.
pub struct Told<'a, T> {
    cluster: &'a Cluster,
    stream: Pin<Box<dyn Stream<Item = Result<T, Failure>> + Send>>,
}

impl<T> Told<'_, T> {
    /// None: that was the last one.
    pub async fn next(&mut self) -> Result<Option<T>, Problem> {
        match self.stream.next().await {
            None => Ok(None),
            Some(item) => self.cluster.told(item).await.map(Some),
        }
    }
}
