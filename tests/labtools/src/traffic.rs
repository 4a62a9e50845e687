//! Shared by the bench and its programs: the packets to send, their pacing, and the counts. Map
//! data: no padding.
//!
//! A part of `labtools` and, by its path, of the bench.

/// The bytes of each frame that `generate` writes: the headers, and the flow's number after them.
pub(crate) const HEAD: usize = 60;
/// The same in words.
const HEAD_WORDS: usize = HEAD / 4;

/// Flows are dealt to this many source addresses in turn (a Private Link Service has up to eight),
/// a port later each time.
pub(crate) const SOURCES: u32 = 8;

/// The number of flows whose ports on the other side can be learnt.
pub(crate) const LEARNT: u32 = 1 << 16;

/// The number of CPUs that can be counted on.
pub(crate) const CPUS: u32 = 256;

/// If nothing arrives for this many nanoseconds, the packets under way are lost. Longer than any
/// router takes for the packets that are under way at once, even if each opens a session and hardly
/// a SNAT port is free.
pub(crate) const PATIENCE: u64 = 20_000_000;

/// TCP and not UDP.
pub(crate) const TCP: u32 = 1;
/// From the target to the clients, by the ports that were learnt.
pub(crate) const REPLY: u32 = 2;
/// For `sink`: note the time of the first packet and of the last one.
pub(crate) const TIMED: u32 = 4;
/// For `sink`: learn the source port of every flow.
pub(crate) const LEARN: u32 = 8;

/// A flow, by its number and its place: the `at`-th one that goes to the `port`-th port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Flow {
    pub(crate) number: u32,
    pub(crate) at: u32,
    pub(crate) port: u32,
}

/// Flows one after the other: those that go to one port, then those that go to the next.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Span {
    pub(crate) first: Flow,
    /// The number after the last one's.
    pub(crate) end: u32,
    /// Every port's first flow, and the one after its last.
    pub(crate) at_port: [u32; 2],
}

#[cfg(any(target_arch = "bpf", test))]
impl Span {
    /// The flow after this one; after the last one, the first.
    #[inline(always)]
    pub(crate) const fn after(&self, flow: Flow) -> Flow {
        // Compared and not divided: a division would cost as much as the rest.
        let next = Flow { number: flow.number + 1, at: flow.at + 1, port: flow.port };
        if next.number >= self.end {
            self.first
        } else if next.at >= self.at_port[1] {
            Flow { number: next.number, at: self.at_port[0], port: next.port + 1 }
        } else {
            next
        }
    }
}

/// The packets that one CPU's `generate` sends. Written by the bench.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Traffic {
    /// If not 0: as many packets as may be under way.
    pub(crate) window: u32,
    /// The CPU that the sink counts on.
    pub(crate) sink_cpu: u32,
    /// If not 0: nanoseconds from a batch to the next one.
    pub(crate) period: u64,
    /// Packets of a batch.
    pub(crate) batch: u32,
    /// [`TCP`], [`REPLY`].
    pub(crate) flags: u32,
    /// The packets of a thousand that belong to flows of the second span. The others belong to the
    /// first.
    pub(crate) fresh_per_mille: u32,
    /// The head of the first flow's frame, with checksums that are right for the number 0. In
    /// words, since a copy is made for every packet.
    pub(crate) head: [u32; HEAD_WORDS],
    pub(crate) spans: [Span; 2],
}

/// The state of one CPU's `generate` between packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Generator {
    /// Packets made.
    pub(crate) made: u64,
    /// The difference between these and the arrived packets that is not under way: lost packets.
    pub(crate) written_off: i64,
    /// The number of waits that timed out.
    pub(crate) stalls: u64,
    /// When the next batch is due.
    pub(crate) due: u64,
    /// Packets of this batch that are made.
    pub(crate) in_batch: u32,
    /// Goes up with every packet by the share of the second span.
    pub(crate) share: u32,
    /// The next flow of either span.
    pub(crate) next: [Flow; 2],
}

impl Generator {
    /// Gives up what is under way.
    #[inline(always)]
    pub(crate) const fn write_off(&mut self, arrived: u64) {
        self.written_off = self.made.wrapping_sub(arrived) as i64;
        self.stalls += 1;
    }
}

