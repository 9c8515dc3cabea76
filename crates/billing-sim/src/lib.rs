//! The simulation: decides, from a seed, what network, disks and clocks do to real nodes, and looks whether the rules hold.
//! Never reads a real clock and never draws a real random number.

#[cfg(not(tokio_unstable))]
compile_error!(
    "without --cfg tokio_unstable tokio draws its own random numbers and no seed repeats: \
     build inside the workspace (.cargo/config.toml sets it) and without a RUSTFLAGS variable"
);

pub mod chance;
pub mod clock;
pub mod faults;
pub mod machines;
pub mod net;
pub mod pauses;
pub mod profile;
pub mod properties;
pub mod record;
pub mod replay;
pub mod scenarios;
pub mod trace;
pub mod world;
