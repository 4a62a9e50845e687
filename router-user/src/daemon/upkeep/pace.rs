//! The rate of repairs: at once, but never as fast as something can be broken.

use std::time::{Duration, Instant};

/// Repairs in a row that are made at once.
const AT_ONCE: u32 = 3;
/// The time between the repairs after those, which doubles with each.
const FIRST_GAP: Duration = Duration::from_millis(250);
/// And the longest it gets: new sessions may have to wait for the repair.
const LONGEST_GAP: Duration = Duration::from_secs(5);
/// After so long without a repair the next one is the first again.
const CALM: Duration = Duration::from_secs(60);

/// The repairs of one thing, tried or made.
#[derive(Debug, Default)]
pub(super) struct Pace {
    in_a_row: u32,
    last: Option<Instant>,
}

impl Pace {
    /// Returns `true` if a repair may be tried now.
    pub(super) fn allows(&self, now: Instant) -> bool {
        self.since_last(now).is_none_or(|since| since >= self.gap() || since >= CALM)
    }

    /// Notes that one is tried now.
    pub(super) fn note(&mut self, now: Instant) {
        if self.is_calm(now) {
            self.in_a_row = 0;
        }
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.last = Some(now);
    }

    /// Returns `true` if there have been too many lately for an accident.
    pub(super) fn is_contended(&self, now: Instant) -> bool {
        self.in_a_row > AT_ONCE && !self.is_calm(now)
    }

    fn is_calm(&self, now: Instant) -> bool {
        self.since_last(now).is_none_or(|since| since >= CALM)
    }

    fn since_last(&self, now: Instant) -> Option<Duration> {
        self.last.map(|last| now.saturating_duration_since(last))
    }

    fn gap(&self) -> Duration {
        match self.in_a_row.checked_sub(AT_ONCE) {
            None => Duration::ZERO,
            Some(doublings) => {
                let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
                FIRST_GAP.saturating_mul(factor).min(LONGEST_GAP)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Repairs as often as is allowed for a while: when that was.
    fn repairs(pace: &mut Pace, start: Instant, lasting: Duration) -> Vec<Duration> {
        const STEP: Duration = Duration::from_millis(10);
        let mut times = Vec::new();
        let mut time = Duration::ZERO;
        while time < lasting {
            if pace.allows(start + time) {
                pace.note(start + time);
                times.push(time);
            }
            time += STEP;
        }
        times
    }

    #[test]
    fn the_first_come_at_once_and_then_ever_more_slowly() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let times =
            repairs(&mut pace, start, Duration::from_secs(60)).into_iter().map(|time| time.as_millis());
        let first: Vec<u128> = times.clone().take(7).collect();
        assert_eq!(first, [0, 10, 20, 270, 770, 1770, 3770]);
        assert_eq!(times.count(), 7 + 11, "one in five seconds from then on");
        assert!(pace.is_contended(start + Duration::from_secs(60)));
    }

    #[test]
    fn a_repair_now_and_then_is_no_contention() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        for minute in 0..10 {
            let now = start + minute * CALM;
            assert!(pace.allows(now));
            pace.note(now);
            assert!(!pace.is_contended(now));
        }
    }

    #[test]
    fn contention_ends_when_changes_end() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        repairs(&mut pace, start, Duration::from_secs(1));
        assert!(pace.is_contended(start + Duration::from_secs(1)));
        let later = start + Duration::from_secs(1) + CALM;
        assert!(!pace.is_contended(later) && pace.allows(later));
        pace.note(later);
        assert!(pace.allows(later), "the first of its row again");
    }
}
