//! Decides what this machine can do, by trying it, and with what name a missing thing is asked for. Installs nothing.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

/// What a fault needs beyond a process.
#[derive(Debug, Clone, Copy)]
pub enum Need {
    /// Network namespaces of our own, hence root.
    Networks,
    /// Mounts of our own, hence root.
    Mounts,
    Nft,
    Faketime,
    Fuse,
}

/// Whether the command runs and says that all is well.
fn works(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

impl Need {
    /// Its name, where it is missing.
    pub fn lacking(&self) -> Option<String> {
        let (there, name) = match self {
            Need::Networks => (
                works("unshare", &["--net", "ip", "link", "set", "lo", "up"])
                    && works("nsenter", &["--version"]),
                "root with network namespaces (unshare, nsenter, ip)",
            ),
            Need::Mounts => (
                works(
                    "unshare",
                    &["--mount", "mount", "-t", "tmpfs", "none", "/tmp"],
                ),
                "root with mount namespaces (unshare, mount)",
            ),
            Need::Nft => (
                // Where namespaces are not to be had, that is what is missing, not this.
                works("unshare", &["--net", "nft", "add table inet probe"])
                    || Need::Networks.lacking().is_some() && works("nft", &["--version"]),
                "nft (Debian: nftables)",
            ),
            Need::Faketime => (faketime().is_some(), "faketime (Debian: libfaketime)"),
            Need::Fuse => (
                Path::new("/dev/fuse").exists()
                    && works("cc", &["--version"])
                    && works("pkg-config", &["--exists", "fuse3"]),
                "fuse and a C compiler (Debian: fuse3 libfuse3-dev pkg-config gcc)",
            ),
        };
        (!there).then(|| name.to_owned())
    }
}

/// The library that lies about the time to programs with several threads.
pub fn faketime() -> Option<PathBuf> {
    const LIBRARY: &str = "faketime/libfaketimeMT.so.1";
    let mut folders: Vec<PathBuf> = ["/usr/lib", "/usr/local/lib", "/usr/lib64"]
        .map(PathBuf::from)
        .to_vec();
    // Debian keeps libraries in a folder for each kind of machine.
    let kinds = fs::read_dir("/usr/lib").ok()?;
    folders.extend(kinds.flatten().map(|entry| entry.path()));
    folders
        .into_iter()
        .map(|folder| folder.join(LIBRARY))
        .find(|path| path.is_file())
}

/// Compiles the file system that loses what was not synced, and returns the program.
pub fn lossy_disk(into: &Path) -> Result<PathBuf> {
    let flags = Command::new("pkg-config")
        .args(["--cflags", "--libs", "fuse3"])
        .output()
        .context("pkg-config")?;
    let flags = String::from_utf8(flags.stdout)?;
    let program = into.join("lossy_disk");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/lossy_disk.c");
    let ran = Command::new("cc")
        .args(["-O2", "-Wall", "-o"])
        .arg(&program)
        .arg(source)
        .args(flags.split_whitespace())
        .output()
        .context("cc")?;
    ensure!(
        ran.status.success(),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    Ok(program)
}
