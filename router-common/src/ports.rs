//! Which SNAT ports to try for a new session.

use crate::address::Port;

/// How many ports a new session tries before it gives up.
pub const ATTEMPTS: u32 = 32;

/// A range of ports, both ends included. Map data: no padding.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PortRange {
    /// The first port, as a number. At least 1.
    pub first: u16,
    /// The last port, as a number. At least `first`.
    pub last: u16,
}

impl PortRange {
    /// How many ports there are.
    #[inline(always)]
    pub const fn size(self) -> u32 {
        self.last as u32 - self.first as u32 + 1
    }

    /// Whether this is one of them.
    #[inline(always)]
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    /// The port to try at the `attempt`-th time, from 0: the client's own if it is in the range (RFC 4787 REQ-3's port
    /// preservation), then the ports from a random one on, around the range.
    #[inline(always)]
    pub const fn candidate(self, attempt: u32, own: Port, random: u32) -> Port {
        if attempt == 0 && self.contains(own.number()) {
            return own;
        }
        let size = self.size();
        // A multiplication in place of a remainder: maps 32 random bits evenly to 0..size.
        let start = ((random as u64 * size as u64) >> 32) as u32;
        // A range is never empty, but a remainder that cannot panic is one that the verifier takes.
        let at = match (start + attempt).checked_rem(size) {
            Some(at) => at,
            None => 0,
        };
        Port::new(self.first.wrapping_add(at as u16))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn candidates_are_in_the_range_and_differ(
            first in 1..=u16::MAX, length in prop_oneof![0..64_u16, 0..=u16::MAX], own in any::<u16>(), random in any::<u32>(),
        ) {
            let range = PortRange { first, last: first.saturating_add(length) };
            let mut seen = std::collections::HashSet::new();
            for attempt in 0..ATTEMPTS {
                let port = range.candidate(attempt, Port::new(own), random).number();
                prop_assert!(range.contains(port));
                // The client's own port may come up once more on the way round; beyond the size it all comes again.
                prop_assert!(seen.insert(port) || port == own || attempt >= range.size());
            }
        }
    }

    #[test]
    fn own_port_comes_first() {
        let range = PortRange { first: 1024, last: 65535 };
        assert_eq!(range.candidate(0, Port::new(40_000), 7).number(), 40_000);
        assert_ne!(range.candidate(0, Port::new(80), 7).number(), 80);
    }
}
