//! What the kernel says of addresses, routes and neighbours, by route netlink (rtnetlink(7)).
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "netlink has many kinds of everything; we pick the few we know"
)]

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, Result};
use futures_util::{
    Stream, StreamExt as _, TryStreamExt as _,
    stream::{BoxStream, select, unfold},
};
use ipnet::Ipv4Net;
use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{LinkAttribute, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType, RouteVia},
};
use router_common::{
    address::Mac,
    maps::{
        punt::Neighbour,
        route::{InterfaceAddress, InterfaceAddresses},
        rules::Network,
        settings::Interface,
    },
};
use rtnetlink::{Handle, IpVersion, MulticastGroup, RouteMessageBuilder};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::{daemon::sync::lock, policy_rules::PolicyRule};

/// How long the kernel may take for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The pause between attempts to open a connection again that has ended.
const RETRY: Duration = Duration::from_millis(200);

/// Networks with this prefix or a longer one have no broadcast address (RFC 3021).
const POINT_TO_POINT: u8 = 31;

async fn in_time<T>(answer: impl Future<Output = T>) -> Result<T> {
    timeout(PATIENCE, answer).await.context("the kernel does not answer on netlink")
}

/// What may have changed where packets leave.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Change {
    /// A route, a policy rule, a link or an address.
    Topology,
    /// A neighbour.
    Neighbour(Neighbour, NeighbourEntry),
    /// Some changes of neighbours were lost.
    MissedNeighbours,
}

/// What the kernel knows of a neighbour.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct NeighbourEntry {
    /// Its MAC address, if it can be used now.
    pub(crate) mac: Option<[u8; 6]>,
    /// Whether that was set by hand and is not to be asked for.
    pub(crate) fixed: bool,
    /// Whether it was asked for, and has not answered (`NUD_FAILED`).
    pub(crate) failed: bool,
}

/// A stream of changes.
pub(crate) type Watch = BoxStream<'static, Change>;

/// The neighbour that has changed; `None` when some changes were lost.
pub(crate) type NeighbourChange = Option<Neighbour>;

/// Opens a stream of the changes of neighbours of either family from now on, apart from the one of
/// all changes: who waits for a neighbour waits for nothing else.
pub(crate) fn watch_neighbours() -> Result<BoxStream<'static, NeighbourChange>> {
    let messages = messages(&[MulticastGroup::Neigh])?;
    let changes = messages.filter_map(|message| async move {
        match message {
            Some(RouteNetlinkMessage::NewNeighbour(message) | RouteNetlinkMessage::DelNeighbour(message)) => {
                Some(Some(read_neighbour(&message)?.0))
            }
            None => Some(None),
            Some(_) => None,
        }
    });
    Ok(changes.boxed())
}

/// Opens a stream, without an end, of what the kernel tells these groups; `None` when something of
/// it was lost. When the connection breaks, which a lack of memory is enough for, it is made again.
fn messages(
    groups: &'static [MulticastGroup],
) -> Result<impl Stream<Item = Option<RouteNetlinkMessage>> + Send> {
    let open = move || {
        let (connection, _, messages) =
            rtnetlink::new_multicast_connection(groups).context("cannot open a netlink socket")?;
        tokio::spawn(connection);
        Ok(messages)
    };
    let first = open()?;
    Ok(unfold(first, move |mut messages| async move {
        loop {
            match messages.next().await.map(|(message, _)| message.payload) {
                Some(NetlinkPayload::InnerMessage(message)) => return Some((Some(message), messages)),
                // An overrun of the socket's buffer, for one: something was missed.
                Some(NetlinkPayload::Error(_) | NetlinkPayload::Overrun(_)) => return Some((None, messages)),
                Some(_) => {}
                None => return Some((None, until_it_works(open).await)),
            }
        }
    }))
}

/// Tries again and again, with a word in the log for the first time that it does not work.
async fn until_it_works<T>(mut attempt: impl FnMut() -> Result<T>) -> T {
    warn!("a netlink connection has ended: it is opened again");
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) => debug!("{error:#}"),
        }
        sleep(RETRY).await;
    }
}

/// Questions to the kernel.
#[derive(Clone)]
pub(crate) struct Kernel {
    /// Of the connection as it is now.
    handle: Arc<Mutex<Handle>>,
}

