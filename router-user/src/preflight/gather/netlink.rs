//! Interfaces, their addresses and the ids of their XDP programs, by route netlink (rtnetlink(7)).

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "netlink has many attributes, of which a few matter here, and gets more with every kernel"
)]

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use futures_util::TryStreamExt as _;
use ipnet::Ipv4Net;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, Prop, XdpAttached,
};

use super::{ethtool, programs};
use crate::config::Config;
use crate::preflight::facts::{Interface, XdpMode};

/// All interfaces of this network namespace; with details for those that `config` names.
pub(super) async fn interfaces(config: &Config) -> anyhow::Result<Vec<Interface>> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
    let addresses: Vec<AddressMessage> = handle.address().get().execute().try_collect().await?;
    connection.abort();

    let mut of_index = ipv4_addresses(&addresses);
    let names: HashMap<u32, &str> = links.iter().map(|link| (link.header.index, name(link))).collect();
    let wanted: Vec<&str> = config.interfaces.names().collect();
    let mut attached = Vec::new();
    let mut interfaces = Vec::new();
    for link in &links {
        let mut interface = Interface {
            name: name(link).to_owned(),
            index: link.header.index,
            up: link.header.flags.contains(LinkFlags::Up),
            loopback: link.header.flags.contains(LinkFlags::Loopback),
            addresses: of_index.remove(&link.header.index).unwrap_or_default(),
            networks: ipv4_networks(&addresses, link.header.index),
            ..Interface::default()
        };
        interface.alternative_names = alternative_names(link);
        interface.macvlan_above = macvlan_above(link, &links);
        let wanted = wanted.iter().any(|name| interface.is_called(name));
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
                LinkAttribute::Controller(index) => {
                    interface.master =
                        names.get(index).map(|name| ((*name).to_owned(), ethtool::driver(name)));
                }
                LinkAttribute::Xdp(xdp) if wanted => {
                    attached
                        .extend(programs_of(xdp).into_iter().map(|(id, mode)| (interfaces.len(), id, mode)));
                }
                _ => {}
            }
        }
        if wanted {
            interface.driver = ethtool::driver(&interface.name);
            interface.lro = ethtool::lro(&interface.name);
        }
        interfaces.push(interface);
    }
    let ids: Vec<u32> = attached.iter().map(|(_, id, _)| *id).collect();
    let mut details = programs::details(&ids, &config.admin.pins);
    for (place, id, mode) in attached {
        if let (Some(interface), Some(program)) = (interfaces.get_mut(place), details.remove(&id)) {
            interface.programs.push(program.attached(id, mode));
        }
    }
    interfaces.sort_by_key(|interface| interface.index);
    Ok(interfaces)
}

fn name(link: &LinkMessage) -> &str {
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    });
    name.unwrap_or_default()
}

fn alternative_names(link: &LinkMessage) -> Vec<String> {
    let properties = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::PropList(properties) => Some(properties),
        _ => None,
    });
    let names = properties.flatten().filter_map(|property| match property {
        Prop::AltIfName(name) => Some(name.clone()),
        _ => None,
    });
    names.collect()
}

/// The index of the interface below a macvlan, unless they have one MAC address (as in the mode
/// `passthru`).
fn macvlan_above(link: &LinkMessage, links: &[LinkMessage]) -> Option<u32> {
    let infos = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let is_macvlan = |info: &LinkInfo| matches!(info, LinkInfo::Kind(InfoKind::MacVlan | InfoKind::MacVtap));
    if !infos.flatten().any(is_macvlan) {
        return None;
    }
    let below = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(index) => Some(*index),
        _ => None,
    })?;
    let below = links.iter().find(|other| other.header.index == below)?;
    (mac(link) != mac(below)).then_some(below.header.index)
}

fn mac(link: &LinkMessage) -> Option<&[u8]> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(address) => Some(address.as_slice()),
        _ => None,
    })
}

/// The IPv4 addresses of each interface, by its index: in the kernel's order, secondary ones last.
fn ipv4_addresses(messages: &[AddressMessage]) -> HashMap<u32, Vec<Ipv4Addr>> {
    let mut primary: HashMap<u32, Vec<Ipv4Addr>> = HashMap::new();
    let mut secondary: Vec<(u32, Ipv4Addr)> = Vec::new();
    for message in messages {
        let mut local = None;
        let mut address = None;
        let mut second = message.header.flags.contains(AddressHeaderFlags::Secondary);
        for attribute in &message.attributes {
            match attribute {
                // On a point-to-point link IFA_ADDRESS is the peer's and IFA_LOCAL is ours.
                AddressAttribute::Local(IpAddr::V4(ip)) => local = Some(*ip),
                AddressAttribute::Address(IpAddr::V4(ip)) => address = Some(*ip),
                AddressAttribute::Flags(flags) => second |= flags.contains(AddressFlags::Secondary),
                _ => {}
            }
        }
        let Some(ip) = local.or(address) else {
            continue;
        };
        if second {
            secondary.push((message.header.index, ip));
        } else {
            primary.entry(message.header.index).or_default().push(ip);
        }
    }
    for (index, ip) in secondary {
        primary.entry(index).or_default().push(ip);
    }
    primary
}

/// The networks of an interface's IPv4 addresses.
fn ipv4_networks(messages: &[AddressMessage], interface: u32) -> Vec<Ipv4Net> {
    let of_interface = messages.iter().filter(|message| message.header.index == interface);
    of_interface
        .filter_map(|message| {
            let address = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
                _ => None,
            })?;
            Ipv4Net::new(address, message.header.prefix_len).ok()
        })
        .collect()
}

/// The programs of an interface. The kernel gives an id for each mode, and one more without a mode
/// if there is only one program.
fn programs_of(xdp: &[LinkXdp]) -> Vec<(u32, XdpMode)> {
    let by_mode: Vec<(u32, XdpMode)> = xdp
        .iter()
        .filter_map(|attribute| match attribute {
            LinkXdp::DrvProgId(id) => Some((*id, XdpMode::Native)),
            LinkXdp::SkbProgId(id) => Some((*id, XdpMode::Generic)),
            LinkXdp::HwProgId(id) => Some((*id, XdpMode::Offload)),
            _ => None,
        })
        .collect();
    if !by_mode.is_empty() {
        return by_mode;
    }
    let id = xdp.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(id) => Some(*id),
        _ => None,
    });
    let mode = xdp.iter().find_map(|attribute| match attribute {
        LinkXdp::Attached(XdpAttached::Driver) => Some(XdpMode::Native),
        LinkXdp::Attached(XdpAttached::SocketBuffer) => Some(XdpMode::Generic),
        LinkXdp::Attached(XdpAttached::Hardware) => Some(XdpMode::Offload),
        _ => None,
    });
    id.zip(mode).into_iter().collect()
}
