//! Decides how many client connections fit under the process's limit of open files. Without a bound below it they would take
//! the files that the node needs for its disk and for the other nodes, and a disk that cannot be opened ends a node. The listener
//! for other nodes is not bounded here: nobody but them should reach it.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::exit::Fatal;

/// What a node opens beside its clients' connections: the log, snapshots, and three connections each way with every other node.
/// About 40 were seen with three nodes.
const OTHERS: u64 = 256;

/// Raises the soft limit as far as `connections` need and the hard one allows. How many of them there may be.
pub fn room(connections: u32) -> Result<u32, Fatal> {
    let wanted = u64::from(connections) + OTHERS;
    let limit = getrlimit(Resource::Nofile);
    let mut files = limit.current.unwrap_or(u64::MAX);
    let raised = wanted.min(limit.maximum.unwrap_or(u64::MAX));
    if files < raised {
        let limit = Rlimit {
            current: Some(raised),
            ..limit
        };
        match setrlimit(Resource::Nofile, limit) {
            Ok(()) => files = raised,
            Err(error) => {
                tracing::warn!(%error, files, raised, "the limit of open files cannot be raised")
            }
        }
    }
    fitting(connections, files)
}

fn fitting(connections: u32, files: u64) -> Result<u32, Fatal> {
    let room = u32::try_from(files.saturating_sub(OTHERS)).unwrap_or(u32::MAX);
    if room == 0 {
        return Err(Fatal::Settings(format!(
            "this process may open {files} files, and a node needs {OTHERS} beside its clients' connections: raise the limit (`ulimit -n {}`, or LimitNOFILE= in its unit)",
            u64::from(connections) + OTHERS
        )));
    }
    if room < connections {
        tracing::warn!(
            connections_max = connections,
            files,
            "only {room} client connections fit under the limit of open files, and no more are taken: raise the limit (LimitNOFILE= in a unit), or lower connections_max"
        );
    }
    Ok(room.min(connections))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_take_what_the_node_leaves_and_no_more() -> Result<(), Fatal> {
        assert_eq!(fitting(4_096, u64::MAX)?, 4_096);
        assert_eq!(fitting(4_096, 4_096 + OTHERS)?, 4_096);
        assert_eq!(fitting(4_096, 4_095 + OTHERS)?, 4_095);
        assert_eq!(fitting(4_096, OTHERS + 1)?, 1);
        assert_eq!(fitting(1, OTHERS + 1)?, 1);
        Ok(())
    }

    #[test]
    fn a_node_without_files_for_itself_does_not_start_and_says_what_to_raise() {
        for files in [0, 100, OTHERS] {
            let told = fitting(4_096, files).map_err(|fatal| fatal.to_string());
            let told = told.expect_err("refused");
            assert!(told.contains(&format!("may open {files} files")), "{told}");
            assert!(told.contains("ulimit -n 4352"), "{told}");
        }
    }
}
