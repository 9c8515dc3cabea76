//! Decides nothing about messages: turmoil's sockets behind the seam. Addresses are `host:port` with the simulation's host
//! names. A process that is stopped neither reads, writes, connects nor accepts; what reaches its machine waits there.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use billing_env::{BoxFuture, BoxIo, Listener, Net};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::clock::SimClock;

/// The network as one machine has it.
pub struct SimNet(pub SimClock);

impl Net for SimNet {
    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<BoxIo>> {
        let (address, clock) = (address.to_owned(), self.0.clone());
        Box::pin(async move {
            clock.going().await;
            let io = turmoil::net::TcpStream::connect(address).await?;
            clock.going().await;
            Ok(Box::new(Stoppable { io, clock }) as BoxIo)
        })
    }

    fn listen(&self, address: &str) -> BoxFuture<'static, io::Result<Box<dyn Listener>>> {
        let port = address.rsplit(':').next().unwrap_or_default().to_owned();
        let clock = self.0.clone();
        Box::pin(async move {
            // A simulated host has one address, and listens on all of it.
            let listener = turmoil::net::TcpListener::bind(format!("0.0.0.0:{port}")).await?;
            Ok(Box::new(SimListener { listener, clock }) as Box<dyn Listener>)
        })
    }
}

struct SimListener {
    listener: turmoil::net::TcpListener,
    clock: SimClock,
}

impl Listener for SimListener {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<(BoxIo, SocketAddr)>> {
        Box::pin(async move {
            let (io, from) = self.listener.accept().await?;
            self.clock.going().await;
            let clock = self.clock.clone();
            Ok((Box::new(Stoppable { io, clock }) as BoxIo, from))
        })
    }
}

/// A connection of a process that may be stopped.
struct Stoppable {
    io: turmoil::net::TcpStream,
    clock: SimClock,
}

impl AsyncRead for Stoppable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.clock.poll_going(cx));
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stoppable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.clock.poll_going(cx));
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.clock.poll_going(cx));
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.clock.poll_going(cx));
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
