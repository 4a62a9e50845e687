//! Next hops, from the kernel's routes and neighbours.

use core::mem::{align_of, size_of};

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH,
        BPF_FIB_LKUP_RET_PROHIBIT, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNREACHABLE,
        BPF_FIB_LOOKUP_SKIP_NEIGH, BPF_FIB_LOOKUP_SRC, BPF_NOEXIST, bpf_fib_lookup, xdp_md,
    },
    helpers::generated::bpf_fib_lookup as fib_lookup,
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray},
};
use router_common::{
    address::{Ipv4, Mac},
    entry::NextHop,
    limits::MAX_INTERFACES,
    maps::{
        punt::Neighbour,
        route::{Answer, InUse, InterfaceAddresses, Query},
    },
    reason::Reason,
    rewrite::Rewrite,
    shared::Shared,
    tuple::FlowKey,
    wire::{ETHERNET_LENGTH, Frame as _},
};

use crate::{
    maps::{flows, settings},
    work::Work,
};

/// The loopback interface's index, in every network namespace.
const LOOPBACK: u32 = 1;
/// `AF_INET`, include/linux/socket.h.
const AF_INET: u8 = 2;
/// `AF_INET6`, include/linux/socket.h.
const AF_INET6: u8 = 10;
/// `-EINVAL`: the kernel does not know a flag.
const INVALID: i32 = -22;

/// Per-CPU scratch: the last look-up of each kind. First the query, then the answer in its place.
#[map]
static LOOKUPS: PerCpuArray<bpf_fib_lookup> = PerCpuArray::with_max_entries(2, 0);

/// In [`LOOKUPS`]: a look-up of the next hop.
const NEXT_HOP: u32 = 0;
/// In [`LOOKUPS`]: a look-up of the MTU.
const MTU: u32 = 1;

/// The addresses of the router's interfaces by slot, for kernels that do not return the preferred
/// source of a route. Written by the daemon.
#[map]
static INTERFACE_ADDRESSES: Array<InterfaceAddresses> = Array::with_max_entries(MAX_INTERFACES as u32, 0);

/// Neighbours that did not answer, and until which tick no packet waits for them. Written by the
/// daemon. LRU: beyond its size the oldest are forgotten, and packets wait for them again.
#[map]
static FAILED_NEIGHBOURS: LruHashMap<Neighbour, u32> = LruHashMap::with_max_entries(4096, 0);

/// The next hops of sessions, with their MAC addresses; and [`Neighbour::NONE`], which the daemon
/// inserts. No LRU: the daemon could not follow a next hop that was evicted. Written when a next
/// hop is looked up, and not for each packet. The daemon removes what has changed, and then has all
/// sessions look their next hop up again.
#[map]
static NEXT_HOPS: HashMap<Neighbour, Shared<u64>> = HashMap::with_max_entries(InUse::ROOM, 0);

/// Returns the query for the next hop of a flow's packets.
#[inline(always)]
pub(crate) fn query(work: &Work, key: &FlowKey, rewrite: &Rewrite) -> Query {
    Query::of(key, rewrite, tos(work))
}

/// Returns the type of service of the packet.
#[inline(always)]
pub(crate) fn tos(work: &Work) -> u8 {
    const TOS: usize = ETHERNET_LENGTH + 1;
    work.frame.bytes::<1>(TOS).map_or(0, |[tos]| *tos)
}

