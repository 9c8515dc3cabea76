//! Decides how etcd is started and asked: three durable members with their default settings in a folder on the measured disk; a pair
//! as its users write one, either a key put under a lease when absent and deleted, or its lock service.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use billing_demo::harness::{Output, Process, free_ports};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use super::wire::{
    kv::{
        Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest,
        PutRequest, RequestOp, StatusRequest, TxnRequest, compare::TargetUnion,
        kv_client::KvClient, lease_client::LeaseClient, maintenance_client::MaintenanceClient,
        request_op,
    },
    lock::{LockRequest, UnlockRequest, lock_client::LockClient},
};
use crate::{
    load::{Caller, Share, Turn, Way},
    place::NODES,
};

const PROGRAM: &str = "etcd";
const LED_WITHIN: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// As ours; a third of it between two keep-alives.
const TTL: Duration = Duration::from_secs(30);
/// Keep-alives on their way; one would do.
const BEATS_QUEUED: usize = 4;
/// Of its interface: the values of Compare.
const EQUAL: i32 = 0;
const CREATE: i32 = 1;

/// What `etcd --version` says first.
pub fn version() -> Result<String> {
    let output = Command::new(PROGRAM).arg("--version").output().context(
        "etcd is not installed: `make etcd` installs Debian's etcd-server, or put an etcd on the PATH",
    )?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().context("etcd names no version")?;
    Ok(line.to_owned())
}

/// Three members. Dropped: killed.
pub struct Etcd {
    members: Vec<Process>,
    client_ports: Vec<u16>,
}

impl Etcd {
    /// Data and words of each member in `folder`; every setting that is not an address is the default.
    pub async fn start(folder: &Path) -> Result<Etcd> {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let ports = free_ports(NODES * 2)?;
        let (client_ports, peer_ports) = ports.split_at(NODES);
        let url = |port: &u16| format!("http://127.0.0.1:{port}");
        let everybody: Vec<String> = (1..)
            .zip(peer_ports)
            .map(|(id, port)| format!("member-{id}={}", url(port)))
            .collect();
        let mut members = Vec::new();
        for ((id, client), peer) in (1..).zip(client_ports).zip(peer_ports) {
            let name = format!("member-{id}");
            let mut command = Command::new(PROGRAM);
            command
                .args(["--name", &name])
                .arg("--data-dir")
                .arg(folder.join(&name))
                .args(["--listen-client-urls", &url(client)])
                .args(["--advertise-client-urls", &url(client)])
                .args(["--listen-peer-urls", &url(peer)])
                .args(["--initial-advertise-peer-urls", &url(peer)])
                .args(["--initial-cluster", &everybody.join(",")])
                .args(["--initial-cluster-state", "new"])
                .args(["--logger", "zap", "--log-level", "error"]);
            let output = Output::File(folder.join(format!("{name}.log")));
            members.push(Process::start(format!("etcd {name}"), command, &output)?);
        }
        let mut etcd = Etcd {
            members,
            client_ports: client_ports.to_vec(),
        };
        etcd.leader().await?;
        Ok(etcd)
    }

    pub fn pids(&self) -> Vec<u32> {
        self.members.iter().map(Process::pid).collect()
    }

