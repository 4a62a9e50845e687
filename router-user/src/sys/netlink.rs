//! Readers of route netlink's messages (rtnetlink(7)).
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "netlink has many attributes, of which a few matter here, and gets more with every kernel"
)]

use netlink_packet_route::link::{LinkAttribute, LinkMessage};

/// Returns an interface's name.
pub(crate) fn link_name(link: &LinkMessage) -> &str {
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    });
    name.unwrap_or_default()
}

/// Returns an interface's MAC address; empty for one that has none.
pub(crate) fn link_mac(link: &LinkMessage) -> &[u8] {
    let mac = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(address) => Some(address.as_slice()),
        _ => None,
    });
    mac.unwrap_or_default()
}

/// Returns the index of the interface that an interface is a slave or port of.
pub(crate) fn link_master(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Controller(index) => Some(*index),
        _ => None,
    })
}
