//! A table of what happened lately, which never grows beyond a number of entries.
//!
//! Owns the order in which entries are forgotten: the one that was written longest ago goes first. Everything kept here may
//! be forgotten at any time, as at a restart.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// A cluster has thousands of volumes at most; what is remembered of one is a few hundred bytes.
const MOST: usize = 4096;

/// The table; reading, writing and forgetting cost the same however many entries there are.
#[derive(Debug)]
pub(super) struct Recent<K, V> {
    entries: HashMap<K, (u64, V)>,
    by_age: BTreeMap<u64, K>,
    next: u64,
    most: usize,
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Recent { entries: HashMap::new(), by_age: BTreeMap::new(), next: 0, most: MOST }
    }
}

impl<K: Eq + Hash + Clone, V> Recent<K, V> {
    /// What is known of it.
    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(_, value)| value)
    }

    /// All that is known, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().map(|(key, (_, value))| (key, value))
    }

    /// Writes an entry, and forgets the oldest one when there are too many.
    pub(super) fn insert(&mut self, key: K, value: V) {
        let number = self.next;
        self.next += 1;
        if let Some((old, _)) = self.entries.insert(key.clone(), (number, value)) {
            self.by_age.remove(&old);
        }
        self.by_age.insert(number, key);
        if self.entries.len() > self.most
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.entries.remove(&oldest);
        }
    }

    /// Forgets an entry.
    pub(super) fn remove(&mut self, key: &K) {
        if let Some((number, _)) = self.entries.remove(key) {
            self.by_age.remove(&number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_that_was_written_longest_ago_makes_room_for_a_new_one() {
        let mut table = Recent { most: 3, ..Recent::default() };
        for key in [1, 2, 3, 1, 4] {
            table.insert(key, key * 10);
        }
        assert_eq!([1, 2, 3, 4].map(|key| table.get(&key).copied()), [Some(10), None, Some(30), Some(40)]);
        table.remove(&3);
        table.insert(5, 50);
        assert_eq!([1, 4, 5].map(|key| table.get(&key).copied()), [Some(10), Some(40), Some(50)]);
        assert_eq!((table.entries.len(), table.by_age.len()), (3, 3));
    }

    #[test]
    fn the_table_is_bounded_whatever_is_written() {
        let mut table = Recent::default();
        (0..3 * MOST).for_each(|key| table.insert(key, ()));
        assert_eq!((table.entries.len(), table.by_age.len()), (MOST, MOST));
    }
}
