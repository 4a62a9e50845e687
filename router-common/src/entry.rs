//! Entries: what the flow table keeps of a flow beside its key.
//!
//! An entry holds all that a packet of its direction needs, so a packet of a session costs one
//! lookup. The session's other flow has an entry of its own. See [`crate::table`] for the table that
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

/// Where a flow's packets leave, as the kernel's routes and neighbours said it when `generation`
/// was in force.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct NextHop {
    /// The next hop's MAC address.
    pub destination_mac: Mac,
    /// [`Settings::next_hop_generation`](crate::maps::settings::Settings) when this was resolved; 0 is
    /// "never". Anything but the generation in force sends the packet to the slow path, which
    /// resolves again. Generations go round ([`GENERATIONS`](Self::GENERATIONS)): the daemon's
    /// sweep sets those that are out of date to 0 long before.
    pub generation: u16,
    /// The largest IP packet that the route takes, in bytes.
    pub mtu: u16,
    /// The egress interface's slot in [`Settings::interfaces`](crate::maps::settings::Settings), which
    /// knows its MAC address.
    pub slot: u8,
    /// Padding.
    pub zero: [u8; 3],
}

impl NextHop {
    /// How many generations there are before they go round: 1 to this.
    pub const GENERATIONS: u32 = GENERATION_MASK as u32;

    /// Whether this was resolved in this generation.
    #[inline(always)]
    pub const fn is_current(&self, generation: u32) -> bool {
        self.generation as u32 == generation
    }
}

/// A count, and below it `BITS` bits of something else, which stay what they are: so counting is
/// one addition, and no bits are left over.
#[repr(transparent)]
#[derive(Debug, Default)]
struct PartAndCount<const BITS: u32>(Shared<u64>);

impl<const BITS: u32> PartAndCount<BITS> {
    const PART: u64 = (1 << BITS) - 1;

    /// Makes the count 0, above the lowest bits of `part`.
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

    /// Counts on, and round.
    #[inline(always)]
    fn add(&self, number: u32) {
        self.0.set(self.0.get().wrapping_add(u64::from(number) << BITS));
    }
}

impl PartAndCount<{ u16::BITS }> {
    /// Changes what is below the count.
    #[inline(always)]
    fn set_part(&self, part: u16) {
        #[cfg(target_arch = "bpf")]
        {
            const { assert!(cfg!(target_endian = "little")) };
            // SAFETY: the lowest 16 bits come first in memory, see above, and any value of them is
            // one. One store, where the compiler would load the number and put it together.
            unsafe { self.0.as_ptr().cast::<u16>().write_volatile(part) };
        }
        #[cfg(not(target_arch = "bpf"))]
        {
            self.0.set(self.0.get() & !Self::PART | u64::from(part));
        }
    }
}

/// The bits that are kept of the tick in which a session was opened: 208 days, and round again.
const OPENED_BITS: u32 = 24;
/// The bits of [`FlowEntry::sent`].
const SENT_BITS: u32 = u16::BITS;

/// All that a packet of this direction needs, beside what stands in the slot's tag.
///
/// Written by whichever CPU handles the flow's packets (a NIC hands a flow to one queue, and so to
/// one CPU at a time). The counters are plain adds: when a flow moves between queues at that very
/// moment, a packet may be missed in them.
#[repr(C)]
#[derive(Debug, Default)]
pub struct FlowEntry {
    // What its packets become, a [`Rewrite`]: both addresses of it in one number, see
    // [`FlowKey::addresses`].
    addresses: Shared<u64>,
    // How many packets there were, above the tick in which the session was opened; how many bytes,
    // above what `sent` says.
    opened_and_packets: PartAndCount<OPENED_BITS>,
    sent_and_bytes: PartAndCount<SENT_BITS>,
    // Where they leave, a [`NextHop`]: its MAC address, below it the slot, and below that the
    // generation. Changed at once. In generation 0: notes of segments out of window.
    next_hop: Shared<u64>,
    // The ports of what they become, in one number, and what that adds to the IP header's checksum
    // ([`Rewrite::header_change`]).
    ports: Shared<u32>,
    header_change: Shared<u16>,
    // Of the next hop.
    mtu: Shared<u16>,
    expects: Shared<u32>,
    last_seen: Shared<u32>,
}

const _: () = assert!(size_of::<FlowEntry>() == 48 && align_of::<FlowEntry>() == align_of::<u64>());
/// One bit says which.
const _: () = assert!(crate::limits::MAX_INTERFACES <= 2);

/// A copy of a [`FlowEntry`], as it was at one moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FlowRecord {
    /// The addresses and ports that its packets get.
    pub rewrite: Rewrite,
    /// Where its packets leave.
    pub next_hop: NextHop,
    /// The tick in which the session was opened, see [`FlowEntry::opened`].
    pub opened: Ticks,
    /// When a packet was last seen.
    pub last_seen: Ticks,
    /// Its packets. 40 bits, and round again.
    pub packets: u64,
    /// Their bytes, Ethernet header included. 48 bits, and round again.
    pub bytes: u64,
    /// The sequence number that this direction's sender expects next (TCP).
    pub expects: u32,
}

impl FlowEntry {
    /// Makes this a copy of another one.
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

    /// Reads what it says at this moment.
    pub fn read(&self) -> FlowRecord {
        FlowRecord {
            rewrite: self.rewrite(),
            next_hop: self.next_hop(),
            opened: self.opened(),
            last_seen: self.last_seen(),
            packets: self.packets(),
            bytes: self.bytes(),
            expects: self.expects(),
        }
    }

