//! A rule set as the daemon describes it.

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
    /// `true` if clients get an answer when none of them is free.
    pub reject_exhausted: bool,
    /// `true` if clients get an answer when their packets cannot be forwarded.
    pub reject_unreachable: bool,
    /// The access to this machine.
    pub local: LocalSpec,
}

/// The access to this machine by sources of rules.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocalSpec {
    /// The entries of `local.allow`.
    pub allow: Vec<LocalAllowSpec>,
    /// `true` if it applies to all other addresses as well.
    pub others_are_closed: bool,
    /// The port of the health probe, which everybody reaches.
    pub health_port: u16,
    /// `true` if it is answered by IPv6.
    pub health_by_ipv6: bool,
    /// The ports that the kernel gives to this machine's own sockets
    /// (`net.ipv4.ip_local_port_range`).
    pub ephemeral: PortRange,
}

/// Something that is allowed.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalAllowSpec {
    /// The IP protocol number; of ICMP, echo requests are meant.
    pub protocol: u8,
    /// The ports; 0 to 65535 for a protocol without ports.
    pub ports: PortRange,
    /// From where.
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
    /// The targets. Without a port, the client's is kept.
    pub targets: Vec<(Ipv4Addr, Option<u16>)>,
    /// The networks that may use it.
    pub sources: Vec<Ipv4Net>,
    /// The largest TCP segment, as in [`Rule::mss`].
    pub mss: u16,
}

/// A `[[masquerade]]` rule.
#[derive(Clone, Debug, PartialEq)]
pub struct MasqueradeSpec {
    /// Its name.
    pub name: String,
    /// The networks that may use it.
    pub sources: Vec<Ipv4Net>,
    /// The destinations that it covers.
    pub destinations: Vec<Ipv4Net>,
    /// The largest TCP segment, as in [`Rule::mss`].
    pub mss: u16,
}
