//! The validated configuration. A value of these types keeps every promise written on its fields.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};

pub use router_common::tuple::Protocol;

pub use crate::sys::xdp::Mode;

/// The answer to a client whose packets cannot be forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing.
    Drop,
    /// A TCP reset, or an ICMP error that says why.
    Reject,
}

/// The services of this machine that addresses in no rule's `sources` reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// Everything, as if there were no router.
    Open,
    /// Only [`Local::allow`].
    Closed,
}

/// A whole configuration, valid in itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The interfaces of the router.
    pub interfaces: Interfaces,
    /// Destination NAT rules, in the order of the file. No two overlap.
    pub forwards: Vec<Forward>,
    /// Source NAT rules, in the order of the file. All rules number 1 to [`super::MAX_RULES`].
    pub masquerades: Vec<Masquerade>,
    /// The sources of new sessions.
    pub snat: Snat,
    /// The answers to clients.
    pub answers: Answers,
    /// The services of this machine that can be reached.
    pub local: Local,
    /// The load balancer's probe.
    pub health: Health,
    /// Metrics, the API socket, and where the kernel objects are kept.
    pub admin: Admin,
    /// Sizes.
    pub limits: Limits,
    /// The timeouts of sessions of no known rule. Those of rules are in the rules.
    pub timeouts: Timeouts,
}

/// One source may have one in this many of all sessions half open by default.
const HALF_OPEN_SHARE: u32 = 8;
/// And the sessions of one in this many SNAT ports of one target, so that others find some.
const HALF_OPEN_PORTS_SHARE: u32 = 2;
/// But not fewer than this, where there are hardly any ports.
const MIN_HALF_OPEN: u32 = 64;

impl Config {
    /// Returns the number of half-open sessions that one source may have, where each SNAT address
    /// has this number of ports.
    #[must_use]
    pub fn half_open_per_source(&self, snat_ports: u32) -> u32 {
        let share = || {
            // At most 16 addresses.
            let addresses = u32::try_from(self.snat.addresses.len()).unwrap_or(1).max(1);
            let ports = snat_ports.saturating_mul(addresses);
            (self.limits.flows / HALF_OPEN_SHARE).min(ports / HALF_OPEN_PORTS_SHARE).max(MIN_HALF_OPEN)
        };
        self.limits.half_open_per_source.unwrap_or_else(share)
    }
}

/// The interfaces of the router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interfaces {
    /// Faces the Private Link Service.
    pub pls: String,
    /// Its routes lead to the firewall; often the same as `pls`.
    pub firewall: String,
    /// The mode of the program.
    pub mode: Mode,
}

impl Interfaces {
    /// Returns the interfaces by name, each once.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let second = (self.firewall != self.pls).then_some(self.firewall.as_str());
        std::iter::once(self.pls.as_str()).chain(second)
    }
}

/// One `[[forward]]`: packets for `listen` go to one of `targets`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Unique among all rules: 1 to 32 of `a-z 0-9 . _ -`, a letter or digit first.
    pub name: String,
    /// The protocol that it forwards: TCP or UDP.
    pub protocol: Protocol,
    /// The address and ports that it listens on.
    pub listen: Listen,
    /// 1 to [`super::MAX_TARGETS`] targets; new sessions are spread over them.
    pub targets: Vec<Target>,
    /// The networks that may use it; never empty, host bits clear.
    pub sources: Vec<Ipv4Net>,
    /// The limit of TCP's segments; `None` leaves them alone.
    pub mss: Option<Mss>,
    /// The timeouts of its sessions.
    pub timeouts: Timeouts,
    /// The active check of its targets.
    pub check: Option<Check>,
}

/// The active check of a forward's targets: a connection to each of them, again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The kind of check.
    pub kind: CheckKind,
    /// The port; `None` for the port of sessions. Never `None` for UDP, nor for a forward that
    /// listens on a range.
    pub port: Option<u16>,
    /// The time from the start of one check of a target to that of the next: 1 s to 1 h.
    pub interval: Duration,
    /// The time that a check may take, at most the interval: 100 ms to 1 min.
    pub timeout: Duration,
    /// The checks in a row that have to fail before the target has failed: 1 to 100.
    pub fall: u32,
    /// The checks in a row that have to succeed before it is good again: 1 to 100.
    pub rise: u32,
    /// The targets that must not have failed for the rule to be healthy.
    pub require: Require,
}

/// The way in which a target passes a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// Accept a TCP connection.
    Tcp,
    /// Answer a TLS ClientHello for this server name with a ServerHello.
    Tls {
        /// The name, without a final dot; `None` for that of the target, if it has one.
        sni: Option<String>,
    },
}

