//! Where packets leave, from the kernel's own routes and neighbours.

use core::mem::{MaybeUninit, align_of, size_of};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
        BPF_FIB_LOOKUP_SKIP_NEIGH, bpf_fib_lookup, xdp_md,
    },
    helpers::generated::bpf_fib_lookup as fib_lookup,
    macros::map,
    maps::PerCpuArray,
};
use router_common::{
    address::{Ipv4, Mac},
    flow::{NextHop, Protocol},
    punt::Neighbour,
    reason::Reason,
};

use crate::{Exit, Work, punt};

/// The loopback interface's index, in every network namespace.
const LOOPBACK: u32 = 1;
/// `AF_INET`, include/linux/socket.h.
const AF_INET: u8 = 2;

/// One a CPU: the neighbour of the last look-up that found none with a MAC address. Written by [`resolve`], read by who has asked it, right
/// behind.
#[map]
static UNRESOLVED: PerCpuArray<Neighbour> = PerCpuArray::with_max_entries(1, 0);

/// The neighbour that a packet has to wait for, after [`resolve`] has answered [`Reason::Resolving`].
#[inline(always)]
pub(crate) fn unresolved() -> Option<&'static Neighbour> {
    UNRESOLVED.get(0)
}

/// Asks the kernel where a translated packet leaves.
///
/// The question is asked as if the packet came in by the loopback interface: to the kernel that is what a packet of this
/// machine's own looks like (`LOOPBACK_IFINDEX` in net/ipv4/route.c, `ip_route_output_key_hash`), which fits, since its
/// source is one of this machine's addresses. It also means that only `net.ipv4.conf.lo.forwarding` has to be on for the
/// kernel to answer (`bpf_ipv4_fib_lookup`, net/core/filter.c), while forwarding stays off on the real interfaces:
/// nothing that this program leaves to the kernel can be routed on untranslated.
///
/// # Errors
/// Why the packet cannot leave; [`Reason::Resolving`] if all that is missing is its neighbour's MAC address.
#[inline(always)]
pub(crate) fn resolve(
    work: &Work,
    protocol: Protocol,
    source: Ipv4,
    destination: Ipv4,
) -> Result<NextHop, Reason> {
    // Read before the question is asked, and not again: an answer that has been overtaken must not count as a newer one.
    // SAFETY: a field of a map value, which is always there to read.
    let generation = unsafe { core::ptr::read_volatile(&raw const work.settings.next_hop_generation) };
    let mut room = MaybeUninit::uninit();
    let params = question(&mut room, protocol, source, destination);
    // SAFETY: the context is the program's own, the structure and its length belong together.
    let answer =
        unsafe { fib_lookup(work.frame.context().as_ptr(), params, size_of::<bpf_fib_lookup>() as i32, 0) };
    match answer as u32 {
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH => {}
        BPF_FIB_LKUP_RET_FWD_DISABLED => return Err(Reason::RouteLookupsOff),
        _ => return Err(Reason::NoRoute),
    }
    let slot = work.settings.egress_slot(params.ifindex).ok_or(Reason::EgressNotAttached)?;
    // Before Linux 6.3 a neighbour that has not answered yet counts as a success, with no address.
    if answer as u32 == BPF_FIB_LKUP_RET_NO_NEIGH || params.dmac == [0; 6] {
        let neighbour = UNRESOLVED.get_ptr_mut(0).ok_or(Reason::Internal)?;
        // SAFETY: this CPU's own, and nobody else has it now. The kernel has put the next hop where the destination was.
        unsafe {
            (*neighbour).interface = params.ifindex;
            (*neighbour).address = Neighbour::mapped(Ipv4(params.__bindgen_anon_4.ipv4_dst.to_ne_bytes()));
        }
        return Err(Reason::Resolving);
    }
    Ok(NextHop {
        destination_mac: Mac::new(params.dmac),
        generation: generation as u16,
        slot: slot as u8,
        // SAFETY: an answer of success has put the route's MTU here (`bpf_fib_set_fwd_params`).
        mtu: unsafe { params.__bindgen_anon_1.mtu_result },
        zero: [0; 3],
    })
}

/// As [`resolve`], for a packet that is as it was received: it waits for its neighbour with the daemon.
///
/// # Errors
/// How the packet ends that cannot leave now.
#[inline(always)]
pub(crate) fn find(
    work: &Work,
    ip_length: u16,
    protocol: Protocol,
    source: Ipv4,
    destination: Ipv4,
) -> Result<NextHop, Exit> {
    match resolve(work, protocol, source, destination) {
        Ok(next_hop) => Ok(next_hop),
        Err(Reason::Resolving) => Err(punt::wait(work, ip_length).into()),
        Err(reason) => Err(reason.into()),
    }
}

/// The length of the packets that the route takes, whether its neighbour is known or not; 0 if that cannot be told.
#[inline(always)]
pub(crate) fn mtu(context: *mut xdp_md, source: Ipv4, destination: Ipv4) -> u16 {
    route_mtu(context, u32::from_ne_bytes(source.0), u32::from_ne_bytes(destination.0)) as u16
}

/// A global function: the verifier looks at it apart from its callers, and they need less stack.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn route_mtu(context: *mut xdp_md, source: u32, destination: u32) -> u32 {
    let (source, destination) = (Ipv4(source.to_ne_bytes()), Ipv4(destination.to_ne_bytes()));
    // Before Linux 6.5 there is no answer without the neighbour, and the flag is refused.
    for flags in [BPF_FIB_LOOKUP_SKIP_NEIGH, 0] {
        let mut room = MaybeUninit::uninit();
        let params = question(&mut room, Protocol::Tcp, source, destination);
        // SAFETY: the context is the program's own, the structure and its length belong together.
        let answer = unsafe { fib_lookup(context.cast(), params, size_of::<bpf_fib_lookup>() as i32, flags) };
        if answer as u32 == BPF_FIB_LKUP_RET_SUCCESS {
            // SAFETY: see `resolve`.
            return u32::from(unsafe { params.__bindgen_anon_1.mtu_result });
        }
    }
    0
}

/// Writes the question where packets from `source` to `destination` leave.
#[inline(always)]
fn question(
    room: &mut MaybeUninit<bpf_fib_lookup>,
    protocol: Protocol,
    source: Ipv4,
    destination: Ipv4,
) -> &mut bpf_fib_lookup {
    const WORDS: usize = size_of::<bpf_fib_lookup>() / size_of::<u32>();
    const _: () = assert!(
        size_of::<bpf_fib_lookup>().is_multiple_of(size_of::<u32>())
            && align_of::<bpf_fib_lookup>() >= align_of::<u32>()
    );
    for word in 0..WORDS {
        // Volatile, or the compiler makes it a call that writes every byte by itself.
        // SAFETY: within the structure, which is of whole words (asserted above).
        unsafe { room.as_mut_ptr().cast::<u32>().add(word).write_volatile(0) };
    }
    // SAFETY: a plain C structure of integers and byte arrays, for which zero is a value.
    let params = unsafe { room.assume_init_mut() };
    params.family = AF_INET;
    params.l4_protocol = protocol as u8;
    params.ifindex = LOOPBACK;
    params.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(source.0);
    params.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(destination.0);
    params
}
