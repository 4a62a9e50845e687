//! The packets that the bench sends.

use std::{fmt, net::Ipv4Addr};

use router_common::checksum::Sum;
use serde::Serialize;

use super::traffic::HEAD;

/// The frame's length without the frame check sequence, which no program ever sees: 64 bytes on a
/// wire.
pub(crate) const FRAME: usize = HEAD;
/// The length of a full Ethernet frame: an IP packet of 1500 bytes.
pub(crate) const LONG_FRAME: usize = 1514;

/// Ethernet.
const LINK: usize = 14;
/// The number of routers that a packet may pass.
const TTL: u8 = 64;
/// Ethernet and IPv4.
const TRANSPORT: usize = LINK + 20;

/// The first of the target's ports, before and after translation.
pub(crate) const PORT: u16 = 9000;
/// The source port of the first flow.
const FIRST_SOURCE_PORT: u16 = 10_000;

/// The sequence number of every client's SYN and of every target's: all connections are alike.
const SEQUENCE: [u32; 2] = [1000, 5000];

/// The transport protocol.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

impl Transport {
    /// The IP protocol number.
    const fn number(self) -> u8 {
        match self {
            Self::Udp => 17,
            Self::Tcp => 6,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Udp => "UDP",
            Self::Tcp => "TCP",
        })
    }
}

/// The shape of packets.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub(crate) struct Shape {
    pub(crate) transport: Transport,
    /// The frame's length, without the frame check sequence.
    pub(crate) length: usize,
}

impl Shape {
    /// The smallest UDP packets.
    pub(crate) const SHORT_UDP: Self = Self { transport: Transport::Udp, length: FRAME };
}

/// A packet of a connection, by its step: of UDP, any is data.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Step {
    /// The client's SYN.
    Syn,
    /// The target's SYN and ACK.
    SynAck,
    /// Data of the client's, with an acknowledgement.
    Data,
    /// Data of the target's.
    ReplyData,
}

impl Step {
    /// Flags, sequence number and acknowledgement number of a TCP segment.
    const fn segment(self) -> (u8, u32, u32) {
        const SYN: u8 = 2;
        const ACK: u8 = 16;
        let [client, target] = SEQUENCE;
        match self {
            Self::Syn => (SYN, client, 0),
            Self::SynAck => (SYN | ACK, target, client + 1),
            Self::Data => (ACK, client + 1, target + 1),
            Self::ReplyData => (ACK, target + 1, client + 1),
        }
    }
}

/// The headers of a path's first flow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Headers {
    pub(crate) source_mac: [u8; 6],
    pub(crate) destination_mac: [u8; 6],
    /// The first flow's; the others' follow.
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
}

impl Headers {
    /// A packet of the first flow, to the target or from it. From it, the destination port is left
    /// 0.
    pub(crate) fn packet(&self, shape: Shape, step: Step) -> Vec<u8> {
        let mut frame = vec![0; shape.length];
        self.write(&mut frame, shape.transport, step);
        frame
    }

    /// Fills zeros.
    fn write(&self, frame: &mut [u8], transport: Transport, step: Step) {
        frame[0..6].copy_from_slice(&self.destination_mac);
        frame[6..12].copy_from_slice(&self.source_mac);
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        let ip_length = (frame.len() - LINK) as u16;
        let length = (frame.len() - TRANSPORT) as u16;
        frame[14] = 0x45;
        frame[16..18].copy_from_slice(&ip_length.to_be_bytes());
        // Don't fragment, TTL, protocol.
        frame[20..24].copy_from_slice(&[0x40, 0, TTL, transport.number()]);
        frame[26..30].copy_from_slice(&self.source.octets());
        frame[30..34].copy_from_slice(&self.destination.octets());
        let ports = match step {
            Step::Syn | Step::Data => [FIRST_SOURCE_PORT, PORT],
            Step::SynAck | Step::ReplyData => [PORT, 0],
        };
        frame[34..36].copy_from_slice(&ports[0].to_be_bytes());
        frame[36..38].copy_from_slice(&ports[1].to_be_bytes());
        let checksum = match transport {
            Transport::Udp => {
                frame[38..40].copy_from_slice(&length.to_be_bytes());
                40
            }
            Transport::Tcp => {
                let (flags, sequence, acknowledgement) = step.segment();
                frame[38..42].copy_from_slice(&sequence.to_be_bytes());
                frame[42..46].copy_from_slice(&acknowledgement.to_be_bytes());
                // 20 bytes of header, flags, the largest window.
                frame[46..50].copy_from_slice(&[0x50, flags, 0xff, 0xff]);
                50
            }
        };
        let ip = Sum::ZERO.add_bytes(&frame[LINK..TRANSPORT]).checksum();
        frame[24..26].copy_from_slice(&ip);
        // RFC 768's and RFC 9293's pseudo header: addresses, protocol, length.
        let pseudo =
            Sum::ZERO.add_bytes(&frame[26..34]).add([0, transport.number()]).add(length.to_be_bytes());
        let sum = pseudo.add_bytes(&frame[TRANSPORT..]).checksum();
        frame[checksum..checksum + 2].copy_from_slice(&sum);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const HEADERS: Headers = Headers {
        source_mac: [2, 0, 0, 0, 0, 1],
        destination_mac: [2, 0, 0, 0, 0, 2],
        source: Ipv4Addr::new(10, 0, 2, 69),
        destination: Ipv4Addr::new(10, 0, 2, 68),
    };

    /// Verifies both checksums with another implementation.
    pub(crate) fn assert_right_checksums(frame: &[u8]) {
        let packet = etherparse::SlicedPacket::from_ethernet(frame).expect("a packet");
        let Some(etherparse::NetSlice::Ipv4(ip)) = &packet.net else { panic!("it is not IPv4") };
        let header = ip.header().to_header();
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        assert_eq!(usize::from(header.total_len), frame.len() - LINK);
        #[expect(clippy::wildcard_enum_match_arm, reason = "no other can be right")]
        match packet.transport.expect("a transport") {
            etherparse::TransportSlice::Udp(udp) => {
                let right = udp.to_header().calc_checksum_ipv4(&header, udp.payload()).expect("it fits");
                assert_eq!(udp.checksum(), right);
            }
            etherparse::TransportSlice::Tcp(tcp) => {
                let right = tcp.to_header().calc_checksum_ipv4(&header, tcp.payload()).expect("it fits");
                assert_eq!(tcp.checksum(), right);
            }
            other => panic!("it is {other:?}"),
        }
    }

    #[test]
    fn frames_of_every_shape_have_right_checksums() {
        for transport in [Transport::Udp, Transport::Tcp] {
            for length in [FRAME, LONG_FRAME] {
                for step in [Step::Syn, Step::SynAck, Step::Data, Step::ReplyData] {
                    assert_right_checksums(&HEADERS.packet(Shape { transport, length }, step));
                }
            }
        }
    }

    #[test]
    fn a_connection_acknowledges_what_was_sent() {
        let (_, client, _) = Step::Syn.segment();
        let (_, target, acknowledged) = Step::SynAck.segment();
        assert_eq!(acknowledged, client + 1);
        assert_eq!(Step::Data.segment(), (16, client + 1, target + 1));
        assert_eq!(Step::ReplyData.segment(), (16, target + 1, client + 1));
    }
}
