//! Access to this machine itself.
//!
//! With load balancing for all ports in front, a client of a rule can reach every port of this
//! machine. So a packet from a rule's source that matches no rule is dropped, unless it is known to
//! be harmless or allowed by name. Other sources reach this machine as before, so that no operator
//! is locked out by default.

use core::mem::size_of;

use crate::{
    address::{Ipv4, Port},
    limits::MAX_LOCAL_ALLOW,
    maps::{
        own::DHCP_PORTS,
        rules::{Contains, Ipv6Network, Network, bank},
    },
    packet::Packet,
    tuple::Protocol,
};

/// Returns the index of an entry in the array of them.
#[inline(always)]
pub const fn allow_index(version: u32, position: u32) -> u32 {
    bank(version) * MAX_LOCAL_ALLOW as u32 + position
}

/// An entry of `local.allow`, for addresses of one family.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Allow<N> {
    /// The source network.
    pub from: N,
    /// The first port.
    pub first: u16,
    /// The last port.
    pub last: u16,
    /// The IP protocol number. An entry for ICMP allows echo requests only. A protocol without
    /// ports has all of them, 0 to 65535.
    pub protocol: u32,
}

const _: () = assert!(size_of::<Allow<Network>>() == 16);
const _: () = assert!(size_of::<Allow<Ipv6Network>>() == 40);

impl<N: Contains> Allow<N> {
    /// Returns `true` if the entry allows packets to this service from `source`.
    #[inline(always)]
    pub fn covers(&self, service: Service, source: N::Address) -> bool {
        self.protocol == u32::from(service.protocol)
            && self.first <= service.port
            && service.port <= self.last
            && self.from.contains(source)
    }
}

/// The service that an entry of `local.allow` has to name so that a packet comes in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Service {
    /// The IP protocol number, where ICMP stands for echo requests of either version of IP.
    pub protocol: u8,
    /// The destination port; 0 for a protocol without ports.
    pub port: u16,
}

impl Service {
    /// An echo request.
    pub const ECHO: Self = Self::without_ports(Protocol::Icmp as u8);

    /// Returns the service of a protocol without ports.
    #[inline(always)]
    pub const fn without_ports(protocol: u8) -> Self {
        Self { protocol, port: 0 }
    }

    /// Returns the service at a TCP or UDP port.
    #[inline(always)]
    pub const fn at(protocol: Protocol, port: Port) -> Self {
        Self { protocol: protocol as u8, port: port.number() }
    }

    /// Returns the service that a packet asks for; `None` for an echo reply, which no entry can
    /// name.
    #[inline(always)]
    pub const fn of(packet: &Packet) -> Option<Self> {
        match packet.protocol {
            Protocol::Tcp | Protocol::Udp => Some(Self::at(packet.protocol, packet.key.destination_port)),
            Protocol::Icmp if packet.opens() => Some(Self::ECHO),
            Protocol::Icmp => None,
        }
    }
}

/// A search among the entries of `local.allow` for one that covers a packet.
#[derive(Clone, Copy, Debug)]
pub struct Search<A> {
    service: Service,
    source: A,
    version: u32,
    found: bool,
}

impl<A: Copy> Search<A> {
    /// Starts a search by the rules of this version.
    #[inline(always)]
    pub const fn new(version: u32, service: Service, source: A) -> Self {
        Self { service, source, version, found: false }
    }

    /// Returns the index of the entry at a position.
    #[inline(always)]
    pub const fn index(&self, position: u32) -> u32 {
        allow_index(self.version, position)
    }

    /// Looks at an entry. Returns 1 if the search is over, as a callback of `bpf_loop` does, else
    /// 0.
    #[inline(always)]
    pub fn look_at<N: Contains<Address = A>>(&mut self, entry: Option<&Allow<N>>) -> i64 {
        let Some(entry) = entry else { return 1 };
        self.found = entry.covers(self.service, self.source);
        i64::from(self.found)
    }

