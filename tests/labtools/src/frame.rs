//! The frames that programs of `labtools` make and look at: Ethernet (RFC 894), IPv4 without
//! options, TCP (RFC 9293) or UDP (RFC 768).

use aya_ebpf::programs::XdpContext;

use crate::traffic::HEAD;

pub(crate) const ETHER_DESTINATION: usize = 0;
pub(crate) const ETHER_SOURCE: usize = 6;
pub(crate) const ETHER_TYPE: usize = 12;
pub(crate) const IP_START: usize = 14;
pub(crate) const IP_PROTOCOL: usize = 23;
pub(crate) const IP_CHECKSUM: usize = 24;
pub(crate) const IP_SOURCE: usize = 26;
pub(crate) const IP_DESTINATION: usize = 30;
/// TCP's and UDP's ports.
pub(crate) const SOURCE_PORT: usize = 34;
pub(crate) const DESTINATION_PORT: usize = 36;
pub(crate) const UDP_CHECKSUM: usize = 40;
pub(crate) const UDP_PAYLOAD: usize = 42;
pub(crate) const TCP_CHECKSUM: usize = 50;
pub(crate) const TCP_PAYLOAD: usize = 54;

/// IP protocol numbers.
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// The length of the first bytes of a frame; every frame of the bench has as many.
#[inline(always)]
pub(crate) fn head(ctx: &XdpContext) -> Option<*mut [u8; HEAD]> {
    let start = ctx.data();
    if start + HEAD > ctx.data_end() { None } else { Some(start as *mut [u8; HEAD]) }
}

/// Returns `true` if a packet has this protocol, over IPv4 without options.
#[inline(always)]
pub(crate) fn is_of(head: &[u8; HEAD], protocol: u8) -> bool {
    word(head, ETHER_TYPE) == [0x08, 0x00] && head[IP_START] == 0x45 && head[IP_PROTOCOL] == protocol
}

#[inline(always)]
pub(crate) fn word(head: &[u8; HEAD], at: usize) -> [u8; 2] {
    [head[at], head[at + 1]]
}

#[inline(always)]
pub(crate) fn quad(head: &[u8; HEAD], at: usize) -> u32 {
    u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
}

#[inline(always)]
pub(crate) fn set_word(head: &mut [u8; HEAD], at: usize, value: [u8; 2]) {
    [head[at], head[at + 1]] = value;
}

/// Has the `N` bytes at two places change places.
#[inline(always)]
pub(crate) fn swap<const N: usize>(head: &mut [u8; HEAD], a: usize, b: usize) {
    for offset in 0..N {
        head.swap(a + offset, b + offset);
    }
}