/// Looks up the next hop of a packet.
///
/// The query is that of the kernel's own forwarding (see [`Query`]), except for the interface: the
/// packet is said to come in on the loopback interface, so `net.ipv4.conf.lo.forwarding` alone has
/// to be on for the kernel to answer (`bpf_ipv4_fib_lookup`, net/core/filter.c). Forwarding stays
/// off on the real interfaces, and packets that this program passes to the kernel are never routed
/// on untranslated. Policy rules by incoming interface or by mark are not seen; the daemon warns of
/// those.
///
/// # Errors
/// Returns the reason why the packet has no next hop; [`Reason::Resolving`] if only the MAC address
/// of its [`neighbour`] is missing.
#[inline(always)]
pub(crate) fn resolve(work: &Work, query: &Query) -> Result<NextHop, Reason> {
    // Read before the kernel is asked, and not again: an answer that has been overtaken must not
    // count as a newer one.
    let generation = work.settings.next_hop_generation();
    let code = ask(work.frame.context().ctx, query, NEXT_HOP);
    let params = LOOKUPS.get(NEXT_HOP).ok_or(Reason::Internal)?;
    match code as u32 {
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH => {}
        BPF_FIB_LKUP_RET_FWD_DISABLED => return Err(Reason::RouteLookupsOff),
        BPF_FIB_LKUP_RET_BLACKHOLE => return Err(Reason::RouteBlackhole),
        BPF_FIB_LKUP_RET_UNREACHABLE => return Err(Reason::RouteUnreachable),
        BPF_FIB_LKUP_RET_PROHIBIT => return Err(Reason::RouteProhibited),
        _ => return Err(Reason::NoRoute),
    }
    let slot = work.settings.egress_slot(params.ifindex).ok_or(Reason::EgressNotAttached)?;
    // Before Linux 6.3 a neighbour that has not answered yet counts as a success, with no address.
    if code as u32 == BPF_FIB_LKUP_RET_NO_NEIGH || params.dmac == [0; 6] {
        return Err(if neighbour_has_failed() == 0 { Reason::Resolving } else { Reason::NeighbourFailed });
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

/// Returns 1 if the next hop of this CPU's last look-up did not answer lately. A global function:
/// the verifier looks at it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn neighbour_has_failed() -> u32 {
    let Some(neighbour) = neighbour() else { return 0 };
    // SAFETY: a number that is written whole.
    let until = unsafe { FAILED_NEIGHBOURS.get(neighbour) };
    u32::from(until.is_some_and(|until| flows::now().0 < *until))
}

/// Notes that a session has the next hop of this CPU's last look-up.
///
/// If the neighbour changes between the kernel's answer and this note, the daemon finds out: it
/// compares the notes with the kernel every two seconds.
#[inline(always)]
pub(crate) fn note_use() {
    note_next_hop();
}

/// As [`note_use`]; the result means nothing. A global function: the verifier looks at it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn note_next_hop() -> u32 {
    let (Some(neighbour), Some(params)) = (neighbour(), LOOKUPS.get(NEXT_HOP)) else { return 0 };
    let mac = Mac::new(params.dmac);
    // SAFETY: a number that others write, too. The daemon removes entries, whose memory may then
    // become another neighbour's: that one's sessions are asked to look their next hop up again.
    let find = |neighbour: &Neighbour| unsafe { NEXT_HOPS.get(neighbour) };
    let known = find(&neighbour).or_else(|| {
        // Another CPU may have been quicker.
        let number = Shared::new(InUse::new(mac).number());
        let _ = NEXT_HOPS.insert(neighbour, number, u64::from(BPF_NOEXIST));
        find(&neighbour)
    });
    // Without room, all neighbours count.
    let Some(known) = known.or_else(|| find(&Neighbour::NONE)) else { return 0 };
    let before = InUse::from_number(known.get());
    let now = before.and(mac);
    // Another CPU that writes at the same time writes the same number.
    if now != before {
        known.set(now.number());
    }
    0
}

/// Returns the neighbour of this CPU's last look-up, also if its MAC address is not known.
#[inline(always)]
pub(crate) fn neighbour() -> Option<Neighbour> {
    let params = LOOKUPS.get(NEXT_HOP)?;
    // SAFETY: numbers, for which any bytes are a value, of a structure that has been written whole.
    let words = unsafe { params.__bindgen_anon_4.ipv6_dst };
    let address = if params.family == AF_INET6 {
        // SAFETY: both are of one size, and any bytes are a value.
        unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(words) }
    } else {
        Neighbour::mapped(Ipv4(words[0].to_ne_bytes()))
    };
    Some(Neighbour { interface: params.ifindex, address })
}

/// Returns the source address of new sessions to `destination` by the route of this CPU's last
/// look-up: the route's preferred source, or the address that the kernel would choose.
#[inline(always)]
pub(crate) fn preferred_source(destination: Ipv4) -> Option<Ipv4> {
    match source_of_route(u32::from_ne_bytes(destination.0)) {
        0 => None,
        source => Some(Ipv4(source.to_ne_bytes())),
    }
}

/// As [`preferred_source`]; 0 is none. A global function: the verifier looks at its loop once, and
/// not on every path that leads to it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn source_of_route(destination: u32) -> u32 {
    let (Some(params), Some(settings)) = (LOOKUPS.get(NEXT_HOP), settings::get()) else { return 0 };
    // SAFETY: numbers, for which any bytes are a value.
    let (source, neighbour) = unsafe { (params.__bindgen_anon_3.ipv4_src, params.__bindgen_anon_4.ipv4_dst) };
    if source != 0 {
        return source;
    }
    let is_gateway = params.family != AF_INET || neighbour != destination;
    let slot = settings.egress_slot(params.ifindex);
    let addresses = slot.and_then(|slot| INTERFACE_ADDRESSES.get(slot));
    let selected = addresses.and_then(|all| all.select(Ipv4(neighbour.to_ne_bytes()), is_gateway));
    selected.map_or(0, |address| u32::from_ne_bytes(address.0))
}

