//! How every decoder is tried with bad input: arbitrary bytes and real encodings gone wrong, the same ones at each run. Decides
//! what is tried, how often, and that nobody may take more memory than was said; knows no format, and is never shipped.
//!
//! - `FUZZ_CASES=100000 cargo test fuzz` tries more than [`CASES`]; `FUZZ_SEED=7` others than those of every day.
//! - A failure prints the input in hex. A line with it in `corpus/<name>` is tried first, for ever.
//! - `FUZZ_TRACE=1` prints each input before it is tried: what ends the process cannot be printed afterwards.
//! - `FUZZ_SEEDS_TO=folder` writes the real encodings there, a folder for each decoder, for another fuzzer to begin with.

mod allocated;
mod mutate;

use std::cell::Cell;
use std::fs;
use std::panic;
use std::path::Path;
use std::sync::Once;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

pub use allocated::peak_of;
pub use mutate::{Input, hex, inputs};
pub use proptest;

/// Inputs for each decoder, unless the environment says otherwise: a few seconds for all of them.
pub const CASES: u32 = 1_024;
const SHRINKS_MAX: u32 = 20_000;

/// How much a decoder may hold at once: so many bytes, and so many for each byte of its input.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pub fixed: usize,
    pub per_byte: usize,
}

impl Memory {
    fn of(self, input: usize) -> usize {
        self.fixed + self.per_byte * input
    }
}

/// One decoder, and how it is tried.
pub struct Decoder<'a> {
    /// Unique among all crates: names its file in `corpus/`.
    pub name: &'static str,
    /// Real encodings.
    pub seeds: &'a [Vec<u8>],
    /// What stands in such encodings and means something, or nearly does.
    pub words: &'static [&'static [u8]],
    pub memory: Memory,
}

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    match text.parse() {
        Ok(number) => Some(number),
        Err(_) => panic!("{name} is a number, not {text:?}"),
    }
}

/// The same inputs at each run, others for each name.
fn runner(name: &str) -> TestRunner {
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&setting("FUZZ_SEED").unwrap_or(0).to_le_bytes());
    for (nth, byte) in name.bytes().enumerate() {
        seed[8 + nth % 24] ^= byte;
    }
    let cases = setting("FUZZ_CASES").map_or(CASES, |cases| cases.try_into().unwrap_or(u32::MAX));
    let config = Config {
        cases,
        max_shrink_iters: SHRINKS_MAX,
        failure_persistence: None, // `corpus/` is where failures are kept, for every case by hand.
        ..Config::default()
    };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed))
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Does `work` without a word about its panics on this thread: shrinking makes thousands, and the last one is told in the end.
fn quietly<T>(work: impl FnOnce() -> T) -> T {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let loud = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                loud(info);
            }
        }));
    });
    QUIET.set(true);
    let done = work();
    QUIET.set(false);
    done
}

/// What once went wrong, from `corpus/`: a line of hex each, `#` and what it was behind it.
fn kept(name: &str) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(name);
    let Ok(text) = fs::read_to_string(&path) else {
        return Vec::new();
    };
    let lines = text.lines().filter_map(|line| {
        let digits = line.split('#').next().unwrap_or_default().trim();
        (!digits.is_empty()).then(|| {
            unhex(digits).unwrap_or_else(|| panic!("{}: {line:?} is no hex", path.display()))
        })
    });
    lines.collect()
}

fn unhex(digits: &str) -> Option<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2);
    let bytes = pairs.map(|pair| {
        let text = std::str::from_utf8(pair)
            .ok()
            .filter(|pair| pair.len() == 2)?;
        u8::from_str_radix(text, 16).ok()
    });
    bytes.collect()
}

fn write_seeds(decoder: &Decoder<'_>, folder: &Path) {
    let folder = folder.join(decoder.name);
    fs::create_dir_all(&folder).expect("a folder for the seeds");
    for (nth, seed) in decoder.seeds.iter().enumerate() {
        fs::write(folder.join(format!("seed-{nth}")), seed).expect("a seed is written");
    }
}

