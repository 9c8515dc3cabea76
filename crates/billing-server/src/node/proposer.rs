//! Decides how commands become entries: what is queued now goes into one batch, which stays open only while turns of the
//! scheduler bring more, and the batch gets its time after it closed. Never proposes without being sure of its own leadership's clock, and never calls a proposal
//! undone: once handed to the consensus, an error is Unknown.

use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use billing_core::{Actor, Command, Rejection, Reply};
use billing_env::Env;
use openraft::async_runtime::WatchReceiver as _;
use openraft::impls::ProgressResponder;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::Inner;
use super::bounds::{
    BATCH_BYTES_MAX, BATCH_COMMANDS_MAX, ENTRIES_IN_FLIGHT_MAX, PROPOSALS_QUEUED_MAX,
    SESSION_BYTES_FIRST_MAX, SESSION_COMMANDS_FIRST_MAX,
};
use super::error::CallError;
use crate::raft::types::{Batch, BatchBytes, LeaderId, Proposal};

/// The ledger's word on one command, or why there is none.
pub type Answer = Result<Result<Reply, Rejection>, CallError>;

const QUEUED: u8 = 0;
const HANDED_OVER: u8 = 1;
const WITHDRAWN: u8 = 2;

/// What an acquire or a release takes, with room to spare: a guess that saves growing.
const COMMAND_BYTES_USUAL: usize = 128;
/// Turns of the scheduler for which a batch stays open at most; usually some microseconds each.
const GATHER_TURNS_MAX: usize = 8;

/// One command on its way.
pub(crate) struct Ask {
    pub actor: Actor,
    pub command: Command,
    /// The two of them as they travel and lie in the log: made once, for the leader's log and for every follower. Where another
    /// node leads, to be counted.
    pub encoded: Vec<u8>,
    progress: Arc<AtomicU8>,
    reply: oneshot::Sender<Answer>,
}

impl Ask {
    /// Marks it as about to leave; false when its caller gave up before that, and it must not go.
    fn hand_over(&self) -> bool {
        !self.reply.is_closed() && step(&self.progress, HANDED_OVER)
    }

    pub fn answer(self, answer: Answer) {
        // Nobody waits any more: the caller gave up and was told Unknown.
        let _ = self.reply.send(answer);
    }
}

fn step(progress: &AtomicU8, to: u8) -> bool {
    progress
        .compare_exchange(QUEUED, to, Ordering::SeqCst, Ordering::SeqCst)
        .is_ok()
}

/// The caller's side of an [`Ask`].
pub(crate) struct Asked {
    progress: Arc<AtomicU8>,
    reply: oneshot::Receiver<Answer>,
}

impl Asked {
    /// Waits for the answer, `patience` at most.
    pub async fn answer(mut self, env: &Env, patience: Duration) -> Answer {
        tokio::select! {
            biased;
            answer = poll_fn(|cx| self.poll_answer(cx)) => answer,
            () = env.clock.sleep(patience) => Err(self.give_up("no answer in time")),
        }
    }

    /// The answer, for whoever waits for many and bounds the time of all of them. Not to be polled after it is ready.
    pub fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Answer> {
        Pin::new(&mut self.reply)
            .poll(cx)
            .map(|answer| answer.unwrap_or_else(|_| Err(self.give_up("the node stopped"))))
    }

    /// What it means that nobody waits any more: a command that was still queued never leaves.
    pub fn give_up(&self, why: &str) -> CallError {
        if step(&self.progress, WITHDRAWN) {
            CallError::not_applied(format!("{why}, and it was still queued"))
        } else {
            CallError::unknown(why)
        }
    }
}

/// Waits for all of them, `patience` in all; by position.
pub(crate) async fn answers(
    asked: Vec<Result<Asked, CallError>>,
    env: &Env,
    patience: Duration,
) -> Vec<Answer> {
    let since = env.clock.monotonic();
    let mut answers = Vec::with_capacity(asked.len());
    for asked in asked {
        let left = patience.saturating_sub(env.clock.monotonic().since(since));
        answers.push(match asked {
            Ok(asked) => asked.answer(env, left).await,
            Err(error) => Err(error),
        });
    }
    answers
}

