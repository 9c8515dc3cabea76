//! Decides how a test waits: it looks again until something holds, and never longer than it said.

use std::time::Duration;

use anyhow::{Result, bail};

const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Waits until `holds` says so. An error of `holds` ends the wait; time that ran out says what was waited for.
pub async fn until(
    what: &str,
    within: Duration,
    mut holds: impl AsyncFnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = tokio::time::Instant::now() + within;
    loop {
        if holds().await? {
            return Ok(());
        }
        if tokio::time::Instant::now() >= deadline {
            bail!("waited {within:?} in vain until {what}");
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
