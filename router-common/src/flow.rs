//! Flows: the keys and entries of the flow table.
//!
//! A *session* is what a client opened. It is two *flows*, one a direction, each an entry under the tuple that its packets
//! arrive with: the client's tuple, and the tuple of the target's replies. Either entry holds all that its direction
//! needs, so a packet of a session costs one lookup. Inserting the reply flow's key is what claims the SNAT port.

use core::mem::size_of;

use crate::{
    address::{Address, Ipv4, Ipv6, Port},
    rewrite::Rewrite,
};

/// The transport protocols that the router translates, by their IP protocol numbers.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Protocol {
    /// ICMP echo (RFC 792): the identifier stands for the client's port, the other port is zero.
    Icmp = 1,
    /// TCP (RFC 9293).
    Tcp = 6,
    /// UDP (RFC 768).
    Udp = 17,
}

impl Protocol {
    /// The protocol with this IP protocol number, if the router translates it.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Icmp),
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }

    /// `icmp`, `tcp` or `udp`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Icmp => "icmp",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// The key of the flow table: the tuple that a direction's packets arrive with.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct FlowKey<A> {
    /// Where packets come from.
    pub source: A,
    /// Where they go to.
    pub destination: A,
    /// TCP or UDP source port; the identifier of an ICMP echo request, zero in a reply.
    pub source_port: Port,
    /// TCP or UDP destination port; the identifier of an ICMP echo reply, zero in a request.
    pub destination_port: Port,
    /// The IP protocol number, see [`Protocol`].
    protocol: u8,
    zero: [u8; 3],
}

const _: () = assert!(size_of::<FlowKey<Ipv4>>() == 16);
const _: () = assert!(size_of::<FlowKey<Ipv6>>() == 40);

impl<A: Address> FlowKey<A> {
    /// The key of a direction.
    #[inline(always)]
    pub const fn new(
        protocol: Protocol,
        source: A,
        source_port: Port,
        destination: A,
        destination_port: Port,
    ) -> Self {
        Self { source, destination, source_port, destination_port, protocol: protocol as u8, zero: [0; 3] }
    }

    /// The protocol; `None` only in memory that was never a key of ours.
    #[inline(always)]
    pub const fn protocol(&self) -> Option<Protocol> {
        Protocol::from_number(self.protocol)
    }

    /// The key of packets of the same protocol between other ends.
    #[inline(always)]
    pub const fn between(
        &self,
        source: A,
        source_port: Port,
        destination: A,
        destination_port: Port,
    ) -> Self {
        Self { source, destination, source_port, destination_port, protocol: self.protocol, zero: [0; 3] }
    }

    /// The key of packets that answer this one's.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        self.between(self.destination, self.destination_port, self.source, self.source_port)
    }

    /// The tuple that packets with this key leave with under `rewrite`.
    #[inline(always)]
    pub const fn translated(&self, rewrite: &Rewrite<A>) -> Self {
        self.between(rewrite.source, rewrite.source_port, rewrite.destination, rewrite.destination_port)
    }

    /// The key of the session's other flow: packets that answer what this flow's packets become.
    #[inline(always)]
    pub const fn twin(&self, rewrite: &Rewrite<A>) -> Self {
        self.translated(rewrite).reversed()
    }
}

/// Which of a session's two flows an entry is.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// From the client to the target.
    Forward = 0,
    /// From the target back to the client.
    Reply = 1,
}

/// Where a flow's packets leave, as the kernel's routes and neighbours said it when `generation` was in force.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct NextHop {
    /// The next hop's MAC address.
    pub destination_mac: [u8; 6],
    /// The egress interface's MAC address.
    pub source_mac: [u8; 6],
    /// [`Settings::next_hop_generation`](crate::settings::Settings) when this was resolved; 0 is "never". Anything but the
    /// generation in force sends the packet to the slow path, which resolves again.
    pub generation: u32,
    /// The egress interface's slot in [`Settings::interfaces`](crate::settings::Settings).
    pub slot: u16,
    /// The largest IP packet that the route takes, in bytes.
    pub mtu: u16,
}

/// The value of the flow table: all that a packet of this direction needs. One cache line for IPv4.
///
/// Written by whichever CPU handles the flow's packets (a NIC hands a flow to one queue, and so to one CPU at a time). The
/// counters are plain adds: when a flow moves between queues at that very moment, a packet may be missed in them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FlowEntry<A> {
    /// What its packets become.
    pub rewrite: Rewrite<A>,
    /// Where they leave.
    pub next_hop: NextHop,
    /// The rule that opened the session: its number.
    pub rule: u16,
    /// [`Direction`], as its number.
    direction: u8,
    /// The TCP flags that this direction has shown, see [`crate::session::Seen`].
    pub seen: crate::session::Seen,
    /// When a packet was last seen, in ticks (see [`crate::session::Ticks`]); written at most once a tick.
    pub last_seen: crate::session::Ticks,
    /// When the session was opened, in ticks.
    pub opened: crate::session::Ticks,
    /// Packets.
    pub packets: u64,
    /// Their bytes, Ethernet header included.
    pub bytes: u64,
}

const _: () = assert!(size_of::<FlowEntry<Ipv4>>() == 64);

impl<A: Address> FlowEntry<A> {
    /// The entry of a session's direction that is opened now.
    #[inline(always)]
    pub const fn new(
        direction: Direction,
        rewrite: Rewrite<A>,
        next_hop: NextHop,
        rule: u16,
        now: crate::session::Ticks,
    ) -> Self {
        Self {
            rewrite,
            next_hop,
            rule,
            direction: direction as u8,
            seen: crate::session::Seen::NOTHING,
            last_seen: now,
            opened: now,
            packets: 0,
            bytes: 0,
        }
    }

    /// Which of the session's flows this is.
    #[inline(always)]
    pub const fn direction(&self) -> Direction {
        match self.direction {
            0 => Direction::Forward,
            _ => Direction::Reply,
        }
    }
}