#[cfg(any(target_arch = "bpf", test))]
impl Generator {
    /// Returns the number of packets under way, when `arrived` have arrived.
    #[inline(always)]
    pub(crate) const fn under_way(&mut self, arrived: u64) -> u64 {
        let difference = self.made.wrapping_sub(arrived) as i64 - self.written_off;
        if difference < 0 {
            // Packets that were given up have arrived after all.
            self.written_off += difference;
            return 0;
        }
        difference as u64
    }

    /// When the batch that is due now should have begun, for `period` nanoseconds from one to the
    /// next.
    #[inline(always)]
    pub(crate) const fn schedule(&mut self, now: u64, period: u64) -> u64 {
        /// The largest delay that it tries to make up for.
        const BEHIND: u64 = 1_000_000;
        let due = if self.due + BEHIND < now { now } else { self.due };
        self.due = due + period;
        due
    }

    /// The flow of the next packet.
    #[inline(always)]
    pub(crate) const fn flow(&mut self, traffic: &Traffic) -> Flow {
        self.share += traffic.fresh_per_mille;
        if self.share >= 1000 {
            self.share -= 1000;
            let flow = self.next[1];
            self.next[1] = traffic.spans[1].after(flow);
            flow
        } else {
            let flow = self.next[0];
            self.next[0] = traffic.spans[0].after(flow);
            flow
        }
    }
}

/// The packets that `sink` expects. Written by the bench.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Expected {
    /// Source and destination as numbers, and which bits of them are compared.
    pub(crate) addresses: u64,
    pub(crate) mask: u64,
    /// [`TCP`], [`REPLY`], [`TIMED`], [`LEARN`].
    pub(crate) flags: u32,
    /// The target's first port, and how many it has.
    pub(crate) ports: [u32; 2],
    pub(crate) zero: u32,
}

/// The packets that `sink` has seen on one CPU. As large as two cache lines, so that no two CPUs
/// share one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Sunk {
    /// Packets with the expected addresses, and others with the bench's ports.
    pub(crate) packets: u64,
    pub(crate) otherwise: u64,
    /// When the first one and the last one came, in nanoseconds of `CLOCK_MONOTONIC`; 0: none has.
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) zero: [u64; 12],
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Span = Span { first: Flow { number: 5, at: 1, port: 2 }, end: 10, at_port: [1, 3] };

    #[test]
    fn flows_go_to_one_port_after_the_other_and_start_over() {
        let mut flow = SPAN.first;
        let mut places = Vec::new();
        for _ in 0..6 {
            places.push((flow.number, flow.at, flow.port));
            flow = SPAN.after(flow);
        }
        assert_eq!(places, [(5, 1, 2), (6, 2, 2), (7, 1, 3), (8, 2, 3), (9, 1, 4), (5, 1, 2)]);
    }

    #[test]
    fn a_share_of_the_packets_is_of_the_second_span() {
        let other = Span { first: Flow { number: 100, ..Flow::default() }, end: 1000, at_port: [0, 1000] };
        let traffic = Traffic { fresh_per_mille: 50, spans: [SPAN, other], ..Traffic::default() };
        let mut generator = Generator { next: [SPAN.first, other.first], ..Generator::default() };
        let fresh: Vec<_> =
            (0..1000).map(|_| generator.flow(&traffic).number).filter(|number| *number >= 100).collect();
        assert_eq!(fresh, (100..150).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_under_way_is_made_and_neither_arrived_nor_written_off() {
        let mut generator = Generator { made: 300, ..Generator::default() };
        assert_eq!(generator.under_way(100), 200);
        generator.write_off(100);
        assert_eq!((generator.under_way(100), generator.stalls), (0, 1));
        generator.made = 364;
        assert_eq!(generator.under_way(120), 44);
        // All but ten of them were late and not lost.
        assert_eq!(generator.under_way(354), 0);
        assert_eq!(generator.under_way(354), 0);
        generator.made = 428;
        assert_eq!(generator.under_way(354), 64);
    }

    #[test]
    fn batches_keep_their_distance_and_do_not_make_up_for_long_pauses() {
        let mut generator = Generator::default();
        assert_eq!(generator.schedule(5_000_000, 1000), 5_000_000);
        assert_eq!(generator.schedule(5_000_300, 1000), 5_001_000);
        assert_eq!(generator.schedule(5_900_000, 1000), 5_002_000, "a little late");
        assert_eq!(generator.schedule(9_000_000, 1000), 9_000_000, "much too late");
    }
}