    /// What its packets become.
    #[inline(always)]
    pub fn rewrite(&self) -> Rewrite {
        // Both addresses as one number, since all that is done with them is to write both at once.
        Rewrite::from_words(self.addresses.get(), self.ports.get())
    }

    /// Makes the IP header of a packet of this flow what it becomes, and nothing behind it: of a
    /// fragment that is not the first. As [`translate`](Self::translate) otherwise.
    #[inline(always)]
    pub fn translate_header(&self, headers: &mut [u8; L4]) {
        self.rewrite().apply_to_header(self.header_change(), headers);
    }

    #[inline(always)]
    fn header_change(&self) -> Folded {
        Folded::from_number(self.header_change.get())
    }

    /// Makes a packet of this flow, which [`packet::parse`](crate::packet::parse) has read from
    /// this frame, what it becomes: addresses, ports or identifier, both checksums (of UDP, one
    /// that is "none" stays so), and the TTL one less, which the caller has made sure is above 1
    /// (RFC 1812 5.3.1); and addresses the frame, if it is known to whom. `None`, with nothing
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
/// Where there is no next hop: the last tick with a segment out of window, and above it the number
/// of such ticks.
const LAST_TICK_SHIFT: u32 = MAC_SHIFT;
const TICKS_SHIFT: u32 = LAST_TICK_SHIFT + u32::BITS;

/// The generation of a next hop in one number; 0 if it is not known.
const fn generation_of(next_hop: u64) -> u16 {
    (next_hop & GENERATION_MASK) as u16
}

impl FlowEntry {
    /// Makes this the entry of a direction that is opened now, whose packets have the tuple `from`
    /// and become `to`. Where they leave is not known yet.
    #[inline(always)]
    pub fn start(&self, from: &FlowKey, to: &FlowKey, now: Ticks) {
        self.addresses.set(to.addresses());
        self.ports.set(to.ports());
        self.header_change.set(Rewrite::to(to).header_change(from).number());
        self.start_over(now);
    }

    /// Makes this the entry of a direction that is opened again now, by another connection of the
    /// same tuple.
    #[inline(always)]
    pub fn start_over(&self, now: Ticks) {
        self.opened_and_packets.start(now.0);
        self.sent_and_bytes.start(0);
        self.next_hop.set(0);
        self.mtu.set(0);
        self.expects.set(0);
        self.set_last_seen(now);
    }

    /// The tick in which the session was opened, if that is less than 208 days before its last
    /// packet.
    #[inline(always)]
    pub fn opened(&self) -> Ticks {
        let Ticks(seen) = self.last_seen();
        Ticks(seen.wrapping_sub(seen.wrapping_sub(self.opened_and_packets.part()) & ((1 << OPENED_BITS) - 1)))
    }

    /// When a packet was last seen, in ticks (see [`crate::time::Ticks`]); written at most once
    /// a tick. In a retired slot, when that happened.
    #[inline(always)]
    pub fn last_seen(&self) -> Ticks {
        Ticks(self.last_seen.get())
    }

    /// Says when a packet was last seen.
    #[inline(always)]
    pub fn set_last_seen(&self, now: Ticks) {
        self.last_seen.set(now.0);
    }

    /// The sequence number that this direction's sender expects next (TCP), as it has acknowledged:
    /// see [`End`](crate::session::End).
    #[inline(always)]
    pub fn expects(&self) -> u32 {
        self.expects.get()
    }

    /// Says what this direction's sender expects next.
    #[inline(always)]
    pub fn set_expects(&self, sequence: u32) {
        self.expects.set(sequence);
    }

    /// The upper half of the sequence number that this direction's sender has come to (TCP), see
    /// [`End`](crate::session::End).
    #[inline(always)]
    pub fn sent(&self) -> u16 {
        self.sent_and_bytes.part() as u16
    }

    /// Says how far this direction's sender has come.
    #[inline(always)]
    pub fn set_sent(&self, sent: u16) {
        self.sent_and_bytes.set_part(sent);
    }

    /// Where its packets leave.
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

    /// Says where its packets leave.
    #[inline(always)]
    pub fn set_next_hop(&self, next_hop: &NextHop) {
        self.mtu.set(next_hop.mtu);
        self.next_hop.set(
            next_hop.destination_mac.number() << MAC_SHIFT
                | (u64::from(next_hop.slot) & 1) << SLOT_SHIFT
                | u64::from(next_hop.generation) & GENERATION_MASK,
        );
    }

    /// The generation of its next hop; 0 if that is not known.
    #[inline(always)]
    pub(crate) fn next_hop_generation(&self) -> u16 {
        generation_of(self.next_hop.get())
    }

    /// Has the next packet resolve where it leaves, in the slow path.
    #[inline(always)]
    pub fn forget_next_hop(&self) {
        if self.next_hop_generation() != 0 {
            self.next_hop.set(0);
        }
    }

    /// Notes that a segment of this direction was out of window
    /// ([`Window`](crate::session::Window)). The note stands where the next hop does otherwise,
    /// which is forgotten.
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

    /// Takes back what [`note_out_of_window`](Self::note_out_of_window) has noted.
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

    /// Its packets. 40 bits, and round again.
    pub fn packets(&self) -> u64 {
        self.opened_and_packets.count()
    }

    /// Their bytes, Ethernet header included. 48 bits, and round again.
    pub fn bytes(&self) -> u64 {
        self.sent_and_bytes.count()
    }
}