/// A bounded queue of commands; the other end is a [`Gather`]. Two lanes: what keeps sessions alive never stands behind an
/// acquire storm, and keeps its own order.
#[derive(Clone)]
pub(crate) struct Queue {
    sessions: mpsc::Sender<Ask>,
    others: mpsc::Sender<Ask>,
}

pub(crate) fn queue() -> (Queue, Gather) {
    let (sessions, alive) = mpsc::channel(PROPOSALS_QUEUED_MAX); // Full: Overloaded, at once.
    let (others, work) = mpsc::channel(PROPOSALS_QUEUED_MAX); // Full: Overloaded, at once.
    let gather = Gather {
        sessions: alive,
        others: work,
        carried: None,
    };
    (Queue { sessions, others }, gather)
}

impl Queue {
    pub fn ask(&self, actor: Actor, command: Command) -> Result<Asked, CallError> {
        let encoded = encoded(&actor, &command)?;
        let (reply, answer) = oneshot::channel();
        let progress = Arc::new(AtomicU8::new(QUEUED));
        self.put(Ask {
            actor,
            command,
            encoded,
            progress: progress.clone(),
            reply,
        })?;
        Ok(Asked {
            progress,
            reply: answer,
        })
    }

    /// Puts a command there that came from another queue.
    pub fn put(&self, ask: Ask) -> Result<(), CallError> {
        let lane = match ask.command {
            Command::OpenSession(_) | Command::KeepAlive(_) | Command::CloseSession(_) => {
                &self.sessions
            }
            _ => &self.others,
        };
        lane.try_send(ask).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => CallError::proposals_full(),
            mpsc::error::TrySendError::Closed(_) => CallError::not_applied("the node is stopping"),
        })
    }
}

fn encoded(actor: &Actor, command: &Command) -> Result<Vec<u8>, CallError> {
    let bytes = Vec::with_capacity(COMMAND_BYTES_USUAL);
    let bytes = postcard::to_extend(&(actor, command), bytes).map_err(|error| {
        CallError::not_applied(format!("the command cannot be encoded: {error}"))
    })?;
    if bytes.len() > BATCH_BYTES_MAX {
        return Err(CallError::not_applied(format!(
            "the command has {} bytes, the bound is {BATCH_BYTES_MAX}",
            bytes.len()
        )));
    }
    Ok(bytes)
}

/// What a lane has of one batch.
#[derive(Default)]
struct Share {
    commands: usize,
    bytes: usize,
}

impl Share {
    /// Whether sessions may still go first.
    fn has_room(&self) -> bool {
        self.commands < SESSION_COMMANDS_FIRST_MAX && self.bytes < SESSION_BYTES_FIRST_MAX
    }
}

/// Takes batches from a queue.
pub(crate) struct Gather {
    sessions: mpsc::Receiver<Ask>,
    others: mpsc::Receiver<Ask>,
    /// The one that did not fit into the last batch; first in the next.
    carried: Option<Ask>,
}

impl Gather {
    /// Waits for a command, then takes what else is there and fits: sessions first, but never only them while others wait.
    /// `None` when every sender is gone and all was taken.
    pub async fn next(&mut self) -> Option<Vec<Ask>> {
        loop {
            if self.carried.is_none() {
                let first = tokio::select! {
                    biased;
                    Some(ask) = self.sessions.recv() => ask,
                    Some(ask) = self.others.recv() => ask,
                    else => return None,
                };
                // Kept here while others have their turn: this future may be dropped meanwhile.
                self.carried = Some(first);
                self.company().await;
            }
            let mut bytes = 0;
            let mut batch = Vec::with_capacity(self.queued().min(BATCH_COMMANDS_MAX) + 1);
            let mut next = self.carried.take();
            let mut sessions = Share::default();
            while let Some(ask) = next {
                if batch.len() == BATCH_COMMANDS_MAX || bytes + ask.encoded.len() > BATCH_BYTES_MAX
                {
                    self.carried = Some(ask);
                    break;
                }
                // Those who gave up meanwhile were told that nothing happened.
                if ask.hand_over() {
                    bytes += ask.encoded.len();
                    batch.push(ask);
                }
                next = self.take_next(&mut sessions);
            }
            if !batch.is_empty() {
                return Some(batch);
            }
        }
    }

