//! What the kernel says of addresses, routes and neighbours, by route netlink (rtnetlink(7)).
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "netlink has many kinds of everything; we pick the few we know"
)]

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr},
};

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
};
use router_common::settings::InterfaceIndexes;
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};

/// What may have changed where packets leave.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Change {
    /// A route, a policy rule, a link or an address.
    Topology,
    /// A neighbour; its MAC address if it can be used now.
    Neighbour(Neighbour, Option<[u8; 6]>),
}

/// A neighbour by interface and address.
pub(super) type Neighbour = (u32, Ipv4Addr);

/// A stream of changes.
pub(super) type Watch = BoxStream<'static, Change>;

/// Questions to the kernel.
#[derive(Clone)]
pub(super) struct Kernel {
    handle: Handle,
}

/// Opens a connection to the kernel, and the stream of its changes from now on.
pub(super) fn connect() -> Result<(Watch, Kernel)> {
    let (connection, handle, messages) = rtnetlink::new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Neigh,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv4Rule,
    ])
    .context("cannot open a netlink socket")?;
    tokio::spawn(connection);
    let changes = messages.filter_map(|(message, _)| async move {
        match message.payload {
            NetlinkPayload::InnerMessage(message) => change(message),
            // An overrun of the socket's buffer, for one: something was missed, so look at everything.
            NetlinkPayload::Error(_) | NetlinkPayload::Overrun(_) => Some(Change::Topology),
            _ => None,
        }
    });
    Ok((changes.boxed(), Kernel { handle }))
}

fn change(message: RouteNetlinkMessage) -> Option<Change> {
    match message {
        RouteNetlinkMessage::NewNeighbour(message) => {
            let (neighbour, mac) = neighbour(&message)?;
            Some(Change::Neighbour(neighbour, mac))
        }
        RouteNetlinkMessage::DelNeighbour(message) => Some(Change::Neighbour(neighbour(&message)?.0, None)),
        RouteNetlinkMessage::NewLink(_)
        | RouteNetlinkMessage::DelLink(_)
        | RouteNetlinkMessage::NewAddress(_)
        | RouteNetlinkMessage::DelAddress(_)
        | RouteNetlinkMessage::NewRoute(_)
        | RouteNetlinkMessage::DelRoute(_)
        | RouteNetlinkMessage::NewRule(_)
        | RouteNetlinkMessage::DelRule(_) => Some(Change::Topology),
        _ => None,
    }
}

/// This machine's IPv4 addresses.
pub(super) struct Addresses {
    messages: Vec<AddressMessage>,
    names: HashMap<u32, String>,
}

impl Addresses {
    /// All of them, and the broadcast addresses of their networks: what a packet to this machine can be addressed to.
    pub(super) fn own(&self) -> HashSet<Ipv4Addr> {
        self.messages.iter().flat_map(|message| &message.attributes).filter_map(ipv4_of).collect()
    }

    /// The first address of an interface.
    pub(super) fn first_of(&self, interface: &str) -> Option<Ipv4Addr> {
        let mut on_interface = self
            .messages
            .iter()
            .filter(|message| self.names.get(&message.header.index).is_some_and(|name| name == interface));
        on_interface.find_map(|message| message.attributes.iter().find_map(local))
    }
}

fn ipv4_of(attribute: &AddressAttribute) -> Option<Ipv4Addr> {
    match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
        AddressAttribute::Broadcast(address) => Some(*address),
        _ => None,
    }
}

fn local(attribute: &AddressAttribute) -> Option<Ipv4Addr> {
    match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
        _ => None,
    }
}

/// The way to a destination.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Route {
    /// The interface that packets leave by.
    pub(super) interface: u32,
    /// The neighbour that they are handed to.
    pub(super) via: Ipv4Addr,
}

impl Kernel {
    /// This machine's IPv4 addresses.
    pub(super) async fn addresses(&self) -> Result<Addresses> {
        let messages = self.handle.address().get().execute();
        let messages: Vec<_> =
            messages.try_collect().await.context("cannot read this machine's addresses")?;
        Ok(Addresses { messages, names: self.interface_names().await? })
    }

