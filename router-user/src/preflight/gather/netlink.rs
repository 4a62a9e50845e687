//! Interfaces, their addresses and the ids of their XDP programs, by route netlink (rtnetlink(7)).

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "netlink has many attributes, of which a few matter here, and gets more with every kernel"
)]

use std::collections::HashMap;
use std::path::Path;

use futures_util::TryStreamExt as _;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, Prop, XdpAttached,
};

use super::{ethtool, programs};
use crate::config::Config;
use crate::preflight::facts::Interface;
use crate::sys::addresses::Addresses;
use crate::sys::netlink::{link_mac, link_master, link_name};
use crate::sys::xdp::Mode;

/// All interfaces of this network namespace; with details for those that `config` names. The
/// router's pins are below `pins`.
pub(super) async fn interfaces(config: &Config, pins: &Path) -> anyhow::Result<Vec<Interface>> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
    let addresses: Vec<AddressMessage> = handle.address().get().execute().try_collect().await?;
    connection.abort();

    let addresses = Addresses::new(addresses);
    let names: HashMap<u32, &str> = links.iter().map(|link| (link.header.index, link_name(link))).collect();
    let wanted: Vec<&str> = config.interfaces.names().collect();
    let mut attached = Vec::new();
    let mut interfaces = Vec::new();
    for link in &links {
        let mut interface = Interface {
            name: link_name(link).to_owned(),
            index: link.header.index,
            up: link.header.flags.contains(LinkFlags::Up),
            loopback: link.header.flags.contains(LinkFlags::Loopback),
            addresses: addresses.of(link.header.index),
            networks: addresses.with_prefixes(link.header.index),
            ..Interface::default()
        };
        interface.alternative_names = alternative_names(link);
        interface.macvlan_above = macvlan_above(link, &links);
        let master = link_master(link).and_then(|index| names.get(&index));
        interface.master = master.map(|name| ((*name).to_owned(), ethtool::driver(name)));
        let wanted = wanted.iter().any(|name| interface.is_called(name));
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
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
    let mut details = programs::details(&ids, pins);
    for (place, id, mode) in attached {
        if let (Some(interface), Some(program)) = (interfaces.get_mut(place), details.remove(&id)) {
            interface.programs.push(program.attached(id, mode));
        }
    }
    interfaces.sort_by_key(|interface| interface.index);
    Ok(interfaces)
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
    (link_mac(link) != link_mac(below)).then_some(below.header.index)
}

/// The programs of an interface. The kernel gives an id for each mode, and one more without a mode
/// if there is only one program.
fn programs_of(xdp: &[LinkXdp]) -> Vec<(u32, Option<Mode>)> {
    let by_mode: Vec<(u32, Option<Mode>)> = xdp
        .iter()
        .filter_map(|attribute| match attribute {
            LinkXdp::DrvProgId(id) => Some((*id, Some(Mode::Native))),
            LinkXdp::SkbProgId(id) => Some((*id, Some(Mode::Generic))),
            LinkXdp::HwProgId(id) => Some((*id, None)),
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
        LinkXdp::Attached(XdpAttached::Driver) => Some(Some(Mode::Native)),
        LinkXdp::Attached(XdpAttached::SocketBuffer) => Some(Some(Mode::Generic)),
        LinkXdp::Attached(XdpAttached::Hardware) => Some(None),
        _ => None,
    });
    id.zip(mode).into_iter().collect()
}
