//! The output of a router, in a form in which two routers can be compared.
//!
//! Fields that may differ are removed: the SNAT port of a session, the IP identification of packets
//! that a router makes itself, Ethernet's padding. Checksums depend on the port, so they are
//! replaced by the result of verifying them.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::topology::Side;
use crate::{
    packet::{ICMP, IP_HEADER, RST, TCP, UDP, pseudo_header, replace, sum},
    view::View,
};

/// The bits of the type of service that are the precedence (RFC 791 3.1).
const PRECEDENCE: u8 = 0xe0;
/// In the flags.
const DONT_FRAGMENT: u8 = 0x40;

/// The result of verifying a checksum.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Check {
    Right,
    /// UDP without one.
    Unused,
    /// By how much it is wrong.
    Wrong(u16),
    /// It covers more bytes than there are. The value is the checksum for a session that had kept
    /// the client's port.
    Unknown(u16),
}

/// A packet that came out.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Seen {
    pub(super) side: Side,
    /// It is the router's own.
    pub(super) own: bool,
    /// The packet without what may differ.
    pub(super) packet: Vec<u8>,
    /// The results for its checksums, from the outside in.
    pub(super) checks: Vec<Check>,
    /// The sessions whose ports were in it.
    pub(super) ports: Vec<usize>,
}

/// A placeholder for a SNAT port.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mapped {
    /// The session that has got it.
    pub(super) session: usize,
    /// The client's own port.
    pub(super) client_port: u16,
}

/// The values to remove from the packets of a sequence.
pub(super) trait Names {
    /// Returns the placeholder for a port of the router, in a packet of this session.
    fn mapped(&self, port: u16, session: usize) -> Option<Mapped>;
    /// The router's address for servers.
    fn address(&self) -> Ipv4Addr;
}

/// Takes out of a packet of a session what may differ. `own`: it is the router's own packet.
pub(super) fn observe(side: Side, packet: &[u8], own: bool, session: usize, names: &impl Names) -> Seen {
    let mut seen = Seen { side, own, packet: packet.to_vec(), checks: Vec::new(), ports: Vec::new() };
    if let Some(view) = View::new(packet) {
        // Bytes after the packet are Ethernet's padding.
        seen.packet.truncate(view.total_length().max(view.header_length()));
        let names = (side == Side::Server).then_some((names, session));
        seen.normalise(packet, 0, names);
        if own {
            seen.packet[4..6].fill(0);
        }
    }
    seen
}

impl Seen {
    /// Takes care of the packet that starts at `at`: the whole one, or one that it quotes.
    fn normalise(&mut self, packet: &[u8], at: usize, names: Option<(&impl Names, usize)>) {
        let Some(view) = View::new(packet) else { return };
        let header = view.header_length();
        self.checks.push(worth(sum(&[view.header()])));
        self.packet[at + 10..at + 12].fill(0);

        // Which of the two ports is the router's own, and what it stands for.
        let tuple = view.tuple();
        let (source, destination) = view.port_offsets();
        let mut renamed = None;
        if let Some((names, session)) = names {
            for (port_at, own) in [(source, tuple.source), (destination, tuple.destination)] {
                if let Some(port_at) = port_at
                    && *own.ip() == names.address()
                    && let Some(mapped) = names.mapped(own.port(), session)
                {
                    self.ports.push(mapped.session);
                    let place = at + header + port_at;
                    self.packet[place..place + 2].copy_from_slice(&mapped.client_port.to_be_bytes());
                    renamed = Some((own.port(), mapped.client_port));
                }
            }
        }
        if let Some(checksum_at) = view.l4_checksum_offset() {
            self.checks.push(transport(view, checksum_at, renamed));
            let place = at + header + checksum_at;
            self.packet[place..place + 2].fill(0);
        }
        if let Some(quoted) = view.quoted() {
            self.normalise(quoted, at + header + 8, names);
        }
    }

    /// Returns `true` if it is a fragment of a datagram that has not come out in full.
    pub(super) fn is_fragment(&self) -> bool {
        View::new(&self.packet).is_some_and(View::is_fragment)
    }

    /// Returns `true` if it goes to this server.
    pub(super) fn goes_to(&self, server: SocketAddrV4) -> bool {
        View::new(&self.packet).is_some_and(|view| view.tuple().destination == server)
    }

    /// Returns the type of an ICMP message; `None` for other packets.
    pub(super) fn icmp_kind(&self) -> Option<u8> {
        let view = View::new(&self.packet).filter(|view| view.protocol() == ICMP && view.offset() == 0)?;
        view.payload().first().copied()
    }

