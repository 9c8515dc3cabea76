//! Decides how the state of a long submission is told: a bar on a terminal, a line now and then elsewhere. Talk only.

use std::{io::Write, time::Duration};

use billing_env::{Clock, MonoTime};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Between two lines where no bar can be drawn.
const LINE_EVERY: Duration = Duration::from_secs(5);

pub struct Progress<'a> {
    stderr: &'a mut dyn Write,
    clock: &'a dyn Clock,
    bar: Option<ProgressBar>,
    told_at: MonoTime,
}

impl<'a> Progress<'a> {
    /// `bytes` is the size of what is read; none: not known, as for a pipe.
    pub fn new(
        stderr: &'a mut dyn Write,
        terminal: bool,
        clock: &'a dyn Clock,
        bytes: Option<u64>,
    ) -> Self {
        let bar = terminal.then(|| {
            let (bar, template) = match bytes {
                Some(bytes) => (
                    ProgressBar::new(bytes),
                    "{bar:32} {percent:>3}%  {msg}  {elapsed}",
                ),
                None => (ProgressBar::no_length(), "{spinner}  {msg}  {elapsed}"),
            };
            bar.set_draw_target(ProgressDrawTarget::stderr());
            match ProgressStyle::with_template(template) {
                Ok(style) => bar.with_style(style),
                Err(_) => bar, // The default style tells the same, less well.
            }
        });
        let told_at = clock.monotonic();
        Progress {
            stderr,
            clock,
            bar,
            told_at,
        }
    }

    /// `bytes` are behind us; `said` is what that means.
    pub fn update(&mut self, bytes: u64, said: &str) {
        if let Some(bar) = &self.bar {
            bar.set_position(bytes);
            bar.set_message(said.to_owned());
            return;
        }
        let now = self.clock.monotonic();
        if now.since(self.told_at) >= LINE_EVERY {
            self.told_at = now;
            self.say(&format!("{said}\n"));
        }
    }

    /// Something that must not be drawn over.
    pub fn say(&mut self, text: &str) {
        let stderr = &mut self.stderr;
        // Nobody is left to be told when stderr is closed; the exit code still says it.
        let mut write = || drop(stderr.write_all(text.as_bytes()));
        match &self.bar {
            Some(bar) => bar.suspend(&mut write),
            None => write(),
        }
    }

    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}
