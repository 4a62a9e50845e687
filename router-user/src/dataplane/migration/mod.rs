//! Sessions move to another flow table: one of another layout, or of another size.
//!
//! The new table is beside the old one, and the programs that use it are loaded. Packets reach the
//! old programs, until one write to the slot of `ROOT` has them reach the new ones.
//!
//! 1. *Copy*, in passes, while the old programs forward. Each pass takes what is new since the last
//!    one, so passes become short.
//! 2. *Pause* opening in the old table: its capacity becomes 0. Its programs then drop the packets
//!    that would open a session, and answer none of them, so that clients try again. All others go
//!    on. One more pass then takes what is left.
//! 3. *Swap*: the write to `ROOT`. Everything that can fail is before it.
//! 4. *Catch up*, when no old program is running any more: packets since the copy, their TCP
//!    numbers and flags, sessions that have ended, and the few that were opened in spite of the
//!    pause (an ended session that moves to another target).
//!
//! No sweep walks through either table meanwhile. Next hops are not taken along: each session's
//! next packet asks for its own.

mod description;
mod source;
mod transfer;

/// Returns `true` if sessions can be taken out of a table of this layout.
pub fn knows_layout(layout: u32) -> bool {
    description::Description::of(layout).is_some()
}

pub use self::transfer::Moved;
pub(super) use self::{source::Source, transfer::Transfer};
