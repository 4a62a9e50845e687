//! IPv6 to this machine itself, which the router does not translate.
//!
//! An IPv6 source is no proof of who may use a rule: a machine on the link has as many addresses as
//! it likes. So on the interface that clients come in by, only IPv6 that is allowed by name is let
//! in, like IPv4 from a rule's source ([`crate::local`]).
//!
//! Extension headers are no way around that: a packet with any of them is not let in, fragments
//! included, except for the one that multicast listener discovery needs (RFC 2710 3).

use crate::{
    address::{Ipv6, Port},
    local::{Judgement, Place, Service, is_routing_protocol},
    maps::own,
    tuple::{Ipv6Key, Protocol},
    wire::{
        ETHERNET_LENGTH, Frame, ICMP_LENGTH, IPV6_LENGTH, TCP_LENGTH, UDP_LENGTH, ethernet, field, ip, ipv6,
    },
};

/// The offset in the frame of the header after the IPv6 header.
const NEXT: usize = ETHERNET_LENGTH + IPV6_LENGTH;

const TCP: u8 = Protocol::Tcp as u8;
const UDP: u8 = Protocol::Udp as u8;
/// ICMP of IPv4, which IPv6 does not carry.
const ICMP: u8 = Protocol::Icmp as u8;
const HOP_BY_HOP: u8 = 0;
const FRAGMENT: u8 = 44;
/// ICMPv6's number as a next header.
const ICMPV6: u8 = 58;

/// Types of ICMPv6 messages (RFC 4443, RFC 4861, RFC 2710, RFC 3810).
mod icmp {
    pub(super) const LAST_KNOWN_ERROR: u8 = 4;
    pub(super) const ECHO_REQUEST: u8 = 128;
    pub(super) const ECHO_REPLY: u8 = 129;
    pub(super) const LISTENER_QUERY: u8 = 130;
    pub(super) const LISTENER_DONE: u8 = 132;
    pub(super) const ROUTER_SOLICITATION: u8 = 133;
    pub(super) const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    pub(super) const LISTENER_REPORT_V2: u8 = 143;
}

/// The parts of an IPv6 packet that decide whether it is let in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Packet {
    /// Its source.
    pub source: Ipv6,
    /// Its destination.
    pub destination: Ipv6,
    /// Its hop limit.
    hop_limit: u8,
    /// Its protocol: no extension header, and not ICMP of IPv4.
    protocol: u8,
    /// Its source and destination port, if it is TCP or UDP.
    ports: [Port; 2],
    /// Its type and code, if it is ICMPv6.
    message: [u8; 2],
    // Fields, and not variants of an enumeration: the compiler may read a variant's field before it
    // looks which variant there is, and the verifier of Linux 6.1 refuses to read stack that was
    // not written.
}

/// Reads an IPv6 packet. Returns `None` if the packet is not whole, or has extension headers other
/// than those of multicast listener discovery.
#[inline(always)]
pub fn read(frame: &(impl Frame + ?Sized)) -> Option<Packet> {
    let header = frame.bytes::<NEXT>(0)?;
    let length = usize::from(u16::from_be_bytes(field::<{ ip(ipv6::PAYLOAD_LENGTH) }, 2, _>(header)));
    if header[ip(ipv6::VERSION)] >> 4 != 6 || NEXT + length > frame.length() {
        return None;
    }
    let (source, destination) = addresses(header);
    let (mut protocol, mut ports, mut message) = (header[ip(ipv6::NEXT_HEADER)], [Port([0; 2]); 2], [0; 2]);
    match protocol {
        HOP_BY_HOP if length >= 16 => match *frame.bytes::<10>(NEXT)? {
            // Eight bytes of options.
            [ICMPV6, 0, _, _, _, _, _, _, kind, code] if is_listener_discovery(kind) => {
                protocol = ICMPV6;
                message = [kind, code];
            }
            _ => return None,
        },
        TCP if length >= TCP_LENGTH => ports = read_ports(frame)?,
        UDP if length >= UDP_LENGTH => ports = read_ports(frame)?,
        ICMPV6 if length >= ICMP_LENGTH => message = *frame.bytes::<2>(NEXT)?,
        // Cut off, or ICMP of the other version.
        TCP | UDP | ICMPV6 | ICMP => return None,
        number if is_extension(number) => return None,
        _ => {}
    }
    Some(Packet { source, destination, hop_limit: header[ip(ipv6::HOP_LIMIT)], protocol, ports, message })
}

