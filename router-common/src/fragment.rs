//! Fragments of IPv4 packets (RFC 791 3.2): tracking datagrams, and splitting packets.
//!
//! Only the first fragment has ports. It is a packet of its flow like any other. What the later
//! fragments of its datagram need is noted in a [`Datagram`]: the flow, and which bytes have come,
//! so that no byte goes out twice (RFC 1858).

use core::mem::size_of;

use crate::{
    address::{AZURE_PLATFORM, Ipv4},
    checksum::Sum,
    rate::Rate,
    reason::Reason,
    shared::{AtomicU32, AtomicU64, Shared},
    tuple::{FlowKey, Protocol},
    wire::{ETHERNET_LENGTH, Frame, IPV4_LENGTH, L4, TCP_LENGTH, field, field_mut, ipv4},
};

/// The unit of fragment offsets, in bytes.
const UNIT: u16 = 8;
/// The longest payload of an IPv4 packet without options.
const LONGEST: u32 = u16::MAX as u32 - IPV4_LENGTH as u32;
const WORDS: usize = (LONGEST as usize).div_ceil(UNIT as usize * 64);

/// The time that the router waits for more fragments of a datagram, in milliseconds. A host waits
/// longer (RFC 1122 3.3.2). But a router that does refuses the next datagram with the same
/// identification, and at full speed the identifications wrap within a second.
pub const TIMEOUT: u32 = 2000;

/// The maximum number of incomplete datagrams of one source in each of the lists of them. The next
/// one replaces the oldest.
pub const DATAGRAMS_PER_SOURCE: u32 = 128;
/// The number of slots that are searched for one without a datagram, before a source's oldest is
/// replaced.
pub const PROBES: u32 = 8;
/// The number of sources whose last datagrams are kept, by a keyed hash of their addresses. Sources
/// with the same hash share a slot.
pub const SOURCE_SLOTS: u32 = 256;
/// Early fragments that are queued for one source: nearly three datagrams of the largest size at
/// once, and 4,000 fragments a second.
pub const EARLY_RATE: Rate = Rate { burst: 128, interval: 250_000 };
/// The number of sources that this rate is kept for.
pub const EARLY_SLOTS: u32 = 4096;

/// Returns the slot of a source's `number`-th datagram.
#[inline(always)]
pub const fn slot_of(hash: u32, number: u32) -> u32 {
    hash % SOURCE_SLOTS * DATAGRAMS_PER_SOURCE + number % DATAGRAMS_PER_SOURCE
}

/// Returns the length of the IP packet in bytes, as its header says.
#[inline(always)]
const fn total_length(header: &[u8; IPV4_LENGTH]) -> u16 {
    u16::from_be_bytes(field::<{ ipv4::TOTAL_LENGTH }, 2, _>(header))
}

/// Returns the flags and the fragment offset of an IP header.
#[inline(always)]
const fn place(header: &[u8; IPV4_LENGTH]) -> u16 {
    u16::from_be_bytes(field::<{ ipv4::FRAGMENT }, 2, _>(header))
}

/// The common identity of the fragments of one datagram (RFC 791 3.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct FragmentKey {
    /// The source address.
    pub source: Ipv4,
    /// The destination address.
    pub destination: Ipv4,
    identification: [u8; 2],
    protocol: u8,
    zero: u8,
}

const _: () = assert!(size_of::<FragmentKey>() == 12);

impl FragmentKey {
    /// Returns the key of an IP packet.
    #[inline(always)]
    pub const fn new(header: &[u8; IPV4_LENGTH]) -> Self {
        Self {
            source: Ipv4(field::<{ ipv4::SOURCE }, 4, _>(header)),
            destination: Ipv4(field::<{ ipv4::DESTINATION }, 4, _>(header)),
            identification: field::<{ ipv4::IDENTIFICATION }, 2, _>(header),
            protocol: header[ipv4::PROTOCOL],
            zero: 0,
        }
    }

    /// Returns `true` if this may be a datagram of that flow.
    #[inline(always)]
    pub fn matches(&self, flow: &FlowKey) -> bool {
        self.source == flow.source
            && self.destination == flow.destination
            && self.protocol == flow.protocol_number()
    }
}

/// A [`FragmentKey`] in memory that all CPUs share. One that is read while another CPU writes may
/// be half another's, which is in no map.
#[repr(transparent)]
#[derive(Debug, Default)]
pub struct SharedKey([Shared<u32>; 3]);

