//! A session's state and time: what its two flows have shown.
//!
//! Each direction's entry records what that direction has done, so the data plane writes only the entry that it looked up.
//! The session's state is a pure function of the two records, computed by whoever reads both: the sweeper that expires
//! sessions, and the command line.

use crate::{
    flow::{Direction, Protocol},
    packet::tcp,
};

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

/// The TCP flags that a direction has shown, and marks of what the other one has.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Seen(u8);

impl Seen {
    /// None yet.
    pub const NOTHING: Self = Self(0);
    /// A SYN: what opens a connection.
    pub const SYN: Self = Self(tcp::SYN);
    /// The flags that matter: a packet with one of them changes the session's state.
    pub const FLAGS: u8 = tcp::SYN | tcp::FIN | tcp::RST;

    /// As a byte.
    #[inline(always)]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// What [`bits`](Self::bits) gave.
    #[inline(always)]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// Whether the direction has shown any of these flags.
    #[inline(always)]
    pub const fn any(self, flags: u8) -> bool {
        self.0 & flags != 0
    }

    /// With marks of what the other direction has shown, so that one look tells how long the session may be idle.
    #[inline(always)]
    pub const fn beside(self, other: Self) -> Self {
        let mut marks = 0;
        if other.any(tcp::FIN) {
            marks |= Self::OTHER_FIN;
        }
        if other.any(tcp::RST) {
            marks |= Self::OTHER_RST;
        }
        if !other.any(tcp::SYN) {
            marks |= Self::OTHER_SILENT;
        }
        Self(self.0 & Self::FLAGS | marks)
    }

    /// Whether the connection is over, seen from the client's direction, which has the marks.
    pub const fn is_over(self) -> bool {
        self.any(tcp::RST | Self::OTHER_RST) || (self.any(tcp::FIN) && self.any(Self::OTHER_FIN))
    }

    /// Whether the target has not answered the SYN, seen from the client's direction.
    pub const fn is_unanswered(self) -> bool {
        self.any(Self::OTHER_SILENT)
    }

    /// As if it had shown a reset as well.
    #[inline(always)]
    pub const fn and_reset(self) -> Self {
        self.and(tcp::RST)
    }

    // Bits that are none of the flags.
    const OTHER_FIN: u8 = 0x80;
    const OTHER_RST: u8 = 0x40;
    const OTHER_SILENT: u8 = 0x20;

    #[inline(always)]
    const fn and(self, flags: u8) -> Self {
        Self(self.0 | flags)
    }

    #[inline(always)]
    const fn without(self, flags: u8) -> Self {
        Self(self.0 & !flags)
    }
}

/// A TCP packet, as far as the session's state goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Segment {
    /// Which way it goes.
    pub direction: Direction,
    /// Its flags.
    pub flags: u8,
    /// For a reset: whether its receiver could take it for genuine, see [`is_in_window`].
    pub in_window: bool,
    /// For an acknowledgement of the client's: whether it acknowledges what the target has sent. Who sends a SYN and then acknowledges
    /// blindly has not shown that it gets any answers.
    pub acknowledges: bool,
}

/// What both directions of a TCP connection have shown: the state machine of the session.
///
/// It follows RFC 5382 and RFC 7857 in what keeps a session and for how long, and RFC 6146 section 3.5.2.2 (to which RFC 7857
/// refers) in that a reset does not end a session at once.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Connection {
    /// The client's direction.
    pub forward: Seen,
    /// The target's direction.
    pub reply: Seen,
    /// The handshake is not over: the client has not acknowledged the target's SYN.
    pub opening: bool,
}

impl Connection {
    /// After a segment.
    ///
    /// - A SYN changes nothing, whatever its sequence number: the target answers it (RFC 5961 section 4). A client's on a connection that is
    ///   over is none of its segments: it opens another one, see [`is_over`](Self::is_over).
    /// - A reset outside the window changes nothing; the receiver will ignore it, too.
    /// - One of the target's to an opening connection refuses it, which ends the opening.
    /// - Whoever has sent a genuine reset does not go on talking. So if that side goes on, the reset was forged, or is forgotten:
    ///   the session is what it was before.
    #[inline(always)]
    pub const fn after(self, segment: Segment) -> Self {
        let Segment { direction, flags, in_window, acknowledges } = segment;
        let mut next = self;
        let (mut this, other) = match direction {
            Direction::Forward => (self.forward, self.reply),
            Direction::Reply => (self.reply, self.forward),
        };
        if flags & tcp::RST != 0 {
            if in_window {
                this = this.and(tcp::RST);
                next.opening &= matches!(direction, Direction::Forward);
            }
        } else {
            this = this.without(tcp::RST).and(flags & (tcp::SYN | tcp::FIN));
            if flags & (tcp::SYN | tcp::ACK) == tcp::ACK
                && matches!(direction, Direction::Forward)
                && other.any(tcp::SYN)
                && acknowledges
            {
                next.opening = false;
            }
        }
        match direction {
            Direction::Forward => next.forward = this,
            Direction::Reply => next.reply = this,
        }
        next
    }

