//! An ordered map whose clone is cheap: entries live in shared leaves, leaves in shared branches, and only what is written
//! while a clone still holds it is copied. Decides nothing; knows nothing of invoices. What a snapshot reads, later applies
//! never change. A map of a few entries is one plain vector, because most sessions hold one lease.

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const FEW_MAX: usize = 16; // Copied whole when it is shared; found by looking at two or three cache lines.
const LEAF_MAX: usize = 48; // The first write after a clone copies a leaf, and touches what its entries point at.
const BRANCH_MAX: usize = 128; // With the branch above it; a clone costs one count per branch.

#[derive(Clone)]
pub(crate) enum CowMap<K, V> {
    Few(Vec<(K, V)>),
    Many(Box<Tree<K, V>>),
}

pub(crate) struct Tree<K, V> {
    branches: Vec<Branch<K, V>>,
    len: usize,
    /// Where the last search ended. One command looks at one record many times; only a guess, checked before it is used.
    hint: AtomicU64,
}

#[derive(Clone)]
struct Branch<K, V> {
    /// At or below every key in here, above every key of the branch before.
    floor: K,
    leaves: Arc<Vec<Leaf<K, V>>>,
}

#[derive(Clone)]
struct Leaf<K, V> {
    /// At or below every key in here, above every key of the leaf before. Saves a hop while searching.
    floor: K,
    entries: Arc<Vec<(K, V)>>,
}

/// Branch, leaf, slot.
type Place = (usize, usize, usize);

impl<K: Clone, V: Clone> Clone for Tree<K, V> {
    fn clone(&self) -> Self {
        Self {
            branches: self.branches.clone(),
            len: self.len,
            hint: AtomicU64::new(0),
        }
    }
}

impl<K, V> Default for CowMap<K, V> {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

/// The last of the ordered `floors` that is not above the key; the first one if all are.
fn below<T, K: Ord>(parts: &[T], key: &K, floor: impl Fn(&T) -> &K) -> usize {
    parts
        .partition_point(|part| floor(part) <= key)
        .saturating_sub(1)
}

/// How many stay when a full part is split: keys that only grow would leave half-empty parts behind at the end.
fn kept(full: usize, last: bool) -> usize {
    if last { full * 7 / 8 } else { full / 2 }
}

impl<K: Ord + Clone, V: Clone> Tree<K, V> {
    fn of(few: Vec<(K, V)>) -> Option<Self> {
        let floor = few.first()?.0.clone();
        let len = few.len();
        let leaf = Leaf {
            floor: floor.clone(),
            entries: Arc::new(few),
        };
        Some(Self {
            branches: vec![Branch {
                floor,
                leaves: Arc::new(vec![leaf]),
            }],
            len,
            hint: AtomicU64::new(0),
        })
    }

    fn entries(&self, branch: usize, leaf: usize) -> Option<&[(K, V)]> {
        let leaf = self.branches.get(branch)?.leaves.get(leaf)?;
        Some(&leaf.entries)
    }

    /// Where the key stands, or would stand.
    fn search(&self, key: &K) -> Result<Place, Place> {
        let hint = self.hint.load(Ordering::Relaxed) as usize;
        let (branch, leaf, slot) = (hint >> 32, hint >> 16 & 0xffff, hint & 0xffff);
        let guess = self
            .entries(branch, leaf)
            .and_then(|entries| entries.get(slot));
        if guess.is_some_and(|(known, _)| known == key) {
            return Ok((branch, leaf, slot));
        }
        let branch = below(&self.branches, key, |branch| &branch.floor);
        let leaves = &self.branches[branch].leaves;
        let leaf = below(leaves, key, |leaf| &leaf.floor);
        match leaves[leaf]
            .entries
            .binary_search_by(|(known, _)| known.cmp(key))
        {
            Ok(slot) => {
                self.point_at((branch, leaf, slot));
                Ok((branch, leaf, slot))
            }
            Err(slot) => Err((branch, leaf, slot)),
        }
    }

