//! Flows: the keys and entries of the flow table.
//!
//! A *session* is what a client opened. It is two *flows*, one a direction, each an entry under the tuple that its packets
//! arrive with: the client's tuple, and the tuple of the target's replies. Either entry holds all that its direction
//! needs, so a packet of a session costs one lookup. Inserting the reply flow's key is what claims the SNAT port.
//! How the table that they are in works: [`crate::table`].

use core::mem::size_of;

use crate::{
    address::{Address, Ipv4, Ipv6, Mac, Port, split},
    rewrite::Rewrite,
    session::Ticks,
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

impl FlowKey<Ipv4> {
    /// Both addresses in one word.
    #[inline(always)]
    pub const fn addresses(&self) -> u64 {
        (u32::from_ne_bytes(self.destination.0) as u64) << 32 | u32::from_ne_bytes(self.source.0) as u64
    }

    /// The key of what [`addresses`](Self::addresses) and [`ports`](Self::ports) gave, and of a protocol's number.
    #[inline(always)]
    pub(crate) const fn from_words(addresses: u64, ports: u32, protocol: u8) -> Self {
        let [source_port, destination_port] = split(ports.to_ne_bytes());
        Self {
            source: Ipv4((addresses as u32).to_ne_bytes()),
            destination: Ipv4(((addresses >> 32) as u32).to_ne_bytes()),
            source_port: Port(source_port),
            destination_port: Port(destination_port),
            protocol,
            zero: [0; 3],
        }
    }
}

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

    /// The IP protocol number.
    #[inline(always)]
    pub const fn protocol_number(&self) -> u8 {
        self.protocol
    }

    /// Both ports in one word.
    #[inline(always)]
    pub const fn ports(&self) -> u32 {
        u32::from_ne_bytes(self.source_port.then(self.destination_port))
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
    pub destination_mac: Mac,
    /// [`Settings::next_hop_generation`](crate::settings::Settings) when this was resolved; 0 is "never". Anything but the
    /// generation in force sends the packet to the slow path, which resolves again. Generations go round: the daemon's sweep
    /// sets those that are out of date to 0 long before.
    pub generation: u16,
    /// The largest IP packet that the route takes, in bytes.
    pub mtu: u16,
    /// The egress interface's slot in [`Settings::interfaces`](crate::settings::Settings), which knows its MAC address.
    pub slot: u8,
    /// 1 if there is a route, but its neighbour's MAC address is not known yet. Never in an entry.
    pub pending: u8,
}

/// All that a packet of this direction needs, beside what stands in the slot's tag.
///
/// Written by whichever CPU handles the flow's packets (a NIC hands a flow to one queue, and so to one CPU at a time). The
/// counters are plain adds: when a flow moves between queues at that very moment, a packet may be missed in them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FlowEntry<A> {
    /// What its packets become.
    pub rewrite: Rewrite<A>,
    /// When the session was opened, in ticks.
    pub opened: Ticks,
    // A [`NextHop`], field by field: as a structure of its own it would waste a byte.
    destination_mac: Mac,
    pub(crate) generation: u16,
    mtu: u16,
    slot: u8,
    zero: u8,
    /// When a packet was last seen, in ticks (see [`crate::session::Ticks`]); written at most once a tick. In a retired slot, when
    /// that happened.
    pub last_seen: Ticks,
    /// The last acknowledgement number that this direction has sent (TCP), as it stands in the packet.
    pub last_acknowledged: [u8; 4],
    packets_low: u32,
    bytes_low: u32,
    packets_high: u16,
    bytes_high: u16,
}

const _: () = assert!(size_of::<FlowEntry<Ipv4>>() == 48);

impl FlowEntry<Ipv4> {
    /// All zero.
    pub const EMPTY: Self = Self::new(
        Rewrite {
            source: Ipv4([0; 4]),
            destination: Ipv4([0; 4]),
            source_port: Port([0; 2]),
            destination_port: Port([0; 2]),
        },
        Ticks(0),
    );
}

impl<A: Address> FlowEntry<A> {
    /// The entry of a session's direction that is opened now. Where its packets leave is not known yet.
    #[inline(always)]
    pub const fn new(rewrite: Rewrite<A>, now: Ticks) -> Self {
        Self {
            rewrite,
            opened: now,
            destination_mac: Mac::new([0; 6]),
            generation: 0,
            mtu: 0,
            slot: 0,
            zero: 0,
            last_seen: now,
            last_acknowledged: [0; 4],
            packets_low: 0,
            bytes_low: 0,
            packets_high: 0,
            bytes_high: 0,
        }
    }

    /// Makes this the entry of a direction that is opened now, whose packets become `to`.
    #[inline(always)]
    pub const fn start(&mut self, to: &FlowKey<A>, now: Ticks) {
        self.rewrite = Rewrite::to(to);
        self.opened = now;
        self.generation = 0;
        self.last_seen = now;
        self.last_acknowledged = [0; 4];
        self.packets_low = 0;
        self.bytes_low = 0;
        self.packets_high = 0;
        self.bytes_high = 0;
    }

    /// Where its packets leave.
    #[inline(always)]
    pub const fn next_hop(&self) -> NextHop {
        NextHop {
            destination_mac: self.destination_mac,
            generation: self.generation,
            mtu: self.mtu,
            slot: self.slot,
            pending: 0,
        }
    }

    /// Says where its packets leave.
    #[inline(always)]
    pub const fn set_next_hop(&mut self, next_hop: &NextHop) {
        self.destination_mac = next_hop.destination_mac;
        self.mtu = next_hop.mtu;
        self.slot = next_hop.slot;
        self.generation = next_hop.generation;
    }

    /// Has the next packet resolve where it leaves, in the slow path.
    #[inline(always)]
    pub const fn forget_next_hop(&mut self) {
        self.generation = 0;
    }

    /// Whether it is known where packets leave, in this generation.
    #[inline(always)]
    pub const fn is_resolved_in(&self, generation: u32) -> bool {
        self.generation == generation as u16
    }

    /// Counts a packet of this many bytes.
    #[inline(always)]
    pub const fn count(&mut self, bytes: u32) {
        // 48 bits each, in two parts: a carry is rare.
        let (packets, carry) = self.packets_low.overflowing_add(1);
        self.packets_low = packets;
        if carry {
            self.packets_high = self.packets_high.wrapping_add(1);
        }
        let (bytes, carry) = self.bytes_low.overflowing_add(bytes);
        self.bytes_low = bytes;
        if carry {
            self.bytes_high = self.bytes_high.wrapping_add(1);
        }
    }

    /// Its packets.
    pub const fn packets(&self) -> u64 {
        (self.packets_high as u64) << 32 | self.packets_low as u64
    }

    /// Their bytes, Ethernet header included.
    pub const fn bytes(&self) -> u64 {
        (self.bytes_high as u64) << 32 | self.bytes_low as u64
    }
}
