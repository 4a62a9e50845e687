//! The router's own answers: ICMP errors about packets that it does not forward, and TCP resets.

use crate::{
    address::Ipv4,
    checksum::Sum,
    packet::pseudo_header,
    rate::{Rate, TokenBucket},
    reason::Reason,
    tcp,
    tuple::Protocol,
    wire::{
        ETHERNET_LENGTH, ICMP_HEADERS, ICMP_LENGTH, IPV4_LENGTH, L4, TCP_HEADERS, TCP_LENGTH, ethernet,
        field, field_mut, icmp, ipv4, tcp as tcp_header,
    },
};

/// The length of what an answer is made from: a packet's IP header (without options) and the 8
/// bytes after it. ICMP errors quote this (RFC 792).
pub const QUOTE_LENGTH: usize = IPV4_LENGTH + QUOTED;
const QUOTED: usize = 8;
/// The length of a frame with an ICMP error.
pub const ERROR_FRAME: usize = ICMP_HEADERS + QUOTE_LENGTH;
/// The length of a frame with a reset: the least of an Ethernet frame. The last bytes are padding.
pub const RESET_FRAME: usize = 60;

const TTL: u8 = 64;
/// Internetwork control (RFC 1812 4.3.2.5).
const ERROR_TOS: u8 = 0xc0;

/// An ICMP error's type and code.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Error {
    /// The type.
    pub kind: u8,
    /// The code.
    pub code: u8,
    /// The next hop's MTU for "fragmentation needed" (RFC 1191); else 0.
    pub mtu: u16,
}

impl Error {
    /// The time to live ended here.
    pub const TIME_EXCEEDED: Self = Self { kind: icmp::TIME_EXCEEDED, code: 0, mtu: 0 };
    /// There is no route (RFC 1812 5.2.7.1).
    pub const NETWORK_UNREACHABLE: Self = Self { kind: icmp::UNREACHABLE, code: 0, mtu: 0 };
    /// There is a route, but not to this host: its next hop does not answer (RFC 1812 5.2.7.1).
    pub const HOST_UNREACHABLE: Self = Self { kind: icmp::UNREACHABLE, code: 1, mtu: 0 };
    /// The router has no target for this port (RFC 1122 3.2.2.1).
    pub const PORT_UNREACHABLE: Self = Self { kind: icmp::UNREACHABLE, code: 3, mtu: 0 };
    /// A route forbids it (RFC 1812 5.2.7.1), or there is no port to open a session with, for which
    /// RFC 5508 REQ-8 asks for "communication administratively prohibited".
    pub const PROHIBITED: Self = Self { kind: icmp::UNREACHABLE, code: 13, mtu: 0 };

    /// Larger than this MTU, and not to be fragmented.
    #[inline(always)]
    pub const fn too_big(mtu: u16) -> Self {
        Self { kind: icmp::UNREACHABLE, code: icmp::FRAGMENTATION_NEEDED, mtu }
    }
}

/// The reply to a packet that is not forwarded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Reply {
    /// The reason that an answered packet is counted under.
    pub reason: Reason,
    /// The ICMP error.
    pub error: Error,
    /// The TCP packets that get a reset instead.
    pub reset: Reset,
}

/// The TCP packets that are answered by a reset and not by an error.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reset {
    /// None: the connection may outlive the present trouble.
    Never,
    /// Packets that would open a connection to this machine's own address. It answers for the
    /// target like a host. And an ICMP error would not reach a client behind a Private Link
    /// Service, which carries TCP and UDP only.
    OwnOpening,
    /// All.
    Always,
}

/// Returns the reply to a packet that would otherwise be dropped silently for this reason; `None`
/// if there is none.
#[expect(clippy::wildcard_enum_match_arm, reason = "a new reason has no reply until it is given one here")]
#[inline(always)]
pub const fn reply_to(silent: Reason) -> Option<Reply> {
    let (reason, error, reset) = match silent {
        Reason::TtlExpired => (Reason::TtlExceeded, Error::TIME_EXCEEDED, Reset::Never),
        Reason::TooBig => (Reason::FragmentationNeeded, Error::too_big(0), Reset::Never),
        Reason::PortsExhausted => (Reason::Rejected, Error::PROHIBITED, Reset::Always),
        Reason::NoRoute | Reason::EgressNotAttached => {
            (Reason::NetworkUnreachable, Error::NETWORK_UNREACHABLE, Reset::OwnOpening)
        }
        Reason::RouteUnreachable | Reason::NeighbourFailed => {
            (Reason::HostUnreachable, Error::HOST_UNREACHABLE, Reset::OwnOpening)
        }
        Reason::RouteProhibited => (Reason::Prohibited, Error::PROHIBITED, Reset::OwnOpening),
        Reason::NoTarget => (Reason::Refused, Error::PORT_UNREACHABLE, Reset::Always),
        // Only TCP segments have this reason.
        Reason::NoSession => (Reason::SessionUnknown, Error::PROHIBITED, Reset::Always),
        _ => return None,
    };
    Some(Reply { reason, error, reset })
}

