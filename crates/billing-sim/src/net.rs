//! Decides nothing: turmoil's sockets behind the seam. Addresses are `host:port` with the simulation's host names.

use std::io;
use std::net::SocketAddr;

use billing_env::{BoxFuture, BoxIo, Listener, Net};

pub struct SimNet;

impl Net for SimNet {
    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<BoxIo>> {
        let address = address.to_owned();
        Box::pin(async move {
            let stream = turmoil::net::TcpStream::connect(address).await?;
            Ok(Box::new(stream) as BoxIo)
        })
    }

    fn listen(&self, address: &str) -> BoxFuture<'static, io::Result<Box<dyn Listener>>> {
        let port = address.rsplit(':').next().unwrap_or_default().to_owned();
        Box::pin(async move {
            // A simulated host has one address, and listens on all of it.
            let listener = turmoil::net::TcpListener::bind(format!("0.0.0.0:{port}")).await?;
            Ok(Box::new(SimListener(listener)) as Box<dyn Listener>)
        })
    }
}

struct SimListener(turmoil::net::TcpListener);

impl Listener for SimListener {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<(BoxIo, SocketAddr)>> {
        Box::pin(async move {
            let (stream, from) = self.0.accept().await?;
            Ok((Box::new(stream) as BoxIo, from))
        })
    }
}
