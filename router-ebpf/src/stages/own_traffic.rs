//! The program `own_traffic`: this machine's own traffic on its way out, which XDP does not see.
//!
//! A classifier on the egress of the router's interfaces. It notes the destinations of datagrams
//! and echo requests, so that their answers are recognised ([`own_traffic`]), and keeps sessions
//! from taking those answers: a UDP or echo session gives way, and its client's next packet opens
//! another one with another port. A connection of this machine gets the port of a connection that
//! is over or was never answered. If that is alive, the new connection is refused at once, since
//! the answers to the two could not be told apart.
//!
//! It withholds what the kernel would answer to packets that are for the router, and get to the
//! kernel while no program is attached, as when the mode is changed: a reset would end the
//! connection, which can go on as if these packets had been lost.
//!
//! Packets that XDP sends do not pass here, nor those that the daemon sends for sessions

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
        addresses, flows,
        removal::{Removal, remove},
        rules,
        settings::{self, in_generic_mode},
        stats,
    },
};

/// The verdict for a packet that goes on unchanged.
const GO_ON: i32 = TC_ACT_UNSPEC;

/// The frame of a packet on its way out.
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

/// Processes a packet that leaves, and returns the verdict.
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
        Err(Reason::IcmpOther) => {
            return match packet::undelivered(&frame) {
                Some(undelivered) => {
                    let opens = matches!(undelivered.protocol(), Some(Protocol::Udp));
                    withhold_if_for_the_router(&frame, &undelivered, opens)
                }
                None => GO_ON,
            };
        }
        Err(_) => return GO_ON,
    };
    let FlowKey { source, destination, .. } = packet.key;
    // From any address: a machine without one asks for one.
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
        Protocol::Tcp if packet.tcp_flags & tcp::RST != 0 => {
            // A SYN acknowledges nothing, so the reset has no number (RFC 9293 3.10.7.1). Nor has
            // one about a FIN without ACK, which only a scan sends: it gets no answer either.
            let answers_syn = packet.tcp_flags & tcp::ACK != 0 && packet.sequence == 0;
            withhold_if_for_the_router(&frame, &answer, answers_syn)
        }
        Protocol::Udp | Protocol::Icmp if packet.opens() => {
            if own_traffic::note(&answer) {
                note_removal(remove(&answer));
            }
            GO_ON
        }
        Protocol::Tcp | Protocol::Udp | Protocol::Icmp => GO_ON,
    }
}

/// Handles a reset or an error of this machine about a packet with this tuple, which `opens` a
/// session if it has none. No socket of this machine has a session's tuple, nor do the programs
/// leave to the kernel what would open one: if they are attached, no such answer is sent but that
/// to a segment without ACK that opens nothing.
#[inline(always)]
fn withhold_if_for_the_router(frame: &SkbFrame<'_>, about: &FlowKey, opens: bool) -> i32 {
    if flows::has_flow(about) || (opens && has_listener(about)) {
        if let Some(stats) = stats::block() {
            stats.answer_withheld(frame.length());
        }
        return TC_ACT_SHOT;
    }
    GO_ON
}

/// Returns `true` if a forward listens where packets with this tuple go to.
#[inline(always)]
fn has_listener(key: &FlowKey) -> bool {
    let (Some(settings), Some(protocol)) = (settings::get(), key.protocol()) else { return false };
    let (version, port) = (settings.version(), key.destination_port);
    rules::in_force(version).is_some()
        && [Some(key.destination), None]
            .into_iter()
            .any(|address| rules::listener(version, protocol, address, port).is_some())
}

/// Notes the destination of an IPv6 packet.
#[inline(always)]
fn note_ipv6(frame: &SkbFrame<'_>) {
    match ipv6::sent(frame) {
        Some(Sent::Datagram(answer)) => own_traffic::note_ipv6(&answer),
        Some(Sent::Dhcp(transaction)) => own_traffic::note_ipv6(&dhcpv6_answer(transaction)),
        None => {}
    }
}

/// Handles the SYN of a connection of this machine, whose answers have this tuple.
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

/// Turns a SYN into the reset that refuses it, and redirects that to the ingress of the interface.
/// `None` if a helper failed, after which the packet may be damaged.
///
/// A function of its own in the object as well, for its stack: the verifier of Linux 6.1 adds up
/// what a program and the functions below it need, to at most 512 bytes.
#[inline(never)]
fn refuse(context: &TcContext) -> Option<i32> {
    let mut reset = [0; RESET_FRAME];
    {
        let frame = SkbFrame(context);
        let about: [u8; QUOTE_LENGTH] = *frame.bytes(ETHERNET_LENGTH)?;
        write_reset(&mut reset, &about, Segment(*frame.bytes(L4 + 8)?));
        // Back to its sender. The loopback interface accepts frames for its own address, which is
        // zero.
        if !in_generic_mode() {
            reset[..MAC].copy_from_slice(frame.bytes::<MAC>(MAC)?);
        }
        reset[MAC..2 * MAC].copy_from_slice(frame.bytes::<MAC>(0)?);
    }
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

/// Returns the interface that a reset comes in on: the one that the SYN would have left by. In
/// generic mode XDP would take the reset there for the session's, so it is the loopback interface,
/// where no XDP runs.
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
