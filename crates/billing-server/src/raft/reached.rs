//! Decides whether a node still has what it once said was on its disk. A leader remembers how far each node's log reached under
//! its own vote and says so whenever it opens a stream to it; a node whose log ends before that has an older folder than it had
//! (§7: rolled back as a whole), and must not go on: it may have voted since, and what it acknowledged was counted on.
//!
//! Sees nothing of what was acknowledged to another leader, or before the leader's own start: then it is the operator's error.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tonic::metadata::{BinaryMetadataValue, MetadataMap};
use tonic::{Request, Status};

use super::codec;
use super::types::Vote;

/// The metadata of an append stream under which a leader says it. Older binaries neither send nor read it.
const REACHED: &str = "billing-reached-bin";

/// How far a node's log reached, by its own word to whoever led under this vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    pub vote: Vote,
    pub index: u64,
}

/// What the other nodes said to this one. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Acknowledged(Arc<Mutex<BTreeMap<u64, Reached>>>);

impl Acknowledged {
    /// `node` said, under this vote, that its log reaches this index.
    pub fn note(&self, node: u64, said: Reached) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = all.entry(node).or_insert(said);
        if kept.vote != said.vote || kept.index < said.index {
            *kept = said;
        }
    }

    /// Reminds `node`, with the request that opens a stream to it.
    pub fn remind<T>(&self, node: u64, request: &mut Request<T>) -> Result<(), Status> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reached) = all.get(&node) {
            let bytes = codec::encode("reached", reached)
                .map_err(|error| Status::internal(error.to_string()))?;
            let value = BinaryMetadataValue::from_bytes(&bytes);
            request.metadata_mut().insert_bin(REACHED, value);
        }
        Ok(())
    }
}

impl Reached {
    /// What the caller reminds us of.
    pub fn said(metadata: &MetadataMap) -> Result<Option<Reached>, Status> {
        let Some(value) = metadata.get_bin(REACHED) else {
            return Ok(None);
        };
        let unreadable = |why: String| Status::invalid_argument(why);
        let bytes = value
            .to_bytes()
            .map_err(|error| unreadable(error.to_string()))?;
        codec::decode("reached", &bytes)
            .map(Some)
            .map_err(|error| unreadable(error.to_string()))
    }

    /// Whether a node has less than that. `last` is where its log ends, read before `vote`: a newer leader than this one may cut
    /// it back, and is known by its vote before it does.
    pub fn is_lost(&self, last: Option<u64>, vote: Option<Vote>) -> bool {
        let same_or_older = vote.is_none_or(|vote| {
            matches!(
                vote.partial_cmp(&self.vote),
                Some(Ordering::Less | Ordering::Equal)
            )
        });
        same_or_older && last.is_none_or(|last| last < self.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reached(term: u64, index: u64) -> Reached {
        Reached {
            vote: Vote::new_committed(term, 1),
            index,
        }
    }

    #[test]
    fn less_than_was_said_under_the_same_vote_is_a_loss() {
        let said = reached(3, 70);
        let vote = |term| Some(Vote::new_committed(term, 1));
        assert!(!said.is_lost(Some(70), vote(3)) && !said.is_lost(Some(90), vote(3)));
        assert!(said.is_lost(Some(69), vote(3)), "the same leader's");
        assert!(
            said.is_lost(Some(69), vote(2)),
            "an older vote came back too"
        );
        assert!(said.is_lost(None, None), "an empty folder");
        assert!(
            said.is_lost(Some(69), Some(Vote::new(3, 1))),
            "a vote that was given and not yet won"
        );
        // A newer leader cut it back, and whoever says this does not know yet that it leads no more.
        assert!(!said.is_lost(Some(50), vote(4)));
        assert!(!said.is_lost(Some(50), Some(Vote::new(4, 2))));
    }

    #[test]
    fn the_highest_word_under_the_newest_vote_is_kept_and_travels() -> Result<(), Status> {
        let acknowledged = Acknowledged::default();
        let sent = |to| -> Result<Option<Reached>, Status> {
            let mut request = Request::new(());
            acknowledged.remind(to, &mut request)?;
            Reached::said(request.metadata())
        };
        assert_eq!(sent(2)?, None);
        for said in [reached(3, 70), reached(3, 60)] {
            acknowledged.note(2, said);
        }
        assert_eq!(sent(2)?, Some(reached(3, 70)), "answers may overtake");
        acknowledged.note(2, reached(4, 65));
        assert_eq!(sent(2)?, Some(reached(4, 65)), "of another leadership");
        assert_eq!(sent(3)?, None);
        Ok(())
    }
}
