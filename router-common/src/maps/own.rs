//! This machine's own traffic: what it has sent is remembered for a while, so that answers to it
//! are let in.

use crate::{
    address::{Ipv4, Ipv6, Port},
    packet::Packet,
    time::Ticks,
    tuple::{FlowKey, Ipv6Key, Protocol},
    wire::{Frame, UDP_LENGTH, l4},
};

/// The ports of DHCP servers and clients (RFC 2131 4.1).
pub(crate) const DHCP_PORTS: (u16, u16) = (67, 68);
/// The ports of DHCPv6 servers and clients (RFC 8415 7.2).
pub(crate) const DHCPV6_PORTS: (u16, u16) = (547, 546);

/// Returns the key that stands for the answers to a DHCP message. They come from any server or
/// relay, to any address, but with the number of the transaction that this machine has begun
/// (`xid`, RFC 2131 2).
#[inline(always)]
pub const fn dhcp_answer(transaction: [u8; 4]) -> FlowKey {
    let (server, client) = DHCP_PORTS;
    FlowKey::new(Protocol::Udp, Ipv4(transaction), Port::new(server), Ipv4([0; 4]), Port::new(client))
}

/// The same for DHCPv6 (RFC 8415 8).
#[inline(always)]
pub const fn dhcpv6_answer([a, b, c]: [u8; 3]) -> Ipv6Key {
    let (server, client) = DHCPV6_PORTS;
    let mut transaction = [0; 16];
    (transaction[0], transaction[1], transaction[2]) = (a, b, c);
    Ipv6Key::new(Protocol::Udp, Ipv6(transaction), Port::new(server), Ipv6([0; 16]), Port::new(client))
}

/// Returns `true` for a message from a DHCP client to a server.
#[inline(always)]
pub const fn is_to_dhcp_server(packet: &Packet) -> bool {
    let (server, client) = DHCP_PORTS;
    matches!(packet.protocol, Protocol::Udp)
        && packet.key.destination_port.number() == server
        && packet.key.source_port.number() == client
}

/// Returns the transaction of a DHCP message, in a UDP packet.
#[inline(always)]
pub fn dhcp_transaction(frame: &(impl Frame + ?Sized)) -> Option<[u8; 4]> {
    // After the UDP header and four bytes with the kinds of message and link.
    frame.bytes::<4>(l4(UDP_LENGTH + 4)).copied()
}

/// The time that a datagram is remembered, in ticks: 300 s, as long as a NAT keeps a mapping (RFC
/// 4787 REQ-5).
const DATAGRAMS: u32 = 280;
/// The time that an echo request is remembered, in ticks: 60 s (RFC 5508 REQ-2).
const ECHOES: u32 = 56;

/// Returns `true` if a packet that was last sent at this time may still be answered.
#[inline(always)]
pub const fn is_remembered(protocol: Protocol, sent: Ticks, now: Ticks) -> bool {
    let age = now.0.saturating_sub(sent.0);
    match protocol {
        Protocol::Icmp => age <= ECHOES,
        Protocol::Udp | Protocol::Tcp => age <= DATAGRAMS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_known_for_as_long_as_a_nat_would_let_them_in() {
        const SECOND: u64 = 1_000_000_000;
        for (protocol, seconds) in [(Protocol::Udp, 300), (Protocol::Icmp, 60)] {
            let sent = Ticks(1000);
            let lasts =
                (0..1000).take_while(|age| is_remembered(protocol, sent, Ticks(1000 + age))).count() as u32;
            let lasts = Ticks(1000 + lasts).nanoseconds_since(sent);
            assert!((seconds * SECOND..(seconds + 3) * SECOND).contains(&lasts), "{protocol:?}: {lasts} ns");
            assert!(is_remembered(protocol, sent, Ticks(999)), "its clock was read a moment later than ours");
        }
    }
}
