//! The flow table: an array of cache lines, probed linearly, shared without locks.
//!
//! A packet of a known session finds everything about its direction in one cache line, key
//! included, and most of them in the first line they look at. The table is one BPF array that the
//! daemon maps into its memory, so a sweep is a walk through memory and not a system call an entry.
//!
//! # The life of a slot
//!
//! ```text
//!   EMPTY --claim--> BUSY --key written--> PENDING --no twin found--> LIVE --expired--> RETIRED --later--> FREE --later--> EMPTY
//!     ^                                       |                        \--moved--> HELD --^ ^         \--claim--> BUSY
//!                                             \---- withdrawn -------------------------------/
//! ```
//!
//! Everything turns on the slot's tag, one atomic word:
//!
//! - A slot is *claimed* by a compare-and-exchange, so one inserter has it.
//! - Two CPUs may insert the same key in two slots. Each makes its own `PENDING` first (a full
//!   barrier) and then searches the whole chain: at least one of them sees the other, and whoever
//!   sees another one withdraws. So a key is never live twice; both may withdraw, and the caller
//!   tries again.
//! - A chain ends at the first `EMPTY` slot. An entry is placed in the first slot of its chain that
//!   is not in use, so a slot may become `EMPTY` only when the one behind it is. Where a flow has
//!   been put behind it at that very moment, it becomes `FREE` again ([`Slot::empty`]).
//! - A `RETIRED` slot is found by nobody, but whoever found it before may still be using it, and
//!   whoever is inserting may have passed it. It therefore becomes `FREE`, and a `FREE` slot
//!   `EMPTY`, only after [`QUARANTINE`]: an XDP program runs for microseconds. Only the daemon's
//!   sweep does either.
//! - A flow leaves `LIVE` by a compare-and-exchange, so exactly one of the sweep and the CPUs
//!   removes it, and only that one gives back what the session was counted in. The sweep removes
//!   what has expired; a CPU removes a session that is over when its client's next SYN leads
//!   somewhere else ([`Slot::retire_from`]). Where it leads to the same place, the session starts
//!   over in its slots ([`Slot::start_over`]).
//! - A `HELD` slot is found by no packet, but its key is taken: the reply flow of a session that
//!   was over and has moved. Its target may still send for the old connection, so nobody else gets
//!   the port until the sweep lets go of it.
//! - Where a walk has found room ([`Vacancy`]) may be remembered while the packet goes from one
//!   program to the next. It is no claim: others may have taken the slot, or it may be behind the
//!   end of the chain by then. Taking it compares its tag, and the walk behind that has to come by
//!   it.
//!
//! Probes start at a place that a keyed hash chooses ([`HashSeeds`]): whoever does not know the key
//! cannot aim at one place.
//!
//! # Near and far
//!
//! A random access to hundreds of megabytes misses every cache and the TLB. So a large table begins
//! with a small region, where flows go as long as there is room close to where their chain starts,
//! and only then to the rest ([`Regions`]). Every key has one chain in each, and looks through the
//! near one first; whoever inserts looks through both. While there are few sessions, packets of
//! known ones do not touch the rest of the table. In the near region, a chain has only as many
//! slots as the fast path looks at ([`Regions::chain`]), so that one that has filled up costs
//! little: with many sessions, processors foresee that a flow is not there, and wait for both
//! regions at once.

use core::{
    cell::Cell,
    mem::{align_of, offset_of, size_of},
};

use crate::{
    address::{Ipv4, Port},
    entry::{FlowEntry, FlowRecord},
    session::Seen,
    shared::{AtomicU32, AtomicU64},
    time::Ticks,
    tuple::{Direction, FlowKey, Protocol},
};

/// How long a slot is neither found nor used after it was retired, and again after it became free,
/// in ticks.
pub const QUARANTINE: u32 = 2;

/// How many slots a chain has at most. At half load, the load of a full table, a chain of this
/// length has a probability of about 2^-35 (linear probing: e^(-n (a - 1 - ln a)) for load a =
/// 1/2).
pub const CHAIN: u32 = 128;

/// How often a flow's tag is tried to be changed while packets of the session note in it what they
/// have shown, each for the time of one instruction.
const ATTEMPTS: u32 = 4;

/// A session that is over and younger than this, in ticks, starts over where it leads, if the rules
/// still have that: who opens and ends connections of one tuple in a tight loop would otherwise
/// leave slots behind faster than they come out of quarantine.
pub const SETTLED: u32 = 2 * QUARANTINE;

/// Of so many sessions that there is room for, one may have left a key that is held.
const HELD_SHARE: u32 = 8;

/// Slots for each session that there is room for: two in use, and as many free.
pub const SLOTS_PER_SESSION: u32 = 4;

/// In how many slots a chain may start, every other one, in the near region of a table that has
/// two: 16 MiB of slots. Of 40,000 sessions, hardly a flow has to be elsewhere.
pub const NEAR_HOMES: u32 = 1 << 18;

/// Slots that are next to each other in 128 bytes. Chains start at whole ones: processors fetch
/// cache lines in such pairs, so that a look at both slots of a bucket waits once.
pub const BUCKET: u32 = 2;

/// How far from where its chain starts the fast path looks for a flow, in slots: two buckets. In a
/// full table, all but one flow in a hundred is there.
pub const REACH: u32 = 2 * BUCKET;

const _: () = assert!(REACH <= CHAIN);
/// Chains start and end with whole buckets, in either region.
const _: () = assert!(
    REACH.is_multiple_of(BUCKET)
        && CHAIN.is_multiple_of(BUCKET)
        && NEAR_HOMES.is_multiple_of(BUCKET)
        && SLOTS_PER_SESSION.is_multiple_of(BUCKET)
);

/// Where the chains of a table start: in the near region from slot 0 on, in the far region behind
/// it. Map data: no padding.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Regions {
    /// In how many slots of the near region chains may start, at every other one ([`BUCKET`]).
    pub near: u32,
    /// In how many of the far region; 0 if there is none.
    pub far: u32,
}

impl Regions {
    /// Those of a table for this many sessions. `None` if that is too many.
    pub const fn of(sessions: u32) -> Option<Self> {
        match sessions.checked_mul(SLOTS_PER_SESSION) {
            Some(homes) if homes <= NEAR_HOMES => Some(Self { near: homes, far: 0 }),
            Some(homes) if homes < NO_SLOT - NEAR_HOMES - 2 * CHAIN => {
                Some(Self { near: NEAR_HOMES, far: homes })
            }
            _ => None,
        }
    }

    /// Those of a table of this many slots.
    pub const fn of_slots(slots: u32) -> Self {
        let homes = slots.saturating_sub(CHAIN);
        if homes <= NEAR_HOMES {
            Self { near: homes, far: 0 }
        } else {
            Self { near: NEAR_HOMES, far: homes.saturating_sub(NEAR_HOMES + CHAIN) }
        }
    }

    /// The number of slots: behind the last start of each region there is room for a whole chain,
    /// whether it may be that long or not.
    pub const fn slots(&self) -> u32 {
        self.near + CHAIN + if self.far == 0 { 0 } else { self.far + CHAIN }
    }