    fn point_at(&self, (branch, leaf, slot): Place) {
        let hint = (branch << 32 | leaf << 16 | slot) as u64;
        self.hint.store(hint, Ordering::Relaxed);
    }

    fn value_mut(&mut self, (branch, leaf, slot): Place) -> &mut V {
        let leaves = Arc::make_mut(&mut self.branches[branch].leaves);
        &mut Arc::make_mut(&mut leaves[leaf].entries)[slot].1
    }

    fn insert(&mut self, key: K, value: V) -> Option<V> {
        let (at, nth, slot) = match self.search(&key) {
            Ok(place) => return Some(std::mem::replace(self.value_mut(place), value)),
            Err(place) => place,
        };
        self.len += 1;
        let last_branch = at + 1 == self.branches.len();
        let branch = &mut self.branches[at];
        let leaves = Arc::make_mut(&mut branch.leaves);
        // Below everything: only the very first leaf can be meant.
        if key < leaves[nth].floor {
            leaves[nth].floor = key.clone();
            if key < branch.floor {
                branch.floor = key.clone();
            }
        }
        let last_leaf = last_branch && nth + 1 == leaves.len();
        let entries = Arc::make_mut(&mut leaves[nth].entries);
        entries.insert(slot, (key, value));
        if entries.len() <= LEAF_MAX {
            self.point_at((at, nth, slot));
            return None;
        }
        let mut upper = Vec::with_capacity(LEAF_MAX + 1);
        upper.extend(entries.drain(kept(LEAF_MAX, last_leaf)..));
        let leaf = Leaf {
            floor: upper[0].0.clone(),
            entries: Arc::new(upper),
        };
        leaves.insert(nth + 1, leaf);
        if leaves.len() > BRANCH_MAX {
            let upper: Vec<_> = leaves.drain(kept(BRANCH_MAX, last_branch)..).collect();
            let branch = Branch {
                floor: upper[0].floor.clone(),
                leaves: Arc::new(upper),
            };
            self.branches.insert(at + 1, branch);
        }
        None
    }

    fn remove(&mut self, key: &K) -> Option<V> {
        let (at, nth, slot) = self.search(key).ok()?;
        self.len -= 1;
        let leaves = Arc::make_mut(&mut self.branches[at].leaves);
        let entries = Arc::make_mut(&mut leaves[nth].entries);
        let (_, value) = entries.remove(slot);
        let left = entries.len();
        if left == 0 {
            leaves.remove(nth);
        } else if left < LEAF_MAX / 4
            && nth > 0
            && leaves[nth - 1].entries.len() + left <= LEAF_MAX / 2
        {
            let mut tail = leaves.remove(nth);
            let tail = std::mem::take(Arc::make_mut(&mut tail.entries));
            Arc::make_mut(&mut leaves[nth - 1].entries).extend(tail);
        } else {
            return Some(value);
        }
        let left = leaves.len();
        if left == 0 {
            self.branches.remove(at);
        } else if left < BRANCH_MAX / 4
            && at > 0
            && self.branches[at - 1].leaves.len() + left <= BRANCH_MAX / 2
        {
            let mut tail = self.branches.remove(at);
            let tail = std::mem::take(Arc::make_mut(&mut tail.leaves));
            Arc::make_mut(&mut self.branches[at - 1].leaves).extend(tail);
        }
        Some(value)
    }
}

fn slot_of<K: Ord, V>(few: &[(K, V)], key: &K) -> Result<usize, usize> {
    few.binary_search_by(|(known, _)| known.cmp(key))
}

impl<K: Ord + Clone, V: Clone> CowMap<K, V> {
    pub fn len(&self) -> usize {
        match self {
            Self::Few(few) => few.len(),
            Self::Many(tree) => tree.len,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn get(&self, key: &K) -> Option<&V> {
        match self {
            Self::Few(few) => slot_of(few, key).ok().map(|slot| &few[slot].1),
            Self::Many(tree) => {
                let (branch, leaf, slot) = tree.search(key).ok()?;
                Some(&tree.branches[branch].leaves[leaf].entries[slot].1)
            }
        }
    }

    pub fn contains(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        match self {
            Self::Few(few) => {
                let slot = slot_of(few, key).ok()?;
                Some(&mut few[slot].1)
            }
            Self::Many(tree) => {
                let place = tree.search(key).ok()?;
                Some(tree.value_mut(place))
            }
        }
    }

    /// Returns what the key held before.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self {
            Self::Few(few) => {
                match slot_of(few, &key) {
                    Ok(slot) => return Some(std::mem::replace(&mut few[slot].1, value)),
                    Err(slot) => {
                        if few.is_empty() {
                            few.reserve_exact(1);
                        }
                        few.insert(slot, (key, value));
                    }
                }
                if few.len() > FEW_MAX
                    && let Some(tree) = Tree::of(std::mem::take(few))
                {
                    *self = Self::Many(Box::new(tree));
                }
                None
            }
            Self::Many(tree) => tree.insert(key, value),
        }
    }