const _: () = assert!(size_of::<SharedKey>() == size_of::<FragmentKey>());

impl SharedKey {
    /// Returns the key that it holds.
    #[inline(always)]
    pub fn get(&self) -> FragmentKey {
        let Self([source, destination, rest]) = self;
        let [first, second, protocol, zero] = rest.get().to_ne_bytes();
        FragmentKey {
            source: Ipv4(source.get().to_ne_bytes()),
            destination: Ipv4(destination.get().to_ne_bytes()),
            identification: [first, second],
            protocol,
            zero,
        }
    }

    /// Makes it this key.
    #[inline(always)]
    pub fn set(&self, key: &FragmentKey) {
        let Self([source, destination, rest]) = self;
        let [first, second] = key.identification;
        source.set(u32::from_ne_bytes(key.source.0));
        destination.set(u32::from_ne_bytes(key.destination.0));
        rest.set(u32::from_ne_bytes([first, second, key.protocol, key.zero]));
    }
}

/// A fragment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fragment {
    /// The datagram that it belongs to.
    pub key: FragmentKey,
    /// That datagram's protocol.
    pub protocol: Protocol,
    /// Its start in the datagram, in bytes.
    pub offset: u16,
    /// Its bytes after the IP header.
    pub length: u16,
    /// `true` if it is not the datagram's end.
    pub more: bool,
    /// Its time to live.
    pub ttl: u8,
    /// `true` if its sender asked not to fragment it further.
    pub dont_fragment: bool,
}

impl Fragment {
    /// Reads a frame that [`packet::parse`](crate::packet::parse) has found to be a fragment.
    ///
    /// # Errors
    /// Returns the reason why the router leaves it to the kernel, or drops it.
    #[inline(always)]
    pub fn parse(frame: &(impl Frame + ?Sized)) -> Result<Self, Reason> {
        let headers: &[u8; L4] = frame.bytes(0).ok_or(Reason::Truncated)?;
        let (_, header) = headers.split_first_chunk::<ETHERNET_LENGTH>().ok_or(Reason::Truncated)?;
        let header: &[u8; IPV4_LENGTH] = header.first_chunk().ok_or(Reason::Truncated)?;
        let key = FragmentKey::new(header);
        if key.source == AZURE_PLATFORM || key.destination == AZURE_PLATFORM {
            return Err(Reason::Platform);
        }
        let protocol = Protocol::from_number(key.protocol).ok_or(Reason::UnsupportedProtocol)?;
        let ip_length = total_length(header);
        if ip_length < IPV4_LENGTH as u16 {
            return Err(Reason::Malformed);
        }
        let place = place(header);
        let fragment = Self {
            key,
            protocol,
            // Below 65,536: the field has 13 bits.
            offset: place << 3,
            length: ip_length - IPV4_LENGTH as u16,
            more: place & ipv4::MORE_FRAGMENTS != 0,
            ttl: header[ipv4::TTL],
            dont_fragment: place & ipv4::DONT_FRAGMENT != 0,
        };
        if fragment.makes_sense() { Ok(fragment) } else { Err(Reason::FragmentBad) }
    }

    #[inline(always)]
    const fn makes_sense(&self) -> bool {
        // All but the last are whole units. The whole is not longer than a packet can be. Nothing
        // overwrites the TCP header that a first fragment must have all of (RFC 1858 3, RFC 3128).
        self.length != 0
            && (!self.more || self.length.is_multiple_of(UNIT))
            && self.end() <= LONGEST
            && !(matches!(self.protocol, Protocol::Tcp)
                && self.offset != 0
                && (self.offset as usize) < TCP_LENGTH)
    }

    /// Returns `true` if it has the datagram's ports.
    #[inline(always)]
    pub const fn is_first(&self) -> bool {
        self.offset == 0
    }

    /// Returns the IP packet's length in bytes.
    #[inline(always)]
    pub const fn ip_length(&self) -> u16 {
        self.length + IPV4_LENGTH as u16
    }

    /// Returns where it ends in the datagram, in bytes.
    #[inline(always)]
    pub const fn end(&self) -> u32 {
        self.offset as u32 + self.length as u32
    }
}

