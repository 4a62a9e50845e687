//! Several measurements of one thing, and how tables show them.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use serde::Serialize;

/// Several measurements of one thing.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    pub(crate) fn of(values: &[f64]) -> Result<Self> {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        let (Some(min), Some(max)) = (values.first(), values.last()) else {
            anyhow::bail!("nothing was measured");
        };
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Ok(Self { median, min: *min, max: *max })
    }

    /// The ratios of what was measured in the same rounds: a round has its arms next to each other,
    /// so that a machine that is slower for a while is slower for both.
    pub(crate) fn of_ratios(values: &[f64], to: &[f64]) -> Result<Self> {
        ensure!(values.len() == to.len(), "{} rounds are not {}", values.len(), to.len());
        Self::of(&values.iter().zip(to).map(|(value, to)| value / to).collect::<Vec<_>>())
    }

    /// All of it in another unit.
    pub(crate) fn times(self, factor: f64) -> Self {
        Self { median: self.median * factor, min: self.min * factor, max: self.max * factor }
    }

    /// "median (min - max)" with these numbers of digits.
    pub(crate) fn show(self, width: usize, digits: usize) -> String {
        let Self { median, min, max } = self;
        format!("{median:width$.digits$} ({min:.digits$} - {max:.digits$})")
    }
}

/// A ratio as tables show it.
pub(crate) fn ratio(ratio: Option<&Spread>) -> String {
    ratio.map_or("-".to_owned(), |ratio| ratio.show(0, 2))
}

/// Adds a line to a text.
pub(crate) fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ok = writeln!(text, "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_numbers_of_values() {
        let spread = Spread::of(&[3.0, 1.0, 2.0]).expect("values");
        assert_eq!((spread.min, spread.median, spread.max), (1.0, 2.0, 3.0));
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]).expect("values").median, 2.5);
        assert!(Spread::of(&[]).is_err());
    }

    #[test]
    fn ratios_are_of_the_values_of_one_round() {
        // A machine that is half as fast in the second round is so for both.
        let spread = Spread::of_ratios(&[8.0, 4.0, 9.0], &[4.0, 2.0, 3.0]).expect("rounds");
        assert_eq!((spread.min, spread.median, spread.max), (2.0, 2.0, 3.0));
        assert!(Spread::of_ratios(&[1.0], &[1.0, 2.0]).is_err());
    }
}
