//! What a node reads from other nodes, from its own disk above the store, from clients and from its operator, as plain functions
//! of bytes. Each panics where a promise is broken and decides nothing; the tests below and any other fuzzer call them.

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
    TransferLeaderRequest, VoteRequest, VoteResponse,
};
use serde::{Serialize, de::DeserializeOwned};

use billing_core::{Actor, Command};

use crate::cli::Cli;
use crate::config::{Config, Peer};
use crate::node::error::CallError;
use crate::node::greet::{Greeted, Greeting};
use crate::node::membership::{Change, Word};
use crate::node::proposer::Answer;
use crate::raft::codec;
use crate::raft::folders::Record;
use crate::raft::links::Introduction;
use crate::raft::snapshot::{Description, SnapshotHeader};
use crate::raft::types::{Entry, LogId, TypeConfig};
use crate::services::{page, who};

/// Read whole or refused; what is written again is read as the same, and written as the same bytes.
fn same<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let value: T = codec::decode("it", bytes).ok()?;
    let written = codec::encode("it", &value).expect("what was read is written");
    let again: T = codec::decode("it", &written).expect("what was written is read");
    let twice = codec::encode("it", &again).expect("what was read is written");
    assert_eq!(written, twice);
    Some(value)
}

/// What nodes say to each other.
pub fn peers(bytes: &[u8]) {
    same::<Introduction>(bytes);
    same::<Greeting>(bytes);
    same::<Greeted>(bytes);
    same::<AppendEntriesRequest<TypeConfig>>(bytes);
    same::<AppendEntriesResponse<TypeConfig>>(bytes);
    same::<StreamAppendResult<TypeConfig>>(bytes);
    same::<VoteRequest<TypeConfig>>(bytes);
    same::<VoteResponse<TypeConfig>>(bytes);
    same::<TransferLeaderRequest<TypeConfig>>(bytes);
    same::<SnapshotHeader>(bytes);
    same::<SnapshotResponse<TypeConfig>>(bytes);
    same::<Vec<(Actor, Command)>>(bytes);
    same::<Vec<Answer>>(bytes);
    same::<Change>(bytes);
    same::<Word>(bytes);
    same::<Result<u64, CallError>>(bytes);
}

/// What the store keeps for the consensus.
pub fn kept(bytes: &[u8]) {
    same::<Entry>(bytes);
    same::<LogId>(bytes);
    same::<Record>(bytes);
    if let Ok(what) = Description::decode(bytes) {
        let written = what.encode().expect("what was read is written");
        let again = Description::decode(&written).expect("what was written is read");
        assert_eq!(again.ids_used, what.ids_used);
        assert_eq!(again.meta, what.meta);
    }
}

/// A page's token leads back to one id, and the name of whoever calls is always one that the audit log takes.
pub fn clients(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(Some(id)) = page::read(text) {
        assert!(page::token_after(&id).eq_ignore_ascii_case(text));
    }
    let mut called = tonic::Extensions::default();
    let _ = who::actor(text, &called);
    called.insert(crate::raft::listen::From(
        ([255, 255, 255, 255], 65_535).into(),
    ));
    let _ = who::actor(text, &called);
}

fn load(words: impl Iterator<Item = OsString>) -> Option<Config> {
    let program = OsString::from("billingd");
    let matches = Cli::command()
        .try_get_matches_from(std::iter::once(program).chain(words))
        .ok()?;
    let cli = Cli::from_arg_matches(&matches).ok()?;
    Config::load(cli.settings, &matches).ok()
}

/// The settings of a file.
fn of_file(text: &[u8]) -> Option<Config> {
    let (process, thread) = (std::process::id(), std::thread::current().id());
    let path = std::env::temp_dir().join(format!("billingd-fuzz-{process}-{thread:?}"));
    std::fs::write(&path, text).expect("it is written");
    let config = load(["--config".into(), path.clone().into()].into_iter());
    std::fs::remove_file(&path).expect("it is removed");
    config
}

/// `name = value` of each line, without where it came from.
fn values(config: &Config) -> Vec<String> {
    let lines = config.explain();
    let value = |line: &str| {
        line.rsplit_once("  # ")
            .unwrap_or((line, ""))
            .0
            .trim_end()
            .to_owned()
    };
    lines.lines().map(value).collect()
}

