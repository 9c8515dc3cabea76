//! Decides how the consensus library's messages travel to one other node. Bounds every call, and waits before it reports a
//! stream that could not be opened: the library itself tries again at once.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use billing_proto::raft::Payload;
use futures::{Stream, StreamExt};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{RPCOption, RPCTypes, RaftNetworkFactory, v2::RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, Snapshot};
use serde::{Serialize, de::DeserializeOwned};
use tonic::{Code, Response, Status};

use super::links::{Lane, Link, Links, body, payload};
use super::reached::{Acknowledged, Reached};
use super::snapshot::{Description, SnapshotFile, SnapshotHeader};
use super::transfers::Transfers;
use super::types::{Peer, SnapshotMeta, TypeConfig, Vote};
use crate::node::FailStop;
use crate::node::succession::Succession;

type Rpc<T> = Result<T, RPCError<TypeConfig>>;

/// How long the news of a commit waits for an entry that travels with it. A follower's reads and waiters wait as long.
const COMMIT_WAITS: Duration = Duration::from_millis(2);

/// Pieces of a snapshot read ahead of the network.
const SNAPSHOT_PIECES_AHEAD: usize = 4;
/// Slower than this no node installs what it was sent, however busy its machine is: a million invoices took 27 s of two crowded
/// cores. One that vanishes meanwhile breaks the connection long before.
const INSTALLED_PER_SECOND_MIN: u64 = 1024 * 1024;

/// Makes a client per target and lane.
#[derive(Clone)]
pub struct Network {
    pub links: Links,
    pub me: u64,
    pub snapshots: Arc<dyn billing_store::SnapshotStore>,
    /// How long an append may go unanswered before the stream is given up and opened anew.
    pub patience: Duration,
    pub succession: Succession,
    pub transfers: Transfers,
    pub acknowledged: Acknowledged,
    pub silence: Silence,
    pub fail_stop: FailStop,
}

/// Whether this node keeps what it would append elsewhere, heartbeats included, to itself; what a stream sent before is on its
/// way. Clones are the same.
#[derive(Clone, Default)]
pub struct Silence(Arc<AtomicBool>);

impl Silence {
    pub fn keep(&self, silent: bool) {
        self.0.store(silent, Ordering::Relaxed);
    }