    /// Goes round the tasks that can run: they hold what arrived on other connections at the same time, and an entry costs far
    /// more than a command. Nothing is waited for: it ends when a turn brought nothing, or two in a row once others came (those
    /// that were there already count), since callers whose answers left together ask again together.
    async fn company(&self) {
        let (mut queued, mut patience) = (0, 1);
        for _ in 0..GATHER_TURNS_MAX {
            tokio::task::yield_now().await;
            let before = std::mem::replace(&mut queued, self.queued());
            if queued > before {
                patience = 2;
            } else {
                patience -= 1;
            }
            if patience == 0 || queued >= BATCH_COMMANDS_MAX {
                return;
            }
        }
    }

    fn queued(&self) -> usize {
        self.sessions.len() + self.others.len()
    }

    /// What is there now. `sessions` is what was taken from their lane before the others got their turn.
    fn take_next(&mut self, sessions: &mut Share) -> Option<Ask> {
        if sessions.has_room()
            && let Ok(ask) = self.sessions.try_recv()
        {
            sessions.commands += 1;
            sessions.bytes += ask.encoded.len();
            return Some(ask);
        }
        let ask = self.others.try_recv().or_else(|_| self.sessions.try_recv());
        ask.ok()
    }

    pub fn close(&mut self) {
        self.sessions.close();
        self.others.close();
    }
}

pub(crate) fn refuse(batch: Vec<Ask>, error: &CallError) {
    for ask in batch {
        ask.answer(Err(error.clone()));
    }
}

/// The proposer of one node; works while that node leads. Ends when the node does: then what was queued before is applied, or
/// whatever became of it.
pub(crate) async fn run(node: Arc<Inner>, mut gather: Gather) {
    let in_flight = node.entries_in_flight.clone();
    let mut closing = node.closing.subscribe();
    loop {
        // First a place in flight, then the batch: commands gather while all places are taken.
        let Ok(place) = in_flight.clone().acquire_owned().await else {
            return;
        };
        let batch = tokio::select! {
            biased;
            batch = gather.next() => batch,
            () = super::until_true(&mut closing) => {
                // What is queued still goes out; nothing new comes in.
                gather.close();
                gather.next().await
            }
        };
        let Some(batch) = batch else {
            drop(place);
            drained(&in_flight, ENTRIES_IN_FLIGHT_MAX).await;
            return;
        };
        let leadership = match ready_leadership(&node).await {
            Ok(leadership) => leadership,
            Err(error) => {
                refuse(batch, &error);
                continue;
            }
        };
        let batch = only_founding(&node, batch);
        if batch.is_empty() {
            continue;
        }
        let mut encoded = BatchBytes::of(batch.len());
        let mut commands = Vec::with_capacity(batch.len());
        let mut replies = Vec::with_capacity(batch.len());
        for ask in batch {
            encoded.push(&ask.encoded);
            commands.push((ask.actor, ask.command));
            replies.push(ask.reply);
        }
        // After the batch closed: a command never carries a time before it was asked for.
        let Some(stamp) = node.replica.clock.stamp(leadership) else {
            answer_all(replies, &CallError::not_applied("leadership moved"));
            continue;
        };
        let proposal = Proposal::encoded(Batch { stamp, commands }, &encoded);
        let (responder, outcome) = ProgressResponder::complete_only();
        let written = node
            .raft
            .write(proposal)
            .with_leader(leadership)
            .responder(responder)
            .await;
        if let Err(fatal) = written {
            answer_all(
                replies,
                &CallError::unknown(format!("the consensus stopped: {fatal}")),
            );
            continue;
        }
        tokio::spawn(async move {
            match outcome.await {
                Ok(Ok(response)) => {
                    debug_assert_eq!(
                        response.data.0.len(),
                        replies.len(),
                        "one result per command"
                    );
                    for (reply, result) in replies.into_iter().zip(response.data.0) {
                        let _ = reply.send(Ok(result));
                    }
                }
                // Even where the library says that it refused: no error of a proposal proves that it was not appended (§6).
                Ok(Err(error)) => answer_all(replies, &CallError::unknown(error.to_string())),
                Err(_) => answer_all(replies, &CallError::unknown("the consensus stopped")),
            }
            drop(place);
        });
    }
}

