//! The program `local`: packets that match no session and no rule. They are for this machine
//! itself, or dropped.

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
    // Keeps the result in memory. In registers, the compiler would also move the fields that an
    // error does not have, and the verifier would refuse that.
    core::hint::black_box(&parsed);
    let in_force = InForce::new(work).ok_or(Reason::NotConfigured)?;
    let reason = match admission::admit(&work.frame, &parsed, &in_force)? {
        Admission::Ends(reason) => reason,
        Admission::AsFirstFragment if datagrams::first_fragment_passed(work)? => Reason::Fragment,
        Admission::AsFirstFragment => Reason::LocalDenied,
    };
    Err(match &parsed {
        Ok(packet) if packet.is_fragment => datagrams::note_reason(work, packet, reason),
        _ => reason,
    }
    .into())
}
