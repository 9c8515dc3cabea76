//! Real processes: what a child acknowledged is compared with what its kernel was told, and with what its folder holds after
//! kill -9. The child is this very binary, started with `child` as its first argument.

mod common;

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use billing_store::{Disk, StoreError};
use common::*;
use rand::{RngExt, SeedableRng};

const KILL_ROUNDS: u64 = 25;
const KILL_LOOP_AT_MOST: Duration = Duration::from_secs(20);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().map(String::as_str) == Some("child") {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(child(
            &arguments[1],
            Path::new(&arguments[2]),
            &arguments[3],
        ));
        return;
    }
    let stories: [(&str, fn()); 4] = [
        (
            "every_acknowledged_append_was_synced_before",
            every_acknowledged_append_was_synced_before,
        ),
        (
            "a_failed_sync_ends_the_store_for_good",
            a_failed_sync_ends_the_store_for_good,
        ),
        (
            "a_full_disk_says_so_and_loses_nothing",
            a_full_disk_says_so_and_loses_nothing,
        ),
        (
            "nothing_acknowledged_is_lost_to_kill_9",
            nothing_acknowledged_is_lost_to_kill_9,
        ),
    ];
    // As cargo's own harness has it: a word chooses, --list lists.
    let list = arguments.iter().any(|argument| argument == "--list");
    let wanted = arguments
        .iter()
        .find(|argument| !argument.starts_with("--"));
    for (name, story) in stories {
        if wanted.is_some_and(|wanted| !name.contains(wanted.as_str())) {
            continue;
        }
        if list {
            println!("{name}: test");
            continue;
        }
        story();
        println!("test {name} ... ok");
    }
}

// The child.

#[derive(Clone)]
struct Journal(Arc<Mutex<fs::File>>);

impl Journal {
    fn line(&self, line: &str) {
        let mut file = self.0.lock().expect("no panic holds it");
        // One write: a killed child leaves whole lines.
        file.write_all(format!("{line}\n").as_bytes())
            .expect("the journal can be written");
    }
}

async fn child(what: &str, folder: &Path, journal: &str) {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(journal)
        .expect("the journal opens");
    let journal = Journal(Arc::new(Mutex::new(file)));
    let disk = if folder.exists() {
        billing_store::open(folder, NODE, None)
    } else {
        billing_store::create(folder, &identity())
    };
    let disk = match disk {
        Ok(disk) => disk,
        Err(error) => {
            journal.line(&format!("refused {error}"));
            std::process::exit(3);
        }
    };
    println!("ready");
    match what {
        "append" => append_until_it_fails(&disk, &journal).await,
        "everything" => {
            let write = move |line: &str| journal.line(line);
            everything(&disk, Arc::new(write), 0).await;
        }
        other => panic!("no such child: {other}"),
    }
}

/// Bursts of appends; the acknowledgement is journalled where it is given, on the writer's own thread.
async fn append_until_it_fails(disk: &Disk, journal: &Journal) {
    let mut next = 1;
    let mut failed = disk.log.failure();
    let mut refusals = 0;
    while refusals < 20 {
        let count = 1 + next % 5;
        let journal = journal.clone();
        let last = next + count - 1;
        let done = Box::new(move |result: Result<(), StoreError>| match result {
            Ok(()) => journal.line(&format!("acked {last}")),
            Err(error) => journal.line(&format!("error {error}")),
        });
        match disk
            .log
            .append((next..=last).map(|index| marked(index, 0)).collect(), done)
            .await
        {
            Ok(()) => next = last + 1,
            // Goes on asking: a failed store must go on refusing.
            Err(_) => {
                refusals += 1;
                failed.wait_for(Option::is_some).await.expect("told");
            }
        }
    }
}

// The parent.

struct Scene {
    _temporary: tempfile::TempDir,
    folder: PathBuf,
    journal: PathBuf,
    control: PathBuf,
    shim: Option<PathBuf>,
}

