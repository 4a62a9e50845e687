//! The TCP state machine: what a segment does to a connection.

use super::{
    seen::Seen,
    segment::{End, Segment},
    state::Connection,
};
use crate::{tcp, tuple::Direction};

/// The number of ticks in which each end of a connection has to send segments out of window, and
/// none within, until the segments count as those of another connection. Ticks are longer than the
/// interval that kernels keep between two answers to such segments
/// (`net.ipv4.tcp_invalid_ratelimit`, 500 ms), so there is an answer in each tick if an end still
/// has the connection.
pub const RESYNCHRONISES_AFTER: u32 = 4;

/// Both ends of a TCP connection: the state machine of the session.
///
/// It follows RFC 5382 and RFC 7857 in what keeps a session and for how long, RFC 6146 section
/// 3.5.2.2 (to which RFC 7857 refers) in that a reset does not end a session at once, and RFC 5961
/// in which resets count.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Track {
    /// The client.
    pub client: End,
    /// The target.
    pub target: End,
    /// `true` until the client has acknowledged the target's SYN.
    pub opening: bool,
}

/// The changes that a segment makes to the positions of the ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Moves {
    /// The sender expects what the segment acknowledges.
    pub sender_expects: bool,
    /// The sender has sent as far as the segment's sequence number.
    pub sender_sent: bool,
    /// The receiver expects the number after the segment's SYN ([`Segment::after_syn`]).
    pub receiver_expects: bool,
    /// The receiver has sent as far as the segment acknowledges.
    pub receiver_sent: bool,
}

impl Moves {
    const NONE: Self =
        Self { sender_expects: false, sender_sent: false, receiver_expects: false, receiver_sent: false };
    const ALL: Self =
        Self { sender_expects: true, sender_sent: true, receiver_expects: true, receiver_sent: true };
}

/// The place of a segment, as evidence of which connection it belongs to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Window {
    /// Its numbers fit ([`Track::fits`]): an end of the connection has sent it.
    Inside,
    /// Its numbers do not fit: it is forged, or belongs to another connection of the same tuple.
    Outside,
    /// It is no evidence: its sender may not know the numbers yet (SYN), or not any more (RST).
    Unknown,
}

/// The effect of a segment on a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Step {
    /// The connection after it, with its ends where they were.
    pub track: Track,
    /// The changes to the positions of its ends.
    pub moves: Moves,
    /// The place of the segment.
    pub window: Window,
}

impl Step {
    /// Returns the step into another connection of the same tuple, whose handshake is over and
    /// which a segment with the flag ACK seems to belong to: both ends have sent segments out of
    /// window for [`RESYNCHRONISES_AFTER`] ticks each.
    #[inline(always)]
    pub const fn into_new_connection() -> Self {
        let client = End { seen: Seen::SYN.with(Seen::ADOPTED), ..End::NEW };
        let target = End { seen: Seen::SYN, ..End::NEW };
        let track = Track { client, target, opening: false };
        Self { track, moves: Moves::ALL, window: Window::Inside }
    }
}

impl Track {
    /// Bytes by which a segment may begin before what is expected, if it was delayed for long.
    const BACK: u32 = 1 << 20;
    /// Bytes by which its acknowledgement may be before its sender's last one, if it was overtaken
    /// (the kernel's `MAXACKWINDOW`).
    const ACKNOWLEDGED_BACK: u32 = 1 << 17;
    /// Bytes by which it may begin after what its sender has sent so far, if the segments between
    /// were lost before they came here.
    const AHEAD: u32 = 1 << 20;
    /// The largest hole: the window of a connection over a long distance.
    const HOLE: u32 = 1 << 24;
    /// The most that can follow the number that a segment begins with, up to the next unit of
    /// `sent`.
    const SEGMENT: u32 = 2 << 16;

    /// Returns `true` if a segment's numbers fit what both ends have shown: it begins not long
    /// before what its receiver expects, nor far ahead of what its sender has sent; and what it
    /// acknowledges has been sent.
    #[inline(always)]
    pub const fn fits(&self, segment: &Segment) -> bool {
        let (sender, receiver) = self.ends(segment.direction);
        segment.flags & tcp::ACK != 0
            && is_between(
                segment.sequence,
                receiver.expects.wrapping_sub(Self::BACK),
                ((sender.sent as u32) << 16).wrapping_add(Self::SEGMENT + Self::AHEAD),
            )
            && is_between(
                segment.acknowledgement,
                sender.expects.wrapping_sub(Self::ACKNOWLEDGED_BACK),
                ((receiver.sent as u32) << 16).wrapping_add(Self::SEGMENT),
            )
    }

