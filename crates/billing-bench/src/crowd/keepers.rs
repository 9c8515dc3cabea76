//! Decides how very many sessions are kept alive: a third of the TTL between two beats of each, many sessions to a stream. A beat is
//! timed from the moment it was due, not from when it could be sent: a server that makes us wait does not make it look fast.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use billing_proto::v1::{self, keep_alive_response};
use futures::{StreamExt, future::try_join_all, stream::FuturesUnordered};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::{
    stats::Latencies,
    wire::{self, Leases, Session},
};

/// Sessions that one connection opens at once.
const OPENING_MAX: usize = 32;
/// Beats that wait for room in the connection.
const BEATS_QUEUED: usize = 1_024;
const STREAMS: usize = 8;

/// What goes on while a beat is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Opening,
    Quiet,
    Queue,
    Storm,
    Expiry,
}

pub const PHASES: [Phase; 5] = [
    Phase::Opening,
    Phase::Quiet,
    Phase::Queue,
    Phase::Storm,
    Phase::Expiry,
];

impl Phase {
    pub fn name(self) -> &'static str {
        match self {
            Phase::Opening => "while the sessions are opened",
            Phase::Quiet => "nothing else",
            Phase::Queue => "the queue forms and is served",
            Phase::Storm => "acquire storm",
            Phase::Expiry => "mass expiry",
        }
    }
}

/// Sessions that are kept alive on a thread of their own until they are stopped or dropped.
pub struct Keepers {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    ended: oneshot::Receiver<Result<()>>,
}

struct Shared {
    ttl: Duration,
    phase: AtomicUsize,
    opened: AtomicU64,
    /// Beats that were refused: their sessions had ended.
    lost: AtomicU64,
    /// One for each phase.
    beats: Mutex<Vec<Latencies>>,
}

/// What became of them.
pub struct Kept {
    /// In order of [`PHASES`].
    pub beats: Vec<Latencies>,
    pub lost: u64,
}

impl Keepers {
    /// Opens `count` sessions of `ttl` at `endpoint` and keeps each alive from then on. Returns once all are open.
    pub async fn start(endpoint: &str, count: usize, ttl: Duration) -> Result<Keepers> {
        let shared = Arc::new(Shared {
            ttl,
            phase: AtomicUsize::new(0),
            opened: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            beats: Mutex::new(
                PHASES
                    .iter()
                    .map(|_| Latencies::new())
                    .collect::<Result<_>>()?,
            ),
        });
        let (stop, stopped) = watch::channel(false);
        let (tell, ended) = oneshot::channel();
        let endpoint = endpoint.to_owned();
        let theirs = shared.clone();
        thread::Builder::new()
            .name("keepers".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                let ended = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
                    let streams = (0..STREAMS).map(|stream| {
                        let share = count * (stream + 1) / STREAMS - count * stream / STREAMS;
                        keep(&endpoint, stream, share, &theirs, stopped.clone())
                    });
                    runtime.block_on(try_join_all(streams)).map(|_| ())
                });
                // Nobody listens when the measurement has failed elsewhere.
                let _ = tell.send(ended);
            })?;
        let mut keepers = Keepers {
            shared,
            stop,
            ended,
        };
        while keepers.shared.opened.load(Ordering::Relaxed) < count as u64 {
            tokio::select! {
                ended = &mut keepers.ended => {
                    ended.map_err(|_| anyhow!("the keepers panicked"))??;
                    anyhow::bail!("the keepers ended");
                }
                () = tokio::time::sleep(Duration::from_millis(50)) => {}
            }
        }
        Ok(keepers)
    }

    /// Beats that fall due from now on are counted there.
    pub fn enter(&self, phase: Phase) {
        self.shared.phase.store(phase as usize, Ordering::Relaxed);
    }

    /// Stops to keep them alive.
    pub async fn stop(self) -> Result<Kept> {
        self.stop.send_replace(true);
        self.ended
            .await
            .map_err(|_| anyhow!("the keepers panicked"))??;
        let beats = std::mem::take(
            &mut *self
                .shared
                .beats
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        Ok(Kept {
            beats,
            lost: self.shared.lost.load(Ordering::Relaxed),
        })
    }
}

/// A beat on its way.
#[derive(Clone, Copy)]
struct Beat {
    due: Instant,
    phase: usize,
}

/// One stream's sessions.
struct Hearts {
    ids: Vec<Vec<u8>>,
    /// The beat that is not answered yet, of each.
    unanswered: Vec<Option<Beat>>,
    /// The next beats, in order.
    due: VecDeque<(Instant, usize)>,
}

