//! Requests to the stage `answer`, which tells the sender of a packet why the packet is not
//! forwarded.

use core::cell::Cell;

use aya_ebpf::macros::map;
use router_common::{maps::stages::Stage, reason::Reason};

use crate::{maps::scratch::Scratch, work::Exit};

/// A request for an answer.
pub(crate) struct AnswerRequest {
    /// The number of the [`Reason`] that the packet is dropped for if it is not answered.
    pub(crate) silent: Cell<u32>,
    /// The next hop's MTU, for [`Reason::TooBig`].
    pub(crate) mtu: Cell<u32>,
}

/// Per-CPU scratch: written before the tail call of the stage `answer`, and read by that.
#[map]
// SAFETY: numbers.
pub(crate) static ANSWER_REQUEST: Scratch<AnswerRequest> = unsafe { Scratch::new() };

/// Requests an answer to a packet whose time to live has ended here.
#[inline(always)]
pub(crate) fn time_exceeded() -> Exit {
    request(Reason::TtlExpired, 0)
}

/// Requests an answer to a packet that cannot open a session, since no SNAT port is free.
#[inline(always)]
pub(crate) fn no_port() -> Exit {
    request(Reason::PortsExhausted, 0)
}

/// Requests an answer to the packet, which must be as it was received. The stage `answer` decides
/// how it ends.
#[inline(always)]
pub(crate) fn request(silent: Reason, mtu: u16) -> Exit {
    let Some(request) = ANSWER_REQUEST.get() else { return Reason::Internal.into() };
    request.silent.set(silent as u32);
    request.mtu.set(u32::from(mtu));
    Exit::To(Stage::Answer)
}
