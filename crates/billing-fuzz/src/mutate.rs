//! Decides what bad input looks like: real encodings with bits flipped, ends cut off, pieces repeated, exchanged or spliced in
//! from another one, lengths blown up, words of the format in wrong places; and bytes that never were anything. Knows no
//! format: whoever tries a decoder brings real encodings and words.

use std::fmt;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

/// Steps on the way from a real encoding to a bad one.
const STEPS_MAX: usize = 6;
const NOISE_BYTES_MAX: usize = 512;
const WORDS_MAX: usize = 24;
/// An input never grows beyond this many bytes above four times the longest seed: repeats would double it again and again.
const SLACK_BYTES: usize = 4_096;

/// Numbers at which something changes: signs, widths, the largest of each width, and what doubles to nothing.
const EDGES: [u64; 16] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];

/// What a decoder is tried with.
#[derive(Clone, PartialEq, Eq)]
pub struct Input {
    pub bytes: Vec<u8>,
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} bytes {} ({:?})",
            self.bytes.len(),
            hex(&self.bytes),
            String::from_utf8_lossy(&self.bytes)
        )
    }
}

/// Two digits a byte, as the files in `corpus/` hold them.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Flip(Index, u8),
    Set(Index, u8),
    Cut(Index),
    Remove(Index, Index),
    Repeat(Index, Index),
    Exchange(Index, Index),
    Insert(Index, Vec<u8>),
    Splice {
        from: Index,
        piece: (Index, Index),
        at: Index,
        over: bool,
    },
    Word {
        word: Index,
        at: Index,
        over: bool,
    },
    /// A number over what stands there.
    Number {
        at: Index,
        value: Number,
    },
}

#[derive(Clone, Debug)]
enum Number {
    Little(u64, usize),
    Big(u64, usize),
    Varint(u64),
}

impl Number {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Number::Little(value, width) => value.to_le_bytes()[..*width].to_vec(),
            Number::Big(value, width) => value.to_be_bytes()[8 - *width..].to_vec(),
            Number::Varint(value) => {
                let (mut left, mut bytes) = (*value, Vec::new());
                loop {
                    let byte = (left & 0x7f) as u8;
                    left >>= 7;
                    if left == 0 {
                        bytes.push(byte);
                        return bytes;
                    }
                    bytes.push(byte | 0x80);
                }
            }
        }
    }
}

fn number() -> impl Strategy<Value = Number> {
    let edge = proptest::sample::select(EDGES.to_vec());
    let value = prop_oneof![3 => edge, 1 => any::<u64>(), 1 => 0_u64..64];
    let width = proptest::sample::select(vec![1_usize, 2, 4, 8]);
    (value, width, 0..3_u8).prop_map(|(value, width, kind)| match kind {
        0 => Number::Little(value, width),
        1 => Number::Big(value, width),
        _ => Number::Varint(value),
    })
}

fn step() -> impl Strategy<Value = Step> {
    let at = any::<Index>;
    prop_oneof![
        3 => (at(), 0..8_u8).prop_map(|(at, bit)| Step::Flip(at, bit)),
        2 => (at(), any::<u8>()).prop_map(|(at, byte)| Step::Set(at, byte)),
        2 => at().prop_map(Step::Cut),
        1 => (at(), at()).prop_map(|(from, to)| Step::Remove(from, to)),
        1 => (at(), at()).prop_map(|(from, to)| Step::Repeat(from, to)),
        1 => (at(), at()).prop_map(|(one, other)| Step::Exchange(one, other)),
        1 => (at(), vec(any::<u8>(), 1..16)).prop_map(|(at, bytes)| Step::Insert(at, bytes)),
        2 => (at(), (at(), at()), at(), any::<bool>())
            .prop_map(|(from, piece, at, over)| Step::Splice { from, piece, at, over }),
        2 => (at(), at(), any::<bool>()).prop_map(|(word, at, over)| Step::Word { word, at, over }),
        3 => (at(), number()).prop_map(|(at, value)| Step::Number { at, value }),
    ]
}

/// From the smaller to the larger place, both in `0..=length`.
fn range(length: usize, one: &Index, other: &Index) -> std::ops::Range<usize> {
    let (one, other) = (one.index(length + 1), other.index(length + 1));
    one.min(other)..one.max(other)
}

fn put(bytes: &mut Vec<u8>, at: &Index, piece: &[u8], over: bool) {
    let at = at.index(bytes.len() + 1);
    let end = if over {
        (at + piece.len()).min(bytes.len())
    } else {
        at
    };
    bytes.splice(at..end, piece.iter().copied());
}

impl Step {
    fn apply(&self, bytes: &mut Vec<u8>, seeds: &[Vec<u8>], words: &[&[u8]]) {
        let length = bytes.len();
        match self {
            Step::Flip(..) | Step::Set(..) | Step::Exchange(..) if length == 0 => {}
            Step::Flip(at, bit) => bytes[at.index(length)] ^= 1 << bit,
            Step::Set(at, byte) => bytes[at.index(length)] = *byte,
            Step::Exchange(one, other) => bytes.swap(one.index(length), other.index(length)),
            Step::Cut(at) => bytes.truncate(at.index(length + 1)),
            Step::Remove(from, to) => {
                bytes.drain(range(length, from, to));
            }
            Step::Repeat(from, to) => {
                let range = range(length, from, to);
                let piece = bytes[range.clone()].to_vec();
                bytes.splice(range.end..range.end, piece);
            }
            Step::Insert(at, piece) => put(bytes, at, piece, false),
            Step::Splice {
                from,
                piece: (start, end),
                at,
                over,
            } => {
                let other = from.get(seeds);
                let piece = &other[range(other.len(), start, end)];
                put(bytes, at, piece, *over);
            }
            Step::Word { .. } if words.is_empty() => {}
            Step::Word { word, at, over } => put(bytes, at, words[word.index(words.len())], *over),
            Step::Number { at, value } => put(bytes, at, &value.bytes(), true),
        }
    }
}

/// Inputs for a decoder of which these are real encodings and these are words. `seeds` must not be empty.
pub fn inputs(seeds: &[Vec<u8>], words: &'static [&'static [u8]]) -> BoxedStrategy<Input> {
    assert!(!seeds.is_empty(), "a decoder is tried with real encodings");
    let bytes_max = 4 * seeds.iter().map(Vec::len).max().unwrap_or(0) + SLACK_BYTES;
    let seeds: Arc<[Vec<u8>]> = seeds.into();
    let changed = (any::<Index>(), vec(step(), 1..=STEPS_MAX)).prop_map(move |(of, steps)| {
        let mut bytes = of.get(&seeds).clone();
        for step in &steps {
            step.apply(&mut bytes, &seeds, words);
            bytes.truncate(bytes_max);
        }
        Input { bytes }
    });
    let noise = vec(any::<u8>(), 0..NOISE_BYTES_MAX).prop_map(|bytes| Input { bytes });
    let prose = vec(any::<Index>(), 0..WORDS_MAX).prop_map(move |places| Input {
        bytes: match words {
            [] => Vec::new(),
            words => {
                let chosen = places.iter().map(|at| words[at.index(words.len())]);
                chosen.collect::<Vec<_>>().concat()
            }
        },
    });
    prop_oneof![12 => changed, 2 => noise, 1 => prose].boxed()
}
