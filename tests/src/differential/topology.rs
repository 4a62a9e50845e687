//! The addresses around the two routers, and the configuration of both.
//!
//! ```text
//!  clients 10.64.0.0/16 ... 10.67.0.0/16              servers 203.0.113.0/24, 203.0.114.0/24, 198.18.0.0/15
//!       |                                                  |
//!  next hop 10.0.2.65                                 next hop 10.0.2.66 (one NIC) or 10.0.3.1 (two)
//!       +---------------- eth0 10.0.2.68/26  router  eth1 10.0.3.4/26 (two NICs)
//! ```
//!
//! This test takes the place of the next hops: it reads what a router sends from the wire, and
//! nothing answers by itself.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::packet::{TCP, UDP};

/// The router's address, and its network.
pub(super) const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 68);
/// The router's address on its second NIC.
pub(super) const ROUTER_SECOND: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 4);
/// The next hop to the clients.
pub(super) const CLIENT_HOP: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 65);
/// The next hop to the servers if there is one NIC.
pub(super) const SERVER_HOP: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 66);
/// The next hop to the servers if there are two NICs.
pub(super) const SERVER_HOP_SECOND: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 1);

/// The ports of the router's own that sessions get.
pub(super) const SNAT_PORTS: (u16, u16) = (1024, 44_999);

/// Ports that no session gets and no client has: the first, and how many.
pub(super) const UNUSED_PORTS: (u16, u16) = (61_000, 4_000);

/// The networks of clients.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Network {
    /// Clients of the services.
    Clients,
    /// Their destinations are kept, their source is translated.
    Masqueraded,
    /// Clients of the services whose path takes packets of [`NARROW_CLIENT_MTU`] bytes only.
    Narrow,
    /// Sources that may use nothing.
    Outsiders,
}

impl Network {
    const fn second_byte(self) -> u8 {
        match self {
            Self::Clients => 64,
            Self::Masqueraded => 65,
            Self::Narrow => 66,
            Self::Outsiders => 67,
        }
    }

    /// As in configuration files.
    pub(super) fn cidr(self) -> String {
        format!("10.{}.0.0/16", self.second_byte())
    }

    /// An address in it.
    pub(super) const fn address(self, number: u16) -> Ipv4Addr {
        let [high, low] = number.to_be_bytes();
        Ipv4Addr::new(10, self.second_byte(), high, low)
    }
}

/// The MTU to the narrow clients.
pub(super) const NARROW_CLIENT_MTU: u16 = 1300;
/// The MTU to the narrow servers.
pub(super) const NARROW_SERVER_MTU: u16 = 1400;
/// The servers to which the way is narrow.
pub(super) const NARROW_SERVERS: &str = "203.0.114.0/24";
/// The MTU of every NIC.
pub(super) const MTU: usize = 1500;

/// A router on the way, on the clients' side: where ICMP errors come from.
pub(super) const CLIENT_SIDE_ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 65);
/// A router on the way, on the servers' side.
pub(super) const SERVER_SIDE_ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 33);

/// A forward: ports of the router, and their target.
#[derive(Clone, Copy, Debug)]
pub(super) struct Service {
    pub(super) name: &'static str,
    pub(super) protocol: u8,
    /// First and last port.
    pub(super) listen: (u16, u16),
    pub(super) target: Ipv4Addr,
    /// None: the port is kept.
    pub(super) port: Option<u16>,
    /// `true` if source addresses that no packet may have may use it, too: its rule does not keep
    /// them out.
    pub(super) open: bool,
}

/// Networks that no packet comes from: "this" host, loopback, multicast, reserved, and the router
/// itself.
const MARTIANS: [&str; 6] =
    ["0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4", "10.0.2.68/32", "10.0.3.4/32"];

/// The service that martians may use, by TCP and UDP.
pub(super) const OPEN_PORT: u16 = 7;

/// A range of ports that are kept: enough of them for every sequence to have a server that no other
/// one has.
pub(super) const RANGE: (u16, u16) = (45_000, 59_999);
/// The target of that range.
pub(super) const RANGE_TARGET: Ipv4Addr = server(113, 12);