    /// How many sessions there is room for.
    pub const fn sessions(&self) -> u32 {
        if self.far == 0 { self.near / SLOTS_PER_SESSION } else { self.far / SLOTS_PER_SESSION }
    }

    /// How many slots the chain that starts here has. In a near region, no more than the fast path
    /// looks at: it fills up, and whoever opens a session would walk along all of a long one in
    /// vain.
    #[inline(always)]
    pub const fn chain(&self, home: u32) -> u32 {
        if self.far != 0 && home < self.near { REACH } else { CHAIN }
    }

    /// Where the chain of a key with this hash starts that is looked through first.
    #[inline(always)]
    pub const fn near_home(&self, hash: u32) -> u32 {
        Self::place(hash, self.near)
    }

    /// Where the other one starts, or [`NO_SLOT`].
    #[inline(always)]
    pub const fn far_home(&self, hash: u32) -> u32 {
        if self.far == 0 {
            return NO_SLOT;
        }
        Self::place(hash, self.far).wrapping_add(self.near).wrapping_add(CHAIN)
    }

    /// One of so many slots, the first of a bucket.
    #[inline(always)]
    const fn place(hash: u32, slots: u32) -> u32 {
        ((hash as u64 * slots as u64) >> u32::BITS) as u32 & !(BUCKET - 1)
    }

    /// Where both start.
    #[inline(always)]
    pub const fn homes(&self, hash: u32) -> [u32; 2] {
        [self.near_home(hash), self.far_home(hash)]
    }
}

/// The key of the table's hash function: drawn at random when the table is made.
///
/// The function is multiply-shift over the key's words (Dietzfelbinger et al., 1997): for any two
/// flows, the probability over the seeds that they start in the same of `n` buckets is at most
/// about `2/n`. The last word has 40 bits, the ports and above them the protocol, and 64 bits would
/// be too few for any two of those; but protocols differ by 5, 11 or 16, which costs nothing where
/// it is odd, and four bits where it is 16: for UDP and ICMP with the same ports between the same
/// ends, it is `16/n`. A fixed permutation of the 32 bits keeps regular keys (ports in a row) from
/// making regular chains.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct HashSeeds {
    /// One multiplier for each word: source, destination, ports and protocol; and an addend.
    pub words: [u64; 4],
}

impl HashSeeds {
    /// 32 bits for a flow.
    #[inline(always)]
    pub const fn hash(&self, key: &FlowKey) -> u32 {
        let [source, destination, service, addend] = self.words;
        let sum = addend
            .wrapping_add(source.wrapping_mul(u32::from_le_bytes(key.source.0) as u64))
            .wrapping_add(destination.wrapping_mul(u32::from_le_bytes(key.destination.0) as u64))
            .wrapping_add(service.wrapping_mul(key.ports_and_protocol()));
        let mut hash = (sum >> 32) as u32;
        hash ^= hash >> 16;
        hash = hash.wrapping_mul(0x85eb_ca6b);
        hash ^ (hash >> 13)
    }

    /// Where the two chains of a flow start, see [`Regions::homes`].
    #[inline(always)]
    pub const fn homes(&self, key: &FlowKey, regions: &Regions) -> [u32; 2] {
        regions.homes(self.hash(key))
    }
}

/// Returns 32 bits for an address. Without the seeds, nobody can foresee which other addresses have
/// the same.
#[inline(always)]
pub const fn source_hash(seeds: &HashSeeds, source: Ipv4) -> u32 {
    let (nobody, no_port) = (Ipv4([0; 4]), Port([0; 2]));
    seeds.hash(&FlowKey::new(Protocol::Icmp, source, no_port, nobody, no_port))
}

/// What a slot is, and of whom: one word.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tag(pub u32);

/// Where in its life a slot is.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SlotState {
    /// Never used, or cleaned: ends every chain.
    Empty = 0,
    /// Claimed; its key is being written.
    Busy = 1,
    /// Its key is there, but it is not yet found by packets.
    Pending = 2,
    /// A flow.
    Live = 3,
    /// Not a flow any more, in quarantine.
    Retired = 4,
    /// Free for another flow.
    Free = 5,
    /// Not a flow any more, but nobody else may have its key yet.
    Held = 6,
}

impl Tag {
    // 31..23 rule, 22 direction, 21 clients' side only, 20 nothing, 19..12 seen, 11 opening, 10..8
    // state, 7..0 protocol. What a packet's look for its flow compares is at one end, beside the
    // ports, and what says where it is counted is at the other.
    const COUNTER_SHIFT: u32 = 22;
    const REPLY: u32 = 1 << Self::COUNTER_SHIFT;
    const RULE_SHIFT: u32 = Self::COUNTER_SHIFT + 1;
    const CLIENTS_SIDE_SHIFT: u32 = 21;
    const SEEN_SHIFT: u32 = 12;
    const OPENING: u32 = 1 << 11;
    const STATE_SHIFT: u32 = 8;
    const STATE_MASK: u32 = 7 << Self::STATE_SHIFT;
    /// Protocol and state, and no more.
    const MATCH_BITS: u32 = 11;

    /// A slot that was never used.
    pub const EMPTY: Self = Self(0);
    /// A slot that is being written.
    pub const BUSY: Self = Self((SlotState::Busy as u32) << Self::STATE_SHIFT);
    /// A slot whose key is held.
    const HELD: Self = Self((SlotState::Held as u32) << Self::STATE_SHIFT);
    /// A slot that may be used again.
    pub const FREE: Self = Self((SlotState::Free as u32) << Self::STATE_SHIFT);

    /// The tag of a new flow, not yet live.
    #[inline(always)]
    pub const fn pending(protocol: u8, direction: Direction, rule: u16, opening: bool) -> Self {
        let direction = match direction {
            Direction::Forward => 0,
            Direction::Reply => Self::REPLY,
        };
        let opening = if opening { Self::OPENING } else { 0 };
        Self(
            (SlotState::Pending as u32) << Self::STATE_SHIFT
                | opening
                | direction
                | (rule as u32) << Self::RULE_SHIFT
                | protocol as u32,
        )
    }

    /// The same flow, whose packets come in by the clients' side only
    /// ([`Side`](crate::maps::settings::Side)) if `only` is `true`.
    #[inline(always)]
    pub const fn for_clients_side(self, only: bool) -> Self {
        Self(self.0 & !(1 << Self::CLIENTS_SIDE_SHIFT) | (only as u32) << Self::CLIENTS_SIDE_SHIFT)
    }

    #[inline(always)]
    const fn is_by_clients_side(self) -> bool {
        self.0 >> Self::CLIENTS_SIDE_SHIFT & 1 != 0
    }

    /// Returns `true` if the flow's packets may come in by the interface of this slot: the second
    /// one faces the firewall.
    #[inline(always)]
    pub const fn may_come_in_by(self, slot: u32) -> bool {
        self.0 >> Self::CLIENTS_SIDE_SHIFT & slot & 1 == 0
    }

