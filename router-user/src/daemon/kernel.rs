//! What the kernel says of addresses, routes and neighbours, by route netlink (rtnetlink(7)).
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "netlink has many kinds of everything; we pick the few we know"
)]

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use ipnet::Ipv4Net;
use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
};
use router_common::{address::Mac, punt, settings::Interface};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use tokio::time::timeout;

/// How long the kernel may take for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Networks with this prefix or a longer one have no broadcast address (RFC 3021).
const POINT_TO_POINT: u8 = 31;

async fn in_time<T>(answer: impl Future<Output = T>) -> Result<T> {
    timeout(PATIENCE, answer).await.context("the kernel does not answer on netlink")
}

/// What may have changed where packets leave.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Change {
    /// A route, a policy rule, a link or an address.
    Topology,
    /// A neighbour.
    Neighbour(Neighbour, NeighbourEntry),
    /// Some changes were lost.
    Missed,
}

/// What the kernel knows of a neighbour.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct NeighbourEntry {
    /// Its MAC address, if it can be used now.
    pub(super) mac: Option<[u8; 6]>,
    /// Whether that was set by hand and is not to be asked for.
    pub(super) fixed: bool,
    /// Whether it was asked for, and has not answered (`NUD_FAILED`).
    pub(super) failed: bool,
}

/// A neighbour by interface and address.
pub(super) type Neighbour = (u32, Ipv4Addr);

/// A stream of changes.
pub(super) type Watch = BoxStream<'static, Change>;

/// The neighbour that has changed; `None` when some changes were lost.
pub(super) type NeighbourChange = Option<punt::Neighbour>;

/// Opens a stream of the changes of neighbours of either family from now on, apart from the one of all changes: who waits for a neighbour
/// waits for nothing else.
pub(super) fn watch_neighbours() -> Result<BoxStream<'static, NeighbourChange>> {
    let (connection, _, messages) = rtnetlink::new_multicast_connection(&[MulticastGroup::Neigh])
        .context("cannot open a netlink socket")?;
    tokio::spawn(connection);
    let changes = messages.filter_map(|(message, _)| async move {
        match message.payload {
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewNeighbour(message) | RouteNetlinkMessage::DelNeighbour(message),
            ) => Some(Some(neighbour_of_any_family(&message)?.0)),
            NetlinkPayload::Error(_) | NetlinkPayload::Overrun(_) => Some(None),
            _ => None,
        }
    });
    Ok(changes.boxed())
}

/// Questions to the kernel.
#[derive(Clone)]
pub(super) struct Kernel {
    handle: Handle,
}

/// Opens a connection to the kernel, and the stream of its changes from now on.
pub(super) fn connect() -> Result<(Watch, Kernel)> {
    // Questions have a connection of their own: when a burst of changes overruns a socket's buffer, answers are lost with them.
    let (questions, handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
    tokio::spawn(questions);
    let (connection, _, messages) = rtnetlink::new_multicast_connection(&[
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
            NetlinkPayload::Error(_) | NetlinkPayload::Overrun(_) => Some(Change::Missed),
            _ => None,
        }
    });
    Ok((changes.boxed(), Kernel { handle }))
}

