//! A queue of waiters for one lease: formed one after the other, watched until all were granted. Whoever is granted out of order,
//! or not at all, or too late, breaks `waiters_in_order` or `expiry_in_time`.

use std::mem::forget;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use billing_client::AcquireOptions;
use billing_server::node::{Consistency, Node};
use futures::FutureExt;
use tokio::sync::oneshot;

use super::steps::{broken, insist};
use crate::world::World;

/// How long a waiter waits.
const WAIT: Duration = Duration::from_secs(120);
/// A waiter holds the lease so long at most: it gives it back at once.
const TTL: Duration = Duration::from_secs(10);

type Granted = Result<(u64, Duration), String>;

/// Waiters for one invoice, the first who came first.
pub struct Queue {
    invoice: &'static str,
    held_at: Duration,
    ttl: Duration,
    waiting: Vec<oneshot::Receiver<Granted>>,
}

/// How many wait, of whatever invoice, as far as a node has applied.
pub fn waiters(node: &Node) -> u64 {
    // A stale read waits for nothing.
    match node
        .read(Consistency::Stale, |ledger| ledger.waiters_count())
        .now_or_never()
    {
        Some(Ok((count, _))) => count,
        _ => 0,
    }
}

impl Queue {
    /// Somebody is granted the lease for `ttl` and falls silent; then `count` others queue for it. No other waiters may be
    /// there.
    pub fn form(
        world: &mut World,
        invoice: &'static str,
        ttl: Duration,
        count: u64,
    ) -> Result<Queue> {
        insist(world, "hold a lease", move |client| async move {
            let options = AcquireOptions::default().ttl(ttl);
            // Never renewed, never given back.
            let granted = client.acquire(invoice, "silent", options).await;
            granted.map(forget)
        })?;
        let held_at = world.elapsed();
        let mut waiting = Vec::new();
        for number in 1..=count {
            let record = world.record.clone();
            waiting.push(world.desk_begin(move |client| async move {
                let holder = format!("waiter-{number}");
                let options = AcquireOptions::wait(WAIT).ttl(TTL);
                let acquired = client.acquire(invoice, &holder, options).await;
                let guard = acquired.map_err(|failure| failure.to_string())?;
                let granted = (guard.token().0, record.now());
                // Whether the release is answered is of no interest here.
                let _ = guard.release().await;
                Ok(granted)
            })?);
            world.until("a waiter stands in the queue", |world| {
                let leader = world.leads_now().and_then(|id| world.hosts[&id].node());
                leader.is_some_and(|node| waiters(&node) >= number)
            })?;
        }
        ensure!(
            world.elapsed() < held_at + ttl,
            "the queue took too long to form"
        );
        Ok(Queue {
            invoice,
            held_at,
            ttl,
            waiting,
        })
    }

    /// The silent lease is not due yet: nobody was granted.
    pub fn stands(&self, world: &World) -> bool {
        world.elapsed() < self.held_at + self.ttl
    }

    /// Steps until all were granted, in order; the first of them within `patience` after the silent lease was due. A change of
    /// the leadership stops ClusterTime for as long as it takes.
    pub fn served(self, world: &mut World, patience: Duration) -> Result<()> {
        let mut granted = Vec::new();
        for mut waiter in self.waiting {
            let mut found = None;
            world.until_within(2 * WAIT, "a waiter is granted", |_| {
                found = waiter.try_recv().ok();
                found.is_some()
            })?;
            let found = found.ok_or_else(|| anyhow!("no answer"))?;
            granted.push(found.map_err(|why| broken("waiters_in_order", Some(self.invoice), why))?);
        }
        if !granted.is_sorted() {
            return Err(broken(
                "waiters_in_order",
                Some(self.invoice),
                format!("granted as {granted:?}"),
            ));
        }
        let first = granted.first().map_or(Duration::ZERO, |(_, at)| *at);
        let late = first.saturating_sub(self.held_at + self.ttl);
        if late > patience {
            return Err(broken(
                "expiry_in_time",
                Some(self.invoice),
                format!("it ended {late:?} after its deadline"),
            ));
        }
        Ok(())
    }
}
