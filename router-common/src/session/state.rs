//! The states of a session, as the sweep and the operator see them.

use super::seen::Seen;
use crate::{tcp, tuple::Protocol};

/// The flags that both directions of a TCP connection have shown.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Connection {
    /// The client's direction.
    pub forward: Seen,
    /// The target's direction.
    pub reply: Seen,
    /// `true` until the client has acknowledged the target's SYN.
    pub opening: bool,
}

impl Connection {
    /// Returns `true` if the connection has ended, and not only by a reset that was ahead of data:
    /// the receiver of such a reset may still challenge it.
    #[inline(always)]
    pub const fn is_certainly_over(&self) -> bool {
        self.forward.has_reset()
            || self.reply.has_reset()
            || (self.forward.any(tcp::FIN) && self.reply.any(tcp::FIN))
    }

    /// Returns `true` if the connection has ended, as far as the router can see. A SYN of the
    /// client's then opens another one (RFC 9293 3.6.1: of TIME-WAIT, and of what was refused or
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

    /// Returns the connection's state.
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

/// The state of a session.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum State {
    /// The target has not answered yet, or the client has not finished TCP's handshake.
    Opening,
    /// Both sides have sent packets.
    Established,
    /// One side of a TCP connection has sent its FIN.
    Closing,
    /// Both sides of a TCP connection have sent their FIN, or one has reset it.
    Closed,
}

impl State {
    /// Returns the state of a session whose two flows have shown these flags; `opening` is the
    /// forward flow's mark.
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
