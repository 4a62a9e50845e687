//! Giving a packet to a program that the NIC does not bring (`BPF_PROG_TEST_RUN`).
//!
//! So what has been held back is judged, translated, counted and entered by the same code as what
//! comes in, and in the same maps.

use anyhow::{Context as _, Result};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use router_common::{
    maps::settings::{Interface, Settings},
    wire::ETHERNET_LENGTH,
};

/// `enum xdp_action`, include/uapi/linux/bpf.h.
const XDP_TX: u32 = 3;
/// See [`XDP_TX`].
const XDP_REDIRECT: u32 = 4;
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
/// What a packet may grow by: it may become an answer that is longer.
const GROWTH: usize = 64;

/// A frame that is to be sent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Departure {
    /// The index of the interface that it leaves by.
    pub interface: u32,
    /// All of it, from its Ethernet header on.
    pub frame: Vec<u8>,
}

/// Runs a program on an IP packet that came in on the interface with this index: what is to be
/// sent, if anything is.
pub(super) fn run(
    program: &mut Xdp,
    settings: &Settings,
    interface: u32,
    packet: &[u8],
) -> Result<Option<Departure>> {
    let slot = settings.ingress_slot(interface);
    let Interface { primary, mac, .. } = *settings.interface(slot);
    // As if sent to this machine, which it was. Nobody looks at who has sent it.
    let mut frame = [&mac.bytes()[..], &[0; 6], &ETHERTYPE_IPV4].concat();
    frame.extend_from_slice(packet);
    let mut out = vec![0; frame.len() + GROWTH];
    // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let context = [0, u32::try_from(frame.len())?, 0, primary, 0, 0].map(u32::to_ne_bytes).concat();
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(&frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        })
        .context("the kernel does not run the program")?;
    let egress = match result.return_value {
        XDP_TX => slot,
        // There are two interfaces, and a packet is turned round rather than redirected to where it
        // came from.
        XDP_REDIRECT => 1 - slot,
        _ => return Ok(None),
    };
    out.truncate(usize::try_from(result.data_size_out)?);
    Ok((out.len() >= ETHERNET_LENGTH)
        .then_some(Departure { interface: settings.interface(egress).primary, frame: out }))
}