    /// Whether the connection has ended, as far as can be seen. A SYN of the client's then opens another one (RFC 9293 3.6.1: of TIME-WAIT, and
    /// of what has been refused or reset), which is judged like any first packet.
    #[inline(always)]
    pub const fn is_over(&self) -> bool {
        self.forward.any(tcp::RST)
            || self.reply.any(tcp::RST)
            || (self.forward.any(tcp::FIN) && self.reply.any(tcp::FIN))
    }

    /// Whether the target has not answered the client's SYN.
    #[inline(always)]
    pub const fn is_unanswered(&self) -> bool {
        !self.reply.any(tcp::SYN)
    }

    /// How far it is.
    pub const fn state(&self) -> State {
        if self.is_over() {
            State::Closed
        } else if self.forward.any(tcp::FIN) || self.reply.any(tcp::FIN) {
            State::Closing
        } else if self.opening || self.is_unanswered() {
            State::Opening
        } else {
            State::Established
        }
    }
}

/// Whether a sequence number lies where one is to be expected after `acknowledged`: not before it, and not further on than any window
/// reaches in practice. Both as they stand in packets. An `acknowledged` of zero is "nothing yet", after which everything counts.
///
/// So a reset may be genuine to a receiver that has last sent `acknowledged` (Linux conntrack's rule, too), and an acknowledgement is not
/// blind where `acknowledged` follows the other side's SYN.
#[inline(always)]
pub const fn is_in_window(sequence: [u8; 4], acknowledged: [u8; 4]) -> bool {
    /// 16 MiB, as an offset in sequence numbers.
    const WINDOW: u32 = 1 << 24;
    let acknowledged = u32::from_be_bytes(acknowledged);
    acknowledged == 0 || u32::from_be_bytes(sequence).wrapping_sub(acknowledged) < WINDOW
}

/// How far a session is.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum State {
    /// The target has not answered yet, or the client has not finished TCP's handshake.
    Opening,
    /// Both sides have spoken.
    Established,
    /// One side of a TCP connection has sent its FIN.
    Closing,
    /// Both sides of a TCP connection have sent their FIN, or one has reset it.
    Closed,
}

