//! The rate of work that hosts on the network can ask for: the first times at once,
//! then at a steady rate. No I/O, no clock.

use std::time::{Duration, Instant};

/// A budget that time fills up again.
#[derive(Debug)]
pub(crate) struct Budget {
    at_once: u32,
    every: Duration,
    left: u32,
    /// From when on time counts for more.
    since: Option<Instant>,
}

impl Budget {
    /// A budget for `at_once` in a row, and one more in the time `every`.
    pub(crate) const fn new(at_once: u32, every: Duration) -> Self {
        Self { at_once, every, left: at_once, since: None }
    }

    /// Takes one of it; `false` if nothing is left.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let more = now.saturating_duration_since(since).as_nanos() / self.every.as_nanos().max(1);
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(more).min(self.at_once);
        self.since =
            Some(if self.left == self.at_once { now } else { since + self.every.saturating_mul(more) });
        let taken = self.left > 0;
        self.left -= u32::from(taken);
        taken
    }

    /// Returns when there is something left, at the latest.
    fn next(&self, now: Instant) -> Instant {
        if self.left > 0 { now } else { self.since.map_or(now, |since| since + self.every) }
    }
}

/// Something that is asked for and done within a budget. What was asked for last is never
/// forgotten.
#[derive(Debug)]
pub(crate) struct Pace {
    budget: Budget,
    asked: bool,
}

impl Pace {
    /// As [`Budget::new`].
    pub(crate) const fn new(at_once: u32, every: Duration) -> Self {
        Self { budget: Budget::new(at_once, every), asked: false }
    }

    /// Asks for it.
    pub(crate) fn ask(&mut self) {
        self.asked = true;
    }

    /// Returns when it is due; `None` if it was not asked for.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        self.asked.then(|| self.budget.next(now))
    }

    /// Returns `true` if it is to be done now. It then counts as done.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let taken = self.asked && self.budget.take(now);
        self.asked &= !taken;
        taken
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// At whatever times it is asked: never more often than the budget has it, and what was
        /// asked for last is done by then.
        #[test]
        fn a_storm_is_done_at_a_steady_rate_and_nothing_is_forgotten(gaps in proptest::collection::vec(0..3000_u64, 1..300)) {
            const EVERY: Duration = Duration::from_secs(1);
            let (mut pace, start) = (Pace::new(4, EVERY), Instant::now());
            let (mut now, mut done, mut last_asked) = (start, Vec::new(), start);
            for gap in gaps {
                let end = now + Duration::from_millis(gap);
                // The waiting task wakes when it is due.
                while let Some(due) = pace.due(now).filter(|due| *due <= end) {
                    now = now.max(due);
                    if pace.take(now) { done.push(now) }
                }
                now = end;
                pace.ask();
                last_asked = now;
            }
            while let Some(due) = pace.due(now) {
                now = now.max(due);
                if pace.take(now) { done.push(now) }
            }
            let last = done[done.len() - 1];
            prop_assert!(last >= last_asked && last <= last_asked + EVERY, "{:?}", done);
            for (position, first) in done.iter().enumerate() {
                for (more, later) in done[position..].iter().enumerate().skip(1) {
                    let allowed = 4 + later.duration_since(*first).as_millis() / EVERY.as_millis() + 1;
                    prop_assert!(more as u128 <= allowed, "{:?}", done);
                }
            }
        }
    }

    #[test]
    fn calm_restores_the_budget() {
        let (mut budget, start) = (Budget::new(3, Duration::from_secs(2)), Instant::now());
        let mut at = |seconds| budget.take(start + Duration::from_secs(seconds));
        assert_eq!(
            [at(0), at(0), at(0), at(0), at(1), at(2), at(2)],
            [true, true, true, false, false, true, false]
        );
        assert_eq!([at(1000), at(1000), at(1000), at(1000)], [true, true, true, false]);
    }
}