/// A file's settings hold or are refused; as they are explained, they are a file that gives the same ones.
pub fn config(bytes: &[u8]) {
    if let Some(config) = of_file(bytes) {
        let again = of_file(config.explain().as_bytes()).expect("what is explained is taken");
        assert_eq!(values(&again), values(&config));
    }
}

/// A command line, its words apart by line ends.
pub fn flags(bytes: &[u8]) {
    let words = String::from_utf8_lossy(bytes).into_owned();
    let config = load(words.split('\n').map(OsString::from));
    if let Some(config) = config {
        assert!(!config.explain().is_empty());
    }
    if let Ok(peer) = words.parse::<Peer>() {
        assert_eq!(peer.to_string().parse(), Ok(peer));
    }
}

/// Panics where a promise is broken.
pub type Body = fn(&[u8]);

/// Each of them, under its name.
pub const BODIES: &[(&str, Body)] = &[
    ("server_peers", peers),
    ("server_kept", kept),
    ("server_clients", clients),
    ("server_config", config),
    ("server_flags", flags),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use billing_core::{Bootstrap, InvoiceId, LedgerId, Rejection, Stamp};
    use billing_fuzz::proptest::prelude::*;
    use billing_fuzz::{Decoder, Memory, holds};
    use openraft::EntryPayload;

    use super::*;
    use crate::raft::folders::FolderId;
    use crate::raft::types::{self, Batch, LeaderId, Membership, Proposal, SnapshotMeta, Vote};

    /// postcard believes no length beyond the bytes that are there; an item takes a byte or three, and up to 180 in memory.
    const PACKED: Memory = Memory {
        fixed: 64 * 1024,
        per_byte: 512,
    };

    fn log_id(index: u64) -> LogId {
        LogId {
            leader_id: LeaderId {
                term: 3,
                node_id: 2,
            },
            index,
        }
    }

    fn commands() -> Vec<(Actor, Command)> {
        let actor = Actor::new("tester").expect("a name");
        let bootstrap = Command::Bootstrap(Bootstrap {
            ledger_id: LedgerId::new("demo").expect("an id"),
            no_prior_charges: true,
        });
        vec![(actor.clone(), bootstrap), (actor, Command::Tick)]
    }

    fn members() -> BTreeMap<u64, types::Peer> {
        let peer = |node: u64| types::Peer {
            raft: format!("127.0.0.1:720{node}"),
            client: format!("127.0.0.1:710{node}"),
        };
        (1..4).map(|node| (node, peer(node))).collect()
    }

    fn membership() -> openraft::Membership<u64, types::Peer> {
        let voters = members().keys().copied().collect();
        openraft::Membership::new(vec![voters], members()).expect("three voters")
    }

    fn entries() -> Vec<Entry> {
        let batch = Batch {
            stamp: Stamp::default(),
            commands: commands(),
        };
        let payloads = [
            EntryPayload::Blank,
            EntryPayload::Membership(membership()),
            EntryPayload::Normal(Proposal::new(batch)),
        ];
        let numbered = payloads.into_iter().zip(1..);
        numbered
            .map(|(payload, index)| Entry {
                log_id: log_id(index),
                payload,
            })
            .collect()
    }

    fn description() -> Description {
        Description {
            meta: SnapshotMeta {
                last_log_id: Some(log_id(9)),
                last_membership: Membership::new(Some(log_id(2)), membership()),
            },
            ids_used: [1, 2, 3, 9].into(),
        }
    }

    fn packed<T: Serialize>(value: &T) -> Vec<u8> {
        codec::encode("it", value).expect("packed").to_vec()
    }

    #[test]
    fn what_nodes_say_is_read_or_refused() {
        let introduction = Introduction {
            cluster: "demo".into(),
            from: 1,
            from_raft: "127.0.0.1:7201".into(),
            folder: FolderId([1; 8]),
            to: 2,
            to_folder: Some(FolderId([2; 8])),
        };
        let append = AppendEntriesRequest::<TypeConfig> {
            vote: Vote::new(3, 2),
            prev_log_id: Some(log_id(0)),
            entries: entries(),
            leader_commit: Some(log_id(1)),
        };
        let header = SnapshotHeader {
            vote: Vote::new(3, 2),
            what: description(),
            bytes: u64::MAX,
            crc32c: 7,
        };
        let greeting = Greeting {
            founding: Some(members()),
            farewell: false,
        };
        let greeted = Greeted {
            folder: FolderId([1; 8]),
            wall_ms: 1_795_366_800_000,
            hashes: vec![crate::raft::StateHash {
                index: 10_000,
                hash: [7; 32],
            }],
        };
        let invoice = InvoiceId::new("inv-7").expect("an id");
        let answers: Vec<Answer> = vec![
            Ok(Err(Rejection::NotFound { invoice })),
            Err(CallError::unknown("the leader is gone")),
        ];
        let change = Change::AddLearner {
            node: 4,
            peer: members()[&1].clone(),
        };
        let seeds = [
            packed(&introduction),
            packed(&append),
            packed(&header),
            packed(&greeting),
            packed(&greeted),
            packed(&commands()),
            packed(&answers),
            packed(&change),
            packed(&Word::Elsewhere("node 2 leads".into())),
            packed(&VoteRequest::<TypeConfig>::new(
                Vote::new(4, 1),
                Some(log_id(9)),
            )),
        ];
        let decoder = Decoder {
            name: "server_peers",
            seeds: &seeds,
            words: &[
                b"\x02",
                b"\xff\xff\xff\xff\x0f",
                b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            ],
            memory: PACKED,
        };
        decoder.check(peers);
    }

    #[test]
    fn what_the_store_keeps_is_read_or_refused() {
        let record = Record {
            own: FolderId([1; 8]),
            vote: Some(Vote::new(3, 2)),
            known: [(2, FolderId([2; 8]))].into(),
        };
        let mut seeds: Vec<Vec<u8>> = entries().iter().map(packed).collect();
        seeds.push(packed(&log_id(7)));
        seeds.push(packed(&record));
        seeds.push(packed(&description()));
        let mut old = packed(&description());
        old[0] = 2;
        assert!(Description::decode(&old).is_err(), "never released");
        seeds.push(old);
        let decoder = Decoder {
            name: "server_kept",
            seeds: &seeds,
            words: &[b"\x01", b"\x02", b"\xff\xff\xff\xff\x0f"],
            memory: PACKED,
        };
        decoder.check(kept);
    }

    #[test]
    fn every_entry_is_read_back() {
        let actors = proptest_vec("[ -~]{1,40}");
        let times = (any::<u64>(), any::<u64>(), any::<i64>());
        let values = (any::<u64>(), times, actors);
        holds(
            "server_entries",
            values,
            |(index, (elapsed_ms, wall, wall_jumped_ms), actors)| {
                let commands = actors
                    .iter()
                    .map(|name| (Actor::new(name).expect("readable"), Command::Tick));
                let batch = Batch {
                    stamp: Stamp {
                        elapsed_ms,
                        wall: billing_core::WallTime(wall),
                        wall_jumped_ms,
                        ..Stamp::default()
                    },
                    commands: commands.collect(),
                };
                let entry = Entry {
                    log_id: log_id(index),
                    payload: EntryPayload::Normal(Proposal::new(batch)),
                };
                let read: Entry =
                    codec::decode("it", &packed(&entry)).expect("it was just written");
                assert_eq!(read, entry);
            },
        );
    }

    fn proptest_vec(pattern: &'static str) -> impl Strategy<Value = Vec<String>> {
        billing_fuzz::proptest::collection::vec(pattern, 0..8)
    }

    #[test]
    fn tokens_and_names_of_clients_are_read_or_refused() {
        let id = InvoiceId::new("inv-7/~").expect("an id");
        let seeds = [
            page::token_after(&id).into_bytes(),
            b"1.".to_vec(),
            "Zo\u{eb}".repeat(40).into_bytes(),
        ];
        let decoder = Decoder {
            name: "server_clients",
            seeds: &seeds,
            words: &[b"1.", b"20", b"7f", b"\xc3\xa9", b"\xf0\x9f\x92\xb6"],
            memory: Memory {
                fixed: 8_192,
                per_byte: 16,
            },
        };
        decoder.check(clients);
    }

    const FILE: &str = "node_id = 1\ndata_dir = \"data/1\"\n\
        peers = [\"1=127.0.0.1:7101/127.0.0.1:7201\", \"2=[::1]:7102/[::1]:7202\"]\n\
        ledger_id = \"demo\"\nheartbeat = \"250ms\"\nelection_timeout_min = \"1s\"\nelection_timeout_max = \"1300ms\"\n\
        snapshot_every = 20000\nshutdown_grace = \"10s\"\ncalls_max = 8192\nconnections_max = 4096\nworker_threads = 1\n\
        insecure = false\nlog = \"info,billing_server=debug\"\nlog_format = \"json\"\n";

    #[test]
    fn the_largest_batch_fits_into_a_message_and_no_message_takes_much_memory() {
        use billing_core::limits::{TEXT_BYTES_MAX, TTL_MS_MAX, WAIT_MS_MAX};
        use billing_proto::{request::ITEMS_MAX, v1};
        use prost::Message;

        use crate::serve::MESSAGE_BYTES_MAX;

        let full = v1::AcquireLeaseRequest {
            invoice_id: "i".repeat(TEXT_BYTES_MAX),
            holder: "h".repeat(TEXT_BYTES_MAX),
            ttl_ms: TTL_MS_MAX,
            session_id: vec![1; 16],
            seq: u64::MAX,
            done_below: u64::MAX,
            request_id: vec![1; 16],
            wait_ms: WAIT_MS_MAX,
        };
        let batch = v1::AcquireLeasesRequest {
            items: vec![full; ITEMS_MAX],
        };
        let room = MESSAGE_BYTES_MAX - batch.encoded_len();
        assert!(room > 64 * 1024, "a Pipeline adds its tag: {room}");
        // Two bytes each.
        let empty = b"\x0a\0".repeat(MESSAGE_BYTES_MAX / 2);
        let (read, peak) = billing_fuzz::peak_of(|| v1::AcquireLeasesRequest::decode(&*empty));
        assert!(read.is_ok_and(|read| read.items.len() == MESSAGE_BYTES_MAX / 2));
        assert!(peak < 64 << 20, "{peak} bytes for one message");
    }

    /// What clap and toml hold of their own, and twice the file.
    const SETTINGS: Memory = Memory {
        fixed: 1 << 20,
        per_byte: 256,
    };

    #[test]
    fn a_configuration_holds_or_is_refused() {
        assert!(of_file(FILE.as_bytes()).is_some(), "a real file is taken");
        let decoder = Decoder {
            name: "server_config",
            seeds: &[FILE.into(), b"node_id = 1\ndata_dir = \"d\"\n".to_vec()],
            words: &[
                b"[",
                b"{",
                b"\"\"\"",
                b"= [[[[[[[[",
                b"node_id = ",
                b"18446744073709551615",
                b"heartbeat = \"",
                b"s\"\n",
                b"-1",
                b"1e999",
                b"\\u0000",
                b"\xc3\xa9",
                b"127.0.0.1:",
                b"[::1]:65535",
                b"election_timeout_max = \"1000y\"\n",
                b"heartbeat = \"18446744073709551615s\"\n",
            ],
            memory: SETTINGS,
        };
        decoder.check(config);
    }

    #[test]
    fn a_command_line_holds_or_is_refused() {
        let line = "--node-id\n1\n--data-dir\nd\n--peers\n1=127.0.0.1:7101/127.0.0.1:7201\n--heartbeat\n250ms\n\
            --election-timeout-min\n1s\n--ledger-id\ndemo\n--bootstrap";
        let decoder = Decoder {
            name: "server_flags",
            seeds: &[line.into(), b"1=127.0.0.1:7101/[::1]:7201".to_vec()],
            words: &[
                b"\n",
                b"--",
                b"--heartbeat\n",
                b"18446744073709551615s",
                b"--node-id\n",
                b"-1",
                b"--log\n",
                b"=",
                b"/",
                b":",
                b"--ttl-max\n",
                b"584542046y",
            ],
            memory: SETTINGS,
        };
        decoder.check(flags);
    }
}