/// Opens a connection to the kernel, and the stream of its changes from now on.
pub(crate) fn connect() -> Result<(Watch, Kernel)> {
    // Questions have a connection of their own: when a burst of changes overruns a socket's buffer,
    // answers are lost with them.
    let open = || rtnetlink::new_connection().context("cannot open a netlink socket");
    let (mut questions, handle, _) = open()?;
    let handle = Arc::new(Mutex::new(handle));
    let current = handle.clone();
    tokio::spawn(async move {
        loop {
            questions.await;
            let (connection, handle, _) = until_it_works(open).await;
            questions = connection;
            *lock(&current) = handle;
        }
    });
    let topology = messages(&[
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv4Rule,
    ])?;
    // Of neighbours, whoever is on the link can make as many changes as fit the link. So they have
    // a socket of their own: when it overruns, no change of a route is lost with them.
    let neighbours = messages(&[MulticastGroup::Neigh])?;
    let or = |missed: Change| {
        move |message: Option<_>| std::future::ready(message.map_or(Some(missed.clone()), change))
    };
    let changes = select(
        topology.filter_map(or(Change::Topology)).boxed(),
        neighbours.filter_map(or(Change::MissedNeighbours)).boxed(),
    );
    Ok((changes.boxed(), Kernel { handle }))
}

