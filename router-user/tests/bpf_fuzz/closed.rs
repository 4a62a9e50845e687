//! Closed stays closed: a model of what the kernel makes of a frame that is passed to it, and of
//! the sources that may have sent it. Written from what Linux does with frames (net/core/dev.c,
//! net/ipv4/ip_input.c, net/ipv6/ip6_input.c), and without any code of the router's.

use std::{collections::HashSet, net::Ipv6Addr};

use anyhow::{Result, bail, ensure};
use router_common::ports::PortRange;
use router_user::dataplane::{LocalAllowSpec, RuleSetSpec};

use crate::{
    frames::ROUTER_MAC,
    model::{CLIENTS, Model, allow_clients},
    packets::{PLATFORM, STRANGER},
    wire::{Header, ICMP, TCP, UDP, header, header_checksum_is_right, is_host, word},
};

const HEALTH: u16 = 8082;
/// The network that is allowed in by IPv6, where others are closed out.
pub(crate) const ADMIN_NETWORK: Ipv6Addr = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 0);

/// This machine's IPv6 addresses.
pub(crate) const OWN_IPV6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x68), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x68)];

/// Closes this machine to all sources but a few that `local.allow` names; answers are told by what
/// this machine has sent, which is nothing.
pub(crate) fn close(spec: &mut RuleSetSpec) {
    allow_clients(spec);
    let stranger = std::net::Ipv4Addr::from(STRANGER);
    let allow = |protocol, ports: (u16, u16), from: &str| LocalAllowSpec {
        protocol,
        ports: PortRange { first: ports.0, last: ports.1 },
        from: from.parse().expect("a network"),
    };
    spec.local.others_are_closed = true;
    spec.local.ephemeral = PortRange { first: 1, last: 0 };
    spec.local.allow = vec![
        allow(TCP, (22, 22), &format!("{stranger}/32")),
        allow(ICMP, (0, u16::MAX), &format!("{stranger}/32")),
        allow(UDP, (161, 161), "0.0.0.0/0"),
        allow(TCP, (22, 22), &format!("{ADMIN_NETWORK}/64")),
    ];
}

/// The frames passed so far, as far as they decide about those that follow.
pub(crate) struct Closed {
    /// [`close`] is in force.
    others: bool,
    /// Datagrams whose first fragment has come in.
    begun: HashSet<Datagram>,
}

/// Source, destination, identification and protocol.
type Datagram = ([u8; 4], [u8; 4], u16, u8);

