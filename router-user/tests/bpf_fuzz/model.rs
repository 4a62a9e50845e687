//! The model of the router, written a second time: its rules, its routes, and its known sessions.

use std::collections::HashMap;

use anyhow::{Context as _, Result, ensure};
use router_common::ports::PortRange;
use router_user::dataplane::{RuleSetSpec, Session};

use crate::{
    packets::{FIREWALL, FIREWALL_MAC, PLATFORM, PLS, PLS_MAC, ROUTER, ROUTER_SECOND, STRANGER, TARGET},
    wire::{ICMP, TCP, Tuple, UDP, is_host},
    world::network,
};

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Another client beside `PLS`.
pub(crate) const CLIENT: [u8; 4] = [10, 0, 2, 70];
pub(crate) const CLIENTS: [[u8; 4]; 2] = [PLS, CLIENT];
/// A second address for new source addresses, where there is one.
pub(crate) const ROUTER_SPARE: [u8; 4] = [10, 0, 2, 67];
/// The broadcast address of the first link.
pub(crate) const BROADCAST: [u8; 4] = [10, 0, 2, 127];
/// Networks behind a gateway that does not answer, behind a narrow link, and nowhere.
pub(crate) const PENDING: [u8; 3] = [192, 0, 2];
pub(crate) const NARROW: [u8; 3] = [198, 18, 0];
pub(crate) const NOWHERE: [u8; 3] = [198, 19, 0];
pub(crate) const NARROW_MTU: usize = 600;
pub(crate) const SILENT_GATEWAY: [u8; 4] = [10, 0, 2, 66];
/// The second link's gateway.
const FIREWALL_SECOND: [u8; 4] = [10, 0, 3, 1];

/// The way by which a packet leaves.
pub(crate) struct Route {
    pub(crate) mac: [u8; 6],
    pub(crate) slot: usize,
    pub(crate) mtu: usize,
}

/// Signs of the end of a TCP session, by genuine and forged segments alike.
#[derive(Clone, Copy, Default)]
struct Shown {
    fin: [bool; 2],
    reset: bool,
}

/// The known state of a router.
pub(crate) struct Model {
    pub(crate) nics: usize,
    pub(crate) mtu: usize,
    pub(crate) ports: PortRange,
    pub(crate) snat: Vec<[u8; 4]>,
    /// Ports of sockets of this machine, by protocol.
    pub(crate) sockets: Vec<(u8, u16)>,
    /// Clients' tuples, as they come in.
    sessions: Vec<Tuple>,
    /// Of every live tuple that comes in, the one that goes out.
    flows: HashMap<Tuple, Tuple>,
    /// The segments that the two sides of a TCP session have been given to send, by the client's
    /// tuple.
    shown: HashMap<Tuple, Shown>,
    /// The address that port 443 leads to.
    pub(crate) https: [u8; 4],
    pub(crate) opened: u64,
    /// Sessions whose tuple was used again and led elsewhere.
    pub(crate) moved: u64,
    /// The identification of the datagram that comes in fragments now, among others.
    pub(crate) datagram: u16,
}

/// Has every rule allow both clients.
pub(crate) fn allow_clients(spec: &mut RuleSetSpec) {
    let clients: Vec<_> = CLIENTS.map(|client| network(client, 32)).into();
    for forward in &mut spec.forwards {
        forward.sources.clone_from(&clients);
    }
    spec.masquerades[0].sources = clients;
}

/// The same, and tells clients when no port is free, and when there is no way.
pub(crate) fn reject(spec: &mut RuleSetSpec) {
    allow_clients(spec);
    spec.reject_exhausted = true;
    spec.reject_unreachable = true;
}

impl Model {
    pub(crate) fn new(nics: usize, mtu: usize, ports: PortRange, snat: Vec<[u8; 4]>) -> Self {
        Self {
            nics,
            mtu,
            ports,
            snat,
            sockets: Vec::new(),
            sessions: Vec::new(),
            flows: HashMap::new(),
            shown: HashMap::new(),
            https: TARGET,
            opened: 0,
            moved: 0,
            datagram: 0,
        }
    }

    /// The machine's own addresses, and its broadcast address.
    pub(crate) fn own_addresses(&self) -> Vec<[u8; 4]> {
        let mut own = vec![ROUTER, BROADCAST];
        own.extend(self.snat.iter().filter(|address| **address != ROUTER));
        if self.nics == 2 && !own.contains(&ROUTER_SECOND) {
            own.push(ROUTER_SECOND);
        }
        own
    }