    /// Returns `true` if one of the entries covers the packet.
    #[inline(always)]
    pub const fn has_found(&self) -> bool {
        self.found
    }
}

/// The facts that [`judge`] needs besides the packet.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The port of the health probe, if it is served by this version of IP.
    pub health_port: Option<Port>,
    /// `true` if the packet goes to an address of this machine, or to a broadcast address of its
    /// networks.
    pub is_local: bool,
}

impl Place {
    /// Returns `true` if a TCP segment to this port is one for the health probe.
    #[inline(always)]
    pub(crate) const fn is_probes(&self, port: Port) -> bool {
        match self.health_port {
            Some(health_port) => self.is_local && health_port.number() == port.number(),
            None => false,
        }
    }
}

/// A decision about a packet to this machine, made without a look-up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Judgement {
    /// It is let in.
    Harmless,
    /// It is let in if it belongs to a connection of this machine, or answers a datagram that this
    /// machine has sent.
    IfConnected,
    /// It is let in if it has the transaction of a DHCP message that this machine has sent.
    IfAskedFor,
    /// It is not let in, unless an entry of `local.allow` covers it.
    Closed,
    /// It is not let in, whatever the entries say.
    Forbidden,
}

/// The value of the map of this machine's addresses for an address of its own,
pub const OWN_ADDRESS: u32 = 1;
/// and for the broadcast address of one of its networks.
pub const BROADCAST_ADDRESS: u32 = 2;

/// Judges a packet from a source that is closed out.
#[inline(always)]
pub const fn judge(packet: &Packet, place: &Place) -> Judgement {
    let port = packet.key.destination_port.number();
    let (server, client) = DHCP_PORTS;
    match packet.protocol {
        // To an address that this machine may be about to get.
        Protocol::Udp if port == client && packet.key.source_port.number() == server => Judgement::IfAskedFor,
        // For another machine: without a rule there is no way through this one.
        _ if !place.is_local => Judgement::Closed,
        Protocol::Tcp if place.is_probes(packet.key.destination_port) => Judgement::Harmless,
        // A SYN too: into a connection, it is answered by a challenge (RFC 5961 4), and a peer that
        // has restarted waits for that.
        Protocol::Tcp | Protocol::Udp => Judgement::IfConnected,
        // An answer to a ping of this machine; the kernel knows whether there was one.
        Protocol::Icmp if !packet.opens() => Judgement::Harmless,
        Protocol::Icmp => Judgement::Closed,
    }
}

/// Returns `true` if a packet may be for this machine's own stack: to an address of its own
/// (`is_local`), to a group, or to all.
#[inline(always)]
pub const fn may_be_for_the_stack(destination: Ipv4, is_local: bool) -> bool {
    is_local || !destination.is_unicast()
}

/// Returns `true` for a packet by which the machines of a link keep the link itself running:
/// [`is_routing_protocol`], to one of the groups that no router forwards (224.0.0.0/24, RFC 5771
/// section 4). Like ARP, it can only come from a machine on the link, never through a Private Link
/// Service, so it reaches this machine's stack from any source.
#[inline(always)]
pub const fn is_link_control(protocol: u8, destination: Ipv4) -> bool {
    is_routing_protocol(protocol) && matches!(destination.0, [224, 0, 0, _])
}

/// Returns `true` for protocols that routers run among themselves and hosts with them: IGMP, EIGRP,
/// OSPF, PIM, VRRP (and CARP). None of them carries other packets. A tunnel (IPIP, GRE, ESP, ...)
/// would let in what it carries.
#[inline(always)]
pub const fn is_routing_protocol(protocol: u8) -> bool {
    matches!(protocol, 2 | 88 | 89 | 103 | 112)
}

