//! Clamps the maximum segment size in SYN and SYN-ACK as the rule says, see [`router_common::mss`].

use aya_ebpf::{
    bindings::xdp_md,
    cty::c_void,
    helpers::generated::{bpf_loop, bpf_xdp_load_bytes, bpf_xdp_store_bytes},
    macros::map,
};
use router_common::{
    bounds,
    maps::rules::Rule,
    mss::{OPTIONS, STEPS, Search, change, for_routes},
    packet::Packet,
    rewrite::Rewrite,
    table::Tag,
    tcp,
    wire::{IPV4_LENGTH, L4, TCP_HEADERS},
};

use crate::{
    kernel::next_hop,
    maps::{rules, scratch::Scratch},
    work::Work,
};

/// Per-CPU scratch: a search among a segment's options.
#[map]
// SAFETY: numbers and bytes.
static SEARCH_OPTIONS: Scratch<Search> = unsafe { Scratch::new() };

/// Clamps the segment size in a SYN or SYN-ACK that is not translated yet, as its session's rule
/// says. `mtu` is that of its next hop, 0 if that is not known.
#[inline(always)]
pub(crate) fn clamp(work: &Work, packet: &Packet, rewrite: &Rewrite, tag: Tag, mtu: u16) {
    if packet.tcp_flags & tcp::SYN == 0 {
        return;
    }
    let mut limit = rules::mss(work.settings.version(), tag.rule());
    if limit == 0 {
        return;
    }
    let context = work.frame.context().ctx;
    if limit == Rule::MSS_OF_ROUTES {
        // One side announces what the other may send: the MTU of the reverse route counts as much.
        let query = next_hop::query(work, &packet.key, rewrite);
        let there = if mtu != 0 { mtu } else { next_hop::mtu(context, &query) };
        let back = next_hop::mtu(context, &query.reversed());
        limit = for_routes(there, back);
    }
    if limit != 0 {
        clamp_mss(context, u32::from(limit), u32::from(packet.ip_length));
    }
}

/// Clamps the segment size of a TCP packet to `limit`, and returns 0. A global function: the
/// verifier looks at it apart from its caller, and the caller needs less stack.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn clamp_mss(context: *mut xdp_md, limit: u32, ip_length: u32) -> u32 {
    let _ = lower(context, limit as u16, ip_length);
    0
}

/// The offset of the checksum in the frame.
const CHECKSUM: u32 = L4 as u32 + 16;
/// The offset of the TCP header's length.
const DATA_OFFSET: u32 = L4 as u32 + 12;
const TCP_LENGTH: u32 = (TCP_HEADERS - L4) as u32;

#[inline(always)]
fn lower(context: *mut xdp_md, limit: u16, ip_length: u32) -> Option<()> {
    let search = SEARCH_OPTIONS.get()?;
    let [offset]: [u8; 1] = load(context, DATA_OFFSET)?;
    let header = u32::from(offset >> 4) * 4;
    if header <= TCP_LENGTH || IPV4_LENGTH as u32 + header > ip_length {
        return None;
    }
    let to_load = bounds::length::<OPTIONS>(header - TCP_LENGTH)?;
    // SAFETY: the context is the program's own, and the buffer, which is in cells, longer than
    // options can be.
    let loaded = unsafe {
        bpf_xdp_load_bytes(context, TCP_HEADERS as u32, search.bytes.as_ptr().cast_mut().cast(), to_load)
    };
    if loaded != 0 {
        return None;
    }
    search.start(to_load);
    // SAFETY: the callback is a BPF subprogram of `bpf_loop`'s signature, and wants no context.
    unsafe { bpf_loop(STEPS, step as *const () as *mut c_void, core::ptr::null_mut(), 0) };
    let (at, old) = search.found()?;
    if u16::from_be_bytes(old) <= limit {
        return None;
    }
    let new = limit.to_be_bytes();
    let checksum = change(at, old, new).apply(load(context, CHECKSUM)?);
    store(context, TCP_HEADERS as u32 + at, new)?;
    store(context, CHECKSUM, checksum)
}

/// One step of the search. A callback of `bpf_loop`, so that the verifier looks at it once; 1 ends
/// it.
unsafe extern "C" fn step(_number: u32, _context: *mut c_void) -> i64 {
    SEARCH_OPTIONS.get().map_or(1, |search| i64::from(search.step()))
}

#[inline(always)]
fn load<const N: usize>(context: *mut xdp_md, offset: u32) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    // SAFETY: the context is the program's own, and the buffer as long as it says.
    let result = unsafe { bpf_xdp_load_bytes(context, offset, bytes.as_mut_ptr().cast(), N as u32) };
    (result == 0).then_some(bytes)
}

#[inline(always)]
fn store<const N: usize>(context: *mut xdp_md, offset: u32, mut bytes: [u8; N]) -> Option<()> {
    // SAFETY: as above.
    let result = unsafe { bpf_xdp_store_bytes(context, offset, bytes.as_mut_ptr().cast(), N as u32) };
    (result == 0).then_some(())
}