    /// The way by which packets to an address leave, if it is known.
    pub(crate) fn route(&self, destination: [u8; 4]) -> Option<Route> {
        let [a, b, c, d] = destination;
        let (mac, slot, mtu) = match destination {
            PLS | CLIENT | STRANGER => (PLS_MAC, 0, self.mtu),
            FIREWALL => (FIREWALL_MAC, 0, self.mtu),
            FIREWALL_SECOND if self.nics == 2 => (FIREWALL_MAC, 1, self.mtu),
            _ if [a, b, c] == [10, 0, 2] && (64..128).contains(&d) => return None,
            _ if self.nics == 2 && [a, b, c] == [10, 0, 3] && d < 64 => return None,
            _ if [a, b, c] == PENDING || [a, b, c] == NOWHERE => return None,
            _ if [a, b, c] == NARROW => (FIREWALL_MAC, self.nics - 1, NARROW_MTU),
            _ => (FIREWALL_MAC, self.nics - 1, self.mtu),
        };
        Some(Route { mac, slot, mtu })
    }

    /// Returns the tuple that packets of a live tuple leave with.
    pub(crate) fn translated(&self, tuple: &Tuple) -> Option<Tuple> {
        self.flows.get(tuple).copied()
    }

    /// All live tuples that come in, and what they go out as.
    pub(crate) fn flows(&self) -> impl Iterator<Item = (&Tuple, &Tuple)> {
        self.flows.iter()
    }

    /// Live sessions, by the client's tuple.
    pub(crate) fn sessions(&self) -> &[Tuple] {
        &self.sessions
    }

    /// Takes note of a session that opens by a packet with the tuple `from`, which went out as
    /// `to`.
    ///
    /// # Errors
    /// If no rule allows that, or the port is not free.
    pub(crate) fn open(&mut self, from: Tuple, to: Tuple) -> Result<()> {
        let destination = self.destination(&from).context("no rule opens this session")?;
        ensure!(to.destination == destination, "sent to {:?} and not {destination:?}", to.destination);
        ensure!(self.snat.contains(&to.source.0), "{:?} is no address for sources", to.source.0);
        ensure!(self.ports.contains(to.source.1), "port {} is not in the range", to.source.1);
        let socket = (to.protocol, to.source.1);
        ensure!(!self.sockets.contains(&socket), "port {} is a socket's of this machine", to.source.1);
        let reply = to.reversed();
        ensure!(!self.flows.contains_key(&reply), "port {} is taken", to.source.1);
        self.sessions.push(from);
        self.flows.insert(from, to);
        self.flows.insert(reply, from.reversed());
        self.opened += 1;
        Ok(())
    }

    /// The destination that the rules have for a client's packet.
    fn destination(&self, from: &Tuple) -> Option<([u8; 4], u16)> {
        let (address, port) = from.destination;
        if !CLIENTS.contains(&from.source.0) || address == PLATFORM || (from.protocol == ICMP && port != 0) {
            return None;
        }
        if self.own_addresses().contains(&address) {
            return match (from.protocol, port) {
                (TCP, 443) => Some((self.https, 8443)),
                (TCP, 8000..=8010) | (UDP, 53) => Some((TARGET, port)),
                _ => None,
            };
        }
        is_host(address).then_some((address, port))
    }

    /// Takes note of the flags of a TCP packet that the router was given.
    pub(crate) fn note(&mut self, tuple: &Tuple, flags: u8) {
        let Some(to) = self.flows.get(tuple) else { return };
        let is_client = self.flows.get(&to.reversed()).is_some_and(|back| *back == tuple.reversed())
            && self.sessions.contains(tuple);
        let client = if is_client { *tuple } else { to.reversed() };
        let shown = self.shown.entry(client).or_default();
        shown.reset |= flags & RST != 0;
        shown.fin[usize::from(is_client)] |= flags & FIN != 0;
    }

    /// Returns `true` if a client's packet may open another connection of its session: a SYN, on
    /// one that may be over. A reset that the router does not believe counts here.
    pub(crate) fn may_open_again(&self, from: &Tuple, flags: u8) -> bool {
        let may_be_over = |shown: &Shown| shown.reset || shown.fin == [true; 2];
        flags & (FIN | SYN | RST | ACK) == SYN
            && self.sessions.contains(from)
            && self.shown.get(from).is_some_and(may_be_over)
    }

    /// Forgets a session that has been over, and whose tuple has been used again.
    pub(crate) fn forget_ended(&mut self, from: &Tuple) {
        self.forget(from);
        self.moved += 1;
    }

    /// Forgets a session that has been removed.
    pub(crate) fn forget(&mut self, from: &Tuple) {
        self.shown.remove(from);
        if let Some(to) = self.flows.remove(from) {
            self.flows.remove(&to.reversed());
        }
        self.sessions.retain(|session| session != from);
    }

    /// Returns `true` if the session is known.
    pub(crate) fn knows(&self, session: &Session) -> bool {
        let key = &session.forward.key;
        let from = Tuple {
            protocol: key.protocol_number(),
            source: (key.source.0, key.source_port.number()),
            destination: (key.destination.0, key.destination_port.number()),
        };
        self.flows.contains_key(&from)
    }
}
