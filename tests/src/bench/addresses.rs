//! The addresses and ports of a path.

use std::net::Ipv4Addr;

/// The target behind the router.
pub(crate) const TARGET: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// The first of the addresses that packets come from.
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 69);
/// The router, where packets come in.
pub(crate) const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 68);
/// The router, where they go out; the address that they get as their source.
pub(crate) const ROUTER_OUT: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 4);
pub(crate) const SINK: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 1);
/// The next hop of a router with one NIC.
pub(crate) const FIREWALL: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 65);
/// The network of allowed sources.
pub(crate) const CLIENTS: &str = "10.0.2.64/26";
/// The port of the iperf3 server.
pub(crate) const IPERF_PORT: u16 = 5201;
