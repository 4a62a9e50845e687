//! The XDP programs: entry points, and the one place where an outcome becomes a verdict and a
//! counter.
//!
//! What is decided about a packet is in `router-common`; what is here gets bytes, looks things up
//! and writes them back.
//!
//! Programs run one after the other. `pls_router` is attached and stays attached: it only jumps to
//! slot 0 of `ROOT`, so that a new version of the rest takes over by one write to that slot,
//! without the NIC noticing (MANA re-creates its queues whenever the attached program changes).
//! `forward` handles packets of known sessions. Whatever else there is to do is `slow`'s, which
//! hands rare work on to programs of their own.
#![no_std]
#![no_main]

mod answer;
mod claim;
mod datagrams;
mod departure;
mod established;
mod ethernet;
mod flows;
mod fragment;
mod frame;
mod half_open;
mod ipv6;
mod known;
mod local;
mod mss;
mod next_hop;
mod open;
mod own;
mod peers;
mod pools;
mod punt;
mod related;
mod removal;
mod rules;
mod scratch;
mod sent;
mod settings;
mod slow;
mod sockets;
mod stats;
mod track;
mod unfinished;

use aya_ebpf::{
    bindings::xdp_action,
    helpers::generated::bpf_redirect_map,
    macros::{classifier, map, xdp},
    maps::{DevMap, ProgramArray},
    programs::{TcContext, XdpContext},
};
use router_common::{
    limits::MAX_INTERFACES,
    maps::{
        route::Query,
        settings::{Live, Side},
        stages::{STAGES as STAGE_COUNT, Stage},
    },
    reason::{Action, Reason},
    wire::{ETHERNET_LENGTH, Frame as _},
};

use crate::{frame::XdpFrame, stats::Stats};

/// Slot 0: the `forward` program in force. Written by the daemon. The attached program keeps this
/// map for good.
#[map]
static ROOT: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// The programs behind the `forward` program beside it, by [`Stage`]. Written by the daemon.
#[map]
static STAGES: ProgramArray = ProgramArray::with_max_entries(STAGE_COUNT, 0);

/// The router's interfaces by slot. Written by the daemon.
#[map]
static EGRESS: DevMap = DevMap::with_max_entries(MAX_INTERFACES as u32, 0);

/// What is to become of a packet: sent, left for a reason whose [`Action`] says how, or handled by
/// another program.
type Outcome = Result<Transmit, Exit>;

/// A packet that is ready to leave.
struct Transmit {
    /// Why: its action is `Forward` or `Answer`.
    reason: Reason,
    /// The egress interface's slot.
    slot: u32,
}

/// How a packet ends when it is not sent.
enum Exit {
    /// Left for this reason.
    Left(Reason),
    /// Given to another program.
    To(Stage),
}

impl From<Reason> for Exit {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self::Left(reason)
    }
}

/// A packet at work: what every program needs.
struct Work {
    frame: XdpFrame,
    settings: &'static Live,
    stats: Stats,
    /// The slot of the interface that the packet came in on.
    ingress: u32,
}

impl Work {
    /// `None` never happens, but the verifier cannot know.
    #[inline(always)]
    fn new(ctx: XdpContext) -> Option<Self> {
        Some(Self::with(ctx, stats::block()?, settings::get()?))
    }

    #[inline(always)]
    fn with(ctx: XdpContext, stats: Stats, settings: &'static Live) -> Self {
        let frame = XdpFrame::new(ctx);
        let ingress = settings.ingress_slot(frame.ingress_index());
        Self { frame, settings, stats, ingress }
    }

    /// The side of the router that the packet came in on.
    #[inline(always)]
    fn side(&self) -> Side {
        self.settings.side(self.frame.ingress_index())
    }

    /// Turns an outcome into the verdict, and counts it.
    #[inline(always)]
    fn finish(&mut self, outcome: &Outcome) -> u32 {
        match *outcome {
            Ok(Transmit { reason, slot }) => match self.send_by(slot) {
                Some(verdict) => {
                    self.stats.transmitted(slot, reason, &self.frame);
                    verdict
                }
                None => self.leave(Reason::RedirectFailed),
            },
            Err(Exit::Left(reason)) => self.leave(reason),
            Err(Exit::To(stage)) => {
                // SAFETY: the array holds XDP programs only; the kernel checks that when one is put
                // in.
                unsafe { STAGES.tail_call(self.frame.context(), stage as u32) };
                // Only without a program in the slot.
                self.leave(Reason::StageMissing)
            }
        }
    }

    /// The verdict by which a frame leaves by an interface: turned round where it came in, or
    /// redirected.
    #[inline(always)]
    fn send_by(&self, egress: u32) -> Option<u32> {
        if egress == self.ingress {
            return Some(xdp_action::XDP_TX);
        }
        // Not by `DevMap::redirect`, which takes the result's absolute value first.
        // SAFETY: a map's static stands for the map.
        let result = unsafe { bpf_redirect_map((&raw const EGRESS).cast_mut().cast(), egress.into(), 0) };
        (result == xdp_action::XDP_REDIRECT.into()).then_some(xdp_action::XDP_REDIRECT)
    }

