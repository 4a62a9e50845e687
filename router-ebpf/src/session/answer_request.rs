//! What the stage `answer` is asked for: to tell the sender of a packet why it is not forwarded.

use core::cell::Cell;

use aya_ebpf::macros::map;
use router_common::{maps::stages::Stage, reason::Reason};

use crate::{maps::scratch::Scratch, work::Exit};

/// What the sender of a packet is to be told.
pub(crate) struct AnswerRequest {
    /// The number of the [`Reason`] that the packet would else be left for.
    pub(crate) silent: Cell<u32>,
    /// The next hop's MTU, for [`Reason::TooBig`].
    pub(crate) mtu: Cell<u32>,
}

/// Written by who asks, read by the program that answers, right behind.
#[map]
// SAFETY: numbers.
pub(crate) static ANSWER_REQUEST: Scratch<AnswerRequest> = unsafe { Scratch::new() };

/// The packet's time to live has ended here: its sender is to know.
#[inline(always)]
pub(crate) fn time_exceeded() -> Exit {
    request(Reason::TtlExpired, 0)
}

/// The packet cannot open a session for want of a port: its sender is to know.
#[inline(always)]
pub(crate) fn rejected() -> Exit {
    request(Reason::PortsExhausted, 0)
}

/// Has the packet answered, which must be as it was received. How it ends is then the answering
/// program's to say.
#[inline(always)]
pub(crate) fn request(silent: Reason, mtu: u16) -> Exit {
    let Some(request) = ANSWER_REQUEST.get() else { return Reason::Internal.into() };
    request.silent.set(silent as u32);
    request.mtu.set(u32::from(mtu));
    Exit::To(Stage::Answer)
}
