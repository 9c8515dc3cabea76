//! Nodes in this process, on real disks and loopback ports, and clients that speak the bare wire to them. Decides nothing.
#![allow(dead_code, reason = "each test program uses its own part")]

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use billing_core::{InvoiceId, LedgerId, Rejection};
use billing_env::Env;
use billing_proto::v1::charge_service_client::ChargeServiceClient;
use billing_proto::v1::cluster_service_client::ClusterServiceClient;
use billing_proto::v1::invoice_service_client::InvoiceServiceClient;
use billing_proto::v1::lease_service_client::LeaseServiceClient;
use billing_proto::{Failure, v1};
use billing_server::node::{Consistency, FailStop, Founding, Node, NodeConfig};
use billing_server::raft::Peer;
use billing_server::server::{ClientLimits, Serving};
use billing_store::Identity;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// For what must happen; nothing that these tests wait for takes a tenth of it.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Cluster {
    pub nodes: Vec<Serving>,
    pub addresses: Vec<String>,
    folder: tempfile::TempDir,
    tune: Tune,
}

pub type Tune = fn(&mut NodeConfig);

impl Cluster {
    /// Founds a cluster of `count` nodes and waits until each of them is serving.
    pub async fn start(count: u64) -> Result<Cluster> {
        Cluster::with_limits(count, ClientLimits::default()).await
    }

    pub async fn with_limits(count: u64, limits: ClientLimits) -> Result<Cluster> {
        Cluster::tuned(count, limits, |_| {}).await
    }

    /// `tune` changes the settings of each node.
    pub async fn tuned(count: u64, limits: ClientLimits, tune: Tune) -> Result<Cluster> {
        let env = Env::real();
        let folder = tempfile::tempdir()?;
        let mut listeners = Vec::new();
        let mut members = BTreeMap::new();
        for id in 1..=count {
            let clients = env.net.listen("127.0.0.1:0").await?;
            let peers = env.net.listen("127.0.0.1:0").await?;
            let peer = Peer {
                client: clients.local_addr()?.to_string(),
                raft: peers.local_addr()?.to_string(),
            };
            members.insert(id, peer);
            listeners.push((id, clients, peers));
        }
        let ledger_id = LedgerId::new("tests")?;
        let mut nodes = Vec::new();
        for (id, clients, peers) in listeners {
            let identity = Identity {
                cluster: "tests".into(),
                node: id,
                created_unix_ms: env.clock.wall_ms(),
            };
            let disk = billing_store::create(&folder.path().join(id.to_string()), &identity)?;
            let mut config = NodeConfig {
                founding: Some(Founding {
                    ledger_id: ledger_id.clone(),
                    no_prior_charges: true,
                    ttl_max: billing_core::TtlMs::MAX,
                }),
                ..NodeConfig::new(id, members.clone())
            };
            tune(&mut config);
            let fail_stop = FailStop::new(|reason| eprintln!("a node ended: {reason}"));
            let node = Node::start(config, env.clone(), disk, peers, fail_stop).await?;
            nodes.push(Serving::start(env.clone(), node, clients, limits).await?);
        }
        let addresses = members.into_values().map(|peer| peer.client).collect();
        let cluster = Cluster {
            nodes,
            addresses,
            folder,
            tune,
        };
        for at in 0..cluster.addresses.len() {
            cluster.says(at, ServingStatus::Serving).await?;
        }
        Ok(cluster)
    }

    /// Starts an empty node that knows nobody, as `billingd join` does, behind the others; says how it is added.
    pub async fn launch(&mut self, id: u64) -> Result<v1::AddLearnerRequest> {
        let env = Env::real();
        let clients = env.net.listen("127.0.0.1:0").await?;
        let peers = env.net.listen("127.0.0.1:0").await?;
        let peer = Peer {
            client: clients.local_addr()?.to_string(),
            raft: peers.local_addr()?.to_string(),
        };
        let identity = Identity {
            cluster: "tests".into(),
            node: id,
            created_unix_ms: env.clock.wall_ms(),
        };
        let disk = billing_store::create(&self.folder.path().join(id.to_string()), &identity)?;
        let mut config = NodeConfig::new(id, BTreeMap::from([(id, peer.clone())]));
        (self.tune)(&mut config);
        let fail_stop = FailStop::new(|reason| eprintln!("a node ended: {reason}"));
        let node = Node::start(config, env.clone(), disk, peers, fail_stop).await?;
        let limits = ClientLimits::default();
        self.nodes
            .push(Serving::start(env, node, clients, limits).await?);
        self.addresses.push(peer.client.clone());
        Ok(v1::AddLearnerRequest {
            node_id: id,
            client_address: peer.client,
            raft_address: peer.raft,
        })
    }

    pub fn channel(&self, at: usize) -> Result<Channel> {
        Ok(Endpoint::from_shared(format!("http://{}", self.addresses[at]))?.connect_lazy())
    }

    pub fn leases(&self, at: usize) -> Result<LeaseServiceClient<Channel>> {
        Ok(LeaseServiceClient::new(self.channel(at)?))
    }

    pub fn invoices(&self, at: usize) -> Result<InvoiceServiceClient<Channel>> {
        Ok(InvoiceServiceClient::new(self.channel(at)?))
    }

