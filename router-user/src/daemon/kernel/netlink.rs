//! Addresses, routes and neighbours of the kernel, by route netlink (rtnetlink(7)).
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "netlink has many kinds of everything; we pick the few we know"
)]

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, Result};
use futures_util::{
    Stream, StreamExt as _, TryStreamExt as _,
    stream::{BoxStream, select, unfold},
};
use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{LinkFlags, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType, RouteVia},
};
use router_common::{
    address::Mac,
    maps::{punt::Neighbour, settings::Interface},
};
use rtnetlink::{Handle, IpVersion, MulticastGroup, RouteMessageBuilder};
use tokio::{
    sync::{Mutex as AsyncMutex, MutexGuard},
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use crate::{
    daemon::sync::lock,
    policy_rules::PolicyRule,
    sys::netlink::{link_mac, link_master, link_name},
};

pub(crate) use crate::sys::addresses::{Addresses, OwnAddresses};

/// The time that the kernel may take for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The pause between attempts to open a connection again that has ended.
const RETRY: Duration = Duration::from_millis(200);

async fn in_time<T>(answer: impl Future<Output = T>) -> Result<T> {
    timeout(PATIENCE, answer).await.context("the kernel does not answer on netlink")
}

/// A change that may move the next hop of packets.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Change {
    /// A route, a policy rule, a link or an address.
    Topology,
    /// A neighbour.
    Neighbour(Neighbour, NeighbourEntry),
    /// Some changes of neighbours were lost.
    MissedNeighbours,
}

/// An entry of the kernel's neighbour table.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct NeighbourEntry {
    /// Its MAC address, if it can be used now.
    pub(crate) mac: Option<[u8; 6]>,
    /// `true` if that was set by hand and must not be asked for.
    pub(crate) fixed: bool,
    /// `true` if it was asked for and has not answered (`NUD_FAILED`).
    pub(crate) failed: bool,
}

/// A stream of changes.
pub(crate) type Watch = BoxStream<'static, Change>;

/// The neighbour that has changed; `None` when some changes were lost.
pub(crate) type NeighbourChange = Option<Neighbour>;

/// Opens a stream of the changes of neighbours of either family from now on, apart from the one of
/// all changes: a task that waits for a neighbour waits for nothing else.
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

/// Opens an endless stream of the kernel's messages to these groups; `None` when some were lost.
/// When the connection breaks, which a lack of memory is enough for, it is made again.
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

/// Tries until it works, and logs the first failure only.
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
    /// Held while the kernel lists something: it lists one thing at a time on a connection, and
    /// refuses the next one meanwhile (EBUSY of `__netlink_dump_start`).
    listing: Arc<AsyncMutex<()>>,
}

/// Opens a connection for questions to the kernel.
pub(crate) fn connect() -> Result<Kernel> {
    // Questions have a separate connection: when a burst of changes overruns a socket's buffer,
    // answers are lost as well.
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
    Ok(Kernel { handle, listing: Arc::default() })
}