/// A datagram whose first fragment has been seen.
///
/// Any CPU with a fragment of it may change it at any time, and the kernel may reuse the memory for
/// another datagram meanwhile.
#[repr(C)]
#[derive(Debug)]
pub struct Datagram {
    // The flow that it is a packet of: `FlowKey::addresses`, `FlowKey::ports` and the protocol's
    // number.
    addresses: Shared<u64>,
    ports: Shared<u32>,
    protocol: Shared<u32>,
    // The reason that the first fragment left for, as its number.
    verdict: Shared<u32>,
    /// The time of its last fragment, in milliseconds.
    seen: AtomicU32,
    /// The number of units that have come.
    come: AtomicU32,
    /// Its length in bytes, once the last fragment has come; else 0.
    end: AtomicU32,
    /// A bit for each unit that has come.
    units: [AtomicU64; WORDS],
}

const _: () = assert!(cfg!(model) || size_of::<Datagram>() == 32 + 1024);

/// The effect of a fragment on its datagram.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Coverage {
    /// More fragments are missing.
    Partial = 0,
    /// The datagram is complete.
    Complete = 1,
    /// Part of the fragment has come before, or it lies after the datagram's end.
    Bad = 2,
}

impl Datagram {
    /// Creates a datagram of which nothing has come yet.
    pub fn new(flow: &FlowKey, verdict: Reason, now: u32) -> Self {
        let datagram = Self {
            addresses: Shared::default(),
            ports: Shared::default(),
            protocol: Shared::default(),
            verdict: Shared::default(),
            seen: AtomicU32::default(),
            come: AtomicU32::default(),
            end: AtomicU32::default(),
            units: core::array::from_fn(|_| AtomicU64::new(0)),
        };
        datagram.start(flow, verdict, now);
        datagram
    }

    /// Makes a blank datagram one that starts now. Otherwise it stays blank: only copies of it are
    /// used.
    #[inline(always)]
    pub fn start(&self, flow: &FlowKey, verdict: Reason, now: u32) {
        self.addresses.set(flow.addresses());
        self.ports.set(flow.ports());
        self.protocol.set(u32::from(flow.protocol_number()));
        self.verdict.set(verdict as u32);
        self.seen.set(now);
    }

    /// Returns the flow that it is a packet of.
    #[inline(always)]
    pub fn flow(&self) -> FlowKey {
        FlowKey::from_words(self.addresses.get(), self.ports.get(), self.protocol.get() as u8)
    }

    /// Returns the number of the reason for which the first fragment left: `Forwarded` if it
    /// belongs to a session.
    #[inline(always)]
    pub fn verdict(&self) -> u32 {
        self.verdict.get()
    }

    /// Returns `true` if its last fragment came too long ago to wait for more.
    #[inline(always)]
    pub fn is_stale(&self, now: u32) -> bool {
        // Another CPU's clock may have been read a moment later. No more than a moment:
        // milliseconds go round in 50 days, and what is left of a datagram may stay as long.
        now.wrapping_sub(self.seen.load()).wrapping_add(TIMEOUT) > 2 * TIMEOUT
    }

    /// Enters a fragment. If it overlaps others in part, the bytes that it adds count as come: the
    /// datagram is spoilt, as RFC 5722 wants it in IPv6.
    #[inline(always)]
    pub fn cover(&self, fragment: &Fragment, now: u32) -> Coverage {
        self.seen.swap(now);
        if !fragment.more && !self.end.change(0, fragment.end()) {
            return Coverage::Bad;
        }
        let length = self.end.load();
        if length != 0 && fragment.end() > length {
            return Coverage::Bad;
        }
        let (mut at, stop) = (u32::from(fragment.offset / UNIT), fragment.end().div_ceil(u32::from(UNIT)));
        let units = stop.wrapping_sub(at);
        for _ in 0..WORDS {
            if at >= stop {
                break;
            }
            let Some(word) = self.units.get(at as usize / 64) else { return Coverage::Bad };
            let from = at % 64;
            let count = (stop - at).min(64 - from);
            let mask = (u64::MAX >> ((64 - count) & 63)) << from;
            if word.or(mask) & mask != 0 {
                return Coverage::Bad;
            }
            at += count;
        }
        let come = self.come.add(units).wrapping_add(units);
        // Read again: the CPU that adds last finds the datagram complete.
        let length = self.end.load();
        if length != 0 && come == length.div_ceil(u32::from(UNIT)) {
            Coverage::Complete
        } else {
            Coverage::Partial
        }
    }
}

