//! Decides how a file of invoices is submitted: in batches, each safe to repeat, every line that is not taken reported with
//! its number. The good lines never wait for the bad ones.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    path::Path,
};

use billing_proto::v1;
use serde::Serialize;

use super::Context;
use crate::{
    Streams,
    args::Format,
    cluster::Cluster,
    failure::{Exit, Problem, Words},
    invoices::{Broken, InvoiceLines, Line, NoInvoices, Plan},
    output::{Card, Printer, clean},
    progress::Progress,
};

/// Invoices of one call: large enough that the round trip does not count, small enough to show progress.
const BATCH_INVOICES: usize = 1_000;
/// Of each kind. A wrong file could have as many as it has lines; they are counted all the same.
const PROBLEMS_KEPT_MAX: usize = 1_000;
/// Told on stderr as they occur, so that a wrong file does not roll everything else away.
const PROBLEMS_TOLD_MAX: u64 = 50;

/// What became of a file.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// New.
    submitted: u64,
    /// Known before, the same.
    unchanged: u64,
    /// By the cluster.
    refused: u64,
    /// Lines that are no invoice.
    broken: u64,
    /// The first thousand of each.
    refused_lines: Vec<RefusedLine>,
    broken_lines: Vec<Broken>,
    #[serde(skip)]
    dry_run: bool,
}

#[derive(Debug, Serialize)]
struct RefusedLine {
    line: u64,
    invoice_id: String,
    reason: String,
}

impl Card for Report {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let submitted = if self.dry_run { "good" } else { "submitted" };
        let mut lines = vec![(submitted, self.submitted.to_string())];
        if !self.dry_run {
            lines.push(("unchanged", self.unchanged.to_string()));
            lines.push(("refused", self.refused.to_string()));
        }
        lines.push(("broken", self.broken.to_string()));
        lines
    }
    fn name(&self) -> String {
        self.submitted.to_string()
    }
}

impl Report {
    fn is_empty(&self) -> bool {
        self.submitted + self.unchanged + self.not_taken() == 0
    }

    fn not_taken(&self) -> u64 {
        self.refused + self.broken
    }

    fn said(&self) -> String {
        let mut said = format!("{} submitted", self.submitted);
        for (count, word) in [
            (self.unchanged, "unchanged"),
            (self.refused, "refused"),
            (self.broken, "broken"),
        ] {
            if count > 0 {
                said.push_str(&format!(", {count} {word}"));
            }
        }
        said
    }
}

/// `invoice submit FILE`.
pub async fn file(context: Context<'_, '_>, path: &Path, dry_run: bool) -> Result<Exit, Problem> {
    let Context {
        cluster,
        env,
        cli,
        streams,
    } = context;
    let Streams {
        stdin,
        stdout,
        stderr,
        stdout_columns,
        stderr_is_terminal,
        ..
    } = streams;
    let (name, input, bytes): (String, Box<dyn BufRead + '_>, Option<u64>) =
        if path == Path::new("-") {
            ("stdin".to_owned(), Box::new(BufReader::new(stdin)), None)
        } else {
            let name = path.display().to_string();
            let (file, bytes) = open(path).map_err(|error| {
                Problem::failed(
                    format!("cannot read {name}: {error}"),
                    "name a CSV file, or - for stdin",
                )
            })?;
            (name, Box::new(BufReader::new(file)), bytes)
        };
    let mut lines = InvoiceLines::open(input).map_err(|error| unreadable(&name, error))?;
    let progress = Progress::new(stderr, *stderr_is_terminal, &*env.clock, bytes);
    let mut submission = Submission {
        cluster: (!dry_run).then_some(&cluster),
        // People read problems as they occur; programs read them in the answer.
        tell: matches!(cli.output, Format::Table | Format::Name),
        name: name.clone(),
        progress,
        report: Report {
            dry_run,
            ..Report::default()
        },
        batch: Vec::new(),
        told: 0,
    };
    loop {
        match lines.next() {
            Ok(Some(Ok(line))) => submission.take(line, lines.bytes()).await?,
            Ok(Some(Err(broken))) => submission.broken(broken),
            Ok(None) => break,
            Err(error) => {
                let stopped = submission.stopped();
                return Err(Problem::failed(
                    format!("cannot read {name}: {error}"),
                    stopped,
                ));
            }
        }
    }
    submission.flush(lines.bytes()).await?;
    if submission.report.is_empty() {
        submission
            .progress
            .say(&format!("{} has a header and no invoices\n", clean(&name)));
    }
    let report = submission.end();
    Printer::new(*stdout, cli.output, *stdout_columns).one(&report)?;
    verdict(&report)
}

/// `invoice generate N --submit`.
pub async fn generated(context: Context<'_, '_>, plan: &Plan) -> Result<Exit, Problem> {
    let Context {
        cluster,
        env,
        cli,
        streams,
    } = context;
    let Streams {
        stdout,
        stderr,
        stdout_columns,
        stderr_is_terminal,
        ..
    } = streams;
    let mut submission = Submission {
        cluster: Some(&cluster),
        tell: matches!(cli.output, Format::Table | Format::Name),
        name: "generated".to_owned(),
        progress: Progress::new(stderr, *stderr_is_terminal, &*env.clock, Some(plan.count)),
        report: Report::default(),
        batch: Vec::new(),
        told: 0,
    };
    let mut number = 0;
    for invoice in plan.invoices() {
        number += 1;
        submission.take(Line { number, invoice }, number).await?;
    }
    submission.flush(number).await?;
    let report = submission.end();
    Printer::new(*stdout, cli.output, *stdout_columns).one(&report)?;
    verdict(&report)
}

/// The file, and its size where that means anything.
fn open(path: &Path) -> io::Result<(File, Option<u64>)> {
    let file = File::open(path)?;
    let data = file.metadata()?;
    if data.is_dir() {
        return Err(io::Error::new(
            io::ErrorKind::IsADirectory,
            "it is a folder",
        ));
    }
    Ok((file, data.is_file().then_some(data.len())))
}

fn unreadable(name: &str, error: NoInvoices) -> Problem {
    match error {
        NoInvoices::Refused(reason) => Problem::refused(
            format!("{name}: {reason}"),
            "nothing was submitted; see billingctl invoice submit --help",
        ),
        NoInvoices::Io(error) => Problem::failed(format!("cannot read {name}: {error}"), ""),
    }
}

fn verdict(report: &Report) -> Result<Exit, Problem> {
    match report.not_taken() {
        0 => Ok(Exit::Done),
        not_taken => {
            let good = report.submitted + report.unchanged;
            let lines = if not_taken == 1 {
                "1 line was".to_owned()
            } else {
                format!("{not_taken} lines were")
            };
            let next = match (report.dry_run, good) {
                (true, _) => "correct them; nothing was submitted",
                (false, 0) => "correct them and submit the file again",
                (false, _) => "the good ones are in; correct these and submit the file again",
            };
            Err(Problem::refused(format!("{lines} not taken"), next))
        }
    }
}

/// A file on its way.
struct Submission<'a> {
    /// None: only read.
    cluster: Option<&'a Cluster>,
    tell: bool,
    name: String,
    progress: Progress<'a>,
    report: Report,
    batch: Vec<Line>,
    told: u64,
}