    /// The same flow, whose packets have shown this.
    #[inline(always)]
    pub const fn with_seen(self, seen: Seen) -> Self {
        Self(self.0 & !(0xff << Self::SEEN_SHIFT) | (seen.bits() as u32) << Self::SEEN_SHIFT)
    }

    /// What its packets have shown (TCP).
    #[inline(always)]
    pub const fn seen(self) -> Seen {
        Seen::from_bits((self.0 >> Self::SEEN_SHIFT) as u8)
    }

    /// The same flow in another state.
    #[inline(always)]
    pub const fn in_state(self, state: SlotState) -> Self {
        Self(self.0 & !Self::STATE_MASK | (state as u32) << Self::STATE_SHIFT)
    }

    /// The tag of the same flow once it is retired: without its "opening", which ends with who
    /// retires it. A packet that found the flow before must not end it once more.
    #[inline(always)]
    const fn retired(self) -> Self {
        Self(self.in_state(SlotState::Retired).0 & !Self::OPENING)
    }

    /// Where in its life the slot is.
    #[inline(always)]
    pub const fn state(self) -> SlotState {
        match (self.0 & Self::STATE_MASK) >> Self::STATE_SHIFT {
            0 => SlotState::Empty,
            1 => SlotState::Busy,
            2 => SlotState::Pending,
            3 => SlotState::Live,
            4 => SlotState::Retired,
            6 => SlotState::Held,
            _ => SlotState::Free,
        }
    }

    /// The IP protocol number.
    #[inline(always)]
    pub const fn protocol_number(self) -> u8 {
        self.0 as u8
    }

    /// Which of the session's flows this is.
    #[inline(always)]
    pub const fn direction(self) -> Direction {
        if self.0 & Self::REPLY == 0 { Direction::Forward } else { Direction::Reply }
    }

    /// The number of the rule that opened the session.
    #[inline(always)]
    pub const fn rule(self) -> u16 {
        (self.0 >> Self::RULE_SHIFT) as u16
    }

    /// Where the flow's packets are counted for the rule, see [`counter_of`](Self::counter_of).
    #[inline(always)]
    pub const fn counter(self) -> usize {
        (self.0 >> Self::COUNTER_SHIFT) as usize
    }

    /// Where packets of a rule's sessions are counted that go in this direction: the number of the
    /// rule, and below it the direction.
    pub const fn counter_of(rule: u16, direction: Direction) -> usize {
        (rule as usize) << (Self::RULE_SHIFT - Self::COUNTER_SHIFT) | direction as usize
    }

    /// Whether the session counts as half-open. Only in the forward flow's tag.
    #[inline(always)]
    pub const fn is_opening(self) -> bool {
        self.0 & Self::OPENING != 0
    }
}

const _: () = assert!(crate::limits::MAX_RULES <= 1 << (u32::BITS - Tag::RULE_SHIFT));

/// A slot: a flow's key and entry in one cache line.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Slot {
    /// The key, in two words that are compared at once: [`FlowKey::addresses`]; and
    /// [`FlowKey::ports`] with the tag above them, whose lowest bits are the protocol and the
    /// state. Written by whoever has claimed the slot, before the tag says that it is there.
    addresses: AtomicU64,
    ports: AtomicU32,
    tag: AtomicU32,
    /// What its packets need.
    pub entry: FlowEntry,
}

const _: () = assert!(cfg!(model) || size_of::<Slot>() == 64);
/// As [`Slot::difference`] takes it.
const _: () = assert!(
    cfg!(model) || (offset_of!(Slot, ports) == 8 && offset_of!(Slot, tag) == 12 && align_of::<Slot>() == 8)
);

impl Slot {
    /// The tag as it is now.
    #[inline(always)]
    pub fn tag(&self) -> Tag {
        Tag(self.tag.load())
    }

    /// Changes the tag if it still is what was seen.
    #[inline(always)]
    pub fn change_tag(&self, from: Tag, to: Tag) -> bool {
        self.tag.change(from.0, to.0)
    }

    /// Ends the opening phase of the session; whether it was this call that did.
    #[inline(always)]
    pub fn end_opening(&self) -> bool {
        Tag(self.tag.and(!Tag::OPENING)).is_opening()
    }

    /// Changes what the flow's packets have shown from what was seen to what it is now. Only the
    /// difference is written: another CPU may have packets of the session's other direction at the
    /// same moment, and what they show stays.
    #[inline(always)]
    pub fn note_seen(&self, before: Seen, after: Seen) {
        let (before, after) = (before.bits(), after.bits());
        let (new, gone) = (after & !before, before & !after);
        if new != 0 {
            self.tag.or(u32::from(new) << Tag::SEEN_SHIFT);
        }
        if gone != 0 {
            self.tag.and(!(u32::from(gone) << Tag::SEEN_SHIFT));
        }
    }

    /// The key. What it says counts only while the tag is pending or live.
    #[inline(always)]
    pub fn key(&self) -> FlowKey {
        FlowKey::from_words(self.addresses.get(), self.ports.get(), self.tag.get() as u8)
    }

    /// Reads the flow that is in the slot, if the slot is in this state and stays so meanwhile.
    pub fn read(&self, state: SlotState) -> Option<(FlowKey, Tag, FlowRecord)> {
        let tag = self.tag();
        let (key, entry) = (self.key(), self.entry.read());
        (tag.state() == state && self.tag().state() == state).then_some((key, tag, entry))
    }

    /// 0 if this is the live flow of this key, and anything else if it is not: without a branch.
    #[inline(always)]
    fn difference(&self, key: &FlowKey) -> u64 {
        const LIVE: u64 = (SlotState::Live as u64) << (u32::BITS + Tag::STATE_SHIFT);
        // What is above the protocol and the state does not matter.
        let service =
            (self.ports_and_tag() ^ (key.ports_and_protocol() | LIVE)) << (u32::BITS - Tag::MATCH_BITS);
        self.addresses.get() ^ key.addresses() | service
    }

    /// The ports and above them the tag, as they are at one moment.
    #[inline(always)]
    fn ports_and_tag(&self) -> u64 {
        #[cfg(target_arch = "bpf")]
        {
            // SAFETY: they are next to each other, and together where a number of this size may
            // stand (see the assertions beside the structure); all of the slot is in cells.
            // Volatile, since the tag may change; a number that is aligned is loaded at once.
            unsafe { core::ptr::from_ref(self).cast::<u64>().add(1).read_volatile() }
        }
        #[cfg(not(target_arch = "bpf"))]
        {
            // The tag first: whoever writes both writes it last.
            let tag = self.tag();
            u64::from(tag.0) << u32::BITS | u64::from(self.ports.get())
        }
    }

    /// Whether this is the live flow of this key.
    #[inline(always)]
    pub fn is_flow(&self, key: &FlowKey) -> bool {
        self.difference(key) == 0
    }

    /// Claims the slot; fails if it is not any more what was seen.
    #[inline(always)]
    pub fn claim(&self, seen: Tag) -> bool {
        self.change_tag(seen, Tag::BUSY)
    }

