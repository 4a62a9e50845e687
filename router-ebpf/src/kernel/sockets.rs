//! This machine's own sockets.

use aya_ebpf::{
    bindings::{
        bpf_sock, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Ipv4Tuple,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Ipv6Tuple, xdp_md,
    },
    helpers::generated::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
    macros::map,
    maps::Array,
};
use router_common::{
    address::{Ipv4, Ipv6, Port},
    ports::PortRange,
    tuple::{FlowKey, Ipv6Key, Protocol},
};

/// One record, a bit for each port: the ports that the daemon has reserved
/// (`net.ipv4.ip_local_reserved_ports`). Not for the programs, but for the process that takes the
/// router off.
#[map]
static RESERVED_PORTS: Array<[u64; 1024]> = Array::with_max_entries(1, 0);

/// `TCP_LISTEN`, include/net/tcp_states.h.
const LISTEN: u32 = 10;

/// `BPF_F_CURRENT_NETNS`, include/uapi/linux/bpf.h.
const CURRENT_NETNS: u64 = u64::MAX;

/// Returns `true` if a packet with this tuple belongs to a connection of this machine: with TCP, to
/// any socket that is not listening; with UDP, to a socket that is connected to this peer, or to an
/// unconnected one on a port that the kernel gave out, as clients have.
#[inline(always)]
pub(crate) fn is_connected(context: *mut xdp_md, key: &FlowKey, ephemeral: PortRange) -> bool {
    match key.protocol() {
        Some(Protocol::Tcp) => tcp_is_connected(context, key),
        Some(Protocol::Udp) => udp_is_connected(context, key, ephemeral),
        Some(Protocol::Icmp) | None => false,
    }
}

/// Returns `true` if a TCP packet with this tuple belongs to a connection of this machine, also to
/// one that is being opened.
#[inline(always)]
pub(crate) fn has_connection(context: *mut xdp_md, key: &FlowKey) -> bool {
    let (source, destination) = (u32::from_ne_bytes(key.source.0), u32::from_ne_bytes(key.destination.0));
    connection_exists(context, source, destination, key.ports()) != 0
}

/// As [`has_connection`]. A global function: the verifier looks at it once, and not on every path
/// that leads to it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn connection_exists(context: *mut xdp_md, source: u32, destination: u32, ports: u32) -> u32 {
    let [a, b, c, d] = ports.to_ne_bytes();
    let (source, destination) = (Ipv4(source.to_ne_bytes()), Ipv4(destination.to_ne_bytes()));
    let key = FlowKey::new(Protocol::Tcp, source, Port([a, b]), destination, Port([c, d]));
    u32::from(tcp_is_connected(context, &key))
}

// Two functions that are not inlined: the verifier does not let one instruction read from sockets
// of two kinds, and the compiler would make it one.

#[inline(never)]
fn tcp_is_connected(context: *mut xdp_md, key: &FlowKey) -> bool {
    // SAFETY: what is found is looked at while it is held, and given back.
    unsafe {
        let Some(socket) = find_tcp(context, key).as_ref() else { return false };
        let is_connected = socket.state != LISTEN;
        bpf_sk_release(core::ptr::from_ref(socket).cast_mut().cast());
        is_connected
    }
}

#[inline(never)]
fn udp_is_connected(context: *mut xdp_md, key: &FlowKey, ephemeral: PortRange) -> bool {
    // SAFETY: as above.
    unsafe {
        let Some(socket) = find_udp(context, key).as_ref() else { return false };
        // `dst_port` is as it stands in the packet.
        let is_connected = if socket.dst_ip4 == 0 {
            ephemeral.contains(key.destination_port.number())
        } else {
            socket.dst_ip4 == u32::from_ne_bytes(key.source.0)
                && socket.dst_port == u16::from_ne_bytes(key.source_port.0)
        };
        bpf_sk_release(core::ptr::from_ref(socket).cast_mut().cast());
        is_connected
    }
}

/// As [`is_connected`], by IPv6.
#[inline(always)]
pub(crate) fn is_connected_ipv6(context: *mut xdp_md, key: &Ipv6Key, ephemeral: PortRange) -> bool {
    match key.protocol() {
        Some(Protocol::Tcp) => tcp_is_connected_ipv6(context, key),
        Some(Protocol::Udp) => udp_is_connected_ipv6(context, key, ephemeral),
        Some(Protocol::Icmp) | None => false,
    }
}

