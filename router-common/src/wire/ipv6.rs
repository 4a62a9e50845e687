//! The IPv6 header (RFC 8200 3).

use core::mem::offset_of;

use network_types::ip::Ipv6Hdr;

/// Version, traffic class and flow label.
pub const VERSION: usize = offset_of!(Ipv6Hdr, vcf);
/// The length of what follows the header.
pub const PAYLOAD_LENGTH: usize = offset_of!(Ipv6Hdr, payload_len);
/// The next header's protocol.
pub const NEXT_HEADER: usize = offset_of!(Ipv6Hdr, next_hdr);
/// The hop limit.
pub const HOP_LIMIT: usize = offset_of!(Ipv6Hdr, hop_limit);
/// The source address.
pub const SOURCE: usize = offset_of!(Ipv6Hdr, src_addr);
/// The destination address.
pub const DESTINATION: usize = offset_of!(Ipv6Hdr, dst_addr);
