//! Decides whether what lies on the medium is the log that was acknowledged. Reads everything once, at open; repairs nothing.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::codec::{
    self, Fields, KEY_COMMITTED, KEY_LOG, KEY_PURGED, KEY_VOTE, Link, PackRef, Seed,
};
use crate::high::{self, High};
use crate::medium::{Medium, Pages};
use crate::{Entry, Purged, StoreError};

/// Records read at a time, so that opening a long log does not hold all of it.
const SCAN_RECORDS: usize = 64;

pub(crate) struct Loaded {
    pub purged: Option<(Purged, Link)>,
    pub packs: VecDeque<PackRef>,
    /// Index of the last entry (or of the purge point) and the chain there.
    pub end: Option<(u64, Link)>,
    /// The newest entries, as many as fit.
    pub tail: VecDeque<Entry>,
    pub vote: Option<Bytes>,
    pub vote_sequence: u64,
    pub committed: Option<Bytes>,
    pub high: High,
    pub high_slot: usize,
}

pub(crate) fn purged_body(purged: &Purged, link: Link) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend_from_slice(&purged.index.to_le_bytes());
    body.extend_from_slice(&link.0.to_le_bytes());
    body.extend_from_slice(&(purged.marker.len() as u32).to_le_bytes());
    body.extend_from_slice(&purged.marker);
    body
}

pub(crate) fn vote_body(sequence: u64, vote: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend_from_slice(&sequence.to_le_bytes());
    body.extend_from_slice(&(vote.len() as u32).to_le_bytes());
    body.extend_from_slice(vote);
    body
}

fn read_purged(
    pages: &dyn Pages,
    seed: Seed,
    name: &str,
) -> Result<Option<(Purged, Link)>, StoreError> {
    let Some(record) = pages.get(KEY_PURGED)? else {
        return Ok(None);
    };
    let mut fields = Fields(codec::open(
        seed,
        KEY_PURGED,
        codec::KIND_PURGED,
        &record,
        name,
    )?);
    let parsed = (|| {
        let (index, link) = (fields.counted()?, Link(fields.u32()?));
        Some((
            Purged {
                index,
                marker: Bytes::copy_from_slice(fields.last()?),
            },
            link,
        ))
    })();
    parsed
        .map(Some)
        .ok_or_else(|| StoreError::damaged(name, "the purge point is misshapen"))
}

fn read_vote(
    pages: &dyn Pages,
    seed: Seed,
    name: &str,
) -> Result<(u64, Option<Bytes>), StoreError> {
    let Some(record) = pages.get(KEY_VOTE)? else {
        return Ok((0, None));
    };
    let mut fields = Fields(codec::open(
        seed,
        KEY_VOTE,
        codec::KIND_VOTE,
        &record,
        name,
    )?);
    let parsed = (|| {
        Some((
            fields.counted()?,
            Some(Bytes::copy_from_slice(fields.last()?)),
        ))
    })();
    parsed.ok_or_else(|| StoreError::damaged(name, "the vote is misshapen"))
}

/// Reads and verifies all there is.
pub(crate) fn load(
    medium: &impl Medium,
    seed: Seed,
    tail_bytes_max: usize,
) -> Result<Loaded, StoreError> {
    let (pages, name) = (medium.pages(), medium.name());
    let (high, high_slot) =
        high::choose(seed, &medium.read_high()?, &format!("{name}, high file"))?;
    let purged = read_purged(pages, seed, name)?;
    let (vote_sequence, vote) = read_vote(pages, seed, name)?;
    let committed = match pages.get(KEY_COMMITTED)? {
        Some(record) => {
            let body = codec::open(seed, KEY_COMMITTED, codec::KIND_COMMITTED, &record, name)?;
            Some(Bytes::copy_from_slice(body))
        }
        None => None,
    };
    check_keys(pages, name)?;
    let mut loaded = Loaded {
        end: purged.as_ref().map(|(purged, link)| (purged.index, *link)),
        purged,
        packs: VecDeque::new(),
        tail: VecDeque::new(),
        vote,
        vote_sequence,
        committed,
        high,
        high_slot,
    };
    walk(pages, seed, name, tail_bytes_max, &mut loaded)?;
    check_vote(name, &loaded)?;
    Ok(loaded)
}

