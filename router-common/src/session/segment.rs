//! TCP segments, and the ends that send them.

use super::seen::Seen;
use crate::{tcp, tuple::Direction};

/// The part of a TCP segment that matters to the session's state. Numbers are in host byte order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Segment {
    /// The direction that it is sent in.
    pub direction: Direction,
    /// Its flags.
    pub flags: u8,
    /// Its sequence number.
    pub sequence: u32,
    /// Its acknowledgement number, which is valid if the flags say so.
    pub acknowledgement: u32,
    /// `true` if data follows its header.
    pub carries_data: bool,
}

impl Segment {
    /// Returns the sequence number after its SYN, or its own if it has none.
    #[inline(always)]
    pub const fn after_syn(&self) -> u32 {
        self.sequence.wrapping_add((self.flags & tcp::SYN != 0) as u32)
    }

    /// Returns `true` if it acknowledges everything before `number`, and hardly more: a SYN may
    /// carry data (RFC 7413).
    #[inline(always)]
    pub(super) const fn acknowledges(&self, number: u32) -> bool {
        self.flags & tcp::ACK != 0 && self.acknowledgement.wrapping_sub(number) < End::STEP
    }
}

/// One end of a TCP connection, as its segments show it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct End {
    /// The flags that it has shown.
    pub seen: Seen,
    /// The sequence number that it expects next: its last acknowledgement (RCV.NXT of RFC 9293
    /// 3.3.1). Before it has acknowledged anything, the number that it will acknowledge if it
    /// accepts the other end's SYN. 0 if there was none.
    pub expects: u32,
    /// The upper half of the highest sequence number that it has begun a segment with (about
    /// SND.NXT).
    pub sent: u16,
}

impl End {
    pub(super) const NEW: Self = Self { seen: Seen::NOTHING, expects: 0, sent: 0 };

    /// Bytes by which the fast path follows an acknowledgement: as many as a receiver merges into
    /// one (`GRO_LEGACY_MAX_SIZE`).
    const STEP: u32 = 1 << 16;
    /// Bytes by which the fast path follows a sequence number, from the last unit of `sent` on.
    const REACH: u32 = 17 << 16;

    /// Returns `true` if a segment with the flag ACK and none of SYN, FIN and RST continues where
    /// its sender was last, an end with these values of `expects` and `sent`. The sender then
    /// expects `acknowledgement`, and has sent as far as the upper half of `sequence`. If not, a
    /// look at the other end decides ([`Track::fits`](super::Track::fits)).
    #[inline(always)]
    pub const fn continues(expects: u32, sent: u16, sequence: u32, acknowledgement: u32) -> bool {
        acknowledgement.wrapping_sub(expects) < Self::STEP
            && sequence.wrapping_sub((sent as u32) << 16) < Self::REACH
    }
}