    /// Which member leads, from 1, as soon as one does.
    pub async fn leader(&mut self) -> Result<usize> {
        let deadline = Instant::now() + LED_WITHIN;
        loop {
            for id in 1..=NODES {
                if self.leads(id).await.unwrap_or(false) {
                    return Ok(id);
                }
            }
            for member in &mut self.members {
                if let Some(status) = member.exited()? {
                    bail!(
                        "{} ended ({status}):\n{}",
                        member.name(),
                        member.last_words(10)
                    );
                }
            }
            ensure!(
                Instant::now() < deadline,
                "no etcd leader within {LED_WITHIN:?}"
            );
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn leads(&self, id: usize) -> Result<bool> {
        let channel = connect(&self.endpoint(id)).await?;
        let status = MaintenanceClient::new(channel)
            .status(StatusRequest {})
            .await?
            .into_inner();
        let own = status.header.context("a status without a header")?;
        Ok(status.leader != 0 && status.leader == own.member_id)
    }

    pub fn endpoint(&self, id: usize) -> String {
        format!("127.0.0.1:{}", self.client_ports[id - 1])
    }

    pub async fn stop(mut self) -> Result<()> {
        for member in &mut self.members {
            member.stop(STOP_PATIENCE).await?;
        }
        Ok(())
    }
}

async fn connect(endpoint: &str) -> Result<Channel> {
    Endpoint::from_shared(format!("http://{endpoint}"))?
        .connect()
        .await
        .with_context(|| format!("cannot connect to etcd at {endpoint}"))
}

/// Which of etcd's ways, and on what.
#[derive(Clone, Debug)]
pub struct ByEtcd {
    /// The leader's: nothing is forwarded.
    pub endpoint: String,
    pub lock_service: bool,
    /// All callers want the same name.
    pub same: bool,
}

/// A worker with a lease of its own, kept alive.
pub struct EtcdCaller {
    how: How,
    name: Vec<u8>,
    lease: i64,
    _alive: KeptAlive,
}

enum How {
    /// Put when absent, delete.
    Keys(KvClient<Channel>),
    Locks(LockClient<Channel>),
}

/// Ends the keep-alives with its caller, and the lease soon after.
struct KeptAlive {
    beats: tokio::task::JoinHandle<()>,
    leases: LeaseClient<Channel>,
    lease: i64,
}

impl Drop for KeptAlive {
    fn drop(&mut self) {
        self.beats.abort();
        let mut leases = self.leases.clone();
        let lease = LeaseRevokeRequest { id: self.lease };
        // A courtesy to the next measurement; a lease that stays ends by its TTL.
        tokio::spawn(async move { leases.lease_revoke(lease).await.ok() });
    }
}

impl Way for ByEtcd {
    type Caller = EtcdCaller;

    async fn open(&self, share: Share) -> Result<Vec<EtcdCaller>> {
        let mut channels = Vec::new();
        for _ in 0..share.connections {
            channels.push(connect(&self.endpoint).await?);
        }
        let mut callers = Vec::new();
        for caller in share.callers {
            let channel = channels[caller % channels.len()].clone();
            let alive = keep_alive(LeaseClient::new(channel.clone())).await?;
            let name = if self.same {
                "bench-one".to_owned()
            } else {
                format!("bench-{caller}")
            };
            callers.push(EtcdCaller {
                how: if self.lock_service {
                    How::Locks(LockClient::new(channel))
                } else {
                    How::Keys(KvClient::new(channel))
                },
                name: name.into_bytes(),
                lease: alive.lease,
                _alive: alive,
            });
        }
        Ok(callers)
    }
}

async fn keep_alive(mut leases: LeaseClient<Channel>) -> Result<KeptAlive> {
    let ttl = i64::try_from(TTL.as_secs())?;
    let granted = leases
        .lease_grant(LeaseGrantRequest { ttl, id: 0 })
        .await?
        .into_inner();
    let lease = granted.id;
    let (beat, beats) = tokio::sync::mpsc::channel(BEATS_QUEUED);
    // Beforehand: etcd does not answer the call itself until it has something to answer.
    beat.send(LeaseKeepAliveRequest { id: lease }).await?;
    let mut answers = leases
        .lease_keep_alive(ReceiverStream::new(beats))
        .await?
        .into_inner();
    let beats = tokio::spawn(async move {
        // An ended stream shows in the caller's next call, which then has no lease.
        while let Ok(Some(_)) = answers.message().await {
            tokio::time::sleep(TTL / 3).await;
            let next = LeaseKeepAliveRequest { id: lease };
            if beat.send(next).await.is_err() {
                return;
            }
        }
    });
    Ok(KeptAlive {
        beats,
        leases,
        lease,
    })
}

impl Caller for EtcdCaller {
    async fn turn(&mut self) -> Result<Turn> {
        match &mut self.how {
            How::Keys(kv) => {
                let absent = Compare {
                    result: EQUAL,
                    target: CREATE,
                    key: self.name.clone(),
                    target_union: Some(TargetUnion::CreateRevision(0)),
                };
                let put = PutRequest {
                    key: self.name.clone(),
                    value: Vec::new(),
                    lease: self.lease,
                };
                let txn = TxnRequest {
                    compare: vec![absent],
                    success: vec![RequestOp {
                        request: Some(request_op::Request::RequestPut(put)),
                    }],
                };
                ensure!(
                    kv.txn(txn).await?.into_inner().succeeded,
                    "the key was there already"
                );
                let delete = DeleteRangeRequest {
                    key: self.name.clone(),
                };
                let deleted = kv.delete_range(delete).await?.into_inner().deleted;
                ensure!(deleted == 1, "the key was gone");
            }
            How::Locks(locks) => {
                let lock = LockRequest {
                    name: self.name.clone(),
                    lease: self.lease,
                };
                let key = locks.lock(lock).await?.into_inner().key;
                locks.unlock(UnlockRequest { key }).await?;
            }
        }
        Ok(Turn::Did(1))
    }
}
