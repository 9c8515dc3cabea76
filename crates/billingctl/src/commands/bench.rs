//! `billingctl bench`: how many leases a second a running cluster grants and takes back. Decides what is asked and counted;
//! asks only about invoice ids that are nobody else's, and leaves nothing held.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use billing_client::{AcquireOptions, Failure, Session, SessionOptions, v1};
use billing_env::Env;
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::task::JoinSet;

use super::{Context, signals::Signals};
use crate::{
    args::{Bench, Mode},
    cluster::Cluster,
    failure::{Exit, Problem, reason_of},
    output::{Card, json, tenths_of_ms},
    progress::Progress,
};

/// What is still held ends that long after a death of this process.
const TTL: Duration = Duration::from_secs(10);
/// What a caller waits after a failure before it asks again: its calls have backed off themselves.
const FAILED_PAUSE: Duration = Duration::from_millis(100);
/// How long callers may take over their last pair; then the session is closed under them.
const LAST_PAIR: Duration = Duration::from_secs(2);
/// Pairs that travel together with `--mode batch`.
const BATCH: u16 = 100;
/// A session keeps 1,024 answers: so many callers may ask at once without waiting for one another.
const CALLERS_A_SESSION: u16 = 1_000;
const CALLERS_A_SESSION_BATCHED: u16 = 8;
/// A pair that takes longer, repeats included, counts as this long.
const PAIR_US_MAX: u64 = 3_600_000_000;
const TOLD_EVERY: Duration = Duration::from_millis(500);
/// Random bytes of the prefix: enough that no two runs, nor anybody's invoice, ever meet.
const PREFIX_BYTES: usize = 8;

/// What was measured.
#[derive(Debug, Serialize)]
struct Measured {
    mode: &'static str,
    callers: u16,
    seconds: f64,
    pairs: u64,
    pairs_per_second: f64,
    /// Of what one caller waits for: a pair; with `batch` a hundred of them.
    p50_us: u64,
    p99_us: u64,
    p999_us: u64,
    max_us: u64,
    /// Calls that did not do what was asked, after all their repeats.
    failed: u64,
    prefix: String,
}

impl Card for Measured {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let failed = if self.failed == 0 {
            String::new()
        } else {
            self.failed.to_string()
        };
        vec![
            ("pairs/s", format!("{:.0}", self.pairs_per_second)),
            (
                "pairs",
                format!(
                    "{} in {:.1}s, by {}, {}",
                    self.pairs,
                    self.seconds,
                    callers(self.callers),
                    self.mode
                ),
            ),
            ("p50", tenths_of_ms(self.p50_us)),
            ("p99", tenths_of_ms(self.p99_us)),
            ("p99.9", tenths_of_ms(self.p999_us)),
            ("max", tenths_of_ms(self.max_us)),
            ("failed", failed),
        ]
    }
    fn name(&self) -> String {
        format!("{:.0}", self.pairs_per_second)
    }
}

/// What the callers share.
struct Tally {
    stop: AtomicBool,
    counted: Mutex<Counted>,
}

struct Counted {
    /// Microseconds from asking for a lease, or a batch, to having given it back.
    rounds: Histogram<u64>,
    pairs: u64,
    failed: u64,
    first_failure: Option<String>,
}

