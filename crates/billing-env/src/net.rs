//! Decides how a byte stream to another process is opened and accepted. Knows nothing of gRPC, HTTP or TLS.

use std::{io, net::SocketAddr};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::BoxFuture;

/// A connected byte stream.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

pub type BoxIo = Box<dyn Io>;

/// Opens and accepts byte streams. Addresses are `host:port`; the real one resolves names, a simulation knows its hosts.
pub trait Net: Send + Sync + 'static {
    /// Connects, without a deadline of its own: the caller bounds it.
    /// `ConnectionRefused` means that a machine answered and no process listens there.
    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<BoxIo>>;

    /// Listens at `address`; port 0 takes a free one.
    fn listen(&self, address: &str) -> BoxFuture<'static, io::Result<Box<dyn Listener>>>;
}

/// A bound listening socket.
pub trait Listener: Send + 'static {
    /// The address that others reach, with the real port.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// The next connection and where it came from.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(BoxIo, SocketAddr)>>;
}

/// TCP sockets of the operating system, without Nagle's delay.
#[derive(Debug, Default)]
pub struct RealNet;

impl Net for RealNet {
    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<BoxIo>> {
        let address = address.to_owned();
        Box::pin(async move {
            let stream = tokio::net::TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as BoxIo)
        })
    }

    fn listen(&self, address: &str) -> BoxFuture<'static, io::Result<Box<dyn Listener>>> {
        let address = address.to_owned();
        Box::pin(async move {
            let listener = tokio::net::TcpListener::bind(address).await?;
            Ok(Box::new(RealListener(listener)) as Box<dyn Listener>)
        })
    }
}

struct RealListener(tokio::net::TcpListener);

impl Listener for RealListener {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<(BoxIo, SocketAddr)>> {
        Box::pin(async move {
            let (stream, from) = self.0.accept().await?;
            stream.set_nodelay(true)?;
            Ok((Box::new(stream) as BoxIo, from))
        })
    }
}

/// Refuses to serve plain text beyond this machine unless the operator said so in so many words (DESIGN §8).
/// `address` is `host:port` as given to a listen flag; anything but a literal loopback address or `localhost` counts as outside.
pub fn loopback_or_insecure(address: &str, insecure: bool) -> Result<(), String> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let loopback = host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback());
    if loopback || insecure {
        return Ok(());
    }
    Err(format!(
        "{address} is not a loopback address and this version has no TLS: anybody on that network could move money. \
         Listen on 127.0.0.1, or pass --insecure if the network itself is trusted."
    ))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn only_loopback_is_served_without_the_word_insecure() {
        for inside in ["127.0.0.1:7101", "[::1]:7101", "localhost:0", "127.3.2.1:1"] {
            assert!(loopback_or_insecure(inside, false).is_ok(), "{inside}");
        }
        for outside in [
            "0.0.0.0:7101",
            "10.0.0.7:7101",
            "[::]:7101",
            "billing.example:7101",
        ] {
            assert!(loopback_or_insecure(outside, false).is_err(), "{outside}");
            assert!(loopback_or_insecure(outside, true).is_ok(), "{outside}");
        }
    }

    #[tokio::test]
    async fn bytes_cross_and_a_closed_port_refuses() -> io::Result<()> {
        let mut listener = RealNet.listen("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let (near, far) = tokio::join!(RealNet.connect(&address), listener.accept());
        let (mut near, mut far) = (near?, far?.0);
        near.write_all(b"ping").await?;
        let mut got = [0; 4];
        far.read_exact(&mut got).await?;
        assert_eq!(&got, b"ping");
        drop((listener, far));
        let refused = RealNet.connect(&address).await.err().map(|e| e.kind());
        assert_eq!(refused, Some(io::ErrorKind::ConnectionRefused));
        Ok(())
    }
}