/// Returns the MTU of a route, also if its neighbour is not known; 0 if the kernel does not say.
#[inline(always)]
pub(crate) fn mtu(context: *mut xdp_md, query: &Query) -> u16 {
    if ask(context, query, MTU) as u32 != BPF_FIB_LKUP_RET_SUCCESS {
        return 0;
    }
    // SAFETY: see `resolve`.
    LOOKUPS.get(MTU).map_or(0, |params| unsafe { params.__bindgen_anon_1.mtu_result })
}

/// Answers a query of the daemon, see [`router_common::maps::route`].
#[inline(always)]
pub(crate) fn answer(work: &Work, query: &Query) -> Option<Answer> {
    let code = ask(work.frame.context().ctx, query, NEXT_HOP);
    let mac = match code as u32 {
        BPF_FIB_LKUP_RET_SUCCESS => Mac::new(LOOKUPS.get(NEXT_HOP)?.dmac),
        _ => Mac::default(),
    };
    let source = preferred_source(query.destination).unwrap_or_default();
    // SAFETY: a number, for which any bytes are a value.
    let kernel_gave_source = unsafe { LOOKUPS.get(NEXT_HOP)?.__bindgen_anon_3.ipv4_src } != 0;
    Some(Answer { code, neighbour: neighbour()?, source, kernel_gave_source, mac })
}

/// Asks the kernel. Returns the helper's result; the answer is in [`LOOKUPS`].
#[inline(always)]
fn ask(context: *mut xdp_md, query: &Query, kind: u32) -> i32 {
    let ports = query.source_port.then(query.destination_port);
    let (source, destination) = (u32::from_ne_bytes(query.source.0), u32::from_ne_bytes(query.destination.0));
    let rest = u32::from(query.protocol) | u32::from(query.tos) << 8 | kind << 16;
    look_up(context, source, destination, ports, rest) as i32
}

/// As [`ask`]. A global function: the verifier looks at it apart from its callers, and they need
/// less stack.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn look_up(context: *mut xdp_md, source: u32, destination: u32, ports: u32, rest: u32) -> u32 {
    let kind = rest >> 16 & 1;
    // Older kernels do not know the flags: before Linux 6.7, or 6.5 for the MTU. Without them there
    // is no answer without the neighbour.
    let flags = if kind == MTU { BPF_FIB_LOOKUP_SKIP_NEIGH } else { BPF_FIB_LOOKUP_SRC };
    let mut answer = INVALID;
    for flags in [flags, 0] {
        let Some(params) = LOOKUPS.get_ptr_mut(kind) else { return INVALID as u32 };
        // SAFETY: this CPU's own, to which nothing has a reference while this function runs; the
        // context is the program's own, the structure and its length belong together.
        unsafe {
            clear(params);
            (*params).family = AF_INET;
            (*params).l4_protocol = rest as u8;
            (*params).sport = ports as u16;
            (*params).dport = (ports >> 16) as u16;
            (*params).ifindex = LOOPBACK;
            (*params).__bindgen_anon_2.tos = (rest >> 8) as u8;
            (*params).__bindgen_anon_3.ipv4_src = source;
            (*params).__bindgen_anon_4.ipv4_dst = destination;
            answer = fib_lookup(context.cast(), params, size_of::<bpf_fib_lookup>() as i32, flags) as i32;
            if answer != INVALID && flags == 0 {
                // The query's own value, and no answer.
                (*params).__bindgen_anon_3.ipv4_src = 0;
            }
        }
        if answer != INVALID {
            break;
        }
    }
    answer as u32
}

/// Fills the structure with zeros.
///
/// # Safety
/// The pointer is valid for writes.
#[inline(always)]
unsafe fn clear(params: *mut bpf_fib_lookup) {
    const WORDS: usize = size_of::<bpf_fib_lookup>() / size_of::<u32>();
    const _: () = assert!(
        size_of::<bpf_fib_lookup>().is_multiple_of(size_of::<u32>())
            && align_of::<bpf_fib_lookup>() >= align_of::<u32>()
    );
    for word in 0..WORDS {
        // Volatile, or the compiler makes it a call that writes every byte by itself.
        // SAFETY: within the structure, which is of whole words (asserted above); zero is a value
        // of all its fields.
        unsafe { params.cast::<u32>().add(word).write_volatile(0) };
    }
}
