//! `billingctl cluster snapshot|backup|verify|restore`, word for word, and what it leaves on the disk.

mod cli_fake;

use std::{fs, path::Path};

use cli_fake::{Ran, Script, Stage, ctl};

fn run(script: &Script, folder: &Path, words: &str) -> Ran {
    // The folder's name is another one each time.
    let words = words.replace("DIR", folder.to_str().expect("a plain name"));
    let all: Vec<&str> = std::iter::once("billingctl")
        .chain(words.split_whitespace())
        .collect();
    let mut ran = ctl(script, &Stage::default(), &all);
    for text in [&mut ran.stdout, &mut ran.stderr] {
        *text = text.replace(folder.to_str().expect("a plain name"), "DIR");
    }
    ran
}

/// Hashes and sizes say how the ledger is encoded, which is not what is shown here; a size changes with a checksum's varint.
fn steady(text: &str) -> String {
    let lines = text.split_inclusive('\n').map(|line| {
        let is_size = line.starts_with("size ") || line.trim_start().starts_with("\"bytes\": ");
        match line.find(|c: char| c.is_ascii_digit()) {
            Some(at) if is_size => {
                let rest = line[at..].trim_start_matches(|c: char| c.is_ascii_digit());
                format!("{}SIZE{rest}", &line[..at])
            }
            Some(_) | None => line.to_owned(),
        }
    });
    let text: String = lines.collect();
    let words = text.split_inclusive([' ', '\n']).map(|word| {
        let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        let hash = bare.len() == 64 && bare.chars().all(|c| c.is_ascii_hexdigit());
        match hash {
            true => word.replace(bare, "HASH"),
            false => word.to_owned(),
        }
    });
    words.collect()
}

fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(format!("{name}.txt"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, text).expect("the golden file is written");
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        text,
        golden,
        "{}; UPDATE_GOLDEN=1 accepts it",
        path.display()
    );
}

#[test]
fn a_backup_is_taken_verified_and_never_overwritten() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut text = String::new();
    for (code, words) in [
        (0, "cluster backup --out DIR/ledger.backup"),
        (2, "cluster backup --out DIR/ledger.backup"),
        (0, "cluster backup --out DIR/ledger.backup --force -o name"),
        (2, "cluster backup --out DIR/no/such/folder"),
        (0, "cluster verify DIR/ledger.backup"),
        (0, "cluster verify DIR/ledger.backup -o json"),
        (2, "cluster verify DIR/none"),
        (2, "cluster snapshot"),
        (0, "cluster snapshot 127.0.0.1:7101 -o jsonl"),
        (
            2,
            "cluster restore DIR/none --peers 1=a:1/a:2 --node 1=DIR/1",
        ),
        (
            2,
            "cluster restore DIR/ledger.backup --peers 1=a:1/a:2 --node 1:DIR",
        ),
        (
            2,
            "cluster restore DIR/ledger.backup --peers 1=a:1/a:2 --node 1=DIR/1 --node 2=DIR/1",
        ),
        (
            2,
            "cluster restore DIR/ledger.backup --peers 1=a:1/a:2 --node 1=DIR/1 --billingd DIR/none",
        ),
        (
            2,
            "cluster restore DIR/ledger.backup --peers 1=a:1/a:2 --node 1=DIR/1 --restore-id 1st",
        ),
    ] {
        let ran = run(&Script::three(), folder.path(), words);
        text.push_str(&format!("$ billingctl {words}\n{}", steady(&ran.stdout)));
        for line in ran.stderr.lines() {
            text.push_str(&format!("2> {line}\n"));
        }
        text.push_str(&format!("[{}]\n\n", ran.code));
        assert_eq!(ran.code, code, "{text}");
    }
    golden("backup", &text);
    let left: Vec<_> = fs::read_dir(folder.path())
        .expect("the folder")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(left, ["ledger.backup"], "nothing else stays");
}

#[test]
fn a_backup_that_breaks_off_leaves_no_file_and_the_old_one_as_it_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let torn = Script {
        torn: true,
        ..Script::three()
    };
    let ran = run(&torn, folder.path(), "cluster backup --out DIR/new");
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("cut short"), "{}", ran.stderr);
    assert!(!folder.path().join("new").exists());
    fs::write(folder.path().join("old"), "as it was").expect("a file");
    let ran = run(&torn, folder.path(), "cluster backup --out DIR/old --force");
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    let old = fs::read_to_string(folder.path().join("old")).expect("the old one");
    assert_eq!(old, "as it was");
    assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 1);
}
