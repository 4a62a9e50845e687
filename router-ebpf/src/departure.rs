//! Where packets leave that are as they were received: by a next hop, or else they wait for it, or
//! their sender is told.

use router_common::{entry::NextHop, maps::route::Query, reason::Reason};

use crate::{Exit, Work, answer::unreachable, next_hop, punt};

/// Asks the kernel where a packet leaves, see [`next_hop::resolve`]. One that cannot leave now
/// waits for its neighbour with the daemon, or its sender is told.
///
/// # Errors
/// How the packet ends that cannot leave now.
#[inline(always)]
pub(crate) fn find_next_hop(work: &Work, ip_length: u16, query: &Query) -> Result<NextHop, Exit> {
    match next_hop::resolve(work, query) {
        Ok(next_hop) => {
            next_hop::note_use();
            Ok(next_hop)
        }
        Err(Reason::Resolving) => Err(punt::wait(work, ip_length).into()),
        Err(reason) => Err(unreachable(work, reason)),
    }
}
