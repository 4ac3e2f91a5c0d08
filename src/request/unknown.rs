//! Warnings of names that have no effect, once for each volume.
//!
//! Owns the memory of what was logged, which is small and is lost when the program ends.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use log::warn;

use crate::request::volume_context::unknown_names;

/// How many volumes and names are remembered. Above that, all are forgotten and may be logged again.
const MOST: usize = 4096;

/// Which unknown names of which volumes were logged. Clones share one memory.
#[derive(Debug, Clone, Default)]
pub(super) struct Warned(Arc<Mutex<HashSet<(String, String)>>>);

impl Warned {
    /// Warns of the names among the entries of `field` that neither this driver nor an orchestrator is known to read. Later
    /// calls for the same volume say nothing of the same names.
    pub(super) fn warn_of_unknown(
        &self,
        volume: &str,
        field: &str,
        entries: &HashMap<String, String>,
        driver_name: &str,
    ) {
        for (key, meant) in unknown_names(field, entries, driver_name) {
            if self.is_first(volume, key) {
                let hint = meant.map(|meant| format!("; did you mean {meant:?}?")).unwrap_or_default();
                warn!(volume; "{field}[{key:?}] is not known to this driver and has no effect{hint}");
            }
        }
    }

    fn is_first(&self, volume: &str, key: &str) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() >= MOST {
            told.clear();
        }
        told.insert((volume.to_owned(), key.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_of_a_volume_is_told_of_once_and_the_memory_is_bounded() {
        let warned = Warned::default();
        let clone = warned.clone();
        assert!(warned.is_first("a", "x") && !clone.is_first("a", "x"));
        assert!(clone.is_first("a", "y") && clone.is_first("b", "x"));
        for number in 0..2 * MOST {
            warned.is_first("c", &number.to_string());
        }
        assert!(warned.0.lock().unwrap().len() <= MOST);
    }
}
