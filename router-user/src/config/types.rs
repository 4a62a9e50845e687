//! The validated configuration. A value of these types keeps every promise written on its fields.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};

/// A whole configuration, valid in itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where packets come in and go out.
    pub interfaces: Interfaces,
    /// Destination NAT rules, in the order of the file. No two overlap.
    pub forwards: Vec<Forward>,
    /// Source-only NAT rules, in the order of the file. Rules of both kinds number 1 to
    /// [`super::MAX_RULES`].
    pub masquerades: Vec<Masquerade>,
    /// What new sessions get as their source.
    pub snat: Snat,
    /// What clients are told.
    pub answers: Answers,
    /// What of this machine itself can be reached.
    pub local: Local,
    /// The load balancer's probe.
    pub health: Health,
    /// Metrics, the API socket, and where the kernel objects are kept.
    pub admin: Admin,
    /// Sizes.
    pub limits: Limits,
    /// How long an idle session is kept. What rules say of their own is already in
    /// [`Forward::timeouts`] and [`Masquerade::timeouts`]; this is for sessions that no rule is
    /// known for.
    pub timeouts: Timeouts,
}

/// Of all sessions, those that one source may have half open by default: one over this.
const HALF_OPEN_SHARE: u32 = 8;
/// And of the SNAT ports towards one target: one over this, so that others find some, too.
const HALF_OPEN_PORTS_SHARE: u32 = 2;
/// But not fewer, where there are hardly any ports.
const MIN_HALF_OPEN: u32 = 64;

impl Config {
    /// Returns how many sessions one source may have half open, if new sessions get one of so many
    /// ports.
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

/// Where packets come in and go out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interfaces {
    /// Faces the Private Link Service.
    pub pls: String,
    /// Its routes lead to the firewall; often the same as `pls`.
    pub firewall: String,
    /// How the program is attached.
    pub mode: Mode,
}

impl Interfaces {
    /// The interfaces by name, each once.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let second = (self.firewall != self.pls).then_some(self.firewall.as_str());
        std::iter::once(self.pls.as_str()).chain(second)
    }
}

/// How the XDP program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the driver, before a socket buffer exists: the fast way.
    Native,
    /// After the kernel has made a socket buffer: works on every driver, several times slower.
    Generic,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

/// One `[[forward]]`: what comes in for `listen` goes to one of `targets`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Unique among all rules: 1 to 32 of `a-z 0-9 . _ -`, a letter or digit first.
    pub name: String,
    /// What it forwards.
    pub protocol: Protocol,
    /// Where it listens.
    pub listen: Listen,
    /// Where it leads: 1 to [`super::MAX_TARGETS`]; new sessions are spread over them.
    pub targets: Vec<Target>,
    /// Who may use it; never empty, host bits clear.
    pub sources: Vec<Ipv4Net>,
    /// What TCP connections are kept to; `None` leaves them alone.
    pub mss: Option<Mss>,
    /// How long its idle sessions are kept.
    pub timeouts: Timeouts,
}

/// The largest segment that TCP's two ends may send each other, where the router lowers what they
/// announce in SYN and SYN-ACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mss {
    /// What fits the MTU of the way out, without fragments.
    PathMtu,
    /// So many bytes: 88 to 65,495.
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

/// The transport protocol of a forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Where a forward listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The address packets must be for; `None` for any address of this machine.
    pub address: Option<Ipv4Addr>,
    /// The port or ports; never empty, never 0.
    pub ports: RangeInclusive<u16>,
}

impl Listen {
    /// Whether one packet could be for both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let same_address = match (self.address, other.address) {
            (Some(one), Some(two)) => one == two,
            (None, _) | (_, None) => true,
        };
        same_address && self.ports.start() <= other.ports.end() && other.ports.start() <= self.ports.end()
    }

    /// Whether it listens on more than one port.
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
        write!(f, "{}", self.ports.start())?;
        if self.is_range() {
            write!(f, "-{}", self.ports.end())?;
        }
        Ok(())
    }
}

/// Where a forward leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The address, or a name to resolve and keep resolving.
    pub host: Host,
    /// The port; `None` keeps the one that the client used. Always `None` if the forward listens on
    /// a range.
    pub port: Option<u16>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(address) => write!(f, "{address}")?,
            Host::Name(name) => f.write_str(name)?,
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
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
    /// Who may use it; never empty, host bits clear.
    pub sources: Vec<Ipv4Net>,
    /// Where to; never empty, host bits clear.
    pub destinations: Vec<Ipv4Net>,
    /// As for [`Forward::mss`].
    pub mss: Option<Mss>,
    /// How long its idle sessions are kept.
    pub timeouts: Timeouts,
}

