//! Decides which node the next attempt goes to: the leader while one is known, else the configured endpoints in turn. Keeps
//! lazy channels per address, each with a Pipeline where the node speaks it. Never balances: a balancer takes a dead endpoint for a ready one.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use billing_env::{Clock, Env, MonoTime, Net};
use billing_proto::status::LEADER_ADDRESS;
use hyper_util::rt::TokioIo;
use tonic::{
    metadata::MetadataMap,
    transport::{Channel, Endpoint, Uri},
};

use crate::pipe::Pipe;

/// Addresses kept, hinted ones included. More: hinted ones are forgotten, configured ones never.
const ADDRESSES_MAX: usize = 64;
/// How long a node that failed is passed over, and hints that name it are not believed, while there are others. Twice as long
/// each time that it fails soon again: who is cut off from the leader only has its calls forwarded by the others.
const SHUNNED_FOR: Duration = Duration::from_secs(1);
const SHUNNED_FOR_MAX: Duration = Duration::from_secs(16);
/// TCP does not say that a machine is gone; pings do: both together about as late as the others have elected a new leader.
const PING_EVERY: Duration = Duration::from_millis(750);
const PING_TIMEOUT: Duration = Duration::from_millis(1_250);
/// Answers on their way to us, on one stream and on one connection; a Pipeline is one stream.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

pub(crate) struct Nodes {
    net: Arc<dyn Net>,
    clock: Arc<dyn Clock>,
    connect: Duration,
    lanes: Lanes,
    state: Mutex<State>,
}

impl std::fmt::Debug for Nodes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nodes")
            .field("configured", &self.state().configured)
            .finish_non_exhaustive()
    }
}

struct State {
    configured: Vec<Arc<str>>,
    leader: Option<Arc<str>>,
    /// Index of the configured endpoint to try next.
    turn: usize,
    channels: BTreeMap<Arc<str>, Kept>,
    shunned: BTreeMap<Arc<str>, Shunned>,
    generations: u64,
}

/// A node that failed.
#[derive(Clone, Copy, Debug)]
struct Shunned {
    until: MonoTime,
    length: Duration,
}

impl Shunned {
    /// After one more failure. Calls that were under way when the node was shunned tell nothing new.
    fn again(known: Option<Shunned>, now: MonoTime) -> Shunned {
        match known {
            Some(known) if now < known.until => known,
            Some(known) if now < known.forgotten_at() => {
                Shunned::from(now, (known.length * 2).min(SHUNNED_FOR_MAX))
            }
            Some(_) | None => Shunned::from(now, SHUNNED_FOR),
        }
    }

    fn from(now: MonoTime, length: Duration) -> Shunned {
        Shunned {
            until: now + length,
            length,
        }
    }

    /// A node that has worked for that long is like any other.
    fn forgotten_at(self) -> MonoTime {
        self.until + self.length
    }
}

/// How a client speaks to one node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lanes {
    /// Connections.
    pub count: usize,
    /// A Pipeline on each, for what may go over one.
    pub piped: bool,
}

struct Kept {
    lanes: Vec<Lane>,
    /// Index of the lane for the next attempt.
    turn: usize,
    /// Not, or not any more: this node said that it has no Pipeline. Forgotten with the connection, since the node that
    /// comes back may be a newer one.
    piped: bool,
    generation: u64,
}

/// One connection.
struct Lane {
    /// What is asked alone goes here.
    plain: Arc<Node>,
    /// The same with its Pipeline: opened when first used, and anew after it ended.
    piped: Option<Arc<Node>>,
}

impl Lane {
    fn piped(&mut self) -> Arc<Node> {
        let going = self.piped.take().filter(|node| node.is_going());
        let node = going.unwrap_or_else(|| {
            Arc::new(Node {
                address: self.plain.address.clone(),
                channel: self.plain.channel.clone(),
                pipe: Some(Pipe::open(self.plain.channel.clone())),
                generation: self.plain.generation,
            })
        });
        self.piped = Some(node.clone());
        node
    }
}

/// Where one attempt goes.
pub(crate) struct Node {
    pub address: Arc<str>,
    pub channel: Channel,
    pub pipe: Option<Pipe>,
    generation: u64,
}

impl Node {
    fn is_going(&self) -> bool {
        self.pipe.as_ref().is_some_and(|pipe| !pipe.has_ended())
    }
}

