//! Decides where a ledger becomes bytes and bytes become a ledger: on a thread of its own, which gives way to everything else
//! while it writes, a few pieces at a time, so that neither applies nor heartbeats wait and memory stays bounded. A simulation
//! has one thread and does it there and then. Never touches the running ledger.

use std::io::{self, Read, Write};

use billing_core::{BadSnapshot, Ledger};
use billing_store::SnapshotReader;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::snapshot::{Offload, SnapshotError};

/// Made before they are taken; then the thread waits.
const PIECES_AHEAD: usize = 4;
/// Of 19: whatever serves goes first, and an idle core is still used.
const NICENESS: i32 = 10;

/// Does `work` on a thread of its own: those of the runtime's pool also sync the log.
fn beside(work: impl FnOnce() + Send + 'static) -> Result<(), SnapshotError> {
    let thread = std::thread::Builder::new().name("ledger copy".to_owned());
    let started = thread.spawn(work);
    started.map(drop).map_err(|_| SnapshotError::Thread)
}

/// The same, of low priority.
fn aside(work: impl FnOnce() + Send + 'static) -> Result<(), SnapshotError> {
    beside(|| {
        // On Linux this is the thread's own. Where it is refused, it merely competes.
        let _ = rustix::process::nice(NICENESS);
        work();
    })
}

/// Lets go of a ledger that nobody needs: a million records take a while.
pub fn discard(ledger: Ledger, offload: Offload) {
    match offload {
        Offload::Inline => drop(ledger),
        // Without a thread it was dropped on the way.
        Offload::Thread => drop(aside(move || drop(ledger))),
    }
}

/// A ledger on its way out.
pub struct Pieces {
    from: From,
    piece_bytes: usize,
}

enum From {
    Memory(Bytes),
    Thread {
        made: mpsc::Receiver<Vec<u8>>,
        ended: Option<oneshot::Receiver<io::Result<()>>>,
    },
}

impl Pieces {
    /// Every piece but the last has `piece_bytes`.
    pub fn of(
        ledger: Ledger,
        offload: Offload,
        piece_bytes: usize,
    ) -> Result<Pieces, SnapshotError> {
        let from = match offload {
            Offload::Inline => {
                let mut bytes = Vec::new();
                ledger.write_to(&mut bytes).map_err(BadSnapshot::Io)?;
                From::Memory(bytes.into())
            }
            Offload::Thread => {
                let (pieces, made) = mpsc::channel(PIECES_AHEAD);
                let (end, ended) = oneshot::channel();
                aside(move || {
                    let mut cutter = Cutter {
                        piece: Vec::with_capacity(piece_bytes),
                        piece_bytes,
                        pieces,
                    };
                    let written = ledger.write_to(&mut cutter).and_then(|()| cutter.flush());
                    drop(ledger);
                    drop(cutter);
                    // Nobody waits for the last word of what was given up.
                    let _ = end.send(written);
                })?;
                From::Thread {
                    made,
                    ended: Some(ended),
                }
            }
        };
        Ok(Pieces { from, piece_bytes })
    }

    /// `None` after the last.
    pub async fn next(&mut self) -> Result<Option<Bytes>, SnapshotError> {
        match &mut self.from {
            From::Memory(rest) => {
                let length = rest.len().min(self.piece_bytes);
                Ok((length > 0).then(|| rest.split_to(length)))
            }
            From::Thread { made, ended } => {
                if let Some(piece) = made.recv().await {
                    return Ok(Some(piece.into()));
                }
                if let Some(ended) = ended.take() {
                    ended
                        .await
                        .map_err(|_| SnapshotError::Thread)?
                        .map_err(BadSnapshot::Io)?;
                }
                Ok(None)
            }
        }
    }
}

struct Cutter {
    piece: Vec<u8>,
    piece_bytes: usize,
    pieces: mpsc::Sender<Vec<u8>>,
}

impl Write for Cutter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.piece.len() == self.piece_bytes {
            self.flush()?;
        }
        let length = bytes.len().min(self.piece_bytes - self.piece.len());
        self.piece.extend_from_slice(&bytes[..length]);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.piece, Vec::with_capacity(self.piece_bytes));
        self.pieces
            .blocking_send(full)
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Reads a ledger out of a snapshot. Every byte was compared with its checksum when this resolves.
pub async fn gather(
    mut reader: Box<dyn SnapshotReader>,
    offload: Offload,
) -> Result<Ledger, SnapshotError> {
    match offload {
        Offload::Inline => {
            let mut bytes = Vec::new();
            while let Some(piece) = reader.next().await? {
                bytes.extend_from_slice(&piece);
            }
            Ok(whole(&mut &*bytes)?)
        }
        Offload::Thread => {
            let (pieces, coming) = mpsc::channel(PIECES_AHEAD);
            let (end, ended) = oneshot::channel();
            // Gives way to nobody: until it is done this node serves nobody, and the leader keeps its log for it.
            beside(move || {
                let mut arriving = Arriving {
                    coming,
                    piece: io::Cursor::default(),
                };
                // Nobody waits for it when the snapshot proved to be damaged.
                let _ = end.send(whole(&mut arriving));
            })?;
            while let Some(piece) = reader.next().await? {
                // Not taken: it was no ledger, and the end says why.
                if pieces.send(piece).await.is_err() {
                    break;
                }
            }
            drop(pieces);
            Ok(ended.await.map_err(|_| SnapshotError::Thread)??)
        }
    }
}

/// A ledger, and nothing behind it.
fn whole(from: &mut impl Read) -> Result<Ledger, BadSnapshot> {
    let ledger = Ledger::read_from(from)?;
    match from.read(&mut [0])? {
        0 => Ok(ledger),
        _ => Err(BadSnapshot::Torn("something follows the ledger".to_owned())),
    }
}

struct Arriving {
    coming: mpsc::Receiver<Bytes>,
    piece: io::Cursor<Bytes>,
}

impl Read for Arriving {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.piece.read(into)?;
            if read > 0 || into.is_empty() {
                return Ok(read);
            }
            match self.coming.blocking_recv() {
                Some(piece) => self.piece = io::Cursor::new(piece),
                None => return Ok(0),
            }
        }
    }
}
