//! Decides who among the callers of the nodes' listener is heard, and hands what they say to the consensus. Strangers,
//! nodes that mean somebody else, and folders that are not the one known under their id are refused in clear words.

use std::pin::Pin;
use std::sync::Arc;

use billing_proto::raft::Payload;
use billing_proto::raft::raft_service_server::RaftService;
use billing_store::{SnapshotSum, StoreError};
use futures::{Stream, StreamExt};
use openraft::Snapshot;
use openraft::raft::{AppendEntriesRequest, VoteRequest};
use tonic::{Request, Response, Status, Streaming};

use super::folders::FolderId;
use super::links::{Introduction, body, introduction, payload};
use super::reached::Reached;
use super::snapshot::{SnapshotFile, SnapshotHeader};
use super::types::TypeConfig;
use crate::node::error::CallError;
use crate::node::forward;
use crate::node::greet::{Greeted, Greeting};
use crate::node::membership::{self, Receiving, Word};
use crate::node::reads;
use crate::node::{EndReason, Inner};
use crate::restore::ledger_of;

/// Appends of one stream that wait to be read by the consensus.
pub struct PeerService {
    pub(crate) node: Arc<Inner>,
}

/// Nothing was granted yet, and there may be no leader that a new node could ask for a place.
const RESTORE_ANEW: &str = "do not start this folder again: where the others find a leader without it, let a new node take its place \
    with `billingd join`, under an id that was never used; else restore every node anew, into new folders, and only the first one \
    without --restore-id; node ids are never reused";

type Answers = Pin<Box<dyn Stream<Item = Result<Payload, Status>> + Send>>;

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("the consensus on this node stopped: {error}"))
}

impl PeerService {
    /// Hears the caller, or says why not.
    async fn hear<T>(&self, request: &Request<T>) -> Result<Introduction, Status> {
        let who = introduction(request.metadata())?;
        self.node.hear(&who).await?;
        Ok(who)
    }

    /// Refuses what the consensus would remember, while this node has not met all whom it was restored with.
    fn takes_part(&self) -> Result<(), Status> {
        match self.node.meeting.why_not_yet() {
            Some(why) => Err(Status::unavailable(why)),
            None => Ok(()),
        }
    }
}

impl Inner {
    async fn hear(&self, who: &Introduction) -> Result<(), Status> {
        let me = &self.me;
        if who.cluster != me.cluster {
            let advice = if ledger_of(&me.cluster) == ledger_of(&who.cluster) {
                "they are of one ledger and of different restores: make one of them again, into a new folder, with the file, the --peers and the --restore-id of the others"
            } else {
                "correct the peers or the data folder of one of them"
            };
            return Err(Status::failed_precondition(format!(
                "node {} at {} belongs to cluster {}, not to {}: {advice}",
                me.node,
                me.raft(),
                me.cluster,
                who.cluster
            )));
        }
        if who.from == me.node && who.folder == self.folders.own() {
            // Some address of another node leads here: nothing that ends anybody.
            return Err(Status::failed_precondition(format!(
                "node {} at {} reached itself, looking for node {}: an address among the members is wrong; remove that node",
                me.node,
                me.raft(),
                who.to
            )));
        }
        if who.from == me.node {
            return Err(Status::permission_denied(format!(
                "two nodes run under id {}, at {} and at {}: every node needs an id of its own",
                me.node,
                me.raft(),
                who.from_raft
            )));
        }
        if who.to != me.node {
            return Err(Status::failed_precondition(format!(
                "node {} is at {}, not node {}: the lists of peers differ",
                me.node,
                me.raft(),
                who.to
            )));
        }
        if self.was_removed(who.from) {
            return Err(Status::not_found(membership::removed(who.from)));
        }
        if let Some(known) = self.members().get(&who.from)
            && known.raft != who.from_raft
        {
            return Err(Status::permission_denied(format!(
                "node {} is known at {}, and another that calls itself {} says it is at {}: two nodes must not share an id",
                who.from, known.raft, who.from, who.from_raft
            )));
        }
        // First: a caller that must not speak itself has no say about whether this node may.
        self.admit(who.from, who.folder).await?;
        if let Some(meant) = who.to_folder
            && meant != self.folders.own()
        {
            // The others remember a folder that is gone: this one must not speak in its place.
            let reason = self.foreign_folder(me.node, meant, self.folders.own());
            self.fail_stop.trip(EndReason::Contradicted(reason.clone()));
            return Err(Status::failed_precondition(reason));
        }
        Ok(())
    }

