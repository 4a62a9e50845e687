//! A sequence: sessions, and the packets that their two sides send one after the other.
//!
//! A plan does not depend on a router's output. Values that do (the port that a session got, the
//! packet that an ICMP error quotes) are filled in when the packet is sent, for each router from
//! its own output.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::{
    category::Category,
    topology::{Side, UNUSED_PORTS},
};
use crate::{
    packet::{self, Cut, Damage, ECHO_REPLY, ECHO_REQUEST, Header, ICMP, IP_HEADER, Segment, TCP, UDP},
    random::{Draw as _, Random},
    view::View,
};

/// The largest number of datagrams of a sequence.
pub(super) const MAX_DATAGRAMS: u16 = 127;
/// The sequences that can run at the same time: their packets' IP identifications differ.
pub(super) const IDENTIFIED: u32 = 500;

/// Packets that belong together, and to no others.
#[derive(Clone, Debug)]
pub(super) struct Sequence {
    /// The seed that it was made from.
    pub(super) seed: u64,
    /// The slot, which its addresses, ports and identifications are made from.
    pub(super) slot: u32,
    pub(super) sessions: Vec<Session>,
    pub(super) steps: Vec<Step>,
}

/// A conversation between a client and a server.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) protocol: u8,
    pub(super) client: SocketAddrV4,
    /// The address and port that the client sends to.
    pub(super) listen: SocketAddrV4,
    pub(super) server: SocketAddrV4,
    /// No rule leads there when it begins.
    pub(super) refused: bool,
}

/// A packet that one side sends.
#[derive(Clone, Debug)]
pub(super) struct Step {
    /// The datagram's number; the fragments of a datagram share it. It becomes the IP
    /// identification.
    pub(super) number: u16,
    pub(super) from: Side,
    /// The session, as an index.
    pub(super) session: usize,
    /// In place of the session's source.
    pub(super) source: Option<SocketAddrV4>,
    /// In place of the session's destination.
    pub(super) destination: Option<SocketAddrV4>,
    pub(super) tos: u8,
    pub(super) ttl: u8,
    pub(super) dont_fragment: bool,
    pub(super) options: Vec<u8>,
    pub(super) body: Body,
    pub(super) cut: Option<Cut>,
    pub(super) damage: Option<Damage>,
    /// The category that it was added for; `None` if it is part of the talk.
    pub(super) spice: Option<Category>,
    /// The number of changes of the routers before it.
    pub(super) phase: usize,
}

/// The payload of an IP packet.
#[derive(Clone, Debug)]
pub(super) enum Body {
    Tcp { sequence: u32, acknowledgement: u32, flags: u8, window: u16, options: Vec<u8>, length: usize },
    Udp { length: usize, checksum: bool },
    Echo { reply: bool, sequence: u16, length: usize },
    Other { protocol: u8, length: usize },
    Error(Quote),
}

impl Body {
    /// Returns the length of its payload.
    pub(super) fn length(&self) -> usize {
        match self {
            Self::Tcp { length, .. } | Self::Udp { length, .. } => *length,
            Self::Echo { length, .. } | Self::Other { length, .. } => *length,
            Self::Error(quote) => quote.length,
        }
    }
}

/// An ICMP error about a packet that has come out on the side that sends the error.
#[derive(Clone, Debug)]
pub(super) struct Quote {
    pub(super) kind: u8,
    pub(super) code: u8,
    /// The second word of the ICMP header.
    pub(super) rest: [u8; 4],
    /// The number of the datagram that it is about.
    pub(super) of: u16,
    /// The sender; `None` for the destination of the quoted packet.
    pub(super) reporter: Option<Ipv4Addr>,
    /// The length of the quoted transport header and payload.
    pub(super) length: usize,
    /// IP options that the quoted packet is said to have had.
    pub(super) options: usize,
    pub(super) wrong: Wrong,
}

/// A defect of a quoted packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Wrong {
    Nothing,
    /// The router's port in it is one that no session has.
    Port,
    /// The far address in it.
    Address,
    /// Its IP header's checksum.
    IpChecksum,
    /// Its transport checksum.
    L4Checksum,
    /// Its protocol.
    Protocol,
}

/// The output of one router for a sequence so far.
pub(super) trait Known {
    /// The port that a session got.
    fn port(&self, session: usize) -> Option<u16>;
    /// The packet that a datagram became, on this side.
    fn forwarded(&self, number: u16, side: Side) -> Option<&[u8]>;
    /// The router's address that sessions get.
    fn address(&self) -> Ipv4Addr;
}

impl Sequence {
    /// The IP identification of a datagram; never 0.
    pub(super) fn id(&self, number: u16) -> u16 {
        (self.slot % IDENTIFIED) as u16 * (MAX_DATAGRAMS + 1) + number + 1
    }

