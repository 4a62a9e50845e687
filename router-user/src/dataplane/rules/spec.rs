//! The contents of a rule set.

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use router_common::{ports::PortRange, tuple::Protocol};

/// A configuration's rules with every name resolved: what the programs are to do.
#[derive(Clone, Debug, PartialEq)]
pub struct RuleSetSpec {
    /// The `[[forward]]` rules.
    pub forwards: Vec<ForwardSpec>,
    /// The `[[masquerade]]` rules.
    pub masquerades: Vec<MasqueradeSpec>,
    /// The addresses that new sessions get.
    pub snat: Vec<Ipv4Addr>,
    /// The ports that new sessions get.
    pub ports: PortRange,
    /// `true` if a client is answered when no port is free.
    pub reject_exhausted: bool,
    /// `true` if clients are answered when their packets cannot be forwarded.
    pub reject_unreachable: bool,
    /// The services of this machine itself that can be reached.
    pub local: LocalSpec,
}

/// The services of this machine itself that sources of a rule can reach.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocalSpec {
    /// The entries of `local.allow`.
    pub allow: Vec<LocalAllowSpec>,
    /// `true` if all other sources are restricted to these services as well.
    pub others_are_closed: bool,
    /// The port of the health probe, which every source reaches.
    pub health_port: u16,
    /// `true` if it is answered by IPv6.
    pub health_by_ipv6: bool,
    /// The ports that the kernel gives to this machine's own sockets
    /// (`net.ipv4.ip_local_port_range`).
    pub ephemeral: PortRange,
}

/// An entry of `local.allow`.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalAllowSpec {
    /// The IP protocol number; of ICMP, echo requests are meant.
    pub protocol: u8,
    /// The ports; 0 to 65535 for a protocol without ports.
    pub ports: PortRange,
    /// The sources that it is allowed to.
    pub from: IpNet,
}

/// A `[[forward]]` rule.
#[derive(Clone, Debug, PartialEq)]
pub struct ForwardSpec {
    /// Its name.
    pub name: String,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The address it listens on; `None` is every address of this machine.
    pub address: Option<Ipv4Addr>,
    /// The ports it listens on.
    pub ports: PortRange,
    /// Its targets. Without a port, a session keeps the port that its client used.
    pub targets: Vec<(Ipv4Addr, Option<u16>)>,
    /// The sources that may use it.
    pub sources: Vec<Ipv4Net>,
    /// The maximum segment size of TCP connections, as in
    /// [`Rule::mss`](router_common::maps::rules::Rule::mss).
    pub mss: u16,
}

/// A `[[masquerade]]` rule.
#[derive(Clone, Debug, PartialEq)]
pub struct MasqueradeSpec {
    /// Its name.
    pub name: String,
    /// The sources that may use it.
    pub sources: Vec<Ipv4Net>,
    /// The destinations that it covers.
    pub destinations: Vec<Ipv4Net>,
    /// The maximum segment size of TCP connections, as in
    /// [`Rule::mss`](router_common::maps::rules::Rule::mss).
    pub mss: u16,
}