/// Between the election of the first leader and the first command of a ledger that is new, or was put back, only that command
/// may pass: to a client the ledger would say "not bootstrapped" for good, while it is a matter of milliseconds.
fn only_founding(node: &Inner, batch: Vec<Ask>) -> Vec<Ask> {
    let why = {
        let ledger = &node.replica.state().ledger;
        match ledger.ledger_id() {
            None => "the cluster is being founded",
            Some(_) if ledger.awaits_restore() => "the cluster is being restored",
            Some(_) => return without_restore(batch),
        }
    };
    let (founding, early): (Vec<_>, Vec<_>) = batch.into_iter().partition(|ask| {
        matches!(
            ask.command,
            Command::Bootstrap(_) | Command::BootstrapWithin(_) | Command::Restore(_)
        )
    });
    refuse(early, &CallError::not_applied(why));
    founding
}

/// A ledger is restored once. A second leader may have asked for it before it knew that the first one's command went through,
/// and by now there are sessions that it would end.
fn without_restore(batch: Vec<Ask>) -> Vec<Ask> {
    let restores = |ask: &Ask| matches!(ask.command, Command::Restore(_));
    if !batch.iter().any(restores) {
        return batch;
    }
    let (late, batch): (Vec<_>, Vec<_>) = batch.into_iter().partition(restores);
    refuse(late, &CallError::not_applied("the cluster is restored"));
    batch
}

fn answer_all(replies: Vec<oneshot::Sender<Answer>>, error: &CallError) {
    for reply in replies {
        let _ = reply.send(Err(error.clone()));
    }
}

/// This node's leadership, once it has a base to count time from. Refuses before anything is handed over: without a
/// leadership, and without a recent word from a majority, since the consensus would not take it either.
pub(crate) async fn ready_leadership(node: &Inner) -> Result<LeaderId, CallError> {
    let patience = node.config.election_timeout_max;
    let ready = async {
        node.membership.settled().await;
        let mut base = node.replica.clock.ready();
        let mut metrics = node.raft.server_metrics();
        loop {
            let Some(leadership) = node.leadership() else {
                return Err(CallError::not_applied(node.why_no_leader()));
            };
            if *base.borrow_and_update() == Some(leadership) {
                return Ok(leadership);
            }
            // Elected, and its first entry is not applied yet.
            let gone = tokio::select! {
                changed = base.changed() => changed.is_err(),
                changed = metrics.changed() => changed.is_err(),
            };
            if gone {
                return Err(CallError::not_applied("the node is stopping"));
            }
        }
    };
    let leadership = tokio::select! {
        biased;
        leadership = ready => leadership?,
        () = node.env.clock.sleep(patience) => {
            return Err(CallError::not_applied("this node was elected and could not begin to lead"));
        }
    };
    if node.heard_ago().is_some_and(|ago| ago > patience) {
        return Err(CallError::not_applied(
            "this node leads without having heard from a majority lately",
        ));
    }
    Ok(leadership)
}

/// Resolves when all `places` are free: nothing is in flight any more.
pub(crate) async fn drained(in_flight: &Semaphore, places: usize) {
    let all = u32::try_from(places).unwrap_or(u32::MAX);
    // An error means that nobody gives places out any more; here nobody says so.
    let _ = in_flight.acquire_many(all).await;
}

#[cfg(test)]
mod tests {
    use billing_core::{Evidence, InvoiceId};

    use super::*;

    fn tick(queue: &Queue) -> Result<Asked, CallError> {
        queue.ask(Actor::ledger(), Command::Tick)
    }

    fn force_release(reason_bytes: usize) -> Result<Command, billing_core::OutOfBounds> {
        Ok(Command::ForceRelease(billing_core::ForceRelease {
            invoice: InvoiceId::new("inv-7")?,
            reason: Evidence::new(&"x".repeat(reason_bytes))?,
        }))
    }

    #[tokio::test]
    async fn a_batch_is_closed_at_its_commands() -> Result<(), CallError> {
        let (queue, mut gather) = queue();
        let asked = (0..BATCH_COMMANDS_MAX + 1)
            .map(|_| tick(&queue))
            .collect::<Result<Vec<_>, _>>()?;
        assert_eq!(
            gather.next().await.map(|batch| batch.len()),
            Some(BATCH_COMMANDS_MAX)
        );
        assert_eq!(
            gather.next().await.map(|batch| batch.len()),
            Some(1),
            "none is left behind"
        );
        drop(asked);
        Ok(())
    }