impl Decoder<'_> {
    /// Calls `body` with real encodings, with what is kept, and with bad input. It panics where a promise is broken.
    ///
    /// # Panics
    /// When `body` does, or holds more memory than was said.
    pub fn check(&self, body: impl Fn(&[u8])) {
        if let Ok(folder) = std::env::var("FUZZ_SEEDS_TO") {
            write_seeds(self, Path::new(&folder));
        }
        let trace = std::env::var_os("FUZZ_TRACE").is_some();
        let largest = Cell::new((0, 0));
        let look = |bytes: &[u8]| {
            if trace {
                eprintln!("{}: {}", self.name, hex(bytes));
            }
            let ((), peak) = peak_of(|| body(bytes));
            let bound = self.memory.of(bytes.len());
            assert!(
                peak <= bound,
                "{}: held {peak} bytes at once for an input of {}, the bound is {bound}",
                self.name,
                bytes.len()
            );
            if peak > largest.get().0 {
                largest.set((peak, bytes.len()));
            }
        };
        self.seeds.iter().for_each(|seed| look(seed));
        for bytes in kept(self.name) {
            let looked = panic::catch_unwind(panic::AssertUnwindSafe(|| look(&bytes)));
            looked.unwrap_or_else(|said| {
                eprintln!(
                    "{} broken again by what is kept: {}",
                    self.name,
                    hex(&bytes)
                );
                panic::resume_unwind(said)
            });
        }
        let mut runner = runner(self.name);
        let cases = runner.config().cases;
        let outcome = quietly(|| {
            runner.run(&inputs(self.seeds, self.words), |input| {
                look(&input.bytes);
                Ok(())
            })
        });
        told(self.name, outcome);
        let (peak, bytes) = largest.get();
        println!(
            "fuzz {}: {cases} cases, at most {peak} bytes held (for an input of {bytes})",
            self.name
        );
    }

    /// For encodings with a checksum: what is read from a changed one is refused, or is what a real one says. `read` gives what
    /// it says in any form that tells two apart; `None`: refused.
    ///
    /// # Panics
    /// When something else is read, and as [`Decoder::check`] does.
    pub fn check_sealed<T: PartialEq + std::fmt::Debug>(&self, read: impl Fn(&[u8]) -> Option<T>) {
        let said: Vec<T> = self
            .seeds
            .iter()
            .map(|seed| read(seed).expect("a real encoding is read"))
            .collect();
        self.check(|bytes| {
            if let Some(found) = read(bytes) {
                assert!(said.contains(&found), "silently different: {found:?}");
            }
        });
    }
}

/// Holds `property` against generated values, the same ones at each run.
///
/// # Panics
/// When `property` does; names the smallest value that was found.
pub fn holds<S: Strategy>(name: &str, values: S, property: impl Fn(S::Value))
where
    S::Value: std::fmt::Debug,
{
    let mut runner = runner(name);
    let cases = runner.config().cases;
    let outcome = quietly(|| {
        runner.run(&values, |value| {
            property(value);
            Ok::<(), TestCaseError>(())
        })
    });
    told(name, outcome);
    println!("fuzz {name}: {cases} values");
}

fn told<T: std::fmt::Debug>(name: &str, outcome: Result<(), TestError<T>>) {
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(why, value)) => panic!("{name} broken by {value:?}: {why}"),
        Err(TestError::Abort(why)) => panic!("{name} was given up: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use proptest::strategy::ValueTree;

    use super::*;

    const MEMORY: Memory = Memory {
        fixed: 1_024,
        per_byte: 4,
    };

    /// What the alarm says, if it rings.
    fn alarm(body: impl Fn(&[u8])) -> Option<String> {
        let seeds = [b"\x04\0\0\0four".to_vec()];
        let decoder = Decoder {
            name: "the alarm",
            seeds: &seeds,
            words: &[],
            memory: MEMORY,
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| decoder.check(body)));
        outcome
            .err()
            .map(|said| said.downcast_ref::<String>().cloned().unwrap_or_default())
    }

    fn length(bytes: &[u8]) -> Option<usize> {
        let head = bytes.first_chunk::<4>()?;
        usize::try_from(u32::from_le_bytes(*head)).ok()
    }

    #[test]
    fn the_alarm_rings_for_a_panic_and_names_the_input() {
        let said = alarm(|bytes| {
            if let Some(length) = length(bytes) {
                let _ = bytes[4..][..length.min(100)].to_vec();
            }
        });
        assert!(
            said.is_some_and(|said| said.contains("broken by ") && said.contains("out of range"))
        );
    }

    #[test]
    fn the_alarm_rings_for_a_length_that_is_believed() {
        let said = alarm(|bytes| drop(length(bytes).map(Vec::<u8>::with_capacity)));
        assert!(said.is_some_and(|said| said.contains("bytes at once for an input of")));
    }

    #[test]
    fn the_alarm_rings_for_what_is_silently_different() {
        let seeds = [b"seal".to_vec()];
        let decoder = Decoder {
            name: "the alarm",
            seeds: &seeds,
            words: &[],
            memory: MEMORY,
        };
        let read = |bytes: &[u8]| Some(bytes.to_vec());
        let outcome = catch_unwind(AssertUnwindSafe(|| decoder.check_sealed(read)));
        assert!(outcome.is_err());
    }

    #[test]
    fn no_alarm_rings_for_a_sound_decoder() {
        let said = alarm(|bytes| {
            let body = length(bytes).and_then(|length| bytes.get(4..)?.get(..length));
            drop(body.map(<[u8]>::to_vec));
        });
        assert_eq!(said, None);
    }

    #[test]
    fn two_runs_try_the_same_and_hex_leads_back() {
        let draw = || {
            let mut runner = runner("a name");
            let seeds = [b"one".to_vec(), b"another".to_vec()];
            let inputs = inputs(&seeds, &[b"word"]);
            let one = |_| inputs.new_tree(&mut runner).expect("an input");
            let trees: Vec<_> = (0..64).map(one).collect();
            let bytes = trees.iter().map(|tree| {
                let input = tree.current();
                assert_eq!(unhex(&hex(&input.bytes)), Some(input.bytes.clone()));
                input
            });
            bytes.collect::<Vec<Input>>()
        };
        assert_eq!(draw(), draw());
        assert_eq!(unhex("0"), None);
        assert_eq!(unhex("0g"), None);
    }
}
