//! The entry points of all programs.
//!
//! Decisions about packets are in `router-common`; the programs get bytes, look things up and write
//! them back.
//!
//! Programs run one after the other. `pls_router` is attached and stays attached: it only jumps to
//! slot 0 of `ROOT`, so that a new version of the rest takes over by one write to that slot,
//! without the NIC noticing (MANA re-creates its queues whenever the attached program changes).
//! `forward` handles packets of established sessions. Everything else goes to `slow`, which
//! tail-calls further stages for what is rare.
//!
//! - [`work`]: the packet that is being processed, what becomes of it, and its one exit.
//! - [`stages`]: a file for each program, by the program's name.
//! - [`session`]: what stages have in common: how a session's packets are forwarded.
//! - [`maps`]: the maps, each beside the functions that read and write it.
//! - [`kernel`]: what is asked of the kernel, and the packet's bytes.
#![no_std]
#![no_main]

mod kernel;
mod maps;
mod session;
mod stages;
mod work;

use aya_ebpf::{
    bindings::xdp_action,
    macros::{classifier, map, xdp},
    maps::ProgramArray,
    programs::{TcContext, XdpContext},
};
use router_common::{maps::stages::Stage, reason::Reason};

use crate::{
    maps::{settings, stats},
    work::{Exit, Work},
};

/// Slot 0: the `forward` program in force. Written by the daemon. The attached program keeps this
/// map for good.
#[map]
static ROOT: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Defines the program of a stage. A machine that lacks a map aborts packets without a counter,
/// since there is none.
macro_rules! stage {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[xdp]
        fn $name(ctx: XdpContext) -> u32 {
            let Some(mut work) = Work::new(ctx) else { return xdp_action::XDP_ABORTED };
            let outcome = stages::$name::run(&mut work);
            work.finish(&outcome)
        }
    };
}

/// The program that is attached to the interfaces.
#[xdp]
fn pls_router(ctx: XdpContext) -> u32 {
    // SAFETY: the array holds XDP programs only; the kernel checks that when one is put in.
    unsafe { ROOT.tail_call(&ctx, 0) };
    // Only without a program in the slot.
    match Work::new(ctx) {
        Some(work) => work.end(Reason::NotConfigured),
        None => xdp_action::XDP_PASS,
    }
}

/// The fast path: packets of established sessions.
#[xdp]
fn forward(ctx: XdpContext) -> u32 {
    let (Some(stats), Some(settings)) = (stats::block(), settings::get()) else {
        return xdp_action::XDP_ABORTED;
    };
    // First, since it is a call: what is in registers then would have to be kept on the stack.
    let now = stats.now();
    let mut work = Work::with(ctx, stats, settings);
    let egress = stages::forward::run(&mut work, now);
    work.finish_fast_path(egress)
}

/// Takes the place of `forward` in generic mode: the fast path is for packets as they are on a
/// wire, see [`kernel::generic_mode`].
#[xdp]
fn generic(ctx: XdpContext) -> u32 {
    let Some(work) = Work::new(ctx) else { return xdp_action::XDP_ABORTED };
    work.receive();
    work.finish(&Err(Exit::To(Stage::Slow)))
}

stage! {
    /// Packets of sessions that need more than a rewrite; classifies all others.
    slow
}

stage! {
    /// Packets that may open a session: decides by which rule, and where to.
    open
}

stage! {
    /// Inserts the session that `open` has decided on into the table.
    claim
}

stage! {
    /// Packets that match no session and no rule.
    local
}

stage! {
    /// Frames other than untagged IPv4.
    ethernet
}

stage! {
    /// IPv6.
    ipv6
}

stage! {
    /// ICMP other than echo.
    icmp_error
}

stage! {
    /// Fragments.
    fragment
}

stage! {
    /// The router's own answers: ICMP errors and resets.
    answer
}

/// This machine's own traffic: packets that leave by the router's interfaces and were not sent by
/// XDP.
#[classifier]
#[expect(clippy::needless_pass_by_value, reason = "the macro calls it so")]
fn own_traffic(ctx: TcContext) -> i32 {
    stages::own_traffic::run(&ctx)
}

/// Answers the daemon's query where a packet would leave. Never attached.
#[xdp]
fn ask_route(ctx: XdpContext) -> u32 {
    match Work::new(ctx).and_then(|mut work| stages::ask_route::run(&mut work)) {
        Some(()) => xdp_action::XDP_DROP,
        None => xdp_action::XDP_ABORTED,
    }
}

/// Never runs: nothing here panics, and the verifier would not load an endless loop.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
