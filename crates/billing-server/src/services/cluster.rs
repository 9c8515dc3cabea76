//! ClusterService: what a node says of itself, and what operators may order. Decides only how much one call may carry.

use std::pin::Pin;
use std::time::Duration;

use billing_core::{AllowCharges, Command, ForceRelease, PauseProvider, Reply};
use billing_proto::convert::timestamp;
use billing_proto::v1;
use billing_proto::v1::cluster_service_server::ClusterService;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use tonic::{Request, Response, Status};

use super::{Door, answer, audit, backup, membership, rejected, who};
use crate::FORMAT;
use crate::node::Role;

/// Records of the audit log that are copied at once; the next ones when these were taken.
const AUDIT_RECORDS_PER_READ: usize = 256;

/// Answers the calls of ClusterService.
#[derive(Clone)]
pub struct Cluster(pub Door);

type AuditRecords = Pin<Box<dyn Stream<Item = Result<v1::ReadAuditLogResponse, Status>> + Send>>;

#[tonic::async_trait]
impl ClusterService for Cluster {
    async fn get_status(
        &self,
        _request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        Ok(Response::new(self.status().await?))
    }

    async fn force_release(
        &self,
        request: Request<v1::ForceReleaseRequest>,
    ) -> Result<Response<v1::ForceReleaseResponse>, Status> {
        let actor = who::actor(who::OPERATOR, request.extensions());
        let command = ForceRelease::try_from(request.get_ref()).map_err(rejected)?;
        let (was_leased, status) = answer!(
            self.0.one(actor, Command::ForceRelease(command)).await,
            Reply::ForceReleased { was_leased, status } => (was_leased, status)
        )?;
        let status = v1::InvoiceStatus::from(status).into();
        Ok(Response::new(v1::ForceReleaseResponse {
            was_leased,
            status,
        }))
    }

    async fn pause_provider(
        &self,
        request: Request<v1::PauseProviderRequest>,
    ) -> Result<Response<v1::PauseProviderResponse>, Status> {
        let actor = who::actor(who::OPERATOR, request.extensions());
        let command = PauseProvider::try_from(request.get_ref()).map_err(rejected)?;
        answer!(self.0.one(actor, Command::PauseProvider(command)).await, Reply::Done => ())?;
        Ok(Response::new(v1::PauseProviderResponse {}))
    }

    async fn allow_charges(
        &self,
        request: Request<v1::AllowChargesRequest>,
    ) -> Result<Response<v1::AllowChargesResponse>, Status> {
        let actor = who::actor(who::OPERATOR, request.extensions());
        let command = AllowCharges::try_from(request.get_ref()).map_err(rejected)?;
        answer!(self.0.one(actor, Command::AllowCharges(command)).await, Reply::Done => ())?;
        Ok(Response::new(v1::AllowChargesResponse {}))
    }

    type ReadAuditLogStream = AuditRecords;

    async fn read_audit_log(
        &self,
        request: Request<v1::ReadAuditLogRequest>,
    ) -> Result<Response<AuditRecords>, Status> {
        let request = request.into_inner();
        // Fixed now: a log that grows as fast as it is read would never end.
        let last = self
            .0
            .read(false, |ledger| ledger.audit_last_index())
            .await?
            .value;
        let first = request.from_index;
        let left = match request.limit {
            0 => u64::MAX,
            limit => limit,
        };
        let door = self.0.clone();
        let pages = stream::try_unfold((first, left), move |(from, left)| {
            let door = door.clone();
            async move {
                let wanted =
                    AUDIT_RECORDS_PER_READ.min(usize::try_from(left).unwrap_or(usize::MAX));
                if wanted == 0 || from > last {
                    return Ok(None);
                }
                // What was read linearizably once is here from then on.
                let read = door.read(true, |ledger| ledger.audit(from, wanted)).await?;
                let (records, mut previous) = read.value;
                let mut page = Vec::with_capacity(records.len());
                for record in records.iter().take_while(|record| record.index <= last) {
                    page.push(audit::to_wire(record, previous));
                    previous = record.hash;
                }
                let Some(end) = page.last().map(|record| record.index) else {
                    return Ok(None);
                };
                let left = left - page.len() as u64;
                Ok::<_, Status>(Some((page, (end + 1, left))))
            }
        });
        let records = pages
            .map_ok(|page| stream::iter(page.into_iter().map(Ok)))
            .try_flatten()
            .map(|record| {
                record.map(|record| v1::ReadAuditLogResponse {
                    record: Some(record),
                })
            })
            .take_until(self.0.stopping());
        Ok(Response::new(Box::pin(records)))
    }

