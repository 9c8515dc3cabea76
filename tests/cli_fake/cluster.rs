//! The cluster as the script has it: well or ill, and what it says to changes of its members.

use billing_core::{
    MembershipReason,
    limits::{SESSIONS_OPEN_MAX, WAITERS_PER_INVOICE_MAX},
};

use super::*;

/// Where the leader's log ends.
const LOG_END: u64 = 12_346;
/// What a newcomer has copied more each time that somebody looks.
const COPIED_A_LOOK: u64 = 4_000;
/// The wall clock that the tests run on.
const NOW_MS: u64 = 1_795_366_800_000;

fn not_changed(node: u64, reason: MembershipReason, detail: &str) -> Status {
    refused(&Rejection::MembershipRefused {
        node,
        reason,
        detail: detail.to_owned(),
    })
}

fn stamp(ms: u64) -> Timestamp {
    Timestamp {
        seconds: (ms / 1_000) as i64,
        nanos: (ms % 1_000 * 1_000_000) as i32,
    }
}

/// A ledger that was founded, and knows one invoice.
pub fn backup_parts() -> Vec<v1::BackupResponse> {
    use billing_core::{
        Actor, AmountMinor, Bootstrap, ClusterTime, Command, Config, Currency, CustomerId,
        InvoiceId, Ledger, LedgerId, Priority, Stamp, SubmitInvoice, WallTime,
    };
    let bootstrap = Bootstrap {
        ledger_id: LedgerId::new("demo").expect("an id"),
        no_prior_charges: true,
    };
    let submit = SubmitInvoice {
        invoice: InvoiceId::new("inv-7").expect("an id"),
        customer: CustomerId::new("cus-0042").expect("an id"),
        amount: AmountMinor::new(1_250).expect("a sum"),
        currency: Currency::try_from("EUR".to_owned()).expect("a currency"),
        due_at: None,
        priority: Priority::new(0).expect("none"),
    };
    let mut ledger = Ledger::new(Config::default());
    for command in [
        Command::Bootstrap(bootstrap),
        Command::SubmitInvoice(submit),
    ] {
        let stamp = Stamp {
            base: ClusterTime(0),
            elapsed_ms: 1_000,
            wall: WallTime(NOW_MS),
            wall_jumped_ms: 0,
        };
        let applied = ledger.apply(stamp, &[(Actor::ledger(), command)]);
        assert!(applied.results.iter().all(Result::is_ok));
    }
    let mut bytes = Vec::new();
    ledger.write_to(&mut bytes).expect("memory");
    let (mut composer, first) = billing_proto::backup::Composer::begin(v1::BackupHeader {
        ledger_format: u32::from(Ledger::FORMAT),
        ledger_id: "demo".to_owned(),
        applied_index: LOG_END,
        cluster_time_ms: 1_000,
        wall_time: Some(stamp(NOW_MS)),
        node_id: 1,
        version: "0.1.0".to_owned(),
        state_hash: ledger.state_hash().to_vec(),
        ..Default::default()
    });
    let chunk = composer.chunk(bytes);
    vec![first, chunk, composer.end()]
}

impl Node {
    fn member(&self, node_id: u64, address: &str, voter: bool) -> v1::Member {
        v1::Member {
            node_id,
            client_address: address.to_owned(),
            raft_address: address.replace(":71", ":72"),
            voter,
            // Only the leader knows.
            matched_index: if self.id == 1 && !self.script.leaderless {
                12_345
            } else {
                0
            },
        }
    }

    /// Node 9 is one that was just added: it catches up while it is looked at.
    fn members(&self) -> Vec<v1::Member> {
        let nodes = self.script.nodes.iter().zip(1..);
        let mut members: Vec<_> = nodes
            .map(|(address, id)| self.member(id, address, true))
            .collect();
        if self.script.learner {
            members.push(v1::Member {
                matched_index: if self.id == 1 { 4_000 } else { 0 },
                ..self.member(4, "127.0.0.1:7104", false)
            });
        }
        members
    }