    fn is_kept(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn check(&self) -> Rpc<()> {
        if self.is_kept() {
            let kept =
                Status::unavailable("this node heard no majority, and is silent for a while");
            return Err(failure(kept));
        }
        Ok(())
    }
}

impl Network {
    fn client(&self, target: u64, peer: &Peer, lane: Lane) -> PeerClient {
        PeerClient {
            link: self.links.to(target, &peer.raft, lane),
            network: self.clone(),
            target,
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = PeerClient;

    async fn new_client(&mut self, target: u64, node: &Peer) -> PeerClient {
        self.client(target, node, Lane::Entries)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &Peer) -> PeerClient {
        self.client(target, node, Lane::Pulse)
    }

    async fn new_snapshot_client(&mut self, target: u64, node: &Peer) -> PeerClient {
        self.client(target, node, Lane::Snapshots)
    }
}

/// The way to one other node.
pub struct PeerClient {
    link: Result<Link, Status>,
    network: Network,
    target: u64,
}

impl PeerClient {
    fn timeout(&self, action: RPCTypes, timeout: Duration) -> Timeout<TypeConfig> {
        Timeout {
            action,
            id: self.network.me,
            target: self.target,
            timeout,
        }
    }

    fn link(&self) -> Rpc<Link> {
        self.link.clone().map_err(failure)
    }

    async fn open(
        &self,
        requests: impl Stream<Item = Payload> + Send + 'static,
    ) -> Rpc<tonic::Streaming<Payload>> {
        self.network.silence.check()?;
        let mut link = self.link()?;
        let mut request = link.request(requests);
        let acknowledged = &self.network.acknowledged;
        acknowledged
            .remind(self.target, &mut request)
            .map_err(failure)?;
        let response = link.client.append(request).await.map_err(failure)?;
        Ok(response.into_inner())
    }

    /// One request, one answer, within the time that the library allows.
    async fn unary<Q, A, F, Fut>(
        &self,
        action: RPCTypes,
        what: &'static str,
        request: &Q,
        option: &RPCOption,
        call: F,
    ) -> Rpc<A>
    where
        Q: Serialize,
        A: DeserializeOwned,
        F: FnOnce(Link, tonic::Request<Payload>) -> Fut,
        Fut: Future<Output = Result<Response<Payload>, Status>>,
    {
        let link = self.link()?;
        let request = link.request(payload(what, request).map_err(failure)?);
        let limit = option.soft_ttl();
        match tokio::time::timeout(limit, call(link, request)).await {
            Ok(Ok(response)) => body(what, response.get_ref()).map_err(failure),
            Ok(Err(status)) => Err(failure(status)),
            Err(_) => Err(RPCError::Timeout(self.timeout(action, limit))),
        }
    }
}

/// Unreachable makes the library back off; everything else is tried again soon.
fn failure(status: Status) -> RPCError<TypeConfig> {
    match status.code() {
        Code::Unavailable | Code::FailedPrecondition | Code::Unauthenticated | Code::Internal => {
            RPCError::Unreachable(Unreachable::new(&status))
        }
        _ => RPCError::Network(NetworkError::new(&status)),
    }
}

/// How long a node may take to install a snapshot of so many bytes once it has all of them.
fn installed_within(limit: Duration, bytes: u64) -> Duration {
    limit.saturating_add(Duration::from_secs(bytes / INSTALLED_PER_SECOND_MIN))
}

/// The requests of a stream without those that the next one makes needless: the library tells each follower of each commit
/// in a message of its own, and under load the next entry, which tells it too, is right behind. A message costs every node a
/// wake-up. Answers name the entry that they reach, so none is missed.
fn with_company<S>(input: S) -> impl Stream<Item = AppendEntriesRequest<TypeConfig>> + Send
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin,
{
    futures::stream::unfold((input.fuse(), None), |(mut input, carried)| async move {
        let mut request = match carried {
            Some(carried) => carried,
            None => input.next().await?,
        };
        let mut carried = None;
        while request.entries.is_empty() && carried.is_none() {
            match tokio::time::timeout(COMMIT_WAITS, input.next()).await {
                Ok(Some(next)) if follows(&request, &next) => request = next,
                Ok(Some(next)) => carried = Some(next),
                // Nobody comes: it goes as it is.
                Ok(None) | Err(_) => break,
            }
        }
        Some((request, (input, carried)))
    })
}

/// Whether all that `request`, which has no entries, says is said by `next` too.
fn follows(
    request: &AppendEntriesRequest<TypeConfig>,
    next: &AppendEntriesRequest<TypeConfig>,
) -> bool {
    request.vote == next.vote
        && request.prev_log_id == next.prev_log_id
        && request.leader_commit <= next.leader_commit
}

impl RaftNetworkV2<TypeConfig> for PeerClient {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<TypeConfig>> {
        // Heartbeats and probes: a stream of one, so that there is one way to append.
        let last = rpc
            .entries
            .last()
            .map(|entry| entry.log_id)
            .or(rpc.prev_log_id);
        let limit = option.soft_ttl();
        let one = async {
            let only = payload("append", &rpc).map_err(failure)?;
            let mut answers = self.open(futures::stream::iter([only])).await?;
            match answers.next().await {
                Some(answer) => answer
                    .and_then(|answer| {
                        body::<StreamAppendResult<TypeConfig>>("append answer", &answer)
                    })
                    .map_err(failure),
                None => Err(RPCError::Network(NetworkError::from_string(
                    "the stream ended without an answer",
                ))),
            }
        };
        let answer = tokio::time::timeout(limit, one)
            .await
            .map_err(|_| RPCError::Timeout(self.timeout(RPCTypes::AppendEntries, limit)))??;
        Ok(match answer {
            Ok(matching) if matching == last => AppendEntriesResponse::Success,
            Ok(matching) => AppendEntriesResponse::PartialSuccess(matching),
            refused @ Err(_) => AppendEntriesResponse::from(refused),
        })
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Rpc<BoxStream<'s, Rpc<StreamAppendResult<TypeConfig>>>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            let limit = option.soft_ttl();
            let asked = Arc::new(AtomicU64::new(0));
            let counter = asked.clone();
            // A stream lives under one vote: that of its first request.
            let vote = Arc::new(OnceLock::new());
            let first = vote.clone();
            let requests = with_company(input).map(move |request| {
                counter.fetch_add(1, Ordering::Relaxed);
                first.get_or_init(|| request.vote);
                payload("append", &request)
            });
            // What cannot be encoded ends the stream, as silence does: to leave it out would be a hole in the other's log.
            let silence = self.network.silence.clone();
            let requests = requests.take_while(move |request| {
                std::future::ready(request.is_ok() && !silence.is_kept())
            });
            let requests = requests.filter_map(|request| std::future::ready(request.ok()));
            let opened = match tokio::time::timeout(limit, self.open(requests)).await {
                Ok(opened) => opened,
                Err(_) => Err(RPCError::Timeout(
                    self.timeout(RPCTypes::AppendEntries, limit),
                )),
            };
            let answers = match opened {
                Ok(answers) => answers,
                Err(error) => {
                    // The library backs off only while it sends, which a stream that never opened does not reach.
                    tokio::time::sleep(limit).await;
                    return Err(error);
                }
            };
            let patience = self.network.patience;
            let timeout = self.timeout(RPCTypes::AppendEntries, patience);
            let (target, acknowledged) = (self.target, self.network.acknowledged.clone());
            let stream = futures::stream::unfold(Some((answers, 0)), move |state| {
                let asked = asked.clone();
                let timeout = timeout.clone();
                let (vote, acknowledged) = (vote.clone(), acknowledged.clone());
                async move {
                    let (mut answers, answered) = state?;
                    loop {
                        let waiting = asked.load(Ordering::Relaxed) > answered;
                        let next = match tokio::time::timeout(patience, answers.next()).await {
                            Ok(next) => next?,
                            // Idle: nothing was asked when the wait began.
                            Err(_) if !waiting => continue,
                            Err(_) => return Some((Err(RPCError::Timeout(timeout)), None)),
                        };
                        let result = next
                            .and_then(|answer| {
                                body::<StreamAppendResult<TypeConfig>>("append answer", &answer)
                            })
                            .map_err(failure);
                        if let (Ok(Ok(Some(matching))), Some(&vote)) = (&result, vote.get()) {
                            let index = matching.index;
                            acknowledged.note(target, Reached { vote, index });
                        }
                        let goes_on = matches!(result, Ok(Ok(_)));
                        return Some((result, goes_on.then_some((answers, answered + 1))));
                    }
                }
            });
            Ok(Box::pin(stream) as BoxStream<'s, _>)
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<TypeConfig>> {
        let rpc = self.network.succession.outgoing(rpc);
        self.unary(
            RPCTypes::Vote,
            "vote",
            &rpc,
            &option,
            |mut link, request| async move { link.client.vote(request).await },
        )
        .await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<TypeConfig>> {
        self.unary(
            RPCTypes::Vote,
            "pre-vote",
            &rpc,
            &option,
            |mut link, request| async move { link.client.pre_vote(request).await },
        )
        .await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<
            openraft::type_config::alias::CommittedLeaderIdOf<TypeConfig>,
            u64,
            Peer,
            SnapshotFile,
        >,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let _transfer = self.network.transfers.begin();
        let sending = self.send_snapshot(vote, snapshot.meta, snapshot.snapshot, &option);
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = sending => sent.map_err(StreamingError::from),
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<TypeConfig>> {
        self.unary(
            RPCTypes::TransferLeader,
            "transfer",
            &req,
            &option,
            |mut link, request| async move { link.client.transfer_leader(request).await },
        )
        .await
    }
}

impl PeerClient {
    async fn send_snapshot(
        &self,
        vote: Vote,
        meta: SnapshotMeta,
        file: SnapshotFile,
        option: &RPCOption,
    ) -> Rpc<SnapshotResponse<TypeConfig>> {
        let mut link = self.link()?;
        // A disk that cannot be read is no trouble of the network, which would be tried again for ever while the other waits.
        let unreadable = |error: billing_store::StoreError| {
            let told = NetworkError::new(&error);
            if error.is_fatal() {
                self.network.fail_stop.trip(error);
            }
            RPCError::Network(told)
        };
        let mut reader = self
            .network
            .snapshots
            .read(file.id)
            .await
            .map_err(unreadable)?;
        let header = SnapshotHeader {
            vote,
            what: Description {
                meta,
                ids_used: (*file.ids_used).clone(),
            },
            bytes: file.sum.bytes,
            crc32c: file.sum.crc32c,
        };
        let header = payload("snapshot header", &header).map_err(failure)?;
        let (pieces, queued) = tokio::sync::mpsc::channel::<Payload>(SNAPSHOT_PIECES_AHEAD);
        // A piece that is not taken in time means that the other side stopped taking them.
        let limit = option.hard_ttl();
        let install_limit = installed_within(limit, file.sum.bytes);
        let feed = async {
            let mut next = Some(header);
            while let Some(piece) = next {
                match tokio::time::timeout(limit, pieces.send(piece)).await {
                    Ok(Ok(())) => {}
                    // The call has ended: its own result says why.
                    Ok(Err(_)) => return Ok(()),
                    Err(_) => {
                        return Err(RPCError::Timeout(
                            self.timeout(RPCTypes::InstallSnapshot, limit),
                        ));
                    }
                }
                next = reader
                    .next()
                    .await
                    .map_err(unreadable)?
                    .map(|body| Payload { body });
            }
            drop(pieces);
            Ok(())
        };
        let request = link.request(tokio_stream::wrappers::ReceiverStream::new(queued));
        let call = link.client.install_snapshot(request);
        tokio::pin!(call, feed);
        let response = tokio::select! {
            biased;
            response = &mut call => response,
            fed = &mut feed => {
                fed?;
                match tokio::time::timeout(install_limit, call).await {
                    Ok(response) => response,
                    Err(_) => return Err(RPCError::Timeout(
                        self.timeout(RPCTypes::InstallSnapshot, install_limit),
                    )),
                }
            }
        };
        let response = response.map_err(failure)?;
        body("snapshot answer", response.get_ref()).map_err(failure)
    }
}

#[cfg(test)]
mod tests {
    use openraft::EntryPayload;

    use super::*;
    use crate::raft::types::{Entry, LeaderId, LogId};

    fn at(index: u64) -> LogId {
        LogId::new(
            LeaderId {
                term: 1,
                node_id: 1,
            },
            index,
        )
    }

    /// What a leader of `term` says that has `entries` behind entry 7, all of which are committed up to `commit`.
    fn append(term: u64, entries: u64, commit: u64) -> AppendEntriesRequest<TypeConfig> {
        let entry = |index| Entry {
            log_id: at(index),
            payload: EntryPayload::Blank,
        };
        AppendEntriesRequest {
            vote: Vote::new_committed(term, 1),
            prev_log_id: Some(at(7)),
            entries: (8..8 + entries).map(entry).collect(),
            leader_commit: Some(at(commit)),
        }
    }

    async fn sent(input: Vec<AppendEntriesRequest<TypeConfig>>) -> Vec<(u64, usize, Option<u64>)> {
        let requests = with_company(futures::stream::iter(input)).map(|request| {
            let commit = request.leader_commit.map(|commit| commit.index);
            (request.vote.leader_id.term, request.entries.len(), commit)
        });
        requests.collect().await
    }

    #[test]
    fn a_large_snapshot_may_take_long_to_install() {
        let limit = Duration::from_secs(30);
        assert_eq!(installed_within(limit, 5_000), limit);
        // A million invoices: more than a machine took that had four nodes, their clients and compilers on two cores.
        assert!(installed_within(limit, 124_000_000) > Duration::from_secs(4 * 27));
    }

    #[tokio::test]
    async fn the_news_of_a_commit_travels_with_the_entry_behind_it() {
        let behind = vec![append(1, 0, 6), append(1, 0, 7), append(1, 2, 7)];
        assert_eq!(sent(behind).await, [(1, 2, Some(7))]);
    }

    #[tokio::test]
    async fn the_news_of_a_commit_that_nothing_follows_goes_alone() {
        assert_eq!(sent(vec![append(1, 0, 7)]).await, [(1, 0, Some(7))]);
        // A stream that stays open and silent.
        let silent = futures::stream::iter([append(1, 0, 7)]).chain(futures::stream::pending());
        let mut requests = std::pin::pin!(with_company(silent));
        let alone = requests.next().await.map(|request| request.leader_commit);
        assert_eq!(alone, Some(Some(at(7))));
    }

    #[tokio::test]
    async fn what_the_next_request_does_not_say_too_is_sent_before_it() {
        let other_leader = vec![append(1, 0, 7), append(2, 1, 7)];
        assert_eq!(sent(other_leader).await, [(1, 0, Some(7)), (2, 1, Some(7))]);
        let lower_commit = vec![append(1, 0, 7), append(1, 1, 6)];
        assert_eq!(sent(lower_commit).await, [(1, 0, Some(7)), (1, 1, Some(6))]);
        let mut elsewhere = append(1, 1, 7);
        elsewhere.prev_log_id = Some(at(5));
        assert_eq!(
            sent(vec![append(1, 0, 7), elsewhere]).await,
            [(1, 0, Some(7)), (1, 1, Some(7))]
        );
    }
}
