//! The addresses of the hosts, as in Azure. They are the same in every lab, since each lab has
//! separate namespaces.
//!
//! ```text
//!  serverless            pls                          vnet (switches)        router
//!  100.64.0.4 --------- 100.64.0.1                                           eth0 10.0.2.68
//!                        10.0.2.10 private endpoint    br0 10.0.2.64/26      eth1 10.0.3.4 (two NICs)
//!  vm                    10.0.2.69, .70 PLS NAT       .65 pls
//!  10.0.2.4 ----------- 10.0.2.1    .65 ------------- .66 firewall (one NIC) firewall         internet
//!                        168.63.129.16                 br1 10.0.3.0/26       192.0.2.2 ----- 192.0.2.1
//!                                                     .1 firewall (two NICs)                  servers
//! ```
//!
//! Further routers of a fleet are on the same wires, at the addresses of [`router`].

use std::net::Ipv4Addr;

/// The serverless client.
pub const SERVERLESS: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 4);
/// The client's gateway, on *pls*.
pub const SERVERLESS_GATEWAY: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
/// The private endpoint, which is the load balancer's frontend too: what the client believes to be
/// the server.
pub const ENDPOINT: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 10);

/// The subnet of the router and of the Private Link Service's NAT addresses, which is all that the
/// rules' `sources` allow.
pub const PLS_SUBNET: &str = "10.0.2.64/26";
/// The whole virtual network.
pub const VNET: &str = "10.0.2.0/24";
/// The NAT addresses of the Private Link Service: the sources that the router sees.
pub const PLS_NAT: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 2, 69), Ipv4Addr::new(10, 0, 2, 70)];
/// The gateway of the router's subnet, on *pls*.
pub const PLS_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 65);
/// Azure's platform address: probes, DNS.
pub const PLATFORM: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);

/// The router VM.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 68);
/// The router VM's second NIC, if it has one.
pub const ROUTER_SECOND: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 4);

/// The most routers that a lab can have.
pub const MOST_ROUTERS: usize = 8;

/// The address of a router of a fleet, and that of its second NIC. Number 0 is [`ROUTER`].
pub fn router(number: usize) -> (Ipv4Addr, Ipv4Addr) {
    // The addresses after the first router's are the Private Link Service's, and one that a test
    // gives to the first router.
    let further = |address: Ipv4Addr, gap: u32| {
        let more = if number == 0 { 0 } else { gap + number as u32 };
        Ipv4Addr::from_bits(address.to_bits() + more)
    };
    (further(ROUTER, 3), further(ROUTER_SECOND, 0))
}

/// A VM elsewhere in the network, outside of the rules' `sources`; its user-defined route leads to
/// the router.
pub const VM: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 4);
/// The VM's gateway, on *pls*.
pub const VM_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);

/// The firewall, as the router with one NIC reaches it.
pub const FIREWALL_ONE_NIC: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 66);
/// The firewall, as the router with two NICs reaches it.
pub const FIREWALL_TWO_NICS: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 1);
/// The firewall's public address: the source that the internet sees.
pub const FIREWALL_PUBLIC: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// The internet's end of the firewall's uplink.
pub const INTERNET: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The internet's DNS server.
pub const DNS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 53);
/// `www.example.com`
pub const WWW: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// `pypi.example.org`
pub const PYPI: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 11);
/// `evil.example.net`
pub const EVIL: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 66);
/// iperf3 and the echo services.
pub const TOOLS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 20);
/// The target of the rules for HTTPS and HTTP. No host has this address: any routable one would do,
/// since the firewall picks the server by name.
pub const ANYWHERE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);

/// The names on the internet, where they are, and whether the firewall lets them through.
pub const NAMES: [(&str, Ipv4Addr, bool); 3] =
    [("www.example.com", WWW, true), ("pypi.example.org", PYPI, true), ("evil.example.net", EVIL, false)];

/// A name that the firewall lets through.
pub const ALLOWED_NAME: &str = "www.example.com";
/// A name that it does not.
pub const DENIED_NAME: &str = "evil.example.net";

/// The port of the iperf3 server.
pub const IPERF_PORT: u16 = 5201;
/// The port of the TCP and UDP echo servers.
pub const ECHO_PORT: u16 = 7007;
/// A port that the router listens on itself, where SSH would be.
pub const SSH_PORT: u16 = 22;
/// A port where a router's sshd listens, on a router that has one.
pub const SSHD_PORT: u16 = 2022;
/// The port of the router's health endpoint.
pub const HEALTH_PORT: u16 = 8082;
