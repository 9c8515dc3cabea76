//! Gives a stopped node another state, on its disk and not in its code: its newest snapshot, with one command applied that no
//! other node has seen. Everything else about it is right: checksums, invariants, state hash, log.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use billing_core::{Actor, Command, Evidence, Ledger, PauseProvider, ProviderId, Stamp};
use bytes::Bytes;

/// `provider` is what nobody else has heard of being paused.
pub async fn forge(folder: &Path, node: u64, provider: &str) -> Result<()> {
    let disk = billing_store::open(folder, node, None)?;
    let newest = disk.snapshots.latest().context("it has a snapshot")?;
    let mut reader = disk.snapshots.read(newest.id).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = reader.next().await? {
        bytes.extend_from_slice(&piece);
    }
    drop(reader);
    let mut ledger = Ledger::read_from(&mut bytes.as_slice())?;
    let before = ledger.state_hash();
    let stamp = Stamp {
        base: ledger.now(),
        elapsed_ms: 0,
        wall: ledger.wall(),
        wall_jumped_ms: 0,
    };
    let pause = Command::PauseProvider(PauseProvider {
        provider: ProviderId::new(provider)?,
        paused: true,
        reason: Evidence::new("a bit that flipped")?,
    });
    let applied = ledger.apply(stamp, &[(Actor::new("nobody")?, pause)]);
    ensure!(applied.results.iter().all(Result::is_ok));
    ensure!(ledger.state_hash() != before);
    let mut forged = Vec::new();
    ledger.write_to(&mut forged)?;
    let mut writer = disk.snapshots.create(newest.id.index, newest.meta).await?;
    writer.write(Bytes::from(forged)).await?;
    writer.finish(None).await?;
    Ok(())
}