/// The content of a frame, as the kernel finds it.
enum Found<'a> {
    /// Nothing that it would look at further.
    Nothing,
    /// A protocol that only runs the link.
    Link,
    /// Something that may carry anything.
    Carrier,
    Ipv4(&'a [u8]),
    Ipv6(&'a [u8]),
}

/// Returns the content of a frame, after all tags, and `true` if one of them names a VLAN.
fn look_into(frame: &[u8]) -> (Found<'_>, bool) {
    let (mut at, mut in_vlan) = (12, false);
    loop {
        let Some(ethertype) = frame.get(at..at + 2).map(|bytes| word(bytes, 0)) else {
            return (Found::Nothing, in_vlan);
        };
        let rest = &frame[at + 2..];
        let found = match ethertype {
            0x8100 | 0x88a8 => {
                let Some(tag) = rest.get(..2) else { return (Found::Nothing, in_vlan) };
                in_vlan |= word(tag, 0) & 0x0fff != 0;
                at += 4;
                continue;
            }
            0x0800 => Found::Ipv4(rest),
            0x86dd => Found::Ipv6(rest),
            0x0806 | 0x8035 | 0x888e | 0x88cc | 0x8809 | 0x8902 | 0x88f7 => Found::Link,
            ..0x0600 if at == 12 && frame[..5] == [1, 0x80, 0xc2, 0, 0] && frame[5] < 16 => {
                match rest.first() {
                    Some(0xaa) | None => Found::Carrier,
                    Some(_) => Found::Link,
                }
            }
            _ => Found::Carrier,
        };
        return (found, in_vlan);
    }
}

/// A frame as it is without the priority tags that it begins with, of which there may be two.
pub(crate) fn without_priority_tags(frame: &[u8]) -> Vec<u8> {
    let mut plain = frame.to_vec();
    for _ in 0..2 {
        let is_tagged = plain.len() >= 18
            && matches!(word(&plain, 12), 0x8100 | 0x88a8)
            && word(&plain, 14) & 0x0fff == 0;
        if is_tagged {
            plain.drain(12..16);
        }
    }
    plain
}

impl Closed {
    /// Before anything has been passed. `others`: whether [`close`] is in force.
    pub(crate) fn new(others: bool) -> Self {
        Self { others, begun: HashSet::new() }
    }

    /// Checks a frame that was passed to the kernel, as it was passed.
    pub(crate) fn check(&mut self, model: &Model, slot: usize, frame: &[u8]) -> Result<()> {
        let (found, in_vlan) = look_into(frame);
        // To another MAC address: only a VLAN's device could have it.
        if !in_vlan && frame[0] & 1 == 0 && frame[..6] != ROUTER_MAC && !matches!(found, Found::Carrier) {
            return Ok(());
        }
        let is_closed_side = self.others || model.nics == 1 || slot == 0;
        match found {
            Found::Nothing | Found::Link => Ok(()),
            Found::Carrier => {
                ensure!(!is_closed_side, "something that may carry anything has come in");
                Ok(())
            }
            Found::Ipv4(packet) => self.check_ipv4(model, slot, packet, in_vlan),
            Found::Ipv6(packet) if is_closed_side => self.check_ipv6(packet, in_vlan),
            Found::Ipv6(_) => Ok(()),
        }
    }

    fn check_ipv4(&mut self, model: &Model, slot: usize, packet: &[u8], in_vlan: bool) -> Result<()> {
        let Some(ip) = header(packet) else { return Ok(()) };
        if !(ip.length..=packet.len()).contains(&ip.total) || !header_checksum_is_right(packet) {
            return Ok(());
        }
        let own = model.own_addresses();
        let has_none = ip.source == [0; 4] && !is_host(ip.destination);
        ensure!(is_host(ip.source) || has_none, "from {:?}, which is no host address", ip.source);
        ensure!(!own.contains(&ip.source), "from an address of this machine's own");
        let is_client = CLIENTS.contains(&ip.source);
        let is_open = !(self.others || is_client) || [ip.source, ip.destination].contains(&PLATFORM);
        // The kernel leaves packets to other hosts alone.
        if is_open || is_host(ip.destination) && !own.contains(&ip.destination) && !in_vlan {
            return Ok(());
        }
        ensure!(!in_vlan, "by a VLAN, from a source that is closed out");
        let datagram = (ip.source, ip.destination, word(packet, 4), ip.protocol);
        let runs_the_link =
            matches!(ip.protocol, 2 | 88 | 89 | 103 | 112) && ip.destination[..3] == [224, 0, 0];
        if ip.fragment_offset > 0 {
            let is_of_one = runs_the_link || self.begun.contains(&datagram);
            ensure!(is_of_one, "a fragment of a datagram whose first has not come in");
            return Ok(());
        }
        let is_to_own = own.contains(&ip.destination);
        let is_in_front = is_client && (model.nics == 1 || slot == 0);
        if !runs_the_link && !self.may_come_in(&ip, &packet[ip.length..ip.total], is_to_own, is_in_front) {
            bail!("protocol {} from {:?}, which is closed out", ip.protocol, ip.source);
        }
        if ip.more_fragments {
            self.begun.insert(datagram);
        }
        Ok(())
    }

    /// Returns `true` if a packet may come in from a source that is closed out. `is_in_front`: it
    /// is a client's, where clients come in.
    fn may_come_in(&self, ip: &Header, l4: &[u8], is_to_own: bool, is_in_front: bool) -> bool {
        let has_options = ip.length > 20;
        let is_strangers = self.others && ip.source == STRANGER;
        match ip.protocol {
            _ if has_options => false,
            ICMP => match l4 {
                [3 | 4 | 11 | 12, _, _, _, _, _, _, _, ..] => true,
                [0, 0, _, _, high, low, _, _, ..] => is_to_own && (*high, *low) != (0, 0),
                [8, 0, _, _, _, _, _, _, ..] => is_strangers,
                _ => false,
            },
            TCP if l4.len() >= 20 => {
                let port = word(l4, 2);
                // A rule's, without a session: answered by a reset.
                let is_rules = is_in_front && matches!(port, 443 | 8000..=8010) && l4[13] & 0x17 != 0x02;
                is_to_own && (port == HEALTH || is_rules) || is_strangers && port == 22
            }
            UDP if l4.len() >= 8 => {
                let is_dhcp = (word(l4, 0), word(l4, 2)) == (67, 68);
                is_dhcp && !self.others || self.others && word(l4, 2) == 161
            }
            _ => false,
        }
    }

    fn check_ipv6(&self, packet: &[u8], in_vlan: bool) -> Result<()> {
        if packet.len() < 40 || packet[0] >> 4 != 6 || packet.len() - 40 < usize::from(word(packet, 4)) {
            return Ok(());
        }
        ensure!(!in_vlan, "IPv6 by a VLAN");
        let (next, hop_limit) = (packet[6], packet[7]);
        let address = |at: usize| {
            let bytes: [u8; 16] = packet[at..at + 16].try_into().expect("sixteen bytes");
            Ipv6Addr::from(bytes)
        };
        let (source, destination) = (address(8), address(24));
        let is_martian = source.is_multicast() || source.is_loopback() || source.to_ipv4_mapped().is_some();
        ensure!(!is_martian, "IPv6 from {source}");
        let is_near = source.is_unicast_link_local();
        // All others would be sent on, where IPv6 is forwarded.
        let is_taken = OWN_IPV6.contains(&destination) || destination.is_multicast();
        let payload = &packet[40..40 + usize::from(word(packet, 4))];
        let listeners = |kind: u8| {
            matches!(kind, 130 | 131 | 132 | 143) && hop_limit == 1 && (is_near || source.is_unspecified())
        };
        let is_good = match (next, payload) {
            (58, [kind @ (1..=4 | 130..=136 | 143 | 129), code, ..]) => match kind {
                1..=4 => OWN_IPV6.contains(&destination),
                129 => *code == 0 && OWN_IPV6.contains(&destination),
                133..=136 => {
                    *code == 0 && hop_limit == 255 && (is_taken || destination.is_unicast_link_local())
                }
                _ => listeners(*kind),
            },
            (0, [58, 0, _, _, _, _, _, _, kind, ..]) => listeners(*kind),
            (2 | 88 | 89 | 103 | 112, _) => is_near && destination.segments()[0] == 0xff02,
            (TCP, [_, _, 0, 22, ..]) => {
                self.others && is_taken && source.segments()[..4] == ADMIN_NETWORK.segments()[..4]
            }
            // DHCPv6.
            (UDP, [0x02, 0x23, 0x02, 0x22, ..]) => is_near && !self.others,
            _ => false,
        };
        ensure!(is_good, "IPv6 with next header {next} from {source}");
        Ok(())
    }
}
