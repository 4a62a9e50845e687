//! The TCP flags that the two directions of a session have shown.

use crate::tcp;

/// The TCP flags that a direction has shown, and marks of the flags that the other one has.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Seen(u8);

impl Seen {
    /// No flags yet.
    pub const NOTHING: Self = Self(0);
    /// A SYN, which opens a connection.
    pub const SYN: Self = Self(tcp::SYN);
    /// The flags that a segment changes the session's state with.
    pub const FLAGS: u8 = tcp::SYN | tcp::FIN | tcp::RST;

    /// Returns the flags and marks as a byte.
    #[inline(always)]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Restores the flags and marks from [`bits`](Self::bits).
    #[inline(always)]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// Returns `true` if any of these flags is set.
    #[inline(always)]
    pub const fn any(self, flags: u8) -> bool {
        self.0 & flags != 0
    }

    /// Returns the flags with marks of the other direction's flags, so that one look is enough to
    /// know how long the session may be idle.
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

    /// Returns `true` if the connection is over. Valid for the client's direction, which has the
    /// marks.
    pub const fn is_over(self) -> bool {
        self.any(tcp::RST | Self::OTHER_RST) || (self.any(tcp::FIN) && self.any(Self::OTHER_FIN))
    }

    /// Returns `true` if the target has not answered the SYN. Valid for the client's direction.
    pub const fn is_unanswered(self) -> bool {
        self.any(Self::OTHER_SILENT)
    }

    /// Returns the flags with a reset that is exactly at the number that the other end expects.
    #[inline(always)]
    pub const fn with_reset(self) -> Self {
        self.without(Self::RESET_AHEAD).with(tcp::RST)
    }

    /// Returns `true` if there was a reset exactly at the number that the other end expected.
    #[inline(always)]
    pub(super) const fn has_reset(self) -> bool {
        self.0 & (tcp::RST | Self::RESET_AHEAD) == tcp::RST
    }

    /// Restores what is known of a direction from another table, without marks of the other
    /// direction's flags: its TCP flags, whether its reset was ahead of what the other end
    /// expected, and whether the numbers of both ends were adopted without proof.
    #[must_use]
    pub const fn restored(flags: u8, is_reset_ahead: bool, is_adopted: bool) -> Self {
        let ahead = if is_reset_ahead { Self::RESET_AHEAD } else { 0 };
        let adopted = if is_adopted { Self::ADOPTED } else { 0 };
        Self(flags & Self::FLAGS | ahead | adopted)
    }

    /// Returns what two tables together know of a direction, without marks of the other
    /// direction's flags.
    #[must_use]
    pub const fn united(self, other: Self) -> Self {
        let both = Self((self.0 | other.0) & (Self::FLAGS | Self::RESET_AHEAD | Self::ADOPTED));
        if self.has_reset() || other.has_reset() { both.without(Self::RESET_AHEAD) } else { both }
    }

    // Bits that are not flags.
    const OTHER_FIN: u8 = 0x80;
    const OTHER_RST: u8 = 0x40;
    const OTHER_SILENT: u8 = 0x20;
    /// A client's mark: the numbers of both ends were adopted without proof
    /// ([`Step::into_new_connection`](super::Step::into_new_connection)).
    pub(super) const ADOPTED: u8 = 0x10;
    /// The reset was not exactly at the number that the other end expected, see
    /// [`Track::after`](super::Track::after).
    pub(super) const RESET_AHEAD: u8 = 0x08;

    #[inline(always)]
    pub(super) const fn with(self, flags: u8) -> Self {
        Self(self.0 | flags)
    }

    #[inline(always)]
    pub(super) const fn without(self, flags: u8) -> Self {
        Self(self.0 & !flags)
    }
}