/// Opens the stream of the kernel's changes from now on.
pub(crate) fn watch() -> Result<Watch> {
    let topology = messages(&[
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv4Rule,
    ])?;
    // Any host on the link can change neighbours at the rate of the link. So these changes have a
    // separate socket: when it overruns, no change of a route is lost.
    let neighbours = messages(&[MulticastGroup::Neigh])?;
    let or = |missed: Change| {
        move |message: Option<_>| std::future::ready(message.map_or(Some(missed.clone()), change))
    };
    let changes = select(
        topology.filter_map(or(Change::Topology)).boxed(),
        neighbours.filter_map(or(Change::MissedNeighbours)).boxed(),
    );
    Ok(changes.boxed())
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

/// Facts of the routes of all tables.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Routes {
    /// Every gateway, with `true` if its route has others to choose from.
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

    /// Waits until the kernel lists nothing, which lasts until the value is dropped.
    async fn turn(&self) -> MutexGuard<'_, ()> {
        self.listing.lock().await
    }

    /// This machine's IPv4 addresses.
    pub(crate) async fn addresses(&self) -> Result<Addresses> {
        let _turn = self.turn().await;
        let messages = self.handle().address().get().execute();
        let messages: Vec<_> =
            in_time(messages.try_collect()).await?.context("cannot read this machine's addresses")?;
        Ok(Addresses::new(messages))
    }

    /// The names of interfaces by index.
    pub(crate) async fn interface_names(&self) -> Result<HashMap<u32, String>> {
        Ok(self.links().await?.iter().map(|link| (link.header.index, link_name(link).to_owned())).collect())
    }

    /// Returns the indexes of the interfaces that are down or have no carrier.
    pub(crate) async fn interfaces_down(&self) -> Result<HashSet<u32>> {
        let links = self.links().await?;
        let down = links.iter().filter(|link| !link.header.flags.contains(LinkFlags::LowerUp));
        Ok(down.map(|link| link.header.index).collect())
    }

    /// Returns the interfaces with these indexes, each with its virtual function: the device whose
    /// master it is. A missing interface keeps its index, so that the other one of two keeps its
    /// side. Addresses are not filled in.
    pub(crate) async fn interfaces(&self, indexes: &[u32]) -> Result<Vec<Interface>> {
        let links = self.links().await?;
        let interface = |primary: &u32| {
            let Some(link) = links.iter().find(|link| link.header.index == *primary) else {
                return Interface { primary: *primary, ..Interface::default() };
            };
            let virtual_function = links
                .iter()
                .find(|link| link_master(link) == Some(*primary))
                .map_or(0, |link| link.header.index);
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
        let _turn = self.turn().await;
        let links = self.handle().link().get().execute();
        in_time(links.try_collect()).await?.context("cannot read this machine's interfaces")
    }

    /// The IPv4 routes of all tables, as far as they lead to gateways or name a source.
    pub(crate) async fn routes(&self) -> Result<Routes> {
        let _turn = self.turn().await;
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
        let _turn = self.turn().await;
        let messages: Vec<_> = in_time(self.handle().rule().get(IpVersion::V4).execute().try_collect())
            .await?
            .context("cannot read the policy rules")?;
        Ok(messages.iter().map(PolicyRule::from).collect())
    }

    /// Every neighbour that the kernel knows. A route to an IPv4 network may lead to an IPv6 one.
    pub(crate) async fn neighbours(&self) -> Result<HashMap<Neighbour, NeighbourEntry>> {
        let _turn = self.turn().await;
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
            .with_context(|| format!("cannot ask the kernel to confirm neighbour {address}"))
    }

    /// Has the kernel find out a neighbour's MAC address.
    pub(crate) async fn probe(&self, neighbour: &Neighbour) -> Result<()> {
        let address = neighbour.ip();
        let request = self.handle().neighbours().add(neighbour.interface, address);
        in_time(request.state(NeighbourState::None).flags(NeighbourFlags::Use).replace().execute())
            .await?
            .with_context(|| format!("cannot ask the kernel to resolve neighbour {address}"))
    }

    /// Has the kernel find out a neighbour's MAC address from the start, even if it is asking
    /// already: it asks three times, a second apart, and what it asked without a carrier nobody has
    /// heard. An answer that came in the moment before is lost, and asked for again.
    pub(crate) async fn probe_anew(&self, neighbour: &Neighbour) -> Result<()> {
        let address = neighbour.ip();
        let request = self.handle().neighbours().add(neighbour.interface, address);
        in_time(request.state(NeighbourState::None).replace().execute())
            .await?
            .with_context(|| format!("cannot have the kernel forget its requests for neighbour {address}"))?;
        self.probe(neighbour).await
    }

    /// Has the kernel find out a neighbour's MAC address, and tells what it knows of it by then.
    pub(crate) async fn ask_for(&self, neighbour: &Neighbour) -> Result<Option<NeighbourEntry>> {
        self.probe(neighbour).await?;
        self.neighbour(neighbour).await
    }

    /// Returns the entry of a neighbour; `None` if there is none.
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

/// Returns zeros for a link that is not Ethernet.
fn mac(link: &LinkMessage) -> [u8; 6] {
    link_mac(link).try_into().unwrap_or_default()
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
    use futures_util::future::try_join_all;

    use super::*;

    #[tokio::test]
    async fn many_may_ask_for_lists_at_a_time() {
        let kernel = connect().unwrap();
        let asked = (0..20).map(|_| async {
            kernel.addresses().await?;
            kernel.interface_names().await?;
            kernel.routes().await?;
            kernel.policy_rules().await?;
            kernel.neighbours().await.map(drop)
        });
        try_join_all(asked).await.unwrap();
    }
}
