//! The IPv4 header (RFC 791 3.1).

use core::mem::offset_of;

use network_types::ip::Ipv4Hdr;

/// Version and header length.
pub const VERSION: usize = offset_of!(Ipv4Hdr, vihl);
/// The type of service.
pub const TOS: usize = offset_of!(Ipv4Hdr, tos);
/// The length of the whole packet.
pub const TOTAL_LENGTH: usize = offset_of!(Ipv4Hdr, tot_len);
/// The identification, which the fragments of one datagram share.
pub const IDENTIFICATION: usize = offset_of!(Ipv4Hdr, id);
/// Flags and fragment offset.
pub const FRAGMENT: usize = offset_of!(Ipv4Hdr, frags);
/// The time to live.
pub const TTL: usize = offset_of!(Ipv4Hdr, ttl);
/// The protocol.
pub const PROTOCOL: usize = offset_of!(Ipv4Hdr, proto);
/// The header checksum.
pub const CHECKSUM: usize = offset_of!(Ipv4Hdr, check);
/// The source address.
pub const SOURCE: usize = offset_of!(Ipv4Hdr, src_addr);
/// The destination address.
pub const DESTINATION: usize = offset_of!(Ipv4Hdr, dst_addr);

/// [`VERSION`] of a header without options.
pub const NO_OPTIONS: u8 = 0x45;
/// The flag "don't fragment" in [`FRAGMENT`].
pub const DONT_FRAGMENT: u16 = 0x4000;
/// The flag "more fragments" in [`FRAGMENT`].
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// The fragment offset in [`FRAGMENT`], in units of 8 bytes.
pub const FRAGMENT_OFFSET: u16 = 0x1fff;
/// If any of these bits of [`FRAGMENT`] is set, the packet is a fragment.
pub const IS_FRAGMENT: u16 = MORE_FRAGMENTS | FRAGMENT_OFFSET;
