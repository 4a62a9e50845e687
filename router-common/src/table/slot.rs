//! Slots: a flow's key, tag and entry in one cache line, and how they pass from state to state.

use core::mem::{align_of, offset_of, size_of};

use super::{
    regions::BUCKET,
    tag::{SlotState, Tag},
};
use crate::{
    entry::{FlowEntry, FlowRecord},
    session::Seen,
    shared::{AtomicU32, AtomicU64},
    time::Ticks,
    tuple::{Direction, FlowKey},
};

/// The time in ticks that a slot is neither found nor used after it was retired, and again after it
/// became free.
pub const QUARANTINE: u32 = 2;

/// The number of attempts to change a flow's tag while packets of the session note TCP flags in it,
/// each of which takes one instruction.
const ATTEMPTS: u32 = 4;

/// An ended session that is younger than this, in ticks, starts over at its target, if the rules
/// still have that target. A client that opens and closes connections of one tuple in a tight loop
/// would otherwise free slots faster than they come out of quarantine.
pub const SETTLED: u32 = 2 * QUARANTINE;

/// A slot: a flow's key and entry in one cache line.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Slot {
    /// The key, in two words that are compared at once: [`FlowKey::addresses`]; and
    /// [`FlowKey::ports`] with the tag above them, whose lowest bits are the protocol and the
    /// state. The CPU that has claimed the slot writes them before the tag says that they are
    /// there.
    pub(super) addresses: AtomicU64,
    pub(super) ports: AtomicU32,
    pub(super) tag: AtomicU32,
    /// The flow's entry.
    pub entry: FlowEntry,
}

const _: () = assert!(cfg!(model) || size_of::<Slot>() == 64);
/// As [`Slot::difference`] takes it.
const _: () = assert!(
    cfg!(model) || (offset_of!(Slot, ports) == 8 && offset_of!(Slot, tag) == 12 && align_of::<Slot>() == 8)
);

impl Slot {
    /// Returns the tag as it is now.
    #[inline(always)]
    pub fn tag(&self) -> Tag {
        Tag(self.tag.load())
    }

    /// Changes the tag if it still is `from`. Returns `true` if it was.
    #[inline(always)]
    pub fn change_tag(&self, from: Tag, to: Tag) -> bool {
        self.tag.change(from.0, to.0)
    }

    /// Ends the opening phase of the session. Returns `true` if this call did it.
    #[inline(always)]
    pub fn end_opening(&self) -> bool {
        Tag(self.tag.and(!Tag::OPENING)).is_opening()
    }

    /// Has the session count as opening. Returns `true` if this call did it.
    pub fn begin_opening(&self) -> bool {
        !Tag(self.tag.or(Tag::OPENING)).is_opening()
    }

    /// Changes the TCP flags that the flow has shown from `before` to `after`. Only the difference
    /// is written: another CPU may note flags of the session's other direction at the same moment,
    /// and those stay.
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

    /// Returns the key. It is valid only while the tag is pending or live.
    #[inline(always)]
    pub fn key(&self) -> FlowKey {
        FlowKey::from_words(self.addresses.get(), self.ports.get(), self.tag.get() as u8)
    }

    /// Reads the flow in the slot, if the slot is in this state and stays in it meanwhile.
    pub fn read(&self, state: SlotState) -> Option<(FlowKey, Tag, FlowRecord)> {
        let tag = self.tag();
        let (key, entry) = (self.key(), self.entry.read());
        (tag.state() == state && self.tag().state() == state).then_some((key, tag, entry))
    }

    /// Returns 0 if this is the live flow of this key, and any other number if not. It has no
    /// branch.
    #[inline(always)]
    fn difference(&self, key: &FlowKey) -> u64 {
        const LIVE: u64 = (SlotState::Live as u64) << (u32::BITS + Tag::STATE_SHIFT);
        // Bits above the protocol and the state do not matter.
        let service =
            (self.ports_and_tag() ^ (key.ports_and_protocol() | LIVE)) << (u32::BITS - Tag::MATCH_BITS);
        self.addresses.get() ^ key.addresses() | service
    }

    /// Returns the ports and above them the tag, read at one moment.
    #[inline(always)]
    pub(super) fn ports_and_tag(&self) -> u64 {
        #[cfg(target_arch = "bpf")]
        {
            // SAFETY: ports and tag are next to each other and together aligned for this type (see
            // the assertions after the structure); all of the slot is in cells. Volatile, since the
            // tag may change; an aligned number is loaded at once.
            unsafe { core::ptr::from_ref(self).cast::<u64>().add(1).read_volatile() }
        }
        #[cfg(not(target_arch = "bpf"))]
        {
            // The tag first, since a writer writes it last.
            let tag = self.tag();
            u64::from(tag.0) << u32::BITS | u64::from(self.ports.get())
        }
    }

    /// Returns `true` if this is the live flow of this key.
    #[inline(always)]
    pub fn is_flow(&self, key: &FlowKey) -> bool {
        self.difference(key) == 0
    }