    /// What makes a cluster ill, one thing or more a node.
    fn with_its_ills(&self, well: v1::GetStatusResponse) -> v1::GetStatusResponse {
        let count = |status: v1::InvoiceStatus, count| v1::StatusCount {
            status: status.into(),
            count,
        };
        match self.id {
            1 => v1::GetStatusResponse {
                charges_allowed: false,
                charge_alarms: 2,
                paused_providers: vec!["stripe".into()],
                invoices: vec![
                    count(v1::InvoiceStatus::InDoubt, 3),
                    count(v1::InvoiceStatus::Review, 1),
                ],
                sessions: SESSIONS_OPEN_MAX as u64 - 1,
                waiters: WAITERS_PER_INVOICE_MAX as u64,
                first_log_index: 1,
                last_log_index: 3_000_000,
                committed_index: 3_000_000,
                applied_index: 3_000_000,
                snapshot_index: 0,
                data_bytes: 7 << 30,
                ..well
            },
            2 => v1::GetStatusResponse {
                wall_time: Some(stamp(NOW_MS + 5_500)),
                fsync_p50_us: 35_000,
                fsync_p99_us: 250_000,
                version: "0.2.0".into(),
                format: 2,
                term: 4,
                ..well
            },
            _ => v1::GetStatusResponse {
                wall_time: Some(stamp(NOW_MS - 40_200)),
                fsync_p50_us: 0,
                fsync_p99_us: 0,
                wall_clock_alarm: true,
                ..well
            },
        }
    }

    fn status(&self) -> v1::GetStatusResponse {
        let last = self.id == self.script.nodes.len() as u64;
        let count = |status: v1::InvoiceStatus, count| v1::StatusCount {
            status: status.into(),
            count,
        };
        let mut members = self.members();
        let looks = self.looks.fetch_add(1, Ordering::Relaxed);
        if !self.script.learner {
            let newcomer = self.member(9, "127.0.0.1:7109", false);
            members.extend(self.script.newcomer.then_some(v1::Member {
                matched_index: (looks * COPIED_A_LOOK).min(LOG_END),
                ..newcomer
            }));
        }
        let leads = self.id == 1 && !self.script.leaderless;
        let well = v1::GetStatusResponse {
            node_id: self.id,
            ledger_id: "demo".into(),
            role: if leads {
                v1::NodeRole::Leader
            } else {
                v1::NodeRole::Follower
            }
            .into(),
            term: 3,
            leader_id: u64::from(!self.script.leaderless),
            leader_address: if self.script.leaderless {
                String::new()
            } else {
                "127.0.0.1:7101".into()
            },
            members,
            last_log_index: LOG_END,
            committed_index: 12_345,
            applied_index: 12_345,
            snapshot_index: 10_000,
            cluster_time_ms: 3_723_000,
            state_hash: if self.script.torn && last {
                vec![9; 16]
            } else {
                vec![7; 16]
            },
            state_hash_index: 10_000,
            charges_allowed: true,
            invoices: vec![
                count(v1::InvoiceStatus::Pending, 12),
                count(v1::InvoiceStatus::Paid, 988),
            ],
            leases: 4,
            sessions: 2,
            wall_clock_alarm: self.script.torn && last,
            charge_alarms: 0,
            version: "0.1.0".into(),
            format: 1,
            paused_providers: Vec::new(),
            wall_time: Some(stamp(NOW_MS)),
            fsync_p50_us: 900,
            fsync_p99_us: 4_200,
            first_log_index: 7_001,
            data_bytes: 3_500_000,
            waiters: 1,
        };
        if self.script.ill {
            self.with_its_ills(well)
        } else {
            well
        }
    }
}

#[tonic::async_trait]
impl ClusterService for Node {
    async fn get_status(&self, _: Request<v1::GetStatusRequest>) -> Answer<v1::GetStatusResponse> {
        Ok(Response::new(self.status()))
    }

    async fn force_release(
        &self,
        request: Request<v1::ForceReleaseRequest>,
    ) -> Answer<v1::ForceReleaseResponse> {
        let id = request.into_inner().invoice_id;
        provoked(&id)?;
        let was_leased = id != "inv-free";
        let status = if was_leased {
            v1::InvoiceStatus::InDoubt
        } else {
            v1::InvoiceStatus::Pending
        };
        Ok(Response::new(v1::ForceReleaseResponse {
            was_leased,
            status: status.into(),
        }))
    }

    async fn pause_provider(
        &self,
        _: Request<v1::PauseProviderRequest>,
    ) -> Answer<v1::PauseProviderResponse> {
        Ok(Response::new(v1::PauseProviderResponse {}))
    }