impl Nodes {
    pub fn new(env: &Env, configured: Vec<Arc<str>>, connect: Duration, lanes: Lanes) -> Nodes {
        // A crowd of clients with one list of endpoints must not begin at the same node.
        let turn = usize::try_from(env.random.next_u64() % configured.len() as u64).unwrap_or(0);
        let state = State {
            configured,
            leader: None,
            turn,
            channels: BTreeMap::new(),
            shunned: BTreeMap::new(),
            generations: 0,
        };
        Nodes {
            net: env.net.clone(),
            clock: env.clock.clone(),
            connect,
            lanes,
            state: Mutex::new(state),
        }
    }

    pub fn configured(&self) -> Vec<String> {
        self.state()
            .configured
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    pub fn leader(&self) -> Option<String> {
        self.state().leader.as_ref().map(ToString::to_string)
    }

    /// The node for the next attempt.
    pub fn pick(&self) -> Arc<Node> {
        self.next(false)
    }

    /// The same, with its Pipeline where it has one.
    pub fn pick_with_pipe(&self) -> Arc<Node> {
        self.next(self.lanes.piped)
    }

    fn next(&self, piped: bool) -> Arc<Node> {
        let mut state = self.state();
        if !state.shunned.is_empty() {
            let now = self.clock.monotonic();
            state
                .shunned
                .retain(|_, shunned| now < shunned.forgotten_at());
        }
        let address = match &state.leader {
            Some(leader) => leader.clone(),
            None => state.in_turn(self.clock.monotonic()),
        };
        self.node(&mut state, address, piped)
    }

    /// That node and no other.
    pub fn at(&self, address: &str) -> Arc<Node> {
        self.node(&mut self.state(), Arc::from(address), false)
    }

    fn node(&self, state: &mut State, address: Arc<str>, piped: bool) -> Arc<Node> {
        if state.channels.len() >= ADDRESSES_MAX && !state.channels.contains_key(&address) {
            let State {
                channels,
                configured,
                ..
            } = state;
            channels.retain(|kept, _| configured.contains(kept));
        }
        let generations = &mut state.generations;
        let kept = state.channels.entry(address).or_insert_with_key(|address| {
            *generations += 1;
            let lane = || Lane {
                plain: Arc::new(Node {
                    address: address.clone(),
                    channel: self.channel(address),
                    pipe: None,
                    generation: *generations,
                }),
                piped: None,
            };
            Kept {
                lanes: (0..self.lanes.count).map(|_| lane()).collect(),
                turn: 0,
                piped: true,
                generation: *generations,
            }
        });
        kept.turn = (kept.turn + 1) % kept.lanes.len();
        let lane = &mut kept.lanes[kept.turn];
        if piped && kept.piped {
            lane.piped()
        } else {
            lane.plain.clone()
        }
    }

    /// It answered that it has no Pipeline, or not for such a request: calls of their own from here on.
    pub fn has_no_pipe(&self, node: &Node) {
        let mut state = self.state();
        if let Some(kept) = state.channels.get_mut(&node.address)
            && kept.generation == node.generation
        {
            kept.piped = false;
            kept.lanes.iter_mut().for_each(|lane| lane.piped = None);
        }
    }

    /// Connects with the first call. Must be made inside a runtime, which carries the connection from then on.
    fn channel(&self, address: &str) -> Channel {
        let net = self.net.clone();
        let host_port: Arc<str> = Arc::from(address);
        let connector = tower::service_fn(move |_: Uri| {
            let connecting = net.connect(&host_port);
            async move { connecting.await.map(TokioIo::new) }
        });
        endpoint(address)
            .connect_timeout(self.connect)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .connect_with_connector_lazy(connector)
    }

    /// Believes what a reply says about the leader, unless that node has just failed. Returns whether the leader changed.
    pub fn learn(&self, metadata: &MetadataMap) -> bool {
        let address = metadata
            .get(LEADER_ADDRESS)
            .and_then(|value| value.to_str().ok());
        self.learn_address(address.unwrap_or_default())
    }

    /// The same; empty: it says nothing.
    pub fn learn_address(&self, address: &str) -> bool {
        if address.is_empty() {
            return false;
        }
        let now = self.clock.monotonic();
        let mut state = self.state();
        let known = state.leader.as_deref() == Some(address);
        let shunned = state.is_shunned(address, now);
        // A hint that is no address would cost every call a failed connect.
        if known || shunned || format!("http://{address}").parse::<Uri>().is_err() {
            return false;
        }
        state.leader = Some(Arc::from(address));
        true
    }

    /// An attempt got no answer there: the next one goes elsewhere, and comes back over a new connection.
    pub fn failed(&self, node: &Node) {
        let now = self.clock.monotonic();
        let mut state = self.state();
        state.turn_from(&node.address);
        let known = state.shunned.get(&node.address).copied();
        let shunned = Shunned::again(known, now);
        state.shunned.insert(node.address.clone(), shunned);
        // Calls that shared the connection fail one after the other; only the first throws it away.
        if state
            .channels
            .get(&node.address)
            .is_some_and(|kept| kept.generation == node.generation)
        {
            state.channels.remove(&node.address);
        }
    }

    /// It answered that it cannot help now (no leader known, queue full): ask another one next.
    pub fn unhelpful(&self, node: &Node) {
        self.state().turn_from(&node.address);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The configured endpoint whose turn it is, or the next that did not fail lately. The turn passes on only by failure:
    /// a client that hops for no reason opens every connection.
    fn in_turn(&self, now: MonoTime) -> Arc<str> {
        let count = self.configured.len();
        let skip = (0..count)
            .find(|skip| {
                let configured = &self.configured[(self.turn + skip) % count];
                !self.is_shunned(configured, now)
            })
            .unwrap_or(0);
        self.configured[(self.turn + skip) % count].clone()
    }

    fn is_shunned(&self, address: &str, now: MonoTime) -> bool {
        self.shunned
            .get(address)
            .is_some_and(|shunned| now < shunned.until)
    }

    fn turn_from(&mut self, address: &Arc<str>) {
        if self.leader.as_ref() == Some(address) {
            self.leader = None;
        }
        if let Some(index) = self
            .configured
            .iter()
            .position(|configured| configured == address)
        {
            self.turn = (index + 1) % self.configured.len();
        }
    }
}

fn endpoint(address: &str) -> Endpoint {
    // Addresses are checked where they come in (build, learn); should one slip through, its connect fails, which is handled.
    Endpoint::from_shared(format!("http://{address}"))
        .unwrap_or_else(|_| Endpoint::from_static("http://invalid.invalid"))
}

#[cfg(test)]
mod tests {
    use billing_proto::v1::{self, pipeline_request::Request as Wanted};

    use super::*;
    use crate::pipe::{Heard, Manner};

    fn nodes() -> Nodes {
        let lanes = Lanes {
            count: 1,
            piped: true,
        };
        let configured = vec![Arc::from("127.0.0.1:1")];
        Nodes::new(&Env::real(), configured, Duration::from_secs(1), lanes)
    }

    #[tokio::test]
    async fn picks_share_a_node_until_its_stream_ends() {
        let nodes = nodes();
        let first = nodes.pick_with_pipe();
        assert!(Arc::ptr_eq(&first, &nodes.pick_with_pipe()));
        assert!(nodes.pick().pipe.is_none(), "what is asked alone");
        // Nobody listens there: the stream ends, and whoever asked over it hears of that.
        let Some(pipe) = &first.pipe else {
            panic!("asked for one with a stream");
        };
        let wanted = Wanted::GetLease(v1::GetLeaseRequest::default());
        let manner = Manner {
            urgent: false,
            waits: false,
        };
        let patience = Duration::from_secs(60);
        let heard = pipe.ask(&*nodes.clock, wanted, manner, patience).await;
        assert!(matches!(heard, Heard::Failed(_)));
        let next = nodes.pick_with_pipe();
        assert!(!Arc::ptr_eq(&first, &next), "a new stream");
        assert_eq!(
            first.generation, next.generation,
            "over the same connection"
        );
    }

    #[tokio::test]
    async fn a_node_without_a_pipeline_is_asked_without_until_it_comes_back() {
        let nodes = nodes();
        let node = nodes.pick_with_pipe();
        nodes.has_no_pipe(&node);
        assert!(nodes.pick_with_pipe().pipe.is_none());
        nodes.failed(&node);
        assert!(
            nodes.pick_with_pipe().pipe.is_some(),
            "it may be a newer one"
        );
    }

    #[test]
    fn a_node_that_fails_soon_again_is_shunned_for_longer() {
        let second = Duration::from_secs(1);
        let at = |seconds: u32| MonoTime::default() + second * seconds;
        let mut shunned = Shunned::again(None, at(0));
        assert_eq!(shunned.length, second);
        let during = Shunned::again(Some(shunned), MonoTime::default() + second / 2);
        assert_eq!(during.until, at(1), "nothing new");
        let mut now = 1;
        for seconds in [2, 4, 8, 16, 16] {
            shunned = Shunned::again(Some(shunned), at(now));
            now += seconds;
            assert_eq!((shunned.length, shunned.until), (second * seconds, at(now)));
        }
        let later = Shunned::again(Some(shunned), at(now + 16));
        assert_eq!(later.length, second, "it worked for long");
    }
}
