//! The next hop of a target.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use crate::model::NextHopStatus;

/// The next hop of one target, as the kernel's routes and neighbours give it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NextHop {
    /// The rules that need it.
    pub(crate) rules: Vec<String>,
    /// The address packets go to.
    pub(crate) target: IpAddr,
    /// The router they are handed to; the target itself when it is on the link.
    pub(crate) via: Option<IpAddr>,
    /// The interface they leave by.
    pub(crate) interface: Option<String>,
    /// The next hop's MAC address, once the neighbour has answered.
    pub(crate) mac: Option<String>,
    /// The address that new sessions to the target come from, as its route says.
    pub(crate) source: Option<IpAddr>,
    /// Why no packet to the target can leave now; `None` if packets can.
    pub(crate) problem: Option<Problem>,
}

impl NextHop {
    /// Returns `true` if a packet to the target can leave now.
    pub(crate) const fn is_resolved(&self) -> bool {
        self.problem.is_none()
    }

    /// Returns what `status` says of it.
    pub(crate) fn status(&self) -> NextHopStatus {
        let Self { rules, target, via, interface, mac, source, problem } = self.clone();
        NextHopStatus {
            rules,
            target,
            via,
            interface,
            mac,
            source,
            resolved: problem.is_none(),
            problem: problem.map(|problem| problem.to_string()).unwrap_or_default(),
        }
    }
}

/// Why no packet to a target can leave.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Problem {
    /// The route is a blackhole.
    Blackhole,
    /// The route says unreachable.
    Unreachable,
    /// The route says prohibit.
    Prohibited,
    /// There is no route, or the target is this machine itself.
    NoRoute,
    /// The kernel answers no route lookups.
    LookupsOff,
    /// The route leads into a tunnel.
    Tunnel,
    /// The kernel answers something else (`BPF_FIB_LKUP_RET_*`).
    Refused(i32),
    /// The kernel could not be asked, for this reason.
    NotAsked(String),
    /// The route leads out of this interface, which is none of the router's.
    OtherInterface(String),
    /// This interface has no address for sessions to come from.
    NoSource(String),
    /// Sessions would come from this address, which this machine does not have.
    ForeignSource(Ipv4Addr),
    /// The neighbour does not answer.
    NoAnswer {
        /// Its address.
        via: IpAddr,
        /// The interface that it is asked by.
        interface: String,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blackhole => f.write_str("the route to it is a blackhole"),
            Self::Unreachable => f.write_str("the route to it is unreachable"),
            Self::Prohibited => f.write_str("the route to it is prohibited"),
            Self::NoRoute => {
                f.write_str("no route: network is unreachable, or the address is this machine's")
            }
            Self::LookupsOff => f.write_str("no route: route lookups are off"),
            Self::Tunnel => f.write_str("the route to it leads into a tunnel (encap)"),
            Self::Refused(code) => write!(f, "no route: the kernel answers {code}"),
            Self::NotAsked(error) => f.write_str(error),
            Self::OtherInterface(name) => {
                write!(f, "the route leads out of {name}, which is not an interface of the router")
            }
            Self::NoSource(name) => write!(
                f,
                "{name} has no IPv4 address for new sessions to come from: give it one, or set snat.addresses"
            ),
            Self::ForeignSource(address) => {
                write!(f, "new sessions would come from {address}, which is no address of this machine")
            }
            Self::NoAnswer { via, interface } => {
                write!(f, "{via} does not answer {} on {interface}", asked_by(*via))
            }
        }
    }
}

/// Returns the protocol by which a neighbour is asked for its MAC address.
pub(crate) const fn asked_by(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "ARP",
        IpAddr::V6(_) => "neighbour solicitation",
    }
}
