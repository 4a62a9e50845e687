//! A session's state and time: what its two flows have shown.
//!
//! Each direction's entry records what that direction has done, so the data plane writes only the
//! entry that it looked up. The session's state is a pure function of the two records, computed by
//! whoever reads both: the sweeper that expires sessions, and the command line.
//!
//! # Forged segments
//!
//! Anybody who knows a connection's addresses and ports can send segments in the name of either
//! end, and guess numbers. So the state follows only segments whose numbers fit what both ends have
//! shown before ([`Track::fits`]), as connection tracking in the kernel has it (`tcp_in_window`,
//! net/netfilter/nf_conntrack_proto_tcp.c). Every segment passes on, genuine or not: its
//! receiver judges it better. Where a session counts as over that is not, its ends show it by what
//! they send next, and the session is what it was before.
//!
//! Two ends may begin another connection of the same tuple when both have forgotten the one
//! before, and nobody has seen that end: a Private Link Service gives its ports to others after
//! five idle minutes. None of its segments fits. An end that still had the old connection would
//! answer each of them with a segment that does (RFC 9293 3.10.7.4, RFC 5961 4.2). So the new one
//! is followed once both ends have sent segments that do not fit in [`RESYNCHRONISES_AFTER`] ticks
//! each, and neither one that does. That is no proof: segments that no end takes for its own (with
//! a wrong checksum, say) are answered by nobody. So the numbers serve to forward, by the fast
//! path, and nothing that is sent with them ends the session.
//!
//! The fast path sees one flow's entry. What it takes over without a look at the other
//! ([`End::continues`]) is what goes on from where this very end was last: both numbers of a segment
//! have to, which is one guess in 2^27 and more.

use crate::{
    tcp,
    tuple::{Direction, Protocol},
};

/// How many ticks each end of a connection has to send segments out of window in, and none within,
/// until they count as those of another connection. Ticks are longer than what kernels keep
/// between two answers to such segments (`net.ipv4.tcp_invalid_ratelimit`, 500 ms), so each tick
/// has had its answer if there is somebody to give it.
pub const RESYNCHRONISES_AFTER: u32 = 4;

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

    /// With marks of what the other direction has shown, so that one look tells how long the
    /// session may be idle.
    #[inline(always)]
    pub const fn with_other(self, other: Self) -> Self {
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
        Self(self.0 & (Self::FLAGS | Self::RESET_AHEAD | Self::ADOPTED) | marks)
    }

    /// Whether the connection is over, seen from the client's direction, which has the marks.
    pub const fn is_over(self) -> bool {
        self.any(tcp::RST | Self::OTHER_RST) || (self.any(tcp::FIN) && self.any(Self::OTHER_FIN))
    }

    /// Whether the target has not answered the SYN, seen from the client's direction.
    pub const fn is_unanswered(self) -> bool {
        self.any(Self::OTHER_SILENT)
    }

    /// As if it had shown a reset as well, exactly where the other end expected it.
    #[inline(always)]
    pub const fn with_reset(self) -> Self {
        self.without(Self::RESET_AHEAD).and(tcp::RST)
    }

    /// Returns `true` if it has shown a reset exactly where the other end expected it.
    #[inline(always)]
    const fn has_reset(self) -> bool {
        self.0 & (tcp::RST | Self::RESET_AHEAD) == tcp::RST
    }

    // Bits that are none of the flags.
    const OTHER_FIN: u8 = 0x80;
    const OTHER_RST: u8 = 0x40;
    const OTHER_SILENT: u8 = 0x20;
    /// Of a client: the numbers of both ends were adopted without proof ([`Step::into_new_connection`]).
    const ADOPTED: u8 = 0x10;
    /// Its reset was not exactly where the other end expected it: see [`Track::after`].
    const RESET_AHEAD: u8 = 0x08;

    #[inline(always)]
    const fn and(self, flags: u8) -> Self {
        Self(self.0 | flags)
    }

    #[inline(always)]
    const fn without(self, flags: u8) -> Self {
        Self(self.0 & !flags)
    }
}

/// A TCP segment, as far as the session's state goes. Numbers are in host byte order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Segment {
    /// Which way it goes.
    pub direction: Direction,
    /// Its flags.
    pub flags: u8,
    /// Its sequence number.
    pub sequence: u32,
    /// Its acknowledgement number, which counts if the flags say so.
    pub acknowledgement: u32,
    /// `true` if there is something behind its header.
    pub carries_data: bool,
}

impl Segment {
    /// The sequence number behind its SYN, or its own where it has none.
    #[inline(always)]
    pub const fn after_syn(&self) -> u32 {
        self.sequence.wrapping_add((self.flags & tcp::SYN != 0) as u32)
    }

    /// Returns `true` if it acknowledges what is before `number`, and hardly more: a SYN may carry
    /// data (RFC 7413).
    #[inline(always)]
    const fn acknowledges(&self, number: u32) -> bool {
        self.flags & tcp::ACK != 0 && self.acknowledgement.wrapping_sub(number) < End::STEP
    }
}

