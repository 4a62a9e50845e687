//! Flows: the keys and entries of the flow table.
//!
//! A *session* is what a client opened. It is two *flows*, one a direction, each an entry under the tuple that its packets
//! arrive with: the client's tuple, and the tuple of the target's replies. Either entry holds all that its direction
//! needs, so a packet of a session costs one lookup. Inserting the reply flow's key is what claims the SNAT port.
//! How the table that they are in works: [`crate::table`].

use core::mem::{align_of, size_of};

use crate::{
    address::{Address, Ipv4, Ipv6, Mac, Port},
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
    /// Both addresses in one number, as they stand in a packet: the first byte is the lowest.
    #[inline(always)]
    pub const fn addresses(&self) -> u64 {
        self.source.then(self.destination)
    }

    /// The key of what [`addresses`](Self::addresses) and [`ports`](Self::ports) gave, and of a protocol's number.
    #[inline(always)]
    pub(crate) const fn from_words(addresses: u64, ports: u32, protocol: u8) -> Self {
        Self {
            source: Ipv4((addresses as u32).to_le_bytes()),
            destination: Ipv4(((addresses >> 32) as u32).to_le_bytes()),
            source_port: Port::from_word(ports as u16),
            destination_port: Port::from_word((ports >> 16) as u16),
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

    /// Both ports in one number, as they stand in a packet: the first byte is the lowest.
    #[inline(always)]
    pub const fn ports(&self) -> u32 {
        u32::from_le_bytes(self.source_port.then(self.destination_port))
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
    /// Padding.
    pub zero: [u8; 2],
}

impl NextHop {
    /// Whether this was resolved in this generation.
    #[inline(always)]
    pub const fn is_of(&self, generation: u32) -> bool {
        self.generation == generation as u16
    }
}

/// A port and a count of 48 bits in one word, so that counting is one addition; the port stays what it is all the while.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct PortAndCount(u64);

impl PortAndCount {
    const COUNT_SHIFT: u32 = 16;

    #[inline(always)]
    const fn new(port: Port) -> Self {
        Self(port.word() as u64)
    }

    #[inline(always)]
    const fn port(self) -> Port {
        Port::from_word(self.0 as u16)
    }

    #[inline(always)]
    const fn count(self) -> u64 {
        self.0 >> Self::COUNT_SHIFT
    }

    /// Counts on, and round.
    #[inline(always)]
    const fn add(&mut self, number: u32) {
        self.0 = self.0.wrapping_add((number as u64) << Self::COUNT_SHIFT);
    }
}

/// All that a packet of this direction needs, beside what stands in the slot's tag.
///
/// Written by whichever CPU handles the flow's packets (a NIC hands a flow to one queue, and so to one CPU at a time). The
/// counters are plain adds: when a flow moves between queues at that very moment, a packet may be missed in them.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FlowEntry<A> {
    // What its packets become, a [`Rewrite`]; how many packets there were, and how many bytes.
    source: A,
    destination: A,
    source_port_and_packets: PortAndCount,
    destination_port_and_bytes: PortAndCount,
    // Where they leave, a [`NextHop`]: its MAC address, and above it its generation. Changed at once.
    pub(crate) mac_and_generation: u64,
    mtu: u16,
    slot: u8,
    zero: u8,
    /// The last acknowledgement number that this direction has sent (TCP), as it stands in the packet.
    pub last_acknowledged: [u8; 4],
    /// When the session was opened, in ticks.
    pub opened: Ticks,
    /// When a packet was last seen, in ticks (see [`crate::session::Ticks`]); written at most once a tick. In a retired slot, when
    /// that happened.
    pub last_seen: Ticks,
}

const _: () = assert!(size_of::<FlowEntry<Ipv4>>() == 48);
/// As [`FlowEntry::overwrite`] takes it.
const _: () = assert!(align_of::<FlowEntry<Ipv4>>() == align_of::<u64>());

impl FlowEntry<Ipv4> {
    /// Makes this a copy of another one, word by word: for BPF, the compiler calls a function that copies every byte by itself.
    #[inline(always)]
    pub(crate) fn overwrite(&mut self, from: &Self) {
        let (to, from) = (core::ptr::from_mut(self).cast::<u64>(), core::ptr::from_ref(from).cast::<u64>());
        for word in 0..size_of::<Self>() / size_of::<u64>() {
            // Volatile, or it would be made a call again.
            // SAFETY: both are of this size and alignment (see the assertions beside the structure), and have no padding.
            unsafe { to.add(word).write_volatile(from.add(word).read()) };
        }
    }

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

/// Where in [`FlowEntry::mac_and_generation`] the generation is.
pub(crate) const GENERATION_SHIFT: u32 = 48;

impl<A: Address> FlowEntry<A> {
    /// The entry of a session's direction that is opened now. Where its packets leave is not known yet.
    #[inline(always)]
    pub const fn new(rewrite: Rewrite<A>, now: Ticks) -> Self {
        Self {
            source: rewrite.source,
            destination: rewrite.destination,
            source_port_and_packets: PortAndCount::new(rewrite.source_port),
            destination_port_and_bytes: PortAndCount::new(rewrite.destination_port),
            mac_and_generation: 0,
            mtu: 0,
            slot: 0,
            zero: 0,
            last_acknowledged: [0; 4],
            opened: now,
            last_seen: now,
        }
    }

    /// Makes this the entry of a direction that is opened now, whose packets become `to`.
    #[inline(always)]
    pub const fn start(&mut self, to: &FlowKey<A>, now: Ticks) {
        self.source = to.source;
        self.destination = to.destination;
        self.source_port_and_packets = PortAndCount::new(to.source_port);
        self.destination_port_and_bytes = PortAndCount::new(to.destination_port);
        self.mac_and_generation = 0;
        self.last_acknowledged = [0; 4];
        self.opened = now;
        self.last_seen = now;
    }

    /// What its packets become.
    #[inline(always)]
    pub const fn rewrite(&self) -> Rewrite<A> {
        Rewrite {
            source: self.source,
            destination: self.destination,
            source_port: self.source_port_and_packets.port(),
            destination_port: self.destination_port_and_bytes.port(),
        }
    }

    /// Where its packets leave.
    #[inline(always)]
    pub const fn next_hop(&self) -> NextHop {
        let word = self.mac_and_generation;
        NextHop {
            destination_mac: Mac::from_number(word),
            generation: (word >> GENERATION_SHIFT) as u16,
            mtu: self.mtu,
            slot: self.slot,
            pending: 0,
            zero: [0; 2],
        }
    }

    /// Says where its packets leave.
    #[inline(always)]
    pub const fn set_next_hop(&mut self, next_hop: &NextHop) {
        self.mtu = next_hop.mtu;
        self.slot = next_hop.slot;
        self.mac_and_generation =
            next_hop.destination_mac.number() | (next_hop.generation as u64) << GENERATION_SHIFT;
    }

    /// Has the next packet resolve where it leaves, in the slow path.
    #[inline(always)]
    pub const fn forget_next_hop(&mut self) {
        self.mac_and_generation = 0;
    }

    /// Counts a packet of this many bytes.
    #[inline(always)]
    pub const fn count(&mut self, bytes: u32) {
        self.source_port_and_packets.add(1);
        self.destination_port_and_bytes.add(bytes);
    }

    /// Its packets. 48 bits, and round again.
    pub const fn packets(&self) -> u64 {
        self.source_port_and_packets.count()
    }

    /// Their bytes, Ethernet header included. As above.
    pub const fn bytes(&self) -> u64 {
        self.destination_port_and_bytes.count()
    }
}
