//! Decides how load is made: callers that ask again as soon as they were answered, on one or more threads of their own, watched
//! from a moment when all are busy to a moment when all still are. Knows nothing of what they ask.

use std::{
    future::Future,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use tokio::sync::{oneshot, watch};

use crate::{cpu, stats::Latencies};

/// Before the watch begins: connections are open, queues are as full as they get.
const WARM_UP: Duration = Duration::from_millis(300);

/// One caller, who does one thing after the other.
pub trait Caller: Send + 'static {
    /// One thing from its beginning to its end; how many it counts for. An error ends the measurement: a figure with failures in it
    /// would measure something else.
    fn turn(&mut self) -> impl Future<Output = Result<Turn>> + Send;
}

/// What became of one turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Did(u64),
    /// Nothing is left to do; the caller stops.
    Over,
}

/// A way of making callers.
pub trait Way: Clone + Send + 'static {
    type Caller: Caller;

    /// Opens what `share` of the callers needs, on the thread that will carry it.
    fn open(&self, share: Share) -> impl Future<Output = Result<Vec<Self::Caller>>>;
}

/// What one thread carries.
#[derive(Clone, Debug)]
pub struct Share {
    pub callers: Range<usize>,
    pub connections: usize,
}

/// How much load.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    pub callers: usize,
    pub connections: usize,
    pub threads: usize,
    pub length: Duration,
}

/// What was seen between two moments while all callers were at work.
#[derive(Debug)]
pub struct Seen {
    /// Of the turns that ended meanwhile.
    pub latencies: Latencies,
    /// What they count for.
    pub done: u64,
    /// The same, caller by caller.
    pub each: Vec<u64>,
    pub took: Duration,
    /// CPU of each watched process.
    pub watched: Vec<Duration>,
    /// CPU of this one.
    pub ours: Duration,
}

impl Seen {
    pub fn per_second(&self) -> f64 {
        self.done as f64 / self.took.as_secs_f64()
    }

    /// CPU microseconds for each thing done.
    pub fn each_costs(&self, cpu: Duration) -> f64 {
        cpu.as_secs_f64() * 1e6 / self.done.max(1) as f64
    }
}

/// From when to when turns count.
#[derive(Clone, Copy, Debug)]
struct Watch {
    from: Instant,
    until: Instant,
}

/// What one thread brings home: a tally per caller.
type Home = Result<Vec<Tally>>;

#[derive(Debug)]
struct Tally {
    done: u64,
    last: Option<Instant>,
}

/// Runs `amount` of load and watches the processes `pids` meanwhile.
pub async fn run<W: Way>(way: &W, amount: Amount, pids: &[u32]) -> Result<Seen> {
    let threads = amount.threads.min(amount.callers).max(1);
    let (start, _) = watch::channel(None);
    let mut ready = Vec::new();
    let mut home = Vec::new();
    let latencies = Arc::new(Mutex::new(Latencies::new()?));
    for number in 0..threads {
        let share = Share {
            callers: part(amount.callers, threads, number),
            connections: part(amount.connections.min(amount.callers), threads, number)
                .len()
                .max(1),
        };
        let (is_ready, opened) = oneshot::channel();
        let (bring, brought) = oneshot::channel();
        let way = way.clone();
        let start = start.subscribe();
        let latencies = latencies.clone();
        thread::Builder::new()
            .name(format!("load-{number}"))
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                let home = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
                    runtime.block_on(carry(way, share, is_ready, start, latencies))
                });
                // Nobody waits for it when another thread has failed.
                let _ = bring.send(home);
            })?;
        ready.push(opened);
        home.push(brought);
    }
    for opened in ready {
        // A thread that could not open says why when it comes home.
        if opened.await.is_err() {
            break;
        }
    }
    let from = Instant::now() + WARM_UP;
    let until = from + amount.length;
    start.send_replace(Some(Watch { from, until }));
    tokio::time::sleep_until(from.into()).await;
    let before = spent(pids)?;
    tokio::time::sleep_until(until.into()).await;
    let after = spent(pids)?;
    let mut each = Vec::new();
    let mut last = None;
    for brought in home {
        for tally in brought
            .await
            .map_err(|_| anyhow!("a load thread panicked"))??
        {
            each.push(tally.done);
            last = last.max(tally.last);
        }
    }
    let latencies = Arc::into_inner(latencies)
        .context("a load thread still runs")?
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    let done = each.iter().sum();
    ensure!(done > 0, "nothing was done within {:?}", amount.length);
    let used = |(before, after): (&Duration, &Duration)| after.saturating_sub(*before);
    let (ours_before, watched_before) = before;
    let (ours_after, watched_after) = after;
    Ok(Seen {
        latencies,
        done,
        each,
        // Shorter when there was nothing left to do.
        took: last.map_or(amount.length, |last| last.min(until) - from),
        watched: watched_before
            .iter()
            .zip(&watched_after)
            .map(used)
            .collect(),
        ours: used((&ours_before, &ours_after)),
    })
}

