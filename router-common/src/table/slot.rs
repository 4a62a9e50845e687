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

/// How long a slot is neither found nor used after it was retired, and again after it became free,
/// in ticks.
pub const QUARANTINE: u32 = 2;

/// How often a flow's tag is tried to be changed while packets of the session note in it what they
/// have shown, each for the time of one instruction.
const ATTEMPTS: u32 = 4;

/// A session that is over and younger than this, in ticks, starts over where it leads, if the rules
/// still have that: who opens and ends connections of one tuple in a tight loop would otherwise
/// leave slots behind faster than they come out of quarantine.
pub const SETTLED: u32 = 2 * QUARANTINE;

/// A slot: a flow's key and entry in one cache line.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Slot {
    /// The key, in two words that are compared at once: [`FlowKey::addresses`]; and
    /// [`FlowKey::ports`] with the tag above them, whose lowest bits are the protocol and the
    /// state. Written by whoever has claimed the slot, before the tag says that it is there.
    pub(super) addresses: AtomicU64,
    pub(super) ports: AtomicU32,
    pub(super) tag: AtomicU32,
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
    pub(super) fn ports_and_tag(&self) -> u64 {
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
            .for_clients_side(seen.is_for_clients_side())
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
