//! The TCP flags that the two directions of a session have shown.

use crate::tcp;

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
        self.without(Self::RESET_AHEAD).with(tcp::RST)
    }

    /// Returns `true` if it has shown a reset exactly where the other end expected it.
    #[inline(always)]
    pub(super) const fn has_reset(self) -> bool {
        self.0 & (tcp::RST | Self::RESET_AHEAD) == tcp::RST
    }

    // Bits that are none of the flags.
    const OTHER_FIN: u8 = 0x80;
    const OTHER_RST: u8 = 0x40;
    const OTHER_SILENT: u8 = 0x20;
    /// Of a client: the numbers of both ends were adopted without proof ([`Step::into_new_connection`]).
    pub(super) const ADOPTED: u8 = 0x10;
    /// Its reset was not exactly where the other end expected it: see [`Track::after`].
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
