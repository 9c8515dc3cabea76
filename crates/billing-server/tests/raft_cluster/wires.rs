//! The way out of one node, for tests that cut it, that let one thing through and nothing after it, or that lose the answers.
//! What others ask of the node is never touched.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use billing_env::{BoxFuture, BoxIo, Listener, Net, RealNet};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

/// Of a way that is slow, at a time; a call that takes no more is not delayed.
const SLOW_BYTES: usize = 16 * 1024;
const SLOW_MOMENT: Duration = Duration::from_millis(60);

/// What becomes of the bytes in which a marker is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marked {
    Arrives,
    IsLost,
}

#[derive(Debug)]
struct Swallowing {
    marker: Vec<u8>,
    marked: Marked,
    seen: bool,
}

#[derive(Default)]
struct Shared {
    cut: watch::Sender<BTreeSet<String>>,
    swallowing: Mutex<BTreeMap<String, Swallowing>>,
    deaf_to: Mutex<BTreeSet<String>>,
    slow_to: Mutex<BTreeSet<String>>,
}

/// The kernel's sockets, between which and the node somebody stands. Clones are the same.
#[derive(Default, Clone)]
pub struct Wires(Arc<Shared>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wires {
    /// What stands is closed, and nobody is reached. A broken network, not a refusal: it says nothing about the process there.
    pub fn cut(&self, address: &str) {
        self.0.cut.send_modify(|cut| {
            cut.insert(address.to_owned());
        });
    }

    /// Everything arrives again.
    pub fn mend(&self) {
        self.0.cut.send_modify(BTreeSet::clear);
        lock(&self.0.swallowing).clear();
        lock(&self.0.deaf_to).clear();
        lock(&self.0.slow_to).clear();
    }

    /// What is sent to `address` arrives, and no answer comes back.
    pub fn lose_answers(&self, address: &str) {
        lock(&self.0.deaf_to).insert(address.to_owned());
    }

    /// What is sent to `address` takes its time, from now on: [`SLOW_BYTES`] a moment on each connection.
    pub fn slow_down(&self, address: &str) {
        lock(&self.0.slow_to).insert(address.to_owned());
    }

    fn is_slow_to(&self, address: &str) -> bool {
        lock(&self.0.slow_to).contains(address)
    }

    /// Once `marker` was seen on its way to `address`, nothing that is sent there arrives any more, and the sender cannot tell.
    pub fn swallow(&self, address: &str, marker: &str, marked: Marked) {
        let swallowing = Swallowing {
            marker: marker.as_bytes().to_vec(),
            marked,
            seen: false,
        };
        lock(&self.0.swallowing).insert(address.to_owned(), swallowing);
    }

    /// Whether these bytes arrive.
    fn arrives(&self, address: &str, bytes: &[u8]) -> bool {
        let mut all = lock(&self.0.swallowing);
        let Some(swallowing) = all.get_mut(address) else {
            return true;
        };
        if swallowing.seen {
            return false;
        }
        let marker = &swallowing.marker;
        swallowing.seen = bytes.windows(marker.len()).any(|found| found == marker);
        !swallowing.seen || swallowing.marked == Marked::Arrives
    }

    fn is_deaf_to(&self, address: &str) -> bool {
        lock(&self.0.deaf_to).contains(address)
    }
}

async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    arrives: impl Fn(&[u8]) -> bool,
    slow: impl Fn() -> bool,
) -> io::Result<()> {
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let take = if slow() { SLOW_BYTES } else { bytes.len() };
        let read = from.read(&mut bytes[..take]).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        if arrives(&bytes[..read]) {
            to.write_all(&bytes[..read]).await?;
        }
        if read == SLOW_BYTES && slow() {
            tokio::time::sleep(SLOW_MOMENT).await;
        }
    }
}

impl Net for Wires {
    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<BoxIo>> {
        let wires = self.clone();
        let address = address.to_owned();
        let mut cut = self.0.cut.subscribe();
        Box::pin(async move {
            if cut.borrow().contains(&address) {
                return Err(io::ErrorKind::HostUnreachable.into());
            }
            let (answers, far) = tokio::io::split(RealNet.connect(&address).await?);
            let (near, relay) = tokio::io::duplex(64 * 1024);
            tokio::spawn(async move {
                let (said, hears) = tokio::io::split(relay);
                tokio::select! {
                    _ = cut.wait_for(|cut| cut.contains(&address)) => {}
                    _ = carry(said, far, |bytes| wires.arrives(&address, bytes), || wires.is_slow_to(&address)) => {}
                    _ = carry(answers, hears, |_| !wires.is_deaf_to(&address), || false) => {}
                }
            });
            Ok(Box::new(near) as BoxIo)
        })
    }

    fn listen(&self, address: &str) -> BoxFuture<'static, io::Result<Box<dyn Listener>>> {
        RealNet.listen(address)
    }
}

/// Wires for each of these nodes, and the same as what a cluster starts through.
pub fn wired(
    nodes: std::ops::RangeInclusive<u64>,
) -> (BTreeMap<u64, Wires>, BTreeMap<u64, Arc<dyn Net>>) {
    let wires: BTreeMap<u64, Wires> = nodes.map(|id| (id, Wires::default())).collect();
    let nets = wires
        .iter()
        .map(|(&id, wires)| (id, Arc::new(wires.clone()) as Arc<dyn Net>))
        .collect();
    (wires, nets)
}
