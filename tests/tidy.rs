//! Holds what the code map promises: which crate may point at which, and the words that must not appear in a crate.
//! Reads source text only; a rule that proves wrong is changed here and in crates/README.md, in one commit.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const FILE_LINES_MAX: usize = 900;

/// Crate -> the crates of ours that it may name in `[dependencies]`.
const ARROWS: [(&str, &[&str]); 14] = [
    ("billing-core", &[]),
    ("billing-env", &[]),
    // The core for its switches alone, in a sabotaged build (`the_switches_of_a_sabotage_are_off_and_all_in_use`).
    ("billing-store", &["billing-core", "billing-env"]),
    ("billing-model", &[]),
    (
        "billing-server",
        &[
            "billing-core",
            "billing-env",
            "billing-proto",
            "billing-store",
        ],
    ),
    (
        "billing-client",
        &["billing-core", "billing-env", "billing-proto"],
    ),
    (
        "billing-gate",
        &[
            "billing-client",
            "billing-core",
            "billing-env",
            "billing-proto",
        ],
    ),
    (
        "billing-worker",
        &[
            "billing-client",
            "billing-core",
            "billing-env",
            "billing-gate",
        ],
    ),
    (
        "billingctl",
        &[
            "billing-client",
            "billing-core",
            "billing-env",
            "billing-proto",
        ],
    ),
    ("billing-sandbox", &["billing-env"]),
    (
        "billing-demo",
        &[
            "billing-client",
            "billing-core",
            "billing-env",
            "billing-proto",
        ],
    ),
    (
        "billing-bench",
        &["billing-client", "billing-demo", "billing-proto"],
    ),
    // For tests alone: nobody names it but in [dev-dependencies].
    ("billing-fuzz", &[]),
    (
        "billing-sim",
        &[
            "billing-client",
            "billing-core",
            "billing-env",
            "billing-gate",
            "billing-proto",
            "billing-sandbox",
            "billing-server",
            "billing-store",
            "billing-worker",
        ],
    ),
];

/// Words, the only crates whose sources may say them, and why.
const ABSENCES: [(&[&str], &[&str], &str); 5] = [
    (
        &["sled::"],
        &["billing-store"],
        "only the store knows which disk engine it is",
    ),
    (
        &["openraft::", "openraft_rt"],
        &["billing-server"],
        "no consensus type in a public interface",
    ),
    (
        &["SystemTime::now", "Instant::now", "UNIX_EPOCH"],
        // The sandbox is somebody else's machine; demo and bench measure from outside; the simulation makes the clocks; the
        // model says how long a search took; the real disk waits for a lock that only real time frees.
        &[
            "billing-env",
            "billing-store",
            "billing-sim",
            "billing-sandbox",
            "billing-demo",
            "billing-bench",
            "billing-model",
        ],
        "time comes in through billing-env's Clock",
    ),
    (
        &["TcpListener", "TcpStream"],
        &[
            "billing-env",
            "billing-sandbox",
            "billing-demo",
            "billing-sim",
        ],
        "bytes come in through billing-env's Net",
    ),
    (
        &["rand::"],
        &[
            "billing-env",
            "billing-sandbox",
            "billing-demo",
            "billing-sim",
            "billingctl",
            "billing-server",
        ],
        "chance comes in through billing-env's RandomSource; the server's own use is openraft's runtime trait",
    ),
];

/// What the ledger must not even be able to say.
const PURE: [&str; 9] = [
    "std::time",
    "std::fs",
    "std::net",
    "std::env",
    "std::thread",
    "HashMap",
    "HashSet",
    "tokio",
    "println!",
];

