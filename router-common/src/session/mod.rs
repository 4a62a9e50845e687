//! A session's TCP state: what its two flows have shown.
//!
//! The entry of each direction records what that direction has done, so the data plane writes only
//! the entry that it looked up. The session's state is a pure function of the two records. The
//! sweep that expires sessions and the command line compute it.
//!
//! # Forged segments
//!
//! Anybody who knows a connection's addresses and ports can send segments in the name of either
//! end, and guess numbers. So the state follows only segments whose numbers fit what both ends have
//! shown before ([`Track::fits`]), as the kernel's connection tracking has it (`tcp_in_window`,
//! net/netfilter/nf_conntrack_proto_tcp.c). Every segment passes on, genuine or not: its receiver
//! is the better judge. If the state says that a session is over and it is not, the next segments
//! of its ends show that, and the session is what it was before.
//!
//! Two ends may begin another connection of the same tuple when both have forgotten the previous
//! one and the router has not seen it end: a Private Link Service reuses its ports after five idle
//! minutes. None of the new segments fits. An end that still had the old connection would answer
//! each of them with a segment that does (RFC 9293 3.10.7.4, RFC 5961 4.2). So the router follows
//! the new connection once both ends have sent segments that do not fit in [`RESYNCHRONISES_AFTER`]
//! ticks each, and neither end one that does. That is no proof: neither end answers forged segments
//! that it discards, for a wrong checksum for example. So the new numbers serve to forward, by the
//! fast path, and no segment with these numbers ends the session.
//!
//! The fast path sees one flow's entry. Without a look at the other one, it follows only a segment
//! that continues where its sender was last ([`End::continues`]). Both numbers of the segment have
//! to, which is one guess in 2^27 and more.

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