/// Splits a packet into fragments for a link with this MTU (RFC 791 3.2, "An Example Fragmentation
/// Procedure"): each as its header and the data after it. The packet may be a fragment itself.
/// Returns `None` if it is not a whole IPv4 packet, if it has options, or if a fragment has no room
/// for a unit.
pub fn split(packet: &[u8], mtu: u16) -> Option<Pieces<'_>> {
    let header: [u8; IPV4_LENGTH] = *packet.first_chunk()?;
    let length = usize::from(total_length(&header));
    let rest = packet.get(IPV4_LENGTH..length)?;
    let room = usize::from(mtu).checked_sub(IPV4_LENGTH)? / usize::from(UNIT) * usize::from(UNIT);
    (header[ipv4::VERSION] == ipv4::NO_OPTIONS && room > 0).then_some(Pieces {
        header,
        rest,
        place: place(&header),
        room,
        done: false,
    })
}

/// The fragments of a packet, see [`split`].
#[derive(Clone, Debug)]
pub struct Pieces<'a> {
    header: [u8; IPV4_LENGTH],
    rest: &'a [u8],
    /// Flags and offset of the next fragment, if it were the last.
    place: u16,
    room: usize,
    done: bool,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = ([u8; IPV4_LENGTH], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let whole = self.rest.len() <= self.room;
        let (data, rest) =
            if whole { (self.rest, &[][..]) } else { self.rest.split_at_checked(self.room)? };
        let mut header = self.header;
        let length = u16::try_from(IPV4_LENGTH + data.len()).ok()?;
        *field_mut::<{ ipv4::TOTAL_LENGTH }, 2, _>(&mut header) = length.to_be_bytes();
        let place = if whole { self.place } else { self.place | ipv4::MORE_FRAGMENTS };
        *field_mut::<{ ipv4::FRAGMENT }, 2, _>(&mut header) = place.to_be_bytes();
        *field_mut::<{ ipv4::CHECKSUM }, 2, _>(&mut header) = [0; 2];
        let checksum = Sum::ZERO.add_bytes(&header).checksum();
        *field_mut::<{ ipv4::CHECKSUM }, 2, _>(&mut header) = checksum;
        self.place = self.place.wrapping_add(u16::try_from(data.len()).ok()? / UNIT);
        self.rest = rest;
        self.done = whole;
        Some((header, data))
    }
}