/// What new sessions get as their source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snat {
    /// Up to [`super::MAX_SNAT_ADDRESSES`]; empty for the primary address of the firewall-facing
    /// interface.
    pub addresses: Vec<Ipv4Addr>,
    /// The ports they get; never 0. `None` for what this machine's own sockets leave, see
    /// [`crate::port_plan`].
    pub ports: Option<RangeInclusive<u16>>,
    /// What a client gets when none of them is free towards its target.
    pub exhausted: Refusal,
}

/// What clients are told of packets that go nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers {
    /// What one gets whose packets cannot be forwarded: for want of a route, a next hop, a target
    /// or a session.
    pub unreachable: Refusal,
}

/// What a client gets whose packets go nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing.
    Drop,
    /// A TCP reset, or an ICMP error that says why.
    Reject,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Drop => "drop",
            Self::Reject => "reject",
        })
    }
}

/// What of this machine itself, beside rules and the probe, can be reached. Answers to what this
/// machine asks, and the platform's traffic, are no matter of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Up to [`super::MAX_LOCAL_ALLOW`]; an address in any rule's `sources` reaches only these.
    pub allow: Vec<LocalAllow>,
    /// What addresses in no rule's `sources` reach.
    pub others: Others,
}

/// Packets for this machine itself that it gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalAllow {
    /// Their protocol.
    pub protocol: LocalProtocol,
    /// Their destination ports; never empty, never 0. `None` for all, and always for a protocol
    /// without ports.
    pub ports: Option<RangeInclusive<u16>>,
    /// The network that they are from, host bits clear; `None` for anyone who uses IPv4.
    pub from: Option<IpNet>,
}

impl LocalAllow {
    /// Whether somebody may open TCP connections to `port`.
    #[must_use]
    pub fn takes_tcp(&self, port: u16) -> bool {
        self.takes(Protocol::Tcp, port)
    }

    /// Returns `true` if it is for packets of this protocol to `port`.
    #[must_use]
    pub fn takes(&self, protocol: Protocol, port: u16) -> bool {
        self.protocol == LocalProtocol::from(protocol)
            && self.ports.as_ref().is_none_or(|ports| ports.contains(&port))
    }

    /// Whether it is for packets from `address`.
    #[must_use]
    pub fn is_for(&self, address: IpAddr) -> bool {
        match self.from {
            Some(from) => from.contains(&address),
            None => address.is_ipv4(),
        }
    }
}

/// As it is written in the file.
impl fmt::Display for LocalAllow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.protocol.fmt(f)?;
        if let Some(ports) = &self.ports {
            write!(f, "/{}", ports.start())?;
            if ports.start() != ports.end() {
                write!(f, "-{}", ports.end())?;
            }
        }
        match self.from {
            Some(from) => write!(f, " from {from}"),
            None => Ok(()),
        }
    }
}

/// The protocol of a [`LocalAllow`], by its IP protocol number. ICMP stands for echo requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalProtocol(pub u8);

impl LocalProtocol {
    /// ICMP echo requests.
    pub const ICMP: Self = Self(1);
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);

    /// The protocols that have a name in the file, and their numbers (IANA's "Protocol Numbers").
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

    /// The protocol with this name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::NAMES.into_iter().find(|(known, _)| *known == name).map(|(_, protocol)| protocol)
    }

    /// Returns `true` if an entry may name ports of it.
    #[must_use]
    pub fn has_ports(self) -> bool {
        matches!(self, Self::TCP | Self::UDP)
    }
}

impl From<Protocol> for LocalProtocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::TCP,
            Protocol::Udp => Self::UDP,
        }
    }
}

/// Its name; `ip/NUMBER` if it has none.
impl fmt::Display for LocalProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::NAMES.into_iter().find(|(_, protocol)| protocol == self) {
            Some((name, _)) => f.pad(name),
            None => write!(f, "ip/{}", self.0),
        }
    }
}

/// What addresses that no rule names reach of this machine itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// Everything, as if there were no router.
    Open,
    /// Only [`Local::allow`].
    Closed,
}

/// The load balancer's probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Where it is answered.
    pub listen: SocketAddr,
    /// Those who have places for probes and are told why it fails, host bits clear: up to
    /// [`super::MAX_PROBERS`]. Empty for Azure's platform address and the networks of the router's
    /// interfaces. This machine is always among them.
    pub from: Vec<IpNet>,
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
    /// Sessions at a time: 1,024 to 16,777,216.
    pub flows: u32,
    /// Sessions that are opening (TCP before the handshake is done, UDP and ICMP before a reply)
    /// that one source address may have; at least one. `None` for a share of what there is, see
    /// [`Config::half_open_per_source`].
    pub half_open_per_source: Option<u32>,
}

/// How long an idle session is kept: whole seconds, at least one.
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
