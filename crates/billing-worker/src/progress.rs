//! Decides how progress is shown: one moving line for a person at a terminal, a plain line now and then for everybody else.
//! Log lines go around the moving line, never through it.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use billing_worker::Tally;
use indicatif::{ProgressBar, ProgressStyle};

const MOVING_EVERY: Duration = Duration::from_millis(200);
const PLAIN_EVERY: Duration = Duration::from_secs(10);

static BAR: LazyLock<Option<ProgressBar>> = LazyLock::new(|| {
    if !io::stderr().is_terminal() {
        return None;
    }
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
        bar.set_style(style);
    }
    Some(bar)
});

/// Shows the tally until it is aborted.
pub async fn show(tally: Arc<Tally>) {
    let every = if BAR.is_some() {
        MOVING_EVERY
    } else {
        PLAIN_EVERY
    };
    let mut ticks = tokio::time::interval(every);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        match &*BAR {
            Some(bar) => {
                bar.set_message(tally.totals().to_string());
                bar.tick();
            }
            None => tracing::info!(totals = %tally.totals(), "progress"),
        }
    }
}

pub fn clear() {
    if let Some(bar) = &*BAR {
        bar.finish_and_clear();
    }
}

/// Where log lines go.
pub fn stderr() -> impl Write {
    struct Around;
    impl Write for Around {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match &*BAR {
                Some(bar) => bar.suspend(|| io::stderr().write(bytes)),
                None => io::stderr().write(bytes),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            io::stderr().flush()
        }
    }
    Around
}
