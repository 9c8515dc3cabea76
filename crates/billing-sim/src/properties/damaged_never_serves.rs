//! §7: a node whose disk lost what it had made durable (its log ends before where its `high` file says, its vote is older, or a
//! record is bad) ends when it starts. It never votes or serves under its old id again.

use super::{Moment, Property, Verdict};

pub struct DamagedNeverServes;

impl Property for DamagedNeverServes {
    fn name(&self) -> &'static str {
        "damaged_never_serves"
    }

    fn look(&mut self, moment: &Moment<'_>) -> Verdict {
        let serves = moment
            .damaged
            .iter()
            .find(|id| moment.nodes.contains_key(id));
        match serves {
            Some(id) => Err((
                None,
                format!("node {id} runs, on a disk that lost what the node had acknowledged"),
            )),
            None => Ok(()),
        }
    }
}
