//! What this machine itself sends, which XDP does not see.
//!
//! A classifier on the way out of the router's interfaces. It notes where datagrams and echo
//! requests go, so that the answers are known ([`own_traffic`]), and sees to it that no session
//! takes them: one of UDP or echo gives way, and its client's next packet opens another, with
//! another port. A connection of this machine's own gets the port of a connection that is over or
//! was never answered; where that is alive, it is refused at once, since the answers to the two
//! could not be told apart.
//!
//! What XDP sends does not come by here, nor what the daemon sends for sessions
//! (`PACKET_QDISC_BYPASS`).

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::generated::{bpf_redirect, bpf_skb_change_tail, bpf_skb_store_bytes},
    programs::TcContext,
};
use router_common::{
    address::AZURE_PLATFORM,
    answer::{QUOTE_LENGTH, RESET_FRAME, Segment, write_reset},
    ipv6::{self, Sent},
    maps::own::{dhcp_answer, dhcp_transaction, dhcpv6_answer, is_to_dhcp_server},
    packet::{self},
    reason::Reason,
    tcp,
    tuple::{FlowKey, Protocol},
    wire::{ETHERNET_LENGTH, Frame, L4},
};

use crate::{
    kernel::own_traffic,
    maps::{
        addresses,
        removal::{Removal, remove},
        settings::in_generic_mode,
        stats,
    },
};

/// The packet goes on as it is.
const GO_ON: i32 = TC_ACT_UNSPEC;

/// A packet on its way out.
struct SkbFrame<'a>(&'a TcContext);

impl Frame for SkbFrame<'_> {
    #[inline(always)]
    fn length(&self) -> usize {
        self.0.len() as usize
    }

    #[inline(always)]
    fn bytes<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        let frame = self.0.data();
        // SAFETY: the kernel's verifier, too, takes packets to start at an even address, see
        // `XdpFrame::at`.
        unsafe { core::hint::assert_unchecked(frame & 1 == 0 && frame != 0) };
        let start = frame + offset;
        if start + N > self.0.data_end() {
            return None;
        }
        // SAFETY: the bytes are in the frame, and nothing writes to them while there is a
        // reference.
        Some(unsafe { &*(start as *const [u8; N]) })
    }

    /// Nothing is written here.
    #[inline(always)]
    fn bytes_mut<const N: usize>(&mut self, _offset: usize) -> Option<&mut [u8; N]> {
        None
    }
}

/// Looks at a packet that leaves.
#[inline(always)]
pub(crate) fn run(context: &TcContext) -> i32 {
    // SAFETY: the context is the program's own.
    if unsafe { (*context.skb.skb).vlan_present } != 0 {
        return GO_ON;
    }
    let frame = SkbFrame(context);
    let packet = match packet::parse_leading(&frame) {
        Ok(packet) => packet,
        Err(Reason::NotIpv4) => {
            note_ipv6(&frame);
            return GO_ON;
        }
        Err(_) => return GO_ON,
    };
    let FlowKey { source, destination, .. } = packet.key;
    // From whatever address: who has none yet asks for one.
    if is_to_dhcp_server(&packet)
        && let Some(transaction) = dhcp_transaction(&frame)
    {
        own_traffic::note(&dhcp_answer(transaction));
    }
    if !destination.is_unicast() || destination == AZURE_PLATFORM || !addresses::is_local(source) {
        return GO_ON;
    }
    let answer = packet.key.reversed();
    match packet.protocol {
        Protocol::Tcp if packet.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN => connects(context, &answer),
        Protocol::Udp | Protocol::Icmp if packet.opens() => {
            if own_traffic::note(&answer) {
                note_removal(remove(&answer));
            }
            GO_ON
        }
        Protocol::Tcp | Protocol::Udp | Protocol::Icmp => GO_ON,
    }
}

/// Notes what goes out by IPv6.
#[inline(always)]
fn note_ipv6(frame: &SkbFrame<'_>) {
    match ipv6::sent(frame) {
        Some(Sent::Datagram(answer)) => own_traffic::note_ipv6(&answer),
        Some(Sent::Dhcp(transaction)) => own_traffic::note_ipv6(&dhcpv6_answer(transaction)),
        None => {}
    }
}

/// A connection of this machine's own begins, whose answers have this tuple.
#[inline(always)]
fn connects(context: &TcContext, answer: &FlowKey) -> i32 {
    match remove(answer) {
        Removal::Alive => {
            if let Some(stats) = stats::block() {
                stats.connection_refused();
            }
            refuse(context).unwrap_or(TC_ACT_SHOT)
        }
        removal @ (Removal::Nothing | Removal::Removed) => {
            note_removal(removal);
            GO_ON
        }
    }
}

/// Bytes of a MAC address.
const MAC: usize = 6;

/// Turns a SYN into the reset that refuses it, which comes in where the SYN would have gone out.
/// `None` if the packet may have become something else on the way there.
#[inline(always)]
fn refuse(context: &TcContext) -> Option<i32> {
    let (about, segment, source, destination) = {
        let frame = SkbFrame(context);
        let about: [u8; QUOTE_LENGTH] = *frame.bytes(ETHERNET_LENGTH)?;
        let segment = Segment(*frame.bytes(L4 + 8)?);
        let destination: [u8; MAC] = *frame.bytes(0)?;
        let source: [u8; MAC] = *frame.bytes(MAC)?;
        (about, segment, source, destination)
    };
    let mut reset = [0; RESET_FRAME];
    write_reset(&mut reset, &about, segment);
    // To where it has come from; the loopback interface takes frames to its own address, which is
    // zero.
    let to = if in_generic_mode() { [0; MAC] } else { source };
    reset[..MAC].copy_from_slice(&to);
    reset[MAC..2 * MAC].copy_from_slice(&destination);
    let skb = context.skb.skb;
    // SAFETY: the context is the program's own, and the bytes are as many as is said.
    unsafe {
        if bpf_skb_change_tail(skb, RESET_FRAME as u32, 0) != 0
            || bpf_skb_store_bytes(skb, 0, reset.as_ptr().cast(), RESET_FRAME as u32, 0) != 0
        {
            return None;
        }
        Some(bpf_redirect(way_in((*skb).ifindex), u64::from(BPF_F_INGRESS)) as i32)
    }
}

/// The interface that a reset comes in by: the one that the SYN would have left by. In generic mode
/// XDP would take the reset there for the session's, so it is the loopback interface, where there
/// is no XDP.
#[inline(always)]
fn way_in(interface: u32) -> u32 {
    const LOOPBACK: u32 = 1;
    if in_generic_mode() { LOOPBACK } else { interface }
}

#[inline(always)]
fn note_removal(removal: Removal) {
    if matches!(removal, Removal::Removed)
        && let Some(stats) = stats::block()
    {
        stats.session_ended();
    }
}