#[inline(always)]
const fn addresses(header: &[u8; NEXT]) -> (Ipv6, Ipv6) {
    let source = field::<{ ip(ipv6::SOURCE) }, 16, _>(header);
    let destination = field::<{ ip(ipv6::DESTINATION) }, 16, _>(header);
    (Ipv6(source), Ipv6(destination))
}

#[inline(always)]
fn read_ports(frame: &(impl Frame + ?Sized)) -> Option<[Port; 2]> {
    let [a, b, c, d] = *frame.bytes::<4>(NEXT)?;
    Some([Port([a, b]), Port([c, d])])
}

/// Returns `true` for the number of an extension header, or of one that may be one (RFC 7045 4).
const fn is_extension(number: u8) -> bool {
    matches!(number, 0 | 43 | 44 | 50 | 51 | 59 | 60 | 135 | 139 | 140 | 253 | 254)
}

const fn is_listener_discovery(kind: u8) -> bool {
    matches!(kind, icmp::LISTENER_QUERY..=icmp::LISTENER_DONE | icmp::LISTENER_REPORT_V2)
}

impl Packet {
    /// Returns the tuple of TCP or UDP.
    #[inline(always)]
    pub const fn key(&self) -> Option<Ipv6Key> {
        let protocol = match self.protocol {
            TCP => Protocol::Tcp,
            UDP => Protocol::Udp,
            _ => return None,
        };
        let [from, to] = self.ports;
        Some(Ipv6Key::new(protocol, self.source, from, self.destination, to))
    }

    /// Returns the service that the packet asks for; `None` if no entry of `local.allow` can name
    /// it.
    #[inline(always)]
    pub const fn service(&self) -> Option<Service> {
        match (self.protocol, self.message) {
            (TCP, _) => Some(Service::at(Protocol::Tcp, self.ports[1])),
            (UDP, _) => Some(Service::at(Protocol::Udp, self.ports[1])),
            (ICMPV6, [icmp::ECHO_REQUEST, 0]) => Some(Service::ECHO),
            (ICMPV6, _) => None,
            (number, _) => Some(Service::without_ports(number)),
        }
    }

    /// Returns `true` if the packet may be for this machine's own stack: to an address of its own
    /// (`is_local`), or to a group.
    #[inline(always)]
    pub const fn may_be_for_the_stack(&self, is_local: bool) -> bool {
        is_local || self.destination.is_multicast()
    }

    /// Returns `true` if the packet is for this machine, or for a destination that no router
    /// forwards to.
    const fn is_for_the_link(&self, place: &Place) -> bool {
        place.is_local || self.destination.is_multicast() || self.destination.is_link_local()
    }

    /// Judges a packet that comes in on an interface where everything is closed.
    #[inline(always)]
    pub fn judge(&self, place: &Place) -> Judgement {
        if self.source.is_martian() {
            return Judgement::Forbidden;
        }
        // Only a machine on the link can have sent it.
        let is_near = self.source.is_link_local();
        let ([from, to], [kind, code]) = (self.ports, self.message);
        match self.protocol {
            TCP if place.is_probes(to) => Judgement::Harmless,
            UDP if is_near && (from.number(), to.number()) == own::DHCPV6_PORTS => Judgement::IfAskedFor,
            // To its own address, then, also if that is not known yet: it may be a moment old.
            TCP | UDP => Judgement::IfConnected,
            ICMPV6 => match (kind, code) {
                // An error about what this machine has sent, or an answer to its ping: the kernel
                // knows whether there was any.
                (1..=icmp::LAST_KNOWN_ERROR, _) if place.is_local => Judgement::Harmless,
                (icmp::ECHO_REPLY, 0) if place.is_local => Judgement::Harmless,
                // No router has passed it on (RFC 4861 3.1). Not redirects, as by IPv4.
                (icmp::ROUTER_SOLICITATION..=icmp::NEIGHBOUR_ADVERTISEMENT, 0)
                    if self.hop_limit == u8::MAX && self.is_for_the_link(place) =>
                {
                    Judgement::Harmless
                }
                (kind, _)
                    if is_listener_discovery(kind)
                        && self.hop_limit == 1
                        && (is_near || self.source.is_unspecified()) =>
                {
                    Judgement::Harmless
                }
                _ => Judgement::Closed,
            },
            number if is_near && self.destination.is_of_the_link_alone() && is_routing_protocol(number) => {
                Judgement::Harmless
            }
            _ => Judgement::Closed,
        }
    }
}