async fn keep(
    endpoint: &str,
    stream: usize,
    count: usize,
    shared: &Shared,
    mut stopped: watch::Receiver<bool>,
) -> Result<()> {
    let mut leases = wire::connect(endpoint).await?;
    let (beats, outgoing) = mpsc::channel(BEATS_QUEUED);
    let mut answers = leases
        .keep_alive(ReceiverStream::new(outgoing))
        .await?
        .into_inner();
    let mut hearts = Hearts {
        ids: Vec::new(),
        unanswered: Vec::new(),
        due: VecDeque::new(),
    };
    let mut opening = FuturesUnordered::new();
    let mut asked = 0;
    let every = shared.ttl / 3;
    loop {
        while asked < count && opening.len() < OPENING_MAX {
            opening.push(open(
                leases.clone(),
                format!("crowd-{stream}-{asked}"),
                shared.ttl,
            ));
            asked += 1;
        }
        let now = Instant::now();
        let next = hearts.due.front().map_or(now + every, |(due, _)| *due);
        let is_due = next <= now;
        tokio::select! {
            biased;
            _ = stopped.wait_for(|stop| *stop) => return Ok(()),
            answer = answers.message() => {
                let answer = answer?.context("the keep-alive stream ended")?;
                hearts.answered(answer, shared)?;
            }
            place = beats.reserve(), if is_due => {
                let place = place.ok().context("the keep-alive stream ended")?;
                if let Some(beat) = hearts.next(every, shared) {
                    place.send(beat);
                }
            }
            Some(opened) = opening.next() => {
                let opened: Session = opened?;
                hearts.ids.push(opened.id);
                hearts.unanswered.push(None);
                hearts.due.push_back((Instant::now() + every, hearts.ids.len() - 1));
                shared.opened.fetch_add(1, Ordering::Relaxed);
            }
            () = tokio::time::sleep_until(next.into()), if !is_due => {}
        }
    }
}

async fn open(mut leases: Leases, holder: String, ttl: Duration) -> Result<Session> {
    Session::open(&mut leases, &holder, ttl).await
}

impl Hearts {
    /// The beat that is due; None: its session's last one is still unanswered, and goes on being timed.
    fn next(&mut self, every: Duration, shared: &Shared) -> Option<v1::KeepAliveRequest> {
        let (due, session) = self.due.pop_front()?;
        self.due.push_back((due + every, session));
        if self.unanswered[session].is_some() {
            return None;
        }
        self.unanswered[session] = Some(Beat {
            due,
            phase: shared.phase.load(Ordering::Relaxed),
        });
        Some(v1::KeepAliveRequest {
            tag: session as u64,
            session_id: self.ids[session].clone(),
        })
    }

    fn answered(&mut self, answer: v1::KeepAliveResponse, shared: &Shared) -> Result<()> {
        let session = usize::try_from(answer.tag)?;
        let beat = self
            .unanswered
            .get_mut(session)
            .and_then(Option::take)
            .context("an answer to no beat")?;
        match answer.result.context("an answer without a result")? {
            keep_alive_response::Result::Session(_) => {}
            keep_alive_response::Result::Error(_) => {
                shared.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
        let mut beats = shared.beats.lock().unwrap_or_else(PoisonError::into_inner);
        beats[beat.phase].record(beat.due.elapsed());
        Ok(())
    }
}

/// Keeps each of `sessions` alive once more, at once. When each of these beats was sent, in the order of their answers.
pub async fn last_beats(leases: &mut Leases, sessions: &[Session]) -> Result<Vec<Instant>> {
    let (beats, outgoing) = mpsc::channel(BEATS_QUEUED);
    let mut answers: Streaming<v1::KeepAliveResponse> = leases
        .keep_alive(ReceiverStream::new(outgoing))
        .await?
        .into_inner();
    let send = async {
        let mut sent = Vec::with_capacity(sessions.len());
        for (tag, session) in (0_u64..).zip(sessions) {
            sent.push(Instant::now());
            let beat = v1::KeepAliveRequest {
                tag,
                session_id: session.id.clone(),
            };
            beats
                .send(beat)
                .await
                .ok()
                .context("the keep-alive stream ended")?;
        }
        anyhow::Ok(sent)
    };
    let hear = async {
        for _ in sessions {
            let answer = answers
                .message()
                .await?
                .context("the keep-alive stream ended")?;
            if let Some(keep_alive_response::Result::Error(error)) = answer.result {
                anyhow::bail!("refused: {}", error.message);
            }
        }
        anyhow::Ok(())
    };
    let (sent, ()) = futures::future::try_join(send, hear).await?;
    Ok(sent)
}
