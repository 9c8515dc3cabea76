//! Records by name, found by a hash of the name, with a clone as cheap as that of the map below. The order is that of the
//! hashes: equal on every replica, and of no meaning to people. Decides nothing.

use std::sync::Arc;

use crate::cow::CowMap;

/// A record that carries its own name.
pub(crate) trait Named {
    type Name: Ord;
    fn name(&self) -> &Self::Name;
    /// The same on every machine and in every version: it orders snapshots.
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

#[derive(Clone)]
pub(crate) struct Table<T> {
    slots: CowMap<u64, Slot<T>>,
    len: usize,
}

/// Nearly always one record. Names whose hashes meet by chance, or because somebody looked for such, stand in order.
#[derive(Clone)]
enum Slot<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> Slot<T> {
    fn records(&self) -> &[T] {
        match self {
            Self::One(record) => std::slice::from_ref(record),
            Self::Many(records) => records,
        }
    }

    fn records_mut(&mut self) -> &mut [T] {
        match self {
            Self::One(record) => std::slice::from_mut(record),
            Self::Many(records) => records,
        }
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            slots: CowMap::default(),
            len: 0,
        }
    }
}

impl<T: Named + Clone> Table<T> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn get(&self, name: &T::Name) -> Option<&T> {
        let records = self.slots.get(&T::hash(name))?.records();
        records.iter().find(|record| record.name() == name)
    }

    pub fn contains(&self, name: &T::Name) -> bool {
        self.get(name).is_some()
    }

    pub fn get_mut(&mut self, name: &T::Name) -> Option<&mut T> {
        let records = self.slots.get_mut(&T::hash(name))?.records_mut();
        records.iter_mut().find(|record| record.name() == name)
    }

    /// Returns the record that had this name before.
    pub fn insert(&mut self, record: T) -> Option<T> {
        let hash = T::hash(record.name());
        let Some(slot) = self.slots.get_mut(&hash) else {
            self.slots.insert(hash, Slot::One(record));
            self.len += 1;
            return None;
        };
        if let Some(known) = slot
            .records_mut()
            .iter_mut()
            .find(|known| known.name() == record.name())
        {
            return Some(std::mem::replace(known, record));
        }
        let mut records = slot.records().to_vec();
        let at = records.partition_point(|known| known.name() < record.name());
        records.insert(at, record);
        *slot = Slot::Many(records);
        self.len += 1;
        None
    }

    pub fn remove(&mut self, name: &T::Name) -> Option<T> {
        let hash = T::hash(name);
        let removed = match self.slots.get_mut(&hash)? {
            Slot::One(record) if record.name() == name => None,
            Slot::One(_) => return None,
            Slot::Many(records) => {
                let at = records.iter().position(|record| record.name() == name)?;
                Some((records.remove(at), records.is_empty()))
            }
        };
        self.len -= 1;
        let (record, is_last) = match removed {
            Some((record, is_last)) => (Some(record), is_last),
            None => (None, true),
        };
        let slot = is_last.then(|| self.slots.remove(&hash)).flatten();
        match (record, slot) {
            (Some(record), _) | (None, Some(Slot::One(record))) => Some(record),
            (None, Some(Slot::Many(_)) | None) => None,
        }
    }

    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.slots.values().flat_map(|slot| slot.records())
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
            assert!(names.is_sorted_by_key(|name| (name % 3, *name)));
            names.sort_unstable();
            assert!(names.iter().eq(model.keys()));
        }
    }

    #[test]
    fn names_that_differ_little_are_spread_over_all_bits() {
        let mut tops = [0_u32; 16];
        for n in 0..16_000 {
            let name = format!("inv-{n:09}");
            tops[(spread(name.as_bytes()) >> 60) as usize] += 1;
        }
        assert!(
            tops.iter().all(|top| (800..1_200).contains(top)),
            "{tops:?}"
        );
    }
}