/// All of them but the [`MARKER`].
pub(super) const SERVICES: &[Service] = &[
    Service {
        name: "https",
        protocol: TCP,
        listen: (443, 443),
        target: server(113, 10),
        port: Some(443),
        open: false,
    },
    Service {
        name: "http",
        protocol: TCP,
        listen: (80, 80),
        target: server(113, 11),
        port: Some(8080),
        open: false,
    },
    Service { name: "range", protocol: TCP, listen: RANGE, target: RANGE_TARGET, port: None, open: false },
    Service {
        name: "narrow",
        protocol: TCP,
        listen: (844, 844),
        target: server(114, 10),
        port: Some(443),
        open: false,
    },
    Service {
        name: "dns",
        protocol: UDP,
        listen: (53, 53),
        target: server(113, 53),
        port: Some(53),
        open: false,
    },
    Service {
        name: "udp-range",
        protocol: UDP,
        listen: RANGE,
        target: RANGE_TARGET,
        port: None,
        open: false,
    },
    Service {
        name: "udp-narrow",
        protocol: UDP,
        listen: (844, 844),
        target: server(114, 10),
        port: Some(7000),
        open: false,
    },
    Service {
        name: "open",
        protocol: TCP,
        listen: (OPEN_PORT, OPEN_PORT),
        target: server(113, 7),
        port: None,
        open: true,
    },
    Service {
        name: "udp-open",
        protocol: UDP,
        listen: (OPEN_PORT, OPEN_PORT),
        target: server(113, 7),
        port: None,
        open: true,
    },
];

/// Packets that both routers are known to forward. When one comes out, everything sent before it
/// has been handled. Both directions have the small MTU.
pub(super) const MARKER: Service = Service {
    name: "marker",
    protocol: UDP,
    listen: (9, 9),
    target: server(114, 9),
    port: Some(9),
    open: false,
};
/// The sender.
pub(super) const MARKER_CLIENT: SocketAddrV4 = SocketAddrV4::new(Network::Narrow.address(0xfffe), 9999);

const fn server(network: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(203, 0, network, host)
}

impl Service {
    /// Returns the target of a port.
    pub(super) const fn target(&self, listen: u16) -> SocketAddrV4 {
        let port = match self.port {
            Some(port) => port,
            None => listen,
        };
        SocketAddrV4::new(self.target, port)
    }

    /// The allowed sources.
    pub(super) fn sources(&self) -> Vec<String> {
        let users = [Network::Clients.cidr(), Network::Narrow.cidr()];
        let martians = MARTIANS.iter().map(|network| (*network).to_owned()).filter(|_| self.open);
        users.into_iter().chain(martians).collect()
    }

    /// The protocol as configuration files have it.
    pub(super) const fn protocol_name(&self) -> &'static str {
        if self.protocol == TCP { "tcp" } else { "udp" }
    }
}

/// The one of two targets that each service has, the second of which is a hundred addresses on; or
/// none, where the services are withdrawn.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Targets {
    First,
    Second,
    Withdrawn,
}

impl Targets {
    /// The address of a service's target, if it has one.
    pub(super) fn of(self, service: &Service) -> Option<Ipv4Addr> {
        match self {
            Self::First => Some(service.target),
            Self::Second => Some(self.moved(service.target)),
            Self::Withdrawn => None,
        }
    }

    /// Returns the target that a service has now, by its first one.
    pub(super) const fn moved(self, first: Ipv4Addr) -> Ipv4Addr {
        let [a, b, c, d] = first.octets();
        match self {
            Self::Second => Ipv4Addr::new(a, b, c, d + 100),
            Self::First | Self::Withdrawn => first,
        }
    }
}

/// A side of the routers.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) enum Side {
    Client,
    Server,
}

impl Side {
    pub(super) const BOTH: [Self; 2] = [Self::Client, Self::Server];

    pub(super) const fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }

    /// The MAC address of the next hop there.
    pub(super) const fn mac(self) -> [u8; 6] {
        match self {
            Self::Client => [0x02, 0, 0, 0, 0, 0x0c],
            Self::Server => [0x02, 0, 0, 0, 0, 0x0f],
        }
    }
}
