//! This machine's addresses, as route netlink lists them (rtnetlink(7)).
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "netlink has many attributes, of which a few matter here, and gets more with every kernel"
)]

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::Ipv4Net;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use router_common::maps::{
    route::{InterfaceAddress, InterfaceAddresses},
    rules::Network,
};

/// Networks with this prefix or a longer one have no broadcast address (RFC 3021).
const POINT_TO_POINT: u8 = 31;

/// The IPv4 addresses that are this machine's, or all machines' of its networks: nothing is
/// forwarded there.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct OwnAddresses {
    /// Its own, of any interface.
    pub(crate) own: HashSet<Ipv4Addr>,
    /// The broadcast addresses of its networks.
    pub(crate) broadcast: HashSet<Ipv4Addr>,
}

impl OwnAddresses {
    /// Returns `true` if this machine has the address.
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => self.own.contains(&address),
            IpAddr::V6(_) => false,
        }
    }

    /// Returns why packets cannot be sent on to `address`; `None` if nothing here is against it.
    pub(crate) fn no_target(&self, address: Ipv4Addr) -> Option<&'static str> {
        if self.own.contains(&address) {
            Some("this machine's own")
        } else if self.broadcast.contains(&address) {
            Some("the broadcast address of a network of this machine's")
        } else {
            None
        }
    }
}

/// This machine's addresses, IPv4's unless something else is said.
pub(crate) struct Addresses {
    messages: Vec<AddressMessage>,
}

impl Addresses {
    /// Takes the kernel's answer to a request for all addresses.
    pub(crate) fn new(messages: Vec<AddressMessage>) -> Self {
        Self { messages }
    }

    /// Returns the addresses that nothing is forwarded to.
    pub(crate) fn local(&self) -> OwnAddresses {
        OwnAddresses { own: self.own(), broadcast: self.broadcast() }
    }

    /// All of them.
    pub(crate) fn own(&self) -> HashSet<Ipv4Addr> {
        self.messages.iter().flat_map(|message| &message.attributes).filter_map(local).collect()
    }

    /// Its IPv6 addresses.
    pub(crate) fn own_ipv6(&self) -> HashSet<Ipv6Addr> {
        let own = |message: &AddressMessage| {
            let first =
                |find: fn(&AddressAttribute) -> Option<Ipv6Addr>| message.attributes.iter().find_map(find);
            // Only where there is a peer's address does it have a separate attribute.
            first(|attribute| match attribute {
                AddressAttribute::Local(IpAddr::V6(address)) => Some(*address),
                _ => None,
            })
            .or_else(|| {
                first(|attribute| match attribute {
                    AddressAttribute::Address(IpAddr::V6(address)) => Some(*address),
                    _ => None,
                })
            })
        };
        self.messages.iter().filter_map(own).collect()
    }

    /// Returns the addresses of the interface with this index in the kernel's order, secondary ones
    /// last.
    pub(crate) fn of(&self, interface: u32) -> Vec<Ipv4Addr> {
        let of_interface = self.messages.iter().filter(|message| message.header.index == interface);
        let (secondary, primary): (Vec<_>, Vec<_>) = of_interface.partition(|message| is_secondary(message));
        primary.into_iter().chain(secondary).filter_map(own_address).collect()
    }

    /// Returns the addresses of the interface with this index, each with the length of its
    /// network's prefix.
    pub(crate) fn with_prefixes(&self, interface: u32) -> Vec<Ipv4Net> {
        let of_interface = self.messages.iter().filter(|message| message.header.index == interface);
        let network = |message: &AddressMessage| {
            let address = message.attributes.iter().find_map(local)?;
            Ipv4Net::new(address, message.header.prefix_len).ok()
        };
        of_interface.filter_map(network).collect()
    }

    /// The broadcast addresses of their networks: those that the addresses were given with, and
    /// those that the kernel takes for such anyway (`fib_add_ifaddr`, net/ipv4/fib_frontend.c).
    pub(crate) fn broadcast(&self) -> HashSet<Ipv4Addr> {
        let of_network = |message: &AddressMessage| {
            let address = message.attributes.iter().find_map(network_address)?;
            let network = Ipv4Net::new(address, message.header.prefix_len).ok()?;
            (network.prefix_len() < POINT_TO_POINT).then(|| network.broadcast())
        };
        let given = self.messages.iter().flat_map(|message| &message.attributes).filter_map(broadcast);
        given.chain(self.messages.iter().filter_map(of_network)).collect()
    }

    /// The networks that the addresses of the interface with this index are in.
    pub(crate) fn networks_of(&self, interface: u32) -> Vec<Ipv4Net> {
        let of_interface = self.messages.iter().filter(|message| message.header.index == interface);
        let network = |message: &AddressMessage| {
            let address = message.attributes.iter().find_map(network_address)?;
            Ipv4Net::new(address, message.header.prefix_len).ok()
        };
        of_interface.filter_map(network).collect()
    }

    /// The first address of the interface with this index, if it has one that is of use beyond the
    /// link.
    pub(crate) fn first_of(&self, interface: u32) -> Option<Ipv4Addr> {
        let of_interface = self.selectable(interface);
        let best = of_interface.iter().find(|known| known.link_only == 0).or(of_interface.first())?;
        Some(best.address.into())
    }