/// A packet that this machine sends by IPv6, and whose answers are let in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sent {
    /// A datagram to a single machine, as the tuple of its answers.
    Datagram(Ipv6Key),
    /// A message to DHCPv6 servers, as its transaction (RFC 8415 8).
    Dhcp([u8; 3]),
}

/// Reads a packet that this machine sends. Of a fragmented datagram, the first fragment has the
/// ports.
#[inline(always)]
pub fn sent(frame: &(impl Frame + ?Sized)) -> Option<Sent> {
    let header = frame.bytes::<NEXT>(0)?;
    if field::<{ ethernet::TYPE }, 2, _>(header) != ethernet::IPV6 {
        return None;
    }
    let (source, destination) = addresses(header);
    let [from, to] = match header[ip(ipv6::NEXT_HEADER)] {
        UDP => {
            let [a, b, c, d] = *frame.bytes::<4>(NEXT)?;
            [Port([a, b]), Port([c, d])]
        }
        FRAGMENT => match *frame.bytes::<12>(NEXT)? {
            [UDP, _, 0, rest, _, _, _, _, a, b, c, d] if rest & 0xf8 == 0 => [Port([a, b]), Port([c, d])],
            _ => return None,
        },
        _ => return None,
    };
    if (to.number(), from.number()) == own::DHCPV6_PORTS {
        let [_, transaction @ ..] = *frame.bytes::<4>(NEXT + UDP_LENGTH)?;
        return Some(Sent::Dhcp(transaction));
    }
    if destination.is_multicast() {
        return None;
    }
    Some(Sent::Datagram(Ipv6Key::new(Protocol::Udp, destination, to, source, from)))
}

