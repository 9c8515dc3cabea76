//! Decides what the consensus library is made of here: node ids, peers, what an entry carries and what applying it answers.

use std::fmt;
use std::sync::Arc;

use billing_core::{Actor, Command, Rejection, Reply, Stamp};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::runtime::Runtime;

/// Where a member of the cluster is reached. Part of the membership, hence replicated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// `host:port` of the listener for other nodes.
    pub raft: String,
    /// `host:port` of the listener for clients: what a leader hint names.
    pub client: String,
}

/// The commands of one entry, and the time at which they were proposed (§4).
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    pub stamp: Stamp,
    pub commands: Vec<(Actor, Command)>,
}

/// The commands of a batch one behind the other, each as postcard writes `(Actor, Command)`.
pub struct BatchBytes(Vec<u8>);

impl BatchBytes {
    /// For so many commands: a sequence in postcard is its length and then its items.
    pub fn of(commands: usize) -> BatchBytes {
        BatchBytes(postcard_of(&commands))
    }

    pub fn push(&mut self, command: &[u8]) {
        self.0.extend_from_slice(command);
    }
}

fn postcard_of<T: Serialize>(value: &T) -> Vec<u8> {
    // Fails only for a sequence of unknown length, and there is none in here.
    postcard::to_allocvec(value).expect("a batch is encoded into memory")
}

/// One Raft entry's payload. Shared, since the log, the replication to each follower and apply all hold it at once; and with its
/// bytes, since each of them but the last writes the same ones: they are made once on the leader, and never on a follower.
#[derive(Clone, PartialEq)]
pub struct Proposal(Arc<(Batch, Vec<u8>)>);

impl Proposal {
    pub fn new(batch: Batch) -> Proposal {
        let bytes = postcard_of(&batch);
        Proposal(Arc::new((batch, bytes)))
    }

    /// As `new` makes it, from commands whose bytes are there already.
    pub fn encoded(batch: Batch, commands: &BatchBytes) -> Proposal {
        let mut bytes = postcard_of(&batch.stamp);
        bytes.extend_from_slice(&commands.0);
        debug_assert_eq!(bytes, postcard_of(&batch), "the bytes are this batch's");
        Proposal(Arc::new((batch, bytes)))
    }

    pub fn batch(&self) -> &Batch {
        &self.0.0
    }
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.batch().fmt(f)
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch of {} commands", self.batch().commands.len())
    }
}

impl Serialize for Proposal {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(&self.0.1)
    }
}

impl<'de> Deserialize<'de> for Proposal {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Bytes;

        impl Visitor<'_> for Bytes {
            type Value = Proposal;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the bytes of a batch")
            }

            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Proposal, E> {
                match postcard::take_from_bytes(bytes) {
                    Ok((batch, [])) => Ok(Proposal(Arc::new((batch, bytes.to_vec())))),
                    Ok(_) | Err(_) => Err(E::custom("the bytes are no batch")),
                }
            }
        }

        from.deserialize_bytes(Bytes)
    }
}

/// What the ledger said to each command of a batch, in order; empty for entries of the consensus itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome(pub Vec<Result<Reply, Rejection>>);

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} results", self.0.len())
    }
}

openraft::declare_raft_types!(
    pub TypeConfig:
        D = Proposal,
        R = Outcome,
        NodeId = u64,
        Node = Peer,
        AsyncRuntime = Runtime,
);

pub type LeaderId = openraft::type_config::alias::LeaderIdOf<TypeConfig>;
pub type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
pub type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
pub type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
pub type Membership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
pub type Raft = openraft::Raft<TypeConfig, super::state_machine::StateMachine>;

#[cfg(test)]
mod tests {
    use billing_core::{CloseSession, ClusterTime, SessionId, WallTime};

    use super::*;

    fn stamp() -> Stamp {
        Stamp {
            base: ClusterTime(7),
            elapsed_ms: 1 << 40,
            wall: WallTime(1_790_000_000_000),
            wall_jumped_ms: -300,
        }
    }

    fn commands(count: usize) -> Vec<(Actor, Command)> {
        let command = |nth: usize| match nth % 2 {
            0 => Command::Tick,
            _ => Command::CloseSession(CloseSession {
                session: SessionId::new([nth as u8; 16]),
            }),
        };
        (0..count)
            .map(|nth| (Actor::ledger(), command(nth)))
            .collect()
    }

    /// The leader puts a batch together from the bytes of its commands; followers and the log read it as a whole.
    #[test]
    fn a_batch_from_its_parts_is_encoded_like_the_whole() -> Result<(), postcard::Error> {
        for count in [0, 1, 127, 128, 1_024] {
            let batch = || Batch {
                stamp: stamp(),
                commands: commands(count),
            };
            let mut parts = BatchBytes::of(count);
            for command in commands(count) {
                parts.push(&postcard::to_allocvec(&command)?);
            }
            let proposal = Proposal::encoded(batch(), &parts);
            assert!(proposal == Proposal::new(batch()), "{count} commands");
            let read: Proposal = postcard::from_bytes(&postcard::to_allocvec(&proposal)?)?;
            assert!(read == proposal, "{count} commands");
        }
        Ok(())
    }

    #[test]
    fn bytes_behind_a_batch_or_too_few_are_refused() -> Result<(), postcard::Error> {
        let batch = Batch {
            stamp: stamp(),
            commands: commands(3),
        };
        let bytes = postcard::to_allocvec(&batch)?;
        for wrong in [
            [&bytes[..], &[0]].concat(),
            bytes[..bytes.len() - 1].to_vec(),
        ] {
            let mut framed = postcard::to_allocvec(&wrong.len())?;
            framed.extend(wrong);
            assert!(postcard::from_bytes::<Proposal>(&framed).is_err());
        }
        Ok(())
    }
}