    async fn add_learner(
        &self,
        request: Request<v1::AddLearnerRequest>,
    ) -> Result<Response<v1::AddLearnerResponse>, Status> {
        membership::add_learner(&self.0, request).await
    }

    async fn promote_member(
        &self,
        request: Request<v1::PromoteMemberRequest>,
    ) -> Result<Response<v1::PromoteMemberResponse>, Status> {
        membership::promote(&self.0, request).await
    }

    async fn remove_member(
        &self,
        request: Request<v1::RemoveMemberRequest>,
    ) -> Result<Response<v1::RemoveMemberResponse>, Status> {
        membership::remove(&self.0, request).await
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderResponse>, Status> {
        membership::transfer_leader(&self.0, request).await
    }

    async fn take_snapshot(
        &self,
        request: Request<v1::TakeSnapshotRequest>,
    ) -> Result<Response<v1::TakeSnapshotResponse>, Status> {
        backup::take_snapshot(&self.0, request).await
    }

    type BackupStream = backup::Parts;

    async fn backup(
        &self,
        request: Request<v1::BackupRequest>,
    ) -> Result<Response<backup::Parts>, Status> {
        backup::stream(&self.0, request).await
    }
}

impl Cluster {
    /// This node's own view: local, possibly behind, never forwarded.
    async fn status(&self) -> Result<v1::GetStatusResponse, Status> {
        let node = self.0.node.status();
        let read = self
            .0
            .read(true, |ledger| {
                let paused: Vec<String> = ledger
                    .paused_providers()
                    .map(|(provider, _)| provider.to_string())
                    .collect();
                (
                    ledger.counts(),
                    ledger.leases_count(),
                    ledger.sessions_count(),
                    ledger.charges_allowed(),
                    ledger.charge_alarms(),
                    ledger.waiters_count(),
                    paused,
                )
            })
            .await?;
        let (counts, leases, sessions, charges_allowed, charge_alarms, waiters, paused_providers) =
            read.value;
        let disk = self.0.node.disk();
        let micros = |took: Duration| u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let hash = node.hashes.last();
        let (leader_id, leader_address) = node
            .leader
            .map_or((0, String::new()), |leader| (leader.node, leader.client));
        Ok(v1::GetStatusResponse {
            node_id: node.node,
            ledger_id: node.ledger_id.map(|id| id.to_string()).unwrap_or_default(),
            role: match node.role {
                Role::Leader => v1::NodeRole::Leader,
                Role::Follower => v1::NodeRole::Follower,
                Role::Candidate => v1::NodeRole::Candidate,
                Role::Learner => v1::NodeRole::Learner,
                Role::Stopped => v1::NodeRole::Unspecified,
            }
            .into(),
            term: node.term,
            leader_id,
            leader_address,
            members: node.members.into_iter().map(v1::Member::from).collect(),
            last_log_index: node.last_log.unwrap_or(0),
            committed_index: node.committed.unwrap_or(0),
            applied_index: read.applied_index,
            snapshot_index: node.snapshot.unwrap_or(0),
            cluster_time_ms: node.cluster_time.0,
            state_hash: hash.map(|state| state.hash.to_vec()).unwrap_or_default(),
            state_hash_index: hash.map_or(0, |state| state.index),
            charges_allowed,
            invoices: counts
                .into_iter()
                .map(|(status, count)| v1::StatusCount {
                    status: v1::InvoiceStatus::from(status).into(),
                    count,
                })
                .collect(),
            leases,
            sessions,
            wall_clock_alarm: node.wall_correction_ms != 0,
            charge_alarms,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            format: FORMAT,
            paused_providers,
            wall_time: Some(timestamp(self.0.node.own_wall())),
            fsync_p50_us: disk.sync_p50.map_or(0, micros),
            fsync_p99_us: disk.sync_p99.map_or(0, micros),
            first_log_index: disk.first_index.unwrap_or(0),
            data_bytes: disk.bytes,
            waiters,
        })
    }
}
