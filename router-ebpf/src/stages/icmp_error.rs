//! The program `icmp_error`: ICMP errors about packets of sessions, see [`router_common::icmp`].

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_csum_diff, bpf_xdp_load_bytes, bpf_xdp_store_bytes},
    macros::map,
};
use router_common::{
    address::{AZURE_PLATFORM, Ipv4, Port},
    bounds,
    checksum::Sum,
    icmp::{CAPACITY, HEAD, Message},
    maps::stages::Stage,
    policy::disposition::Departure,
    reason::Reason,
    rewrite::Rewrite,
    tuple::{FlowKey, Protocol},
    wire::{ETHERNET_LENGTH, Frame as _, IPV4_LENGTH, L4},
};

use crate::{
    kernel::next_hop,
    maps::{flows, scratch::Scratch},
    session::{
        departure::{dispose, find_and_dispose},
        rewrite::address_frame,
    },
    work::{Exit, Outcome, Transmit, Work},
};

/// The longest message that is loaded whole: the checksum needs room for some bytes of zero after
/// it.
const WHOLE: usize = CAPACITY - size_of::<u32>();
/// The exit of a message that quotes no packet of a session.
const NOT_OURS: Exit = Exit::To(Stage::Local);
/// The most bytes that one call of `bpf_csum_diff` sums up before Linux 6.14.
const SUMMED_AT_ONCE: usize = 512;

/// Per-CPU scratch: the message that is being read.
#[map]
// SAFETY: numbers.
static MESSAGE: Scratch<Message> = unsafe { Scratch::new() };

/// Translates an ICMP error about a packet of a session and sends it on. The error travels in the
/// direction of replies to the packet that it quotes. It neither refreshes nor ends the session
/// (RFC 5508 REQ-6, RFC 5382 REQ-10).
///
/// Any other ICMP message goes to this machine's own stack, also an error about a packet that no
/// session has sent.
#[inline(always)]
pub(crate) fn run(work: &mut Work) -> Outcome {
    let headers: &[u8; L4] = work.frame.bytes(0).ok_or(Reason::Truncated)?;
    let ip = |at: usize| headers[ETHERNET_LENGTH + at];
    let ip_length = u16::from_be_bytes([ip(2), ip(3)]);
    let ttl = ip(8);
    let sender = Ipv4([ip(12), ip(13), ip(14), ip(15)]);
    let receiver = Ipv4([ip(16), ip(17), ip(18), ip(19)]);
    if sender == AZURE_PLATFORM || receiver == AZURE_PLATFORM {
        return Err(Reason::Platform.into());
    }
    let message = load(work, ip_length).ok_or(NOT_OURS)?;
    let quoted = message.quoted().ok_or(NOT_OURS)?;
    // An error goes to the sender of the packet that it quotes.
    if receiver != quoted.source {
        return Err(NOT_OURS);
    }
    let key = quoted.reversed();
    let slot = flows::find(&key, work.settings).ok_or(NOT_OURS)?;
    if !slot.tag().may_come_in_by(work.ingress) {
        return Err(Reason::WrongInterface.into());
    }
    let rewrite = slot.entry.rewrite();
    let (generation, known) = (work.settings.next_hop_generation(), slot.entry.next_hop());
    // The quoted packet must have been sent by the session's other direction.
    let twin = flows::find(&key.twin(&rewrite), work.settings).ok_or(NOT_OURS)?;
    if twin.entry.rewrite() != Rewrite::to(&quoted) || twin.entry.packets() == 0 {
        return Err(NOT_OURS);
    }
    // RFC 5508 REQ-3.
    if !is_valid(message) {
        return Err(Reason::BadChecksum.into());
    }
    // No ICMP error about an ICMP error (RFC 1122 3.2.2).
    if ttl <= 1 {
        return Err(Reason::TtlExpired.into());
    }
    // If the session translates the source, errors from that side come from the translated address,
    // whichever router sent them.
    let source = if rewrite.source == key.source { sender } else { rewrite.source };
    let departing = Departure::of_icmp_error(ip_length);
    let next_hop = if known.is_current(generation) {
        dispose(work, ip_length, known, &departing)
    } else {
        // By the same next hop as the session's packets: a firewall there knows the connection.
        find_and_dispose(work, ip_length, &next_hop::query(work, &key, &rewrite), &departing)
    }?;
    message.translate(&rewrite);
    store(work, message).ok_or(Reason::Internal)?;
    let nothing = Port([0, 0]);
    let outer = FlowKey::new(Protocol::Icmp, source, nothing, rewrite.destination, nothing);
    let received = outer.between(sender, nothing, receiver, nothing);
    Rewrite::to(&outer).apply_addresses(&received, work.frame.bytes_mut(0).ok_or(Reason::Internal)?);
    address_frame(work, &next_hop)?;
    Ok(Transmit { reason: Reason::IcmpError, slot: u32::from(next_hop.slot) })
}

/// Loads the message, or as much of it as there is room for.
#[inline(always)]
fn load(work: &Work, ip_length: u16) -> Option<&'static Message> {
    let message = MESSAGE.get()?;
    let length = usize::from(ip_length).checked_sub(IPV4_LENGTH)?;
    message.length.set(length as u32);
    let to_load = bounds::length::<WHOLE>(if length > WHOLE { HEAD } else { length } as u32)?;
    // SAFETY: the context is the program's own, and the buffer, which is in cells, longer than what
    // is loaded.
    let result = unsafe {
        bpf_xdp_load_bytes(
            work.frame.context().as_ptr().cast(),
            L4 as u32,
            message.bytes.as_ptr().cast_mut().cast(),
            to_load,
        )
    };
    (result == 0).then_some(message)
}

/// Returns `true` if the message's checksum is right. A message that is too long to verify counts
/// as valid: its receiver verifies the checksum, too.
#[inline(always)]
fn is_valid(message: &Message) -> bool {
    let length = message.length.get() as usize;
    if length > WHOLE {
        return true;
    }
    // `bpf_csum_diff` sums up whole 32-bit words.
    for behind in 0..size_of::<u32>() - 1 {
        message.bytes[(length + behind) & (CAPACITY - 1)].set(0);
    }
    let words = (length + 3) & !3;
    let first = if words > SUMMED_AT_ONCE { SUMMED_AT_ONCE } else { words };
    let rest = if words - first > SUMMED_AT_ONCE { SUMMED_AT_ONCE } else { words - first };
    let (start, second) = message.bytes.split_at(SUMMED_AT_ONCE);
    // SAFETY: each half of the buffer is as long as what is summed up of it can be.
    let sum = unsafe {
        let sum = bpf_csum_diff(core::ptr::null_mut(), 0, start.as_ptr().cast_mut().cast(), first as u32, 0);
        bpf_csum_diff(core::ptr::null_mut(), 0, second.as_ptr().cast_mut().cast(), rest as u32, sum as u32)
    };
    Sum::from_kernel(sum as u32).is_valid()
}

/// Writes back the bytes that the translation may have changed.
#[inline(always)]
fn store(work: &Work, message: &Message) -> Option<()> {
    let changed = bounds::length::<HEAD>(message.length.get().min(HEAD as u32))?;
    // SAFETY: as above.
    let result = unsafe {
        bpf_xdp_store_bytes(
            work.frame.context().as_ptr().cast(),
            L4 as u32,
            message.bytes.as_ptr().cast_mut().cast(),
            changed,
        )
    };
    (result == 0).then_some(())
}
