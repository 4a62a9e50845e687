//! Packets that are no session's and no rule's: this machine's own traffic, or nobody's business.

use router_common::{
    packet,
    policy::admission::{self, Admission},
    reason::Reason,
};

use crate::{
    session::{datagrams, lookup::InForce},
    work::{Outcome, Work},
};

/// Passes a packet to this machine's own stack, or drops it.
#[inline(always)]
pub(crate) fn run(work: &mut Work) -> Outcome {
    let parsed = packet::parse_leading(&work.frame);
    // Keeps it in memory: in registers, the compiler would move what an error does not have, and
    // the verifier refuse that.
    core::hint::black_box(&parsed);
    let in_force = InForce::new(work).ok_or(Reason::NotConfigured)?;
    let reason = match admission::admit(&work.frame, &parsed, &in_force)? {
        Admission::Ends(reason) => reason,
        Admission::AsFirstFragment if datagrams::first_has_passed(work)? => Reason::Fragment,
        Admission::AsFirstFragment => Reason::LocalDenied,
    };
    Err(match &parsed {
        Ok(packet) if packet.is_fragment => datagrams::note_reason(work, packet, reason),
        _ => reason,
    }
    .into())
}