    #[inline(always)]
    fn leave(&mut self, reason: Reason) -> u32 {
        self.stats.left(reason, &self.frame);
        match reason.action() {
            Action::Pass => xdp_action::XDP_PASS,
            // The daemon has a copy of a punted packet. A packet is not left for a reason to
            // forward or answer it.
            Action::Drop | Action::Punt | Action::Forward | Action::Answer => xdp_action::XDP_DROP,
        }
    }
}

/// Runs a stage. A machine that lacks a map of its own programs aborts packets without a counter,
/// since it has none.
macro_rules! stage {
    ($(#[$doc:meta])* $name:ident, $run:path) => {
        $(#[$doc])*
        #[xdp]
        fn $name(ctx: XdpContext) -> u32 {
            let Some(mut work) = Work::new(ctx) else { return xdp_action::XDP_ABORTED };
            let outcome = $run(&mut work);
            work.finish(&outcome)
        }
    };
}

/// The program that is attached to the interfaces.
#[xdp]
fn pls_router(ctx: XdpContext) -> u32 {
    // SAFETY: as above.
    unsafe { ROOT.tail_call(&ctx, 0) };
    // Only without a program in the slot.
    match Work::new(ctx) {
        Some(mut work) => work.leave(Reason::NotConfigured),
        None => xdp_action::XDP_PASS,
    }
}

/// Packets of known sessions.
#[xdp]
fn forward(ctx: XdpContext) -> u32 {
    let (Some(stats), Some(settings)) = (stats::block(), settings::get()) else {
        return xdp_action::XDP_ABORTED;
    };
    // First, since it is a call: what is in registers then would have to be kept on the stack.
    let now = stats.now();
    let mut work = Work::with(ctx, stats, settings);
    let egress = established::forward(&mut work, now);
    if let Some(egress) = egress
        && let Some(verdict) = work.send_by(egress)
    {
        // What `received` and `finish` count in three counters is one here.
        work.stats.passed_on(work.ingress, egress, &work.frame);
        return verdict;
    }
    work.stats.received(work.ingress, &work.frame);
    work.finish(&Err(match egress {
        Some(_) => Reason::RedirectFailed.into(),
        None => Exit::To(Stage::Slow),
    }))
}

/// In the place of `forward` in generic mode: the fast path is for packets as they are on a wire,
/// see `unfinished`.
#[xdp]
fn generic(ctx: XdpContext) -> u32 {
    let Some(work) = &mut Work::new(ctx) else { return xdp_action::XDP_ABORTED };
    work.stats.received(work.ingress, &work.frame);
    work.finish(&Err(Exit::To(Stage::Slow)))
}

stage! {
    /// Packets of sessions that need more than a rewrite; finds whose every other packet is.
    slow, slow::forward
}

stage! {
    /// Packets that may open a session: by which rule, and where to.
    open, open::decide
}

stage! {
    /// Puts the session that `open` has decided on into the table.
    claim, claim::claim
}

stage! {
    /// Packets that are no session's and no rule's.
    local, local::decide
}

stage! {
    /// Frames that are no untagged IPv4.
    ethernet, ethernet::decide
}

stage! {
    /// IPv6.
    ipv6, ipv6::decide
}

stage! {
    /// ICMP that is no echo.
    related, related::forward
}

stage! {
    /// Fragments.
    fragment, fragment::forward
}

stage! {
    /// Answers of the router's own.
    answer, answer::answer
}

/// What leaves by the router's interfaces and is not XDP's doing: this machine's own.
#[classifier]
#[expect(clippy::needless_pass_by_value, reason = "the macro calls it so")]
fn own_traffic(ctx: TcContext) -> i32 {
    sent::look(&ctx)
}

/// Answers the daemon's query where a packet would leave, which stands in place of the packet: see
/// [`router_common::maps::route`]. Never attached.
#[xdp]
fn ask_route(ctx: XdpContext) -> u32 {
    let Some(mut work) = Work::new(ctx) else { return xdp_action::XDP_ABORTED };
    let Some(query) = work.frame.bytes(ETHERNET_LENGTH).map(|bytes| Query::from_bytes(*bytes)) else {
        return xdp_action::XDP_ABORTED;
    };
    let Some(answer) = next_hop::answer(&work, &query) else { return xdp_action::XDP_ABORTED };
    let Some(room) = work.frame.bytes_mut(ETHERNET_LENGTH) else { return xdp_action::XDP_ABORTED };
    *room = answer.to_bytes();
    xdp_action::XDP_DROP
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
