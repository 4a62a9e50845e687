//! Probes: packets that go through the router and come back, and show how long that takes.
//!
//! With nothing else on the wires there is one at a time: `ping` sends the first one, and where it comes back it is sent again. Under load
//! they are packets of the generator's ([`take_turn`]), whether the ones before have come back or not: one that waited for its
//! predecessor would be sent most often when the router is quick, and would not show when it is not.

use aya_ebpf::{
    bindings::xdp_action,
    helpers::generated::bpf_ktime_get_ns,
    macros::{map, xdp},
    maps::Array,
    programs::XdpContext,
};

use crate::{
    buckets::{BUCKETS, bucket},
    programs::setting,
};

/// A probe's length: the shortest frame.
const FRAME: usize = 60;
const ETHER_TYPE: usize = 12;
const IP_START: usize = 14;
const IP_PROTOCOL: usize = 23;
const IP_SOURCE: usize = 26;
const IP_DESTINATION: usize = 30;
const UDP_SOURCE: usize = 34;
const UDP_DESTINATION: usize = 36;
/// What tells a probe from other packets.
const MARK: usize = 42;
/// When it was sent, and the complement of that: together they add nothing to the checksum, whatever they are.
const TIME: usize = 46;
const TIME_COMPLEMENT: usize = 50;
/// Which of the bench's probes it is, and the complement.
const EPOCH: usize = 54;
const EPOCH_COMPLEMENT: usize = 56;

/// A probe as it is sent, but for its time and its epoch. Set when `sink` is loaded, if there are to be probes. So are the next two.
#[unsafe(no_mangle)]
static PROBE: [u8; FRAME] = [0; FRAME];

/// What is at [`MARK`] in a probe, as a number; 0 if nothing is a probe.
#[unsafe(no_mangle)]
static PROBE_MARK: u32 = 0;

/// The port that probes come from, and back to.
#[unsafe(no_mangle)]
static PROBE_PORT: u32 = 0;

/// The epoch of the probes that count; 0 to 65,535. Written by the bench: probes that it has given up on are of an earlier one.
#[map]
static PROBE_EPOCH: Array<u32> = Array::with_max_entries(1, 0);

/// How many probes came back after how long, in nanoseconds, by [`bucket`]. Written by
/// the CPU that probes come back on; the bench reads.
#[map]
static PROBE_TIMES: Array<u64> = Array::with_max_entries(BUCKETS as u32, 0);

/// One in how many of the generator's packets is a probe; 0 if none is, and there is only the one that goes to and fro. Written by the bench.
#[map]
static PROBE_EVERY: Array<u64> = Array::with_max_entries(1, 0);

/// Packets since the last probe among the generator's, and how many probes there have been. Written by the CPU that generates; the bench reads.
#[map]
static PROBE_TURNS: Array<[u64; 2]> = Array::with_max_entries(1, 0);

/// What became of probes: those that came back and count, and those of an earlier epoch. As [`PROBE_TIMES`].
#[map]
static PROBES: Array<[u64; 2]> = Array::with_max_entries(1, 0);

/// Sends the first probe: for `BPF_PROG_TEST_RUN` with one live frame, which is a probe but for its time.
#[xdp]
fn ping(ctx: XdpContext) -> u32 {
    let Some(frame) = frame(&ctx) else { return xdp_action::XDP_ABORTED };
    // SAFETY: `frame` checked the bounds, and nothing else refers to the packet.
    put_time(unsafe { &mut *frame }, now());
    xdp_action::XDP_TX
}

/// Makes a packet of the generator's a probe if it is time for one.
#[inline(always)]
pub(crate) fn take_turn(ctx: &XdpContext) -> Option<u32> {
    if setting(&PROBE_MARK) == 0 {
        return None;
    }
    let (every, turns) = (PROBE_EVERY.get(0)?, PROBE_TURNS.get_ptr_mut(0)?);
    if *every == 0 {
        return None;
    }
    // SAFETY: one CPU generates where there are probes.
    let [since, sent] = unsafe { &mut *turns };
    *since += 1;
    if *since < *every {
        return None;
    }
    *since = 0;
    let (frame, epoch) = (frame(ctx)?, PROBE_EPOCH.get(0)?);
    *sent += 1;
    // SAFETY: `frame` checked the bounds, and nothing else refers to the packet.
    write(unsafe { &mut *frame }, now(), *epoch);
    Some(xdp_action::XDP_TX)
}

