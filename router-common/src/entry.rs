//! Entries: what the flow table keeps of a flow besides its key.
//!
//! An entry holds all that a packet of its direction needs, so a packet of a session costs one
//! look-up. The session's other flow has its own entry. See [`crate::table`] for the table that
//! they are in.

use core::mem::{align_of, size_of};

use crate::{
    address::Mac,
    checksum::Folded,
    packet::Packet,
    rewrite::{Link, Rewrite},
    session::RESYNCHRONISES_AFTER,
    shared::Shared,
    time::Ticks,
    tuple::FlowKey,
    wire::{Frame, L4},
};

/// The way out of a flow's packets, as the kernel's routes and neighbours had it when `generation`
/// was in force.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct NextHop {
    /// The next hop's MAC address.
    pub destination_mac: Mac,
    /// [`Settings::next_hop_generation`](crate::maps::settings::Settings) when this was resolved; 0
    /// is "never". If it is not the generation in force, the packet takes the slow path, which
    /// resolves again. Generations wrap ([`GENERATIONS`](Self::GENERATIONS)): long before that, the
    /// daemon's sweep sets stale ones to 0.
    pub generation: u16,
    /// The largest IP packet that the route takes, in bytes.
    pub mtu: u16,
    /// The egress interface's slot in [`Settings::interfaces`](crate::maps::settings::Settings),
    /// which has its MAC address.
    pub slot: u8,
    /// Padding.
    pub zero: [u8; 3],
}

impl NextHop {
    /// The number of generations before they wrap: 1 to this.
    pub const GENERATIONS: u32 = GENERATION_MASK as u32;

    /// Returns `true` if this was resolved in this generation.
    #[inline(always)]
    pub const fn is_current(&self, generation: u32) -> bool {
        self.generation as u32 == generation
    }
}

/// A counter packed with `BITS` bits of another number below it. Adding to the counter does not
/// change these bits, so counting is one addition.
#[repr(transparent)]
#[derive(Debug, Default)]
struct PackedCount<const BITS: u32>(Shared<u64>);

impl<const BITS: u32> PackedCount<BITS> {
    const PART: u64 = (1 << BITS) - 1;

    /// Sets the counter to 0, above the lowest bits of `part`.
    #[inline(always)]
    fn start(&self, part: u32) {
        self.0.set(u64::from(part) & Self::PART);
    }

    #[inline(always)]
    fn part(&self) -> u32 {
        (self.0.get() & Self::PART) as u32
    }

    #[inline(always)]
    fn count(&self) -> u64 {
        self.0.get() >> BITS
    }

    /// Adds to the counter, which wraps.
    #[inline(always)]
    fn add(&self, number: u32) {
        self.add_many(u64::from(number));
    }

    /// Adds to the counter, which wraps.
    #[inline(always)]
    fn add_many(&self, number: u64) {
        self.0.set(self.0.get().wrapping_add(number << BITS));
    }
}

impl PackedCount<{ u16::BITS }> {
    /// Changes the bits below the counter.
    #[inline(always)]
    fn set_part(&self, part: u16) {
        #[cfg(target_arch = "bpf")]
        {
            const { assert!(cfg!(target_endian = "little")) };
            // SAFETY: the lowest 16 bits come first in memory, see above, and any bits are a valid
            // number. This is one store; the compiler would load the number and mask it.
            unsafe { self.0.as_ptr().cast::<u16>().write_volatile(part) };
        }
        #[cfg(not(target_arch = "bpf"))]
        {
            self.0.set(self.0.get() & !Self::PART | u64::from(part));
        }
    }
}

/// The bits that are kept of the tick in which a session was opened; they wrap after 208 days.
const OPENED_BITS: u32 = 24;
/// The bits of [`FlowEntry::sent`].
const SENT_BITS: u32 = u16::BITS;

