//! Probes: packets that go through the router and come back, and show how long that takes.
//!
//! With nothing else on the wires there is one at a time: `ping` sends the first one, and where it
//! comes back it is sent again. Under load they are packets of the generator's ([`take_turn`]),
//! whether the ones before have come back or not: one that waited for its predecessor would be sent
//! most often when the router is quick, and would not show when it is not.

use aya_ebpf::{
    bindings::xdp_action,
    macros::{map, xdp},
    maps::Array,
    programs::XdpContext,
};

use crate::{
    buckets::{BUCKETS, bucket},
    frame::{
        DESTINATION_PORT, ETHER_DESTINATION, ETHER_SOURCE, IP_DESTINATION, IP_SOURCE, SOURCE_PORT, UDP,
        UDP_PAYLOAD, head, is_of, quad, swap, word,
    },
    programs::{self, setting},
    traffic::HEAD,
};

/// The time when it was sent, and the complement of that: together they add nothing to the
/// checksum.
const TIME: usize = 46;
const TIME_COMPLEMENT: usize = 50;
/// The probe's epoch, and the complement of it.
const EPOCH: usize = 54;
const EPOCH_COMPLEMENT: usize = 56;

/// A probe as it is sent, but for its time and its epoch. Set when `sink` is loaded, if there are
/// to be probes. So are the next two.
#[unsafe(no_mangle)]
static PROBE: [u8; HEAD] = [0; HEAD];

/// The number at [`UDP_PAYLOAD`] of a probe; 0 if there are no probes.
#[unsafe(no_mangle)]
static PROBE_MARK: u32 = 0;

/// The port that probes come from, and back to.
#[unsafe(no_mangle)]
static PROBE_PORT: u32 = 0;

/// The epoch of the probes that count; 0 to 65,535. Written by the bench: probes that it has given
/// up on are of an earlier one.
#[map]
static PROBE_EPOCH: Array<u32> = Array::with_max_entries(1, 0);

/// The number of probes by their time there and back in nanoseconds, by [`bucket`]. Written by the
/// CPU that probes come back on; the bench reads.
#[map]
static PROBE_TIMES: Array<u64> = Array::with_max_entries(BUCKETS as u32, 0);

/// One in how many of the generator's packets is a probe; 0 if none is, and there is only the one
/// that goes to and fro. Written by the bench.
#[map]
static PROBE_EVERY: Array<u64> = Array::with_max_entries(1, 0);

/// Packets since the last probe among the generator's, and how many probes there have been. Written
/// by the CPU that generates; the bench reads.
#[map]
static PROBE_TURNS: Array<[u64; 2]> = Array::with_max_entries(1, 0);

/// Probes that came back: those that count, and those of an earlier epoch. Written like
/// [`PROBE_TIMES`].
#[map]
static PROBES: Array<[u64; 2]> = Array::with_max_entries(1, 0);

/// Sends the first probe: for `BPF_PROG_TEST_RUN` with one live frame, which is a probe but for its
/// time.
#[xdp]
fn ping(ctx: XdpContext) -> u32 {
    let Some(frame) = head(&ctx) else { return xdp_action::XDP_ABORTED };
    // SAFETY: `head` checked the bounds, and nothing else refers to the packet.
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
    let (frame, epoch) = (head(ctx)?, PROBE_EPOCH.get(0)?);
    *sent += 1;
    // SAFETY: `head` checked the bounds, and nothing else refers to the packet.
    write(unsafe { &mut *frame }, now(), *epoch);
    Some(xdp_action::XDP_TX)
}

/// Returns the verdict on a probe at one end; `None` for other packets.
///
/// The far end turns it round. The near end counts its time, and if it is the only one, sends it
/// again.
#[inline(always)]
pub(crate) fn handle(ctx: &XdpContext) -> Option<u32> {
    if setting(&PROBE_MARK) == 0 {
        return None;
    }
    let frame = head(ctx)?;
    // SAFETY: `head` checked the bounds, and nothing else refers to the packet.
    let frame = unsafe { &mut *frame };
    if !is_probe(frame) {
        return None;
    }
    if u32::from(u16::from_be_bytes(word(frame, DESTINATION_PORT))) == setting(&PROBE_PORT) {
        return Some(came_back(frame));
    }
    // Checksums stay right, since what is swapped is in all of their sums.
    swap::<6>(frame, ETHER_DESTINATION, ETHER_SOURCE);
    swap::<4>(frame, IP_SOURCE, IP_DESTINATION);
    swap::<2>(frame, SOURCE_PORT, DESTINATION_PORT);
    Some(xdp_action::XDP_TX)
}

#[inline(always)]
fn came_back(frame: &mut [u8; HEAD]) -> u32 {
    let (Some(epoch), Some(probes), Some(every)) =
        (PROBE_EPOCH.get(0), PROBES.get_ptr_mut(0), PROBE_EVERY.get(0))
    else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: the value stays where it is, and nothing else writes to it; see there.
    let [counted, late] = unsafe { &mut *probes };
    if u16::from_be_bytes(word(frame, EPOCH)) != *epoch as u16 {
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
fn write(frame: &mut [u8; HEAD], time: u32, epoch: u32) {
    *frame = setting(&PROBE);
    put_time(frame, time);
    let epoch = epoch as u16;
    put(frame, EPOCH, epoch.to_be_bytes());
    put(frame, EPOCH_COMPLEMENT, (!epoch).to_be_bytes());
}

#[inline(always)]
fn is_probe(frame: &[u8; HEAD]) -> bool {
    is_of(frame, UDP) && quad(frame, UDP_PAYLOAD) == setting(&PROBE_MARK)
}

#[inline(always)]
fn put_time(frame: &mut [u8; HEAD], time: u32) {
    put(frame, TIME, time.to_be_bytes());
    put(frame, TIME_COMPLEMENT, (!time).to_be_bytes());
}

/// The clock's low half, in nanoseconds.
#[inline(always)]
fn now() -> u32 {
    programs::now() as u32
}

#[inline(always)]
fn put<const N: usize>(frame: &mut [u8; HEAD], at: usize, bytes: [u8; N]) {
    for (to, from) in frame[at..at + N].iter_mut().zip(bytes) {
        *to = from;
    }
}