    /// Returns `true` if a segment continues after a hole: more was lost before it came here than
    /// [`fits`](Self::fits) allows for. It has to acknowledge exactly what its sender expects.
    #[inline(always)]
    const fn is_ahead(&self, segment: &Segment) -> bool {
        let (sender, receiver) = self.ends(segment.direction);
        segment.acknowledges(sender.expects)
            && is_between(
                segment.sequence,
                receiver.expects,
                ((sender.sent as u32) << 16).wrapping_add(Self::HOLE),
            )
    }

    /// Returns `true` if a segment that fits is far before what its sender seems to have sent. Then
    /// the segment ahead was forged, or this one was lost and is sent again.
    #[inline(always)]
    const fn was_ahead(&self, segment: &Segment) -> bool {
        let (sender, _) = self.ends(segment.direction);
        ((sender.sent as u32) << 16).wrapping_sub(segment.sequence) > Self::AHEAD
    }

    /// Returns the connection after a segment, except for the positions of its ends, and the
    /// changes to these.
    ///
    /// - A SYN changes nothing on an open connection, whatever its sequence number: the target
    ///   answers it (RFC 5961 section 4). A client's SYN on a connection that is over is no segment
    ///   of it: it opens another one, see [`Connection::is_over`].
    /// - A reset counts at exactly the number that its receiver expects (RFC 5961 section 3.2). A
    ///   reset that fits and is ahead of that number, after data that is still in flight, counts
    ///   until its receiver goes on: a receiver that is still there challenges it.
    /// - A reset of the target's refuses an opening connection if it acknowledges the client's SYN
    ///   (RFC 9293 3.10.7.3).
    /// - A FIN counts if it fits.
    /// - While the connection opens, the last answer of the target's counts, and later segments of
    ///   either end show their positions: earlier answers may be forged. A segment of the target's
    ///   without a SYN is an answer as well: its connection is older than the router knows.
    /// - If the numbers were adopted without proof, neither resets nor FINs count.
    /// - An end that has sent a genuine reset does not go on sending, and no end sends new data
    ///   after its FIN. So if that end does, the reset or the FIN was forged, and is forgotten. For
    ///   a reset, that is so whatever the numbers are, since forgetting it only makes a session
    ///   stay. Data that fits and that its receiver has acknowledged is not new.
    #[inline(always)]
    pub const fn after(self, segment: &Segment) -> Step {
        let (mut sender, mut receiver) = self.ends(segment.direction);
        let mut next = self;
        let mut moves = Moves::NONE;
        let mut window = Window::Unknown;
        let fits = self.fits(segment);
        let is_client = matches!(segment.direction, Direction::Forward);
        let flags = segment.flags;
        let is_adopted = self.client.seen.any(Seen::ADOPTED);
        if flags & tcp::RST != 0 {
            // Before the target has answered, it is not known what the client expects.
            let is_exact = !is_adopted
                && segment.sequence == receiver.expects
                && (is_client || sender.seen.any(tcp::SYN));
            let refuses = !is_client
                && self.opening
                && !sender.seen.any(tcp::SYN)
                && flags & tcp::ACK != 0
                && segment.acknowledgement == sender.expects;
            if is_exact || refuses {
                sender.seen = sender.seen.with_reset();
                next.opening &= is_client;
            } else if fits
                && !is_adopted
                && !self.opening
                && !sender.seen.any(tcp::RST)
                && is_at_or_behind(segment.sequence, receiver.expects)
            {
                sender.seen = sender.seen.with(tcp::RST | Seen::RESET_AHEAD);
            }
        } else if flags & tcp::SYN != 0 {
            // Before the target has answered, the client's SYN alone says what the target will
            // acknowledge. The last of the target's answers counts, since earlier ones may be
            // forged, and a target that has sent a reset does not answer.
            let target = if is_client { receiver.seen } else { sender.seen };
            let counts = if is_client {
                !target.any(tcp::SYN)
            } else {
                self.opening || !target.any(tcp::SYN) || target.any(tcp::RST)
            };
            if counts {
                sender.seen = sender.seen.without(tcp::RST | Seen::RESET_AHEAD).with(tcp::SYN);
                moves = Moves { sender_expects: flags & tcp::ACK != 0, receiver_sent: false, ..Moves::ALL };
            }
        } else {
            let was_reset = sender.seen.any(tcp::RST);
            let is_finished = sender.seen.any(tcp::FIN) && receiver.seen.any(tcp::FIN);
            let comes_again = fits && !is_at_or_behind(segment.sequence, receiver.expects);
            if is_finished && segment.carries_data && !comes_again {
                sender.seen = sender.seen.without(tcp::FIN);
            }
            sender.seen = sender.seen.without(tcp::RST | Seen::RESET_AHEAD);
            if fits {
                window = Window::Inside;
                if !is_adopted {
                    sender.seen = sender.seen.with(flags & tcp::FIN);
                }
                if receiver.seen.any(Seen::RESET_AHEAD) {
                    receiver.seen = receiver.seen.without(tcp::RST | Seen::RESET_AHEAD);
                }
                moves = Moves {
                    sender_expects: is_at_or_behind(segment.acknowledgement, sender.expects),
                    sender_sent: (segment.sequence >> 16) as u16 != sender.sent
                        && (is_at_or_behind(segment.sequence, (sender.sent as u32) << 16)
                            || self.was_ahead(segment)),
                    ..Moves::NONE
                };
            } else if self.is_ahead(segment) {
                window = Window::Inside;
                moves = Moves { sender_sent: true, ..Moves::NONE };
            } else if flags & tcp::ACK != 0 && (was_reset || self.opening && !is_client) {
                // If the answer that counts or the reset was forged, this shows where the ends are.
                moves = Moves { receiver_sent: was_reset, ..Moves::ALL };
                sender.seen = sender.seen.with(tcp::SYN);
            } else if flags & tcp::ACK != 0 && !self.opening && !self.connection().is_over() {
                window = Window::Outside;
            }
            // Its acknowledgement shows that it receives the target's answers.
            if self.opening
                && is_client
                && receiver.seen.any(tcp::SYN)
                && segment.acknowledges(sender.expects)
            {
                next.opening = false;
                // It also shows what the target expects, if a forged SYN has come between the
                // client's and its answer.
                moves = Moves { receiver_sent: false, ..Moves::ALL };
            }
        }
        Step { track: next.with(segment.direction, sender, receiver), moves, window }
    }

