//! How words are written: how like two are, for messages that say what was probably meant, and as a shell reads one.

use std::borrow::Cow;

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

/// A text as one word of a command that a person pastes into a shell.
#[must_use]
pub fn shell_word(text: &str) -> Cow<'_, str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("'{}'", text.replace('\'', r"'\''")))
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

    #[test]
    fn a_shell_takes_a_quoted_text_for_one_word() {
        for (text, want) in [
            ("blog", "blog"),
            ("/mnt/a-b_c.d", "/mnt/a-b_c.d"),
            ("", "''"),
            ("my disk", "'my disk'"),
            ("$(reboot)", "'$(reboot)'"),
            ("it's; reboot", r"'it'\''s; reboot'"),
        ] {
            assert_eq!(shell_word(text), want);
            let shell = std::process::Command::new("sh").arg("-c").arg(format!("printf %s {want}")).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&shell.stdout), text);
        }
    }
}