fn change(message: RouteNetlinkMessage) -> Option<Change> {
    match message {
        RouteNetlinkMessage::NewNeighbour(message) => {
            let (neighbour, state) = read_neighbour(&message)?;
            Some(Change::Neighbour(neighbour, state))
        }
        RouteNetlinkMessage::DelNeighbour(message) => {
            Some(Change::Neighbour(read_neighbour(&message)?.0, NeighbourEntry::default()))
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
            // Only beside a peer's does it have a place of its own.
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
            .filter(|message| !message.header.flags.contains(AddressHeaderFlags::Secondary))
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

/// What the routes of all tables say.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Routes {
    /// Every gateway, and whether its route has others to choose from.
    pub(crate) gateways: HashMap<Neighbour, bool>,
    /// Routes that name the address that packets come from.
    pub(crate) sources: Vec<RouteSource>,
}

/// A route that names the address that packets come from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RouteSource {
    /// Its destination, as `ip route` shows it.
    pub(crate) destination: String,
    /// The interface that it leads out of.
    pub(crate) interface: u32,
    /// Its gateway; none of a network on the link, or of the other family.
    pub(crate) gateway: Option<Ipv4Addr>,
    /// The address.
    pub(crate) source: Ipv4Addr,
}

impl Kernel {
    /// The connection, for one question.
    fn handle(&self) -> Handle {
        lock(&self.handle).clone()
    }

    /// This machine's IPv4 addresses.
    pub(crate) async fn addresses(&self) -> Result<Addresses> {
        let messages = self.handle().address().get().execute();
        let messages: Vec<_> =
            in_time(messages.try_collect()).await?.context("cannot read this machine's addresses")?;
        Ok(Addresses { messages })
    }

    /// The names of interfaces by index.
    pub(crate) async fn interface_names(&self) -> Result<HashMap<u32, String>> {
        Ok(self.links().await?.iter().map(|link| (link.header.index, name(link).to_owned())).collect())
    }

    /// The interfaces with these indexes, each with its virtual function: the device that has it
    /// for its master. One that is not there keeps the index that it had, so that the other of two
    /// stays the one side that it is. Addresses are left open.
    pub(crate) async fn interfaces(&self, indexes: &[u32]) -> Result<Vec<Interface>> {
        let links = self.links().await?;
        let interface = |primary: &u32| {
            let Some(link) = links.iter().find(|link| link.header.index == *primary) else {
                return Interface { primary: *primary, ..Interface::default() };
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
        let links = self.handle().link().get().execute();
        in_time(links.try_collect()).await?.context("cannot read this machine's interfaces")
    }

    /// The IPv4 routes of all tables, as far as they lead to gateways or name a source.
    pub(crate) async fn routes(&self) -> Result<Routes> {
        let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let mut messages = self.handle().route().get(all).execute().boxed();
        let mut routes = Routes::default();
        while let Some(message) = in_time(messages.next()).await? {
            routes.add(&message.context("cannot read the routes")?);
        }
        Ok(routes)
    }

    /// The policy rules by which routes are looked up.
    pub(crate) async fn policy_rules(&self) -> Result<Vec<PolicyRule>> {
        let messages: Vec<_> = in_time(self.handle().rule().get(IpVersion::V4).execute().try_collect())
            .await?
            .context("cannot read the policy rules")?;
        Ok(messages.iter().map(PolicyRule::from).collect())
    }

    /// Every neighbour that the kernel knows. A route to an IPv4 network may lead to an IPv6 one.
    pub(crate) async fn neighbours(&self) -> Result<HashMap<Neighbour, NeighbourEntry>> {
        let messages = self.handle().neighbours().get().execute();
        let messages: Vec<NeighbourMessage> =
            in_time(messages.try_collect()).await?.context("cannot read the neighbours")?;
        Ok(messages.iter().filter_map(read_neighbour).collect())
    }

    /// Has the kernel ask a neighbour that it knows whether it is still there. It asks three times
    /// in three seconds, and uses the MAC address meanwhile; by itself it would ask half a minute
    /// after it last heard of it, and only if it had a packet to send.
    pub(crate) async fn confirm(&self, neighbour: &Neighbour) -> Result<()> {
        let address = neighbour.ip();
        let request = self.handle().neighbours().add(neighbour.interface, address);
        in_time(request.state(NeighbourState::Probe).replace().execute())
            .await?
            .with_context(|| format!("cannot have the neighbour {address} confirmed"))
    }

    /// Has the kernel find out a neighbour's MAC address.
    pub(crate) async fn probe(&self, neighbour: &Neighbour) -> Result<()> {
        let address = neighbour.ip();
        let request = self.handle().neighbours().add(neighbour.interface, address);
        in_time(request.state(NeighbourState::None).flags(NeighbourFlags::Use).replace().execute())
            .await?
            .with_context(|| format!("cannot have the neighbour {address} looked up"))
    }

    /// Has the kernel find out a neighbour's MAC address, and tells what it knows of it by then.
    pub(crate) async fn ask_for(&self, neighbour: &Neighbour) -> Result<Option<NeighbourEntry>> {
        self.probe(neighbour).await?;
        self.neighbour(neighbour).await
    }

    /// What the kernel knows of a neighbour; `None` if it knows none.
    pub(crate) async fn neighbour(&self, neighbour: &Neighbour) -> Result<Option<NeighbourEntry>> {
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
        let mut answers = self.handle().request(question).context("cannot ask the kernel")?;
        let answer = in_time(answers.next()).await?;
        Ok(match answer.map(|answer| answer.payload) {
            Some(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(message))) => {
                read_neighbour(&message).map(|(_, entry)| entry)
            }
            _ => None,
        })
    }
}

impl Routes {
    fn add(&mut self, route: &RouteMessage) {
        if route.header.kind != RouteType::Unicast {
            return;
        }
        let mut source = None;
        let mut destination = Ipv4Addr::UNSPECIFIED;
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::PrefSource(RouteAddress::Inet(address)) => source = Some(*address),
                RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = *address,
                RouteAttribute::MultiPath(next_hops) => {
                    for next_hop in next_hops {
                        let (_, gateway) = hop(&next_hop.attributes);
                        self.add_gateway(next_hop.interface_index, gateway, true);
                    }
                }
                _ => {}
            }
        }
        let (Some(interface), gateway) = hop(&route.attributes) else { return };
        self.add_gateway(interface, gateway, false);
        // Where an address is given, the kernel itself makes a route to its network with it as the
        // source.
        if let Some(source) = source.filter(|_| route.header.protocol != RouteProtocol::Kernel) {
            self.sources.push(RouteSource {
                destination: format!("{destination}/{}", route.header.destination_prefix_length),
                interface,
                gateway: gateway.and_then(|gateway| match gateway {
                    IpAddr::V4(gateway) => Some(gateway),
                    IpAddr::V6(_) => None,
                }),
                source,
            });
        }
    }

    fn add_gateway(&mut self, interface: u32, gateway: Option<IpAddr>, is_one_of_many: bool) {
        if let Some(gateway) = gateway {
            *self.gateways.entry(Neighbour::new(interface, gateway)).or_default() |= is_one_of_many;
        }
    }
}

/// The interface and the gateway of a route, or of one of its next hops.
fn hop(attributes: &[RouteAttribute]) -> (Option<u32>, Option<IpAddr>) {
    let mut interface = None;
    let mut gateway = None;
    for attribute in attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some((*address).into()),
            RouteAttribute::Via(RouteVia::Inet(address)) => gateway = Some((*address).into()),
            RouteAttribute::Via(RouteVia::Inet6(address)) => gateway = Some((*address).into()),
            _ => {}
        }
    }
    (interface, gateway)
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

fn read_neighbour(message: &NeighbourMessage) -> Option<(Neighbour, NeighbourEntry)> {
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(inet)) => {
                address = Some(Neighbour::mapped((*inet).into()));
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
    // To the data plane, an address of zero is none.
    let mac = mac.filter(|mac| usable && *mac != [0; 6]);
    let entry = NeighbourEntry { mac, fixed, failed };
    Some((Neighbour { interface: message.header.ifindex, address: address? }, entry))
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

    #[test]
    fn a_peer_s_ipv6_address_is_none_of_this_machine_s() {
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
}
