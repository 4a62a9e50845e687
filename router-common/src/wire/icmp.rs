//! The ICMP header (RFC 792), and the types of messages.

use core::mem::offset_of;

use network_types::icmp::{IcmpDstUnreachable, IcmpIdSequence, Icmpv4Hdr};

/// The type.
pub const TYPE: usize = offset_of!(Icmpv4Hdr, type_);
/// The code.
pub const CODE: usize = offset_of!(Icmpv4Hdr, code);
/// The checksum.
pub const CHECKSUM: usize = offset_of!(Icmpv4Hdr, check);
/// The identifier of an echo.
pub const IDENTIFIER: usize = offset_of!(Icmpv4Hdr, data) + offset_of!(IcmpIdSequence, id);
/// The next hop's MTU of "fragmentation needed" (RFC 1191 4).
pub const MTU: usize = offset_of!(Icmpv4Hdr, data) + offset_of!(IcmpDstUnreachable, mtu);

/// The type of an echo reply.
pub const ECHO_REPLY: u8 = 0;
/// The type of "destination unreachable".
pub const UNREACHABLE: u8 = 3;
/// The type of "source quench".
pub const SOURCE_QUENCH: u8 = 4;
/// The type of a redirect.
pub const REDIRECT: u8 = 5;
/// The type of an echo request.
pub const ECHO_REQUEST: u8 = 8;
/// The type of "time exceeded".
pub const TIME_EXCEEDED: u8 = 11;
/// The type of "parameter problem".
pub const PARAMETER_PROBLEM: u8 = 12;

/// The code of "destination unreachable" that says "fragmentation needed".
pub const FRAGMENTATION_NEEDED: u8 = 4;

/// Returns `true` for the type of an error message (RFC 1122 3.2.2).
#[inline(always)]
pub const fn is_error(kind: u8) -> bool {
    is_end_to_end_error(kind) || kind == REDIRECT
}

/// Returns `true` for the type of an error message that goes to the sender of the packet. A
/// redirect goes to the last router only.
#[inline(always)]
pub const fn is_end_to_end_error(kind: u8) -> bool {
    matches!(kind, UNREACHABLE | SOURCE_QUENCH | TIME_EXCEEDED | PARAMETER_PROBLEM)
}