/// All that a packet of this direction needs, besides what is in the slot's tag.
///
/// Written by the CPU that handles the flow's packets (a NIC hands a flow to one queue, and so to
/// one CPU at a time). The counters are plain adds: when a flow moves between queues, they may miss
/// a packet.
#[repr(C)]
#[derive(Debug, Default)]
pub struct FlowEntry {
    #[cfg(feature = "other-layout")]
    last_seen: Shared<u32>,
    #[cfg(feature = "other-layout")]
    expects: Shared<u32>,
    // The addresses of the [`Rewrite`], in one number, see [`FlowKey::addresses`].
    addresses: Shared<u64>,
    // The number of packets, above the tick in which the session was opened; the number of bytes,
    // above `sent`.
    opened_and_packets: PackedCount<OPENED_BITS>,
    sent_and_bytes: PackedCount<SENT_BITS>,
    // The [`NextHop`]: its MAC address, below it the slot, and below that the generation, so that
    // all three change at once. In generation 0: notes of segments out of window.
    next_hop: Shared<u64>,
    // The ports of the [`Rewrite`], in one number, and what the rewrite adds to the IP header's
    // checksum ([`Rewrite::header_change`]).
    ports: Shared<u32>,
    header_change: Shared<u16>,
    // The next hop's.
    mtu: Shared<u16>,
    #[cfg(not(feature = "other-layout"))]
    expects: Shared<u32>,
    #[cfg(not(feature = "other-layout"))]
    last_seen: Shared<u32>,
}

const _: () = assert!(size_of::<FlowEntry>() == 48 && align_of::<FlowEntry>() == align_of::<u64>());
/// The packed next hop has one bit for the slot.
const _: () = assert!(crate::limits::MAX_INTERFACES <= 2);

/// A copy of a [`FlowEntry`] at one moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FlowRecord {
    /// The addresses and ports that the flow's packets get.
    pub rewrite: Rewrite,
    /// The way out of its packets.
    pub next_hop: NextHop,
    /// The tick in which the session was opened, see [`FlowEntry::opened`].
    pub opened: Ticks,
    /// When a packet was last seen.
    pub last_seen: Ticks,
    /// Its packets; wraps at 2^40.
    pub packets: u64,
    /// Their bytes, Ethernet header included; wraps at 2^48.
    pub bytes: u64,
    /// The sequence number that this direction's sender expects next (TCP).
    pub expects: u32,
    /// The upper half of the highest sequence number that this direction's sender has sent (TCP).
    pub sent: u16,
}

impl FlowEntry {
    /// Makes this a copy of another entry.
    #[inline(always)]
    pub(crate) fn copy_from(&self, from: &Self) {
        self.addresses.set(from.addresses.get());
        self.opened_and_packets.0.set(from.opened_and_packets.0.get());
        self.sent_and_bytes.0.set(from.sent_and_bytes.0.get());
        self.next_hop.set(from.next_hop.get());
        self.ports.set(from.ports.get());
        self.header_change.set(from.header_change.get());
        self.mtu.set(from.mtu.get());
        self.expects.set(from.expects.get());
        self.last_seen.set(from.last_seen.get());
    }

    /// Reads the entry at this moment.
    pub fn read(&self) -> FlowRecord {
        FlowRecord {
            rewrite: self.rewrite(),
            next_hop: self.next_hop(),
            opened: self.opened(),
            last_seen: self.last_seen(),
            packets: self.packets(),
            bytes: self.bytes(),
            expects: self.expects(),
            sent: self.sent(),
        }
    }

    /// Makes this the entry of a flow whose packets have the tuple `key`, as the record says, but
    /// without its next hop.
    pub fn restore(&self, key: &FlowKey, record: &FlowRecord) {
        self.start(key, &key.translated(&record.rewrite), record.opened);
        self.set_last_seen(record.last_seen);
        self.set_expects(record.expects);
        self.set_sent(record.sent);
        self.credit(record.packets, record.bytes);
    }

    /// Adds to the counters. Another CPU that counts a packet at the same moment may be undone, or
    /// undo this.
    pub fn credit(&self, packets: u64, bytes: u64) {
        self.opened_and_packets.add_many(packets);
        self.sent_and_bytes.add_many(bytes);
    }