#[cfg(all(test, not(model)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{address::Port, effort::tries, packet::parse};

    /// A frame with a UDP header's worth of zeros and more as its payload, and this in its flags
    /// and offset.
    fn frame(protocol: u8, place: u16, length: usize) -> Vec<u8> {
        let mut frame = vec![0; L4 + length];
        frame[12..15].copy_from_slice(&[8, 0, 0x45]);
        frame[16..18].copy_from_slice(&((IPV4_LENGTH + length) as u16).to_be_bytes());
        frame[18..20].copy_from_slice(&[0xab, 0xcd]);
        frame[20..22].copy_from_slice(&place.to_be_bytes());
        frame[22..24].copy_from_slice(&[64, protocol]);
        frame[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        let checksum = Sum::ZERO.add_bytes(&frame[14..34]).checksum();
        frame[24..26].copy_from_slice(&checksum);
        frame
    }

    fn read(protocol: u8, place: u16, length: usize) -> Result<Fragment, Reason> {
        let frame = frame(protocol, place, length);
        assert_eq!(parse(&frame[..]), Err(Reason::Fragment));
        Fragment::parse(&frame[..])
    }

    #[test]
    fn a_source_replaces_its_own_oldest_datagram() {
        for hash in [0, 1, SOURCE_SLOTS - 1, SOURCE_SLOTS, u32::MAX] {
            let places: std::collections::HashSet<_> = (0..DATAGRAMS_PER_SOURCE)
                .map(|number| slot_of(hash, u32::wrapping_add(u32::MAX - 5, number)))
                .collect();
            assert_eq!(places.len(), DATAGRAMS_PER_SOURCE as usize);
            assert!(places.iter().all(|place| place / DATAGRAMS_PER_SOURCE == hash % SOURCE_SLOTS));
        }
    }

    /// A datagram is still stale after 25 days, when the sign of the clock's difference has
    /// changed.
    #[test]
    fn a_stale_datagram_stays_stale() {
        let flow =
            FlowKey::new(Protocol::Udp, Ipv4([10, 0, 0, 1]), Port::new(1), Ipv4([10, 0, 0, 2]), Port::new(2));
        let seen = 5_000;
        let datagram = Datagram::new(&flow, Reason::Forwarded, seen);
        for (later, stale) in
            [(0, false), (TIMEOUT, false), (TIMEOUT + 1, true), (1 << 31, true), (3 << 30, true)]
        {
            assert_eq!(datagram.is_stale(seen.wrapping_add(later)), stale, "{later} ms later");
        }
        assert!(!datagram.is_stale(seen - 10), "another CPU's clock");
    }

    #[test]
    fn a_shared_key_keeps_what_it_is_given() {
        let key = read(17, 0x2000, 8).expect("a fragment").key;
        let shared = SharedKey::default();
        assert_ne!(shared.get(), key);
        shared.set(&key);
        assert_eq!(shared.get(), key);
    }

    #[test]
    fn reads_fragments() {
        let fragment = read(17, 0x2000 | 185, 1480).expect("a fragment");
        assert_eq!((fragment.offset, fragment.length, fragment.ip_length()), (1480, 1480, 1500));
        assert!(fragment.more && !fragment.is_first() && !fragment.dont_fragment);
        let first = read(6, 0x6000, 24).expect("a fragment");
        assert!(first.more && first.is_first() && first.dont_fragment);
        assert_eq!(first.key, FragmentKey { protocol: 6, ..fragment.key });
    }

    #[test]
    fn malformed_fragments_are_refused() {
        for (protocol, place, length) in [
            (17, 0x2001, 0),
            (17, 0x0001, 0),
            (17, 0x2000, 12),
            (17, 0x2001, 1481),
            (6, 0x2001, 24),
            (6, 0x0001, 24),
            (6, 0x2002, 24),
            (17, 0x1fff, 8),
            (17, 8189, 8),
            (17, 8100, 1480),
        ] {
            assert_eq!(
                read(protocol, place, length),
                Err(Reason::FragmentBad),
                "{protocol} {place:#x} {length}"
            );
        }
        for (protocol, place, length) in
            [(17, 0x0001, 1), (17, 8189, 3), (17, 8188, 11), (6, 0x2003, 8), (1, 0x2001, 8), (17, 0x2000, 8)]
        {
            assert!(read(protocol, place, length).is_ok(), "{protocol} {place:#x} {length}");
        }
        assert_eq!(read(47, 0x2001, 12), Err(Reason::UnsupportedProtocol));
        let mut short = frame(17, 0x2001, 8);
        short[16..18].copy_from_slice(&19_u16.to_be_bytes());
        assert_eq!(Fragment::parse(&short[..]), Err(Reason::Malformed));
        let mut platform = frame(17, 0x2001, 12);
        platform[26..30].copy_from_slice(&AZURE_PLATFORM.0);
        assert_eq!(Fragment::parse(&platform[..]), Err(Reason::Platform));
    }

    fn datagram(now: u32) -> Datagram {
        let flow =
            FlowKey::new(Protocol::Udp, Ipv4([10, 0, 0, 1]), Port::new(1), Ipv4([10, 0, 0, 2]), Port::new(2));
        Datagram::new(&flow, Reason::Forwarded, now)
    }

    fn piece(from: u32, to: u32, length: u32) -> Fragment {
        let place = (from / 8) as u16 | if to < length { ipv4::MORE_FRAGMENTS } else { 0 };
        read(17, place, (to - from) as usize).expect("a fragment")
    }

    #[test]
    fn datagrams_become_stale() {
        let datagram = datagram(u32::MAX - 5);
        assert!(!datagram.is_stale(u32::MAX - 6), "by another CPU's clock");
        assert!(!datagram.is_stale(TIMEOUT - 6));
        assert!(datagram.is_stale(TIMEOUT - 5));
        datagram.cover(&piece(0, 8, 16), 10);
        assert!(!datagram.is_stale(TIMEOUT + 10));
    }

    #[test]
    fn fragments_after_the_end_and_second_ends_are_bad() {
        let datagram = datagram(0);
        assert_eq!(datagram.cover(&piece(80, 88, 88), 0), Coverage::Partial);
        assert_eq!(datagram.cover(&piece(88, 96, 200), 0), Coverage::Bad);
        assert_eq!(datagram.cover(&piece(40, 48, 48), 0), Coverage::Bad);
        assert_eq!(datagram.cover(&piece(0, 80, 200), 0), Coverage::Complete);
    }

    /// The fragments of a datagram with this many bytes, cut at these units.
    fn pieces(length: u32, cuts: &[u32]) -> Vec<(u32, u32)> {
        let mut at: Vec<u32> =
            cuts.iter().map(|cut| cut * 8).filter(|cut| *cut < length && *cut > 0).collect();
        at.extend([0, 8, length]);
        at.sort_unstable();
        at.dedup();
        at.windows(2).map(|pair| (pair[0], pair[1])).collect()
    }

    fn any_datagram() -> impl Strategy<Value = (u32, Vec<(u32, u32)>)> {
        (9_u32..=LONGEST, proptest::collection::vec(0_u32..8192, 1..60))
            .prop_map(|(length, cuts)| (length, pieces(length, &cuts)))
    }

    proptest! {
        #![proptest_config(crate::effort::cases())]

        /// In any order, the last fragment to come completes the datagram, and no other does.
        #[test]
        fn every_order_completes((length, pieces) in any_datagram().prop_flat_map(|(length, pieces)|
            (Just(length), Just(pieces).prop_shuffle())))
        {
            let datagram = datagram(0);
            let last = pieces.len() - 1;
            for (index, (from, to)) in pieces.into_iter().enumerate() {
                let wanted = if index == last { Coverage::Complete } else { Coverage::Partial };
                prop_assert_eq!(datagram.cover(&piece(from, to, length), 0), wanted);
            }
        }

        /// Compares the bitmap with a plain list: a fragment that overlaps an earlier one is bad.
        #[test]
        fn overlaps_are_found(ranges in proptest::collection::vec((0_u32..8100, 1_u32..90), 1..60)) {
            let datagram = datagram(0);
            let mut come = vec![false; 8192];
            for (from, units) in ranges {
                let range = &mut come[from as usize..(from + units) as usize];
                let free = range.iter().all(|come| !come);
                let coverage = datagram.cover(&piece(from * 8, (from + units) * 8, u32::MAX), 0);
                prop_assert_eq!(coverage, if free { Coverage::Partial } else { Coverage::Bad });
                if !free {
                    // The state after a bad fragment is not specified.
                    break;
                }
                range.fill(true);
            }
        }

        /// Fragments fit the MTU, are whole units, and together are the packet. If the packet is a
        /// fragment itself, they keep its place in the datagram.
        #[test]
        fn fragments_make_up_the_packet(
            data in proptest::collection::vec(any::<u8>(), 1..tries(5000, 500) as usize),
            mtu in 28_u16..4000,
            offset in 0_u16..7000,
            more: bool,
        ) {
            let data = if more { &data[..(data.len() / 8 * 8)] } else { &data[..] };
            let mut packet = frame(17, offset | if more { ipv4::MORE_FRAGMENTS } else { 0 }, data.len()).split_off(14);
            packet[IPV4_LENGTH..].copy_from_slice(data);
            // Padding of a short frame is no part of it.
            packet.extend([0xee; 7]);
            let mut end = usize::from(offset) * 8;
            let mut whole = Vec::new();
            let pieces: Vec<_> = split(&packet, mtu).expect("a packet").collect();
            for (index, (header, data)) in pieces.iter().enumerate() {
                let place = u16::from_be_bytes([header[6], header[7]]);
                let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
                prop_assert_eq!(length, IPV4_LENGTH + data.len());
                prop_assert!(length <= usize::from(mtu));
                prop_assert_eq!(usize::from(place & 0x1fff) * 8, end);
                let is_last = index + 1 == pieces.len();
                prop_assert_eq!(place & ipv4::MORE_FRAGMENTS != 0, more || !is_last);
                prop_assert!(is_last || (data.len().is_multiple_of(8) && data.len() + 8 > usize::from(mtu) - 20));
                prop_assert_eq!(Sum::ZERO.add_bytes(header).checksum(), [0, 0]);
                // The rest of the header is the packet's.
                let same = |at: usize| header[at] == packet[at];
                prop_assert!([0, 1, 4, 5, 8, 9, 12, 13, 14, 15, 16, 17, 18, 19].into_iter().all(same));
                end += data.len();
                whole.extend_from_slice(data);
            }
            prop_assert_eq!(whole, data);
        }

        #[test]
        fn anything_can_be_split(packet in proptest::collection::vec(any::<u8>(), 0..100), mtu: u16) {
            for (header, data) in split(&packet, mtu).into_iter().flatten() {
                prop_assert!(header.len() + data.len() <= usize::from(mtu));
            }
        }
    }
}
