//! Decides when bytes between two processes go on: a listener in front of one of them, which holds one connection from some
//! words on until it lets go. Understands nothing of what it passes on, and neither loses nor changes a byte while both ends live.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Notify,
    task::JoinHandle,
};

/// Larger than what a request here is written with: words that are split over two reads are not found.
const CHUNK_BYTES: usize = 64 * 1024;

/// Whose words are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Those of whoever connects.
    There,
    /// Those of whoever stands behind.
    Back,
}

/// Where taps listen: this machine too, but not where anything else of ours does.
const HOST: &str = "127.0.0.2";

/// Listeners, each in front of one address and at its port: a node insists on its own one. Dropped: no new connections; old ones go on.
#[derive(Debug)]
pub struct Tap {
    addresses: Vec<String>,
    hold: Arc<Hold>,
    listeners: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Hold {
    wanted: Mutex<Option<(Way, Vec<u8>)>>,
    holds: AtomicBool,
    let_go: Notify,
}

impl Tap {
    pub async fn before(targets: &[String]) -> Result<Tap> {
        let hold = Arc::new(Hold::default());
        let (mut addresses, mut listeners) = (Vec::new(), Vec::new());
        for target in targets {
            let (_, port) = target.rsplit_once(':').context("no host:port")?;
            let address = format!("{HOST}:{port}");
            let listener = TcpListener::bind(&address)
                .await
                .with_context(|| format!("cannot listen on {address}"))?;
            addresses.push(address);
            listeners.push(tokio::spawn(accept(listener, target.clone(), hold.clone())));
        }
        Ok(Tap {
            addresses,
            hold,
            listeners,
        })
    }

    /// `host:port` of each, in the order of what they stand before.
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// On the first connection on which these words come this way, nothing goes this way any more, from them on.
    pub fn hold_from(&self, way: Way, words: &[u8]) {
        *self.hold.wanted() = Some((way, words.to_vec()));
    }

    /// Whether such words came, and are held.
    pub fn holds(&self) -> bool {
        self.hold.holds.load(Ordering::SeqCst)
    }

    /// What was held goes on, in order, and what comes behind it.
    pub fn let_go(&self) {
        *self.hold.wanted() = None;
        self.hold.holds.store(false, Ordering::SeqCst);
        self.hold.let_go.notify_waiters();
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        for listener in &self.listeners {
            listener.abort();
        }
    }
}

impl Hold {
    fn wanted(&self) -> std::sync::MutexGuard<'_, Option<(Way, Vec<u8>)>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this chunk is the one that is held; the next one is not.
    fn takes(&self, way: Way, chunk: &[u8]) -> bool {
        let mut wanted = self.wanted();
        let found = wanted.as_ref().is_some_and(|(held, words)| {
            let mut all = chunk.windows(words.len());
            *held == way && all.any(|window| window == words.as_slice())
        });
        if found {
            *wanted = None;
        }
        found
    }

    async fn pass(&self, way: Way, chunk: &[u8]) {
        // Made before the look, so that a letting go right after it is not missed.
        let let_go = self.let_go.notified();
        if self.takes(way, chunk) {
            self.holds.store(true, Ordering::SeqCst);
            let_go.await;
        }
    }
}

async fn accept(listener: TcpListener, target: String, hold: Arc<Hold>) {
    while let Ok((near, _)) = listener.accept().await {
        let (target, hold) = (target.clone(), hold.clone());
        tokio::spawn(async move {
            // Nobody there: whoever connected is told by the end of its connection.
            let Ok(far) = TcpStream::connect(&target).await else {
                return;
            };
            let (near_in, near_out) = near.into_split();
            let (far_in, far_out) = far.into_split();
            tokio::join!(
                carry(near_in, far_out, Way::There, &hold),
                carry(far_in, near_out, Way::Back, &hold),
            );
        });
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, way: Way, hold: &Hold) {
    let mut chunk = vec![0; CHUNK_BYTES];
    while let Ok(length @ 1..) = from.read(&mut chunk).await {
        hold.pass(way, &chunk[..length]).await;
        if to.write_all(&chunk[..length]).await.is_err() {
            return;
        }
    }
    // An end is passed on too; whoever has gone already does not hear it.
    let _ = to.shutdown().await;
}