    /// Returns the connection with its ends where a segment has moved them.
    #[inline(always)]
    pub const fn moved(self, segment: &Segment, moves: Moves) -> Self {
        let (mut sender, mut receiver) = self.ends(segment.direction);
        if moves.sender_expects {
            sender.expects = segment.acknowledgement;
        }
        if moves.sender_sent {
            sender.sent = (segment.sequence >> 16) as u16;
        }
        if moves.receiver_expects {
            receiver.expects = segment.after_syn();
        }
        if moves.receiver_sent {
            receiver.sent = (segment.acknowledgement >> 16) as u16;
        }
        self.with(segment.direction, sender, receiver)
    }

    #[inline(always)]
    const fn ends(&self, direction: Direction) -> (End, End) {
        match direction {
            Direction::Forward => (self.client, self.target),
            Direction::Reply => (self.target, self.client),
        }
    }

    #[inline(always)]
    const fn with(mut self, direction: Direction, sender: End, receiver: End) -> Self {
        (self.client, self.target) = match direction {
            Direction::Forward => (sender, receiver),
            Direction::Reply => (receiver, sender),
        };
        self
    }

    /// Returns the flags that its ends have shown.
    #[inline(always)]
    pub const fn connection(&self) -> Connection {
        Connection { forward: self.client.seen, reply: self.target.seen, opening: self.opening }
    }
}

/// Returns `true` if a sequence number is equal to another one, or after it. Sequence numbers wrap
/// (RFC 9293 3.4).
#[inline(always)]
const fn is_at_or_behind(number: u32, other: u32) -> bool {
    number.wrapping_sub(other) <= i32::MAX as u32
}

/// Returns `true` if a sequence number is between two others, or equal to one of them. Sequence
/// numbers wrap (RFC 9293 3.4).
#[inline(always)]
const fn is_between(number: u32, first: u32, last: u32) -> bool {
    number.wrapping_sub(first) <= last.wrapping_sub(first)
}
