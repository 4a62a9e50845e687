//! The XDP programs: entry points, and the one place where an outcome becomes a verdict and a counter.
//!
//! What is decided about a packet is in `router-common`; what is here gets bytes, looks things up and writes them back.
//!
//! Three programs run one after the other. `pls_router` is attached and stays attached: it only jumps to slot 0 of `ROOT`, so
//! that a new version of the rest takes over by one write to that slot, without the NIC noticing (MANA re-creates its
//! queues whenever the attached program changes). `forward` handles packets of known sessions. Whatever else there is to
//! do is `slow`'s.
#![no_std]
#![no_main]

mod established;
mod flows;
mod frame;
mod next_hop;
mod open;
mod punt;
mod rules;
mod settings;
mod stats;

use aya_ebpf::{
    bindings::xdp_action,
    macros::{map, xdp},
    maps::{DevMap, ProgramArray},
    programs::XdpContext,
};
use router_common::{
    MAX_INTERFACES,
    reason::{Action, Reason},
    stats::CpuStats,
};

use crate::frame::XdpFrame;

/// Slot 0: the `forward` program in force. Written by the daemon. The attached program keeps this map for good.
#[map]
static ROOT: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Slot 0: the `slow` program that belongs to the `forward` program beside it. Written by the daemon.
#[map]
static STAGES: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// The router's interfaces by slot. Written by the daemon.
#[map]
static EGRESS: DevMap = DevMap::with_max_entries(MAX_INTERFACES as u32, 0);

/// What is to become of a packet: sent, or left for a reason whose [`Action`] says how.
type Outcome = Result<Transmit, Reason>;

/// A translated packet that is ready to leave.
struct Transmit {
    /// `Forwarded` or `Opened`.
    reason: Reason,
    /// The egress interface's slot.
    slot: u32,
}

/// The program that is attached to the interfaces.
#[xdp]
fn pls_router(ctx: XdpContext) -> u32 {
    // SAFETY: the array holds XDP programs only; the kernel checks that when one is put in.
    unsafe { ROOT.tail_call(&ctx, 0) };
    // Only without a program in the slot.
    match stats::block() {
        Some(stats) => finish(&XdpFrame::new(ctx), stats, 0, &Err(Reason::NotConfigured)),
        None => xdp_action::XDP_PASS,
    }
}

/// Packets of known sessions.
#[xdp]
fn forward(ctx: XdpContext) -> u32 {
    let (Some(stats), Some(settings)) = (stats::block(), settings::get()) else {
        return xdp_action::XDP_ABORTED;
    };
    let mut frame = XdpFrame::new(ctx);
    let ingress = settings.ingress_slot(frame.ingress_index());
    stats::received(stats, ingress, &frame);
    match established::forward(&mut frame, settings, stats) {
        Some(outcome) => finish(&frame, stats, ingress, &outcome),
        None => {
            // SAFETY: as above.
            unsafe { STAGES.tail_call(frame.context(), 0) };
            finish(&frame, stats, ingress, &Err(Reason::StageMissing))
        }
    }
}

/// Everything else: packets that may open a session, and packets of sessions that need more than a rewrite.
#[xdp]
fn slow(ctx: XdpContext) -> u32 {
    let (Some(stats), Some(settings)) = (stats::block(), settings::get()) else {
        return xdp_action::XDP_ABORTED;
    };
    let mut frame = XdpFrame::new(ctx);
    let ingress = settings.ingress_slot(frame.ingress_index());
    let outcome = open::forward(&mut frame, settings, stats);
    finish(&frame, stats, ingress, &outcome)
}

/// Turns an outcome into the verdict, and counts it.
#[inline(always)]
fn finish(frame: &XdpFrame, stats: &mut CpuStats, ingress: u32, outcome: &Outcome) -> u32 {
    match *outcome {
        Ok(Transmit { reason, slot }) if slot == ingress => {
            stats::transmitted(stats, slot, reason, frame);
            xdp_action::XDP_TX
        }
        Ok(Transmit { reason, slot }) => match EGRESS.redirect(slot, 0) {
            Ok(verdict) => {
                stats::transmitted(stats, slot, reason, frame);
                verdict
            }
            Err(_) => left(frame, stats, Reason::RedirectFailed),
        },
        Err(reason) => left(frame, stats, reason),
    }
}

#[inline(always)]
fn left(frame: &XdpFrame, stats: &mut CpuStats, reason: Reason) -> u32 {
    stats::left(stats, reason, frame);
    match reason.action() {
        Action::Pass => xdp_action::XDP_PASS,
        // The daemon has a copy of a punted packet. A packet is not left for a reason to forward it.
        Action::Drop | Action::Punt | Action::Forward => xdp_action::XDP_DROP,
    }
}

/// Never runs: nothing here panics, and the verifier would not load what could loop for ever.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
