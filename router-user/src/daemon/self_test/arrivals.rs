//! Packets that come in on an interface and that its program does not see: a driver that has lost
//! the program, while the kernel still names it.
//!
//! It may have lost it on a part of its queues or devices. In Azure, an interface's program runs on
//! the synthetic device and on the virtual function below it, and a connection's first packets come
//! in by the one while all others come in by the other.

use std::time::{Duration, Instant};

/// The time for which the program sees nothing, and the packets that have come in meanwhile, before
/// that is a fault. A few packets are no sign: a driver may count some that it never hands on.
const LONG: Duration = Duration::from_secs(5);
const MANY: u64 = 20;
/// The same if the program sees some. The numbers of a driver may be late by a second or two, and
/// so may be wrong for one such time, but not for two in a row.
const WINDOW: Duration = Duration::from_secs(10);
const MANY_OF_WINDOW: u64 = 500;
const WINDOWS: u32 = 2;

/// Counts of an interface.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Count {
    /// Packets that have come in, as the driver counts them.
    pub(super) arrived: u64,
    /// Packets that the program has seen, but for those of self-tests.
    pub(super) seen: u64,
}

/// Packets that have come in unseen, if they are a fault.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Unseen {
    /// So many, and the program has seen none meanwhile.
    All(u64),
    /// Most of those that have come in.
    Most { unseen: u64, arrived: u64 },
}

/// The history of an interface.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    index: u32,
    /// The counts when the program was last known to see packets, and when that was.
    last: Option<(Count, Instant)>,
    window: Option<Window>,
}

/// A time over which packets are compared.
#[derive(Debug)]
struct Window {
    first: Count,
    since: Instant,
    /// The windows in a row, up to this one, in which most packets were unseen, and those of the
    /// last one.
    bad: u32,
    most: Option<Unseen>,
}

impl Arrivals {
    /// Takes in what is counted now of the interface with this index. Returns the packets that have
    /// come in unseen, if they are a fault. `is_comparable`: the program sees each packet that the
    /// driver counts as one, so that some of them can be missed.
    pub(super) fn look(
        &mut self,
        index: u32,
        count: Count,
        is_comparable: bool,
        now: Instant,
    ) -> Option<Unseen> {
        // Counters start anew with an interface, and with a program.
        if self.index != index || self.last.is_some_and(|(last, _)| count.arrived < last.arrived) {
            *self = Self { index, ..Self::default() };
        }
        let all = match self.last {
            Some((last, since)) if last.seen == count.seen => {
                let unseen = count.arrived - last.arrived;
                (unseen >= MANY && now.duration_since(since) >= LONG).then_some(Unseen::All(unseen))
            }
            _ => {
                self.last = Some((count, now));
                None
            }
        };
        let most = if is_comparable { self.most(count, now) } else { None };
        all.or(most)
    }

    /// Returns the packets of the last window if most were unseen, and in the windows before.
    fn most(&mut self, count: Count, now: Instant) -> Option<Unseen> {
        let new = || Window { first: count, since: now, bad: 0, most: None };
        let window = self.window.get_or_insert_with(new);
        if window.first.seen > count.seen || window.first.arrived > count.arrived {
            *window = new();
        }
        if now.duration_since(window.since) >= WINDOW {
            let (arrived, seen) = (count.arrived - window.first.arrived, count.seen - window.first.seen);
            let unseen = arrived.saturating_sub(seen);
            let is_bad = unseen >= MANY_OF_WINDOW && unseen > arrived / 2;
            let bad = if is_bad { window.bad.saturating_add(1) } else { 0 };
            let most = (bad >= WINDOWS).then_some(Unseen::Most { unseen, arrived });
            *window = Window { first: count, since: now, bad, most };
        }
        window.most
    }
}