    /// Writes a flow into a slot that the caller has claimed, and makes it pending.
    #[inline(always)]
    pub fn write(&self, key: &FlowKey, tag: Tag, entry: &FlowEntry) {
        self.addresses.set(key.addresses());
        self.ports.set(key.ports());
        self.entry.copy_from(entry);
        // A swap and not a store: nobody may see this after what the writer looks at next.
        self.tag.swap(tag.0);
    }

    /// Makes a pending flow of the caller's live.
    #[inline(always)]
    pub fn publish(&self, tag: Tag) {
        self.tag.swap(tag.in_state(SlotState::Live).0);
    }

    /// Inserts a flow into this slot, of this index, if it is as it was `seen`. `walk` walks along
    /// the chains of the key, past a slot of which it is told the index.
    ///
    /// # Errors
    /// Why it was not, or was taken back.
    #[inline(always)]
    pub fn insert<'a>(
        &self,
        Vacancy { index, tag: seen }: Vacancy,
        (key, tag, entry): (&FlowKey, Tag, &FlowEntry),
        walk: impl FnOnce(u32) -> Option<&'a Search>,
        now: impl FnOnce() -> Ticks,
    ) -> Result<(), InsertError> {
        if !self.claim(seen) {
            return Err(InsertError::Contended);
        }
        self.write(key, tag, entry);
        let verdict = match walk(index) {
            Some(search) => search.may_publish(),
            None => Err(InsertError::Contended),
        };
        match verdict {
            Ok(()) => self.publish(tag),
            Err(_) => self.withdraw(tag, now()),
        }
        verdict
    }

    /// Takes a flow that is the caller's own back, whether it has been live or not.
    #[inline(always)]
    pub fn withdraw(&self, tag: Tag, now: Ticks) {
        self.entry.set_last_seen(now);
        self.tag.swap(tag.in_state(SlotState::Retired).0);
    }

    /// Retires a live flow: the tag it had, if it was this call that did.
    pub fn retire(&self, key: &FlowKey, now: Ticks) -> Option<Tag> {
        loop {
            let tag = self.tag();
            if !self.is_flow(key) {
                return None;
            }
            self.entry.set_last_seen(now);
            // What the tag says of the session's state may have changed meanwhile, and nothing
            // else.
            if self.change_tag(tag, tag.retired()) {
                return Some(tag);
            }
        }
    }

    /// Retires a live flow whose tag still is what was seen; whether it was this call that did.
    #[inline(always)]
    pub fn retire_from(&self, seen: Tag, now: Ticks) -> bool {
        // First, or the sweep might take it for one that was retired long ago.
        self.entry.set_last_seen(now);
        self.change_tag(seen, seen.retired())
    }

    /// Has the session start over in this slot, the forward flow's, if its tag still is what was
    /// seen; whether it was this call that did. What the flow's packets become stays; its counters,
    /// times and next hop begin anew.
    #[inline(always)]
    pub fn start_over(&self, seen: Tag, rule: u16, now: Ticks) -> bool {
        let tag = Tag::pending(seen.protocol_number(), Direction::Forward, rule, true)
            .for_clients_side(seen.is_by_clients_side())
            .with_seen(Seen::SYN);
        let is_first = self.change_tag(seen, tag.in_state(SlotState::Live));
        if is_first {
            self.entry.start_over(now);
        }
        is_first
    }

    /// Has the reply flow follow a session that has started over.
    #[inline(always)]
    pub fn start_reply_over(&self, rule: u16, now: Ticks) {
        self.entry.start_over(now);
        for _ in 0..ATTEMPTS {
            let seen = self.tag();
            let tag = Tag::pending(seen.protocol_number(), Direction::Reply, rule, false);
            // Anything else than live: the sweep has removed the session meanwhile.
            if !matches!(seen.state(), SlotState::Live)
                || self.change_tag(seen, tag.in_state(SlotState::Live))
            {
                return;
            }
        }
    }

    /// Takes a live flow of this key away from packets, while its key stays taken; whether it was
    /// this call that did.
    #[inline(always)]
    pub fn hold(&self, key: &FlowKey) -> bool {
        self.leave_live(key, |tag| tag.in_state(SlotState::Held))
    }

    /// Retires a live flow of this key, after a few attempts at most; whether it was this call that
    /// did.
    #[inline(always)]
    pub fn try_retire(&self, key: &FlowKey, now: Ticks) -> bool {
        if !self.is_flow(key) {
            return false;
        }
        self.entry.set_last_seen(now);
        self.leave_live(key, Tag::retired)
    }

    /// Puts a live flow into another state, after a few attempts at most; whether it was this call
    /// that did.
    #[inline(always)]
    fn leave_live(&self, key: &FlowKey, to: impl Fn(Tag) -> Tag) -> bool {
        for _ in 0..ATTEMPTS {
            let tag = self.tag();
            if !self.is_flow(key) {
                return false;
            }
            if self.change_tag(tag, to(tag)) {
                return true;
            }
        }
        false
    }

    /// Lets go of a held key. Only the sweep does.
    pub fn release_key(&self, held: Tag, now: Ticks) -> bool {
        self.entry.set_last_seen(now);
        self.change_tag(held, held.retired())
    }

    /// Whether a retired or free slot has been so for long enough.
    pub fn is_out_of_quarantine(&self, now: Ticks) -> bool {
        now.0.saturating_sub(self.entry.last_seen().0) >= QUARANTINE
    }

    /// Makes a retired slot free to be claimed. Only the sweep does.
    pub fn free(&self, retired: Tag, now: Ticks) {
        self.entry.set_last_seen(now);
        self.change_tag(retired, Tag::FREE);
    }

    /// Makes a free slot one that was never used, which ends the chains that come by, if `behind`
    /// is: the slot behind it, if there is one. Returns `true` if it is now. Only the sweep does.
    pub fn empty(&self, behind: Option<&Self>) -> bool {
        let chains_end_behind = || behind.is_none_or(|slot| slot.tag() == Tag::EMPTY);
        if !chains_end_behind() || !self.change_tag(Tag::FREE, Tag::EMPTY) {
            return false;
        }
        // Whoever has put a flow there meanwhile has come by here before this slot was empty, or
        // sees that it is, and withdraws ([`Search::may_publish`]). So that is found out here, or
        // there.
        if chains_end_behind() {
            return true;
        }
        self.change_tag(Tag::EMPTY, Tag::FREE);
        false
    }

    /// Returns `true` if it is known where the flow's packets leave, but not in this generation.
    pub fn has_stale_next_hop(&self, generation: u32) -> bool {
        let known = u32::from(self.entry.next_hop_generation());
        known != 0 && known != generation
    }
}

/// Slots that are fetched together.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Bucket(pub [Slot; BUCKET as usize]);

const _: () = assert!(cfg!(model) || size_of::<Bucket>() == 128);

impl Bucket {
    /// Which slot may be a key's live flow, if one of them is.
    ///
    /// Which one it is differs from flow to flow and cannot be predicted, and a processor that has
    /// guessed wrong finds out only when the slots have come from memory. So there is no branch to
    /// guess.
    #[inline(always)]
    pub fn candidate(&self, key: &FlowKey) -> usize {
        let difference = self.0[0].difference(key);
        // 1 if there is a difference.
        sign(difference | difference.wrapping_neg()) as usize
    }

