//! How like two words are, for messages that say what was probably meant.

/// In how many places two words differ: a letter that is missing, too many, another one, or swapped with the next.
///
/// Source: the optimal string alignment distance.
#[must_use]
pub fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=other.len()).collect();
    let mut previous = None;
    for (index, c) in one.chars().enumerate() {
        let mut row = vec![index + 1];
        let at = |row: &[usize], column: usize| row.get(column).copied().unwrap_or(usize::MAX / 2);
        for (column, d) in other.iter().enumerate() {
            let replaced = at(&last, column) + usize::from(c != *d);
            let cheapest = replaced.min(at(&last, column + 1) + 1).min(at(&row, column) + 1);
            let is_swapped = column > 0 && previous == Some(*d) && other.get(column - 1) == Some(&c);
            row.push(if is_swapped { cheapest.min(at(&before, column - 1) + 1) } else { cheapest });
        }
        before = std::mem::replace(&mut last, row);
        previous = Some(c);
    }
    last.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_counts_once() {
        let cases =
            [("", "", 0), ("", "ab", 2), ("ab", "", 2), ("abc", "acb", 1), ("abc", "abd", 1), ("abcd", "badc", 2)];
        for (one, other, want) in cases {
            assert_eq!(distance(one, other), want, "{one} {other}");
        }
    }
}
