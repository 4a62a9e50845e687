//! Packets that come in on an interface and that its program does not see: a driver that has lost
//! the program, while the kernel still names it.

use std::time::{Duration, Instant};

/// The time for which the program sees nothing, and the packets that have come in meanwhile, before
/// that is a fault. A few packets are no sign: a driver may count some that it never hands on.
const LONG: Duration = Duration::from_secs(5);
const MANY: u64 = 20;

/// What is counted of an interface.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Count {
    /// Packets that have come in, as the driver counts them.
    pub(super) arrived: u64,
    /// Packets that the program has seen, but for those of self-tests.
    pub(super) seen: u64,
}

/// What is known of an interface.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    /// The counts when the program was last known to see packets, and when that was.
    last: Option<(u32, Count, Instant)>,
}

impl Arrivals {
    /// Takes in what is counted now of the interface with this index. Returns the packets that have
    /// come in unseen, if they are a fault.
    pub(super) fn look(&mut self, index: u32, count: Count, now: Instant) -> Option<u64> {
        match self.last {
            // Counters start anew with an interface, and with a program.
            Some((known, last, since))
                if known == index && last.seen == count.seen && last.arrived <= count.arrived =>
            {
                let unseen = count.arrived - last.arrived;
                (unseen >= MANY && now.duration_since(since) >= LONG).then_some(unseen)
            }
            _ => {
                self.last = Some((index, count, now));
                None
            }
        }
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
            arrivals.look(2, Count { arrived, seen }, start + Duration::from_secs(seconds))
        };
        assert_eq!(look(0, 100, 100), None);
        assert_eq!(look(4, 1000, 100), None, "not for long");
        assert_eq!(look(5, 1000, 100), Some(900));
        assert_eq!(look(6, 1001, 101), None, "one is seen");
        assert_eq!(look(60, 1020, 101), None, "not many");
        assert_eq!(look(61, 1021, 101), Some(20));
        assert_eq!(look(62, 5, 101), None, "counted anew");
        assert_eq!(look(90, 6, 101), None);
    }

    #[test]
    fn another_interface_is_looked_at_anew() {
        let start = Instant::now();
        let mut arrivals = Arrivals::default();
        let count = |arrived| Count { arrived, seen: 7 };
        assert_eq!(arrivals.look(2, count(0), start), None);
        assert_eq!(arrivals.look(3, count(100), start + LONG), None);
        assert_eq!(arrivals.look(3, count(200), start + 2 * LONG), Some(100));
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