/// The number of things that have to be well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Require {
    /// One of them at least.
    Any,
    /// Each of them.
    All,
}

/// The rules that have to be reachable for the probe to answer 200.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequiredRules {
    /// One forward at least; one masquerade, where there is no forward.
    Any,
    /// Each forward; each masquerade, where there is no forward.
    All,
    /// Each of these rules, by name; never empty, and all of them exist.
    These(Vec<String>),
}

/// The largest segment that the ends of a TCP connection may send each other. The router lowers
/// larger ones that they announce in SYN and SYN-ACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mss {
    /// The largest that fits the MTU of the way out, without fragments.
    PathMtu,
    /// A number of bytes, 88 to 65,495.
    Bytes(u16),
}

impl fmt::Display for Mss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PathMtu => f.pad("pmtu"),
            Self::Bytes(bytes) => bytes.fmt(f),
        }
    }
}

/// The address and ports of a forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The destination address of its packets; `None` for any address of this machine.
    pub address: Option<Ipv4Addr>,
    /// The port or ports; never empty, never 0.
    pub ports: RangeInclusive<u16>,
}

impl Listen {
    /// Returns the ports and the address of packets that could be for both, if there are any.
    #[must_use]
    pub fn overlap(&self, other: &Self) -> Option<Self> {
        let same_address = self.address.is_none() || other.address.is_none() || self.address == other.address;
        let first = *self.ports.start().max(other.ports.start());
        let ports = first..=*self.ports.end().min(other.ports.end());
        let address = self.address.or(other.address);
        (same_address && !ports.is_empty()).then_some(Self { address, ports })
    }

    /// Returns `true` if it listens on more than one port.
    #[must_use]
    pub fn is_range(&self) -> bool {
        self.ports.start() != self.ports.end()
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(address) = self.address {
            write!(f, "{address}:")?;
        }
        write_ports(f, &self.ports)
    }
}

/// Writes "443" or "8000-8010".
fn write_ports(f: &mut fmt::Formatter<'_>, ports: &RangeInclusive<u16>) -> fmt::Result {
    write!(f, "{}", ports.start())?;
    if ports.start() == ports.end() { Ok(()) } else { write!(f, "-{}", ports.end()) }
}

/// A target of a forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The address, or a name to resolve again and again.
    pub host: Host,
    /// The port; `None` keeps the client's. Always `None` if the forward listens on a range.
    pub port: Option<u16>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(address) => write!(f, "{address}")?,
            Host::Name(name) => f.write_str(name)?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// The host of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A unicast address that packets can be sent to.
    Address(Ipv4Addr),
    /// A DNS name, in lower case; with a final dot it is absolute, and no search list applies.
    Name(String),
}

/// One `[[masquerade]]`: the destination is kept, only the source is rewritten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masquerade {
    /// Unique among all rules, as for [`Forward::name`].
    pub name: String,
    /// The networks that may use it; never empty, host bits clear.
    pub sources: Vec<Ipv4Net>,
    /// The networks that it leads to; never empty, host bits clear.
    pub destinations: Vec<Ipv4Net>,
    /// As for [`Forward::mss`].
    pub mss: Option<Mss>,
    /// The timeouts of its sessions.
    pub timeouts: Timeouts,
}

/// The sources of new sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snat {
    /// Up to [`super::MAX_SNAT_ADDRESSES`]; empty for the primary address of the firewall-facing
    /// interface.
    pub addresses: Vec<Ipv4Addr>,
    /// Their ports; never 0. `None` for the ports that this machine's sockets leave, see
    /// [`crate::port_plan`].
    pub ports: Option<RangeInclusive<u16>>,
    /// The answer to a client when no port is free for its target.
    pub exhausted: Refusal,
}

/// The answers to clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers {
    /// The answer to packets that have no route, next hop, target or session.
    pub unreachable: Refusal,
}

/// The services of this machine, beside rules and the probe, that can be reached. Answers to this
/// machine's own traffic, and the platform's traffic, always get in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Up to [`super::MAX_LOCAL_ALLOW`]; an address in any rule's `sources` reaches only these.
    pub allow: Vec<LocalAllow>,
    /// The services that addresses in no rule's `sources` reach.
    pub others: Others,
}

/// Packets for this machine that are let in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LocalAllow {
    /// Their protocol.
    pub protocol: IpProtocol,
    /// Their destination ports; never empty, never 0. `None` for all, and always for a protocol
    /// without ports.
    pub ports: Option<RangeInclusive<u16>>,
    /// The network that they are from, host bits clear; `None` for all of IPv4.
    pub from: Option<IpNet>,
}