/// Returns a packet's source address.
#[inline(always)]
pub const fn source(about: &[u8; QUOTE_LENGTH]) -> Ipv4 {
    Ipv4(field::<{ ipv4::SOURCE }, 4, _>(about))
}

/// Returns a packet's destination address.
#[inline(always)]
pub const fn destination(about: &[u8; QUOTE_LENGTH]) -> Ipv4 {
    Ipv4(field::<{ ipv4::DESTINATION }, 4, _>(about))
}

/// Returns flags and fragment offset of a packet.
#[inline(always)]
const fn fragment(about: &[u8; QUOTE_LENGTH]) -> u16 {
    u16::from_be_bytes(field::<{ ipv4::FRAGMENT }, 2, _>(about))
}

/// Returns `true` if a packet may be answered at all (RFC 1122 3.2.2, RFC 1812 4.3.2.7): not if it
/// is an ICMP error itself or a later fragment, nor if it was sent by or to anything but one host.
#[inline(always)]
pub const fn may_be_answered(destination_mac: [u8; 6], about: &[u8; QUOTE_LENGTH]) -> bool {
    destination_mac[0] & 1 == 0
        && source(about).is_host()
        && destination(about).is_host()
        && fragment(about) & ipv4::FRAGMENT_OFFSET == 0
        && !(about[ipv4::PROTOCOL] == Protocol::Icmp as u8 && icmp::is_error(about[IPV4_LENGTH + icmp::TYPE]))
}

/// Writes an ICMP error about a packet, from an address of the router to the packet's sender. The
/// caller writes the Ethernet addresses.
#[inline(always)]
pub fn write_error(frame: &mut [u8; ERROR_FRAME], about: &[u8; QUOTE_LENGTH], from: Ipv4, error: Error) {
    write_ip(frame, ERROR_TOS, Protocol::Icmp, from, source(about));
    let mut header = [0; ICMP_LENGTH];
    header[icmp::TYPE] = error.kind;
    header[icmp::CODE] = error.code;
    *field_mut::<{ icmp::MTU }, 2, _>(&mut header) = error.mtu.to_be_bytes();
    let checksum = sum(&header).plus(sum(about)).checksum();
    *field_mut::<{ icmp::CHECKSUM }, 2, _>(&mut header) = checksum;
    *field_mut::<L4, ICMP_LENGTH, _>(frame) = header;
    *field_mut::<ICMP_HEADERS, QUOTE_LENGTH, _>(frame) = *about;
}

/// The part of a TCP segment, besides [`QUOTE_LENGTH`], that a reset is made from: its header from
/// the acknowledgement number to the flags.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Segment(pub [u8; SEGMENT]);

const SEGMENT: usize = tcp_header::FLAGS + 1 - tcp_header::ACKNOWLEDGEMENT;

impl Segment {
    #[inline(always)]
    const fn acknowledgement(self) -> [u8; 4] {
        field::<0, 4, _>(&self.0)
    }

    /// Returns the length of its header in bytes.
    #[inline(always)]
    const fn header_length(self) -> u16 {
        (self.0[tcp_header::DATA_OFFSET - tcp_header::ACKNOWLEDGEMENT] >> 4) as u16 * 4
    }

    #[inline(always)]
    const fn flags(self) -> u8 {
        self.0[tcp_header::FLAGS - tcp_header::ACKNOWLEDGEMENT]
    }