/// One end of a TCP connection, as its segments show it to whoever is in the middle.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct End {
    /// The flags that it has shown.
    pub seen: Seen,
    /// The sequence number that it expects next: its last acknowledgement (RCV.NXT of RFC 9293
    /// 3.3.1). Before it has acknowledged anything: what it will, if it takes the other end's SYN.
    /// 0 where there has been none.
    pub expects: u32,
    /// The upper half of the highest sequence number that it has begun a segment with (of SND.NXT,
    /// about).
    pub sent: u16,
}

impl End {
    const NEW: Self = Self { seen: Seen::NOTHING, expects: 0, sent: 0 };

    /// Bytes by which the fast path follows an acknowledgement: as many as a receiver puts together
    /// into one (`GRO_LEGACY_MAX_SIZE`).
    const STEP: u32 = 1 << 16;
    /// Bytes by which it follows a sequence number, from the last unit of `sent` on.
    const REACH: u32 = 17 << 16;

    /// Returns `true` if a segment with the flag ACK and none of SYN, FIN and RST goes on from
    /// where its sender, an end with these values of `expects` and `sent`, was last: it then
    /// expects `acknowledgement`, and has sent as far as the upper half of `sequence`. If not, only
    /// a look at the other end tells ([`Track::fits`]).
    #[inline(always)]
    pub const fn continues(expects: u32, sent: u16, sequence: u32, acknowledgement: u32) -> bool {
        acknowledgement.wrapping_sub(expects) < Self::STEP
            && sequence.wrapping_sub((sent as u32) << 16) < Self::REACH
    }
}

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
    /// The handshake is not over: the client has not acknowledged the target's SYN.
    pub opening: bool,
}

/// The changes that a segment makes to where the ends are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Moves {
    /// Its sender expects what it acknowledges.
    pub sender_expects: bool,
    /// Its sender has sent as far as its sequence number.
    pub sender_sent: bool,
    /// Its receiver expects what is behind its SYN ([`Segment::after_syn`]).
    pub receiver_expects: bool,
    /// Its receiver has sent as far as what it acknowledges.
    pub receiver_sent: bool,
}

impl Moves {
    const NONE: Self =
        Self { sender_expects: false, sender_sent: false, receiver_expects: false, receiver_sent: false };
    const ALL: Self =
        Self { sender_expects: true, sender_sent: true, receiver_expects: true, receiver_sent: true };
}

/// Where a segment is, as far as that says whose it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Window {
    /// Its numbers fit ([`Track::fits`]): an end of the connection has sent it.
    Inside,
    /// They do not: somebody else has sent it, or it is of another connection of the same tuple.
    Outside,
    /// It says nothing: its sender may not know the numbers yet (SYN), nor any more (RST).
    Unknown,
}

/// The outcome of a segment for a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Step {
    /// The connection after it, with its ends where they were.
    pub track: Track,
    /// The changes to where its ends are.
    pub moves: Moves,
    /// Where it is.
    pub window: Window,
}

impl Step {
    /// The step into another connection of the same tuple, whose handshake is over and which a
    /// segment with the flag ACK seems to be of: where both ends have sent segments out of window
    /// for [`RESYNCHRONISES_AFTER`] ticks each.
    #[inline(always)]
    pub const fn into_new_connection() -> Self {
        let client = End { seen: Seen::SYN.and(Seen::ADOPTED), ..End::NEW };
        let target = End { seen: Seen::SYN, ..End::NEW };
        let track = Track { client, target, opening: false };
        Self { track, moves: Moves::ALL, window: Window::Inside }
    }
}

impl Track {
    /// Bytes by which a segment may begin before what is expected, if it has been on its way for
    /// long.
    const BACK: u32 = 1 << 20;
    /// Bytes by which its acknowledgement may be before its sender's last one, if it was overtaken
    /// (`MAXACKWINDOW` of the kernel's).
    const ACKNOWLEDGED_BACK: u32 = 1 << 17;
    /// Bytes by which it may begin behind what its sender has sent so far, if what is between them
    /// was lost before it came here.
    const AHEAD: u32 = 1 << 20;
    /// The largest hole: the window of a connection over a long way.
    const HOLE: u32 = 1 << 24;
    /// The most that can be behind the number that a segment begins with, up to the next unit of
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

    /// Returns `true` if a segment goes on behind a hole: what is between it and what its sender
    /// has sent was lost before it came here, more than [`fits`](Self::fits) allows for. It has to
    /// acknowledge just what its sender expects.
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

    /// Returns `true` if a segment that fits is far before what its sender seems to have sent: that
    /// was another's segment, or has been lost and comes again.
    #[inline(always)]
    const fn was_ahead(&self, segment: &Segment) -> bool {
        let (sender, _) = self.ends(segment.direction);
        ((sender.sent as u32) << 16).wrapping_sub(segment.sequence) > Self::AHEAD
    }

