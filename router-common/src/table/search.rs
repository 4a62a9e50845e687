//! The walk along a key's chains: for its flow, and for a slot where it may be put.

use core::cell::Cell;

use super::{
    regions::{NO_SLOT, Regions},
    slot::{Bucket, Slot},
    tag::{SlotState, Tag},
};
use crate::tuple::FlowKey;

/// A walk along the two chains of a key. In cells, since several functions of a program use the
/// same scratch.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// The key that is searched for: [`FlowKey::addresses`],
    addresses: Cell<u64>,
    /// and [`FlowKey::ports_and_protocol`].
    service: Cell<u64>,
    /// The first slot of the chain that is walked.
    home: Cell<u32>,
    /// The length of that chain in slots.
    length: Cell<u32>,
    /// The first slot of the next chain, or [`NO_SLOT`].
    next: Cell<u32>,
    /// The length of the next chain in slots.
    next_length: Cell<u32>,
    /// The slot where the key was found, or [`NO_SLOT`].
    pub(super) found: Cell<u32>,
    /// The first slot that may be claimed, if there is one.
    free: Cell<Vacancy>,
    /// The caller's own slot, which is passed over, or [`NO_SLOT`].
    mine: Cell<u32>,
    /// 1 if another CPU was inserting in a slot of the chain.
    pub(super) contended: Cell<u32>,
    /// 1 if the walk has passed the caller's own slot.
    pub(super) met_own: Cell<u32>,
}

/// A slot where a flow may be put, as a walk along its key's chains has found it. It may be kept
/// for a while: the walk after the claim finds out whether the flow may still be put there
/// ([`Search::may_publish`]). Map data: no padding.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Vacancy {
    /// The slot, or [`NO_SLOT`].
    pub index: u32,
    /// The tag that was seen there.
    pub tag: Tag,
}

impl Vacancy {
    /// Not searched for yet.
    pub const UNKNOWN: Self = Self { index: NO_SLOT, tag: Tag::EMPTY };
    /// No vacancy, as the key is held.
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
    /// Returns the first slot of the chain that is walked.
    #[inline(always)]
    pub fn home(&self) -> u32 {
        self.home.get()
    }

    /// Returns the length of that chain in slots.
    #[inline(always)]
    pub fn length(&self) -> u32 {
        self.length.get()
    }

    /// Returns the first slot of the next chain, or [`NO_SLOT`].
    #[inline(always)]
    pub fn next(&self) -> u32 {
        self.next.get()
    }

    /// Returns the slot where the key was found, or [`NO_SLOT`].
    #[inline(always)]
    pub fn found(&self) -> u32 {
        self.found.get()
    }

    /// Starts a walk for `key` along its chains, which start at `homes` in these regions. It passes
    /// over the slot `mine`.
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

    /// Turns to the next chain at the end of one. Returns `false` if the walk is over.
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

    /// Returns the slot to claim, after a walk for the key.
    ///
    /// # Errors
    /// Returns an error if the key was found, or no slot is free.
    #[inline(always)]
    pub fn vacancy(&self) -> Result<Vacancy, InsertError> {
        if self.found.get() != NO_SLOT {
            // A flow that is not live may still be withdrawn.
            return Err(if self.contended.get() == 0 { InsertError::Exists } else { InsertError::Contended });
        }
        if self.free.get().index == NO_SLOT { Err(InsertError::Full) } else { Ok(self.free.get()) }
    }

    /// Checks that a pending flow in the caller's own slot may go live: no other slot has the key,
    /// or may come to have it, and the walk has passed the caller's slot. If it has not, a slot
    /// before that one has become empty, and no search would find the flow.
    ///
    /// # Errors
    /// Returns an error if the flow has to be withdrawn.
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

    /// Looks at one bucket of the chain, whose first slot has this index. Returns `true` if that
    /// ends the walk.
    #[inline(always)]
    pub fn look(&self, first: u32, bucket: &Bucket) -> bool {
        let [one, other] = &bucket.0;
        self.look_at_slot(first, one) || self.look_at_slot(first + 1, other)
    }

    /// Looks at one slot of the chain, as [`look`](Self::look) at both of a bucket.
    #[inline(always)]
    pub fn look_at_slot(&self, index: u32, slot: &Slot) -> bool {
        if index == self.mine.get() {
            self.met_own.set(1);
            return false;
        }
        let ports_and_tag = slot.ports_and_tag();
        let tag = Tag((ports_and_tag >> u32::BITS) as u32);
        match tag.state() {
            SlotState::Pending | SlotState::Live | SlotState::Held => {
                // Most slots hold other keys. Bits above the protocol do not matter.
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

/// The reason why a flow was not inserted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum InsertError {
    /// The key is taken.
    Exists,
    /// The chain is full.
    Full,
    /// No port is free that could make the key.
    NoPort,
    /// Another CPU was at work in the same place at the same moment. The next attempt will likely
    /// succeed.
    Contended,
}