    /// The addresses that the kernel chooses a source from for packets that leave by the interface
    /// with this index, in its order: those of the interface, or else any other of this machine
    /// that is of use beyond a link (`inet_select_addr`, net/ipv4/devinet.c).
    pub(crate) fn sources_of(&self, interface: u32) -> InterfaceAddresses {
        let mut chosen = self.selectable(interface);
        if chosen.is_empty() {
            let mut indexes: Vec<u32> = self.messages.iter().map(|message| message.header.index).collect();
            indexes.dedup();
            let others = indexes.into_iter().flat_map(|index| self.selectable(index));
            chosen = others.filter(|known| known.link_only == 0).collect();
        }
        let mut sources = InterfaceAddresses::default();
        for (place, known) in sources.addresses.iter_mut().zip(chosen) {
            *place = known;
        }
        sources
    }

    /// The addresses of an interface that packets may come from, in the kernel's order.
    fn selectable(&self, interface: u32) -> Vec<InterfaceAddress> {
        let of_interface = self.messages.iter().filter(|message| message.header.index == interface);
        of_interface
            .filter(|message| !is_secondary(message))
            .filter(|message| u8::from(message.header.scope) < u8::from(AddressScope::Host))
            .filter_map(|message| {
                let address = message.attributes.iter().find_map(local)?;
                let network = message.attributes.iter().find_map(network_address).unwrap_or(address);
                Some(InterfaceAddress {
                    address: address.into(),
                    network: Network::new(network.into(), message.header.prefix_len),
                    link_only: (message.header.scope != AddressScope::Universe).into(),
                })
            })
            .collect()
    }
}

/// Returns `true` if the kernel has another address of the same network for new connections.
fn is_secondary(message: &AddressMessage) -> bool {
    let in_flags = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Flags(flags) => flags.contains(AddressFlags::Secondary),
        _ => false,
    };
    message.header.flags.contains(AddressHeaderFlags::Secondary) || message.attributes.iter().any(in_flags)
}

/// Returns this machine's address. On a point-to-point link IFA_ADDRESS is the peer's and IFA_LOCAL
/// is this machine's.
fn own_address(message: &AddressMessage) -> Option<Ipv4Addr> {
    let attributes = &message.attributes;
    attributes.iter().find_map(local).or_else(|| attributes.iter().find_map(network_address))
}

fn broadcast(attribute: &AddressAttribute) -> Option<Ipv4Addr> {
    match attribute {
        AddressAttribute::Broadcast(address) => Some(*address),
        _ => None,
    }
}

/// An address in the network that an address was given with: the address itself, or its peer's.
fn network_address(attribute: &AddressAttribute) -> Option<Ipv4Addr> {
    match attribute {
        AddressAttribute::Address(IpAddr::V4(address)) => Some(*address),
        _ => None,
    }
}

fn local(attribute: &AddressAttribute) -> Option<Ipv4Addr> {
    match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(address: [u8; 4], prefix_len: u8, broadcast: Option<[u8; 4]>) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.prefix_len = prefix_len;
        let address = IpAddr::from(address);
        message.attributes = vec![AddressAttribute::Address(address), AddressAttribute::Local(address)];
        message.attributes.extend(broadcast.map(|address| AddressAttribute::Broadcast(address.into())));
        message
    }

    #[test]
    fn implied_broadcast_addresses_are_included() {
        let messages = vec![
            message([10, 0, 2, 68], 26, None),
            message([10, 0, 3, 4], 24, Some([10, 0, 3, 200])),
            message([10, 0, 4, 4], 31, None),
            message([10, 0, 5, 5], 32, None),
        ];
        let addresses = Addresses { messages };
        let expected = [[10, 0, 2, 127], [10, 0, 3, 200], [10, 0, 3, 255]].map(Ipv4Addr::from);
        assert_eq!(addresses.broadcast(), expected.into());
        assert_eq!(addresses.own().len(), 4);
    }

    #[test]
    fn a_peers_ipv6_address_is_not_included() {
        let [own, other, peer] = [1_u16, 2, 3].map(|host| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host));
        let message = |attributes| {
            let mut message = AddressMessage::default();
            message.attributes = attributes;
            message
        };
        let messages = vec![
            message(vec![AddressAttribute::Address(own.into())]),
            message(vec![AddressAttribute::Address(peer.into()), AddressAttribute::Local(other.into())]),
            self::message([10, 0, 2, 68], 26, None),
        ];
        assert_eq!(Addresses { messages }.own_ipv6(), [own, other].into());
    }

    #[test]
    fn secondary_addresses_come_last() {
        let mut secondary = message([10, 0, 2, 69], 26, None);
        secondary.header.flags |= AddressHeaderFlags::Secondary;
        let mut peer = message([10, 0, 9, 1], 32, None);
        peer.attributes = vec![
            AddressAttribute::Address([10, 0, 9, 2].into()),
            AddressAttribute::Local([10, 0, 9, 1].into()),
        ];
        let addresses = Addresses { messages: vec![secondary, message([10, 0, 2, 68], 26, None), peer] };
        assert_eq!(addresses.of(0), [[10, 0, 2, 68], [10, 0, 9, 1], [10, 0, 2, 69]].map(Ipv4Addr::from));
    }
}
