//! Records by name, found by a hash of the name in a few cache lines, with a cheap clone: pages are shared, and one is copied
//! when it is written while a clone still holds it. Knows no order. Decides nothing.

use std::sync::Arc;

/// A record that carries its own name.
pub(crate) trait Named {
    type Name: Ord;
    fn name(&self) -> &Self::Name;
    /// By its lowest bits first.
    fn hash(name: &Self::Name) -> u64;
}

impl<T: Named> Named for Arc<T> {
    type Name = T::Name;
    fn name(&self) -> &T::Name {
        self.as_ref().name()
    }
    fn hash(name: &T::Name) -> u64 {
        T::hash(name)
    }
}

/// Buckets of a few records, in shared pages. Linear hashing: the table grows by one bucket at a time, so that no insertion
/// pays for a million others.
pub(crate) struct Table<T> {
    pages: Vec<Arc<Page<T>>>,
    buckets: usize,
    len: usize,
}

/// The first write after a clone copies a page, and touches what its records point at.
type Page<T> = [Vec<Hashed<T>>; PAGE_BUCKETS];

#[derive(Clone)]
struct Hashed<T> {
    hash: u64,
    record: T,
}

const PAGE_BUCKETS: usize = 16;
const BUCKET_RECORDS: usize = 4; // On average, when full; one more bucket is opened then.

impl<T> Clone for Table<T> {
    fn clone(&self) -> Self {
        Self {
            pages: self.pages.clone(),
            buckets: self.buckets,
            len: self.len,
        }
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            pages: Vec::new(),
            buckets: 0,
            len: 0,
        }
    }
}

impl<T: Named + Clone> Table<T> {
    pub fn len(&self) -> usize {
        self.len
    }

    /// Where the bucket of a hash stands: as many of its bits as there are buckets, one less where the split has not come.
    fn place(&self, hash: u64) -> (usize, usize) {
        let mask = self.buckets.next_power_of_two() - 1;
        let hash = hash as usize;
        let full = hash & mask;
        let bucket = if full < self.buckets {
            full
        } else {
            hash & mask >> 1
        };
        (bucket / PAGE_BUCKETS, bucket % PAGE_BUCKETS)
    }

    fn bucket(&self, hash: u64) -> Option<&Vec<Hashed<T>>> {
        let (page, nth) = self.place(hash);
        Some(&self.pages.get(page)?[nth])
    }

    fn bucket_mut(&mut self, hash: u64) -> Option<&mut Vec<Hashed<T>>> {
        let (page, nth) = self.place(hash);
        Some(&mut Arc::make_mut(self.pages.get_mut(page)?)[nth])
    }

    pub fn get(&self, name: &T::Name) -> Option<&T> {
        let hash = T::hash(name);
        let mut known = self.bucket(hash)?.iter();
        let found = known.find(|known| known.hash == hash && known.record.name() == name);
        found.map(|found| &found.record)
    }

    pub fn contains(&self, name: &T::Name) -> bool {
        self.get(name).is_some()
    }

    pub fn get_mut(&mut self, name: &T::Name) -> Option<&mut T> {
        let hash = T::hash(name);
        let mut known = self.bucket_mut(hash)?.iter_mut();
        let found = known.find(|known| known.hash == hash && known.record.name() == name);
        found.map(|found| &mut found.record)
    }

    /// Returns the record that had this name before.
    pub fn insert(&mut self, record: T) -> Option<T> {
        if let Some(known) = self.get_mut(record.name()) {
            return Some(std::mem::replace(known, record));
        }
        self.len += 1;
        if self.len > self.buckets * BUCKET_RECORDS {
            self.split();
        }
        let hash = T::hash(record.name());
        if let Some(bucket) = self.bucket_mut(hash) {
            bucket.push(Hashed { hash, record });
        }
        None
    }

    /// Opens the next bucket, and moves those records there whose hashes are meant for it.
    fn split(&mut self) {
        if self.buckets.is_multiple_of(PAGE_BUCKETS) {
            self.pages
                .push(Arc::new(std::array::from_fn(|_| Vec::new())));
        }
        let opened = self.buckets;
        let before = if opened == 0 {
            Vec::new()
        } else {
            let from = opened - (1 << opened.ilog2());
            let page = Arc::make_mut(&mut self.pages[from / PAGE_BUCKETS]);
            std::mem::take(&mut page[from % PAGE_BUCKETS])
        };
        self.buckets += 1;
        for known in before {
            if let Some(bucket) = self.bucket_mut(known.hash) {
                bucket.push(known);
            }
        }
    }