    /// Whether the chains that lead through here end here: what is in none of their slots up to
    /// here is nowhere.
    #[inline(always)]
    pub fn ends_chains(&self) -> bool {
        self.0.iter().any(|slot| slot.tag() == Tag::EMPTY)
    }
}

/// A number's uppermost bit, by an instruction that the compiler does not look into: it would make
/// a branch of what is meant to have none.
#[inline(always)]
fn sign(number: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let sign: u64;
        // SAFETY: arithmetic.
        unsafe {
            core::arch::asm!("{0} >>= 63", inlateout(reg) number => sign, options(pure, nomem, nostack, preserves_flags));
            // One bit is left.
            core::hint::assert_unchecked(sign <= 1);
        }
        sign
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        number >> 63
    }
}

/// A walk along the two chains of a key: the scratch of whoever walks, in cells, since several
/// functions of a program have it.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// Whose chain: [`FlowKey::addresses`],
    addresses: Cell<u64>,
    /// and [`FlowKey::ports_and_protocol`].
    service: Cell<u64>,
    /// Where the chain that is walked starts.
    home: Cell<u32>,
    /// How many slots it has.
    length: Cell<u32>,
    /// Where the next one starts, or [`NO_SLOT`].
    next: Cell<u32>,
    /// How many slots that has.
    next_length: Cell<u32>,
    /// Where the key was found, or [`NO_SLOT`].
    found: Cell<u32>,
    /// The first slot that may be claimed, if there is one.
    free: Cell<Vacancy>,
    /// The slot to leave out, or [`NO_SLOT`].
    mine: Cell<u32>,
    /// 1 if something was met of which could not be told whose it is.
    contended: Cell<u32>,
    /// 1 if the slot to leave out was met.
    met_own: Cell<u32>,
}

/// No slot.
pub const NO_SLOT: u32 = u32::MAX;

/// Where a flow may be put: what a walk along its key's chains has found. May be kept while other
/// things are done: whether the flow may still be put there is found out by the walk behind the
/// claim ([`Search::may_publish`]). Map data: no padding.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Vacancy {
    /// The slot, or [`NO_SLOT`].
    pub index: u32,
    /// The tag that was seen there.
    pub tag: Tag,
}

impl Vacancy {
    /// It has yet to be looked for.
    pub const UNKNOWN: Self = Self { index: NO_SLOT, tag: Tag::EMPTY };
    /// There is none while the key is held.
    pub const HELD: Self = Self { index: NO_SLOT, tag: Tag::HELD };

    /// Returns `true` if the key is held.
    #[inline(always)]
    pub const fn is_held(&self) -> bool {
        matches!(self.tag.state(), SlotState::Held)
    }
}

impl Default for Vacancy {
    fn default() -> Self {
        Self::UNKNOWN
    }
}

impl Search {
    /// Where the chain that is walked starts.
    #[inline(always)]
    pub fn home(&self) -> u32 {
        self.home.get()
    }

    /// How many slots the chain has that is walked.
    #[inline(always)]
    pub fn length(&self) -> u32 {
        self.length.get()
    }

    /// Where the next chain starts, or [`NO_SLOT`].
    #[inline(always)]
    pub fn next(&self) -> u32 {
        self.next.get()
    }

    /// Where the key was found, or [`NO_SLOT`].
    #[inline(always)]
    pub fn found(&self) -> u32 {
        self.found.get()
    }

    /// Makes this a walk for `key` along its chains, which start at `homes` in these regions, past
    /// the slot `mine`.
    #[inline(always)]
    pub fn start(&self, key: &FlowKey, regions: &Regions, homes: [u32; 2], mine: u32) {
        self.addresses.set(key.addresses());
        self.service.set(key.ports_and_protocol());
        let [home, next] = homes;
        self.home.set(home);
        self.next.set(next);
        self.length.set(regions.chain(home));
        self.next_length.set(regions.chain(next));
        self.found.set(NO_SLOT);
        self.free.set(Vacancy::UNKNOWN);
        self.mine.set(mine);
        self.contended.set(0);
        self.met_own.set(0);
    }

    /// At the end of a chain: turns to the next one, if there is one to be walked.
    #[inline(always)]
    pub fn next_chain(&self) -> bool {
        let goes_on = self.found.get() == NO_SLOT && self.next.get() != NO_SLOT;
        if goes_on {
            self.home.set(self.next.get());
            self.length.set(self.next_length.get());
            self.next.set(NO_SLOT);
        }
        goes_on
    }

    /// After a look for the key: the slot to claim, if there is one, and none with the key.
    ///
    /// # Errors
    /// Why not.
    #[inline(always)]
    pub fn vacancy(&self) -> Result<Vacancy, InsertError> {
        if self.found.get() != NO_SLOT {
            // One that is not live may yet be withdrawn.
            return Err(if self.contended.get() == 0 { InsertError::Exists } else { InsertError::Contended });
        }
        if self.free.get().index == NO_SLOT { Err(InsertError::Full) } else { Ok(self.free.get()) }
    }

    /// After a walk with the caller's own flow pending in `mine`: whether nobody else has the key,
    /// or may come to have it, and whether the walk came by that slot. If it did not, a slot in
    /// front of it has become empty, and nobody would find the flow.
    ///
    /// # Errors
    /// Why the flow has to be withdrawn.
    #[inline(always)]
    pub fn may_publish(&self) -> Result<(), InsertError> {
        if self.contended.get() != 0 {
            Err(InsertError::Contended)
        } else if self.found.get() != NO_SLOT {
            Err(InsertError::Exists)
        } else if self.met_own.get() == 0 {
            Err(InsertError::Contended)
        } else {
            Ok(())
        }
    }

    /// Looks at one bucket of the chain, whose first slot's index is this; whether that ends the
    /// walk.
    #[inline(always)]
    pub fn look(&self, first: u32, bucket: &Bucket) -> bool {
        let [one, other] = &bucket.0;
        self.look_at_slot(first, one) || self.look_at_slot(first + 1, other)
    }

    #[inline(always)]
    fn look_at_slot(&self, index: u32, slot: &Slot) -> bool {
        if index == self.mine.get() {
            self.met_own.set(1);
            return false;
        }
        let ports_and_tag = slot.ports_and_tag();
        let tag = Tag((ports_and_tag >> u32::BITS) as u32);
        match tag.state() {
            SlotState::Pending | SlotState::Live | SlotState::Held => {
                // Most slots are somebody else's. What is above the protocol does not matter.
                let difference = (ports_and_tag ^ self.service.get()) << (u32::BITS - Tag::STATE_SHIFT);
                if (difference | (slot.addresses.get() ^ self.addresses.get())) != 0 {
                    return false;
                }
                self.found.set(index);
                if matches!(tag.state(), SlotState::Pending) {
                    self.contended.set(1);
                }
                true
            }
            SlotState::Empty | SlotState::Free => {
                if self.free.get().index == NO_SLOT {
                    self.free.set(Vacancy { index, tag });
                }
                matches!(tag.state(), SlotState::Empty)
            }
            SlotState::Busy => {
                self.contended.set(1);
                false
            }
            SlotState::Retired => false,
        }
    }
}

