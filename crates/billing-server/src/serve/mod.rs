//! Decides how clients reach the services: listener, bounds, keep-alive, health, reflection, and how serving ends.
//! Never looks into a request; `services` does.

mod admission;
mod connections;
mod health;

use std::io;
use std::time::Duration;

use billing_env::{Env, Listener};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;

pub use admission::{Admission, LeaderHint};
pub use connections::Counted;
pub use health::Health;

/// A request's message; larger ones are refused by the codec. A batch of 1,000 full items fits. Not much more does: an empty
/// item takes two bytes on the wire and 136 in memory, before anybody can count how many there are.
pub const MESSAGE_BYTES_MAX: usize = 512 << 10;
/// Calls on one connection; h2 makes the client wait with one more.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 2_048;
/// Metadata of one request.
pub const METADATA_BYTES_MAX: u32 = 16 << 10;
/// A silent connection is asked after this long, and closed after another [`PING_PATIENCE`] without an answer.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_PATIENCE: Duration = Duration::from_secs(10);
/// What may be on its way to us on one stream, and on one connection.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// Serves `routes` on `listener` until `stop` is cancelled, then finishes the calls in flight.
/// The caller bounds how long that may take, and drops the future when it has had enough.
pub async fn serve(
    env: &Env,
    listener: Box<dyn Listener>,
    connections_max: usize,
    admission: Admission,
    routes: Routes,
    stop: CancellationToken,
) -> io::Result<()> {
    let listener = Box::new(Counted::new(listener, connections_max));
    Server::builder()
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_PATIENCE))
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_max_header_list_size(METADATA_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .layer(admission)
        .add_routes(routes)
        .serve_with_incoming_shutdown(
            crate::raft::listen::incoming(listener, env.clock.clone()),
            stop.cancelled_owned(),
        )
        .await
        .map_err(io::Error::other)
}
