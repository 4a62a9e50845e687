//! Packets by name, with their sources and destinations.

use etherparse::{
    Ethernet2Header, Icmpv4Header, Icmpv4Slice, Icmpv4Type, IpHeaders, IpNumber, Ipv4Header, Ipv4HeaderSlice,
    PacketBuilder, PacketBuilderStep, TcpSlice, UdpSlice, checksum::Sum16BitWords,
};
pub(crate) use router_common::tcp;

/// The address that the Private Link Service gives to clients.
pub(crate) const PLS: [u8; 4] = [10, 0, 2, 69];
/// An address on the same link that no rule names.
pub(crate) const STRANGER: [u8; 4] = [10, 0, 2, 100];
/// The router.
pub(crate) const ROUTER: [u8; 4] = [10, 0, 2, 68];
/// The router's second NIC, where it has one.
pub(crate) const ROUTER_SECOND: [u8; 4] = [10, 0, 3, 4];
/// The router's next hop.
pub(crate) const FIREWALL: [u8; 4] = [10, 0, 2, 65];
/// The address that the `https` rule leads to, behind the firewall.
pub(crate) const TARGET: [u8; 4] = [203, 0, 113, 10];
/// Another server behind the firewall.
pub(crate) const OTHER: [u8; 4] = [198, 51, 100, 7];
/// Azure's platform address.
pub(crate) const PLATFORM: [u8; 4] = [168, 63, 129, 16];

/// The MAC addresses of the hosts above, as neighbours of the router.
pub(crate) const PLS_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x69];
pub(crate) const FIREWALL_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x65];

/// A packet to be sent, to be changed by the methods, and built in the end.
#[derive(Clone)]
pub(crate) struct Spec {
    source: ([u8; 4], u16),
    destination: ([u8; 4], u16),
    ttl: u8,
    kind: Kind,
    payload: Vec<u8>,
    tcp_options: Vec<u8>,
    /// TCP's sequence and acknowledgement numbers.
    numbers: (u32, u32),
    dont_fragment: bool,
    /// `true` if the frame is padded to [`FORWARDED_FRAME`].
    padded: bool,
}

/// The least length of frames that `forward` makes itself, as long as TCP's headers. On Ethernet,
/// all have it.
const FORWARDED_FRAME: usize = 54;

#[derive(Clone, Copy)]
enum Kind {
    Tcp { flags: u8 },
    Udp { checksum: bool },
    EchoRequest,
    EchoReply,
}

/// A TCP packet with these flags.
pub(crate) fn tcp_packet(source: ([u8; 4], u16), destination: ([u8; 4], u16), flags: u8) -> Spec {
    spec(source, destination, Kind::Tcp { flags }, &[])
}

/// A UDP packet.
pub(crate) fn udp_packet(source: ([u8; 4], u16), destination: ([u8; 4], u16), payload: &[u8]) -> Spec {
    spec(source, destination, Kind::Udp { checksum: true }, payload)
}

/// An ICMP echo request with this identifier.
pub(crate) fn echo_request(source: [u8; 4], destination: [u8; 4], identifier: u16) -> Spec {
    spec((source, identifier), (destination, 0), Kind::EchoRequest, b"ping")
}

/// An ICMP echo reply with this identifier.
pub(crate) fn echo_reply(source: [u8; 4], destination: [u8; 4], identifier: u16) -> Spec {
    spec((source, 0), (destination, identifier), Kind::EchoReply, b"ping")
}

fn spec(source: ([u8; 4], u16), destination: ([u8; 4], u16), kind: Kind, payload: &[u8]) -> Spec {
    let payload = payload.to_vec();
    Spec {
        source,
        destination,
        ttl: 64,
        kind,
        payload,
        tcp_options: Vec::new(),
        numbers: (1000, 1000),
        dont_fragment: true,
        padded: true,
    }
}

impl Spec {
    /// The same in a frame that ends with the packet, so that it may be too short for `forward`.
    pub(crate) fn unpadded(mut self) -> Self {
        self.padded = false;
        self
    }

