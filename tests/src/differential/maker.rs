//! A sequence in the making: its sessions, and what it draws.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::{
    category::Category,
    plan::{Body, MAX_DATAGRAMS, Session, Step},
    topology::{Network, RANGE, RANGE_TARGET, ROUTER, SERVICES, Service, Side},
};
use crate::{
    packet::{ICMP, TCP, UDP},
    random::{Draw as _, Random},
};

/// The ports and addresses of a sequence.
const PER_SLOT: u32 = 4;
/// The first port, above those of which pls-router keeps only every other one
/// (`router_common::ports::SourcePorts`).
const FIRST_PORT: u32 = 13_900;
const PORTS_PER_SLOT: u32 = 2;

/// A sequence in the making.
pub(super) struct Maker<'a> {
    pub(super) random: Random,
    slot: u32,
    pub(super) categories: &'a [Category],
    next_number: u16,
    pub(super) sessions: Vec<Session>,
}

impl<'a> Maker<'a> {
    pub(super) fn new(seed: u64, slot: u32, categories: &'a [Category]) -> Self {
        // Neighbouring seeds have nothing in common after this.
        let mut random = Random::with_seed(seed);
        let random = Random::with_seed(random.u64(..) ^ seed.rotate_left(32));
        Self { random, slot, categories, next_number: 0, sessions: Vec::new() }
    }

    /// Returns `true` if there are numbers for this many more datagrams.
    pub(super) const fn has_room_for(&self, datagrams: u16) -> bool {
        self.next_number + datagrams < MAX_DATAGRAMS
    }

    /// A listen port of a service that no other sequence uses.
    pub(super) const fn own_listen(&self) -> u16 {
        RANGE.0 + self.slot as u16
    }

    pub(super) fn has(&self, category: Category) -> bool {
        self.categories.contains(&category)
    }

    /// Returns `true` in this many of a hundred cases, if the category is enabled at all.
    pub(super) fn wants(&mut self, category: Category, percent: usize) -> bool {
        // Drawn in any case, so that more categories change as little as can be.
        let drawn = self.random.percent(percent);
        drawn && self.has(category)
    }

    /// A number for a datagram.
    pub(super) fn number(&mut self) -> u16 {
        let number = self.next_number.min(MAX_DATAGRAMS - 1);
        self.next_number += 1;
        number
    }

    /// An address that only this sequence has.
    pub(super) fn client(&self, network: Network, which: u32) -> Ipv4Addr {
        network.address((self.slot * PER_SLOT + which % PER_SLOT) as u16)
    }

    /// A server that only this sequence has.
    pub(super) const fn own_server(&self) -> Ipv4Addr {
        let (high, low) = (self.slot / 250, self.slot % 250);
        Ipv4Addr::new(198, 19, 64 + high as u8, 1 + low as u8)
    }

    /// A port that only this sequence has, and every router may keep.
    pub(super) const fn port(&self, which: usize) -> u16 {
        let which = which as u32 % PORTS_PER_SLOT;
        (FIRST_PORT + self.slot * PORTS_PER_SLOT + which) as u16
    }