/// The `number`th of `of` parts of `0..whole`, as equal as they get.
fn part(whole: usize, of: usize, number: usize) -> Range<usize> {
    whole * number / of..whole * (number + 1) / of
}

/// Our own CPU and that of each of `pids`.
fn spent(pids: &[u32]) -> Result<(Duration, Vec<Duration>)> {
    let watched = pids
        .iter()
        .map(|pid| cpu::used(*pid))
        .collect::<Result<_>>()?;
    Ok((cpu::used_by_us()?, watched))
}

/// One thread's callers, from opening to the end of the watch.
async fn carry<W: Way>(
    way: W,
    share: Share,
    is_ready: oneshot::Sender<()>,
    mut start: watch::Receiver<Option<Watch>>,
    latencies: Arc<Mutex<Latencies>>,
) -> Home {
    let callers = way.open(share).await?;
    // Whoever waits for it may have given up because another thread failed; it tells `start` then.
    let _ = is_ready.send(());
    let watch = start
        .wait_for(Option::is_some)
        .await
        .ok()
        .and_then(|watch| *watch)
        .context("the measurement was given up")?;
    // A thread's own, so that no caller waits for another thread.
    let own = Arc::new(Mutex::new(Latencies::new()?));
    let running: Vec<_> = callers
        .into_iter()
        .map(|caller| tokio::spawn(call(caller, watch, own.clone())))
        .collect();
    let mut tallies = Vec::with_capacity(running.len());
    for caller in running {
        tallies.push(caller.await.context("a caller panicked")??);
    }
    let own = own.lock().unwrap_or_else(PoisonError::into_inner);
    latencies
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .add(&own)?;
    Ok(tallies)
}

async fn call(
    mut caller: impl Caller,
    watch: Watch,
    latencies: Arc<Mutex<Latencies>>,
) -> Result<Tally> {
    let mut tally = Tally {
        done: 0,
        last: None,
    };
    let mut before = Instant::now();
    while before < watch.until {
        let Turn::Did(count) = caller.turn().await? else {
            tally.last = Some(before);
            return Ok(tally);
        };
        let after = Instant::now();
        if watch.from <= after && after < watch.until {
            latencies
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .record(after - before);
            tally.done += count;
        }
        before = after;
    }
    tally.last = Some(watch.until);
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone)]
    struct Sleepy(Option<u64>);

    struct Sleeper(Option<u64>);

    impl Way for Sleepy {
        type Caller = Sleeper;

        async fn open(&self, share: Share) -> Result<Vec<Sleeper>> {
            Ok(share.callers.map(|_| Sleeper(self.0)).collect())
        }
    }

    impl Caller for Sleeper {
        async fn turn(&mut self) -> Result<Turn> {
            match &mut self.0 {
                Some(0) => anyhow::bail!("tired"),
                Some(left) => *left -= 1,
                None => {}
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
            Ok(Turn::Did(3))
        }
    }

    const AMOUNT: Amount = Amount {
        callers: 5,
        connections: 2,
        threads: 2,
        length: Duration::from_millis(100),
    };

    #[tokio::test]
    async fn every_turn_within_the_watch_counts_once() -> Result<()> {
        let seen = run(&Sleepy(None), AMOUNT, &[std::process::id()]).await?;
        assert_eq!(seen.each.len(), 5);
        assert_eq!(seen.done, 3 * seen.latencies.count());
        assert_eq!(seen.took, AMOUNT.length);
        assert_eq!(seen.watched.len(), 1);
        Ok(())
    }

    #[tokio::test]
    async fn a_caller_that_fails_fails_the_measurement() -> Result<()> {
        let error = run(&Sleepy(Some(3)), AMOUNT, &[])
            .await
            .err()
            .context("a figure with failures in it")?;
        assert!(error.to_string().contains("tired"), "{error:#}");
        Ok(())
    }

    #[test]
    fn parts_are_the_whole() {
        let parts: Vec<_> = (0..3).map(|number| part(8, 3, number)).collect();
        assert_eq!(parts, [0..2, 2..5, 5..8]);
    }
}
