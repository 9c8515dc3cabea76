//! §7: a write or a sync that the disk refused ends the process; never is it retried, and never does the node go on as if it had
//! been done. Seen from outside: the log of a node whose disk takes no writes does not grow, and its term does not move on,
//! unless the node is about to end.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Moment, Property, Verdict};

/// From the moment at which the disk takes nothing more until what it took before has been told to everybody.
const SETTLES: Duration = Duration::from_secs(1);
/// From the refused write until the process is gone.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

#[derive(Default)]
pub struct FailedWriteEnds {
    /// Nodes whose disk takes no writes.
    watched: BTreeMap<u64, Watched>,
}

struct Watched {
    since: Duration,
    /// Its term and the end of its log, once those had settled.
    had: Option<(u64, Option<u64>)>,
    /// When it was first seen to have gone on.
    went_on: Option<Duration>,
}

impl Property for FailedWriteEnds {
    fn name(&self) -> &'static str {
        "failed_write_ends"
    }

    fn look(&mut self, moment: &Moment<'_>) -> Verdict {
        let nodes = moment.nodes;
        self.watched
            .retain(|id, _| moment.refusing.contains(id) && nodes.contains_key(id));
        for (&id, node) in nodes.iter().filter(|(id, _)| moment.refusing.contains(id)) {
            let watched = self.watched.entry(id).or_insert(Watched {
                since: moment.now,
                had: None,
                went_on: None,
            });
            if moment.now < watched.since + SETTLES {
                continue;
            }
            let had = *watched.had.get_or_insert(node.written);
            if node.written == had {
                continue;
            }
            let went_on = *watched.went_on.get_or_insert(moment.now);
            if moment.now > went_on + ENDS_WITHIN {
                let what = format!(
                    "the disk of node {id} takes no writes since {:?}, and it went on from {had:?} to {:?} (term, log)",
                    watched.since, node.written
                );
                return Err((None, what));
            }
        }
        Ok(())
    }

    fn crashed(&mut self, node: u64) {
        self.watched.remove(&node);
    }
}
