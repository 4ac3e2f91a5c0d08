//! Tables and colours.

use std::io::IsTerminal;

use crate::config::variable;
use crate::ops::diagnosis::Severity;

/// Whether what is printed goes to a person's terminal that may have colours. Source: <https://no-color.org>.
pub(super) fn has_colours() -> bool {
    std::io::stdout().is_terminal() && variable("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A text in the colour of a severity, if there are colours.
pub(super) fn coloured(text: &str, severity: Severity, has_colours: bool) -> String {
    let colour = match severity {
        Severity::Notice => "36",
        Severity::Warning => "33",
        Severity::Critical => "31",
    };
    if has_colours { format!("\u{1b}[{colour}m{text}\u{1b}[0m") } else { text.to_owned() }
}

/// Rows as a table with columns as wide as they need; the last column is not padded. What a control character would
/// do to a terminal it does not do.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let clean: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
    let columns = clean.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        clean.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    clean.iter().map(line).collect()
}

/// A text without control characters.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_columns_and_no_control_characters() {
        let rows = [vec!["NAME".to_owned(), "SIZE".to_owned()], vec!["a\u{1b}[2J".to_owned(), "1".to_owned()]];
        assert_eq!(table(&rows), "NAME   SIZE\na?[2J  1\n");
    }

    #[test]
    fn colours_are_left_out_where_nobody_sees_them() {
        assert_eq!(coloured("x", Severity::Critical, false), "x");
        assert_eq!(coloured("x", Severity::Critical, true), "\u{1b}[31mx\u{1b}[0m");
    }
}
