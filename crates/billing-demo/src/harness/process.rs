//! Decides how a child process starts, where its words go, and that it does not outlive us.

use std::{
    fs::File,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, kill_process};

pub use rustix::process::Signal;

/// How often a wait looks again. There is no event to await for a process that is not ours to reap from elsewhere.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Where the binary `name` is: beside the running program, or one folder up from a test program.
pub fn binary(name: &str) -> Result<PathBuf> {
    let here = std::env::current_exe().context("cannot find my own program file")?;
    here.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "{name} is not beside {}: build it first (`make build`, or `make test` for tests)",
                here.display()
            )
        })
}

/// Where a child's standard output and error go.
#[derive(Debug, Clone)]
pub enum Output {
    /// Both into this file, appended.
    File(PathBuf),
    /// To our own standard error.
    Inherit,
    Discard,
}

/// A child process. Dropped: killed and reaped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: Option<PathBuf>,
}

impl Process {
    /// Starts `command` in a process group of its own, so that a Ctrl-C in the terminal reaches only us, and we end it in order.
    /// The kernel kills it when the thread that started it ends: not even a SIGKILL of ours leaves it behind.
    pub fn start(
        name: impl Into<String>,
        mut command: Command,
        output: &Output,
    ) -> Result<Process> {
        let name = name.into();
        command.stdin(Stdio::null()).process_group(0);
        let mut log = None;
        match output {
            Output::File(path) => {
                let file = File::options()
                    .create(true)
                    .append(true)
                    .open(path)
                    .with_context(|| format!("cannot write {}", path.display()))?;
                command.stdout(file.try_clone()?).stderr(file);
                log = Some(path.clone());
            }
            Output::Inherit => {
                command.stdout(Stdio::inherit()).stderr(Stdio::inherit());
            }
            Output::Discard => {
                command.stdout(Stdio::null()).stderr(Stdio::null());
            }
        }
        die_with_parent(&mut command);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {name}: {:?}", command.get_program()))?;
        Ok(Process { name, child, log })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> Option<&Path> {
        self.log.as_deref()
    }

    /// Sends a signal to a child that has not been reaped, so never to a stranger who got its number.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if let Some(status) = self.exited()? {
            bail!("{} has ended already ({status})", self.name);
        }
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// SIGKILL, and waits for the end: the ports are free when it returns.
    pub fn kill(&mut self) -> Result<()> {
        self.child
            .kill()
            .with_context(|| format!("cannot kill {}", self.name))?;
        self.child.wait()?;
        Ok(())
    }

    /// Its exit status, if it has ended.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for its end, at most `at_most`.
    pub async fn ended(&mut self, at_most: Duration) -> Result<Option<ExitStatus>> {
        let deadline = tokio::time::Instant::now() + at_most;
        loop {
            if let Some(status) = self.exited()? {
                return Ok(Some(status));
            }
            if tokio::time::Instant::now() >= deadline {
                return Ok(None);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// SIGTERM, then SIGKILL when that has not helped within `patience`.
    pub async fn stop(&mut self, patience: Duration) -> Result<()> {
        if self.exited()?.is_some() {
            return Ok(());
        }
        // A stopped process does not hear SIGTERM until it goes on.
        self.signal(Signal::TERM)?;
        self.signal(Signal::CONT).ok();
        if self.ended(patience).await?.is_none() {
            self.kill()?;
        }
        Ok(())
    }

    /// The last lines it wrote, for an error message.
    pub fn last_words(&self, lines: usize) -> String {
        let Some(text) = self
            .log()
            .and_then(|path| std::fs::read_to_string(path).ok())
        else {
            return String::new();
        };
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nobody is left to tell when this fails; an ended child makes it fail, harmlessly.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[allow(unsafe_code)]
fn die_with_parent(command: &mut Command) {
    // SAFETY: between fork and exec the closure makes one system call and touches no memory of ours and no lock.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            Ok(())
        });
    }
}