    /// Adds a session of any of the categories.
    pub(super) fn session(&mut self) -> usize {
        let kinds = [
            (Category::Tcp, TCP),
            (Category::Tcp, TCP),
            (Category::Tcp, TCP),
            (Category::Udp, UDP),
            (Category::Udp, UDP),
            (Category::Echo, ICMP),
        ];
        let kinds: Vec<_> = kinds.into_iter().filter(|(category, _)| self.has(*category)).collect();
        let (_, protocol) = if kinds.is_empty() { (Category::Udp, UDP) } else { self.random.pick(&kinds) };
        let which = self.sessions.len() as u32;
        let port = self.port(self.sessions.len());
        let masqueraded = protocol == ICMP || self.random.percent(25);
        let session = if masqueraded {
            let client = SocketAddrV4::new(self.client(Network::Masqueraded, which), port);
            // Hosts in the benchmarks' network, RFC 2544; to one of them leads a narrow way only.
            let host = match self.random.usize(..4) {
                0 => Ipv4Addr::new(203, 0, 114, 20),
                _ => Ipv4Addr::new(198, 18, self.random.u8(..4), self.random.u8(1..=200)),
            };
            let port = if protocol == ICMP { 0 } else { self.random.pick(&[22, 53, 443, 8080, 40_000]) };
            let server = SocketAddrV4::new(host, port);
            Session { protocol, client, listen: server, server, refused: false }
        } else {
            let services: Vec<&Service> =
                SERVICES.iter().filter(|service| service.protocol == protocol && !service.open).collect();
            let service = self.random.pick(&services);
            let (first, last) = service.listen;
            let listen = self.random.u16(first..=last);
            let network = if self.random.percent(20) { Network::Narrow } else { Network::Clients };
            let client = SocketAddrV4::new(self.client(network, which), port);
            let server = service.target(listen);
            Session { protocol, client, listen: SocketAddrV4::new(ROUTER, listen), server, refused: false }
        };
        let number = self.sessions.len();
        self.sessions.push(session);
        if self.random.percent(5) {
            // A port that a router may not keep: below and above its own.
            let below = 1 + self.random.u16(..1000);
            let above = 65_000 + self.random.u16(..500);
            let port = self.random.pick(&[below, above]);
            self.isolate(number);
            self.sessions[number].client.set_port(port);
        }
        number
    }

    /// Moves a session to a server that only this sequence has. Each router chooses another port
    /// for the session at random; to a shared server, that port might belong to another sequence.
    fn isolate(&mut self, number: usize) {
        let own_server = self.own_server();
        let own_listen = self.own_listen();
        let Session { listen, server, .. } = &mut self.sessions[number];
        if listen == server {
            server.set_ip(own_server);
            *listen = *server;
        } else {
            *listen = SocketAddrV4::new(ROUTER, own_listen);
            *server = SocketAddrV4::new(RANGE_TARGET, own_listen);
        }
    }

    /// Turns the second session into one of another client with the first one's port, to the same
    /// server.
    pub(super) fn collide(&mut self) {
        let [first, second] = self.sessions.as_slice() else { return };
        if first.protocol == second.protocol {
            self.isolate(0);
            let first = self.sessions[0].clone();
            let network = if first.listen == first.server { Network::Masqueraded } else { Network::Clients };
            let address = self.client(network, 3);
            let client = SocketAddrV4::new(address, first.client.port());
            self.sessions[1] = Session { client, ..first };
        }
    }

    /// A step of a session, with the values of an ordinary packet.
    pub(super) fn step(&mut self, session: usize, from: Side, body: Body) -> Step {
        Step {
            number: self.number(),
            from,
            session,
            source: None,
            destination: None,
            tos: self.random.pick(&[0, 0, 0, 0x10, 0x02, 0xb8]),
            ttl: self.random.pick(&[64, 64, 128, 255, 3]),
            dont_fragment: !matches!(body, Body::Udp { .. } | Body::Echo { .. }) || self.random.percent(30),
            options: Vec::new(),
            body,
            cut: None,
            damage: None,
            spice: None,
            phase: 0,
        }
    }

    /// The steps of the sessions as one list, each session's in their order, and a datagram's
    /// fragments together.
    pub(super) fn interleave(&mut self, lists: Vec<Vec<Step>>) -> Vec<Step> {
        let mut lists: Vec<_> = lists.into_iter().map(Vec::into_iter).collect();
        let mut steps = Vec::new();
        loop {
            lists.retain(|list| !list.as_slice().is_empty());
            if lists.is_empty() {
                return steps;
            }
            let of = self.random.usize(..lists.len());
            let number = lists[of].as_slice().first().map(|step| step.number);
            let is_same = |step: &Step| Some(step.number) == number;
            while lists[of].as_slice().first().is_some_and(is_same) {
                steps.extend(lists[of].next());
            }
        }
    }
}
