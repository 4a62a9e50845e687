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

mod insert;
#[cfg(all(test, model))]
mod models;
mod occupancy;
mod regions;
mod search;
mod slot;
mod tag;
#[cfg(all(test, not(model)))]
mod tests;

pub use occupancy::Occupancy;
pub use regions::{
    BUCKET, CHAIN, HashSeeds, NEAR_HOMES, NO_SLOT, REACH, Regions, SLOTS_PER_SESSION, source_hash,
};
pub use search::{InsertError, Search, Vacancy};
pub use slot::{Bucket, QUARANTINE, SETTLED, Slot};
pub use tag::{SlotState, Tag};
