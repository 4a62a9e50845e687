//! This machine's own sockets.

use aya_ebpf::{
    bindings::{
        bpf_sock, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Ipv4Tuple, xdp_md,
    },
    helpers::generated::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
};
use router_common::{
    address::Ipv4,
    flow::{FlowKey, Protocol},
    ports::PortRange,
};

/// `BPF_F_CURRENT_NETNS`, include/uapi/linux/bpf.h.
const CURRENT_NETNS: u64 = u64::MAX;

/// Whether a packet with this tuple belongs to a connection of this machine: of TCP, any that is not just listening; of UDP, a socket that
/// talks to this very peer, or to anyone from a port that the kernel gave it, as clients do.
#[inline(always)]
pub(crate) fn is_connected(context: *mut xdp_md, key: &FlowKey<Ipv4>, ephemeral: PortRange) -> bool {
    /// `TCP_LISTEN`, include/net/tcp_states.h.
    const LISTEN: u32 = 10;
    // SAFETY: what is found is looked at while it is held, and given back.
    unsafe {
        let Some(socket) = find(context, key).as_ref() else { return false };
        let is_connected = match key.protocol() {
            Some(Protocol::Tcp) => socket.state != LISTEN,
            _ if socket.dst_ip4 == 0 => ephemeral.contains(key.destination_port.number()),
            // `dst_port` is as it stands in the packet, in the first half of the field.
            _ => {
                socket.dst_ip4 == u32::from_ne_bytes(key.source.0)
                    && socket.dst_port as u16 == u16::from_ne_bytes(key.source_port.0)
            }
        };
        bpf_sk_release(core::ptr::from_ref(socket).cast_mut().cast());
        is_connected
    }
}

/// Whether a packet with this tuple would reach a socket of this machine: a connection, or one that listens. An echo has none.
#[inline(always)]
pub(crate) fn owns(context: *mut xdp_md, key: &FlowKey<Ipv4>) -> bool {
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
unsafe fn find(context: *mut xdp_md, key: &FlowKey<Ipv4>) -> *mut bpf_sock {
    let ipv4 = Ipv4Tuple {
        saddr: u32::from_ne_bytes(key.source.0),
        daddr: u32::from_ne_bytes(key.destination.0),
        sport: u16::from_ne_bytes(key.source_port.0),
        dport: u16::from_ne_bytes(key.destination_port.0),
    };
    let mut tuple = bpf_sock_tuple { __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv4 } };
    let (context, length) = (context.cast(), size_of::<Ipv4Tuple>() as u32);
    // SAFETY: the context is the program's own; tuple and length belong together.
    unsafe {
        match key.protocol() {
            Some(Protocol::Tcp) => bpf_skc_lookup_tcp(context, &raw mut tuple, length, CURRENT_NETNS, 0),
            Some(Protocol::Udp) => bpf_sk_lookup_udp(context, &raw mut tuple, length, CURRENT_NETNS, 0),
            Some(Protocol::Icmp) | None => core::ptr::null_mut(),
        }
    }
}