/// Nothing but ours lies in the tree.
fn check_keys(pages: &dyn Pages, name: &str) -> Result<(), StoreError> {
    let known = [KEY_COMMITTED, &[KEY_LOG], KEY_PURGED, KEY_VOTE];
    let mut from: Vec<u8> = Vec::new();
    for key in known {
        // Between two known places there must be nothing.
        if let Some((foreign, _)) = pages.scan(&from, key, 1)?.into_iter().next() {
            return Err(StoreError::damaged(
                name,
                format!("there is a foreign key {foreign:?}"),
            ));
        }
        from = key.to_vec();
        if key == [KEY_LOG] {
            from = vec![KEY_LOG + 1];
        } else {
            from.push(0);
        }
    }
    match pages.scan(&from, &[0xff; 16], 1)?.into_iter().next() {
        Some((foreign, _)) => Err(StoreError::damaged(
            name,
            format!("there is a foreign key {foreign:?}"),
        )),
        None => Ok(()),
    }
}

/// Follows the chain from the purge point (or the origin) to the end, and compares it with `high` on the way.
fn walk(
    pages: &dyn Pages,
    seed: Seed,
    name: &str,
    tail_bytes_max: usize,
    loaded: &mut Loaded,
) -> Result<(), StoreError> {
    let floor = loaded
        .purged
        .as_ref()
        .map(|(purged, link)| (purged.index, *link));
    let mut at_high = floor;
    let mut expected: Option<(u64, Link)> = None;
    let mut from = vec![KEY_LOG];
    let mut parts_left = 0;
    let mut tail_bytes = 0;
    loop {
        let records = pages.scan(&from, &[KEY_LOG + 1], SCAN_RECORDS)?;
        let Some((last_key, _)) = records.last() else {
            break;
        };
        from = last_key.clone();
        from.push(0);
        for (key, record) in records {
            if let Some((first, part)) = codec::parse_log_key(&key)
                && part > 0
                && parts_left > 0
                && loaded.packs.back().is_some_and(|pack| pack.first == first)
            {
                parts_left -= 1; // Read with its beginning.
                continue;
            }
            if parts_left > 0 {
                return Err(StoreError::damaged(
                    name,
                    "a large entry has fewer parts than it says",
                ));
            }
            let unpacked = codec::unpack(seed, &key, &record, name, &|key| pages.get(key))?;
            let pack = unpacked.pack;
            parts_left = pack.parts - 1;
            check_follows(name, seed, floor, expected, &pack)?;
            let mut link = pack.before;
            for entry in unpacked.entries {
                link = link.then(entry.index, &entry.bytes);
                if loaded
                    .high
                    .reach
                    .is_some_and(|(reach, _)| reach == entry.index)
                {
                    at_high = Some((entry.index, link));
                }
                match floor {
                    Some((purged, at_purge)) if entry.index == purged && link != at_purge => {
                        return Err(StoreError::damaged(
                            name,
                            format!("entry {purged} is not the one that was purged"),
                        ));
                    }
                    Some((purged, _)) if entry.index <= purged => continue,
                    _ => {}
                }
                tail_bytes += entry.bytes.len();
                loaded.tail.push_back(entry);
                while tail_bytes > tail_bytes_max && loaded.tail.len() > 1 {
                    tail_bytes -= loaded.tail.pop_front().map_or(0, |entry| entry.bytes.len());
                }
            }
            expected = Some((pack.last.saturating_add(1), unpacked.after));
            loaded.end = Some((pack.last, unpacked.after));
            loaded.packs.push_back(pack);
        }
    }
    if parts_left > 0 {
        return Err(StoreError::damaged(
            name,
            "a large entry has fewer parts than it says",
        ));
    }
    check_reach(name, loaded, at_high)
}

