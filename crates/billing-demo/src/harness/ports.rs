//! Decides which ports are free. A port may be taken between this answer and its use; callers then say which one, and stop.

use std::{collections::BTreeSet, net::TcpListener};

use anyhow::{Context, Result};
use rand::RngExt;

/// Below the range from which the system picks ports of outgoing connections: a busy neighbour does not take ours by accident.
const RANGE: std::ops::Range<u16> = 20_000..32_000;
const TRIES_MAX: usize = 1_000;

/// `count` different ports of 127.0.0.1 on which nothing listens right now.
pub fn free_ports(count: usize) -> Result<Vec<u16>> {
    let mut random = rand::rng();
    let mut found = BTreeSet::new();
    for _ in 0..TRIES_MAX {
        if found.len() == count {
            break;
        }
        let port = random.random_range(RANGE);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            found.insert(port);
        }
    }
    (found.len() == count)
        .then(|| found.into_iter().collect())
        .with_context(|| {
            format!(
                "no {count} free ports between {} and {}",
                RANGE.start, RANGE.end
            )
        })
}