    /// The names of interfaces by index.
    pub(super) async fn interface_names(&self) -> Result<HashMap<u32, String>> {
        Ok(self.links().await?.iter().map(|link| (link.header.index, name(link).to_owned())).collect())
    }

    /// An interface and its virtual function: the device that has it for its master.
    pub(super) async fn interface(&self, wanted: &str) -> Result<InterfaceIndexes> {
        let links = self.links().await?;
        let primary = links
            .iter()
            .find(|link| name(link) == wanted)
            .with_context(|| format!("there is no interface {wanted}"))?
            .header
            .index;
        let virtual_function =
            links.iter().find(|link| master(link) == Some(primary)).map_or(0, |link| link.header.index);
        Ok(InterfaceIndexes { primary, virtual_function })
    }

    async fn links(&self) -> Result<Vec<LinkMessage>> {
        let links = self.handle.link().get().execute();
        links.try_collect().await.context("cannot read this machine's interfaces")
    }

    /// The route to a destination, for packets of this machine's own: the way the data plane asks. `Err` is the kernel's no.
    pub(super) async fn route(&self, destination: Ipv4Addr) -> Result<Route, String> {
        let question = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(destination, 32).build();
        let mut answers = self.handle.route().get(question).execute().boxed();
        let route = match answers.next().await {
            Some(Ok(route)) => route,
            Some(Err(rtnetlink::Error::NetlinkError(error))) => {
                return Err(format!("no route: {}", error.to_io()));
            }
            Some(Err(error)) => return Err(format!("no route: {error}")),
            None => return Err("no route: the kernel gave no answer".to_owned()),
        };
        // Read to the end, so that the connection is free again.
        while answers.next().await.is_some() {}
        read_route(&route, destination)
    }

    /// Every neighbour that the kernel knows, with its MAC address if it can be used now.
    pub(super) async fn neighbours(&self) -> Result<HashMap<Neighbour, Option<[u8; 6]>>> {
        let messages = self.handle.neighbours().get().set_address_family(AddressFamily::Inet).execute();
        let messages: Vec<NeighbourMessage> =
            messages.try_collect().await.context("cannot read the neighbours")?;
        Ok(messages.iter().filter_map(neighbour).collect())
    }

    /// Has the kernel find out, or confirm, a neighbour's MAC address.
    pub(super) async fn probe(&self, (interface, address): Neighbour) -> Result<()> {
        self.handle
            .neighbours()
            .add(interface, address.into())
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace()
            .execute()
            .await
            .with_context(|| format!("cannot have the neighbour {address} looked up"))
    }
}

fn read_route(route: &RouteMessage, destination: Ipv4Addr) -> Result<Route, String> {
    if route.header.kind != RouteType::Unicast {
        return Err(format!("the route to it is of the kind {:?}", route.header.kind).to_lowercase());
    }
    let mut interface = None;
    let mut via = destination;
    for attribute in &route.attributes {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "the rest of a route is not about where packets leave"
        )]
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => via = *gateway,
            _ => {}
        }
    }
    match interface {
        Some(interface) => Ok(Route { interface, via }),
        None => Err("the route to it has no interface".to_owned()),
    }
}

fn name(link: &LinkMessage) -> &str {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.as_str()),
            _ => None,
        })
        .unwrap_or_default()
}

fn master(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Controller(index) => Some(*index),
        _ => None,
    })
}

fn neighbour(message: &NeighbourMessage) -> Option<(Neighbour, Option<[u8; 6]>)> {
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "the rest of a neighbour is not about where it is"
        )]
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(inet)) => address = Some(*inet),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    // NUD_VALID, include/net/neighbour.h.
    let usable = matches!(
        message.header.state,
        NeighbourState::Permanent
            | NeighbourState::Noarp
            | NeighbourState::Reachable
            | NeighbourState::Probe
            | NeighbourState::Stale
            | NeighbourState::Delay
    );
    Some(((message.header.ifindex, address?), mac.filter(|_| usable)))
}