    /// Returns `true` if it opens a connection.
    #[inline(always)]
    pub const fn opens(self) -> bool {
        self.flags() & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN) == tcp::SYN
    }

    /// Returns `true` if a reset may answer it: not if it is a reset itself (RFC 9293 3.10.7.1),
    /// nor if it is a fragment, whose acknowledgement is not known.
    #[inline(always)]
    pub const fn may_be_reset(self, about: &[u8; QUOTE_LENGTH]) -> bool {
        self.flags() & tcp::RST == 0 && fragment(about) & ipv4::MORE_FRAGMENTS == 0
    }

    /// Returns its length in sequence numbers: its data, and one each for SYN and FIN.
    #[inline(always)]
    const fn length(self, about: &[u8; QUOTE_LENGTH]) -> u32 {
        let ip_length = u16::from_be_bytes(field::<{ ipv4::TOTAL_LENGTH }, 2, _>(about));
        let data = ip_length.saturating_sub(IPV4_LENGTH as u16 + self.header_length());
        let flags = self.flags();
        data as u32 + (flags & tcp::SYN != 0) as u32 + (flags & tcp::FIN != 0) as u32
    }
}

/// Writes the reset that answers a segment of no connection (RFC 9293 3.10.7.1), as if the packet's
/// destination had sent it.
#[inline(always)]
pub fn write_reset(frame: &mut [u8; RESET_FRAME], about: &[u8; QUOTE_LENGTH], segment: Segment) {
    const SOURCE_PORT: usize = IPV4_LENGTH + tcp_header::SOURCE_PORT;
    const DESTINATION_PORT: usize = IPV4_LENGTH + tcp_header::DESTINATION_PORT;
    let (from, to) = (destination(about), source(about));
    // If the segment acknowledges something, the reset begins there. Otherwise it acknowledges the
    // segment.
    let acknowledges = segment.flags() & tcp::ACK != 0;
    let sequence = u32::from_be_bytes(field::<{ IPV4_LENGTH + tcp_header::SEQUENCE }, 4, _>(about));
    let end = sequence.wrapping_add(segment.length(about)).to_be_bytes();
    let mut header = [0; TCP_LENGTH];
    *field_mut::<{ tcp_header::SOURCE_PORT }, 2, _>(&mut header) = field::<DESTINATION_PORT, 2, _>(about);
    *field_mut::<{ tcp_header::DESTINATION_PORT }, 2, _>(&mut header) = field::<SOURCE_PORT, 2, _>(about);
    *field_mut::<{ tcp_header::SEQUENCE }, 4, _>(&mut header) =
        if acknowledges { segment.acknowledgement() } else { [0; 4] };
    *field_mut::<{ tcp_header::ACKNOWLEDGEMENT }, 4, _>(&mut header) =
        if acknowledges { [0; 4] } else { end };
    header[tcp_header::DATA_OFFSET] = (TCP_LENGTH as u8 / 4) << 4;
    header[tcp_header::FLAGS] = if acknowledges { tcp::RST } else { tcp::RST | tcp::ACK };
    let checksum = pseudo_header(from, to, Protocol::Tcp, TCP_LENGTH as u16).plus(sum(&header)).checksum();
    *field_mut::<{ tcp_header::CHECKSUM }, 2, _>(&mut header) = checksum;
    write_ip(frame, 0, Protocol::Tcp, from, to);
    *field_mut::<L4, TCP_LENGTH, _>(frame) = header;
    *field_mut::<TCP_HEADERS, { RESET_FRAME - TCP_HEADERS }, _>(frame) = [0; _];
}

/// Writes the EtherType and the IP header of an ICMP error that fills the frame, or of a reset.
#[inline(always)]
fn write_ip<const N: usize>(frame: &mut [u8; N], tos: u8, protocol: Protocol, from: Ipv4, to: Ipv4) {
    let length = match protocol {
        Protocol::Tcp => IPV4_LENGTH + TCP_LENGTH,
        Protocol::Udp | Protocol::Icmp => N - ETHERNET_LENGTH,
    } as u16;
    let mut header = [0; IPV4_LENGTH];
    header[ipv4::VERSION] = ipv4::NO_OPTIONS;
    header[ipv4::TOS] = tos;
    *field_mut::<{ ipv4::TOTAL_LENGTH }, 2, _>(&mut header) = length.to_be_bytes();
    *field_mut::<{ ipv4::FRAGMENT }, 2, _>(&mut header) = ipv4::DONT_FRAGMENT.to_be_bytes();
    header[ipv4::TTL] = TTL;
    header[ipv4::PROTOCOL] = protocol as u8;
    *field_mut::<{ ipv4::SOURCE }, 4, _>(&mut header) = from.0;
    *field_mut::<{ ipv4::DESTINATION }, 4, _>(&mut header) = to.0;
    *field_mut::<{ ipv4::CHECKSUM }, 2, _>(&mut header) = sum(&header).checksum();
    *field_mut::<{ ethernet::TYPE }, 2, _>(frame) = ethernet::IPV4;
    *field_mut::<ETHERNET_LENGTH, IPV4_LENGTH, _>(frame) = header;
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

/// The kinds of answers, each with its own rate limit (RFC 1812 4.3.2.8).
#[repr(u32)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Limited {
    /// Time exceeded.
    TimeExceeded = 0,
    /// Unreachable, whatever the code.
    Unreachable = 1,
    /// TCP resets.
    Reset = 2,
}

