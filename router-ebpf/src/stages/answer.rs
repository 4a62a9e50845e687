//! The program `answer`: the router's own ICMP errors and resets, see [`router_common::answer`]. An
//! answer is built in place of the packet that it answers.

use aya_ebpf::{helpers::generated::bpf_ktime_get_ns, macros::map, maps::Array};
use router_common::{
    address::{Ipv4, Port},
    answer::{
        ERROR_FRAME, Error, Limited, QUOTE_LENGTH, RESET_FRAME, Reply, Reset, SHARES, Segment, Share,
        destination, may_be_answered, reply_to, source, write_error, write_reset,
    },
    entry::NextHop,
    maps::route::Query,
    policy::disposition::{Departure, Disposition, dispose},
    rate::TokenBucket,
    reason::Reason,
    table::source_hash,
    tuple::Protocol,
    wire::{ETHERNET_LENGTH, Frame as _, L4},
};

use crate::{
    kernel::{next_hop, punt},
    maps::{addresses, settings},
    session::{answer_request::ANSWER_REQUEST, rewrite::address_frame},
    work::{Outcome, Transmit, Work},
};

/// The answers that each source may still get, by a keyed hash of its address: 192 KiB. Shared by
/// all CPUs, taken from atomically.
#[map]
static ANSWER_SHARES: Array<[Share; Limited::KINDS]> = Array::with_max_entries(SHARES, 0);

/// The answers that all sources together may still get, by kind. Shared, as above.
#[map]
static ANSWERS_TO_ALL: Array<TokenBucket> = Array::with_max_entries(Limited::KINDS as u32, 0);

/// Answers the packet. Drops it silently if it must not be answered, or if the rate limit is
/// reached.
#[inline(always)]
pub(crate) fn run(work: &mut Work) -> Outcome {
    let request = ANSWER_REQUEST.get().ok_or(Reason::Internal)?;
    let silent = Reason::from_number(request.silent.get()).ok_or(Reason::Internal)?;
    let reply = reply_to(silent).ok_or(silent)?;
    let next_hop = build(work, silent, &reply, request.mtu.get() as u16)?;
    address_frame(work, &next_hop)?;
    Ok(Transmit { reason: reply.reason, slot: u32::from(next_hop.slot) })
}

/// The reason for a failure after the first write, when the packet can't be used any more.
const BROKEN: Reason = Reason::Internal;

/// Turns the packet into its answer, from the EtherType on, and returns the answer's next hop.
///
/// # Errors
/// Returns the reason `silent` if the packet must not or cannot be answered: it is then as it was
/// received. Returns another reason if the packet has ended already, for example to wait for the
/// neighbour of the answer.
#[inline(always)]
fn build(work: &mut Work, silent: Reason, reply: &Reply, mtu: u16) -> Result<NextHop, Reason> {
    let destination_mac: [u8; 6] = *work.frame.bytes(0).ok_or(silent)?;
    let about: [u8; QUOTE_LENGTH] = *work.frame.bytes(ETHERNET_LENGTH).ok_or(silent)?;
    let sender = source(&about);
    if !may_be_answered(destination_mac, &about) || addresses::is_local(sender) {
        return Err(silent);
    }
    let ip_length = u16::from_be_bytes([about[2], about[3]]);
    let is_own = addresses::is_local(destination(&about));
    if about[9] == Protocol::Tcp as u8 && !matches!(reply.reset, Reset::Never) {
        let segment = Segment(*work.frame.bytes(L4 + 8).ok_or(silent)?);
        if matches!(reply.reset, Reset::Always) || (is_own && segment.opens()) {
            if !segment.may_be_reset(&about) || !may_be_answered_now(Some(Limited::Reset), sender) {
                return Err(silent);
            }
            // As if the packet's destination had sent it.
            let [a, b, c, d]: [u8; 4] = *work.frame.bytes(L4).ok_or(silent)?;
            let query = Query::new(
                Protocol::Tcp as u8,
                0,
                (destination(&about), Port([c, d])),
                (sender, Port([a, b])),
            );
            let next_hop = next_hop_of_answer(work, ip_length, silent, &query)?;
            work.frame.resize(RESET_FRAME).ok_or(BROKEN)?;
            write_reset(work.frame.bytes_mut(0).ok_or(BROKEN)?, &about, segment);
            return Ok(next_hop);
        }
    }
    let error = Error { mtu, ..reply.error };
    // From the packet's destination if that is this machine, else from the address of the interface
    // that it came in on (RFC 1812 4.3.2.4).
    let from = if is_own { destination(&about) } else { work.settings.address(work.ingress) };
    if !from.is_unicast() || !may_be_answered_now(Limited::of(error), sender) {
        return Err(silent);
    }
    let nothing = Port([0; 2]);
    let query = Query::new(Protocol::Icmp as u8, 0, (from, nothing), (sender, nothing));
    let next_hop = next_hop_of_answer(work, ip_length, silent, &query)?;
    work.frame.resize(ERROR_FRAME).ok_or(BROKEN)?;
    write_error(work.frame.bytes_mut(0).ok_or(BROKEN)?, &about, from, error);
    Ok(next_hop)
}

/// Returns the next hop of an answer. If its neighbour is not known yet, the packet waits for it:
/// with traceroute, an answer may be the first packet to that neighbour.
#[inline(always)]
fn next_hop_of_answer(work: &Work, ip_length: u16, silent: Reason, query: &Query) -> Result<NextHop, Reason> {
    let next_hop = next_hop::resolve(work, query);
    let disposition = dispose(next_hop.map(|next_hop| next_hop.mtu), &Departure::of_answer(silent), work);
    match (disposition, next_hop) {
        (Disposition::Transmit, Ok(next_hop)) => Ok(next_hop),
        (Disposition::Wait, _) => Err(punt::wait(work, ip_length)),
        _ => Err(silent),
    }
}

/// Returns `true` if this source may get one more answer now.
#[inline(always)]
fn may_be_answered_now(kind: Option<Limited>, source: Ipv4) -> bool {
    kind.is_none_or(|kind| take_answer(kind as u32, u32::from_ne_bytes(source.0)) != 0)
}

/// Takes one answer of this kind from what a source may get, and returns 1 if there was one. A
/// global function: the verifier looks at its loops once, and not on every path that leads to them.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn take_answer(kind: u32, source: u32) -> u32 {
    let Some(settings) = settings::get() else { return 0 };
    let place = source_hash(&settings.seeds(), Ipv4(source.to_ne_bytes())) & (SHARES - 1);
    let (Some(shares), Some(all)) = (ANSWER_SHARES.get(place), ANSWERS_TO_ALL.get(kind)) else { return 0 };
    let Some(share) = shares.get(kind as usize) else { return 0 };
    // SAFETY: takes nothing and always answers.
    u32::from(share.take(all, unsafe { bpf_ktime_get_ns() }))
}