    /// A port that no session ever gets, for packets of sessions that have none.
    fn no_port(&self) -> u16 {
        UNUSED_PORTS.0 + (self.slot % u32::from(UNUSED_PORTS.1)) as u16
    }

    /// The packet of a step; none if it quotes a packet that never was.
    pub(super) fn packet(&self, step: &Step, known: &impl Known) -> Option<Vec<u8>> {
        let (source, destination) = self.addresses(step, known);
        let mut header = Header {
            source: *source.ip(),
            destination: *destination.ip(),
            protocol: 0,
            id: self.id(step.number),
            tos: step.tos,
            ttl: step.ttl,
            dont_fragment: step.dont_fragment,
            options: step.options.clone(),
        };
        let body = match &step.body {
            Body::Tcp { sequence, acknowledgement, flags, window, options, length } => {
                header.protocol = TCP;
                let segment = Segment {
                    sequence: *sequence,
                    acknowledgement: *acknowledgement,
                    flags: *flags,
                    window: *window,
                    options: options.clone(),
                    payload: self.payload(step.number, *length),
                };
                segment.bytes(source, destination)
            }
            Body::Udp { length, checksum } => {
                header.protocol = UDP;
                packet::udp(source, destination, &self.payload(step.number, *length), *checksum)
            }
            Body::Echo { reply, sequence, length } => {
                header.protocol = ICMP;
                let (kind, id) =
                    if *reply { (ECHO_REPLY, destination.port()) } else { (ECHO_REQUEST, source.port()) };
                let ([a, b], [c, d]) = (id.to_be_bytes(), sequence.to_be_bytes());
                packet::icmp(kind, 0, [a, b, c, d], &self.payload(step.number, *length))
            }
            Body::Other { protocol, length } => {
                header.protocol = *protocol;
                self.payload(step.number, *length)
            }
            Body::Error(quote) => {
                header.protocol = ICMP;
                let quoted = known.forwarded(quote.of, step.from)?;
                let view = View::new(quoted)?;
                header.source = quote.reporter.unwrap_or(view.destination());
                header.destination = view.source();
                packet::icmp(quote.kind, quote.code, quote.rest, &quote.bytes(view))
            }
        };
        let mut bytes = header.packet(&body);
        if let Some(cut) = step.cut {
            bytes = packet::fragment(&bytes, cut);
        }
        if let Some(damage) = step.damage {
            packet::damage(&mut bytes, damage);
        }
        Some(bytes)
    }

    fn addresses(&self, step: &Step, known: &impl Known) -> (SocketAddrV4, SocketAddrV4) {
        let session = &self.sessions[step.session];
        let (source, destination) = match step.from {
            Side::Client => (session.client, session.listen),
            Side::Server => {
                let port = known.port(step.session).unwrap_or(self.no_port());
                (session.server, SocketAddrV4::new(known.address(), port))
            }
        };
        (step.source.unwrap_or(source), step.destination.unwrap_or(destination))
    }

    fn payload(&self, number: u16, length: usize) -> Vec<u8> {
        Random::with_seed(self.seed ^ (u64::from(number) << 48)).bytes(length)
    }
}

impl Quote {
    /// Returns the part of a packet that an error quotes.
    fn bytes(&self, view: View<'_>) -> Vec<u8> {
        let mut header = view.header().to_vec();
        let mut payload = view.payload().to_vec();
        if self.options > 0 && header.len() == IP_HEADER {
            // No-operations, and the lengths in the header that match them.
            header.extend(std::iter::repeat_n(1, self.options));
            header[0] = 0x40 | (header.len() / 4) as u8;
            let length = (view.total_length() + self.options) as u16;
            header[2..4].copy_from_slice(&length.to_be_bytes());
        }
        let (source, destination) = view.port_offsets();
        match self.wrong {
            Wrong::Nothing | Wrong::IpChecksum => {}
            Wrong::Port => {
                // The port that is the router's is the source of what went to a server, and the
                // destination else.
                let ours = if view.source().octets()[0] == 10 { source } else { destination };
                if let Some(at) = ours.or(source).or(destination) {
                    payload[at..at + 2].copy_from_slice(&UNUSED_PORTS.0.to_be_bytes());
                }
            }
            Wrong::Address => header[18] ^= 0x01,
            Wrong::L4Checksum => {
                if let Some(at) = view.l4_checksum_offset() {
                    packet::spoil(&mut payload, at);
                }
            }
            Wrong::Protocol => header[9] = 132,
        }
        header[10..12].fill(0);
        let checksum = !packet::sum(&[&header]);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        if self.wrong == Wrong::IpChecksum {
            packet::spoil(&mut header, 10);
        }
        header.extend(payload.iter().take(self.length));
        header
    }
}
