//! Partial checksums and oversized packets, which only generic mode sees: the kernel's own
//! representation of packets, and not that of a wire.
//!
//! Generic XDP runs after the driver and after GRO. Virtual NICs deliver packets that another
//! machine's stack has left for hardware to finish: TCP and UDP checksums with the sum of the
//! pseudo header alone (`CHECKSUM_PARTIAL`), and packets larger than any MTU (TSO). GRO makes the
//! same of packets from a wire. The kernel remembers where such a checksum is and that the packet
//! has to be cut, and does both on egress. So of a partial checksum the router changes the pseudo
//! header's sum only, and a packet larger than its link's MTU will leave in smaller pieces.
//!
//! XDP programs cannot read what the kernel remembers. A checksum that equals the pseudo header's
//! sum and is wrong for the packet counts as partial.

use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_md,
    cty::c_void,
    helpers::generated::{bpf_check_mtu, bpf_csum_diff, bpf_xdp_load_bytes},
};
use router_common::{
    bounds,
    checksum::Sum,
    packet::{self, Packet},
    tuple::Protocol,
    wire::{IPV4_LENGTH, L4},
};

use crate::{maps::settings::in_generic_mode, work::Work};

/// Returns `true` if the checksum is partial: the kernel will finish it on egress.
#[inline(always)]
pub(crate) fn has_partial_checksum(work: &Work, packet: &Packet) -> bool {
    in_generic_mode()
        && !matches!(packet.protocol, Protocol::Icmp)
        && packet::has_partial_checksum(&work.frame, packet)
        && !(packet.ip_length as usize <= LONGEST && is_valid(work, packet))
}

/// Returns the largest length of the packet on a wire: a packet that is longer than its link's MTU
/// is cut on egress.
#[inline(always)]
pub(crate) fn length_on_wire(work: &Work, packet: &Packet) -> u16 {
    if !in_generic_mode() {
        return packet.ip_length;
    }
    let mut mtu = 0;
    // SAFETY: the context is the program's own, and the helper writes one number. It fails for a
    // packet that is too long, which is no matter here.
    unsafe { bpf_check_mtu(work.frame.context().as_ptr().cast(), 0, &raw mut mtu, 0, 0) };
    if mtu != 0 && u32::from(packet.ip_length) > mtu { mtu as u16 } else { packet.ip_length }
}

/// The longest packet whose checksum is verified; longer ones do not come from a wire.
const LONGEST: usize = 1536;
/// The bytes that are summed up at a time.
const STEP: usize = 64;

#[inline(always)]
fn is_valid(work: &Work, packet: &Packet) -> bool {
    let length = packet.ip_length.wrapping_sub(IPV4_LENGTH as u16);
    let sum = transport_sum(work.frame.context().ctx, u32::from(length));
    let pseudo = packet::pseudo_header(packet.key.source, packet.key.destination, packet.protocol, length);
    pseudo.plus(Sum::from_kernel(sum)).is_valid()
}

/// Sums up this many bytes after the IP header. A global function: the verifier looks at it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn transport_sum(context: *mut xdp_md, length: u32) -> u32 {
    let mut sum = 0;
    for step in 0..(LONGEST / STEP) as u32 {
        let at = step * STEP as u32;
        if at >= length {
            break;
        }
        let rest = if length - at > STEP as u32 { STEP as u32 } else { length - at };
        let Some(to_load) = bounds::length::<STEP>(rest) else { break };
        let mut bytes = [0_u32; STEP / 4];
        // SAFETY: the context is the program's own, and the buffer longer than what is loaded and
        // as long as what is summed up.
        sum = unsafe {
            if bpf_xdp_load_bytes(context, L4 as u32 + at, bytes.as_mut_ptr().cast::<c_void>(), to_load) != 0
            {
                return 0;
            }
            bpf_csum_diff(core::ptr::null_mut(), 0, bytes.as_mut_ptr(), STEP as u32, sum) as u32
        };
    }
    sum
}