    pub fn remove(&mut self, key: &K) -> Option<V> {
        match self {
            Self::Few(few) => {
                let slot = slot_of(few, key).ok()?;
                Some(few.remove(slot).1)
            }
            Self::Many(tree) => {
                let value = tree.remove(key)?;
                if tree.len == 0 {
                    *self = Self::default();
                }
                Some(value)
            }
        }
    }

    pub fn first(&self) -> Option<(&K, &V)> {
        self.iter().next()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.iter_after(None)
    }

    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// In order, from the first key above `after`; None: from the start.
    pub fn iter_after<'a>(
        &'a self,
        after: Option<&K>,
    ) -> impl Iterator<Item = (&'a K, &'a V)> + use<'a, K, V> {
        let (few, branches) = match self {
            Self::Few(few) => (few.as_slice(), [].as_slice()),
            Self::Many(tree) => ([].as_slice(), tree.branches.as_slice()),
        };
        let (mut start, mut branch, mut leaf, mut slot) = (0, 0, 0, 0);
        if let Some(after) = after {
            start = few.partition_point(|(key, _)| key <= after);
            branch = below(branches, after, |branch| &branch.floor);
            if let Some(first) = branches.get(branch) {
                leaf = below(&first.leaves, after, |leaf| &leaf.floor);
                let entries = &first.leaves[leaf].entries;
                slot = entries.partition_point(|(key, _)| key <= after);
            }
        }
        let skipped = move |nth: usize, skip: usize| if nth == 0 { skip } else { 0 };
        let leaves = branches[branch..]
            .iter()
            .enumerate()
            .flat_map(move |(nth, branch)| &branch.leaves[skipped(nth, leaf)..]);
        let many = leaves
            .enumerate()
            .flat_map(move |(nth, leaf)| &leaf.entries[skipped(nth, slot)..]);
        few[start..]
            .iter()
            .chain(many)
            .map(|(key, value)| (key, value))
    }
}

impl<K: Ord + Clone + Serialize, V: Clone + Serialize> Serialize for CowMap<K, V> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(self.len()))?;
        for (key, value) in self.iter() {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl<'de, K, V> Deserialize<'de> for CowMap<K, V>
where
    K: Ord + Clone + Deserialize<'de>,
    V: Clone + Deserialize<'de>,
{
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Entries<K, V>(PhantomData<(K, V)>);

        impl<'de, K, V> Visitor<'de> for Entries<K, V>
        where
            K: Ord + Clone + Deserialize<'de>,
            V: Clone + Deserialize<'de>,
        {
            type Value = CowMap<K, V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
                let mut map = CowMap::default();
                while let Some((key, value)) = entries.next_entry()? {
                    map.insert(key, value);
                }
                Ok(map)
            }
        }

        from.deserialize_map(Entries(PhantomData))
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
