//! `billingctl lease acquire ... -- COMMAND`: holds a lease for as long as a command runs, as `flock` does with a file.
//! Decides when the command must stop (its lease is lost) and which exit code comes out; never that money may move: the
//! command's token does that, at whatever it changes.
//!
//! The command gets a process group of its own, so that its children end with it. Where stdin is a terminal it stays in
//! ours instead: a background group may not read from the terminal, and Ctrl-C reaches it there anyway.

use std::{io, os::unix::process::ExitStatusExt, process::ExitStatus, time::Duration};

use billing_client::{AcquireOptions, LeaseGuard, Loss, SessionOptions};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::process::{Child, Command};

use super::{Context, lease::holder_default, signals::Signals};
use crate::{
    args::Acquire,
    failure::{Exit, Problem},
};

/// Between SIGTERM and SIGKILL, for a command whose lease is lost.
const GRACE: Duration = Duration::from_secs(5);

/// What a shell says of a command that is not there, and of one that may not be run.
const NOT_FOUND: u8 = 127;
const NOT_RUNNABLE: u8 = 126;
/// What a shell adds to the number of the signal that ended a command.
const BY_SIGNAL: i32 = 128;

pub async fn run(mut context: Context<'_, '_>, acquire: Acquire) -> Result<Exit, Problem> {
    let mut signals = Signals::listen()?;
    let holder = acquire.holder.clone().unwrap_or_else(holder_default);
    // The lease lasts as long as its session, which the client keeps alive.
    let session = context
        .cluster
        .open_session(SessionOptions::new(holder, acquire.ttl))
        .await?;
    let granted = tokio::select! {
        granted = session.acquire(&acquire.invoice_id, AcquireOptions::wait(acquire.wait)) => granted,
        signal = signals.next() => {
            // Ends the waiter too.
            let _ = session.close().await;
            return Err(Problem::Told(ended_by(signal)));
        }
    };
    let guard = match granted {
        Ok(guard) => guard,
        Err(failure) => {
            let problem = context.cluster.explain(failure).await;
            let _ = session.close().await; // It ends by itself otherwise; the refusal is what matters.
            return Err(problem);
        }
    };
    let ran = hold(&mut context, &acquire, &guard, &mut signals).await;
    // A lost lease has nothing left to give back, and the cluster may not even be there.
    if guard.is_valid()
        && let Err(failure) = session.close().await
    {
        let ttl = humantime::format_duration(acquire.ttl);
        context.say(&format!(
            "the lease on {} was not released and ends within {ttl}: {failure}",
            acquire.invoice_id
        ));
    }
    ran
}

/// Runs the command under the lease to its end.
async fn hold(
    context: &mut Context<'_, '_>,
    acquire: &Acquire,
    guard: &LeaseGuard,
    signals: &mut Signals,
) -> Result<Exit, Problem> {
    let Some((program, arguments)) = acquire.command.split_first() else {
        return Ok(Exit::Done);
    };
    let own_group = !context.streams.stdin_is_terminal;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("BILLING_INVOICE", guard.invoice_id())
        .env("BILLING_TOKEN", guard.token().0.to_string())
        .kill_on_drop(true);
    if own_group {
        command.process_group(0);
    }
    let name = program.to_string_lossy().into_owned();
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let code = if error.kind() == io::ErrorKind::NotFound {
                NOT_FOUND
            } else {
                NOT_RUNNABLE
            };
            context.say(&format!("failed: cannot run {name}: {error}"));
            return Err(Problem::Told(Exit::Passed(code)));
        }
    };
    let mut running = Running { child, own_group };
    loop {
        tokio::select! {
            biased;
            ended = running.child.wait() => {
                let status = ended.map_err(|error| Problem::unknown(format!("cannot tell how {name} ended: {error}"), ""))?;
                // Both may have slept: a command that ended after its lease did not end under it.
                return match guard.loss() {
                    None => Ok(exit_of(status)),
                    Some(loss) => Err(lost(guard, &name, &loss, "ended after that")),
                };
            }
            loss = guard.lost() => {
                running.stop(context).await;
                return Err(lost(guard, &name, &loss, "was stopped"));
            }
            signal = signals.next() => running.forward(signal),
        }
    }
}

fn lost(guard: &LeaseGuard, name: &str, loss: &Loss, end: &str) -> Problem {
    Problem::failed(
        format!(
            "the lease on {} was lost ({loss}); {name} {end}",
            guard.invoice_id()
        ),
        format!(
            "another holder may work on it by now: check what was changed without token {}",
            guard.token().0
        ),
    )
}

fn exit_of(status: ExitStatus) -> Exit {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| BY_SIGNAL + signal))
        .unwrap_or(BY_SIGNAL);
    Exit::Passed(u8::try_from(code).unwrap_or(u8::MAX))
}

fn ended_by(signal: Signal) -> Exit {
    Exit::Passed(u8::try_from(BY_SIGNAL + signal.as_raw()).unwrap_or(u8::MAX))
}

struct Running {
    child: Child,
    own_group: bool,
}

impl Running {
    /// Sends a signal that was meant for us. One that came from the terminal has reached the command already.
    fn forward(&self, signal: Signal) {
        if self.own_group || signal != Signal::INT {
            self.send(signal);
        }
    }

    /// Asks, waits, and insists.
    async fn stop(&mut self, context: &Context<'_, '_>) {
        self.send(Signal::TERM);
        tokio::select! {
            biased;
            _ = self.child.wait() => {}
            () = context.env.clock.sleep(GRACE) => {}
        }
        // The group may outlive its first process.
        self.send(Signal::KILL);
        if let Err(error) = self.child.wait().await {
            // Nothing can be done about it here, and the loss is told in any case.
            drop(error);
        }
    }

    fn send(&self, signal: Signal) {
        let Some(pid) = self
            .child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw)
        else {
            return; // Ended and waited for: the number may be somebody else's by now.
        };
        // It may have ended in this very moment, which is what was wanted.
        let _ = if self.own_group {
            kill_process_group(pid, signal)
        } else {
            kill_process(pid, signal)
        };
    }
}