/// Returns the transaction of a DHCPv6 message to this machine, in a packet that [`Packet::judge`]
/// has found to be one.
#[inline(always)]
pub fn dhcp_transaction(frame: &(impl Frame + ?Sized)) -> Option<[u8; 3]> {
    let [_, transaction @ ..] = *frame.bytes::<4>(NEXT + UDP_LENGTH)?;
    Some(transaction)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NEAR: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x69];
    const FAR: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x69];
    const HERE: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x68];
    /// Another machine's.
    const OTHER: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x67];
    const NOBODY: [u8; 16] = [0; 16];
    const ROUTERS: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5];

    fn frame(next: u8, hop_limit: u8, source: [u8; 16], destination: [u8; 16], payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x86, 0xdd, 0x60, 0, 0, 0];
        frame.extend((payload.len() as u16).to_be_bytes());
        frame.extend([next, hop_limit]);
        frame.extend(source);
        frame.extend(destination);
        frame.extend(payload);
        frame
    }

    fn judged(frame: &[u8]) -> Option<Judgement> {
        read(frame).map(|packet| packet.judge(&THIS))
    }

    const THIS: Place = Place { health_port: None, is_local: true };
    const ELSEWHERE: Place = Place { health_port: Some(Port::new(8082)), is_local: false };
    const PROBED: Place = Place { is_local: true, ..ELSEWHERE };

    fn with_ports(from: u16, to: u16, length: usize) -> Vec<u8> {
        let mut payload = [from.to_be_bytes(), to.to_be_bytes()].concat();
        payload.resize(length, 0);
        payload
    }

    fn icmp_message(kind: u8, code: u8) -> Vec<u8> {
        let mut payload = vec![0; 24];
        payload[..2].copy_from_slice(&[kind, code]);
        payload
    }

    #[test]
    fn packets_are_closed_out_unless_there_is_a_reason() {
        let tcp = with_ports(40_000, 22, 20);
        let udp = with_ports(53, 40_000, 8);
        for (next, hop_limit, source, payload, expected) in [
            (6, 64, FAR, &tcp, Judgement::IfConnected),
            (17, 64, FAR, &udp, Judgement::IfConnected),
            (17, 64, NEAR, &with_ports(547, 546, 12), Judgement::IfAskedFor),
            (17, 64, FAR, &with_ports(547, 546, 12), Judgement::IfConnected),
            (58, 64, FAR, &icmp_message(128, 0), Judgement::Closed),
            (58, 64, FAR, &icmp_message(129, 0), Judgement::Harmless),
            (58, 64, FAR, &icmp_message(129, 1), Judgement::Closed),
            (58, 64, FAR, &icmp_message(2, 0), Judgement::Harmless),
            (58, 64, FAR, &icmp_message(0, 0), Judgement::Closed),
            (58, 64, FAR, &icmp_message(5, 0), Judgement::Closed),
            (58, 255, FAR, &icmp_message(135, 0), Judgement::Harmless),
            (58, 255, NOBODY, &icmp_message(135, 0), Judgement::Harmless),
            (58, 254, FAR, &icmp_message(135, 0), Judgement::Closed),
            (58, 255, NEAR, &icmp_message(137, 0), Judgement::Closed),
            (58, 255, NEAR, &icmp_message(139, 0), Judgement::Closed),
            (58, 1, NEAR, &icmp_message(130, 0), Judgement::Harmless),
            (58, 1, FAR, &icmp_message(130, 0), Judgement::Closed),
            (58, 2, NEAR, &icmp_message(130, 0), Judgement::Closed),
            (58, 1, NOBODY, &icmp_message(143, 0), Judgement::Harmless),
            (47, 64, FAR, &tcp, Judgement::Closed),
            (112, 255, NEAR, &tcp, Judgement::Closed),
        ] {
            let frame = frame(next, hop_limit, source, HERE, payload);
            assert_eq!(judged(&frame), Some(expected), "{next} {hop_limit} {source:?} {payload:?}");
        }
        assert_eq!(judged(&frame(112, 255, NEAR, ROUTERS, &tcp)), Some(Judgement::Harmless));
        assert_eq!(judged(&frame(112, 255, FAR, ROUTERS, &tcp)), Some(Judgement::Closed));
        assert_eq!(judged(&frame(41, 255, NEAR, ROUTERS, &tcp)), Some(Judgement::Closed));
    }

    #[test]
    fn martian_sources_are_forbidden() {
        let mut loopback = NOBODY;
        loopback[15] = 1;
        let mut mapped = NOBODY;
        mapped[10..].copy_from_slice(&[0xff, 0xff, 10, 0, 2, 69]);
        for source in [loopback, mapped, ROUTERS] {
            for frame in [
                frame(6, 64, source, HERE, &with_ports(40_000, 8082, 20)),
                frame(58, 255, source, HERE, &icmp_message(135, 0)),
            ] {
                let judged = read(&frame[..]).map(|packet| packet.judge(&PROBED));
                assert_eq!(judged, Some(Judgement::Forbidden), "{source:?}");
            }
        }
    }

    #[test]
    fn the_probe_is_reached_at_its_port() {
        let to_probe = frame(6, 64, FAR, HERE, &with_ports(40_000, 8082, 20));
        let packet = read(&to_probe[..]).expect("a packet");
        assert_eq!(packet.judge(&PROBED), Judgement::Harmless);
        assert_eq!(
            packet.judge(&Place { health_port: Some(Port::new(8083)), ..PROBED }),
            Judgement::IfConnected
        );
        assert_eq!(packet.judge(&THIS), Judgement::IfConnected);
    }

    #[test]
    fn packets_for_another_machine_are_not_let_in() {
        for (next, payload, expected) in [
            (6, with_ports(40_000, 8082, 20), Judgement::IfConnected),
            (58, icmp_message(129, 0), Judgement::Closed),
            (58, icmp_message(128, 0), Judgement::Closed),
        ] {
            let packet = read(&frame(next, 64, FAR, OTHER, &payload)[..]).expect("a packet");
            assert_eq!(packet.judge(&ELSEWHERE), expected, "{next} {payload:?}");
            assert!(!packet.may_be_for_the_stack(false) && packet.may_be_for_the_stack(true));
        }
        let to_many = read(&frame(6, 64, FAR, ROUTERS, &with_ports(1, 22, 20))[..]).expect("a packet");
        assert!(to_many.may_be_for_the_stack(false));
    }

    #[test]
    fn extension_headers_are_not_let_in() {
        let inner = with_ports(40_000, 8082, 40);
        for next in [0, 43, 44, 50, 51, 59, 60, 135, 139, 140, 253, 254] {
            let mut payload = inner.clone();
            payload[..2].copy_from_slice(&[6, 0]);
            assert_eq!(read(&frame(next, 64, FAR, HERE, &payload)[..]), None, "{next}");
        }
        // The only extension header that is let in.
        let report = |next, kind| {
            let options = [next, 0, 5, 2, 0, 0, 1, 0];
            frame(0, 1, NEAR, ROUTERS, &[&options[..], &icmp_message(kind, 0)].concat())
        };
        assert_eq!(judged(&report(58, 143)), Some(Judgement::Harmless));
        for other in [report(58, 135), report(58, 128), report(6, 143), report(60, 143), report(0, 143)] {
            assert_eq!(read(&other[..]), None);
        }
    }

    #[test]
    fn truncated_packets_are_not_read() {
        for (next, payload) in
            [(6, with_ports(1, 22, 20)), (17, with_ports(1, 22, 8)), (58, icmp_message(135, 0)[..8].to_vec())]
        {
            let whole = frame(next, 255, FAR, HERE, &payload);
            assert!(read(&whole[..]).is_some());
            for length in 14..whole.len() {
                assert_eq!(read(&whole[..length]), None, "{next}: {length}");
            }
            let mut short = frame(next, 255, FAR, HERE, &payload[..payload.len() - 1]);
            assert_eq!(read(&short[..]), None, "{next}");
            // Padding is not of the packet.
            short.push(0);
            assert_eq!(read(&short[..]), None, "{next}");
        }
    }

    #[test]
    fn services_that_an_entry_may_name() {
        let service = |next, payload: &[u8]| read(&frame(next, 64, FAR, HERE, payload)[..])?.service();
        assert_eq!(service(6, &with_ports(1, 22, 20)), Some(Service { protocol: 6, port: 22 }));
        assert_eq!(service(17, &with_ports(1, 161, 8)), Some(Service { protocol: 17, port: 161 }));
        assert_eq!(service(58, &icmp_message(128, 0)), Some(Service::ECHO));
        assert_eq!(service(58, &icmp_message(137, 0)), None);
        assert_eq!(service(47, &[0; 20]), Some(Service::without_ports(47)));
        assert_eq!(service(1, &[8, 0, 0, 0, 0, 0, 0, 0]), None);
    }

    #[test]
    fn packets_of_this_machine_are_read() {
        let question = frame(17, 64, HERE, FAR, &with_ports(40_000, 53, 20));
        let answer = frame(17, 64, FAR, HERE, &with_ports(53, 40_000, 20));
        let key = read(&answer[..]).and_then(|packet| packet.key()).expect("a tuple");
        assert_eq!(sent(&question[..]), Some(Sent::Datagram(key)));
        let fragment = |offset: u8| {
            let header = [17, 0, 0, offset, 0, 0, 0, 7];
            frame(FRAGMENT, 64, HERE, FAR, &[&header[..], &with_ports(40_000, 53, 16)].concat())
        };
        assert_eq!(sent(&fragment(1)[..]), Some(Sent::Datagram(key)));
        assert_eq!(sent(&fragment(8)[..]), None);
        assert_eq!(sent(&frame(17, 64, HERE, ROUTERS, &with_ports(5353, 5353, 20))[..]), None);
        assert_eq!(sent(&frame(6, 64, HERE, FAR, &with_ports(40_000, 53, 20))[..]), None);
        let mut request = with_ports(546, 547, 12);
        request[8..].copy_from_slice(&[3, 7, 8, 9]);
        assert_eq!(sent(&frame(17, 1, NEAR, ROUTERS, &request)[..]), Some(Sent::Dhcp([7, 8, 9])));
        request[..4].copy_from_slice(&[2, 0x23, 2, 0x22]);
        assert_eq!(dhcp_transaction(&frame(17, 1, NEAR, NEAR, &request)[..]), Some([7, 8, 9]));
    }

    proptest! {
        #![proptest_config(crate::effort::cases())]

        /// Nothing panics, and what is let in unasked is one of few things.
        #[test]
        fn only_listed_packets_are_harmless(bytes in prop::collection::vec(any::<u8>(), 0..120), next in prop::sample::select(vec![0_u8, 6, 17, 58, 44, 60, 112, 41])) {
            let mut frame = bytes;
            if frame.len() > 54 {
                frame[14] = 0x60;
                frame[20] = next;
                let length = (frame.len() - 54) as u16;
                frame[18..20].copy_from_slice(&length.to_be_bytes());
            }
            if let Some(packet) = read(&frame[..]) && packet.judge(&THIS) == Judgement::Harmless {
                prop_assert!(matches!(next, 0 | 58 | 112), "{packet:?}");
            }
        }
    }
}
