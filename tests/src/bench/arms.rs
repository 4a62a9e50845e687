//! What is measured: the routers, how they are connected, and what is sent through them.

use std::fmt;

use serde::Serialize;

/// What is between the ends.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Arm {
    /// An XDP program that redirects (with one NIC: turns round) and does nothing else: the limit.
    Redirect,
    /// The same, but for new MAC addresses: what no router can leave out, and the wait for the
    /// packet's first bytes with it.
    Readdress,
    /// An XDP program that asks the kernel for the route of every packet, as xdp-forward does,
    /// without NAT.
    Fib,
    /// The daemon of this repository.
    PlsRouter,
    /// Another build of it.
    Beside,
    /// The kernel's NAT by nftables: DNAT and masquerade.
    Nftables,
    /// The same by iptables.
    Iptables,
    /// The kernel's forwarding, without NAT.
    Kernel,
}

impl Arm {
    pub(crate) const ALL: [Self; 8] = [
        Self::Redirect,
        Self::Readdress,
        Self::Fib,
        Self::PlsRouter,
        Self::Beside,
        Self::Nftables,
        Self::Iptables,
        Self::Kernel,
    ];

    /// As namespaces and devices are named.
    pub(crate) const fn letter(self) -> char {
        match self {
            Self::Redirect => 'r',
            Self::Readdress => 'a',
            Self::Fib => 'f',
            Self::PlsRouter => 'p',
            Self::Beside => 'b',
            Self::Nftables => 'n',
            Self::Iptables => 'i',
            Self::Kernel => 'k',
        }
    }

    /// Whether packets are forwarded by an XDP program.
    pub(crate) const fn is_xdp(self) -> bool {
        !self.is_kernel()
    }

    /// Whether packets go to the router's own address, and are translated there.
    pub(crate) const fn translates(self) -> bool {
        self.is_pls_router() || self.tracks()
    }

    pub(crate) const fn is_pls_router(self) -> bool {
        matches!(self, Self::PlsRouter | Self::Beside)
    }

    /// Whether the kernel's connection tracking is at work.
    pub(crate) const fn tracks(self) -> bool {
        matches!(self, Self::Nftables | Self::Iptables)
    }

    /// Whether the kernel forwards, and no program.
    pub(crate) const fn is_kernel(self) -> bool {
        self.tracks() || matches!(self, Self::Kernel)
    }
}

impl fmt::Display for Arm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Redirect => "no-op",
            Self::Readdress => "MAC addresses",
            Self::Fib => "xdp fib, no NAT",
            Self::PlsRouter => "pls-router",
            Self::Beside => "beside",
            Self::Nftables => "nftables NAT",
            Self::Iptables => "iptables NAT",
            Self::Kernel => "kernel, no NAT",
        })
    }
}

/// Which way packets go.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Direction {
    /// From the clients to the target.
    Forward,
    /// Back.
    Reply,
}

/// How the router is connected.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Wires {
    /// By two NICs.
    Two,
    /// By one NIC, which packets leave by as well.
    One,
    /// By two NICs with two queues each.
    TwoQueues,
}

/// What is sent along a path.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Traffic {
    /// Packets of our generator, dropped at the far end.
    Packets(Wires),
    /// The same, and our probes, which are turned round at the far end.
    Probes,
    /// None: the daemon is what is measured, at its default size.
    Nothing,
    /// Datagrams between two network stacks.
    Datagrams,
    /// TCP between two network stacks.
    Tcp(Offloads),
}

impl Traffic {
    /// As namespaces and devices are named.
    pub(crate) const fn letter(self) -> char {
        match self {
            Self::Packets(Wires::Two) => 'u',
            Self::Packets(Wires::One) => 'o',
            Self::Packets(Wires::TwoQueues) => 'q',
            Self::Probes => 'l',
            Self::Datagrams => 's',
            Self::Nothing => 'z',
            Self::Tcp(Offloads::Off) => 't',
            Self::Tcp(Offloads::Default) => 'd',
        }
    }
}

/// What the NICs at the two ends do for their hosts.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Offloads {
    /// Nothing: every packet is one of the wire's.
    Off,
    /// What a veth does when it is new: super-frames and unfinished checksums, which no wire
    /// carries.
    Default,
}