fn change(message: RouteNetlinkMessage) -> Option<Change> {
    match message {
        RouteNetlinkMessage::NewNeighbour(message) => {
            let (neighbour, state) = neighbour(&message)?;
            Some(Change::Neighbour(neighbour, state))
        }
        RouteNetlinkMessage::DelNeighbour(message) => {
            Some(Change::Neighbour(neighbour(&message)?.0, NeighbourEntry::default()))
        }
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
}

impl Addresses {
    /// All of them.
    pub(super) fn own(&self) -> HashSet<Ipv4Addr> {
        self.messages.iter().flat_map(|message| &message.attributes).filter_map(local).collect()
    }

    /// The broadcast addresses of their networks: those that the addresses were given with, and those that the kernel takes for such anyway
    /// (`fib_add_ifaddr`, net/ipv4/fib_frontend.c).
    pub(super) fn broadcast(&self) -> HashSet<Ipv4Addr> {
        let of_network = |message: &AddressMessage| {
            let address = message.attributes.iter().find_map(network_address)?;
            let network = Ipv4Net::new(address, message.header.prefix_len).ok()?;
            (network.prefix_len() < POINT_TO_POINT).then(|| network.broadcast())
        };
        let given = self.messages.iter().flat_map(|message| &message.attributes).filter_map(broadcast);
        given.chain(self.messages.iter().filter_map(of_network)).collect()
    }

    /// The first address of the interface with this index.
    pub(super) fn first_of(&self, interface: u32) -> Option<Ipv4Addr> {
        let mut on_interface = self.messages.iter().filter(|message| message.header.index == interface);
        on_interface.find_map(|message| message.attributes.iter().find_map(local))
    }
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

/// The way to a destination.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Route {
    /// The interface that packets leave by.
    pub(super) interface: u32,
    /// The neighbour that they are handed to.
    pub(super) via: Ipv4Addr,
    /// Whether that is the destination itself.
    pub(super) on_link: bool,
}

impl Kernel {
    /// This machine's IPv4 addresses.
    pub(super) async fn addresses(&self) -> Result<Addresses> {
        let messages = self.handle.address().get().execute();
        let messages: Vec<_> =
            in_time(messages.try_collect()).await?.context("cannot read this machine's addresses")?;
        Ok(Addresses { messages })
    }

    /// The names of interfaces by index.
    pub(super) async fn interface_names(&self) -> Result<HashMap<u32, String>> {
        Ok(self.links().await?.iter().map(|link| (link.header.index, name(link).to_owned())).collect())
    }

    /// The interfaces with these indexes, each with its virtual function: the device that has it for its master. One that is not there is
    /// "no interface". Addresses are left open.
    pub(super) async fn interfaces(&self, indexes: &[u32]) -> Result<Vec<Interface>> {
        let links = self.links().await?;
        let interface = |primary: &u32| {
            let Some(link) = links.iter().find(|link| link.header.index == *primary) else {
                return Interface::default();
            };
            let virtual_function =
                links.iter().find(|link| master(link) == Some(*primary)).map_or(0, |link| link.header.index);
            Interface {
                primary: *primary,
                virtual_function,
                mac: Mac::new(mac(link)),
                ..Interface::default()
            }
        };
        Ok(indexes.iter().map(interface).collect())
    }

    async fn links(&self) -> Result<Vec<LinkMessage>> {
        let links = self.handle.link().get().execute();
        in_time(links.try_collect()).await?.context("cannot read this machine's interfaces")
    }

    /// The route to a destination, for packets of this machine's own from this source: the way the data plane asks. `Err` is the
    /// kernel's no.
    pub(super) async fn route(&self, source: Ipv4Addr, destination: Ipv4Addr) -> Result<Route, String> {
        let question = RouteMessageBuilder::<Ipv4Addr>::new()
            .source_prefix(source, 32)
            .destination_prefix(destination, 32)
            .build();
        let mut answers = self.handle.route().get(question).execute().boxed();
        let answer = in_time(answers.next()).await.map_err(|error| format!("{error:#}"))?;
        let route = match answer {
            Some(Ok(route)) => route,
            Some(Err(rtnetlink::Error::NetlinkError(error))) => {
                return Err(format!("no route: {}", error.to_io()));
            }
            Some(Err(error)) => return Err(format!("no route: {error}")),
            None => return Err("no route: the kernel gave no answer".to_owned()),
        };
        read_route(&route, destination)
    }

    /// Every neighbour that the kernel knows.
    pub(super) async fn neighbours(&self) -> Result<HashMap<Neighbour, NeighbourEntry>> {
        let messages = self.handle.neighbours().get().set_address_family(AddressFamily::Inet).execute();
        let messages: Vec<NeighbourMessage> =
            in_time(messages.try_collect()).await?.context("cannot read the neighbours")?;
        Ok(messages.iter().filter_map(neighbour).collect())
    }

    /// Has the kernel ask a neighbour that it knows whether it is still there. It asks three times in three seconds, and uses the
    /// MAC address meanwhile; by itself it would ask half a minute after it last heard of it, and only if it had a packet to send.
    pub(super) async fn confirm(&self, (interface, address): Neighbour) -> Result<()> {
        let request = self.handle.neighbours().add(interface, address.into());
        in_time(request.state(NeighbourState::Probe).replace().execute())
            .await?
            .with_context(|| format!("cannot have the neighbour {address} confirmed"))
    }

    /// Has the kernel find out a neighbour's MAC address.
    pub(super) async fn probe(&self, (interface, address): Neighbour) -> Result<()> {
        self.look_up(interface, address.into()).await
    }

    async fn look_up(&self, interface: u32, address: IpAddr) -> Result<()> {
        let request = self.handle.neighbours().add(interface, address);
        in_time(request.state(NeighbourState::None).flags(NeighbourFlags::Use).replace().execute())
            .await?
            .with_context(|| format!("cannot have the neighbour {address} looked up"))
    }

    /// Has the kernel find out a neighbour's MAC address, and tells what it knows of it by then.
    pub(super) async fn ask_for(&self, neighbour: &punt::Neighbour) -> Result<Option<NeighbourEntry>> {
        self.look_up(neighbour.interface, neighbour.ip()).await?;
        self.neighbour(neighbour).await
    }

    /// What the kernel knows of a neighbour; `None` if it knows none.
    pub(super) async fn neighbour(&self, neighbour: &punt::Neighbour) -> Result<Option<NeighbourEntry>> {
        let address = neighbour.ip();
        let mut question = NeighbourMessage::default();
        question.header.ifindex = neighbour.interface;
        let (family, destination) = match address {
            IpAddr::V4(address) => (AddressFamily::Inet, NeighbourAddress::Inet(address)),
            IpAddr::V6(address) => (AddressFamily::Inet6, NeighbourAddress::Inet6(address)),
        };
        question.header.family = family;
        question.attributes.push(NeighbourAttribute::Destination(destination));
        let mut question = NetlinkMessage::from(RouteNetlinkMessage::GetNeighbour(question));
        question.header.flags = NLM_F_REQUEST;
        let mut answers = self.handle.clone().request(question).context("cannot ask the kernel")?;
        let answer = in_time(answers.next()).await?;
        Ok(match answer.map(|answer| answer.payload) {
            Some(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(message))) => {
                neighbour_of_any_family(&message).map(|(_, entry)| entry)
            }
            _ => None,
        })
    }
}

