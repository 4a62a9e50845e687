//! The departure of a packet that is still as it was received, see
//! [`router_common::policy::disposition`].

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

/// Looks up the next hop of a session's packet, and notes that a session uses it.
///
/// # Errors
/// Returns the reason why there is none, see [`next_hop::resolve`].
#[inline(always)]
pub(crate) fn find_next_hop(work: &Work, query: &Query) -> Result<NextHop, Reason> {
    let next_hop = next_hop::resolve(work, query)?;
    next_hop::note_use();
    Ok(next_hop)
}

/// Decides how a packet with this next hop leaves. Returns the next hop: the caller has the packet
/// split if it is too big.
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

/// Looks up the next hop of a packet, see [`find_next_hop`], and decides how it leaves. A packet
/// that cannot leave now waits for its neighbour with the daemon, or its sender is told.
///
/// One function, since of a result that is kept in between the compiler would also move the fields
/// that it does not have, and the verifier would refuse that.
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

/// Ends a packet without a next hop, for this reason.
#[inline(always)]
pub(crate) fn end_without_next_hop(work: &Work, ip_length: u16, reason: Reason, packet: &Departure) -> Exit {
    end(work, ip_length, disposition::dispose(Err(reason), packet, work), 0)
}

/// Ends a packet, still as it was received, that cannot be forwarded for this reason. Its sender is
/// told if the reason has an answer and the configuration says so.
#[inline(always)]
pub(crate) fn refuse(work: &Work, reason: Reason) -> Exit {
    end(work, 0, disposition::refuse(reason, work), 0)
}

/// Ends a packet that does not leave, as decided.
#[inline(always)]
fn end(work: &Work, ip_length: u16, disposition: Disposition, mtu: u16) -> Exit {
    match disposition {
        Disposition::Wait => punt::wait(work, ip_length).into(),
        Disposition::Answer(reason) => answer_request::request(reason, mtu),
        Disposition::Drop(reason) => reason.into(),
        // Packets that leave do not end here.
        Disposition::Transmit | Disposition::Split => Reason::Internal.into(),
    }
}