    pub fn charges(&self, at: usize) -> Result<ChargeServiceClient<Channel>> {
        Ok(ChargeServiceClient::new(self.channel(at)?))
    }

    pub fn operators(&self, at: usize) -> Result<ClusterServiceClient<Channel>> {
        Ok(ClusterServiceClient::new(self.channel(at)?))
    }

    /// Waits until the node at `at` says that it is `wanted`.
    pub async fn says(&self, at: usize, wanted: ServingStatus) -> Result<()> {
        let mut health = HealthClient::new(self.channel(at)?);
        let mut said = health
            .watch(HealthCheckRequest::default())
            .await?
            .into_inner();
        let heard = async {
            while let Some(answer) = said.message().await? {
                if answer.status() == wanted {
                    return Ok(());
                }
            }
            bail!("the health stream ended")
        };
        tokio::time::timeout(PATIENCE, heard)
            .await
            .context("health")?
    }

    /// The nodes (from 0) that lead and that do not, as the first one knows it.
    pub async fn leader_and_followers(&self) -> Result<(usize, Vec<usize>)> {
        let status = self
            .operators(0)?
            .get_status(v1::GetStatusRequest {})
            .await?;
        let leader = usize::try_from(status.get_ref().leader_id)?;
        let leader = leader.checked_sub(1).context("no leader is known")?;
        let followers = (0..self.nodes.len()).filter(|&at| at != leader).collect();
        Ok((leader, followers))
    }

    /// How many stand in the queue of an invoice, as the first node that runs has applied it.
    pub async fn waiters(&self, invoice: &str) -> Result<u64> {
        let id = InvoiceId::new(invoice)?;
        let node = self.nodes.first().context("no node runs")?.node();
        let (view, _) = node
            .read(Consistency::Stale, |ledger| ledger.invoice_view(&id))
            .await?;
        Ok(view.map_or(0, |view| view.waiters))
    }

    pub async fn stop(self) {
        futures::future::join_all(self.nodes.into_iter().map(|node| node.finish(PATIENCE))).await;
    }
}

/// Looks again until `holds`, or fails when patience ends. For what nothing announces.
pub async fn until<F: Future<Output = Result<bool>>>(holds: impl Fn() -> F) -> Result<()> {
    let seen = async {
        while !holds().await? {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, seen)
        .await
        .context("it never came true")?
}

pub fn acquire(invoice: &str, holder: &str) -> v1::AcquireLeaseRequest {
    v1::AcquireLeaseRequest {
        invoice_id: invoice.into(),
        holder: holder.into(),
        ttl_ms: 30_000,
        ..Default::default()
    }
}

pub fn release(lease: &v1::Lease) -> v1::ReleaseLeaseRequest {
    v1::ReleaseLeaseRequest {
        invoice_id: lease.invoice_id.clone(),
        token: lease.token,
        ..Default::default()
    }
}

pub fn invoice(id: &str, amount_minor: i64) -> v1::Invoice {
    v1::Invoice {
        invoice_id: id.into(),
        customer_id: "cus-1".into(),
        amount_minor,
        currency: "EUR".into(),
        due_at: None,
        priority: 0,
    }
}

/// Submits them all; none may be refused.
pub async fn submit(cluster: &Cluster, invoices: Vec<v1::Invoice>) -> Result<()> {
    let answer = send(cluster, 0, invoices).await?;
    anyhow::ensure!(answer.refused.is_empty(), "{:?}", answer.refused);
    Ok(())
}

pub async fn send(
    cluster: &Cluster,
    at: usize,
    invoices: Vec<v1::Invoice>,
) -> Result<v1::SubmitInvoicesResponse, Status> {
    let stream =
        futures::stream::iter(
            invoices
                .into_iter()
                .map(|invoice| v1::SubmitInvoicesRequest {
                    invoice: Some(invoice),
                }),
        );
    let mut client = cluster
        .invoices(at)
        .map_err(|error| Status::internal(error.to_string()))?;
    Ok(client.submit_invoices(stream).await?.into_inner())
}

/// The lease of a grant.
pub fn lease(granted: tonic::Response<v1::AcquireLeaseResponse>) -> Result<v1::Lease> {
    granted
        .into_inner()
        .lease
        .context("a grant without a lease")
}

/// The answer must be a refusal with this code; returns its facts.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code) -> Rejection {
    match answer {
        Ok(answer) => panic!("not refused: {answer:?}"),
        Err(status) => {
            assert_eq!(status.code(), code, "{status:?}");
            match Failure::from(status) {
                Failure::Rejected(rejection) => rejection,
                other => panic!("no refusal: {other:?}"),
            }
        }
    }
}

/// The answer must be INVALID_ARGUMENT that names this field, and a bound.
#[track_caller]
pub fn out_of_bounds<T: std::fmt::Debug>(answer: Result<T, Status>, wanted: &str) {
    match refused(answer, Code::InvalidArgument) {
        Rejection::InvalidArgument { field, bound } => {
            assert_eq!(field, wanted);
            assert!(!bound.is_empty());
        }
        other => panic!("{wanted}: {other:?}"),
    }
}