/// Returns the number of packets that came in on an interface, from the text of `/proc/net/dev`.
pub(super) fn received(text: &str, interface: &str) -> Option<u64> {
    let of_interface = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        (name.trim() == interface).then(|| numbers.split_whitespace().nth(1)?.parse().ok()).flatten()
    };
    text.lines().find_map(of_interface)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_that_nobody_sees_are_a_fault() {
        let start = Instant::now();
        let mut arrivals = Arrivals::default();
        let mut look = |seconds, arrived, seen| {
            arrivals.look(2, Count { arrived, seen }, true, start + Duration::from_secs(seconds))
        };
        assert_eq!(look(0, 100, 100), None);
        assert_eq!(look(4, 300, 100), None, "not for long");
        assert_eq!(look(5, 300, 100), Some(Unseen::All(200)));
        assert_eq!(look(6, 301, 101), None, "one is seen");
        assert_eq!(look(60, 320, 101), None, "not many");
        assert_eq!(look(61, 321, 101), Some(Unseen::All(20)));
        assert_eq!(look(62, 5, 101), None, "counted anew");
        assert_eq!(look(90, 6, 101), None);
    }

    #[test]
    fn another_interface_is_looked_at_anew() {
        let start = Instant::now();
        let mut arrivals = Arrivals::default();
        let count = |arrived| Count { arrived, seen: 7 };
        assert_eq!(arrivals.look(2, count(0), true, start), None);
        assert_eq!(arrivals.look(3, count(100), true, start + LONG), None);
        assert_eq!(arrivals.look(3, count(200), true, start + 2 * LONG), Some(Unseen::All(100)));
    }

    /// Looks each second, for so many; each with these packets more. Returns the seconds with a
    /// fault, and the last one.
    fn each_second(
        seconds: u64,
        is_comparable: bool,
        mut more: impl FnMut(u64) -> (u64, u64),
    ) -> (usize, Option<Unseen>) {
        let start = Instant::now();
        let (mut arrivals, mut count) = (Arrivals::default(), Count::default());
        let looks = (0..=seconds).map(|second| {
            let (arrived, seen) = more(second);
            count = Count { arrived: count.arrived + arrived, seen: count.seen + seen };
            arrivals.look(2, count, is_comparable, start + Duration::from_secs(second))
        });
        let faults: Vec<_> = looks.flatten().collect();
        (faults.len(), faults.last().copied())
    }

    #[test]
    fn packets_of_which_the_program_sees_few_are_a_fault() {
        // Only first packets of connections are seen.
        let most = Some(Unseen::Most { unseen: 9_900, arrived: 10_000 });
        assert_eq!(each_second(19, true, |_| (1000, 10)), (0, None), "not for long");
        assert_eq!(each_second(30, true, |_| (1000, 10)), (11, most));
        assert_eq!(each_second(30, false, |_| (1000, 10)), (0, None), "not comparable");
        // It ends.
        let until = |second: u64| if second <= 20 { (1000, 10) } else { (1000, 1000) };
        assert_eq!(each_second(60, true, until), (10, most));
    }

    #[test]
    fn what_only_looks_unseen_is_no_fault() {
        let never = |more: fn(u64) -> (u64, u64)| assert_eq!(each_second(100, true, more), (0, None));
        never(|_| (1000, 1000));
        never(|_| (1000, 600));
        // Multicast of a quiet machine that the driver counts and drops.
        never(|_| (40, 1));
        // The driver's numbers come late and at once, or ours are of another moment.
        never(|second| if second % 2 == 0 { (2000, 1000) } else { (0, 1000) });
        never(|second| if second == 50 { (100_000, 1000) } else { (1000, 1000) });
        // The driver does not count what the program sends on.
        never(|_| (10, 1000));
    }

    #[test]
    fn the_kernels_list_is_read() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
                    face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets\n    \
                    lo:     100       1    0    0    0     0          0         0      100       1    0\n  \
                    eth0: 1234567   8901    0    0    0     0          0         0        0       0    0\n\
                    enP1s1:77 12 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n";
        assert_eq!(received(text, "eth0"), Some(8901));
        assert_eq!(received(text, "enP1s1"), Some(12));
        assert_eq!(received(text, "eth1"), None);
    }
}
