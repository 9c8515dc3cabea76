//! The signals that ask this program to end. Decides nothing: each command says what ending means for it.

use std::io;

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::Problem;

/// From here on these signals end nothing by themselves.
pub struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
}

impl Signals {
    pub fn listen() -> Result<Signals, Problem> {
        let listen = || -> io::Result<Signals> {
            Ok(Signals {
                interrupt: signal(SignalKind::interrupt())?,
                terminate: signal(SignalKind::terminate())?,
                hang_up: signal(SignalKind::hangup())?,
            })
        };
        listen().map_err(|error| {
            Problem::failed(
                format!("cannot listen for signals: {error}"),
                "nothing was begun",
            )
        })
    }

    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::INT,
            _ = self.terminate.recv() => Signal::TERM,
            _ = self.hang_up.recv() => Signal::HUP,
        }
    }
}
