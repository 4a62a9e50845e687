//! The program `slow`: packets that the fast path does not forward.

use router_common::{maps::stages::Stage, packet, policy::martian::is_martian, reason::Reason};

use crate::{
    maps::addresses,
    session::existing,
    work::{Exit, Outcome, Work},
};

/// Forwards a packet of a session, and classifies all others.
#[inline(always)]
pub(crate) fn run(work: &mut Work) -> Outcome {
    if packet::is_not_ipv4(&work.frame) {
        return Err(Exit::To(Stage::Ethernet));
    }
    drop_martians(work)?;
    if !is_to_this_machine(work)? {
        // The kernel accepts some broadcasts and multicasts, so they must not bypass the local
        // policy.
        return Err(Exit::To(Stage::Local));
    }
    let packet = match packet::parse(&work.frame) {
        Ok(packet) => packet,
        Err(Reason::IcmpOther) => return Err(Exit::To(Stage::IcmpError)),
        Err(Reason::Fragment) => return Err(Exit::To(Stage::Fragment)),
        Err(Reason::BadChecksum) => return Err(Reason::BadChecksum.into()),
        Err(_) => return Err(Exit::To(Stage::Local)),
    };
    let slot = existing::find(work, &packet)?;
    existing::forward(work, &packet, slot)
}

/// Drops martians. The fast path need not look: it only forwards packets of sessions, and this
/// check precedes the opening of any session.
#[inline(always)]
fn drop_martians(work: &Work) -> Result<(), Reason> {
    let (source, destination) = packet::addresses(&work.frame).ok_or(Reason::Truncated)?;
    if is_martian(source, destination, addresses::is_local) { Err(Reason::Martian) } else { Ok(()) }
}

/// Returns `true` if a frame is addressed to this machine alone, and not to a group or to all.
///
/// # Errors
/// Returns an error if the frame is addressed to another machine.
#[inline(always)]
fn is_to_this_machine(work: &Work) -> Result<bool, Reason> {
    let destination = packet::destination_mac(&work.frame).ok_or(Reason::Truncated)?;
    let own = work.settings.mac(work.ingress);
    if !own.is_set() || destination == own {
        Ok(true)
    } else if !destination.is_group() {
        Err(Reason::OtherHost)
    } else {
        Ok(false)
    }
}
