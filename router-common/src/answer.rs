//! What the router says itself: ICMP errors about packets that it does not forward, and resets.

use crate::{
    address::{Address as _, Ipv4},
    checksum::Sum,
    flow::Protocol,
    icmp,
    packet::{ETHERNET_LENGTH, ETHERTYPE_IPV4, IPV4_LENGTH, L4, UDP_HEADERS, field, tcp},
};

/// What an answer has to know of a packet: its IP header (without options) and the 8 bytes behind it. It is what errors quote (RFC 792).
pub const ABOUT: usize = IPV4_LENGTH + 8;
/// The length of a frame with an ICMP error.
pub const ERROR_FRAME: usize = UDP_HEADERS + ABOUT;
/// The length of a frame with a reset: what is the least on an Ethernet, the last bytes are padding.
pub const RESET_FRAME: usize = 60;

const TTL: u8 = 64;
/// Internetwork control (RFC 1812 4.3.2.5).
const ERROR_TOS: u8 = 0xc0;
const DONT_FRAGMENT: [u8; 2] = [0x40, 0];
const FRAGMENT_OFFSET: u16 = 0x1fff;

/// An ICMP error's type and code.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Error {
    /// The type.
    pub kind: u8,
    /// The code.
    pub code: u8,
    /// The next hop's MTU, where that is what it tells (RFC 1191); else 0.
    pub mtu: u16,
}

impl Error {
    /// The time to live ended here.
    pub const TIME_EXCEEDED: Self = Self { kind: 11, code: 0, mtu: 0 };
    /// There is nothing to open a session with: RFC 5508 REQ-8 asks for "communication administratively prohibited".
    pub const PROHIBITED: Self = Self { kind: 3, code: 13, mtu: 0 };

    /// Not to be fragmented, and larger than this.
    #[inline(always)]
    pub const fn too_big(mtu: u16) -> Self {
        Self { kind: 3, code: 4, mtu }
    }
}

/// Whether an address is one that a single host sends from or is reached by, anywhere.
#[inline(always)]
const fn is_host(address: Ipv4) -> bool {
    address.is_unicast() && address.0[0] != 127
}

#[inline(always)]
const fn address(about: &[u8; ABOUT], at: usize) -> Ipv4 {
    Ipv4([about[at % ABOUT], about[(at + 1) % ABOUT], about[(at + 2) % ABOUT], about[(at + 3) % ABOUT]])
}

/// Who sent a packet.
#[inline(always)]
pub const fn source(about: &[u8; ABOUT]) -> Ipv4 {
    address(about, 12)
}

/// Whom a packet is for.
#[inline(always)]
pub const fn destination(about: &[u8; ABOUT]) -> Ipv4 {
    address(about, 16)
}

/// Whether a packet may be answered at all (RFC 1122 3.2.2, RFC 1812 4.3.2.7): not if it is an ICMP error itself, a later fragment, or
/// was sent by or to anything but one host.
#[inline(always)]
pub const fn may_be_answered(destination_mac: [u8; 6], about: &[u8; ABOUT]) -> bool {
    destination_mac[0] & 1 == 0
        && is_host(source(about))
        && is_host(destination(about))
        && u16::from_be_bytes([about[6], about[7]]) & FRAGMENT_OFFSET == 0
        && !(about[9] == Protocol::Icmp as u8 && icmp::is_error(about[IPV4_LENGTH]))
}

/// Writes an ICMP error about a packet, from an address of the router's to who sent it. The Ethernet addresses are another matter.
#[inline(always)]
pub fn write_error(frame: &mut [u8; ERROR_FRAME], about: &[u8; ABOUT], from: Ipv4, error: Error) {
    write_ip(frame, ERROR_TOS, Protocol::Icmp, from, source(about));
    let [high, low] = error.mtu.to_be_bytes();
    let header = [error.kind, error.code, 0, 0, 0, 0, high, low];
    let [first, second] = sum(&header).plus(sum(about)).checksum();
    *field::<L4, 8, _>(frame) = [error.kind, error.code, first, second, 0, 0, high, low];
    *field::<UDP_HEADERS, ABOUT, _>(frame) = *about;
}