    /// Returns `true` if it is TCP that ends a connection at once.
    pub(super) fn is_reset(&self) -> bool {
        let view = View::new(&self.packet).filter(|view| view.protocol() == TCP && view.offset() == 0);
        view.and_then(|view| view.payload().get(13).copied()).is_some_and(|flags| flags & RST != 0)
    }

    /// Returns `true` if a checksum is wrong.
    pub(super) fn has_wrong_checksum(&self) -> bool {
        self.checks.iter().any(|check| matches!(check, Check::Wrong(_)))
    }
}

fn worth(sum: u16) -> Check {
    // Both are zero; the second one is that of nothing but zeros.
    if sum == 0xffff || sum == 0 { Check::Right } else { Check::Wrong(sum) }
}

/// Verifies a transport header's checksum.
fn transport(view: View<'_>, at: usize, renamed: Option<(u16, u16)>) -> Check {
    let payload = view.payload();
    let checksum = u16::from_be_bytes([payload[at], payload[at + 1]]);
    let protocol = view.protocol();
    if protocol == UDP && checksum == 0 {
        return Check::Unused;
    }
    if view.is_fragment() || !view.is_whole() {
        let value = renamed.map_or(checksum, |(from, to)| replace(checksum, from, to));
        // Both are zero.
        return Check::Unknown(if value == 0xffff { 0 } else { value });
    }
    if protocol == ICMP {
        return worth(sum(&[payload]));
    }
    let pseudo = pseudo_header(view.source(), view.destination(), protocol, payload.len());
    worth(sum(&[&pseudo, payload]))
}

/// An ICMP error of a router's own as one would have made it that quotes 8 bytes after the IP
/// header, knows only the precedence as a type of service, and lets no error be fragmented. A
/// checksum that is wrong stays so. Other packets stay as they are.
pub(super) fn abridge(packet: &[u8]) -> Vec<u8> {
    let whole = || packet.to_vec();
    let Some(view) = View::new(packet) else { return whole() };
    let Some(quoted) = view.quoted().and_then(View::new) else { return whole() };
    let header = view.header_length();
    let length = (header + 8 + quoted.header_length() + 8).min(packet.len());
    let icmp_is_right = worth(sum(&[view.payload()])) == Check::Right;
    let mut short = packet[..length].to_vec();
    let mut replace_word = |at: usize, new: [u8; 2]| {
        let old = u16::from_be_bytes([short[at], short[at + 1]]);
        let checksum = u16::from_be_bytes([short[10], short[11]]);
        short[at..at + 2].copy_from_slice(&new);
        short[10..12].copy_from_slice(&replace(checksum, old, u16::from_be_bytes(new)).to_be_bytes());
    };
    replace_word(0, [packet[0], packet[1] & PRECEDENCE]);
    replace_word(2, (length as u16).to_be_bytes());
    replace_word(6, [packet[6] | DONT_FRAGMENT, packet[7]]);
    if icmp_is_right {
        short[header + 2..header + 4].fill(0);
        let checksum = !sum(&[&short[header..]]);
        short[header + 2..header + 4].copy_from_slice(&checksum.to_be_bytes());
    }
    short
}

/// Fragments of one datagram put together, if all are there; else none.
pub(super) fn reassemble(fragments: &[&[u8]]) -> Option<Vec<u8>> {
    let views = fragments.iter().map(|fragment| View::new(fragment)).collect::<Option<Vec<_>>>()?;
    let first = views.iter().find(|view| view.offset() == 0)?;
    let last = views.iter().find(|view| !view.more_fragments())?;
    let length = last.offset() + last.payload().len();
    let mut payload = vec![0; length];
    let mut filled = vec![false; length];
    for view in &views {
        for (at, byte) in view.payload().iter().enumerate() {
            let at = view.offset() + at;
            *payload.get_mut(at)? = *byte;
            filled[at] = true;
        }
    }
    if filled.contains(&false) {
        return None;
    }
    let mut packet = first.header().to_vec();
    let total = (packet.len() + length) as u16;
    // Neither offset nor more-fragments; and the header's checksum as far as it was right before.
    let old = [packet[2..4].to_vec(), packet[6..8].to_vec()].concat();
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet[6] &= 0xc0;
    packet[7] = 0;
    let mut checksum = u16::from_be_bytes([packet[10], packet[11]]);
    for (old, new) in [(&old[0..2], [packet[2], packet[3]]), (&old[2..4], [packet[6], packet[7]])] {
        checksum = replace(checksum, u16::from_be_bytes([old[0], old[1]]), u16::from_be_bytes(new));
    }
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(payload);
    debug_assert!(packet.len() >= IP_HEADER);
    Some(packet)
}
