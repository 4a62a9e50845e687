//! This machine's own sockets.

use aya_ebpf::{
    bindings::{
        bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Ipv4Tuple, xdp_md,
    },
    helpers::generated::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
};
use router_common::{
    address::Ipv4,
    flow::{FlowKey, Protocol},
};

/// `BPF_F_CURRENT_NETNS`, include/uapi/linux/bpf.h.
const CURRENT_NETNS: u64 = u64::MAX;

/// Whether a packet with this tuple would reach a socket of this machine: a connection, or one that listens. An echo has none.
#[inline(always)]
pub(crate) fn owns(context: *mut xdp_md, key: &FlowKey<Ipv4>) -> bool {
    let mut tuple = bpf_sock_tuple {
        __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 {
            ipv4: Ipv4Tuple {
                saddr: u32::from_ne_bytes(key.source.0),
                daddr: u32::from_ne_bytes(key.destination.0),
                sport: u16::from_ne_bytes(key.source_port.0),
                dport: u16::from_ne_bytes(key.destination_port.0),
            },
        },
    };
    let length = size_of::<Ipv4Tuple>() as u32;
    // SAFETY: the context is the program's own; tuple and length belong together; what is found is given back.
    unsafe {
        let context = context.cast();
        let socket = match key.protocol() {
            Some(Protocol::Tcp) => {
                bpf_skc_lookup_tcp(context, &raw mut tuple, length, CURRENT_NETNS, 0).cast()
            }
            Some(Protocol::Udp) => bpf_sk_lookup_udp(context, &raw mut tuple, length, CURRENT_NETNS, 0),
            Some(Protocol::Icmp) | None => return false,
        };
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket.cast());
        true
    }
}