    /// Claims the slot. Returns `false` if its tag is not `seen` any more.
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
        // A swap and not a store: it has to be visible before the writer reads anything else.
        self.tag.swap(tag.0);
    }

    /// Makes the caller's pending flow live.
    #[inline(always)]
    pub fn publish(&self, tag: Tag) {
        self.tag.swap(tag.in_state(SlotState::Live).0);
    }

    /// Takes back the caller's own flow, live or not.
    #[inline(always)]
    pub fn withdraw(&self, tag: Tag, now: Ticks) {
        self.entry.set_last_seen(now);
        self.tag.swap(tag.in_state(SlotState::Retired).0);
    }

    /// Retires a live flow. Returns its tag if this call retired it.
    pub fn retire(&self, key: &FlowKey, now: Ticks) -> Option<Tag> {
        loop {
            let tag = self.tag();
            if !self.is_flow(key) {
                return None;
            }
            self.entry.set_last_seen(now);
            // Only the session's state in the tag may have changed meanwhile.
            if self.change_tag(tag, tag.retired()) {
                return Some(tag);
            }
        }
    }

    /// Retires a live flow whose tag still is `seen`. Returns `true` if this call retired it.
    #[inline(always)]
    pub fn retire_from(&self, seen: Tag, now: Ticks) -> bool {
        // First, or the sweep might take the slot for one that was retired long ago.
        self.entry.set_last_seen(now);
        self.change_tag(seen, seen.retired())
    }

    /// Starts the session over in this slot, the forward flow's, if its tag still is `seen`.
    /// Returns `true` if this call did it. The rewrite stays; counters, times and next hop begin
    /// anew.
    #[inline(always)]
    pub fn start_over(&self, seen: Tag, rule: u16, now: Ticks) -> bool {
        let tag = Tag::pending(seen.protocol_number(), Direction::Forward, rule, true)
            .for_clients_side(seen.is_for_clients_side())
            .with_seen(Seen::SYN);
        let is_first = self.change_tag(seen, tag.in_state(SlotState::Live));
        if is_first {
            self.entry.start_over(now);
        }
        is_first
    }

    /// Starts the reply flow of a session over whose forward flow has started over.
    #[inline(always)]
    pub fn start_reply_over(&self, rule: u16, now: Ticks) {
        self.entry.start_over(now);
        for _ in 0..ATTEMPTS {
            let seen = self.tag();
            let tag = Tag::pending(seen.protocol_number(), Direction::Reply, rule, false);
            // If it is not live, the sweep has removed the session meanwhile.
            if !matches!(seen.state(), SlotState::Live)
                || self.change_tag(seen, tag.in_state(SlotState::Live))
            {
                return;
            }
        }
    }

    /// Takes a live flow of this key away from packets, while its key stays taken. Returns `true`
    /// if this call did it.
    #[inline(always)]
    pub fn hold(&self, key: &FlowKey) -> bool {
        self.leave_live(key, |tag| tag.in_state(SlotState::Held))
    }

    /// Retires a live flow of this key, after a few attempts at most. Returns `true` if this call
    /// retired it.
    #[inline(always)]
    pub fn try_retire(&self, key: &FlowKey, now: Ticks) -> bool {
        if !self.is_flow(key) {
            return false;
        }
        self.entry.set_last_seen(now);
        self.leave_live(key, Tag::retired)
    }

    /// Puts a live flow into another state, after a few attempts at most. Returns `true` if this
    /// call did it.
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

    /// Releases a held key. Only the sweep does.
    pub fn release_key(&self, held: Tag, now: Ticks) -> bool {
        self.entry.set_last_seen(now);
        self.change_tag(held, held.retired())
    }

    /// Returns `true` if a retired or free slot has been in that state for [`QUARANTINE`].
    pub fn is_out_of_quarantine(&self, now: Ticks) -> bool {
        now.0.saturating_sub(self.entry.last_seen().0) >= QUARANTINE
    }

    /// Makes a retired slot free to be claimed. Only the sweep does.
    pub fn free(&self, retired: Tag, now: Ticks) {
        self.entry.set_last_seen(now);
        self.change_tag(retired, Tag::FREE);
    }

    /// Empties a free slot, which then ends the chains that pass it, if the next slot (`next`, if
    /// there is one) is empty. Returns `true` if the slot is empty now. Only the sweep does.
    pub fn empty(&self, next: Option<&Self>) -> bool {
        let chains_end_next = || next.is_none_or(|slot| slot.tag() == Tag::EMPTY);
        if !chains_end_next() || !self.change_tag(Tag::FREE, Tag::EMPTY) {
            return false;
        }
        // A CPU that has put a flow there meanwhile has passed this slot before it was empty, or it
        // sees that the slot is empty and withdraws ([`Search::may_publish`]). So either this call
        // sees the flow, or the flow is withdrawn.
        if chains_end_next() {
            return true;
        }
        self.change_tag(Tag::EMPTY, Tag::FREE);
        false
    }

    /// Returns `true` if the flow's next hop is known, but of another generation.
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
    /// Returns the index of the slot that may be a key's live flow, if one of them is.
    ///
    /// The slot differs from flow to flow and cannot be predicted, and a processor that has guessed
    /// wrong finds out only when the slots have come from memory. So this has no branch.
    #[inline(always)]
    pub fn candidate(&self, key: &FlowKey) -> usize {
        let difference = self.0[0].difference(key);
        // 1 if there is a difference.
        sign(difference | difference.wrapping_neg()) as usize
    }

    /// Returns `true` if the chains that pass this bucket end here: a flow that is in none of their
    /// slots up to here is not in the table.
    #[inline(always)]
    pub fn ends_chains(&self) -> bool {
        self.0.iter().any(|slot| slot.tag() == Tag::EMPTY)
    }
}

/// Returns a number's uppermost bit, by an instruction that the compiler does not look into: it
/// would turn the shift into a branch.
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