fn check_follows(
    name: &str,
    seed: Seed,
    floor: Option<(u64, Link)>,
    expected: Option<(u64, Link)>,
    pack: &PackRef,
) -> Result<(), StoreError> {
    let follows = match (expected, floor) {
        (Some((index, link)), _) => pack.first == index && pack.before == link,
        (None, Some((purged, link))) if pack.first == purged.saturating_add(1) => {
            pack.before == link
        }
        // A purge in the middle of a record leaves the record; `walk` compares the link at the purge point.
        (None, Some((purged, _))) => pack.first <= purged && pack.last > purged,
        (None, None) => pack.before == seed.origin(),
    };
    if follows {
        return Ok(());
    }
    let behind = expected
        .map(|(index, _)| index.saturating_sub(1))
        .or(floor.map(|(purged, _)| purged));
    let behind = behind.map_or("the beginning".to_owned(), |index| format!("entry {index}"));
    Err(StoreError::damaged(
        name,
        format!(
            "entry {} does not follow {behind}: entries are missing or exchanged",
            pack.first
        ),
    ))
}

/// The log must reach as far as was acknowledged, and be the same there.
fn check_reach(
    name: &str,
    loaded: &Loaded,
    at_high: Option<(u64, Link)>,
) -> Result<(), StoreError> {
    let Some((reach, link)) = loaded.high.reach else {
        return Ok(());
    };
    if sabotaged!(HighIgnored) {
        return Ok(());
    }
    let Some((last, _)) = loaded.end else {
        return Err(StoreError::damaged(
            name,
            format!("the log is empty, but it was durable up to entry {reach}"),
        ));
    };
    if last < reach {
        return Err(StoreError::damaged(
            name,
            format!("the log ends at entry {last}, but it was durable up to entry {reach}"),
        ));
    }
    match at_high {
        Some((index, found)) if index == reach && found != link => Err(StoreError::damaged(
            name,
            format!(
                "entry {reach} is not the one that was durable: the log went back to an earlier state"
            ),
        )),
        _ => Ok(()),
    }
}

fn check_vote(name: &str, loaded: &Loaded) -> Result<(), StoreError> {
    let high = &loaded.high;
    if sabotaged!(HighIgnored) {
        return Ok(());
    }
    if loaded.vote_sequence < high.vote_sequence {
        return Err(StoreError::damaged(
            name,
            format!(
                "the vote is older than the last one given (number {} of {})",
                loaded.vote_sequence, high.vote_sequence
            ),
        ));
    }
    if loaded.vote_sequence == high.vote_sequence && loaded.vote != high.vote {
        return Err(StoreError::damaged(
            name,
            "the vote is not the one that was given",
        ));
    }
    Ok(())
}

/// Entries of `from..to` from the medium, in order, stopping once `bytes_max` is reached (never before the first).
/// Shorter than asked when the medium holds less; never with a gap.
pub(crate) fn read_entries(
    pages: &dyn Pages,
    seed: Seed,
    name: &str,
    from: u64,
    to: u64,
    bytes_max: usize,
) -> Result<Vec<Entry>, StoreError> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut bytes = 0;
    let mut next = from;
    while next < to {
        let Some(unpacked) = pack_with(pages, seed, name, next)? else {
            break;
        };
        let last = unpacked.pack.last;
        for entry in unpacked.entries {
            if entry.index < next || entry.index >= to {
                continue;
            }
            bytes += entry.bytes.len();
            entries.push(entry);
            if bytes >= bytes_max {
                return Ok(entries);
            }
        }
        if last < next {
            break;
        }
        next = last.saturating_add(1);
    }
    Ok(entries)
}

/// The record that should contain entry `index`: the last that begins at or before it.
pub(crate) fn pack_with(
    pages: &dyn Pages,
    seed: Seed,
    name: &str,
    index: u64,
) -> Result<Option<codec::Unpacked>, StoreError> {
    let mut to = codec::log_key(index, 0);
    loop {
        let Some((key, record)) = pages.last_in(&[KEY_LOG], &to)? else {
            return Ok(None);
        };
        match codec::parse_log_key(&key) {
            Some((_, 0)) => {
                return codec::unpack(seed, &key, &record, name, &|key| pages.get(key)).map(Some);
            }
            Some((first, _)) => to = codec::log_key(first, 0),
            None => return Err(StoreError::damaged(name, "a key is not a log key")),
        }
    }
}