/// Writes the reset that answers a SYN which opens nothing (RFC 9293 3.10.7.1): as if the packet's destination had sent it.
/// `header_length` is that of the SYN's TCP header.
#[inline(always)]
pub fn write_reset(frame: &mut [u8; RESET_FRAME], about: &[u8; ABOUT], header_length: u8) {
    let (from, to) = (destination(about), source(about));
    let ip_length = u16::from_be_bytes([about[2], about[3]]);
    // The SYN counts as one byte, and may have brought others.
    let data = ip_length.saturating_sub(IPV4_LENGTH as u16 + u16::from(header_length));
    let sequence = u32::from_be_bytes([about[24], about[25], about[26], about[27]]);
    let [a, b, c, d] = sequence.wrapping_add(1).wrapping_add(u32::from(data)).to_be_bytes();
    let [e, f, g, h] = [about[22], about[23], about[20], about[21]];
    let flags = tcp::RST | tcp::ACK;
    let header = [e, f, g, h, 0, 0, 0, 0, a, b, c, d, 0x50, flags, 0, 0, 0, 0, 0, 0];
    let pseudo = from.sum().plus(to.sum()).add([0, Protocol::Tcp as u8]).add([0, 20]);
    write_ip(frame, 0, Protocol::Tcp, from, to);
    *field::<L4, 20, _>(frame) = header;
    *field::<{ L4 + 16 }, 2, _>(frame) = pseudo.plus(sum(&header)).checksum();
    *field::<{ L4 + 20 }, 6, _>(frame) = [0; 6];
}

/// Writes the EtherType, and the IP header of a frame that is as long as it says, or of a reset.
#[inline(always)]
fn write_ip<const N: usize>(frame: &mut [u8; N], tos: u8, protocol: Protocol, from: Ipv4, to: Ipv4) {
    let length = match protocol {
        Protocol::Tcp => IPV4_LENGTH + 20,
        Protocol::Udp | Protocol::Icmp => N - ETHERNET_LENGTH,
    } as u16;
    let [high, low] = length.to_be_bytes();
    let [f, g] = DONT_FRAGMENT;
    let start = [0x45, tos, high, low, 0, 0, f, g, TTL, protocol as u8, 0, 0];
    *field::<{ ETHERNET_LENGTH - 2 }, 2, _>(frame) = ETHERTYPE_IPV4;
    *field::<ETHERNET_LENGTH, 12, _>(frame) = start;
    *field::<{ ETHERNET_LENGTH + 10 }, 2, _>(frame) = sum(&start).plus(from.sum()).plus(to.sum()).checksum();
    *field::<{ ETHERNET_LENGTH + 12 }, 4, _>(frame) = from.0;
    *field::<{ ETHERNET_LENGTH + 16 }, 4, _>(frame) = to.0;
}

#[inline(always)]
fn sum<const N: usize>(bytes: &[u8; N]) -> Sum {
    let (words, _) = bytes.as_chunks::<2>();
    let mut sum = Sum::ZERO;
    for word in words {
        sum = sum.add(*word);
    }
    sum
}

/// Keeps answers to a rate (RFC 1812 4.3.2.8): [`Bucket::BURST`] at once, and one more each [`Bucket::INTERVAL`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Bucket {
    /// When the bucket will be full again, in nanoseconds.
    full: u64,
}

impl Bucket {
    /// Answers that may be given at once.
    pub const BURST: u64 = 100;
    /// Nanoseconds for each.
    pub const INTERVAL: u64 = 1_000_000;