    pub fn remove(&mut self, name: &T::Name) -> Option<T> {
        let hash = T::hash(name);
        let bucket = self.bucket_mut(hash)?;
        let at = bucket
            .iter()
            .position(|known| known.hash == hash && known.record.name() == name)?;
        let removed = bucket.swap_remove(at);
        self.len -= 1;
        if self.len == 0 {
            *self = Self::default();
        }
        Some(removed.record)
    }

    /// In an order that depends on what the table held before: whoever lets it show sorts first.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        let buckets = self.pages.iter().flat_map(|page| page.iter());
        buckets.flatten().map(|known| &known.record)
    }
}

/// Spreads names over all 64 bits: the multiplications of MurmurHash3's last step after every eight bytes.
pub(crate) fn spread(bytes: &[u8]) -> u64 {
    let mut hash = bytes.len() as u64;
    for eight in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..eight.len()].copy_from_slice(eight);
        hash ^= u64::from_le_bytes(word);
        hash = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ hash >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        hash ^= hash >> 33;
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Names that meet on purpose: three hashes for all of them.
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Record(u64, u64);

    impl Named for Record {
        type Name = u64;
        fn name(&self) -> &u64 {
            &self.0
        }
        fn hash(name: &u64) -> u64 {
            name % 3
        }
    }

    #[test]
    fn names_whose_hashes_meet_are_told_apart() {
        let (mut table, mut model) = (Table::default(), BTreeMap::new());
        for step in 0..4_000_u64 {
            let name = step * 7_919 % 23;
            if step % 5 < 3 {
                let before = table.insert(Record(name, step));
                assert_eq!(before.map(|record| record.1), model.insert(name, step));
            } else {
                let removed = table.remove(&name);
                assert_eq!(removed.map(|record| record.1), model.remove(&name));
            }
            if let Some(record) = table.get_mut(&(step % 23)) {
                record.1 += 1;
            }
            model.entry(step % 23).and_modify(|value| *value += 1);
            assert_eq!(table.len(), model.len());
            for (name, value) in &model {
                assert_eq!(table.get(name), Some(&Record(*name, *value)));
            }
            let mut names: Vec<u64> = table.values().map(|record| record.0).collect();
            names.sort_unstable();
            assert!(names.iter().eq(model.keys()));
        }
    }

    #[derive(Clone)]
    struct Spread(u64);

    impl Named for Spread {
        type Name = u64;
        fn name(&self) -> &u64 {
            &self.0
        }
        fn hash(name: &u64) -> u64 {
            spread(&name.to_le_bytes())
        }
    }

    #[test]
    fn every_record_is_found_while_the_table_grows_and_a_clone_never_changes() {
        let mut table = Table::default();
        let mut clones = Vec::new();
        for name in 0..5_000 {
            table.insert(Spread(name));
            if name % 7 == 0 {
                assert!(table.remove(&(name / 2)).is_some() || name / 2 % 7 == 0);
            }
            if name % 499 == 0 {
                let held: Vec<u64> = table.values().map(|record| record.0).collect();
                assert!(held.iter().all(|name| table.contains(name)));
                assert_eq!(held.len(), table.len());
                clones.push((table.clone(), held));
            }
        }
        for (clone, held) in clones {
            assert!(clone.values().map(|record| record.0).eq(held));
        }
        let most = table
            .pages
            .iter()
            .flat_map(|page| page.iter())
            .map(Vec::len);
        assert!(
            most.max() < Some(8 * BUCKET_RECORDS),
            "no bucket has them all"
        );
    }

    #[test]
    fn names_that_differ_little_are_spread_over_the_lowest_bits() {
        let mut tops = [0_u32; 16];
        for n in 0..16_000 {
            let name = format!("inv-{n:09}");
            tops[(spread(name.as_bytes()) % 16) as usize] += 1;
        }
        assert!(
            tops.iter().all(|top| (800..1_200).contains(top)),
            "{tops:?}"
        );
    }
}
