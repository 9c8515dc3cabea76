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
use bytes::Bytes;
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
    let stories: [(&str, fn()); 6] = [
        (
            "every_acknowledged_append_was_synced_before",
            every_acknowledged_append_was_synced_before,
        ),
        (
            "a_failed_sync_ends_the_store_for_good",
            a_failed_sync_ends_the_store_for_good,
        ),
        (
            "a_failed_sync_of_sleds_file_ends_the_store_for_good",
            a_failed_sync_of_sleds_file_ends_the_store_for_good,
        ),
        (
            "a_full_disk_says_so_and_loses_nothing",
            a_full_disk_says_so_and_loses_nothing,
        ),
        (
            "sled_never_writes_a_segment_between_two_syncs",
            sled_never_writes_a_segment_between_two_syncs,
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
struct Notes(Arc<Mutex<fs::File>>);

impl Notes {
    fn line(&self, line: &str) {
        let mut file = self.0.lock().expect("no panic holds it");
        // One write: a killed child leaves whole lines.
        file.write_all(format!("{line}\n").as_bytes())
            .expect("the notes can be written");
    }
}

async fn child(what: &str, folder: &Path, notes: &str) {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(notes)
        .expect("the notes open");
    let notes = Notes(Arc::new(Mutex::new(file)));
    let disk = match what {
        _ if folder.exists() => billing_store::open(folder, NODE, None),
        // Full all the time: so that it is killed in the middle of checkpoints too.
        "everything" => {
            billing_store::create_with_journal(folder, &identity(), JOURNAL_SMALL_BYTES)
        }
        _ => billing_store::create(folder, &identity()),
    };
    let disk = match disk {
        Ok(disk) => disk,
        Err(error) => {
            notes.line(&format!("refused {error}"));
            std::process::exit(3);
        }
    };
    println!("ready");
    match what {
        "append" => append_until_it_fails(&disk, &notes, 0).await,
        "append large" => append_until_it_fails(&disk, &notes, 40_000).await,
        "purge" => append_and_purge(&disk, &notes).await,
        "everything" => {
            let write = move |line: &str| notes.line(line);
            everything(&disk, Arc::new(write), 0).await;
        }
        other => panic!("no such child: {other}"),
    }
}

/// Bursts of appends; the acknowledgement is noted where it is given, on the writer's own thread. `padding` makes them larger.
async fn append_until_it_fails(disk: &Disk, notes: &Notes, padding: usize) {
    let mut next = 1;
    let mut failed = disk.log.failure();
    let mut refusals = 0;
    while refusals < 20 {
        let count = 1 + next % 5;
        let notes = notes.clone();
        let last = next + count - 1;
        let done = Box::new(move |result: Result<(), StoreError>| match result {
            Ok(()) => notes.line(&format!("acked {last}")),
            Err(error) => notes.line(&format!("error {error}")),
        });
        let padded = |index| {
            let mut entry = marked(index, 0);
            entry.bytes = [&entry.bytes, vec![b' '; padding].as_slice()]
                .concat()
                .into();
            entry
        };
        match disk
            .log
            .append((next..=last).map(padded).collect(), done)
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

/// What makes sled write most: values of all sizes, and many of them forgotten at once.
async fn append_and_purge(disk: &Disk, notes: &Notes) {
    let mut next = 1;
    notes.line("began 0"); // Opening writes a segment of its own, and syncs it.
    for bytes in [4_000, 60_000, 200, 60_000] {
        let kept = if bytes > 10_000 { 200 } else { 400 };
        for _ in 0..3 {
            for _ in 0..kept {
                append(&*disk.log, vec![sized(next, bytes)])
                    .await
                    .expect("durable");
                next += 1;
            }
            let through = next - kept / 2;
            disk.log
                .purge_through(through, Bytes::from_static(b"marker"))
                .await
                .expect("purges");
        }
        notes.line(&format!("phase {bytes}"));
    }
    notes.line("done 0");
    std::thread::sleep(Duration::from_secs(60)); // Until it is killed.
}

// The parent.

struct Scene {
    _temporary: tempfile::TempDir,
    folder: PathBuf,
    notes: PathBuf,
    control: PathBuf,
    shim: Option<PathBuf>,
    /// What the shim watches, in the node's folder.
    watched: &'static str,
}

impl Scene {
    fn plain() -> Scene {
        let temporary = tempfile::tempdir().expect("a temporary folder");
        let root = temporary.path().canonicalize().expect("a real path");
        let (folder, notes, control) =
            (root.join("node"), root.join("notes"), root.join("control"));
        fs::write(&control, "ok").expect("writes");
        fs::write(&notes, "").expect("writes");
        Scene {
            _temporary: temporary,
            folder,
            notes,
            control,
            shim: None,
            watched: "journal",
        }
    }

    /// With the shim, compiled here: a C compiler is needed to build the project anyway.
    fn shimmed() -> Scene {
        let mut scene = Scene::plain();
        let shim = scene.notes.with_file_name("shim.so");
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
            .arg(&self.notes)
            .stdout(Stdio::piped());
        if let Some(shim) = &self.shim {
            command
                .env("LD_PRELOAD", shim)
                .env("SHIM_DIR", &self.folder)
                .env("SHIM_FILE", self.watched);
            command
                .env("SHIM_NOTES", &self.notes)
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
            "the child opened its folder; the notes end: {:?}",
            self.lines().last()
        );
        child
    }

    fn lines(&self) -> Vec<String> {
        fs::read_to_string(&self.notes)
            .expect("reads")
            .lines()
            .map(str::to_owned)
            .collect()
    }

    fn note(&self, line: &str) {
        let mut notes = OpenOptions::new()
            .append(true)
            .open(&self.notes)
            .expect("opens");
        writeln!(notes, "{line}").expect("writes");
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

/// Compares each acknowledgement with the syncs noted before it; says how many there were, or which was too early.
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
    acknowledged_after_sync(&unsynced).expect_err("notes without syncs must not pass");
}

/// Lets the child work, breaks a file of its disk, and returns its notes once it was refused often enough to end by itself.
fn break_disk(what: &str, watched: &'static str, how: &str) -> (Scene, Vec<String>) {
    let mut scene = Scene::shimmed();
    scene.watched = watched;
    let mut child = scene.start(what);
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
    if watched == "journal" {
        acknowledged_after_sync(&lines).expect("synced before");
    }
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
    failed_sync("append", "journal");
}

fn a_failed_sync_of_sleds_file_ends_the_store_for_good() {
    failed_sync("append large", "log/db");
}

fn failed_sync(what: &str, watched: &'static str) {
    let (scene, lines) = break_disk(what, watched, "eio");
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
        after[0].contains("syncing") && after[0].contains(watched),
        "says what failed: {}",
        after[0]
    );
    reopens_with(&scene, last_acknowledged(&lines));
}

fn a_full_disk_says_so_and_loses_nothing() {
    let (scene, lines) = break_disk("append", "journal", "full");
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

/// sled's recovery believes the head of a segment about all that lies before it: only what lies in the last two, of which one
/// may be just begun, is looked at. What a power cut may take must be in there.
fn sled_never_writes_a_segment_between_two_syncs() {
    const SEGMENT_BYTES: u64 = 8 * 1024 * 1024;
    let mut scene = Scene::shimmed();
    scene.watched = "log/db";
    let child = scene.start("purge");
    scene.wait_for_lines("done", 1);
    end(child);
    let lines = scene.lines();
    let wrote: Vec<u64> = lines
        .iter()
        .skip_while(|line| !line.starts_with("began "))
        .filter(|line| line.starts_with("wrote "))
        .map(|line| number(line))
        .collect();
    let most = wrote.iter().max().copied().expect("some");
    let all: u64 = wrote.iter().sum();
    println!("{all} bytes in {} syncs, {most} at most", wrote.len());
    assert!(most < SEGMENT_BYTES, "{most} bytes between two syncs");
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