/// Why a flow was not inserted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum InsertError {
    /// The key is taken.
    Exists,
    /// The chain is full.
    Full,
    /// No port is free that could make the key.
    NoPort,
    /// Another CPU was at work in the same place at the same moment; the next attempt will do
    /// better.
    Contended,
}

/// What is counted of the table as a whole, in memory that the programs and the daemon share.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Occupancy {
    /// Sessions in the table.
    pub sessions: AtomicU32,
    /// Sessions that it may hold. Written by the daemon.
    pub capacity: AtomicU32,
    /// Keys that are held, at least: counted on by the programs, and anew by each sweep.
    held: AtomicU32,
    zero: [u32; 13],
}

const _: () = assert!(cfg!(model) || size_of::<Occupancy>() == 64);

impl Occupancy {
    /// Says how many sessions there may be.
    pub fn set_capacity(&self, sessions: u32) {
        self.capacity.swap(sessions);
    }

    /// Takes the place of one session, if there is one.
    #[inline(always)]
    pub fn enter(&self) -> bool {
        if self.sessions.add(1) < self.capacity.get() {
            return true;
        }
        self.leave();
        false
    }

    /// Gives the place of one session back.
    #[inline(always)]
    pub fn leave(&self) {
        self.sessions.add(1_u32.wrapping_neg());
    }

    /// Counts one more key that is held; `false` if there are too many.
    #[inline(always)]
    pub fn hold(&self) -> bool {
        self.held.add(1) < self.capacity.get() / HELD_SHARE
    }

    /// Says how many keys are held, as a sweep has counted them. Those that have come meanwhile are
    /// counted by the next.
    pub fn set_held(&self, keys: u32) {
        self.held.swap(keys);
    }
}

#[cfg(all(test, model))]
mod models;

#[cfg(all(test, not(model)))]
mod tests {
    use std::{collections::HashMap, sync::Barrier, thread};

    use proptest::prelude::*;

    use super::*;
    use crate::{address::Port, effort::tries, tuple::Protocol};

    const SEEDS: HashSeeds = HashSeeds {
        words: [0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb, 0xd6e8_feb8_6659_fd93],
    };

    fn entry(key: &FlowKey) -> FlowEntry {
        let entry = FlowEntry::default();
        entry.start(key, key, Ticks(1));
        entry
    }

    /// The table as the programs use it, on the host.
    struct Table {
        buckets: Vec<Bucket>,
        regions: Regions,
    }

    impl Table {
        fn new(sessions: u32) -> Self {
            Self::with(Regions::of(sessions).expect("not too many"))
        }

        fn with(regions: Regions) -> Self {
            Self { buckets: (0..regions.slots() / BUCKET).map(|_| Bucket::default()).collect(), regions }
        }

        /// How many slots there are.
        fn size(&self) -> u32 {
            self.buckets.len() as u32 * BUCKET
        }

        fn bucket(&self, index: u32) -> &Bucket {
            &self.buckets[(index / BUCKET) as usize]
        }

        fn slot(&self, index: u32) -> &Slot {
            &self.bucket(index).0[(index % BUCKET) as usize]
        }

        fn homes(&self, key: &FlowKey) -> [u32; 2] {
            SEEDS.homes(key, &self.regions)
        }

        fn walk(&self, key: &FlowKey, mine: u32) -> Search {
            let search = Search::default();
            self.walk_in(&search, key, mine);
            search
        }

        fn walk_in(&self, search: &Search, key: &FlowKey, mine: u32) {
            search.start(key, &self.regions, self.homes(key), mine);
            loop {
                for first in (search.home()..search.home() + search.length()).step_by(BUCKET as usize) {
                    if search.look(first, self.bucket(first)) {
                        break;
                    }
                }
                if !search.next_chain() {
                    return;
                }
            }
        }

        fn find(&self, key: &FlowKey) -> Option<u32> {
            let found = self.walk(key, NO_SLOT).found();
            (found != NO_SLOT && self.slot(found).is_flow(key)).then_some(found)
        }

        /// How far a flow is from where its chain starts, if that is what the fast path asks.
        fn distance(&self, key: &FlowKey) -> u32 {
            let index = self.find(key).expect("a flow");
            let distances = self.homes(key).map(|home| index.wrapping_sub(home));
            distances.into_iter().min().expect("two of them")
        }

        fn insert(&self, key: &FlowKey) -> Result<u32, InsertError> {
            self.insert_at(key, self.walk(key, NO_SLOT).vacancy()?)
        }

        fn insert_at(&self, key: &FlowKey, vacancy: Vacancy) -> Result<u32, InsertError> {
            let (tag, entry) =
                (Tag::pending(key.protocol_number(), Direction::Forward, 7, false), entry(key));
            let search = Search::default();
            let walk = |mine| {
                self.walk_in(&search, key, mine);
                Some(&search)
            };
            self.slot(vacancy.index).insert(vacancy, (key, tag, &entry), walk, || Ticks(1))?;
            Ok(vacancy.index)
        }

        fn retire(&self, key: &FlowKey) -> bool {
            self.find(key).is_some_and(|index| self.slot(index).retire(key, Ticks(1)).is_some())
        }

        /// What the sweep does with slots that are out of quarantine.
        fn clean(&self) {
            for index in (0..self.size()).rev() {
                let slot = self.slot(index);
                let tag = slot.tag();
                match tag.state() {
                    SlotState::Retired => assert!(slot.change_tag(tag, Tag::FREE)),
                    SlotState::Free => {
                        let behind = (index + 1 < self.size()).then(|| self.slot(index + 1));
                        let is_last = behind.is_none_or(|slot| slot.tag() == Tag::EMPTY);
                        assert_eq!(slot.empty(behind), is_last);
                    }
                    SlotState::Held => assert!(slot.release_key(tag, Ticks(1))),
                    SlotState::Empty | SlotState::Busy | SlotState::Pending | SlotState::Live => {}
                }
            }
        }

        fn live(&self) -> HashMap<FlowKey, usize> {
            let mut live = HashMap::new();
            for index in 0..self.size() {
                if self.slot(index).tag().state() == SlotState::Live {
                    *live.entry(self.slot(index).key()).or_default() += 1;
                }
            }
            live
        }
    }

    /// Two each have the same ends, and differ in the protocol.
    fn key(number: u16) -> FlowKey {
        FlowKey::new(
            if number.is_multiple_of(2) { Protocol::Tcp } else { Protocol::Udp },
            Ipv4([10, 0, 2, 69]),
            Port::new(number / 2),
            Ipv4([10, 0, 2, 68]),
            Port::new(443),
        )
    }