    #[tokio::test]
    async fn a_batch_is_closed_at_its_bytes() -> Result<(), Box<dyn std::error::Error>> {
        let (queue, mut gather) = queue();
        let command = force_release(1_000)?;
        let each = encoded(&Actor::ledger(), &command)?.len();
        let asked = (0..100)
            .map(|_| queue.ask(Actor::ledger(), command.clone()))
            .collect::<Result<Vec<_>, _>>()?;
        let mut left = 100;
        while left > 0 {
            let batch = gather.next().await.unwrap_or_default();
            assert!(
                batch.len() * each <= BATCH_BYTES_MAX,
                "{} commands",
                batch.len()
            );
            assert!(
                batch.len() == left || (batch.len() + 1) * each > BATCH_BYTES_MAX,
                "it lingers"
            );
            left -= batch.len();
        }
        drop(asked);
        Ok(())
    }

    #[tokio::test]
    async fn keep_alives_overtake_a_storm_and_do_not_starve_it() -> Result<(), CallError> {
        let (queue, mut gather) = queue();
        let keep_alive = |number: u16| {
            let mut id = [0; 16];
            id[..2].copy_from_slice(&number.to_be_bytes());
            Command::KeepAlive(billing_core::KeepAlive {
                session: billing_core::SessionId::new(id),
            })
        };
        let storm = (0..2_000).map(|_| tick(&queue));
        let storm = storm.collect::<Result<Vec<_>, _>>()?;
        let beats = (0..1_000).map(|number| queue.ask(Actor::ledger(), keep_alive(number)));
        let beats = beats.collect::<Result<Vec<_>, _>>()?;
        let is_beat = |ask: &Ask| matches!(ask.command, Command::KeepAlive(_));
        let batch = gather.next().await.unwrap_or_default();
        let first_beats: Vec<_> = batch.iter().filter(|ask| is_beat(ask)).collect();
        assert!(first_beats.len() >= SESSION_COMMANDS_FIRST_MAX);
        assert!(first_beats.len() < batch.len(), "the storm has its share");
        for (number, ask) in (0..).zip(&first_beats) {
            assert_eq!(ask.command, keep_alive(number), "in their order");
        }
        let batch = gather.next().await.unwrap_or_default();
        let rest = batch.iter().filter(|ask| is_beat(ask)).count();
        assert_eq!(first_beats.len() + rest, 1_000, "all within two batches");
        drop((storm, beats));
        Ok(())
    }

    #[tokio::test]
    async fn long_sessions_leave_room_for_others_in_a_batch()
    -> Result<(), Box<dyn std::error::Error>> {
        let (queue, mut gather) = queue();
        let open_session = |number: u16| -> Result<Command, billing_core::OutOfBounds> {
            let mut id = [0; 16];
            id[..2].copy_from_slice(&number.to_be_bytes());
            Ok(Command::OpenSession(billing_core::OpenSession {
                session: billing_core::SessionId::new(id),
                holder: billing_core::HolderId::new(&"x".repeat(128))?,
                ttl: billing_core::TtlMs::MAX,
            }))
        };
        let each = encoded(&Actor::ledger(), &open_session(0)?)?.len();
        assert!(
            each * SESSION_COMMANDS_FIRST_MAX > BATCH_BYTES_MAX,
            "their number alone would let them fill a batch"
        );
        let mut asked = Vec::new();
        for number in 0..1_000 {
            asked.push(queue.ask(Actor::ledger(), open_session(number)?)?);
            asked.push(tick(&queue)?);
        }
        let batch = gather.next().await.unwrap_or_default();
        let opens = batch
            .iter()
            .filter(|ask| matches!(ask.command, Command::OpenSession(_)))
            .count();
        assert!(opens * each >= SESSION_BYTES_FIRST_MAX, "they go first");
        assert!(opens < batch.len(), "others have their share");
        drop(asked);
        Ok(())
    }

    #[tokio::test]
    async fn a_ledger_is_restored_once() -> Result<(), Box<dyn std::error::Error>> {
        let (queue, mut gather) = queue();
        let restore = Command::Restore(billing_core::Restore {
            reason: Evidence::new("the machine room burned down")?,
        });
        let late = queue.ask(Actor::ledger(), restore)?;
        let other = tick(&queue)?;
        let batch = without_restore(gather.next().await.unwrap_or_default());
        let left: Vec<_> = batch.iter().map(|ask| &ask.command).collect();
        assert_eq!(left, [&Command::Tick]);
        let answer = late.answer(&Env::real(), Duration::MAX).await;
        assert!(
            matches!(&answer, Err(CallError::NotApplied { reason }) if reason.contains("restored")),
            "{answer:?}"
        );
        drop(other);
        Ok(())
    }

