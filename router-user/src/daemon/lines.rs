//! A budget of lines in the log, for what somebody on the network can cause again and again.

use std::time::{Duration, Instant};

/// So many lines in a row are written at once; a machine that starts has a lot to say.
const AT_ONCE: u32 = 200;
/// And then one in this time.
const EVERY: Duration = Duration::from_secs(5);

/// The lines that may still be written, and those that were not.
#[derive(Debug)]
pub(super) struct Lines {
    left: u32,
    /// From when on time counts for further lines.
    since: Option<Instant>,
    withheld: u64,
}

impl Default for Lines {
    fn default() -> Self {
        Self { left: AT_ONCE, since: None, withheld: 0 }
    }
}

impl Lines {
    /// Takes a line: `Some` if it may be written, with how many were withheld since the last one.
    pub(super) fn take(&mut self, now: Instant) -> Option<u64> {
        let since = *self.since.get_or_insert(now);
        let more = now.saturating_duration_since(since).as_millis() / EVERY.as_millis();
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        self.since = Some(since + EVERY.saturating_mul(more));
        self.left = self.left.saturating_add(more).min(AT_ONCE);
        if self.left == 0 {
            self.withheld = self.withheld.saturating_add(1);
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.withheld))
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
        assert_eq!(written, u64::from(AT_ONCE) + 3600 / EVERY.as_secs() - 1);
        // Every line is accounted for: written, withheld and told, or withheld since.
        let told: u64 = taken.iter().flatten().sum();
        assert_eq!(written + told + lines.withheld, 360_000);
    }

    #[test]
    fn calm_restores_the_budget() {
        let (mut lines, start) = (Lines::default(), Instant::now());
        while lines.take(start).is_some() {}
        let later = start + EVERY.saturating_mul(10_000);
        assert_eq!(lines.take(later), Some(1));
        assert_eq!((0..AT_ONCE).filter(|_| lines.take(later).is_some()).count(), AT_ONCE as usize - 1);
    }
}
