//! A budget of log lines, for events that hosts on the network can cause again and again.

use std::time::{Duration, Instant};

use crate::daemon::rate::pace::Budget;

/// Lines in a row that are written at once; a start has many.
const AT_ONCE: u32 = 200;
/// And then one in this time.
const EVERY: Duration = Duration::from_secs(5);

/// The lines that may still be written, and those that were not.
#[derive(Debug)]
pub(crate) struct Lines {
    budget: Budget,
    withheld: u64,
}

impl Default for Lines {
    fn default() -> Self {
        Self { budget: Budget::new(AT_ONCE, EVERY), withheld: 0 }
    }
}

impl Lines {
    /// Takes a line: `Some` if it may be written, with how many were withheld since the last one.
    pub(crate) fn take(&mut self, now: Instant) -> Option<u64> {
        if self.budget.take(now) {
            return Some(std::mem::take(&mut self.withheld));
        }
        self.withheld = self.withheld.saturating_add(1);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_becomes_a_line_now_and_then() {
        let (mut lines, start) = (Lines::default(), Instant::now());
        // A hundred a second, for an hour.
        let taken: Vec<Option<u64>> =
            (0..360_000).map(|n| lines.take(start + Duration::from_millis(10 * n))).collect();
        let written = taken.iter().flatten().count() as u64;
        let expected = u64::from(AT_ONCE) + 3600 / EVERY.as_secs();
        assert!((expected - 2..=expected).contains(&written), "{written}");
        // Every line is accounted for: written, withheld and counted in a line, or withheld since.
        let told: u64 = taken.iter().flatten().sum();
        assert_eq!(written + told + lines.withheld, 360_000);
    }
}
