//! The slow path: where packets go that the fast path does not forward.

use router_common::{Stage, packet, reason::Reason};

use crate::{Exit, Outcome, Work, flows, known};

/// Forwards a packet that the fast path did not, or finds whose it is.
#[inline(always)]
pub(crate) fn forward(work: &mut Work) -> Outcome {
    let packet = match packet::parse(&work.frame) {
        Ok(packet) => packet,
        Err(Reason::IcmpOther) => return Err(Exit::To(Stage::Related)),
        Err(Reason::Fragment) => return Err(Exit::To(Stage::Fragment)),
        Err(reason) => return Err(reason.into()),
    };
    match flows::find(&packet.key, work.settings) {
        Some(slot) => known::forward(work, &packet, slot),
        None => Err(Exit::To(Stage::Open)),
    }
}