    /// Whether one more may be given now; then it is counted.
    #[inline(always)]
    pub const fn take(&mut self, now: u64) -> bool {
        let full = if self.full < now { now } else { self.full };
        if full - now > (Self::BURST - 1) * Self::INTERVAL {
            return false;
        }
        self.full = full + Self::INTERVAL;
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn about(protocol: u8, source: [u8; 4], destination: [u8; 4]) -> [u8; ABOUT] {
        let mut about = [0; ABOUT];
        about[0] = 0x45;
        about[3] = 60;
        about[9] = protocol;
        about[12..16].copy_from_slice(&source);
        about[16..20].copy_from_slice(&destination);
        about
    }

    #[test]
    fn only_packets_between_two_hosts_are_answered() {
        let hosts = ([10, 0, 0, 1], [192, 0, 2, 1]);
        assert!(may_be_answered(MAC, &about(17, hosts.0, hosts.1)));
        assert!(!may_be_answered([0xff; 6], &about(17, hosts.0, hosts.1)), "sent to all on the link");
        for nobody in [[0; 4], [255; 4], [224, 0, 0, 1], [127, 0, 0, 1]] {
            assert!(!may_be_answered(MAC, &about(6, nobody, hosts.1)), "from {nobody:?}");
            assert!(!may_be_answered(MAC, &about(6, hosts.0, nobody)), "to {nobody:?}");
        }
        for kind in 0..=u8::MAX {
            let mut echo = about(1, hosts.0, hosts.1);
            echo[20] = kind;
            assert_eq!(may_be_answered(MAC, &echo), ![3, 4, 5, 11, 12].contains(&kind), "type {kind}");
        }
        for (fragment, answered) in
            [([0x40, 0], true), ([0x20, 0], true), ([0x20, 1], false), ([0x1f, 0], false)]
        {
            let mut packet = about(17, hosts.0, hosts.1);
            packet[6..8].copy_from_slice(&fragment);
            assert_eq!(may_be_answered(MAC, &packet), answered, "{fragment:x?}");
        }
    }

    #[test]
    fn a_burst_and_then_a_rate() {
        let mut bucket = Bucket::default();
        let start = 5_000_000_000;
        let burst = (0..1000).filter(|_| bucket.take(start)).count() as u64;
        assert_eq!(burst, Bucket::BURST);
        assert!(!bucket.take(start + Bucket::INTERVAL - 1));
        assert!(bucket.take(start + Bucket::INTERVAL));
        assert!(!bucket.take(start + Bucket::INTERVAL));
        // A second of more than enough questions.
        let later = (0..10_000).filter(|at| bucket.take(start + Bucket::INTERVAL + at * 100_000)).count();
        assert_eq!(later, 999);
    }

    proptest! {
        #[test]
        fn errors_have_right_checksums(about in any::<[u8; ABOUT]>(), from in any::<[u8; 4]>(), mtu in any::<u16>()) {
            for error in [Error::TIME_EXCEEDED, Error::PROHIBITED, Error::too_big(mtu)] {
                let mut frame = [0xee; ERROR_FRAME];
                write_error(&mut frame, &about, Ipv4(from), error);
                prop_assert!(Sum::ZERO.add_bytes(&frame[14..34]).is_intact());
                prop_assert!(Sum::ZERO.add_bytes(&frame[34..]).is_intact());
                prop_assert_eq!(&frame[42..], &about[..]);
                prop_assert_eq!(frame[40..42].to_vec(), error.mtu.to_be_bytes());
            }
        }

        #[test]
        fn resets_acknowledge_the_syn_and_its_data(
            about in any::<[u8; ABOUT]>(), words in 5..=15_u8, data in 0..1000_u16,
        ) {
            let mut about = about;
            about[2..4].copy_from_slice(&(20 + u16::from(words) * 4 + data).to_be_bytes());
            let mut frame = [0xee; RESET_FRAME];
            write_reset(&mut frame, &about, words * 4);
            prop_assert!(Sum::ZERO.add_bytes(&frame[14..34]).is_intact());
            let pseudo = [&frame[26..34], &[0, 6, 0, 20]].concat();
            prop_assert!(Sum::ZERO.add_bytes(&pseudo).add_bytes(&frame[34..54]).is_intact());
            let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().expect("four bytes"));
            prop_assert_eq!(number(&frame[42..46]), number(&about[24..28]).wrapping_add(1 + u32::from(data)));
            prop_assert_eq!(&frame[54..], &[0; 6], "no old bytes leave");
        }
    }
}
