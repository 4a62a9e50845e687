//! A slot's tag: its state, and what is known of its flow, in one atomic word.

use crate::{limits::MAX_RULES, session::Seen, tuple::Direction};

/// A slot's tag: the state of the slot and what is known of its flow, in one word.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tag(pub u32);

/// The states of a slot.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SlotState {
    /// Never used, or cleaned: ends every chain.
    Empty = 0,
    /// Claimed; its key is being written.
    Busy = 1,
    /// Its key is written, but packets do not find it yet.
    Pending = 2,
    /// Holds a flow.
    Live = 3,
    /// In quarantine, after its flow was removed.
    Retired = 4,
    /// May be claimed for another flow.
    Free = 5,
    /// Holds no flow any more, but no other session may have its key yet.
    Held = 6,
}

impl Tag {
    // 31..23 rule, 22 direction, 21 clients' side only, 20 unused, 19..12 seen, 11 opening, 10..8
    // state, 7..0 protocol. The bits that a look-up compares are at one end, next to the ports, and
    // the bits that make up the counter's index at the other.
    const COUNTER_SHIFT: u32 = 22;
    const REPLY: u32 = 1 << Self::COUNTER_SHIFT;
    const RULE_SHIFT: u32 = Self::COUNTER_SHIFT + 1;
    const CLIENTS_SIDE_SHIFT: u32 = if cfg!(feature = "other-layout") { 20 } else { 21 };
    pub(super) const SEEN_SHIFT: u32 = if cfg!(feature = "other-layout") { 11 } else { 12 };
    pub(super) const OPENING: u32 = if cfg!(feature = "other-layout") { 1 << 19 } else { 1 << 11 };
    pub(super) const STATE_SHIFT: u32 = 8;
    const STATE_MASK: u32 = 7 << Self::STATE_SHIFT;
    /// The bits that a look-up compares: protocol and state.
    pub(super) const MATCH_BITS: u32 = 11;

    /// The tag of a slot that was never used.
    pub const EMPTY: Self = Self(0);
    /// The tag of a slot that is being written.
    pub const BUSY: Self = Self((SlotState::Busy as u32) << Self::STATE_SHIFT);
    /// The tag of a slot whose key is held.
    pub(super) const HELD: Self = Self((SlotState::Held as u32) << Self::STATE_SHIFT);
    /// The tag of a slot that may be claimed.
    pub const FREE: Self = Self((SlotState::Free as u32) << Self::STATE_SHIFT);

    /// Returns the tag of a new flow that is not live yet.
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

    /// Returns the tag with the mark that the flow's packets come in by the clients' side only
    /// ([`Side`](crate::maps::settings::Side)), or without it.
    #[inline(always)]
    pub const fn for_clients_side(self, only: bool) -> Self {
        Self(self.0 & !(1 << Self::CLIENTS_SIDE_SHIFT) | (only as u32) << Self::CLIENTS_SIDE_SHIFT)
    }

    /// Returns `true` if the flow's packets come in by the clients' side only.
    #[inline(always)]
    pub const fn is_for_clients_side(self) -> bool {
        self.0 >> Self::CLIENTS_SIDE_SHIFT & 1 != 0
    }

    /// Returns `true` if the flow's packets may come in by the interface of this slot: the second
    /// one faces the firewall.
    #[inline(always)]
    pub const fn may_come_in_by(self, slot: u32) -> bool {
        self.0 >> Self::CLIENTS_SIDE_SHIFT & slot & 1 == 0
    }

    /// Returns the tag with these TCP flags as those that the flow has shown.
    #[inline(always)]
    pub const fn with_seen(self, seen: Seen) -> Self {
        Self(self.0 & !(0xff << Self::SEEN_SHIFT) | (seen.bits() as u32) << Self::SEEN_SHIFT)
    }

    /// Returns the TCP flags that the flow has shown.
    #[inline(always)]
    pub const fn seen(self) -> Seen {
        Seen::from_bits((self.0 >> Self::SEEN_SHIFT) as u8)
    }

    /// Returns the tag in another state.
    #[inline(always)]
    pub const fn in_state(self, state: SlotState) -> Self {
        Self(self.0 & !Self::STATE_MASK | (state as u32) << Self::STATE_SHIFT)
    }

    /// Returns the tag of the same flow once it is retired. It loses the mark "opening": the CPU
    /// that retires the flow takes the session out of the count of half-open ones, and a packet
    /// that found the flow earlier must not do so again.
    #[inline(always)]
    pub(super) const fn retired(self) -> Self {
        Self(self.in_state(SlotState::Retired).0 & !Self::OPENING)
    }

    /// Returns the slot's state.
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

    /// Returns the IP protocol number.
    #[inline(always)]
    pub const fn protocol_number(self) -> u8 {
        self.0 as u8
    }

    /// Returns which of the session's two flows this is.
    #[inline(always)]
    pub const fn direction(self) -> Direction {
        if self.0 & Self::REPLY == 0 { Direction::Forward } else { Direction::Reply }
    }

    /// Returns the number of the rule that opened the session.
    #[inline(always)]
    pub const fn rule(self) -> u16 {
        (self.0 >> Self::RULE_SHIFT) as u16
    }

    /// Returns the index of the counter of the flow's packets for its rule, see
    /// [`counter_of`](Self::counter_of).
    #[inline(always)]
    pub const fn counter(self) -> usize {
        (self.0 >> Self::COUNTER_SHIFT) as usize
    }

    /// Returns the index of the counter of a rule's packets in this direction: the number of the
    /// rule, and below it the direction.
    pub const fn counter_of(rule: u16, direction: Direction) -> usize {
        (rule as usize) << (Self::RULE_SHIFT - Self::COUNTER_SHIFT) | direction as usize
    }

    /// Returns `true` if the session counts as half-open. Only the forward flow's tag has this
    /// mark.
    #[inline(always)]
    pub const fn is_opening(self) -> bool {
        self.0 & Self::OPENING != 0
    }
}

const _: () = assert!(MAX_RULES <= 1 << (u32::BITS - Tag::RULE_SHIFT));