    /// Returns the connection after a segment, but for where its ends are, and what is to be
    /// changed of that.
    ///
    /// - A SYN changes nothing on an open connection, whatever its sequence number: the target
    ///   answers it (RFC 5961 section 4). A client's on a connection that is over is none of its
    ///   segments: it opens another one, see [`Connection::is_over`].
    /// - A reset counts at exactly the number that its receiver expects (RFC 5961 section 3.2). One
    ///   that fits and is ahead of that, behind data that is on its way, counts until its receiver
    ///   goes on: that challenges it if it is still there.
    /// - A reset of the target's refuses an opening connection if it acknowledges the client's SYN
    ///   (RFC 9293 3.10.7.3).
    /// - A FIN counts if it fits.
    /// - While the connection opens, the last answer of the target's counts, and what either end
    ///   sends behind it says where they are: others may have sent the first ones. What it sends
    ///   without a SYN is an answer as well: its connection is older than the router knows.
    /// - Where the numbers were adopted without proof, neither resets nor FINs count.
    /// - Whoever has sent a genuine reset does not go on talking, nor does anybody send new data
    ///   behind a FIN. So if that side does, somebody else has sent the reset or the FIN: it is
    ///   forgotten. For a reset, this is so whatever the numbers are, since it only ever makes a
    ///   session stay. Data that fits and that its receiver has acknowledged is not new.
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
            // Of the client, nothing is known to be expected before the target has answered.
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
                sender.seen = sender.seen.and(tcp::RST | Seen::RESET_AHEAD);
            }
        } else if flags & tcp::SYN != 0 {
            // Before the target has answered, the client's SYN alone says what the target will
            // acknowledge. Of the target's answers, the last one counts, and whoever has sent a
            // reset does not answer: others may have sent the first ones.
            let target = if is_client { receiver.seen } else { sender.seen };
            let counts = if is_client {
                !target.any(tcp::SYN)
            } else {
                self.opening || !target.any(tcp::SYN) || target.any(tcp::RST)
            };
            if counts {
                sender.seen = sender.seen.without(tcp::RST | Seen::RESET_AHEAD).and(tcp::SYN);
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
                    sender.seen = sender.seen.and(flags & tcp::FIN);
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
                // If the answer that counts is another's, or the reset was, this shows where the
                // ends are.
                moves = Moves { receiver_sent: was_reset, ..Moves::ALL };
                sender.seen = sender.seen.and(tcp::SYN);
            } else if flags & tcp::ACK != 0 && !self.opening && !self.connection().is_over() {
                window = Window::Outside;
            }
            // What it acknowledges shows that it gets the target's answers.
            if self.opening
                && is_client
                && receiver.seen.any(tcp::SYN)
                && segment.acknowledges(sender.expects)
            {
                next.opening = false;
                // It also shows what the target expects, if another's SYN has come between the
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

    /// The flags that its ends have shown.
    #[inline(always)]
    pub const fn connection(&self) -> Connection {
        Connection { forward: self.client.seen, reply: self.target.seen, opening: self.opening }
    }
}

/// Returns `true` if a sequence number is another one, or behind it. They wrap (RFC 9293 3.4).
#[inline(always)]
const fn is_at_or_behind(number: u32, other: u32) -> bool {
    number.wrapping_sub(other) <= i32::MAX as u32
}

/// Returns `true` if a sequence number is between two others, which may be so themselves. They wrap
/// (RFC 9293 3.4).
#[inline(always)]
const fn is_between(number: u32, first: u32, last: u32) -> bool {
    number.wrapping_sub(first) <= last.wrapping_sub(first)
}

/// The flags that both directions of a TCP connection have shown.
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
    /// Returns `true` if the connection has ended, and not just by a reset that was ahead of data:
    /// its receiver has not said yet what it makes of that.
    #[inline(always)]
    pub const fn is_certainly_over(&self) -> bool {
        self.forward.has_reset()
            || self.reply.has_reset()
            || (self.forward.any(tcp::FIN) && self.reply.any(tcp::FIN))
    }

    /// Returns `true` if the connection has ended, as far as can be seen. A SYN of the client's
    /// then opens another one (RFC 9293 3.6.1: of TIME-WAIT, and of what has been refused or
    /// reset), which is judged like any first packet.
    #[inline(always)]
    pub const fn is_over(&self) -> bool {
        self.forward.any(tcp::RST)
            || self.reply.any(tcp::RST)
            || (self.forward.any(tcp::FIN) && self.reply.any(tcp::FIN))
    }

    /// Returns `true` if the target has not answered the client's SYN.
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
    /// The state of a session, from what its two flows have shown; `opening` is the forward flow's
    /// mark.
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
    use crate::{
        effort::tries,
        tuple::Direction::{Forward, Reply},
    };

    const SYN_ACK: u8 = tcp::SYN | tcp::ACK;
    const FIN_ACK: u8 = tcp::FIN | tcp::ACK;
    const RST_ACK: u8 = tcp::RST | tcp::ACK;

    /// The numbers that the client and the target begin with: one of them goes round soon.
    const CLIENT: u32 = 0xffff_ff00;
    const TARGET: u32 = 0x8000_0000;

    /// The data path's part of a connection: the fast path, and the slow path behind it.
    #[derive(Clone, Copy)]
    struct Middle(Track, Notes);

    /// Notes beside the connection in its two entries, the client's first.
    #[derive(Clone, Copy, Debug, Default)]
    struct Notes {
        now: u32,
        /// The next hop is known: packets take the fast path.
        known: [bool; 2],
        /// In how many ticks there were segments out of window, and the last of them.
        ticks: [u32; 2],
        last: [u32; 2],
    }

    impl Middle {
        fn new() -> Self {
            let client = End { seen: Seen::SYN, ..End::default() };
            Self(Track { client, opening: true, ..Track::default() }, Notes::default())
        }

        fn see(&mut self, segment: &Segment) {
            let Self(track, notes) = self;
            let is_client = matches!(segment.direction, Forward);
            let own = usize::from(!is_client);
            let is_fast = segment.flags & (Seen::FLAGS | tcp::ACK) == tcp::ACK && notes.known[own];
            let end = if is_client { &mut track.client } else { &mut track.target };
            if is_fast && End::continues(end.expects, end.sent, segment.sequence, segment.acknowledgement) {
                (end.expects, end.sent) = (segment.acknowledgement, (segment.sequence >> 16) as u16);
                return;
            }
            let mut step = track.after(segment);
            if matches!(step.window, Window::Outside)
                && notes.ticks.iter().all(|ticks| *ticks >= RESYNCHRONISES_AFTER)
            {
                step = Step::into_new_connection();
            }
            *track = step.track.moved(segment, step.moves);
            track.client.seen = track.client.seen.with_other(track.target.seen);
            let is_outside = matches!(step.window, Window::Outside);
            match step.window {
                Window::Inside => notes.ticks = [0; 2],
                Window::Outside if notes.ticks[own] == 0 || notes.last[own] != notes.now => {
                    notes.ticks[own] += 1;
                    notes.last[own] = notes.now;
                }
                Window::Outside | Window::Unknown => {}
            }
            let is_over = track.connection().is_over();
            if is_over || is_outside {
                notes.known = [false; 2];
            }
            notes.known[own] =
                !is_over && !is_outside && (!track.opening || !is_client) && notes.ticks == [0; 2];
        }

        fn state(&self) -> State {
            self.0.connection().state()
        }
    }

    const fn segment(direction: Direction, flags: u8, sequence: u32, acknowledgement: u32) -> Segment {
        Segment { direction, flags, sequence, acknowledgement, carries_data: false }
    }

    /// Two ends that send what they should, and who is in the middle.
    #[derive(Clone, Copy)]
    struct Talk {
        middle: Middle,
        /// The numbers that the client and the target send next.
        next: [u32; 2],
    }

    impl Talk {
        fn new() -> Self {
            Self { middle: Middle::new(), next: [CLIENT, TARGET] }
        }

        fn established() -> Self {
            let mut talk = Self::new();
            talk.open();
            talk
        }

        fn open(&mut self) {
            self.say(Forward, tcp::SYN, 0);
            self.say(Reply, SYN_ACK, 0);
            self.say(Forward, tcp::ACK, 0);
            assert_eq!(self.middle.state(), State::Established);
        }

        /// A genuine segment with so many bytes of data, of an end that has got all that the other
        /// has sent.
        fn genuine(&self, direction: Direction, flags: u8, data: u32) -> Segment {
            let own = usize::from(matches!(direction, Reply));
            let acknowledgement = if flags & tcp::ACK == 0 { 0 } else { self.next[1 - own] };
            Segment { carries_data: data > 0, ..segment(direction, flags, self.next[own], acknowledgement) }
        }

        fn say(&mut self, direction: Direction, flags: u8, data: u32) {
            let segment = self.genuine(direction, flags, data);
            let own = usize::from(matches!(direction, Reply));
            let length = data + u32::from(flags & (tcp::SYN | tcp::FIN) != 0);
            self.next[own] = self.next[own].wrapping_add(length);
            self.middle.see(&segment);
        }

        /// So much data, in segments as they are on wires; and what acknowledges it.
        fn transfer(&mut self, direction: Direction, data: u32) {
            let mut left = data;
            while left > 0 {
                let now = left.min(1448);
                self.say(direction, tcp::ACK, now);
                left -= now;
            }
            self.say(if matches!(direction, Forward) { Reply } else { Forward }, tcp::ACK, 0);
        }

        fn after(mut self, segments: &[(Direction, u8)]) -> State {
            for (direction, flags) in segments {
                self.say(*direction, *flags, 0);
            }
            self.middle.state()
        }
    }

    fn after_open(segments: &[(Direction, u8)]) -> State {
        Talk::established().after(segments)
    }

    #[test]
    fn tcp_opens_by_three_steps() {
        let new = Talk::new();
        assert_eq!(new.after(&[(Forward, tcp::SYN)]), State::Opening);
        assert_eq!(
            new.after(&[(Forward, tcp::SYN), (Reply, SYN_ACK)]),
            State::Opening,
            "a flood gets this far"
        );
        assert_eq!(new.after(&[(Forward, tcp::SYN), (Forward, tcp::ACK)]), State::Opening, "to nothing");
        assert_eq!(after_open(&[]), State::Established);
        let mut blind = new;
        blind.say(Forward, tcp::SYN, 0);
        blind.say(Reply, SYN_ACK, 0);
        blind.middle.see(&segment(Forward, tcp::ACK, CLIENT + 1, TARGET - 1));
        assert_eq!(blind.middle.state(), State::Opening, "to what has not been sent");
    }

    #[test]
    fn a_refused_connection_is_not_opening() {
        let mut talk = Talk::new();
        talk.say(Forward, tcp::SYN, 0);
        for (direction, flags, sequence, acknowledgement) in [
            (Reply, RST_ACK, 0, CLIENT),
            (Reply, RST_ACK, 0, TARGET),
            (Reply, tcp::RST, 0, 0),
            (Forward, tcp::RST, 7, 0),
        ] {
            talk.middle.see(&segment(direction, flags, sequence, acknowledgement));
            assert_eq!(talk.middle.state(), State::Opening, "blind");
        }
        let mut refused = talk;
        refused.middle.see(&segment(Reply, RST_ACK, 0, CLIENT + 1));
        assert_eq!(refused.middle.state(), State::Closed);
        assert!(!refused.middle.0.opening);
        talk.say(Forward, tcp::RST, 0);
        assert_eq!(talk.middle.state(), State::Closed);
        assert!(talk.middle.0.opening, "a flood may send that as well");
    }

    #[test]
    fn tcp_opens_from_both_sides_at_once() {
        let mut middle = Middle::new();
        middle.see(&segment(Forward, tcp::SYN, 1000, 0));
        middle.see(&segment(Reply, tcp::SYN, 5000, 0));
        middle.see(&segment(Forward, SYN_ACK, 1000, 5001));
        middle.see(&segment(Reply, SYN_ACK, 5000, 1001));
        assert_eq!(middle.state(), State::Opening);
        middle.see(&segment(Forward, tcp::ACK, 1001, 5001));
        assert_eq!(middle.state(), State::Established);
    }

    /// Forged segments at any moment of a handshake, up to three at once.
    #[test]
    fn forged_handshakes_do_not_keep_a_connection_from_opening() {
        let forged = [
            segment(Forward, tcp::SYN, 0x4000_0000, 0),
            segment(Reply, SYN_ACK, 0x2000_0000, 0x4000_0001),
            segment(Reply, SYN_ACK, 0x2000_0000, 0x6000_0000),
            segment(Reply, RST_ACK, 0, 0x4000_0001),
            segment(Reply, tcp::RST, 0x2000_0001, 0),
            segment(Forward, tcp::RST, 0x4000_0001, 0),
            segment(Forward, tcp::ACK, 0x4000_0001, 0x2000_0001),
        ];
        let some = || std::iter::once(None).chain(forged.into_iter().map(Some));
        let orders = some().flat_map(|a| some().flat_map(move |b| some().map(move |c| (a, b, c))));
        for (first, second, third) in orders.step_by(tries(1, 97) as usize) {
            for at in 0..3 {
                let what = format!("{first:?} {second:?} {third:?} at {at}");
                let mut talk = Talk::new();
                for (turn, (direction, flags)) in
                    [(Forward, tcp::SYN), (Reply, SYN_ACK), (Forward, tcp::ACK)].into_iter().enumerate()
                {
                    talk.say(direction, flags, 0);
                    if turn == at {
                        [first, second, third].iter().flatten().for_each(|one| talk.middle.see(one));
                    }
                }
                for _ in 0..2 {
                    talk.transfer(Forward, 100);
                    talk.transfer(Reply, 100);
                }
                assert_eq!(talk.middle.state(), State::Established, "{what}");
                // Where a handshake was forged as a whole, its numbers stay.
                let is_whole =
                    third.is_some() || [first, second].iter().flatten().any(|one| one.flags == tcp::ACK);
                if is_whole {
                    continue;
                }
                for direction in [Forward, Reply] {
                    let reset = talk.genuine(direction, RST_ACK, 0);
                    let mut talk = talk;
                    talk.middle.see(&reset);
                    assert_eq!(talk.middle.state(), State::Closed, "{what}");
                }
            }
        }
    }

    /// Some megabytes are lost before they come here, what follows them is not, and they come
    /// again.
    #[test]
    fn a_large_hole_is_filled() {
        let segments = tries(4096, 64);
        for (direction, other) in [(Forward, Reply), (Reply, Forward)] {
            let mut talk = Talk::established();
            let own = usize::from(matches!(direction, Reply));
            let start = talk.next[own];
            talk.next[own] = start.wrapping_add(segments * 1024);
            for _ in 0..segments / 2 {
                talk.say(direction, tcp::ACK, 1024);
            }
            let end = talk.next[own];
            talk.next[own] = start;
            for _ in 0..segments {
                talk.say(direction, tcp::ACK, 1024);
            }
            talk.next[own] = end;
            talk.say(other, tcp::ACK, 0);
            talk.transfer(direction, 100_000);
            talk.say(direction, tcp::RST, 0);
            assert_eq!(talk.middle.state(), State::Closed);
        }
    }

    #[test]
    fn tcp_closes_by_two_fins_or_one_reset() {
        assert_eq!(after_open(&[(Forward, FIN_ACK)]), State::Closing);
        assert_eq!(after_open(&[(Reply, FIN_ACK)]), State::Closing);
        assert_eq!(after_open(&[(Forward, FIN_ACK), (Reply, tcp::ACK), (Reply, FIN_ACK)]), State::Closed);
        assert_eq!(after_open(&[(Forward, tcp::RST)]), State::Closed);
        assert_eq!(after_open(&[(Reply, RST_ACK)]), State::Closed);
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
    }

    /// RFC 5961 3.2: exactly there.
    #[test]
    fn a_reset_counts_at_what_its_receiver_expects() {
        for (offset, expected) in [
            (0, State::Closed),
            (1, State::Established),
            (-1_i32, State::Established),
            (1 << 16, State::Established),
            (1 << 24, State::Established),
        ] {
            for direction in [Forward, Reply] {
                let mut talk = Talk::established();
                let genuine = talk.genuine(direction, tcp::RST, 0);
                let sequence = genuine.sequence.wrapping_add_signed(offset);
                talk.middle.see(&Segment { sequence, ..genuine });
                assert_eq!(talk.middle.state(), expected, "{direction:?} {offset}");
            }
        }
    }

    /// Segments of a connection whose ends have begun it anew, unseen, with numbers of their own.
    fn begun_anew(mut talk: Talk, numbers: [u32; 2]) -> Talk {
        talk.next = numbers;
        talk.say(Forward, tcp::SYN, 0);
        talk.say(Reply, SYN_ACK, 0);
        talk.say(Forward, tcp::ACK, 0);
        talk
    }

    #[test]
    fn a_connection_that_began_unseen_is_followed_after_a_while() {
        let mut half_closed = Talk::established();
        half_closed.say(Reply, FIN_ACK, 0);
        for old in [Talk::established(), half_closed] {
            let mut talk = begun_anew(old, [0x1234_5678, 0xfedc_ba98]);
            for _ in 0..RESYNCHRONISES_AFTER {
                let mut reset = talk;
                reset.say(Forward, tcp::RST, 0);
                assert_eq!(reset.middle.0, talk.middle.0, "it may be anybody's yet");
                talk.transfer(Forward, 3000);
                talk.transfer(Reply, 3000);
                talk.middle.1.now += 1;
            }
            talk.transfer(Forward, 300_000);
            talk.transfer(Reply, 300_000);
            assert_eq!(talk.middle.1.known, [true; 2], "it takes the fast path");
            // It may be anybody's still.
            for direction in [Forward, Reply] {
                let mut talk = talk;
                talk.say(direction, tcp::RST, 0);
                assert_eq!(talk.middle.state(), State::Established);
                talk.say(Forward, FIN_ACK, 0);
                talk.say(Reply, FIN_ACK, 0);
                assert_eq!(talk.middle.state(), State::Established);
                assert!(!talk.middle.0.connection().is_over());
            }
        }
    }

    /// Segments that no end takes for its own, and so answers none: whatever they make of an idle
    /// connection, they cannot end it, and its ends are followed again when they go on.
    #[test]
    fn an_idle_connection_is_not_ended_by_unanswered_segments() {
        let mut talk = Talk::established();
        let (client, target) = (0x1234_5678, 0xfedc_ba98);
        for tick in 0..=RESYNCHRONISES_AFTER {
            talk.middle.1.now = tick;
            talk.middle.see(&segment(Reply, tcp::ACK, target, client));
            talk.middle.see(&segment(Forward, tcp::ACK, client, target));
        }
        for flags in [tcp::RST, RST_ACK, FIN_ACK] {
            talk.middle.see(&segment(Forward, flags, client, target));
            talk.middle.see(&segment(Reply, flags, target, client));
            assert_eq!(talk.middle.state(), State::Established);
            assert!(!talk.middle.0.connection().is_over());
        }
        for tick in 10..16 {
            talk.middle.1.now = tick;
            talk.transfer(Forward, 3000);
            talk.transfer(Reply, 3000);
        }
        assert_eq!(talk.middle.1.known, [true; 2]);
    }

    /// An answer counts wherever it takes its way: a reset that is none does not have it
    /// overlooked.
    #[test]
    fn an_answer_is_seen_behind_resets() {
        let mut talk = Talk::established();
        talk.transfer(Forward, 3000);
        talk.transfer(Reply, 3000);
        let before = talk.middle.0;
        let (client, target) = (0x1234_5678, 0xfedc_ba98);
        for tick in 0..3 * RESYNCHRONISES_AFTER {
            talk.middle.1.now = tick;
            if tick < 2 * RESYNCHRONISES_AFTER {
                talk.middle.see(&segment(Reply, tcp::ACK, target, client));
                talk.middle.see(&segment(Forward, tcp::RST, 7, 0));
                talk.say(Forward, tcp::ACK, 0);
            } else {
                talk.middle.see(&segment(Forward, tcp::ACK, client, target));
            }
        }
        assert_eq!(talk.middle.0, before);
    }

    /// A SYN that was not the client's has made the router start a live connection over.
    #[test]
    fn a_connection_that_is_older_than_the_router_knows_is_established() {
        let mut talk = Talk::established();
        talk.transfer(Forward, 3000);
        talk.middle = Middle::new();
        talk.middle.see(&segment(Forward, tcp::SYN, 0x4000_0000, 0));
        talk.transfer(Forward, 3000);
        talk.transfer(Reply, 3000);
        assert_eq!(talk.middle.state(), State::Established);
        talk.transfer(Forward, 3000);
        assert_eq!(talk.middle.1.known, [true; 2]);
        talk.say(Reply, tcp::RST, 0);
        assert_eq!(talk.middle.state(), State::Closed);
    }

    /// One segment that has guessed right is far ahead of the others.
    #[test]
    fn a_segment_far_ahead_does_not_keep_the_others_in_the_slow_path() {
        for (direction, other) in [(Forward, Reply), (Reply, Forward)] {
            let mut talk = Talk::established();
            let next = talk.genuine(direction, tcp::ACK, 100);
            talk.middle.see(&Segment { sequence: next.sequence.wrapping_add(12 << 20), ..next });
            talk.transfer(direction, 1000);
            talk.transfer(other, 1000);
            let Track { client, target, .. } = talk.middle.0;
            let sender = if matches!(direction, Forward) { client } else { target };
            let own = usize::from(matches!(direction, Reply));
            assert_eq!(sender.sent, (talk.next[own] >> 16) as u16, "{direction:?}");
        }
    }

    #[test]
    fn one_end_alone_does_not_begin_anew() {
        for direction in [Forward, Reply] {
            let mut talk = Talk::established();
            let before = talk.middle.0;
            for tick in 0..100 {
                talk.middle.1.now = tick;
                talk.middle.see(&segment(direction, tcp::ACK, 0x1234_5678 + tick, 0xfedc_ba98));
            }
            assert_eq!(talk.middle.0, before);
        }
    }

    /// RFC 5961 3.2: what is ahead is not known to be genuine.
    #[test]
    fn a_reset_ahead_of_data_is_not_certain() {
        for direction in [Forward, Reply] {
            let mut talk = Talk::established();
            let ahead = talk.genuine(direction, tcp::RST, 0);
            talk.middle.see(&Segment {
                sequence: ahead.sequence.wrapping_add(1000),
                flags: RST_ACK,
                acknowledgement: talk.genuine(direction, tcp::ACK, 0).acknowledgement,
                ..ahead
            });
            let connection = talk.middle.0.connection();
            assert!(connection.is_over() && !connection.is_certainly_over(), "{direction:?}");
            talk.say(direction, tcp::RST, 0);
            assert!(talk.middle.0.connection().is_certainly_over());
        }
        let mut talk = Talk::established();
        talk.say(Forward, FIN_ACK, 0);
        assert!(!talk.middle.0.connection().is_over());
        talk.say(Reply, FIN_ACK, 0);
        assert!(talk.middle.0.connection().is_certainly_over());
    }

    /// Of data that its receiver has acknowledged, nothing follows about the FIN behind it.
    #[test]
    fn data_that_comes_again_behind_both_fins_takes_none_back() {
        for (direction, other) in [(Forward, Reply), (Reply, Forward)] {
            let mut talk = Talk::established();
            let data = talk.genuine(direction, tcp::ACK, 1000);
            talk.transfer(direction, 1000);
            talk.say(direction, FIN_ACK, 0);
            talk.say(other, FIN_ACK, 0);
            talk.say(direction, tcp::ACK, 0);
            assert_eq!(talk.middle.state(), State::Closed);
            talk.middle.see(&data);
            assert_eq!(talk.middle.state(), State::Closed, "{direction:?}");
            talk.say(direction, tcp::ACK, 1000);
            assert_eq!(talk.middle.state(), State::Closing, "the FIN was another's");
        }
    }

    /// An end that gives up with data on the way: its reset is behind that, and nobody acknowledges
    /// either.
    #[test]
    fn a_reset_behind_data_counts_until_its_receiver_goes_on() {
        for (direction, other) in [(Forward, Reply), (Reply, Forward)] {
            let mut talk = Talk::established();
            talk.say(direction, tcp::ACK, 1000);
            talk.say(direction, RST_ACK, 0);
            assert_eq!(talk.middle.state(), State::Closed);
            talk.say(other, tcp::ACK, 0);
            assert_eq!(talk.middle.state(), State::Established, "it was not taken for genuine");
            talk.say(direction, tcp::RST, 0);
            assert_eq!(talk.middle.state(), State::Closed, "that answers");
            talk.say(other, tcp::ACK, 0);
            assert_eq!(talk.middle.state(), State::Closed);
        }
    }

    #[test]
    fn others_are_established_by_a_reply() {
        for protocol in [Protocol::Udp, Protocol::Icmp] {
            assert_eq!(State::of(protocol, Seen::NOTHING, Seen::NOTHING, true), State::Opening);
            assert_eq!(State::of(protocol, Seen::NOTHING, Seen::NOTHING, false), State::Established);
        }
    }

    /// A segment that is nobody's, with numbers as far from the right ones as is said.
    fn forged() -> impl Strategy<Value = (bool, u8, bool, Option<i32>, Option<i32>)> {
        let offset = || {
            prop_oneof![
                Just(None),
                prop_oneof![-3..3_i32, any::<i32>(), -200_000..200_000_i32].prop_map(Some)
            ]
        };
        (any::<bool>(), any::<u8>(), any::<bool>(), offset(), offset())
    }

    proptest! {
        #![proptest_config(crate::effort::cases())]

        /// Any segments may be injected between those of two ends: if these go on talking, the session keeps its place; and
        /// when it has come to rest, it still knows a genuine end of the connection from others.
        #[test]
        fn a_connection_whose_ends_go_on_talking_keeps_its_place(
            rounds in proptest::collection::vec((proptest::collection::vec(forged(), 0..20), 0..tries(200_000, 5000), 0..tries(200_000, 5000)), 1..tries(10, 3) as usize),
        ) {
            let mut talk = Talk::established();
            for (forgeries, asked, answered) in rounds {
                for (is_reply, flags, carries_data, sequence, acknowledgement) in forgeries {
                    let direction = if is_reply { Reply } else { Forward };
                    let right = talk.genuine(direction, tcp::ACK, 0);
                    let off = |right: u32, offset: Option<i32>| offset.map_or(7, |offset| right.wrapping_add_signed(offset));
                    talk.middle.see(&Segment {
                        direction,
                        flags,
                        sequence: off(right.sequence, sequence),
                        acknowledgement: off(right.acknowledgement, acknowledgement),
                        carries_data,
                    });
                }
                talk.transfer(Forward, asked + 1);
                talk.transfer(Reply, answered + 1);
                let state = talk.middle.state();
                prop_assert!(matches!(state, State::Established | State::Closing), "{state:?}");
            }
        }

        /// No segment of somebody who knows the addresses and ports, but not the numbers, changes anything.
        #[test]
        fn blind_segments_change_nothing(
            segments in proptest::collection::vec((any::<bool>(), any::<u8>(), any::<u32>(), any::<u32>(), any::<bool>()), 0..200),
            talked in 0..tries(100_000, 5000),
        ) {
            let mut talk = Talk::established();
            talk.transfer(Forward, talked);
            talk.transfer(Reply, talked);
            let before = talk.middle.0;
            for (is_reply, flags, sequence, acknowledgement, carries_data) in segments {
                let direction = if is_reply { Reply } else { Forward };
                talk.middle.see(&Segment { direction, flags, sequence, acknowledgement, carries_data });
            }
            prop_assert_eq!(talk.middle.0, before);
        }

        /// Whatever segments come, for as long as they may: while one of the two ends answers those
        /// that it cannot accept, once a tick, nothing changes.
        #[test]
        fn an_end_that_answers_keeps_its_connection(
            segments in proptest::collection::vec((any::<bool>(), any::<u8>(), any::<u32>(), any::<u32>(), any::<bool>()), 0..200),
            target_answers in any::<bool>(),
        ) {
            let mut talk = Talk::established();
            let before = talk.middle.0;
            for (is_reply, flags, sequence, acknowledgement, carries_data) in segments {
                let direction = if is_reply { Reply } else { Forward };
                talk.middle.see(&Segment { direction, flags, sequence, acknowledgement, carries_data });
                // It gets what comes from the other end's side, and no resets (RFC 9293 3.10.7.4).
                if is_reply != target_answers && flags & tcp::RST == 0 {
                    talk.say(if target_answers { Reply } else { Forward }, tcp::ACK, 0);
                    talk.middle.1.now += 1;
                }
            }
            prop_assert_eq!(talk.middle.0, before);
        }

        /// Whatever the two sides send: what has opened does not count as opening again, and only resets and FINs of both sides
        /// end a connection.
        #[test]
        fn tcp_in_any_order(segments in proptest::collection::vec(forged(), 0..40)) {
            let mut talk = Talk::new();
            talk.say(Forward, tcp::SYN, 0);
            for (is_reply, flags, carries_data, sequence, acknowledgement) in segments {
                let direction = if is_reply { Reply } else { Forward };
                let before = talk.middle.0;
                let right = talk.genuine(direction, tcp::ACK, 0);
                talk.middle.see(&Segment {
                    direction,
                    flags,
                    sequence: sequence.map_or(7, |offset| right.sequence.wrapping_add_signed(offset)),
                    acknowledgement: acknowledgement.map_or(7, |offset| right.acknowledgement.wrapping_add_signed(offset)),
                    carries_data,
                });
                let next = talk.middle.0;
                prop_assert!(before.opening || !next.opening);
                if next.connection().is_over() && !before.connection().is_over() {
                    prop_assert!(flags & (tcp::FIN | tcp::RST) != 0);
                }
            }
        }

        /// Data of any size in either direction, in order: the fast path follows, or the slow path behind it.
        #[test]
        fn numbers_follow_a_connection(sizes in proptest::collection::vec((any::<bool>(), 1..tries(1_000_000, 5000)), 1..tries(200, 20) as usize)) {
            let mut talk = Talk::established();
            for (is_reply, size) in sizes {
                talk.transfer(if is_reply { Reply } else { Forward }, size);
                let Track { client, target, .. } = talk.middle.0;
                let receiver = if is_reply { client } else { target };
                prop_assert_eq!(receiver.expects, talk.next[usize::from(is_reply)]);
            }
            for direction in [Forward, Reply] {
                let mut talk = talk;
                talk.say(direction, tcp::RST, 0);
                prop_assert_eq!(talk.middle.state(), State::Closed);
            }
        }
    }
}