impl Limited {
    /// The number of kinds.
    pub const KINDS: usize = 3;

    /// Returns the kind of an error; `None` for "fragmentation needed", which is not limited. A
    /// sender that does not get it loses the connection, it is far smaller than the packet that it
    /// answers, and the kernel exempts it from its limits as well (`icmpv4_mask_allow`).
    #[inline(always)]
    pub const fn of(error: Error) -> Option<Self> {
        match (error.kind, error.code) {
            (icmp::UNREACHABLE, icmp::FRAGMENTATION_NEEDED) => None,
            (icmp::UNREACHABLE, _) => Some(Self::Unreachable),
            _ => Some(Self::TimeExceeded),
        }
    }
}

/// The number of shares. Sources whose addresses hash to the same share use it together.
pub const SHARES: u32 = 4096;

/// A source's share of the answers of one kind.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Share {
    most: TokenBucket,
    least: TokenBucket,
}

const _: () = assert!(cfg!(model) || size_of::<Share>() == 16);

impl Share {
    /// Returns `true` if the source may get one more answer now, and counts it. `all` is the bucket
    /// of all sources together.
    ///
    /// Other sources cannot take a source's answers away, and no source gets so many that forged
    /// packets in its name make the router a nuisance to it. All sources together get at most
    /// [`SHARES`] times [`Rate::GUARANTEED`], and [`Rate::SHARED`].
    #[inline(always)]
    pub fn take(&self, all: &TokenBucket, now: u64) -> bool {
        self.most.take(now, Rate::PER_SOURCE)
            && (self.least.take(now, Rate::GUARANTEED) || all.take(now, Rate::SHARED))
    }
}