impl Scene {
    fn plain() -> Scene {
        let temporary = tempfile::tempdir().expect("a temporary folder");
        let root = temporary.path().canonicalize().expect("a real path");
        let (folder, journal, control) = (
            root.join("node"),
            root.join("journal"),
            root.join("control"),
        );
        fs::write(&control, "ok").expect("writes");
        fs::write(&journal, "").expect("writes");
        Scene {
            _temporary: temporary,
            folder,
            journal,
            control,
            shim: None,
        }
    }

    /// With the shim, compiled here: a C compiler is needed to build the project anyway.
    fn shimmed() -> Scene {
        let mut scene = Scene::plain();
        let shim = scene.journal.with_file_name("shim.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests")
            .join("shim.c");
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&shim)
            .arg(&source)
            .arg("-ldl")
            .status();
        assert!(
            status.expect("a C compiler named cc").success(),
            "the shim compiles"
        );
        scene.shim = Some(shim);
        scene
    }

    fn start(&self, what: &str) -> Child {
        let mut command = Command::new(std::env::current_exe().expect("this binary"));
        command
            .args(["child", what])
            .arg(&self.folder)
            .arg(&self.journal)
            .stdout(Stdio::piped());
        if let Some(shim) = &self.shim {
            command
                .env("LD_PRELOAD", shim)
                .env("SHIM_DIR", &self.folder);
            command
                .env("SHIM_JOURNAL", &self.journal)
                .env("SHIM_CONTROL", &self.control);
        }
        let mut child = command.spawn().expect("the child starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped"))
            .read_line(&mut line)
            .expect("reads");
        assert_eq!(
            line,
            "ready\n",
            "the child opened its folder; journal ends: {:?}",
            self.lines().last()
        );
        child
    }

    fn lines(&self) -> Vec<String> {
        fs::read_to_string(&self.journal)
            .expect("reads")
            .lines()
            .map(str::to_owned)
            .collect()
    }

    fn note(&self, line: &str) {
        let mut journal = OpenOptions::new()
            .append(true)
            .open(&self.journal)
            .expect("opens");
        writeln!(journal, "{line}").expect("writes");
    }

    fn wait_for_lines(&self, what: &str, count: usize) {
        let begun = Instant::now();
        while self
            .lines()
            .iter()
            .filter(|line| line.starts_with(what))
            .count()
            < count
        {
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "{count} lines of {what}"
            );
            std::thread::sleep(Duration::from_millis(5)); // Nothing to wait on: another process writes the file.
        }
    }
}

fn number(line: &str) -> u64 {
    line.split(' ')
        .nth(1)
        .and_then(|word| word.parse().ok())
        .expect("a number")
}

/// Compares each acknowledgement with the syncs journalled before it; says how many there were, or which was too early.
fn acknowledged_after_sync(lines: &[String]) -> Result<usize, String> {
    let mut synced = 0;
    let mut acknowledged = 0;
    for line in lines {
        if line.starts_with("synced ") {
            synced = synced.max(number(line));
        } else if line.starts_with("acked ") {
            let acked = number(line);
            if acked > synced {
                return Err(format!(
                    "entry {acked} was acknowledged when only {synced} had been synced"
                ));
            }
            acknowledged += 1;
        }
    }
    Ok(acknowledged)
}

fn end(mut child: Child) {
    child.kill().expect("kills");
    child.wait().expect("ends");
}

fn every_acknowledged_append_was_synced_before() {
    let scene = Scene::shimmed();
    let child = scene.start("append");
    scene.wait_for_lines("acked", 200);
    end(child);
    let lines = scene.lines();
    let acknowledged = acknowledged_after_sync(&lines).expect("synced before");
    let syncs = lines
        .iter()
        .filter(|line| line.starts_with("synced "))
        .count();
    println!("{acknowledged} acknowledgements, each after one of {syncs} syncs that covered it");
    // The check itself must be able to fail: without the syncs it does.
    let unsynced: Vec<String> = lines
        .into_iter()
        .filter(|line| !line.starts_with("synced "))
        .collect();
    acknowledged_after_sync(&unsynced).expect_err("a journal without syncs must not pass");
}

