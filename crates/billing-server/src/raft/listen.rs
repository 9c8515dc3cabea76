//! Decides how accepted byte streams become what a tonic server serves. Knows nothing of what is served; clients' and
//! peers' listeners both go through it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use billing_env::{BoxIo, Clock, Listener};
use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// When accepting fails (out of file descriptors, mostly), the next try waits this long: an error must not become a hot loop.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// One accepted connection, as tonic wants it.
pub struct Connection {
    io: BoxIo,
    from: SocketAddr,
}

/// Where a request came from: an extension of every request that a [`Connection`] carried.
#[derive(Debug, Clone, Copy)]
pub struct From(pub SocketAddr);

impl Connected for Connection {
    type ConnectInfo = From;

    fn connect_info(&self) -> From {
        From(self.from)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
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

/// Everything that `listener` accepts, for `serve_with_incoming_shutdown`. Never ends by itself.
pub fn incoming(
    listener: Box<dyn Listener>,
    clock: Arc<dyn Clock>,
) -> impl Stream<Item = io::Result<Connection>> + Send {
    futures::stream::unfold((listener, clock), |(mut listener, clock)| async move {
        loop {
            match listener.accept().await {
                Ok((io, from)) => return Some((Ok(Connection { io, from }), (listener, clock))),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    clock.sleep(ACCEPT_RETRY).await;
                }
            }
        }
    })
}
