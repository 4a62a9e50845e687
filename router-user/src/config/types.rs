//! The validated configuration. A value of these types keeps every promise written on its fields.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::Ipv4Net;

/// A whole configuration, valid in itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where packets come in and go out.
    pub interfaces: Interfaces,
    /// Destination NAT rules, in the order of the file. No two overlap.
    pub forwards: Vec<Forward>,
    /// Source-only NAT rules, in the order of the file. Rules of both kinds number 1 to [`super::MAX_RULES`].
    pub masquerades: Vec<Masquerade>,
    /// What new sessions get as their source.
    pub snat: Snat,
    /// The load balancer's probe.
    pub health: Health,
    /// Metrics, the API socket, and where the kernel objects are kept.
    pub admin: Admin,
    /// Sizes.
    pub limits: Limits,
    /// How long an idle session is kept.
    pub timeouts: Timeouts,
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
    /// The port; `None` keeps the one that the client used. Always `None` if the forward listens on a range.
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
}

/// What new sessions get as their source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snat {
    /// Up to [`super::MAX_SNAT_ADDRESSES`]; empty for the primary address of the firewall-facing interface.
    pub addresses: Vec<Ipv4Addr>,
    /// The ports they get; never 0.
    pub ports: RangeInclusive<u16>,
}

/// The load balancer's probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Where it is answered.
    pub listen: SocketAddr,
}

/// Metrics, the API socket, and where the kernel objects are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Metrics over HTTP.
    pub listen: SocketAddr,
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
}

/// How long an idle session is kept: whole seconds, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// A TCP session after its handshake.
    pub tcp_established: Duration,
    /// A TCP session that is opening or closing.
    pub tcp_transitory: Duration,
    /// A UDP session.
    pub udp: Duration,
    /// An ICMP echo session.
    pub icmp: Duration,
}
