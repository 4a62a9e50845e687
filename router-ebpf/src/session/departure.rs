//! How a packet leaves that is as it was received, see [`router_common::policy::disposition`].

use router_common::{
    entry::NextHop,
    maps::route::Query,
    policy::disposition::{self, Circumstances, Departure, Disposition},
    reason::Reason,
};

use crate::{
    kernel::{next_hop, punt},
    maps::{flows, rules},
    session::answer_request,
    work::{Exit, Work},
};

impl Circumstances for Work {
    #[inline(always)]
    fn daemon_is_there(&self) -> bool {
        self.settings.daemon_is_there(flows::now())
    }

    #[inline(always)]
    fn answers_unreachable(&self) -> bool {
        rules::rule_set(self.settings.version()).is_some_and(|rule_set| rule_set.reject_unreachable != 0)
    }
}

/// Asks the kernel where a packet of a session leaves, and notes that a session has that next hop.
///
/// # Errors
/// Returns the reason why it cannot leave, see [`next_hop::resolve`].
#[inline(always)]
pub(crate) fn find_next_hop(work: &Work, query: &Query) -> Result<NextHop, Reason> {
    let next_hop = next_hop::resolve(work, query)?;
    next_hop::note_use();
    Ok(next_hop)
}

/// Decides how a packet leaves, whose IP packet has this length and which has this next hop: by
/// that, for which the caller has it split if it is too big; or its sender is told.
///
/// # Errors
/// Returns how the packet ends if it does not leave.
#[inline(always)]
pub(crate) fn dispose(
    work: &Work,
    ip_length: u16,
    next_hop: NextHop,
    packet: &Departure,
) -> Result<NextHop, Exit> {
    match disposition::dispose(Ok(next_hop.mtu), packet, work) {
        Disposition::Transmit | Disposition::Split => Ok(next_hop),
        disposition @ (Disposition::Wait | Disposition::Answer(_) | Disposition::Drop(_)) => {
            Err(end(work, ip_length, disposition, next_hop.mtu))
        }
    }
}

/// Finds the next hop of a packet, see [`find_next_hop`], and decides how it leaves. One that cannot
/// leave now waits for its neighbour with the daemon, or its sender is told.
///
/// In one, since of a result that is kept the compiler would move also what it does not have, and
/// the verifier refuse that.
///
/// # Errors
/// Returns how the packet ends if it does not leave.
#[inline(always)]
pub(crate) fn find_and_dispose(
    work: &Work,
    ip_length: u16,
    query: &Query,
    packet: &Departure,
) -> Result<NextHop, Exit> {
    match find_next_hop(work, query) {
        Ok(next_hop) => dispose(work, ip_length, next_hop, packet),
        Err(reason) => Err(end_without_next_hop(work, ip_length, reason, packet)),
    }
}

/// Ends a packet that has no next hop, for this reason.
#[inline(always)]
pub(crate) fn end_without_next_hop(work: &Work, ip_length: u16, reason: Reason, packet: &Departure) -> Exit {
    end(work, ip_length, disposition::dispose(Err(reason), packet, work), 0)
}

/// Ends a packet, which is as it was received, that cannot be forwarded for this reason: its sender
/// is told, if the reason is one to be told of and the configuration says so.
#[inline(always)]
pub(crate) fn refuse(work: &Work, reason: Reason) -> Exit {
    end(work, 0, disposition::refuse(reason, work), 0)
}

/// Ends a packet that does not leave, as was decided.
#[inline(always)]
fn end(work: &Work, ip_length: u16, disposition: Disposition, mtu: u16) -> Exit {
    match disposition {
        Disposition::Wait => punt::wait(work, ip_length).into(),
        Disposition::Answer(reason) => answer_request::request(reason, mtu),
        Disposition::Drop(reason) => reason.into(),
        // Only with a next hop, and then it leaves.
        Disposition::Transmit | Disposition::Split => Reason::Internal.into(),
    }
}