/// Lets the child work, breaks its disk, and returns its journal once it was refused often enough to end by itself.
fn break_disk(how: &str) -> (Scene, Vec<String>) {
    let scene = Scene::shimmed();
    let mut child = scene.start("append");
    scene.wait_for_lines("acked", 50);
    // Renamed into place: the child reads either word, never half of one.
    let next = scene.control.with_extension("next");
    fs::write(&next, how).expect("writes");
    fs::rename(&next, &scene.control).expect("renames");
    assert!(
        child.wait().expect("ends").success(),
        "the child sees every refusal and ends"
    );
    let lines = scene.lines();
    acknowledged_after_sync(&lines).expect("synced before");
    (scene, lines)
}

fn last_acknowledged(lines: &[String]) -> u64 {
    lines
        .iter()
        .filter(|line| line.starts_with("acked "))
        .map(|line| number(line))
        .max()
        .expect("some")
}

fn reopens_with(scene: &Scene, acknowledged: u64) {
    let disk =
        billing_store::open(&scene.folder, NODE, None).expect("opens once the disk works again");
    let last = disk.log.state().expect("state").last.expect("not empty");
    assert!(
        last >= acknowledged,
        "entries up to {acknowledged} were acknowledged, the log ends at {last}"
    );
}

fn a_failed_sync_ends_the_store_for_good() {
    let (scene, lines) = break_disk("eio");
    let failed_at = lines
        .iter()
        .position(|line| line.starts_with("failed "))
        .expect("a sync failed");
    let after = &lines[failed_at + 1..];
    assert!(
        after.iter().all(|line| line.starts_with("error ")),
        "nothing but refusals after the failure: {after:?}"
    );
    assert!(
        after[0].contains("syncing") && after[0].contains("log/db"),
        "says what failed: {}",
        after[0]
    );
    reopens_with(&scene, last_acknowledged(&lines));
}

fn a_full_disk_says_so_and_loses_nothing() {
    let (scene, lines) = break_disk("full");
    let refused_at = lines
        .iter()
        .position(|line| line.starts_with("refused "))
        .expect("a write was refused");
    let after = &lines[refused_at + 1..];
    assert!(
        after.iter().all(|line| !line.starts_with("acked ")),
        "nothing acknowledged after: {after:?}"
    );
    let error = after
        .iter()
        .find(|line| line.starts_with("error "))
        .expect("told");
    assert!(
        error.contains("no space left") && error.contains("free space"),
        "{error}"
    );
    reopens_with(&scene, last_acknowledged(&lines));
}

fn nothing_acknowledged_is_lost_to_kill_9() {
    let scene = Scene::plain();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let seed = u64::from(std::process::id());
    let mut random = rand::rngs::SmallRng::seed_from_u64(seed);
    let begun = Instant::now();
    let mut rounds = 0;
    while rounds < KILL_ROUNDS && begun.elapsed() < KILL_LOOP_AT_MOST {
        let child = scene.start("everything");
        std::thread::sleep(Duration::from_millis(random.random_range(1..150)));
        end(child);
        rounds += 1;
        scene.note("killed");
        let disk = billing_store::open(&scene.folder, NODE, None).expect("opens after kill -9");
        runtime.block_on(Promised::read(&scene.lines()).check(&disk, &format!("round {rounds}")));
    }
    let promised = Promised::read(&scene.lines());
    assert!(
        !promised.entries.is_empty() && promised.vote > 0,
        "the child did its work"
    );
    println!(
        "{rounds} kills (seed {seed}), {} entries, vote {}",
        promised.entries.len(),
        promised.vote
    );
}
