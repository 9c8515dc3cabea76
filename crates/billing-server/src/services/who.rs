//! Decides under which name a command stands in the audit log: what the caller calls itself, and where it called from.
//! No proof of identity (§8 comes later), and no rule of the ledger reads it.

use billing_core::Actor;
use billing_core::limits::TEXT_BYTES_MAX;
use tonic::Extensions;

use crate::raft::listen::From as CameFrom;

/// Whoever acquires, claims, submits, charges.
pub const WORKER: &str = "worker";
/// Whoever overrides: force-release, resolve, cancel, requeue, pause, allow.
pub const OPERATOR: &str = "operator";

/// `name@address`; the name is cut where both would not fit, at a character's boundary.
pub fn actor(name: &str, extensions: &Extensions) -> Actor {
    let place = match extensions.get::<CameFrom>() {
        Some(CameFrom(address)) => format!("@{}", address.ip()),
        None => String::new(),
    };
    let room = TEXT_BYTES_MAX.saturating_sub(place.len());
    let mut end = name.len().min(room);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    // A name that holds control characters is no name; the bounds of the request itself refuse it a moment later.
    Actor::new(&format!("{}{place}", &name[..end])).unwrap_or_else(|_| Actor::ledger())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_is_cut_and_the_address_kept() {
        let mut extensions = Extensions::default();
        extensions.insert(CameFrom(([127, 0, 0, 1], 5000).into()));
        assert_eq!(actor("ana", &extensions).as_str(), "ana@127.0.0.1");
        let long = "ü".repeat(64);
        let cut = actor(&long, &extensions);
        assert!(cut.as_str().ends_with("ü@127.0.0.1"), "{cut}");
        assert!(cut.as_str().len() <= TEXT_BYTES_MAX);
    }
}
