//! Detects that new connections fail because the checksums of their first segments are wrong.

use std::time::{Duration, Instant};

/// The time for which such segments count.
const MEMORY: Duration = Duration::from_secs(30);
/// Segments that are more than an accident.
const MANY: u64 = 3;

const TEXT: &str = "most new connections are dropped, as the checksums of their SYNs are wrong (bad_checksum): a virtual NIC leaves them for hardware to finish; \
                    fix: at its other end `ethtool -K DEVICE tx off`, or mode = \"generic\"";

/// Packets counted so far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Counts {
    /// Dropped for a wrong checksum.
    pub(crate) damaged: u64,
    /// Packets that have opened a session.
    pub(crate) opened: u64,
}

/// An alarm about wrong checksums, with the counts that it compares.
#[derive(Debug, Default)]
pub(crate) struct BadChecksumAlarm {
    start: Option<(Instant, Counts)>,
    /// The last time that there were too many.
    seen: Option<Instant>,
}

impl BadChecksumAlarm {
    /// Takes in what has been counted until now. Returns what is wrong, in words for the operator.
    pub(crate) fn look(&mut self, counts: Counts, now: Instant) -> Option<&'static str> {
        let (since, start) = *self.start.get_or_insert((now, counts));
        let damaged = counts.damaged.saturating_sub(start.damaged);
        let is_bad = damaged >= MANY && damaged > counts.opened.saturating_sub(start.opened);
        if is_bad {
            self.seen = Some(now);
        }
        if is_bad || now.saturating_duration_since(since) >= MEMORY {
            self.start = Some((now, counts));
        }
        self.seen.filter(|seen| now.saturating_duration_since(*seen) < MEMORY).map(|_| TEXT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_damaged_and_few_good_ones_are_said_until_it_is_over() {
        let start = Instant::now();
        let mut alarm = BadChecksumAlarm::default();
        let mut look = |seconds, damaged, opened| {
            alarm.look(Counts { damaged, opened }, start + Duration::from_secs(seconds)).is_some()
        };
        // Whatever was before.
        assert!(!look(0, 100, 0));
        assert!(!look(1, 102, 0));
        assert!(look(2, 103, 0));
        assert!(look(20, 103, 5), "for a while");
        assert!(!look(33, 103, 5));
        // A few broken packets among many good ones.
        assert!(!look(40, 120, 1000));
    }
}
