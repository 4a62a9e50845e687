//! The decisions of a NAT about a packet: pure functions, which get the facts that they need
//! through small traits.
//!
//! The programs implement the traits by maps and by what they ask of the kernel, tests by plain
//! values. So a decision is tested on the host, one case at a time, and is the same wherever it is
//! made.
//!
//! A packet that comes in is not a martian ([`martian`]). If it has no session, a rule lets it open
//! one ([`matching`]), or this machine's own stack gets it ([`admission`]). How it leaves is
//! decided last ([`disposition`]).

pub mod admission;
pub mod disposition;
pub mod lookup;
pub mod martian;
pub mod matching;

pub use lookup::Lookup;