    /// Whether `node` was a member and is none any more, as far as this node has applied the log.
    fn was_removed(&self, node: u64) -> bool {
        let state = self.replica.state();
        state.ids_used.contains(&node) && state.membership.membership().get_node(&node).is_none()
    }

    /// Lets `folder` speak under `node`, unless another one did before.
    pub(crate) async fn admit(&self, node: u64, folder: FolderId) -> Result<(), Status> {
        let members = self.members();
        let admitted = self
            .folders
            .admit(node, folder, |id| members.contains_key(&id))
            .await;
        match admitted {
            Ok(None) => Ok(()),
            Ok(Some(known)) => Err(Status::permission_denied(
                self.foreign_folder(node, known, folder),
            )),
            Err(error) => {
                if !matches!(error, StoreError::Closed) {
                    self.fail_stop.trip(error.clone());
                }
                Err(Status::unavailable(error.to_string()))
            }
        }
    }

    /// Ends this node where its log does not reach as far as it told the leader.
    fn still_has(&self, reached: &Reached) -> Result<(), Status> {
        // In this order: see `is_lost`.
        let log = self.log.state();
        let last = log.map_err(|error| Status::unavailable(error.to_string()))?;
        if !reached.is_lost(last.last, self.folders.vote()) {
            return Ok(());
        }
        let leader = reached.vote.leader_id;
        let reason = format!(
            "the log of node {} ends at entry {}, and it told node {}, which leads in term {}, that entry {} is on its disk: this data \
             folder is older than what it acknowledged, as one that was put back out of a copy; {}",
            self.me.node,
            last.last.unwrap_or(0),
            leader.node_id,
            leader.term,
            reached.index,
            billing_store::REJOIN
        );
        self.fail_stop.trip(EndReason::Contradicted(reason.clone()));
        Err(Status::failed_precondition(reason))
    }

    fn foreign_folder(&self, node: u64, known: FolderId, found: FolderId) -> String {
        let advice = match self.replica.state().ledger.awaits_restore() {
            true => RESTORE_ANEW,
            false => billing_store::REJOIN,
        };
        format!(
            "node {node} is known with data folder {known}, and this is folder {found}; if its disk was lost, {advice}"
        )
    }
}

#[tonic::async_trait]
impl RaftService for PeerService {
    type AppendStream = Answers;

    async fn hello(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        let who = self.hear(&request).await?;
        let greeting: Greeting = body("greeting", request.get_ref())?;
        let node = &self.node;
        if greeting.farewell {
            node.membership.look_around.notify_one();
        }
        if let Some(founding) = greeting.founding
            && founding != node.config.members
        {
            return Err(Status::failed_precondition(format!(
                "nodes {} and {} were started with different peers: found a cluster with one and the same list",
                who.from, node.config.node
            )));
        }
        let greeted = Greeted {
            folder: node.folders.own(),
            wall_ms: node.env.clock.wall_ms(),
            hashes: node.replica.state().known_hashes(),
        };
        payload("greeting", &greeted).map(Response::new)
    }

