//! The flow table: an array of cache lines, probed linearly, shared without locks.
//!
//! A packet of a known session finds everything about its direction in one cache line, key
//! included, and usually in the first line that it looks at. The table is one BPF array that the
//! daemon maps into its memory, so a sweep is a walk through memory and not one system call for
//! each entry.
//!
//! # The life of a slot
//!
//! ```text
//! EMPTY -claim-> BUSY -key written-> PENDING -no twin-> LIVE -expired-> RETIRED -later-> FREE
//!   ^             ^                     |                \                ^  ^            | |
//!   |             |                     |                 -moved-> HELD --+  |            | |
//!   |             |                     +------------- withdrawn ------------+            | |
//!   |             +------------------------ claim ----------------------------------------+ |
//!   +-------------------------------------- later ------------------------------------------+
//! ```
//!
//! The slot's tag, one atomic word, decides everything:
//!
//! - A slot is *claimed* by a compare-and-exchange, so only one inserter has it.
//! - Two CPUs may insert the same key in two slots. Each makes its own slot `PENDING` first (a full
//!   barrier) and then searches the whole chain. At least one of them sees the other, and a CPU
//!   that sees another one withdraws. So a key is never live twice. Both may withdraw; then the
//!   caller tries again.
//! - A chain ends at the first `EMPTY` slot. An entry is placed in the first slot of its chain that
//!   is not in use, so a slot may become `EMPTY` only if the next one is. If a flow was put into
//!   the next one at that moment, the slot becomes `FREE` again ([`Slot::empty`]).
//! - No search finds a `RETIRED` slot. But a CPU that found it earlier may still be using it, and a
//!   CPU that is inserting may have passed it. So it becomes `FREE`, and a `FREE` slot becomes
//!   `EMPTY`, only after [`QUARANTINE`]: an XDP program runs for microseconds. Only the daemon's
//!   sweep makes these changes.
//! - A flow leaves `LIVE` by a compare-and-exchange, so exactly one of the sweep and the CPUs
//!   removes it, and only that one takes the session out of the counters. The sweep removes expired
//!   sessions. A CPU removes an ended session if its client's next SYN leads to another place
//!   ([`Slot::retire_from`]). If the SYN leads to the same place, the session starts over in its
//!   slots ([`Slot::start_over`]).
//! - No packet finds a `HELD` slot, but its key is taken: it is the reply flow of an ended session
//!   that has moved. Its target may still send for the old connection, so no other session gets the
//!   port until the sweep releases the key.
//! - A free slot that a walk has found ([`Vacancy`]) may be kept while the packet goes from one
//!   program to the next. That is no claim: another CPU may have taken the slot meanwhile, or the
//!   chain may end before it. The claim compares its tag, and the walk after the claim has to pass
//!   it.
//!
//! A keyed hash chooses where probes start ([`HashSeeds`]): without the key, a sender cannot aim at
//! one place.
//!
//! # Near and far regions
//!
//! A random access to hundreds of megabytes misses every cache and the TLB. So a large table begins
//! with a small near region. Flows go there as long as there is room close to where their chain
//! starts, and only then to the far region ([`Regions`]). Every key has one chain in each region. A
//! look-up tries the near one first; an insertion searches both. While there are few sessions,
//! their packets do not touch the far region. In the near region, a chain has only as many slots as
//! the fast path looks at ([`Regions::chain`]), so a chain that has filled up costs little: with
//! many sessions, processors predict that the flow is not there, and fetch from both regions at
//! once.

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