/// What becomes of a probe at an end of its way; `None` if the packet is none.
///
/// At the far end it is turned round. Where it comes from, its time is counted, and if it is the only one, it is sent again.
#[inline(always)]
pub(crate) fn handle(ctx: &XdpContext) -> Option<u32> {
    if setting(&PROBE_MARK) == 0 {
        return None;
    }
    let frame = frame(ctx)?;
    // SAFETY: `frame` checked the bounds, and nothing else refers to the packet.
    let frame = unsafe { &mut *frame };
    if !is_probe(frame) {
        return None;
    }
    if u32::from(word(frame, UDP_DESTINATION)) == setting(&PROBE_PORT) {
        return Some(came_back(frame));
    }
    // Checksums stay right, since what is swapped is in all of their sums.
    swap::<6>(frame, 0, 6);
    swap::<4>(frame, IP_SOURCE, IP_DESTINATION);
    swap::<2>(frame, UDP_SOURCE, UDP_DESTINATION);
    Some(xdp_action::XDP_TX)
}

#[inline(always)]
fn came_back(frame: &mut [u8; FRAME]) -> u32 {
    let (Some(epoch), Some(probes), Some(every)) =
        (PROBE_EPOCH.get(0), PROBES.get_ptr_mut(0), PROBE_EVERY.get(0))
    else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: the value stays where it is, and nobody else writes to it, see there.
    let [counted, late] = unsafe { &mut *probes };
    if word(frame, EPOCH) != *epoch as u16 {
        *late += 1;
        return xdp_action::XDP_DROP;
    }
    let now = now();
    // The clock's low half goes round every 4 s, long after a probe has been given up.
    let time = now.wrapping_sub(quad(frame, TIME));
    if let Some(count) = PROBE_TIMES.get_ptr_mut(bucket(time) as u32) {
        // SAFETY: as above.
        unsafe { *count += 1 };
    }
    *counted += 1;
    if *every != 0 {
        return xdp_action::XDP_DROP;
    }
    write(frame, now, *epoch);
    xdp_action::XDP_TX
}

/// Makes a frame a probe. All of it: it comes back as the router has left it.
#[inline(always)]
fn write(frame: &mut [u8; FRAME], time: u32, epoch: u32) {
    *frame = setting(&PROBE);
    put_time(frame, time);
    let epoch = epoch as u16;
    put(frame, EPOCH, epoch.to_be_bytes());
    put(frame, EPOCH_COMPLEMENT, (!epoch).to_be_bytes());
}

#[inline(always)]
fn frame(ctx: &XdpContext) -> Option<*mut [u8; FRAME]> {
    let start = ctx.data();
    if start + FRAME > ctx.data_end() { None } else { Some(start as *mut [u8; FRAME]) }
}

/// IPv4 (RFC 894) without options, UDP (RFC 768), and the mark.
#[inline(always)]
fn is_probe(frame: &[u8; FRAME]) -> bool {
    word(frame, ETHER_TYPE) == 0x0800
        && frame[IP_START] == 0x45
        && frame[IP_PROTOCOL] == 17
        && quad(frame, MARK) == setting(&PROBE_MARK)
}

#[inline(always)]
fn put_time(frame: &mut [u8; FRAME], time: u32) {
    put(frame, TIME, time.to_be_bytes());
    put(frame, TIME_COMPLEMENT, (!time).to_be_bytes());
}

/// The clock's low half, in nanoseconds.
#[inline(always)]
fn now() -> u32 {
    // SAFETY: a helper without arguments.
    (unsafe { bpf_ktime_get_ns() }) as u32
}

#[inline(always)]
fn word(frame: &[u8; FRAME], at: usize) -> u16 {
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

#[inline(always)]
fn quad(frame: &[u8; FRAME], at: usize) -> u32 {
    u32::from_be_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]])
}

#[inline(always)]
fn put<const N: usize>(frame: &mut [u8; FRAME], at: usize, bytes: [u8; N]) {
    for (to, from) in frame[at..at + N].iter_mut().zip(bytes) {
        *to = from;
    }
}

#[inline(always)]
fn swap<const N: usize>(frame: &mut [u8; FRAME], a: usize, b: usize) {
    for offset in 0..N {
        frame.swap(a + offset, b + offset);
    }
}