/// Returns `true` for a source address that no packet on a wire may have: an answer to it would go
/// to the wrong machine, or to all of them (RFC 1122 3.2.1.3, RFC 1812 5.3.7). A machine that has
/// no address yet uses 0.0.0.0, and sends to a group or to all (DHCP, IGMP). 240.0.0.0/4 is an
/// address like others, as in Linux (`ipv4_is_lbcast` in `ip_route_input_slow`, net/ipv4/route.c).
#[inline(always)]
pub const fn is_martian_source(source: Ipv4, destination: Ipv4) -> bool {
    let has_none = source.is_unspecified() && !destination.is_unicast();
    !(source.is_host() || has_none)
}

/// Returns `true` for a destination address that no packet on a wire may have.
#[inline(always)]
pub const fn is_martian_destination(destination: Ipv4) -> bool {
    destination.0[0] == 0 || destination.is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{tcp, tuple::FlowKey};

    fn packet(protocol: Protocol, destination_port: u16, tcp_flags: u8) -> Packet {
        Packet {
            key: FlowKey::new(
                protocol,
                Ipv4([10, 0, 2, 69]),
                Port::new(40_000),
                Ipv4([10, 0, 2, 68]),
                Port::new(destination_port),
            ),
            protocol,
            ip_length: 40,
            ttl: 64,
            tcp_flags,
            sequence: 0,
            acknowledgement: 0,
            carries_data: false,
            dont_fragment: false,
            is_fragment: false,
        }
    }

    /// A message from a server to a client.
    fn dhcp() -> Packet {
        let mut packet = packet(Protocol::Udp, 68, 0);
        packet.key.source_port = Port::new(67);
        packet
    }

    const HERE: Place = Place { health_port: Some(Port::new(8082)), is_local: true };
    const ELSEWHERE: Place = Place { is_local: false, ..HERE };

    #[test]
    fn packets_are_closed_out_unless_there_is_a_reason() {
        let cases = [
            (packet(Protocol::Tcp, 22, tcp::SYN), Judgement::IfConnected),
            (packet(Protocol::Tcp, 8082, tcp::SYN), Judgement::Harmless),
            (packet(Protocol::Tcp, 8082, tcp::ACK), Judgement::Harmless),
            (packet(Protocol::Tcp, 50_000, tcp::SYN | tcp::ACK), Judgement::IfConnected),
            (packet(Protocol::Tcp, 22, tcp::ACK), Judgement::IfConnected),
            (packet(Protocol::Udp, 68, 0), Judgement::IfConnected),
            (dhcp(), Judgement::IfAskedFor),
            (packet(Protocol::Udp, 8082, 0), Judgement::IfConnected),
            (packet(Protocol::Icmp, 0, 0), Judgement::Closed),
            (packet(Protocol::Icmp, 7, 0), Judgement::Harmless),
        ];
        for (packet, expected) in cases {
            assert_eq!(judge(&packet, &HERE), expected, "{packet:?}");
        }
        assert_eq!(judge(&packet(Protocol::Tcp, 8082, tcp::SYN), &ELSEWHERE), Judgement::Closed);
        assert_eq!(judge(&dhcp(), &ELSEWHERE), Judgement::IfAskedFor, "a broadcast");
    }

    #[test]
    fn martians() {
        for (address, source, destination) in [
            ([10, 0, 2, 69], false, false),
            ([0, 0, 0, 0], true, true),
            ([0, 0, 0, 1], true, true),
            ([127, 0, 0, 1], true, true),
            ([224, 0, 0, 1], true, false),
            ([255, 255, 255, 255], true, false),
            ([240, 0, 0, 1], false, false),
            ([255, 255, 255, 254], false, false),
            ([239, 255, 255, 255], true, false),
        ] {
            let here = Ipv4([10, 0, 2, 68]);
            let seen = (is_martian_source(Ipv4(address), here), is_martian_destination(Ipv4(address)));
            assert_eq!(seen, (source, destination), "{address:?}");
        }
        for (address, expected) in [([0, 0, 0, 0], false), ([0, 0, 0, 1], true), ([127, 0, 0, 1], true)] {
            for to_many in [[255; 4], [224, 0, 0, 22]] {
                assert_eq!(
                    is_martian_source(Ipv4(address), Ipv4(to_many)),
                    expected,
                    "{address:?} to {to_many:?}"
                );
            }
        }
    }

    #[test]
    fn entries_cover_their_ports_and_networks() {
        let ssh = Allow {
            from: Network::new(Ipv4([10, 0, 2, 64]), 26),
            first: 22,
            last: 23,
            protocol: Protocol::Tcp as u32,
        };
        let source = Ipv4([10, 0, 2, 69]);
        let tcp = |port| Service { protocol: 6, port };
        assert!(ssh.covers(tcp(22), source) && ssh.covers(tcp(23), source));
        assert!(!ssh.covers(tcp(24), source) && !ssh.covers(Service { protocol: 17, port: 22 }, source));
        assert!(!ssh.covers(tcp(22), Ipv4([10, 0, 3, 1])));
        let vrrp = Allow { first: 0, last: u16::MAX, protocol: 112, ..ssh };
        let service = Service::without_ports(112);
        assert!(vrrp.covers(service, source) && !vrrp.covers(service, Ipv4([10, 0, 3, 1])));
        assert!(!vrrp.covers(Service::without_ports(89), source));
    }

    #[test]
    fn services_that_an_entry_may_name() {
        let service = |protocol, port| Service::of(&packet(protocol, port, tcp::SYN));
        assert_eq!(service(Protocol::Tcp, 22), Some(Service { protocol: 6, port: 22 }));
        assert_eq!(service(Protocol::Udp, 161), Some(Service { protocol: 17, port: 161 }));
        assert_eq!(service(Protocol::Icmp, 0), Some(Service::ECHO));
        assert_eq!(service(Protocol::Icmp, 7), None, "an echo reply");
    }

    #[test]
    fn a_search_ends_where_an_entry_covers_the_packet() {
        let ssh = Allow { from: Network::default(), first: 22, last: 22, protocol: 6 };
        let mut search = Search::new(3, Service { protocol: 6, port: 22 }, Ipv4([10, 0, 2, 69]));
        assert_eq!(search.index(2), allow_index(3, 2));
        assert_eq!(search.look_at(Some(&Allow { first: 23, last: 23, ..ssh })), 0);
        assert!(!search.has_found());
        assert_eq!(search.look_at::<Network>(None), 1);
        assert!(!search.has_found());
        assert_eq!(search.look_at(Some(&ssh)), 1);
        assert!(search.has_found());
    }

    #[test]
    fn link_protocols_are_let_in_from_the_link() {
        for (protocol, destination, expected) in [
            (112, [224, 0, 0, 18], true),
            (89, [224, 0, 0, 5], true),
            (2, [224, 0, 0, 1], true),
            (112, [224, 0, 1, 18], false),
            (112, [10, 0, 2, 68], false),
            (2, [239, 1, 1, 1], false),
            (88, [224, 0, 0, 10], true),
            (4, [224, 0, 0, 1], false),
            (41, [224, 0, 0, 1], false),
            (47, [224, 0, 0, 1], false),
            (50, [224, 0, 0, 1], false),
            (132, [224, 0, 0, 1], false),
            (136, [224, 0, 0, 251], false),
            (17, [224, 0, 0, 251], false),
            (6, [224, 0, 0, 1], false),
            (1, [224, 0, 0, 1], false),
        ] {
            assert_eq!(
                is_link_control(protocol, Ipv4(destination)),
                expected,
                "{protocol} to {destination:?}"
            );
        }
    }

    #[test]
    fn the_stack_takes_its_own_addresses_groups_and_broadcasts() {
        for (destination, is_local, expected) in [
            ([10, 0, 2, 68], true, true),
            ([10, 0, 2, 69], false, false),
            ([239, 192, 1, 1], false, true),
            ([255; 4], false, true),
            ([240, 0, 0, 1], false, false),
        ] {
            assert_eq!(may_be_for_the_stack(Ipv4(destination), is_local), expected, "{destination:?}");
        }
    }
}
