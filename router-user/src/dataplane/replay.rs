//! Giving a packet to a program that the NIC does not bring (`BPF_PROG_TEST_RUN`).
//!
//! So what has been held back is judged, translated, counted and entered by the same code as what
//! comes in, and in the same maps.

use std::os::fd::{AsFd as _, BorrowedFd};

use anyhow::{Context as _, Result};
use aya::programs::ProgramFd;
use router_common::{
    maps::settings::{Interface, Settings},
    wire::ETHERNET_LENGTH,
};

use crate::sys::bpf::{TestRun, test_run};

/// `enum xdp_action`, include/uapi/linux/bpf.h.
const XDP_TX: u32 = 3;
/// See [`XDP_TX`].
const XDP_REDIRECT: u32 = 4;
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
/// The most that a packet may grow: its answer may be longer.
const GROWTH: usize = 64;

/// What a program made of a frame.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ran {
    /// Its verdict (`enum xdp_action`).
    pub verdict: u32,
    /// The frame as it left it.
    pub frame: Vec<u8>,
}

/// Runs an XDP program on a frame as if it came in on the interface with this index. Nothing is
/// sent, whatever the verdict.
///
/// # Errors
/// Returns an error if the kernel does not run the program.
pub fn run_program(program: BorrowedFd<'_>, interface: u32, frame: &[u8]) -> Result<Ran> {
    let mut out = vec![0; frame.len() + GROWTH];
    // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let context = [0, u32::try_from(frame.len())?, 0, interface, 0, 0].map(u32::to_ne_bytes).concat();
    let TestRun { verdict, length } =
        test_run(program, frame, &mut out, &context).context("the kernel does not run the program")?;
    out.truncate(length);
    Ok(Ran { verdict, frame: out })
}

/// A frame that is to be sent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Departure {
    /// The index of the interface that it leaves by.
    pub interface: u32,
    /// All of it, from its Ethernet header on.
    pub frame: Vec<u8>,
}

/// Runs the program of the slow path on packets that the daemon has held back. Needs nothing else
/// of the data plane, so that packets do not wait for what else is done with it, nor that for them.
#[derive(Debug)]
pub struct Replayer {
    program: ProgramFd,
}

impl Replayer {
    pub(super) const fn new(program: ProgramFd) -> Self {
        Self { program }
    }

    /// Runs the programs on an IP packet that came in on the interface with this index, with these
    /// settings. Returns the frame to send, if there is one.
    ///
    /// # Errors
    /// Returns an error if the kernel does not run the program.
    pub fn replay(&self, settings: &Settings, interface: u32, packet: &[u8]) -> Result<Option<Departure>> {
        let slot = settings.ingress_slot(interface);
        let Interface { primary, mac, .. } = *settings.interface(slot);
        // As if sent to this machine, which it was. The programs do not look at the sender's MAC
        // address.
        let mut frame = [&mac.bytes()[..], &[0; 6], &ETHERTYPE_IPV4].concat();
        frame.extend_from_slice(packet);
        let Ran { verdict, frame: out } = run_program(self.program.as_fd(), primary, &frame)?;
        let egress = match verdict {
            XDP_TX => slot,
            // There are two interfaces, and a packet is turned round rather than redirected to
            // where it came from.
            XDP_REDIRECT => 1 - slot,
            _ => return Ok(None),
        };
        Ok((out.len() >= ETHERNET_LENGTH)
            .then_some(Departure { interface: settings.interface(egress).primary, frame: out }))
    }
}