fn read_route(route: &RouteMessage, destination: Ipv4Addr) -> Result<Route, String> {
    if route.header.kind != RouteType::Unicast {
        return Err(format!("the route to it is of the kind {:?}", route.header.kind).to_lowercase());
    }
    let mut interface = None;
    let mut gateway = None;
    for attribute in &route.attributes {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "the rest of a route is not about where packets leave"
        )]
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(*address),
            _ => {}
        }
    }
    match interface {
        Some(interface) => {
            Ok(Route { interface, via: gateway.unwrap_or(destination), on_link: gateway.is_none() })
        }
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

/// All zero for a link that is no Ethernet.
fn mac(link: &LinkMessage) -> [u8; 6] {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Address(address) => address.as_slice().try_into().ok(),
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

fn neighbour(message: &NeighbourMessage) -> Option<(Neighbour, NeighbourEntry)> {
    let (neighbour, entry) = neighbour_of_any_family(message)?;
    match neighbour.ip() {
        IpAddr::V4(address) => Some(((neighbour.interface, address), entry)),
        IpAddr::V6(_) => None,
    }
}

fn neighbour_of_any_family(message: &NeighbourMessage) -> Option<(punt::Neighbour, NeighbourEntry)> {
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "the rest of a neighbour is not about where it is"
        )]
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(inet)) => {
                address = Some(punt::Neighbour::mapped((*inet).into()));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(inet)) => address = Some(inet.octets()),
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
    let fixed = matches!(message.header.state, NeighbourState::Permanent | NeighbourState::Noarp);
    let failed = message.header.state == NeighbourState::Failed;
    let entry = NeighbourEntry { mac: mac.filter(|_| usable), fixed, failed };
    Some((punt::Neighbour { interface: message.header.ifindex, address: address? }, entry))
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
    fn networks_have_broadcast_addresses_whether_they_were_given_or_not() {
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
}
