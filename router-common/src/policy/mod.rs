//! What a NAT decides about a packet: pure functions, which ask for what they need to know by small
//! traits.
//!
//! The programs implement the traits by maps and by what they ask of the kernel, tests by plain
//! values. So a decision is tested on the host, one case at a time, and is the same wherever it is
//! made.

pub mod disposition;

pub use disposition::dispose;