impl LocalAllow {
    /// Returns `true` if it lets in packets of this protocol to `port`.
    #[must_use]
    pub fn takes(&self, protocol: Protocol, port: u16) -> bool {
        self.protocol == protocol.into() && self.ports.as_ref().is_none_or(|ports| ports.contains(&port))
    }

    /// Returns `true` if it lets in packets from `address`.
    #[must_use]
    pub fn is_for(&self, address: IpAddr) -> bool {
        self.from.map_or(address.is_ipv4(), |from| from.contains(&address))
    }
}

/// Writes the entry as the file has it.
impl fmt::Display for LocalAllow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.protocol.fmt(f)?;
        if let Some(ports) = &self.ports {
            f.write_str("/")?;
            write_ports(f, ports)?;
        }
        self.from.map_or(Ok(()), |from| write!(f, " from {from}"))
    }
}

/// An IP protocol number. ICMP stands for echo requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IpProtocol(pub u8);

impl IpProtocol {
    /// ICMP echo requests.
    pub const ICMP: Self = Self(Protocol::Icmp as u8);
    /// TCP.
    pub const TCP: Self = Self(Protocol::Tcp as u8);
    /// UDP.
    pub const UDP: Self = Self(Protocol::Udp as u8);

    /// The protocols that have a name in the file (IANA's "Protocol Numbers").
    pub const NAMES: [(&str, Self); 15] = [
        ("tcp", Self::TCP),
        ("udp", Self::UDP),
        ("icmp", Self::ICMP),
        ("ah", Self(51)),
        ("dccp", Self(33)),
        ("esp", Self(50)),
        ("gre", Self(47)),
        ("igmp", Self(2)),
        ("ipip", Self(4)),
        ("ipv6", Self(41)),
        ("ospf", Self(89)),
        ("pim", Self(103)),
        ("sctp", Self(132)),
        ("udplite", Self(136)),
        ("vrrp", Self(112)),
    ];

    /// Returns the protocol with this name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::NAMES.into_iter().find(|(known, _)| *known == name).map(|(_, protocol)| protocol)
    }

    /// Returns the name of the protocol, if the file has one for it.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        Self::NAMES.into_iter().find(|(_, protocol)| *protocol == self).map(|(name, _)| name)
    }

    /// Returns `true` if an entry may name ports of it.
    #[must_use]
    pub fn has_ports(self) -> bool {
        matches!(self, Self::TCP | Self::UDP)
    }
}

impl From<Protocol> for IpProtocol {
    fn from(protocol: Protocol) -> Self {
        Self(protocol as u8)
    }
}

/// Writes its name, or `ip/NUMBER`.
impl fmt::Display for IpProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => write!(f, "ip/{}", self.0),
        }
    }
}

/// The load balancer's probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// The address of its listener.
    pub listen: SocketAddr,
    /// The networks whose probes have reserved places and learn the reasons of a failure, host bits
    /// clear: up to [`super::MAX_PROBERS`]. Empty for Azure's platform address and the networks of
    /// the router's interfaces. This machine is always among them.
    pub from: Vec<IpNet>,
    /// The period in which the programs' forwarding is tested: whole seconds, 1 to 60. `None` for
    /// never.
    pub self_test: Option<Duration>,
    /// The time for which the router has to be down before the probe answers 503: up to 10 min.
    pub down_after: Duration,
    /// The time for which it has to forward again before the probe answers 200: up to 10 min.
    pub up_after: Duration,
    /// The rules that have to be reachable.
    pub require: RequiredRules,
}

/// Metrics, the API socket, and where the kernel objects are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Metrics over HTTP.
    pub listen: SocketAddr,
    /// Names, in lower case and without a final dot, that requests may give in `Host` beside this
    /// machine's own names and addresses.
    pub hosts: Vec<String>,
    /// The Unix socket of the API that the command line uses. Absolute.
    pub socket: PathBuf,
    /// The directory of pinned maps, programs and links, on a BPF file system. Absolute.
    pub pins: PathBuf,
}

/// Sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most sessions at a time: 1,024 to 16,777,216.
    pub flows: u32,
    /// The most half-open sessions of one source; at least one. `None` for a share, see
    /// [`Config::half_open_per_source`].
    pub half_open_per_source: Option<u32>,
}

/// The times that an idle session is kept: whole seconds, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// A TCP session after its handshake.
    pub tcp_established: Duration,
    /// A TCP session that is opening or closing.
    pub tcp_transitory: Duration,
    /// A UDP session that has been answered.
    pub udp: Duration,
    /// A UDP session before its first reply.
    pub udp_unreplied: Duration,
    /// An ICMP echo session.
    pub icmp: Duration,
}