    async fn allow_charges(
        &self,
        _: Request<v1::AllowChargesRequest>,
    ) -> Answer<v1::AllowChargesResponse> {
        Ok(Response::new(v1::AllowChargesResponse {}))
    }

    type ReadAuditLogStream = BoxStream<'static, Result<v1::ReadAuditLogResponse, Status>>;

    async fn read_audit_log(
        &self,
        request: Request<v1::ReadAuditLogRequest>,
    ) -> Answer<Self::ReadAuditLogStream> {
        let v1::ReadAuditLogRequest { from_index, limit } = request.into_inner();
        let limit = if limit == 0 {
            usize::MAX
        } else {
            usize::try_from(limit).unwrap_or(usize::MAX)
        };
        let records = records(6, self.script.forged)
            .into_iter()
            .filter(move |record| record.index >= from_index)
            .take(limit)
            .map(|record| {
                Ok(v1::ReadAuditLogResponse {
                    record: Some(record),
                })
            });
        Ok(Response::new(
            futures::stream::iter(records.collect::<Vec<_>>()).boxed(),
        ))
    }

    async fn add_learner(
        &self,
        request: Request<v1::AddLearnerRequest>,
    ) -> Answer<v1::AddLearnerResponse> {
        let id = request.into_inner().node_id;
        if self.members().iter().any(|member| member.node_id == id) {
            return Err(not_changed(
                id,
                MembershipReason::IdUsed,
                "its id was used before",
            ));
        }
        Ok(Response::new(v1::AddLearnerResponse {
            last_log_index: LOG_END,
            ..Default::default()
        }))
    }

    async fn promote_member(
        &self,
        request: Request<v1::PromoteMemberRequest>,
    ) -> Answer<v1::PromoteMemberResponse> {
        let v1::PromoteMemberRequest {
            node_id,
            replaces,
            allow_even,
        } = request.into_inner();
        if node_id == 4 {
            return Err(not_changed(
                node_id,
                MembershipReason::Lags,
                "its log lacks 8346 entries",
            ));
        }
        if replaces == 0 && !allow_even {
            return Err(not_changed(
                node_id,
                MembershipReason::EvenVoters,
                "4 voters tolerate no more failures than 3",
            ));
        }
        let mut members = self.members();
        members.retain(|member| member.node_id != replaces);
        members.push(self.member(node_id, "127.0.0.1:7109", true));
        Ok(Response::new(v1::PromoteMemberResponse { members }))
    }

    async fn remove_member(
        &self,
        request: Request<v1::RemoveMemberRequest>,
    ) -> Answer<v1::RemoveMemberResponse> {
        let v1::RemoveMemberRequest {
            node_id,
            allow_even,
        } = request.into_inner();
        let mut members = self.members();
        let before = members.len();
        members.retain(|member| member.node_id != node_id);
        if members.len() == before {
            return Err(not_changed(
                node_id,
                MembershipReason::NotAMember,
                "it does not belong",
            ));
        }
        if !allow_even {
            return Err(not_changed(
                node_id,
                MembershipReason::EvenVoters,
                "2 voters tolerate no failure",
            ));
        }
        Ok(Response::new(v1::RemoveMemberResponse { members }))
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Answer<v1::TransferLeaderResponse> {
        match request.into_inner().node_id {
            4 => Err(not_changed(
                4,
                MembershipReason::WrongRole,
                "it is a learner",
            )),
            3 => Err(outcome_unknown("the old leader ended before it answered")),
            0 => Ok(Response::new(v1::TransferLeaderResponse { leader_id: 2 })),
            leader_id => Ok(Response::new(v1::TransferLeaderResponse { leader_id })),
        }
    }

    async fn take_snapshot(
        &self,
        _: Request<v1::TakeSnapshotRequest>,
    ) -> Result<Response<v1::TakeSnapshotResponse>, Status> {
        match self.id {
            3 => Err(not_applied("the node is stopping")),
            _ => Ok(Response::new(v1::TakeSnapshotResponse {
                index: LOG_END,
                bytes: 187_654_321,
            })),
        }
    }

    type BackupStream = BoxStream<'static, Result<v1::BackupResponse, Status>>;

    async fn backup(
        &self,
        _: Request<v1::BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        let mut parts = backup_parts();
        if self.script.torn {
            parts.pop();
        }
        let parts = parts.into_iter().map(Ok);
        Ok(Response::new(Box::pin(futures::stream::iter(parts))))
    }
}
