//! An ordered map whose clone is cheap: entries live in shared chunks, and a chunk is copied when it is written while a
//! clone still holds it. Decides nothing; knows nothing of invoices. What a snapshot reads, later applies never change.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const CHUNK_ENTRIES_MAX: usize = 128; // Moving half of it in memory costs about as much as finding it.

pub(crate) struct CowMap<K, V> {
    chunks: Vec<Chunk<K, V>>,
    len: usize,
    /// Where the last search ended. One command looks at one record many times; only a guess, checked before it is used.
    hint: AtomicUsize,
}

impl<K: Clone, V: Clone> Clone for CowMap<K, V> {
    fn clone(&self) -> Self {
        Self {
            chunks: self.chunks.clone(),
            len: self.len,
            hint: AtomicUsize::new(0),
        }
    }
}

#[derive(Clone)]
struct Chunk<K, V> {
    /// At or below every key in here, above every key of the chunk before. Saves a hop while searching.
    floor: K,
    entries: Arc<Vec<(K, V)>>,
}

impl<K, V> Default for CowMap<K, V> {
    fn default() -> Self {
        Self {
            chunks: Vec::new(),
            len: 0,
            hint: AtomicUsize::new(0),
        }
    }
}

impl<K: Ord + Clone, V: Clone> CowMap<K, V> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The chunk that holds the key, if any does.
    fn chunk_of(&self, key: &K) -> Option<usize> {
        self.chunks
            .partition_point(|chunk| chunk.floor <= *key)
            .checked_sub(1)
    }

    fn find(&self, key: &K) -> Option<(usize, usize)> {
        let hint = self.hint.load(Ordering::Relaxed);
        let (chunk, slot) = (hint / CHUNK_ENTRIES_MAX, hint % CHUNK_ENTRIES_MAX);
        let guess = self
            .chunks
            .get(chunk)
            .and_then(|chunk| chunk.entries.get(slot));
        if guess.is_some_and(|(known, _)| known == key) {
            return Some((chunk, slot));
        }
        let chunk = self.chunk_of(key)?;
        let slot = self.chunks[chunk]
            .entries
            .binary_search_by(|(known, _)| known.cmp(key))
            .ok()?;
        self.hint
            .store(chunk * CHUNK_ENTRIES_MAX + slot, Ordering::Relaxed);
        Some((chunk, slot))
    }

    pub fn get(&self, key: &K) -> Option<&V> {
        self.find(key)
            .map(|(chunk, slot)| &self.chunks[chunk].entries[slot].1)
    }

    pub fn contains(&self, key: &K) -> bool {
        self.find(key).is_some()
    }

    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let (chunk, slot) = self.find(key)?;
        Some(&mut Arc::make_mut(&mut self.chunks[chunk].entries)[slot].1)
    }

    /// Returns what the key held before.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        if self.chunks.is_empty() {
            self.chunks.push(Chunk {
                floor: key.clone(),
                entries: Arc::new(Vec::with_capacity(CHUNK_ENTRIES_MAX)),
            });
        }
        let at = self.chunk_of(&key).unwrap_or(0);
        if key < self.chunks[at].floor {
            self.chunks[at].floor = key.clone(); // Below everything: only the first chunk can be meant.
        }
        let entries = Arc::make_mut(&mut self.chunks[at].entries);
        match entries.binary_search_by(|(known, _)| known.cmp(&key)) {
            Ok(slot) => return Some(std::mem::replace(&mut entries[slot].1, value)),
            Err(slot) => {
                entries.insert(slot, (key, value));
                self.hint
                    .store(at * CHUNK_ENTRIES_MAX + slot, Ordering::Relaxed);
            }
        }
        self.len += 1;
        if entries.len() >= CHUNK_ENTRIES_MAX {
            // Keys that only grow would leave half-empty chunks behind; split those at the end.
            let last = at + 1 == self.chunks.len();
            let entries = Arc::make_mut(&mut self.chunks[at].entries);
            let keep = if last {
                CHUNK_ENTRIES_MAX * 7 / 8
            } else {
                CHUNK_ENTRIES_MAX / 2
            };
            let mut upper = Vec::with_capacity(CHUNK_ENTRIES_MAX);
            upper.extend(entries.drain(keep..));
            let floor = upper[0].0.clone();
            self.chunks.insert(
                at + 1,
                Chunk {
                    floor,
                    entries: Arc::new(upper),
                },
            );
        }
        None
    }

    pub fn remove(&mut self, key: &K) -> Option<V> {
        let (chunk, slot) = self.find(key)?;
        let entries = Arc::make_mut(&mut self.chunks[chunk].entries);
        let (_, value) = entries.remove(slot);
        self.len -= 1;
        let left = entries.len();
        if left == 0 {
            self.chunks.remove(chunk);
        } else if left < CHUNK_ENTRIES_MAX / 4 && chunk > 0 {
            let before = self.chunks[chunk - 1].entries.len();
            if before + left <= CHUNK_ENTRIES_MAX / 2 {
                let mut tail = self.chunks.remove(chunk);
                let tail = std::mem::take(Arc::make_mut(&mut tail.entries));
                Arc::make_mut(&mut self.chunks[chunk - 1].entries).extend(tail);
            }
        }
        Some(value)
    }

    pub fn first(&self) -> Option<(&K, &V)> {
        self.chunks
            .first()
            .and_then(|chunk| chunk.entries.first())
            .map(|(key, value)| (key, value))
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.chunks
            .iter()
            .flat_map(|chunk| chunk.entries.iter().map(|(key, value)| (key, value)))
    }

    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// In order, from the first key above `after`; None: from the start.
    pub fn iter_after<'a>(
        &'a self,
        after: Option<&K>,
    ) -> impl Iterator<Item = (&'a K, &'a V)> + use<'a, K, V> {
        let (chunk, slot) = match after {
            Some(after) => {
                let chunk = self.chunk_of(after).unwrap_or(0);
                let slot = self.chunks.get(chunk).map_or(0, |found| {
                    found.entries.partition_point(|(key, _)| key <= after)
                });
                (chunk, slot)
            }
            None => (0, 0),
        };
        self.chunks
            .iter()
            .skip(chunk)
            .enumerate()
            .flat_map(move |(nth, chunk)| chunk.entries[if nth == 0 { slot } else { 0 }..].iter())
            .map(|(key, value)| (key, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// A small generator, so that the walk is the same on every machine.
    struct Steps(u64);

    impl Steps {
        fn next(&mut self, below: u64) -> u64 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % below
        }
    }

    #[test]
    fn it_holds_what_an_ordinary_map_holds_and_a_clone_never_changes() {
        let (mut map, mut model) = (CowMap::default(), BTreeMap::new());
        let mut steps = Steps(7);
        let mut clones: Vec<(CowMap<u64, u64>, BTreeMap<u64, u64>)> = Vec::new();
        for step in 0..60_000_u64 {
            let key = if step % 3 == 0 {
                step
            } else {
                steps.next(3_000)
            };
            if steps.next(5) < 3 {
                assert_eq!(map.insert(key, step), model.insert(key, step));
            } else {
                assert_eq!(map.remove(&key), model.remove(&key));
            }
            let changed = steps.next(3_000);
            if let Some(value) = map.get_mut(&changed) {
                *value += 1;
            }
            model.entry(changed).and_modify(|value| *value += 1);
            assert_eq!(map.get(&changed), model.get(&changed));
            if step % 97 == 0 {
                let start = steps.next(3_000);
                assert!(map.iter_after(Some(&start)).eq(model.range(start + 1..)));
                assert!(map.iter_after(None).eq(model.iter()));
                assert_eq!(map.first(), model.first_key_value());
            }
            assert_eq!(map.len(), model.len());
            if step % 9_973 == 0 {
                clones.push((map.clone(), map.iter().map(|(k, v)| (*k, *v)).collect()));
            }
        }
        for (clone, then) in clones {
            assert!(clone.iter().eq(then.iter()));
        }
        for key in model.keys() {
            assert!(map.remove(key).is_some());
        }
        assert!(map.is_empty() && map.first().is_none());
    }
}