    /// Returns the flow's rewrite.
    #[inline(always)]
    pub fn rewrite(&self) -> Rewrite {
        // Both addresses as one number, since they are only ever written together.
        Rewrite::from_words(self.addresses.get(), self.ports.get())
    }

    /// Translates the IP header of a packet of this flow, and nothing after it: for a fragment that
    /// is not the first. As [`translate`](Self::translate) otherwise.
    #[inline(always)]
    pub fn translate_header(&self, headers: &mut [u8; L4]) {
        self.rewrite().apply_to_header(self.header_change(), headers);
    }

    #[inline(always)]
    fn header_change(&self) -> Folded {
        Folded::from_number(self.header_change.get())
    }

    /// Translates a packet of this flow, which [`packet::parse`](crate::packet::parse) has read
    /// from this frame: addresses, ports or identifier, both checksums (UDP's "none" stays so), and
    /// the TTL, which becomes one less. The caller has checked that the TTL is above 1 (RFC 1812
    /// 5.3.1). With a `link`, the frame gets these Ethernet addresses. Returns `None`, with nothing
    /// changed, if the frame has become shorter.
    #[inline(always)]
    pub fn translate(
        &self,
        packet: &Packet,
        link: Option<&Link>,
        frame: &mut (impl Frame + ?Sized),
    ) -> Option<()> {
        let rewrite = self.rewrite();
        let change = rewrite.change(self.header_change(), &packet.key);
        rewrite.apply(&change, packet, link, frame)
    }
}

const GENERATION_MASK: u64 = 0x7fff;
const SLOT_SHIFT: u32 = 15;
const MAC_SHIFT: u32 = 16;
/// If there is no next hop, the last tick with a segment out of window is here, and above it the
/// number of such ticks.
const LAST_TICK_SHIFT: u32 = MAC_SHIFT;
const TICKS_SHIFT: u32 = LAST_TICK_SHIFT + u32::BITS;

/// Returns the generation of a packed next hop; 0 if there is none.
const fn generation_of(next_hop: u64) -> u16 {
    (next_hop & GENERATION_MASK) as u16
}

impl FlowEntry {
    /// Starts the entry of a direction that is opened now, whose packets have the tuple `from` and
    /// become `to`. The next hop is not known yet.
    #[inline(always)]
    pub fn start(&self, from: &FlowKey, to: &FlowKey, now: Ticks) {
        self.addresses.set(to.addresses());
        self.ports.set(to.ports());
        self.header_change.set(Rewrite::to(to).header_change(from).number());
        self.start_over(now);
    }

    /// Starts the entry over for another connection of the same tuple.
    #[inline(always)]
    pub fn start_over(&self, now: Ticks) {
        self.opened_and_packets.start(now.0);
        self.sent_and_bytes.start(0);
        self.next_hop.set(0);
        self.mtu.set(0);
        self.expects.set(0);
        self.set_last_seen(now);
    }

    /// Returns the tick in which the session was opened, if that is less than 208 days before its
    /// last packet.
    #[inline(always)]
    pub fn opened(&self) -> Ticks {
        let Ticks(seen) = self.last_seen();
        Ticks(seen.wrapping_sub(seen.wrapping_sub(self.opened_and_packets.part()) & ((1 << OPENED_BITS) - 1)))
    }

    /// Returns the tick of the last packet; written at most once a tick. In a retired slot, the
    /// tick in which it was retired.
    #[inline(always)]
    pub fn last_seen(&self) -> Ticks {
        Ticks(self.last_seen.get())
    }

    /// Sets the tick of the last packet.
    #[inline(always)]
    pub fn set_last_seen(&self, now: Ticks) {
        self.last_seen.set(now.0);
    }

    /// Returns the sequence number that this direction's sender expects next (TCP), as it has
    /// acknowledged: see [`End`](crate::session::End).
    #[inline(always)]
    pub fn expects(&self) -> u32 {
        self.expects.get()
    }

    /// Sets the sequence number that this direction's sender expects next.
    #[inline(always)]
    pub fn set_expects(&self, sequence: u32) {
        self.expects.set(sequence);
    }

