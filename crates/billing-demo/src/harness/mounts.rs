//! Decides how a thread of ours comes to mount things that nobody else sees. Nothing has to be unmounted: a mount namespace goes
//! with the last process in it, however that ends.

use std::process::Command;

use anyhow::{Context, Result, ensure};

const NEEDED: &str = "mounting file systems that nobody else sees needs root (CAP_SYS_ADMIN)";

/// From now on this thread, and what it starts, mounts for itself.
pub fn private_mounts() -> Result<()> {
    leave_mounts().context(NEEDED)?;
    mount(&["--make-rprivate", "/"]).context(NEEDED)
}

/// `mount` with these arguments.
pub fn mount(arguments: &[&str]) -> Result<()> {
    let ran = Command::new("mount").args(arguments).output()?;
    ensure!(
        ran.status.success(),
        "mount {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&ran.stderr).trim()
    );
    Ok(())
}

#[allow(unsafe_code)]
fn leave_mounts() -> Result<()> {
    // SAFETY: the flag concerns this thread's view of mounts and its working folder; no memory and no open file is unshared.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }?;
    Ok(())
}