fn sources(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    if !folder.is_dir() {
        return Ok(found);
    }
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn crates() -> io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(Path::new(ROOT).join("crates"))? {
        let entry = entry?;
        if entry.path().join("Cargo.toml").is_file() {
            names.insert(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

/// The product's part of a file: what stands before its unit tests, without comments.
fn product(text: &str) -> String {
    text.split("#[cfg(test)]")
        .next()
        .unwrap_or_default()
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn arrows_point_where_the_map_says() -> anyhow::Result<()> {
    let allowed: BTreeMap<_, _> = ARROWS.into_iter().collect();
    let mut wrong = Vec::new();
    for name in crates()? {
        let manifest = fs::read_to_string(
            Path::new(ROOT)
                .join("crates")
                .join(&name)
                .join("Cargo.toml"),
        )?;
        let manifest: toml::Table = manifest.parse()?;
        let Some(may) = allowed.get(name.as_str()) else {
            wrong.push(format!("{name} has no arrows in tests/tidy.rs"));
            continue;
        };
        let dependencies = manifest
            .get("dependencies")
            .and_then(|table| table.as_table());
        for dependency in dependencies.into_iter().flat_map(|table| table.keys()) {
            if dependency.starts_with("billing") && !may.contains(&dependency.as_str()) {
                wrong.push(format!("{name} must not point at {dependency}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn words_stay_in_the_crates_that_own_them() -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    for name in crates()? {
        for path in sources(&Path::new(ROOT).join("crates").join(&name).join("src"))? {
            let text = product(&fs::read_to_string(&path)?);
            for (words, owners, why) in ABSENCES {
                for word in words.iter().filter(|word| text.contains(**word)) {
                    if !owners.contains(&name.as_str()) {
                        wrong.push(format!("{} says {word}: {why}", path.display()));
                    }
                }
            }
            if name == "billing-core" {
                for word in PURE.iter().filter(|word| text.contains(**word)) {
                    wrong.push(format!(
                        "{} says {word}: the ledger is pure",
                        path.display()
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn files_open_with_what_they_decide_and_stay_readable() -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    let mut files = sources(&Path::new(ROOT).join("crates"))?;
    files.extend(sources(&Path::new(ROOT).join("tests"))?);
    files.extend(sources(&Path::new(ROOT).join("proto"))?);
    assert!(
        files.len() > 20,
        "the sources are not where this test looks"
    );
    for path in files {
        let text = fs::read_to_string(&path)?;
        if !text.starts_with("//!") {
            wrong.push(format!(
                "{} does not open with what it decides",
                path.display()
            ));
        }
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            wrong.push(format!(
                "{} has {lines} lines, {FILE_LINES_MAX} at most",
                path.display()
            ));
        }
        if text.contains(concat!("#[", "ignore]")) {
            wrong.push(format!(
                "{} ignores a test without a reason",
                path.display()
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn the_code_map_knows_every_crate() -> anyhow::Result<()> {
    let map = fs::read_to_string(Path::new(ROOT).join("crates/README.md"))?;
    let missing: Vec<_> = crates()?
        .into_iter()
        .filter(|name| !map.contains(&format!("`{name}`")))
        .collect();
    assert!(
        missing.is_empty(),
        "crates/README.md says nothing of {missing:?}"
    );
    Ok(())
}

#[test]
fn simulation_features_are_enabled_by_no_shipped_manifest() -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    for name in crates()?.into_iter().filter(|name| name != "billing-sim") {
        let text = fs::read_to_string(
            Path::new(ROOT)
                .join("crates")
                .join(&name)
                .join("Cargo.toml"),
        )?;
        let manifest: toml::Table = text.parse()?;
        let Some(dependencies) = manifest
            .get("dependencies")
            .and_then(|table| table.as_table())
        else {
            continue;
        };
        for (dependency, how) in dependencies {
            let features = how.get("features").and_then(|features| features.as_array());
            let bad = ["sim", "sabotage", "test-util", "conformance"];
            if features.is_some_and(|on| {
                on.iter()
                    .filter_map(|f| f.as_str())
                    .any(|f| bad.contains(&f))
            }) {
                wrong.push(format!("{name} ships {dependency} with a test feature"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// A sabotage that stands nowhere would be a canary that sings for nothing; one in a build that somebody gets would cost money.
#[test]
fn the_switches_of_a_sabotage_are_off_and_all_in_use() -> anyhow::Result<()> {
    let switches = Path::new("billing-core").join("src").join("sabotage.rs");
    let crates_folder = Path::new(ROOT).join("crates");
    let declared: BTreeSet<String> = fs::read_to_string(crates_folder.join(&switches))?
        .lines()
        .filter_map(|line| line.trim().strip_suffix("\",")?.split_once(" = \""))
        .map(|(which, _)| which.to_owned())
        .collect();
    assert!(declared.len() >= 20, "too few to believe: {declared:?}");
    let mut used = BTreeSet::new();
    let mut wrong = Vec::new();
    for name in crates()? {
        for path in sources(&crates_folder.join(&name).join("src"))? {
            if path.ends_with(&switches) {
                continue;
            }
            let text = fs::read_to_string(&path)?;
            let places = text
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"))
                .flat_map(|line| line.split("sabotaged!(").skip(1))
                .filter_map(|place| place.split([')', ' ']).next());
            used.extend(
                places
                    .filter(|which| !which.starts_with('$'))
                    .map(str::to_owned),
            );
        }
        let manifest = fs::read_to_string(crates_folder.join(&name).join("Cargo.toml"))?;
        let manifest: toml::Table = manifest.parse()?;
        let features = manifest.get("features").and_then(|table| table.as_table());
        for (feature, enables) in features.into_iter().flatten() {
            if feature != "sabotage" && enables.to_string().contains("sabotage") {
                wrong.push(format!("{name} has sabotage in its feature {feature}"));
            }
        }
        let store_knows_core = name == "billing-store"
            && manifest["dependencies"]["billing-core"].get("optional") != Some(&true.into());
        if store_knows_core {
            wrong.push("billing-store knows billing-core in every build".to_owned());
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(used, declared, "used on the left, declared on the right");
    Ok(())
}