#[inline(never)]
fn tcp_is_connected_ipv6(context: *mut xdp_md, key: &Ipv6Key) -> bool {
    let mut tuple = ipv6_tuple(key);
    // SAFETY: as `tcp_is_connected`, and tuple and length belong together.
    unsafe {
        let socket = bpf_skc_lookup_tcp(context.cast(), &raw mut tuple, IPV6_LENGTH, CURRENT_NETNS, 0);
        let Some(socket) = socket.as_ref() else { return false };
        let is_connected = socket.state != LISTEN;
        bpf_sk_release(core::ptr::from_ref(socket).cast_mut().cast());
        is_connected
    }
}

#[inline(never)]
fn udp_is_connected_ipv6(context: *mut xdp_md, key: &Ipv6Key, ephemeral: PortRange) -> bool {
    let mut tuple = ipv6_tuple(key);
    // SAFETY: as above.
    unsafe {
        let socket = bpf_sk_lookup_udp(context.cast(), &raw mut tuple, IPV6_LENGTH, CURRENT_NETNS, 0);
        let Some(socket) = socket.as_ref() else { return false };
        let [a, b, c, d] = socket.dst_ip6;
        let peer = (a, b, c, d, socket.dst_port);
        bpf_sk_release(core::ptr::from_ref(socket).cast_mut().cast());
        let [e, f, g, h] = words(key.source);
        if peer.0 | peer.1 | peer.2 | peer.3 == 0 {
            ephemeral.contains(key.destination_port.number())
        } else {
            peer == (e, f, g, h, u16::from_ne_bytes(key.source_port.0))
        }
    }
}

const IPV6_LENGTH: u32 = size_of::<Ipv6Tuple>() as u32;

#[inline(always)]
const fn ipv6_tuple(key: &Ipv6Key) -> bpf_sock_tuple {
    let ipv6 = Ipv6Tuple {
        saddr: words(key.source),
        daddr: words(key.destination),
        sport: u16::from_ne_bytes(key.source_port.0),
        dport: u16::from_ne_bytes(key.destination_port.0),
    };
    bpf_sock_tuple { __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv6 } }
}

/// An address as the kernel has it in structures: its bytes as they are, in numbers.
#[inline(always)]
const fn words(Ipv6([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]): Ipv6) -> [u32; 4] {
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
        u32::from_ne_bytes([m, n, o, p]),
    ]
}

/// Returns `true` if a packet with this tuple would reach a socket of this machine, connected or
/// listening. Echoes never do.
#[inline(always)]
pub(crate) fn owns(context: *mut xdp_md, key: &FlowKey) -> bool {
    // SAFETY: what is found is given back.
    unsafe {
        let socket = find(context, key);
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket.cast());
        true
    }
}

/// The socket that a packet with this tuple would reach, or null.
///
/// # Safety
/// The caller gives it back by `bpf_sk_release`.
#[inline(always)]
unsafe fn find(context: *mut xdp_md, key: &FlowKey) -> *mut bpf_sock {
    // SAFETY: the caller's promise.
    unsafe {
        match key.protocol() {
            Some(Protocol::Tcp) => find_tcp(context, key),
            Some(Protocol::Udp) => find_udp(context, key),
            Some(Protocol::Icmp) | None => core::ptr::null_mut(),
        }
    }
}

/// As [`find`], for TCP: connections that are being made, and that have ended, included.
#[inline(always)]
unsafe fn find_tcp(context: *mut xdp_md, key: &FlowKey) -> *mut bpf_sock {
    let mut tuple = tuple(key);
    // SAFETY: the context is the program's own; tuple and length belong together.
    unsafe { bpf_skc_lookup_tcp(context.cast(), &raw mut tuple, LENGTH, CURRENT_NETNS, 0) }
}

/// As [`find`], for UDP.
#[inline(always)]
unsafe fn find_udp(context: *mut xdp_md, key: &FlowKey) -> *mut bpf_sock {
    let mut tuple = tuple(key);
    // SAFETY: as above.
    unsafe { bpf_sk_lookup_udp(context.cast(), &raw mut tuple, LENGTH, CURRENT_NETNS, 0) }
}

const LENGTH: u32 = size_of::<Ipv4Tuple>() as u32;

#[inline(always)]
const fn tuple(key: &FlowKey) -> bpf_sock_tuple {
    let ipv4 = Ipv4Tuple {
        saddr: u32::from_ne_bytes(key.source.0),
        daddr: u32::from_ne_bytes(key.destination.0),
        sport: u16::from_ne_bytes(key.source_port.0),
        dport: u16::from_ne_bytes(key.destination_port.0),
    };
    bpf_sock_tuple { __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv4 } }
}
