//! What one node holds in memory is not what the log says: its snapshot holds one command more, and is sound in every other
//! respect. It compares itself with the others, ends, and says how to go on; the others do not notice.

use std::time::Duration;

use anyhow::{Result, ensure};
use billing_core::{Actor, Command, Evidence, Ledger, PauseProvider, ProviderId, Stamp};
use billing_store::REJOIN;
use billing_store::sim::SimDisk;

use super::steps::{all_but, end_well, ends_with_advice, pick, rejoin, submit, writes};
use crate::chance::Chance;
use crate::world::{Setting, World};

pub fn setting(_: &Chance) -> Setting {
    Setting {
        workers: 1,
        callers: 2,
        ..Setting::default()
    }
}

pub fn run(world: &mut World) -> Result<()> {
    world.bootstrapped()?;
    let all: Vec<u64> = world.hosts.keys().copied().collect();
    world.leader(&all)?;
    submit(world, 4)?;
    let load = world.chance.between_ms(500, 5_000);
    world.pass(load)?;
    let victim = pick(world, &all)?;
    let taken = world.on(
        victim,
        |node| async move { node.take_snapshot().await.is_ok() },
    )?;
    ensure!(taken, "no snapshot was taken");
    let more = world.chance.between_ms(0, 2_000);
    world.pass(more)?;
    world.crash(victim)?;
    let (host, node) = (world.hosts[&victim].clone(), victim);
    host.prepare(Box::new(move |disk| Box::pin(forge(disk, node))));
    world.note(format_args!("the memory of node {victim} goes wrong"));
    world.wrong.insert(victim);
    world.may_end.insert(victim);
    world.restart(victim);
    ends_with_advice(world, victim, REJOIN)?;
    let why = world.hosts[&victim].ended().unwrap_or_default();
    ensure!(why.contains("that of a majority"), "it ended with {why:?}");
    let others = all_but(world, &[victim]);
    world.leader(&others)?;
    writes(world, 3)?;
    world.pass(Duration::from_secs(2))?;
    rejoin(world, victim)?;
    writes(world, 3)?;
    end_well(world)
}

/// Applies a command to the newest snapshot that no other node has heard of.
async fn forge(disk: SimDisk, node: u64) -> Result<(), String> {
    let forged = async {
        let disk = disk.open(node, None)?;
        let newest = disk
            .snapshots
            .latest()
            .ok_or_else(|| anyhow::anyhow!("it has no snapshot"))?;
        let mut reader = disk.snapshots.read(newest.id).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = reader.next().await? {
            bytes.extend_from_slice(&piece);
        }
        let mut ledger = Ledger::read_from(&mut bytes.as_slice())?;
        let stamp = Stamp {
            base: ledger.now(),
            elapsed_ms: 0,
            wall: ledger.wall(),
            wall_jumped_ms: 0,
        };
        let pause = Command::PauseProvider(PauseProvider {
            provider: ProviderId::new("never-heard-of")?,
            paused: true,
            reason: Evidence::new("a bit that flipped")?,
        });
        let before = ledger.state_hash();
        let applied = ledger.apply(stamp, &[(Actor::new("nobody")?, pause)]);
        ensure!(applied.results.iter().all(Result::is_ok));
        ensure!(ledger.state_hash() != before);
        let mut forged = Vec::new();
        ledger.write_to(&mut forged)?;
        let mut writer = disk.snapshots.create(newest.id.index, newest.meta).await?;
        writer.write(forged.into()).await?;
        writer.finish(None).await?;
        Ok(())
    };
    forged
        .await
        .map_err(|error: anyhow::Error| error.to_string())
}
