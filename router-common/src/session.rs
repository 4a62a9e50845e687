//! A session's state and time: what its two flows have shown.
//!
//! Each direction's entry records what that direction has done, so the data plane writes only the entry that it looked up.
//! The session's state is a pure function of the two records, computed by whoever reads both: the sweeper that expires
//! sessions, and the command line.

use crate::{flow::Protocol, packet::tcp};

/// Coarse monotonic time, in units of 2^30 ns (about 1.07 s): `CLOCK_MONOTONIC_COARSE` shifted right, because a shift is
/// what a packet can afford. Wraps after 146 years.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Ticks(pub u32);

impl Ticks {
    const SHIFT: u32 = 30;

    /// The tick at this many nanoseconds of `CLOCK_MONOTONIC`.
    #[inline(always)]
    pub const fn from_nanoseconds(nanoseconds: u64) -> Self {
        Self((nanoseconds >> Self::SHIFT) as u32)
    }

    /// Nanoseconds from an earlier tick to this one; 0 if it is not earlier.
    pub const fn nanoseconds_since(self, earlier: Self) -> u64 {
        (self.0.saturating_sub(earlier.0) as u64) << Self::SHIFT
    }
}

/// The TCP flags that a direction has shown since its last SYN.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Seen(u8);

impl Seen {
    /// None yet.
    pub const NOTHING: Self = Self(0);
    /// The flags that matter.
    pub const FLAGS: u8 = tcp::SYN | tcp::FIN | tcp::RST;

    /// After a packet with these TCP flags. A SYN starts over: a client may reuse the tuple of a connection that has ended
    /// (RFC 9293 3.6.1), and a retransmitted SYN changes nothing.
    #[inline(always)]
    pub const fn after(self, tcp_flags: u8) -> Self {
        let flags = tcp_flags & Self::FLAGS;
        if flags & tcp::SYN != 0 { Self(flags) } else { Self(self.0 | flags) }
    }

    /// Whether the direction has shown any of these flags.
    pub const fn any(self, flags: u8) -> bool {
        self.0 & flags != 0
    }
}

/// What one direction of a session has done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DirectionRecord {
    /// The TCP flags it has shown.
    pub seen: Seen,
    /// How many packets it has sent.
    pub packets: u64,
}

/// How far a session is.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum State {
    /// The target has not answered yet.
    Opening,
    /// Both sides have spoken.
    Established,
    /// One side of a TCP connection has sent its FIN.
    Closing,
    /// Both sides of a TCP connection have sent their FIN, or one has reset it.
    Closed,
}

impl State {
    /// The state of a session.
    pub fn of(protocol: Protocol, forward: DirectionRecord, reply: DirectionRecord) -> Self {
        let either = |flag| forward.seen.any(flag) || reply.seen.any(flag);
        match protocol {
            Protocol::Icmp | Protocol::Udp if reply.packets > 0 => Self::Established,
            Protocol::Icmp | Protocol::Udp => Self::Opening,
            Protocol::Tcp if either(tcp::RST) => Self::Closed,
            Protocol::Tcp if forward.seen.any(tcp::FIN) && reply.seen.any(tcp::FIN) => Self::Closed,
            Protocol::Tcp if either(tcp::FIN) => Self::Closing,
            Protocol::Tcp if forward.seen.any(tcp::SYN) && reply.seen.any(tcp::SYN) => Self::Established,
            Protocol::Tcp => Self::Opening,
        }
    }

    /// `opening`, `established`, `closing` or `closed`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Established => "established",
            Self::Closing => "closing",
            Self::Closed => "closed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(flags: &[u8]) -> DirectionRecord {
        let seen = flags.iter().fold(Seen::NOTHING, |seen, flags| seen.after(*flags));
        DirectionRecord { seen, packets: flags.len() as u64 }
    }

    fn tcp_state(forward: &[u8], reply: &[u8]) -> State {
        State::of(Protocol::Tcp, record(forward), record(reply))
    }

    #[test]
    fn tcp_opens_when_both_have_sent_syn() {
        assert_eq!(tcp_state(&[tcp::SYN], &[]), State::Opening);
        assert_eq!(tcp_state(&[tcp::SYN], &[tcp::SYN | tcp::ACK]), State::Established);
        assert_eq!(tcp_state(&[tcp::SYN, tcp::ACK], &[tcp::SYN | tcp::ACK, tcp::ACK]), State::Established);
    }

    #[test]
    fn tcp_closes_by_two_fins_or_one_reset() {
        let open = [tcp::SYN | tcp::ACK, tcp::ACK];
        assert_eq!(tcp_state(&[tcp::SYN, tcp::FIN | tcp::ACK], &open), State::Closing);
        assert_eq!(tcp_state(&[tcp::SYN], &[tcp::SYN | tcp::ACK, tcp::FIN | tcp::ACK]), State::Closing);
        assert_eq!(
            tcp_state(&[tcp::SYN, tcp::FIN | tcp::ACK], &[tcp::SYN | tcp::ACK, tcp::FIN | tcp::ACK]),
            State::Closed
        );
        assert_eq!(tcp_state(&[tcp::SYN, tcp::RST], &open), State::Closed);
        assert_eq!(tcp_state(&[tcp::SYN], &[tcp::RST | tcp::ACK]), State::Closed);
    }

    #[test]
    fn tcp_reopens_on_a_new_syn() {
        let forward = [tcp::SYN, tcp::FIN | tcp::ACK, tcp::SYN];
        let reply = [tcp::SYN | tcp::ACK, tcp::FIN | tcp::ACK, tcp::SYN | tcp::ACK];
        assert_eq!(tcp_state(&forward, &reply), State::Established);
    }

    #[test]
    fn udp_is_established_by_a_reply() {
        assert_eq!(State::of(Protocol::Udp, record(&[0]), record(&[])), State::Opening);
        assert_eq!(State::of(Protocol::Udp, record(&[0]), record(&[0])), State::Established);
    }

    #[test]
    fn ticks_are_about_a_second_and_never_negative() {
        let then = Ticks::from_nanoseconds(10 << 30);
        let now = Ticks::from_nanoseconds((12 << 30) + 5);
        assert_eq!(now.nanoseconds_since(then), 2 << 30);
        assert_eq!(then.nanoseconds_since(now), 0);
    }
}