    pub(crate) fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    pub(crate) fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// A TCP packet with these options, filled up to whole words.
    pub(crate) fn tcp_options(mut self, options: &[u8]) -> Self {
        self.tcp_options = options.to_vec();
        self
    }

    /// A TCP packet with this sequence number and this acknowledgement number.
    pub(crate) fn numbers(mut self, sequence: u32, acknowledgement: u32) -> Self {
        self.numbers = (sequence, acknowledgement);
        self
    }

    /// A packet that may be fragmented on its way.
    pub(crate) fn may_be_fragmented(mut self) -> Self {
        self.dont_fragment = false;
        self
    }

    /// A UDP packet whose sender computed no checksum.
    pub(crate) fn without_checksum(mut self) -> Self {
        self.kind = Kind::Udp { checksum: false };
        self
    }

    /// The frame, as the router receives it.
    pub(crate) fn build(&self) -> Vec<u8> {
        self.build_between([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
    }

    /// The frame with these Ethernet addresses.
    pub(crate) fn build_between(&self, source_mac: [u8; 6], destination_mac: [u8; 6]) -> Vec<u8> {
        let start: PacketBuilderStep<IpHeaders> = PacketBuilder::ethernet2(source_mac, destination_mac).ipv4(
            self.source.0,
            self.destination.0,
            self.ttl,
        );
        let mut frame = Vec::new();
        match self.kind {
            Kind::Tcp { flags } => {
                let mut step = start.tcp(self.source.1, self.destination.1, self.numbers.0, 64_000);
                if flags & tcp::SYN != 0 {
                    step = step.syn();
                }
                if flags & tcp::ACK != 0 {
                    step = step.ack(self.numbers.1);
                }
                if flags & tcp::FIN != 0 {
                    step = step.fin();
                }
                if flags & tcp::RST != 0 {
                    step = step.rst();
                }
                if flags & tcp::PSH != 0 {
                    step = step.psh();
                }
                step.options_raw(&self.tcp_options).expect("options").write(&mut frame, &self.payload)
            }
            Kind::Udp { .. } => start.udp(self.source.1, self.destination.1).write(&mut frame, &self.payload),
            Kind::EchoRequest => start.icmpv4_echo_request(self.source.1, 1).write(&mut frame, &self.payload),
            Kind::EchoReply => {
                start.icmpv4_echo_reply(self.destination.1, 1).write(&mut frame, &self.payload)
            }
        }
        .expect("a Vec takes any packet");
        if let Kind::Udp { checksum: false } = self.kind {
            frame[40..42].fill(0);
        }
        let (mut header, _) = Ipv4Header::from_slice(&frame[14..]).expect("IPv4");
        header.dont_fragment = self.dont_fragment;
        header.header_checksum = header.calc_header_checksum();
        frame[14..34].copy_from_slice(&header.to_bytes());
        if self.padded && frame.len() < FORWARDED_FRAME {
            frame.resize(FORWARDED_FRAME, 0);
        }
        frame
    }
}

/// Makes the IPv4 header checksum right again after the header was changed.
pub(crate) fn fix_ip_checksum(frame: &mut [u8]) {
    let end = 14 + usize::from(frame[14] & 0x0f) * 4;
    frame[24..26].fill(0);
    let sum = frame[14..end.max(34)]
        .chunks(2)
        .fold(0_u32, |sum, word| sum + u32::from(u16::from_be_bytes([word[0], word[1]])));
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !(((folded & 0xffff) + (folded >> 16)) as u16);
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
}

/// The content of a frame whose checksums have been verified from scratch.
#[derive(Debug, PartialEq)]
pub(crate) struct Seen {
    pub(crate) destination_mac: [u8; 6],
    pub(crate) source: ([u8; 4], u16),
    pub(crate) destination: ([u8; 4], u16),
    pub(crate) ttl: u8,
    pub(crate) payload: Vec<u8>,
}

/// Reads a frame with etherparse and verifies every checksum in it.
///
/// For ICMP echo the identifier stands as the source port of a request and the destination port of
/// a reply.
pub(crate) fn read(frame: &[u8]) -> Seen {
    let (ethernet, rest) = Ethernet2Header::from_slice(frame).expect("Ethernet");
    let ip = Ipv4HeaderSlice::from_slice(rest).expect("IPv4");
    assert_eq!(ip.header_checksum(), ip.to_header().calc_header_checksum(), "IPv4 header checksum");
    let total = usize::from(ip.total_len());
    let payload = &rest[ip.slice().len()..total];
    let (source_port, destination_port, payload) = match ip.protocol() {
        IpNumber::TCP => {
            let tcp = TcpSlice::from_slice(payload).expect("TCP");
            let expected = tcp.calc_checksum_ipv4(ip.source(), ip.destination()).expect("length");
            assert_eq!(tcp.checksum(), expected, "TCP checksum");
            (tcp.source_port(), tcp.destination_port(), tcp.payload().to_vec())
        }
        IpNumber::UDP => {
            let udp = UdpSlice::from_slice(payload).expect("UDP");
            let header = udp.to_header();
            if udp.checksum() != 0 {
                let expected = header
                    .calc_checksum_ipv4_raw(ip.source(), ip.destination(), udp.payload())
                    .expect("length");
                assert_eq!(udp.checksum(), expected, "UDP checksum");
            }
            (udp.source_port(), udp.destination_port(), udp.payload().to_vec())
        }
        IpNumber::ICMP => {
            let icmp = Icmpv4Slice::from_slice(payload).expect("ICMP");
            let header = icmp.header();
            let expected = Icmpv4Header::with_checksum(header.icmp_type.clone(), icmp.payload()).checksum;
            assert_eq!(header.checksum, expected, "ICMP checksum");
            if let Icmpv4Type::EchoRequest(echo) = header.icmp_type {
                (echo.id, 0, icmp.payload().to_vec())
            } else if let Icmpv4Type::EchoReply(echo) = header.icmp_type {
                (0, echo.id, icmp.payload().to_vec())
            } else {
                panic!("unexpected {:?}", header.icmp_type)
            }
        }
        other => panic!("unexpected protocol {other:?}"),
    };
    Seen {
        destination_mac: ethernet.destination,
        source: (ip.source(), source_port),
        destination: (ip.destination(), destination_port),
        ttl: ip.ttl(),
        payload,
    }
}

/// An ICMP error.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct IcmpError {
    pub(crate) source: [u8; 4],
    pub(crate) destination: [u8; 4],
    pub(crate) ttl: u8,
    /// Type and code.
    pub(crate) kind: (u8, u8),
    /// The word before the quote: a pointer, an MTU.
    pub(crate) rest: [u8; 4],
    /// The packet it is about, from its IP header on.
    pub(crate) quote: Vec<u8>,
}

impl IcmpError {
    pub(crate) fn build(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv4(self.source, self.destination, self.ttl)
            .icmpv4_raw(self.kind.0, self.kind.1, self.rest)
            .write(&mut frame, &self.quote)
            .expect("a Vec takes any packet");
        frame
    }

    /// Reads an ICMP error, and verifies the checksums around its quote.
    pub(crate) fn read(frame: &[u8]) -> Self {
        let ip = Ipv4HeaderSlice::from_slice(&frame[14..]).expect("IPv4");
        assert_eq!(ip.header_checksum(), ip.to_header().calc_header_checksum(), "IPv4 header checksum");
        assert_eq!(ip.protocol(), IpNumber::ICMP);
        let message = &frame[34..14 + usize::from(ip.total_len())];
        assert_eq!(internet_checksum(message), [0, 0], "ICMP checksum");
        Self {
            source: ip.source(),
            destination: ip.destination(),
            ttl: ip.ttl(),
            kind: (message[0], message[1]),
            rest: message[4..8].try_into().expect("four bytes"),
            quote: message[8..].to_vec(),
        }
    }
}

/// The checksum of these bytes, from scratch (RFC 1071).
pub(crate) fn internet_checksum(bytes: &[u8]) -> [u8; 2] {
    Sum16BitWords::new().add_slice(bytes).ones_complement().to_ne_bytes()
}