impl Submission<'_> {
    async fn take(&mut self, line: Line, position: u64) -> Result<(), Problem> {
        self.batch.push(line);
        if self.batch.len() < BATCH_INVOICES {
            Ok(())
        } else {
            self.flush(position).await
        }
    }

    fn broken(&mut self, broken: Broken) {
        self.report.broken += 1;
        self.tell(broken.line, &broken.reason);
        if self.report.broken_lines.len() < PROBLEMS_KEPT_MAX {
            self.report.broken_lines.push(broken);
        }
    }

    async fn flush(&mut self, position: u64) -> Result<(), Problem> {
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() {
            return Ok(());
        }
        let Some(cluster) = self.cluster else {
            self.report.submitted += batch.len() as u64;
            return Ok(());
        };
        let (numbers, invoices): (Vec<u64>, Vec<v1::Invoice>) = batch
            .into_iter()
            .map(|line| (line.number, line.invoice))
            .unzip();
        let answer = match cluster.submit_invoices(invoices).await {
            Ok(answer) => answer,
            Err(problem) => return Err(self.stop(problem, &numbers)),
        };
        self.report.submitted += answer.submitted;
        self.report.unchanged += answer.unchanged;
        for refused in answer.refused {
            let line = usize::try_from(refused.position)
                .ok()
                .and_then(|position| numbers.get(position))
                .copied();
            let v1::submit_invoices_response::RefusedInvoice {
                invoice_id, reason, ..
            } = refused;
            self.refused(RefusedLine {
                line: line.unwrap_or_default(),
                invoice_id,
                reason,
            });
        }
        self.progress.update(position, &self.report.said());
        Ok(())
    }

    fn refused(&mut self, refused: RefusedLine) {
        self.report.refused += 1;
        self.tell(refused.line, &refused.reason);
        if self.report.refused_lines.len() < PROBLEMS_KEPT_MAX {
            self.report.refused_lines.push(refused);
        }
    }

    fn tell(&mut self, line: u64, reason: &str) {
        self.told += 1;
        if !self.tell || self.told > PROBLEMS_TOLD_MAX + 1 {
            return;
        }
        let text = if self.told > PROBLEMS_TOLD_MAX {
            format!("... only the first {PROBLEMS_TOLD_MAX} are shown; -o json has more\n")
        } else {
            format!("{}:{line}: {}\n", clean(&self.name), clean(reason))
        };
        self.progress.say(&text);
    }

    /// The file ends here, in the middle: says how far it came.
    fn stop(&mut self, problem: Problem, numbers: &[u64]) -> Problem {
        let so_far = self.stopped();
        let at = match numbers.first() {
            Some(first) => format!("{} from line {first} on: ", self.name),
            None => String::new(),
        };
        let longer = |words: Words, next: String| Words {
            what: format!("{at}{}", words.what),
            next,
        };
        match problem {
            Problem::Refused(words) => {
                let next = if words.next.is_empty() {
                    so_far
                } else {
                    format!("{}; {so_far}", words.next)
                };
                Problem::Refused(longer(words, next))
            }
            Problem::Failed(words) => {
                let next = format!("{so_far}; `billingctl cluster status` shows how the nodes are");
                Problem::Failed(longer(words, next))
            }
            Problem::Unknown(words) => Problem::Unknown(longer(words, so_far)),
            Problem::Told(exit) => Problem::Told(exit),
            Problem::NobodyReads => Problem::NobodyReads,
        }
    }

    fn stopped(&self) -> String {
        format!(
            "so far: {}; submitting the same file again is safe",
            self.report.said()
        )
    }

    fn end(self) -> Report {
        self.progress.finish();
        self.report
    }
}
