//! `billingctl bench`: how many leases a second a running cluster grants and takes back. Decides what is asked and counted;
//! asks only about invoice ids that are nobody else's, and leaves nothing held.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use billing_client::{AcquireOptions, Failure, Session, SessionOptions};
use billing_env::Env;
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::task::JoinSet;

use super::{Context, signals::Signals};
use crate::{
    args::Bench,
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
                    "{} in {:.1}s, by {} callers, {}",
                    self.pairs, self.seconds, self.callers, self.mode
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
    /// Microseconds from asking for a lease to having given it back.
    pairs: Histogram<u64>,
    failed: u64,
    first_failure: Option<String>,
}

impl Tally {
    fn new() -> Result<Tally, Problem> {
        let pairs = Histogram::new(3)
            .map_err(|error| Problem::failed(format!("cannot measure: {error}"), ""))?;
        let counted = Mutex::new(Counted {
            pairs,
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
    let session = context
        .cluster
        .open_session(SessionOptions::new("billingctl bench", TTL))
        .await?;
    // One pair beside the clock: it makes the connection, and whatever the cluster refuses it refuses here.
    if let Err(failure) = pair(&session, &format!("{prefix}-0")).await {
        let problem = context.cluster.explain(failure).await;
        // It ends by itself otherwise; the refusal is what matters.
        let _ = session.close().await;
        return Err(problem);
    }
    context.say(&format!(
        "{} callers for {}s, on invoice ids of their own: {prefix}-1 and so on; Ctrl-C ends it early",
        bench.callers, bench.seconds
    ));
    let took = measure(&mut context, bench, &session, &tally, &prefix, &mut signals).await;
    let closed = session.close().await;
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
    if let Err(failure) = closed {
        context.say(&format!(
            "! what was held ends within {}s: {failure}",
            TTL.as_secs()
        ));
    }
    match first_failure {
        Some(_) if measured.pairs == 0 => Err(Problem::failed(
            "not one pair was measured",
            "`billingctl doctor` shows how the nodes are",
        )),
        Some(_) | None => Ok(Exit::Done),
    }
}

/// Lets the callers run until time is up or somebody wants to end it. Returns for how long they did.
async fn measure(
    context: &mut Context<'_, '_>,
    bench: Bench,
    session: &Session,
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
        let (env, session, tally) = (env.clone(), session.clone(), tally.clone());
        callers.spawn(call(env, session, tally, format!("{prefix}-{nth}")));
    }
    loop {
        let elapsed = clock.monotonic().since(begun_at);
        let left = whole.saturating_sub(elapsed);
        if left.is_zero() {
            break;
        }
        let (pairs, failed) = {
            let counted = tally.counted();
            (counted.pairs.len(), counted.failed)
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
            _ = session.lost() => break,
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
async fn call(env: Env, session: Session, tally: Arc<Tally>, invoice_id: String) {
    let stopped = || tally.stop.load(Ordering::Relaxed);
    while !stopped() {
        let asked_at = env.clock.monotonic();
        let done = pair(&session, &invoice_id).await;
        let took = env.clock.monotonic().since(asked_at);
        // A pair that ended after the time was up belongs to no second that counts.
        if stopped() {
            return;
        }
        match done {
            Ok(()) => tally
                .counted()
                .pairs
                .saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
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

async fn pair(session: &Session, invoice_id: &str) -> Result<(), Failure> {
    let guard = session
        .acquire(invoice_id, AcquireOptions::default())
        .await?;
    guard.release().await.map(drop)
}

fn measured(bench: Bench, took: Duration, tally: &Tally, prefix: String) -> Measured {
    let counted = tally.counted();
    let pairs = &counted.pairs;
    Measured {
        mode: "unary",
        callers: bench.callers,
        seconds: took.as_secs_f64(),
        pairs: pairs.len(),
        pairs_per_second: rate(pairs.len(), took),
        p50_us: pairs.value_at_quantile(0.5),
        p99_us: pairs.value_at_quantile(0.99),
        p999_us: pairs.value_at_quantile(0.999),
        max_us: pairs.max(),
        failed: counted.failed,
        prefix,
    }
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
