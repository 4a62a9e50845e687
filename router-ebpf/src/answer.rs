//! Answers of the router's own, see [`router_common::answer`]: built in place of the packet that they answer.

use aya_ebpf::{helpers::generated::bpf_ktime_get_ns, macros::map, maps::PerCpuArray};
use router_common::{
    Stage,
    address::Port,
    answer::{
        ABOUT, Bucket, ERROR_FRAME, Error, RESET_FRAME, destination, may_be_answered, source, write_error,
        write_reset,
    },
    flow::{NextHop, Protocol},
    packet::{ETHERNET_LENGTH, Frame as _, L4},
    reason::Reason,
    route::Query,
};

use crate::{Exit, Outcome, Transmit, Work, established::address, flows, next_hop, punt, rules};

/// What is to be told to who has sent a packet.
struct Question {
    /// One of the constants below.
    kind: u32,
    /// The next hop's MTU, for [`TOO_BIG`].
    mtu: u32,
}

const TIME_EXCEEDED: u32 = 0;
const TOO_BIG: u32 = 1;
const REJECTED: u32 = 2;

/// One a CPU: written by who asks, read by the program that answers, right behind.
#[map]
static QUESTION: PerCpuArray<Question> = PerCpuArray::with_max_entries(1, 0);

/// One a CPU.
#[map]
static BUCKET: PerCpuArray<Bucket> = PerCpuArray::with_max_entries(1, 0);

/// The packet's time to live has ended here: its sender is to know.
#[inline(always)]
pub(crate) fn time_exceeded() -> Exit {
    ask(TIME_EXCEEDED, 0)
}

/// The packet is larger than its next hop takes, and must not be split.
#[inline(always)]
pub(crate) fn too_big(mtu: u16) -> Exit {
    ask(TOO_BIG, mtu)
}

/// The packet cannot open a session for want of a port: its sender is to know.
#[inline(always)]
pub(crate) fn rejected() -> Exit {
    ask(REJECTED, 0)
}

/// Has the packet answered, which must be as it was received. How it ends is then the answering program's to say.
#[inline(always)]
fn ask(kind: u32, mtu: u16) -> Exit {
    let Some(question) = QUESTION.get_ptr_mut(0) else { return Reason::Internal.into() };
    // SAFETY: this CPU's own, and nobody else has it now.
    let question = unsafe { &mut *question };
    question.kind = kind;
    question.mtu = u32::from(mtu);
    Exit::To(Stage::Answer)
}

/// Answers the packet, or drops it in silence where it must not be answered, or too many have been.
#[inline(always)]
pub(crate) fn answer(work: &mut Work) -> Outcome {
    let question = QUESTION.get(0).ok_or(Reason::Internal)?;
    let (kind, mtu) = (question.kind, question.mtu as u16);
    let (told, silent) = match kind {
        TIME_EXCEEDED => (Reason::TtlExceeded, Reason::TtlExpired),
        TOO_BIG => (Reason::FragmentationNeeded, Reason::TooBig),
        _ => (Reason::Rejected, Reason::PortsExhausted),
    };
    let next_hop = match build(work, kind, mtu) {
        Ok(next_hop) => next_hop,
        Err(Unanswered::Silent) => return Err(silent.into()),
        Err(Unanswered::Waiting(reason)) => return Err(reason.into()),
    };
    address(work, &next_hop)?;
    Ok(Transmit { reason: told, slot: u32::from(next_hop.slot) })
}

/// Why there is no answer to a packet, which is as it was received.
enum Unanswered {
    /// There must be none, or cannot be.
    Silent,
    /// The neighbour that it would go to is not known yet. The packet itself has been given to the daemon to wait for it.
    Waiting(Reason),
}

/// Makes the packet its answer, from the EtherType on; where that leaves.
#[inline(always)]
fn build(work: &mut Work, kind: u32, mtu: u16) -> Result<NextHop, Unanswered> {
    let destination_mac: [u8; 6] = *work.frame.bytes(0).ok_or(Unanswered::Silent)?;
    let about: [u8; ABOUT] = *work.frame.bytes(ETHERNET_LENGTH).ok_or(Unanswered::Silent)?;
    let sender = source(&about);
    if !may_be_answered(destination_mac, &about) || rules::is_local(sender) || !take_turn() {
        return Err(Unanswered::Silent);
    }
    let ip_length = u16::from_be_bytes([about[2], about[3]]);
    if kind == REJECTED && about[9] == Protocol::Tcp as u8 {
        // As if from whom the packet was for.
        let [a, b, c, d]: [u8; 4] = *work.frame.bytes(L4).ok_or(Unanswered::Silent)?;
        let query =
            Query::new(Protocol::Tcp as u8, 0, (destination(&about), Port([c, d])), (sender, Port([a, b])));
        let next_hop = way_back(work, ip_length, &query)?;
        let [offset]: [u8; 1] = *work.frame.bytes(L4 + 12).ok_or(Unanswered::Silent)?;
        work.frame.resize(RESET_FRAME).ok_or(Unanswered::Silent)?;
        let frame = work.frame.bytes_mut(0).ok_or(Unanswered::Silent)?;
        write_reset(frame, &about, offset >> 4 << 2);
        return Ok(next_hop);
    }
    let error = match kind {
        TIME_EXCEEDED => Error::TIME_EXCEEDED,
        TOO_BIG => Error::too_big(mtu),
        _ => Error::PROHIBITED,
    };
    // Whom the sender talks to, if that is this machine; else where the packet came in (RFC 1812 4.3.2.4).
    let from = if rules::is_local(destination(&about)) {
        destination(&about)
    } else {
        work.settings.interface(work.ingress).address
    };
    if !from.is_unicast() {
        return Err(Unanswered::Silent);
    }
    let nothing = Port([0; 2]);
    let query = Query::new(Protocol::Icmp as u8, 0, (from, nothing), (sender, nothing));
    let next_hop = way_back(work, ip_length, &query)?;
    work.frame.resize(ERROR_FRAME).ok_or(Unanswered::Silent)?;
    write_error(work.frame.bytes_mut(0).ok_or(Unanswered::Silent)?, &about, from, error);
    Ok(next_hop)
}

/// Where an answer leaves. If its neighbour is not known yet, the packet waits for it; who traces a route may never have had an answer from
/// here.
#[inline(always)]
fn way_back(work: &Work, ip_length: u16, query: &Query) -> Result<NextHop, Unanswered> {
    match next_hop::resolve(work, query) {
        Ok(next_hop) => Ok(next_hop),
        Err(Reason::Resolving) if work.settings.daemon_is_there(flows::now()) => {
            Err(Unanswered::Waiting(punt::wait(work, ip_length)))
        }
        Err(_) => Err(Unanswered::Silent),
    }
}

/// Whether this CPU may give one more answer now.
#[inline(always)]
fn take_turn() -> bool {
    // SAFETY: this CPU's own, and nobody else has it now.
    let Some(bucket) = BUCKET.get_ptr_mut(0).map(|bucket| unsafe { &mut *bucket }) else { return false };
    // SAFETY: takes nothing and always answers.
    bucket.take(unsafe { bpf_ktime_get_ns() })
}
