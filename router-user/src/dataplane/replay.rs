//! Giving a packet to a program that the NIC does not bring (`BPF_PROG_TEST_RUN`).
//!
//! So what has been held back is judged, translated, counted and entered by the same code as what comes in, and in the same maps.

use anyhow::{Context as _, Result};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use router_common::packet::ETHERNET_LENGTH;

/// `enum xdp_action`, include/uapi/linux/bpf.h.
const XDP_TX: u32 = 3;
/// See [`XDP_TX`].
const XDP_REDIRECT: u32 = 4;
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];

/// Runs a program on an IP packet that came in on the interface with this index: the packet as it is to be sent, if it is.
pub(super) fn run(program: &mut Xdp, interface: u32, packet: &[u8]) -> Result<Option<Vec<u8>>> {
    // Nobody looks at the addresses: these are not the ones that it came with.
    let mut frame = vec![0; ETHERNET_LENGTH - ETHERTYPE_IPV4.len()];
    frame.extend_from_slice(&ETHERTYPE_IPV4);
    frame.extend_from_slice(packet);
    let mut out = vec![0; frame.len()];
    // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let context = [0, u32::try_from(frame.len())?, 0, interface, 0, 0].map(u32::to_ne_bytes).concat();
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(&frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        })
        .context("the kernel does not run the program")?;
    if !matches!(result.return_value, XDP_TX | XDP_REDIRECT) {
        return Ok(None);
    }
    out.truncate(usize::try_from(result.data_size_out)?);
    Ok(Some(out.split_off(ETHERNET_LENGTH.min(out.len()))))
}
