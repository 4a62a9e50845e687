//! The Ethernet header (IEEE 802.3).

use core::mem::offset_of;

use network_types::eth::{EthHdr, EtherType};

/// The destination address.
pub const DESTINATION: usize = offset_of!(EthHdr, dst_addr);
/// The source address.
pub const SOURCE: usize = offset_of!(EthHdr, src_addr);
/// The EtherType, or the length of an LLC frame.
pub const TYPE: usize = offset_of!(EthHdr, ether_type);

/// Smaller values of the field are a length, and LLC follows (IEEE 802.3 3.2.6).
pub const FIRST_TYPE: u16 = 0x0600;
/// The EtherType of IPv4.
pub const IPV4: [u8; 2] = (EtherType::Ipv4 as u16).to_ne_bytes();
/// The EtherType of IPv6.
pub const IPV6: [u8; 2] = (EtherType::Ipv6 as u16).to_ne_bytes();
/// The EtherType of a VLAN tag.
pub const VLAN: [u8; 2] = (EtherType::Ieee8021q as u16).to_ne_bytes();
/// The EtherType of a service VLAN tag (IEEE 802.1ad).
pub const SERVICE_VLAN: [u8; 2] = (EtherType::Ieee8021ad as u16).to_ne_bytes();
/// The EtherType of ARP.
pub const ARP: [u8; 2] = (EtherType::Arp as u16).to_ne_bytes();
