//! Aligned columns of text.

use std::fmt::Write as _;

use anstyle::Style;

use super::output::STRONG;

/// The side of its column that a cell is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// One cell: its text, and a colour for it.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    pub(super) fn styled(style: Style, text: impl Into<String>) -> Self {
        Self { text: text.into(), style }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::styled(Style::new(), text)
    }
}

/// Columns with headings, and the rows below.
#[derive(Clone, Debug)]
pub(super) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(super) fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row: a cell for each column.
    pub(super) fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push(cells);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Returns the whole table, each line with its line break.
    pub(super) fn render(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            let longest = cells.map(|cell| cell.text.chars().count()).max().unwrap_or(0);
            let heading = self.columns.get(column).map_or(0, |(heading, _)| heading.len());
            longest.max(heading)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let headings: Vec<Cell> =
            self.columns.iter().map(|(heading, _)| Cell::styled(STRONG, *heading)).collect();
        let mut text = String::new();
        for row in std::iter::once(&headings).chain(&self.rows) {
            self.line(&mut text, row, &widths);
        }
        text
    }

    fn line(&self, text: &mut String, row: &[Cell], widths: &[usize]) {
        let mut gap = 0;
        for ((cell, (_, align)), width) in row.iter().zip(&self.columns).zip(widths) {
            let padding = width - cell.text.chars().count().min(*width);
            let (before, after) = match align {
                Align::Left => (0, padding),
                Align::Right => (padding, 0),
            };
            // The space after a cell is written with the next one, so no line ends in spaces.
            let style = cell.style;
            if cell.text.is_empty() {
                gap += before + after + 2;
                continue;
            }
            let _ = write!(text, "{:1$}{style}{2}{style:#}", "", gap + before, cell.text);
            gap = after + 2;
        }
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_do_not_end_in_spaces() {
        let mut table =
            Table::new(&[("NAME", Align::Left), ("PACKETS", Align::Right), ("NOTE", Align::Left)]);
        table.row(vec!["a".into(), "1".into(), "x".into()]);
        table.row(vec!["longer".into(), "1,234,567,890".into(), "".into()]);
        table.row(vec!["".into(), "5".into(), "yy".into()]);
        let plain = anstream::adapter::strip_str(&table.render()).to_string();
        let lines: Vec<&str> = plain.lines().collect();
        assert_eq!(
            lines,
            [
                "NAME          PACKETS  NOTE",
                "a                   1  x",
                "longer  1,234,567,890",
                "                    5  yy",
            ]
        );
    }
}
