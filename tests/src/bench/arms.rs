//! The things to measure: routers, their NICs, and the traffic through them.

use std::fmt;

use serde::Serialize;

/// A router to measure.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Arm {
    /// An XDP program that redirects (with one NIC: turns round) and does nothing else: the limit.
    Redirect,
    /// A redirect with new MAC addresses: the least that a router does, with the wait for the
    /// packet's first bytes.
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
    /// The same NAT by iptables.
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

    /// Returns a letter for the names of namespaces and devices.
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

    /// Returns `true` if an XDP program forwards the packets.
    pub(crate) const fn is_xdp(self) -> bool {
        !self.is_kernel()
    }

    /// Returns `true` if packets go to the router's own address and are translated.
    pub(crate) const fn translates(self) -> bool {
        self.is_pls_router() || self.tracks()
    }

    pub(crate) const fn is_pls_router(self) -> bool {
        matches!(self, Self::PlsRouter | Self::Beside)
    }

    /// Returns `true` if the kernel's connection tracking is in use.
    pub(crate) const fn tracks(self) -> bool {
        matches!(self, Self::Nftables | Self::Iptables)
    }

    /// Returns `true` if the kernel forwards, without a program.
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

/// The direction in which packets go.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Direction {
    /// From the clients to the target.
    Forward,
    /// Back.
    Reply,
}

/// The NICs of the router.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Wires {
    /// Two NICs.
    Two,
    /// One NIC, which packets leave by as well.
    One,
    /// Two NICs with two queues each.
    TwoQueues,
}

/// The traffic along a path.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Traffic {
    /// Packets of our generator, dropped at the far end.
    Packets(Wires),
    /// The same with probes, which are turned round at the far end.
    Probes,
    /// None: the daemon is measured, at its default size.
    Nothing,
    /// Datagrams between two network stacks.
    Datagrams,
    /// TCP between two network stacks.
    Tcp(Offloads),
}

impl Traffic {
    /// Returns a letter for the names of namespaces and devices.
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

/// The offloads of the NICs at the two ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Offloads {
    /// None: every packet is as on a wire.
    Off,
    /// A veth's defaults: super-frames and unfinished checksums, which no wire carries.
    Default,
}