impl State {
    /// The state of a session, from what its two flows have shown; `opening` is the forward flow's mark.
    pub const fn of(protocol: Protocol, forward: Seen, reply: Seen, opening: bool) -> Self {
        match protocol {
            Protocol::Icmp | Protocol::Udp if opening => Self::Opening,
            Protocol::Icmp | Protocol::Udp => Self::Established,
            Protocol::Tcp => Connection { forward, reply, opening }.state(),
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
    use proptest::prelude::*;

    use super::*;
    use crate::flow::Direction::{Forward, Reply};

    const SYN_ACK: u8 = tcp::SYN | tcp::ACK;
    const FIN_ACK: u8 = tcp::FIN | tcp::ACK;

    /// A segment whose numbers are right.
    const GOOD: Segment = Segment { direction: Forward, flags: 0, in_window: true, acknowledges: true };

    /// A connection after these segments, all with the right numbers.
    fn after(segments: &[(Direction, u8)]) -> Connection {
        let new = Connection { forward: Seen(tcp::SYN), opening: true, ..Connection::default() };
        segments.iter().fold(new, |connection, (direction, flags)| {
            connection.after(Segment { direction: *direction, flags: *flags, ..GOOD })
        })
    }

    const OPEN: [(Direction, u8); 2] = [(Reply, SYN_ACK), (Forward, tcp::ACK)];

    fn after_open(segments: &[(Direction, u8)]) -> State {
        after(&[&OPEN, segments].concat()).state()
    }

    #[test]
    fn tcp_opens_by_three_steps() {
        assert_eq!(after(&[]).state(), State::Opening);
        assert_eq!(after(&[(Forward, tcp::SYN)]).state(), State::Opening, "again");
        assert_eq!(after(&[(Reply, SYN_ACK)]).state(), State::Opening, "a flood gets this far");
        assert_eq!(after(&[(Forward, tcp::ACK)]).state(), State::Opening, "to nothing");
        assert_eq!(after_open(&[]), State::Established);
        let blind = Segment { flags: tcp::ACK, acknowledges: false, ..GOOD };
        assert_eq!(
            after(&[(Reply, SYN_ACK)]).after(blind).state(),
            State::Opening,
            "to what has not been sent"
        );
    }

    #[test]
    fn a_refused_connection_is_not_opening() {
        assert!(!after(&[(Reply, tcp::RST | tcp::ACK)]).opening);
        assert!(after(&[(Forward, tcp::RST)]).opening, "a flood may send that as well");
        let blind = Segment { direction: Reply, flags: tcp::RST, in_window: false, ..GOOD };
        assert!(after(&[]).after(blind).opening);
    }

    #[test]
    fn tcp_opens_from_both_sides_at_once() {
        let both = [(Reply, tcp::SYN), (Forward, SYN_ACK), (Reply, SYN_ACK)];
        assert_eq!(after(&both).state(), State::Opening);
        assert_eq!(after(&[&both[..], &[(Forward, tcp::ACK)]].concat()).state(), State::Established);
    }

    #[test]
    fn tcp_closes_by_two_fins_or_one_reset() {
        assert_eq!(after_open(&[(Forward, FIN_ACK)]), State::Closing);
        assert_eq!(after_open(&[(Reply, FIN_ACK)]), State::Closing);
        assert_eq!(after_open(&[(Forward, FIN_ACK), (Reply, tcp::ACK), (Reply, FIN_ACK)]), State::Closed);
        assert_eq!(after_open(&[(Forward, tcp::RST)]), State::Closed);
        assert_eq!(after_open(&[(Reply, tcp::RST | tcp::ACK)]), State::Closed);
        assert_eq!(after(&[(Reply, tcp::RST | tcp::ACK)]).state(), State::Closed, "refused");
    }

    #[test]
    fn a_syn_does_not_change_a_connection() {
        assert_eq!(after_open(&[(Forward, tcp::SYN)]), State::Established);
        assert_eq!(after_open(&[(Forward, FIN_ACK), (Forward, tcp::SYN)]), State::Closing);
        assert_eq!(after_open(&[(Reply, tcp::RST), (Forward, tcp::SYN)]), State::Closed);
    }

    #[test]
    fn a_reset_that_was_not_meant_is_forgotten() {
        assert_eq!(after_open(&[(Reply, tcp::RST), (Forward, tcp::ACK)]), State::Closed, "still on its way");
        assert_eq!(after_open(&[(Reply, tcp::RST), (Reply, tcp::ACK)]), State::Established);
        let outside = Segment { direction: Reply, flags: tcp::RST, in_window: false, ..GOOD };
        assert_eq!(after(&OPEN).after(outside), after(&OPEN));
    }

    #[test]
    fn resets_count_from_the_last_acknowledged_byte_on() {
        let ack = 0xffff_ff00_u32.to_be_bytes();
        for (sequence, counts) in [
            (0xffff_ff00, true),
            (0xffff_feff, false),
            (0x0000_0010, true),
            (0x0100_0000, false),
            (0x7fff_ff00, false),
        ] {
            assert_eq!(is_in_window(u32::to_be_bytes(sequence), ack), counts, "{sequence:#x}");
        }
        assert!(is_in_window([0; 4], [0; 4]), "an answer to a SYN");
    }

    #[test]
    fn others_are_established_by_a_reply() {
        for protocol in [Protocol::Udp, Protocol::Icmp] {
            assert_eq!(State::of(protocol, Seen::NOTHING, Seen::NOTHING, true), State::Opening);
            assert_eq!(State::of(protocol, Seen::NOTHING, Seen::NOTHING, false), State::Established);
        }
    }

    #[test]
    fn ticks_are_about_a_second_and_never_negative() {
        let then = Ticks::from_nanoseconds(10 << 30);
        let now = Ticks::from_nanoseconds((12 << 30) + 5);
        assert_eq!(now.nanoseconds_since(then), 2 << 30);
        assert_eq!(then.nanoseconds_since(now), 0);
    }

    proptest! {
        /// Whatever the two sides send: what has opened does not count as opening again, only resets and FINs of both sides end
        /// a connection, and only the resetting side goes on with an ended one.
        #[test]
        fn tcp_in_any_order(segments in proptest::collection::vec((any::<bool>(), any::<u8>(), any::<[bool; 2]>()), 0..40)) {
            let mut connection = after(&[]);
            for (reply, flags, [in_window, acknowledges]) in segments {
                let direction = if reply { Reply } else { Forward };
                let next = connection.after(Segment { direction, flags, in_window, acknowledges });
                prop_assert!(connection.opening || !next.opening);
                if next.is_over() && !connection.is_over() {
                    prop_assert!(flags & tcp::FIN != 0 || (flags & tcp::RST != 0 && in_window));
                }
                if connection.is_over() && !next.is_over() {
                    let resetter = if reply { connection.reply } else { connection.forward };
                    prop_assert!(resetter.any(tcp::RST) && flags & tcp::RST == 0);
                }
                connection = next;
            }
        }
    }
}