    async fn append(
        &self,
        request: Request<Streaming<Payload>>,
    ) -> Result<Response<Answers>, Status> {
        self.hear(&request).await?;
        self.takes_part()?;
        if let Some(reached) = Reached::said(request.metadata())? {
            self.node.still_has(&reached)?;
        }
        self.node.membership.append_came();
        let requests = request.into_inner().scan((), |(), message| {
            // A broken stream, or a message that cannot be read, ends it: the leader opens a new one.
            let request = message
                .and_then(|message| body::<AppendEntriesRequest<TypeConfig>>("append", &message));
            if let Err(status) = &request {
                tracing::debug!(reason = status.message(), "an append stream ends");
            }
            std::future::ready(request.ok())
        });
        let answers = self.node.raft.stream_append(requests).map(|answer| {
            let answer = answer.map_err(stopped)?;
            payload("append answer", &answer)
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn vote(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        self.hear(&request).await?;
        self.takes_part()?;
        let vote = self
            .node
            .succession
            .incoming(body("vote", request.get_ref())?);
        let answer = self.node.raft.vote(vote).await.map_err(stopped)?;
        payload("vote", &answer).map(Response::new)
    }

    async fn pre_vote(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        self.hear(&request).await?;
        self.takes_part()?;
        let vote: VoteRequest<TypeConfig> = body("pre-vote", request.get_ref())?;
        let answer = self.node.raft.pre_vote(vote.clone()).await;
        let answer = answer.map_err(stopped)?;
        let answer = self.node.succession.pre_voted(&vote, answer);
        payload("pre-vote", &answer).map(Response::new)
    }

    async fn transfer_leader(
        &self,
        request: Request<Payload>,
    ) -> Result<Response<Payload>, Status> {
        self.hear(&request).await?;
        self.takes_part()?;
        let transfer = body("transfer", request.get_ref())?;
        let answer = self
            .node
            .raft
            .handle_transfer_leader(transfer)
            .await
            .map_err(stopped)?;
        payload("transfer", &answer).map(Response::new)
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<Payload>>,
    ) -> Result<Response<Payload>, Status> {
        self.hear(&request).await?;
        self.takes_part()?;
        let mut pieces = request.into_inner();
        let first = pieces
            .message()
            .await?
            .ok_or_else(|| Status::invalid_argument("a snapshot begins with its header"))?;
        let header: SnapshotHeader = body("snapshot header", &first)?;
        let file = self.receive(&header, pieces).await?;
        let snapshot = Snapshot {
            meta: header.what.meta,
            snapshot: file,
        };
        let answer = self
            .node
            .raft
            .install_full_snapshot(header.vote, snapshot)
            .await
            .map_err(stopped)?;
        payload("snapshot answer", &answer).map(Response::new)
    }

    async fn forward(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        self.hear(&request).await?;
        let commands = body("commands", request.get_ref())?;
        let answers = forward::serve(&self.node, commands).await;
        payload("answers", &answers).map(Response::new)
    }

    async fn change_membership(
        &self,
        request: Request<Payload>,
    ) -> Result<Response<Payload>, Status> {
        self.hear(&request).await?;
        let change = body("change", request.get_ref())?;
        // One hop: only the leader's own word counts.
        let word = if self.node.leadership().is_some() {
            membership::here(&self.node, change).await
        } else {
            Word::Elsewhere(self.node.why_no_leader())
        };
        payload("word", &word).map(Response::new)
    }

    async fn read_index(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        self.hear(&request).await?;
        // One hop: only the leader's own word counts.
        let index = if self.node.leadership().is_some() {
            reads::confirm(&self.node).await
        } else {
            Err(CallError::not_applied(self.node.why_no_leader()))
        };
        payload("index", &index).map(Response::new)
    }
}

/// While it lives, the status shows what is received.
struct Shown<'a>(&'a Inner);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        self.0.membership.receives(None);
    }
}

impl PeerService {
    /// Writes what comes to this node's own store. Kept only when length and checksum are those of the header.
    async fn receive(
        &self,
        header: &SnapshotHeader,
        mut pieces: Streaming<Payload>,
    ) -> Result<SnapshotFile, Status> {
        let failed = |error: StoreError| {
            if error.is_fatal() {
                self.node.fail_stop.trip(error.clone());
            }
            Status::unavailable(error.to_string())
        };
        let index = header.what.meta.last_log_id.map_or(0, |last| last.index);
        let meta = header
            .what
            .encode()
            .map_err(|error| Status::internal(error.to_string()))?;
        let mut writer = self
            .node
            .snapshots
            .create(index, meta)
            .await
            .map_err(failed)?;
        let mut receiving = Receiving {
            received: 0,
            bytes: header.bytes,
        };
        let _shown = Shown(&self.node);
        while let Some(piece) = pieces.message().await? {
            receiving.received = receiving.received.saturating_add(piece.body.len() as u64);
            self.node.membership.receives(Some(receiving));
            if receiving.received > header.bytes {
                return Err(Status::invalid_argument(
                    "a snapshot is longer than its header says",
                ));
            }
            writer.write(piece.body).await.map_err(failed)?;
        }
        let expected = SnapshotSum {
            bytes: header.bytes,
            crc32c: header.crc32c,
        };
        let info = writer.finish(Some(expected)).await.map_err(failed)?;
        Ok(SnapshotFile::new(&info, header.what.ids_used.clone()))
    }
}