#[cfg(all(test, not(model)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::reason::Action;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn about(protocol: u8, source: [u8; 4], destination: [u8; 4]) -> [u8; QUOTE_LENGTH] {
        let mut about = [0; QUOTE_LENGTH];
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
        for address in [[0; 4], [255; 4], [224, 0, 0, 1], [127, 0, 0, 1]] {
            assert!(!may_be_answered(MAC, &about(6, address, hosts.1)), "from {address:?}");
            assert!(!may_be_answered(MAC, &about(6, hosts.0, address)), "to {address:?}");
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
    fn every_reply_has_a_reason_and_is_counted_as_an_answer() {
        let replies: Vec<_> = Reason::ALL.iter().filter_map(|silent| reply_to(*silent)).collect();
        assert!(replies.iter().all(|reply| reply.reason.action() == Action::Answer));
        for reason in Reason::ALL.iter().filter(|reason| reason.action() == Action::Answer) {
            assert!(replies.iter().any(|reply| reply.reason == *reason), "{reason:?}");
        }
    }

    #[test]
    fn resets_and_fragments_are_not_reset() {
        let mut about = about(6, [10, 0, 0, 1], [192, 0, 2, 1]);
        let segment = |flags| Segment([0, 0, 0, 0, 0x50, flags]);
        assert!(segment(tcp::ACK).may_be_reset(&about) && segment(tcp::SYN).may_be_reset(&about));
        assert!(
            !segment(tcp::RST).may_be_reset(&about) && !segment(tcp::RST | tcp::ACK).may_be_reset(&about)
        );
        about[6] = 0x20;
        assert!(!segment(tcp::ACK).may_be_reset(&about), "the first of several fragments");
        assert!(segment(tcp::SYN | tcp::PSH).opens() && !segment(tcp::SYN | tcp::ACK).opens());
    }

    /// Has each source ask `questions` times a millisecond for one second. Returns the least and
    /// the most answers that a source got.
    fn a_second_of(sources: usize, questions: usize) -> (u64, u64) {
        let (all, start) = (TokenBucket::default(), 5_000_000_000);
        let mut got: Vec<_> = (0..sources).map(|_| (Share::default(), 0)).collect();
        for millisecond in 0..1000 {
            for _ in 0..questions {
                for (share, answers) in &mut got {
                    *answers += u64::from(share.take(&all, start + millisecond * 1_000_000));
                }
            }
        }
        let answers = || got.iter().map(|(_, answers)| *answers);
        (answers().min().unwrap_or(0), answers().max().unwrap_or(0))
    }

    #[test]
    #[cfg_attr(miri, ignore = "a second of questions of 500 sources")]
    fn other_sources_cannot_take_a_sources_share_of_answers() {
        let (least, most) = (Rate::GUARANTEED.burst + 9, Rate::PER_SOURCE.burst + 999);
        assert_eq!(a_second_of(1, 100), (most, most));
        assert_eq!(a_second_of(10, 100), (most, most), "there is enough for ten");
        let (fewest, greatest) = a_second_of(500, 3);
        assert!(fewest >= least && greatest <= most, "{fewest}, {greatest}");
        // A source that asks now and then always gets an answer, whatever the others do.
        let (all, start) = (TokenBucket::default(), 5_000_000_000);
        while all.take(start, Rate::SHARED) {}
        let share = Share::default();
        assert!((0..Rate::GUARANTEED.burst).all(|_| share.take(&all, start)));
        assert!(!share.take(&all, start));
        assert!(share.take(&all, start + Rate::GUARANTEED.interval));
    }

    #[test]
    fn fragmentation_needed_is_not_rate_limited() {
        assert_eq!(Limited::of(Error::too_big(1400)), None);
        assert_eq!(Limited::of(Error::TIME_EXCEEDED), Some(Limited::TimeExceeded));
        let unreachable =
            [Error::NETWORK_UNREACHABLE, Error::HOST_UNREACHABLE, Error::PORT_UNREACHABLE, Error::PROHIBITED];
        assert!(unreachable.iter().all(|error| Limited::of(*error) == Some(Limited::Unreachable)));
    }

    proptest! {
        #![proptest_config(crate::effort::cases())]

        #[test]
        fn errors_have_right_checksums(about in any::<[u8; QUOTE_LENGTH]>(), from in any::<[u8; 4]>(), mtu in any::<u16>()) {
            let unreachable = [Error::NETWORK_UNREACHABLE, Error::HOST_UNREACHABLE, Error::PORT_UNREACHABLE];
            for error in [Error::TIME_EXCEEDED, Error::PROHIBITED, Error::too_big(mtu)].into_iter().chain(unreachable) {
                let mut frame = [0xee; ERROR_FRAME];
                write_error(&mut frame, &about, Ipv4(from), error);
                prop_assert!(Sum::ZERO.add_bytes(&frame[14..34]).is_valid());
                prop_assert!(Sum::ZERO.add_bytes(&frame[34..]).is_valid());
                prop_assert_eq!(&frame[42..], &about[..]);
                prop_assert_eq!(frame[40..42].to_vec(), error.mtu.to_be_bytes());
            }
        }

        #[test]
        fn resets_match_the_segment_they_answer(
            about in any::<[u8; QUOTE_LENGTH]>(), words in 5..=15_u8, data in 0..1000_u16, flags in any::<u8>(),
            acknowledgement in any::<u32>(),
        ) {
            let mut about = about;
            about[2..4].copy_from_slice(&(20 + u16::from(words) * 4 + data).to_be_bytes());
            let mut frame = [0xee; RESET_FRAME];
            let [a, b, c, d] = acknowledgement.to_be_bytes();
            write_reset(&mut frame, &about, Segment([a, b, c, d, words << 4, flags]));
            prop_assert!(Sum::ZERO.add_bytes(&frame[14..34]).is_valid());
            let pseudo = [&frame[26..34], &[0, 6, 0, 20]].concat();
            prop_assert!(Sum::ZERO.add_bytes(&pseudo).add_bytes(&frame[34..54]).is_valid());
            let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().expect("four bytes"));
            let (sequence, acknowledged) = (number(&frame[38..42]), number(&frame[42..46]));
            if flags & tcp::ACK != 0 {
                prop_assert_eq!((sequence, acknowledged, frame[47]), (acknowledgement, 0, tcp::RST));
            } else {
                let controls = u32::from(flags & tcp::SYN != 0) + u32::from(flags & tcp::FIN != 0);
                let end = number(&about[24..28]).wrapping_add(u32::from(data) + controls);
                prop_assert_eq!((sequence, acknowledged, frame[47]), (0, end, tcp::RST | tcp::ACK));
            }
            prop_assert_eq!(&frame[54..], &[0; 6], "no old bytes leave");
        }
    }
}
