//! Decides how this node reaches another one: which connection a call takes, how long it may last, and how it introduces
//! itself. Never decides what is said.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use billing_env::Env;
use billing_proto::raft::Payload;
use billing_proto::raft::raft_service_client::RaftServiceClient;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tonic::metadata::{BinaryMetadataValue, MetadataMap};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::codec;
use super::folders::{FolderId, Folders};

/// Largest peer message accepted. Appends are cut far below it, snapshot pieces too.
pub const PEER_MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The metadata under which a caller says who it is.
pub const INTRODUCTION: &str = "billing-introduction-bin";

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
const KEEP_ALIVE_EVERY: Duration = Duration::from_millis(500);
const KEEP_ALIVE_PATIENCE: Duration = Duration::from_millis(1_000);
const WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// What every call between nodes carries, so that a stranger is told so instead of being obeyed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Introduction {
    pub cluster: String,
    pub from: u64,
    /// Where `from` says it lives.
    pub from_raft: String,
    pub folder: FolderId,
    /// Whom the caller believes to reach, and in which folder, if it ever met it.
    pub to: u64,
    pub to_folder: Option<FolderId>,
}

/// Which connection a call takes: a snapshot must not delay entries, and neither may delay a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    Entries,
    /// Heartbeats and votes.
    Pulse,
    Snapshots,
    /// Forwarded commands, read indexes, greetings.
    Calls,
}

/// The connection could not be opened: nothing of the call has left this process.
#[derive(Debug, thiserror::Error)]
#[error("no connection: {0}")]
pub struct NotConnected(#[from] io::Error);

/// True when the call provably never reached the other side.
pub fn never_sent(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<NotConnected>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// Connections to the other nodes, opened when first used and kept.
#[derive(Clone)]
pub struct Links {
    env: Env,
    me: Arc<Me>,
    folders: Folders,
    channels: Arc<Mutex<Channels>>,
}

/// The channel to each node by lane, and the address that it was opened for.
type Channels = BTreeMap<(u64, Lane), (String, Channel)>;

/// How this node introduces itself.
#[derive(Debug)]
pub struct Me {
    pub cluster: String,
    pub node: u64,
    configured: String,
    /// Where the members know this node: known once the log is read, if it is a member by then.
    member_at: OnceLock<String>,
}

impl Me {
    pub fn new(cluster: String, node: u64, configured: String) -> Me {
        Me {
            cluster,
            node,
            configured,
            member_at: OnceLock::new(),
        }
    }

    /// Where the other nodes reach this one: as the membership says, else as it was configured.
    pub fn raft(&self) -> &str {
        self.member_at.get().unwrap_or(&self.configured)
    }

    /// The membership in force, read back from the disk, knows this node here. To be said before the first call.
    pub fn known_at(&self, address: &str) {
        if address != self.configured {
            tracing::warn!(
                configured = self.configured,
                in_force = address,
                "the members know this node at another address than it is configured with; theirs counts: to move a node,                  replace it by one with a new id"
            );
        }
        // Said once, by the node's start.
        let _ = self.member_at.set(address.to_owned());
    }
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Links of node {}", self.me.node)
    }
}

impl Links {
    pub fn new(env: Env, me: Arc<Me>, folders: Folders) -> Links {
        Links {
            env,
            me,
            folders,
            channels: Arc::default(),
        }
    }

    /// A client for `node` at `address`. Opens nothing yet.
    pub fn to(&self, node: u64, address: &str, lane: Lane) -> Result<Link, Status> {
        let introduction = Introduction {
            cluster: self.me.cluster.clone(),
            from: self.me.node,
            from_raft: self.me.raft().to_owned(),
            folder: self.folders.own(),
            to: node,
            to_folder: self.folders.known(node),
        };
        let bytes = codec::encode("introduction", &introduction)
            .map_err(|error| Status::internal(error.to_string()))?;
        let client = RaftServiceClient::new(self.channel(node, address, lane)?)
            .max_decoding_message_size(PEER_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(PEER_MESSAGE_BYTES_MAX);
        Ok(Link {
            client,
            introduction: BinaryMetadataValue::from_bytes(&bytes),
        })
    }

    fn channel(&self, node: u64, address: &str, lane: Lane) -> Result<Channel, Status> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, channel)) = channels.get(&(node, lane))
            && at == address
        {
            return Ok(channel.clone());
        }
        let channel = open(&self.env, address)?;
        channels.insert((node, lane), (address.to_owned(), channel.clone()));
        Ok(channel)
    }
}

fn open(env: &Env, address: &str) -> Result<Channel, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| {
        Status::invalid_argument(format!("{address} is no address of a node: {error}"))
    })?;
    let net = env.net.clone();
    let address = address.to_owned();
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        // A peer that vanished without closing must not look connected for long.
        .http2_keep_alive_interval(KEEP_ALIVE_EVERY)
        .keep_alive_timeout(KEEP_ALIVE_PATIENCE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .connect_with_connector_lazy(tower::service_fn(move |_| {
            let connecting = net.connect(&address);
            async move { Ok::<_, NotConnected>(TokioIo::new(connecting.await?)) }
        })))
}

/// A client of one other node that introduces itself with every call.
#[derive(Clone)]
pub struct Link {
    pub client: RaftServiceClient<Channel>,
    introduction: BinaryMetadataValue,
}

impl Link {
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert_bin(INTRODUCTION, self.introduction.clone());
        request
    }
}

/// `value` as the body of a message.
pub fn payload<T: Serialize>(what: &'static str, value: &T) -> Result<Payload, Status> {
    let body = codec::encode(what, value).map_err(|error| Status::internal(error.to_string()))?;
    Ok(Payload { body })
}

/// The body of a message.
pub fn body<T: DeserializeOwned>(what: &'static str, payload: &Payload) -> Result<T, Status> {
    codec::decode(what, &payload.body).map_err(|error| Status::invalid_argument(error.to_string()))
}

/// Who calls, as it says itself.
pub fn introduction(metadata: &MetadataMap) -> Result<Introduction, Status> {
    let bytes = metadata
        .get_bin(INTRODUCTION)
        .and_then(|value| value.to_bytes().ok())
        .ok_or_else(|| {
            Status::unauthenticated(
                "this is the listener for the nodes of the cluster; clients have one of their own",
            )
        })?;
    codec::decode("introduction", &bytes)
        .map_err(|error| Status::invalid_argument(error.to_string()))
}