impl Tally {
    fn new() -> Result<Tally, Problem> {
        let rounds = Histogram::new_with_bounds(1, PAIR_US_MAX, 3)
            .map_err(|error| Problem::failed(format!("cannot measure: {error}"), ""))?;
        let counted = Mutex::new(Counted {
            rounds,
            pairs: 0,
            failed: 0,
            first_failure: None,
        });
        Ok(Tally {
            stop: AtomicBool::new(false),
            counted,
        })
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        // Every change is complete before anything can panic.
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub async fn run(mut context: Context<'_, '_>, bench: Bench) -> Result<Exit, Problem> {
    let mut signals = Signals::listen()?;
    let mut random = [0; PREFIX_BYTES];
    context.env.random.fill(&mut random);
    let prefix = format!("bench-{}", json::hex(&random));
    let tally = Arc::new(Tally::new()?);
    let piped;
    let cluster = match bench.mode {
        Mode::Unary => &context.cluster,
        Mode::Pipeline | Mode::Batch => {
            piped = Cluster::connect_piped(context.cli, context.env.clone())?;
            &piped
        }
    };
    let a_session = match bench.mode {
        Mode::Unary | Mode::Pipeline => CALLERS_A_SESSION,
        Mode::Batch => CALLERS_A_SESSION_BATCHED,
    };
    let mut sessions = Vec::new();
    for _ in 0..bench.callers.div_ceil(a_session) {
        let options = SessionOptions::new("billingctl bench", TTL);
        sessions.push(cluster.open_session(options).await?);
    }
    // One round beside the clock: it makes the connection, and whatever the cluster refuses it refuses here.
    if let Err(failure) = round(&sessions[0], bench.mode, &format!("{prefix}-0")).await {
        let problem = cluster.explain(failure).await;
        close(&sessions).await;
        return Err(problem);
    }
    context.say(&format!(
        "{} for {}s, on invoice ids of their own: {prefix}-1 and so on; Ctrl-C ends it early",
        callers(bench.callers),
        bench.seconds
    ));
    let took = measure(
        &mut context,
        bench,
        &sessions,
        &tally,
        &prefix,
        &mut signals,
    )
    .await;
    let closed = close(&sessions).await;
    let measured = measured(bench, took, &tally, prefix);
    if measured.pairs > 0 {
        context.printer().one(&measured)?;
    }
    let first_failure = tally.counted().first_failure.take();
    if let Some(first) = &first_failure {
        context.say(&format!(
            "! {} calls failed; the first: {first}",
            measured.failed
        ));
    }
    if let Some(failure) = closed {
        context.say(&format!(
            "! what was held ends within {}s: {failure}",
            TTL.as_secs()
        ));
    }
    if measured.pairs > 0 {
        return Ok(Exit::Done);
    }
    Err(match first_failure {
        Some(_) => Problem::failed(
            "not one pair was measured",
            "`billingctl doctor` shows how the nodes are",
        ),
        None => Problem::failed(
            "nothing ended before the time was up",
            "more --seconds, or fewer --callers",
        ),
    })
}

/// Ends the sessions and all that they hold. Returns why one could not be ended: it ends by its TTL then.
async fn close(sessions: &[Session]) -> Option<Failure> {
    let mut failed = None;
    for session in sessions {
        failed = session.close().await.err().or(failed);
    }
    failed
}

/// Lets the callers run until time is up or somebody wants to end it. Returns for how long they did.
async fn measure(
    context: &mut Context<'_, '_>,
    bench: Bench,
    sessions: &[Session],
    tally: &Arc<Tally>,
    prefix: &str,
    signals: &mut Signals,
) -> Duration {
    let Context { env, streams, .. } = context;
    let clock = &*env.clock;
    let whole = Duration::from_secs(bench.seconds);
    let mut progress = Progress::new(
        streams.stderr,
        streams.stderr_is_terminal,
        clock,
        Some(ms(whole)),
    );
    let begun_at = clock.monotonic();
    let mut callers = JoinSet::new();
    for nth in 1..=bench.callers {
        let session = &sessions[usize::from(nth) % sessions.len()];
        let (env, session, tally) = (env.clone(), session.clone(), tally.clone());
        let invoice_id = format!("{prefix}-{nth}");
        callers.spawn(call(env, session, tally, bench.mode, invoice_id));
    }
    loop {
        let elapsed = clock.monotonic().since(begun_at);
        let left = whole.saturating_sub(elapsed);
        if left.is_zero() {
            break;
        }
        let (pairs, failed) = {
            let counted = tally.counted();
            (counted.pairs, counted.failed)
        };
        let failed = if failed == 0 {
            String::new()
        } else {
            format!(", {failed} failed")
        };
        progress.update(
            ms(elapsed),
            &format!("{:.0} pairs/s{failed}", rate(pairs, elapsed)),
        );
        tokio::select! {
            biased;
            _ = signals.next() => break,
            _ = sessions[0].lost() => break,
            () = clock.sleep(left.min(TOLD_EVERY)) => {}
        }
    }
    tally.stop.store(true, Ordering::Relaxed);
    let took = clock.monotonic().since(begun_at);
    progress.finish();
    tokio::select! {
        biased;
        () = async { while callers.join_next().await.is_some() {} } => {}
        () = clock.sleep(LAST_PAIR) => {}
    }
    took
}

/// One caller.
async fn call(env: Env, session: Session, tally: Arc<Tally>, mode: Mode, invoice_id: String) {
    let stopped = || tally.stop.load(Ordering::Relaxed);
    while !stopped() {
        let asked_at = env.clock.monotonic();
        let done = round(&session, mode, &invoice_id).await;
        let took = env.clock.monotonic().since(asked_at);
        // A pair that ended after the time was up belongs to no second that counts.
        if stopped() {
            return;
        }
        match done {
            Ok(pairs) => {
                let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                let mut counted = tally.counted();
                counted.rounds.saturating_record(us);
                counted.pairs += pairs;
            }
            Err(failure) => {
                {
                    let mut counted = tally.counted();
                    counted.failed += 1;
                    counted
                        .first_failure
                        .get_or_insert_with(|| reason_of(&failure));
                }
                env.clock.sleep(FAILED_PAUSE).await;
            }
        }
    }
}

/// What one caller waits for. Returns how many pairs it was.
async fn round(session: &Session, mode: Mode, invoice_id: &str) -> Result<u64, Failure> {
    match mode {
        Mode::Unary | Mode::Pipeline => {
            let guard = session
                .acquire(invoice_id, AcquireOptions::default())
                .await?;
            guard.release().await?;
            Ok(1)
        }
        Mode::Batch => batch(session, invoice_id).await,
    }
}

async fn batch(session: &Session, invoice_id: &str) -> Result<u64, Failure> {
    let ids: Vec<String> = (0..BATCH)
        .map(|nth| format!("{invoice_id}-{nth}"))
        .collect();
    let acquired = session
        .acquire_each(&ids, AcquireOptions::default())
        .await?;
    let mut items = Vec::with_capacity(acquired.len());
    for guard in acquired {
        let guard = guard?;
        items.push(v1::ReleaseLeaseRequest {
            invoice_id: guard.invoice_id().to_owned(),
            token: guard.token().0,
            ..Default::default()
        });
        // Given back with the others, in one command; whatever goes wrong with that ends with the session.
        guard.settled();
    }
    let count = items.len() as u64;
    for released in session.client().release_leases(items).await? {
        released?;
    }
    Ok(count)
}

fn measured(bench: Bench, took: Duration, tally: &Tally, prefix: String) -> Measured {
    let counted = tally.counted();
    let rounds = &counted.rounds;
    Measured {
        mode: match bench.mode {
            Mode::Unary => "unary",
            Mode::Pipeline => "pipeline",
            Mode::Batch => "batch",
        },
        callers: bench.callers,
        seconds: took.as_secs_f64(),
        pairs: counted.pairs,
        pairs_per_second: rate(counted.pairs, took),
        p50_us: rounds.value_at_quantile(0.5),
        p99_us: rounds.value_at_quantile(0.99),
        p999_us: rounds.value_at_quantile(0.999),
        max_us: rounds.max(),
        failed: counted.failed,
        prefix,
    }
}

fn callers(count: u16) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} caller{plural}")
}

fn rate(pairs: u64, took: Duration) -> f64 {
    if took.is_zero() {
        0.0
    } else {
        pairs as f64 / took.as_secs_f64()
    }
}

fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_of_any_length_are_told_apart() {
        let tally = Tally::new().expect("its bounds are sound");
        for us in [0, 400, 90_000, u64::MAX] {
            tally.counted().rounds.saturating_record(us);
        }
        let rounds = &tally.counted().rounds;
        assert_eq!(rounds.len(), 4);
        assert!((400..=401).contains(&rounds.value_at_quantile(0.5)));
        assert!(rounds.max() >= PAIR_US_MAX);
    }
}