    /// A walk along a chain of one bucket: a slot in this state with this key, and one that was
    /// never used.
    fn look_at(there: &FlowKey, state: SlotState, key: &FlowKey) -> Search {
        let table = Table::with(Regions { near: 2, far: 0 });
        let tag = Tag::pending(there.protocol_number(), Direction::Forward, 7, false);
        table.slot(0).write(there, tag.in_state(state), &entry(there));
        table.walk(key, NO_SLOT)
    }

    #[test]
    fn a_walk_tells_what_it_has_met() {
        let (key, neighbour) = (key(8), key(9));
        let vacant = Ok(Vacancy { index: 1, tag: Tag::EMPTY });
        let found = look_at(&key, SlotState::Live, &key);
        assert_eq!((found.found(), found.vacancy()), (0, Err(InsertError::Exists)));
        // It may yet be withdrawn.
        let pending = look_at(&key, SlotState::Pending, &key);
        assert_eq!(
            (pending.vacancy(), pending.may_publish()),
            (Err(InsertError::Contended), Err(InsertError::Contended))
        );
        // Whose it is going to be, nobody can tell.
        let busy = look_at(&key, SlotState::Busy, &key);
        assert_eq!((busy.vacancy(), busy.contended.get()), (vacant, 1));
        for other in [SlotState::Live, SlotState::Pending] {
            let walk = look_at(&neighbour, other, &key);
            assert_eq!(
                (walk.vacancy(), walk.contended.get()),
                (vacant, 0),
                "between the same ends by another protocol"
            );
        }
        let gone = look_at(&key, SlotState::Retired, &key);
        assert_eq!((gone.vacancy(), gone.contended.get()), (vacant, 0));
    }

    #[test]
    fn nothing_is_published_while_somebody_is_at_work_in_the_chain() {
        let table = Table::with(Regions { near: 2, far: 0 });
        assert!(table.slot(0).claim(Tag::EMPTY));
        assert_eq!(table.insert(&key(8)), Err(InsertError::Contended));
        assert_eq!(table.slot(1).tag().state(), SlotState::Retired);
    }

    /// A slot in front of it has become empty since the vacancy was found: nobody would find it.
    #[test]
    fn nothing_is_published_behind_the_end_of_its_chain() {
        let table = Table::new(1 << 10);
        let key = key(8);
        let home = table.homes(&key)[0];
        for behind in [1, 2, 5] {
            let kept = Vacancy { index: home + behind, tag: Tag::EMPTY };
            assert_eq!(table.insert_at(&key, kept), Err(InsertError::Contended), "{behind} slots behind");
            assert_eq!(table.find(&key), None);
        }
    }

    proptest! {
        #![proptest_config(crate::effort::cases())]

        /// Against a set as the model: whatever is done in whatever order, what is in is found, and nothing else.
        /// A vacancy may be kept meanwhile: then it is as good as a new one, or refused.
        #[test]
        fn it_is_a_set(steps in proptest::collection::vec((0..6_u8, 0..40_u16), 1..tries(400, 20) as usize), two_regions in any::<bool>()) {
            let regions = if two_regions { Regions { near: 8, far: 64 } } else { Regions::of(16).unwrap() };
            let table = Table::with(regions);
            let mut model = std::collections::HashSet::new();
            let mut kept = HashMap::new();
            for (what, number) in steps {
                let key = key(number);
                match what {
                    3 => if let Ok(vacancy) = table.walk(&key, NO_SLOT).vacancy() {
                        kept.insert(number, vacancy);
                    },
                    4 => if let Some(vacancy) = kept.remove(&number) {
                        match table.insert_at(&key, vacancy) {
                            Ok(_) => prop_assert!(model.insert(number)),
                            Err(InsertError::Exists) => prop_assert!(model.contains(&number)),
                            Err(error) => prop_assert_eq!(error, InsertError::Contended),
                        }
                    },
                    0 | 1 => match table.insert(&key) {
                        Ok(_) => prop_assert!(model.insert(number)),
                        Err(InsertError::Exists) => prop_assert!(model.contains(&number)),
                        Err(error) => prop_assert!(false, "{error:?} with {} in", model.len()),
                    },
                    2 => prop_assert_eq!(table.retire(&key), model.remove(&number)),
                    _ => table.clean(),
                }
                for number in 0..40 {
                    prop_assert_eq!(table.find(&self::key(number)).is_some(), model.contains(&number));
                }
            }
            // All gone, the table is as new after as many cleanings as it takes.
            for number in model {
                prop_assert!(table.retire(&key(number)));
            }
            table.clean();
            table.clean();
            prop_assert!((0..table.size()).all(|index| table.slot(index).tag() == Tag::EMPTY));
        }

        /// Tags hold what they are made of.
        #[test]
        fn tags_round_trip(protocol in any::<u8>(), reply in any::<bool>(), rule in 0..crate::limits::MAX_RULES as u16, opening in any::<bool>()) {
            let direction = if reply { Direction::Reply } else { Direction::Forward };
            let tag = Tag::pending(protocol, direction, rule, opening);
            for state in [SlotState::Pending, SlotState::Live, SlotState::Retired] {
                let tag = tag.in_state(state);
                prop_assert_eq!(
                    (tag.state(), tag.protocol_number(), tag.direction(), tag.rule(), tag.is_opening()),
                    (state, protocol, direction, rule, opening)
                );
                prop_assert_eq!(tag.counter(), Tag::counter_of(rule, direction));
                let key = FlowKey::from_words(7, 9, protocol);
                let tag = tag.with_seen(Seen::from_bits(0xff)).0;
                let slot = Slot::default();
                slot.addresses.set(key.addresses());
                slot.ports.set(key.ports());
                slot.tag.set(tag);
                prop_assert_eq!(slot.is_flow(&key), state == SlotState::Live);
                prop_assert!(!slot.is_flow(&FlowKey::from_words(7, 9, protocol ^ 0x80)));
            }
        }
    }

