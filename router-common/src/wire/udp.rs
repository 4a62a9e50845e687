//! The UDP header (RFC 768).

use core::mem::offset_of;

use network_types::udp::UdpHdr;

/// The source port.
pub const SOURCE_PORT: usize = offset_of!(UdpHdr, src);
/// The destination port.
pub const DESTINATION_PORT: usize = offset_of!(UdpHdr, dst);
/// The length of header and data.
pub const TOTAL_LENGTH: usize = offset_of!(UdpHdr, len);
/// The checksum; zero is "none".
pub const CHECKSUM: usize = offset_of!(UdpHdr, check);
