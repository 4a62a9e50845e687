//! A session's state and time: what its two flows have shown.
//!
//! Each direction's entry records what that direction has done, so the data plane writes only the
//! entry that it looked up. The session's state is a pure function of the two records, computed by
//! whoever reads both: the sweeper that expires sessions, and the command line.
//!
//! # Forged segments
//!
//! Anybody who knows a connection's addresses and ports can send segments in the name of either
//! end, and guess numbers. So the state follows only segments whose numbers fit what both ends have
//! shown before ([`Track::fits`]), as connection tracking in the kernel has it (`tcp_in_window`,
//! net/netfilter/nf_conntrack_proto_tcp.c). Every segment passes on, genuine or not: its
//! receiver judges it better. Where a session counts as over that is not, its ends show it by what
//! they send next, and the session is what it was before.
//!
//! Two ends may begin another connection of the same tuple when both have forgotten the one
//! before, and nobody has seen that end: a Private Link Service gives its ports to others after
//! five idle minutes. None of its segments fits. An end that still had the old connection would
//! answer each of them with a segment that does (RFC 9293 3.10.7.4, RFC 5961 4.2). So the new one
//! is followed once both ends have sent segments that do not fit in [`RESYNCHRONISES_AFTER`] ticks
//! each, and neither one that does. That is no proof: segments that no end takes for its own (with
//! a wrong checksum, say) are answered by nobody. So the numbers serve to forward, by the fast
//! path, and nothing that is sent with them ends the session.
//!
//! The fast path sees one flow's entry. What it takes over without a look at the other
//! ([`End::continues`]) is what goes on from where this very end was last: both numbers of a segment
//! have to, which is one guess in 2^27 and more.

mod seen;
mod segment;
mod state;
#[cfg(test)]
mod tests;
mod track;

pub use seen::Seen;
pub use segment::{End, Segment};
pub use state::{Connection, State};
pub use track::{Moves, RESYNCHRONISES_AFTER, Step, Track, Window};
