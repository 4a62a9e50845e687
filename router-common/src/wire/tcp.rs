//! The TCP header (RFC 9293 3.1). [`crate::tcp`] has the flags.

use core::mem::offset_of;

use network_types::tcp::TcpHdr;

/// The source port.
pub const SOURCE_PORT: usize = offset_of!(TcpHdr, source);
/// The destination port.
pub const DESTINATION_PORT: usize = offset_of!(TcpHdr, dest);
/// The sequence number.
pub const SEQUENCE: usize = offset_of!(TcpHdr, seq);
/// The acknowledgement number.
pub const ACKNOWLEDGEMENT: usize = offset_of!(TcpHdr, ack_seq);
/// The header length, in words of 4 bytes, in the upper half of the byte.
pub const DATA_OFFSET: usize = offset_of!(TcpHdr, _bitfield_1);
/// The flags.
pub const FLAGS: usize = DATA_OFFSET + 1;
/// The checksum.
pub const CHECKSUM: usize = offset_of!(TcpHdr, check);