    #[tokio::test]
    async fn a_lone_command_does_not_wait_for_company() -> Result<(), CallError> {
        let (queue, mut gather) = queue();
        let asked = tick(&queue)?;
        let mut next = std::pin::pin!(gather.next());
        // It stands back once, for those that can run now.
        assert!(futures::poll!(&mut next).is_pending());
        let batch = futures::poll!(&mut next);
        assert!(matches!(batch, std::task::Poll::Ready(Some(batch)) if batch.len() == 1));
        drop(asked);
        Ok(())
    }

    /// Whether the batch is closed by now, and how many it has.
    fn look(batch: std::task::Poll<Option<Vec<Ask>>>) -> Option<usize> {
        match batch {
            std::task::Poll::Ready(batch) => batch.map(|batch| batch.len()),
            std::task::Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn company_keeps_a_batch_open_for_two_more_turns() -> Result<(), CallError> {
        let (queue, mut gather) = queue();
        let first = tick(&queue)?;
        let mut next = std::pin::pin!(gather.next());
        assert_eq!(look(futures::poll!(&mut next)), None);
        let second = tick(&queue)?;
        assert_eq!(look(futures::poll!(&mut next)), None, "one came");
        assert_eq!(look(futures::poll!(&mut next)), None, "none came");
        assert_eq!(look(futures::poll!(&mut next)), Some(2), "again none");
        drop((first, second));
        Ok(())
    }

    #[tokio::test]
    async fn a_batch_does_not_stay_open_for_ever() -> Result<(), CallError> {
        let (queue, mut gather) = queue();
        let mut asked = vec![tick(&queue)?];
        let mut next = std::pin::pin!(gather.next());
        for _ in 0..GATHER_TURNS_MAX {
            assert_eq!(
                look(futures::poll!(&mut next)),
                None,
                "more comes each turn"
            );
            asked.push(tick(&queue)?);
        }
        let all = Some(asked.len());
        assert_eq!(look(futures::poll!(&mut next)), all);
        Ok(())
    }

    #[tokio::test]
    async fn a_full_batch_waits_for_nobody() -> Result<(), CallError> {
        let (queue, mut gather) = queue();
        let asked = (0..BATCH_COMMANDS_MAX + 1).map(|_| tick(&queue));
        let asked = asked.collect::<Result<Vec<_>, _>>()?;
        let mut next = std::pin::pin!(gather.next());
        assert_eq!(look(futures::poll!(&mut next)), None);
        let full = Some(BATCH_COMMANDS_MAX);
        assert_eq!(look(futures::poll!(&mut next)), full);
        drop(asked);
        Ok(())
    }

    #[tokio::test]
    async fn who_gave_up_before_the_batch_closed_is_not_proposed() -> Result<(), CallError> {
        let (queue, mut gather) = queue();
        let env = Env::real();
        let given_up = tick(&queue)?.answer(&env, Duration::ZERO).await;
        assert!(
            matches!(given_up, Err(CallError::NotApplied { .. })),
            "{given_up:?}"
        );
        let dropped = tick(&queue)?;
        drop(dropped);
        let kept = tick(&queue)?;
        let batch = gather.next().await.unwrap_or_default();
        assert_eq!(batch.len(), 1, "only the one that still waits");
        // Now it has left: giving up says so.
        let late = kept.answer(&env, Duration::ZERO).await;
        assert!(matches!(late, Err(CallError::Unknown { .. })), "{late:?}");
        Ok(())
    }

    #[test]
    fn a_full_queue_refuses_the_next() -> Result<(), CallError> {
        let (queue, _gather) = queue();
        let asked = (0..PROPOSALS_QUEUED_MAX)
            .map(|_| tick(&queue))
            .collect::<Result<Vec<_>, _>>()?;
        let refused = tick(&queue).err();
        assert!(
            matches!(refused, Some(CallError::Overloaded { .. })),
            "{refused:?}"
        );
        drop(asked);
        Ok(())
    }
}
