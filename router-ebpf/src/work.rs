//! The vocabulary of all programs: the packet that is being processed, what becomes of it, and the
//! one exit by which every packet leaves.

use aya_ebpf::{
    bindings::xdp_action,
    helpers::generated::bpf_redirect_map,
    macros::map,
    maps::{DevMap, ProgramArray},
    programs::XdpContext,
};
use router_common::{
    limits::MAX_INTERFACES,
    maps::{
        settings::{Live, Side},
        stages::{STAGES as STAGE_COUNT, Stage},
    },
    reason::{Action, Reason},
};

use crate::{
    kernel::frame::XdpFrame,
    maps::{
        settings,
        stats::{self, Stats},
    },
};

/// The stages by number. Written by the daemon.
#[map]
static STAGES: ProgramArray = ProgramArray::with_max_entries(STAGE_COUNT, 0);

/// The router's interfaces by slot. Written by the daemon.
#[map]
static EGRESS: DevMap = DevMap::with_max_entries(MAX_INTERFACES as u32, 0);

/// The outcome of a stage: the packet is transmitted, or it ends otherwise.
pub(crate) type Outcome = Result<Transmit, Exit>;

/// A packet that is ready to be transmitted.
#[derive(Clone, Copy)]
pub(crate) struct Transmit {
    /// The reason it is counted under: its action is `Forward` or `Answer`.
    pub(crate) reason: Reason,
    /// The egress interface's slot.
    pub(crate) slot: u32,
}

/// The end of a packet that is not transmitted.
pub(crate) enum Exit {
    /// By the verdict that the reason's [`Action`] stands for.
    Verdict(Reason),
    /// By a tail call of another program.
    To(Stage),
}

impl From<Reason> for Exit {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self::Verdict(reason)
    }
}

/// The way in which a packet that leaves is counted.
#[derive(Clone, Copy)]
enum Counted {
    /// A packet of an established session that the fast path forwards: one counter for its way in
    /// and its way out.
    Established { egress: u32 },
    /// Any other packet that is transmitted.
    Transmitted(Transmit),
    /// A packet that is passed to the kernel, handed to the daemon or dropped.
    Ended(Reason),
}

/// The packet that is being processed, and what every program needs.
pub(crate) struct Work {
    pub(crate) frame: XdpFrame,
    pub(crate) settings: &'static Live,
    pub(crate) stats: Stats,
    /// The slot of the interface that the packet came in on.
    pub(crate) ingress: u32,
}

impl Work {
    /// Begins with a packet. `None` never happens, but the verifier cannot know.
    #[inline(always)]
    pub(crate) fn new(ctx: XdpContext) -> Option<Self> {
        Some(Self::with(ctx, stats::block()?, settings::get()?))
    }

    /// As [`new`](Self::new), with counters and settings that are at hand.
    #[inline(always)]
    pub(crate) fn with(ctx: XdpContext, stats: Stats, settings: &'static Live) -> Self {
        let frame = XdpFrame::new(ctx);
        let ingress = settings.ingress_slot(frame.ingress_index());
        Self { frame, settings, stats, ingress }
    }

    /// Returns the side of the router that the packet came in on.
    #[inline(always)]
    pub(crate) fn side(&self) -> Side {
        self.settings.side(self.frame.ingress_index())
    }

    /// Counts the packet as received.
    #[inline(always)]
    pub(crate) fn receive(&self) {
        self.stats.received(self.ingress, &self.frame);
    }

    /// Ends a stage: turns the outcome into a verdict.
    #[inline(always)]
    pub(crate) fn finish(&self, outcome: &Outcome) -> u32 {
        match *outcome {
            Ok(transmit) => match self.send_by(transmit.slot) {
                Some(verdict) => self.emit(verdict, Counted::Transmitted(transmit)),
                None => self.end(Reason::RedirectFailed),
            },
            Err(Exit::Verdict(reason)) => self.end(reason),
            Err(Exit::To(stage)) => {
                // SAFETY: the array holds XDP programs only; the kernel checks that when one is put
                // in.
                unsafe { STAGES.tail_call(self.frame.context(), stage as u32) };
                // Only without a program in the slot.
                self.end(Reason::StageMissing)
            }
        }
    }

    /// Ends the fast path: sends a packet that it has translated by the interface `egress`, and
    /// hands every other one to the slow path.
    #[inline(always)]
    pub(crate) fn finish_fast_path(&self, egress: Option<u32>) -> u32 {
        if let Some(egress) = egress
            && let Some(verdict) = self.send_by(egress)
        {
            return self.emit(verdict, Counted::Established { egress });
        }
        self.receive();
        self.finish(&Err(match egress {
            Some(_) => Reason::RedirectFailed.into(),
            None => Exit::To(Stage::Slow),
        }))
    }

    /// Ends a packet that is not transmitted: counts it, and returns the verdict for this reason.
    #[inline(always)]
    pub(crate) fn end(&self, reason: Reason) -> u32 {
        let verdict = match reason.action() {
            Action::Pass => xdp_action::XDP_PASS,
            // The daemon has a copy of a punted packet. No packet ends for a reason to forward or
            // answer it.
            Action::Drop | Action::Punt | Action::Forward | Action::Answer => xdp_action::XDP_DROP,
        };
        self.emit(verdict, Counted::Ended(reason))
    }

    /// The one exit: every packet that leaves the programs leaves here, with its verdict, and is
    /// counted once.
    #[inline(always)]
    fn emit(&self, verdict: u32, counted: Counted) -> u32 {
        match counted {
            Counted::Established { egress } => self.stats.passed_on(self.ingress, egress, &self.frame),
            Counted::Transmitted(Transmit { reason, slot }) => {
                self.stats.transmitted(slot, reason, &self.frame);
            }
            Counted::Ended(reason) => self.stats.ended(reason, &self.frame),
        }
        verdict
    }

    /// Returns the verdict by which a frame leaves by an interface: back out of the one that it
    /// came in on, or redirected. `None` if the redirect fails.
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
}