    /// Threads insert the same keys at the same time, all in one chain: each key is live once at
    /// most, and every success is there in the end.
    #[test]
    fn no_key_is_live_twice() {
        const THREADS: usize = 4;
        const KEYS: u16 = 24;
        for round in 0..tries(500, 2) {
            // Every chain starts in the same few slots.
            let far = if round % 2 == 0 { 0 } else { 4 };
            let table = Table::with(Regions { near: 4, far });
            let barrier = Barrier::new(THREADS);
            let wins: usize = thread::scope(|scope| {
                let threads: Vec<_> = (0..THREADS)
                    .map(|_| {
                        scope.spawn(|| {
                            barrier.wait();
                            (0..KEYS).filter(|number| table.insert(&key(*number)).is_ok()).count()
                        })
                    })
                    .collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            let live = table.live();
            assert!(live.values().all(|count| *count == 1), "{live:?}");
            assert_eq!(live.len(), wins);
            for key in live.keys() {
                assert!(table.find(key).is_some());
            }
        }
    }

    /// A vacancy that was found long ago may be behind the end of its chain, or on another key's.
    #[test]
    fn a_vacancy_that_is_none_any_more_is_refused() {
        // Every chain starts in the first slot.
        let table = Table::with(Regions { near: 2, far: 0 });
        table.insert(&key(1)).expect("room");
        let vacancy = table.walk(&key(2), NO_SLOT).vacancy().expect("room");
        assert!(table.retire(&key(1)));
        table.clean();
        table.clean();
        assert_eq!(table.insert_at(&key(2), vacancy), Err(InsertError::Contended));
        let foreign = Vacancy { index: 100, tag: Tag::EMPTY };
        assert_eq!(table.insert_at(&key(2), foreign), Err(InsertError::Contended));
        let index = table.insert(&key(2)).expect("room");
        assert_eq!(table.find(&key(2)), Some(index));
    }

    fn fill(table: &Table, flows: u32) -> Vec<u32> {
        let key = |number: u32| {
            let [_, b, c, d] = number.to_be_bytes();
            let (client, here) = (Ipv4([10, 0, b, 1]), Ipv4([10, 0, 2, 68]));
            FlowKey::new(Protocol::Tcp, client, Port([c, d]), here, Port::new(443))
        };
        for number in 0..flows {
            table.insert(&key(number)).expect("room");
        }
        (0..flows).map(|number| table.distance(&key(number))).collect()
    }

    /// At the load of a full table, chains are nowhere near their limit, even for keys in a row.
    #[test]
    #[cfg_attr(miri, ignore = "a hundred thousand flows")]
    fn a_full_table_has_short_chains() {
        for sessions in [1 << 15, 1 << 17] {
            let distances = fill(&Table::new(sessions), 2 * sessions);
            let longest = distances.iter().max().expect("flows");
            assert!(*longest < CHAIN / 2, "the longest chain has {longest} slots");
            // Knuth: an average successful search at half load looks at 1.5 slots.
            let average = distances.iter().copied().map(f64::from).sum::<f64>() / distances.len() as f64;
            assert!(average < 1.0, "{average} slots beyond the first on average");
        }
    }

    /// Forty thousand sessions, and hardly one of them is anywhere else.
    #[test]
    #[cfg_attr(miri, ignore = "a hundred thousand flows")]
    fn few_sessions_stay_near() {
        const FLOWS: u32 = 80_000;
        let table = Table::new(1 << 18);
        let distances = fill(&table, FLOWS);
        let far = (table.regions.near + CHAIN..table.regions.slots())
            .filter(|slot| table.slot(*slot).tag() != Tag::EMPTY);
        let far = far.count();
        assert!(far < FLOWS as usize / 100, "{far} are far");
        assert!(distances.iter().all(|distance| *distance < REACH), "the fast path finds all of them");
    }

    #[test]
    fn regions_fit_their_slots() {
        for sessions in [1, 1024, 1 << 15, (1 << 15) + 1, 1 << 20, 1 << 24] {
            let regions = Regions::of(sessions).expect("not too many");
            assert_eq!((Regions::of_slots(regions.slots()), regions.sessions()), (regions, sessions));
            for hash in [0, 1 << 31, u32::MAX] {
                let [first, second] = regions.homes(hash);
                assert!(first + CHAIN <= regions.slots(), "{sessions} sessions, {hash:#x}");
                assert!(second == NO_SLOT || second + CHAIN <= regions.slots());
                assert!(first.abs_diff(second) >= CHAIN, "chains of two regions never meet");
            }
        }
        assert_eq!(Regions::of(u32::MAX / 4), None);
    }

    /// A packet that has found its flow just before the sweep retires it comes too late to end the
    /// opening: the sweep has.
    #[test]
    fn an_opening_ends_once() {
        let key = FlowKey::new(
            Protocol::Udp,
            Ipv4([10, 0, 0, 1]),
            Port::new(5000),
            Ipv4([192, 0, 2, 1]),
            Port::new(53),
        );
        let slot = Slot::default();
        let tag = Tag::pending(key.protocol_number(), Direction::Forward, 7, true);
        assert!(slot.claim(Tag::EMPTY));
        slot.write(&key, tag, &entry(&key));
        slot.publish(tag);
        assert!(slot.retire(&key, Ticks(9)).expect("it was live").is_opening(), "counted by who retires");
        assert!(!slot.end_opening(), "and not once more");
        assert_eq!(slot.tag().state(), SlotState::Retired);
    }

    fn live(key: &FlowKey) -> (Slot, Tag) {
        let slot = Slot::default();
        let tag = Tag::pending(key.protocol_number(), Direction::Forward, 7, false).with_seen(Seen::SYN);
        slot.write(key, tag, &entry(key));
        slot.publish(tag);
        let tag = slot.tag();
        (slot, tag)
    }

    /// Whoever changes the tag first has the session, and whoever comes later does not.
    #[test]
    fn a_session_that_is_over_is_taken_over_once() {
        let key = key(8);
        let (slot, seen) = live(&key);
        slot.entry.count(100);
        assert!(slot.start_over(seen, 9, Ticks(50)) && !slot.start_over(seen, 9, Ticks(60)));
        assert!(!slot.retire_from(seen, Ticks(60)), "it is another one by now");
        let tag = slot.tag();
        assert!(slot.is_flow(&key) && tag.is_opening() && tag.rule() == 9);
        assert_eq!((slot.entry.packets(), slot.entry.opened()), (0, Ticks(50)));

        let (slot, seen) = live(&key);
        assert!(slot.retire_from(seen, Ticks(50)) && slot.retire(&key, Ticks(60)).is_none());
        assert!(!slot.start_over(seen, 9, Ticks(60)) && !slot.try_retire(&key, Ticks(60)));
        assert!(!slot.is_out_of_quarantine(Ticks(51)) && slot.is_out_of_quarantine(Ticks(50 + QUARANTINE)));
    }

    /// No packet finds it, and nobody gets it, until the sweep lets go.
    #[test]
    fn a_held_key_is_nobodys() {
        let table = Table::new(1 << 10);
        let key = key(8);
        let index = table.insert(&key).expect("room");
        assert!(table.slot(index).hold(&key) && !table.slot(index).hold(&key));
        assert_eq!(table.find(&key), None);
        assert_eq!(table.insert(&key), Err(InsertError::Exists));
        let held = table.slot(index).tag();
        assert_eq!(held.state(), SlotState::Held);
        assert!(
            table.slot(index).release_key(held, Ticks(9)) && !table.slot(index).release_key(held, Ticks(9))
        );
        table.insert(&key).expect("it is free");
    }

    #[test]
    fn few_keys_are_held() {
        let occupancy = Occupancy { capacity: AtomicU32::new(16), ..Occupancy::default() };
        assert!(occupancy.hold() && occupancy.hold() && !occupancy.hold());
        occupancy.set_held(1);
        assert!(occupancy.hold() && !occupancy.hold());
    }

    #[test]
    fn occupancy_is_exact() {
        let occupancy = Occupancy { capacity: AtomicU32::new(3), ..Occupancy::default() };
        assert!(occupancy.enter() && occupancy.enter() && occupancy.enter());
        assert!(!occupancy.enter());
        occupancy.leave();
        assert!(occupancy.enter() && !occupancy.enter());
    }
}
