//! Decides how many client connections a node holds. One more is accepted and closed at once, so that its client hears about
//! it now instead of waiting in the kernel's backlog; nothing of it is read.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use billing_env::{BoxFuture, BoxIo, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A listener whose connections are counted.
pub struct Counted {
    inner: Box<dyn Listener>,
    free: Arc<Semaphore>,
    max: usize,
    /// So that a flood of refused connections is one line in the log, not a flood of lines.
    refusing: bool,
}

impl Counted {
    /// At most `max` connections of `inner` at the same time.
    pub fn new(inner: Box<dyn Listener>, max: usize) -> Counted {
        Counted {
            inner,
            free: Arc::new(Semaphore::new(max)),
            max,
            refusing: false,
        }
    }
}

impl Listener for Counted {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<(BoxIo, SocketAddr)>> {
        Box::pin(async move {
            loop {
                let (io, from) = self.inner.accept().await?;
                match Arc::clone(&self.free).try_acquire_owned() {
                    Ok(permit) => {
                        self.refusing = false;
                        let io = CountedIo {
                            io,
                            _permit: permit,
                        };
                        return Ok((Box::new(io) as BoxIo, from));
                    }
                    Err(_) if self.refusing => {}
                    Err(_) => {
                        self.refusing = true;
                        tracing::warn!(
                            connections_max = self.max,
                            "client connections are refused: there are too many"
                        );
                    }
                }
            }
        })
    }
}

/// A connection that gives its place back when it is dropped.
struct CountedIo {
    io: BoxIo,
    _permit: OwnedSemaphorePermit,
}

impl AsyncRead for CountedIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for CountedIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