    /// Returns the upper half of the highest sequence number that this direction's sender has sent
    /// (TCP), see [`End`](crate::session::End).
    #[inline(always)]
    pub fn sent(&self) -> u16 {
        self.sent_and_bytes.part() as u16
    }

    /// Sets the upper half of the highest sequence number that this direction's sender has sent.
    #[inline(always)]
    pub fn set_sent(&self, sent: u16) {
        self.sent_and_bytes.set_part(sent);
    }

    /// Returns the way out of the flow's packets.
    #[inline(always)]
    pub fn next_hop(&self) -> NextHop {
        let number = self.next_hop.get();
        NextHop {
            destination_mac: Mac::from_number(number >> MAC_SHIFT),
            generation: generation_of(number),
            mtu: self.mtu.get(),
            slot: (number >> SLOT_SHIFT & 1) as u8,
            zero: [0; 3],
        }
    }

    /// Sets the way out of the flow's packets.
    #[inline(always)]
    pub fn set_next_hop(&self, next_hop: &NextHop) {
        self.mtu.set(next_hop.mtu);
        self.next_hop.set(
            next_hop.destination_mac.number() << MAC_SHIFT
                | (u64::from(next_hop.slot) & 1) << SLOT_SHIFT
                | u64::from(next_hop.generation) & GENERATION_MASK,
        );
    }

    /// Returns the generation of the next hop; 0 if there is none.
    #[inline(always)]
    pub(crate) fn next_hop_generation(&self) -> u16 {
        generation_of(self.next_hop.get())
    }

    /// Forgets the next hop, so that the next packet resolves it in the slow path.
    #[inline(always)]
    pub fn forget_next_hop(&self) {
        if self.next_hop_generation() != 0 {
            self.next_hop.set(0);
        }
    }

    /// Notes that a segment of this direction was out of window
    /// ([`Window`](crate::session::Window)). The note takes the place of the next hop, which is
    /// forgotten.
    #[inline(always)]
    pub fn note_out_of_window(&self, now: Ticks) {
        let ticks = u64::from(self.ticks_out_of_window());
        if ticks == 0 || (self.next_hop.get() >> LAST_TICK_SHIFT) as u32 != now.0 {
            let ticks = if ticks < u64::from(u16::MAX) { ticks + 1 } else { ticks };
            self.next_hop.set(ticks << TICKS_SHIFT | u64::from(now.0) << LAST_TICK_SHIFT);
        }
    }

    /// Returns `true` if there was a segment out of window, and none within since.
    #[inline(always)]
    pub fn has_been_out_of_window(&self) -> bool {
        self.ticks_out_of_window() != 0
    }

    /// Returns `true` if there were segments out of window in [`RESYNCHRONISES_AFTER`] ticks, and
    /// none within.
    #[inline(always)]
    pub fn is_out_of_window(&self) -> bool {
        self.ticks_out_of_window() >= RESYNCHRONISES_AFTER
    }

    /// Forgets what [`note_out_of_window`](Self::note_out_of_window) has noted.
    #[inline(always)]
    pub fn forget_out_of_window(&self) {
        if self.has_been_out_of_window() {
            self.next_hop.set(0);
        }
    }

    #[inline(always)]
    fn ticks_out_of_window(&self) -> u32 {
        let number = self.next_hop.get();
        if generation_of(number) == 0 { (number >> TICKS_SHIFT) as u32 } else { 0 }
    }

    /// Counts a packet of this many bytes.
    #[inline(always)]
    pub fn count(&self, bytes: u32) {
        self.opened_and_packets.add(1);
        self.sent_and_bytes.add(bytes);
    }

    /// Returns the number of packets, which wraps at 2^40.
    pub fn packets(&self) -> u64 {
        self.opened_and_packets.count()
    }

    /// Returns the number of bytes, Ethernet header included, which wraps at 2^48.
    pub fn bytes(&self) -> u64 {
        self.sent_and_bytes.count()
    }
}
